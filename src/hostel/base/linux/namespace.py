"""Namespaces and capabilities (namespaces(7), capabilities(7)): the process leaves the host's, for ever."""

import contextlib
import ctypes
import os
import struct
from pathlib import Path

from hostel.base.linux.syscall import syscall

_UNSHARE, _CAPSET, _PRCTL = 272, 126, 157
_PR_CAPBSET_DROP = 24
_CAPABILITY_VERSION_3 = 0x20080522
_NEWUSER = 0x10000000
# What others are in is out of sight: interfaces, abstract sockets and ports; System V's memory; names; cgroups' paths.
# No mount namespace, since it would keep file systems busy that the host wants to unmount, and paths are Landlock's;
# no PID namespace, since it would be for children only, which there are none of.
OWN = {"net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000}


def leave() -> list[str]:
    """Into namespaces of its own, as far as the kernel allows; their names. Only with a single thread."""
    uid, gid = os.geteuid(), os.getegid()
    entered = []
    with contextlib.suppress(OSError):
        syscall(_UNSHARE, _NEWUSER)
        entered.append("user")
        # itself as itself, and nobody else
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    for name, flag in OWN.items():
        with contextlib.suppress(OSError):
            syscall(_UNSHARE, flag)
            entered.append(name)
    return entered


def drop_capabilities() -> None:
    """All of them, root's too, from every set: a process that may not exec never gets one again."""
    for capability in range(64):
        with contextlib.suppress(OSError):  # who has no CAP_SETPCAP has none to lose by this; numbers end somewhere
            syscall(_PRCTL, _PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), 8)
    none = ctypes.create_string_buffer(24)
    syscall(_CAPSET, header, none)
