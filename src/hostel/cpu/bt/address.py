"""Operands: guest addresses, and the inline look-up that makes host addresses of them."""

import cython
from cython.cimports.hostel.cpu.bt.cache import (
    JUMP_BYTES,
    SITE_ALIGNED,
    SITE_ATOMIC,
    SITE_DISTANCE,
    SITE_EARLY,
    SITE_GREEDY,
    SITE_STACK,
    SK_MEM,
    Site,
    add_site,
)
from cython.cimports.hostel.cpu.bt.decode import table
from cython.cimports.hostel.cpu.bt.emit import (
    CC_A,
    CC_NE,
    S1,
    S2,
    Code,
    away,
    e4,
    gs_load,
    gs_op,
    gs_op_index,
    gs_store,
    jcc_hole,
    jmp_to,
    lea,
    mov_ri,
    mov_rr,
    mov_rr32,
    mov_site,
    nops,
    op_mem,
    op_ri,
    op_rr,
    shift_ri,
)
from cython.cimports.hostel.cpu.bt.flags import clobber
from cython.cimports.hostel.cpu.bt.insn import FS, GS, O_ALIGNED, P_LOCK, P_VEX, REG_NONE, REG_RIP, SS
from cython.cimports.hostel.cpu.bt.stack import settle_stack
from cython.cimports.hostel.cpu.bt.stubs import off
from cython.cimports.hostel.cpu.bt.translation import (
    COLD_MEM,
    COLD_WINDOW,
    EA_BT,
    EA_PLAIN,
    EA_XLAT,
    Address,
    Cold,
    Operand,
    Translation,
    Window,
)
from cython.cimports.hostel.cpu.bt.vcpu import ACCESS_READ, MODE_DEBUG, MODE_FLAT, TLB_SIZE
from cython.cimports.hostel.cpu.bt.windows import disturbed, find_window
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


def operand_address(t, insn, a):
    a.kind = EA_PLAIN
    a.base = insn.base
    a.index = insn.index
    a.scale = insn.scale
    a.disp = insn.disp
    a.seg = insn.seg
    a.size = insn.addrsize
    a.rip = insn.pc + insn.length


def stack_address(t, disp, a):
    a.kind = EA_PLAIN
    a.base = 4
    a.index = REG_NONE
    a.scale = 0
    a.disp = disp
    a.seg = SS
    a.size = cython.cast(uint8_t, t.stack_size)


def guest_reg(e, r):
    """Have guest register r in the host register of its name."""
    if away(r):
        gs_load(e, r, off.r[r])


def guest_reg_to(e, r, host):
    if away(r):
        gs_load(e, host, off.r[r])
    else:
        mov_rr(e, host, r)


def guest_pc(t, host, pc):
    """Host register = an address that is known from the block's own."""
    e: cython.pointer(Code) = cython.address(t.e)
    if not t.pic:
        mov_ri(e, host, pc)
        return
    gs_load(e, host, off.pc_page)
    disp: int64_t = cython.cast(int64_t, pc - (t.first_pc & ~cython.cast(uint64_t, 0xFFF)))
    half: int64_t = disp // 2
    if disp == cython.cast(int32_t, disp):
        lea(e, 8, host, host, REG_NONE, 0, disp)
    else:  # a page further than 32 bits reach
        lea(e, 8, host, host, REG_NONE, 0, half)
        lea(e, 8, host, host, REG_NONE, 0, disp - half)


def offset_to_s1(t, a):
    """s1 = the operand's offset in its segment, cut to the address size. Leaves the flags alone; uses s2."""
    e: cython.pointer(Code) = cython.address(t.e)
    t.in_s1 = -1
    if a.kind == EA_XLAT:
        op_rr(e, 4, 0x1B6, S2, 0)  # movzx s2d, al
        lea(e, 8 if a.size == 8 else 4, S1, 3, S2, 0, 0)
    elif a.base == REG_RIP:
        value: uint64_t = a.rip + cython.cast(uint64_t, a.disp)
        if t.pic:
            guest_pc(t, S1, value)
            if a.size == 4:
                mov_rr32(e, S1, S1)
        else:
            mov_ri(e, S1, value if a.size == 8 else cython.cast(uint32_t, value))
    elif a.base == REG_NONE and a.index == REG_NONE:
        mov_ri(e, S1, cython.cast(uint64_t, a.disp) if a.size == 8 else cython.cast(uint32_t, a.disp))
    else:
        if a.base < 16:
            guest_reg(e, a.base)
        if a.index < 16:
            guest_reg(e, a.index)
        lea(e, 8 if a.size == 8 else 4, S1, a.base, a.index, a.scale, a.disp)
    if a.size == 2:
        op_rr(e, 4, 0x1B7, S1, S1)  # movzx s1d, s1w


def address_to_s1(t, a):
    """s1 = the operand's linear address. The host's flags are lost; uses s2."""
    e: cython.pointer(Code) = cython.address(t.e)
    offset_to_s1(t, a)
    if a.kind == EA_BT:  # s1 += (bit number / operand bits) * operand bytes, signed
        shift: cython.int = 4 if a.opsize == 2 else 5 if a.opsize == 4 else 6
        guest_reg_to(e, a.bit_reg, S2)
        if a.opsize == 2:
            op_rr(e, 8, 0x1BF, S2, S2)  # movsx s2, s2w
        elif a.opsize == 4:
            op_rr(e, 8, 0x63, S2, S2)  # movsxd s2, s2d
        shift_ri(e, 8, 7, S2, shift)
        lea(e, 8 if a.size == 8 else 4, S1, S1, S2, shift - 3, 0)
        if a.size == 2:
            op_rr(e, 4, 0x1B7, S1, S1)
    if t.code64:
        if a.seg == FS or a.seg == GS:
            gs_op(e, 8, 0x03, S1, off.seg_base[a.seg])
    elif a.seg == FS or a.seg == GS or not t.mode & MODE_FLAT:
        gs_op(e, 4, 0x03, S1, off.seg_base[a.seg])


def atomic(insn):
    """SITE_ATOMIC for LOCK, or XCHG with memory, which is locked by itself."""
    if insn.prefixes & P_LOCK:
        return SITE_ATOMIC
    xchg: cython.bint = insn.opmap == 0 and (insn.opcode & 0xFE) == 0x86 and not insn.prefixes & P_VEX
    return SITE_ATOMIC if xchg else 0


def check_access(t, i, a, size, access):
    """s1 = host address of ``size`` bytes at ``a``, checked. The flags are kept; s2 is free after."""
    o: Operand
    if _checked(t, i, a, size, access, False, cython.address(o)):
        lea(cython.address(t.e), 8, S1, o.base, o.index, 0, o.disp)
        t.in_s1 = -1


def check_operand(t, i, a, size, access, o):
    """``o`` = ``size`` bytes at ``a`` in the host's memory, checked; registers that it names must not change before it
    is used. The flags are kept; s2 is free after."""
    if not _checked(t, i, a, size, access, True, o):
        o.base = S1
        o.index = REG_NONE
        o.disp = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _operand(
    t: cython.pointer(Translation), a: cython.pointer(Address), moved: int64_t, o: cython.pointer(Operand)
) -> cython.void:  # fmt: skip
    """The operand at ``a``, where s1 holds the distance of the host's page from the guest's and what isn't base or
    displacement: the index, which has ``moved`` since, the segment's base, the page of a block of MODE_PIC."""
    e: cython.pointer(Code) = cython.address(t.e)
    disp: int64_t = a.disp + moved
    o.base = S1
    o.index = REG_NONE
    if a.base < 16 and not away(a.base):
        o.base = a.base
        o.index = S1
        if a.base == 4:
            disp += t.moved
    elif a.base < 16:
        gs_load(e, S2, off.r[a.base])
        lea(e, 8, S1, S1, S2, 0, 0)
        t.in_s1 = -1
    elif a.base == REG_RIP:
        disp += cython.cast(int64_t, a.rip)
        if t.pic:
            disp -= cython.cast(int64_t, t.first_pc & ~cython.cast(uint64_t, 0xFFF))
    if disp != cython.cast(int32_t, disp):
        mov_ri(e, S2, cython.cast(uint64_t, disp))
        lea(e, 8, S1, S1, S2, 0, 0)
        t.in_s1 = -1
        disp = 0
    o.disp = cython.cast(cython.int, disp)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _checked(
    t: cython.pointer(Translation), i: cython.int, a: cython.pointer(Address), size: cython.int, access: cython.int,
    distance: cython.bint, o: cython.pointer(Operand),
) -> cython.bint:  # fmt: skip
    """Check ``size`` bytes at ``a``. True: they are ``o``, by their page's distance, if a window has them or
    ``distance`` says that it may be; False: s1 = the host's address."""
    e: cython.pointer(Code) = cython.address(t.e)
    w: cython.pointer(Window) = find_window(t, i, a, size, access)
    if w != cython.NULL:
        number: cython.int = cython.cast(cython.int, w - cython.address(t.windows[0]))
        moved: int64_t = 0
        if t.in_s1 != number and w.kept:
            gs_load(e, S1, off.window + 8 * w.slot)
            t.in_s1 = number
        if t.in_s1 == number:
            if a.index < 16:
                moved = t.values[i][a.index].offset - t.values[w.point][w.address.index].offset
            _operand(t, a, moved << a.scale, o)
            return True
    settle_stack(t)
    clobber(t, t.live[i])
    distance = distance and not t.single and t.code64 and a.kind == EA_PLAIN and a.size == 8
    site: uint32_t = add_site(t.m, SK_MEM, t.insns[i].pc, t.block)
    s: cython.pointer(Site) = cython.address(t.m.sites[site])
    s.size = cython.cast(uint16_t, size)
    s.access = cython.cast(uint8_t, access)
    s.extra = atomic(cython.address(t.insns[i]))
    if table[t.insns[i].op].flags & O_ALIGNED:
        s.extra |= SITE_ALIGNED
    if a.seg == SS:
        s.extra |= SITE_STACK
    if t.mode & MODE_DEBUG:
        # every access comes to the monitor, which goes on behind the check
        address_to_s1(t, a)
        s.host = cython.cast(uint32_t, e.p - t.m.code)
        mov_site(e, S2, site)
        jmp_to(e, t.m.leave_site_mem)
        s.check = cython.cast(uint8_t, e.p - (t.m.code + s.host))
        return False
    _look_up(t, a, site, size, access, COLD_MEM, distance)
    if distance:
        _operand(t, a, 0, o)
    return distance


def check_windows(t, i):
    """The look-ups that are due before instruction i."""
    e: cython.pointer(Code) = cython.address(t.e)
    k: cython.int
    for k in range(t.n_windows):
        w: cython.pointer(Window) = cython.address(t.windows[k])
        if w.point != i:
            continue
        clobber(t, t.live[i])
        site: uint32_t = add_site(t.m, SK_MEM, t.insns[i].pc, t.block)
        s: cython.pointer(Site) = cython.address(t.m.sites[site])
        s.size = cython.cast(uint16_t, w.size)
        s.access = cython.cast(uint8_t, w.first_access)
        s.span = cython.cast(uint16_t, w.span)
        s.delta = cython.cast(uint16_t, w.delta)
        s.window_access = cython.cast(uint8_t, w.access)
        s.extra = SITE_STACK if w.stack else 0
        if w.greedy:
            s.extra |= SITE_GREEDY
        if w.first != i or w.second or table[t.insns[i].op].flags & O_ALIGNED:
            s.extra |= SITE_EARLY
        _look_up(t, cython.address(w.address), site, w.span, w.access, COLD_WINDOW, True)
        w.kept = disturbed(t, k)
        if w.kept:
            gs_store(e, off.window + 8 * w.slot, S1)
        t.in_s1 = k


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _look_up(
    t: cython.pointer(Translation), a: cython.pointer(Address), site: uint32_t, size: cython.int, access: cython.int,
    kind: cython.int, distance: cython.bint,
) -> cython.void:  # fmt: skip
    """s1: the host's address of a, or the ``distance`` of the host's page from the guest's: an access need not wait for
    the check then, only for the entry. The monitor may have the check repeated, with the linear address in s1, or go on
    behind it. The site's ``host`` and ``check`` are set."""
    e: cython.pointer(Code) = cython.address(t.e)
    start: cython.pointer(uint8_t)
    tags: uint32_t = off.tag_r[t.table] if access == ACCESS_READ else off.tag_w[t.table]
    distances: uint32_t = off.distance[t.table]
    constant: cython.bint = _is_constant(t, a)
    fixed: cython.bint = distance and _is_fixed(t, a, size)
    index: uint32_t = 0
    start = e.p
    if fixed:
        t.in_s1 = -1
        kind = COLD_MEM  # of a window, too: no page ends in it
    else:
        address_to_s1(t, a)
    # The first bytes of a dead block are a jump. The monitor must not come back into the middle of it.
    entry: uint32_t = max(t.m.blocks[t.block].entry_mem, t.m.blocks[t.block].entry_host)
    room: int64_t = e.p - t.m.code - entry
    if room >= JUMP_BYTES:
        start = e.p
    elif start != t.m.code + entry:
        nops(e, cython.cast(cython.int, JUMP_BYTES - room))
        start = e.p
    if constant:
        index = 8 * (cython.cast(uint32_t, _constant(a) >> 12) & (TLB_SIZE - 1))
    else:
        # where s1 is a copy of a register, that is there sooner
        copy: cython.bint = a.base < 16 and not away(a.base) and a.index == REG_NONE and not a.disp and _is_flat(t, a)
        _page_number(e, a.base if copy else S1)
    if fixed:
        gs_op(e, 8, 0x81, 7, tags + index)  # cmp
        e4(e, cython.cast(uint32_t, _constant(a) & ~cython.cast(int64_t, 0xFFF)))
    else:
        _entry(e, 0x33, constant, tags + index)
        op_ri(e, 8, 7, S1, 4096 - size)
    c: cython.pointer(Cold) = cython.address(t.cold[t.n_cold])
    t.n_cold += 1
    c.kind = kind
    c.hole = jcc_hole(e, CC_NE if fixed else CC_A)
    c.address = a[0]
    c.site = site
    if distance:
        _entry(e, 0x8B, constant, distances + index)
        t.m.sites[site].extra |= SITE_DISTANCE
    else:
        _entry(e, 0x33, constant, tags + index)
        _entry(e, 0x03, constant, distances + index)
    t.m.sites[site].host = cython.cast(uint32_t, start - t.m.code)
    t.m.sites[site].check = cython.cast(uint8_t, e.p - start)
    if distance:
        if a.seg == FS or a.seg == GS:
            gs_op(e, 8, 0x03, S1, off.seg_base[a.seg])
        if a.base == REG_RIP and t.pic:
            gs_op(e, 8, 0x03, S1, off.pc_page)
        if a.index < 16 and away(a.index):
            gs_load(e, S2, off.r[a.index])
            lea(e, 8, S1, S1, S2, a.scale, 0)
        elif a.index < 16:
            lea(e, 8, S1, S1, a.index, a.scale, 0)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _is_flat(t: cython.pointer(Translation), a: cython.pointer(Address)) -> cython.bint:
    """Whether the linear address is what registers and a constant are together, in 64 bits."""
    return t.code64 and a.kind == EA_PLAIN and a.size == 8 and a.seg != FS and a.seg != GS


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _is_constant(t: cython.pointer(Translation), a: cython.pointer(Address)) -> cython.bint:
    """Whether the linear address is known, 64-bit code's only."""
    known: cython.bint = a.index == REG_NONE and (a.base == REG_NONE or (a.base == REG_RIP and not t.pic))
    return known and _is_flat(t, a)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _constant(a: cython.pointer(Address)) -> int64_t:
    return a.disp + cython.cast(int64_t, a.rip if a.base == REG_RIP else 0)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _is_fixed(t: cython.pointer(Translation), a: cython.pointer(Address), size: cython.int) -> cython.bint:
    """Whether ``size`` bytes at ``a`` lie in one page that is known, and that an instruction can be compared with."""
    at: int64_t = _constant(a)
    return _is_constant(t, a) and (at & 0xFFF) + size <= 4096 and at == cython.cast(int32_t, at)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _entry(e: cython.pointer(Code), opcode: cython.int, constant: cython.bint, offset: uint32_t) -> cython.void:
    """s1 op the TLB's entry: by s2, or a ``constant`` one."""
    if constant:
        gs_op(e, 8, opcode, S1, offset)
    else:
        gs_op_index(e, opcode, S1, S2, offset)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _page_number(e: cython.pointer(Code), r: cython.int) -> cython.void:
    """s2 = the TLB's index for the address in r, its bits 31:12. No flag is the guest's."""
    mov_rr32(e, S2, r)
    shift_ri(e, 4, 5, S2, 12)


def load(e, size, host, o):
    """host := zero-extended operand of 2, 4 or 8 bytes."""
    if size == 2:
        op_mem(e, 4, 0x1B7, host, o.base, o.index, o.disp)
    else:
        op_mem(e, size, 0x8B, host, o.base, o.index, o.disp)


def write_reg(e, size, r, host):
    """Guest register r := host register, by operand size (2: in part, 4: zero-extended)."""
    if away(r):
        if size == 2:
            gs_op(e, 2, 0x89, host, off.r[r])
        else:
            if size == 4:
                mov_rr32(e, host, host)
            gs_store(e, off.r[r], host)
    elif size == 2:
        op_rr(e, 2, 0x89, host, r)
    elif size == 4:
        mov_rr32(e, r, host)
    else:
        mov_rr(e, r, host)
