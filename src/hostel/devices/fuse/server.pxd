from libc.stdint cimport int64_t, uint32_t, uint64_t
from hostel.devices.fuse.inodes cimport Inode
from hostel.devices.fuse.xattrs cimport Xattrs
from hostel.devices.fuse.posix cimport Statx, iovec

cdef enum:
    COPY_MAX = 64 << 20       # bytes that one COPY_FILE_RANGE copies: nothing interrupts it

cdef enum:
    LATER_ERROR = -10000      # no errno
    LATER = 0xFFFFFFFF        # no reply is so long

cdef class Server(Xattrs):
    cdef bint hasty           # the request at hand may not wait for the host's disk
    cdef uint64_t handle(self, const iovec* vector, uint32_t readable, uint32_t writable, bint hasty) noexcept nogil
    cdef uint64_t answer(self) noexcept nogil
    cdef int64_t dispatch(self, Inode* inode) noexcept nogil
    cdef int64_t begin(self) noexcept nogil
    cdef void forget_many(self) noexcept nogil
    cdef int64_t told(self, Inode* inode, Statx* found) noexcept nogil
    cdef int64_t getattr(self, Inode* inode) noexcept nogil
    cdef int64_t setattr(self, Inode* inode) noexcept nogil
    cdef int64_t change(self, Inode* inode, int fd) noexcept nogil
    cdef int64_t readlink(self, Inode* inode) noexcept nogil
    cdef int64_t open(self, Inode* inode) noexcept nogil
    cdef int64_t opendir(self, Inode* inode) noexcept nogil
    cdef int64_t release(self, Inode* inode, bint is_folder) noexcept nogil
    cdef int64_t read(self, Inode* inode) noexcept nogil
    cdef int64_t write(self, Inode* inode) noexcept nogil
    cdef int64_t fsync(self, Inode* inode, bint is_folder) noexcept nogil
    cdef int64_t fallocate(self, Inode* inode) noexcept nogil
    cdef int64_t lseek(self, Inode* inode) noexcept nogil
    cdef int64_t copy_file_range(self, Inode* inode) noexcept nogil
    cdef int64_t statfs(self) noexcept nogil
    cdef int64_t syncfs(self, Inode* inode) noexcept nogil
    cdef int64_t readdir(self, Inode* inode, bint plus) noexcept nogil
