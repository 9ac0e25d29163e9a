"""A token bucket: so many units a second on average, and a burst after a pause (Turner 1986; RFC 2697 has the idea).

It holds up to ``burst`` units and fills at ``rate`` units a second. What is larger than the burst goes when the
bucket is full and leaves a debt, so that the rate holds for any sizes. Who is limited by several buckets asks all of
them (``wait``) before it spends from any. For disks' and networks' limits, compiled and in Python alike.

The level is kept as time, in nanoseconds of filling (rounded up), so that no rate is too small for an integer.
Lock: none; the owner's. Limits: rates of 1 to 2**33 units a second, so that products fit 64 bits, bursts up to 2**40.
"""

import cython
from cython.cimports.libc.stdint import int64_t
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec

MAX_RATE = 1 << 33
MAX_BURST = 1 << 40
_LONG = cython.declare(int64_t, 1 << 60)  # nanoseconds: 36 years, as good as for ever
_VERSION = 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def now_ns() -> int64_t:
    """As base/clock's, which measures the TSC when it is imported: the CLI needn't wait for that."""
    t: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(t))
    return cython.cast(int64_t, t.tv_sec) * 1000000000 + t.tv_nsec


@cython.cclass
class TokenBucket:
    """``rate`` units a second, ``burst`` units at once (default: a second's worth). It is full at first."""

    def __init__(self, rate: int, burst: int = 0):
        if not 1 <= rate <= MAX_RATE or not 0 <= burst <= MAX_BURST:
            raise ValueError(f"no token bucket of {rate} a second and {burst} at once")
        self.rate = rate
        self.burst = burst or rate
        self.full_ns = self.time(self.burst)
        self.level_ns = self.full_ns
        self.seen_ns = now_ns()

    def wait(self, amount: int) -> int:
        """Nanoseconds until ``amount`` may go; 0: now."""
        return self.wait_ns(min(amount, MAX_BURST), now_ns())

    def take(self, amount: int) -> int:
        """As ``wait``, and spends ``amount`` where the answer is 0."""
        delay: int64_t = self.wait_ns(min(amount, MAX_BURST), now_ns())
        if not delay:
            self.spend(min(amount, MAX_BURST))
        return delay

    def wait_ns(self, amount, now_ns):
        if now_ns > self.seen_ns:
            # A debt may be long, and time since the last look too: never past full
            if now_ns - self.seen_ns >= self.full_ns - self.level_ns:
                self.level_ns = self.full_ns
            else:
                self.level_ns += now_ns - self.seen_ns
            self.seen_ns = now_ns
        needed: int64_t = self.time(amount)
        if needed > self.full_ns:
            needed = self.full_ns
        return needed - self.level_ns if needed > self.level_ns else 0

    def spend(self, amount):
        """Take ``amount`` out, whether it is there or not."""
        self.level_ns -= self.time(amount)
        if self.level_ns < -_LONG:
            self.level_ns = -_LONG

    def time(self, amount):
        """Nanoseconds in which ``amount`` units flow in."""
        if amount // self.rate >= 1 << 30:
            return _LONG
        return amount // self.rate * 1000000000 + (amount % self.rate * 1000000000 + self.rate - 1) // self.rate

    def save(self) -> dict:
        """The level; rate and burst belong to the owner's specification."""
        self.wait_ns(0, now_ns())
        return {"version": _VERSION, "level_ns": self.level_ns}

    def load(self, state: dict):
        """Go on from what ``save`` gave; ``ValueError`` for another version."""
        if state.get("version") != _VERSION:
            raise ValueError(f"token bucket: saved state of version {state.get('version')}")
        self.level_ns = min(int(state["level_ns"]), self.full_ns)
        self.seen_ns = now_ns()
