from libc.stdint cimport int64_t, uint32_t
from hostel.devices.fuse.inodes cimport Inode
from hostel.devices.fuse.posix cimport Statx
from hostel.devices.fuse.session cimport Session
from hostel.devices.fuse.tree cimport Owner

# Each answers a request on a folder: the size of the reply, or -errno.
cdef class Names(Session):
    cdef int64_t lookup(self, Inode* folder) noexcept nogil
    cdef int64_t create(self, Inode* folder) noexcept nogil
    cdef int64_t tmpfile(self, Inode* folder) noexcept nogil
    cdef int64_t mknod(self, Inode* folder) noexcept nogil
    cdef int64_t mkdir(self, Inode* folder) noexcept nogil
    cdef int64_t symlink(self, Inode* folder) noexcept nogil
    cdef int64_t link(self, Inode* folder) noexcept nogil
    cdef int64_t unlink(self, Inode* folder, bint is_folder) noexcept nogil
    cdef int64_t rename(self, Inode* folder, uint32_t fixed) noexcept nogil
    cdef int64_t entered(self, Inode* folder, const char* name, int fd, Owner* owner) noexcept nogil
    cdef Owner newborn(self, Inode* folder, uint32_t mode, bint is_folder) noexcept nogil
    cdef void own(self, Inode* inode, Statx* found, int fd, Owner* owner) noexcept nogil
    cdef void name_gone(self, Inode* inode, Inode* folder, const char* name, Statx* found) noexcept nogil
