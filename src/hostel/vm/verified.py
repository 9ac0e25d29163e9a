"""What of a snapshot has been found whole, so that going back to it again needs no checksums of all of its memory.

The file ``verified`` in a snapshot's folder says, for each file that was, what fstat(2) said then: who changes it
changes the time of its last change (ctime), which nobody can set. It is believed only where it is its reader's own and
nobody else's to write; and until the next boot, so that what a disk does to files at rest is still found.
"""

import contextlib
import json
import os
import stat
import time
from pathlib import Path

NAME = "verified"
# Nanoseconds: what has just changed may change again within one tick of the file system's clock. That is the kernel's
# (10 ms at most, CONFIG_HZ) where times aren't whole seconds, else seconds, two on FAT.
_RACY, _COARSE = 100_000_000, 2_000_000_000


class Verified:
    """Of the snapshot in ``folder``; what stands there only counts with the very ``manifest`` (a descriptor)."""

    def __init__(self, folder: Path, manifest: int):
        self._path = folder / NAME
        self._manifest = _identity(manifest)
        self._files = _read(self._path, self._manifest)
        self._new: dict[str, list[int]] = {}

    def has(self, name: str, fd: int) -> bool:
        """Whether the open file is as it was when it was found whole. Call it before that is looked at: then ``keep``
        knows that it didn't change meanwhile."""
        if self.knows(name, fd):
            return True
        identity = _identity(fd)
        changed = identity[-1]
        if changed < time.time_ns() - (_RACY if changed % 1_000_000_000 else _COARSE):
            self._new[name] = identity
        return False

    def knows(self, name: str, fd: int) -> bool:
        """The same, for who doesn't look."""
        return self._files.get(name) == _identity(fd)

    def vouch(self, name: str, fd: int) -> None:
        """Who says so has just written the open file, or has only changed its links since it was known: it is whole."""
        self._new[name] = _identity(fd)

    def keep(self) -> None:
        """All that was looked at, or is vouched for, is whole."""
        if not self._new:
            return
        new = self._path.with_name(f".{NAME}.{os.urandom(8).hex()}")
        data = {"boot": _boot(), "manifest": self._manifest, "files": {**self._files, **self._new}}
        with contextlib.suppress(OSError):  # it is for the next time only
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as file:
                json.dump(data, file)
            os.rename(new, self._path)


def _read(path: Path, manifest: list[int]) -> dict[str, list[int]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd) as file:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o600 or status.st_nlink != 1:
                return {}
            data = json.load(file)
        return dict(data["files"]) if data["boot"] == _boot() and data["manifest"] == manifest else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _identity(fd: int) -> list[int]:
    status = os.fstat(fd)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
