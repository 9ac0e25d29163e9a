"""The guest's serial console, shared by those who look at it, and written down.

Everything the guest writes goes to console.log (two files, so that it stays bounded) and to every client. A
client that can't keep up holds the guest back, as a terminal on a serial line does, but not for longer than
``PATIENCE``: then its bytes are skipped, and it is told so, since a forgotten terminal must not stop a VM.

Runs on the loop's thread. ``port`` is the wire to the guest (``vm/machine.SerialPort``).
"""

import functools
import re
import time
from collections.abc import Callable

from hostel.base.log import Log
from hostel.base.loop import Loop
from hostel.spec import stream
from hostel.spec.control import HIGH_WATER, LOW_WATER, Connection

REPLAY = 64 << 10         # bytes of the past that a client can ask for
PATIENCE = 5.0            # seconds that a stuck client may hold the guest back
_MAX_TYPED = 64 << 10     # bytes typed ahead, above which clients are not read


class _Client:
    def __init__(self, connection: Connection):
        self.connection = connection
        self.slow_since = 0.0
        self.skipped = 0
        self.skipping = False


class Console:
    """``output`` what the guest writes; ``attach`` clients; ``pump`` when the guest can take input again."""

    def __init__(self, loop: Loop, log: Log, write: Callable[[bytes], int], resized: Callable[[int, int], None]):
        self.bytes_out = 0
        self.bytes_in = 0
        self.on_ready: Callable[[], None] | None = None  # output may go on
        self._loop = loop
        self._log = log
        self._write = write
        self._resized = resized
        self._past = bytearray()
        self._typed = bytearray()
        self._clients: list[_Client] = []

    def output(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self._log.write(data)
        self._past += data
        if len(self._past) > 2 * REPLAY:
            del self._past[:-REPLAY]
        framed = [
            stream.frame(stream.STDOUT, data[at : at + stream.MAX_PAYLOAD])
            for at in range(0, len(data), stream.MAX_PAYLOAD)
        ]
        for client in list(self._clients):
            if client.skipping and client.connection.unsent > LOW_WATER:
                client.skipped += len(data)
                continue
            if client.skipping:
                client.skipping = False
                note = f"\r\n[hostel: {client.skipped} bytes skipped]\r\n".encode()
                client.connection.send(stream.frame(stream.STDOUT, note))
                client.skipped = 0
            for frame in framed:
                client.connection.send(frame)

    def congested(self) -> bool:
        """Whether the guest's output should wait; ``on_ready`` follows."""
        now = time.monotonic()
        waiting = False
        for client in self._clients:
            if client.skipping or client.connection.unsent < HIGH_WATER:
                continue
            if not client.slow_since:
                client.slow_since = now
                self._loop.call_later(PATIENCE, functools.partial(self._lose_patience, client))
            waiting = True
        return waiting

    def attach(self, connection: Connection, replay: bool) -> None:
        """Make an upgraded connection a client. Without ``replay`` it is shown the last line, where there is
        mostly a prompt."""
        client = _Client(connection)
        self._clients.append(client)
        connection.on_frame = lambda kind, payload: self._frame(client, kind, payload)
        connection.on_close = lambda: self._detach(client)
        connection.on_drain = lambda: self._drained(client)
        past = self.past()
        if not replay:
            past = past[past.rfind(b"\n") + 1 :]
        if past:
            for at in range(0, len(past), stream.MAX_PAYLOAD):
                connection.send(stream.frame(stream.STDOUT, past[at : at + stream.MAX_PAYLOAD]))
        connection.pause_reading(len(self._typed) >= _MAX_TYPED)

    def pump(self) -> None:
        """Give the guest what was typed, as far as it takes it."""
        if self._typed:
            taken = self._write(bytes(self._typed))
            self.bytes_in += taken
            del self._typed[:taken]
            for client in self._clients:
                client.connection.pause_reading(len(self._typed) >= _MAX_TYPED)

    def past(self) -> bytes:
        """What a client could be shown."""
        return bytes(self._past[-REPLAY:])

    def load(self, past: bytes) -> None:
        """Show that to clients as what was before."""
        self._past = bytearray(past)

    def last_word(self) -> str:
        """Of a guest that failed: its panic, else the last line on its console."""
        lines = [line.strip() for line in self._past.decode(errors="replace").splitlines() if line.strip()]
        panics = [line for line in lines if "Kernel panic" in line]
        word = (panics or lines or [""])[-1]
        return re.sub(r"^\[ *[\d.]+\] *|[^ -~]+", "", word)[:120]

    def finish(self) -> None:
        """The VM has ended: let clients read the rest."""
        for client in list(self._clients):
            client.connection.finish()

    def statistics(self) -> dict:
        return {
            "bytes_out": self.bytes_out, "bytes_in": self.bytes_in, "clients": len(self._clients),
            "log_bytes_lost": self._log.lost,
        }

    def _frame(self, client: _Client, kind: int, payload: bytes) -> None:
        if kind == stream.STDIN:
            self._typed += payload
            self.pump()
        elif kind == stream.RESIZE:
            rows, cols = stream.read_resize(payload)
            if rows and cols:
                self._resized(rows, cols)

    def _detach(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
        self._ready()

    def _drained(self, client: _Client) -> None:
        client.slow_since = 0.0
        self._ready()

    def _lose_patience(self, client: _Client) -> None:
        if client.slow_since and client.connection.unsent >= HIGH_WATER:
            client.skipping = True
        client.slow_since = 0.0
        self._ready()

    def _ready(self) -> None:
        if self.on_ready:
            self.on_ready()
