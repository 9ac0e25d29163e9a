"""Leaving a block: direct and indirect jumps, polls, sites, and the cold code behind a block."""

import cython
from cython.cimports.hostel.cpu.bt.address import address_to_s1, guest_pc
from cython.cimports.hostel.cpu.bt.cache import (
    SITE_DISTANCE,
    SK_LINK,
    SK_PLAIN,
    SK_POLL,
    SK_POLL_S1,
    SK_STEP,
    SK_STEP_S1,
    SK_SYS,
    Site,
    add_fault,
    add_site,
)
from cython.cimports.hostel.cpu.bt.emit import (
    CC_NE,
    S1,
    S2,
    Code,
    align_link,
    fill_hole,
    gs_load,
    gs_op,
    gs_op_index,
    jcc_hole,
    jmp_hole,
    jmp_to,
    lea,
    mov_site,
    op_mem,
    op_ri,
    op_rr,
)
from cython.cimports.hostel.cpu.bt.flags import clobber
from cython.cimports.hostel.cpu.bt.insn import F_ALL, REG_NONE
from cython.cimports.hostel.cpu.bt.mmu import jump_hash
from cython.cimports.hostel.cpu.bt.stubs import off
from cython.cimports.hostel.cpu.bt.translation import (
    COLD_CROSS,
    COLD_EXIT,
    COLD_MEM,
    COLD_SITE,
    COLD_WINDOW,
    FLAGS_HOST,
    FLAGS_MEM,
    SECOND_ROOM,
    Cold,
    Translation,
)
from cython.cimports.hostel.cpu.bt.vcpu import ACCESS_READ
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t


def leave(t, site):
    e: cython.pointer(Code) = cython.address(t.e)
    mov_site(e, S2, site)
    jmp_to(e, t.m.leave_site_host if t.flags == FLAGS_HOST else t.m.leave_site_mem)


def poll(t, kind, pc):
    """Read through VCpu.poll (translate.py), by s2; no flags change. Once a block: the way round leads through it."""
    e: cython.pointer(Code) = cython.address(t.e)
    if t.polled:
        return
    t.polled = True
    gs_load(e, S2, off.poll)
    add_fault(t.m, e.p, add_site(t.m, kind, pc, t.block), t.flags == FLAGS_HOST)
    op_mem(e, 8, 0x8B, S2, S2, REG_NONE, 0)


def cut(t, pc, opsize):
    if opsize == 8:
        return pc
    return cython.cast(uint32_t, pc) if opsize == 4 else cython.cast(uint16_t, pc)


def same_page(t, target):
    """Whether target lies in the page of the block's start (offsets in CS; CS's base need not be aligned)."""
    return target - t.first_pc + t.page_offset < 4096


def exit_to(t, target, backward, far):
    """Go on at a known address. far: go through the jump cache in any case."""
    e: cython.pointer(Code) = cython.address(t.e)
    if t.single:
        leave(t, add_site(t.m, SK_STEP, target, t.block))
        return
    if backward:
        poll(t, SK_POLL, target)
    if far or not same_page(t, target):
        jump_far(t, t.table, target)
        return
    align_link(e, 1)
    c: cython.pointer(Cold) = cython.address(t.cold[t.n_cold])
    t.n_cold += 1
    c.kind = COLD_EXIT
    c.hole = jmp_hole(e)
    c.target = target
    c.flags = t.flags


def exit_s1(t):
    """Go on at the address in s1."""
    if t.single:
        leave(t, add_site(t.m, SK_STEP_S1, 0, t.block))
        return
    poll(t, SK_POLL_S1, 0)
    jump_s1(t, t.table)


def jump_s1(t, tlb):
    """Jump to the address in s1 through a table's jump cache, with the flags put away."""
    e: cython.pointer(Code) = cython.address(t.e)
    clobber(t, F_ALL)
    op_rr(e, 4, 0x1B7, S2, S1)  # movzx s2d, s1w
    gs_op_index(e, 0xFF, 4, S2, off.jump_cache[tlb])


def jump_far(t, tlb, target):
    """The same for a known target."""
    e: cython.pointer(Code) = cython.address(t.e)
    slot: uint32_t = off.jump_cache[tlb] + 8 * jump_hash(target)
    clobber(t, F_ALL)
    guest_pc(t, S1, target)
    if t.pic:
        jump_s1(t, tlb)
    else:
        gs_op(e, 4, 0xFF, 4, slot)


def side_exit(t, hole, target):
    """A conditional jump's taken side; any poll was made before."""
    c: cython.pointer(Cold) = cython.address(t.cold[t.n_cold])
    t.n_cold += 1
    c.kind = COLD_EXIT if same_page(t, target) and not t.single else COLD_CROSS
    c.hole = hole
    c.target = target
    c.flags = t.flags
    c.backward = False


def cold_site(t, cc, site):
    """If cc: leave at the site. The guest's flags are put away."""
    c: cython.pointer(Cold) = cython.address(t.cold[t.n_cold])
    t.n_cold += 1
    c.kind = COLD_SITE
    c.hole = jcc_hole(cython.address(t.e), cc)
    c.site = site


def monitor_site(t, i):
    """A site at which the monitor runs instruction i; where it goes on is up to the caller."""
    site: uint32_t = add_site(t.m, SK_SYS, t.insns[i].pc, t.block)
    t.m.pool[t.m.n_pool] = t.insns[i]
    t.m.sites[site].extra = t.m.n_pool
    t.m.n_pool += 1
    return site


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def look_up(t: cython.pointer(Translation), site: uint32_t) -> cython.void:
    """Look the address in s1 up in the second TLB, else leave."""
    e: cython.pointer(Code) = cython.address(t.e)
    s: cython.pointer(Site) = cython.address(t.m.sites[site])
    access: cython.int = s.window_access if s.span else s.access
    mov_site(e, S2, site)
    if t.single or (s.size > SECOND_ROOM and not s.span):  # FRSTOR: it might end in the next page
        jmp_to(e, t.m.leave_site_mem)
    else:
        t.m.behind[site] = s.host + s.check
        jmp_to(e, t.m.second_tlb[2 * t.table + (access != ACCESS_READ) + (6 if s.extra & SITE_DISTANCE else 0)])


def cold_code(t):
    e: cython.pointer(Code) = cython.address(t.e)
    hole: cython.pointer(uint8_t)
    i: cython.int = 0
    site: uint32_t
    while i < t.n_cold:
        c: cython.pointer(Cold) = cython.address(t.cold[i])
        fill_hole(c.hole, e.p)
        if c.kind == COLD_MEM:
            t.flags = FLAGS_MEM
            address_to_s1(t, cython.address(c.address))
            look_up(t, c.site)
        elif c.kind == COLD_WINDOW:
            t.flags = FLAGS_MEM
            address_to_s1(t, cython.address(c.address))
            # across a page's end? The second TLB's look-up counts on no more than 64 bytes
            lea(e, 8, S2, S1, REG_NONE, 0, t.m.sites[c.site].span - 1)
            op_rr(e, 4, 0x31, S1, S2)
            op_ri(e, 4, 4, S2, 4096)
            site = add_site(t.m, SK_PLAIN, t.m.sites[c.site].pc, t.block)
            align_link(e, 2)
            hole = jcc_hole(e, CC_NE)
            t.m.sites[site].host = cython.cast(uint32_t, hole - t.m.code)
            look_up(t, c.site)
            fill_hole(hole, e.p)
            leave(t, site)
        elif c.kind == COLD_SITE:
            t.flags = FLAGS_MEM
            leave(t, c.site)
        elif c.kind == COLD_EXIT:
            t.flags = c.flags
            site = add_site(t.m, SK_LINK, c.target, t.block)
            t.m.sites[site].host = cython.cast(uint32_t, c.hole - t.m.code)
            t.m.sites[site].access = cython.cast(uint8_t, c.flags)
            leave(t, site)
        else:
            t.flags = c.flags
            exit_to(t, c.target, c.backward, True)
        i += 1
