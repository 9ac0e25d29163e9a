"""eventfds (eventfd(2)) that can be made anew in a forked child, where each is one object with the parent's."""

import fcntl
import os
import stat

_made: set[int] = set()      # numbers that were an eventfd's once


def make(signalled: bool = False, flags: int = os.EFD_NONBLOCK | os.EFD_CLOEXEC) -> int:
    """A new one, non-blocking unless ``flags`` say otherwise."""
    fd = os.eventfd(signalled, flags)
    _made.add(fd)
    return fd


def renew(but: set[int]) -> None:
    """In a child: put a new one, which is signalled, in the place of each, so that who waits looks once, and nothing
    that was signalled before is missed. ``but``: descriptors of other kinds of anonymous inodes (epoll, io_uring),
    which can't be told apart, and may have the number of one that was closed."""
    for fd in list(_made):
        try:
            anonymous = stat.S_IFMT(os.fstat(fd).st_mode) == 0 and fd not in but
        except OSError:
            anonymous = False
        if not anonymous:
            _made.discard(fd)
            continue
        new = os.eventfd(1, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK | os.EFD_CLOEXEC)
        os.dup2(new, fd, inheritable=False)
        os.close(new)
