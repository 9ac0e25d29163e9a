"""A VCpu's architectural state to ``hostel.cpu.state`` and back."""

import cython
from cython.cimports.hostel.base.clock import rdtsc
from cython.cimports.hostel.cpu.bt.cpuid import xcr0_allowed
from cython.cimports.hostel.cpu.bt.mmu import empty_tlb
from cython.cimports.hostel.cpu.bt.msr import clock_ns, clock_ticks, read_msr, update_kvmclock, write_msr
from cython.cimports.hostel.cpu.bt.segment import update_mode
from cython.cimports.hostel.cpu.bt.vcpu import Segment, VCpu
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset

from hostel.base.errors import MachineError
from hostel.cpu import state as form

# MSRs that are saved by number. KVM's clock has fields of its own here, for a write has effects; so has TSC_ADJUST.
KVM_WALL_CLOCK = 0x4B564D00
KVM_SYSTEM_TIME = 0x4B564D01
TSC_ADJUST = 0x3B
MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF)
MSRS = (
    *(0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102, 0xC0000103),  # STAR .. TSC_AUX
    *(0x48, 0x174, 0x175, 0x176, 0x1A0, 0x1D9, 0x277),  # SPEC_CTRL SYSENTER_* MISC_ENABLE DEBUGCTL PAT
    *MTRRS,
)


@cython.cfunc
def _segment(s: cython.pointer(Segment)) -> object:
    return form.Segment(s.selector, s.base, s.limit, s.attr)


@cython.cfunc
def _set_segment(s: cython.pointer(Segment), value: object):
    s.selector = value.selector
    s.base = value.base
    s.limit = value.limit
    s.attr = value.attributes


@cython.cfunc
def _xsave(c: cython.pointer(VCpu)) -> bytes:
    image = cython.declare(uint8_t[832])
    i: cython.int
    memset(image, 0, 832)
    memcpy(image, c.fx, 160)
    memset(cython.address(image[5]), 0, 19)  # the instruction and data pointers are the host's
    for i in range(16):
        memcpy(cython.address(image[160 + 16 * i]), cython.address(c.ymm[32 * i]), 16)
        memcpy(cython.address(image[576 + 16 * i]), cython.address(c.ymm[32 * i + 16]), 16)
    image[512] = 7
    return image[:832]


@cython.cfunc
def _xrstor(c: cython.pointer(VCpu), data: bytes):
    # a component that isn't in the header's bit map is in its initial state
    image: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), cython.cast(cython.p_char, data))
    i: cython.int
    bits: cython.int = image[512]
    memset(c.fx, 0, 512)
    c.fx[0] = 0x7F
    c.fx[1] = 3
    if bits & 1:
        memcpy(c.fx, image, 5)
        memcpy(cython.address(c.fx[32]), image + 32, 128)
    memcpy(cython.address(c.fx[24]), image + 24, 4)
    c.fx[28] = 0xFF
    c.fx[29] = 0xFF
    memset(c.ymm, 0, 512)
    for i in range(16):
        if bits & 2:
            memcpy(cython.address(c.ymm[32 * i]), image + 160 + 16 * i, 16)
        if bits & 4:
            memcpy(cython.address(c.ymm[32 * i + 16]), image + 576 + 16 * i, 16)


def save(c, now):
    value: uint64_t = 0
    if c.io_kind:
        raise MachineError("a vCPU waits for a device's answer; its state can't be saved now")
    if now == 0:
        now = rdtsc()
    msrs: dict = {}
    for index in MSRS:
        if read_msr(c, index, cython.address(value)) == 0:
            msrs[index] = value
    msrs[TSC_ADJUST] = c.msr_tsc_adjust
    msrs[KVM_WALL_CLOCK] = c.msr_kvm_wall_clock
    msrs[KVM_SYSTEM_TIME] = c.msr_kvm_system_time
    exception: object = None
    if c.exception_pending:
        exception = form.Exception_(
            c.exc_vector, c.exc_error if c.exc_has_error else None, c.exc_cr2 if c.exc_vector == 14 else 0,
            bool(c.exc_soft), bool(c.exc_trap), c.exc_length if c.exc_soft else 0,
        )  # fmt: skip
    return form.VcpuState(
        registers=[c.r[i] for i in range(16)],
        rip=c.rip,
        rflags=c.eflags,
        segments=[_segment(cython.address(c.seg[i])) for i in range(6)],
        ldtr=_segment(cython.address(c.ldtr)),
        tr=_segment(cython.address(c.tr)),
        gdtr=form.Table(c.gdtr.base, c.gdtr.limit),
        idtr=form.Table(c.idtr.base, c.idtr.limit),
        cr0=c.cr0,
        cr2=c.cr2,
        cr3=c.cr3,
        cr4=c.cr4,
        efer=c.efer,
        xcr0=c.xcr0,
        pdptes=[c.pdpte[i] for i in range(4)],
        debug=[c.dr[0], c.dr[1], c.dr[2], c.dr[3], c.dr[6], c.dr[7]],
        msrs=msrs,
        tsc=now + c.tsc_offset,
        clock_ns=clock_ns(now - c.clock_origin),
        xsave=_xsave(c),
        exception=exception,
        halted=bool(c.halted),
        wait_sipi=bool(c.wait_sipi),
        shadow=bool(c.inhibit),
        nmi_pending=bool(c.nmi_pending),
        nmi_blocked=bool(c.nmi_blocked),
    )


@cython.cfunc
def _check(state: object):
    """What a processor could never hold, whoever made it up."""
    if state.version != form.VERSION:
        raise MachineError(f"a vCPU state of version {state.version}; this hostel reads {form.VERSION}")
    words = [*state.registers, *state.pdptes, *state.debug, *state.msrs.values()]
    words += [state.rip, state.rflags, state.cr0, state.cr2, state.cr3, state.cr4, state.efer, state.xcr0]
    words += [state.tsc, state.clock_ns, state.gdtr.base, state.idtr.base]
    everything = [*state.segments, state.ldtr, state.tr]
    cr0, cr4, efer = state.cr0, state.cr4, state.efer
    long_mode = efer >> 10 & 1
    mxcsr = int.from_bytes(state.xsave[24:28], "little")
    for good, what in (
        (all(0 <= x < 1 << 64 for x in words), "a register of more than 64 bits"),
        (len(state.registers) == 16, "not 16 registers"),
        (len(state.segments) == 6, "not 6 segments"),
        (len(state.pdptes) == 4 and len(state.debug) == 6, "too few registers"),
        (
            all(
                0 <= s.selector < 1 << 16 and 0 <= s.base < 1 << 64 and 0 <= s.limit < 1 << 32
                and not s.attributes & ~0xF0FF
                for s in everything
            ),
            "a segment",
        ),
        (0 <= state.gdtr.limit < 1 << 16 and 0 <= state.idtr.limit < 1 << 16, "a table's limit"),
        (not cr0 >> 31 & 1 or cr0 & 1, "CR0: paging without protection"),
        (not cr4 & ~0x370FFC, "CR4: reserved bits"),
        (not efer & ~0xD01, "EFER: reserved bits"),
        (long_mode == (efer >> 8 & cr0 >> 31 & 1), "EFER: LMA"),
        (not long_mode or cr4 & 0x20, "long mode without PAE"),
        (not cr4 & 0x20000 or long_mode, "CR4: PCIDE outside long mode"),
        (not state.cr3 >> 52, "CR3: reserved bits"),
        (state.rflags & 2 and not state.rflags & ~0x3F7FD7, "RFLAGS: reserved bits"),
        (state.xcr0 & 1 and state.xcr0 & 6 != 4, "XCR0"),
        (not state.xcr0 & ~xcr0_allowed, "XCR0: this host has no AVX"),
        (len(state.xsave) == form.XSAVE_SIZE and not state.xsave[512] & ~7, "the XSAVE area"),
        (not mxcsr >> 16, "MXCSR: reserved bits"),
        (state.exception is None or 0 <= state.exception.vector < 256, "the exception"),
    ):  # fmt: skip
        if not good:
            raise MachineError(f"a vCPU state that no processor can be in: {what}")


def load(c, state, now):
    i: cython.int
    value: uint64_t
    _check(state)
    if now == 0:
        now = rdtsc()
    for i in range(16):
        c.r[i] = state.registers[i]
    c.rip = state.rip
    c.eflags = state.rflags
    for i in range(6):
        _set_segment(cython.address(c.seg[i]), state.segments[i])
    _set_segment(cython.address(c.ldtr), state.ldtr)
    _set_segment(cython.address(c.tr), state.tr)
    c.gdtr.base = state.gdtr.base
    c.gdtr.limit = state.gdtr.limit
    c.idtr.base = state.idtr.base
    c.idtr.limit = state.idtr.limit
    c.cr0 = state.cr0
    c.cr2 = state.cr2
    c.cr3 = state.cr3
    c.cr4 = state.cr4
    c.efer = state.efer
    c.xcr0 = state.xcr0
    for i in range(4):
        c.pdpte[i] = state.pdptes[i]
        c.dr[i] = state.debug[i]
    c.dr[6] = state.debug[4]
    c.dr[7] = state.debug[5]
    c.cpl = (c.seg[2].attr >> 5) & 3 if c.cr0 & 1 else 0
    c.msr_kvm_system_time = 0
    for index, given in state.msrs.items():
        value = given
        if index == TSC_ADJUST:
            c.msr_tsc_adjust = value
        elif index == KVM_WALL_CLOCK:
            c.msr_kvm_wall_clock = value
        elif index != KVM_SYSTEM_TIME and write_msr(c, index, value) != 0:
            raise MachineError(f"a vCPU state with MSR {index:#x} = {given:#x}, which this engine doesn't have")
    c.tsc_offset = cython.cast(uint64_t, state.tsc) - now
    c.clock_origin = now - clock_ticks(state.clock_ns)
    c.msr_kvm_system_time = state.msrs.get(KVM_SYSTEM_TIME, 0)
    _xrstor(c, state.xsave)
    c.exception_pending = 0
    if state.exception is not None:
        e = state.exception
        c.exception_pending = 1
        c.exc_vector = e.vector
        c.exc_has_error = e.error is not None
        c.exc_error = cython.cast(uint32_t, e.error or 0)
        c.exc_cr2 = e.address
        c.exc_soft = e.soft
        c.exc_trap = e.trap
        c.exc_length = e.length
    c.halted = state.halted
    c.wait_sipi = state.wait_sipi
    c.inhibit = state.shadow
    c.nmi_pending = state.nmi_pending
    c.nmi_blocked = state.nmi_blocked
    c.io_kind = 0
    empty_tlb(c)
    update_mode(c)
    update_kvmclock(c)
    return 0
