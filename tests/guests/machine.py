"""A machine for small guests: a few vCPUs with their local APICs, memory, and a debug port to report through.

``run(text)`` assembles a guest (GNU as, through gcc) behind runtime.S and runs it until it writes to PORT_QUIT; what it
said at PORT_SAY comes back as a list of 64-bit numbers.
"""

import struct
import subprocess
import tempfile
import threading
from pathlib import Path

from bare import GDT, NX, P, Space, U, W, descriptor, segment

from hostel.board.apic import ApicBus, LocalApic
from hostel.bus import space
from hostel.cpu import state as st
from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram
from hostel.vm.vcpu import Runner

BASE = 0x100000  # where guests lie
IDT, TSS = 0x2000, 0x3000
WINDOW = 0x4000_0000  # 64 pages of 4 KiB for the guest to play with: supervisor, writable, at FRAMES
FRAMES = 0x400000
USER_CODE = 0x5000_0000  # BASE again, for CPL 3
USER_STACK = 0x6000_0000 + 0x4000
MEMORY = 16 << 20
SAY, QUIT = 0xF0, 0xF4
TRAMPOLINE = 0x7000  # SIPI's vector 7
_TRAMPOLINE = """
_start: .code16
        cli
        mov     ax, cs
        mov     ds, ax
        lgdt    [gdtr - _start]
        mov     eax, 0x40620
        mov     cr4, eax
        mov     eax, CR3
        mov     cr3, eax
        mov     ecx, 0xC0000080
        mov     eax, 0xD01
        xor     edx, edx
        wrmsr
        mov     eax, 0x80050033
        mov     cr0, eax
        .byte   0x66, 0xEA
        .long   long_mode
        .word   0x10
        .code64
long_mode:
        lidt    [idtr]
        mov     eax, 0x18
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     eax, 1
        cpuid
        shr     ebx, 24                 // the APIC's ID
        mov     edi, ebx
        shl     ebx, 14
        mov     esp, 0xDFFF0
        sub     esp, ebx
        mov     r15d, 0xFEE00000
        mov     dword ptr [r15 + 0xF0], 0x1FF
        mov     eax, OTHERS
        jmp     rax
        .balign 8
gdtr:   .word   0x4F
        .long   GDT
idtr:   .word   0xFFF
        .quad   IDT
"""


class _Port(space.PyRegion):
    """Two writes of 32 bits make a number; anything at the other port ends the run."""

    def __init__(self, machine):
        super().__init__("debug")
        self.machine = machine
        self.halves: dict[int, int] = {}

    def write_py(self, offset, size, value):
        if offset:
            self.machine.stop()
            return
        me = threading.get_ident()
        low = self.halves.pop(me, None)
        if low is None:
            self.halves[me] = value
        else:
            self.machine.said.append(low | value << 32)


def assemble(text: str, origin: int = BASE, runtime: bool = True, **defines: int) -> bytes:
    """A flat binary of Intel-syntax assembly; failing with the assembler's own words."""
    with tempfile.TemporaryDirectory() as directory:
        source, binary = Path(directory) / "guest.S", Path(directory) / "guest"
        head = f'#include "{Path(__file__).with_name("runtime.S")}"\n' if runtime else ".intel_syntax noprefix\n"
        source.write_text(head + text)
        done = subprocess.run(
            ["gcc", "-nostdlib", "-static", "-no-pie", f"-Wl,-Ttext={origin:#x}", "-Wl,--oformat=binary",
             "-Wl,-e,0", "-Wl,--build-id=none", "-Wl,-N", "-Wl,--no-warn-rwx-segments",
             *(f"-D{name}={value:#x}" for name, value in defines.items()), "-o", str(binary), str(source)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return binary.read_bytes()


class Machine:
    """``cpus`` vCPUs; the first begins at BASE in long mode, the others wait for SIPI."""

    def __init__(self, cpus: int = 1, ram: Ram | None = None, code_size: int = 0):
        if ram is None:
            ram = Ram()
            ram.add(0, MEMORY)
        self.ram = ram
        self.engine = BtEngine(self.ram, cpus, code_size)
        self.said: list[int] = []
        pio, self.mmio = space.Space("pio"), space.Space("mmio")
        pio.map(SAY, 5, _Port(self))
        bus = ApicBus()
        self.apics = [LocalApic(bus, vcpu, i) for i, vcpu in enumerate(self.engine.vcpus)]
        self.runners = []
        for vcpu, apic in zip(self.engine.vcpus, self.apics, strict=True):
            vcpu.set_apic(apic)
            self.runners.append(Runner(vcpu, apic, pio, self.mmio))
        self.ended: dict[int, str] = {}

    def tables(self) -> None:
        """GDT, IDT, TSS and page tables, in memory."""
        self._put(GDT, b"".join(
            struct.pack("<Q", 0 if i < 2 else descriptor(0, 0xFFFFF, attributes))
            for i, attributes in enumerate((0, 0, 0xA09B, 0xC093, 0xC0FB, 0xC0F3, 0xA0FB))
        ))  # fmt: skip
        tss = descriptor(TSS, 0x67, 0x8B)
        self._put(GDT + 0x40, struct.pack("<QQ", tss, 0))
        self._put(TSS + 4, struct.pack("<QQQ", 0xF0000, 0, 0))  # rsp0
        self._put(TSS + 36, struct.pack("<Q", 0xF4000))  # IST1
        self._put(TSS + 102, b"\xff\xff")
        for vector in range(256):
            at = BASE + 16 + 16 * vector
            dpl = 3 if vector in (3, 4, 0x80) else 0
            self._put(IDT + 16 * vector, struct.pack(
                "<HHBBHII", at & 0xFFFF, 0x10, 0, 0x8E | dpl << 5, at >> 16 & 0xFFFF, 0, 0))  # fmt: skip
        self.space = Space(self.ram)
        self.space.map(0, 0, 16 << 20, P | W, level=2)
        self.space.map(0xFEE00000, 0xFEE00000, 1 << 21, P | W, level=2)
        self.space.map(WINDOW, FRAMES, 64 * 4096, P | W)
        self.space.map(USER_CODE, BASE, 1 << 18, P | U)
        self.space.map(USER_STACK - 0x4000, FRAMES + 0x100000, 0x8000, P | W | U | NX)

    def _put(self, gpa: int, data: bytes) -> None:
        self.ram.view(gpa, len(data))[:] = data

    def boot(self, text: str, **defines: int) -> None:
        """Load a guest and put vCPU 0 at its start."""
        self.tables()
        levels = {name: self.space.entry(WINDOW, i) for i, name in enumerate(("PTE", "PDE", "PDPTE", "PML4E"), 1)}
        code = assemble(
            text, WINDOW=WINDOW, **levels,
            FRAMES=FRAMES, USER_CODE=USER_CODE, USER_STACK=USER_STACK, CR3=self.space.cr3, BASE=BASE, GDT=GDT, IDT=IDT,
            TSS=TSS, FREE=self.space.free, **defines,
        )  # fmt: skip
        self._put(BASE, code)
        vcpu = self.engine.vcpus[0]
        s = vcpu.save_state()
        s.cr0, s.cr4, s.efer, s.cr3, s.xcr0 = 0x80050033, 0x40620, 0xD01, self.space.cr3, 7
        s.gdtr, s.idtr = st.Table(GDT, 0x4F), st.Table(IDT, 0xFFF)
        data, absent = segment(0x18), st.Segment(0, 0, 0, 0)
        s.segments = [data, segment(0x10), data, data, absent, absent]
        s.tr, s.ldtr = st.Segment(0x40, TSS, 0x67, 0x8B), absent
        s.rip, s.rflags = BASE, 2
        s.registers = [0, 0, 0, 0, 0xE0000, *[0] * 11]
        vcpu.load_state(s)

        self._put(TRAMPOLINE, assemble(
            _TRAMPOLINE, TRAMPOLINE, False, GDT=GDT, IDT=IDT, CR3=self.space.cr3, OTHERS=BASE + 8,
        ))  # fmt: skip

    def stop(self) -> None:
        for runner in self.runners:
            runner.stop()

    def _run(self, index: int) -> None:
        self.ended[index] = self.runners[index].run()
        self.stop()

    def go(self, timeout: float = 20) -> list[int]:
        """Run all vCPUs until one ends the machine; what the guest said."""
        threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(len(self.runners))]
        for thread in threads:
            thread.start()
        threads[0].join(timeout)
        late = threads[0].is_alive()
        self.stop()
        for thread in threads:
            thread.join(5)
        assert not any(t.is_alive() for t in threads), "a vCPU doesn't stop"
        assert not late, f"still running: {[v.registers() for v in self.engine.vcpus]}, said {self.said}"
        return self.said


def run(text: str, cpus: int = 1, timeout: float = 20, **defines: int) -> list[int]:
    """Boot the guest and return what it said."""
    machine = Machine(cpus)
    machine.boot(text, **defines)
    return machine.go(timeout)
