from libc.stdint cimport uint64_t
from hostel.base.lock cimport pthread_mutex_t
from hostel.devices.fuse.server cimport Server
from hostel.devices.virtio.queue cimport Bell, Chain, Queue

cdef enum:
    BATCH = 16                # requests that are answered before the driver is told
    QUICK = 64                # requests that a vCPU answers itself for one notification
    QUICK_SIZE = 1 << 18      # bytes that it moves for one

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout)
    enum: POLLIN

cdef extern from "<pthread.h>" nogil:
    int trylock "pthread_mutex_trylock"(pthread_mutex_t* mutex)

# Who answers: a thread, or the vCPU that asks.
cdef class Answers(Bell):
    cdef Server server
    cdef list queues
    cdef pthread_mutex_t mutex
    cdef volatile int running         # queues may be used
    cdef volatile int ended
    cdef int wake
    cdef void rung(self, Queue queue) noexcept nogil
    cdef bint is_quick(self, const Chain* chain) noexcept nogil
    cdef void serve(self, Queue queue) noexcept nogil
    cdef void wait(self, Queue first, Queue second) noexcept nogil
