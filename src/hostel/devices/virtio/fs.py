"""A shared folder (virtio 1.2, 5.11): FUSE requests of the guest's kernel, answered by ``devices/fuse``.

Most are answered by the thread of the vCPU that asks, within its notification: to hand a request of some microseconds
to another thread costs more than to answer it. What may take long (contents that aren't in the host's cache, much
data, syncs) and what comes while another request is being answered is left to a thread of the share's own, so that a
slow disk holds up neither vCPUs nor other devices. Neither has the GIL. What READ and WRITE carry goes between the file
and guest memory without a copy.

Queues: 0 for requests that must not wait for others (FORGET), 1 for the rest. There is no shared memory (DAX).

Lock: ``Answers.mutex``, which is held while the queues are used. ``reset`` takes it, and so waits until the request
that is being answered is done.
"""

import os
import resource
import struct
import threading

import cython
from cython.cimports.hostel.base.lock import lock, mutex_init, unlock
from cython.cimports.hostel.devices.fuse.abi import (
    COPY_FILE_RANGE,
    DESTROY,
    FALLOCATE,
    FSYNC,
    FSYNCDIR,
    INIT,
    SYNCFS,
    in_header,
)
from cython.cimports.hostel.devices.fuse.server import LATER, Server
from cython.cimports.hostel.devices.virtio.queue import Bell, Chain, Queue, gather
from cython.cimports.libc.stdint import uint64_t

from hostel.base.errors import MachineError
from hostel.base.linux import eventfd, prctl
from hostel.devices.virtio.device import Device
from hostel.spec.share import MAX_SHARES, ShareSpec

TAG_SIZE = 36                 # bytes (5.11.4)
HIGH_PRIORITY_SIZE, REQUEST_SIZE = 128, 1024   # a request of 256 pages takes 260 descriptors, without indirect ones
# Of a process's descriptors: what hostel itself has open, what leads to files, what guests have open
OWN = 512
DESCRIPTORS, FILES = 8192, 32768
MEMORY_OF_INODE = 1024        # bytes of guest memory: a Linux guest spends more on a file that it knows


class Folder:
    """The back end: the folder, open for as long as the VM lives."""

    def __init__(self, spec: ShareSpec):
        self.readonly = spec.readonly
        try:
            self.root = os.open(spec.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            raise MachineError(f"can't share {spec.source}: {e.strerror}") from e
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        room = max(0, hard - OWN) // MAX_SHARES
        self.descriptors = max(16, min(DESCRIPTORS, room // 3))
        self.files = max(16, min(FILES, room - self.descriptors))

    def close(self) -> None:
        os.close(self.root)


@cython.cclass
class Answers(Bell):
    """The thread's part: ``run`` returns after ``end``."""

    def __cinit__(self, server: Server, queues: list):
        mutex_init(cython.address(self.mutex), cython.NULL)
        self.server = server
        self.queues = queues
        self.wake = eventfd.make(flags=os.EFD_CLOEXEC)

    def rung(self, queue):
        chain: cython.pointer(Chain)
        size: uint64_t
        answered: cython.int = 0
        if trylock(cython.address(self.mutex)) != 0:
            queue.wake()
            return
        while self.running:
            chain = queue.pop() if answered < QUICK else cython.NULL
            if chain == cython.NULL:
                if answered == QUICK:
                    queue.wake()
                break
            size = LATER
            if self.is_quick(chain):
                size = self.server.handle(chain.iov, chain.out_count, chain.in_count, True)
            if size == LATER:
                queue.unpop(chain)
                queue.wake()
                break
            queue.push(chain, size)
            answered += 1
        queue.signal()
        unlock(cython.address(self.mutex))

    def is_quick(self, chain):
        """Whether the request is of a kind that takes microseconds, if what it is about is in the host's cache."""
        header: in_header
        if chain.out_bytes > QUICK_SIZE or chain.in_bytes > QUICK_SIZE:
            return False
        if gather(chain, 0, cython.address(header), cython.sizeof(in_header)) < cython.sizeof(in_header):
            return True
        return not (
            header.opcode == FSYNC or header.opcode == FSYNCDIR or header.opcode == SYNCFS or header.opcode == FALLOCATE
            or header.opcode == COPY_FILE_RANGE or header.opcode == INIT or header.opcode == DESTROY
        )

    def run(self):
        """Answer until ``end``."""
        first: Queue = self.queues[0]
        second: Queue = self.queues[1]
        with cython.nogil:
            while not self.ended:
                self.wait(first, second)
                self.serve(first)
                self.serve(second)

    def wait(self, first, second):
        """Until the driver has notified, or it ends."""
        fds: pollfd[3]
        fds[0].fd = first.notify_fd
        fds[1].fd = second.notify_fd
        fds[2].fd = self.wake
        fds[0].events = fds[1].events = fds[2].events = POLLIN
        fds[0].revents = fds[1].revents = 0
        poll(fds, 3, -1)
        if fds[0].revents:
            first.acknowledge()
        if fds[1].revents:
            second.acknowledge()

    def serve(self, queue):
        """Answer what is in the queue."""
        chain: cython.pointer(Chain)
        answered: cython.int = 0
        while True:
            lock(cython.address(self.mutex))
            chain = queue.pop() if self.running else cython.NULL
            if chain == cython.NULL:
                queue.signal()
                unlock(cython.address(self.mutex))
                return
            queue.push(chain, self.server.handle(chain.iov, chain.out_count, chain.in_count, False))
            answered += 1
            if answered % BATCH == 0:
                queue.signal()
            unlock(cython.address(self.mutex))

    def set_running(self, running: cython.bint):
        """Whether queues may be used. Returns when what was being answered is."""
        with cython.nogil:
            lock(cython.address(self.mutex))
            self.running = running
            unlock(cython.address(self.mutex))

    def finish(self):
        """Answer all that is there. The guest must stand still."""
        queue: Queue
        for queue in self.queues:
            with cython.nogil:
                self.serve(queue)

    def end(self):
        """Have ``run`` return."""
        self.set_running(False)
        self.ended = 1
        os.eventfd_write(self.wake, 1)

    def begin(self):
        """Have ``run`` go on the next time, after ``end``."""
        self.ended = 0
        os.eventfd_read(self.wake)

    def close(self):
        os.close(self.wake)


class Fs(Device):
    name = "fs"
    id = 26
    class_code = 0x018000     # mass storage, of no particular kind
    queue_sizes = (HIGH_PRIORITY_SIZE, REQUEST_SIZE)

    def __init__(self, spec: ShareSpec, backend: Folder):
        super().__init__(spec, backend)
        self.config = bytearray(struct.pack(f"<{TAG_SIZE}sII", spec.tag.encode(), 1, 0))
        self._thread = None
        self._active = False

    @classmethod
    def open(cls, spec: ShareSpec) -> Folder:
        return Folder(spec)

    def attach(self, carrier):
        super().attach(carrier)
        queue: Queue = self.queues[0]
        self.server = Server(
            os.dup(self.backend.root),
            readonly=self.spec.readonly,
            keeps_owners=self.spec.owners == "guest",
            cache=self.spec.cache,
            inodes=max(1024, min(queue.ram.size // MEMORY_OF_INODE, 1 << 26)),
            descriptors=self.backend.descriptors,
            files=self.backend.files,
        )
        self._answers = Answers(self.server, self.queues)

    def activate(self):
        queue: Queue
        for queue in self.queues:
            self.loop.unwatch(queue.notify_fd)
            queue.bell = self._answers
        self._active = True
        self._answers.set_running(True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.spec.tag, daemon=True)
            self._thread.start()

    def _run(self):
        prctl.set_name(self.spec.tag)
        self._answers.run()

    def reset(self):
        self._active = False
        self._answers.set_running(False)
        self.server.reset()

    def queue_reset(self, queue):
        # The transport has the lock until the queue is reset; then the other one goes on.
        self._answers.set_running(False)
        self.loop.call_soon_threadsafe(self._go_on)

    def _go_on(self):
        with self.lock:
            if self._active:
                self._answers.set_running(True)
                for queue in self.queues:
                    queue.ring_py()

    def drain(self):
        self._answers.finish()

    def hold(self):
        if self._thread is not None:
            self._answers.end()
            self._thread.join()
            self._thread = None

    def go_on(self, copy):
        if self._active:
            self._answers.begin()
            self.activate()
            for queue in self.queues:
                queue.ring_py()

    def close(self):
        self._active = False
        self._answers.end()
        if self._thread is not None:
            self._thread.join()
        self._answers.close()
        self.server.reset()

    def statistics(self):
        return self.server.statistics()

    def save(self):
        return {"version": 1, "server": self.server.save()}

    def load(self, state):
        super().load(state)
        self.server.load(state["server"])
