from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.devices.fuse.inodes cimport Inode, Inodes
from hostel.devices.fuse.posix cimport Dirent

cdef enum:
    DENTS = 32768             # bytes of directory entries asked for at once

# An open file or folder.
cdef struct Handle:
    uint32_t inode            # 0: free
    uint32_t next             # of the same inode, or of the free ones
    int fd                    # -1: it could not be had again (Server.load)
    uint32_t flags            # O_ACCMODE's
    uint8_t is_folder
    char* dents               # entries that were read but not told yet, of a folder that is being listed
    uint32_t dents_size
    uint32_t dents_at
    int64_t offset            # of the entry at dents_at, as the file system counts
    int64_t position          # the descriptor's own: of the entry behind those that were read

cdef struct Dent:
    Dirent* entry             # NULL: the end, or an error
    char* name
    int error

cdef class Handles:
    cdef Inodes inodes
    cdef Handle* all
    cdef uint32_t room
    cdef uint32_t top
    cdef uint32_t free_list
    cdef readonly uint32_t count
    cdef readonly uint32_t limit
    cdef Handle* get(self, uint64_t fh, uint64_t nodeid, bint is_folder) noexcept nogil
    cdef uint32_t add(self, Inode* inode, int fd, uint32_t flags, bint is_folder) noexcept nogil
    cdef bint put(self, uint32_t fh, Inode* inode, int fd, uint32_t flags, bint is_folder) noexcept nogil
    cdef void remove(self, uint32_t fh) noexcept nogil
    cdef Handle* writable(self, Inode* inode) noexcept nogil
    cdef Dent next_dent(self, Handle* handle, int64_t offset) noexcept nogil
    cdef void passed(self, Handle* handle, Dirent* dent) noexcept nogil
    cdef void clear(self) noexcept nogil
