"""The host's end of the guest agent: commands in the guest over one byte channel.

This module does no input or output and knows no threads: ``feed`` takes what came from the guest and returns
events, the other methods queue frames, and ``outgoing`` hands out the bytes that may be sent now. The other
end is `hostel.images.agent`.

The channel must not lose or reorder bytes (a serial port with flow control, a socket). It carries frames,
numbers little-endian::

    u8 kind, u8 zero, u16 stream, u32 length, payload

``stream`` names a command, chosen by the host, 1 to 65535; 0 is the guest itself.

=============  ====  =========================================================================
host → guest
START             1  u32 flags (1 terminal, 2 stdin, 4 the agent itself), u16 rows, u16 columns, u32 uid, u32 gid,
                     u32 credit for stdout, u32 for stderr, u16 argc, u16 envc, then strings
                     that end with a zero: working directory ("" for the agent's own), the
                     arguments, the environment
STDIN             2  bytes
STDIN_EOF         3
RESIZE            4  u16 rows, u16 columns; stream 0 is the console
SIGNAL            5  u32 number, to the command's process group
CREDIT            6  u32 more bytes of stdout, u32 of stderr
PING              7
POWER             8  u32: 0 power off, 1 restart, 2 halt, after all processes have ended
RESET             9  kill all commands, forget them, say HELLO
guest → host
HELLO            65  "hostel-agent", u32 version, u32 stdin window, u32 channel window, u32 longest
                     payload, u32 bytes received (0: the agent has just started, and the host
                     sends nothing before; else it answers RESET)
STARTED          66  u32 process id
FAILED           67  u32 stage (1 exec, 2 working directory, 3 anything before), u32 errno; the last
STDOUT, STDERR  68/69  bytes
EXITED           70  u32 status, u32 signal (0: it exited); the last of its stream
CREDITED         71  u32: stdin bytes that the command took
STDIN_CLOSED     72  u32 errno: the command reads no more; what follows is dropped
PONG             73  u32 bytes received, as in ACK
ACK              74  u32 bytes received since HELLO, modulo 2^32
=============  ====  =========================================================================

Flow control has two layers. Each stream has a window in each direction, so that a command that reads or
writes slowly, or a client that does, stops itself alone. The channel as a whole has one towards the guest
(ACK): there may never be more bytes on the way than a tty's buffers hold, whether or not the serial port
between honours RTS. A command's end is told after its output: when it exits, what its pipes hold then is
still sent, and what a background process writes later isn't.

Limits: 64 commands at once (the agent answers FAILED, EAGAIN), 256 KiB of arguments and environment.
"""

import errno
import os
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hostel.base.errors import MachineError

VERSION = 2
START, STDIN, STDIN_EOF, RESIZE, SIGNAL, CREDIT, PING, POWER, RESET = range(1, 10)
HELLO, STARTED, FAILED, STDOUT, STDERR, EXITED, CREDITED, STDIN_CLOSED, PONG, ACK = range(65, 75)

HEADER = struct.Struct("<BxHI")
WORD = struct.Struct("<I")
PAIR = struct.Struct("<II")
START_HEADER = struct.Struct("<IHHIIIIHH")
HELLO_PAYLOAD = struct.Struct("<12sIIIII")
GREETING = HEADER.pack(HELLO, 0, HELLO_PAYLOAD.size) + b"hostel-agent"
SIZES = {HELLO: HELLO_PAYLOAD.size, STARTED: 4, FAILED: 8, EXITED: 8, CREDITED: 4, STDIN_CLOSED: 4, PONG: 4, ACK: 4}
LONGEST = 64 * 1024  # bytes of output in a frame; a longer one is no frame

FLAG_TTY, FLAG_STDIN, FLAG_SELF = 1, 2, 4
STAGE_EXEC, STAGE_CWD, STAGE_SETUP = 1, 2, 3
STAGES = {STAGE_EXEC: "can't run it", STAGE_CWD: "can't enter its working directory", STAGE_SETUP: "can't start it"}

WINDOW = 256 * 1024  # bytes of one stream's output that the host holds at most
WINDOW_STEP = WINDOW // 4
STDIN_FRAMES = 4  # in a channel's window, at least: one command's input doesn't delay another's for long
POWERS = {"poweroff": 0, "reboot": 1, "halt": 2}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Ready:
    """The agent is there."""

    version: int


@dataclass(frozen=True, slots=True)
class Started:
    stream: int
    pid: int


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of stdout (``error`` false) or stderr; ``consumed`` is to be called when they are passed on."""

    stream: int
    error: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class StdinRoom:
    """There is room for input again, ``stdin_room`` says how much."""

    stream: int


@dataclass(frozen=True, slots=True)
class StdinClosed:
    """The command closed its input; more would be dropped."""

    stream: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The command ended, all its output was delivered."""

    stream: int
    code: int
    signal: int

    @property
    def status(self) -> int:
        """The exit status as a shell tells it."""
        return 128 + self.signal if self.signal else self.code


@dataclass(frozen=True, slots=True)
class Failed:
    """The command never ran."""

    stream: int
    stage: int
    errno: int

    @property
    def status(self) -> int:
        """127: no such program; 126: it can't be run; 125: not the program's fault."""
        if self.stage == STAGE_EXEC:
            return 127 if self.errno in (errno.ENOENT, errno.ENOTDIR) else 126
        return 125

    @property
    def reason(self) -> str:
        return f"{STAGES.get(self.stage, STAGES[STAGE_SETUP])}: {os.strerror(self.errno)}"


@dataclass(frozen=True, slots=True)
class Lost:
    """The agent restarted, or was lost, with the command."""

    stream: int


Event = Ready | Started | Output | StdinRoom | StdinClosed | Exited | Failed | Lost


@dataclass(slots=True)
class Stream:
    """A command as the host sees it."""

    stdin_room: int
    stdin_ended: bool = False
    credit: list[int] = field(default_factory=lambda: [WINDOW, WINDOW])  # bytes it may send: stdout, stderr
    consumed: list[int] = field(default_factory=lambda: [0, 0])  # bytes passed on and not credited yet


class AgentChannel:
    """One guest's agent, seen from the host."""

    def __init__(self) -> None:
        self.reset()
        self.counts = {"sent": 0, "received": 0, "commands": 0, "greetings": 0}

    def reset(self) -> None:
        """Forgets everything: the guest was reset and its serial port with it."""
        self.synced = False  # frames can be told apart: a greeting was seen, and no nonsense since
        self.ready = False  # commands can be started
        self.version = VERSION
        self.streams: dict[int, Stream] = {}
        self.last = 0
        self.stdin_window = 0
        self.channel_window = 0
        self.longest = 0
        self.input = bytearray()
        self.output: deque[bytes] = deque()
        self.sent = 0  # bytes handed out since HELLO
        self.acknowledged = 0

    def statistics(self) -> dict[str, int]:
        return {**self.counts, "open": len(self.streams), "queued": sum(map(len, self.output))}

    # From the guest

    def feed(self, data: bytes | memoryview) -> list[Event]:
        """What the guest sent, in any pieces."""
        self.counts["received"] += len(data)
        self.input += data
        events: list[Event] = []
        at = 0
        with memoryview(self.input) as view:
            while True:
                if not self.synced:
                    # What a serial port carries before the agent has it, or after a fault, is passed over.
                    found = self.input.find(GREETING, at)
                    if found < 0:
                        at = max(at, len(view) - len(GREETING) + 1)
                        break
                    at = found
                if len(view) - at < HEADER.size:
                    break
                kind, stream, length = HEADER.unpack_from(view, at)
                if length != SIZES.get(kind, length) or not HELLO <= kind <= ACK or length > LONGEST:
                    events += self.lose()
                    at += 1
                    continue
                if len(view) - at < HEADER.size + length:
                    break
                at += HEADER.size
                events += self.frame(kind, stream, view[at : at + length])
                at += length
        del self.input[:at]
        return events

    def frame(self, kind: int, stream: int, payload: memoryview) -> Iterable[Event]:
        if kind == HELLO:
            return self.greeted(payload)
        if kind in (ACK, PONG):
            self.acknowledge(WORD.unpack(payload)[0])
            return ()
        state = self.streams.get(stream)
        if state is None:
            return ()
        if kind in (STDOUT, STDERR):
            error = kind == STDERR
            state.credit[error] -= len(payload)
            if state.credit[error] < 0:  # a guest that ignores the window would fill the host's memory
                return self.lose()
            return (Output(stream, error, bytes(payload)),)
        if kind == STARTED:
            return (Started(stream, WORD.unpack(payload)[0]),)
        if kind == CREDITED:
            state.stdin_room = min(state.stdin_room + WORD.unpack(payload)[0], self.stdin_window)
            return (StdinRoom(stream),)
        if kind == STDIN_CLOSED:
            return (StdinClosed(stream),)
        del self.streams[stream]
        first, second = PAIR.unpack(payload)
        return (Exited(stream, first, second) if kind == EXITED else Failed(stream, first, second),)

    def greeted(self, payload: memoryview) -> list[Event]:
        events = self.lose()
        _, self.version, self.stdin_window, self.channel_window, self.longest, received = HELLO_PAYLOAD.unpack(payload)
        if received:
            self.acknowledge(received)
        else:  # a new agent: what was sent and queued for the old one is lost
            self.sent = self.acknowledged = 0
            self.output.clear()
        self.counts["greetings"] += 1
        self.synced = self.ready = self.version == VERSION
        return [*events, Ready(self.version)] if self.ready else events

    def acknowledge(self, received: int) -> None:
        """The agent's count modulo 2^32, made whole by ours."""
        self.acknowledged = self.sent - (self.sent - received & 0xFFFFFFFF)

    def lose(self) -> list[Event]:
        events: list[Event] = [Lost(stream) for stream in self.streams]
        self.streams.clear()
        self.synced = self.ready = False
        return events

    # To the guest

    def outgoing(self, limit: int = 1 << 20) -> bytes:
        """The next bytes to send, at most ``limit``; empty while there are none or the guest must read first.

        What is handed out counts as sent.
        """
        room = min(limit, self.channel_window - (self.sent - self.acknowledged))  # no window before HELLO
        parts = []
        while self.output and room > 0:
            part = self.output.popleft()
            if len(part) > room:
                self.output.appendleft(part[room:])
                part = part[:room]
            parts.append(part)
            room -= len(part)
        data = b"".join(parts)
        self.sent += len(data)
        self.counts["sent"] += len(data)
        return data

    def start(
        self,
        argv: list[str],
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        tty: bool = False,
        rows: int = 24,
        columns: int = 80,
        stdin: bool = True,
        uid: int = 0,
        gid: int = 0,
        itself: bool = False,
    ) -> int:
        """Starts a command; returns its stream. Without ``env``: PATH and HOME alone. With ``itself`` the program is
        the agent's own (images/agent_copy, agent_forward).

        Raises MachineError: no agent there, or arguments that can't be passed.
        """
        self.check_ready()
        if env is None:
            env = {"PATH": PATH, "HOME": "/root"}
        strings = [cwd, *argv, *(f"{key}={value}" for key, value in env.items())]
        encoded = [os.fsencode(string) for string in strings]
        if not argv or any(b"\0" in string for string in encoded):
            raise MachineError("a command needs a name, and no argument may hold a zero byte")
        if len(argv) > 8192 or len(env) > 8192 or sum(map(len, encoded)) + len(encoded) > self.longest - 64:
            raise MachineError(f"the command's arguments and environment are longer than {self.longest // 1024} KiB")
        if len(self.streams) >= 0xFFFF:
            raise MachineError("too many commands at once")
        stream = self.last % 0xFFFF + 1
        while stream in self.streams:
            stream = stream % 0xFFFF + 1
        self.last = stream
        head = START_HEADER.pack(
            FLAG_TTY * tty | FLAG_STDIN * stdin | FLAG_SELF * itself,
            bounded(rows), bounded(columns), uid, gid, WINDOW, WINDOW, len(argv), len(env),
        )  # fmt: skip
        self.queue(START, stream, head + b"".join(string + b"\0" for string in encoded))
        self.streams[stream] = Stream(self.stdin_window if stdin or tty else 0)
        self.counts["commands"] += 1
        return stream

    def stdin_room(self, stream: int) -> int:
        """How many bytes ``stdin`` would take now."""
        state = self.streams.get(stream)
        return state.stdin_room if state and not state.stdin_ended else 0

    def stdin(self, stream: int, data: bytes) -> int:
        """Sends input to a command; returns how many bytes were taken. StdinRoom tells when to go on."""
        taken = min(len(data), self.stdin_room(stream))
        longest = max(self.channel_window // STDIN_FRAMES, 1024)
        for at in range(0, taken, longest):
            self.queue(STDIN, stream, data[at : min(at + longest, taken)])
        if taken:
            self.streams[stream].stdin_room -= taken
        return taken

    def end_stdin(self, stream: int) -> None:
        state = self.streams.get(stream)
        if state and not state.stdin_ended:
            state.stdin_ended = True
            self.queue(STDIN_EOF, stream)

    def consumed(self, stream: int, error: bool, count: int) -> None:
        """``count`` bytes of output were passed on: the command may write as many more."""
        state = self.streams.get(stream)
        if state is None:
            return
        state.consumed[error] += count
        if max(state.consumed) >= WINDOW_STEP:
            self.queue(CREDIT, stream, PAIR.pack(*state.consumed))
            state.credit = [credit + more for credit, more in zip(state.credit, state.consumed, strict=True)]
            state.consumed = [0, 0]

    def signal(self, stream: int, number: int) -> None:
        """To the command and the processes that it started, unless they made sessions of their own."""
        if stream in self.streams:
            self.queue(SIGNAL, stream, WORD.pack(number))

    def resize(self, stream: int, rows: int, columns: int) -> None:
        """A terminal's new size; stream 0 is the console."""
        if self.ready and (stream == 0 or stream in self.streams):
            self.queue(RESIZE, stream, struct.pack("<HH", bounded(rows), bounded(columns)))

    def power(self, how: str) -> None:
        """Asks the guest to end in order: "poweroff", "reboot" or "halt". Raises MachineError: no agent."""
        self.check_ready()
        self.queue(POWER, 0, WORD.pack(POWERS[how]))

    def abandon(self) -> list[Event]:
        """Kills all commands in the guest, for clients that are gone; ends with Ready."""
        events: list[Event] = [Lost(stream) for stream in self.streams]
        self.streams.clear()
        self.ready = False
        self.queue(RESET, 0)
        return events

    def check_ready(self) -> None:
        if self.version != VERSION:
            raise MachineError(f"the guest's agent speaks version {self.version}, this hostel version {VERSION}")
        if not self.ready:
            raise MachineError("the guest's agent isn't there (yet)")

    def queue(self, kind: int, stream: int, payload: bytes = b"") -> None:
        self.output.append(HEADER.pack(kind, stream, len(payload)) + payload)

    # Snapshots

    def save(self) -> dict:
        """The state, for a snapshot of the VM taken with the serial port's."""
        return {
            "version": 1,
            "flags": [self.synced, self.ready],
            "last": self.last,
            "windows": [self.stdin_window, self.channel_window, self.longest],
            "input": bytes(self.input),
            "output": b"".join(self.output),
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "streams": {
                str(number): [stream.stdin_room, stream.stdin_ended, stream.credit, stream.consumed]
                for number, stream in self.streams.items()
            },
        }

    def load(self, state: dict) -> None:
        if state.get("version") != 1:
            raise MachineError(f"the agent's state has version {state.get('version')}, which this hostel doesn't know")
        self.reset()
        self.synced, self.ready = state["flags"]
        self.last = state["last"]
        self.stdin_window, self.channel_window, self.longest = state["windows"]
        self.input = bytearray(state["input"])
        self.output = deque([state["output"]] if state["output"] else [])
        self.sent, self.acknowledged = state["sent"], state["acknowledged"]
        self.streams = {int(number): Stream(*fields) for number, fields in state["streams"].items()}


def bounded(size: int) -> int:
    return max(0, min(size, 0xFFFF))
