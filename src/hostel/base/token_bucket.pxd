from libc.stdint cimport int64_t

# A rate with a burst. Not locked: one thread at a time, or its owner's lock.
cdef class TokenBucket:
    cdef readonly int64_t rate          # units a second
    cdef readonly int64_t burst         # units that may go at once after a pause
    cdef int64_t level_ns               # how long the bucket has been filling, in time: never more than full_ns
    cdef int64_t full_ns
    cdef int64_t seen_ns                # when level_ns was right
    cdef int64_t wait_ns(self, int64_t amount, int64_t now_ns) noexcept nogil
    cdef void spend(self, int64_t amount) noexcept nogil
    cdef int64_t time(self, int64_t amount) noexcept nogil
