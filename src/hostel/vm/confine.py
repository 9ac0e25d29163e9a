"""What a worker gives up before the first guest instruction.

A guest that broke out of its engine would be in this process: one user's process that may not gain
privileges, start programs, open sockets, see other processes or touch files other than its VM's own. The
order matters: everything that needs more (kernel and initramfs files, the socket) is open by now.
"""

import importlib.abc
import os
import resource
import sys
import tokenize  # noqa: F401  linecache imports it when it prints the first traceback
from collections.abc import Sequence
from pathlib import Path

from hostel.base.errors import MachineError
from hostel.base.linux import identity, landlock, namespace, prctl, seccomp


def close_strays(keep: set[int]) -> None:
    """Close every descriptor that this process was started with but 0 to 2 and ``keep``."""
    last = 2
    for fd in sorted(keep):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, 1 << 20)


def confine(
    folder: Path, profiled: bool = False, rings: Sequence[int] = (), shares: Sequence[tuple[int, bool]] = ()
) -> dict:
    """Give up all but ``folder``, io_uring's ``rings`` and the folders that are ``shares`` (descriptors, and whether
    they may only be read). What the kernel doesn't offer is left out; returns what holds, for inspect. A ``profiled``
    worker's owner may look into it, as perf(1) must."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the guest's memory
    unconfined = os.environ.get("HOSTEL_UNCONFINED") == "1"  # for debuggers and profilers
    holds: dict = {"no_new_privs": True, "namespaces": [], "capabilities": True, "landlock": 0, "seccomp": False}
    user = _other_user(folder, shares) if os.geteuid() == 0 and not profiled and not unconfined else None
    if not unconfined:
        if not profiled:  # perf(1) must be allowed to look into it, by one who is in its user namespace's parent
            holds["namespaces"] = namespace.leave(user=user is None)
        if user is not None:
            identity.become(*user)
        namespace.drop_capabilities()
        holds["capabilities"] = False
    holds["user"] = os.geteuid()
    prctl.set_no_new_privs()
    if not profiled:
        prctl.set_dumpable(False)
    system = ("/proc/self", "/proc/meminfo", "/dev/urandom", "/lib", "/usr/lib")
    rules = [(Path(path), landlock.READ) for path in system]
    rules += [(folder, landlock.OWN), (folder.parent, landlock.REMOVE_DIR)]
    for fd, readonly in shares:
        rules.append((Path(f"/proc/self/fd/{fd}"), landlock.READ if readonly else landlock.SHARE))
    calls = seccomp.ALLOWED
    if shares:
        calls = seccomp.SHARES if all(readonly for _, readonly in shares) else seccomp.WRITABLE_SHARES
    if not unconfined:
        holds["landlock"] = landlock.restrict(rules)
        seccomp.restrict(rings, calls, forks=True)
        holds["seccomp"] = True
        sys.meta_path.insert(0, _NoMoreModules())
    return holds


def _other_user(folder: Path, shares: Sequence[tuple[int, bool]]) -> tuple[int, int] | None:
    """The user and group that root's worker is to become, to whom ``folder`` is given: whose the shared folders are, so
    that what is made there is theirs; else somebody of its own. None where it can't get to ``folder``, as other users
    may not look into $HOSTEL_HOME, or shares are root's or several users': then the worker stays root's, which is no
    use for writing to others' files. ``MachineError`` says so."""
    owners = {(status.st_uid, status.st_gid) for status in (os.fstat(fd) for fd, _ in shares)}
    number = identity.number_for(folder)
    user, group = owners.pop() if owners else (number, number)
    if owners:
        if not all(readonly for _, readonly in shares):
            raise MachineError("a VM that root starts shares folders of one owner; with :ro they may be several")
        return None
    if user == 0:
        return None
    identity.give(folder, user, group)
    if identity.can_read(user, folder):
        return user, group
    identity.give(folder, 0)  # without CAP_DAC_OVERRIDE it could do nothing in what is another's
    if not all(readonly for _, readonly in shares):
        raise MachineError(f"can't share a folder of user {user}'s: that user can't get to {folder.parent}")
    return None


class _NoMoreModules(importlib.abc.MetaPathFinder):
    """What a confined process needs is there by now: its user may have no way to the interpreter's files."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        raise ModuleNotFoundError(f"{fullname}: imported once the worker is confined; import it before", name=fullname)
