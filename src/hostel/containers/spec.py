"""config.json of a bundle (runtime-spec 1.2): read, checked, and the one that ``hostel-oci spec`` writes.

A configuration stays the plain ``dict`` that it is in JSON, with the specification's names: a struct library's import
alone would take longer than a container's start (measured: msgspec 25 ms). ``check`` makes sure of every type
that the runtime relies on, and refuses by name what isn't known or can't be had, before anything is made.
"""

import os

from hostel.base.errors import ContainerError
from hostel.containers import fastjson
from hostel.containers.capabilities import SETS

VERSION = "1.2.0"
NAMESPACES = {  # the specification's name: the flag of clone(2), the name in /proc/PID/ns
    "user": (0x1000_0000, "user"),
    "mount": (0x0002_0000, "mnt"),
    "uts": (0x0400_0000, "uts"),
    "ipc": (0x0800_0000, "ipc"),
    "network": (0x4000_0000, "net"),
    "pid": (0x2000_0000, "pid"),
    "cgroup": (0x0200_0000, "cgroup"),
    "time": (0x0000_0080, "time"),
}
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
RLIMITS = {
    name: number for number, name in enumerate((
        "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC",
        "RLIMIT_NOFILE", "RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE",
        "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME",
    ))
}  # fmt: skip

# What each object may have: its type, a tuple for a list of that, a dict for an object, None for what its own module
# checks. Names that aren't here are unknown, which the specification has runtimes ignore, but for ``_REFUSED``.
_ID_MAP = ({"containerID": int, "hostID": int, "size": int},)
_HOOK = ({"path": str, "args": (str,), "env": (str,), "timeout": int},)
_RATE = {"period": int, "runtime": int}
PROCESS: dict = {
    "terminal": bool, "consoleSize": {"height": int, "width": int}, "cwd": str, "env": (str,), "args": (str,),
    "commandLine": str, "rlimits": ({"type": str, "soft": int, "hard": int},), "apparmorProfile": str,
    "capabilities": {name: (str,) for name in SETS}, "noNewPrivileges": bool, "oomScoreAdj": int, "selinuxLabel": str,
    "user": {"uid": int, "gid": int, "umask": int, "additionalGids": (int,), "username": str},
    "ioPriority": {"class": str, "priority": int},
    "scheduler": {
        "policy": str, "nice": int, "priority": int, "flags": (str,), "runtime": int, "deadline": int, "period": int,
    },
    "execCPUAffinity": {"initial": str, "final": str},
}  # fmt: skip
_SHAPE: dict = {
    "ociVersion": str, "hostname": str, "domainname": str, "annotations": None,
    "process": PROCESS, "root": {"path": str, "readonly": bool},
    "mounts": ({
        "destination": str, "type": str, "source": str, "options": (str,),
        "uidMappings": _ID_MAP, "gidMappings": _ID_MAP,
    },),
    "hooks": {name: _HOOK for name in HOOKS},
    "linux": {
        "uidMappings": _ID_MAP, "gidMappings": _ID_MAP, "sysctl": None, "resources": None, "cgroupsPath": str,
        "namespaces": ({"type": str, "path": str},),
        "devices": ({
            "path": str, "type": str, "major": int, "minor": int, "fileMode": int, "uid": int, "gid": int,
        },),
        "seccomp": None, "rootfsPropagation": str, "maskedPaths": (str,), "readonlyPaths": (str,), "mountLabel": str,
        "intelRdt": None, "personality": {"domain": str, "flags": (str,)}, "timeOffsets": None,
    },
}  # fmt: skip
_REFUSED = {
    ("linux", "intelRdt"): "this runtime doesn't do Intel RDT",
    ("linux", "netDevices"): "this runtime doesn't move network devices",
    ("linux", "memoryPolicy"): "this runtime sets no memory policy",
    ("solaris",): "it is for Solaris", ("windows",): "it is for Windows", ("vm",): "it is for virtual machines",
    ("zos",): "it is for z/OS", ("freebsd",): "it is for FreeBSD",
    ("process", "commandLine"): "it is for Windows",
}  # fmt: skip


def fits(value: object, shape: object, path: str) -> None:
    """Raises ``ContainerError``, which names the ``path``, unless ``value`` is of the ``shape``."""
    if shape is None:
        return
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ContainerError(f"config.json: {path} is to be an object")
        for name, inner in shape.items():
            found = value.get(name)
            if found is not None:
                fits(found, inner, f"{path}.{name}" if path else name)
    elif isinstance(shape, tuple):
        if not isinstance(value, list):
            raise ContainerError(f"config.json: {path} is to be a list")
        for number, element in enumerate(value):
            fits(element, shape[0], f"{path}[{number}]")
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):  # type: ignore[arg-type]
        names = {str: "a string", int: "an integer", bool: "true or false"}
        raise ContainerError(f"config.json: {path} is to be {names[shape]}")  # type: ignore[index]
    elif shape is str and "\0" in value:  # type: ignore[operator]
        raise ContainerError(f"config.json: {path} has a zero byte")
    elif shape is int and not -(1 << 63) <= value < 1 << 64:  # type: ignore[operator]
        raise ContainerError(f"config.json: {path} doesn't fit in 64 bits")


def _strings(value: object, path: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) and "\0" not in text for text in value.values()):
        raise ContainerError(f"config.json: {path} is to be an object of strings")


def check_process(process: dict, path: str = "process") -> None:
    """Of a whole configuration, or one for ``exec``."""
    fits(process, PROCESS, path)
    if not process.get("args"):
        raise ContainerError(f"config.json: {path}.args is empty: there is nothing to run")
    if not process.get("cwd", "").startswith("/"):
        raise ContainerError(f"config.json: {path}.cwd isn't an absolute path")
    for limit in process.get("rlimits") or []:
        if limit.get("type") not in RLIMITS:
            raise ContainerError(f"config.json: {path}.rlimits: there is no limit {limit.get('type')}")
        if "soft" not in limit or "hard" not in limit:
            raise ContainerError(f"config.json: {path}.rlimits: {limit['type']} needs soft and hard")
    for entry in process.get("env") or []:
        if "=" not in entry.strip("=") or entry.startswith("="):
            raise ContainerError(f"config.json: {path}.env: {entry!r} isn't NAME=VALUE")
    user = process.get("user") or {}
    for name in ("uid", "gid"):
        if not 0 <= user.get(name, 0) < 0xFFFF_FFFF:
            raise ContainerError(f"config.json: {path}.user.{name} is no user's or group's number")


def check(config: dict) -> None:
    """Raises ``ContainerError`` that names what is wrong or can't be had."""
    for where, why in _REFUSED.items():
        value: object = config
        for name in where:
            value = value.get(name) if isinstance(value, dict) else None
        if value:
            raise ContainerError(f"config.json: {'.'.join(where)} isn't supported: {why}")
    fits(config, _SHAPE, "")
    version = config.get("ociVersion", "")
    if version.split(".")[0] != "1":
        raise ContainerError(f"config.json: ociVersion {version!r} isn't supported; 1.0 to {VERSION} is")
    if "process" in config:
        check_process(config["process"])
    if not (config.get("root") or {}).get("path"):
        raise ContainerError("config.json: root.path is missing")
    linux = config.get("linux") or {}
    seen = set()
    for namespace in linux.get("namespaces") or []:
        kind = namespace.get("type")
        if kind not in NAMESPACES:
            raise ContainerError(f"config.json: linux.namespaces: there is no namespace {kind}")
        if kind in seen:
            raise ContainerError(f"config.json: linux.namespaces: {kind} is there twice")
        seen.add(kind)
    for name in ("annotations",):
        if config.get(name) is not None:
            _strings(config[name], name)
    if linux.get("sysctl") is not None:
        _strings(linux["sysctl"], "linux.sysctl")
    for kind in HOOKS:
        for hook in (config.get("hooks") or {}).get(kind) or []:
            if not hook.get("path", "").startswith("/"):
                raise ContainerError(f"config.json: hooks.{kind}: path isn't absolute")
            if hook.get("timeout") is not None and hook["timeout"] <= 0:
                raise ContainerError(f"config.json: hooks.{kind}: timeout isn't positive")
    for mount in config.get("mounts") or []:
        if not mount.get("destination"):
            raise ContainerError("config.json: mounts: a destination is missing")
    _namespaced(config, seen)


def _namespaced(config: dict, kinds: set) -> None:
    """What is asked for a namespace that the container shares with the host would be done to the host."""
    linux = config.get("linux") or {}
    for name in ("hostname", "domainname"):
        if config.get(name) and "uts" not in kinds:
            raise ContainerError(f"config.json: {name} needs a uts namespace in linux.namespaces")
    if "mount" not in kinds:
        raise ContainerError("config.json: linux.namespaces has no mount namespace: this runtime needs one")
    if linux.get("timeOffsets") and "time" not in kinds:
        raise ContainerError("config.json: linux.timeOffsets needs a time namespace in linux.namespaces")
    if (linux.get("uidMappings") or linux.get("gidMappings")) and "user" not in kinds:
        raise ContainerError("config.json: linux.uidMappings needs a user namespace in linux.namespaces")
    ipc = ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
           "kernel.shmmni", "kernel.shm_rmid_forced")  # fmt: skip
    for name in linux.get("sysctl") or {}:
        name = name.replace("/", ".") if "/" in name.partition(".")[0] else name
        if name in ipc or name.startswith("fs.mqueue."):
            needed = "ipc"
        elif name.startswith("net."):
            needed = "network"
        elif name in ("kernel.domainname", "kernel.hostname"):
            needed = "uts"
        else:
            raise ContainerError(f"config.json: linux.sysctl: {name} is all the host's, not a container's")
        if needed not in kinds:
            raise ContainerError(f"config.json: linux.sysctl: {name} needs a {needed} namespace in linux.namespaces")
    for namespace in linux.get("namespaces") or []:
        path = namespace.get("path")
        if path and not path.startswith("/"):
            raise ContainerError(f"config.json: linux.namespaces: {path} isn't absolute")


def load(bundle: str) -> dict:
    """The checked configuration of a bundle."""
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        raise ContainerError(f"{path} isn't there: make one with 'hostel-oci spec'") from None
    except OSError as error:
        raise ContainerError(f"{path}: {error.strerror}") from None
    config = fastjson.loads(raw, path)
    check(config)
    return config


def default(rootless: bool = False) -> dict:
    """What ``hostel-oci spec`` writes: a shell with everything of its own."""
    few = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    options = ["nosuid", "noexec", "nodev"]
    mounts: list[dict] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666",
                      "mode=0620", *([] if rootless else ["gid=5"])]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": [*options, "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": options},
    ]  # fmt: skip
    kinds = ["pid", "ipc", "uts", "mount", "cgroup"]
    linux: dict = {
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            "/sys/devices/virtual/powercap",
        ],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    }  # fmt: skip
    if rootless:  # the host's network: without helpers of root's nobody could connect one of its own
        kinds.append("user")
        mounts.append({"destination": "/sys", "type": "none", "source": "/sys",
                       "options": ["rbind", *options, "ro"]})  # fmt: skip
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    else:
        kinds.append("network")
        mounts.append({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*options, "ro"]})
        mounts.append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                       "options": [*options, "relatime", "ro"]})  # fmt: skip
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": True, "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "capabilities": {name: few for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "hostel",
        "mounts": mounts,
        "linux": {**linux, "namespaces": [{"type": kind} for kind in kinds]},
    }  # fmt: skip
