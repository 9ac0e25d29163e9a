"""Namespaces and capabilities (namespaces(7), capabilities(7)): the process leaves the host's, for ever."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable

from hostel.base.linux.syscall import syscall

_UNSHARE, _CAPSET, _PRCTL = 272, 126, 157
_PR_CAPBSET_DROP = 24
_CAPABILITY_VERSION_3 = 0x20080522
_NEWUSER = 0x10000000
# What others are in is out of sight: interfaces, abstract sockets and ports; System V's memory; names; cgroups' paths.
# No mount namespace, since it would keep file systems busy that the host wants to unmount, and paths are Landlock's;
# no PID namespace, since it would be for children only, which there are none of.
OWN = {"net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000}


def leave(user: bool = True, names: Iterable[str] = OWN) -> list[str]:
    """Into namespaces of its own, as far as the kernel allows; their names. Only with a single thread. Without
    ``user`` where the process has the right to the others anyway."""
    uid, gid = os.geteuid(), os.getegid()
    entered = _unshare({"user": _NEWUSER}) if user else []
    if entered:  # itself as itself, and nobody else
        with contextlib.suppress(OSError):
            for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
    return entered + _unshare({name: OWN[name] for name in names})


def _unshare(kinds: dict[str, int]) -> list[str]:
    """The names of those that could be left."""
    entered = []
    for name, flag in kinds.items():
        with contextlib.suppress(OSError):
            syscall(_UNSHARE, flag)
            entered.append(name)
    return entered


DAC_OVERRIDE = 1


def drop_capabilities(but: int | None = None) -> None:
    """All of them (``but`` one), root's too, from every set: a process that may not exec never gets one again."""
    for capability in range(64):
        with contextlib.suppress(OSError):  # who has no CAP_SETPCAP has none to lose by this; numbers end somewhere
            syscall(_PRCTL, _PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), 8)
    kept = 1 << but if but is not None and os.geteuid() == 0 else 0
    sets = ctypes.create_string_buffer(struct.pack("<III12x", kept, kept, 0), 24)  # effective, permitted, inheritable
    syscall(_CAPSET, header, sets)
