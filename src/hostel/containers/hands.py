"""What a container's monitor has done by children (containers/monitor): each function is one's work, with imports that
the monitor is too small for. They answer with a dict and descriptors that go with it; ``sock`` leads to the monitor.
"""

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from hostel.base.errors import ContainerError, HostelError
from hostel.containers import engine, wiring
from hostel.containers.store import Folder, write_spec

Answer = tuple[dict[str, Any], list[int]]


def create(path: str, *, sock: socket.socket, stdio: list[int]) -> Answer:
    """Make the container and its network; start it when the monitor says so."""
    folder = Folder(Path(path))
    spec = folder.spec()
    fds: list[int] = []
    with contextlib.ExitStack() as undo:
        undo.callback(engine.release, folder)
        engine.release(folder)  # what a crash left
        if spec.init:
            engine.write_init(folder.path / "init")
        engine.prepare(folder)
        runtime, name = engine.runtime(folder.path), engine.identity(folder.path)
        console = undo.enter_context(_Console(path)) if spec.tty else None
        pid = _apart(
            runtime.create, name, str(folder.path), console_socket=console.path if console else None,
            stdio=tuple(stdio) or None,
        )
        if console:
            fds.append(console.take())
        wired = wiring.connect(spec, pid)
        fds += [*wired.leases, *(fd for _, route in wired.routes for fd in route)]
        engine.write_names(folder.path, spec, wired.cards)
        message = {
            "pid": pid, "init_start": engine.start_time(pid), "routes": [route for route, _ in wired.routes],
            "leases": len(wired.leases), "addresses": [card["address"] for card in wired.cards],
        }
        socket.send_fds(sock, [json.dumps(message).encode()], fds)
        for fd in (*fds, *stdio):
            os.close(fd)
        if sock.recv(64) != b"start":
            raise ContainerError("it ended before it started")
        runtime.start(name)
        undo.pop_all()
        if console:
            console.close()
    return {"started": True}, []


def _apart(make: Any, *args: Any, **options: Any) -> int:
    """The runtime's create by a child: when that has ended, the container's first process is the monitor's child, which
    it has to be before it starts (runtime.ENDS_WITH_PARENT)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            try:
                told: dict[str, Any] = {"pid": _named(make, *args, **options).pid}
            except HostelError as error:
                told = {"error": str(error), "status": error.status}
            except BaseException as error:
                import traceback

                traceback.print_exception(error, file=sys.stderr)
                sys.stderr.flush()
                told = {"error": f"internal error: {type(error).__name__}: {error} (see monitor.log)"}
            os.write(writer, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    told = json.loads(data or b'{"error": "the runtime ended without a word"}')
    if "error" in told:
        failure = ContainerError(told["error"])
        failure.status = told.get("status", failure.status)
        raise failure
    return int(told["pid"])


def _named(make: Any, *args: Any, **options: Any) -> Any:
    """The runtime's create or exec; what it says of a program that isn't there becomes a shell's exit status."""
    try:
        return make(*args, **options)
    except ContainerError as error:
        text = str(error)
        if text.startswith("exec: "):
            error.status = 127 if "not found" in text or "No such file" in text else 126
        raise


def release(path: str, *, sock: socket.socket) -> Answer:
    return engine.release(Folder(Path(path))), []


def execute(path: str, *, sock: socket.socket, stdio: list[int], params: dict[str, Any]) -> Answer:
    """Start another process in the container."""
    folder = Folder(Path(path))
    process = engine.exec_process(folder, params)
    runtime, name = engine.runtime(folder.path), engine.identity(folder.path)
    with contextlib.ExitStack() as undo:
        console = undo.enter_context(_Console(path)) if params["tty"] else None
        pid = _named(
            runtime.exec, name, process, console_socket=console.path if console else None, stdio=tuple(stdio) or None
        )
        return {"pid": pid}, [console.take()] if console else []


def pause(path: str, *, sock: socket.socket) -> Answer:
    engine.runtime(Path(path)).pause(engine.identity(Path(path)))
    return {}, []


def resume(path: str, *, sock: socket.socket) -> Answer:
    engine.runtime(Path(path)).resume(engine.identity(Path(path)))
    return {}, []


def update(path: str, *, sock: socket.socket, changes: dict[str, Any]) -> Answer:
    """Change limits (fields of ContainerSpec) of the running container, and what it is started with next time."""
    import msgspec

    folder = Folder(Path(path))
    spec = folder.spec()
    for key, value in changes.items():
        if key not in ("memory", "memory_swap", "memory_reservation", "cpus", "cpu_shares", "cpuset", "pids_limit"):
            raise ContainerError(f"'{key}' of a running container can't be changed")
        setattr(spec, key, value)
    try:
        spec = msgspec.convert(msgspec.to_builtins(spec), type(spec))
    except msgspec.ValidationError as error:
        raise ContainerError(str(error)) from error
    wanted = engine.resources(spec)
    wanted.pop("devices", None)
    engine.runtime(folder.path).update(engine.identity(folder.path), wanted)
    write_spec(folder.path, spec)
    return {"spec": changes}, []


class _Console:
    """Where the runtime sends a terminal's master to (runtime-spec's --console-socket)."""

    def __init__(self, folder: str):
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        name = f"console-{os.getpid()}.sock"
        self._file = f"{folder}/{name}"
        self.path = f"/proc/self/fd/{self._folder}/{name}"  # an address holds 107 bytes only
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(self.path)
        self._listener.listen(1)

    def take(self) -> int:
        self._listener.settimeout(10.0)
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(10.0)
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            raise ContainerError("the runtime made no terminal")
        return fds[0]

    def close(self) -> None:
        if self._folder >= 0:
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self._file)
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> "_Console":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


