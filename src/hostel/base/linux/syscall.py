"""System calls that Python's ``os`` doesn't have, by number (x86-64)."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def syscall(number: int, *args: object) -> int:
    """The kernel's answer; ``OSError`` where it refuses. Integers are passed as 64 bits."""
    longs = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = int(_syscall(ctypes.c_long(number), *longs))
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
