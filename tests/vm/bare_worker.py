"""A worker whose machine is the translator with a guest of a few instructions. ``python -m bare_worker``.

Its first vCPU calls WORK for ever, which adds 1 to CELL and has r8 to r15 and ymm1 filled; the others call OTHER for
ever, with their number in rdi. Everything but memory and processors is left out.
"""

import functools
import os
import sys
import threading
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "guests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cpu" / "bt"))

import fake_worker  # noqa: E402
import machine as bare  # noqa: E402

MAIN, WORK, OTHER, CELL = 0x104000, 0x104100, 0x104200, 0x104300
TEXT = """
        .org 0x4000
main:   START_OTHERS
        movabs  r8, 0x8877665544332211
        mov     r14, r8
        mov     r15d, 15
        vmovq   xmm1, r8
        vinserti128 ymm1, ymm1, xmm1, 1
1:      call    work
        jmp     1b
        .org 0x4100
work:   mov     rax, [cell]
        inc     rax
        mov     [cell], rax
        nop
        ret
        .org 0x4200
other:  call    idle
        jmp     other
idle:   nop
        pause
        ret
        .org 0x4300
cell:   .quad   0
        .org 0x4ff8
        .quad   0x1122334455667788
"""


def define(real):
    class BareMachine(real.Machine):
        """The real one's vCPU threads around another guest."""

        def __init__(self, spec, files, loop, on_event, blank=False, on=None):
            self._loop, self._on_event = loop, on_event
            self._timers, self._threads, self._stopping = set(), [], False
            self.cards = {}
            self.debug_met = deque()
            guest = bare.Machine(spec.cpus)
            guest.boot(TEXT)
            self.ram, self.engine, self._runners = guest.ram, guest.engine, guest.runners
            self.console, self.agent = fake_worker.FakePort(), fake_worker.FakePort()
            self._second = self.agent
            self.apics = guest.apics
            self._board = self

        def statistics(self):
            runners = self._runners
            return {
                "vcpus": [{"exits": r.statistics(), "engine": r.vcpu.statistics()} for r in runners],
                "engine": self.engine.statistics(),
                "threads": len([t for t in threading.enumerate() if t.name.startswith("vcpu")]),
            }

        def skip(self, ns):
            for apic in self.apics:
                apic.skip(ns)

        def press_power_button(self):
            return False

    return BareMachine


if __name__ == "__main__":
    bare.assemble = functools.cache(bare.assemble)  # a confined worker can't start the assembler for a second boot
    from hostel.vm import machine as real_machine

    fake_worker.replace(define(real_machine), fake_worker.BootFiles)
    from hostel.vm import worker

    os._exit(worker.main(sys.argv[1:]))
