"""Control and debug registers with their rules (SDM vol. 3, 2.5), and RESET, INIT and SIPI (chapter 10)."""

import cython
from cython.cimports.hostel.base.clock import rdtsc
from cython.cimports.hostel.cpu.bt.fpu import reset_fpu
from cython.cimports.hostel.cpu.bt.insn import CS
from cython.cimports.hostel.cpu.bt.interrupt import raise_debug
from cython.cimports.hostel.cpu.bt.mmu import (
    empty_tlb,
    flush_page,
    flush_tlb,
    forget_space,
    forget_spaces,
    raise_error,
    raise_exception,
    read_physical,
    switch_space,
)
from cython.cimports.hostel.cpu.bt.segment import update_mode
from cython.cimports.hostel.cpu.bt.vcpu import X_GP, X_UD, VCpu
from cython.cimports.hostel.cpu.bt.x86 import (
    BIT63,
    CR0_AM,
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_DE,
    CR4_FSGSBASE,
    CR4_MCE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_UMIP,
    EFER_LMA,
    EFER_LME,
    M32,
    SEG_L,
    canonical,
)
from cython.cimports.hostel.cpu.engine import InterruptController
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset

# When guests' TSCs and clocks read 0: the same for all vCPUs, and a worker process has one machine.
_origin = cython.declare(uint64_t, rdtsc())


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gp(c: cython.pointer(VCpu)) -> cython.int:
    raise_error(c, X_GP, 0)
    return -1


def load_pdptes(c, cr3):
    # PAE paging keeps four entries in registers (SDM vol. 3, 4.4.1); P with a reserved bit: #GP(0)
    entries = cython.declare(uint64_t[4])
    i: cython.int
    reserved: uint64_t = ~((cython.cast(uint64_t, 1) << c.phys_bits) - 1) | 0x1E6
    if read_physical(c, cr3 & M32 & ~31, entries, 32) != 0:
        memset(entries, 0xFF, 32)
    for i in range(4):
        if entries[i] & 1 and entries[i] & reserved:
            return _gp(c)
    memcpy(c.pdpte, entries, 32)
    return 0


def write_cr0(c, value):
    old: uint64_t = c.cr0
    changed: uint64_t
    if value >> 32:
        return _gp(c)
    value &= CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG
    value |= CR0_ET
    changed = value ^ old
    if (value & CR0_PG and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        return _gp(c)
    if changed & CR0_PG:
        if value & CR0_PG:
            if c.efer & EFER_LME:
                if not c.cr4 & CR4_PAE or c.seg[CS].attr & SEG_L:
                    return _gp(c)
        elif c.efer & EFER_LMA and (c.seg[CS].attr & SEG_L or c.cr4 & CR4_PCIDE):
            return _gp(c)
    if value & CR0_PG and changed & (CR0_PG | CR0_CD | CR0_NW):
        if c.cr4 & CR4_PAE and not c.efer & EFER_LME:
            if load_pdptes(c, c.cr3) != 0:
                return -1
    c.cr0 = value
    if changed & CR0_PG:
        if value & CR0_PG and c.efer & EFER_LME:
            c.efer |= EFER_LMA
        else:
            c.efer &= ~EFER_LMA
    if changed & CR0_PE and not value & CR0_PE:
        c.cpl = 0
    if changed & (CR0_PG | CR0_WP | CR0_PE):
        flush_tlb(c, False)
    update_mode(c)
    return 0


def write_cr3(c, value):
    keep: cython.bint = False
    old: uint32_t
    if c.efer & EFER_LMA:
        if c.cr4 & CR4_PCIDE:
            keep = (value & BIT63) != 0
            value &= ~BIT63
        if value >> c.phys_bits:
            return _gp(c)
    else:
        value &= M32
        if c.cr0 & CR0_PG and c.cr4 & CR4_PAE:
            if load_pdptes(c, value) != 0:
                return -1
    if keep and value == c.cr3:
        return 0  # the same space, nothing to forget
    old = cython.cast(uint32_t, c.cr3 & 0xFFF)
    c.cr3 = value
    if c.cr4 & CR4_PCIDE and c.cr4 & CR4_PGE:
        switch_space(c, old, cython.cast(uint32_t, value & 0xFFF), keep)
    else:
        flush_tlb(c, (c.cr4 & CR4_PGE) != 0)
    return 0


def write_cr4(c, value):
    changed: uint64_t = value ^ c.cr4
    if value & ~(
        CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT
        | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP
    ):  # fmt: skip
        return _gp(c)
    if c.efer & EFER_LMA:
        if not value & CR4_PAE:
            return _gp(c)
    if changed & value & CR4_PCIDE and (not c.efer & EFER_LMA or c.cr3 & 0xFFF):
        return _gp(c)
    if c.cr0 & CR0_PG and value & CR4_PAE and not c.efer & EFER_LMA:
        if changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP):
            if load_pdptes(c, c.cr3) != 0:
                return -1
    c.cr4 = value
    if changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_PCIDE | CR4_SMEP | CR4_SMAP):
        flush_tlb(c, False)
    update_mode(c)
    return 0


def read_cr(c, n, value):
    if n == 0:
        value[0] = c.cr0
    elif n == 2:
        value[0] = c.cr2
    elif n == 3:
        value[0] = c.cr3
    elif n == 4:
        value[0] = c.cr4
    elif n == 8:
        value[0] = 0
        if c.apic != cython.NULL:
            value[0] = cython.cast(InterruptController, c.apic).read_cr8()
    else:
        raise_exception(c, X_UD)
        return -1
    return 0


def write_cr(c, n, value):
    if n == 0:
        return write_cr0(c, value)
    if n == 2:
        c.cr2 = value
    elif n == 3:
        return write_cr3(c, value)
    elif n == 4:
        return write_cr4(c, value)
    elif n == 8:
        if value > 15:
            return _gp(c)
        if c.apic != cython.NULL:
            cython.cast(InterruptController, c.apic).write_cr8(cython.cast(cython.int, value))
    else:
        raise_exception(c, X_UD)
        return -1
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _debug_register(c: cython.pointer(VCpu), n: cython.int) -> cython.int:
    """The register that number n means, or -1 with an exception pending."""
    if n > 7 or (n == 4 or n == 5) and c.cr4 & CR4_DE:
        raise_exception(c, X_UD)
        return -1
    if c.dr[7] & 0x2000:  # general detect
        raise_debug(c, 0x2000, False)
        return -1
    return n + 2 if n == 4 or n == 5 else n


def read_dr(c, n, value):
    n = _debug_register(c, n)
    if n < 0:
        return -1
    value[0] = c.dr[n]
    return 0


def write_dr(c, n, value):
    n = _debug_register(c, n)
    if n < 0:
        return -1
    if n >= 6 and value >> 32:
        return _gp(c)
    if n == 6:
        value = (value & 0xE00F) | (M32 & ~0xF00F)
    elif n == 7:
        value = (value & M32 & ~0xDC00) | 0x400
    c.dr[n] = value
    update_mode(c)
    return 0


def invpcid(c, kind, descriptor):
    current: uint64_t = c.cr3 & 0xFFF if c.cr4 & CR4_PCIDE else 0
    pcid: uint64_t = descriptor[0]
    if kind > 3:
        return _gp(c)
    if kind < 2:
        if pcid >> 12 or (pcid and not c.cr4 & CR4_PCIDE):
            return _gp(c)
        if kind == 0 and not canonical(descriptor[1]):
            return _gp(c)
        if pcid != current:
            forget_space(c, cython.cast(uint32_t, pcid))
            return 0
    if kind == 0:
        flush_page(c, descriptor[1])
    else:
        flush_tlb(c, kind != 2)
    if kind == 3:
        forget_spaces(c)
    return 0


# ---- RESET, INIT, SIPI


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reset_common(c: cython.pointer(VCpu)) -> cython.void:
    """SDM vol. 3, table 10-1: what RESET and INIT have in common."""
    i: cython.int
    memset(c.r, 0, cython.sizeof(c.r))
    c.r[2] = 0x606A6  # as CPUID leaf 1
    c.rip = 0xFFF0
    c.eflags = 2
    memset(c.seg, 0, cython.sizeof(c.seg))
    for i in range(6):
        c.seg[i].limit = 0xFFFF
        c.seg[i].attr = 0x93
    c.seg[CS].selector = 0xF000
    c.seg[CS].base = M32 - 0xFFFF
    c.seg[CS].attr = 0x9B
    memset(cython.address(c.ldtr), 0, cython.sizeof(c.ldtr))
    memset(cython.address(c.tr), 0, cython.sizeof(c.tr))
    c.ldtr.limit = 0xFFFF
    c.ldtr.attr = 0x82
    c.tr.limit = 0xFFFF
    c.tr.attr = 0x8B
    c.gdtr.base = 0
    c.gdtr.limit = 0xFFFF
    c.idtr.base = 0
    c.idtr.limit = 0xFFFF
    c.cr2 = 0
    c.cr3 = 0
    c.cr4 = 0
    c.efer = 0
    memset(c.dr, 0, cython.sizeof(c.dr))
    c.dr[6] = M32 & ~0xF00F
    c.dr[7] = 0x400
    c.cpl = 0
    c.inhibit = 0
    c.halted = 0
    c.wait_sipi = 0
    c.nmi_blocked = 0
    c.nmi_pending = 0
    c.exception_pending = 0
    c.io_kind = 0
    c.phys_bits = 46


def reset(c):
    i: cython.int
    _reset_common(c)
    c.cr0 = CR0_ET | CR0_NW | CR0_CD
    c.xcr0 = 1
    reset_fpu(c)
    c.msr_star = 0
    c.msr_lstar = 0
    c.msr_cstar = 0
    c.msr_sfmask = 0
    c.msr_kernel_gs_base = 0
    c.msr_sysenter_cs = 0
    c.msr_sysenter_esp = 0
    c.msr_sysenter_eip = 0
    c.msr_tsc_aux = 0
    c.msr_pat = 0x00070406 | cython.cast(uint64_t, 0x00070406) << 32
    c.msr_misc_enable = 0x1801  # fast strings; no BTS, no PEBS
    c.msr_spec_ctrl = 0
    c.msr_debugctl = 0
    c.msr_kvm_system_time = 0
    c.msr_kvm_wall_clock = 0
    # No firmware runs before a kernel that we boot, so the ranges are as firmware would leave them: all write-back.
    for i in range(16):
        c.msr_mtrr[i] = 0
    for i in range(16, 27):
        memset(cython.address(c.msr_mtrr[i]), 6, 8)
    c.msr_mtrr[27] = 0xC06
    if c.clock_origin == 0:
        c.clock_origin = _origin
    c.tsc_offset = -c.clock_origin
    c.msr_tsc_adjust = 0
    empty_tlb(c)
    update_mode(c)


def init(c):
    _reset_common(c)
    c.cr0 = (c.cr0 & (CR0_NW | CR0_CD)) | CR0_ET
    if c.apic != cython.NULL:
        cython.cast(InterruptController, c.apic).reset()
    c.wait_sipi = c.index != 0
    flush_tlb(c, False)
    update_mode(c)


def sipi(c, vector):
    if not c.wait_sipi:
        return
    c.wait_sipi = 0
    c.halted = 0
    c.seg[CS].selector = (vector & 0xFF) << 8
    c.seg[CS].base = cython.cast(uint64_t, vector & 0xFF) << 12
    c.rip = 0
    update_mode(c)
