"""Locks on a file that end with their owner (open file description locks, fcntl(2)).

Unlike flock they can be asked about without being taken, so that looking at a VM never makes its worker's own
attempt fail.
"""

import fcntl
import os
import struct

# struct flock: short l_type, short l_whence, off_t l_start, off_t l_len, pid_t l_pid (0 for OFD locks)
_FLOCK = struct.Struct("hhqqi4x")


def take(fd: int) -> bool:
    """Lock the whole file for as long as ``fd`` (or a copy) is open; False where another has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_taken(fd: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def is_held(path: "str | os.PathLike[str]") -> bool:
    """Whether a process has locked the file at ``path``, which need not be there."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_taken(fd)
    finally:
        os.close(fd)
