"""Forks of a running VM: the worker forks while its machine stands still, and each child goes on as a VM of its own.

Guest memory, translated code and the interpreter are shared, copied page by page as somebody writes (the code by
cpu/bt/cache, since it is mapped twice). All else that a child has of its own was opened by who asked for the fork, and
came with the request (``rpc.Hand``): a confined worker opens nothing, and the child inherits its confinement, which
knows the parent's folder only. Descriptors get the numbers of those that they replace, so that nothing that was built
on these has to know.

For several children the worker forks once, and the first child makes the others, so that the VM stands still no longer
than for one.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from hostel.base.errors import MachineError
from hostel.base.linux import eventfd
from hostel.base.log import Log
from hostel.spec import rpc
from hostel.spec.control import Connection, Server
from hostel.spec.vm import VmState
from hostel.vm.checkpoint import Deltas
from hostel.vm.store import HeldFolder

if TYPE_CHECKING:
    from hostel.vm.worker import Worker

MOST = 1000               # children at once
_FILES = 7                # lock, state, two logs of two files each, control socket


class Child:
    """A VM to be, and what it was handed."""

    def __init__(self, params: rpc.Hand, fds: list[int]):
        self.spec = params.spec
        self.disks = params.disks
        self.fds = fds
        count = _FILES + params.leash + sum(params.nics) + 2 * params.vsock
        count += sum(1 + delta.direct for delta in params.disks)
        if len(fds) != count:
            self.close()
            raise MachineError(f"hand: {count} descriptors are needed, not {len(fds)}")
        rest = iter(fds)
        self.lock, self.state, self.console, self.console_old, self.log, self.log_old, self.control = (
            next(rest) for _ in range(_FILES)
        )
        self.leash = next(rest) if params.leash else -1
        self.nics = [[next(rest) for _ in range(number)] for number in params.nics]
        self.vsock = [next(rest) for _ in range(2 * params.vsock)]
        self.disk_fds = list(rest)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Forks:
    """Makes forks of ``worker``'s machine."""

    def __init__(self, worker: "Worker"):
        self._worker = worker
        self._handed: dict[Connection, list[Child]] = {}

    def hand(self, connection: Connection, params: rpc.Hand, fds: list[int]) -> None:
        child = Child(params, fds)
        handed = self._handed.setdefault(connection, [])
        if len(handed) == MOST:
            child.close()
            raise MachineError(f"a VM has up to {MOST} forks at once")
        connection.on_close = lambda: self._dismiss(connection)
        handed.append(child)

    def _dismiss(self, connection: Connection) -> None:
        for child in self._handed.pop(connection, []):
            child.close()

    def blank_disks(self) -> list[int]:
        """Numbers of disks whose tops nothing was written to, as long as the machine stands still."""
        disks = [] if self._worker.running else self._worker.machine.disks()
        return [number for number, disk in enumerate(disks) if disk.blank]

    def fork(self, connection: Connection, params: rpc.Fork, fds: list[int]) -> dict[str, Any] | None:
        """In the parent what ``rpc.Fork`` says; None in a child, which is another VM's worker when this returns."""
        worker = self._worker
        machine, children = worker.machine, self._handed.get(connection, [])
        own = Deltas(machine, params.disks)
        try:
            self._check(machine, children, params.blank)
            own.take(fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        begun = time.monotonic_ns()
        worker.last_fork = time.monotonic()
        running = worker.running
        if running:
            machine.stop()
        worker.drain()
        machine.hold()
        disks = machine.disks()
        for delta in params.disks:
            disks[delta.number].freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
        try:
            pid = os.fork()
        except OSError as e:
            raise MachineError(f"the host makes no more processes: {e.strerror}") from e
        finally:
            if os.getpid() == worker.state.pid:
                own.stack(worker.spec)
                machine.go_on(False)
                if running:
                    machine.start()
        if pid:
            self._dismiss(connection)
            return {"pause_ns": time.monotonic_ns() - begun}
        child = children[0]
        try:
            with contextlib.suppress(OSError):  # too many processes: who asked sees that the others' locks are free
                for other in children[1:]:
                    if os.fork() == 0:
                        child = other
                        break
            for other in children:
                if other is not child:
                    other.close()
            self._handed.clear()
            for fd in fds:
                os.close(fd)
            self._become(child, running or params.run, params.blank)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)  # neither of the two
        return None

    def _check(self, machine: Any, children: Sequence[Child], blank: Sequence[int]) -> None:
        """``MachineError`` where a fork can't be what it should be."""
        name = self._worker.spec.name
        if not children:
            raise MachineError("fork: there is nobody to become: hand them first")
        if machine.full:
            raise MachineError(f"'{name}' waits for room on the host: it can't be forked now")
        if self._worker.checkpoints.busy:
            raise MachineError(f"a snapshot of '{name}' is being written: fork it when that is done")
        if self._worker.observed:
            raise MachineError(f"'{name}' can't be forked: it runs with --trace or --perf-map")
        if not self._worker.complete:
            raise MachineError(f"'{name}' is just starting: its shares aren't mounted yet")
        if not set(blank) <= set(self.blank_disks()):
            raise MachineError(f"'{name}' has written to its disks meanwhile: fork it again")
        for child in children:
            cards = [machine.cards[f"net{number}"].device for number in range(len(child.nics))]
            wires = [len(card.backend.fds) for card in cards]
            if [len(fds) for fds in child.nics] != wires or len(wires) != len(self._worker.spec.nics):
                raise MachineError("hand: the network cards' descriptors aren't as many as the machine's")
            if bool(child.vsock) != ("vsock" in machine.cards):
                raise MachineError("hand: vsock's sockets don't match the machine's card")

    # -- in the child

    def _become(self, child: Child, running: bool, blank: Sequence[int]) -> None:
        """Go on as ``child``. Nothing may touch what is the parent's: its epoll, eventfds and sockets."""
        worker, machine = self._worker, self._worker.machine
        gc.freeze()  # no collection touches what was there before
        eventfd.renew({worker.loop.fileno(), *worker.files.rings()})
        for number, fds in enumerate(child.nics):
            device = machine.cards[f"net{number}"].device
            device.spec = child.spec.nics[number]
            for old, new in zip(device.backend.fds, fds, strict=True):
                _replace(old, new)
            device.backend.counters = None
        if child.vsock:
            backend = machine.cards["vsock"].device.backend
            for old, new in zip((backend.listener.fileno(), backend.broker.fd), child.vsock, strict=True):
                _replace(old, new)
        worker.loop.renew()
        for fd in (worker.folder.lock_fd, worker.leash):
            if fd >= 0:
                worker.loop.unwatch(fd)
                os.close(fd)
        worker.server.close()
        deltas = Deltas(machine, child.disks)
        deltas.take(child.disk_fds)
        deltas.stack(child.spec, blank)
        worker.log.become(child.console, child.console_old)
        cast(Log, sys.stderr).become(child.log, child.log_old)
        worker.folder = HeldFolder(worker.folder.path.parent / child.spec.name, child.lock, child.state)
        before, worker.spec = worker.spec, child.spec
        worker.files.become(child.spec)
        now = time.time()
        worker.state = VmState(
            state="running" if running else "paused", pid=os.getpid(), created=now, started=now,
        )
        worker.folder.write_state(worker.state)
        listener = socket.socket(fileno=child.control)
        worker.become(before, Server(worker.loop, listener, worker.methods(), rpc.Words()), child.leash)
        machine.go_on(True)
        if running:
            machine.start()


def _replace(old: int, new: int) -> None:
    os.dup2(new, old, inheritable=False)
    os.close(new)
