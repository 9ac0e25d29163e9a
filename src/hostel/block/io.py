"""Requests to a disk, many at once, without Python where that is possible.

A device starts requests (``start``), lets them get on (``pump``, and ``work`` where that says so), and takes back what
is finished (``next_done``). Reads, and writes past the page cache, go to the files by themselves (base/aio), other
writes at once; all of them straight from and to the caller's buffers, wherever ``Disk.map`` says where the bytes are:
all of a raw image, the clusters of a qcow2 image that are allocated; answers are kept in a table of granules. The rest
is Python's: clusters that are to be allocated, compressed ones, discards, unaligned writes past the page cache.

**Order.** Requests that are under way at the same time have no order, as on a real disk, but what changes where things
are (a discard, zeroes) or reads what it writes back (an unaligned write) is done alone: everything before it is
finished, and nothing behind it is begun. A flush is about writes that were finished when it was started.

**Limits** hold back the first request and so all behind it.

**No room.** A write that the host refuses for want of space (ENOSPC, EDQUOT, EFBIG) isn't finished: it waits in
``stalled``, ``full`` says why, and nothing more is begun until all is given back (``give_up``), to be started again.

Thread: one at a time, as with disks. Limits: ``depth`` requests at once; 1,024 buffers each; 2 ** 62 bytes.
"""

import contextlib
import errno
import fcntl
import os
import sys
import traceback

import cython
from cython.cimports.cpython.buffer import PyBUF_READ, PyBUF_WRITE
from cython.cimports.cpython.memoryview import PyMemoryView_FromMemory
from cython.cimports.hostel.base.aio import AIO_READ, AIO_SYNC, AIO_WRITE, MAX_FILES, Completion, Vector, pwritev
from cython.cimports.libc.errno import EAGAIN, EDQUOT, EFBIG, EINTR, EINVAL, EIO, ENOSPC, EROFS
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import int64_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memset
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec

from hostel.base.aio import open_aio
from hostel.base.errors import BlockError

_VERSION = 1
_MAX_EXTENTS = 65536          # granules that are known; 4 GiB of clusters of 64 KiB, in 1.5 MiB
_GRANULE = 65536              # bytes; of a format with smaller pieces, those
_MAX_BUFFERS = 1024           # IOV_MAX

DATA = cython.declare(cython.int, 0)  # kinds, as block/disk has them
BACKING = cython.declare(cython.int, 1)
ZERO = cython.declare(cython.int, 2)
OPERATIONS = ("read", "write", "flush", "discard", "zeroes")
NAMES = ("reads", "writes", "flushes", "discards", "zeroes")


@cython.cclass
class DiskIo:
    """``disk`` with up to ``depth`` requests at once; ``iops`` and ``rate`` are token buckets or None. ``engine`` as
    ``base/aio.open_aio`` has it."""

    def __cinit__(self):
        self.spare = cython.NULL

    def __init__(self, disk, depth: cython.int, iops: TokenBucket = None, rate: TokenBucket = None, engine: str = ""):
        i: cython.int
        self.disk = disk
        self.depth = depth
        self.iops, self.rate = iops, rate
        self.message = ""
        self.readonly = disk.readonly
        self.fds = _files(disk)
        self.pool = cython.cast(cython.pointer(Io), calloc(depth, cython.sizeof(Io)))
        granule: cython.int = min(_GRANULE, getattr(disk, "cluster_size", _GRANULE))
        self.granule_bits = granule.bit_length() - 1
        self.extent_mask = _MAX_EXTENTS - 1
        self.extents = cython.cast(cython.pointer(Extent), calloc(_MAX_EXTENTS, cython.sizeof(Extent)))
        if self.pool == cython.NULL or self.extents == cython.NULL:
            raise MemoryError()
        for i in range(depth):
            self.pool[i].next = self.spare
            self.spare = cython.address(self.pool[i])
        self.measure()
        # Opened anew, without the images' locks: a ring goes some time after its process does, and so would they.
        with contextlib.ExitStack() as stack:
            again = []
            for fd in self.fds:
                flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_DIRECT) | os.O_CLOEXEC
                other = os.open(f"/proc/self/fd/{fd}", flags)
                stack.callback(os.close, other)
                again.append(other)
            self.aio = open_aio(again, depth, engine)
        for i in range(len(self.fds)):
            self.files[i] = self.fds[i]

    def __dealloc__(self):
        free(self.pool)
        free(self.extents)

    @property
    def ring(self) -> int:
        """io_uring's descriptor, or -1."""
        return getattr(self.aio, "fd", -1)

    def close(self):
        """Wait for what is under way, and close the disk."""
        self.aio.close()
        self.disk.close()

    def hold_on(self):
        """Nothing is under way: let go of the engine, and all its threads, until ``go_on``."""
        self.aio.close()

    def go_on(self):
        """``disk`` may be another by now, of the same size. The engine is that of threads: a confined process makes no
        rings."""
        self.fds = _files(self.disk)
        self.aio = open_aio(self.fds, self.depth, "threads")
        for i in range(len(self.fds)):
            self.files[i] = self.fds[i]
        self.readonly = self.disk.readonly
        self.measure()

    def measure(self):
        """Look at the disk's size and form again, when it has changed; nothing is under way."""
        self.size = self.disk.size
        self.alignment = self.disk.alignment
        memset(self.extents, 0, _MAX_EXTENTS * cython.sizeof(Extent))
        self.identity = self.disk.format == "raw"

    # -- requests come and go

    def start(self, op, offset, length, iov, count, flags, token):
        io: cython.pointer(Io) = self.spare
        i: cython.int
        bits: uint64_t
        if io == cython.NULL:
            return False
        self.spare = io.next
        io.iov = iov
        io.window = cython.NULL
        io.offset = offset
        io.length = length
        io.done = io.part = 0
        io.token = token
        io.result = 0
        io.count = count
        io.op = op
        io.flags = flags
        io.paid = False
        io.exclusive = op == IO_DISCARD or op == IO_ZEROES
        io.unaligned = False
        if op <= IO_WRITE and self.alignment > 1:
            bits = offset | length
            for i in range(count):
                bits |= cython.cast(cython.size_t, iov[i].iov_base) | iov[i].iov_len
            if bits & (self.alignment - 1):
                io.unaligned = True
                io.exclusive = op == IO_WRITE
        _append(cython.address(self.waiting), io)
        self.held += 1
        self.counts[op] += 1
        return True

    def next_done(self, token, result):
        io: cython.pointer(Io) = _take(cython.address(self.finished))
        if io == cython.NULL:
            return False
        token[0] = io.token
        result[0] = io.result
        io.next = self.spare
        self.spare = io
        self.held -= 1
        return True

    def pump(self):
        done: Completion[64]
        io: cython.pointer(Io)
        i: cython.int
        n: cython.int = 64
        while n == 64:
            n = self.aio.reap(done, 64)
            for i in range(n):
                io = cython.cast(cython.pointer(Io), cython.cast(cython.size_t, done[i].token))
                self.complete(io, done[i].result)
        self.delay_ns = 0
        while self.waiting.first != cython.NULL and not (self.full or self.barrier or self.hold):
            io = self.waiting.first
            if io.exclusive and (self.under_way or self.slow.first != cython.NULL):
                break
            if not io.paid and self.limit(io):
                break
            io.paid = True
            _take(cython.address(self.waiting))
            if not self.enter(io):
                _prepend(cython.address(self.waiting), io)
                break
        if self.aio.submit() and not self.delay_ns:
            self.delay_ns = 1000000  # the kernel has no memory: soon again
        return self.slow.first != cython.NULL and not self.full

    def arm(self):
        return self.finished.first != cython.NULL or self.aio.arm()

    def give_up(self):
        io: cython.pointer(Io)
        i: cython.int
        lists: cython.pointer(IoList)[3]
        lists[0] = cython.address(self.stalled)
        lists[1] = cython.address(self.slow)
        lists[2] = cython.address(self.waiting)
        for i in range(3):
            while lists[i].first != cython.NULL:
                io = _take(lists[i])
                free(io.window)
                io.window = cython.NULL
                io.result = IO_AGAIN
                _append(cython.address(self.finished), io)
        self.barrier = False
        self.full = 0

    # -- one request

    def limit(self, io):
        """Whether the limits hold it back; else it has paid."""
        now: timespec
        ns: int64_t
        wait: int64_t = 0
        other: int64_t = 0
        if io.op == IO_FLUSH or (self.iops is None and self.rate is None):
            return False
        clock_gettime(CLOCK_MONOTONIC, cython.address(now))
        ns = cython.cast(int64_t, now.tv_sec) * 1000000000 + now.tv_nsec
        if self.iops is not None:
            wait = self.iops.wait_ns(1, ns)
        if self.rate is not None and io.op <= IO_WRITE:
            other = self.rate.wait_ns(io.length, ns)
        if wait or other:
            self.delay_ns = wait if wait > other else other
            self.limited += 1
            return True
        if self.iops is not None:
            self.iops.spend(1)
        if self.rate is not None and io.op <= IO_WRITE:
            self.rate.spend(io.length)
        return False

    def enter(self, io):
        """Begin; False: the engine has no room."""
        if io.op == IO_FLUSH:
            if self.readonly:
                self.finish(io, 0)
                return True
            if self.identity:
                if not self.aio.start(AIO_SYNC, 0, cython.NULL, 0, 0, cython.cast(cython.size_t, io)):
                    return False
                self.under_way += 1
                return True
        elif self.readonly and io.op != IO_READ:
            self.finish(io, EROFS)
            return True
        elif io.offset < 0 or io.length < 0 or io.offset > self.size or io.length > self.size - io.offset:
            self.finish(io, EINVAL)
            return True
        elif not io.exclusive:
            return self.advance(io)
        self.barrier = io.exclusive
        _append(cython.address(self.slow), io)
        return True

    def advance(self, io):
        """Go on with a read or write; False: the engine has no room."""
        extent: Extent
        run: int64_t = 0
        while io.done < io.length and not io.unaligned:
            if not self.locate(io.offset + io.done, io.length - io.done, cython.address(extent), cython.address(run)):
                break
            if extent.kind == ZERO and io.op == IO_READ:
                self.fill(io, run)
                io.done += run
            elif extent.kind == DATA or (extent.kind == BACKING and io.op == IO_READ):
                if self.alignment > 1 and extent.host & (self.alignment - 1):
                    break
                if io.op == IO_READ or self.alignment > 1:
                    return self.transfer(io, extent.file, extent.host, run)
                if not self.write_now(io, extent.file, extent.host, run):
                    return True
            else:
                break
        if io.done < io.length:
            _append(cython.address(self.slow), io)
        else:
            self.finish(io, 0)
        return True

    def transfer(self, io, file, host, length):
        iov: cython.pointer(cython.const[iovec]) = cython.NULL
        count: cython.int = self.buffers(io, length, cython.address(iov))
        if count < 0:
            self.finish(io, EIO)
            return True
        if not self.aio.start(
            AIO_READ if io.op == IO_READ else AIO_WRITE, file, iov, count, host, cython.cast(cython.size_t, io)
        ):
            return False
        io.part = length
        self.under_way += 1
        return True

    def write_now(self, io, file, host, length):
        """Write a part into the page cache, here: the engine would only have another thread do the same, as most file
        systems can't say beforehand that a write won't wait. False: the request has ended."""
        iov: cython.pointer(cython.const[iovec]) = cython.NULL
        count: cython.int = self.buffers(io, length, cython.address(iov))
        n: int64_t = -1
        if count < 0:
            self.finish(io, EIO)
            return False
        while n < 0:
            n = pwritev(self.files[file], iov, count, host)
            if n <= 0 and (n == 0 or c_errno != EINTR):
                self.finish(io, c_errno if n < 0 else EIO)
                return False
        io.done += n
        return True

    def buffers(self, io, length, iov):
        """The buffers of the next ``length`` bytes, the request's own or cut out in ``window``; how many, or -1."""
        i: cython.int
        n: cython.int = 0
        skip: int64_t = io.done
        size: int64_t
        if not skip and length >= io.length:
            iov[0] = io.iov
            return io.count
        if io.window == cython.NULL:
            io.window = cython.cast(cython.pointer(iovec), malloc(io.count * cython.sizeof(iovec)))
            if io.window == cython.NULL:
                return -1
        for i in range(io.count):
            size = io.iov[i].iov_len
            if skip >= size:
                skip -= size
                continue
            size -= skip
            if size > length:
                size = length
            io.window[n].iov_base = cython.cast(cython.p_char, io.iov[i].iov_base) + skip
            io.window[n].iov_len = size
            n += 1
            skip = 0
            length -= size
            if not length:
                break
        iov[0] = io.window
        return n

    def fill(self, io, length):
        """Zeros for the next ``length`` bytes of a read."""
        i: cython.int
        size: int64_t
        skip: int64_t = io.done
        for i in range(io.count):
            size = io.iov[i].iov_len
            if skip >= size:
                skip -= size
                continue
            size -= skip
            if size > length:
                size = length
            memset(cython.cast(cython.p_char, io.iov[i].iov_base) + skip, 0, size)
            skip = 0
            length -= size
            if not length:
                break

    def complete(self, io, result):
        """The engine is done with a part of it."""
        self.under_way -= 1
        if result == -EAGAIN or result == -EINTR:
            result = 0
            if io.op == IO_FLUSH:
                if not self.enter(io):
                    _prepend(cython.address(self.waiting), io)
                return
        elif result < 0:
            self.finish(io, cython.cast(cython.int, -result))
            return
        elif io.op == IO_FLUSH:
            self.finish(io, 0)
            return
        elif io.op == IO_READ and (result == 0 or (result < io.part and result & (self.alignment - 1))):
            # The end of the file, from which on there are zeros
            io.done += result
            self.fill(io, io.part - result)
            result = io.part - result
        elif result == 0:
            self.finish(io, EIO)
            return
        io.done += result
        if not self.advance(io):
            _prepend(cython.address(self.waiting), io)

    def finish(self, io, result):
        if result == 0 and io.op == IO_WRITE and io.flags & IO_STABLE:
            io.flags &= ~IO_STABLE
            self.bytes_written += io.length
            io.length = io.done = 0
            io.op = IO_FLUSH
            if not self.enter(io):
                _prepend(cython.address(self.waiting), io)
            return
        if io.window != cython.NULL:
            free(io.window)
            io.window = cython.NULL
        if (result == ENOSPC or result == EDQUOT or result == EFBIG) and io.op != IO_READ:
            self.full = result
            self.stalls += 1
            _append(cython.address(self.stalled), io)
            return
        if result:
            self.errors += 1
        elif io.op == IO_READ:
            self.bytes_read += io.length
        elif io.op == IO_WRITE:
            self.bytes_written += io.length
        io.result = result
        _append(cython.address(self.finished), io)

    # -- where things are

    def locate(self, offset, length, extent, run):
        """What is known of the place: its extent, with ``host`` of the byte at ``offset``, and how far that holds."""
        granule: int64_t
        number: uint64_t
        e: cython.pointer(Extent)
        if self.identity:
            extent.host = offset
            extent.file = 0
            extent.kind = BACKING if self.readonly else DATA
            run[0] = length
            return True
        granule = cython.cast(int64_t, 1) << self.granule_bits
        number = offset >> self.granule_bits
        e = cython.address(self.extents[number & self.extent_mask])
        if e.key != number + 1:
            return False
        extent[0] = e[0]
        extent.host += offset & (granule - 1)
        run[0] = granule - (offset & (granule - 1))
        while run[0] < length:
            number += 1
            e = cython.address(self.extents[number & self.extent_mask])
            if e.key != number + 1 or e.kind != extent.kind or e.file != extent.file:
                break
            if e.kind != ZERO and e.host != extent.host + run[0]:
                break
            run[0] += granule
        if run[0] > length:
            run[0] = length
        return True

    def forget(self, offset, length):
        """The granules there may be elsewhere from now on."""
        first: uint64_t = offset >> self.granule_bits
        last: uint64_t = (offset + length - 1) >> self.granule_bits
        number: uint64_t
        if length <= 0 or self.identity:
            return
        if last - first >= self.extent_mask:
            memset(self.extents, 0, (self.extent_mask + 1) * cython.sizeof(Extent))
            return
        number = first
        while number <= last:
            if self.extents[number & self.extent_mask].key == number + 1:
                self.extents[number & self.extent_mask].key = 0
            number += 1

    def learn(self, offset: int64_t, length: int64_t):
        """Ask the disk where the granules there are, and what follows them in one piece."""
        bits: cython.int = self.granule_bits
        granule: int64_t = cython.cast(int64_t, 1) << bits
        at: int64_t = offset >> bits << bits
        end: int64_t = offset + length
        run: int64_t
        e: cython.pointer(Extent)
        while at < end:
            fd, host, found, kind = self.disk.map(at, min(self.size - at, 64 * granule))
            run = found
            known = kind == ZERO or (kind in (DATA, BACKING) and fd in self.fds)
            if run < granule and at + run < self.size:  # not all of it in one place
                run = granule
                known = False
            while run >= granule or at + run == self.size and run > 0:
                e = cython.address(self.extents[(at >> bits) & self.extent_mask])
                e.key = (at >> bits) + 1 if known else 0
                if known:
                    e.kind = kind
                    e.host = host
                    e.file = 0 if kind == ZERO else self.fds.index(fd)
                    host += granule
                at += granule
                run -= granule

    # -- Python's part

    def work(self, budget: cython.int = 16):
        """Do some of what needs Python; call ``pump`` afterwards."""
        io: cython.pointer(Io)
        result: cython.int
        while budget and self.slow.first != cython.NULL and not self.full:
            io = _take(cython.address(self.slow))
            budget -= 1
            self.by_python += 1
            try:
                self.perform(io)
                result = 0
            except BlockError as error:
                result = error.errno or errno.EIO
                self.message = str(error)
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                result = errno.EIO
                self.message = str(error)
            if io.exclusive:
                self.barrier = False
            self.finish(io, result)

    def perform(self, io):
        if io.op == IO_FLUSH:
            self.disk.flush()
        elif io.op == IO_DISCARD:
            self.forget(io.offset, io.length)
            self.disk.discard(io.offset, io.length)
        elif io.op == IO_ZEROES:
            self.forget(io.offset, io.length)
            self.disk.write_zeroes(io.offset, io.length, bool(io.flags & IO_UNMAP))
        else:
            views = _views(io)
            if io.op == IO_READ:
                self.disk.readv(io.offset + io.done, views)
            else:
                self.forget(io.offset + io.done, io.length - io.done)
                self.disk.writev(io.offset + io.done, views)
            if not self.identity:
                self.learn(io.offset + io.done, io.length - io.done)
            io.done = io.length

    # -- for tests, and for people

    def start_py(self, op: str, offset: int, buffers: list, token: int, length: int = -1, flags: int = 0):
        """``start``; what this returns must live until the request is finished. None: too many."""
        vector = Vector(buffers)
        what: cython.int = OPERATIONS.index(op)
        size: int64_t = sum(map(len, buffers)) if length < 0 else length
        return vector if self.start(what, offset, size, vector.iov, len(buffers), flags, token) else None

    def step_py(self) -> list:
        """Get on, with Python's part too; ``[(token, result), ...]`` of what is finished."""
        token: uint64_t = 0
        result: cython.int = 0
        while self.pump():
            self.work()
        out = []
        while self.next_done(cython.address(token), cython.address(result)):
            out.append((token, result))
        return out

    def arm_py(self) -> bool:
        return self.arm()

    def give_up_py(self):
        self.give_up()

    def statistics(self) -> dict:
        counts = {name: self.counts[i] for i, name in enumerate(NAMES) if self.counts[i]}
        return {
            "engine": self.aio.name, **counts, "bytes_read": self.bytes_read, "bytes_written": self.bytes_written,
            "errors": self.errors, "in_python": self.by_python, "held_back": self.limited, "no_room": self.stalls,
        }

    def save(self) -> dict:
        """The disk and the limits' levels; nothing is held."""
        buckets = [bucket and bucket.save() for bucket in (self.iops, self.rate)]
        return {"version": _VERSION, "disk": self.disk.save(), "buckets": buckets}

    def load(self, state: dict):
        if state["version"] != _VERSION:
            raise ValueError(f"disk: state version {state['version']} is not {_VERSION}")
        self.disk.load(state["disk"])
        for bucket, saved in zip((self.iops, self.rate), state["buckets"], strict=True):
            if bucket and saved:
                bucket.load(saved)
        self.measure()


@cython.cfunc
def _views(io: cython.pointer(Io)) -> list:
    """Memoryviews of what is left of a read or write."""
    i: cython.int
    skip: int64_t = io.done
    size: int64_t
    how: cython.int = PyBUF_WRITE if io.op == IO_READ else PyBUF_READ
    out: list = []
    for i in range(io.count):
        size = io.iov[i].iov_len
        if skip >= size:
            skip -= size
            continue
        out.append(PyMemoryView_FromMemory(cython.cast(cython.p_char, io.iov[i].iov_base) + skip, size - skip, how))
        skip = 0
    return out


def _files(disk) -> list:
    """The descriptors that ``disk.map`` may name: the images' own, the top first, and those with their data."""
    fds = []
    for image in disk.chain():
        for file in (image.file, getattr(image, "data", image.file)):
            if file.data_fd not in fds:
                fds.append(file.data_fd)
    return fds[:MAX_FILES]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _append(where: cython.pointer(IoList), io: cython.pointer(Io)) -> cython.void:
    io.next = cython.NULL
    if where.first == cython.NULL:
        where.first = io
    else:
        where.last.next = io
    where.last = io


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _prepend(where: cython.pointer(IoList), io: cython.pointer(Io)) -> cython.void:
    io.next = where.first
    where.first = io
    if io.next == cython.NULL:
        where.last = io


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _take(where: cython.pointer(IoList)) -> cython.pointer(Io):
    io: cython.pointer(Io) = where.first
    if io != cython.NULL:
        where.first = io.next
    return io
