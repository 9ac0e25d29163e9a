"""Commands in the guest for clients of the control socket: frames on one side, the agent's channel on the other.

Nothing is dropped and nothing piles up: a client that reads slowly gives its command no more credit, a command
that reads slowly has its client's socket not read. When a client goes, its command is hung up (SIGHUP), as when
a terminal goes; what it still writes is thrown away.

What the guest sends is hostile: a frame that makes no sense is the agent's end, not ours.

Runs on the loop's thread.
"""

import contextlib
import os
import signal
import struct
import sys
from collections.abc import Callable

from hostel.base.errors import MachineError
from hostel.base.loop import READ, Loop
from hostel.spec import rpc, stream
from hostel.spec.control import LOW_WATER, Connection
from hostel.spec.vm import VmSpec
from hostel.vm.agent import (
    PATH,
    AgentChannel,
    Event,
    Exited,
    Failed,
    Lost,
    Output,
    Ready,
    StdinClosed,
    StdinRoom,
)

_TYPED_AHEAD = 1 << 16    # bytes of stdin that wait here before a client is not read any more


class _Command:
    """One command and who it is for."""

    def __init__(self, argv: list[str]):
        self.argv = argv
        self.connection: Connection | None = None
        self.on_output: Callable[[bytes], None] | None = None
        self.on_end: Callable[[int], None] | None = None
        self.itself = False
        self.stdin = bytearray()
        self.stdin_ended = False
        self.owed = {False: 0, True: 0}   # output that the client hasn't read yet; by Output.error

    def end(self, status: int, message: str = "") -> None:
        if self.connection and not self.connection.closed:
            if message:
                self.connection.send(stream.frame(stream.STDERR, f"hostel: {message}\n".encode()))
            self.connection.send(stream.exit_status(status))
            self.connection.finish()
        if self.on_end:
            self.on_end(status)


class Exec:
    """``connect`` to a machine's agent port; then ``attach`` clients. ``on_ready`` is called at each greeting."""

    def __init__(self, loop: Loop, on_ready: Callable[[], None], spec: VmSpec):
        self._loop = loop
        # TERM and the like come from the client; what every program needs is there anyway.
        self._environment = {"PATH": PATH, "HOME": "/root", **dict(item.split("=", 1) for item in spec.environment)}
        self._workdir, self._uid, self._gid = spec.workdir, spec.uid, spec.gid
        self._on_ready = on_ready
        self._channel = AgentChannel()
        self._commands: dict[int, _Command] = {}
        self._port = None
        self._rest = b""
        self.faults = 0

    @property
    def ready(self) -> bool:
        return self._channel.ready

    def connect(self, port) -> None:
        """Begin with a machine's port (a devices/uart ``Uart``)."""
        self._port = port
        self._loop.watch(port.tx_fd, READ, lambda _: self.pump())
        self._loop.watch(port.rx_fd, READ, lambda _: self._room())
        self._flush()  # what a snapshot's end left, and what was begun since

    def disconnect(self) -> None:
        """The machine goes; its commands are lost."""
        if self._port is not None:
            self._loop.unwatch(self._port.tx_fd)
            self._loop.unwatch(self._port.rx_fd)
            self._port = None
        self._rest = b""
        self._handle(self._channel.lose())
        self._channel.reset()

    def pump(self) -> None:
        """Take what the guest sent, and send what there is to send."""
        if self._port is None:
            return
        data = self._port.take()
        if data:
            try:
                events = self._channel.feed(data)
            except (MachineError, struct.error) as error:
                self.faults += 1
                print(f"worker: the guest's agent makes no sense: {error}", file=sys.stderr)
                events = self._channel.lose()
                self._channel.reset()
            self._handle(events)
        self._flush()

    def attach(self, connection: Connection, params: rpc.Exec) -> None:
        """Start ``params.argv`` for an upgraded connection."""
        command = _Command(params.argv)
        command.connection = connection
        env = {**self._environment, **params.env}
        rows, columns = (params.rows or 24, params.cols or 80) if params.tty else (0, 0)
        try:
            number = self._channel.start(
                params.argv, env=env, cwd=params.cwd or ("" if params.itself else self._workdir), tty=params.tty,
                rows=rows, columns=columns, itself=params.itself, uid=0 if params.itself else self._uid,
                gid=0 if params.itself else self._gid,
            )
        except MachineError as error:
            command.end(125, str(error))
            return
        self._commands[number] = command
        connection.on_frame = lambda kind, payload: self._frame(number, command, kind, payload)
        connection.on_close = lambda: self._hang_up(number, command)
        connection.on_drain = lambda: self._credit(number, command)
        self._flush()

    def run_detached(
        self, argv: list[str], output: Callable[[bytes], None], ended: Callable[[int], None], itself: bool = False
    ) -> None:
        """Run a command for the VM itself: its output goes to ``output``, its status to ``ended``. With ``itself`` it
        is one of the agent's own."""
        command = _Command(argv)
        command.on_output, command.on_end, command.itself = output, ended, itself
        try:
            if itself:
                number = self._channel.start(argv, stdin=False, itself=True)
            else:
                number = self._channel.start(
                    argv, env=self._environment, cwd=self._workdir, stdin=False, uid=self._uid, gid=self._gid
                )
        except MachineError as error:
            output(f"hostel: {error}\n".encode())
            ended(125)
            return
        self._commands[number] = command
        self._flush()

    def power_off(self) -> bool:
        """Ask the guest's agent to power off; False where there is none."""
        if not self._channel.ready:
            return False
        self._channel.power("poweroff")
        self._flush()
        return True

    def resize_console(self, rows: int, cols: int) -> None:
        self._channel.resize(0, rows, cols)
        self._flush()

    def finish(self, message: str) -> None:
        """The VM has ended: tell the clients."""
        commands, self._commands = self._commands, {}
        for command in commands.values():
            if command.connection and not command.connection.closed:
                command.connection.send(stream.frame(stream.ERROR, message.encode()[: stream.MAX_PAYLOAD]))
                command.connection.finish()

    # -- snapshots

    def save(self) -> dict:
        """The channel, for a snapshot taken with the port's state. ``main``: the command that the VM runs itself."""
        main = [number for number, command in self._commands.items() if command.on_end and not command.itself]
        return {"channel": self._channel.save(), "rest": self._rest, "main": main[0] if main else 0}

    def load(
        self, state: dict, output: Callable[[bytes], None], ended: Callable[[int], None]
    ) -> None:
        """Restore what ``save`` gave. The VM's own command goes on for ``output`` and ``ended``; those whose clients
        aren't here are hung up."""
        self._channel.load(state["channel"])
        self._rest = state["rest"]
        for number in self._channel.streams:
            command = self._commands[number] = _Command(["?"])
            if number == state["main"]:
                command.on_output, command.on_end = output, ended
            else:
                self._hang_up(number, command)

    def statistics(self) -> dict:
        return {**self._channel.statistics(), "faults": self.faults}

    # -- from the guest

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Ready):
                self._on_ready()
                continue
            command = self._commands.get(event.stream)
            if command is None:
                continue
            if isinstance(event, Output):
                self._output(event, command)
            elif isinstance(event, StdinRoom):
                self._push_stdin(event.stream, command)
            elif isinstance(event, StdinClosed):
                command.stdin_ended = True
                command.stdin.clear()
                if command.connection:
                    command.connection.pause_reading(False)  # what still comes is dropped, its end is seen
            elif isinstance(event, (Exited, Failed)):
                del self._commands[event.stream]
                message = f"{command.argv[0]}: {event.reason}" if isinstance(event, Failed) else ""
                if message and command.on_output:
                    command.on_output(f"hostel: {message}\n".encode())
                command.end(event.status, message)
            elif isinstance(event, Lost):
                del self._commands[event.stream]
                command.end(125, "the guest was reset while the command ran")

    def _output(self, event: Output, command: _Command) -> None:
        if command.on_output:
            command.on_output(event.data)
        connection = command.connection
        if connection and not connection.closed:
            kind = stream.STDERR if event.error else stream.STDOUT
            for at in range(0, len(event.data), stream.MAX_PAYLOAD):
                connection.send(stream.frame(kind, event.data[at : at + stream.MAX_PAYLOAD]))
            if connection.unsent > LOW_WATER // 2:
                command.owed[event.error] += len(event.data)
                return
        self._channel.consumed(event.stream, event.error, len(event.data))

    # -- from the clients

    def _frame(self, number: int, command: _Command, kind: int, payload: bytes) -> None:
        if kind == stream.STDIN:
            if command.stdin_ended:
                return
            if payload:
                command.stdin += payload
            else:
                command.stdin_ended = True
            self._push_stdin(number, command)
        elif kind == stream.RESIZE:
            self._channel.resize(number, *stream.read_resize(payload))
        elif kind == stream.SIGNAL and payload:
            self._channel.signal(number, payload[0])
        self._flush()

    def _push_stdin(self, number: int, command: _Command) -> None:
        if command.stdin:
            taken = self._channel.stdin(number, bytes(command.stdin))
            del command.stdin[:taken]
        if command.stdin_ended and not command.stdin:
            self._channel.end_stdin(number)
        if command.connection:
            command.connection.pause_reading(len(command.stdin) >= _TYPED_AHEAD)

    def _credit(self, number: int, command: _Command) -> None:
        for error, count in command.owed.items():
            if count:
                self._channel.consumed(number, error, count)
                command.owed[error] = 0
        self._flush()

    def _hang_up(self, number: int, command: _Command) -> None:
        if self._commands.get(number) is command:
            command.stdin.clear()
            command.stdin_ended = True
            self._channel.signal(number, signal.SIGHUP)
            self._channel.end_stdin(number)
            self._credit(number, command)

    # -- to the guest

    def _flush(self) -> None:
        while self._port is not None:
            data = self._rest or self._channel.outgoing()
            if not data:
                return
            taken = self._port.send(data)
            self._rest = data[taken:]
            if self._rest:
                return  # rx_fd tells when there is room

    def _room(self) -> None:
        assert self._port is not None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._port.rx_fd)
        self._flush()
