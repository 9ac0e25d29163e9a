"""One VCpu without a translator, for tests of the monitor: look at it, change it, run single instructions on it."""

import cython
from cython.cimports.hostel.base.clock import now_ns
from cython.cimports.hostel.cpu.bt import cpuid as _cpuid
from cython.cimports.hostel.cpu.bt import interrupt as _interrupt
from cython.cimports.hostel.cpu.bt import mmu, system, transfer
from cython.cimports.hostel.cpu.bt import msr as _msr
from cython.cimports.hostel.cpu.bt.decode import decode, table
from cython.cimports.hostel.cpu.bt.insn import FE_COUNT, Insn
from cython.cimports.hostel.cpu.bt.vcpu import (
    MODE_CODE32,
    MODE_CODE64,
    TLB_SIZE,
    X_UD,
    Segment,
    VCpu,
)
from cython.cimports.hostel.memory.ram import Ram, Slot
from cython.cimports.libc.stdint import uint8_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy

_code_writes: list = []


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _note_code_write(c: cython.pointer(VCpu), gpa: uint64_t, size: cython.int) -> cython.void:
    with cython.gil:
        _code_writes.append((gpa, size))


@cython.cclass
class Probe:
    """``probe["cr3"]`` and ``probe["cr3"] = x`` for scalar fields; ``r0`` to ``r15`` and the other names of VCpu."""

    def __cinit__(self, ram: Ram, index: cython.int = 0, vcpus: cython.int = 1):
        self.memory = calloc(1, cython.sizeof(VCpu) + 64)
        if self.memory == cython.NULL:
            raise MemoryError
        c: cython.pointer(VCpu) = cython.cast(
            cython.pointer(VCpu), (cython.cast(cython.size_t, self.memory) + 63) & ~cython.cast(cython.size_t, 63)
        )
        self.c = c
        self.ram = ram
        c.slots = ram.slots
        c.slot_count = ram.count
        c.index = index
        c.vcpus = vcpus
        for i in range(3):
            c.jump_miss[i] = 0x1234
        mmu.init_tlb(c)
        system.reset(c)
        i: cython.int
        at = self.fields = {}
        for i in range(16):
            at[f"r{i}"] = (cython.cast(cython.size_t, cython.address(c.r[i])), 8)
        for i in range(8):
            at[f"dr{i}"] = (cython.cast(cython.size_t, cython.address(c.dr[i])), 8)
        for i in range(4):
            at[f"pdpte{i}"] = (cython.cast(cython.size_t, cython.address(c.pdpte[i])), 8)
        at["rip"] = (cython.cast(cython.size_t, cython.address(c.rip)), 8)
        at["eflags"] = (cython.cast(cython.size_t, cython.address(c.eflags)), 8)
        at["mode"] = (cython.cast(cython.size_t, cython.address(c.mode)), 4)
        at["gdtr_base"] = (cython.cast(cython.size_t, cython.address(c.gdtr.base)), 8)
        at["gdtr_limit"] = (cython.cast(cython.size_t, cython.address(c.gdtr.limit)), 2)
        at["idtr_base"] = (cython.cast(cython.size_t, cython.address(c.idtr.base)), 8)
        at["idtr_limit"] = (cython.cast(cython.size_t, cython.address(c.idtr.limit)), 2)
        at["cr0"] = (cython.cast(cython.size_t, cython.address(c.cr0)), 8)
        at["cr2"] = (cython.cast(cython.size_t, cython.address(c.cr2)), 8)
        at["cr3"] = (cython.cast(cython.size_t, cython.address(c.cr3)), 8)
        at["cr4"] = (cython.cast(cython.size_t, cython.address(c.cr4)), 8)
        at["xcr0"] = (cython.cast(cython.size_t, cython.address(c.xcr0)), 8)
        at["efer"] = (cython.cast(cython.size_t, cython.address(c.efer)), 8)
        at["star"] = (cython.cast(cython.size_t, cython.address(c.msr_star)), 8)
        at["lstar"] = (cython.cast(cython.size_t, cython.address(c.msr_lstar)), 8)
        at["sfmask"] = (cython.cast(cython.size_t, cython.address(c.msr_sfmask)), 8)
        at["sysenter_cs"] = (cython.cast(cython.size_t, cython.address(c.msr_sysenter_cs)), 8)
        at["sysenter_esp"] = (cython.cast(cython.size_t, cython.address(c.msr_sysenter_esp)), 8)
        at["sysenter_eip"] = (cython.cast(cython.size_t, cython.address(c.msr_sysenter_eip)), 8)
        at["kernel_gs_base"] = (cython.cast(cython.size_t, cython.address(c.msr_kernel_gs_base)), 8)
        at["tsc_aux"] = (cython.cast(cython.size_t, cython.address(c.msr_tsc_aux)), 8)
        at["tsc_offset"] = (cython.cast(cython.size_t, cython.address(c.tsc_offset)), 8)
        at["clock_origin"] = (cython.cast(cython.size_t, cython.address(c.clock_origin)), 8)
        at["cpl"] = (cython.cast(cython.size_t, cython.address(c.cpl)), 1)
        at["inhibit"] = (cython.cast(cython.size_t, cython.address(c.inhibit)), 1)
        at["halted"] = (cython.cast(cython.size_t, cython.address(c.halted)), 1)
        at["wait_sipi"] = (cython.cast(cython.size_t, cython.address(c.wait_sipi)), 1)
        at["nmi_blocked"] = (cython.cast(cython.size_t, cython.address(c.nmi_blocked)), 1)
        at["phys_bits"] = (cython.cast(cython.size_t, cython.address(c.phys_bits)), 1)
        at["access_seg"] = (cython.cast(cython.size_t, cython.address(c.access_seg)), 1)
        at["io_data"] = (cython.cast(cython.size_t, cython.address(c.io.data)), 8)
        at["n_tlb_miss"] = (cython.cast(cython.size_t, cython.address(c.n_tlb_miss)), 8)
        at["mxcsr"] = (cython.cast(cython.size_t, cython.address(c.fx[24])), 4)
        mmu.on_code_write = _note_code_write
        _code_writes.clear()

    def __dealloc__(self):
        free(self.memory)

    def __getitem__(self, name: str) -> int:
        address, size = self.fields[name]
        value: uint64_t = 0
        memcpy(cython.address(value), cython.cast(cython.p_void, cython.cast(cython.size_t, address)), size)
        return value

    def __setitem__(self, name: str, value):
        address, size = self.fields[name]
        v: uint64_t = value
        memcpy(cython.cast(cython.p_void, cython.cast(cython.size_t, address)), cython.address(v), size)

    @property
    def code_writes(self) -> list:
        """``(gpa, size)`` of each write to a page that holds translated code."""
        return _code_writes

    def segment(self, n: cython.int) -> tuple:
        """``(selector, base, limit, attributes)`` of segment register n; 6: LDTR, 7: TR."""
        s: cython.pointer(Segment) = self._segment(n)
        return (s.selector, s.base, s.limit, s.attr)

    def set_segment(self, n: cython.int, selector: int, base: int, limit: int, attr: int):
        s: cython.pointer(Segment) = self._segment(n)
        s.selector = selector
        s.base = base
        s.limit = limit
        s.attr = attr

    def _segment(self, n):
        if n == 6:
            return cython.address(self.c.ldtr)
        if n == 7:
            return cython.address(self.c.tr)
        return cython.address(self.c.seg[n])

    def vector(self, n: cython.int) -> bytes:
        return self.c.ymm[32 * n : 32 * n + 32]

    def set_vector(self, n: cython.int, data: bytes):
        memcpy(cython.address(self.c.ymm[32 * n]), cython.cast(cython.p_char, data), 32)

    def fx(self) -> bytes:
        return self.c.fx[:160]

    def set_fx(self, data: bytes):
        memcpy(self.c.fx, cython.cast(cython.p_char, data), min(len(data), 160))

    def update_mode(self) -> int:
        system.update_mode(self.c)
        return self.c.mode

    def pending(self):
        """The pending exception, ``(vector, error or None)`` with the address for a page fault, and forget it."""
        c: cython.pointer(VCpu) = self.c
        if not c.exception_pending:
            return None
        c.exception_pending = 0
        error = c.exc_error if c.exc_has_error else None
        return (c.exc_vector, error, c.exc_cr2) if c.exc_vector == 14 else (c.exc_vector, error)

    # ---- mmu

    def walk(self, va: uint64_t, access: cython.int, table: cython.int):
        """``(gpa, log2 of the page size, attr)``, or the exception."""
        gpa: uint64_t = 0
        size: cython.int = 0
        attr: cython.int = 0
        if mmu.walk(self.c, va, access, table, cython.address(gpa), cython.address(size), cython.address(attr)):
            return self.pending()
        return (gpa, size, attr)

    def lookup(self, va: uint64_t, access: cython.int, table: cython.int):
        """``("ram", gpa)``, ``("slow", gpa)`` for memory that can't be touched directly, or the exception."""
        gpa: uint64_t = 0
        host: cython.pointer(uint8_t) = cython.NULL
        i: cython.int
        if mmu.lookup(self.c, va, access, table, cython.address(host), cython.address(gpa)):
            return self.pending()
        if host == cython.NULL:
            return ("slow", gpa)
        for i in range(self.c.slot_count):
            s: cython.pointer(Slot) = cython.address(self.c.slots[i])
            if host >= s.host and host < s.host + s.size:
                return ("ram", s.gpa + (host - s.host))
        raise AssertionError("a host address outside all slots")

    def lookup_exec(self, va: uint64_t):
        gpa: uint64_t = 0
        if mmu.lookup_exec(self.c, va, cython.address(gpa)):
            return self.pending()
        return gpa

    def cached(self, va: uint64_t, table: cython.int) -> str:
        """``""``, ``"r"`` or ``"rw"``: what translated code may do to the page without asking."""
        k: cython.int = (va >> 12) & (TLB_SIZE - 1)
        page: uint64_t = va & ~0xFFF
        return ("r" if self.c.tag_r[table][k] == page else "") + ("w" if self.c.tag_w[table][k] == page else "")

    def read(self, va: uint64_t, size: cython.int, system_access: bool = True):
        buffer = cython.declare(uint8_t[8192])
        if mmu.read_linear(self.c, va, buffer, size, system_access):
            return self.pending()
        return buffer[:size]

    def write(self, va: uint64_t, data: bytes, system_access: bool = True):
        if mmu.write_linear(self.c, va, cython.cast(cython.p_char, data), len(data), system_access):
            return self.pending()
        return None

    def segment_linear(self, seg: cython.int, offset: uint64_t, size: cython.int, write: bool):
        linear: uint64_t = 0
        if mmu.segment_linear(self.c, seg, offset, size, write, cython.address(linear)):
            return self.pending()
        return linear

    def flush_tlb(self, keep_global: bool):
        mmu.flush_tlb(self.c, keep_global)

    def flush_page(self, va: uint64_t):
        mmu.flush_page(self.c, va)

    def mark_code(self, gpa: uint64_t, count: int = 1):
        """As the translator does when it has translated from a page."""
        slot: cython.pointer(Slot) = mmu.find_slot(self.c, gpa)
        page: uint64_t = (gpa - slot.gpa) >> 12
        slot.code[page] = count
        if count:
            mmu.protect_page(self.c, slot.host + (page << 12))

    def dirty(self, gpa: uint64_t) -> int:
        slot: cython.pointer(Slot) = mmu.find_slot(self.c, gpa)
        return slot.dirty[(gpa - slot.gpa) >> 12]

    def clear_dirty(self, gpa: uint64_t):
        slot: cython.pointer(Slot) = mmu.find_slot(self.c, gpa)
        slot.dirty[(gpa - slot.gpa) >> 12] = 0

    def jump_insert(self, table: cython.int, pc: uint64_t, host: uint64_t):
        mmu.jump_cache_insert(self.c, table, pc, host, host)

    def jump(self, table: cython.int, pc: uint64_t) -> int:
        return self.c.jump_cache[table][mmu.jump_hash(pc)]

    def time_walk(self, va: uint64_t, count: cython.int) -> float:
        """Nanoseconds of one walk, on warm data."""
        gpa: uint64_t = 0
        size: cython.int = 0
        attr: cython.int = 0
        i: cython.int
        t = now_ns()
        with cython.nogil:
            for i in range(count):
                mmu.walk(self.c, va, 0, 1, cython.address(gpa), cython.address(size), cython.address(attr))
        return (now_ns() - t) / count

    # ---- system

    def execute(self, code: bytes) -> int:
        """Decode ``code`` at rip and run it in the monitor; ``SYS_*``."""
        insn = cython.declare(Insn)
        mode: cython.int = 8 if self.c.mode & MODE_CODE64 else 4 if self.c.mode & MODE_CODE32 else 2
        padded: bytes = code + bytes(15)
        raw: cython.p_char = padded
        n: cython.int = decode(
            cython.address(insn), cython.cast(cython.pointer(uint8_t), raw), len(padded), self.c.rip, mode
        )
        if n != len(code):
            raise ValueError(f"{code.hex()} decodes as {n} bytes")
        if insn.op == 0:
            mmu.raise_exception(self.c, X_UD)
            return 1
        return system.execute(self.c, cython.address(insn))

    def try_execute(self, code: bytes):
        """Run whatever ``code`` begins with if it is the monitor's; ``(SYS_*, length)``, or None."""
        insn = cython.declare(Insn)
        mode: cython.int = 8 if self.c.mode & MODE_CODE64 else 4 if self.c.mode & MODE_CODE32 else 2
        raw: cython.p_char = code
        n: cython.int = decode(
            cython.address(insn), cython.cast(cython.pointer(uint8_t), raw), len(code), self.c.rip, mode
        )
        if n <= 0 or insn.op == 0 or table[insn.op].system == 0:
            return None
        return (system.execute(self.c, cython.address(insn)), n)

    def time_execute(self, code: bytes, count: cython.int) -> float:
        """Nanoseconds of ``code`` run in the monitor, again and again from the same registers."""
        insn = cython.declare(Insn)
        mode: cython.int = 8 if self.c.mode & MODE_CODE64 else 4 if self.c.mode & MODE_CODE32 else 2
        padded: bytes = code + bytes(15)
        raw: cython.p_char = padded
        decode(cython.address(insn), cython.cast(cython.pointer(uint8_t), raw), len(padded), self.c.rip, mode)
        saved = cython.declare(uint64_t[17])
        i: cython.int
        memcpy(saved, self.c.r, 136)
        t = now_ns()
        with cython.nogil:
            for i in range(count):
                memcpy(self.c.r, saved, 136)
                system.execute(self.c, cython.address(insn))
        return (now_ns() - t) / count

    def finish_io(self, data: uint64_t) -> int:
        self.c.io.data = data
        return system.finish_io(self.c)

    def io(self) -> tuple:
        """``(port, size, is_write, data)`` of the exit."""
        return (self.c.io.address, self.c.io.size, bool(self.c.io.is_write), self.c.io.data)

    def fault(self, vector: cython.int, error: object = None, cr2: uint64_t = 0):
        if error is None:
            mmu.raise_exception(self.c, vector)
        else:
            mmu.raise_error(self.c, vector, error)
        self.c.exc_cr2 = cr2

    def soft(self, vector: cython.int, length: cython.int):
        _interrupt.raise_soft(self.c, vector, length)

    def deliver(self) -> int:
        return system.deliver_exception(self.c)

    def time_fault(self, vector: cython.int, count: cython.int) -> float:
        """Nanoseconds of the delivery of an exception."""
        i: cython.int
        sp: uint64_t = self.c.r[4]
        t = now_ns()
        with cython.nogil:
            for i in range(count):
                self.c.r[4] = sp
                mmu.raise_error(self.c, vector, 0)
                system.deliver_exception(self.c)
        return (now_ns() - t) / count

    def interrupt(self, vector: cython.int) -> int:
        return system.deliver_interrupt(self.c, vector)

    def nmi(self) -> int:
        return system.deliver_nmi(self.c)

    def init(self):
        system.init(self.c)

    def reset(self):
        system.reset(self.c)

    def sipi(self, vector: cython.int):
        system.sipi(self.c, vector)

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple:
        out = cython.declare(_cpuid.uint32_t[4])
        _cpuid.cpuid(self.c, leaf, subleaf, out)
        return (out[0], out[1], out[2], out[3])

    def features(self) -> list:
        return [bool(_cpuid.feature_present(i)) for i in range(FE_COUNT)]

    def rdmsr(self, index: int):
        value: uint64_t = 0
        return None if _msr.read_msr(self.c, index, cython.address(value)) else value

    def wrmsr(self, index: int, value: int) -> bool:
        return not _msr.write_msr(self.c, index, value)

    def save(self):
        return transfer.save(self.c, 0)

    def load(self, state):
        transfer.load(self.c, state, 0)
