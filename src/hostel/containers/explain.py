"""How a container is apart from its host, as the live kernel has it: each namespace, its inode and what is seen inside
beside what the host sees; each limit of its cgroup beside its use; what it may do.

What is inside is read from a child that has joined the container's namespaces, from the kernel alone (/proc, system
calls): nothing of the container's is run or believed.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostel.base.errors import ContainerError
from hostel.base.linux.syscall import syscall
from hostel.containers import capabilities, engine, wiring
from hostel.containers.store import Folder

_SETNS = 308
_CLONE = {
    "user": 0x10000000, "mnt": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "net": 0x40000000, "cgroup": 0x2000000,
    "pid": 0x20000000, "time": 0x80,
}  # fmt: skip
NAMESPACES = (
    ("pid", "process IDs: the container's processes see no others, and theirs begin with 1"),
    ("net", "interfaces, addresses, routes, ports and firewall rules"),
    ("mnt", "the tree of mounts: the root folder and all that is mounted below it"),
    ("uts", "the host name"),
    ("ipc", "System V's and POSIX's queues, semaphores and shared memory"),
    ("cgroup", "which cgroup seems to be the topmost"),
    ("user", "user and group IDs, and what capabilities are worth"),
    ("time", "the clocks that count from the boot"),
)


def explain(folder: Folder) -> dict[str, Any]:
    state = folder.state()
    if state.state not in ("running", "paused"):
        raise ContainerError(f"'{folder.name}' is {state.state}: there is no live kernel state to explain")
    pid = state.init
    if engine.start_time(pid) != state.init_start:
        raise ContainerError(f"'{folder.name}' has just ended")
    inside, outside = _inside(pid), _views()
    namespaces = []
    for kind, what in NAMESPACES:
        try:
            own, host = (os.stat(f"/proc/{who}/ns/{kind}").st_ino for who in (pid, "self"))
        except OSError:
            continue
        namespaces.append({
            "namespace": kind, "isolates": what, "inode": own, "host_inode": host, "own": own != host,
            "container": inside.get(kind), "host": outside.get(kind),
        })
    cgroup = engine.cgroup(folder.path)
    limits = [
        {"controller": row.controller, "what": row.what, "limit": row.limit, "use": row.use, "unit": row.unit,
         "file": row.file} for row in cgroup.limits() + (wiring.limits(pid) if _own_network(pid) else [])
    ]  # fmt: skip
    return {
        "name": folder.name, "isolation": "container", "pid": pid, "kernel": os.uname().release,
        "namespaces": namespaces, "cgroups": _lines(f"/proc/{pid}/cgroup"), "limits": limits,
        "privileges": _privileges(pid),
    }


def _own_network(pid: int) -> bool:
    return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino


def _privileges(pid: int) -> dict[str, Any]:
    status = dict(line.split(":\t", 1) for line in _lines(f"/proc/{pid}/status") if ":\t" in line)

    def held(key: str) -> list[str]:
        bits = int(status.get(key, "0"), 16)
        return [name for number, name in enumerate(capabilities.NAMES) if bits >> number & 1]

    return {
        "capabilities": held("CapEff"), "may_gain": held("CapBnd"), "of": len(capabilities.NAMES),
        "no_new_privs": status.get("NoNewPrivs") == "1",
        "seccomp": {"0": "none", "1": "strict", "2": "filter"}.get(status.get("Seccomp", "0"), "?"),
        "seccomp_filters": int(status.get("Seccomp_filters", "0")),
    }


def _inside(pid: int) -> dict[str, str]:
    """The same as ``_views``, by a process that has gone in."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    child = os.fork()
    if not child:
        try:
            views = {}
            with contextlib.suppress(OSError):
                proc = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                _enter(pid)
                views = _views(proc, pid)
            theirs.sendall(json.dumps(views).encode())
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        ours.settimeout(10.0)
        data = b""
        with contextlib.suppress(TimeoutError):
            while part := ours.recv(65536):
                data += part
    os.waitpid(child, 0)
    return dict(json.loads(data or b"{}"))


def _enter(pid: int) -> None:
    """All but the mount and PID namespaces: /proc stays the host's, which tells of those two."""
    for kind in ("user", "net", "uts", "ipc", "cgroup"):
        if os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            syscall(_SETNS, fd, _CLONE[kind])
            os.close(fd)


def _views(proc: int = -1, pid: int = 0) -> dict[str, str]:
    """One line for each namespace: what is seen there. ``pid``: of the process that has the PID and mount namespaces;
    0: ours."""
    of = str(pid) if pid else "self"
    found: dict[str, Callable[[], str]] = {
        "pid": lambda: _pids(pid),
        "net": _interfaces,
        "mnt": lambda: f"{len(_lines(f'/proc/{of}/mountinfo'))} mounts, / is {_root(of)}",
        "uts": lambda: os.uname().nodename,
        "ipc": lambda: f"{_rows('/proc/sysvipc/shm')} segments of shared memory, {_rows('/proc/sysvipc/sem')} "
                       f"semaphore sets, {_rows('/proc/sysvipc/msg')} queues",
        "cgroup": lambda: _cgroup(of),
        "user": lambda: _mapping(of),
        "time": lambda: _clock(of),
    }  # fmt: skip
    views = {}
    for kind, look in found.items():
        with contextlib.suppress(OSError, ValueError, IndexError):
            views[kind] = look()
    return views


def _pids(pid: int) -> str:
    """How many processes there are in the PID namespace."""
    wanted = os.stat(f"/proc/{pid or 'self'}/ns/pid").st_ino
    count = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                count += not pid or os.stat(f"/proc/{name}/ns/pid").st_ino == wanted
    numbers = next(line.split()[1:] for line in _lines(f"/proc/{pid or 'self'}/status") if line.startswith("NSpid:"))
    first = f"; the first is {numbers[-1]} inside and {numbers[0]} on the host" if pid else ""
    return f"{count} process{'' if count == 1 else 'es'}{first}"


def _interfaces() -> str:
    import fcntl
    import struct

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            address = ""
            with contextlib.suppress(OSError):  # SIOCGIFADDR
                answer = fcntl.ioctl(sock, 0x8915, struct.pack("256s", name.encode()))
                address = f" {socket.inet_ntoa(answer[20:24])}"
            found.append(name + address)
    return ", ".join(found) or "nothing"


def _root(of: str) -> str:
    for line in _lines(f"/proc/{of}/mountinfo"):
        fields = line.split(" ")
        if fields[4] == "/":
            kind, source = line.partition(" - ")[2].split(" ")[:2]
            return f"{kind} ({source})" if source not in ("none", kind) else kind
    return "?"


def _cgroup(of: str) -> str:
    return next(line.split(":", 2)[2] for line in _lines(f"/proc/{of}/cgroup") if line.split(":")[1] in ("memory", ""))


def _mapping(of: str) -> str:
    rows = [tuple(map(int, line.split())) for line in _lines(f"/proc/{of}/uid_map")]
    if rows == [(0, 0, (1 << 32) - 1)]:
        return "every user is itself"
    return ", ".join(f"{a}" + (f"-{a + n - 1}" if n > 1 else "") + f" is the host's {b}" for a, b, n in rows)


def _clock(of: str) -> str:
    with contextlib.suppress(OSError):
        offsets = dict(line.split(None, 1) for line in _lines(f"/proc/{of}/timens_offsets"))
        boot = int(offsets.get("boottime", "0 0").split()[0])
        return f"up for {int(time.clock_gettime(time.CLOCK_BOOTTIME)) + boot} s"
    return f"up for {int(time.clock_gettime(time.CLOCK_BOOTTIME))} s"


def _rows(path: str) -> int:
    return max(0, len(_lines(path)) - 1)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
