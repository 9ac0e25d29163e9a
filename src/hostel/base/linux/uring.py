"""io_uring (io_uring_setup(2), io_uring_enter(2), io_uring_register(2); linux/io_uring.h), by its system calls.

System calls that a ring makes don't pass a process's seccomp filter. So a ring is made before the process confines
itself, and its restrictions, which can't be taken back, leave it reads, writes and syncs of the files that it was given
at its making, nothing else: no other operation, no other file, no further registration. It is what the process could
do to those files anyway.

Needs Linux 5.10 (restrictions); ``OSError`` where the host has no io_uring to give.
"""

import errno
import mmap
import os
import struct
from ctypes import addressof, c_char, create_string_buffer

import cython
from cython.cimports.hostel.base.aio import AIO_SYNC
from cython.cimports.libc.errno import EINTR
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import int32_t, uint32_t
from cython.cimports.libc.string import memset

from hostel.base.linux import eventfd
from hostel.base.linux.syscall import syscall

_SETUP, _REGISTER = 425, 427
ENTER = cython.declare(cython.int, 426)
_CQSIZE, _R_DISABLED = 1 << 3, 1 << 6                         # flags of the setup
_SINGLE_MMAP, _NODROP, _SUBMIT_STABLE = 1 << 0, 1 << 1, 1 << 2  # features
_FILES, _EVENTFD, _RESTRICTIONS, _ENABLE = 2, 4, 11, 12       # registrations
_SQE_OP, _SQE_FLAGS_REQUIRED = 1, 3                           # restrictions
_READV, _WRITEV, _FSYNC = 1, 2, 3                             # operations
_FIXED_FILE, _DATASYNC, _EVENTFD_DISABLED = 1, 1, 1
_SQES = 0x10000000                                            # where entries are mapped from
_MAX_SUBMISSION = 256
_PARAMETERS = struct.Struct("<10I 8IQ 8IQ")                   # struct io_uring_params


@cython.cclass
class Uring(Aio):
    """A ring for the files ``fds`` with up to ``depth`` operations under way."""

    def __cinit__(self, fds, depth: int):
        self.fd = -1

    def __init__(self, fds, depth: int):
        if not 1 <= depth <= 4096 or not 1 <= len(fds) <= 16:
            raise ValueError(f"io_uring: {depth} operations on {len(fds)} files")
        self.name = "io_uring"
        self.depth = depth
        try:
            self._make(list(fds))
        except BaseException:
            self.close()
            raise

    def _make(self, fds):
        zeros = [0] * 28
        zeros[1], zeros[2] = self.depth, _CQSIZE | _R_DISABLED  # cq_entries, flags
        parameters = create_string_buffer(_PARAMETERS.pack(*zeros), _PARAMETERS.size)
        self.fd = syscall(_SETUP, min(self.depth, _MAX_SUBMISSION), parameters)
        os.set_inheritable(self.fd, False)
        (
            sq_size, cq_size, _, _, _, features, _, _, _, _,
            sq_head, sq_tail, sq_mask, _, _, _, sq_array, _, _,
            cq_head, cq_tail, cq_mask, _, _, cqes, cq_flags, _, _,
        ) = _PARAMETERS.unpack(parameters.raw)  # fmt: skip
        if ~features & (_SINGLE_MMAP | _NODROP | _SUBMIT_STABLE) or not cq_flags:
            raise OSError(errno.ENOSYS, "io_uring is too old")
        self.rings = mmap.mmap(self.fd, max(sq_array + 4 * sq_size, cqes + 16 * cq_size))
        self.entries = mmap.mmap(self.fd, 64 * sq_size, offset=_SQES)
        base: cython.size_t = addressof(c_char.from_buffer(self.rings))
        there: cython.size_t = addressof(c_char.from_buffer(self.entries))
        self.sqes = cython.cast(cython.pointer(Sqe), there)
        self.sq_head = _word(base, sq_head)
        self.sq_tail = _word(base, sq_tail)
        self.cq_head = _word(base, cq_head)
        self.cq_tail = _word(base, cq_tail)
        self.cq_flags = _word(base, cq_flags)
        self.cqes = cython.cast(cython.pointer(Cqe), base + cython.cast(cython.size_t, cqes))
        self.sq_mask = _word(base, sq_mask)[0]
        self.cq_mask = _word(base, cq_mask)[0]
        self.sq_size = sq_size
        struct.pack_into(f"<{sq_size}I", self.rings, sq_array, *range(sq_size))  # entry i is always entry i
        self.event_fd = eventfd.make()
        self._register(_EVENTFD, struct.pack("<i", self.event_fd), 1)
        self._register(_FILES, struct.pack(f"<{len(fds)}i", *fds), len(fds))
        self.files = len(fds)
        rules = [(_SQE_OP, _READV), (_SQE_OP, _WRITEV), (_SQE_OP, _FSYNC), (_SQE_FLAGS_REQUIRED, _FIXED_FILE)]
        # struct io_uring_restriction: u16 opcode, u8 argument, 13 reserved bytes
        self._register(_RESTRICTIONS, b"".join(struct.pack("<HB13x", *rule) for rule in rules), len(rules))
        self._register(_ENABLE, b"", 0)
        self.cq_flags[0] = _EVENTFD_DISABLED

    def _register(self, what, data, count):
        syscall(_REGISTER, self.fd, what, create_string_buffer(data, len(data)) if data else 0, count)

    def close(self):
        done: Completion[64]
        with cython.nogil:
            while self.files and self.running:  # the kernel still has their buffers
                self.submit()
                if not self.reap(done, 64):
                    system_call(ENTER, self.fd, 0, 1, 1, 0, 0)  # IORING_ENTER_GETEVENTS
        for fd in (self.fd, self.event_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.event_fd = -1
        self.files = 0

    def start(self, op, file, iov, count, offset, token):
        if offset < 0 or file < 0 or file >= self.files or self.running >= self.depth:
            return False  # io_uring would take an offset of -1 for the file's position
        if self.tail - self.sq_head[0] == self.sq_size:
            self.submit()
            if self.tail - self.sq_head[0] == self.sq_size:
                return False
        sqe: cython.pointer(Sqe) = cython.address(self.sqes[self.tail & self.sq_mask])
        memset(sqe, 0, cython.sizeof(Sqe))
        sqe.flags = 1           # IOSQE_FIXED_FILE
        sqe.fd = file
        sqe.user_data = token
        if op == AIO_SYNC:
            sqe.opcode = 3      # IORING_OP_FSYNC
            sqe.op_flags = 1    # IORING_FSYNC_DATASYNC
        else:
            sqe.opcode = op + 1  # IORING_OP_READV, IORING_OP_WRITEV
            sqe.off = offset
            sqe.addr = cython.cast(cython.size_t, iov)
            sqe.len = count
        self.tail += 1
        self.running += 1
        self.started += 1
        return True

    def submit(self):
        count: uint32_t
        taken: cython.long
        fence(4)
        self.sq_tail[0] = self.tail
        while True:
            fence(4)
            count = self.tail - self.sq_head[0]
            if not count:
                return 0
            taken = system_call(ENTER, self.fd, count, 0, 0, 0, 0)
            if taken <= 0 and not (taken < 0 and c_errno == EINTR):
                return count    # EAGAIN, EBUSY: no memory, or too many that nobody has reaped

    def reap(self, out, room):
        head: uint32_t = self.cq_head[0]
        n: cython.int = 0
        cqe: cython.pointer(Cqe)
        self.cq_flags[0] = 1    # IORING_CQ_EVENTFD_DISABLED
        fence(4)
        while n < room and head != self.cq_tail[0]:
            fence(4)
            cqe = cython.address(self.cqes[head & self.cq_mask])
            out[n].token = cqe.user_data
            out[n].result = cython.cast(int32_t, cqe.res)
            head += 1
            n += 1
        fence(4)
        self.cq_head[0] = head
        self.running -= n
        return n

    def arm(self):
        self.cq_flags[0] = 0
        fence(5)                # the flag is out before the tail is read
        return self.cq_head[0] != self.cq_tail[0]


@cython.cfunc
def _word(base: cython.size_t, offset: cython.size_t) -> cython.pointer(cython.volatile[uint32_t]):
    return cython.cast(cython.pointer(cython.volatile[uint32_t]), base + offset)
