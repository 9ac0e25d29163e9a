"""Landlock (landlock(7)): the process gives up all of the file system but what is named here.

Also TCP (ABI 4) and signals to and abstract sockets of others (ABI 6), where the kernel knows them.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

from hostel.base.linux.syscall import syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

# LANDLOCK_ACCESS_FS_*: bit numbers
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1, 2, 4, 8, 16, 32
_MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 9, 1 << 10, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_FS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}

READ = _READ_FILE | _READ_DIR
OWN = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_REG | _MAKE_SOCK | _TRUNCATE  # a folder of ours
SHARE = OWN | _MAKE_DIR | _MAKE_FIFO | _MAKE_SYM | _REFER  # all of a tree but devices and programs
REMOVE_DIR = _REMOVE_DIR
READ_FILE = _READ_FILE        # of what has a known name

_BIND_TCP, _CONNECT_TCP = 1, 2


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    try:
        return syscall(_CREATE_RULESET, 0, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(rules: "Sequence[tuple[str | os.PathLike[str], int]]", connect: bool = False) -> int:
    """Keep only ``rules``: what may be done (``READ``, ``OWN``) beneath each path, and, if told, to ``connect`` by TCP.
    Paths that don't exist are skipped. Holds for the calling thread and those that it makes. Returns the ABI used, 0
    for none."""
    version = abi()
    if not version:
        return 0
    fs = _FS_BY_ABI[min(version, 5)]
    tcp = _BIND_TCP if connect else _BIND_TCP | _CONNECT_TCP
    attr = struct.pack("<QQQ", fs, tcp if version >= 4 else 0, 3 if version >= 6 else 0)
    attr = attr[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = syscall(_CREATE_RULESET, ctypes.create_string_buffer(attr, len(attr)), len(attr), 0)
    try:
        for path, access in rules:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    access &= _FILE_ONLY
                rule = struct.pack("<Qi", access & fs, fd)  # struct landlock_path_beneath_attr, packed
                buffer = ctypes.create_string_buffer(rule, len(rule))
                syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, buffer, 0)
            finally:
                os.close(fd)
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version
