from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from hostel.devices.fuse.abi cimport attr, entry_out
from hostel.devices.fuse.inodes cimport Inode, Inodes
from hostel.devices.fuse.posix cimport Statx

cdef enum:
    NOBODY = 65534            # whom the guest is told of for all others of the host's
    NO_ID = 0xFFFFFFFF
    TICK = 50000000           # ns; inodes' clocks tick every 1 to 10 ms
    DEPTH = 256               # folders on the way to a file that may have to be opened again at once

# The attribute that keeps what the guest set of owner and mode
cdef const char* OWNER

# What a guest is told of a file's owner and mode (the permissions and special bits).
cdef struct Owner:
    uint32_t uid
    uint32_t gid
    uint32_t mode

cdef class Tree:
    cdef readonly Inodes inodes
    cdef readonly bint keeps_owners
    cdef readonly uint64_t stale
    cdef uint32_t host_uid
    cdef uint32_t host_gid
    cdef uint64_t mount
    cdef uint64_t timeout             # seconds for which the guest may believe what it was told
    cdef int64_t now(self) noexcept nogil
    cdef bint is_foreign(self, Statx* found) noexcept nogil
    cdef bint is_same(self, Inode* inode, Statx* found) noexcept nogil
    cdef int reach(self, Inode* inode) noexcept nogil
    cdef int step(self, Inode* inode) noexcept nogil
    cdef int look(self, Inode* folder, const char* name, Statx* found) noexcept nogil
    cdef int stat(self, Inode* inode, Statx* found) noexcept nogil
    cdef int open(self, Inode* inode, int flags) noexcept nogil
    cdef int open_named(self, int folder, const char* name, Statx* expected, int flags) noexcept nogil
    cdef int enter(self, Inode* folder, const char* name, Statx* found, int fd, entry_out* out) noexcept nogil
    cdef void fill(self, Inode* inode, Statx* found, attr* out) noexcept nogil
    cdef Owner owner(self, Inode* inode, Statx* found) noexcept nogil
    cdef void learn_owner(self, Inode* inode, Statx* found, int fd) noexcept nogil
    cdef void read_owner(self, Inode* inode, int fd) noexcept nogil
    cdef int set_owner(self, Inode* inode, Statx* found, int fd, Owner wanted) noexcept nogil
    cdef uint32_t host_mode(self, uint32_t mode, bint is_folder) noexcept nogil
    cdef int pin(self, Inode* inode) noexcept nogil
    cdef Inode* known(self, Statx* found) noexcept nogil
    cdef int stat_open(self, int fd, Statx* found) noexcept nogil
    cdef int folder(self, Inode* inode) noexcept nogil
    cdef void identify(self, Inode* inode, Statx* found) noexcept nogil
