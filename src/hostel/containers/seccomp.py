"""Seccomp profiles: from ``linux.seccomp`` of a configuration to a filter, by libseccomp (its C library, by ctypes).

A compiled filter is kept in the runtime's folder under the hash of its profile, so that the library is loaded once per
profile. What libseccomp or the kernel doesn't know is refused by name, but for system calls' names: profiles list
those of all kernels. A profile whose default is EPERM answers ENOSYS for calls that are newer than all it names, so
that C libraries fall back to the old ones instead of failing.
"""

import os
import struct

from hostel.base.errors import ContainerError
from hostel.containers import dialogue, fastjson
from hostel.containers.stage import Script
from hostel.containers.state import State

ACTIONS = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": 0x8000_0000, "SCMP_ACT_TRAP": 0x3_0000,
    "SCMP_ACT_ERRNO": 0x5_0000, "SCMP_ACT_NOTIFY": 0x7FC0_0000, "SCMP_ACT_TRACE": 0x7FF0_0000,
    "SCMP_ACT_LOG": 0x7FFC_0000, "SCMP_ACT_ALLOW": 0x7FFF_0000,
}  # fmt: skip
OPERATORS = {
    name: number for number, name in enumerate((
        "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ",
    ), 1)
}  # fmt: skip
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # there is one thread
    "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}  # fmt: skip
ARCHITECTURES = (
    "x86", "x86_64", "x32", "arm", "aarch64", "mips", "mips64", "mips64n32", "mipsel", "mipsel64", "mipsel64n32",
    "parisc", "parisc64", "ppc", "ppc64", "ppc64le", "s390", "s390x", "riscv64",
)  # fmt: skip
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_KEPT = 64          # compiled filters
_VERSION = b"1"     # of what is kept


class Filter:
    """A compiled profile."""

    def __init__(self, code: bytes, flags: int, listener: str | None, metadata: str | None):
        self.code, self.flags, self.listener, self.metadata = code, flags, listener, metadata

    def write(self, script: Script, fd: int) -> None:
        """The operations that install it, and hand its listener to the runtime."""
        script.doing = "installing the seccomp filter"
        program = script.place(struct.pack("<H6xQ", len(self.code) // 8, script.place(self.code)))
        if not self.listener:
            script.call("seccomp", _SET_MODE_FILTER, self.flags, program)
            return
        listener = script.slot()
        script.call("seccomp", _SET_MODE_FILTER, self.flags | _NEW_LISTENER, program, to=listener)
        dialogue.tell(script, fd, dialogue.LISTENER, listener)
        dialogue.wait(script, fd)
        script.call("close", listener)

    def hand_over(self, pid: int, number: int, state: State) -> None:
        """In the runtime: the process's listener to who listens at ``listenerPath``."""
        import socket

        from hostel.base.linux.syscall import syscall

        assert self.listener
        process = os.pidfd_open(pid)
        try:
            fd = syscall(438, process, number, 0)  # pidfd_getfd
        except OSError as error:
            raise ContainerError(f"linux.seccomp: the listener can't be had: {error.strerror}") from None
        finally:
            os.close(process)
        message = {
            "ociVersion": state.public("creating")["ociVersion"], "fds": ["seccompFd"], "pid": pid,
            "metadata": self.metadata or "", "state": state.public("creating"),
        }  # fmt: skip
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(self.listener)
                socket.send_fds(connection, [fastjson.dumps(message).encode()], [fd])
        except OSError as error:
            raise ContainerError(f"linux.seccomp.listenerPath: {self.listener}: {error.strerror}") from None
        finally:
            os.close(fd)


def check(profile: object) -> dict:
    """Its form, and all names but system calls'."""
    where = "config.json: linux.seccomp"
    if not isinstance(profile, dict):
        raise ContainerError(f"{where} is to be an object")
    if profile.get("defaultAction") not in ACTIONS:
        raise ContainerError(f"{where}.defaultAction: {profile.get('defaultAction')} is no action")
    if profile["defaultAction"] == "SCMP_ACT_NOTIFY":
        raise ContainerError(f"{where}.defaultAction: SCMP_ACT_NOTIFY can't be: nobody could install the filter")
    for flag in profile.get("flags") or []:
        if flag not in FLAGS:
            raise ContainerError(f"{where}.flags: {flag} isn't supported")
    for name in profile.get("architectures") or []:
        if not isinstance(name, str) or name.removeprefix("SCMP_ARCH_").lower() not in ARCHITECTURES:
            raise ContainerError(f"{where}.architectures: {name} is none")
    notified = False
    for row in profile.get("syscalls") or []:
        if not isinstance(row, dict) or not isinstance(row.get("names"), list) or not row["names"]:
            raise ContainerError(f"{where}.syscalls: names are missing")
        if row.get("action") not in ACTIONS:
            raise ContainerError(f"{where}.syscalls: {row.get('action')} is no action")
        if row["action"] == "SCMP_ACT_NOTIFY":
            notified = True
            for name in ("read", "write", "close"):
                if name in row["names"]:
                    raise ContainerError(f"{where}.syscalls: SCMP_ACT_NOTIFY can't be for {name}: the runtime needs it")
        for argument in row.get("args") or []:
            if argument.get("op") not in OPERATORS or not 0 <= argument.get("index", -1) <= 5:
                raise ContainerError(f"{where}.syscalls: {row['names'][0]}: an argument's op or index is none")
    if notified and not profile.get("listenerPath"):
        raise ContainerError(f"{where}: SCMP_ACT_NOTIFY needs listenerPath")
    return profile


def compile(profile: object, kept: str) -> Filter:
    """``kept`` is the folder of compiled filters."""
    checked = check(profile)
    rules = {name: checked.get(name) for name in ("defaultAction", "defaultErrnoRet", "architectures", "syscalls")}
    path = f"{kept}/{_digest(fastjson.dumps(rules).encode() + _VERSION)}"
    try:
        with open(path, "rb") as file:
            code = file.read()
    except OSError:
        code = _compile(checked)
        _keep(kept, path, code)
    flags = 0
    for flag in checked.get("flags") or []:
        flags |= FLAGS[flag]
    notified = any(row["action"] == "SCMP_ACT_NOTIFY" for row in checked.get("syscalls") or [])
    listener = checked.get("listenerPath") if notified else None
    return Filter(code, flags, listener, checked.get("listenerMetadata"))


def _digest(raw: bytes) -> str:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # hashlib loads OpenSSL: 4 ms
    except ImportError:
        from hashlib import sha256
    return sha256(raw).hexdigest()


def _keep(folder: str, path: str, code: bytes) -> None:
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        names = os.listdir(folder)
        if len(names) >= _KEPT:
            for name in names:
                os.unlink(f"{folder}/{name}")
        fd = os.open(f"{path}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(code)
        os.rename(f"{path}.{os.getpid()}", path)
    except OSError:
        pass  # it is compiled again, then


def _action(name: str, number: object) -> int:
    value = ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        number = 1 if number is None else number  # EPERM
        if not isinstance(number, int) or not 0 <= number <= 4095:
            raise ContainerError(f"config.json: linux.seccomp: errnoRet {number} is no error's number")
        return value | number
    return value


def _compile(profile: dict) -> bytes:
    import ctypes

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise ContainerError("config.json: linux.seccomp needs libseccomp.so.2 (Debian: libseccomp2)") from None
    library.seccomp_init.restype = ctypes.c_void_p

    class Compare(ctypes.Structure):
        _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

    def done(result: int, what: str) -> None:
        if result < 0 and result != -17:  # EEXIST: it is there already
            raise ContainerError(f"config.json: linux.seccomp: {what}: {os.strerror(-result)}")

    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise ContainerError(f"config.json: linux.seccomp: libseccomp doesn't know {profile['defaultAction']}")
    highest, first = 0, b""
    try:
        for name in profile.get("architectures") or []:
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token:
                raise ContainerError(f"config.json: linux.seccomp.architectures: libseccomp doesn't know {name}")
            done(library.seccomp_arch_add(context, ctypes.c_uint32(token)), name)
        for row in profile.get("syscalls") or []:
            action = _action(row["action"], row.get("errnoRet"))
            arguments = [
                Compare(one["index"], OPERATORS[one["op"]], one.get("value", 0), one.get("valueTwo", 0))
                for one in row.get("args") or []
            ]
            # Several conditions on one argument are alternatives (as runc reads them), else all have to hold.
            single = len({one.arg for one in arguments}) == len(arguments)
            groups = [arguments] if single else [[one] for one in arguments]
            for name in row["names"]:
                number = library.seccomp_syscall_resolve_name(str(name).encode())
                if number == -1:
                    continue
                highest = max(highest, number)
                if action == default:
                    continue
                if name == "socketcall" and row["action"] == "SCMP_ACT_ERRNO" and len(arguments) == 1 and (
                    arguments[0].arg, arguments[0].op) == (0, OPERATORS["SCMP_CMP_EQ"]):  # fmt: skip
                    first += _old_sockets(arguments[0].a, action)
                    continue
                for group in groups:
                    array = (Compare * len(group))(*group)
                    rule = (context, ctypes.c_uint32(action), number, len(group), array)
                    done(library.seccomp_rule_add_array(*rule), name)
        fd = os.memfd_create("filter")
        try:
            done(library.seccomp_export_bpf(context, fd), "export")
            code = os.pread(fd, 1 << 20, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(context)
    if profile["defaultAction"] == "SCMP_ACT_ERRNO" and profile.get("defaultErrnoRet") is None and highest:
        code = _newer(highest) + code
    code = first + code
    if len(code) // 8 > 4096:
        raise ContainerError("config.json: linux.seccomp: the filter is longer than the kernel's 4096 instructions")
    return code


def _old_sockets(call: int, action: int) -> bytes:
    """An action for one of i386's socket calls, before the filter: libseccomp allows what has a rule by its own name,
    such as socket, by this one too, and without the rule's conditions."""
    steps = (
        (0x20, 0, 0, 4),                # ld arch
        (0x15, 0, 5, 0x4000_0003),      # jeq i386, else on
        (0x20, 0, 0, 0),                # ld nr
        (0x15, 0, 3, 102),              # jeq socketcall
        (0x20, 0, 0, 16),               # ld the lower half of the first argument
        (0x15, 0, 1, call),
        (0x06, 0, 0, action),           # ret
    )  # fmt: skip
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _newer(highest: int) -> bytes:
    """ENOSYS for x86-64's calls above a number, x32's excepted; then on to the filter."""
    steps = (
        (0x20, 0, 0, 4),                # ld arch
        (0x15, 0, 4, 0xC000_003E),      # jeq x86-64, else on
        (0x20, 0, 0, 0),                # ld nr
        (0x35, 2, 0, 0x4000_0000),      # jge x32: on
        (0x25, 0, 1, highest),          # jgt
        (0x06, 0, 0, 0x5_0000 | 38),    # ret ERRNO(ENOSYS)
    )  # fmt: skip
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def default_profile(capabilities: list[str]) -> dict:
    """What a container gets that asks for none."""
    from hostel.containers import seccomp_default

    return seccomp_default.profile(capabilities)
