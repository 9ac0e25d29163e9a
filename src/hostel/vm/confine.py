"""What a worker gives up before the first guest instruction.

A guest that broke out of its engine would be in this process: one user's process that may not gain
privileges, start programs, open sockets, see other processes or touch files other than its VM's own. The
order matters: everything that needs more (kernel and initramfs files, the socket) is open by now.
"""

import os
import resource
import site
import sys
from pathlib import Path

from hostel.base.linux import landlock, namespace, prctl, seccomp


def close_strays(keep: set[int]) -> None:
    """Close every descriptor that this process was started with but 0 to 2 and ``keep``."""
    last = 2
    for fd in sorted(keep):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, 1 << 20)


def confine(folder: Path, readable: list[str], profiled: bool = False) -> dict:
    """Give up all but ``folder`` and what is ``readable``. What the kernel doesn't offer is left out; returns what
    holds, for inspect. A ``profiled`` worker's owner may look into it, as perf(1) must."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the guest's memory
    unconfined = os.environ.get("HOSTEL_UNCONFINED") == "1"  # for debuggers and profilers
    holds: dict = {"no_new_privs": True, "namespaces": [], "capabilities": True, "landlock": 0, "seccomp": False}
    if not unconfined:
        if not profiled:  # perf(1) must be allowed to look into it, by one who is in its user namespace's parent
            holds["namespaces"] = namespace.leave()
        namespace.drop_capabilities()
        holds["capabilities"] = False
    prctl.set_no_new_privs()
    if not profiled:
        prctl.set_dumpable(False)
    python = {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages(), *filter(None, sys.path)}
    rules = [(Path(path), landlock.READ) for path in sorted(python)]
    system = ("/proc/self", "/proc/meminfo", "/dev/urandom", "/lib", "/usr/lib")
    rules += [(Path(path), landlock.READ) for path in (*system, *readable)]
    rules += [(folder, landlock.OWN), (folder.parent, landlock.REMOVE_DIR)]
    if not unconfined:
        holds["landlock"] = landlock.restrict(rules)
        seccomp.restrict()
        holds["seccomp"] = True
    return holds
