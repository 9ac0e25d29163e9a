from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.base.aio cimport iovec
from hostel.memory.ram cimport Ram, Slot

cdef extern from "<unistd.h>" nogil:
    ssize_t write_fd "write"(int fd, const void* data, size_t length)

cdef extern from "<fcntl.h>" nogil:
    enum: SYNC_FILE_RANGE_WRITE
    int sync_file_range(int fd, int64_t offset, int64_t length, unsigned int flags)

# As in a file of runs: little-endian, no padding ("<QIIQ")
cdef struct Run:
    uint64_t first        # guest page: guest-physical address >> 12
    uint32_t count        # pages
    uint32_t file         # whose pages they are
    uint64_t page         # the first one's number there

cdef struct RunList:
    Run* at
    size_t count
    size_t room
    bint apart            # the next run is none with the last: another slot's

# A page that is in the file that is being written
cdef struct Seen:
    const uint8_t* host   # the guest page that had it; NULL: none
    uint32_t tag          # the high half of its hash
    uint32_t page         # its number in the file
    uint32_t copies       # that are there, one behind another

# Short runs that are read at once: one behind another in the file, anywhere in guest memory
cdef struct Reading:
    iovec vector[1024]    # IOV_MAX
    int count
    uint32_t file
    uint64_t page
    uint64_t pages

cdef class _Writer:
    cdef Ram ram
    cdef int fd
    cdef uint32_t file
    cdef bytes base_bytes
    cdef Run* base
    cdef size_t base_count
    cdef size_t base_at          # the first run that isn't wholly behind
    cdef list views              # memoryviews of base files, or None
    cdef const uint8_t** mapped  # the same; NULL: not compared with
    cdef size_t mapped_count
    cdef RunList runs
    cdef Seen* seen
    cdef uint64_t seen_mask
    cdef uint64_t seed
    cdef bint no_memory
    cdef bytearray piece         # what isn't written yet
    cdef uint8_t* buffer         # its bytes
    cdef uint64_t filled         # pages in it
    cdef uint64_t pages          # in the file, and in the buffer
    cdef uint64_t zero, same, duplicate
    cdef list digests            # of pieces
    cdef uint64_t scan(self, Slot* slot, uint64_t page) noexcept nogil
    cdef void take_over(self, uint64_t first, uint64_t count) noexcept nogil
    cdef void add_page(self, uint64_t number, const uint8_t* host) noexcept nogil
    cdef bint add_copy(self, Seen* seen, uint64_t number, const uint8_t* host) noexcept nogil
    cdef void store(self, uint64_t number, const uint8_t* host) noexcept nogil
    cdef void add_run(self, uint64_t first, uint64_t count, uint32_t file, uint64_t page) noexcept nogil
    cdef int put(self, const uint8_t* data, size_t length) noexcept nogil
