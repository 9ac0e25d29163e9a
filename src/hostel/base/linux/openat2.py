"""openat2(2): a path is resolved beneath a folder and leads nowhere else, whatever links are in it. Linux 5.6."""

import ctypes
import os
import struct

from hostel.base.linux.syscall import syscall

_OPENAT2 = 437
_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 0x01, 0x02, 0x04, 0x08, 0x10


def beneath(root: int, path: bytes, flags: int, resolve: int = 0, mode: int = 0) -> int:
    """Opens ``path`` as if the folder ``root`` were the root of the file system: absolute links and ``..`` stay in it.
    Magic links aren't followed. Raises OSError."""
    how = ctypes.create_string_buffer(_HOW.pack(flags | os.O_CLOEXEC, mode, resolve | IN_ROOT | NO_MAGICLINKS))
    while True:
        try:
            return syscall(_OPENAT2, root, ctypes.c_char_p(path), how, _HOW.size)
        except BlockingIOError:  # EAGAIN: something was renamed meanwhile
            continue
