from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.base.lock cimport pthread_mutex_t
from hostel.devices.fuse.abi cimport OPCODES, in_header
from hostel.devices.fuse.handles cimport Handles
from hostel.devices.fuse.inodes cimport Inode, Inodes
from hostel.devices.fuse.posix cimport Statx, iovec
from hostel.devices.fuse.tree cimport Tree

cdef enum:
    MAX_WRITE = 1 << 20       # bytes that a READ or WRITE may carry
    MAX_PAGES = 256
    REQUEST_MAX = 1 << 17     # bytes of a request but for what WRITE carries: the longest is SETXATTR's 64 KiB and a name
    REPLY_MAX = 1 << 16       # bytes of a reply but for what READ carries
    VECTOR = 512              # pieces of memory in one system call, of 1024 that the kernel takes
    NAME_MAX = 255

cdef enum:                    # what the guest may keep of contents
    CACHE_NONE = 0
    CACHE_AUTO = 1
    CACHE_ALWAYS = 2

cdef class Session:
    cdef pthread_mutex_t mutex
    cdef readonly Tree tree
    cdef readonly Inodes inodes
    cdef readonly Handles handles
    cdef readonly bint readonly
    cdef readonly bint started            # INIT has been seen
    cdef int cache
    cdef uint64_t counts[OPCODES]
    cdef readonly uint64_t errors, malformed, bytes_read, bytes_written
    # The request at hand
    cdef in_header header
    cdef uint8_t* argument                # what follows the header: REQUEST_MAX bytes
    cdef uint32_t argument_size
    cdef uint8_t* reply                   # REPLY_MAX bytes behind room for the header
    cdef const iovec* readable
    cdef uint32_t readable_count
    cdef const iovec* writable
    cdef uint32_t writable_count
    cdef uint64_t room                    # bytes for the reply, its header not counted
    cdef bint in_place                    # the reply's bytes are there already
    cdef iovec vector[VECTOR]
    cdef bint has(self, uint32_t size) noexcept nogil
    cdef char* text(self, uint32_t offset, uint32_t* after) noexcept nogil
    cdef char* name(self, uint32_t offset, uint32_t* after) noexcept nogil
    cdef int slice(self, const iovec* vector, uint32_t count, uint64_t skip, uint64_t size, uint64_t* sliced) noexcept nogil
    cdef uint64_t gather(self, uint64_t skip, void* target, uint64_t size) noexcept nogil
    cdef void scatter(self, const void* source, uint64_t size) noexcept nogil
    cdef int opened(self, Inode* inode, Statx* found, int fd, uint32_t flags, uint64_t* fh, uint32_t* open_flags) noexcept nogil
    cdef void drop_privileges(self, Inode* inode, int fd) noexcept nogil
