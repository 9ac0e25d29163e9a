"""Files and folders that appear whole or not at all: write beside, fsync, rename.

A reader sees the old content or the new one, after a crash too. When writing fails, whatever was
written is removed, and the person reads one line (``StorageError``) that names the path.
"""

import contextlib
import errno
import fcntl
import os
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
def replacing(path: Path, mode: int = 0o644, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path`` when the block ends well. One that isn't ``durable`` may be lost, or be
    empty, if the host crashes soon."""
    path = Path(path)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = _beside(path)
        number = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(number, "wb") as file:
                yield file
                file.flush()
                os.fchmod(number, mode)
                if durable:
                    os.fsync(number)
            os.rename(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        if durable:
            sync_folder(path.parent)


def write(path: Path, data: bytes | str, mode: int = 0o644, durable: bool = True) -> None:
    """Replaces the content of ``path``."""
    with replacing(path, mode, durable) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def replace(path: Path, text: str) -> None:
    """Have the file say ``text``, and wait for the disk only where it doesn't yet."""
    try:
        if path.read_bytes() == text.encode():
            return
    except OSError:
        pass
    write(path, text)


@contextlib.contextmanager
def replacing_folder(path: Path, mode: int = 0o755) -> Iterator[Path]:
    """An empty folder to fill that becomes ``path`` when the block ends well.

    A folder can't be renamed over a full one: an old ``path`` is moved aside first, so for an instant
    there is none. Who reads while others replace holds the lock of what is replaced.
    """
    path = Path(path)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = new_folder(path.parent, f".{path.name}.")
        old = None
        try:
            yield new
            new.chmod(mode)
            for root, _, names in os.walk(new):
                for name in names:
                    sync_file(Path(root, name))
                sync_folder(Path(root))
            if path.exists():
                old = new_folder(path.parent, f".{path.name}.")
                os.rename(path, old)
            os.rename(new, path)
        except BaseException:
            remove_folder(new)
            if old and not path.exists():
                os.rename(old, path)
            raise
        sync_folder(path.parent)
        if old:
            remove_folder(old)


def new_folder(parent: Path, prefix: str) -> Path:
    """Make a folder in ``parent``, for its owner only, by a name that nobody has and that begins with ``prefix``."""
    folder = parent / f"{prefix}{os.urandom(8).hex()}"
    folder.mkdir(mode=0o700)
    return folder


def remove_folder(path: Path) -> None:
    """With all that is in it, as far as that can be done."""
    import shutil  # with three libraries that compress: commands that remove nothing start faster without it

    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an exclusive lock on the file ``path``, which is made and stays, unless who holds it removes it; waits for
    it, after ``waiting()``.

    The kernel lets go of it with the process: a killed owner leaves nothing to clean up.
    """
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        number = _lock(path, waiting)
        while not _is_at(number, path):  # it was removed while we waited for it
            os.close(number)
            number = _lock(path, waiting)
    try:
        yield
    finally:
        os.close(number)


def _lock(path: Path, waiting: Callable[[], None] | None) -> int:
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
    return number


def _is_at(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


def _beside(path: Path) -> Path:
    """A new name beside ``path``."""
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}")


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
