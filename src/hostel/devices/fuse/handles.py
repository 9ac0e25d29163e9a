"""The files and folders that a guest has open, by number; at most ``limit``, for each is a descriptor.

A folder's entries are read many at once and told a few at a time: what is over waits for the next request. A
listing goes on at any offset that the file system gave.

Lock: its Server's.
"""

import cython
from cython.cimports.hostel.devices.fuse.inodes import Inode, Inodes
from cython.cimports.hostel.devices.fuse.posix import (
    O_ACCMODE,
    O_RDONLY,
    SEEK_SET,
    SYS_GETDENTS64,
    Dirent,
    close,
    lseek,
    syscall,
)
from cython.cimports.libc.errno import ENOMEM, errno
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.stdlib import free, malloc, realloc
from cython.cimports.libc.string import memset


@cython.cclass
class Handles:
    def __cinit__(self, inodes: Inodes, limit: uint32_t):
        self.inodes = inodes
        self.limit = limit
        self.top = 1

    def __dealloc__(self):
        i: uint32_t
        for i in range(1, self.top):
            if self.all[i].inode:
                if self.all[i].fd >= 0:
                    close(self.all[i].fd)
                free(self.all[i].dents)
        free(self.all)

    def get(self, fh, nodeid, is_folder):
        """The handle, if it is of that inode and kind; else NULL."""
        if not 0 < fh < self.top:
            return cython.NULL
        handle: cython.pointer(Handle) = cython.address(self.all[fh])
        if not handle.inode or handle.inode != nodeid or handle.is_folder != is_folder:
            return cython.NULL
        return handle

    def add(self, inode, fd, flags, is_folder):
        """A number for ``fd``, which it takes; 0 (and ``fd`` is closed) where there are too many."""
        fh: uint32_t = self.free_list if self.free_list else self.top
        if self.count >= self.limit or not self.put(fh, inode, fd, flags, is_folder):
            close(fd)
            return 0
        return fh

    def put(self, fh, inode, fd, flags, is_folder):
        """Make ``fh`` a handle: a free one, or one that never was. False where there is no memory."""
        size: uint32_t = self.room if self.room else 64
        while size <= fh:
            size *= 2
        if size > self.room:
            every: cython.p_void = realloc(self.all, size * cython.sizeof(Handle))
            if every == cython.NULL:
                return False
            self.all = cython.cast(cython.pointer(Handle), every)
            memset(cython.address(self.all[self.room]), 0, (size - self.room) * cython.sizeof(Handle))
            self.room = size
        handle: cython.pointer(Handle) = cython.address(self.all[fh])
        if fh == self.free_list:
            self.free_list = handle.next
        if fh >= self.top:
            self.top = fh + 1
        memset(handle, 0, cython.sizeof(Handle))
        handle.inode = inode.id
        handle.fd = fd
        handle.flags = flags
        handle.is_folder = is_folder
        handle.next = inode.handles
        inode.handles = fh
        self.count += 1
        return True

    def remove(self, fh):
        """Close it."""
        handle: cython.pointer(Handle) = cython.address(self.all[fh])
        inode: cython.pointer(Inode) = self.inodes.at(handle.inode)
        link: cython.pointer(uint32_t) = cython.address(inode.handles)
        while link[0] != fh:
            link = cython.address(self.all[link[0]].next)
        link[0] = handle.next
        if handle.fd >= 0:
            close(handle.fd)
        free(handle.dents)
        handle.dents = cython.NULL
        handle.inode = 0
        handle.next = self.free_list
        self.free_list = fh
        self.count -= 1
        self.inodes.release(inode)

    def clear(self):
        """Close all."""
        fh: uint32_t
        for fh in range(1, self.top):
            if self.all[fh].inode:
                self.remove(fh)

    def writable(self, inode):
        """A handle of the inode's that may write; NULL for none."""
        fh: uint32_t = inode.handles
        while fh:
            if self.all[fh].flags & O_ACCMODE != O_RDONLY and self.all[fh].fd >= 0:
                return cython.address(self.all[fh])
            fh = self.all[fh].next
        return cython.NULL

    # -- listing a folder

    def next_dent(self, handle, offset):
        """The entry at ``offset``. It holds until the next call."""
        dent: Dent
        got: cython.long
        at: uint32_t
        dent.entry = cython.NULL
        dent.name = cython.NULL
        dent.error = 0
        if handle.dents == cython.NULL:
            handle.dents = cython.cast(cython.p_char, malloc(DENTS))
            if handle.dents == cython.NULL:
                dent.error = ENOMEM
                return dent
            handle.dents_at = handle.dents_size = 0
        if handle.offset != offset or handle.dents_at >= handle.dents_size:
            if handle.position != offset and lseek(handle.fd, offset, SEEK_SET) < 0:
                dent.error = errno
                return dent
            handle.offset = handle.position = offset
            handle.dents_at = handle.dents_size = 0
            got = syscall(
                SYS_GETDENTS64, cython.cast(cython.long, handle.fd), handle.dents, cython.cast(cython.long, DENTS)
            )
            if got <= 0:
                dent.error = errno if got < 0 else 0
                free(handle.dents)  # a listing has ended
                handle.dents = cython.NULL
                return dent
            handle.dents_size = cython.cast(uint32_t, got)
            at = 0
            while at < handle.dents_size:
                last: cython.pointer(Dirent) = cython.cast(cython.pointer(Dirent), handle.dents + at)
                at += last.reclen
                handle.position = last.off
        dent.entry = cython.cast(cython.pointer(Dirent), handle.dents + handle.dents_at)
        dent.name = cython.cast(cython.p_char, dent.entry) + 19
        return dent

    def passed(self, handle, dent):
        """The entry that ``next_dent`` gave was told."""
        handle.offset = dent.off
        handle.dents_at += dent.reclen
