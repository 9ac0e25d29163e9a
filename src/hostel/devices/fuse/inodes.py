"""The table of what a guest knows of a share: numbers for files, and the descriptors that lead to some of them.

A guest may know more files than a process has descriptors. So an inode is remembered by parent and name, and
only folders on the way, and files that no name leads to any more, have an O_PATH descriptor. Of those at most
``held_limit`` are open: one that hasn't been used for long is closed, and opened again by its name when it is
needed (tree.reach makes sure that it is the same file). Inodes themselves are bounded by ``limit``, which comes
from the guest's memory: a guest that honestly knows a file spends more on it than we do.

An inode lives while the guest knows it, a child's name needs it or something is open. Its number is used again
with another generation.

Lock: its Server's.
"""

import cython
from cython.cimports.hostel.devices.fuse.posix import close
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc, realloc
from cython.cimports.libc.string import memset, strcmp, strdup


@cython.cclass
class Inodes:
    def __cinit__(self, limit: uint32_t, held_limit: uint32_t):
        self.limit = limit
        self.held_limit = held_limit
        self.held = cython.cast(cython.pointer(uint32_t), malloc(held_limit * 4))
        self.top = ROOT
        if self.held == cython.NULL or not self.rehash(256):
            raise MemoryError()

    def __dealloc__(self):
        i: uint32_t
        for i in range(1, self.top):
            inode: cython.pointer(Inode) = self.at(i)
            if inode.kind:
                if inode.fd >= 0:
                    close(inode.fd)
                free(inode.name)
        for i in range(self.chunk_count):
            free(self.chunks[i])
        free(self.chunks)
        free(self.buckets)
        free(self.held)

    # -- finding

    def at(self, id):
        return cython.address(self.chunks[id // CHUNK][id % CHUNK])

    def get(self, id):
        """What the guest calls ``id``; NULL where it knows none of that number."""
        if id < ROOT or id >= self.top:
            return cython.NULL
        inode: cython.pointer(Inode) = self.at(cython.cast(uint32_t, id))
        return inode if inode.kind and inode.lookups else cython.NULL

    def find(self, device, number, born):
        """The inode of a file that still has a name."""
        id: uint32_t = self.buckets[_hash(device, number) & self.mask]
        while id:
            inode: cython.pointer(Inode) = self.at(id)
            if inode.number == number and inode.device == device and inode.born == born:
                return inode
            id = inode.next
        return cython.NULL

    # -- coming and going

    def grow(self):
        if self.chunk_count & (self.chunk_count - 1) == 0:  # at powers of two, room for as many again
            size: uint64_t = self.chunk_count * 2 if self.chunk_count else 1
            chunks: cython.p_void = realloc(self.chunks, size * cython.sizeof(cython.p_void))
            if chunks == cython.NULL:
                return False
            self.chunks = cython.cast(cython.pointer(cython.pointer(Inode)), chunks)
        chunk: cython.p_void = calloc(CHUNK, cython.sizeof(Inode))
        if chunk == cython.NULL:
            return False
        self.chunks[self.chunk_count] = cython.cast(cython.pointer(Inode), chunk)
        self.chunk_count += 1
        return True

    def allocate(self, id):
        """A fresh inode: number ``id``, which must be free, or any for 0. NULL where there is no memory or no room."""
        inode: cython.pointer(Inode)
        if self.count >= self.limit:
            return cython.NULL
        if id == 0 and self.free_list:
            id = self.free_list
            self.free_list = self.at(id).next
        elif id == 0:
            id = self.top
        while id // CHUNK >= self.chunk_count:
            if not self.grow():
                return cython.NULL
        if id >= self.top:
            self.top = id + 1
        inode = self.at(id)
        memset(inode, 0, cython.sizeof(Inode))
        self.generation += 1
        inode.generation = self.generation
        inode.id = id
        inode.fd = -1
        inode.owner_mode = -1
        self.count += 1
        return inode

    def add(self, device, number, born, kind, parent, name):
        """A new inode of the file that ``name`` leads to; NULL where there is no memory or no room."""
        inode: cython.pointer(Inode)
        if self.count > self.mask and self.mask < 1 << 30:
            self.rehash((self.mask + 1) * 2)
        inode = self.allocate(0)
        if inode == cython.NULL:
            return cython.NULL
        inode.kind = kind
        inode.device = device
        inode.number = number
        inode.born = born
        if parent != cython.NULL and not self.rename(inode, parent, name):
            self.release(inode)
            return cython.NULL
        self.hash_in(inode)
        return inode

    def rehash(self, size):
        i: uint32_t
        buckets: cython.pointer(uint32_t) = cython.cast(cython.pointer(uint32_t), calloc(size, 4))
        if buckets == cython.NULL:
            return False
        free(self.buckets)
        self.buckets = buckets
        self.mask = size - 1
        for i in range(ROOT, self.top):
            inode: cython.pointer(Inode) = self.at(i)
            if inode.kind and inode.hashed:
                self.hash_in(inode)
        return True

    def hash_in(self, inode):
        bucket: uint32_t = _hash(inode.device, inode.number) & self.mask
        inode.next = self.buckets[bucket]
        self.buckets[bucket] = inode.id
        inode.hashed = 1

    def unhash(self, inode):
        """The file is gone: a new one may get its number."""
        if not inode.hashed:
            return
        link: cython.pointer(uint32_t) = cython.address(self.buckets[_hash(inode.device, inode.number) & self.mask])
        while link[0] != inode.id:
            link = cython.address(self.at(link[0]).next)
        link[0] = inode.next
        inode.hashed = 0

    def forget(self, inode, lookups):
        if inode.id == ROOT:
            return
        inode.lookups = inode.lookups - lookups if inode.lookups > lookups else 0
        self.release(inode)

    def release(self, inode):
        """Free the inode, and then its parents, if nothing needs them."""
        parent: uint32_t
        while inode.id != ROOT and not inode.lookups and not inode.children and not inode.handles and inode.kind:
            self.unhash(inode)
            self.let_go(inode)
            parent = inode.parent
            free(inode.name)
            inode.name = cython.NULL
            inode.kind = 0
            inode.next = self.free_list
            self.free_list = inode.id
            self.count -= 1
            if not parent:
                return
            inode = self.at(parent)
            inode.children -= 1

    def clear(self):
        """Forget all but the root."""
        i: uint32_t
        root: cython.pointer(Inode) = self.at(ROOT)
        for i in range(ROOT + 1, self.top):
            inode: cython.pointer(Inode) = self.at(i)
            if inode.kind:
                self.let_go(inode)
                free(inode.name)
                inode.kind = 0
        memset(self.buckets, 0, 4 * cython.cast(uint64_t, self.mask + 1))
        self.hash_in(root)
        root.children = 0
        root.lookups = 1
        self.top = ROOT + 1
        self.free_list = 0
        self.count = 1

    # -- names

    def rename(self, inode, parent, name):
        """``name`` in ``parent`` leads to it from now on. False where there is no memory."""
        old: uint32_t = inode.parent
        if inode.name == cython.NULL or strcmp(inode.name, name) != 0:
            copy: cython.p_char = strdup(name)
            if copy == cython.NULL:
                return False
            free(inode.name)
            inode.name = copy
        if not inode.named:
            inode.named = 1
            if inode.fd >= 0:
                self.pinned -= 1
        if old != parent.id:
            inode.parent = parent.id
            parent.children += 1
            if old:
                self.at(old).children -= 1
                self.release(self.at(old))
        return True

    def unname(self, inode):
        """No name that we know of leads to it any more."""
        if inode.named and inode.fd >= 0:
            self.pinned += 1
        inode.named = 0

    # -- descriptors

    def use(self, inode):
        inode.recent = 1
        inode.request = self.request

    def hold(self, inode, fd):
        """Give it the descriptor; returns it, or -1 (and closes it) where all are in use."""
        if self.held_count >= self.held_limit and not self.evict():
            close(fd)
            return -1
        inode.fd = fd
        inode.held_at = self.held_count
        self.held[self.held_count] = inode.id
        self.held_count += 1
        if not inode.named:
            self.pinned += 1
        self.use(inode)
        return fd

    def let_go(self, inode):
        if inode.fd < 0:
            return
        close(inode.fd)
        inode.fd = -1
        if not inode.named:
            self.pinned -= 1
        self.held_count -= 1
        last: uint32_t = self.held[self.held_count]
        self.held[inode.held_at] = last
        self.at(last).held_at = inode.held_at

    def evict(self):
        """Close a descriptor that a name leads to again; the clock's hand goes round twice at most."""
        steps: uint32_t
        for steps in range(2 * self.held_count):
            self.hand = self.hand + 1 if self.hand + 1 < self.held_count else 0
            inode: cython.pointer(Inode) = self.at(self.held[self.hand])
            if not inode.named or inode.request == self.request:
                continue
            if inode.recent:
                inode.recent = 0
                continue
            self.let_go(inode)
            self.evicted += 1
            return True
        return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _hash(device: uint64_t, number: uint64_t) -> uint32_t:
    mixed: uint64_t = number ^ device << 40
    mixed *= cython.cast(uint64_t, 0x9E3779B97F4A7C15)
    return cython.cast(uint32_t, mixed >> 32)
