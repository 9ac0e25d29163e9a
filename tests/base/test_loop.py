import os
import threading
import time

import pytest

from hostel.base.loop import READ, Loop


@pytest.fixture
def loop():
    loop = Loop()
    loop.call_later(10, lambda: pytest.fail("the loop hung"))
    yield loop
    loop.close()


def test_timers_run_in_order_and_cancelled_ones_not(loop):
    seen = []
    now = time.monotonic()
    loop.call_at(now + 0.02, lambda: (seen.append("c"), loop.stop()))
    loop.call_at(now + 0.01, lambda: seen.append("b"))
    loop.call_at(now, lambda: seen.append("a"))
    loop.call_at(now + 0.005, lambda: seen.append("x")).cancel()
    loop.run()
    assert seen == ["a", "b", "c"]


def test_other_threads_hand_calls_over(loop):
    seen = []

    def other():
        for i in range(100):
            loop.call_soon_threadsafe(lambda i=i: seen.append(i))
        loop.call_at_threadsafe(time.monotonic() + 0.01, loop.stop)

    thread = threading.Thread(target=other)
    thread.start()
    loop.run()
    thread.join()
    assert seen == list(range(100))
    assert threading.get_ident() != thread.ident


def test_a_handler_may_remove_another_of_the_same_round(loop):
    a, b = os.eventfd(1), os.eventfd(1)
    seen = []

    def handler(which, other):
        seen.append(which)
        loop.unwatch(other)
        loop.unwatch(which)
        loop.call_later(0, loop.stop)

    loop.watch(a, READ, lambda _: handler(a, b))
    loop.watch(b, READ, lambda _: handler(b, a))
    loop.run()
    assert len(seen) == 1
    os.close(a)
    os.close(b)


def test_errors_of_callbacks(loop):
    def wrong():
        raise KeyError("x")

    loop.call_later(0, wrong)
    with pytest.raises(KeyError):
        loop.run()
    errors = []
    loop.on_error = errors.append
    loop.call_later(0, wrong)
    loop.call_later(0.001, loop.stop)
    loop.run()
    assert [type(error) for error in errors] == [KeyError]
