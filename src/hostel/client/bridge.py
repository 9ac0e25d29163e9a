"""Carries the bytes between this process's standard streams and a command or console in a guest.

One poll loop; the socket never blocks, so that neither direction can hold the other back. What is slow
holds its source back: a slow reader of our stdout stops us reading the socket, which stops the worker.
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator

from hostel.base.errors import MachineError
from hostel.base.linux import tty
from hostel.spec import stream

_CHUNK = 1 << 16
_HIGH_WATER = 1 << 20
LEAVE = 0x1D              # Ctrl-]


class Left(Exception):
    """The user typed Ctrl-]."""


class Bridge:
    """``run()`` until the command has ended; its exit status, or None for a stream that just ended.

    ``forward`` are signals that go to the command instead of us. With ``leave`` Ctrl-] raises ``Left``.
    """

    def __init__(
        self,
        sock: socket.socket,
        early: bytes,
        *,
        stdin: int | None = 0,
        on_stdout: Callable[[bytes], None],
        on_stderr: Callable[[bytes], None],
        window: int | None = None,
        leave: bool = False,
        forward: tuple[int, ...] = (),
        input: bytes | None = None,
    ):
        self._sock = sock
        self._early = early
        self._stdin = stdin
        self._sinks = {stream.STDOUT: on_stdout, stream.STDERR: on_stderr}
        self._window = window
        self._leave = leave
        self._forward = forward
        self._reader = stream.FrameReader()
        self._out = bytearray()
        self._reading = False
        self._signals = 0
        self._status: int | None = None
        self._done = False
        self._deaf = False
        if input is not None:
            self._send_input(memoryview(input))

    def run(self, timeout: float | None = None) -> int | None:
        """``TimeoutError`` where the other side is silent for ``timeout`` seconds."""
        self._sock.setblocking(False)
        if self._window is not None:
            self._out += stream.resize(*tty.size(self._window))
        self._frames(self._early)
        with self._caught() as wake:
            poll = select.poll()
            poll.register(wake, select.POLLIN)
            while not self._done:
                if self._deaf:
                    self._out.clear()
                poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
                self._watch_input(poll)
                ready = poll.poll(None if timeout is None else timeout * 1000)
                if not ready:
                    raise TimeoutError
                for fd, events in ready:
                    if fd == wake:
                        self._take_signals(wake)
                    elif fd == self._sock.fileno():
                        self._exchange(events)
                    elif not self._read_input():
                        poll.unregister(fd)
                        self._stdin = None
                        self._reading = False
        return self._status

    def _watch_input(self, poll: select.poll) -> None:
        """Read on only while there is room; a pipe that hung up would be reported all the time otherwise."""
        if self._stdin is not None and self._reading != (len(self._out) < _HIGH_WATER):
            self._reading = not self._reading
            if self._reading:
                poll.register(self._stdin, select.POLLIN)
            else:
                poll.unregister(self._stdin)

    def _exchange(self, events: int) -> None:
        if events & select.POLLOUT and self._out:
            try:
                sent = self._sock.send(memoryview(self._out)[:_HIGH_WATER])
                del self._out[:sent]
            except BlockingIOError:
                pass
            except ConnectionError:  # it has ended and reads no more; what it said last is still to be read
                self._deaf = True
                self._out.clear()
        if events & ~select.POLLOUT:
            try:
                data = self._sock.recv(_CHUNK * 4)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if data:
                self._frames(data)
            else:
                self._done = True

    def _frames(self, data: bytes) -> None:
        for kind, payload in self._reader.feed(data):
            if kind in self._sinks:
                self._sinks[kind](payload)
            elif kind == stream.EXIT:
                self._status = stream.read_exit_status(payload)
                self._done = True
            elif kind == stream.ERROR:
                raise MachineError(payload.decode(errors="replace"))

    def _read_input(self) -> bool:
        """Pass a piece of stdin on; False at its end."""
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            data = b""  # a terminal that has gone
        if self._leave and LEAVE in data:
            raise Left
        if data or not self._leave:
            self._out += stream.frame(stream.STDIN, data)
        return bool(data)

    def _send_input(self, data: memoryview) -> None:
        for at in range(0, len(data), _CHUNK):
            self._out += stream.frame(stream.STDIN, data[at : at + _CHUNK])
        self._out += stream.frame(stream.STDIN)
        self._stdin = None

    @contextlib.contextmanager
    def _caught(self) -> Iterator[int]:
        """Signals become bytes on a pipe while the bridge runs, if we are the main thread."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        old = {}
        old_fd = None
        try:
            with contextlib.suppress(ValueError):  # not the main thread: nothing to catch
                old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
                wanted = self._forward + ((signal.SIGWINCH,) if self._window is not None else ())
                for number in wanted:
                    old[number] = signal.signal(number, lambda *_: None)
            yield reader
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            if old_fd is not None:
                signal.set_wakeup_fd(old_fd)
            os.close(reader)
            os.close(writer)

    def _take_signals(self, wake: int) -> None:
        for number in os.read(wake, 64):
            if number == signal.SIGWINCH and self._window is not None:
                self._out += stream.resize(*tty.size(self._window))
            elif number in self._forward:
                self._signals += 1
                if self._signals >= 3:  # the command doesn't listen; the user means us
                    raise KeyboardInterrupt
                self._out += stream.frame(stream.SIGNAL, bytes([number]))


def write_all(fd: int) -> Callable[[bytes], None]:
    """A sink that writes everything to ``fd``, which may be non-blocking (shared with another program)."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                select.select([], [fd], [])

    return write
