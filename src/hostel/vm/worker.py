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
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec

from hostel.base.errors import HostelError, MachineError
from hostel.base.log import Log
from hostel.base.loop import READ, Loop, Timer
from hostel.base.units import format_size
from hostel.spec import rpc
from hostel.spec.control import Connection, Later, Server, Upgrade, listen
from hostel.spec.share import ShareSpec
from hostel.spec.vm import VmSpec, VmState
from hostel.vm import confine, translations
from hostel.vm.checkpoint import Checkpoints
from hostel.vm.console import Console
from hostel.vm.debug import Debugger
from hostel.vm.exec import Exec
from hostel.vm.fork import Forks
from hostel.vm.perfmap import PerfMap
from hostel.vm.saved import Base
from hostel.vm.snapshot import Snapshot
from hostel.vm.store import Folder
from hostel.vm.symbols import Symbols
from hostel.vm.trace import Trace

WORKER_LOG_SIZE = 1 << 20
END_TIMEOUT = 5.0       # seconds that clients have to read the rest when the VM has ended
LOST = 125              # a command's status where it was lost with its agent
QUICK = 20.0            # a reset sooner than this after the last one, with no agent seen, is a failure to boot
MAX_QUICK_RESETS = 3
RETRY = 1.0             # seconds between looks whether there is room again for disks
SETTLE = 0.2            # after which a retry that didn't help has said so


class Worker:
    """One VM, from its folder to its end; ``run()`` returns the process's exit status."""

    def __init__(self, folder: Folder, leash: int = -1, snapshot: Snapshot | None = None):
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
        self.leash = leash
        self._resets = 0
        self._quick_resets = 0
        self._last_start = 0.0
        (folder.path / "control.sock").unlink(missing_ok=True)
        fd = os.open(folder.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener = listen(fd, "control.sock")
        finally:
            os.close(fd)
        self.server = Server(self.loop, listener, self.methods(), rpc.Words())
        self.log = Log(folder.path / "console.log")
        # What a guest can make us print must not fill the disk.
        sys.stderr = cast(TextIO, Log(folder.path / "worker.log", WORKER_LOG_SIZE))
        from hostel.vm.machine import BootFiles, Machine  # everything compiled comes in here

        gc.freeze()  # what there is by now stays: collections are for machines that have gone
        self.files = BootFiles(self.spec, snapshot is not None)
        self._machine_type = Machine
        self._snapshot = snapshot
        self._base = snapshot.open() if snapshot else None
        self.machine = Machine(self.spec, self.files, self.loop, self._machine_event, blank=snapshot is not None)
        self.kept = translations.Kept(self.machine.engine) if translations.enabled() else None
        if self.kept:
            self.kept.give(self.machine.engine)
        self.console = Console(self.loop, self.log, self._write_console, self._resized)
        self.console.on_ready = self._read_console
        self.exec = Exec(self.loop, self._agent_ready, self.spec)
        self.checkpoints = Checkpoints(self)
        self.forks = Forks(self)
        self._stale: VmSpec | None = None  # it has yet to be, when it runs: it was that VM
        self.last_fork = time.monotonic()
        self._window = (0, 0)
        self._full = ""               # why the machine waits for room on the host, if it does
        self._retry_timer: Timer | None = None
        self._room_waiters: list[Later] = []
        self._unmounted: list[ShareSpec] = []
        self._ending = ""    # why the guest is powering off, where we know better
        self.debugger = Debugger(lambda: self.machine, self.spec.name)
        self._perf_map: PerfMap | None = None
        self._trace: Trace | None = None
        self._counting: set[Connection] = set()
        self._starts_paused = self.spec.debug or (snapshot is not None and snapshot.manifest.paused)
        self._command_begun = False
        self._reverting: Connection | None = None  # it waits for that one's word to go on

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
        self.confinement = confine.confine(
            self.folder.path, profiled=self.spec.perf_map, rings=self.files.rings(), shares=self.files.shares()
        )
        if self._snapshot and self._base:
            self._resume(self._base)
        self._go_on(self._snapshot.manifest.spec if self._snapshot else None)
        if self._perf_map:
            self._perf_map.start()
        self._hold_leash()
        if self.spec.idle:
            self._end_idle()

    def _go_on(self, before: VmSpec | None) -> None:
        """The machine is as it should be; where it is from a snapshot, that was of the VM ``before``."""
        self._stale = before
        if before and not self._starts_paused:
            self._renew(before)
        self._connect()
        self.state.state = "paused" if self._starts_paused else "running"
        self.has_started()
        self.server.event(event="state", state=self.state.state)
        if self._starts_paused:
            self.machine.stand_still()
        else:
            self.machine.start()

    def has_started(self) -> None:
        """Before the guest does anything: what may have been saved of an earlier run is out of date."""
        self.state.started = self._last_start = time.time()
        self.folder.write_state(self.state)

    def _hold_leash(self) -> None:
        if self.leash >= 0:
            self.loop.watch(self.leash, READ, lambda _: self._leash_moved())

    def _end_idle(self) -> None:
        """End once nobody has forked it for as long as its spec says."""
        left = self.last_fork + self.spec.idle - time.monotonic()
        if self.spec.idle and left <= 0:
            self.end("nobody wanted a copy of it")
        elif self.spec.idle and not self.ended:
            self.loop.call_later(left, self._end_idle)

    def run(self) -> int:
        self.loop.run()
        return 0

    def methods(self) -> dict[str, Callable[[Connection, Any], Any]]:
        """Of the control socket."""
        return {name: getattr(self, f"do_{name}") for name in rpc.PARAMS}

    @property
    def observed(self) -> bool:
        """Whether files are being written about it that are one VM's."""
        return self._trace is not None or self._perf_map is not None

    def become(self, before: VmSpec, server: Server, leash: int) -> None:
        """In a forked child, whose VM is another than ``before`` by now: nobody waits for it yet."""
        self.server = server
        self.leash = leash
        self._hold_leash()
        self._stale = None
        self._waiters, self._agent_waiters, self._room_waiters = [], [], []
        if self.kept:
            self.kept.leave(self.machine.engine)
        if self._counting:
            self._counting.clear()
            self.machine.engine.count_instructions(False)
        self._resets = 0
        self._renew(before)

    def _signalled(self, number: int, frame: object) -> None:
        self.loop.call_soon_threadsafe(lambda: self.end(f"ended by {signal.Signals(number).name}"))

    def _leash_moved(self) -> None:
        word = os.read(self.leash, 1)
        self._drop_leash()
        if not word:
            self.end("who started it ended")

    def _drop_leash(self) -> None:
        self.loop.unwatch(self.leash)
        os.close(self.leash)
        self.leash = -1

    # -- the serial ports

    def _connect(self) -> None:
        port = self.machine.console
        self.loop.watch(port.tx_fd, READ, lambda _: self._read_console())
        self.loop.watch(port.rx_fd, READ, lambda _: self._console_room())
        self.exec.connect(self.machine.agent_port)

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
        self._unmounted = list(self.spec.shares)
        # What a copy is told later, a guest that has just started hears too: the host's entropy is better than its own,
        # and what it runs for this is translated when it is forked.
        self.machine.new_generation(os.urandom(16))
        self._tell_identity(None)
        self._mount()

    def _mount(self) -> None:
        """Have the guest mount the next share; behind the last, it takes commands."""
        if not self._unmounted:
            self._take_commands()
            return
        share = self._unmounted[0]

        def ended(status: int) -> None:
            if status == 0:
                self._unmounted.pop(0)
                self._mount()
            elif status != LOST and not self.ended:
                self.end(f"the guest can't mount {share.source} at {share.target}: {os.strerror(status)}")

        argv = ["agent", "mount", share.tag, share.target, *(["ro"] if share.readonly else [])]
        self.exec.run_detached(argv, self.console.output, ended, itself=True)

    @property
    def complete(self) -> bool:
        """Whether the guest isn't in the middle of being prepared for commands."""
        return not self._unmounted

    @property
    def _takes_commands(self) -> bool:
        return self.exec.ready and self.complete

    @property
    def running(self) -> bool:
        """Whether the vCPUs do."""
        return self.debugger.running if self.debugger.attached else self.state.state == "running"

    def _take_commands(self) -> None:
        self.server.event(event="agent", ready=True)
        waiters, self._agent_waiters = self._agent_waiters, []
        for waiter in waiters:
            waiter.done(True)
        if self.spec.command and not self._command_begun:
            self._command_begun = True
            self.exec.run_detached(self.spec.command, self.console.output, self._command_ended)

    def _renew(self, before: VmSpec) -> None:
        """The guest goes on from a snapshot, or as a copy of the VM that ``before`` is: have it take new entropy, the
        time, and who it is. It does before it looks at what it is asked for later."""
        self._stale = None
        self.machine.new_generation(os.urandom(16))
        if self.exec.ready:
            self._tell_identity(before)
            self._renew_network(before)

    def _tell_identity(self, before: VmSpec | None) -> None:
        """Entropy and time, and a copy who it is; one that has just started (``before`` is None) only where it keeps
        nothing of its own."""
        words = [f"{'' if before else 'set-'}time={time.time():.9f}", f"entropy={os.urandom(48).hex()}"]
        if before.name != self.spec.name if before else not self.spec.disks:
            words += [f"hostname={self.spec.name.replace('_', '-')}", f"machine-id={os.urandom(16).hex()}"]
        self._tell(words)

    def _tell_time(self) -> None:
        """To a guest that goes on after a pause: its clocks have stood still."""
        if self.exec.ready:
            self._tell([f"time={time.time():.9f}"])

    def _tell(self, words: list[str]) -> None:
        self.exec.run_detached(["agent", "identity", *words], self._note, self._renewed, itself=True)

    def _renew_network(self, before: VmSpec) -> None:
        """The same for its cards, which takes the guest longer."""
        words = []
        for number, (old, new) in enumerate(zip(before.nics, self.spec.nics, strict=True)):
            if old.mac != new.mac:  # what its driver has may be another's before that, if this comes soon after
                words.append(f"mac={self.machine.mac(number)}:{new.mac}")
        if words:
            self._tell(words)
        else:
            self.machine.announce()

    def _renewed(self, status: int) -> None:
        if status and status != LOST:
            print(f"worker: the guest's agent couldn't make it another machine: status {status}", file=sys.stderr)

    def _note(self, output: bytes) -> None:
        """What the guest's agent says of what it was to do."""
        print(f"worker: the guest: {output.decode(errors='replace').strip()}", file=sys.stderr)

    def _command_ended(self, status: int) -> None:
        self.state.exit_status = status
        reason = f"its command ended with status {status}"
        if self.spec.oci and self.exec.power_off():  # what it wrote is to be on its disk
            self._ending = reason
            self.loop.call_later(END_TIMEOUT, lambda: self.end(reason))
        else:
            self.end(reason)

    # -- what the machine reports

    def _machine_event(self, machine: Any, what: str) -> None:
        """From any thread: ``poweroff``, ``reset``, ``triple fault``, ``debug``, ``full: ...`` or ``error: ...``."""
        self.loop.call_soon_threadsafe(lambda: self._handle(machine, what))

    def _handle(self, machine: Any, what: str) -> None:
        if self.ended or machine is not self.machine:
            return
        if what == "debug":
            self.debugger.met()
        elif what == "poweroff":
            self.end(self._ending or "poweroff")
        elif what in ("reset", "triple fault"):
            # Later, when nothing here refers to the old machine any more: its memory must go before another comes.
            self.loop.call_later(0, functools.partial(self._reset, what))
        elif what.startswith("full: "):
            self._no_room(what.removeprefix("full: "))
        else:
            self.end(what)

    # -- no room on the host: the machine stands still, and nothing is lost

    def _no_room(self, why: str) -> None:
        """A disk's write didn't fit. The vCPUs stop until it does, looked at every second and at every ``resume``."""
        if not self._full:
            self._full = why
            print(f"worker: {why}; paused until there is room", file=sys.stderr)
            if self.state.state == "running":
                if not self.debugger.attached:
                    self.machine.stop()
                self._set_state("paused", why)
        if self._retry_timer:
            self._retry_timer.cancel()
        self._retry_timer = self.loop.call_later(RETRY, self._retry)

    def _retry(self) -> None:
        if self._full and not self.ended:
            self.machine.retry()
            self.loop.call_later(SETTLE, functools.partial(self._room, self.machine))

    def _room(self, machine: Any) -> None:
        """Some time after a retry: go on, unless it didn't help."""
        if not self._full or self.ended or machine is not self.machine:
            return
        waiters, self._room_waiters = self._room_waiters, []
        if machine.full:
            for waiter in waiters:
                waiter.failed(self._full)
            return
        self._full = ""
        if self.state.reason:  # else a person paused it
            if not self.debugger.attached:
                self._tell_time()
                self.machine.start()
            self._set_state("running")
        for waiter in waiters:
            waiter.done(True)

    def _reset(self, why: str) -> None:
        """A new machine in the old one's place: no state of the old one can be left."""
        if self.ended:
            return
        now = time.time()
        self._resets += 1
        booted = self.exec.ready
        self._quick_resets = 0 if booted or now - self._last_start > QUICK else self._quick_resets + 1
        if self._quick_resets >= MAX_QUICK_RESETS:
            self.drain()
            cause = "a triple fault" if why == "triple fault" else "the guest itself"
            word = self.console.last_word()
            self.end(f"the guest doesn't boot: {MAX_QUICK_RESETS} resets in a row, by {cause}{word and ': ' + word}")
            return
        if self._full:
            self._full = ""
            if self.state.reason:
                self._set_state("running")
        paused = self.state.state == "paused"
        self._last_start = now
        self._command_begun = False
        try:
            self.replace_machine()
        except Exception as error:  # the guest may have left a disk that doesn't boot any more
            self._end_of_error(f"it can't be reset: {error}", error)
            return
        self._connect()
        self.server.event(event="reset", reason=why)
        if self.debugger.attached:
            self.debugger.replaced()
        elif not paused:
            self.machine.start()

    def replace_machine(self, base: Base | None = None, before: Callable[[], None] = lambda: None) -> None:
        """A new machine in the old one's place, which has gone by ``before``; not connected yet. ``base``: the snapshot
        that it is to go on from."""
        self.machine.stop()
        if self._trace:
            self._trace.take()
        self.drain()
        self._disconnect()
        self.machine.close()
        old = self.machine if base and self.checkpoints.stands_on(base) else None
        self.checkpoints.forget()
        if not old and self.kept:
            self.kept.take(self.machine.engine)
        self.machine = cast(Any, _NoMachine())
        if not old:
            gc.collect()  # the old machine's memory goes before the new one's comes
        before()
        self.machine = self._machine_type(
            self.spec, self.files, self.loop, self._machine_event, blank=base is not None, on=old
        )
        if not old:
            if self.kept:
                self.kept.give(self.machine.engine)
            if self._trace:
                self._trace.follow(self.machine.engine)
            if self._counting:
                self.machine.engine.count_instructions(True)
        if base:
            self._resume(base, old is not None)

    def _resume(self, base: Base, kept: bool = False) -> None:
        """All that the worker keeps beside the disks is as it was when the snapshot was taken."""
        saved = self.checkpoints.resume(base, kept)
        self.console.load(saved.console)
        self.exec.load(saved.exec, self.console.output, self._command_ended)
        self._command_begun = bool(saved.exec["main"])

    def _end_of_error(self, reason: str, error: BaseException) -> None:
        if not isinstance(error, HostelError):
            traceback.print_exception(error, file=sys.stderr)
        self.end(f"error: {reason}")

    def drain(self) -> None:
        """What a stopped guest has written but nobody read yet."""
        while data := self.machine.console.take():
            self.console.output(data)
        self.exec.pump()

    def end(self, reason: str) -> None:
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
        self.drain()
        self.exec.finish(f"'{self.spec.name}' ended: {reason}")
        self._disconnect()
        if self.kept and self.machine.engine:
            self.kept.take(self.machine.engine)
        self.machine.close()
        self.files.close()
        self.state.state, self.state.stopped, self.state.reason = "stopped", time.time(), reason
        try:
            self.folder.write_state_anyway(self.state)
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
            # Who holds it removes it, having read the state; who suspended it wants it later.
            if self.spec.remove and self.leash < 0 and self.state.reason != "suspended":
                self.folder.delete()
            else:
                self.folder.drop_socket()
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
            "agent": self._takes_commands,
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
            running = self.running
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
        if self._takes_commands:
            return True
        later = Later()
        self._agent_waiters.append(later)
        return later

    def do_snapshot(self, connection: Connection, params: rpc.Snapshot) -> Any:
        self._must_live()
        self._must_be_free()
        return self.checkpoints.take(connection, params, connection.take_fds())

    def do_revert(self, connection: Connection, params: rpc.Revert) -> bool:
        self._must_live()
        found = self.checkpoints.find(params, connection.take_fds())
        if found is None:
            return False
        base, deltas = found
        if self.leash >= 0 and not params.held:
            self._drop_leash()
            self._set_state(self.state.state, "reverted")  # who held it knows by that
        self._reverting = connection
        connection.on_close = lambda: self.end("reverted")

        def discard() -> None:
            deltas.go_back(self.spec)
            self.files.forget()

        try:
            self.replace_machine(base, discard)
        except Exception as error:
            self._reverting = None
            self._end_of_error(f"it can't be reverted: {error}", error)
            raise
        self._unmounted, self._ending, self._quick_resets = [], "", 0
        self._starts_paused = self.spec.debug or params.paused
        return True

    def do_reverted(self, connection: Connection, params: rpc.Nothing) -> bool:
        if self._reverting is not connection or self.ended:
            raise MachineError(f"'{self.spec.name}' wasn't reverted by this connection")
        self._reverting = connection.on_close = None
        self._go_on(self.spec)
        if self._takes_commands and self._agent_waiters:
            self._take_commands()
        return True

    def do_hand(self, connection: Connection, params: rpc.Hand) -> bool:
        self.forks.hand(connection, params, connection.take_fds())
        return True

    def do_blank_disks(self, connection: Connection, params: rpc.Nothing) -> list[int]:
        self._must_live()
        return self.forks.blank_disks()

    def do_fork(self, connection: Connection, params: rpc.Fork) -> Any:
        self._must_live()
        self._must_be_free()
        return self.forks.fork(connection, params, connection.take_fds())

    def do_rehearse(self, connection: Connection, params: rpc.Nothing) -> bool:
        """Have the guest go on as if it were a copy with other MACs (``become``); the next time back as it was."""
        self._must_live()
        before = msgspec.structs.replace(self.spec, name="", nics=[*self.spec.nics])
        for number, nic in enumerate(before.nics):
            other = msgspec.structs.replace(nic, mac=f"{nic.mac[:-2]}{int(nic.mac[-2:], 16) ^ 1:02x}")
            self.spec.nics[number] = self.machine.cards[f"net{number}"].device.spec = other
        self._renew(before)
        return True

    def do_balloon(self, connection: Connection, params: rpc.Balloon) -> dict[str, Any]:
        self._must_live()
        card = self.machine.cards.get("balloon")
        if card is None:
            raise MachineError(f"'{self.spec.name}' has no balloon: run it with --device balloon")
        balloon: Any = card.device
        if params.size is not None:
            if not 0 <= params.size <= self.spec.memory:
                raise MachineError(f"'{self.spec.name}' has no more than {format_size(self.spec.memory)} of memory")
            balloon.set_target(params.size)
        balloon.ask()
        return dict(balloon.statistics())

    def do_grow_disk(self, connection: Connection, params: rpc.GrowDisk) -> bool:
        self._must_live()
        card = self.machine.cards.get(f"disk{params.number}")
        if card is None:
            raise MachineError(f"'{self.spec.name}' has no disk {params.number}: they count from 0")
        disk: Any = card.device
        if params.size < disk.size or params.size % 512:
            raise MachineError(f"a disk grows to whole sectors of 512 bytes; it has {disk.size}, not {params.size}")
        disk.resize(params.size)
        return True

    def do_pause(self, connection: Connection, params: rpc.Nothing) -> bool:
        self._must_live()
        self._must_be_free()
        if self.state.state == "running":
            self.machine.stop()
        self._set_state("paused")
        return True

    def do_resume(self, connection: Connection, params: rpc.Nothing) -> Any:
        self._must_live()
        self._must_be_free()
        if self._full:
            later = Later()
            self._room_waiters.append(later)
            self.state.reason = self._full
            self._retry()
            return later
        if self.state.state == "paused":
            if self._stale:
                self._renew(self._stale)
            else:
                self._tell_time()
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
        self.loop.call_later(grace, lambda: self.end("stopped: it didn't power off by itself"))
        return True

    def do_quit(self, connection: Connection, params: rpc.Quit) -> bool:
        self.loop.call_later(0, lambda: self.end(params.reason))
        return True

    def do_console(self, connection: Connection, params: rpc.Console) -> Upgrade:
        self._must_live()
        return Upgrade(lambda c: self.console.attach(c, params.replay))

    def do_exec(self, connection: Connection, params: rpc.Exec) -> Upgrade:
        self._must_live()
        if not self._takes_commands:
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
        if self._reverting:
            raise MachineError(f"'{self.spec.name}' is being reverted")
        if self.ended:
            raise MachineError(f"'{self.spec.name}' has ended: {self.state.reason}")

    def _set_state(self, state: str, reason: str = "") -> None:
        if state == "paused":
            self.machine.stand_still()
        self.state.state, self.state.reason = state, reason
        self.folder.write_state_anyway(self.state)
        self.server.event(event="state", state=state, **({"reason": reason} if reason else {}))


class _NoMachine:
    """In the place of a machine that couldn't be built, until the worker has ended."""

    full = False
    engine = None

    def __init__(self) -> None:
        self.console = types.SimpleNamespace(tx_fd=-1, rx_fd=-1, take=lambda: b"")

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def _tell(ready: int, word: dict) -> None:
    """The first word, to vm/launch."""
    if ready >= 0:
        try:
            os.write(ready, json.dumps(word).encode() + b"\n")
        except OSError:
            pass  # who started us has gone
        os.close(ready)


def main(argv: list[str], build: Callable[..., Worker] = Worker) -> int:
    ready = int(os.environ.pop("HOSTEL_READY_FD", "-1"))
    leash = int(os.environ.pop("HOSTEL_LEASH_FD", "-1"))
    path = os.environ.pop("HOSTEL_SNAPSHOT", "")
    confine.close_strays({fd for fd in (ready, leash) if fd > 2})
    folder = Folder(Path(argv[0]))
    try:
        folder.take()  # the lock; it ends with the process
    except HostelError as error:
        _tell(ready, {"error": str(error)})
        return 1
    try:
        worker = build(folder, leash, Snapshot.read(Path(path))) if path else build(folder, leash)
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
