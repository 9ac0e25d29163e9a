"""prctl(2): what a process says about itself."""

import ctypes
import os
import signal

from hostel.base.linux.syscall import syscall

_PRCTL = 157
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def set_no_new_privs() -> None:
    """No exec may ever grant privileges again; what seccomp and Landlock ask of the unprivileged."""
    syscall(_PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def set_dumpable(dumpable: bool) -> None:
    """Whether others of the same user may ptrace it and read its memory, and whether it may dump core."""
    syscall(_PRCTL, _PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def end_with_parent(parent: int) -> None:
    """Have a forked child killed when the thread of ``parent`` that forked it ends; now, if it has ended already."""
    syscall(_PRCTL, _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """What ``end_with_parent`` said holds no longer."""
    syscall(_PRCTL, _PR_SET_PDEATHSIG, 0, 0, 0, 0)


def set_name(name: str) -> None:
    """The calling thread's name, of which the kernel keeps 15 bytes."""
    syscall(_PRCTL, _PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def set_subreaper() -> None:
    """Orphans among its descendants become its children; this stays over exec, and isn't inherited."""
    syscall(_PRCTL, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
