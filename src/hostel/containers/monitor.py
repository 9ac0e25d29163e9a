"""A container's monitor: the process that stays with it (``python -I -S monitor.py FOLDER``, by containers/launch).

It holds the container's streams, writes its log, answers its control socket (the VMs' conventions: spec/control,
spec/stream), starts it again as its restart policy says, looks after its health and keeps its exit status. The lock on
the container's folder is its own for as long as it lives: who starts it hands it over. It is a subreaper: the
container's first process, and those of ``exec``, become its children.

It stays small, since there is one for each container: of the runtime, images and networks it knows nothing. What needs
them is done by a *hand*, a child that imports what it needs, does one thing (containers/hands), answers with one JSON
message, which may carry descriptors, and is gone.

Who starts it holds a leash, a pipe, unless the container is to live on: its end is the container's, but for an 'r'
before it.
"""

import fcntl
import os
import signal
import socket
import struct
import sys
import termios
import time
from functools import partial

from hostel.base.errors import ContainerError, HostelError
from hostel.base.log import Log
from hostel.base.loop import READ, WRITE, Loop
from hostel.containers import fastjson
from hostel.spec import stream
from hostel.spec.control import HIGH_WATER, LOW_WATER, Connection, Later, Server, Upgrade, listen
from hostel.spec.jsonrpc import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

LIVE = ("starting", "running", "paused", "restarting")  # spec/container's, which would be another 4 MB
REPLAY = 64 << 10             # bytes of the past that a client can ask for
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 60.0  # seconds before a container is started again
STABLE = 10.0                 # seconds after which a start counts as a success
END_TIMEOUT = 2.0             # seconds that clients have to read how it ended
HEALTH_OUTPUT = 4096          # bytes of a health check's output that are kept
_TYPED_AHEAD = 1 << 16
_ENTRY = 1 << 13              # bytes of output in an entry of the log, at most
_MESSAGE = 1 << 17
_MAX_FDS = 250                # the kernel's, for one message
# Parameters of the control socket's methods: name, and what stands for it where it isn't given. Their types are those
# of the defaults.
PARAMS: "dict[str, dict[str, Any]]" = {
    "status": {}, "inspect": {}, "subscribe": {}, "wait": {}, "wait_agent": {}, "start": {}, "pause": {}, "resume": {},
    "stop": {"grace": -1.0}, "quit": {"reason": "killed"}, "signal": {"number": 15}, "update": {"resources": {}},
    "console": {"replay": False}, "resize": {"rows": 0, "cols": 0},
    "exec": {"argv": [], "env": {}, "cwd": "", "tty": False, "rows": 0, "cols": 0, "itself": False, "user": "",
             "privileged": False},
}  # fmt: skip


class Words:
    """How requests are read (spec/control), without msgspec."""

    def request(self, line: bytes) -> "tuple[str, Any, int | str | None]":
        try:
            request = fastjson.loads(line, "the request")
        except HostelError as e:
            raise Refused(PARSE_ERROR, str(e)) from e
        if not isinstance(request.get("method"), str):
            raise Refused(INVALID_REQUEST, "not a request: it has no method")
        id = request.get("id")
        return request["method"], request.get("params", {}), id if isinstance(id, int | str) else None

    def params(self, method: str, params: "Any") -> "dict[str, Any]":
        known = PARAMS[method]
        if not isinstance(params, dict) or params.keys() - known.keys():
            raise Refused(INVALID_PARAMS, f"it takes {', '.join(known) or 'nothing'}")
        for name, value in params.items():
            kind: Any = type(known[name])
            if not isinstance(value, (float, int) if kind is float else kind):
                raise Refused(INVALID_PARAMS, f"{name} is not of the type {kind.__name__}")
        if not all(isinstance(word, str) for word in params.get("argv", ())):
            raise Refused(INVALID_PARAMS, "argv is a list of strings")
        if not all(isinstance(value, str) for value in params.get("env", {}).values()):
            raise Refused(INVALID_PARAMS, "env holds strings")
        return {**known, **params}

    def encode(self, message: "dict[str, Any]") -> bytes:
        return fastjson.dumps(message).encode()


class Program:
    """A process in the container, by its streams: pipes, or a terminal's master. Clients that read slowly hold it back,
    as its own slowness holds back who writes to it."""

    def __init__(self, loop: Loop, on_output: "Callable[[str, bytes], None] | None" = None):
        self.pid = 0
        self.status: int | None = None
        self.clients: list[Connection] = []
        self.on_output = on_output
        self.on_end: Callable[[int], None] | None = None
        self._loop = loop
        self._out: dict[int, int] = {}        # descriptor of ours: the frame's kind
        self._in = -1
        self._tty = -1
        self._typed = bytearray()
        self._typing_ended = False
        self._held = False

    # -- descriptors

    def make_pipes(self, stdin: bool) -> list[int]:
        """The program's three descriptors; ours stay here."""
        theirs = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
        if stdin:
            os.close(theirs.pop())
            reader, self._in = os.pipe2(os.O_CLOEXEC)
            theirs.append(reader)
            os.set_blocking(self._in, False)
        for kind in (stream.STDOUT, stream.STDERR):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)
            theirs.append(writer)
            self._out[reader] = kind
        return theirs

    def set_tty(self, master: int, rows: int = 0, cols: int = 0) -> None:
        os.set_blocking(master, False)
        self._tty = self._in = master
        self._out[master] = stream.STDOUT
        if rows and cols:
            self.resize(rows, cols)

    def begin(self) -> None:
        """Read what it writes from now on."""
        self._watch()
        self._feed()

    def close(self) -> None:
        for fd in {*self._out, self._in} - {-1}:
            self._loop.unwatch(fd)
            os.close(fd)
        self._out.clear()
        self._in = self._tty = -1

    def _watch(self) -> None:
        for fd in self._out:
            events = (0 if self._held else READ) | (WRITE if fd == self._tty and self._typed else 0)
            self._loop.watch(fd, events, partial(self._ready, fd))
        if self._in >= 0 and self._in != self._tty:
            if self._typed:
                self._loop.watch(self._in, WRITE, lambda _: self._feed())
            else:
                self._loop.unwatch(self._in)

    def _ready(self, fd: int, events: int) -> None:
        if events & WRITE:
            self._feed()
        if events & ~WRITE and not self._held:
            self._read(fd)

    def _read(self, fd: int) -> bool:
        """Pass on what there is; False at its end, or where there is nothing now."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # a terminal that nobody has open any more
        if not data:
            self._loop.unwatch(fd)
            kind = self._out.pop(fd)
            if fd == self._tty:
                self._tty = self._in = -1
            os.close(fd)
            return bool(kind < 0)
        kind = self._out[fd]
        if self.on_output:
            self.on_output("stderr" if kind == stream.STDERR else "stdout", data)
        for client in self.clients:
            client.send(stream.frame(kind, data))
        self._hold()
        return True

    def _hold(self) -> None:
        held = any(client.unsent > HIGH_WATER for client in self.clients)
        if held != self._held:
            self._held = held
            self._watch()

    # -- input

    def type(self, data: bytes) -> None:
        """Bytes for its standard input; none: their end."""
        if self._typing_ended or self._in < 0:
            return
        self._typed += data
        self._typing_ended = not data and self._tty < 0
        self._feed()

    def _feed(self) -> None:
        while self._typed and self._in >= 0:
            try:
                del self._typed[: os.write(self._in, self._typed)]
            except BlockingIOError:
                break
            except OSError:  # it reads no more
                self._typed.clear()
                self._typing_ended = True
        if self._typing_ended and not self._typed and self._in >= 0 and self._tty < 0:
            self._loop.unwatch(self._in)
            os.close(self._in)
            self._in = -1
        for client in self.clients:
            client.pause_reading(len(self._typed) >= _TYPED_AHEAD)
        self._watch()

    def resize(self, rows: int, cols: int) -> None:
        if self._tty >= 0:
            fcntl.ioctl(self._tty, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))

    def signal(self, number: int) -> None:
        if self.pid and self.status is None:
            try:
                os.kill(self.pid, number)
            except OSError:
                pass

    # -- who is at it

    def attach(self, connection: Connection, hang_up: bool = False) -> None:
        """``hang_up``: the program is the client's alone, and is told when that goes."""
        self.clients.append(connection)
        connection.on_frame = self._frame
        connection.on_drain = self._hold

        def left() -> None:
            if connection in self.clients:
                self.clients.remove(connection)
                if hang_up:
                    self.signal(signal.SIGHUP)
                    self.type(b"")
                self._hold()

        connection.on_close = left

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == stream.STDIN:
            self.type(payload)
        elif kind == stream.RESIZE:
            self.resize(*stream.read_resize(payload))
        elif kind == stream.SIGNAL and payload and 1 <= payload[0] <= 64:
            self.signal(payload[0])

    def ended(self, status: int, message: str = "") -> None:
        """It has ended: what it still wrote, then its status, go to the clients."""
        self.status = status
        self._held = False
        for fd in list(self._out):
            while fd in self._out and self._read(fd):
                pass
        self.close()
        clients, self.clients = self.clients, []
        for client in clients:
            if message:
                client.send(stream.frame(stream.STDERR, f"hostel: {message}\n".encode()[: stream.MAX_PAYLOAD]))
            client.send(stream.exit_status(status))
            client.finish()
        if self.on_end:
            self.on_end(status)


class Hand:
    """A child at work. ``on_message(message, fds)`` is called for each of its words, with an ``error`` in the last one
    if it failed."""

    def __init__(self, monitor: "Monitor", what: str, params: "dict[str, Any]", keep: "Sequence[int]",
                 on_message: "Callable[[dict[str, Any], list[int]], None]"):
        self._monitor = monitor
        self._loop = monitor.loop
        self._on_message = on_message
        self._said = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _work(theirs.detach(), monitor.path, what, params, keep, monitor.owner)
        monitor.hands.add(self)
        monitor.own.add(self.pid)
        theirs.close()
        self._sock = ours
        self._loop.watch(ours.fileno(), READ, self._heard)

    def tell(self, word: bytes) -> None:
        try:
            self._sock.send(word)
        except OSError:
            pass  # it has failed, and says why

    def _heard(self, events: int) -> None:
        data, fds, _, _ = socket.recv_fds(self._sock, _MESSAGE, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if data:
            self._said = True
            self._on_message(fastjson.loads(data, "a hand's message"), fds)
            return
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        if not self._said:
            self._on_message({"error": "a part of hostel ended without a word; see monitor.log"}, [])
        self._monitor.left(self)


def _work(fd: int, path: str, what: str, params: "dict[str, Any]", keep: "Sequence[int]", owner: int) -> None:
    """In the child; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        last = 2
        for kept in sorted({fd, *keep, owner}):
            os.closerange(last + 1, kept)
            last = kept
        os.closerange(last + 1, 1 << 20)
        with socket.socket(fileno=fd) as sock:
            try:
                from hostel.containers import hands

                answer, fds = getattr(hands, what)(path, sock=sock, **params)
            except HostelError as error:
                # Some clients show it as it is: an image's words in it may not steer their terminals.
                text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
                answer, fds = {"error": text[:4096], "status": error.status}, []
            except BaseException as error:
                import traceback

                traceback.print_exception(error, file=sys.stderr)
                answer, fds = {"error": f"internal error: {type(error).__name__}: {error} (see monitor.log)"[:4096]}, []
            os.close(owner)  # what comes next may be somebody else's start
            socket.send_fds(sock, [fastjson.dumps(answer).encode()], fds)
    finally:
        sys.stderr.flush()
        os._exit(0)


class Monitor:
    def __init__(self, path: str, owner: int, leash: int, attached: bool, ready: int):
        self.path = path
        self.owner = owner                 # the lock; hands have it too, so that nobody comes between
        self.name = os.path.basename(path)
        self._leash = leash
        self._ready = ready
        self._attached = attached          # a client is to say when it starts
        self.ended = False
        with open(f"{path}/container.json", "rb") as file:
            self.spec: dict[str, Any] = fastjson.loads(file.read(), file.name)
        try:
            with open(f"{path}/state.json", "rb") as file:
                before = fastjson.loads(file.read(), file.name)
        except (OSError, HostelError):
            before = {}
        self.state: dict[str, Any] = {
            "state": "starting", "pid": os.getpid(), "created": before.get("created", time.time()), "restarts": 0,
        }
        self.write_state()
        self.loop = Loop()
        self.loop.on_error = _failed
        self.log = Log(f"{path}/container.log", self.spec["log_size"])
        self._tail = bytearray()
        self._partial = {"stdout": b"", "stderr": b""}
        self._main: Program | None = None
        self._hand: Hand | None = None     # the one that starts the container, until it has
        self._leases: list[int] = []       # what the container's way to the network lasts as long as
        self._carried: list[Connection] = []  # clients of the first process, until the next one is there
        self._programs: dict[int, Program] = {}
        self.hands: set[Hand] = set()      # those at work
        self.own: set[int] = set()         # the processes of hands and routers
        self._exits: dict[int, int] = {}   # of processes whose hand hasn't told us of them yet
        self._waiters: list[Later] = []
        self._starters: list[Later] = []
        self._started_at = 0.0
        self._pause = FIRST_PAUSE
        self._stopping = ""                # why it is to end, if it is
        self._restart_timer: Any = None
        self._kill_timer: Any = None
        self._health_timer: Any = None
        self._failures = 0
        self._health_log: list[dict[str, Any]] = []
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.unlink(f"{path}/control.sock")
        except FileNotFoundError:
            pass
        listener = listen(folder, "control.sock")
        os.close(folder)
        methods = {name[3:]: getattr(self, name) for name in dir(self) if name.startswith("do_")}
        self.server = Server(self.loop, listener, methods, Words())
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.loop.watch(reader, READ, lambda _: self._signals(reader))
        if leash >= 0:
            self.loop.watch(leash, READ, lambda _: self._leashed())

    def run(self) -> None:
        self._create()
        self.loop.run()

    # -- starting

    def _create(self) -> None:
        self._main = main = Program(self.loop, self._logged)
        carried, self._carried = self._carried, []
        for client in carried:
            if not client.closed:
                main.attach(client)
        stdio = [] if self.spec["tty"] else main.make_pipes(self.spec["stdin"])
        self._hand = Hand(self, "create", {"stdio": stdio}, stdio, self._created)
        for fd in stdio:
            os.close(fd)

    def _created(self, message: "dict[str, Any]", fds: list[int]) -> None:
        """The starting hand's words: that the container is there, then that it has started."""
        main = self._main
        assert main is not None
        if "error" in message:
            self._hand = None
            main.close()
            self._drop_network(fds)
            self._start_failed(message["error"], message.get("status", 125))
        elif "started" in message:
            self._hand = None
            self._running()
            if main.status is not None:  # it has ended already
                self._main_ended(main.status)
        else:
            self._drop_network([])
            if self.spec["tty"]:
                main.set_tty(fds.pop(0), 24, 80)
            self._leases, fds = fds[: message["leases"]], fds[message["leases"] :]
            routers = []
            for route in message["routes"]:
                count = 1 + len(route["ports"])
                routers.append(self._route(route, fds[:count]))
                del fds[:count]
            main.pid = message["pid"]
            self.state.update(
                init=main.pid, init_start=message["init_start"], router=routers[0] if routers else 0,
                addresses=message["addresses"],
            )
            self.write_state()
            self._programs[main.pid] = main
            main.begin()
            if main.pid in self._exits:
                self._exit(main.pid, self._exits.pop(main.pid))
            elif self._stopping:
                main.signal(signal.SIGKILL)
            elif self._attached:
                self._tell_ready({"ok": True})
            else:
                self._hand_start()

    def _route(self, route: "dict[str, Any]", fds: list[int]) -> int:
        """Fork the router of a card (net/process); it ends with its lease."""
        reader, lease = os.pipe2(os.O_CLOEXEC)
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            try:
                signal.set_wakeup_fd(-1)
                from hostel.net import process
                from hostel.net.settings import Guest, Settings

                guest = Guest(bytes.fromhex(route["mac"].replace(":", "")), route["name"], fd=fds[0])
                sockets = [socket.socket(fileno=fd) for fd in fds[1:]]
                process.become(
                    Settings(**route["settings"]), guest, list(zip(sockets, route["ports"], strict=True)), reader
                )
            finally:
                os._exit(1)
        self.own.add(pid)
        for fd in (*fds, reader):
            os.close(fd)
        self._leases.append(lease)
        return pid

    def _hand_start(self) -> None:
        if self._hand:
            self._hand.tell(b"start")

    def _running(self) -> None:
        self._started_at = time.monotonic()
        self._set_state("running", started=time.time(), exit_status=None, reason="")
        self._tell_ready({"ok": True})
        for later in self._starters:
            later.done(True)
        self._starters.clear()
        if self.spec["health"]:
            self.state["health"] = "starting"
            self._failures = 0
            self._health_timer = self.loop.call_later(self.spec["health"]["interval"], self._check_health)

    def _start_failed(self, why: str, status: int) -> None:
        for later in self._starters:
            later.failed(why)
        self._starters.clear()
        if self.state["restarts"] and not self._stopping and self._restarts(status):
            print(f"monitor: {why}", file=sys.stderr, flush=True)
            self._release(lambda told: self._restart_later())
            return
        self._stopping = self._stopping or f"error: {why}"
        self._release(lambda told: self._end(self._stopping, status, why))

    def _tell_ready(self, word: "dict[str, Any]") -> None:
        if self._ready >= 0:
            try:
                os.write(self._ready, fastjson.dumps(word).encode() + b"\n")
            except OSError:
                pass  # who started us has gone
            os.close(self._ready)
            self._ready = -1

    # -- ends

    def _signals(self, reader: int) -> None:
        for number in os.read(reader, 512):
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._stop("stopped", self.spec["stop_timeout"])
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            self._exit(pid, 128 - code if code < 0 else code)

    def _exit(self, pid: int, status: int) -> None:
        if pid in self.own:
            self.own.discard(pid)
            return
        program = self._programs.pop(pid, None)
        if program is None:
            if self.hands:
                self._exits[pid] = status
        elif program is self._main:
            self._main_ended(status)
        else:
            program.ended(status)

    def left(self, hand: Hand) -> None:
        """A hand has said all. An exit that none of them asked for isn't kept: there will be others by that number."""
        self.hands.discard(hand)
        if not self.hands:
            self._exits.clear()

    def _main_ended(self, status: int) -> None:
        main = self._main
        assert main is not None
        main.status = status  # its number may soon be another's: no signal any more
        if self._hand:  # which says what came first, its start or its end
            self._hand.tell(b"abandon")
            return
        for timer in (self._kill_timer, self._health_timer):
            if timer:
                timer.cancel()
        self._kill_timer = self._health_timer = None
        again = not self._stopping and self._restarts(status)
        self._release(lambda told: self._gone(status, again, told))

    def _gone(self, status: int, again: bool, told: "dict[str, Any]") -> None:
        """The container is no more, and nothing of it."""
        out_of_memory = bool(told.get("oom_kills")) and status == 137
        if told.get("oom_kills"):
            self.state["oom_kills"] = self.state.get("oom_kills", 0) + told["oom_kills"]
        self.state["exit_status"] = status
        main, self._main = self._main, None
        assert main is not None
        for program in list(self._programs.values()):
            program.signal(signal.SIGKILL)
        if again and not self._stopping:
            self._carried, main.clients = main.clients, []
            main.ended(status)
            self._flush_partial()
            self._restart_later()
            return
        main.ended(status)
        self._flush_partial()
        reason = self._stopping or ("out of memory" if out_of_memory else f"its command ended with status {status}")
        self._end(reason, status)

    def _restarts(self, status: int) -> bool:
        policy = self.spec["restart"]
        if policy == "on-failure":
            most = self.spec["restart_max"]
            return status != 0 and (not most or self.state["restarts"] < most)
        return bool(policy in ("always", "unless-stopped"))

    def _restart_later(self) -> None:
        if time.monotonic() - self._started_at > STABLE:
            self._pause = FIRST_PAUSE
        self._set_state("restarting", init=0, init_start=0, router=0)
        self._restart_timer = self.loop.call_later(self._pause, self._restart)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _restart(self) -> None:
        self._restart_timer = None
        self._attached = False
        self.state["restarts"] += 1
        self._create()

    def _release(self, done: "Callable[[dict[str, Any]], None]") -> None:
        self._drop_network([])

        def released(message: "dict[str, Any]", fds: list[int]) -> None:
            if "error" in message:
                print(f"monitor: {message['error']}", file=sys.stderr, flush=True)
            done(message)

        Hand(self, "release", {}, (), released)

    def _drop_network(self, fds: "Sequence[int]") -> None:
        for fd in (*self._leases, *fds):
            os.close(fd)
        self._leases = []

    def _stop(self, reason: str, grace: float) -> None:
        """Ask it to end, and end it ``grace`` seconds later; by hand, so that it isn't started again."""
        self.state["by_hand"] = True
        if not self._stopping:
            self._stopping = reason
        if self._restart_timer:
            self._restart_timer.cancel()
            self._restart_timer = None
            self._end(self._stopping, self.state.get("exit_status"))
            return
        main = self._main
        if main is None or not main.pid:
            return  # it is being made or taken away: what comes next sees that it is to stop
        if self._hand or grace <= 0:  # it has not begun: there is nothing to ask
            main.signal(signal.SIGKILL)
            return
        if self.state["state"] == "paused":
            Hand(self, "resume", {}, (), lambda message, fds: self._stop(reason, grace))
            self._set_state("running")
            return
        main.signal(self.spec["stop_signal"])
        if not self._kill_timer:
            self._kill_timer = self.loop.call_later(grace, lambda: main.signal(signal.SIGKILL))

    def _kill(self, reason: str) -> None:
        self._stop(reason, 0.0)
        if self.state["state"] == "paused":  # what is frozen takes even SIGKILL only once it is thawed
            Hand(self, "resume", {}, (), lambda message, fds: None)

    def _leashed(self) -> None:
        released = os.read(self._leash, 1) == b"r"
        self.loop.unwatch(self._leash)
        os.close(self._leash)
        self._leash = -1
        if not released:
            self._kill("killed: who started it has ended")

    def _end(self, reason: str, status: int | None, error: str = "") -> None:
        """Tell everybody, and leave when they have read it."""
        if self.ended:
            return
        self.ended = True
        self._drop_network([])
        if self._main is None:
            self._main = Program(self.loop)
            self._main.clients = [client for client in self._carried if not client.closed]
        self._main.ended(125 if status is None else status, error)
        for program in list(self._programs.values()):
            program.ended(137, f"'{self.name}' ended")
        self.state.pop("health", None)
        self._set_state("stopped", stopped=time.time(), reason=reason, init=0, init_start=0, router=0,
                        exit_status=status)  # fmt: skip
        self._tell_ready({"error": error, "status": status} if error else {"ok": True})
        for later in self._starters:
            later.failed(reason)
        for waiter in self._waiters:
            waiter.done(self.state)
        self.server.event(event="stopped", reason=reason, exit_status=status)
        self._leave(time.monotonic() + END_TIMEOUT)

    def _leave(self, deadline: float) -> None:
        if any(connection.unsent for connection in self.server.connections) and time.monotonic() < deadline:
            self.loop.call_later(0.01, lambda: self._leave(deadline))
        else:
            self.loop.stop()

    def close(self) -> None:
        """The folder is left as it should be found: with the state, or not at all."""
        self.log.close()
        os.unlink(f"{self.path}/control.sock")
        # Who holds it removes it, having read the state.
        if self.spec["remove"] and self._leash < 0:
            from pathlib import Path

            from hostel.containers.store import Folder

            Folder(Path(self.path)).delete()
        self.server.close()

    # -- its log and state

    def _logged(self, name: str, data: bytes) -> None:
        """A JSON object a line: what came at once, in whole lines; a line without an end waits for it, but not for
        ever."""
        self._tail += data
        if len(self._tail) > 2 * REPLAY:
            del self._tail[:-REPLAY]
        rest = self._partial[name] + data
        while rest:
            end = len(rest) if len(rest) <= _ENTRY else rest.rfind(b"\n", 0, _ENTRY) + 1 or _ENTRY
            if end == len(rest):
                end = rest.rfind(b"\n") + 1 or (end if end >= _ENTRY else 0)
            if not end:
                break
            self._write_entry(name, rest[:end])
            rest = rest[end:]
        self._partial[name] = rest

    def _write_entry(self, name: str, data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        self.log.write(fastjson.dumps({"time": round(time.time(), 6), "stream": name, "log": text}) + "\n")

    def _flush_partial(self) -> None:
        for name, rest in self._partial.items():
            if rest:
                self._write_entry(name, rest)
                self._partial[name] = b""

    def write_state(self) -> None:
        """As base/atomic does, without what that imports."""
        file = f"{self.path}/state.json"
        new = f"{self.path}/.state.{os.getpid()}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, fastjson.dumps(self.state).encode() + b"\n")
            if self.state["state"] not in LIVE:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, file)

    def _set_state(self, state: str, **more: "Any") -> None:
        self.state.update(state=state, **more)
        try:
            self.write_state()
        except OSError as e:
            print(f"monitor: can't write the state: {e.strerror}", file=sys.stderr, flush=True)
        self.server.event(event="state", state=state)

    # -- commands in the container

    def _run(self, program: Program, params: "dict[str, Any]") -> None:
        """Start a command; ``program.on_end`` and its clients hear of its end."""
        stdio = [] if params["tty"] else program.make_pipes(True)

        def told(message: "dict[str, Any]", fds: list[int]) -> None:
            if "error" in message:
                program.ended(message.get("status", 125), message["error"])
                return
            program.pid = message["pid"]
            if params["tty"]:
                program.set_tty(fds[0], params["rows"] or 24, params["cols"] or 80)
            program.begin()
            if program.pid in self._exits:
                program.ended(self._exits.pop(program.pid))
            else:
                self._programs[program.pid] = program
                if not program.clients and program.on_end is None:
                    program.signal(signal.SIGHUP)  # its client has gone meanwhile

        Hand(self, "execute", {"stdio": stdio, "params": params}, stdio, told)
        for fd in stdio:
            os.close(fd)

    # -- health

    def _check_health(self) -> None:
        health = self.spec["health"]
        main, output = self._main, bytearray()
        self._health_timer = None
        if main is None or self.state["state"] not in ("running", "paused"):
            return
        if self.state["state"] == "paused":
            self._health_timer = self.loop.call_later(health["interval"], self._check_health)
            return
        began, clock = time.time(), time.monotonic()
        program = Program(self.loop, lambda name, data: output.extend(data[: HEALTH_OUTPUT - len(output)]))
        timer = self.loop.call_later(health["timeout"], lambda: program.signal(signal.SIGKILL))

        def ended(status: int) -> None:
            timer.cancel()
            if self._main is not main or self.ended:
                return
            late = time.monotonic() - clock >= health["timeout"]
            well = status == 0 and not late
            entry = {"start": began, "end": time.time(), "status": status,
                     "output": "it took too long" if late else output.decode(errors="replace")}  # fmt: skip
            self._health_log = [*self._health_log[-4:], entry]
            before = self.state.get("health")
            if well:
                self._failures = 0
                self.state["health"] = "healthy"
            elif before != "starting" or clock - self._started_at >= health["start_period"]:
                self._failures += 1
                if self._failures >= health["retries"]:
                    self.state["health"] = "unhealthy"
            if self.state["health"] != before:
                self._set_state(self.state["state"])
                self.server.event(event="health", health=self.state["health"])
            self._health_timer = self.loop.call_later(health["interval"], self._check_health)

        program.on_end = ended
        program_params = {**PARAMS["exec"], "argv": health["command"]}
        self._run(program, program_params)
        program.type(b"")

    # -- the control socket's methods

    def do_status(self, connection: Connection, params: dict) -> dict:
        return self.state

    def do_inspect(self, connection: Connection, params: dict) -> dict:
        return {
            "name": self.name, "isolation": "container", "spec": self.spec, "state": self.state,
            "health_log": self._health_log, "monitor": {"pid": os.getpid(), "log_bytes_lost": self.log.lost,
            "connections": len(self.server.connections), "commands": max(0, len(self._programs) - 1)},
        }  # fmt: skip

    def do_subscribe(self, connection: Connection, params: dict) -> bool:
        connection.subscribed = True
        return True

    def do_wait(self, connection: Connection, params: dict) -> "Any":
        if self.ended:
            return self.state
        later = Later()
        self._waiters.append(later)
        return later

    def do_wait_agent(self, connection: Connection, params: dict) -> "Any":
        """True once it takes commands."""
        self._must_live()
        if self.state["state"] == "running":
            return True
        if self.state["state"] == "paused":
            raise ContainerError(f"'{self.name}' is paused; 'hostel resume {self.name}' lets it go on")
        later = Later()
        self._starters.append(later)
        return later

    def do_start(self, connection: Connection, params: dict) -> "Any":
        self._must_live()
        if self.state["state"] == "running":
            return True
        later = Later()
        self._starters.append(later)
        self._attached = False
        if self._main and self._main.pid:
            self._hand_start()
        return later

    def do_pause(self, connection: Connection, params: dict) -> "Any":
        return self._turn("pause", "running", "paused")

    def do_resume(self, connection: Connection, params: dict) -> "Any":
        return self._turn("resume", "paused", "running")

    def _turn(self, what: str, before: str, after: str) -> "Any":
        self._must_live()
        if self.state["state"] == after:
            return True
        if self.state["state"] != before:
            raise ContainerError(f"'{self.name}' is {self.state['state']}")
        later = Later()

        def told(message: "dict[str, Any]", fds: list[int]) -> None:
            if "error" in message:
                later.failed(message["error"])
                return
            if not self.ended and self.state["state"] == before:
                self._set_state(after)
            later.done(True)

        Hand(self, what, {}, (), told)
        return later

    def do_update(self, connection: Connection, params: "dict[str, Any]") -> "Any":
        self._must_live()
        later = Later()

        def told(message: "dict[str, Any]", fds: list[int]) -> None:
            if "error" in message:
                later.failed(message["error"])
            else:
                self.spec.update(message.get("spec", {}))
                later.done(True)

        Hand(self, "update", {"changes": params["resources"]}, (), told)
        return later

    def do_stop(self, connection: Connection, params: "dict[str, Any]") -> bool:
        self._must_live()
        grace = params["grace"]
        self._stop("stopped", self.spec["stop_timeout"] if grace < 0 else grace)
        return True

    def do_quit(self, connection: Connection, params: "dict[str, Any]") -> bool:
        if not self.ended:
            self._kill(params["reason"])
        return True

    def do_signal(self, connection: Connection, params: "dict[str, Any]") -> bool:
        self._must_live()
        if not 1 <= params["number"] <= 64:
            raise ContainerError(f"{params['number']} is no signal")
        if self._main is None or self.state["state"] not in ("running", "paused"):
            raise ContainerError(f"'{self.name}' is {self.state['state']}")
        if params["number"] == signal.SIGKILL:
            self._kill("killed")
        else:
            self._main.signal(params["number"])
        return True

    def do_console(self, connection: Connection, params: "dict[str, Any]") -> Upgrade:
        self._must_live()
        main = self._main
        if main is None:
            raise ContainerError(f"'{self.name}' is {self.state['state']}")

        def start(connection: Connection) -> None:
            if params["replay"] and self._tail:
                for at in range(0, len(tail := bytes(self._tail[-REPLAY:])), stream.MAX_PAYLOAD):
                    connection.send(stream.frame(stream.STDOUT, tail[at : at + stream.MAX_PAYLOAD]))
            main.attach(connection)

        return Upgrade(start)

    def do_resize(self, connection: Connection, params: "dict[str, Any]") -> bool:
        if self._main:
            self._main.resize(params["rows"] & 0xFFFF, params["cols"] & 0xFFFF)
        return True

    def do_exec(self, connection: Connection, params: "dict[str, Any]") -> Upgrade:
        self._must_live()
        if self.state["state"] != "running":
            raise ContainerError(f"'{self.name}' is {self.state['state']}")
        if not params["argv"]:
            raise ContainerError("exec: no command")

        def start(connection: Connection) -> None:
            program = Program(self.loop)
            program.attach(connection, hang_up=True)
            self._run(program, params)

        return Upgrade(start)

    def _must_live(self) -> None:
        if self.ended:
            raise ContainerError(f"'{self.name}' has ended: {self.state['reason']}")


def _failed(error: BaseException) -> None:
    """An exception in a callback: a bug of ours. It is logged, and the container goes on."""
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()


assert LOW_WATER < HIGH_WATER


def main(argv: list[str]) -> int:
    path = argv[0]
    ready = int(os.environ.pop("HOSTEL_READY_FD", "-1"))
    leash = int(os.environ.pop("HOSTEL_LEASH_FD", "-1"))
    attached = os.environ.pop("HOSTEL_ATTACHED", "") == "1"
    owner = int(os.environ.pop("HOSTEL_OWNER_FD"))
    for fd in (ready, leash, owner):
        if fd >= 0:
            os.set_inheritable(fd, False)
    try:
        monitor = Monitor(path, owner, leash, attached, ready)
    except (HostelError, OSError, ValueError, KeyError) as error:
        os.write(ready, fastjson.dumps({"error": f"can't start the monitor: {error}"}).encode() + b"\n")
        return 1
    monitor.run()
    monitor.close()
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
