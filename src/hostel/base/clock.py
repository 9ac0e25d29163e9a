"""Host time: CLOCK_MONOTONIC in nanoseconds and the TSC that runs beside it.

The TSC's frequency is measured once against CLOCK_MONOTONIC (about 10 ms, error under 20 ppm); it is taken
as constant, as on every x86-64 host since 2008 (constant_tsc, nonstop_tsc).
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint64_t
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

_tsc0 = cython.declare(uint64_t)
_ns0 = cython.declare(int64_t)


def now_ns():
    t: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(t))
    return cython.cast(int64_t, t.tv_sec) * 1000000000 + t.tv_nsec


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _sample(tsc: cython.pointer(uint64_t), ns: cython.pointer(int64_t)) -> cython.void:
    # The tightest of a few bracketed reads, so that being scheduled away between the two doesn't count.
    best: uint64_t = 0xFFFFFFFFFFFFFFFF
    before: uint64_t
    after: uint64_t
    t: int64_t
    i: cython.int
    for i in range(16):
        before = rdtsc()
        t = now_ns()
        after = rdtsc()
        if after - before < best:
            best = after - before
            tsc[0] = before + (after - before) // 2
            ns[0] = t


@cython.cfunc
def _calibrate():
    global _tsc0, _ns0, tsc_khz
    tsc1: uint64_t = 0
    ns1: int64_t = 0
    pause: timespec
    _sample(cython.address(_tsc0), cython.address(_ns0))
    pause.tv_sec = 0
    pause.tv_nsec = 10000000
    nanosleep(cython.address(pause), cython.NULL)
    _sample(cython.address(tsc1), cython.address(ns1))
    tsc_khz = (tsc1 - _tsc0) * 1000000 // cython.cast(uint64_t, ns1 - _ns0)


def tsc_to_ns(tsc):
    d: int64_t = cython.cast(int64_t, tsc - _tsc0)
    khz: int64_t = cython.cast(int64_t, tsc_khz)
    return _ns0 + (d // khz) * 1000000 + (d % khz) * 1000000 // khz


def ns_to_tsc(ns):
    d: int64_t = ns - _ns0
    khz: int64_t = cython.cast(int64_t, tsc_khz)
    return _tsc0 + cython.cast(uint64_t, (d // 1000000) * khz + (d % 1000000) * khz // 1000000)


def tsc_khz_py() -> int:
    """The host TSC's frequency in kHz."""
    return tsc_khz


def rdtsc_py() -> int:
    """The host's TSC now."""
    return rdtsc()


_calibrate()
