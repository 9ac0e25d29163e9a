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
from hostel.containers.runtime import Runtime
from hostel.containers.store import Folder, write_spec

Answer = tuple[dict[str, Any], list[int]]


def create(path: str, *, sock: socket.socket, stdio: list[int]) -> Answer:
    """Make the container and its network; start it when the monitor says so."""
    folder = Folder(Path(path))
    spec = folder.spec()
    with contextlib.ExitStack() as undo:
        undo.callback(engine.release, folder)
        engine.release(folder)  # what a crash left
        if spec.init:
            engine.write_init(folder.path / "init")
        engine.prepare(folder)
        runtime, name = engine.runtime(folder.path), engine.identity(folder.path)
        console = undo.enter_context(_Console()) if spec.tty else None
        message, cards, fds = _apart(folder, runtime, stdio, console)
        if console:
            fds.insert(0, console.take())
        engine.write_names(folder.path, spec, cards)
        socket.send_fds(sock, [json.dumps(message).encode()], fds)
        for fd in (*fds, *stdio):
            os.close(fd)
        if sock.recv(64) != b"start":
            raise ContainerError("it ended before it started")
        runtime.start(name)
        undo.pop_all()
    return {"started": True}, []


def _apart(
    folder: Folder, runtime: Runtime, stdio: list[int], console: "_Console | None"
) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """The runtime's create by a child: when that has ended, the container's first process is the monitor's child, which
    it has to be before it starts (runtime.ENDS_WITH_PARENT). What the monitor is to know, the cards, and the network's
    descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    child = os.fork()
    if not child:
        try:
            told, fds = _create(folder, runtime, stdio, console)
            socket.send_fds(theirs, [json.dumps(told).encode()], fds)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        data, fds, _, _ = socket.recv_fds(ours, 1 << 17, 250, socket.MSG_CMSG_CLOEXEC)
    os.waitpid(child, 0)
    told = json.loads(data or b'{"error": "the runtime ended without a word"}')
    if "error" in told:
        failure = ContainerError(told["error"])
        failure.status = told.get("status", failure.status)
        raise failure
    return told["message"], told["cards"], fds


def _create(
    folder: Folder, runtime: Runtime, stdio: list[int], console: "_Console | None"
) -> tuple[dict[str, Any], list[int]]:
    spec = folder.spec()
    made: list[wiring.Wired] = []
    try:
        state = _named(
            runtime.create, engine.identity(folder.path), str(folder.path), stdio=tuple(stdio) or None,
            console_socket=console.theirs.fileno() if console else None,
            wire=None if spec.host_network else lambda pid: made.append(wiring.connect(spec, pid)),
        )
    except HostelError as error:
        return {"error": " ".join(str(error).split())[:4096], "status": error.status}, []
    except BaseException as error:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
        return {"error": f"internal error: {type(error).__name__}: {error} (see monitor.log)"}, []
    wired = made[0] if made else wiring.Wired([], [], [])
    message = {
        "pid": state.pid, "init_start": engine.start_time(state.pid), "routes": [route for route, _ in wired.routes],
        "leases": len(wired.leases), "addresses": [card["address"] for card in wired.cards],
    }
    fds = [*wired.leases, *(fd for _, route in wired.routes for fd in route)]
    return {"message": message, "cards": wired.cards}, fds


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
        console = undo.enter_context(_Console()) if params["tty"] else None
        pid = _named(
            runtime.exec, name, process, console_socket=console.theirs.fileno() if console else None,
            stdio=tuple(stdio) or None,
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
    """Where the runtime sends a terminal's master to, as by --console-socket."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def take(self) -> int:
        self._ours.settimeout(10.0)
        _, fds, _, _ = socket.recv_fds(self._ours, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            raise ContainerError("the runtime made no terminal")
        return fds[0]

    def __enter__(self) -> "_Console":
        return self

    def __exit__(self, *error: object) -> None:
        self._ours.close()
        self.theirs.close()
