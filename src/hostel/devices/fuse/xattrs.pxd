from libc.stdint cimport int64_t, uint32_t
from hostel.devices.fuse.inodes cimport Inode
from hostel.devices.fuse.names cimport Names

cdef enum:
    XATTR_MAX = 65536         # bytes of a value, and of a list (xattr(7))

cdef class Xattrs(Names):
    cdef int64_t xattr(self, Inode* inode) noexcept nogil
    cdef int64_t xattr_named(self, int fd, const char* name, const void* value) noexcept nogil
    cdef int64_t listxattr(self, int fd, uint32_t size) noexcept nogil
