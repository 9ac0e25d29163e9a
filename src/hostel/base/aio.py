"""Asynchronous reads, writes and syncs of files, many at once: by io_uring (base/linux/uring), else by threads.

One thread starts operations, submits them as a batch and reaps what is done; it sleeps on ``event_fd`` after
``arm()`` has said that nothing is done yet. Operations are independent: neither order nor atomicity is promised
among those that are under way, and a read or write may be short, as the kernel's own.

Files are named when the engine is made, by descriptor, and later by their index: with io_uring nothing else can be
reached afterwards, and the engine keeps them open.

Lock of ``ThreadAio``: ``mutex`` around its rings; never held while a file is used.
"""

import os

import cython
from cython.cimports.hostel.base.lock import lock, mutex_init, unlock
from cython.cimports.libc.errno import EINTR, errno
from cython.cimports.libc.stdint import int64_t
from cython.cimports.libc.stdlib import calloc, free

from hostel.base.linux import eventfd

MAX_DEPTH = 4096


def open_aio(fds, depth: int, kind: str = ""):
    """An engine for the files ``fds``, with up to ``depth`` operations under way: io_uring where this host lets us
    have it. ``kind`` asks for ``io_uring`` (OSError where it isn't to be had) or ``threads``."""
    kind = kind or os.environ.get("HOSTEL_AIO", "")
    if kind != "threads":
        from hostel.base.linux.uring import Uring

        try:
            return Uring(fds, depth)
        except OSError:  # an old kernel, a container's filter, kernel.io_uring_disabled, no memory to lock
            if kind:
                raise
    return ThreadAio(fds, depth)


@cython.cclass
class Aio:
    """What both engines are; see the .pxd. The methods here are for tests and tools."""

    def __cinit__(self):
        self.event_fd = -1

    def start(self, op, file, iov, count, offset, token):
        return False

    def submit(self):
        return 0

    def reap(self, out, room):
        return 0

    def arm(self):
        return False

    def close(self):
        """Wait for what is under way and let go of everything; what was not reaped is lost."""

    def start_py(self, op: str, file: int, buffers: list, offset: int, token: int) -> bool:
        """``start`` with ``read``, ``write`` or ``sync``; ``buffers`` must live until the operation is reaped, and so
        must what this returns, if it isn't None."""
        vector = Vector(buffers)
        kind: cython.int = ("read", "write", "sync").index(op)
        return vector if self.start(kind, file, vector.iov, len(buffers), offset, token) else None

    def submit_py(self) -> int:
        return self.submit()

    def arm_py(self) -> bool:
        return self.arm()

    def reap_py(self) -> list:
        """``[(token, result), ...]``"""
        out: Completion[64]
        n: cython.int = self.reap(out, 64)
        return [(out[i].token, out[i].result) for i in range(n)]


@cython.cclass
class Vector:
    """An iovec array of Python buffers; for tests."""

    def __cinit__(self, buffers):
        self.buffers = [memoryview(buffer) for buffer in buffers]
        self.iov = cython.cast(cython.pointer(iovec), calloc(max(1, len(buffers)), cython.sizeof(iovec)))
        view: cython.const[cython.uchar][:]
        for i, buffer in enumerate(self.buffers):
            view = buffer
            if len(buffer):
                self.iov[i].iov_base = cython.cast(cython.p_void, cython.address(view[0]))
            self.iov[i].iov_len = len(buffer)

    def __dealloc__(self):
        free(self.iov)


@cython.cclass
class ThreadAio(Aio):
    """Up to eight threads with preadv, pwritev and fdatasync; they come as they are needed. They are the C library's,
    not Python's, and never take the GIL."""

    def __cinit__(self, fds, depth: int):
        if not 1 <= depth <= MAX_DEPTH or not 1 <= len(fds) <= MAX_FILES:
            raise ValueError(f"aio: {depth} operations on {len(fds)} files")
        self.name = "threads"
        mutex_init(cython.address(self.mutex), cython.NULL)
        cond_init(cython.address(self.cond), cython.NULL)
        self.depth = depth
        size: cython.uint = 1
        while size < depth:
            size *= 2
        self.mask = size - 1
        self.fds = cython.cast(cython.p_int, calloc(len(fds), cython.sizeof(cython.int)))
        self.jobs = cython.cast(cython.pointer(Job), calloc(size, cython.sizeof(Job)))
        self.done = cython.cast(cython.pointer(Completion), calloc(size, cython.sizeof(Completion)))
        if self.fds == cython.NULL or self.jobs == cython.NULL or self.done == cython.NULL:
            raise MemoryError()
        self.event_fd = eventfd.make()
        for fd in fds:
            self.fds[self.fd_count] = os.dup(fd)
            self.fd_count += 1

    def __dealloc__(self):
        free(self.fds)
        free(self.jobs)
        free(self.done)

    def close(self):
        i: cython.int
        if self.event_fd < 0:
            return
        with cython.nogil:
            self.submit()
            lock(cython.address(self.mutex))
            self.closing = True
            cond_broadcast(cython.address(self.cond))
            unlock(cython.address(self.mutex))
            for i in range(self.thread_count):
                pthread_join(self.threads[i], cython.NULL)
        self.thread_count = 0
        for i in range(self.fd_count):
            os.close(self.fds[i])
        os.close(self.event_fd)
        self.event_fd = -1
        self.fd_count = 0

    def start(self, op, file, iov, count, offset, token):
        if offset < 0 or file < 0 or file >= self.fd_count or self.running >= self.depth:
            return False
        lock(cython.address(self.mutex))
        job: cython.pointer(Job) = cython.address(self.jobs[self.last_job & self.mask])
        job.op = op
        job.fd = self.fds[file]
        job.iov = iov
        job.count = count
        job.offset = offset
        job.token = token
        self.last_job += 1
        unlock(cython.address(self.mutex))
        self.running += 1
        self.started += 1
        return True

    def submit(self):
        waiting: cython.int
        lock(cython.address(self.mutex))
        waiting = cython.cast(cython.int, self.last_job - self.first_job)
        while waiting > self.idle and self.thread_count < MAX_THREADS:
            if pthread_create(
                cython.address(self.threads[self.thread_count]), cython.NULL, _thread, cython.cast(cython.p_void, self)
            ):
                break
            self.thread_count += 1
            self.idle += 1
        if waiting == 1:
            cond_signal(cython.address(self.cond))
        elif waiting:
            cond_broadcast(cython.address(self.cond))
        if self.thread_count:  # else no thread was to be had at all: asked again
            waiting = 0
        unlock(cython.address(self.mutex))
        return waiting

    def reap(self, out, room):
        n: cython.int = 0
        lock(cython.address(self.mutex))
        self.armed = False
        while n < room and self.first_done != self.last_done:
            out[n] = self.done[self.first_done & self.mask]
            self.first_done += 1
            n += 1
        unlock(cython.address(self.mutex))
        self.running -= n
        return n

    def arm(self):
        ready: cython.bint
        lock(cython.address(self.mutex))
        ready = self.first_done != self.last_done
        self.armed = not ready
        unlock(cython.address(self.mutex))
        return ready

    def work(self):
        """A thread's life. ``idle`` counts those that wait and those that come."""
        job: Job
        result: int64_t
        signals: sigset_t
        sigfillset(cython.address(signals))
        pthread_sigmask(SIG_SETMASK, cython.address(signals), cython.NULL)
        pthread_setname_np(pthread_self(), b"disk-io")
        lock(cython.address(self.mutex))
        while True:
            while self.first_job == self.last_job and not self.closing:
                cond_wait(cython.address(self.cond), cython.address(self.mutex))
            if self.first_job == self.last_job:
                break
            job = self.jobs[self.first_job & self.mask]
            self.first_job += 1
            self.idle -= 1
            unlock(cython.address(self.mutex))
            while True:
                if job.op == AIO_READ:
                    result = preadv(job.fd, job.iov, job.count, job.offset)
                elif job.op == AIO_WRITE:
                    result = pwritev(job.fd, job.iov, job.count, job.offset)
                else:
                    result = fdatasync(job.fd)
                if result >= 0:
                    break
                result = -errno
                if result != -EINTR:
                    break
            lock(cython.address(self.mutex))
            self.idle += 1
            self.done[self.last_done & self.mask].token = job.token
            self.done[self.last_done & self.mask].result = result
            self.last_done += 1
            if self.armed:
                self.armed = False
                eventfd_write(self.event_fd, 1)
        unlock(cython.address(self.mutex))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _thread(engine: cython.p_void) -> cython.p_void:
    cython.cast(ThreadAio, engine).work()
    return cython.NULL
