"""Files and folders that appear whole or not at all: write beside, fsync, rename.

A reader sees the old content or the new one, after a crash too. When writing fails, whatever was
written is removed, and the person reads one line (``StorageError``) that names the path.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from hostel.base.errors import HostelError

ADVICE = {
    errno.ENOSPC: "no space left on the device; free some, or set HOSTEL_HOME to another disk",
    errno.EDQUOT: "the disk quota is used up; free some, or set HOSTEL_HOME to another disk",
    errno.EACCES: "permission denied; set HOSTEL_HOME to a folder of yours",
    errno.EPERM: "permission denied; set HOSTEL_HOME to a folder of yours",
    errno.EROFS: "the file system is read-only; set HOSTEL_HOME to a folder elsewhere",
}


class StorageError(HostelError):
    """The host's file system refused."""


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns an ``OSError`` of the block into one line about ``path``."""
    try:
        yield
    except OSError as error:
        why = ADVICE.get(error.errno or 0) or error.strerror or str(error)
        raise StorageError(f"can't write {path}: {why}") from error


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path`` when the block ends well."""
    path = Path(path)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(number, "wb") as file:
                yield file
                file.flush()
                os.fchmod(number, mode)
                os.fsync(number)
            os.rename(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_folder(path.parent)


def write(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Replaces the content of ``path``."""
    with replacing(path, mode) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing_folder(path: Path, mode: int = 0o755) -> Iterator[Path]:
    """An empty folder to fill that becomes ``path`` when the block ends well.

    A folder can't be renamed over a full one: an old ``path`` is moved aside first, so for an instant
    there is none. Who reads while others replace holds the lock of what is replaced.
    """
    path = Path(path)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        old = None
        try:
            yield new
            new.chmod(mode)
            for root, _, names in os.walk(new):
                for name in names:
                    sync_file(Path(root, name))
                sync_folder(Path(root))
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
                os.rename(path, old)
            os.rename(new, path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            if old and not path.exists():
                os.rename(old, path)
            raise
        sync_folder(path.parent)
        if old:
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an exclusive lock on the file ``path``, which is made and stays; waits for it, after ``waiting()``.

    The kernel lets go of it with the process: a killed owner leaves nothing to clean up.
    """
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    waiting()
                fcntl.flock(number, fcntl.LOCK_EX)
        except BaseException:
            os.close(number)
            raise
    try:
        yield
    finally:
        os.close(number)


def sync_file(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(path: Path) -> None:
    """Makes renames in ``path`` durable, where the file system can."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)
