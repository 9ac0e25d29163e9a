"""A disk (virtio 1.2, 5.2): several queues, flush, discard, write zeroes, topology, serial number.

**A thread of its own.** The rings aren't the event loop's: a disk's thread waits for the driver's notifications and the
engine's completions, takes chains in batches, hands their buffers to ``block/io``, and pushes what is finished, with
one interrupt for a batch and no Python. It comes back to Python for what ``DiskIo.work`` must do. While there is no
driver it is parked, and so it is when anyone else touches the queues (``parked``): nothing is under way then, and what
was begun is back in the queues.

**Errors.** What the disk refuses is VIRTIO_BLK_S_IOERR, what isn't known VIRTIO_BLK_S_UNSUPP; a request without room
for header or status breaks the device. Where the host has no room for a write, nothing is answered and nothing goes on:
``on_full`` is called with a line for people, on the loop's thread, and ``retry`` goes on.

**The cache** is the host's page cache, or the disk's own with ``cache=none``: either way what was flushed is safe, and
without VIRTIO_BLK_F_FLUSH, or with the driver's ``writeback`` 0, every write is.

Lock: none here; the transport's around the methods of ``Blk``. The thread takes none.
"""

import errno
import os
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cython
from cython.cimports.hostel.block.io import (
    IO_AGAIN,
    IO_DISCARD,
    IO_FLUSH,
    IO_READ,
    IO_STABLE,
    IO_UNMAP,
    IO_WRITE,
    IO_ZEROES,
)
from cython.cimports.hostel.devices.virtio.queue import Chain, gather, scatter
from cython.cimports.libc.errno import EOPNOTSUPP
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.posix.unistd import read

from hostel.base.linux import eventfd
from hostel.block.disk import open_disk
from hostel.block.file import File
from hostel.block.io import DiskIo
from hostel.block.layers import freeze, stack
from hostel.block.qcow2.disk import Qcow2
from hostel.devices.virtio.device import Device
from hostel.devices.virtio.queue import Queue
from hostel.spec.disk import DiskSpec

# Feature bits (5.2.3)
SIZE_MAX, SEG_MAX, RO, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ = 1, 2, 5, 6, 9, 10, 11, 12
DISCARD, WRITE_ZEROES = 13, 14
SEGMENT_SIZE = 1 << 22       # bytes of one buffer
CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")  # struct virtio_blk_config up to write_zeroes_may_unmap
WRITEBACK = 32               # in it
_VERSION = 1

WORK = cython.declare(cython.int, 1)         # why spin() comes back
COMMAND = cython.declare(cython.int, 2)
FULL = cython.declare(cython.int, 3)


@cython.cclass
class BlkRings:
    """The enabled ``queues`` of a device and its disk; ``run`` is the thread's whole life."""

    def __cinit__(self):
        self.control_fd = -1

    def __init__(self, queues: list, io: DiskIo, serial: str, max_sectors: int, discards: bool):
        i: cython.int
        queue: Queue
        self.queues = queues
        self.count = len(queues)
        for i in range(self.count):
            queue = queues[i]
            self.rings[i] = cython.cast(cython.p_void, queue)
        self.io = io
        self.max_sectors = max_sectors
        self.discards = discards
        for i, byte in enumerate(serial.encode()[:MAX_ID]):
            self.id[i] = byte
        self.pool = cython.cast(cython.pointer(BlkRequest), calloc(DEPTH, cython.sizeof(BlkRequest)))
        if self.pool == cython.NULL:
            raise MemoryError()
        for i in range(DEPTH):
            self.pool[i].next = self.spare
            self.spare = cython.address(self.pool[i])
        self.control_fd = eventfd.make()

    def __dealloc__(self):
        free(self.pool)

    def close(self):
        if self.control_fd >= 0:
            os.close(self.control_fd)
        self.control_fd = -1

    # -- the thread

    def tell(self, command: cython.int):
        """From any thread: ``run`` returns soon (1), or goes on when it is called (0)."""
        self.command = command
        os.eventfd_write(self.control_fd, 1)

    def run(self, on_full: Callable[[int], None]):
        """Serve the queues until ``tell(1)``; then nothing is under way, and what was begun is back in the queues."""
        why: cython.int
        while True:
            with cython.nogil:
                why = self.spin()
            if why == COMMAND:
                break
            if why == WORK:
                self.io.work()
            else:
                on_full(self.told)
        with cython.nogil:
            self.take_back()

    def spin(self):
        more: cython.bint
        while True:
            if self.command:
                return COMMAND
            more = self.turn()
            if self.io.full != self.told:
                self.told = self.io.full
                if self.told:
                    return FULL
            if more:
                return WORK
            if not self.io.arm():
                self.wait()

    def turn(self):
        """Everything that can be done now without Python; whether some must be done with it."""
        i: cython.int
        token: uint64_t = 0
        result: cython.int = 0
        chain: cython.pointer(Chain)
        r: cython.pointer(BlkRequest)
        more: cython.bint = self.io.pump()
        while self.io.next_done(cython.address(token), cython.address(result)):
            r = cython.cast(cython.pointer(BlkRequest), cython.cast(cython.size_t, token))
            if result == 0 and r.segment_count and self.next_segment(r):
                continue
            self.finish(r, S_OK if result == 0 else S_UNSUPP if result == EOPNOTSUPP else S_IOERR)
        if not self.io.full:
            for i in range(self.count):
                while self.spare != cython.NULL:
                    chain = cython.cast(Queue, self.rings[i]).pop()
                    if chain == cython.NULL:
                        break
                    if not self.begin(cython.cast(Queue, self.rings[i]), chain):
                        break
            more = self.io.pump()
        for i in range(self.count):
            if self.touched[i]:
                self.touched[i] = False
                cython.cast(Queue, self.rings[i]).signal()
        return more

    def wait(self):
        """Sleep until a queue, the engine or a command wakes us, or the limits let the next request through."""
        fds: pollfd[18]  # MAX_QUEUES + 2
        timeout: timespec
        when: cython.pointer(timespec) = cython.NULL
        nothing: uint64_t
        i: cython.int
        n: cython.int = self.count
        for i in range(n):
            fds[i].fd = cython.cast(Queue, self.rings[i]).notify_fd
        fds[n].fd = self.io.aio.event_fd
        fds[n + 1].fd = self.control_fd
        for i in range(n + 2):
            fds[i].events = POLLIN
            fds[i].revents = 0
        if self.io.delay_ns:
            timeout.tv_sec = self.io.delay_ns // 1000000000
            timeout.tv_nsec = self.io.delay_ns % 1000000000
            when = cython.address(timeout)
        if ppoll(fds, n + 2, when, cython.NULL) <= 0:
            return
        for i in range(n):
            if fds[i].revents:
                cython.cast(Queue, self.rings[i]).acknowledge()
        for i in range(n, n + 2):
            if fds[i].revents:
                read(fds[i].fd, cython.address(nothing), 8)

    def take_back(self):
        """End what is under way, and give the rest back to the queues."""
        token: uint64_t = 0
        result: cython.int = 0
        r: cython.pointer(BlkRequest)
        i: cython.int
        self.io.hold = True
        self.io.pump()
        while self.io.under_way:
            if not self.io.arm():
                self.wait()
            self.io.pump()
        self.io.give_up()
        self.told = 0
        while self.io.next_done(cython.address(token), cython.address(result)):
            r = cython.cast(cython.pointer(BlkRequest), cython.cast(cython.size_t, token))
            if result == IO_AGAIN or (result == 0 and r.segment + 1 < r.segment_count):
                self.undo(r)
            else:
                self.finish(r, S_OK if result == 0 else S_UNSUPP if result == EOPNOTSUPP else S_IOERR)
        self.io.hold = False
        for i in range(self.count):
            if self.touched[i]:
                self.touched[i] = False
                cython.cast(Queue, self.rings[i]).signal()

    # -- one request

    def begin(self, queue, chain):
        """Start what ``chain`` asks for; False: the queue is to be left alone for now."""
        header: Header
        r: cython.pointer(BlkRequest) = self.spare
        if chain.out_bytes < cython.sizeof(Header) or chain.in_bytes < 1:
            queue.fail(11)  # BAD_REQUEST: 5.2.6 has both
            queue.push(chain, 0)
            return False
        gather(chain, 0, cython.address(header), cython.sizeof(Header))
        self.spare = r.next
        r.queue = cython.cast(cython.p_void, queue)
        r.chain = chain
        r.own = cython.NULL
        r.segments = cython.NULL
        r.segment_count = r.segment = 0
        if header.type == T_IN:
            return self.transfer(r, IO_READ, header.sector)
        if header.type == T_OUT:
            return self.transfer(r, IO_WRITE, header.sector)
        if header.type == T_FLUSH:
            if self.io.start(IO_FLUSH, 0, 0, cython.NULL, 0, 0, cython.cast(cython.size_t, r)):
                return True
            self.undo(r)
            return False
        if header.type == T_DISCARD and self.discards:
            return self.change(r, IO_DISCARD)
        if header.type == T_WRITE_ZEROES and self.discards:
            return self.change(r, IO_ZEROES)
        if header.type == T_GET_ID:
            scatter(chain, 0, self.id, MAX_ID if chain.in_bytes > MAX_ID else chain.in_bytes - 1)
            self.finish(r, S_OK)
            return True
        self.unsupported += 1
        self.finish(r, S_UNSUPP)
        return True

    def transfer(self, r, op, sector):
        """A read or write of the chain's data: what lies behind the header, or before the status byte."""
        c: cython.pointer(Chain) = r.chain
        first: uint32_t = 0
        count: uint32_t
        skip: uint64_t = 0
        length: uint64_t
        i: uint32_t
        iov: cython.pointer(iovec)
        if op == IO_READ:
            iov = c.iov + c.out_count
            count = c.in_count
            length = c.in_bytes - 1
        else:
            iov = c.iov
            count = c.out_count
            length = c.out_bytes - cython.sizeof(Header)
        if length & (SECTOR - 1) or sector > cython.cast(uint64_t, 1) << 53:
            self.refused += 1
            self.finish(r, S_IOERR)
            return True
        # Drivers give header and status buffers of their own; others have any layout (2.7.4)
        if op == IO_READ:
            if iov[count - 1].iov_len == 1:
                count -= 1
            else:
                skip = 1
        else:
            while first < count and skip + iov[first].iov_len <= cython.sizeof(Header):
                skip += iov[first].iov_len
                first += 1
            iov += first
            count -= first
            skip = cython.sizeof(Header) - skip
        if skip and count:
            r.own = cython.cast(cython.pointer(iovec), malloc(count * cython.sizeof(iovec)))
            if r.own == cython.NULL:
                self.finish(r, S_IOERR)
                return True
            for i in range(count):
                r.own[i] = iov[i]
            iov = r.own
            if op == IO_READ:
                iov[count - 1].iov_len -= 1
            else:
                iov[0].iov_base = cython.cast(cython.p_char, iov[0].iov_base) + skip
                iov[0].iov_len -= skip
        if not self.io.start(
            op, sector * SECTOR, length, iov, count, IO_STABLE if self.stable else 0, cython.cast(cython.size_t, r)
        ):
            self.undo(r)
            return False
        return True

    def change(self, r, op):
        """A discard or write zeroes: its segments one after the other."""
        length: uint64_t = r.chain.out_bytes - cython.sizeof(Header)
        i: uint32_t
        s: cython.pointer(Segment)
        r.op = op
        if not length or length % cython.sizeof(Segment) or length // cython.sizeof(Segment) > MAX_SEGMENTS:
            self.refused += 1
            self.finish(r, S_IOERR)
            return True
        r.segments = cython.cast(cython.pointer(Segment), malloc(length))
        if r.segments == cython.NULL:
            self.finish(r, S_IOERR)
            return True
        gather(r.chain, cython.sizeof(Header), r.segments, length)
        r.segment_count = cython.cast(uint32_t, length // cython.sizeof(Segment))
        for i in range(r.segment_count):
            s = cython.address(r.segments[i])
            # 5.2.6.2: unknown flags, and unmap in a discard, are not supported; ranges beyond the disk fail
            if s.flags & ~cython.cast(uint32_t, 1) or (s.flags and op == IO_DISCARD):
                self.unsupported += 1
                self.finish(r, S_UNSUPP)
                return True
            if s.count > self.max_sectors or s.sector > cython.cast(uint64_t, 1) << 53:
                self.refused += 1
                self.finish(r, S_IOERR)
                return True
        r.segment = cython.cast(uint32_t, -1)
        if self.next_segment(r):
            return True
        self.undo(r)
        return False

    def next_segment(self, r):
        """Start the next one; False: there is none, or no room for it."""
        s: cython.pointer(Segment)
        if r.segment + 1 == r.segment_count:
            return False
        s = cython.address(r.segments[r.segment + 1])
        if not self.io.start(
            r.op, s.sector * SECTOR, cython.cast(uint64_t, s.count) * SECTOR, cython.NULL, 0,
            IO_UNMAP if s.flags else 0, cython.cast(cython.size_t, r),
        ):
            return False
        r.segment += 1
        return True

    def finish(self, r, status):
        """Answer it."""
        c: cython.pointer(Chain) = r.chain
        last: cython.pointer(iovec) = c.iov + (c.out_count + c.in_count - 1)
        cython.cast(cython.p_uchar, last.iov_base)[last.iov_len - 1] = status
        cython.cast(Queue, r.queue).push(c, c.in_bytes)
        self.touched[cython.cast(Queue, r.queue).index] = True
        free(r.own)
        free(r.segments)
        r.next = self.spare
        self.spare = r

    def undo(self, r):
        """Back into its queue, as if it had not been taken."""
        cython.cast(Queue, r.queue).unpop(r.chain)
        free(r.own)
        free(r.segments)
        r.next = self.spare
        self.spare = r


class Blk(Device):
    """``spec`` is a ``DiskSpec``, ``backend`` the ``DiskIo`` that ``open`` made of it."""

    name = "disk"
    id = 2
    class_code = 0x010000    # SCSI storage, as other virtio disks say
    own_thread = True

    def __init__(self, spec: DiskSpec, backend: DiskIo):
        super().__init__(spec, backend)
        self.io = backend
        self.queue_sizes = (QUEUE_SIZE,) * max(1, min(spec.queues, MAX_QUEUES))
        readonly = bool(backend.readonly)
        bits = [SIZE_MAX, SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ]
        bits += [RO] if readonly else [DISCARD, WRITE_ZEROES]
        self.features = sum(1 << bit for bit in bits)
        self._rings: BlkRings | None = None
        self._thread: threading.Thread | None = None
        self._configure()

    @classmethod
    def open(cls, spec: DiskSpec) -> DiskIo:
        """The disk; ``BlockError`` where it can't be had. Its format is known by now, and never guessed."""
        disk = open_disk(
            spec.path, spec.format, readonly=spec.readonly, direct=spec.cache == "none",
            allow_backing=spec.allow_backing,
        )
        try:
            buckets = [limit and limit.bucket() for limit in (spec.iops, spec.rate)]
            return DiskIo(disk, DEPTH, *buckets)
        except BaseException:
            disk.close()
            raise

    def _configure(self) -> None:
        writeback = self.config[WRITEBACK] if self.config else 1
        cluster = getattr(self.io.disk, "cluster_size", 0)
        self.max_sectors = 1 << 22  # 2 GiB: what one discard may be about
        self.config = bytearray(CONFIG.pack(
            self.io.size // SECTOR, SEGMENT_SIZE, QUEUE_SIZE - 2, 0, 0, 0,
            SECTOR, 3, 0, 8, cluster // SECTOR,                     # blocks of 4 KiB behind the sectors of 512
            writeback, len(self.queue_sizes),
            self.max_sectors, MAX_SEGMENTS, max(cluster // SECTOR, 8), self.max_sectors, MAX_SEGMENTS, 1,
        ))  # fmt: skip

    # -- the driver's side

    def activate(self) -> None:
        self._rings = BlkRings(self.queues, self.io, self.spec.serial, self.max_sectors, not self.io.readonly)
        self._start()

    def reset(self) -> None:
        self._park()
        if self._rings:
            self._rings.close()
        self._rings = None
        self.config[WRITEBACK] = 1

    def queue_reset(self, queue: Queue) -> None:
        self._park()
        self.loop.call_soon_threadsafe(self._unpark)  # it takes the lock, which is held until the queue is reset

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == WRITEBACK and size == 1 and self.has(CONFIG_WCE):
            self.config[WRITEBACK] = value & 1
            if self._rings:
                self._rings.stable = self._stable()

    def _stable(self) -> bool:
        return not self.has(FLUSH) or not self.config[WRITEBACK]

    # -- the thread

    def _start(self) -> None:
        assert self._rings is not None and self._thread is None
        self._rings.stable = self._stable()
        self._rings.tell(0)
        self._thread = threading.Thread(target=self._serve, args=(self._rings,), name=f"disk:{self.spec.path}")
        self._thread.start()

    def _serve(self, rings: BlkRings) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})  # the loop's
        try:
            rings.run(self._full)
        except BaseException:  # a bug of ours: the driver's requests stay unanswered
            traceback.print_exc(file=sys.stderr)

    def _park(self) -> None:
        """Return when nothing is under way; ``_start`` goes on."""
        if self._thread is not None:
            self._rings.tell(1)
            self._thread.join()
            self._thread = None

    def _unpark(self) -> None:
        with self.lock:
            if self._rings is not None and self._thread is None:
                self._start()

    def _full(self, error: int) -> None:
        why = {errno.EFBIG: "the file may not grow further", errno.EDQUOT: "the quota is used up"}
        text = f"no room for disk {self.spec.path}: {why.get(error, 'the file system is full')}"
        self.loop.call_soon_threadsafe(lambda: self.on_full(text))

    # -- the machine's side

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.io.size)

    @property
    def full(self) -> bool:
        """Whether it waits for room."""
        return bool(self.io.full)

    def retry(self) -> None:
        """There may be room again."""
        with self.lock:
            if self._thread is not None and self.io.full:
                self._park()
                self._start()

    def resize(self, size: int) -> None:
        """Make the disk ``size`` bytes, and tell the driver. ``BlockError`` where that can't be."""
        with self.lock:
            running = self._thread is not None
            self._park()
            try:
                self.io.disk.resize(size)
                self.io.measure()
                self._configure()
            finally:
                if running:
                    self._start()
            self.config_changed()

    def hold(self) -> None:
        with self.lock:
            self._park()
            self.io.hold_on()

    def freeze(self) -> None:
        """Between ``hold`` and ``go_on``: the images are only read from now on, until ``stack``."""
        freeze(self.io.disk)

    @property
    def blank(self) -> bool:
        """Whether the disk's top is a qcow2 image that nothing was written to, while the machine stands still."""
        return bool(getattr(self.io.disk, "blank", False))

    def stack(self, path: Path, fd: int, direct_fd: int = -1, instead: bool = False) -> None:
        """Between ``hold`` and ``go_on``: the empty qcow2 image ``fd`` takes what is written from now on, maybe
        ``instead`` of a ``blank`` one."""
        disk = self.io.disk.backing if instead else self.io.disk
        delta = Qcow2(File.adopt(path, fd, direct_fd), False)
        stack(disk, delta)
        self.io.disk = delta

    def go_on(self, copy: bool) -> None:
        with self.lock:
            self.io.go_on()
            if self._rings is not None:
                self._start()

    def drain(self) -> None:
        self._park()
        self.loop.call_soon_threadsafe(self._unpark)

    def close(self) -> None:
        self.reset()

    def statistics(self) -> dict[str, Any]:
        own = {"path": str(self.io.disk.path), "format": self.io.disk.format, "full": self.full}
        if self._rings is not None:
            own |= {"unsupported": self._rings.unsupported, "refused": self._rings.refused}
        return {**own, **self.io.statistics()}

    def save(self) -> dict[str, Any]:
        return {"version": _VERSION, "writeback": self.config[WRITEBACK], "disk": self.io.save()}

    def load(self, state: dict[str, Any]) -> None:
        if state["version"] != _VERSION:
            raise ValueError(f"{self.name}: state version {state['version']} is not {_VERSION}")
        self.io.load(state["disk"])
        self._configure()
        self.config[WRITEBACK] = state["writeback"]
