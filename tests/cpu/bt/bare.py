"""Bare guests: memory, page tables and descriptors for tests that run a few instructions on the translator.

``Space`` builds four-level page tables in guest memory; ``Guest`` is the translator's side of the oracle test: the same
addresses as oracle.py's process, user mode, exceptions caught before they are delivered.
"""

import struct
import threading
import time
import weakref

import oracle

from hostel.cpu import state as st
from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

P, W, U, PWT, PCD, A, D, PS, G = (1 << n for n in range(9))
NX = 1 << 63
GDT, TABLES = 0x1000, 0x10000
EXIT_KICK = 5

# Linux's user segments, so that the selectors that the host knows mean the same
KERNEL_CODE32, KERNEL_CODE, KERNEL_DATA, USER_CODE32, USER_DATA, USER_CODE = 8, 0x10, 0x18, 0x23, 0x2B, 0x33
_DESCRIPTORS = {
    KERNEL_CODE32: (0xFFFFF, 0xC09B),
    KERNEL_CODE: (0xFFFFF, 0xA09B), KERNEL_DATA: (0xFFFFF, 0xC093), USER_CODE32: (0xFFFFF, 0xC0FB),
    USER_DATA: (0xFFFFF, 0xC0F3), USER_CODE: (0xFFFFF, 0xA0FB), 0x7B: (0, 0x40F5),  # the last tells LSL the CPU
}  # fmt: skip


def descriptor(base: int, limit: int, attributes: int) -> int:
    """Eight bytes of a segment descriptor; ``limit`` as it stands there."""
    return (
        limit & 0xFFFF | (base & 0xFFFFFF) << 16 | (attributes & 0xFF) << 40 | (limit >> 16 & 15) << 48
        | (attributes >> 12 & 15) << 52 | (base >> 24 & 0xFF) << 56
    )  # fmt: skip


def segment(selector: int, base: int = 0) -> st.Segment:
    limit, attributes = _DESCRIPTORS[selector]
    return st.Segment(selector, base, limit << 12 | 0xFFF, attributes)


class Space:
    """An address space whose tables are taken from guest memory at ``free`` upwards."""

    def __init__(self, ram: Ram, free: int = TABLES):
        self.ram = ram
        self.free = free
        self.cr3 = self._table()

    def _table(self) -> int:
        at = self.free
        self.free += 4096
        self.ram.view(at, 4096)[:] = bytes(4096)
        return at

    def entry(self, va: int, level: int = 1) -> int:
        """Where the entry of ``va`` lies; level 1: PT, 2: PD, 3: PDPT, 4: PML4. Missing tables are made."""
        table = self.cr3
        for at in range(4, level, -1):
            where = table + (va >> 12 + 9 * (at - 1) & 511) * 8
            value = self.load(where)
            if not value & P:
                value = self._table() | P | W | U
                self.store(where, value)
            table = value & 0xF_FFFF_FFFF_F000
        return table + (va >> 12 + 9 * (level - 1) & 511) * 8

    def map(self, va: int, gpa: int, size: int = 4096, flags: int = P | W | U, level: int = 1) -> None:
        step = 4096 << 9 * (level - 1)
        for offset in range(0, size, step):
            self.store(self.entry(va + offset, level), gpa + offset | flags | (PS if level > 1 else 0))

    def load(self, gpa: int) -> int:
        return struct.unpack("<Q", self.ram.view(gpa, 8))[0]

    def store(self, gpa: int, value: int) -> None:
        self.ram.view(gpa, 8)[:] = struct.pack("<Q", value)


def _watch(guest: "weakref.ref[Guest]") -> None:
    """Stops a case that never ends, as long as there is the guest. ``running`` is odd while one runs."""
    seen = 0
    while True:
        time.sleep(2)
        there = guest()
        if there is None:
            return
        if there.running & 1 and there.running == seen:
            there.vcpu.request_stop()
        seen = there.running
        del there


class Guest:
    """The translator's side of the oracle test. ``supervisor``: at CPL 0, where most instructions do the same."""

    CODE_GPA, DATA_GPA, STACK_GPA, OWN_GPA = 0x200000, 0x400000, 0x500000, 0x600000
    TABLES = 0xFFFF_FE00_0000_0000  # where Linux has GDT and TSS

    def __init__(self, seed: int, cpus: int = 1, supervisor: bool = False):
        self.supervisor = supervisor
        self.ram = Ram()
        self.ram.add(0, 8 << 20)
        for selector, (limit, attributes) in _DESCRIPTORS.items():
            self.ram.write(GDT + (selector & ~7), struct.pack("<Q", descriptor(0, limit, attributes)))
        space = self.space = Space(self.ram)
        space.map(oracle.CODE, self.CODE_GPA, oracle.SLOTS * oracle.SLOT, P | U)
        for va, gpa, size, flags in (
            (oracle.DATA, self.DATA_GPA, 0x2000, P | W | U | NX),
            (oracle.READONLY, self.DATA_GPA + 0x2000, 0x1000, P | U | NX),
            (oracle.DATA + 0x4000, self.DATA_GPA + 0x4000, 0x1000, P | W | U | NX),
            (oracle.STACK, self.STACK_GPA, 0x2000, P | W | U | NX),
            (oracle.OWN, self.OWN_GPA, oracle.SLOT, P | W | U),
        ):
            space.map(va, gpa, size, flags)
        space.map(self.TABLES, GDT, flags=P | W)
        for i in range(16):
            code16 = descriptor(oracle.CODE + (i << 16), 0xFFFF, 0xFB)
            self.ram.write(GDT + 0xA00 + 8 * i, struct.pack("<Q", code16))
        self.ram.write(GDT + 0xA00 + 8 * 16, struct.pack("<Q", descriptor(oracle.DATA, 0xFFFFF, 0x80F3)))
        self.ram.write(GDT + 0xA00 + 8 * 17, struct.pack("<Q", descriptor(oracle.OWN, 0xFFFF, 0xFB)))
        self.ram.write(GDT + 0x800 + 102, b"\xff\xff")  # the TSS has no I/O map
        self.ram.write(self.DATA_GPA + 0x2000, oracle.readonly_page())
        self.images = oracle.images(seed)
        self.code = self.ram.view(self.CODE_GPA, oracle.SLOTS * oracle.SLOT)
        self.own = self.ram.view(self.OWN_GPA, oracle.SLOT)
        self.memory = [
            (self.ram.view(self.DATA_GPA, 0x2000), 0, 0x2000),
            (self.ram.view(self.DATA_GPA + 0x4000, 0x1000), 0x2000, 0x3000),
            (self.ram.view(self.STACK_GPA, 0x2000), 0x3000, 0x5000),
        ]
        self.engine = BtEngine(self.ram, cpus)
        self.vcpu = self.engine.vcpus[0]
        self.vcpu.catch_exceptions = True
        self.state = self.vcpu.save_state()
        s = self.state
        s.cr0, s.cr4, s.efer, s.xcr0 = 0x80050033, 0x50620, 0xD01, 7
        s.cr3 = space.cr3
        s.gdtr = st.Table(self.TABLES, 0x7F)
        s.tr = st.Segment(0x40, self.TABLES + 0x800, 0x67, 0x8B)
        s.ldtr = st.Segment(0x50, self.TABLES + 0xA00, 18 * 8 - 1, 0x82)
        s.wait_sipi = False
        if supervisor:
            self.code64, self.code32, data = segment(KERNEL_CODE), segment(KERNEL_CODE32), segment(KERNEL_DATA)
        else:
            self.code64, self.code32, data = segment(USER_CODE), segment(USER_CODE32), segment(USER_DATA)
        self.fs, self.gs = st.Segment(0, 0, 0, 0), st.Segment(0, 0, 0, 0)
        self.data = data
        self.data16 = st.Segment(0x87, oracle.DATA, 0xFFFFFFFF, 0x80F3)
        s.segments = [data, self.code64, data, data, self.fs, self.gs]
        self.there = (0, b"")
        self.running = 0
        threading.Thread(target=_watch, args=(weakref.ref(self),), daemon=True).start()

    def _prepare(self, case: oracle.Case) -> None:
        at = case.base - oracle.CODE
        if not case.writable and (case.base, case.code) != self.there:  # the next state may run the same translations
            self.ram.mark_written(self.CODE_GPA + at, oracle.SLOT)
            self.code[at : at + oracle.SLOT] = case.page
            self.there = case.base, case.code
        self._memory(case)
        self._load(case)

    def _memory(self, case: oracle.Case) -> None:
        image = self.images[case.image]
        for view, start, end in self.memory:
            view[:] = image[start:end]
        if case.writable:
            self.ram.mark_written(self.OWN_GPA, oracle.SLOT)
            self.own[:] = case.page
        for address, value in case.patches:
            view, at = self._where(address)
            view[at : at + 8] = struct.pack("<Q", value)

    def _where(self, address: int) -> tuple[memoryview, int]:
        for (view, _, _), (base, size) in zip(self.memory, oracle.WRITABLE, strict=True):
            if base <= address <= base + size - 8:
                return view, address - base
        raise ValueError(f"no memory at {address:#x}")

    def _load(self, case: oracle.Case) -> None:
        s = self.state
        s.registers = case.registers
        s.rip = case.rip
        s.rflags = case.flags
        s.segments[1] = self.code64 if case.mode == 8 else self.code32
        s.segments[0] = s.segments[3] = self.data
        if case.mode == 2:
            number = oracle.code_segment(case)
            attributes = 0x9B if self.supervisor else 0xFB
            base = oracle.OWN if case.writable else oracle.CODE + (number << 16)
            s.segments[1] = st.Segment(number << 3 | 7, base, 0xFFFF, attributes)
            s.segments[0] = s.segments[3] = self.data16
        self.fs.base = case.fs_base
        self.gs.base = case.gs_base
        s.xsave = case.xsave
        self.vcpu.load_state(s)
        self.vcpu.take_exception()

    def run(self, case: oracle.Case) -> oracle.Outcome:
        """As translated blocks."""
        self._prepare(case)
        return self._run(case)

    def again(self, case: oracle.Case) -> oracle.Outcome:
        """The same, by the translations that ``run`` left, linked to one another."""
        self._memory(case)
        self._load(case)
        return self._run(case)

    def _run(self, case: oracle.Case) -> oracle.Outcome:
        self.running += 1
        reason = self.vcpu.run_py()[0]
        self.running += 1
        return self._outcome(case, reason)

    def interrupted(self, case: oracle.Case, fresh: bool) -> oracle.Outcome:
        """``run``, or else ``again``, by somebody who goes on whenever the vCPU was stopped."""
        if fresh:
            self._prepare(case)
        else:
            self._memory(case)
            self._load(case)
        while True:
            self.vcpu.request_stop(False)
            reason = self.vcpu.run_py()[0]
            exception = self.vcpu.take_exception()
            if exception is not None or reason != EXIT_KICK:
                return self._outcome(case, reason, exception)

    def step(self, case: oracle.Case, limit: int = 20000) -> oracle.Outcome | None:
        """The slow twin: one instruction at a time; None when ``limit`` of them were not enough."""
        self._prepare(case)
        for _ in range(limit):
            reason = self.vcpu.step_py()[0]
            exception = self.vcpu.take_exception()
            if exception is not None or reason != EXIT_KICK:
                return self._outcome(case, reason, exception)
        return None

    def _outcome(self, case: oracle.Case, reason: int, exception=None) -> oracle.Outcome:
        if exception is None:
            exception = self.vcpu.take_exception()
        s = self.vcpu.save_state()
        if exception is None:
            self.vcpu.request_stop(False)
            exception = (-1 - reason, None, None)
        vector, error, cr2 = exception
        if self.supervisor:  # as a user would see it
            error = error | 4 if vector == 14 else error
            s.rflags = s.rflags & ~0x3000 | 0x200
        memory = b"".join(bytes(view) for view, _, _ in self.memory) + (bytes(self.own) if case.writable else b"")
        return oracle.Outcome(
            vector, error or 0, cr2 or 0, s.rip, s.rflags, s.registers, s.segments[4].base, s.segments[5].base,
            s.xsave[:512], s.xsave[576:832], memory,
        )  # fmt: skip
