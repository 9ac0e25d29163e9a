from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    ROOT = 1
    CHUNK = 256               # inodes allocated at once: an inode never moves

# What the guest knows by a number. Its file is found by its parent and name, or through a descriptor of its own.
cdef struct Inode:
    uint64_t device
    uint64_t number           # device, number and time of birth say which file it is
    int64_t born              # ns; 0 where the file system doesn't say
    uint64_t generation
    uint64_t lookups          # how often the guest was told of it, less what it forgot; 0 and no child: free
    uint32_t id
    uint32_t parent
    uint32_t children         # inodes whose parent it is
    uint32_t handles          # the first that is open (handles.pxd); 0 for none
    uint32_t next             # of the same hash, or of the free ones
    uint32_t held_at          # where in Inodes.held, if it has a descriptor
    uint32_t request          # the last that used its descriptor
    uint32_t kind             # S_IFMT's bits; 0 for a free one
    int fd                    # O_PATH, or -1
    uint8_t recent            # used since the clock's hand passed
    uint8_t foreign           # what is mounted there isn't shared
    uint8_t hashed            # its file still is, as far as is known
    uint8_t named             # parent and name lead to it
    char* name
    # What the guest set of owner and mode and the host's inode doesn't have (tree.pxd)
    int64_t owner_ctime       # ns; the ctime at which it was read, 0: read again
    int32_t owner_mode        # permissions and special bits; -1: nothing was set
    uint32_t owner_uid
    uint32_t owner_gid
    # The contents that the guest has in its cache are the file's as it was then
    int64_t cached_mtime
    int64_t cached_ctime
    uint64_t cached_size



cdef class Inodes:
    cdef Inode** chunks
    cdef uint32_t chunk_count
    cdef uint32_t top                 # ids below it were given out
    cdef uint32_t free_list
    cdef uint32_t* buckets
    cdef uint32_t mask
    cdef uint64_t generation
    cdef uint32_t request             # the number of the current one
    cdef uint32_t* held               # ids of those with a descriptor
    cdef uint32_t held_count
    cdef uint32_t hand
    cdef readonly uint32_t count
    cdef readonly uint32_t limit
    cdef readonly uint32_t held_limit
    cdef readonly uint32_t pinned     # descriptors that can't be had again: no name leads to the file
    cdef readonly uint64_t evicted
    cdef Inode* at(self, uint32_t id) noexcept nogil
    cdef Inode* get(self, uint64_t id) noexcept nogil
    cdef Inode* find(self, uint64_t device, uint64_t number, int64_t born) noexcept nogil
    cdef Inode* allocate(self, uint32_t id) noexcept nogil
    cdef Inode* add(self, uint64_t device, uint64_t number, int64_t born, uint32_t kind, Inode* parent, const char* name) noexcept nogil
    cdef bint grow(self) noexcept nogil
    cdef bint rehash(self, uint32_t size) noexcept nogil
    cdef void hash_in(self, Inode* inode) noexcept nogil
    cdef void unhash(self, Inode* inode) noexcept nogil
    cdef bint rename(self, Inode* inode, Inode* parent, const char* name) noexcept nogil
    cdef void unname(self, Inode* inode) noexcept nogil
    cdef int hold(self, Inode* inode, int fd) noexcept nogil
    cdef void let_go(self, Inode* inode) noexcept nogil
    cdef void use(self, Inode* inode) noexcept nogil
    cdef bint evict(self) noexcept nogil
    cdef void forget(self, Inode* inode, uint64_t lookups) noexcept nogil
    cdef void release(self, Inode* inode) noexcept nogil
    cdef void clear(self) noexcept nogil
