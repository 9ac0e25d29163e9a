"""From a container's folder to an OCI bundle (runtime-spec 1.2) and back: the file system, what is mounted into it, and
config.json, from ContainerSpec and the image. Runs in short-lived children of the monitor, and in whoever clears up
after one that was killed; what it makes is known by the folder alone.
"""

import contextlib
import hashlib
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostel.base import paths
from hostel.base.errors import ContainerError, HostelError, MachineError
from hostel.base.linux import openat2
from hostel.containers import volumes
from hostel.containers.process import read_file
from hostel.containers.runtime import ENDS_WITH_PARENT, Runtime
from hostel.containers.store import Folder
from hostel.spec.container import LIVE, ContainerSpec, ContainerState

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_ID = (1 << 31) - 1
INIT = "/.hostel-init"         # where --init's program is in the container
PERIOD = 100_000               # µs of a CPU quota's period
# What programs in containers are used to having (the usual engines' set).
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
    "CAP_AUDIT_WRITE",
)  # fmt: skip
# Files of the kernel's that tell of the host or change it
MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
_MOUNTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
)
# The host's network isn't our user namespace's, and so is its sysfs not.
_HOST_SYS = ("/sys", "bind", "/sys", ("rbind", "nosuid", "noexec", "nodev", "ro", "rro", "rslave"))


def identity(folder: Path) -> str:
    """The container's name for the runtime and its cgroup, unlike those of other homes'."""
    return f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def runtime(folder: Path) -> Runtime:
    """The one of all containers of this home: they share what it keeps compiled."""
    return Runtime(folder.parent / ".runtime")


def cgroup(folder: Path) -> Any:
    """The container's, while there is one."""
    return runtime(folder).cgroup(identity(folder))


def cgroup_path(folder: Path) -> str:
    return f"/hostel/{identity(folder)}"


def prepare(folder: Folder) -> None:
    """Make the bundle. What was made goes by ``release``, also after an exception."""
    from hostel.images.oci import rootfs, store

    spec = folder.spec()
    image = store.Store().get(spec.digest or spec.image)
    mounted = rootfs.prepare(image, folder.path)
    root = Path(mounted.path)
    etc = folder.path / "etc"
    etc.mkdir(mode=0o755, exist_ok=True)
    for name in ("hosts", "hostname", "resolv.conf"):
        (etc / name).touch(mode=0o644)
    write_names(folder.path, spec, [])
    volumes.prepare(folder.path, spec, root)
    config = make_config(spec, folder.path, root)
    (folder.path / "config.json").write_text(json.dumps(config, indent=1))


def write_init(path: Path) -> None:
    """--init's program."""
    from hostel.base import atomic
    from hostel.containers import initreaper
    from hostel.images.tiny import compiled

    if not path.exists():
        atomic.write(path, compiled(initreaper), mode=0o755, durable=False)


def write_names(folder: Path, spec: ContainerSpec, cards: "list[dict[str, Any]]") -> None:
    """/etc/hosts, hostname and resolv.conf, in their places: they are mounted into the container by then."""
    name = spec.hostname or spec.name
    hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    servers, domain = [], ""
    for card in cards:
        hosts.append(f"{card['address']}\t{name}{' ' + spec.name if name != spec.name else ''}")
        servers += [card["dns"]] if card.get("dns") and card["dns"] not in servers else []
        domain = domain or card.get("domain", "")
    if not cards:
        hosts.append(f"127.0.1.1\t{name}")
    if spec.host_network:
        servers = host_resolvers()
    lines = ([f"search {domain}"] if domain else []) + [f"nameserver {server}" for server in servers[:3]]
    for file, text in (("hosts", hosts), ("hostname", [name]), ("resolv.conf", lines)):
        (folder / "etc" / file).write_text("".join(f"{line}\n" for line in text))


def host_resolvers() -> list[str]:
    """The addresses in the host's resolv.conf."""
    try:
        words = [line.split() for line in Path("/etc/resolv.conf").read_text(errors="replace").splitlines()]
    except OSError:
        return []
    return [row[1] for row in words if len(row) > 1 and row[0] == "nameserver"]


def make_config(spec: ContainerSpec, folder: Path, root: Path) -> dict[str, Any]:
    """config.json of a container whose root is at ``root``."""
    rootless = os.geteuid() != 0
    user = find_user(root, spec.user)
    environment = {"PATH": PATH, "HOSTNAME": spec.hostname or spec.name, "HOME": user["home"]}
    if spec.tty:
        environment["TERM"] = "xterm"
    environment |= dict(item.split("=", 1) for item in spec.env)
    arguments = [INIT, "--", *spec.command] if spec.init else list(spec.command)
    capabilities = chosen_capabilities(spec)
    linux: dict[str, Any] = {
        "namespaces": [
            {"type": kind} for kind in NAMESPACES + (("user",) if rootless else ())
            if kind != "network" or not spec.host_network
        ],
        "resources": resources(spec),
        "cgroupsPath": cgroup_path(folder),
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", **spec.sysctls} if spec.nics else dict(spec.sysctls),
        "devices": [device_node(device.source, device.target) for device in spec.devices],
    }
    if "systempaths=unconfined" not in spec.security:
        linux |= {"maskedPaths": list(MASKED), "readonlyPaths": list(READ_ONLY)}
    if rootless:
        linux |= user_mappings()
    profile = next((item[8:] for item in spec.security if item.startswith("seccomp=")), "")
    if profile != "unconfined":
        linux["seccomp"] = seccomp_profile(profile, capabilities)
    label = next((item[6:] for item in spec.security if item.startswith("label=")), "")
    process: dict[str, Any] = {
        "terminal": spec.tty,
        "user": {"uid": user["uid"], "gid": user["gid"], "additionalGids": user["groups"]},
        "args": arguments,
        "env": [f"{key}={value}" for key, value in environment.items()],
        "cwd": spec.workdir or "/",
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities if user["uid"] == 0 else [],
            "permitted": capabilities if user["uid"] == 0 else [],
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": "no-new-privileges" in spec.security,
        "rlimits": [
            {"type": f"RLIMIT_{limit.name.upper()}", "soft": limit.soft % (1 << 64), "hard": limit.hard % (1 << 64)}
            for limit in spec.ulimits
        ],
    }
    if spec.oom_score_adj:
        process["oomScoreAdj"] = spec.oom_score_adj
    profile = next((item[9:] for item in spec.security if item.startswith("apparmor=")), "")
    if profile:
        process["apparmorProfile"] = profile
    if label:
        process["selinuxLabel"] = linux["mountLabel"] = label
    return {
        "ociVersion": "1.2.0",
        "process": process,
        "root": {"path": str(root), "readonly": spec.read_only},
        "hostname": (spec.hostname or spec.name).replace("_", "-"),
        "mounts": mounts(spec, folder),
        "linux": linux,
        "annotations": {ENDS_WITH_PARENT: "yes", **{f"label.{key}": value for key, value in spec.labels.items()}},
    }


def mounts(spec: ContainerSpec, folder: Path) -> list[dict[str, Any]]:
    """In order: what a person put at a place wins over what is usually there."""
    own = {mount.target for mount in spec.mounts}
    absent = set()
    if os.geteuid() and sum(row["size"] for row in user_mappings()["gidMappings"]) <= 5:
        absent.add("gid=5")  # there is no such group
    found = [
        {"destination": target, "type": kind, "source": source, "options": [o for o in options if o not in absent]}
        for target, kind, source, options in (
            _HOST_SYS if row[0] == "/sys" and spec.host_network and os.geteuid() else row for row in _MOUNTS
        )
        if target not in own
    ]
    for name in ("hosts", "hostname", "resolv.conf"):
        if f"/etc/{name}" not in own:
            found.append(_bind(f"/etc/{name}", folder / "etc" / name, "rw"))
    if spec.init:
        found.append(_bind(INIT, folder / "init", "ro"))
    for number, mount in sorted(enumerate(spec.mounts), key=lambda row: row[1].target.count("/")):
        where = mount.source
        if mount.volume or mount.own:
            where = str(volumes.source(folder, mount, number))
        if where:
            options = mount.options if any("bind" in option for option in mount.options) else ["rbind", *mount.options]
            if not any(option.lstrip("r") in ("private", "shared", "slave") for option in options):
                options = [*options, "rprivate"]
            if "ro" in options and "rbind" in options:
                options = [*options, "rro"]  # what is mounted below it, too
            found.append({"destination": mount.target, "type": "bind", "source": where, "options": options})
        else:
            options = ["nosuid", "nodev", "mode=1777", *mount.options]
            found.append({"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options})
    return found


def _bind(target: str, source: Path, access: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": str(source), "options": ["bind", "rprivate", access]}


def chosen_capabilities(spec: ContainerSpec) -> list[str]:
    if "ALL" in spec.cap_add:
        chosen = set(every_capability())
    else:
        chosen = set() if "ALL" in spec.cap_drop else set(CAPABILITIES)
        chosen |= set(spec.cap_add)
    return sorted(chosen - set(spec.cap_drop))


def every_capability() -> list[str]:
    """Those that we could give: our own."""
    from hostel.containers import capabilities

    return list(capabilities.NAMES)


def resources(spec: ContainerSpec) -> dict[str, Any]:
    """linux.resources, of what was asked for."""
    memory: dict[str, Any] = {}
    if spec.memory:
        memory["limit"] = spec.memory
    if spec.memory_swap:
        memory["swap"] = spec.memory_swap
    if spec.memory_reservation:
        memory["reservation"] = spec.memory_reservation
    cpu: dict[str, Any] = {}
    if spec.cpus:
        cpu |= {"quota": round(spec.cpus * PERIOD), "period": PERIOD}
    if spec.cpu_shares:
        cpu["shares"] = spec.cpu_shares
    if spec.cpuset:
        cpu["cpus"] = spec.cpuset
    found: dict[str, Any] = {"memory": memory, "cpu": cpu}
    if spec.pids_limit:
        found["pids"] = {"limit": spec.pids_limit}
    disk = {
        f"throttle{way}{unit}Device": [{**disk_of(paths.home()), "rate": rate}]
        for unit, rate in (("Bps", spec.disk_rate), ("IOPS", spec.disk_iops)) if rate for way in ("Read", "Write")
    }
    found = {key: value for key, value in (found | {"blockIO": disk}).items() if value}
    if os.geteuid() == 0:  # without root there is no right to any other device anyway
        rules = [{"allow": False, "access": "rwm"}]
        for device in spec.devices:
            node = device_node(device.source, device.target)
            rules.append({
                "allow": True, "type": node["type"], "major": node["major"], "minor": node["minor"],
                "access": device.access,
            })
        found["devices"] = rules
    return found


def disk_of(path: Path) -> dict[str, int]:
    """The numbers of the disk that a folder is on, as I/O is limited by disks. Raises ContainerError."""
    number = os.stat(path).st_dev
    device = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if os.path.exists(f"{device}/partition"):
        device = os.path.dirname(device)
    try:
        major, minor = Path(device, "dev").read_text().split(":")
    except OSError:
        raise ContainerError(f"{path} isn't on a disk of its own: there are no --disk-rate and --disk-iops") from None
    return {"major": int(major), "minor": int(minor)}


def device_node(source: str, target: str) -> dict[str, Any]:
    try:
        found = os.stat(source)
    except OSError as error:
        raise ContainerError(f"can't give the device {source}: {error.strerror}") from error
    return {
        "path": target, "type": "b" if stat.S_ISBLK(found.st_mode) else "c", "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev), "fileMode": stat.S_IMODE(found.st_mode), "uid": 0, "gid": 0,
    }


def seccomp_profile(file: str, capabilities: list[str]) -> dict[str, Any]:
    if file:
        try:
            return dict(json.loads(Path(file).read_text()))
        except (OSError, ValueError) as error:
            raise ContainerError(f"can't use the seccomp profile {file}: {error}") from error
    from hostel.containers import seccomp

    return seccomp.default_profile(capabilities)


def user_mappings() -> dict[str, Any]:
    """Root inside is who we are; further users are those that /etc/subuid gives us, if it does."""
    def mapping(file: str, own: int) -> list[dict[str, int]]:
        import pwd

        rows = [{"containerID": 0, "hostID": own, "size": 1}]
        names = {str(os.geteuid())}
        with contextlib.suppress(KeyError):
            names.add(pwd.getpwuid(os.geteuid()).pw_name)
        with contextlib.suppress(OSError, ValueError):
            at = 1
            for line in Path(file).read_text().splitlines():
                name, first, count = line.split(":")
                if name in names:
                    rows.append({"containerID": at, "hostID": int(first), "size": int(count)})
                    at += int(count)
        return rows

    return {
        "uidMappings": mapping("/etc/subuid", os.geteuid()), "gidMappings": mapping("/etc/subgid", os.getegid())
    }


# -- users, as the image's /etc/passwd and /etc/group have them


def find_user(root: Path, text: str) -> dict[str, Any]:
    """uid, gid, further groups and home of USER[:GROUP]; ``ContainerError`` where the image has no such name."""
    name, colon, group = text.partition(":")
    users = [row for row in _rows(root, "passwd") if len(row) >= 6 and _is_id(row[2]) and _is_id(row[3])]
    groups = [row for row in _rows(root, "group") if len(row) >= 4 and _is_id(row[2])]
    if any(word.isdecimal() and not _is_id(word) for word in (name, group)):
        raise ContainerError(f"'{text[:100]}' is no user: numbers end at {_MAX_ID}")
    row = next((row for row in users if row[0] == name), None)
    if row is None and (name.isdecimal() or not name):
        row = next((row for row in users if int(row[2]) == int(name or 0)), None)
    if row is None and name and not name.isdecimal():
        raise ContainerError(f"the image has no user '{name}'; give a number, or one of its /etc/passwd")
    uid, gid = (int(row[2]), int(row[3])) if row else (int(name or 0), 0)
    more: list[int] = []
    if colon:
        found = next((entry for entry in groups if entry[0] == group), None)
        if found is None and not group.isdecimal():
            raise ContainerError(f"the image has no group '{group}'; give a number, or one of its /etc/group")
        gid = int(found[2]) if found else int(group)
    elif row:
        more = [int(entry[2]) for entry in groups if row[0] in entry[3].split(",") and int(entry[2]) != gid]
    return {"uid": uid, "gid": gid, "groups": more, "home": (row[5] if row else "") or "/"}


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_ID


def _rows(root: Path, name: str) -> list[list[str]]:
    data = read_below(root, f"etc/{name}", 1 << 20)
    return [line.split(":") for line in data.decode(errors="replace").splitlines()]


def read_below(root: Path, path: str, limit: int) -> bytes:
    """A regular file of the image's, as the container will see it; empty where there is none."""
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return read_file(openat2.beneath(folder, path.encode(), os.O_PATH), limit)
    except OSError:
        return b""
    finally:
        os.close(folder)


def exec_process(folder: Folder, params: dict[str, Any]) -> dict[str, Any]:
    """The ``process`` of another command in the running container (spec/rpc's Exec, with ``user`` and ``privileged``):
    as its first one, but for what ``params`` says."""
    try:
        config = json.loads((folder.path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ContainerError(f"can't read {folder.path / 'config.json'}: {error}") from error
    process: dict[str, Any] = config["process"]
    environment = dict(item.split("=", 1) for item in process["env"])
    if params["user"]:
        user = find_user(Path(config["root"]["path"]), params["user"])
        process["user"] = {"uid": user["uid"], "gid": user["gid"], "additionalGids": user["groups"]}
        environment["HOME"] = user["home"]
    bounding = every_capability() if params["privileged"] else process["capabilities"]["bounding"]
    held = bounding if process["user"]["uid"] == 0 or params["privileged"] else []
    process["capabilities"] = {
        "bounding": bounding, "effective": held, "permitted": held, "inheritable": [], "ambient": []
    }
    if params["tty"]:
        environment.setdefault("TERM", "xterm")
    environment |= params["env"]
    process |= {
        "args": params["argv"], "env": [f"{key}={value}" for key, value in environment.items()],
        "cwd": params["cwd"] or process["cwd"], "terminal": params["tty"],
    }
    return process


# -- the end


def release(folder: Folder) -> dict[str, Any]:
    """Undo what ``prepare`` and the runtime made; what the container's cgroup has to say is returned. Nothing of it
    needs to be there."""
    told: dict[str, Any] = {}
    name = identity(folder.path)
    with contextlib.suppress(ContainerError):
        runner = runtime(folder.path)
        with contextlib.suppress(HostelError, OSError):
            told["oom_kills"] = cgroup(folder.path).oom_kills()
        runner.delete(name, force=True)
    from hostel.images.oci import rootfs

    rootfs.release(folder.path)
    with contextlib.suppress(OSError):
        (folder.path / "config.json").unlink()
    return told


@contextlib.contextmanager
def mounted(folder: Folder) -> Iterator[Path]:
    """The root of a container that nobody runs meanwhile."""
    from hostel.images.oci import rootfs, store

    fd = folder.take()
    try:
        spec = folder.spec()
        try:
            yield Path(rootfs.prepare(store.Store().get(spec.digest or spec.image), folder.path).path)
        finally:
            rootfs.release(folder.path)
    finally:
        os.close(fd)


def start_time(pid: int) -> int:
    """When a process began, in ticks since the boot; 0 where there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def clear_up(folder: Folder) -> None:
    """After a monitor that was killed: end what it left, take away its mounts and cgroup, and write down how it ended.
    Nothing where the container is owned, or ended in order."""
    state = folder.read_state()
    if state.state not in LIVE or folder.owned():
        return
    try:
        fd = folder.take()
    except MachineError:
        return  # somebody else is at it
    try:
        clear_owned(folder)
    finally:
        os.close(fd)


def clear_owned(folder: Folder) -> None:
    """The same for the owner."""
    state = folder.read_state()
    if state.state not in LIVE:
        return
    _end(state.init, state.init_start)
    release(folder)
    folder.drop_socket()
    folder.write_state(ContainerState(
        state="died", created=state.created, started=state.started, stopped=_now(), restarts=state.restarts,
        reason="its monitor was killed",
    ))


def _end(pid: int, began: int) -> None:
    """SIGKILL the process, if it is still that one, and wait until it is gone."""
    import select

    if not pid or not began:
        return
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if start_time(pid) == began:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                select.select([process], [], [], 10.0)
    finally:
        os.close(process)


def _now() -> float:
    import time

    return time.time()
