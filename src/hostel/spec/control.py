"""The answering end of a control socket, a VM's worker's or a container's monitor's: JSON-RPC 2.0 on a unix socket,
and streams that grow out of it.

A connection begins as JSON lines, which ``words`` (spec/rpc) reads and writes, with which descriptors may come
(SCM_RIGHTS): who sends a request has opened the files that it is about, since a confined worker can't. A method may
answer later (``Later``) or upgrade its connection to frames (``Upgrade``). Clients are trusted to be the owner (the
socket's mode is 0600, and the peer's uid is checked), not to be correct: a malformed line gets an error, an endless one
closes the connection.

Everything here runs on the loop's thread.
"""

import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable

from hostel.base.errors import HostelError, MachineError
from hostel.base.linux import unix
from hostel.base.loop import READ, WRITE, Loop
from hostel.spec import stream
from hostel.spec.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MACHINE_ERROR,
    MAX_LINE,
    METHOD_NOT_FOUND,
    Refused,
)

TYPE_CHECKING = False  # as typing's: a container's monitor should be small
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Words(Protocol):
        """How requests and replies are read and written; ``Refused`` where one makes no sense."""

        def request(self, line: bytes) -> tuple[str, Any, int | str | None]:
            """The method, its parameters and the id."""

        def params(self, method: str, params: Any) -> Any:
            """The parameters as the method takes them."""

        def encode(self, message: dict[str, Any]) -> bytes: ...

HIGH_WATER = 1 << 20     # bytes waiting to be sent, above which a connection's source should pause
LOW_WATER = 1 << 18
_READ_SIZE = 1 << 18
_MAX_UNSENT = 64 << 20   # a client that reads no replies or events is dropped here
_MAX_CLIENTS = 256
MAX_FDS = 128           # descriptors that came and that no request has taken yet


class Later:
    """A reply that comes when ``done`` or ``failed`` is called; harmless once the client is gone."""

    def __init__(self) -> None:
        self._finish: Callable[[Any, tuple[int, str] | None], None] | None = None

    def done(self, result: "Any") -> None:
        if self._finish:
            self._finish(result, None)

    def failed(self, message: str) -> None:
        if self._finish:
            self._finish(None, (MACHINE_ERROR, message))


class Upgrade:
    """A method's answer that turns the connection into frames; ``start(connection)`` runs after the reply."""

    def __init__(self, start: Callable[["Connection"], None]):
        self.start = start


class Connection:
    """One client. ``on_frame`` and ``on_close`` are set by whoever upgrades it."""

    def __init__(self, server: "Server", sock: socket.socket):
        self._server = server
        self._loop = server.loop
        self._sock = sock
        self._lines = b""
        self._fds: list[int] = []
        self._out: deque[memoryview] = deque()
        self.unsent = 0
        self._reader: stream.FrameReader | None = None
        self._paused = False
        self._closing = False
        self._deaf = False       # the peer reads no more; what it sent is still read, to its end
        self.closed = False
        self.subscribed = False
        self.on_frame: Callable[[int, bytes], None] | None = None
        self.on_close: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        self._watch()

    # -- sending

    def send(self, data: bytes) -> None:
        """Queue ``data``; look at ``unsent`` to see whether to go on."""
        if self.closed or self._closing or self._deaf:
            return
        if not self._out:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._deaf = True
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._out.append(memoryview(data))
        self.unsent += len(data)
        if self.unsent > _MAX_UNSENT:
            self.close()
        else:
            self._watch()

    def send_json(self, message: "dict[str, Any]") -> None:
        self.send(self._server.words.encode({**message, "jsonrpc": "2.0"}) + b"\n")

    def send_error(self, id: int | str | None, code: int, message: str) -> None:
        self.send_json({"id": id, "error": {"code": code, "message": message}})

    def take_fds(self) -> list[int]:
        """The descriptors that came with the requests so far; the caller's now."""
        fds, self._fds = self._fds, []
        return fds

    def finish(self) -> None:
        """Close once everything queued is sent."""
        self._closing = True
        if not self._out:
            self.close()
        else:
            self._watch()

    def pause_reading(self, paused: bool) -> None:
        """Hold the peer back; its bytes stay in the socket."""
        if self._paused != paused:
            self._paused = paused
            self._watch()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._out.clear()
        for fd in self.take_fds():
            os.close(fd)
        self._server.connections.discard(self)
        if self.on_close:
            self.on_close()

    # -- readiness

    def _watch(self) -> None:
        if self.closed:
            return
        events = 0 if self._paused or self._closing else READ
        self._loop.watch(self._sock.fileno(), events | (WRITE if self._out else 0), self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if not self.closed and events & ~WRITE:
            if self._closing or (self._paused and not events & READ):
                self.close()  # hung up
            elif not self._paused:
                self._read()

    def _flush(self) -> None:
        while self._out:
            try:
                sent = self._sock.send(self._out[0])
            except BlockingIOError:
                break
            except OSError:
                self._deaf = True
                self._out.clear()
                self.unsent = 0
                break
            self.unsent -= sent
            if sent == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][sent:]
                break
        if self._closing and not self._out:
            self.close()
            return
        self._watch()
        if self.on_drain and self.unsent <= LOW_WATER:
            self.on_drain()

    def _read(self) -> None:
        try:
            if self._reader:
                data = self._sock.recv(_READ_SIZE)
            else:
                data, fds, _, _ = socket.recv_fds(self._sock, _READ_SIZE, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
                self._fds += fds
                if len(self._fds) > MAX_FDS:
                    data = b""
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif self._reader:
            self._frames(data)
        else:
            self._json(data)

    def _frames(self, data: bytes) -> None:
        assert self._reader is not None
        try:
            for kind, payload in self._reader.feed(data):
                if self.on_frame and not self.closed:
                    self.on_frame(kind, payload)
        except (stream.FrameError, struct.error):
            self.close()

    def _json(self, data: bytes) -> None:
        self._lines += data
        while not self.closed and not self._closing and self._reader is None:
            line, newline, rest = self._lines.partition(b"\n")
            if not newline:
                break
            self._lines = rest
            if line.strip():
                self._server.handle(self, line)
        if self._reader is not None:
            early, self._lines = self._lines, b""
            if early and not self.closed:
                self._frames(early)
        elif len(self._lines) > MAX_LINE:
            self.send_error(None, INVALID_REQUEST, "the line is too long")
            self.finish()

    def become_stream(self) -> None:
        self._reader = stream.FrameReader()
        self.subscribed = False


class Server:
    """Listens on ``listener``; ``methods[name](connection, params)`` answers with a result, Later or Upgrade."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        methods: "dict[str, Callable[[Connection, Any], Any]]",
        words: "Words",
    ):
        self.loop = loop
        self.words = words
        self.connections: set[Connection] = set()
        self._listener = listener
        self._methods = methods
        listener.setblocking(False)
        loop.watch(listener.fileno(), READ, self._accept)

    def event(self, **params: "Any") -> None:
        """Tell every subscriber."""
        message = {"method": "event", "params": params}
        for connection in list(self.connections):
            if connection.subscribed:
                connection.send_json(message)

    def handle(self, connection: Connection, line: bytes) -> None:
        try:
            method, params, id = self.words.request(line)
        except Refused as refused:
            connection.send_error(None, refused.code, str(refused))
            return
        answer, error = self._dispatch(connection, method, params)
        if isinstance(answer, Later):
            answer._finish = lambda result, failure: self._reply(connection, id, result, failure)
        elif isinstance(answer, Upgrade):
            self._reply(connection, id, {"upgraded": method}, None)
            connection.become_stream()
            answer.start(connection)
        else:
            self._reply(connection, id, answer, error)

    def close(self) -> None:
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in list(self.connections):
            connection.close()

    def _dispatch(
        self, connection: Connection, name: str, params: "Any"
    ) -> "tuple[Any, tuple[int, str] | None]":
        method = self._methods.get(name)
        if method is None:
            return None, (METHOD_NOT_FOUND, f"no method '{name}'")
        try:
            return method(connection, self.words.params(name, params)), None
        except Refused as refused:
            return None, (refused.code, f"{name}: {refused}")
        except HostelError as e:
            return None, (MACHINE_ERROR, str(e))
        except Exception as e:
            import traceback  # which a monitor has no use for

            traceback.print_exc(file=sys.stderr)
            return None, (INTERNAL_ERROR, f"{type(e).__name__}: {e}")

    def _reply(
        self, connection: Connection, id: int | str | None, result: "Any", error: tuple[int, str] | None
    ) -> None:
        if id is None or connection.closed:  # a request without an id is a notification
            return
        if error:
            connection.send_error(id, *error)
        else:
            connection.send_json({"id": id, "result": result})

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self.connections) >= _MAX_CLIENTS or _peer_uid(sock) not in (0, os.getuid()):
            sock.close()
            return
        sock.setblocking(False)
        self.connections.add(Connection(self, sock))


def _peer_uid(sock: socket.socket) -> int:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


def listen(folder_fd: int, name: str) -> socket.socket:
    """A listening socket at ``name`` in the folder; by way of /proc, since an address holds 107 bytes only."""
    path = f"/proc/self/fd/{folder_fd}/{name}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        unix.bind(listener, path)
        listener.listen(64)
    except OSError as e:
        listener.close()
        raise MachineError(f"can't make the control socket: {e.strerror}") from e
    return listener
