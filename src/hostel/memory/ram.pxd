from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<sys/mman.h>" nogil:
    enum: MADV_DONTNEED, MADV_HUGEPAGE
    int madvise(void* address, size_t length, int advice)
    void* map "mmap"(void* address, size_t length, int protection, int flags, int fd, int64_t offset)

cdef extern from * nogil:
    void full_fence "__sync_synchronize"()

cdef enum:
    MAX_SLOTS = 16

# One stretch of guest-physical addresses that is backed by host memory.
cdef struct Slot:
    uint64_t gpa          # first guest-physical address, page aligned
    uint64_t size         # bytes, page aligned
    uint8_t* host         # host address of the first byte
    uint8_t* code         # one byte a page: the number of translated blocks that hold bytes of it (0 = none)
    uint8_t* dirty        # one byte a page: written since the last clear
    uint8_t* backed       # one byte a page: a file is mapped there; NULL: none is in all of the slot
    bint readonly         # ROM: guest writes are dropped

# An engine's answer to a write into [gpa, gpa + size), within one page, that holds translated code
ctypedef void (*code_written_t)(void* owner, uint64_t gpa, uint64_t size) noexcept nogil

cdef class Ram:
    cdef Slot slots[MAX_SLOTS]
    cdef int count
    cdef readonly uint64_t size
    cdef list mappings
    cdef list backings    # what Slot.backed points to
    cdef int remapped     # mappings that discards have made in slots with files
    cdef Slot* find(self, uint64_t gpa) noexcept nogil
    cdef uint8_t* host(self, uint64_t gpa, uint64_t length) noexcept nogil
    # The engine that translates from this memory, set and removed by itself
    cdef code_written_t code_written
    cdef void* code_owner
    cdef Slot* find_host(self, const void* host) noexcept nogil
    # Bytes at that host address, within one slot, were written by someone who is no vCPU; behind the write, and
    # without the GIL and any lock that a vCPU may wait for in the middle of an instruction
    cdef void written(self, const void* host, uint64_t length) noexcept nogil
    # Whole pages are zero from now on, whatever backs them, and nobody is told; False: the host refuses
    cdef bint empty(self, Slot* slot, uint64_t offset, uint64_t length) noexcept nogil
    # Have Slot.backed where it isn't yet
    cdef object expect_files(self, Slot* slot)
    # As if new: zero, no file mapped, nothing dirty; not ROM. Engines are told
    cdef bint reset(self) noexcept nogil
