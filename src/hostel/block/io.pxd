from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.base.aio cimport MAX_FILES, Aio, iovec
from hostel.base.token_bucket cimport TokenBucket

cdef enum:                    # what a request wants
    IO_READ = 0
    IO_WRITE = 1
    IO_FLUSH = 2
    IO_DISCARD = 3
    IO_ZEROES = 4

cdef enum:                    # flags of a request
    IO_STABLE = 1             # a write is done when it is safe from a crash of the host
    IO_UNMAP = 2              # zeroes may give the space back

cdef enum:
    IO_AGAIN = -1             # a result: taken back before it was done

# A request, from start() until next_done(); in one list at a time, or with the engine.
cdef struct Io:
    Io* next
    const iovec* iov          # the device's
    iovec* window             # what an operation is about, where that isn't all of it: ours
    int64_t offset
    int64_t length
    int64_t done              # bytes from the beginning that are read or written
    int64_t part              # bytes that the operation under way is about
    uint64_t token
    int result                # 0, an errno, or IO_AGAIN
    int count
    uint8_t op
    uint8_t flags
    bint paid                 # let through by the limits
    bint exclusive            # nothing else may be under way beside it
    bint unaligned            # not as the file wants it: bounced, by Python

cdef struct Extent:
    uint64_t key              # the granule's number + 1; 0: empty
    int64_t host
    uint8_t kind              # as Disk.map has it
    uint8_t file

cdef struct IoList:
    Io* first
    Io* last

cdef class DiskIo:
    cdef public object disk
    cdef readonly int depth
    cdef readonly Aio aio
    cdef readonly int64_t size
    cdef readonly bint readonly
    cdef readonly int alignment
    cdef list fds                       # of the engine's files
    cdef int files[MAX_FILES]          # the same
    cdef readonly bint identity         # the file is the disk
    cdef int granule_bits
    cdef uint32_t extent_mask
    cdef Extent* extents
    cdef Io* pool
    cdef Io* spare
    cdef IoList waiting, slow, finished, stalled
    cdef readonly int under_way         # with the engine
    cdef readonly int held              # started and not given back by next_done
    cdef bint hold                      # nothing is begun
    cdef bint barrier                   # an exclusive request is Python's to do
    cdef TokenBucket iops, rate
    cdef readonly int64_t delay_ns      # how long the limits hold the first request back; 0: they don't
    cdef readonly int full              # the errno that said that there is no room; 0: there is
    cdef readonly str message           # of the latest failure
    cdef uint64_t counts[5]
    cdef uint64_t bytes_read, bytes_written, errors, stalls, by_python, limited
    # Take a request; iov and what it points to stay until it is finished. False: too many, come back later
    cdef bint start(self, int op, int64_t offset, int64_t length, const iovec* iov, int count, int flags, uint64_t token) noexcept nogil
    # Get on with everything that needs no Python; True: there is something for work()
    cdef bint pump(self) noexcept nogil
    # One that is finished; False: none
    cdef bint next_done(self, uint64_t* token, int* result) noexcept nogil
    # Have aio.event_fd signalled when there is something for pump(); True: there is already
    cdef bint arm(self) noexcept nogil
    # Give everything back, as finished or with IO_AGAIN; the engine has nothing any more
    cdef void give_up(self) noexcept nogil
    cdef bint enter(self, Io* io) noexcept nogil
    cdef bint advance(self, Io* io) noexcept nogil
    cdef bint transfer(self, Io* io, int file, int64_t host, int64_t length) noexcept nogil
    cdef bint write_now(self, Io* io, int file, int64_t host, int64_t length) noexcept nogil
    cdef int buffers(self, Io* io, int64_t length, const iovec** iov) noexcept nogil
    cdef bint locate(self, int64_t offset, int64_t length, Extent* extent, int64_t* run) noexcept nogil
    cdef void complete(self, Io* io, int64_t result) noexcept nogil
    cdef void finish(self, Io* io, int result) noexcept nogil
    cdef bint limit(self, Io* io) noexcept nogil
    cdef void fill(self, Io* io, int64_t length) noexcept nogil
    cdef void forget(self, int64_t offset, int64_t length) noexcept nogil
    cdef object perform(self, Io* io)
