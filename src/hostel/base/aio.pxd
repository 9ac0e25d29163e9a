from libc.stdint cimport int64_t, uint64_t
from hostel.base.lock cimport pthread_mutex_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t preadv(int fd, const iovec* iov, int count, int64_t offset)
    ssize_t pwritev(int fd, const iovec* iov, int count, int64_t offset)

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass
    ctypedef unsigned long pthread_t
    int cond_init "pthread_cond_init"(pthread_cond_t* cond, const void* attr)
    int cond_wait "pthread_cond_wait"(pthread_cond_t* cond, pthread_mutex_t* mutex)
    int cond_signal "pthread_cond_signal"(pthread_cond_t* cond)
    int cond_broadcast "pthread_cond_broadcast"(pthread_cond_t* cond)
    int pthread_create(pthread_t* thread, const void* attr, void* (*start)(void*) noexcept nogil, void* argument)
    int pthread_join(pthread_t thread, void** result)
    int pthread_setname_np(pthread_t thread, const char* name)
    pthread_t pthread_self()

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t* set)
    int pthread_sigmask(int how, const sigset_t* set, sigset_t* old)
    int SIG_SETMASK

cdef enum:
    AIO_READ = 0
    AIO_WRITE = 1
    AIO_SYNC = 2              # what was written is on the disk afterwards; its size too, other metadata not

    MAX_THREADS = 8
    MAX_FILES = 16            # of one disk: its layers

cdef struct Completion:
    uint64_t token
    int64_t result            # bytes, or -errno

# Operations on files that were named beforehand, started by one thread, which also reaps them.
cdef class Aio:
    cdef readonly str name
    cdef readonly int event_fd          # readable once something is done, after arm()
    cdef readonly int depth             # operations that may be under way
    cdef readonly int running           # started and not reaped
    cdef readonly uint64_t started
    # Queue an operation; False: there is no room, reap first. iov and what it points to stay until it is reaped.
    cdef bint start(self, int op, int file, const iovec* iov, int count, int64_t offset, uint64_t token) noexcept nogil
    # Let what was queued begin; how much the kernel doesn't want yet
    cdef int submit(self) noexcept nogil
    # Up to room of what is done
    cdef int reap(self, Completion* out, int room) noexcept nogil
    # Have event_fd signalled at the next completion; True: there is one already
    cdef bint arm(self) noexcept nogil

cdef struct Job:
    const iovec* iov
    int64_t offset
    uint64_t token
    int op
    int fd
    int count

cdef class ThreadAio(Aio):
    cdef int* fds
    cdef Job* jobs                      # a ring of depth
    cdef Completion* done               # the same
    cdef unsigned int mask
    cdef unsigned int first_job, last_job, first_done, last_done
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t cond
    cdef pthread_t threads[MAX_THREADS]
    cdef int thread_count, idle, fd_count
    cdef bint armed, closing
    cdef bint start(self, int op, int file, const iovec* iov, int count, int64_t offset, uint64_t token) noexcept nogil
    cdef int submit(self) noexcept nogil
    cdef int reap(self, Completion* out, int room) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void work(self) noexcept nogil

# An iovec array of Python buffers; for tests
cdef class Vector:
    cdef iovec* iov
    cdef list buffers
