"""CPUID: which processor the guest sees.

An Ice Lake server by family and model, whose instruction-set bits are those that the translator has rows for
*and* the host executes, since a guest's instruction runs as itself (but RDSEED as RDRAND, where a host has that alone:
Zen 5 is without RDSEED since AMD-SB-7055, and guests that know it come from other hosts). What the monitor emulates
(paging features, APIC modes, XSAVE) doesn't depend on the host. Not announced: MPX, PKU, LA57, TSX, AVX-512, AMX,
XSAVES, CET, RDT, a PMU, MONITOR.

Leaves 0x40000000 and on are KVM's (Documentation/virt/kvm/x86/cpuid.rst), for its clock.
"""

import cython
from cython.cimports.hostel.base.clock import tsc_khz
from cython.cimports.hostel.cpu.bt.insn import (
    FE_ADX,
    FE_AES,
    FE_AVX,
    FE_AVX2,
    FE_BMI1,
    FE_BMI2,
    FE_CLFLUSHOPT,
    FE_CLWB,
    FE_COUNT,
    FE_CX16,
    FE_F16C,
    FE_FMA,
    FE_GFNI,
    FE_LZCNT,
    FE_MOVBE,
    FE_PCLMUL,
    FE_POPCNT,
    FE_RDRAND,
    FE_RDSEED,
    FE_SHA,
    FE_SSE3,
    FE_SSE41,
    FE_SSE42,
    FE_SSSE3,
    FE_VAES,
    FE_VPCLMUL,
)
from cython.cimports.hostel.cpu.bt.vcpu import VCpu
from cython.cimports.hostel.cpu.bt.x86 import CR4_OSXSAVE, XCR0_AVX
from cython.cimports.hostel.cpu.engine import InterruptController
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcpy

BRAND = b"hostel virtual CPU (bt)"
_brand = cython.declare(cython.char[48])

# leaf 1, by (ECX, EDX): what depends on the host, and what is always there
_HOST_1C = 1 << 0 | 1 << 1 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 25
_HOST_1C |= 1 << 28 | 1 << 29 | 1 << 30
_OURS_1C = 1 << 17 | 1 << 21 | 1 << 24 | 1 << 26 | 1 << 31  # PCID, x2APIC, TSC deadline, XSAVE, hypervisor
# FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 SS; x86-64 has all
_OURS_1D = 0x0F8BFBFD
_HOST_7B = 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 29
# FSGSBASE TSC_ADJUST FDP_EXCPTN_ONLY SMEP INVPCID FCS_FDS_DEPRECATED SMAP
_OURS_7B = 1 << 0 | 1 << 1 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 13 | 1 << 20
_HOST_7C = 1 << 8 | 1 << 9 | 1 << 10
_OURS_7C = 1 << 2 | 1 << 22  # UMIP, RDPID
_HOST_7D = 1 << 4  # FSRM
# SERIALIZE (writes to code are seen at once), IBRS and IBPB (accepted, with nothing to do),
# ARCH_CAPABILITIES
_OURS_7D = 1 << 14 | 1 << 26 | 1 << 29
_HOST_81C = 1 << 0 | 1 << 5 | 1 << 8
_OURS_81D = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29  # SYSCALL NX PDPE1GB RDTSCP LM
_NEED_AVX_1C = 1 << 12 | 1 << 28 | 1 << 29
_NEED_AVX_7B = 1 << 5
_NEED_AVX_7C = 1 << 9 | 1 << 10

_ecx1 = cython.declare(uint32_t)
_edx1 = cython.declare(uint32_t)
_ebx7 = cython.declare(uint32_t)
_ecx7 = cython.declare(uint32_t)
_edx7 = cython.declare(uint32_t)
_ecx81 = cython.declare(uint32_t)
_edx81 = cython.declare(uint32_t)
_present = cython.declare(cython.bint[64])


@cython.cfunc
def _host(leaf: uint32_t, subleaf: uint32_t) -> list:
    a: uint32_t = 0
    b: uint32_t = 0
    c: uint32_t = 0
    d: uint32_t = 0
    __get_cpuid_count(  # noqa: F821
        leaf, subleaf, cython.address(a), cython.address(b), cython.address(c), cython.address(d)
    )
    return [a, b, c, d]


@cython.cfunc
def _detect():
    global _ecx1, _edx1, _ebx7, _ecx7, _edx7, _ecx81, _edx81, xcr0_allowed, rdseed_by_rdrand
    i: cython.int
    _, _, ecx1, edx1 = _host(1, 0)
    _, ebx7, ecx7, edx7 = _host(7, 0)
    _, _, ecx81, _ = _host(0x80000001, 0)
    # The host's kernel must have enabled AVX state: leaf 0xD's EBX is the size of what XCR0 enables now.
    avx = bool(ecx1 >> 27 & 1 and ecx1 >> 28 & 1 and _host(0xD, 0)[1] >= 832)
    ecx1, ebx7, ecx7 = ecx1 & _HOST_1C, ebx7 & _HOST_7B, ecx7 & _HOST_7C
    if not avx:
        ecx1, ebx7, ecx7 = ecx1 & ~_NEED_AVX_1C, ebx7 & ~_NEED_AVX_7B, ecx7 & ~_NEED_AVX_7C
    rdseed_by_rdrand = bool(ecx1 >> 30 & 1) and not ebx7 >> 18 & 1
    if rdseed_by_rdrand:
        ebx7 |= 1 << 18
    _ecx1 = ecx1 | _OURS_1C
    _edx1 = _OURS_1D
    _ebx7 = ebx7 | _OURS_7B
    _ecx7 = ecx7 | _OURS_7C
    _edx7 = edx7 & _HOST_7D | _OURS_7D
    _ecx81 = ecx81 & _HOST_81C
    _edx81 = _OURS_81D
    xcr0_allowed = 7 if avx else 3
    for i in range(FE_COUNT):
        _present[i] = True
    for fe, word, bit in (
        (FE_SSE3, ecx1, 0),
        (FE_SSSE3, ecx1, 9),
        (FE_SSE41, ecx1, 19),
        (FE_SSE42, ecx1, 20),
        (FE_AVX, ecx1, 28),
        (FE_AVX2, ebx7, 5),
        (FE_FMA, ecx1, 12),
        (FE_F16C, ecx1, 29),
        (FE_BMI1, ebx7, 3),
        (FE_BMI2, ebx7, 8),
        (FE_AES, ecx1, 25),
        (FE_PCLMUL, ecx1, 1),
        (FE_SHA, ebx7, 29),
        (FE_ADX, ebx7, 19),
        (FE_MOVBE, ecx1, 22),
        (FE_POPCNT, ecx1, 23),
        (FE_LZCNT, ecx81, 5),
        (FE_RDRAND, ecx1, 30),
        (FE_RDSEED, ebx7, 18),
        (FE_CX16, ecx1, 13),
        (FE_VAES, ecx7, 9),
        (FE_VPCLMUL, ecx7, 10),
        (FE_GFNI, ecx7, 8),
        (FE_CLFLUSHOPT, ebx7, 23),
        (FE_CLWB, ebx7, 24),
    ):
        i = fe
        _present[i] = bool(word >> bit & 1)
    for i in range(48):
        _brand[i] = BRAND[i] if i < len(BRAND) else 0


def feature_present(feature):
    return _present[feature]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _set(out: cython.pointer(uint32_t), a: uint32_t, b: uint32_t, c: uint32_t, d: uint32_t) -> cython.int:
    out[0] = a
    out[1] = b
    out[2] = c
    out[3] = d
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _topology(
    c: cython.pointer(VCpu), n: uint32_t, shift: uint32_t, subleaf: uint32_t, out: cython.pointer(uint32_t)
) -> cython.int:
    """One thread a core, all cores in one package."""
    if subleaf == 0:
        return _set(out, 0, 1, 0x100, c.index)
    if subleaf == 1:
        return _set(out, shift, n, 0x201, c.index)
    return _set(out, 0, 0, subleaf & 0xFF, c.index)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _cache(out: cython.pointer(uint32_t), kind: uint32_t, shared: uint32_t, n: uint32_t, ways: uint32_t,
           sets: uint32_t) -> cython.int:  # fmt: skip
    # kind: type in 4:0, level in 7:5, self-initializing
    return _set(out, kind | 0x100 | (shared - 1) << 14 | (n - 1) << 26, (ways - 1) << 22 | 63, sets - 1, 0)


def cpuid(c, leaf, subleaf, out):
    n: uint32_t = c.vcpus if c.vcpus > 0 else 1
    shift: uint32_t = 0
    x: uint32_t
    base: uint64_t = 0x800
    if leaf >= 0x40000000 and leaf <= 0x400000FF:
        if leaf == 0x40000000:
            return _set(out, 0x40000010, 0x4B4D564B, 0x564B4D56, 0x4D)  # KVMKVMKVM
        if leaf == 0x40000001:
            # CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE
            return _set(out, 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24, 0, 0, 0)
        if leaf == 0x40000010:
            return _set(out, cython.cast(uint32_t, tsc_khz), 1000000, 0, 0)
        return _set(out, 0, 0, 0, 0)
    if leaf >> 31:
        x = leaf & 0x7FFFFFFF
        if x == 0:
            return _set(out, leaf + 8, 0, 0, 0)
        if x == 1:
            return _set(out, 0, 0, _ecx81, _edx81)
        if x >= 2 and x <= 4:
            memcpy(out, cython.address(_brand[16 * (x - 2)]), 16)
            return 0
        if x == 6:
            return _set(out, 0, 0, 0x05007040, 0)  # L2: 1280 KiB, 64-byte lines
        if x == 7:
            return _set(out, 0, 0, 0, 1 << 8)  # invariant TSC
        if x == 8:
            return _set(out, c.phys_bits | 48 << 8, 0, 0, 0)
        if x == 5:
            return _set(out, 0, 0, 0, 0)
        leaf = 0x1F  # SDM: above the highest leaf, the data of the highest basic leaf
    elif leaf > 0x1F:
        leaf = 0x1F
    while (1 << shift) < n:
        shift += 1
    if leaf == 0:
        return _set(out, 0x1F, 0x756E6547, 0x6C65746E, 0x49656E69)  # GenuineIntel
    if leaf == 1:
        x = _ecx1
        if c.cr4 & CR4_OSXSAVE:
            x |= 1 << 27
        if c.apic != cython.NULL:
            cython.cast(InterruptController, c.apic).read_msr(0x1B, cython.address(base))
        out[3] = _edx1
        if not base & 0x800:
            out[3] &= ~(1 << 9)
        if n > 1:
            out[3] |= 1 << 28  # HTT
        out[0] = 0x606A6  # family 6, model 106, stepping 6
        out[1] = c.index << 24 | n << 16 | 8 << 8
        out[2] = x
        return 0
    if leaf == 2:
        return _set(out, 0x00FEFF01, 0, 0, 0)  # see leaf 4
    if leaf == 4:
        if subleaf == 0:
            return _cache(out, 0x21, 1, n, 12, 64)
        if subleaf == 1:
            return _cache(out, 0x22, 1, n, 8, 64)
        if subleaf == 2:
            return _cache(out, 0x43, 1, n, 20, 1024)
        if subleaf == 3:
            return _cache(out, 0x63, n, n, 16, 16384)
        return _set(out, 0, 0, 0, 0)
    if leaf == 6:
        return _set(out, 4, 0, 0, 0)  # the APIC timer always runs
    if leaf == 7:
        if subleaf == 0:
            return _set(out, 2, _ebx7, _ecx7, _edx7)
        if subleaf == 2:
            # BHI_CTRL: without it Linux clears the branch history at each system call with 30 calls and loops,
            # whatever ARCH_CAPABILITIES says. MCDT_NO.
            return _set(out, 0, 0, 0, 1 << 4 | 1 << 5)
        return _set(out, 0, 0, 0, 0)
    if leaf == 0xB or leaf == 0x1F:
        return _topology(c, n, shift, subleaf, out)
    if leaf == 0xD:
        x = 832 if xcr0_allowed & XCR0_AVX else 576
        if subleaf == 0:
            return _set(out, xcr0_allowed, 832 if c.xcr0 & XCR0_AVX else 576, x, 0)
        if subleaf == 1:
            return _set(out, 7, 832 if c.xcr0 & XCR0_AVX else 576, 0, 0)  # XSAVEOPT XSAVEC XGETBV1
        if subleaf == 2 and xcr0_allowed & XCR0_AVX:
            return _set(out, 256, 576, 0, 0)
        return _set(out, 0, 0, 0, 0)
    if leaf == 0x15:
        if tsc_khz >= 4294967:
            return _set(out, 0, 0, 0, 0)
        return _set(out, 1, 1, cython.cast(uint32_t, tsc_khz * 1000), 0)
    if leaf == 0x16:
        x = cython.cast(uint32_t, (tsc_khz + 500) // 1000)
        return _set(out, x, x, 100, 0)
    return _set(out, 0, 0, 0, 0)


_detect()
