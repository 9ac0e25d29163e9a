from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "x86intrin.h" nogil:
    uint64_t rdtsc "__rdtsc"()

cdef uint64_t tsc_khz
cdef int64_t now_ns() noexcept nogil
cdef int64_t tsc_to_ns(uint64_t tsc) noexcept nogil
cdef uint64_t ns_to_tsc(int64_t ns) noexcept nogil
