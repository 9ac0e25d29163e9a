"""A user of its own for a process of root's (credentials(7)): one that owns nothing but what it is given.

The user needs no entry in /etc/passwd. Its number is made from a path, so that each VM has another and keeps it.
"""

import os

from hostel.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# 0x70000000 to 0x7FFFFFFE belong to nobody: above the containers' of systemd-nspawn (systemd, UIDS-GIDS.md), below
# what is negative as a 32-bit integer.
FIRST = 0x70000000
COUNT = 0x0FFFFFFF


def number_for(path: "Path") -> int:
    """The user and group for what lives in ``path``."""
    import zlib

    return FIRST + zlib.crc32(os.fsencode(path)) % COUNT


def can_read(user: int, path: "Path") -> bool:
    """Whether ``user`` could read ``path``. The process must be root's and have no other threads."""
    os.setegid(user)
    os.seteuid(user)
    try:
        return os.access(path, os.R_OK, effective_ids=True)
    finally:
        os.seteuid(0)
        os.setegid(0)


def give(folder: "Path", user: int, group: int | None = None) -> None:
    """Make ``folder`` and the files in it ``user``'s, and of the group (default: of the same number); links in it are
    not followed."""
    group = user if group is None else group
    for entry in os.scandir(folder):
        os.chown(entry.path, user, group, follow_symlinks=False)
    os.chown(folder, user, group, follow_symlinks=False)


def become(user: int, group: int | None = None) -> None:
    """For ever; root's capabilities go as well. The only group is ``group`` (default: of the same number)."""
    group = user if group is None else group
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
