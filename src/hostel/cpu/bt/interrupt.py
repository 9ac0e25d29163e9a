"""Interrupts and exceptions into the guest, and the ways back: IDT delivery, IRET, SYSCALL and relatives.

SDM vol. 3, chapter 6, and vol. 2, INT n and IRET. A delivery that faults leaves the state as it was and makes
that fault pending; ``deliver_exception`` combines the two by table 6-5 (double fault) until one gets through,
or the processor shuts down.

Limits: task gates raise #GP; no virtual-8086 mode extensions (VME, PVI).
"""

import cython
from cython.cimports.hostel.cpu.bt.insn import CS, DS, ES, FS, GS, SS
from cython.cimports.hostel.cpu.bt.mmu import raise_error, raise_exception, raise_segment, read_linear
from cython.cimports.hostel.cpu.bt.segment import (
    check_rip,
    drop_inner_segments,
    enter_code,
    inner_stack,
    inner_stack64,
    pop_values,
    push_frame,
    raise_selector,
    read_descriptor,
    return_code,
    return_stack,
    set_real_segment,
    set_sp,
    update_mode,
)
from cython.cimports.hostel.cpu.bt.system import SYS_NEXT, SYS_SHUTDOWN
from cython.cimports.hostel.cpu.bt.vcpu import (
    FL_AC,
    FL_ARITH,
    FL_DF,
    FL_ID,
    FL_IF,
    FL_IOPL,
    FL_NT,
    FL_RF,
    FL_TF,
    FL_VIF,
    FL_VIP,
    FL_VM,
    MODE_CODE64,
    X_DB,
    X_DF,
    X_GP,
    X_NMI,
    X_NP,
    X_PF,
    X_TS,
    X_UD,
    Segment,
    VCpu,
)
from cython.cimports.hostel.cpu.bt.x86 import (
    CR0_PE,
    DESC_INT,
    DESC_INT16,
    DESC_TRAP,
    DESC_TRAP16,
    EFER_LMA,
    EFER_SCE,
    M32,
    SEG_CODE,
    SEG_DB,
    SEG_L,
    SEG_P,
    SEG_S,
    canonical,
)
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset


def raise_debug(c, dr6, trap):
    raise_exception(c, X_DB)
    c.exc_trap = trap
    c.dr[6] |= dr6


def raise_soft(c, vector, length):
    raise_exception(c, vector)
    c.exc_soft = 1
    c.exc_trap = 1
    c.exc_length = cython.cast(uint8_t, length)


# ---- into a handler


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _real(c: cython.pointer(VCpu), vector: cython.int) -> cython.int:
    """Through the interrupt vector table."""
    values = cython.declare(uint64_t[3])
    sp: uint64_t = c.r[4]
    gate: uint32_t = 0
    ss: Segment = c.seg[SS]
    if cython.cast(uint32_t, vector * 4 + 3) > c.idtr.limit:
        raise_error(c, X_GP, 0)
        return -1
    if read_linear(c, c.idtr.base + vector * 4, cython.address(gate), 4, True) != 0:
        return -1
    values[0] = c.rip
    values[1] = c.seg[CS].selector
    values[2] = c.eflags
    if push_frame(c, cython.address(ss), False, c.cpl, cython.address(sp), values, 3, 2, 0) != 0:
        return -1
    set_sp(c, sp)
    c.eflags &= ~(FL_IF | FL_TF | FL_AC | FL_RF)
    set_real_segment(c, CS, cython.cast(uint16_t, gate >> 16))
    c.rip = gate & 0xFFFF
    update_mode(c)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _long(
    c: cython.pointer(VCpu), vector: cython.int, soft: cython.bint, has_error: cython.bint, error: uint32_t,
    flags: uint64_t,
) -> cython.int:  # fmt: skip
    gate = cython.declare(uint64_t[2])
    values = cython.declare(uint64_t[6])
    ext: cython.int = 0 if soft else 1
    kind: cython.int
    selector: uint16_t
    d: uint64_t = 0
    attr: uint32_t
    dpl: cython.int
    ist: cython.int
    cpl: cython.int = c.cpl
    sp: uint64_t = c.r[4]
    rip: uint64_t
    first: cython.int = 0 if has_error else 1
    ss = cython.declare(Segment)
    if cython.cast(uint32_t, vector * 16 + 15) > c.idtr.limit:
        return raise_selector(c, X_GP, (vector * 8 + 2) | ext)
    if read_linear(c, c.idtr.base + vector * 16, gate, 16, True) != 0:
        return -1
    kind = cython.cast(cython.int, (gate[0] >> 40) & 0x1F)
    if kind != DESC_INT and kind != DESC_TRAP:
        return raise_selector(c, X_GP, (vector * 8 + 2) | ext)
    if soft and cython.cast(cython.int, (gate[0] >> 45) & 3) < c.cpl:
        return raise_selector(c, X_GP, vector * 8 + 2)
    if not (gate[0] >> 47) & 1:
        return raise_selector(c, X_NP, (vector * 8 + 2) | ext)
    selector = cython.cast(uint16_t, gate[0] >> 16)
    rip = (gate[0] & 0xFFFF) | ((gate[0] >> 48) << 16) | (gate[1] << 32)
    ist = cython.cast(cython.int, (gate[0] >> 32) & 7)
    if not selector & 0xFFFC:
        return raise_selector(c, X_GP, ext)
    if read_descriptor(c, selector, X_GP, ext, cython.address(d)) != 0:
        return -1
    attr = cython.cast(uint32_t, d >> 40) & 0xF0FF
    dpl = (attr >> 5) & 3
    if (attr & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) or dpl > c.cpl or (attr & (SEG_L | SEG_DB)) != SEG_L:
        return raise_selector(c, X_GP, (selector & 0xFFFC) | ext)
    if not attr & SEG_P:
        return raise_selector(c, X_NP, (selector & 0xFFFC) | ext)
    if not attr & 4:  # not conforming
        cpl = dpl
    if ist:
        if inner_stack64(c, 0x24 + 8 * (ist - 1), ext, cython.address(sp)) != 0:
            return -1
    elif cpl < c.cpl:
        if inner_stack64(c, 4 + 8 * cpl, ext, cython.address(sp)) != 0:
            return -1
    if not canonical(rip):
        return raise_selector(c, X_GP, ext)
    sp &= ~0xF
    values[0] = error
    values[1] = c.rip
    values[2] = c.seg[CS].selector
    values[3] = flags
    values[4] = c.r[4]
    values[5] = c.seg[SS].selector
    ss = c.seg[SS]
    if push_frame(
        c, cython.address(ss), True, cpl, cython.address(sp), cython.address(values[first]), 6 - first, 8, ext
    ):
        return -1
    if cpl != c.cpl:
        memset(cython.address(ss), 0, cython.sizeof(Segment))
        ss.selector = cython.cast(uint16_t, cpl)
        ss.attr = cython.cast(uint16_t, cpl << 5)
    if enter_code(c, selector, d, cpl, rip) != 0:
        return -1
    c.seg[SS] = ss
    c.r[4] = sp
    c.eflags &= ~(FL_TF | FL_NT | FL_RF | FL_VM)
    if kind == DESC_INT:
        c.eflags &= ~FL_IF
    update_mode(c)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _protected(
    c: cython.pointer(VCpu), vector: cython.int, soft: cython.bint, has_error: cython.bint, error: uint32_t,
    flags: uint64_t,
) -> cython.int:  # fmt: skip
    gate: uint64_t = 0
    values = cython.declare(uint64_t[10])
    ext: cython.int = 0 if soft else 1
    kind: cython.int
    selector: uint16_t
    d: uint64_t = 0
    attr: uint32_t
    dpl: cython.int
    cpl: cython.int = c.cpl
    size: cython.int
    sp: uint64_t = c.r[4]
    rip: uint64_t
    first: cython.int = 0 if has_error else 1
    count: cython.int = 4
    i: cython.int
    v86: cython.bint = (c.eflags & FL_VM) != 0
    ss: Segment = c.seg[SS]
    if cython.cast(uint32_t, vector * 8 + 7) > c.idtr.limit:
        return raise_selector(c, X_GP, (vector * 8 + 2) | ext)
    if read_linear(c, c.idtr.base + vector * 8, cython.address(gate), 8, True) != 0:
        return -1
    kind = cython.cast(cython.int, (gate >> 40) & 0x1F)
    if kind != DESC_INT and kind != DESC_TRAP and kind != DESC_INT16 and kind != DESC_TRAP16:
        return raise_selector(c, X_GP, (vector * 8 + 2) | ext)
    if soft and cython.cast(cython.int, (gate >> 45) & 3) < c.cpl:
        return raise_selector(c, X_GP, vector * 8 + 2)
    if not (gate >> 47) & 1:
        return raise_selector(c, X_NP, (vector * 8 + 2) | ext)
    selector = cython.cast(uint16_t, gate >> 16)
    rip = gate & 0xFFFF
    size = 2
    if kind & 8:
        size = 4
        rip |= (gate >> 48) << 16
    if not selector & 0xFFFC:
        return raise_selector(c, X_GP, ext)
    if read_descriptor(c, selector, X_GP, ext, cython.address(d)) != 0:
        return -1
    attr = cython.cast(uint32_t, d >> 40) & 0xF0FF
    dpl = (attr >> 5) & 3
    if (attr & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) or dpl > c.cpl:
        return raise_selector(c, X_GP, (selector & 0xFFFC) | ext)
    if not attr & SEG_P:
        return raise_selector(c, X_NP, (selector & 0xFFFC) | ext)
    if not attr & 4:
        cpl = dpl
    if v86 and cpl != 0:
        return raise_selector(c, X_GP, (selector & 0xFFFC) | ext)
    if cpl < c.cpl:
        if inner_stack(c, cpl, ext, cython.address(ss), cython.address(sp)) != 0:
            return -1
        values[4] = c.r[4] & (0xFFFF if size == 2 else M32)
        values[5] = c.seg[SS].selector
        count = 6
        if v86:
            values[6] = c.seg[ES].selector
            values[7] = c.seg[DS].selector
            values[8] = c.seg[FS].selector
            values[9] = c.seg[GS].selector
            count = 10
    if check_rip(c, d, rip) != 0:
        c.exc_error |= ext
        return -1
    values[0] = error
    values[1] = c.rip
    values[2] = c.seg[CS].selector
    values[3] = flags
    count -= first
    if cpl < c.cpl:
        ext |= ss.selector & 0xFFFC
    if push_frame(
        c, cython.address(ss), False, cpl, cython.address(sp), cython.address(values[first]), count, size, ext
    ):
        return -1
    if enter_code(c, selector, d, cpl, rip) != 0:
        return -1
    c.seg[SS] = ss
    if v86:
        for i in range(6):
            if i != CS and i != SS:
                memset(cython.address(c.seg[i]), 0, cython.sizeof(Segment))
    c.eflags &= ~(FL_TF | FL_NT | FL_RF | FL_VM)
    if kind == DESC_INT or kind == DESC_INT16:
        c.eflags &= ~FL_IF
    update_mode(c)
    set_sp(c, sp)
    return 0


def interrupt(c, vector, soft, has_error, error, resume):
    flags: uint64_t = c.eflags
    if not c.cr0 & CR0_PE:
        return _real(c, vector)
    if resume:
        flags |= FL_RF
    if c.efer & EFER_LMA:
        return _long(c, vector, soft, has_error, error, flags)
    return _protected(c, vector, soft, has_error, error, flags)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _severity(vector: cython.int) -> cython.int:
    """0 benign, 1 contributory, 2 page fault (SDM vol. 3, table 6-4)."""
    if vector == X_PF:
        return 2
    if vector == 0 or (vector >= X_TS and vector <= X_GP):
        return 1
    return 0


def deliver_exception(c):
    vector: cython.int = c.exc_vector
    soft: cython.bint = c.exc_soft
    has_error: cython.bint = c.exc_has_error
    error: uint32_t = c.exc_error
    resume: cython.bint = not c.exc_trap and vector != X_DF
    length: cython.int = c.exc_length if soft else 0
    severity: cython.int = 0 if soft else _severity(vector)
    in_double: cython.bint = vector == X_DF
    second: cython.int
    c.n_exceptions += 1
    if vector < 32:
        c.n_exception[vector] += 1
    while True:
        c.exception_pending = 0
        if vector == X_PF:
            c.cr2 = c.exc_cr2
        elif vector == X_DB:
            c.dr[7] &= ~0x2000  # GD
        if interrupt(c, vector, soft, has_error, error, resume) == 0:
            c.halted = 0
            c.inhibit = 0
            return SYS_NEXT
        if length:  # a fault in delivering INT n points at the instruction
            c.rip = (c.rip - length) & (cython.cast(uint64_t, -1) if c.mode & MODE_CODE64 else M32)
            length = 0
        second = _severity(c.exc_vector)
        if in_double and second:
            c.exception_pending = 0
            return SYS_SHUTDOWN
        if (severity == 1 and second == 1) or (severity == 2 and second):
            c.n_exception[X_DF] += 1
            if c.exc_vector == X_PF:
                c.cr2 = c.exc_cr2  # the second address is what a double-fault handler sees
            vector = X_DF
            has_error = True
            error = 0
            resume = False
            in_double = True
        else:
            vector = c.exc_vector
            has_error = c.exc_has_error
            error = c.exc_error
            resume = True
            severity = second
        soft = False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _external(c: cython.pointer(VCpu), vector: cython.int) -> cython.int:
    c.halted = 0
    if interrupt(c, vector, False, False, 0, False) == 0:
        return SYS_NEXT
    return deliver_exception(c)


def deliver_interrupt(c, vector):
    return _external(c, vector)


def deliver_nmi(c):
    c.nmi_pending = 0
    c.nmi_blocked = 1
    return _external(c, X_NMI)


# ---- and back


def set_flags(c, value, mask):
    # RF lives for one instruction, and only instruction breakpoints look at it (run.py clears it)
    c.eflags = ((c.eflags & ~mask) | (value & mask) | 2) & ~cython.cast(uint64_t, FL_RF)
    if mask & FL_RF and c.dr[7] & 0xFF:
        c.eflags |= value & FL_RF


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _iret_v86(c: cython.pointer(VCpu), values: cython.pointer(uint64_t)) -> cython.int:
    """From CPL 0 to virtual-8086 mode: nine doublewords on the stack."""
    outer = cython.declare(uint64_t[6])
    if pop_values(c, 12, outer, 6, 4) != 0:
        return -1
    set_flags(c, values[2], FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_VM | FL_AC | FL_ID)
    set_flags(c, values[2], FL_VIF | FL_VIP)
    c.cpl = 3
    set_real_segment(c, CS, cython.cast(uint16_t, values[1]))
    set_real_segment(c, SS, cython.cast(uint16_t, outer[1]))
    set_real_segment(c, ES, cython.cast(uint16_t, outer[2]))
    set_real_segment(c, DS, cython.cast(uint16_t, outer[3]))
    set_real_segment(c, FS, cython.cast(uint16_t, outer[4]))
    set_real_segment(c, GS, cython.cast(uint16_t, outer[5]))
    c.rip = values[0] & 0xFFFF
    c.r[4] = outer[0]
    update_mode(c)
    return 0


def iret(c, opsize):
    values = cython.declare(uint64_t[5])
    d: uint64_t = 0
    selector: uint16_t
    rpl: cython.int
    old_cpl: cython.int = c.cpl
    from64: cython.bint = (c.mode & MODE_CODE64) != 0
    outer: cython.bint
    mask: uint64_t = FL_ARITH | FL_TF | FL_DF | FL_NT
    ss = cython.declare(Segment)
    sp: uint64_t
    c.nmi_blocked = 0
    if opsize > 2:
        mask |= FL_AC | FL_ID
    if not c.cr0 & CR0_PE or c.eflags & FL_VM:
        if c.eflags & FL_VM and (c.eflags & FL_IOPL) != FL_IOPL:
            raise_error(c, X_GP, 0)
            return -1
        if pop_values(c, 0, values, 3, opsize) != 0:
            return -1
        if values[0] > 0xFFFF:
            return raise_segment(c, CS)
        set_sp(c, c.r[4] + 3 * opsize)
        set_real_segment(c, CS, cython.cast(uint16_t, values[1]))
        c.rip = values[0]
        set_flags(c, values[2], mask | FL_IF | (0 if c.eflags & FL_VM else FL_IOPL))
        update_mode(c)
        return 0
    if c.eflags & FL_NT:
        if c.efer & EFER_LMA:
            raise_error(c, X_GP, 0)
        else:  # a return to another task
            raise_selector(c, X_TS, c.tr.selector & 0xFFFC)
        return -1
    if pop_values(c, 0, values, 5 if from64 else 3, opsize) != 0:
        return -1
    if values[2] & FL_VM and c.cpl == 0 and not c.efer & EFER_LMA and opsize == 4:
        return _iret_v86(c, values)
    selector = cython.cast(uint16_t, values[1])
    if return_code(c, selector, cython.address(d)) != 0:
        return -1
    rpl = selector & 3
    outer = rpl != old_cpl
    if outer and not from64:
        if pop_values(c, 3 * opsize, cython.address(values[3]), 2, opsize) != 0:
            return -1
    if outer or from64:
        if return_stack(
            c, cython.cast(uint16_t, values[4]), rpl, c.efer & EFER_LMA and (d >> 53) & 1, cython.address(ss)
        ):
            return -1
    sp = c.r[4]
    if enter_code(c, selector, d, rpl, values[0]) != 0:
        return -1
    if old_cpl == 0:
        mask |= FL_IOPL
        if opsize > 2:
            mask |= FL_VIF | FL_VIP
    if old_cpl <= cython.cast(cython.int, (c.eflags & FL_IOPL) >> 12):
        mask |= FL_IF
    set_flags(c, values[2], mask | (FL_RF if opsize > 2 else 0))
    if outer or from64:
        c.seg[SS] = ss
        if outer:
            drop_inner_segments(c)
        update_mode(c)
        set_sp(c, values[3])
    else:
        update_mode(c)
        set_sp(c, sp + 3 * opsize)
    return 0


# ---- fast system calls


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _flat(c: cython.pointer(VCpu), seg: cython.int, selector: uint16_t, attr: uint16_t) -> cython.void:
    c.seg[seg].selector = selector
    c.seg[seg].base = 0
    c.seg[seg].limit = cython.cast(uint32_t, -1)
    c.seg[seg].attr = attr


def syscall(c, next):
    if not c.mode & MODE_CODE64 or not c.efer & EFER_SCE:
        raise_exception(c, X_UD)
        return -1
    c.n_syscalls += 1
    c.r[1] = next
    c.r[11] = c.eflags & ~cython.cast(uint64_t, FL_RF)
    c.rip = c.msr_lstar
    c.eflags = (c.eflags & ~(c.msr_sfmask | FL_RF)) | 2
    _flat(c, CS, cython.cast(uint16_t, c.msr_star >> 32) & 0xFFFC, 0xA09B)
    _flat(c, SS, cython.cast(uint16_t, ((c.msr_star >> 32) & 0xFFFC) + 8), 0xC093)
    c.cpl = 0
    update_mode(c)
    return 0


def sysret(c, opsize):
    base: uint64_t = c.msr_star >> 48
    if not c.mode & MODE_CODE64 or not c.efer & EFER_SCE:
        raise_exception(c, X_UD)
        return -1
    if c.cpl != 0 or (opsize == 8 and not canonical(c.r[1])):
        raise_error(c, X_GP, 0)
        return -1
    c.eflags = (c.r[11] & 0x3C7FD7) | 2
    if opsize == 8:
        _flat(c, CS, cython.cast(uint16_t, (base + 16) | 3), 0xA0FB)
        c.rip = c.r[1]
    else:
        _flat(c, CS, cython.cast(uint16_t, base | 3), 0xC0FB)
        c.rip = c.r[1] & M32
    _flat(c, SS, cython.cast(uint16_t, (base + 8) | 3), 0xC0F3)
    c.cpl = 3
    update_mode(c)
    return 0


def sysenter(c):
    selector: uint16_t = cython.cast(uint16_t, c.msr_sysenter_cs & 0xFFFC)
    if not c.cr0 & CR0_PE or not selector:
        raise_error(c, X_GP, 0)
        return -1
    c.eflags &= ~cython.cast(uint64_t, FL_VM | FL_IF | FL_RF)
    _flat(c, CS, selector, 0xA09B if c.efer & EFER_LMA else 0xC09B)
    _flat(c, SS, selector + 8, 0xC093)
    c.cpl = 0
    c.r[4] = c.msr_sysenter_esp
    c.rip = c.msr_sysenter_eip
    if not c.efer & EFER_LMA:
        c.r[4] &= M32
        c.rip &= M32
    update_mode(c)
    return 0


def sysexit(c, opsize):
    selector: uint16_t = cython.cast(uint16_t, c.msr_sysenter_cs & 0xFFFC)
    if not c.cr0 & CR0_PE or not selector or c.cpl != 0:
        raise_error(c, X_GP, 0)
        return -1
    if opsize == 8:
        if not canonical(c.r[1]) or not canonical(c.r[2]):
            raise_error(c, X_GP, 0)
            return -1
        _flat(c, CS, (selector + 32) | 3, 0xA0FB)
        _flat(c, SS, (selector + 40) | 3, 0xC0F3)
        c.r[4] = c.r[1]
        c.rip = c.r[2]
    else:
        _flat(c, CS, (selector + 16) | 3, 0xC0FB)
        _flat(c, SS, (selector + 24) | 3, 0xC0F3)
        c.r[4] = c.r[1] & M32
        c.rip = c.r[2] & M32
    c.cpl = 3
    update_mode(c)
    return 0
