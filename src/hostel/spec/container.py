"""What a container is (``ContainerSpec``, kept as ``container.json``) and how it does (``ContainerState``, in
``state.json``), and the words of the command line that describe it.

``container.json`` has every field, since a container's monitor reads it as plain JSON, without this module: it should
stay small.
"""

import os
import posixpath
import re
import signal
import stat
from typing import Literal

import msgspec

from hostel.base.errors import UsageError
from hostel.base.units import format_size, parse_size
from hostel.spec.net import NicSpec

VERSION = 1
MIN_MEMORY = 4 << 20           # a program and its page tables; less is a mistake
MAX_CPUS = 4096
RESTARTS = ("no", "on-failure", "always", "unless-stopped")
VOLUME_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}"   # what isn't a path; a folder beside one is ./NAME
LIVE = ("starting", "running", "paused", "restarting")
_ULIMITS = ("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
            "rtprio", "rttime", "sigpending", "stack")  # fmt: skip


class Health(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A command in the container whose exit status says whether it is well. Seconds."""

    command: list[str]
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0   # failures so soon after the start don't count
    retries: int = 3            # failures in a row after which it is unhealthy


class Mount(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A file or folder of the host's (``source``, absolute) at ``target``; a ``volume`` by its name, or one of the
    container's ``own``; else a tmpfs."""

    target: str
    source: str = ""
    volume: str = ""
    own: bool = False
    options: list[str] = []


class Device(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A device node of the host's."""

    source: str
    target: str
    access: str = "rwm"


class Ulimit(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    soft: int
    hard: int


class ContainerSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything needed to start a container. Sizes are bytes, paths absolute; 0 is 'no limit'."""

    version: int = VERSION
    name: str
    image: str                    # as it was asked for
    digest: str = ""              # of the image's manifest
    command: list[str] = []       # the whole argv
    env: list[str] = []           # KEY=VALUE
    user: str = ""                # USER[:GROUP], names or numbers
    workdir: str = "/"
    hostname: str = ""
    tty: bool = False
    stdin: bool = False           # somebody is to write to it
    init: bool = False            # a process 1 that reaps, and forwards signals
    memory: int = 0
    memory_swap: int = 0          # memory and swap together; -1: no limit
    memory_reservation: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    cpuset: str = ""
    pids_limit: int = 0
    disk_rate: int = 0            # bytes a second that it reads, and as many that it writes, where its own files are
    disk_iops: int = 0            # the same in requests
    oom_score_adj: int = 0
    nics: list[NicSpec] = []
    host_network: bool = False    # no network of its own: the host's
    mounts: list[Mount] = []
    read_only: bool = False
    cap_add: list[str] = []
    cap_drop: list[str] = []
    security: list[str] = []      # as check_security has them
    devices: list[Device] = []
    ulimits: list[Ulimit] = []
    sysctls: dict[str, str] = {}
    labels: dict[str, str] = {}
    restart: str = "no"
    restart_max: int = 0          # of on-failure; 0: as often as it takes
    health: Health | None = None
    stop_signal: int = int(signal.SIGTERM)
    stop_timeout: float = 10.0
    remove: bool = False          # its folder goes when it ends
    log_size: int = 4 << 20       # bytes a file of the log; two are kept


class ContainerState(msgspec.Struct, kw_only=True):
    """The monitor's latest word. ``died`` is never written: it is concluded (containers/store)."""

    # created, starting, running, paused, restarting (waits for its next start), stopped; concluded: died
    state: str = "created"
    pid: int = 0                  # the monitor's
    init: int = 0                 # the container's first process, as the host sees it
    init_start: int = 0           # when that began, in clock ticks since the boot (proc(5)): a PID alone is reused
    router: int = 0               # the process that is its way out, where it has one of its own
    created: float = 0.0          # seconds since the epoch, as the others
    started: float = 0.0
    stopped: float = 0.0
    reason: str = ""
    exit_status: int | None = None
    restarts: int = 0
    by_hand: bool = False         # somebody stopped it: 'unless-stopped' remembers
    health: str = ""              # starting, healthy, unhealthy
    oom_kills: int = 0
    addresses: list[str] = []     # of its cards, in order


def check_memory(text: int | str) -> int:
    size = parse_size(text) if isinstance(text, str) else text
    if size and size < MIN_MEMORY:
        raise UsageError(f"a container has at least {format_size(MIN_MEMORY)} of memory, not {text}")
    return size


def check_cpus(cpus: float | str) -> float:
    try:
        value = float(cpus)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= MAX_CPUS or 0.0 < value < 0.01:
        raise UsageError(f"--cpus takes 0.01 to {MAX_CPUS} processors, for example 1.5; not '{cpus}'")
    return value


def parse_limits(texts: dict[str, str]) -> dict[str, int | float | str]:
    """Limits of a running container that are to change, by the names of ContainerSpec's fields."""
    found: dict[str, int | float | str] = {}
    for name, text in texts.items():
        if name == "cpus":
            found[name] = check_cpus(text)
        elif name == "cpuset":
            found[name] = check_cpuset(text)
        elif name in ("cpu_shares", "pids_limit"):
            found[name] = check_count(f"--{name.replace('_', '-')}", text, 2 if name == "cpu_shares" else 1)
        else:
            found[name] = -1 if text == "-1" and name == "memory_swap" else check_memory(text)
    return found


def check_cpuset(text: str) -> str:
    if text and not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text, re.ASCII):
        raise UsageError(f"--cpuset-cpus takes processors' numbers, as 0-3,6; not '{text}'")
    return text


def check_count(option: str, number: int | str, least: int) -> int:
    """0, which is no limit, or ``least`` and more."""
    if not re.fullmatch(r"\d{1,9}", str(number), re.ASCII) or 0 < int(number) < least:
        raise UsageError(f"{option} is at least {least}, not {number}")
    return int(number)


def check_disk(option: str, text: int | str, least: int) -> int:
    """A rate; 0, which is no limit, or ``least`` and more."""
    rate = parse_size(str(text))
    if 0 < rate < least or rate >= 1 << 32:
        raise UsageError(f"{option} is {format_size(least)} to under 4G a second for a container, not {text}")
    return rate


def parse_restart(text: str) -> tuple[str, int]:
    policy, colon, count = text.partition(":")
    if policy not in RESTARTS or colon and (policy != "on-failure" or not re.fullmatch(r"\d{1,6}", count, re.ASCII)):
        raise UsageError(f"--restart takes {', '.join(RESTARTS)} or on-failure:N; not '{text}'")
    return policy, int(count) if colon else 0


def parse_signal(text: str) -> int:
    """``TERM``, ``SIGTERM`` or ``15``; also RTMIN+3."""
    name = text.upper().removeprefix("SIG")
    match = re.fullmatch(r"RTMIN(?:\+(\d{1,2}))?", name, re.ASCII)
    if match:
        number = int(signal.SIGRTMIN) + int(match[1] or 0)
    elif re.fullmatch(r"\d{1,2}", name, re.ASCII):
        number = int(name)
    else:
        number = int(getattr(signal, f"SIG{name}", 0)) if name.isalnum() else 0
    if not 1 <= number <= int(signal.SIGRTMAX):
        raise UsageError(f"'{text}' is no signal: write for example TERM or 15")
    return number


def parse_env(items: list[str]) -> list[str]:
    """KEY=VALUE as it is; KEY alone as this process has it, or not at all."""
    found = []
    for item in items:
        key, equals, _ = item.partition("=")
        if not key or "\0" in item:
            raise UsageError(f"'{item}' is not KEY=VALUE")
        if equals:
            found.append(item)
        elif key in os.environ:
            found.append(f"{key}={os.environ[key]}")
    return found


def parse_mount(text: str) -> Mount:
    """``HOSTDIR:TARGET[:OPTION,...]``, ``VOLUME:TARGET[...]``, or ``TARGET`` for a volume of the container's own; the
    options are ro, rw and propagation's."""
    source, colon, rest = text.partition(":")
    target, _, options = rest.partition(":")
    if source.startswith("/") and not colon:
        return Mount(target=check_target(source), own=True, options=["rbind"])
    if not source or not target:
        raise UsageError(f"'{text}' is no share: write HOSTDIR:DIR[:ro] or VOLUME:DIR[:ro]")
    chosen = ["rbind"]
    for option in options.split(",") if options else ():
        if option not in ("ro", "rw", "private", "rprivate", "shared", "rshared", "slave", "rslave", "noexec", "nosuid",
                          "nodev"):  # fmt: skip
            raise UsageError(f"-v {text}: '{option}' is none of ro, rw, noexec, nosuid, nodev, [r]shared")
        chosen.append(option)
    if re.fullmatch(VOLUME_NAME, source, re.ASCII):
        return Mount(volume=source, target=check_target(target), options=chosen)
    try:
        where = os.path.realpath(source, strict=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"can't share {source}: {getattr(error, 'strerror', error)}") from None
    return Mount(source=where, target=check_target(target), options=chosen)


def parse_tmpfs(text: str) -> Mount:
    """``TARGET[:OPTION,...]``: size=, mode=, noexec and the like."""
    target, _, options = text.partition(":")
    chosen = []
    for option in options.split(",") if options else ():
        key, equals, value = option.partition("=")
        if key == "size" and equals:
            option = f"size={parse_size(value)}"
        elif not (key in ("mode", "uid", "gid", "nr_inodes") and re.fullmatch(r"\d{1,9}", value, re.ASCII)) and (
            option not in ("ro", "rw", "noexec", "exec", "nosuid", "suid", "nodev", "dev")
        ):
            raise UsageError(f"--tmpfs {text}: '{option}' is none of size=, mode=, uid=, gid=, nr_inodes=, ro, noexec, "
                             "nosuid, nodev")  # fmt: skip
        chosen.append(option)
    return Mount(target=check_target(target), options=chosen)


def check_target(target: str) -> str:
    path = posixpath.normpath(target)
    if not target.startswith("/") or path.strip("/") == "" or ".." in target.split("/") or "\0" in target:
        raise UsageError(f"'{target}' can't be a place in the container: name one from the root, as /src")
    return "/" + path.strip("/")


def parse_device(text: str) -> Device:
    """``/dev/X[:TARGET][:ACCESS]``."""
    source, *rest = text.split(":")
    access = rest.pop() if rest and re.fullmatch(r"[rwm]{1,3}", rest[-1]) else "rwm"
    if len(rest) > 1:
        raise UsageError(f"'{text}' is no device: write /dev/X[:/dev/Y][:rwm]")
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError) as error:
        raise UsageError(f"can't give the device {source}: {getattr(error, 'strerror', error)}") from None
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        raise UsageError(f"{source} is no device")
    return Device(source=os.path.realpath(source), target=check_target(rest[0] if rest else source), access=access)


def parse_ulimit(text: str) -> Ulimit:
    """``NAME=SOFT[:HARD]``; -1 and unlimited are no limit."""
    name, equals, values = text.partition("=")
    numbers = [-1 if value == "unlimited" else value for value in values.split(":")]
    if name not in _ULIMITS or not equals or not 1 <= len(numbers) <= 2 or not all(
        value == -1 or re.fullmatch(r"-1|\d{1,19}", str(value), re.ASCII) for value in numbers
    ):
        raise UsageError(f"'{text}' is no limit: write NAME=SOFT[:HARD], for example nofile=1024:4096; NAME is one of "
                         f"{', '.join(_ULIMITS)}")  # fmt: skip
    soft, hard = int(numbers[0]), int(numbers[-1])
    if hard != -1 and (soft == -1 or soft > hard):
        raise UsageError(f"--ulimit {text}: the soft limit is above the hard one")
    return Ulimit(name=name, soft=soft, hard=hard)


def parse_sysctl(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z0-9_]+([./-][A-Za-z0-9_*-]+)+", name):
        raise UsageError(f"'{text}' is no sysctl: write for example net.core.somaxconn=1024")
    return name, value


def check_capability(text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if not re.fullmatch(r"[A-Z_]{2,30}", name):
        raise UsageError(f"'{text}' is no capability: write for example NET_ADMIN, or ALL")
    return name if name == "ALL" else f"CAP_{name}"


def check_security(text: str) -> str:
    """``no-new-privileges``, ``seccomp=unconfined|FILE``, ``systempaths=unconfined``, ``apparmor=PROFILE``,
    ``label=LABEL``."""
    key, equals, value = text.partition("=")
    if text == "no-new-privileges" or text == "no-new-privileges=true":
        return "no-new-privileges"
    if key == "seccomp" and value:
        if value != "unconfined":
            if not os.path.isfile(value):
                raise UsageError(f"--security-opt {text}: there is no file {value}")
            value = os.path.abspath(value)
        return f"seccomp={value}"
    if key in ("apparmor", "label") and value or text == "systempaths=unconfined":
        return text
    raise UsageError(f"--security-opt takes no-new-privileges, seccomp=unconfined|FILE, systempaths=unconfined, "
                     f"apparmor=PROFILE or label=LABEL; not '{text}'")  # fmt: skip


def parse_seconds(text: str | float) -> float:
    """``30``, ``1.5s``, ``2m``, ``500ms``, ``1h``."""
    if not isinstance(text, str):
        return float(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text, re.ASCII)
    if not match:
        raise UsageError(f"'{text}' is no time: write for example 30s or 500ms")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


Isolation = Literal["vm", "container"]
