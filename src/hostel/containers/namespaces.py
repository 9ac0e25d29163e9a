"""Into a container's namespaces: which are new, which are joined, and in which order (namespaces(7)).

Two processes take part, both of the same program (``stage``). The first joins what is joined, makes the user and time
namespaces, waits for their mappings and offsets, and clones the second into everything else; as a sibling, so that
it is the runtime's child. The second is the container's first process. It was never Python's, and it moves itself into
its cgroups: the kernel makes who moves another wait for every CPU.
"""

import fcntl
import os
import struct
from errno import EPERM

from hostel.base.errors import ContainerError
from hostel.containers import dialogue
from hostel.containers.spec import NAMESPACES
from hostel.containers.stage import ANY, NR, Label, Script, to_keep

NR["clone3"] = 435
_NS_GET_NSTYPE = 0xB703
_CLONE_PARENT, _INTO_CGROUP = 0x8000, 0x2_0000_0000
_PR_SET_DUMPABLE = 4


class Namespaces:
    """The configuration's. ``joined`` holds open descriptors."""

    def __init__(self, config: dict):
        self.new: set[str] = set()
        self.joined: list[tuple[str, int]] = []
        for namespace in (config.get("linux") or {}).get("namespaces") or []:
            kind, path = namespace["type"], namespace.get("path")
            if path:
                self.joined.append((kind, to_keep(_open(kind, path))))
            else:
                self.new.add(kind)

    @property
    def own_user(self) -> bool:
        return "user" in self.new or any(kind == "user" for kind, _ in self.joined)

    def close(self) -> None:
        for _, fd in self.joined:
            os.close(fd)
        self.joined = []

    def flags(self, *without: str) -> int:
        return sum(NAMESPACES[kind][0] for kind in self.new if kind not in without)


def _open(kind: str, path: str) -> int:
    name = f"config.json: linux.namespaces: {kind}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ContainerError(f"{name}: {path}: {error.strerror}") from None
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) != NAMESPACES[kind][0]:
            raise OSError
    except OSError:
        os.close(fd)
        raise ContainerError(f"{name}: {path} is no namespace of this kind") from None
    return fd


def join(script: Script, namespaces: Namespaces, user: bool) -> None:
    for kind, fd in namespaces.joined:
        if (kind == "user") == user:
            script.call("setns", fd, NAMESPACES[kind][0], what=f"joining the {kind} namespace")


def enter_user(script: Script, namespaces: Namespaces, fd: int, sync: bool) -> None:
    """The user namespace, with the runtime's help (``dialogue.MAP``); and the offsets of a new time namespace."""
    join(script, namespaces, user=True)
    if "user" in namespaces.new:
        script.call("unshare", NAMESPACES["user"][0], what="making a user namespace")
    if "time" in namespaces.new:
        script.call("unshare", NAMESPACES["time"][0], what="making a time namespace")
    if sync:
        dialogue.tell(script, fd, dialogue.MAP)
        dialogue.wait(script, fd)
    if namespaces.own_user:
        unmapped = Label()
        script.doing = "becoming the user namespace's root"
        script.call("setresgid", 0, 0, 0, on={ANY: unmapped})
        script.call("setresuid", 0, 0, 0, on={ANY: unmapped})
        script.bind(unmapped)


def clone(script: Script, fd: int, flags: int, cgroup: int | None, code: int = dialogue.PID) -> None:
    """Another process goes on with what follows, and this one ends. ``cgroup``: v2's, where the other begins; the
    kernel asks for the right to write there, which a user namespace's root hasn't."""
    script.doing = "cloning the container's process"
    child, pid = Label(), script.slot()
    flags |= _CLONE_PARENT | (_INTO_CGROUP if cgroup is not None else 0)
    arguments = struct.pack("<11Q", flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, cgroup or 0)
    script.call("clone3", script.place(arguments), len(arguments), to=pid, zero=child)
    dialogue.tell(script, fd, code, pid)
    script.call("exit_group", 0)
    script.bind(child)


def enter_cgroups(script: Script, fds: list[int]) -> None:
    """v1's, by their open files ``tasks``."""
    for fd in fds:
        script.call("write", fd, "0", 1, what="entering a cgroup")
        script.call("close", fd)


def settle(script: Script, config: dict, namespaces: Namespaces) -> None:
    """What belongs to the new namespaces: the loopback interface, names, sysctls."""
    if "cgroup" in namespaces.new:
        script.call("unshare", NAMESPACES["cgroup"][0], what="making a cgroup namespace")
    if "network" in namespaces.new:
        script.doing = "bringing the loopback interface up"
        skip, socket = Label(), script.slot()
        script.call("socket", 2, 0x80002, 0, to=socket)
        request = script.place(struct.pack("<16sH22x", b"lo", 0x41))  # IFF_UP, IFF_RUNNING
        script.call("ioctl", socket, 0x8914, request, on={EPERM: skip})
        script.bind(skip)
        script.call("close", socket)
    for name, call in (("hostname", "sethostname"), ("domainname", "setdomainname")):
        if config.get(name):
            script.call(call, config[name], len(os.fsencode(config[name])), what=f"setting the {name}")
    for name, value in ((config.get("linux") or {}).get("sysctl") or {}).items():
        # Either form of sysctl(8): dots between parts, or slashes and dots in them.
        path = name if "/" in name else name.replace(".", "/")
        if ".." in path.split("/"):
            raise ContainerError(f"config.json: linux.sysctl: {name} is no name")
        script.doing, fd = f"setting the sysctl {name}", script.slot()
        script.call("openat", -100, f"/proc/sys/{path}", 0x80001, 0, to=fd)
        script.call("write", fd, value, len(os.fsencode(value)))
        script.call("close", fd)


def hide(script: Script) -> None:
    """Nobody but root on the host looks at or into the process until its exec."""
    script.call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def write_maps(pid: int, linux: dict, privileged: bool) -> None:
    """The id mappings of a new user namespace; an ordinary user's by newuidmap(1) where they are more than its own."""
    for name, file, tool in (("gidMappings", "gid_map", "newgidmap"), ("uidMappings", "uid_map", "newuidmap")):
        maps = linux.get(name) or []
        own = os.getegid() if file == "gid_map" else os.geteuid()
        if not maps:
            continue
        rows = [(m.get("containerID", 0), m.get("hostID", 0), m.get("size", 0)) for m in maps]
        single = len(rows) == 1 and rows[0][1:] == (own, 1)
        if not privileged and not single:
            _run_tool(tool, pid, rows)
            continue
        try:
            if file == "gid_map" and not privileged:
                _put(f"/proc/{pid}/setgroups", "deny")
            _put(f"/proc/{pid}/{file}", "".join(f"{inside} {outside} {size}\n" for inside, outside, size in rows))
        except OSError as error:
            raise ContainerError(f"config.json: linux.{name}: the kernel refuses them: {error.strerror}") from None


def _run_tool(tool: str, pid: int, rows: list[tuple[int, int, int]]) -> None:
    words = [tool, str(pid), *[str(number) for row in rows for number in row]]
    reader, writer = os.pipe()
    try:
        child = os.posix_spawnp(tool, words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 2)])
    except FileNotFoundError:
        os.close(reader)
        raise ContainerError(f"{tool} isn't there: install it (Debian: uidmap), or map only your own user") from None
    finally:
        os.close(writer)
    try:
        said = os.read(reader, 4096).decode(errors="replace").strip().partition("\n")[0]
    finally:
        os.close(reader)
    _, status = os.waitpid(child, 0)
    if status:
        raise ContainerError(f"{tool} failed: {said or 'look at /etc/subuid and /etc/subgid'}")


def write_offsets(pid: int, offsets: dict) -> None:
    lines = ""
    for clock, offset in offsets.items():
        if clock not in ("monotonic", "boottime") or not isinstance(offset, dict):
            raise ContainerError(f"config.json: linux.timeOffsets: {clock} is no clock with an offset")
        lines += f"{clock} {offset.get('secs', 0)} {offset.get('nanosecs', 0)}\n"
    try:
        _put(f"/proc/{pid}/timens_offsets", lines)
    except OSError as error:
        raise ContainerError(f"config.json: linux.timeOffsets: the kernel refuses them: {error.strerror}") from None


def _put(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
