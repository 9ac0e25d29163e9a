"""A client's connection to a VM's control socket (spec/rpc)."""

import json
import os
import select
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from hostel.base.errors import MachineError

TYPE_CHECKING = False  # as typing's; it and msgspec would take longer to import than a command in a guest takes
if TYPE_CHECKING:
    from typing import Any


class Gone(MachineError):
    """The worker ended while it was asked."""


class Connection:
    """Blocking calls, one at a time; events that arrive meanwhile are kept for ``events``."""

    def __init__(self, folder: Path):
        self.name = folder.name
        try:
            self.sock = connect(str(folder))
        except FileNotFoundError:
            raise MachineError(f"'{self.name}' is not running") from None
        except ConnectionRefusedError:
            raise MachineError(f"'{self.name}' is not running; 'hostel ps' tells how it ended") from None
        except OSError as e:
            raise MachineError(f"can't reach '{self.name}': {e.strerror}") from e
        self._lines = b""
        self._events: list[dict] = []
        self._next_id = 1

    def call(self, method: str, *, timeout: float | None = None, fds: Sequence[int] = (), **params: "Any") -> "Any":
        """The result; ``MachineError`` with the worker's words where it refuses, ``Gone`` where it ends,
        ``TimeoutError`` after ``timeout`` seconds. ``fds`` go with the request."""
        id = self._next_id
        request = {"method": method, "params": params, "id": id, "jsonrpc": "2.0"}
        self._next_id += 1
        try:
            line = json.dumps(request, ensure_ascii=False, separators=(",", ":"), default=_to_builtins).encode() + b"\n"
        except UnicodeEncodeError:
            raise MachineError(f"{method}: arguments must be UTF-8") from None
        self.sock.settimeout(timeout)
        try:
            sent = socket.send_fds(self.sock, [line], fds) if fds else 0
            self.sock.sendall(line[sent:])
            while True:
                message = self._message()
                if message.get("method") == "event":
                    self._events.append(message["params"])
                elif message.get("id") == id:
                    break
        except TimeoutError:
            raise
        except OSError as e:
            raise Gone(f"'{self.name}' ended: {e.strerror}") from e
        if "error" in message:
            raise MachineError(message["error"]["message"])
        return message.get("result")

    def events(self, timeout: float | None = None) -> Iterator[dict]:
        """What the worker tells after ``subscribe``, until it ends. ``TimeoutError`` between two events."""
        self.sock.settimeout(timeout)
        while True:
            while self._events:
                yield self._events.pop(0)
            try:
                message = self._message()
            except (Gone, ConnectionError):
                return
            if message.get("method") == "event":
                yield message["params"]

    def arrived(self) -> list[dict]:
        """The events that are here; waits only for the rest of one. ``Gone`` once the worker has ended."""
        self.sock.settimeout(None)
        while b"\n" in self._lines or select.select([self.sock], [], [], 0)[0]:
            try:
                message = self._message()
            except (Gone, ConnectionError) as e:
                if self._events:
                    break  # its last words first
                raise Gone(f"'{self.name}' has ended; 'hostel ps' tells how") from e
            if message.get("method") == "event":
                self._events.append(message["params"])
        events, self._events = self._events, []
        return events

    def upgrade(self, method: str, **params: "Any") -> tuple[socket.socket, bytes]:
        """Turn the connection into frames (spec/stream); the socket and what was read beyond the reply."""
        self.call(method, **params)
        self.sock.settimeout(None)
        return self.sock, self._lines

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _message(self) -> dict:
        while b"\n" not in self._lines:
            data = self.sock.recv(65536)
            if not data:
                raise Gone(f"'{self.name}' has ended; 'hostel ps' tells how")
            self._lines += data
        line, self._lines = self._lines.split(b"\n", 1)
        message = json.loads(line)
        return message if isinstance(message, dict) else {}


def connect(folder: str) -> socket.socket:
    """A blocking connection to the worker of the VM in ``folder``; ``OSError`` where none listens."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}/control.sock")  # an address holds 107 bytes only
    except OSError:
        sock.close()
        raise
    finally:
        os.close(fd)
    return sock


def _to_builtins(value: object) -> object:
    """What JSON can't say by itself."""
    import msgspec

    return msgspec.to_builtins(value)
