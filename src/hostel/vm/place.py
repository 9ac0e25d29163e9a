"""Where a process is: what those that it starts inherit, by which zygotes (vm/zygote) are told apart.

The command line asks for this before it has imported anything: nothing is imported here that costs time.
"""

import binascii
import os
import sys

from hostel._version import __version__

# What Python reads when it starts, of what a worker gets.
PYTHONS = ("PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL")
# In /proc/PID/status: what a child inherits, or it changes what that may do.
_STATUS = (
    "Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
    "SigBlk", "Cpus_allowed", "Mems_allowed",
)  # fmt: skip
_PYTHON_IGNORES = 1 << 13 - 1 | 1 << 25 - 1  # SIGPIPE, SIGXFSZ
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")


def place(pid: int | str = "self") -> str:
    """What processes that ``pid`` starts inherit from it. ``OSError`` where that can't be seen."""
    process = f"/proc/{pid}"
    lines = []
    with open(f"{process}/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in _STATUS:
                lines.append(f"{name} {value.strip()}")
    for name in ("cgroup", "limits", "oom_score_adj"):
        with open(f"{process}/{name}") as file:
            lines.append(file.read())
    try:
        with open(f"{process}/attr/current") as file:
            lines.append(file.read())
    except OSError:
        pass  # no such module in this kernel
    with open(f"{process}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
        lines.append(f"nice {fields[16]} policy {fields[38]}")
    lines += [os.readlink(f"{process}/ns/{name}") for name in _NAMESPACES if os.path.lexists(f"{process}/ns/{name}")]
    lines.append(os.readlink(f"{process}/root"))
    return "\n".join(lines)


def ignored(pid: int) -> set[int]:
    """The signals that ``pid`` ignores: processes that it starts would, too. Those that Python always ignores aren't
    among them. ``OSError`` where that can't be seen."""
    with open(f"/proc/{pid}/status") as file:
        (mask,) = (int(line.split()[1], 16) for line in file if line.startswith("SigIgn:"))
    return {number for number in range(1, 65) if mask & ~_PYTHON_IGNORES & 1 << number - 1}


def key(here: str) -> str:
    """Of the zygote for ``place`` ``here``, this hostel and this Python."""
    python = (sys.executable, sys.version, os.path.dirname(__file__), *(os.environ.get(name) for name in PYTHONS))
    return f"{__version__}-{binascii.crc32(repr((here, python)).encode()):08x}"
