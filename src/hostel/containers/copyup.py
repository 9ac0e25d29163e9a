"""What a tmpfs with ``tmpcopyup`` begins with: a copy of the folder that it covers, made by the runtime.

Both are reached by descriptors of the container's process, from the host; nothing in the folder is followed: of
the rootfs's files only folders, regular files and symbolic links are copied, as they are.
"""

import contextlib
import os
import stat

from hostel.base.errors import ContainerError


def copy(pid: int, source: int, target: int) -> None:
    """Of the descriptors' numbers in the process ``pid``."""
    try:
        top = os.open(f"/proc/{pid}/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            into = os.open(f"/proc/{pid}/fd/{target}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _copy_folder(top, into)
                _dress(into, os.fstat(top))
            finally:
                os.close(into)
        finally:
            os.close(top)
    except OSError as error:
        raise ContainerError(f"tmpcopyup: {error.filename or ''}: {error.strerror}") from None


def _dress(fd: int, status: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):  # without root there is one owner
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))


def _copy_folder(source: int, target: int) -> None:
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=source)
            into = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=target)
            _copy_folder(below, into)
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
