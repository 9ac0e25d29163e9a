"""A debugger's hold on a running machine: the worker's half of ``hostel debug`` and of the SDK's ``VM.debug``.

One connection to the control socket is the debugger. While it holds the machine, this decides when the vCPUs run:
all of them stop when one meets a breakpoint, a watchpoint or the end of a step, and each such meeting is told as an
event, one at a time. What the others met in the same moment is told when the machine would go on. When the connection
ends, in whatever way, the points are gone and the machine goes on as if nothing had been.

Everything here runs on the loop's thread; the vCPUs' threads leave word in ``Machine.debug_met``.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from hostel.base.errors import MachineError, MemoryError_
from hostel.cpu import paging
from hostel.cpu.state import VcpuState
from hostel.spec import rpc
from hostel.spec.control import Connection

_KINDS = {"write": 1, "read": 2, "access": 3}
_MAX_READ = 256 << 10   # a reply must fit a line of the control socket


class Machine(Protocol):
    """What this needs of vm/machine."""

    ram: Any
    engine: Any
    debug_met: deque[tuple[int, str, int]]

    def start(self, only: list[int] | None = None) -> None: ...
    def stop(self) -> None: ...


class Debugger:
    """``machine()`` is asked each time, as a reset brings another one."""

    def __init__(self, machine: Callable[[], Machine], name: str):
        self._machine = machine
        self._name = name
        self._connection: Connection | None = None
        self._breaks: list[int] = []
        self._watches: list[tuple[int, int, int]] = []
        self._applied: tuple = ([], [])
        self.running = False

    @property
    def attached(self) -> bool:
        return self._connection is not None

    def held_by(self, connection: Connection) -> bool:
        return connection is self._connection

    def attach(self, connection: Connection, was_running: bool, let_go: Callable[[], None]) -> dict:
        """Stop the machine and hold it for ``connection``; ``let_go()`` is called when it ends."""
        if self._connection is not None:
            raise MachineError(f"'{self._name}' has a debugger already")
        self._connection = connection
        self._machine().debug_met.clear()
        self.running = was_running
        self.interrupt(tell=False)

        def closed() -> None:
            self._connection = None
            self._stop()
            self._breaks, self._watches = [], []
            self._apply()
            let_go()

        connection.on_close = closed
        return {"vcpus": len(self._machine().engine.vcpus)}

    def close(self) -> None:
        """The machine has ended: nothing is there to be held any more."""
        if self._connection is not None:
            self._connection.on_close = None
            self._connection = None

    def replaced(self) -> None:
        """A reset has brought another machine, which stands still: it gets the points, and goes on as the old one."""
        self._applied = ([], [])
        if self.running:
            self._apply()
            self._machine().start()

    # -- the debugger's wishes

    def state(self, vcpu: int) -> dict:
        state = self._vcpu(vcpu).save_state()
        return dict(msgspec.to_builtins(state))

    def set_state(self, vcpu: int, state: dict) -> bool:
        try:
            new = msgspec.convert(state, VcpuState, str_keys=True)
        except msgspec.ValidationError as e:
            raise MachineError(f"no state of a vCPU: {e}") from e
        self._vcpu(vcpu).change_state(new)
        return True

    def translate(self, vcpu: int, address: int) -> int | None:
        """The physical address of a virtual one."""
        try:
            return paging.translate(self._vcpu(vcpu).save_state(), address, self._machine().ram.read)
        except MemoryError_:
            return None  # tables outside memory

    def read(self, params: rpc.DebugRead) -> bytes:
        """What can be read from there on: at most ``size`` bytes, none where nothing is."""
        out = b""
        for gpa, size in self._pieces(params.vcpu, params.address, min(params.size, _MAX_READ), params.physical):
            out += self._machine().ram.read(gpa, size)
        return out

    def write(self, params: rpc.DebugWrite) -> int:
        """How many bytes were written, from the first on; ROM too."""
        done = 0
        machine = self._machine()
        for gpa, size in self._pieces(params.vcpu, params.address, len(params.data), params.physical):
            machine.ram.write(gpa, params.data[done : done + size])
            done += size
        return done

    def points(self, breaks: list[int], watches: list[rpc.Watch]) -> bool:
        """What to stop at from the next ``go`` on."""
        if len(breaks) > 256 or len(watches) > 16:
            raise MachineError("256 breakpoints and 16 watchpoints are the most")
        self._breaks = sorted(set(breaks))
        self._watches = [(w.address, w.length, _KINDS[w.kind]) for w in watches]
        return True

    def go(self, params: rpc.DebugGo) -> bool:
        """Let vCPUs run, until one meets something."""
        if self.running:
            raise MachineError(f"'{self._name}' is running")
        vcpus = self._machine().engine.vcpus
        chosen = range(len(vcpus)) if params.only is None else params.only
        for index in (*chosen, *params.step):
            self._vcpu(index)
        met = self._machine().debug_met
        while met:
            index, why, address = met.popleft()
            if index in chosen and (why != "break" or address in self._breaks):
                self._tell(index, why, address)
                return True
        if params.step != list(chosen):  # single instructions don't mind breakpoints
            self._apply()
        for vcpu in vcpus:
            vcpu.debug_go()
        for index in params.step:
            vcpus[index].debug_step(params.interrupts)
        self.running = True
        self._machine().start(sorted(set(chosen) | set(params.step)))
        return True

    def interrupt(self, tell: bool = True) -> bool:
        """Stop all vCPUs."""
        if self.running:
            self._stop()
            if tell:
                self._tell(0, "interrupt", 0)
        return True

    # -- the machine's side

    def met(self) -> None:
        """A vCPU has stopped at something, unless that was told already."""
        met = self._machine().debug_met
        if self.attached and self.running and met:
            self._stop()
            self._tell(*met.popleft())

    def _stop(self) -> None:
        self._machine().stop()
        self.running = False

    def _tell(self, index: int, why: str, address: int) -> None:
        assert self._connection is not None
        self._connection.send_json({
            "method": "event", "params": {"event": "debug", "vcpu": index, "why": why, "address": address}
        })

    def _apply(self) -> None:
        points = (self._breaks, self._watches)
        if points != self._applied:  # all translations go
            self._machine().engine.set_points(*points)
            self._applied = points

    def _vcpu(self, index: int) -> Any:
        if self.running:
            raise MachineError(f"'{self._name}' is running")
        vcpus = self._machine().engine.vcpus
        if not 0 <= index < len(vcpus):
            raise MachineError(f"'{self._name}' has no vCPU {index}")
        return vcpus[index]

    def _pieces(self, vcpu: int, address: int, size: int, physical: bool) -> list[tuple[int, int]]:
        """(physical address, bytes) of a range, page by page, as far as there is memory."""
        state = self._vcpu(vcpu).save_state()
        ram = self._machine().ram
        out = []
        while size > 0:
            n = min(size, paging.PAGE - address % paging.PAGE)
            try:
                gpa = address if physical else paging.translate(state, address, ram.read)
                if gpa is None:
                    break
                ram.view(gpa, n)
            except MemoryError_:
                break
            out.append((gpa, n))
            address, size = (address + n) % (1 << 64), size - n
        return out
