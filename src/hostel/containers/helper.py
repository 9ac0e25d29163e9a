"""The warm helper: a process with the runtime imported, which forks for each command of a launcher (``launcher``).

``hostel-oci helper`` is it, in the foreground; it serves the user that it was started by, at the socket of ``place``.
Who asks is looked at by the kernel's word: the same user with the same capabilities, in the same namespaces, cgroups
and root as the helper; else it does the command itself. What it may inherit to a container isn't the helper's: the
launcher starts the container's processes. The helper ends after a command if a file that it has imported has changed.
"""

import os
import socket
import struct
import sys

from hostel.base.errors import ContainerError, UsageError
from hostel.base.linux import prctl

_REQUEST_MAX = 65536
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_WAITING = 2  # forks that wait for launchers
_FIRST = 200  # a container's processes have descriptors from here on, above those that a launcher receives


def place() -> str:
    """The socket's path, in a folder that only its user can enter."""
    if os.geteuid() == 0:
        return "/run/hostel-oci/.helper/socket"
    base = os.environ.get("XDG_RUNTIME_DIR")
    if not base:  # a launcher goes on believing in its path when in /tmp somebody else may have it
        raise UsageError("without XDG_RUNTIME_DIR the helper needs a --socket, in a folder that is only yours")
    return f"{base}/hostel-oci/.helper/socket"


def default_place() -> str:
    """The same, or nothing where a helper needs a --socket."""
    try:
        return place()
    except UsageError:
        return ""


def write_launcher(path: str, socket_path: str) -> None:
    """The static program, for this interpreter and these sources."""
    from hostel.containers import launcher
    from hostel.images import tiny

    places = [entry for entry in sys.path if entry]
    code = (
        f"import os, sys\nsys.path += {places!r}\nfrom hostel.containers.oci import main\n"
        "status = main()\nsys.stdout.flush()\nos._exit(status)\n"
    )
    values = {"@PYTHON@": sys.executable, "@CODE@": code, "@SOCKET@": socket_path}
    if len(os.fsencode(socket_path)) > 107:
        raise UsageError(f"{socket_path} is too long for a socket")
    program = tiny.Program(launcher, *launcher.PARTS)
    for mark, value in values.items():
        # A literal's place in the data is taken by its value, which is written there instead of it.
        program.strings[mark.encode() + b"\0"] = tiny.DATA_BASE + len(program.data)
        program.data += os.fsencode(value) + b"\0"
    image = program.link()
    new = f"{path}.{os.getpid()}"
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
        with os.fdopen(fd, "wb") as file:
            file.write(image)
        os.chmod(new, 0o755)
        os.rename(new, path)
    except OSError as error:
        raise ContainerError(f"{path}: {error.strerror}") from None


def serve(path: str) -> None:
    """Until it is ended, or its code has changed."""
    import gc
    import signal

    from hostel.containers import (  # noqa: F401 - what a command would import
        capabilities,
        cgroups,
        console,
        copyup,
        execution,
        fastjson,
        hooks,
        oci,
        runtime,
        seccomp,
        state,
    )  # fmt: skip
    from hostel.containers.cgroups import group  # noqa: F401

    folder = os.path.dirname(path)
    os.makedirs(folder, 0o700, exist_ok=True)
    status = os.stat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ContainerError(f"{folder} isn't only ours: remove it")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with probe:
        if probe.connect_ex(path) == 0:
            raise ContainerError(f"a helper is running already at {path}")
    if os.path.exists(path):
        os.unlink(path)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(128)
    code = _code()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    capabilities.last()
    gc.collect()
    gc.freeze()
    gc.disable()
    reader, writer = os.pipe()
    try:
        for _ in range(_WAITING):
            _fork(listener, writer, code)
        while os.read(reader, 1) == b"+":  # one of them has got something to do
            _fork(listener, writer, code)
    except KeyboardInterrupt:
        pass
    os.unlink(path)


def _fork(listener: socket.socket, writer: int, code: tuple) -> None:
    """One that waits for a launcher: nobody has to wait for the fork."""
    import signal

    parent = os.getpid()
    if os.fork():
        return
    try:
        prctl.end_with_parent(parent)
        connection, _ = listener.accept()
        listener.close()
        prctl.outlive_parent()
        os.write(writer, b"+")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _answer(connection)
        connection.close()
        if _code() != code:  # looked at when nobody waits any more: the next command is done without us
            os.write(writer, b"-")
    finally:
        os._exit(0)


def _code() -> tuple:
    """The times of the files that the code came from."""
    found = []
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and "/hostel/" in path:
            try:
                found.append((path, os.stat(path).st_mtime_ns))
            except OSError:
                found.append((path, 0))
    return tuple(found)


def _alike(connection: socket.socket) -> bool:
    """Whether who asks sees and may what we do."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if (uid, gid) != (os.geteuid(), os.getegid()):
        return False
    try:
        for name in _NAMESPACES:
            if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
                return False
        if os.readlink(f"/proc/{pid}/root") != "/" or os.stat(f"/proc/{pid}/root").st_ino != os.stat("/").st_ino:
            return False
        return _rights(pid) == _rights("self")
    except OSError:
        return False


def _rights(pid: "int | str") -> "list[str]":
    """Its capabilities, and its cgroups, beneath which a container's may be."""
    with open(f"/proc/{pid}/status") as file:
        lines = [line for line in file if line.startswith(("Cap", "Seccomp:", "NoNewPrivs", "Groups"))]
    with open(f"/proc/{pid}/cgroup") as file:
        return [*lines, file.read()]


def _answer(connection: socket.socket) -> None:
    from hostel.containers import oci, stage

    request, fds, _, _ = socket.recv_fds(connection, _REQUEST_MAX, 3)  # what isn't read would make the answer be lost
    if not _alike(connection):
        connection.send(b"n")
        return
    fields = request.split(b"\0")
    if len(fds) != 3 or not fields[0].isdigit():
        return
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        if fd > 2:
            os.close(fd)
    count = int(fields[0])
    os.chdir(fields[1])
    words = [os.fsdecode(word) for word in fields[2: 2 + count]]
    os.environ.clear()
    for entry in fields[2 + count:]:
        name, equals, value = entry.partition(b"=")
        if name and equals:
            os.environb[name] = value
    stage.elsewhere = _Elsewhere(connection)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - it is the process's
    status = oci.main(words)
    sys.stdout.flush()
    connection.send(b"x" + bytes([status & 0xFF]))


class _Elsewhere:
    """Has the launcher start a container's first process."""

    first = _FIRST

    def __init__(self, connection: socket.socket):
        self._connection = connection

    def __call__(self, program: int, keep: "list[int]") -> int:
        numbers = [0, *keep]
        if len(numbers) > 250:
            raise ContainerError("too many descriptors for the helper: end it, and try again")
        packet = b"s" + bytes([len(numbers)]) + bytes(2) + struct.pack(f"<{len(numbers)}I", *numbers)
        socket.send_fds(self._connection, [packet], [program, *keep])
        pid = struct.unpack("<q", self._connection.recv(8))[0]
        if pid <= 0:
            raise ContainerError(f"the launcher can't start a process: {os.strerror(-pid)}")
        return pid
