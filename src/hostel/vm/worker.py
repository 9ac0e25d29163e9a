"""The process of one VM: ``python -m hostel.vm.worker VMDIR``, started by vm/launch.

The main thread runs the event loop: control socket, serial ports, timers. Each vCPU has a thread of its own
(vm/vcpu). The worker owns the VM's folder by a lock for as long as it lives; it writes what happens to
state.json, and the last thing it does is to write how the VM ended. All methods here run on the loop's
thread; a machine's threads report through ``Loop.call_soon_threadsafe``.

A VM on a leash (a pipe, vm/launch) ends when its other end closes; one without is its own.
"""

import contextlib
import functools
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec

from hostel.base.errors import HostelError, MachineError
from hostel.base.loop import READ, Loop
from hostel.spec import rpc
from hostel.spec.vm import VmState
from hostel.vm import confine
from hostel.vm.console import Console, Log
from hostel.vm.control import Connection, Later, Server, Upgrade, listen
from hostel.vm.debug import Debugger
from hostel.vm.exec import Exec
from hostel.vm.perfmap import PerfMap
from hostel.vm.store import Folder
from hostel.vm.symbols import Symbols
from hostel.vm.trace import Trace

WORKER_LOG_SIZE = 1 << 20
END_TIMEOUT = 5.0       # seconds that clients have to read the rest when the VM has ended
QUICK = 20.0            # a reset sooner than this after the last one, with no agent seen, is a failure to boot
MAX_QUICK_RESETS = 3


class Worker:
    """One VM, from its folder to its end; ``run()`` returns the process's exit status."""

    def __init__(self, folder: Folder, leash: int = -1):
        self.folder = folder
        self.spec = folder.spec()
        self.state = VmState(state="starting", pid=os.getpid(), created=folder.state().created or time.time())
        folder.write_state(self.state)
        self.loop = Loop()
        self.loop.on_error = self._failed
        self.ended = False
        self.confinement: dict = {}
        self._waiters: list[Later] = []
        self._agent_waiters: list[Later] = []
        self._leash = leash
        self._resets = 0
        self._quick_resets = 0
        self._last_start = 0.0
        (folder.path / "control.sock").unlink(missing_ok=True)
        fd = os.open(folder.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener = listen(fd, "control.sock")
        finally:
            os.close(fd)
        self.server = Server(self.loop, listener, {name: getattr(self, f"do_{name}") for name in rpc.PARAMS})
        self.log = Log(folder.path / "console.log")
        # What a guest can make us print must not fill the disk.
        sys.stderr = cast(TextIO, Log(folder.path / "worker.log", WORKER_LOG_SIZE))
        from hostel.vm.machine import BootFiles, Machine  # everything compiled comes in here

        self.files = BootFiles(self.spec)
        self._machine_type = Machine
        self.machine = Machine(self.spec, self.files, self.loop, self._machine_event)
        self.console = Console(self.loop, self.log, self._write_console, self._resized)
        self.console.on_ready = self._read_console
        self.exec = Exec(self.loop, self._agent_ready)
        self._window = (0, 0)
        self.debugger = Debugger(lambda: self.machine, self.spec.name)
        self._perf_map: PerfMap | None = None
        self._trace: Trace | None = None
        self._counting: set[Connection] = set()

    def start(self) -> None:
        """Give up what isn't needed, then let the guest run."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        symbols = Symbols.read(self.spec.symbols) if self.spec.symbols else None
        if self.spec.perf_map:
            self._perf_map = PerfMap(self.loop, lambda: self.machine.engine, symbols)
        if self.spec.trace:
            self._trace = Trace(self.loop, self.spec.trace, symbols)
            self._trace.follow(self.machine.engine)
        self.confinement = confine.confine(self.folder.path, self.files.pin(), profiled=self.spec.perf_map)
        self._connect()
        if not self.spec.debug:
            self.machine.start()
        if self._perf_map:
            self._perf_map.start()
        self.state.state = "paused" if self.spec.debug else "running"
        self.state.started = self._last_start = time.time()
        self.folder.write_state(self.state)
        if self._leash >= 0:
            self.loop.watch(self._leash, READ, lambda _: self._leash_moved())

    def run(self) -> int:
        self.loop.run()
        return 0

    def _signalled(self, number: int, frame: object) -> None:
        self.loop.call_soon_threadsafe(lambda: self._end(f"ended by {signal.Signals(number).name}"))

    def _leash_moved(self) -> None:
        word = os.read(self._leash, 1)
        self.loop.unwatch(self._leash)
        os.close(self._leash)
        self._leash = -1
        if not word:
            self._end("who started it ended")

    # -- the serial ports

    def _connect(self) -> None:
        port = self.machine.console
        self.loop.watch(port.tx_fd, READ, lambda _: self._read_console())
        self.loop.watch(port.rx_fd, READ, lambda _: self._console_room())
        self.exec.connect(self.machine.agent)

    def _disconnect(self) -> None:
        self.loop.unwatch(self.machine.console.tx_fd)
        self.loop.unwatch(self.machine.console.rx_fd)
        self.exec.disconnect()

    def _read_console(self) -> None:
        port = self.machine.console
        if self.ended:
            return
        if self.console.congested():
            self.loop.unwatch(port.tx_fd)
            return
        self.loop.watch(port.tx_fd, READ, lambda _: self._read_console())
        data = port.take()
        if data:
            self.console.output(data)

    def _console_room(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.machine.console.rx_fd)
        self.console.pump()

    def _write_console(self, data: bytes) -> int:
        return int(self.machine.console.send(data))

    def _resized(self, rows: int, cols: int) -> None:
        if self._window != (rows, cols):
            self._window = (rows, cols)
            self.exec.resize_console(rows, cols)

    def _agent_ready(self) -> None:
        """The guest takes commands from now on (and again after each reset)."""
        self._quick_resets = 0
        if self._window != (0, 0):
            self.exec.resize_console(*self._window)
        self.server.event(event="agent", ready=True)
        waiters, self._agent_waiters = self._agent_waiters, []
        for waiter in waiters:
            waiter.done(True)
        if self.spec.command:
            self.exec.run_detached(self.spec.command, self.console.output, self._command_ended)

    def _command_ended(self, status: int) -> None:
        self.state.exit_status = status
        self._end(f"its command ended with status {status}")

    # -- what the machine reports

    def _machine_event(self, machine: Any, what: str) -> None:
        """From any thread: ``poweroff``, ``reset``, ``triple fault``, ``debug`` or ``error: ...``."""
        self.loop.call_soon_threadsafe(lambda: self._handle(machine, what))

    def _handle(self, machine: Any, what: str) -> None:
        if self.ended or machine is not self.machine:
            return
        if what == "debug":
            self.debugger.met()
        elif what == "poweroff":
            self._end("poweroff")
        elif what in ("reset", "triple fault"):
            # Later, when nothing here refers to the old machine any more: its memory must go before another comes.
            self.loop.call_later(0, functools.partial(self._reset, what))
        else:
            self._end(what)

    def _reset(self, why: str) -> None:
        """A new machine in the old one's place: no state of the old one can be left."""
        if self.ended:
            return
        now = time.time()
        self._resets += 1
        booted = self.exec.ready
        self._quick_resets = 0 if booted or now - self._last_start > QUICK else self._quick_resets + 1
        if self._quick_resets >= MAX_QUICK_RESETS:
            self._drain()
            cause = "a triple fault" if why == "triple fault" else "the guest itself"
            word = self.console.last_word()
            self._end(f"the guest doesn't boot: {MAX_QUICK_RESETS} resets in a row, by {cause}{word and ': ' + word}")
            return
        paused = self.state.state == "paused"
        self._last_start = now
        self.machine.stop()
        if self._trace:
            self._trace.take()
        self._drain()
        self._disconnect()
        self.machine.close()
        del self.machine
        gc.collect()  # the old machine's memory goes before the new one's comes
        self.machine = self._machine_type(self.spec, self.files, self.loop, self._machine_event)
        if self._trace:
            self._trace.follow(self.machine.engine)
        if self._counting:
            self.machine.engine.count_instructions(True)
        self._connect()
        self.server.event(event="reset", reason=why)
        if self.debugger.attached:
            self.debugger.replaced()
        elif not paused:
            self.machine.start()

    def _drain(self) -> None:
        """What a stopped guest has written but nobody read yet."""
        while data := self.machine.console.take():
            self.console.output(data)
        self.exec.pump()

    def _end(self, reason: str) -> None:
        """Stop the machine, tell everybody, and leave when they have read it."""
        if self.ended:
            return
        self.ended = True
        self.machine.stop()
        self.debugger.close()
        if self._perf_map:
            self._perf_map.update()
        if self._trace:
            self._trace.take()
        self._drain()
        self.exec.finish(f"'{self.spec.name}' ended: {reason}")
        self._disconnect()
        self.machine.close()
        self.state.state, self.state.stopped, self.state.reason = "stopped", time.time(), reason
        try:
            self.folder.write_last_state(self.state)
        except HostelError as e:
            print(f"worker: {e}", file=sys.stderr)
        self.console.finish()
        for waiter in self._agent_waiters:
            waiter.failed(f"'{self.spec.name}' ended before it took commands: {reason}")
        for waiter in self._waiters:
            waiter.done(msgspec.to_builtins(self.state))
        self.server.event(event="stopped", reason=reason, exit_status=self.state.exit_status)
        deadline = time.monotonic() + END_TIMEOUT
        self._leave(deadline)

    def _leave(self, deadline: float) -> None:
        unread = any(connection.unsent for connection in self.server.connections)
        if unread and time.monotonic() < deadline:
            self.loop.call_later(0.01, lambda: self._leave(deadline))
        else:
            self.loop.stop()

    def close(self) -> None:
        """The folder is left as it should be found: with the state, or not at all."""
        self.log.close()
        try:
            if self.spec.remove and self._leash < 0:  # else who holds it removes it, having read the state
                self.folder.delete()
            else:
                (self.folder.path / "control.sock").unlink(missing_ok=True)
        except (HostelError, OSError) as e:
            print(f"worker: {e}", file=sys.stderr)
        self.server.close()

    def _failed(self, error: BaseException) -> None:
        """An exception in a callback: a bug of ours. It is logged, and the VM goes on."""
        traceback.print_exception(error, file=sys.stderr)

    # -- the control socket's methods; names and parameters in spec/rpc

    def do_status(self, connection: Connection, params: rpc.Nothing) -> dict:
        return dict(msgspec.to_builtins(self.state))

    def do_inspect(self, connection: Connection, params: rpc.Nothing) -> dict:
        return {
            "name": self.spec.name,
            "spec": msgspec.to_builtins(self.spec),
            "state": msgspec.to_builtins(self.state),
            "agent": self.exec.ready,
            "debugger": self.debugger.attached,
            "confinement": self.confinement,
            "statistics": {
                **({} if self.ended else self.machine.statistics()),
                "console": self.console.statistics(),
                "exec": self.exec.statistics(),
                "control": {"connections": len(self.server.connections)},
                "resets": self._resets,
            },
        }

    def do_counters(self, connection: Connection, params: rpc.Nothing) -> dict:
        self._must_live()
        return {"time": time.monotonic(), **self.machine.counters()}

    def do_count(self, connection: Connection, params: rpc.Count) -> bool:
        self._must_live()
        before = bool(self._counting)
        (self._counting.add if params.on else self._counting.discard)(connection)
        connection.on_close = lambda: self._stop_counting(connection)
        self._count(before)
        return True

    def _stop_counting(self, connection: Connection) -> None:
        before = bool(self._counting)
        self._counting.discard(connection)
        if not self.ended:
            self._count(before)

    def _count(self, before: bool) -> None:
        """Instructions are counted by other translations: the vCPUs change over to them while they stand still."""
        if bool(self._counting) != before:
            running = self.debugger.running if self.debugger.attached else self.state.state == "running"
            if running:
                self.machine.stop()
            self.machine.engine.count_instructions(not before)
            if running:
                self.machine.start()

    def do_subscribe(self, connection: Connection, params: rpc.Nothing) -> bool:
        connection.subscribed = True
        return True

    def do_wait(self, connection: Connection, params: rpc.Nothing) -> Any:
        if self.ended:
            return msgspec.to_builtins(self.state)
        later = Later()
        self._waiters.append(later)
        return later

    def do_wait_agent(self, connection: Connection, params: rpc.Nothing) -> Any:
        self._must_live()
        if not self.spec.agent:
            raise MachineError(f"'{self.spec.name}' takes no commands: it was given a kernel, so it has no agent")
        if self.exec.ready:
            return True
        later = Later()
        self._agent_waiters.append(later)
        return later

    def do_pause(self, connection: Connection, params: rpc.Nothing) -> bool:
        self._must_live()
        self._must_be_free()
        if self.state.state == "running":
            self.machine.stop()
            self._set_state("paused")
        return True

    def do_resume(self, connection: Connection, params: rpc.Nothing) -> bool:
        self._must_live()
        self._must_be_free()
        if self.state.state == "paused":
            self.machine.start()
            self._set_state("running")
        return True

    def do_reset(self, connection: Connection, params: rpc.Nothing) -> bool:
        self._must_live()
        self._quick_resets = -1  # a person's wish is no failure to boot
        self._reset("reset")
        return True

    def do_stop(self, connection: Connection, params: rpc.Stop) -> bool:
        self._must_live()
        if self.state.state == "paused" and not self.debugger.attached:
            self.do_resume(connection, rpc.Nothing())
        asked = self.exec.power_off() or self.machine.press_power_button()
        grace = max(0.0, params.grace) if asked else 0.0
        self.loop.call_later(grace, lambda: self._end("stopped: it didn't power off by itself"))
        return True

    def do_quit(self, connection: Connection, params: rpc.Quit) -> bool:
        self.loop.call_later(0, lambda: self._end(params.reason))
        return True

    def do_console(self, connection: Connection, params: rpc.Console) -> Upgrade:
        self._must_live()
        return Upgrade(lambda c: self.console.attach(c, params.replay))

    def do_exec(self, connection: Connection, params: rpc.Exec) -> Upgrade:
        self._must_live()
        if not self.exec.ready:
            raise MachineError(f"'{self.spec.name}' doesn't take commands yet")
        if not params.argv:
            raise MachineError("exec: no command")
        return Upgrade(lambda c: self.exec.attach(c, params))

    def do_resize(self, connection: Connection, params: rpc.Resize) -> bool:
        self._resized(params.rows, params.cols)
        return True

    # -- a debugger's (vm/debug)

    def do_debug(self, connection: Connection, params: rpc.Debug) -> dict:
        self._must_live()

        def let_go() -> None:
            if self.state.state == "running" and not self.ended:
                self.machine.start()

        return self.debugger.attach(connection, self.state.state == "running", let_go)

    def do_debug_state(self, connection: Connection, params: rpc.DebugVcpu) -> dict:
        return self._debugger(connection).state(params.vcpu)

    def do_debug_set_state(self, connection: Connection, params: rpc.DebugSetState) -> bool:
        return self._debugger(connection).set_state(params.vcpu, params.state)

    def do_debug_translate(self, connection: Connection, params: rpc.DebugTranslate) -> int | None:
        return self._debugger(connection).translate(params.vcpu, params.address)

    def do_debug_read(self, connection: Connection, params: rpc.DebugRead) -> bytes:
        return self._debugger(connection).read(params)

    def do_debug_write(self, connection: Connection, params: rpc.DebugWrite) -> int:
        return self._debugger(connection).write(params)

    def do_debug_points(self, connection: Connection, params: rpc.DebugPoints) -> bool:
        return self._debugger(connection).points(params.breaks, params.watches)

    def do_debug_go(self, connection: Connection, params: rpc.DebugGo) -> bool:
        debugger = self._debugger(connection)
        debugger.go(params)
        if self.state.state == "paused":
            self._set_state("running")
        return True

    def do_debug_interrupt(self, connection: Connection, params: rpc.Nothing) -> bool:
        return self._debugger(connection).interrupt()

    def _debugger(self, connection: Connection) -> Debugger:
        self._must_live()
        if not self.debugger.held_by(connection):
            raise MachineError("this connection isn't the debugger's: call 'debug' first")
        return self.debugger

    def _must_be_free(self) -> None:
        if self.debugger.attached:
            raise MachineError(f"a debugger holds '{self.spec.name}'")

    def _must_live(self) -> None:
        if self.ended:
            raise MachineError(f"'{self.spec.name}' has ended: {self.state.reason}")

    def _set_state(self, state: str) -> None:
        self.state.state = state
        self.folder.write_state(self.state)
        self.server.event(event="state", state=state)


def _tell(ready: int, word: dict) -> None:
    """The first word, to vm/launch."""
    if ready >= 0:
        try:
            os.write(ready, json.dumps(word).encode() + b"\n")
        except OSError:
            pass  # who started us has gone
        os.close(ready)


def main(argv: list[str], build: Callable[[Folder, int], Worker] = Worker) -> int:
    ready = int(os.environ.pop("HOSTEL_READY_FD", "-1"))
    leash = int(os.environ.pop("HOSTEL_LEASH_FD", "-1"))
    confine.close_strays({fd for fd in (ready, leash) if fd > 2})
    folder = Folder(Path(argv[0]))
    try:
        folder.take()  # the lock; it ends with the process
    except HostelError as error:
        _tell(ready, {"error": str(error)})
        return 1
    try:
        worker = build(folder, leash)
        worker.start()
    except HostelError as error:
        _give_up(folder, str(error))
        _tell(ready, {"error": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        _give_up(folder, f"internal error: {error}")
        _tell(ready, {"error": f"the worker failed: {type(error).__name__}: {error} (HOSTEL_DEBUG=1 shows where)"})
        return 1
    _tell(ready, {"ok": True})
    try:
        return worker.run()
    finally:
        worker.close()


def _give_up(folder: Folder, reason: str) -> None:
    try:
        created = folder.state().created
        folder.write_state(VmState(state="stopped", created=created, stopped=time.time(), reason=f"error: {reason}"))
        (folder.path / "control.sock").unlink(missing_ok=True)
    except (HostelError, OSError):
        pass


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # no thread, no destructor has a say any more
