"""What all requests of a share's guest have in common: the tables, and the request at hand with its buffers.

A request's buffers are pieces of guest memory, which may change while they are read: header and arguments are
copied once and checked in the copy. Only what WRITE carries and READ brings goes between guest memory and file as it
is.
"""

import cython
from cython.cimports.hostel.base.lock import mutex_init
from cython.cimports.hostel.devices.fuse.abi import FOPEN_KEEP_CACHE, out_header
from cython.cimports.hostel.devices.fuse.posix import O_ACCMODE, S_ISGID, S_ISUID, S_IXGRP, Statx
from cython.cimports.hostel.devices.fuse.tree import TICK, Owner
from cython.cimports.libc.errno import ENFILE
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memchr, memcpy, strchr, strcmp


@cython.cclass
class Session:
    def __cinit__(self):
        block: cython.pointer(uint8_t)
        mutex_init(cython.address(self.mutex), cython.NULL)
        self.argument = cython.cast(cython.pointer(uint8_t), malloc(REQUEST_MAX))
        block = cython.cast(cython.pointer(uint8_t), malloc(cython.sizeof(out_header) + REPLY_MAX))
        if self.argument == cython.NULL or block == cython.NULL:
            raise MemoryError()
        self.reply = block + cython.sizeof(out_header)

    def __dealloc__(self):
        free(self.argument)
        if self.reply != cython.NULL:
            free(self.reply - cython.sizeof(out_header))

    # -- the request

    def has(self, size):
        """Whether the arguments have so many bytes."""
        return self.argument_size >= size

    def text(self, offset, after):
        """The string at ``offset`` of the arguments, and what is behind it; NULL where it doesn't end."""
        text: cython.p_char = cython.cast(cython.p_char, self.argument) + offset
        if offset >= self.argument_size:
            return cython.NULL
        end: cython.p_char = cython.cast(cython.p_char, memchr(text, 0, self.argument_size - offset))
        if end == cython.NULL:
            return cython.NULL
        after[0] = offset + cython.cast(uint32_t, end - text) + 1
        return text

    def name(self, offset, after):
        """The same, of what must be the name of one entry of a folder."""
        name: cython.p_char = self.text(offset, after)
        if name == cython.NULL or not name[0] or strchr(name, 47) != cython.NULL:
            return cython.NULL
        if strcmp(name, b".") == 0 or strcmp(name, b"..") == 0:
            return cython.NULL
        return name

    def slice(self, vector, count, skip, size, sliced):
        """Put the pieces of ``size`` bytes from ``skip`` on into ``self.vector``; how many they are. ``sliced`` is
        less than ``size`` where there are too many."""
        i: uint32_t
        used: cython.int = 0
        n: uint64_t
        sliced[0] = 0
        for i in range(count):
            if not size or used == VECTOR:
                break
            n = vector[i].iov_len
            if skip >= n:
                skip -= n
                continue
            n = n - skip if n - skip < size else size
            self.vector[used].iov_base = cython.cast(cython.pointer(uint8_t), vector[i].iov_base) + skip
            self.vector[used].iov_len = n
            used += 1
            sliced[0] += n
            size -= n
            skip = 0
        return used

    def gather(self, skip, target, size):
        """Copy ``size`` bytes of the request from ``skip`` on; how many there were."""
        i: cython.int
        pieces: cython.int
        part: uint64_t = 1
        done: uint64_t = 0
        while done < size and part:
            pieces = self.slice(self.readable, self.readable_count, skip + done, size - done, cython.address(part))
            for i in range(pieces):
                memcpy(
                    cython.cast(cython.pointer(uint8_t), target) + done, self.vector[i].iov_base, self.vector[i].iov_len
                )
                done += self.vector[i].iov_len
        return done

    def scatter(self, source, size):
        """Store the reply's first ``size`` bytes, which must have room."""
        i: cython.int
        pieces: cython.int
        part: uint64_t = 1
        done: uint64_t = 0
        while done < size and part:
            pieces = self.slice(self.writable, self.writable_count, done, size - done, cython.address(part))
            for i in range(pieces):
                memcpy(
                    self.vector[i].iov_base, cython.cast(cython.pointer(uint8_t), source) + done, self.vector[i].iov_len
                )
                done += self.vector[i].iov_len

    # -- what several requests do

    def opened(self, inode, found, fd, flags, fh, open_flags):
        """Tell the guest of an open file, whose descriptor this takes: 0 or -errno.

        It may keep the contents that it has where nothing has changed since it last opened the file; what changed
        within a clock's tick can't be told from what didn't."""
        mtime: int64_t = found.mtime.sec * 1000000000 + found.mtime.nsec
        ctime: int64_t = found.ctime.sec * 1000000000 + found.ctime.nsec
        fh[0] = self.handles.add(inode, fd, flags & O_ACCMODE, False)
        if not fh[0]:
            return -ENFILE
        open_flags[0] = 0
        if self.cache == CACHE_ALWAYS or self.cache == CACHE_AUTO and (
            ctime and inode.cached_ctime == ctime and inode.cached_mtime == mtime and inode.cached_size == found.size
        ):
            open_flags[0] = FOPEN_KEEP_CACHE
        inode.cached_mtime = mtime
        inode.cached_size = found.size
        inode.cached_ctime = ctime if self.tree.now() - ctime > TICK else 0
        return 0

    def drop_privileges(self, inode, fd):
        """Contents were changed by one who may not keep set-user-ID and set-group-ID bits."""
        found: Statx
        owner: Owner
        if self.tree.stat_open(fd, cython.address(found)) < 0:
            return
        self.tree.learn_owner(inode, cython.address(found), fd)
        owner = self.tree.owner(inode, cython.address(found))
        if owner.mode & S_ISUID or owner.mode & S_ISGID and owner.mode & S_IXGRP:
            owner.mode &= ~cython.cast(uint32_t, S_ISUID)
            if owner.mode & S_IXGRP:
                owner.mode &= ~cython.cast(uint32_t, S_ISGID)
            self.tree.set_owner(inode, cython.address(found), fd, owner)
