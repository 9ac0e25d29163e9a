"""Segmentation: descriptors, segment loads, far transfers (SDM vol. 2, the instructions; vol. 3, chapter 5).

Checks come before changes, so that an instruction that faults leaves the state as it was.
Limits: hardware task switches (task gates, far jumps to a TSS) raise #GP(selector); no operating system for
x86-64 uses them.
"""

import cython
from cython.cimports.hostel.cpu.bt.insn import CS, DS, ES, SS
from cython.cimports.hostel.cpu.bt.mmu import (
    raise_error,
    raise_segment,
    read_linear,
    read_segment,
    table_for,
    write_linear,
    write_table,
)
from cython.cimports.hostel.cpu.bt.vcpu import (
    FL_AC,
    FL_DF,
    FL_TF,
    FL_VM,
    MODE_AC,
    MODE_CODE32,
    MODE_CODE64,
    MODE_COUNT,
    MODE_DEBUG,
    MODE_DF,
    MODE_FLAT,
    MODE_LONG,
    MODE_NOAVX,
    MODE_NOFPU,
    MODE_NOSSE,
    MODE_PE,
    MODE_RING12,
    MODE_SS32,
    MODE_TF,
    MODE_TSD,
    MODE_USER,
    X_GP,
    X_NP,
    X_SS,
    X_TS,
    Segment,
    VCpu,
)
from cython.cimports.hostel.cpu.bt.x86 import (
    CR0_EM,
    CR0_PE,
    CR0_TS,
    CR4_OSFXSR,
    CR4_OSXSAVE,
    CR4_SMAP,
    CR4_TSD,
    DESC_CALL,
    DESC_CALL16,
    DESC_LDT,
    DESC_TSS,
    DESC_TSS16,
    EFER_LMA,
    M32,
    SEG_CODE,
    SEG_DB,
    SEG_DOWN,
    SEG_G,
    SEG_L,
    SEG_P,
    SEG_S,
    SEG_WRITE,
    XCR0_AVX,
    canonical,
)
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset


def update_mode(c):
    mode: uint32_t = 0
    cs: cython.pointer(Segment) = cython.address(c.seg[CS])
    ss: cython.pointer(Segment) = cython.address(c.seg[SS])
    ds: cython.pointer(Segment) = cython.address(c.seg[DS])
    es: cython.pointer(Segment) = cython.address(c.seg[ES])
    if c.cpl == 3:
        mode = MODE_USER
        if c.cr4 & CR4_TSD:
            mode |= MODE_TSD
    elif c.cpl:
        mode = MODE_RING12
    if c.cpl != 3 and (not c.cr4 & CR4_SMAP or c.eflags & FL_AC):
        mode |= MODE_AC
    if c.efer & EFER_LMA:
        mode |= MODE_LONG
        if cs.attr & SEG_L:
            mode |= MODE_CODE64 | MODE_FLAT
    if not mode & MODE_CODE64:
        if cs.attr & SEG_DB:
            mode |= MODE_CODE32
        if ss.attr & SEG_DB:
            mode |= MODE_SS32
        if (
            cs.base | ss.base | ds.base | es.base == 0
            and cs.limit & ss.limit & ds.limit & es.limit == M32
            and ss.attr & ds.attr & es.attr & SEG_P
            and ss.attr & ds.attr & es.attr & SEG_WRITE
            and not (ss.attr | ds.attr | es.attr) & (SEG_CODE | SEG_DOWN)
        ):
            mode |= MODE_FLAT
    if c.cr0 & CR0_PE:
        mode |= MODE_PE
    if c.cr0 & (CR0_TS | CR0_EM):
        mode |= MODE_NOFPU
    if not c.cr4 & CR4_OSFXSR:
        mode |= MODE_NOSSE
    if not c.cr4 & CR4_OSXSAVE or not c.xcr0 & XCR0_AVX:
        mode |= MODE_NOAVX
    if c.eflags & FL_DF:
        mode |= MODE_DF
    if c.eflags & FL_TF:
        mode |= MODE_TF
    if c.dr[7] & 0xFF or c.watch_count:
        mode |= MODE_DEBUG
    if c.counting:
        mode |= MODE_COUNT
    c.mode = mode


def raise_selector(c, vector, selector):
    raise_error(c, vector, selector)
    return -1


# ---- descriptors


def read_descriptor(c, selector, vector, ext, out):
    base: uint64_t = c.gdtr.base
    limit: uint32_t = c.gdtr.limit
    if selector & 4:
        base = c.ldtr.base
        limit = c.ldtr.limit
        if not c.ldtr.attr & SEG_P:
            return raise_selector(c, vector, (selector & 0xFFFC) | ext)
    if cython.cast(uint32_t, selector | 7) > limit:
        return raise_selector(c, vector, (selector & 0xFFFC) | ext)
    return read_linear(c, base + (selector & 0xFFF8), out, 8, True)


def read_descriptor_high(c, selector, out):
    # system descriptors in long mode: the check of the limit covers 16 bytes
    base: uint64_t = c.gdtr.base
    limit: uint32_t = c.gdtr.limit
    if selector & 4:
        base = c.ldtr.base
        limit = c.ldtr.limit
    if cython.cast(uint32_t, (selector & 0xFFF8) + 15) > limit:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    return read_linear(c, base + (selector & 0xFFF8) + 8, out, 8, True)


def segment_from(s, selector, descriptor):
    s.selector = selector
    s.attr = cython.cast(uint16_t, (descriptor >> 40) & 0xF0FF)
    s.base = ((descriptor >> 16) & 0xFFFFFF) | ((descriptor >> 56) << 24)
    s.limit = cython.cast(uint32_t, (descriptor & 0xFFFF) | ((descriptor >> 32) & 0xF0000))
    if s.attr & SEG_G:
        s.limit = (s.limit << 12) | 0xFFF


def set_real_segment(c, seg, selector):
    # Real mode leaves limit and attributes as they are (which makes "unreal" mode), but for what protected
    # mode may have made unusable.
    s: cython.pointer(Segment) = cython.address(c.seg[seg])
    s.selector = selector
    s.base = cython.cast(uint64_t, selector) << 4
    if c.eflags & FL_VM:
        s.limit = 0xFFFF
        s.attr = 0xF3
    elif not s.attr & SEG_P:
        s.limit = 0xFFFF
        s.attr = 0x93
    elif seg != CS:
        s.attr = (s.attr & 0xF000) | 0x93


def set_accessed(c, selector, descriptor):
    if descriptor >> 40 & 1:
        return 0
    access: uint8_t = cython.cast(uint8_t, descriptor >> 40) | 1
    base: uint64_t = c.ldtr.base if selector & 4 else c.gdtr.base
    return write_linear(c, base + (selector & 0xFFF8) + 5, cython.address(access), 1, True)


def load_segment(c, seg, selector):
    d: uint64_t = 0
    attr: uint32_t
    dpl: cython.int
    rpl: cython.int = selector & 3
    if not c.cr0 & CR0_PE or c.eflags & FL_VM:
        set_real_segment(c, seg, selector)
        update_mode(c)
        return 0
    if not selector & 0xFFFC:
        if seg == SS:
            if not c.mode & MODE_CODE64 or c.cpl == 3 or rpl != c.cpl:
                raise_error(c, X_GP, 0)
                return -1
        c.seg[seg].selector = selector
        c.seg[seg].base = 0
        c.seg[seg].limit = 0
        c.seg[seg].attr = c.cpl << 5 if seg == SS else 0
        update_mode(c)
        return 0
    if read_descriptor(c, selector, X_GP, 0, cython.address(d)) != 0:
        return -1
    attr = cython.cast(uint32_t, d >> 40) & 0xF0FF
    dpl = (attr >> 5) & 3
    if not attr & SEG_S:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if seg == SS:
        if rpl != c.cpl or dpl != c.cpl or (attr & (SEG_CODE | SEG_WRITE)) != SEG_WRITE:
            return raise_selector(c, X_GP, selector & 0xFFFC)
        if not attr & SEG_P:
            return raise_selector(c, X_SS, selector & 0xFFFC)
    else:
        if (attr & (SEG_CODE | SEG_WRITE)) == SEG_CODE:  # execute-only
            return raise_selector(c, X_GP, selector & 0xFFFC)
        if (attr & (SEG_CODE | SEG_DOWN)) != (SEG_CODE | SEG_DOWN) and (rpl > dpl or c.cpl > dpl):
            return raise_selector(c, X_GP, selector & 0xFFFC)
        if not attr & SEG_P:
            return raise_selector(c, X_NP, selector & 0xFFFC)
    if set_accessed(c, selector, d) != 0:
        return -1
    segment_from(cython.address(c.seg[seg]), selector, d | (cython.cast(uint64_t, 1) << 40))
    update_mode(c)
    return 0


def load_ldt(c, selector):
    d: uint64_t = 0
    high: uint64_t = 0
    if not selector & 0xFFFC:
        memset(cython.address(c.ldtr), 0, cython.sizeof(Segment))
        c.ldtr.selector = selector
        return 0
    if selector & 4:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if read_descriptor(c, selector, X_GP, 0, cython.address(d)) != 0:
        return -1
    if ((d >> 40) & 0x1F) != DESC_LDT:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if not (d >> 47) & 1:
        return raise_selector(c, X_NP, selector & 0xFFFC)
    if c.efer & EFER_LMA:
        if read_descriptor_high(c, selector, cython.address(high)) != 0:
            return -1
    segment_from(cython.address(c.ldtr), selector, d)
    c.ldtr.base |= high << 32
    return 0


def load_task(c, selector):
    d: uint64_t = 0
    high: uint64_t = 0
    kind: cython.int
    busy: uint8_t
    if not selector & 0xFFFC:
        raise_error(c, X_GP, 0)
        return -1
    if selector & 4:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if read_descriptor(c, selector, X_GP, 0, cython.address(d)) != 0:
        return -1
    kind = cython.cast(cython.int, (d >> 40) & 0x1F)
    if kind != DESC_TSS and (kind != DESC_TSS16 or c.efer & EFER_LMA):
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if not (d >> 47) & 1:
        return raise_selector(c, X_NP, selector & 0xFFFC)
    if c.efer & EFER_LMA:
        if read_descriptor_high(c, selector, cython.address(high)) != 0:
            return -1
    busy = cython.cast(uint8_t, d >> 40) | 2
    if write_linear(c, c.gdtr.base + (selector & 0xFFF8) + 5, cython.address(busy), 1, True) != 0:
        return -1
    segment_from(cython.address(c.tr), selector, d)
    c.tr.attr |= 2
    c.tr.base |= high << 32
    return 0


# ---- stacks


def stack_mask(c):
    if c.mode & MODE_CODE64:
        return cython.cast(uint64_t, -1)
    return M32 if c.seg[SS].attr & SEG_DB else 0xFFFF


def set_sp(c, sp):
    mask: uint64_t = stack_mask(c)
    if mask == 0xFFFF:
        c.r[4] = (c.r[4] & ~mask) | (sp & mask)
    else:
        c.r[4] = sp & mask


def pop_values(c, offset, values, count, size):
    raw = cython.declare(uint8_t[64])
    i: cython.int
    if size == 8:
        return read_segment(c, SS, c.r[4] + offset, values, count * 8)  # in 64-bit code only
    if read_segment(c, SS, (c.r[4] + offset) & stack_mask(c), raw, count * size) != 0:
        return -1
    for i in range(count):
        values[i] = 0
        memcpy(cython.address(values[i]), cython.address(raw[i * size]), size)
    return 0


def push_frame(c, ss, flat64, cpl, sp, values, count, size, error):
    raw = cython.declare(uint8_t[8 * 48])
    total: cython.int = count * size
    i: cython.int
    linear: uint64_t
    offset: uint64_t
    table: cython.int = table_for(c, cpl)
    data: cython.p_const_void = values
    if size != 8:
        data = raw
        for i in range(count):
            memcpy(cython.address(raw[i * size]), cython.address(values[i]), size)
    if flat64:
        offset = sp[0] - total
        if not canonical(offset) or not canonical(offset + total - 1):
            return raise_selector(c, X_SS, error)
        linear = offset
        sp[0] = offset
    else:
        if ss.attr & SEG_DB:
            offset = (sp[0] - total) & M32
            sp[0] = offset
        else:
            offset = (sp[0] - total) & 0xFFFF
            sp[0] = (sp[0] & ~0xFFFF) | offset
        if ss.attr & SEG_DOWN and c.cr0 & CR0_PE:
            if offset <= ss.limit or offset + total - 1 > (M32 if ss.attr & SEG_DB else 0xFFFF):
                return raise_selector(c, X_SS, error)
        elif offset + total - 1 > ss.limit:
            return raise_selector(c, X_SS, error)
        linear = (ss.base + offset) & M32
    return write_table(c, linear, data, total, table)


def inner_stack64(c, offset, ext, sp):
    if cython.cast(uint32_t, offset + 7) > c.tr.limit:
        return raise_selector(c, X_TS, (c.tr.selector & 0xFFFC) | ext)
    if read_linear(c, c.tr.base + offset, sp, 8, True) != 0:
        return -1
    if not canonical(sp[0]):
        return raise_selector(c, X_SS, ext)
    return 0


def inner_stack(c, cpl, ext, ss, sp):
    raw = cython.declare(uint8_t[8])
    selector: uint16_t = 0
    d: uint64_t = 0
    attr: uint32_t
    wide: cython.bint = (c.tr.attr & 8) != 0  # a 32-bit TSS
    offset: cython.int = 4 + 8 * cpl if wide else 2 + 4 * cpl
    size: cython.int = 6 if wide else 4
    if cython.cast(uint32_t, offset + size - 1) > c.tr.limit:
        return raise_selector(c, X_TS, (c.tr.selector & 0xFFFC) | ext)
    if read_linear(c, c.tr.base + offset, raw, size, True) != 0:
        return -1
    sp[0] = 0
    memcpy(sp, raw, size - 2)
    memcpy(cython.address(selector), cython.address(raw[size - 2]), 2)
    if not selector & 0xFFFC:
        return raise_selector(c, X_TS, ext)
    if read_descriptor(c, selector, X_TS, ext, cython.address(d)) != 0:
        return -1
    attr = cython.cast(uint32_t, d >> 40) & 0xF0FF
    if (
        selector & 3 != cpl
        or cython.cast(cython.int, attr >> 5) & 3 != cpl
        or (attr & (SEG_S | SEG_CODE | SEG_WRITE)) != (SEG_S | SEG_WRITE)
    ):
        return raise_selector(c, X_TS, (selector & 0xFFFC) | ext)
    if not attr & SEG_P:
        return raise_selector(c, X_SS, (selector & 0xFFFC) | ext)
    if set_accessed(c, selector, d) != 0:
        return -1
    segment_from(ss, selector, d | (cython.cast(uint64_t, 1) << 40))
    return 0


# ---- code segments


def check_rip(c, descriptor, rip):
    limit: uint64_t
    if c.efer & EFER_LMA and (descriptor >> 53) & 1:
        if not canonical(rip):
            return raise_segment(c, CS)
        return 0
    limit = (descriptor & 0xFFFF) | ((descriptor >> 32) & 0xF0000)
    if (descriptor >> 55) & 1:
        limit = (limit << 12) | 0xFFF
    if rip > limit:
        return raise_segment(c, CS)
    return 0


def enter_code(c, selector, descriptor, cpl, rip):
    if c.efer & EFER_LMA and ((descriptor >> 53) & 3) == 3:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if check_rip(c, descriptor, rip) != 0 or set_accessed(c, selector, descriptor) != 0:
        return -1
    segment_from(
        cython.address(c.seg[CS]), (selector & 0xFFFC) | cpl, descriptor | (cython.cast(uint64_t, 1) << 40)
    )
    c.cpl = cython.cast(uint8_t, cpl)
    c.rip = rip
    return 0


def return_code(c, selector, descriptor):
    attr: uint32_t
    rpl: cython.int = selector & 3
    dpl: cython.int
    if not selector & 0xFFFC:
        raise_error(c, X_GP, 0)
        return -1
    if read_descriptor(c, selector, X_GP, 0, descriptor) != 0:
        return -1
    attr = cython.cast(uint32_t, descriptor[0] >> 40) & 0xF0FF
    dpl = (attr >> 5) & 3
    if (attr & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) or rpl < c.cpl:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if dpl > rpl if attr & SEG_DOWN else dpl != rpl:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if not attr & SEG_P:
        return raise_selector(c, X_NP, selector & 0xFFFC)
    if c.efer & EFER_LMA and (attr & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB):
        return raise_selector(c, X_GP, selector & 0xFFFC)
    return 0


def return_stack(c, selector, cpl, to64, ss):
    d: uint64_t = 0
    attr: uint32_t
    if not selector & 0xFFFC:
        if not to64 or cpl == 3 or selector & 3 != cpl:
            raise_error(c, X_GP, 0)
            return -1
        memset(ss, 0, cython.sizeof(Segment))
        ss.selector = selector
        ss.attr = cython.cast(uint16_t, cpl << 5)
        return 0
    if read_descriptor(c, selector, X_GP, 0, cython.address(d)) != 0:
        return -1
    attr = cython.cast(uint32_t, d >> 40) & 0xF0FF
    if (
        selector & 3 != cpl
        or cython.cast(cython.int, attr >> 5) & 3 != cpl
        or (attr & (SEG_S | SEG_CODE | SEG_WRITE)) != (SEG_S | SEG_WRITE)
    ):
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if not attr & SEG_P:
        return raise_selector(c, X_SS, selector & 0xFFFC)
    if set_accessed(c, selector, d) != 0:
        return -1
    segment_from(ss, selector, d | (cython.cast(uint64_t, 1) << 40))
    return 0


def drop_inner_segments(c):
    # SDM vol. 2, RET/IRET to outer privilege: data segments that the new CPL may not have become null
    i: cython.int
    s: cython.pointer(Segment)
    for i in range(6):
        if i == CS or i == SS:
            continue
        s = cython.address(c.seg[i])
        if (s.attr & (SEG_CODE | SEG_DOWN)) != (SEG_CODE | SEG_DOWN) and (s.attr >> 5) & 3 < c.cpl:
            if s.attr & SEG_P:
                s.selector = 0
                s.base = 0
            s.limit = 0
            s.attr = 0


# ---- far transfers


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _direct(c: cython.pointer(VCpu), selector: uint16_t, attr: uint32_t) -> cython.int:
    """Checks of a code segment that a far JMP or CALL names itself."""
    dpl: cython.int = (attr >> 5) & 3
    if not attr & SEG_CODE:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if attr & SEG_DOWN:
        if dpl > c.cpl:
            return raise_selector(c, X_GP, selector & 0xFFFC)
    elif (selector & 3) > c.cpl or dpl != c.cpl:
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if not attr & SEG_P:
        return raise_selector(c, X_NP, selector & 0xFFFC)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gate(
    c: cython.pointer(VCpu),
    selector: uint16_t,
    gate: uint64_t,
    target: cython.pointer(uint16_t),
    offset: cython.pointer(uint64_t),
    descriptor: cython.pointer(uint64_t),
) -> cython.int:
    """A call gate's target, checked up to what JMP and CALL have in common."""
    high: uint64_t = 0
    attr: uint32_t = cython.cast(uint32_t, gate >> 40) & 0xFF
    dpl: cython.int = (attr >> 5) & 3
    long_mode: cython.bint = (c.efer & EFER_LMA) != 0
    if (attr & 0xF) != DESC_CALL and ((attr & 0xF) != DESC_CALL16 or long_mode):
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if dpl < c.cpl or dpl < (selector & 3):
        return raise_selector(c, X_GP, selector & 0xFFFC)
    if not attr & SEG_P:
        return raise_selector(c, X_NP, selector & 0xFFFC)
    target[0] = cython.cast(uint16_t, gate >> 16)
    offset[0] = (gate & 0xFFFF) | ((gate >> 48) << 16)
    if long_mode:
        if read_descriptor_high(c, selector, cython.address(high)) != 0:
            return -1
        offset[0] |= high << 32
    elif (attr & 0xF) == DESC_CALL16:
        offset[0] &= 0xFFFF
    if not target[0] & 0xFFFC:
        raise_error(c, X_GP, 0)
        return -1
    if read_descriptor(c, target[0], X_GP, 0, descriptor) != 0:
        return -1
    attr = cython.cast(uint32_t, descriptor[0] >> 40) & 0xF0FF
    if (attr & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) or ((attr >> 5) & 3) > c.cpl:
        return raise_selector(c, X_GP, target[0] & 0xFFFC)
    if long_mode and (attr & (SEG_L | SEG_DB)) != SEG_L:
        return raise_selector(c, X_GP, target[0] & 0xFFFC)
    if not attr & SEG_P:
        return raise_selector(c, X_NP, target[0] & 0xFFFC)
    return 0


def jump_far(c, selector, offset, opsize):
    d: uint64_t = 0
    target: uint16_t = 0
    attr: uint32_t
    if not c.cr0 & CR0_PE or c.eflags & FL_VM:
        if offset > c.seg[CS].limit:
            return raise_segment(c, CS)
        set_real_segment(c, CS, selector)
        c.rip = offset
        update_mode(c)
        return 0
    if not selector & 0xFFFC:
        raise_error(c, X_GP, 0)
        return -1
    if read_descriptor(c, selector, X_GP, 0, cython.address(d)) != 0:
        return -1
    attr = cython.cast(uint32_t, d >> 40) & 0xF0FF
    if attr & SEG_S:
        if _direct(c, selector, attr) != 0:
            return -1
        if enter_code(c, selector, d, c.cpl, offset) != 0:
            return -1
        update_mode(c)
        return 0
    if _gate(c, selector, d, cython.address(target), cython.address(offset), cython.address(d)) != 0:
        return -1
    if not (d >> 42) & 1 and ((d >> 45) & 3) != c.cpl:
        return raise_selector(c, X_GP, target & 0xFFFC)
    if enter_code(c, target, d, c.cpl, offset) != 0:
        return -1
    update_mode(c)
    return 0


def call_far(c, selector, offset, opsize, next):
    d: uint64_t = 0
    gate: uint64_t
    target: uint16_t = selector
    attr: uint32_t
    values = cython.declare(uint64_t[40])
    count: cython.int = 2
    size: cython.int = opsize
    new_cpl: cython.int = c.cpl
    sp: uint64_t = c.r[4]
    ss = cython.declare(Segment)
    old_ss: uint16_t = c.seg[SS].selector
    params: cython.int = 0
    i: cython.int
    flat64: cython.bint = (c.mode & MODE_CODE64) != 0
    values[0] = next
    values[1] = c.seg[CS].selector
    if not c.cr0 & CR0_PE or c.eflags & FL_VM:
        if offset > c.seg[CS].limit:
            return raise_segment(c, CS)
        ss = c.seg[SS]
        if push_frame(c, cython.address(ss), False, c.cpl, cython.address(sp), values, 2, size, 0) != 0:
            return -1
        set_sp(c, sp)
        set_real_segment(c, CS, selector)
        c.rip = offset
        update_mode(c)
        return 0
    if not selector & 0xFFFC:
        raise_error(c, X_GP, 0)
        return -1
    if read_descriptor(c, selector, X_GP, 0, cython.address(d)) != 0:
        return -1
    attr = cython.cast(uint32_t, d >> 40) & 0xF0FF
    ss = c.seg[SS]
    if attr & SEG_S:
        if _direct(c, selector, attr) != 0:
            return -1
    else:
        gate = d
        if _gate(c, selector, gate, cython.address(target), cython.address(offset), cython.address(d)) != 0:
            return -1
        if c.efer & EFER_LMA:
            size = 8
        else:
            size = 2 if ((gate >> 40) & 0xF) == DESC_CALL16 else 4
        if not (d >> 42) & 1 and cython.cast(cython.int, (d >> 45) & 3) < c.cpl:
            new_cpl = cython.cast(cython.int, (d >> 45) & 3)
            if c.efer & EFER_LMA:
                if inner_stack64(c, 4 + 8 * new_cpl, 0, cython.address(sp)) != 0:
                    return -1
                memset(cython.address(ss), 0, cython.sizeof(Segment))
                ss.selector = cython.cast(uint16_t, new_cpl)
                ss.attr = cython.cast(uint16_t, new_cpl << 5)
                flat64 = True
            else:
                params = cython.cast(cython.int, (gate >> 32) & 31)
                if inner_stack(c, new_cpl, 0, cython.address(ss), cython.address(sp)) != 0:
                    return -1
                for i in range(params):
                    if pop_values(c, i * size, cython.address(values[2 + i]), 1, size) != 0:
                        return -1
            values[2 + params] = c.r[4] & stack_mask(c)
            values[3 + params] = old_ss
            count = 4 + params
    if c.efer & EFER_LMA and ((d >> 53) & 3) == 3:
        return raise_selector(c, X_GP, target & 0xFFFC)
    if check_rip(c, d, offset) != 0:
        return -1
    if push_frame(c, cython.address(ss), flat64, new_cpl, cython.address(sp), values, count, size, 0) != 0:
        return -1
    if enter_code(c, target, d, new_cpl, offset) != 0:
        return -1
    c.seg[SS] = ss
    update_mode(c)
    set_sp(c, sp)
    return 0


def return_far(c, opsize, drop):
    values = cython.declare(uint64_t[2])
    outer = cython.declare(uint64_t[2])
    d: uint64_t = 0
    selector: uint16_t
    rpl: cython.int
    ss = cython.declare(Segment)
    to64: cython.bint
    sp: uint64_t = c.r[4]
    if pop_values(c, 0, values, 2, opsize) != 0:
        return -1
    selector = cython.cast(uint16_t, values[1])
    if not c.cr0 & CR0_PE or c.eflags & FL_VM:
        if values[0] > c.seg[CS].limit:
            return raise_segment(c, CS)
        set_sp(c, sp + 2 * opsize + drop)
        set_real_segment(c, CS, selector)
        c.rip = values[0]
        update_mode(c)
        return 0
    if return_code(c, selector, cython.address(d)) != 0:
        return -1
    rpl = selector & 3
    if rpl == c.cpl:
        if enter_code(c, selector, d, rpl, values[0]) != 0:
            return -1
        update_mode(c)
        set_sp(c, sp + 2 * opsize + drop)
        return 0
    to64 = c.efer & EFER_LMA and (d >> 53) & 1
    if pop_values(c, 2 * opsize + drop, outer, 2, opsize) != 0:
        return -1
    if return_stack(c, cython.cast(uint16_t, outer[1]), rpl, to64, cython.address(ss)) != 0:
        return -1
    if enter_code(c, selector, d, rpl, values[0]) != 0:
        return -1
    c.seg[SS] = ss
    drop_inner_segments(c)
    update_mode(c)
    set_sp(c, outer[0] + drop)
    return 0


# ---- looking at descriptors


def visible(c, selector, descriptor):
    dpl: cython.int
    if not selector & 0xFFFC:
        return 0
    if selector & 4:
        if not c.ldtr.attr & SEG_P or cython.cast(uint32_t, selector | 7) > c.ldtr.limit:
            return 0
    elif cython.cast(uint32_t, selector | 7) > c.gdtr.limit:
        return 0
    if read_descriptor(c, selector, X_GP, 0, descriptor) != 0:
        return -1
    dpl = cython.cast(cython.int, (descriptor[0] >> 45) & 3)
    if ((descriptor[0] >> 40) & (SEG_S | SEG_CODE | SEG_DOWN)) == (SEG_S | SEG_CODE | SEG_DOWN):
        return 1
    return dpl >= c.cpl and dpl >= (selector & 3)


def lar(c, selector, value):
    d: uint64_t = 0
    kind: cython.int
    r: cython.int = visible(c, selector, cython.address(d))
    if r != 1:
        return r
    if not (d >> 44) & 1:
        kind = cython.cast(cython.int, (d >> 40) & 0xF)
        # TSS, LDT, call and task gates; in long mode the 32-bit TSS, LDT and call gate only
        if not ((0x1A04 if c.efer & EFER_LMA else 0x1A3E) >> kind) & 1:
            return 0
    value[0] = (d >> 32) & 0xFFFF00
    return 1


def lsl(c, selector, value):
    d: uint64_t = 0
    s = cython.declare(Segment)
    kind: cython.int
    r: cython.int = visible(c, selector, cython.address(d))
    if r != 1:
        return r
    if not (d >> 44) & 1:
        kind = cython.cast(cython.int, (d >> 40) & 0xF)
        if not ((0xA04 if c.efer & EFER_LMA else 0xA0E) >> kind) & 1:
            return 0
    segment_from(cython.address(s), selector, d)
    value[0] = s.limit
    return 1


def verify(c, selector, write):
    d: uint64_t = 0
    r: cython.int = visible(c, selector, cython.address(d))
    if r != 1:
        return r
    if not (d >> 44) & 1:
        return 0
    if (d >> 43) & 1:  # code: readable, never writable
        return 0 if write else (d >> 41) & 1
    return (d >> 41) & 1 if write else 1
