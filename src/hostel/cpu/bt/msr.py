"""Model-specific registers: those that Linux and boot loaders touch; all others raise #GP.

Also KVM's paravirtual clock (Documentation/virt/kvm/x86/msr.rst). Guest time is a linear function of the TSC,
the same on every vCPU, so the structure is written once and again only when the TSC's offset changes.
"""

import cython
from cython.cimports.hostel.base.clock import rdtsc, tsc_khz
from cython.cimports.hostel.cpu.bt.insn import FS, GS
from cython.cimports.hostel.cpu.bt.mmu import find_slot, flush_tlb, read_physical, write_physical
from cython.cimports.hostel.cpu.bt.segment import update_mode
from cython.cimports.hostel.cpu.bt.vcpu import VCpu
from cython.cimports.hostel.cpu.bt.x86 import (
    CR0_PG,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    M32,
    MSR_APIC_BASE,
    MSR_ARCH_CAPABILITIES,
    MSR_BIOS_SIGN_ID,
    MSR_BIOS_UPDT_TRIG,
    MSR_CSTAR,
    MSR_DEBUGCTL,
    MSR_EFER,
    MSR_FLUSH_CMD,
    MSR_FS_BASE,
    MSR_GS_BASE,
    MSR_KERNEL_GS_BASE,
    MSR_KVM_SYSTEM_TIME,
    MSR_KVM_SYSTEM_TIME_NEW,
    MSR_KVM_WALL_CLOCK,
    MSR_KVM_WALL_CLOCK_NEW,
    MSR_LASTBRANCH_FROM,
    MSR_LASTINT_TO,
    MSR_LSTAR,
    MSR_MCG_CAP,
    MSR_MCG_STATUS,
    MSR_MISC_ENABLE,
    MSR_MISC_FEATURES_ENABLES,
    MSR_MTRR_CAP,
    MSR_MTRR_DEF_TYPE,
    MSR_MTRR_FIX4K_C0000,
    MSR_MTRR_FIX4K_F8000,
    MSR_MTRR_FIX16K_80000,
    MSR_MTRR_FIX16K_A0000,
    MSR_MTRR_FIX64K,
    MSR_MTRR_PHYSBASE0,
    MSR_MTRR_PHYSMASK7,
    MSR_PAT,
    MSR_PLATFORM_ID,
    MSR_PLATFORM_INFO,
    MSR_PRED_CMD,
    MSR_SFMASK,
    MSR_SPEC_CTRL,
    MSR_STAR,
    MSR_SYSENTER_CS,
    MSR_SYSENTER_EIP,
    MSR_SYSENTER_ESP,
    MSR_TSC,
    MSR_TSC_ADJUST,
    MSR_TSC_AUX,
    MSR_TSC_DEADLINE,
    MSR_X2APIC_FIRST,
    MSR_X2APIC_LAST,
    canonical,
)
from cython.cimports.hostel.cpu.engine import InterruptController
from cython.cimports.libc.stdint import int8_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.time import CLOCK_REALTIME, clock_gettime, timespec


def guest_tsc(c):
    return rdtsc() + c.tsc_offset


def mtrr(c, index):
    """Where a memory-type register is kept, or NULL. They are stored; memory types have no effect here."""
    i: cython.int
    if index >= MSR_MTRR_PHYSBASE0 and index <= MSR_MTRR_PHYSMASK7:
        i = index - MSR_MTRR_PHYSBASE0
    elif index == MSR_MTRR_FIX64K:
        i = 16
    elif index == MSR_MTRR_FIX16K_80000 or index == MSR_MTRR_FIX16K_A0000:
        i = 17 + index - MSR_MTRR_FIX16K_80000
    elif index >= MSR_MTRR_FIX4K_C0000 and index <= MSR_MTRR_FIX4K_F8000:
        i = 19 + index - MSR_MTRR_FIX4K_C0000
    elif index == MSR_MTRR_DEF_TYPE:
        i = 27
    else:
        return cython.NULL
    return cython.address(c.msr_mtrr[i])


def read_msr(c, index, value):
    p: cython.pointer(uint64_t)
    if index >= MSR_X2APIC_FIRST and index <= MSR_X2APIC_LAST or index == MSR_TSC_DEADLINE:
        if c.apic == cython.NULL:
            return 1
        return cython.cast(InterruptController, c.apic).read_msr(index, value)
    value[0] = 0
    if index == MSR_FS_BASE:
        value[0] = c.seg[FS].base
    elif index == MSR_GS_BASE:
        value[0] = c.seg[GS].base
    elif index == MSR_KERNEL_GS_BASE:
        value[0] = c.msr_kernel_gs_base
    elif index == MSR_EFER:
        value[0] = c.efer
    elif index == MSR_STAR:
        value[0] = c.msr_star
    elif index == MSR_LSTAR:
        value[0] = c.msr_lstar
    elif index == MSR_CSTAR:
        value[0] = c.msr_cstar
    elif index == MSR_SFMASK:
        value[0] = c.msr_sfmask
    elif index == MSR_TSC_AUX:
        value[0] = c.msr_tsc_aux
    elif index == MSR_TSC:
        value[0] = guest_tsc(c)
    elif index == MSR_TSC_ADJUST:
        value[0] = c.msr_tsc_adjust
    elif index == MSR_APIC_BASE:
        if c.apic != cython.NULL:
            return cython.cast(InterruptController, c.apic).read_msr(index, value)
        value[0] = 0xFEE00800
        if c.index == 0:
            value[0] |= 0x100
    elif index == MSR_SPEC_CTRL:
        value[0] = c.msr_spec_ctrl
    elif index == MSR_BIOS_SIGN_ID:
        value[0] = cython.cast(uint64_t, 0x0D0003E7) << 32  # microcode revision, in the upper half
    elif index == MSR_PLATFORM_INFO:
        value[0] = (tsc_khz // 100000) << 8 | (tsc_khz // 100000) << 40
    elif index == MSR_MTRR_CAP:
        value[0] = 0x508  # 8 variable ranges, fixed ranges, write-combining
    elif index == MSR_ARCH_CAPABILITIES:
        # RDCL IBRS_ALL SKIP_L1DFL SSB MDS PSCHANGE_MC TAA SBDR FBSDP PSDP BHI PBRSB GDS RFDS: not affected,
        # whether the host is or not: its kernel defends its processes, of which we are one
        value[0] = cython.cast(uint64_t, 0x0D10E17B) | cython.cast(uint64_t, 1) << 62
    elif index == MSR_SYSENTER_CS:
        value[0] = c.msr_sysenter_cs
    elif index == MSR_SYSENTER_ESP:
        value[0] = c.msr_sysenter_esp
    elif index == MSR_SYSENTER_EIP:
        value[0] = c.msr_sysenter_eip
    elif index == MSR_MISC_ENABLE:
        value[0] = c.msr_misc_enable
    elif index == MSR_DEBUGCTL:
        value[0] = c.msr_debugctl
    elif index == MSR_PAT:
        value[0] = c.msr_pat
    elif index == MSR_KVM_WALL_CLOCK or index == MSR_KVM_WALL_CLOCK_NEW:
        value[0] = c.msr_kvm_wall_clock
    elif index == MSR_KVM_SYSTEM_TIME or index == MSR_KVM_SYSTEM_TIME_NEW:
        value[0] = c.msr_kvm_system_time
    elif index == MSR_PLATFORM_ID or index == MSR_MISC_FEATURES_ENABLES or index == MSR_BIOS_UPDT_TRIG:
        pass
    elif index == MSR_MCG_CAP or index == MSR_MCG_STATUS:
        pass  # no banks
    elif index >= MSR_LASTBRANCH_FROM and index <= MSR_LASTINT_TO:
        pass
    else:
        p = mtrr(c, index)
        if p == cython.NULL:
            return 1
        value[0] = p[0]
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _write_efer(c: cython.pointer(VCpu), value: uint64_t) -> cython.int:
    if value & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE):
        return 1
    if c.cr0 & CR0_PG and (value ^ c.efer) & EFER_LME:
        return 1
    value = (value & ~EFER_LMA) | (c.efer & EFER_LMA)
    if (value ^ c.efer) & EFER_NXE:
        flush_tlb(c, False)
    c.efer = value
    update_mode(c)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _shift_tsc(c: cython.pointer(VCpu), delta: uint64_t) -> cython.void:
    c.tsc_offset += delta
    c.msr_tsc_adjust += delta
    if c.apic != cython.NULL:
        cython.cast(InterruptController, c.apic).set_tsc_offset(cython.cast(int64_t, c.tsc_offset))
    update_kvmclock(c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _valid_types(value: uint64_t) -> cython.bint:
    """Eight memory types for PAT or a fixed-range register: 0, 1, 4, 5, 6 (and 7 for PAT)."""
    i: cython.int
    t: uint64_t
    for i in range(8):
        t = (value >> (8 * i)) & 0xFF
        if t > 7 or t == 2 or t == 3:
            return False
    return True


def write_msr(c, index, value):
    p: cython.pointer(uint64_t)
    if index >= MSR_X2APIC_FIRST and index <= MSR_X2APIC_LAST or index == MSR_TSC_DEADLINE:
        if c.apic == cython.NULL:
            return 1
        return cython.cast(InterruptController, c.apic).write_msr(index, value)
    if index == MSR_FS_BASE or index == MSR_GS_BASE:
        if not canonical(value):
            return 1
        c.seg[FS if index == MSR_FS_BASE else GS].base = value
    elif index == MSR_KERNEL_GS_BASE:
        if not canonical(value):
            return 1
        c.msr_kernel_gs_base = value
    elif index == MSR_SPEC_CTRL:
        if value & ~0x407:  # IBRS STIBP SSBD BHI_DIS_S
            return 1
        c.msr_spec_ctrl = value
    elif index == MSR_PRED_CMD or index == MSR_FLUSH_CMD:
        return 1 if value & ~1 else 0
    elif index == MSR_EFER:
        return _write_efer(c, value)
    elif index == MSR_STAR:
        c.msr_star = value
    elif index == MSR_LSTAR:
        if not canonical(value):
            return 1
        c.msr_lstar = value
    elif index == MSR_CSTAR:
        if not canonical(value):
            return 1
        c.msr_cstar = value
    elif index == MSR_SFMASK:
        if value >> 32:
            return 1
        c.msr_sfmask = value
    elif index == MSR_TSC_AUX:
        if value >> 32:
            return 1
        c.msr_tsc_aux = value
    elif index == MSR_TSC:
        _shift_tsc(c, value - guest_tsc(c))
    elif index == MSR_TSC_ADJUST:
        _shift_tsc(c, value - c.msr_tsc_adjust)
    elif index == MSR_APIC_BASE:
        if c.apic == cython.NULL:
            return 1
        return cython.cast(InterruptController, c.apic).write_msr(index, value)
    elif index == MSR_SYSENTER_CS:
        c.msr_sysenter_cs = value & 0xFFFF
    elif index == MSR_SYSENTER_ESP:
        if not canonical(value):
            return 1
        c.msr_sysenter_esp = value
    elif index == MSR_SYSENTER_EIP:
        if not canonical(value):
            return 1
        c.msr_sysenter_eip = value
    elif index == MSR_MISC_ENABLE:
        c.msr_misc_enable = (value & 0x400001) | 0x1800
    elif index == MSR_DEBUGCTL:
        if value & ~3:
            return 1
        c.msr_debugctl = value
    elif index == MSR_PAT:
        if not _valid_types(value):
            return 1
        c.msr_pat = value
    elif index == MSR_KVM_WALL_CLOCK or index == MSR_KVM_WALL_CLOCK_NEW:
        c.msr_kvm_wall_clock = value
        write_wall_clock(c, value)
    elif index == MSR_KVM_SYSTEM_TIME or index == MSR_KVM_SYSTEM_TIME_NEW:
        c.msr_kvm_system_time = value
        update_kvmclock(c)
    elif index == MSR_BIOS_SIGN_ID or index == MSR_BIOS_UPDT_TRIG:
        pass
    elif index == MSR_MISC_FEATURES_ENABLES or index == MSR_MCG_STATUS:
        return 1 if value else 0
    else:
        p = mtrr(c, index)
        if p == cython.NULL:
            return 1
        if index < MSR_MTRR_FIX64K:
            if value >> c.phys_bits or value & (0x7FF if index & 1 else 0xF00):
                return 1
        elif index == MSR_MTRR_DEF_TYPE:
            if value & ~0xCFF:
                return 1
        elif not _valid_types(value):
            return 1
        p[0] = value
    return 0


# ---- KVM's clock


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _scale(mul: cython.pointer(uint32_t), shift: cython.pointer(int8_t)) -> cython.void:
    """ns = ((tsc << shift) * mul) >> 32, shift negative: to the right (pvclock-abi.rst)."""
    hz: uint64_t = tsc_khz * 1000
    second: uint64_t = 1000000000
    s: cython.int = 0
    while hz > 2 * second:
        hz >>= 1
        s -= 1
    while hz <= second:
        hz <<= 1
        s += 1
    # from the frequency itself, without the bits that the shift lost; s >= -2 below 8 GHz
    mul[0] = cython.cast(uint32_t, (second << (32 - s)) // (tsc_khz * 1000))
    shift[0] = cython.cast(int8_t, s)


def clock_ns(ticks):
    mul: uint32_t = 0
    shift: int8_t = 0
    _scale(cython.address(mul), cython.address(shift))
    ticks = ticks >> -shift if shift < 0 else ticks << shift
    return (ticks >> 32) * mul + ((ticks & M32) * mul >> 32)


def clock_ticks(ns):
    return ns // 1000000 * tsc_khz + ns % 1000000 * tsc_khz // 1000000


def update_kvmclock(c):
    info = cython.declare(uint8_t[32])
    gpa: uint64_t = c.msr_kvm_system_time & ~cython.cast(uint64_t, 1)
    version: uint32_t = 0
    stamp: uint64_t
    if not c.msr_kvm_system_time & 1 or gpa & 3 or gpa & 0xFFF > 4096 - 32:
        return
    if read_physical(c, gpa, cython.address(version), 4) != 0:
        return
    memset(info, 0, 32)
    version = (version + 1) | 1
    memcpy(info, cython.address(version), 4)
    stamp = c.clock_origin + c.tsc_offset  # the guest's TSC when the clock read 0
    memcpy(cython.address(info[8]), cython.address(stamp), 8)
    _scale(
        cython.cast(cython.pointer(uint32_t), cython.address(info[24])),
        cython.cast(cython.pointer(int8_t), cython.address(info[28])),
    )
    info[29] = 1  # PVCLOCK_TSC_STABLE_BIT
    write_physical(c, gpa, info, 32)
    version += 1
    write_physical(c, gpa, cython.address(version), 4)


def tell_of_stop(c):
    """The host let this vCPU stand still: its watchdogs should overlook that (pvclock-abi.rst, flags bit 1)."""
    gpa: uint64_t = c.msr_kvm_system_time & ~cython.cast(uint64_t, 1)
    flags: uint8_t = 0
    if not c.msr_kvm_system_time & 1 or gpa & 3 or gpa & 0xFFF > 4096 - 32:
        return
    # A single byte, which only this vCPU writes: it needs no new version.
    if read_physical(c, gpa + 29, cython.address(flags), 1) == 0:
        flags |= 2  # PVCLOCK_GUEST_STOPPED
        write_physical(c, gpa + 29, cython.address(flags), 1)


def write_wall_clock(c, gpa):
    """struct pvclock_wall_clock: the wall-clock time at which the paravirtual clock read 0."""
    words = cython.declare(uint32_t[3])
    now = cython.declare(timespec)
    ns: int64_t
    if gpa & 3 or (gpa & 0xFFF) > 4096 - 12 or find_slot(c, gpa) == cython.NULL:
        return
    if read_physical(c, gpa, words, 4) != 0:
        return
    clock_gettime(CLOCK_REALTIME, cython.address(now))
    ns = cython.cast(int64_t, now.tv_sec) * 1000000000 + now.tv_nsec
    ns -= cython.cast(int64_t, clock_ns(rdtsc() - c.clock_origin))
    words[0] = (words[0] + 2) & ~1
    words[1] = cython.cast(uint32_t, ns // 1000000000)
    words[2] = cython.cast(uint32_t, ns % 1000000000)
    write_physical(c, gpa, words, 12)
