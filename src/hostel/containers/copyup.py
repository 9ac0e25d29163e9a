"""What a tmpfs with ``tmpcopyup``, or a new volume, begins with: a copy of the folder that it covers, made on the host.

Nothing in the folder is followed: of the rootfs's files only folders, regular files and symbolic links are copied, as
they are.
"""

import contextlib
import os
import stat

from hostel.base.errors import ContainerError

DEPTH = 200   # of folders: each costs two descriptors meanwhile


def copy(pid: int, source: int, target: int) -> None:
    """Of the descriptors' numbers in the process ``pid``."""
    try:
        top = os.open(f"/proc/{pid}/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failure(error) from None
    try:
        copy_into(top, f"/proc/{pid}/fd/{target}")
    finally:
        os.close(top)


def copy_into(source: int, target: "str | os.PathLike[str]") -> None:
    """What is in the folder that ``source`` is open on into the one at ``target``, which becomes like it."""
    try:
        into = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _copy_folder(source, into, 0)
            _dress(into, os.fstat(source))
        finally:
            os.close(into)
    except OSError as error:
        raise _failure(error) from None


def _failure(error: OSError) -> ContainerError:
    return ContainerError(f"can't copy what the image has there: {error.filename or ''}: {error.strerror}")


def _dress(fd: int, status: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):  # without root there is one owner
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))


def _copy_folder(source: int, target: int, depth: int) -> None:
    if depth > DEPTH:
        raise ContainerError(f"can't copy what the image has there: folders {DEPTH} deep")
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=source)
            into = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=target)
            _copy_folder(below, into, depth + 1)
            _dress(into, status)
            os.close(below)
            os.close(into)
        elif stat.S_ISREG(status.st_mode):
            below = os.open(name, os.O_RDONLY | flags | os.O_NONBLOCK, dir_fd=source)
            into = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target)
            while data := os.read(below, 1 << 20):
                while data:
                    data = data[os.write(into, data):]
            _dress(into, status)
            os.close(below)
            os.close(into)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
