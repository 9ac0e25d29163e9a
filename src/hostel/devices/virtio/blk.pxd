from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.base.aio cimport iovec
from hostel.block.io cimport DiskIo
from hostel.devices.virtio.queue cimport Chain, Queue

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from * nogil:
    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, const void* mask)

cdef enum:
    MAX_QUEUES = 16
    QUEUE_SIZE = 512              # a request of 1 MiB in single pages fits; so does the depth of any disk
    SECTOR = 512
    DEPTH = 512                   # requests at once, of all queues
    MAX_SEGMENTS = 64             # of one discard or write zeroes
    MAX_ID = 20

cdef enum:                        # types of requests (virtio 1.2, 5.2.6)
    T_IN = 0
    T_OUT = 1
    T_FLUSH = 4
    T_GET_ID = 8
    T_DISCARD = 11
    T_WRITE_ZEROES = 13

cdef enum:                        # their status
    S_OK = 0
    S_IOERR = 1
    S_UNSUPP = 2

cdef struct Header:
    uint32_t type
    uint32_t reserved
    uint64_t sector

cdef struct Segment:              # of discard and write zeroes
    uint64_t sector
    uint32_t count
    uint32_t flags

# A request in the device's hands
cdef struct BlkRequest:
    BlkRequest* next
    void* queue
    Chain* chain
    iovec* own                    # the data's buffers, where the driver's can't be used as they are
    Segment* segments
    uint32_t segment_count
    uint32_t segment              # the one under way
    uint8_t op

# The hot part: queues on one side, the disk on the other.
cdef class BlkRings:
    cdef list queues
    cdef void* rings[MAX_QUEUES]
    cdef bint touched[MAX_QUEUES]
    cdef int count
    cdef DiskIo io
    cdef BlkRequest* pool
    cdef BlkRequest* spare
    cdef public bint stable           # without a cache that the driver flushes: writes are safe when they are done
    cdef public uint32_t max_sectors  # of one segment
    cdef public bint discards
    cdef uint8_t id[MAX_ID]
    cdef int control_fd
    cdef volatile int command
    cdef int told                     # the last io.full that Python knows of
    cdef readonly uint64_t unsupported, refused
    cdef int spin(self) noexcept nogil
    cdef bint turn(self) noexcept nogil
    cdef void wait(self) noexcept nogil
    cdef void take_back(self) noexcept nogil
    cdef bint begin(self, Queue queue, Chain* chain) noexcept nogil
    cdef bint transfer(self, BlkRequest* r, int op, uint64_t sector) noexcept nogil
    cdef bint change(self, BlkRequest* r, int op) noexcept nogil
    cdef bint next_segment(self, BlkRequest* r) noexcept nogil
    cdef void finish(self, BlkRequest* r, int status) noexcept nogil
    cdef void undo(self, BlkRequest* r) noexcept nogil
