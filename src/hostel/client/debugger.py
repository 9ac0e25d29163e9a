"""A debugger's hold on a VM, for scripts and for ``hostel debug``:

    with vm.debug() as debugger:                # all vCPUs stand still
        debugger.breaks.add(0xffffffff81000000)
        debugger.go()
        stop = debugger.wait()                  # Stop(vcpu=0, why="break", address=...)
        print(hex(debugger.state(stop.vcpu).rip), debugger.read(0, stop.address, 16))

When it is closed, the breakpoints are gone and the VM goes on. Not for several threads at once.
"""

import base64
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hostel.client.connection import Connection, Gone
from hostel.vm.debug import VcpuState

_PIECE = 128 << 10  # bytes of memory a call


class Stop(NamedTuple):
    """Why everything stands still: break (``address`` is where), write, read, access (``address`` is what was watched),
    step, or interrupt."""

    vcpu: int
    why: str
    address: int


class Debugger:
    """Made by ``VM.debug``. ``breaks`` holds linear addresses, ``watches`` (address, bytes, "write"|"read"|"access");
    change them as you like while the VM stands still."""

    def __init__(self, folder: Path):
        self.connection = Connection(folder)
        self.breaks: set[int] = set()
        self.watches: set[tuple[int, int, str]] = set()
        self.running = False
        self._sent: tuple = (set(), set())
        try:
            self.connection.call("subscribe")
            self.vcpus: int = self.connection.call("debug")["vcpus"]
        except BaseException:
            self.connection.close()
            raise

    def state(self, vcpu: int = 0) -> VcpuState:
        """The whole architectural state."""
        return msgspec.convert(self.connection.call("debug_state", vcpu=vcpu), VcpuState, str_keys=True)

    def set_state(self, state: VcpuState, vcpu: int = 0) -> None:
        self.connection.call("debug_set_state", vcpu=vcpu, state=msgspec.to_builtins(state))

    def read(self, vcpu: int, address: int, size: int, physical: bool = False) -> bytes:
        """Memory as the vCPU sees it, or physical; less than ``size`` bytes where the next can't be read."""
        out = b""
        while len(out) < size:
            n = min(size - len(out), _PIECE)
            part = base64.b64decode(
                self.connection.call(
                    "debug_read", vcpu=vcpu, address=(address + len(out)) % (1 << 64), size=n, physical=physical
                )
            )
            out += part
            if len(part) < n:
                break
        return out

    def write(self, vcpu: int, address: int, data: bytes, physical: bool = False) -> int:
        """How many bytes of ``data`` could be written."""
        done = 0
        while done < len(data):
            part = data[done : done + _PIECE]
            n = self.connection.call(
                "debug_write", vcpu=vcpu, address=(address + done) % (1 << 64), physical=physical,
                data=base64.b64encode(part).decode(),
            )
            done += n
            if n < len(part):
                break
        return done

    def translate(self, address: int, vcpu: int = 0) -> int | None:
        """The physical address of a virtual one."""
        found = self.connection.call("debug_translate", vcpu=vcpu, address=address)
        return None if found is None else int(found)

    def go(self, only: Sequence[int] | None = None, step: Sequence[int] = (), interrupts: bool = False) -> None:
        """Let the VM run, or ``only`` some vCPUs. Those in ``step`` do one instruction and stop everything, before
        which ``interrupts`` may come or not. One that stands at a breakpoint stops there at once: step over it."""
        points = (set(self.breaks), set(self.watches))
        if points != self._sent:
            watches: list[dict[str, Any]] = [
                {"address": address, "length": length, "kind": kind} for address, length, kind in sorted(self.watches)
            ]
            self.connection.call("debug_points", breaks=sorted(self.breaks), watches=watches)
            self._sent = points
        self.connection.call(
            "debug_go", only=None if only is None else [*only], step=[*step], interrupts=interrupts
        )
        self.running = True

    def step(self, vcpu: int = 0, interrupts: bool = False) -> Stop:
        """One instruction of one vCPU."""
        self.go(only=[vcpu], step=[vcpu], interrupts=interrupts)
        return self.wait()

    def interrupt(self) -> None:
        """Have the VM stop; ``wait`` tells when it has."""
        self.connection.call("debug_interrupt")

    def poll(self) -> Stop | None:
        """Why it stands still, or None while it runs. ``Gone`` once the VM has ended."""
        for event in self.connection.arrived():
            if event["event"] == "stopped":
                raise Gone(f"'{self.connection.name}' ended: {event['reason']}")
            if event["event"] == "debug":
                self.running = False
                return Stop(event["vcpu"], event["why"], event["address"])
        return None

    def wait(self, timeout: float | None = None) -> Stop:
        """Return when it stands still. ``TimeoutError`` after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (stop := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            select.select([self.connection.sock], [], [], left)
        return stop

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> "Debugger":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
