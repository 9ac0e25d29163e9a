"""/tmp/perf-PID.map: what perf(1) needs to name the guest's code in its samples (``hostel run --perf-map``).

The translator has no hook for it, so it costs nothing when off: once a second, and at the end, the event loop asks the
engine for what it has translated since and appends that. A block is named for its guest address, or for the guest's
symbol where a System.map was given, with its mode and its size in guest bytes; ``cold`` is the rarely run part of it,
which lies apart. When the engine starts its code memory anew, so does the file: older samples have lost their names.

The file is opened before the worker is confined and stays when it ends, since perf report comes later.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostel.base.errors import MachineError
from hostel.base.loop import Loop
from hostel.vm.symbols import Symbols

INTERVAL = 1.0


class PerfMap:
    """``engine()`` is asked each time, as a reset brings another one."""

    def __init__(self, loop: Loop, engine: Callable[[], Any], symbols: Symbols | None = None):
        self._loop = loop
        self._engine = engine
        self._symbols = symbols
        self._of: Any = None        # whose blocks the file holds
        self._epoch = -1
        self._next = 0
        path = Path("/tmp") / f"perf-{os.getpid()}.map"
        try:
            path.unlink(missing_ok=True)  # an earlier process of that number
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise MachineError(f"can't write {path}: {e.strerror}") from e

    def start(self) -> None:
        self.update()
        self._loop.call_later(INTERVAL, self.start)

    def update(self) -> None:
        """Write down what is new."""
        engine = self._engine()
        epoch, position, blocks = engine.translations(self._next if engine is self._of else 0)
        if engine is not self._of or epoch != self._epoch:
            if self._next and engine is self._of:
                epoch, position, blocks = engine.translations(0)
            self._of, self._epoch = engine, epoch
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._next = position
        lines = (f"{start:x} {size:x} {self._name(*what)}\n" for start, size, *what in blocks)
        data = memoryview("".join(lines).encode())
        try:
            while data:
                data = data[os.write(self._fd, data):]
        except OSError:
            pass  # a full disk costs names, not the VM

    def _name(self, pc: int, mode: str, size: int, part: str) -> str:
        if not mode:
            return f"hostel_{part}"
        place = self._symbols.name(pc) if self._symbols else None
        return f"{place or f'guest_{pc:x}'} {mode} {size}B {part}".rstrip()
