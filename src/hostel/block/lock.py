"""Who may open an image beside whom: open file description locks on the bytes that QEMU locks too.

QEMU (block/file-posix.c) has a byte for each permission. Who uses a permission holds a shared lock on byte 100 + n;
who doesn't grant it to others one on byte 200 + n. Nobody ever takes an exclusive lock: each takes its own and then
asks whether another holds what contradicts it. So a writer excludes writers and readers, readers go together, whoever
they are, and a lock ends with its process.
"""

import errno
import fcntl
import struct

# struct flock: short l_type, short l_whence, off_t l_start, off_t l_len, pid_t l_pid (0 for OFD locks)
_FLOCK = struct.Struct("hhqqi4x")
_USED, _UNSHARED = 100, 200
READ, WRITE, RESIZE = 0, 1, 3  # QEMU's BLK_PERM_CONSISTENT_READ, _WRITE and _RESIZE, as bit numbers


def take(fd: int, writable: bool) -> bool:
    """Lock the image for as long as ``fd`` is open, or change the kind of its lock; False where others hinder it.

    Nobody who reads grants others to write: an image without its latest metadata is no image.
    """
    used = (READ, WRITE, RESIZE) if writable else (READ,)
    unshared = (WRITE, RESIZE)
    try:
        for bit in used:
            _set(fd, fcntl.F_RDLCK, _USED + bit)
        for bit in unshared:
            _set(fd, fcntl.F_RDLCK, _UNSHARED + bit)
        if not writable:
            for bit in (WRITE, RESIZE):
                _set(fd, fcntl.F_UNLCK, _USED + bit)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # a lock of another kind of program
            return False
        raise
    contradicting = [_UNSHARED + bit for bit in used] + [_USED + bit for bit in unshared]
    free = not any(_others(fd, byte) for byte in contradicting)
    if not free:
        _set(fd, fcntl.F_UNLCK, _USED, _UNSHARED + 100 - _USED)
    return free


def _set(fd: int, kind: int, start: int, length: int = 1) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, start, length, 0))


def _others(fd: int, byte: int) -> bool:
    """Whether another open file description holds a lock on ``byte``."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
