"""A container's process from inside its namespaces to its program: who it is, what it may, and exec.

The order is the one of capabilities(7) and seccomp(2): what needs privileges first; then the user; then what takes
away; the filter last where ``noNewPrivileges`` allows that, else while there still is CAP_SYS_ADMIN.
"""

import os
import stat
import struct
from errno import EACCES, EINVAL, ENOENT, EPERM

from hostel.base.errors import ContainerError
from hostel.containers import capabilities
from hostel.containers.spec import RLIMITS
from hostel.containers.stage import ANY, Label, Script, Slot

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_UNLIMITED = (1 << 64) - 1
_CAPABILITY_VERSION_3 = 0x20080522
_ST_MODE, _ST_RDEV = 24, 40  # in struct stat
_POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6, "SCHED_ISO": 4,
}  # fmt: skip
_SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 1, "SCHED_FLAG_RECLAIM": 2, "SCHED_FLAG_DL_OVERRUN": 4, "SCHED_FLAG_KEEP_POLICY": 8,
    "SCHED_FLAG_KEEP_PARAMS": 16, "SCHED_FLAG_UTIL_CLAMP_MIN": 32, "SCHED_FLAG_UTIL_CLAMP_MAX": 64,
}  # fmt: skip
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_DOMAINS = {"LINUX": 0, "LINUX32": 8}


def check(process: dict, personality: dict | None = None) -> None:
    """What the kernel would refuse late, or this host doesn't have."""
    for which, names in (process.get("capabilities") or {}).items():
        if which in capabilities.SETS:
            capabilities.mask(names or [], which)
    priority = process.get("ioPriority")
    if priority and (priority.get("class") not in _IO_CLASSES or not 0 <= priority.get("priority", 0) <= 7):
        raise ContainerError("config.json: process.ioPriority: the class or the priority (0 to 7) is none")
    scheduler = process.get("scheduler")
    if scheduler:
        if scheduler.get("policy") not in _POLICIES:
            raise ContainerError(f"config.json: process.scheduler: {scheduler.get('policy')} is no policy")
        for flag in scheduler.get("flags") or []:
            if flag not in _SCHED_FLAGS:
                raise ContainerError(f"config.json: process.scheduler: {flag} is no flag")
    if personality and (personality.get("domain") not in _DOMAINS or personality.get("flags")):
        raise ContainerError("config.json: linux.personality: the domain is to be LINUX or LINUX32, without flags")
    adjust = process.get("oomScoreAdj")
    if adjust is not None and not -1000 <= adjust <= 1000:
        raise ContainerError("config.json: process.oomScoreAdj is to be from -1000 to 1000")
    if process.get("apparmorProfile") and not apparmor():
        raise ContainerError("config.json: process.apparmorProfile: this host has no AppArmor")
    if process.get("selinuxLabel") and not selinux():
        raise ContainerError("config.json: process.selinuxLabel: this host has no SELinux")
    for affinity in (process.get("execCPUAffinity") or {}).values():
        cpus(affinity)


def apparmor() -> bool:
    try:
        with open("/sys/module/apparmor/parameters/enabled") as file:
            return file.read(1) == "Y"
    except OSError:
        return False


def selinux() -> bool:
    return os.path.exists("/sys/fs/selinux/enforce")


def cpus(text: str) -> set[int]:
    """``0-3,7`` as numbers."""
    found: set[int] = set()
    try:
        for part in text.replace(" ", "").split(","):
            first, _, last = part.partition("-")
            if part:
                if int(last or first) >= 4096:
                    raise ValueError
                found.update(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ContainerError(f"config.json: process.execCPUAffinity: {text} is no list of CPUs") from None
    return found


def label(script: Script, process: dict) -> None:
    """Have the next exec take on the AppArmor profile or SELinux label; by the host's /proc, so before it is gone.

    A fork inherits it.
    """
    wanted = []
    if process.get("apparmorProfile"):
        wanted.append(("apparmor/exec", b"exec " + process["apparmorProfile"].encode()))
    if process.get("selinuxLabel"):
        wanted.append(("exec", process["selinuxLabel"].encode()))
    for name, text in wanted:
        script.doing = f"the label {text.decode()}"
        fd, fall = script.slot(), Label()
        script.call("openat", -100, f"/proc/self/attr/{name}", 0x80001, 0, to=fd)
        script.call("write", fd, text, len(text))
        script.call("close", fd)
        script.bind(fall)


def tune(script: Script, process: dict, personality: dict | None) -> None:
    """Priorities and the like, while there are privileges."""
    scheduler = process.get("scheduler")
    if scheduler:
        script.doing = "process.scheduler"
        flags = sum({_SCHED_FLAGS[flag] for flag in scheduler.get("flags") or []})
        attributes = struct.pack(
            "<IIQiIQQQ", 48, _POLICIES[scheduler["policy"]], flags, scheduler.get("nice") or 0,
            scheduler.get("priority") or 0, scheduler.get("runtime") or 0, scheduler.get("deadline") or 0,
            scheduler.get("period") or 0,
        )  # fmt: skip
        script.call("sched_setattr", 0, script.place(attributes), 0)
    priority = process.get("ioPriority")
    if priority:
        script.doing = "process.ioPriority"
        script.call("ioprio_set", 1, 0, _IO_CLASSES[priority["class"]] << 13 | priority.get("priority", 0))
    if personality:
        script.doing = "linux.personality"
        script.call("personality", _DOMAINS[personality["domain"]])


def raise_limits(script: Script, process: dict) -> None:
    """Hard limits above the runtime's own: with its rights, before a user namespace is entered."""
    import resource

    for limit in process.get("rlimits") or []:
        number, wanted = RLIMITS[limit["type"]], _limits(limit)
        soft, hard = (value & _UNLIMITED for value in resource.getrlimit(number))
        if wanted[1] > hard:
            raised = script.place(struct.pack("<QQ", soft, wanted[1]))
            script.call("prlimit64", 0, number, raised, 0, what=f"config.json: process.rlimits: {limit['type']}")


def limit(script: Script, process: dict) -> None:
    """Resource limits, when all that needs descriptors and processes is done."""
    for limit in process.get("rlimits") or []:
        values = script.place(struct.pack("<QQ", *_limits(limit)))
        what = f"config.json: process.rlimits: {limit['type']}"
        script.call("prlimit64", 0, RLIMITS[limit["type"]], values, 0, what=what)


def _limits(limit: dict) -> tuple[int, int]:
    return limit["soft"] & _UNLIMITED, limit["hard"] & _UNLIMITED


def become(script: Script, process: dict, own_user: bool, filter_early: bool, install: object) -> None:
    """The user, groups and capabilities; ``install`` writes the system call filter."""
    user = process.get("user") or {}
    uid, gid, groups = user.get("uid", 0), user.get("gid", 0), user.get("additionalGids") or []
    script.doing = "setting the user's file mode mask"
    script.call("umask", user.get("umask", 0o022) if user.get("umask") is not None else 0o022)
    wanted = {name: capabilities.mask((process.get("capabilities") or {}).get(name) or [], name)
              for name in capabilities.SETS}  # fmt: skip
    if not process.get("noNewPrivileges") and filter_early:
        install()  # type: ignore[operator]
    script.doing = "dropping capabilities"
    for number in range(capabilities.last() + 1):
        if not wanted["bounding"] >> number & 1:
            script.call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
    script.call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    script.doing = f"becoming the user {uid} and the group {gid}"
    none, array = Label(), script.place(b"".join(struct.pack("<I", group) for group in groups) or bytes(4))
    # Where setgroups is denied, as for a user namespace that an ordinary user mapped, there are none to drop.
    denied = {EPERM: none, EINVAL: none} if own_user and not groups else None
    script.call("setgroups", len(groups), array, on=denied)
    script.bind(none)
    script.call("setresgid", gid, gid, gid)
    script.call("setresuid", uid, uid, uid)
    _directory(script, process["cwd"])
    script.doing = "setting capabilities"
    script.call("prctl", _PR_SET_KEEPCAPS, 0, 0, 0, 0)
    header = script.place(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0))
    sets = [wanted[name] for name in ("effective", "permitted", "inheritable")]
    data = struct.pack("<6I", *[bits & 0xFFFFFFFF for bits in sets], *[bits >> 32 for bits in sets])
    script.call("capset", header, script.place(data))
    script.call("prctl", _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
    # The kernel raises none that isn't permitted and inheritable; 'runc spec' asks for some, and runs without them.
    raised = wanted["ambient"] & wanted["permitted"] & wanted["inheritable"]
    for number in range(64):
        if raised >> number & 1:
            script.doing = f"raising the ambient capability {capabilities.NAMES[number]}"
            script.call("prctl", _PR_CAP_AMBIENT, _AMBIENT_RAISE, number, 0, 0)
    if process.get("noNewPrivileges"):
        script.doing = "process.noNewPrivileges"
        script.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _directory(script: Script, cwd: str) -> None:
    """A working directory that is inside: a descriptor of the host's would lead out (CVE-2024-21626)."""
    script.doing = f"the working directory {cwd}"
    script.call("chdir", cwd)
    buffer = script.place(bytes(4096))
    script.call("getcwd", buffer, 4096)
    script.test(buffer, 0xFF, ord("/"), what=f"the working directory {cwd} isn't inside the container")


def keyring(script: Script, id: str) -> None:
    """A session keyring of the container's, not of who starts the process."""
    skip = Label()
    script.call("keyctl", 1, f"_ses.{id}", on={ANY: skip})  # KEYCTL_JOIN_SESSION_KEYRING
    script.bind(skip)


def own_null(script: Script) -> None:
    """Standard descriptors that are the host's /dev/null become the container's: by ``/proc/self/fd/0`` its root could
    change the mode and owner of the host's."""
    script.doing = "the container's /dev/null"
    status, null = script.place(bytes(144)), script.slot()
    for number in range(3):
        other = Label()
        script.call("fstat", number, status, on={ANY: other})
        script.test(status + _ST_MODE, 0xF000, stat.S_IFCHR, other)
        script.test(status + _ST_RDEV, -1, os.makedev(1, 3), other)
        script.call("openat", -100, "/dev/null", 0x80102, 0, to=null)  # O_RDWR, O_NOCTTY, O_CLOEXEC
        script.call("fstat", null, status)
        for place, mask, value in ((_ST_MODE, 0xF000, stat.S_IFCHR), (_ST_RDEV, -1, os.makedev(1, 3))):
            script.test(status + place, mask, value, what="the container's /dev/null is another file")
        script.call("dup2", null, number)
        script.call("close", null)
        script.bind(other)


def find_program(script: Script, process: dict) -> Slot:
    """The program's path, looked for as its user in the container; the address of its name is kept."""
    name = process["args"][0]
    search = PATH
    for entry in process.get("env") or []:
        if entry.startswith("PATH="):
            search = entry[5:]
    places = [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in search.split(":")]
    found, program = Label(), script.slot()
    for number, place in enumerate(places):
        following = Label()
        missing = f'exec: "{name}": ' + ("no such file or directory, or it may not be run" if "/" in name
                                         else "executable file not found in $PATH")  # fmt: skip
        last = number == len(places) - 1
        on = None if last else {ANY: following}
        script.call("faccessat", -100, place, 1, 0, on=on, what=missing)
        script.set(program.address, script.text(place))
        script.jump(found)
        script.bind(following)
    script.bind(found)
    return program


def close_others(script: Script, preserved: int) -> None:
    """At exec, all descriptors but the standard ones and those preserved. Before a filter could forbid it."""
    script.call("close_range", 3 + preserved, 0xFFFFFFFF, 4, what="closing descriptors")  # CLOSE_RANGE_CLOEXEC


def execute(script: Script, process: dict, program: Slot, environment: list[str], report: bool) -> None:
    """``report``: who started us still listens; else the standard error is told what went wrong."""
    script.doing = f'exec: "{process["args"][0]}"'
    arguments, variables = script.pointers(process["args"]), script.pointers(environment)
    if report:
        script.call("execve", program, arguments, variables)
        return
    reasons = {ENOENT: "no such file, or its interpreter is missing", EACCES: "permission denied"}
    gone, denied, failed = Label(), Label(), Label()
    script.call("execve", program, arguments, variables, on={ENOENT: gone, EACCES: denied})
    script.jump(failed)
    for place, why, status in ((gone, reasons[ENOENT], 127), (denied, reasons[EACCES], 126)):
        script.bind(place)
        text = f"hostel-oci: {script.doing}: {why}\n".encode()
        script.call("write", 2, text, len(text))
        script.call("exit_group", status)
    script.bind(failed)
    script.call("exit_group", 126)


def environment(process: dict, home: str | None) -> list[str]:
    """The configuration's, a later one of a name in place of an earlier; HOME as the user's where it isn't set."""
    found: dict[str, str] = {}
    for entry in process.get("env") or []:
        name, _, value = entry.partition("=")
        found[name] = value
    if not found.get("HOME"):
        found["HOME"] = home or "/"
    return [f"{name}={value}" for name, value in found.items()]


def home(root: str, uid: int) -> str | None:
    """Of a user, in the /etc/passwd beneath a root; never through a link."""
    try:
        folder = os.open(os.path.join(root, "etc"), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        text = read_file(os.open("passwd", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), 1 << 20)
    except OSError:
        return None
    finally:
        os.close(folder)
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == str(uid).encode() and b"\0" not in fields[5]:
            return os.fsdecode(fields[5])
    return None




def read_file(path: int, limit: int) -> bytes:
    """The content of a container's file by its path's descriptor, which is closed; empty where it is no regular file.

    A device would be opened with the host's rights, and for a watchdog or a tape the opening alone does something.
    """
    try:
        if not stat.S_ISREG(os.fstat(path).st_mode):
            return b""
        fd = os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, limit)
        finally:
            os.close(fd)
    finally:
        os.close(path)
