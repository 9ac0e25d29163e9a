"""Mounts by file descriptors (fsopen(2), fsconfig(2), fsmount(2), move_mount(2); Linux 5.2): options of any number
and length, each refused by itself, and nothing to be seen before all of it is well.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from hostel.base.linux.syscall import syscall

_UMOUNT2, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 166, 429, 430, 431, 432
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_AT_FDCWD = -100
_EMPTY_PATH = 4  # MOVE_MOUNT_F_EMPTY_PATH
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
READ_ONLY, NO_SUID, NO_DEV = 1, 2, 4  # MOUNT_ATTR_*


def mount(kind: str, options: Iterable[tuple[str, str | None]], target: Path, attributes: int = 0) -> None:
    """Mounts a new file system of this kind; an option without a value is a flag. Raises OSError, whose text is the
    kernel's own where it has one."""
    with contextlib.ExitStack() as stack:
        context = syscall(_FSOPEN, _text(kind), _CLOEXEC)
        stack.callback(os.close, context)
        try:
            for key, value in options:
                how = _SET_FLAG if value is None else _SET_STRING
                syscall(_FSCONFIG, context, how, _text(key), _text(value), 0)
            syscall(_FSCONFIG, context, _CREATE, None, None, 0)
            mounted = syscall(_FSMOUNT, context, _CLOEXEC, attributes)
        except OSError as error:
            raise OSError(error.errno, _message(context) or error.strerror) from error
        stack.callback(os.close, mounted)
        syscall(_MOVE_MOUNT, mounted, _text(""), _AT_FDCWD, ctypes.c_char_p(os.fsencode(target)), _EMPTY_PATH)


def unmount(target: Path) -> None:
    """Takes a mount out of sight at once; it ends with its last user. Raises OSError where there is none."""
    syscall(_UMOUNT2, ctypes.c_char_p(os.fsencode(target)), _MNT_DETACH | _UMOUNT_NOFOLLOW)


def is_mounted(target: Path) -> bool:
    return os.path.ismount(target)


def _text(value: str | None) -> ctypes.c_char_p:
    return ctypes.c_char_p(os.fsencode(value) if value is not None else None)


def _message(context: int) -> str:
    """What the kernel says about a refusal: lines such as ``e overlay: No changes allowed in reconfigure``."""
    lines = []
    with contextlib.suppress(OSError):
        while line := os.read(context, 4096):
            lines.append(line.decode(errors="replace").strip())
    return "; ".join(line[2:] for line in lines if line.startswith("e "))
