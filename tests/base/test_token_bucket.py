"""The token bucket, on a clock of the test's: a long run keeps to the rate, whatever the sizes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostel.base.token_bucket import TokenBucket


def test_a_burst_then_the_rate():
    bucket = TokenBucket(10, 20)
    assert [bucket.take(1) for _ in range(20)] == [0] * 20
    wait = bucket.take(1)
    assert 0 < wait <= 100_000_000       # a tenth of a second, less what has passed
    time.sleep(wait / 1e9)
    assert bucket.take(1) == 0


def test_what_is_larger_than_the_burst_leaves_a_debt():
    bucket = TokenBucket(1000, 10)
    assert bucket.take(5000) == 0
    assert 4_000_000_000 < bucket.wait(10) <= 5_000_000_000


def test_asking_takes_nothing():
    bucket = TokenBucket(1, 1)
    assert bucket.wait(1) == bucket.wait(1) == 0
    assert bucket.take(1) == 0
    assert bucket.wait(1) > 0


def test_it_is_never_fuller_than_full():
    bucket = TokenBucket(1 << 33, 5)
    time.sleep(0.01)
    assert bucket.take(5) == 0
    saved = bucket.save()
    again = TokenBucket(1 << 33, 5)
    again.load({**saved, "level_ns": 1 << 60})
    assert again.save()["level_ns"] <= 1


@given(st.integers(1, 1 << 33), st.integers(0, 1 << 40), st.lists(st.integers(0, 1 << 40), max_size=30))
def test_any_sizes_keep_to_the_rate(rate, burst, amounts):
    """What must be waited for, in all, is what doesn't flow in while one waits."""
    bucket = TokenBucket(rate, burst)
    begun = time.monotonic_ns()
    gone = last = 0
    for amount in amounts:
        if bucket.take(amount) == 0:
            gone, last = gone + amount, amount
    elapsed = time.monotonic_ns() - begun
    # All but the last, which may leave a debt, was there or has flowed in
    assert gone - last <= (bucket.burst + rate * (elapsed + 1) / 1e9) * (1 + 1e-12)


def test_save_and_load():
    bucket = TokenBucket(1, 10)
    bucket.take(10)
    again = TokenBucket(1, 10)
    again.load(bucket.save())
    assert again.wait(10) > 9_000_000_000
    with pytest.raises(ValueError, match="version 7"):
        again.load({"version": 7})


@pytest.mark.parametrize("rate, burst", [(0, 1), (-1, 1), ((1 << 33) + 1, 1), (1, -1), (1, 1 << 41)])
def test_absurd_rates_are_refused(rate, burst):
    with pytest.raises(ValueError, match="no token bucket"):
        TokenBucket(rate, burst)
