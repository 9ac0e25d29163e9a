from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_SLOTS = 16

# One stretch of guest-physical addresses that is backed by host memory.
cdef struct Slot:
    uint64_t gpa          # first guest-physical address, page aligned
    uint64_t size         # bytes, page aligned
    uint8_t* host         # host address of the first byte
    uint8_t* code         # one byte a page: the number of translated blocks that hold bytes of it (0 = none)
    uint8_t* dirty        # one byte a page: written since the last clear
    bint readonly         # ROM: guest writes are dropped

cdef class Ram:
    cdef Slot slots[MAX_SLOTS]
    cdef int count
    cdef readonly uint64_t size
    cdef list mappings
    cdef Slot* find(self, uint64_t gpa) noexcept nogil
    cdef uint8_t* host(self, uint64_t gpa, uint64_t length) noexcept nogil
