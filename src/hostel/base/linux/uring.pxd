from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.base.aio cimport Aio, Completion, iovec

cdef extern from * nogil:
    void fence "__atomic_thread_fence"(int order)     # 4: acquire and release; 5: sequentially consistent

cdef extern from "<unistd.h>" nogil:
    long system_call "syscall"(long number, ...)

cdef struct Sqe:              # struct io_uring_sqe (linux/io_uring.h)
    uint8_t opcode
    uint8_t flags
    uint16_t ioprio
    int32_t fd
    uint64_t off
    uint64_t addr
    uint32_t len
    uint32_t op_flags
    uint64_t user_data
    uint64_t rest[3]

cdef struct Cqe:              # struct io_uring_cqe
    uint64_t user_data
    int32_t res
    uint32_t flags

cdef class Uring(Aio):
    cdef readonly int fd
    cdef object rings, entries          # the mappings
    cdef Sqe* sqes
    cdef Cqe* cqes
    cdef volatile uint32_t* sq_head
    cdef volatile uint32_t* sq_tail
    cdef volatile uint32_t* cq_head
    cdef volatile uint32_t* cq_tail
    cdef volatile uint32_t* cq_flags
    cdef uint32_t sq_mask, cq_mask, sq_size
    cdef uint32_t tail                  # the submission queue's, as far as it is filled
    cdef int files
    cdef bint start(self, int op, int file, const iovec* iov, int count, int64_t offset, uint64_t token) noexcept nogil
    cdef int submit(self) noexcept nogil
    cdef int reap(self, Completion* out, int room) noexcept nogil
    cdef bint arm(self) noexcept nogil
