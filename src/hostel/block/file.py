"""A host file or block device under a disk: whole reads and writes at offsets, holes, and who else has it open.

Every failure is a ``BlockError`` with the file's name and the kernel's errno. What lies past the end reads as zeros.
With ``direct``, data goes by a descriptor with O_DIRECT past the host's page cache (metadata doesn't); what isn't
aligned as the kernel wants it takes a bounce buffer. Disks belong to one thread, and so do these.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from hostel.base.errors import BlockError
from hostel.base.linux.syscall import syscall
from hostel.block import lock

Buffer = memoryview
_FALLOCATE = 285
_STATX, _EMPTY_PATH, _DIOALIGN = 332, 0x1000, 0x2000
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 0x10
_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F
_IOV_MAX = 1024
BOUNCE = 1 << 20          # bytes that unaligned direct I/O copies at once
_ZEROS = bytes(1 << 16)
_zeros_at = ctypes.cast(ctypes.c_char_p(_ZEROS), ctypes.c_void_p).value
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL, errno.ENODEV, errno.EPERM)
_ADVICE = {
    errno.ENOENT: "there is no such file",
    errno.EACCES: "permission denied",
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
}


def length_of(buffers: Sequence[Buffer]) -> int:
    return sum(map(len, buffers))


def cut(buffers: Sequence[Buffer], start: int, length: int) -> list[Buffer]:
    """The views of ``length`` bytes at ``start`` of what ``buffers`` are together; nothing is copied."""
    out = []
    for buffer in buffers:
        size = len(buffer)
        if start >= size:
            start -= size
            continue
        view = buffer[start : start + length] if start or size > length else buffer
        out.append(view)
        length -= len(view)
        start = 0
        if not length:
            break
    return out


def fill(buffers: Sequence[Buffer]) -> None:
    """Zeros everywhere."""
    for buffer in buffers:
        for start in range(0, len(buffer), len(_ZEROS)):
            size = min(len(_ZEROS), len(buffer) - start)
            buffer[start : start + size] = _ZEROS[:size] if size < len(_ZEROS) else _ZEROS


def is_zero(address: int, length: int) -> bool:
    """Whether there are only zeros at an address of ours."""
    while length > 0:
        size = min(length, len(_ZEROS))
        if _memcmp(address, _zeros_at, size):
            return False
        address += size
        length -= size
    return True


class File:
    """``fd`` reads and writes through the page cache; ``data_fd`` is where data goes: the same, or the direct one.
    ``alignment``: what offsets, lengths and addresses on ``data_fd`` must be multiples of; 1 with the page cache."""

    def __init__(self, path: str | os.PathLike[str], writable: bool = False, direct: bool = False, locked: bool = True):
        self.path = Path(path)
        self.writable = writable
        self.fd = self.data_fd = -1
        self.alignment = 1
        self._bounce: mmap.mmap | None = None
        try:
            mode = os.stat(self.path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise BlockError(f"{self.path} is neither a file nor a block device", errno.EINVAL)
            flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            self.fd = self.data_fd = os.open(self.path, flags)
            status = os.fstat(self.fd)
            self.is_device = stat.S_ISBLK(status.st_mode)
            self.identity = (status.st_dev, status.st_ino)
            if locked:
                self._lock(writable)
            if direct:
                self.data_fd = os.open(f"/proc/self/fd/{self.fd}", flags | os.O_DIRECT)
                self.alignment = self._probe_alignment()
        except OSError as error:
            self.close()
            raise self._error("open", error) from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def adopt(cls, path: Path, fd: int, direct_fd: int = -1) -> "File":
        """A file that another process opened, and locked for writing: ``fd``, and ``direct_fd`` with O_DIRECT."""
        file = cls.__new__(cls)
        file.path, file.writable, file.fd = path, True, fd
        file.data_fd = fd if direct_fd < 0 else direct_fd
        file.alignment, file._bounce = 1, None
        status = os.fstat(fd)
        file.is_device = stat.S_ISBLK(status.st_mode)
        file.identity = (status.st_dev, status.st_ino)
        if direct_fd >= 0:
            file.alignment = file._probe_alignment()
        return file

    def close(self) -> None:
        for fd in {self.fd, self.data_fd} - {-1}:
            os.close(fd)
        self.fd = self.data_fd = -1

    def reader(self) -> None:
        """From now on this file is only read, here, and others may read it too."""
        self.writable = False
        self._lock(False)

    def writer(self) -> None:
        """Take back the right to write that ``reader`` gave up."""
        try:
            self._lock(True)
        except BlockError:
            self._lock(False)
            raise
        self.writable = True

    def _lock(self, writable: bool) -> None:
        if not lock.take(self.fd, writable):
            raise BlockError(
                f"{self.path} is in use: "
                + ("another VM or program has it open" if writable else "another VM or program may be writing to it"),
                errno.EBUSY,
            )

    def _error(self, what: str, error: OSError) -> BlockError:
        why = _ADVICE.get(error.errno or 0) or error.strerror or str(error)
        return BlockError(f"can't {what} {self.path}: {why}", error.errno or errno.EIO)

    @property
    def size(self) -> int:
        """Bytes up to its end, now."""
        try:
            if self.is_device:
                return os.lseek(self.fd, 0, os.SEEK_END)
            return os.fstat(self.fd).st_size
        except OSError as error:
            raise self._error("look at", error) from error

    @property
    def allocated(self) -> int:
        """Bytes that it takes on its file system."""
        return self.size if self.is_device else os.fstat(self.fd).st_blocks * 512

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise self._error("resize", error) from error

    def sync(self) -> None:
        """What was written is safe from a crash of the host when this returns."""
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise self._error("write to", error) from error

    # -- metadata: bytes by the page cache

    def read(self, offset: int, length: int) -> bytes:
        """As much of it as the file has."""
        parts = []
        try:
            while length:
                part = os.pread(self.fd, length, offset)
                if not part:
                    break
                parts.append(part)
                offset += len(part)
                length -= len(part)
        except OSError as error:
            raise self._error("read", error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        try:
            while len(view):
                done = os.pwrite(self.fd, view, offset)
                offset += done
                view = view[done:]
        except OSError as error:
            raise self._error("write to", error) from error

    # -- data

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Fill ``buffers``, with zeros for what lies past the end."""
        if self.alignment > 1 and not self._is_aligned(offset, buffers):
            return self._bounce_read(offset, buffers)
        total = length_of(buffers)
        done = 0
        try:
            while done < total:
                rest = cut(buffers, done, total - done) if done or len(buffers) > _IOV_MAX else buffers
                got = os.preadv(self.data_fd, rest[:_IOV_MAX] if len(rest) > _IOV_MAX else rest, offset + done)
                if not got:
                    return fill(cut(buffers, done, total - done))
                done += got
                if self.alignment > 1 and got % self.alignment:  # the end of the file
                    return fill(cut(buffers, done, total - done))
        except OSError as error:
            raise self._error("read", error) from error

    def writev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        if self.alignment > 1 and not self._is_aligned(offset, buffers):
            return self._bounce_write(offset, buffers)
        total = length_of(buffers)
        done = 0
        try:
            while done < total:
                rest = cut(buffers, done, total - done) if done or len(buffers) > _IOV_MAX else buffers
                done += os.pwritev(self.data_fd, rest[:_IOV_MAX] if len(rest) > _IOV_MAX else rest, offset + done)
        except OSError as error:
            raise self._error("write to", error) from error

    def _probe_alignment(self) -> int:
        """What the kernel wants of direct I/O here (STATX_DIOALIGN, Linux 6.1); 4096 suits every disk."""
        answer = ctypes.create_string_buffer(256)
        try:
            syscall(_STATX, self.data_fd, ctypes.c_char_p(b""), _EMPTY_PATH, _DIOALIGN, answer)
        except OSError:
            return 4096
        mask, = struct.unpack_from("I", answer, 0)
        memory, offset = struct.unpack_from("II", answer, 152)
        return max(memory, offset, 512) if mask & _DIOALIGN and offset else 4096

    def _is_aligned(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        mask = self.alignment - 1
        bits = offset
        for buffer in buffers:
            bits |= len(buffer) | address_of(buffer)
        return not bits & mask

    def _bounces(self, offset: int, buffers: Sequence[Buffer]) -> Iterator[tuple[Buffer, int, int, list[Buffer]]]:
        """Cut an unaligned request into pieces: for each, the aligned view of the bounce buffer, where it lies in the
        file, where in it the piece begins, and the piece of ``buffers``."""
        if self._bounce is None:
            # Private: forks of a VM go on with the same images, each by itself.
            self._bounce = mmap.mmap(-1, BOUNCE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mask = self.alignment - 1
        done, total = 0, length_of(buffers)
        bounce = memoryview(self._bounce)
        while done < total:
            start = offset + done & ~mask
            skip = offset + done - start
            size = min(total - done, BOUNCE - skip)
            yield bounce[: skip + size + mask & ~mask], start, skip, cut(buffers, done, size)
            done += size

    def _bounce_read(self, offset: int, buffers: Sequence[Buffer]) -> None:
        for view, start, skip, pieces in self._bounces(offset, buffers):
            self.readv(start, [view])
            for piece in pieces:
                piece[:] = view[skip : skip + len(piece)]
                skip += len(piece)

    def _bounce_write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """What shares a block with the edges of the request is read and written again."""
        for view, start, skip, pieces in self._bounces(offset, buffers):
            end = skip + length_of(pieces)
            block = self.alignment
            if skip:
                self.readv(start, [view[:block]])
            if end < len(view) and (len(view) > block or not skip):
                self.readv(start + len(view) - block, [view[len(view) - block :]])
            size = self.size
            for piece in pieces:
                view[skip : skip + len(piece)] = piece
                skip += len(piece)
            self.writev(start, [view])
            if start + len(view) > max(size, start + end) and not self.is_device:
                self.truncate(max(size, start + end))  # not longer than what was asked for

    # -- holes

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """False where this file can't."""
        try:
            syscall(_FALLOCATE, self.fd, mode, offset, length)
            return True
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise self._error("write to", error) from error

    def _device_range(self, request: int, offset: int, length: int) -> bool:
        if (offset | length) & 511:
            return False
        try:
            fcntl.ioctl(self.fd, request, struct.pack("QQ", offset, length))
            return True
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise self._error("write to", error) from error

    def discard(self, offset: int, length: int) -> None:
        """Give its space back where that is possible. A file's then reads as zeros, a device's as anything."""
        if length <= 0:
            return
        if self.is_device:
            self._device_range(_BLKDISCARD, offset, length)
        else:
            self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool = True) -> None:
        """Zeros, cheaply where the file system can; the file grows if it must."""
        if length <= 0:
            return
        if self.is_device:
            if self._device_range(_BLKZEROOUT, offset, length):
                return
        else:
            size = self.size
            if offset + length > size:
                self.truncate(offset + length)
            if may_unmap and self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length):
                return
            if self._fallocate(_ZERO_RANGE | _KEEP_SIZE, offset, length):
                return
        zeros = memoryview(_ZEROS)
        while length:
            size = min(length, len(zeros) * _IOV_MAX)
            self.writev(offset, cut([zeros] * (-(-size // len(zeros))), 0, size))
            offset += size
            length -= size

    def data_run(self, offset: int, length: int) -> tuple[bool, int]:
        """Whether there is data at ``offset`` (else a hole, which reads as zeros), and for how many of ``length``
        bytes that holds. SEEK_DATA and SEEK_HOLE (lseek(2)); a file system without them has only data."""
        end = offset + length
        size = self.size
        if offset >= size:
            return False, length
        if self.is_device:
            return True, min(end, size) - offset
        try:
            data = os.lseek(self.fd, offset, os.SEEK_DATA)
            if data > offset:
                return False, min(data, end) - offset
            return True, min(os.lseek(self.fd, offset, os.SEEK_HOLE), end) - offset
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end
                return False, min(size, end) - offset
            if error.errno == errno.EINVAL:
                return True, min(size, end) - offset
            raise self._error("read", error) from error


def address_of(buffer: Buffer) -> int:
    """Where its memory is; read-only memory counts as unaligned."""
    if buffer.readonly:
        return 1
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if len(buffer) else 0
