"""``hostel run --trace``: what the translator does, a line each, in a file.

The engine's vCPUs write records into rings of their own, which the event loop empties; a vCPU whose ring is full waits,
so that a trace has no gaps (but for what happens while the vCPUs are being stopped: then it says how much is missing).
When off, the engine looks at one word where it has left translated code anyway. Each vCPU's lines are in order; those
of several are too, unless one had to wait.

    [    1.234567] vcpu0 block ffffffff81000000 kernel64: 12 instructions, 48 bytes at 1000000 -> 211
    [    1.234570] vcpu0 exit memory ffffffff81000020: read 8 at ffff888000001000
    [    1.234581] vcpu0 fault #PF(4) 401000: at 7ffe0000

Times are seconds since the trace began, addresses hexadecimal; with symbols a name stands behind a place.
"""

import os
from pathlib import Path
from typing import Any

from hostel.base.clock import rdtsc_py, tsc_khz_py
from hostel.base.errors import MachineError
from hostel.base.loop import Loop
from hostel.spec.vm import parse_trace
from hostel.vm.symbols import Symbols

INTERVAL = 0.02

# spec.vm.TRACE_KINDS as the engine's bits
_BITS = {"blocks": 1, "exits": 2 | 4, "faults": 8 | 16}
_LOST, _BLOCK, _EXIT, _RUN, _FAULT, _IRQ = 0, 1, 2, 4, 8, 16
_EXITS = (
    "lookup", "link", "memory", "monitor", "raise", "poll", "poll", "refused", "step", "step", "window",
)  # SK_* of cpu/bt/cache.pxd
_REASONS = ("none", "port", "device", "halt", "shutdown", "kick", "error", "debug")
_ACCESS = ("read", "write", "exec", "change")
_VECTORS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 19: "#XM",
}  # fmt: skip


class Trace:
    """Writes the trace that ``spec`` (spec.vm.parse_trace) asks for."""

    def __init__(self, loop: Loop, spec: str, symbols: Symbols | None = None):
        self._loop = loop
        kinds, path = parse_trace(spec)
        self._bits = sum(_BITS[kind] for kind in set(kinds))
        self._symbols = symbols
        self._engine: Any = None
        self._khz = tsc_khz_py()
        self._start = rdtsc_py()
        self.lost = 0
        try:
            self._fd = os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise MachineError(f"can't write the trace to {path}: {e.strerror}") from e

    def follow(self, engine: Any) -> None:
        """From now on it is that engine's; its vCPUs stand still."""
        first = self._engine is None
        self._engine = engine
        for vcpu in engine.vcpus:
            vcpu.trace(self._bits)
        if first:
            self._again()

    def take(self) -> None:
        """Write down what has come."""
        records = [
            (record, index) for index, vcpu in enumerate(self._engine.vcpus) for record in vcpu.trace_take()
        ]
        records.sort(key=lambda entry: entry[0][0])
        self._write("".join(self._line(index, *record) for record, index in records).encode())

    def _again(self) -> None:
        self.take()
        self._loop.call_later(INTERVAL, self._again)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self.lost += len(data)  # a full disk costs the trace, not the VM

    def _line(self, index: int, tsc: int, kind: int, rip: int, cpl: int, a: int, b: int, c: int) -> str:
        return f"[{(tsc - self._start) / self._khz / 1000:12.6f}] vcpu{index} {self._text(kind, rip, cpl, a, b, c)}\n"

    def _text(self, kind: int, rip: int, cpl: int, a: int, b: int, c: int) -> str:
        place = self._place(rip)
        if kind == _BLOCK:
            mode = self._engine.mode_name(c & 0xFFFFFFFF)
            return f"block {place} {mode}: {c >> 32} instructions, {b & 0xFFFFFFFF} bytes at {a:x} -> {b >> 32}"
        if kind == _EXIT:
            name = _EXITS[c & 0xFF] if c & 0xFF < len(_EXITS) else str(c & 0xFF)
            if name == "memory":
                return f"exit memory {place}: {_ACCESS[c >> 8 & 3]} {b} at {a:x}"
            if name == "monitor":
                return f"exit monitor {place}: {self._engine.instruction_name(b)}"
            return f"exit {name} {self._place(a) if name == 'lookup' else place}"
        if kind == _RUN:
            reason, write, size = c & 0xFF, c >> 8 & 1, c >> 16
            what = f": {'write' if write else 'read'} {size} at {a:x}" + (f" of {b:x}" if write else "")
            return f"exit {_REASONS[reason & 7]} {place}{what if reason in (1, 2) else ''}"
        if kind == _FAULT:
            name = _VECTORS.get(c & 0xFF, f"vector {c & 0xFF}")
            error = f"({b:x})" if c >> 8 & 1 else ""
            return f"fault {name}{error} {place}" + (f": at {a:x}" if c & 0xFF == 14 else "")
        if kind == _IRQ:
            return f"interrupt {c:x} {place}"
        return f"{a} records are missing here"

    def _place(self, address: int) -> str:
        name = self._symbols.name(address) if self._symbols else None
        return f"{address:x} <{name}>" if name else f"{address:x}"
