"""The machine code around translated blocks: the way in and out, the second jump cache, fields' offsets from GS."""

import cython
from cython.cimports.hostel.cpu.bt.cache import Cache
from cython.cimports.hostel.cpu.bt.emit import (
    CC_A,
    CC_NE,
    S1,
    S2,
    Code,
    away,
    e1,
    e4,
    fill_hole,
    gs_load,
    gs_op,
    gs_op_index,
    gs_store,
    gs_store_imm32,
    jcc_hole,
    jmp_hole,
    jmp_to,
    lea_rip,
    mov_ri,
    mov_rr32,
    nops,
    op_mem,
    op_ri,
    op_rr,
    shift_ri,
)
from cython.cimports.hostel.cpu.bt.flags import emit_save_flags
from cython.cimports.hostel.cpu.bt.insn import REG_NONE
from cython.cimports.hostel.cpu.bt.system import feature_present
from cython.cimports.hostel.cpu.bt.translation import SECOND_ROOM
from cython.cimports.libc.stdint import uint8_t, uint32_t

_avx = cython.declare(cython.bint)  # the host has AVX: vector registers are 32 bytes


def prepare(m, c):
    """Compute field offsets and emit the stubs; once a machine, before anything is translated."""
    global _avx
    base: cython.size_t = cython.cast(cython.size_t, c)
    i: cython.int
    for i in range(16):
        off.r[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.r[i])) - base)
    for i in range(6):
        off.seg_base[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.seg[i].base)) - base)
    for i in range(3):
        off.tag_r[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.tag_r[i][0])) - base)
        off.tag_w[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.tag_w[i][0])) - base)
        off.distance[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.distance[i][0])) - base)
        off.jump_cache[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.jump_cache[i][0])) - base)
    off.poll = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.poll)) - base)
    off.pc_page = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.pc_page)) - base)
    off.jump_pc = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.jump_pc[0])) - base)
    off.flags_saved = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.flags_saved)) - base)
    off.scratch = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.scratch[0])) - base)
    off.n_insns = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.n_insns)) - base)
    off.count_spill = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.count_spill)) - base)
    off.site = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.site)) - base)
    off.target = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.target)) - base)
    off.host_pc = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.host_pc)) - base)
    off.host_rsp = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.host_rsp)) - base)
    off.ymm = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.ymm[0])) - base)
    off.fx = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.fx[0])) - base)
    off.window = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.window[0])) - base)
    off.tsc_offset = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.tsc_offset)) - base)
    off.tsc_aux = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.msr_tsc_aux)) - base)
    off.eflags = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.eflags)) - base)
    off.mode = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.mode)) - base)
    off.cr4 = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.cr4)) - base)
    off.cr[0] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.cr0)) - base)
    off.cr[2] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.cr2)) - base)
    off.cr[3] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.cr3)) - base)
    off.cr[4] = off.cr4
    off.pauses = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.pauses)) - base)
    off.irq_wait = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.irq_wait)) - base)
    for i in range(3):
        off.tlb_key[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.tlb_key[i])) - base)
    off.second_va = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_va[0])) - base)
    off.second_access[0] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_read[0])) - base)
    off.second_access[1] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_write[0])) - base)
    off.second_page = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_page[0])) - base)
    off.behind = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.behind)) - base)
    off.code_run = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.code_run)) - base)
    off.second_pc = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_pc[0])) - base)
    off.second_key = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_key[0])) - base)
    off.second_host = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_host[0])) - base)
    off.efer = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.efer)) - base)
    off.star = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.msr_star)) - base)
    off.lstar = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.msr_lstar)) - base)
    off.sfmask = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.msr_sfmask)) - base)
    off.cpl = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.cpl)) - base)
    for i in range(2):
        off.fast_star[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.fast_star[i])) - base)
        off.fast_cs[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.fast_cs[i])) - base)
        off.fast_ss[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.fast_ss[i])) - base)
    off.kernel_gs_base = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.msr_kernel_gs_base)) - base)
    for i in range(3):
        off.second_now[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_now[i])) - base)
        off.table_mode[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.table_mode[i])) - base)
    for i in range(6):
        off.selector[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.seg[i].selector)) - base)
    _avx = feature_present(8)  # FE_AVX
    e: Code
    e.p = m.free
    e.notes = cython.NULL
    # enter(): from the monitor to c.host_pc; System V callee-saved registers are kept on the host's stack
    m.enter = e.p
    e1(cython.address(e), 0x53)
    e1(cython.address(e), 0x55)
    for i in range(12, 16):
        e1(cython.address(e), 0x41)
        e1(cython.address(e), 0x50 | (i & 7))
    e1(cython.address(e), 0x50)
    gs_store(cython.address(e), off.host_rsp, 4)
    fetch_vectors(cython.address(e))
    for i in range(16):
        if not away(i):
            gs_load(cython.address(e), i, off.r[i])
    gs_load(cython.address(e), S1, off.target)
    gs_op(cython.address(e), 4, 0xFF, 4, off.host_pc)
    align(cython.address(e), 16)
    # serialize: IRET to what follows, as CPUID may exit to a hypervisor (SDM vol. 3, 9.3)
    m.serialize = e.p
    e1(cython.address(e), 0x8C)  # mov eax, ss
    e1(cython.address(e), 0xD0)
    e1(cython.address(e), 0x50)  # push rax
    e1(cython.address(e), 0x54)  # push rsp
    e1(cython.address(e), 0x48)  # add qword [rsp], 8
    e1(cython.address(e), 0x83)
    e1(cython.address(e), 0x04)
    e1(cython.address(e), 0x24)
    e1(cython.address(e), 8)
    e1(cython.address(e), 0x9C)  # pushfq
    e1(cython.address(e), 0x8C)  # mov eax, cs
    e1(cython.address(e), 0xC8)
    e1(cython.address(e), 0x50)  # push rax
    lea_rip(cython.address(e), 0, e.p + 10)
    e1(cython.address(e), 0x50)  # push rax
    e1(cython.address(e), 0x48)  # iretq
    e1(cython.address(e), 0xCF)
    e1(cython.address(e), 0xC3)
    align(cython.address(e), 16)
    # leave: back to the monitor; leave_host puts the flags away first
    m.leave_site_mem = e.p
    gs_op(cython.address(e), 4, 0x89, S2, off.site)
    hole: cython.pointer(uint8_t) = jmp_hole(cython.address(e))
    align(cython.address(e), 16)
    m.leave_site_host = e.p
    gs_op(cython.address(e), 4, 0x89, S2, off.site)
    m.leave_host = e.p
    emit_save_flags(cython.address(e))
    m.leave_mem = e.p
    fill_hole(hole, m.leave_mem)
    for i in range(16):
        if not away(i):
            gs_store(cython.address(e), off.r[i], i)
    gs_store(cython.address(e), off.target, S1)
    vectors(cython.address(e), True, 0)
    e1(cython.address(e), 0xFC)  # cld, as the ABI wants it
    gs_load(cython.address(e), 4, off.host_rsp)
    e1(cython.address(e), 0x58)
    i = 15
    while i >= 12:
        e1(cython.address(e), 0x41)
        e1(cython.address(e), 0x58 | (i & 7))
        i -= 1
    e1(cython.address(e), 0x5D)
    e1(cython.address(e), 0x5B)
    e1(cython.address(e), 0xC3)
    align(cython.address(e), 16)
    m.look_up = e.p
    gs_store_imm32(cython.address(e), off.site, 0)
    jmp_to(cython.address(e), m.leave_mem)
    align(cython.address(e), 16)
    for i in range(3):
        m.miss[i] = e.p
        second_jump(cython.address(e), m, i)
        align(cython.address(e), 16)
    for i in range(12):
        m.second_tlb[i] = e.p
        second_tlb(cython.address(e), m, i % 6 >> 1, i & 1, i >= 6)
        align(cython.address(e), 16)
    # fxsave64 / fxrstor64 gs:[fx]; the host's own control words come back with the save
    m.fx_save = e.p
    fx(cython.address(e), 0)
    e1(cython.address(e), 0xDB)
    e1(cython.address(e), 0xE3)
    mov_ri(cython.address(e), 0, 0x1F80)
    gs_store(cython.address(e), off.scratch, 0)
    e1(cython.address(e), 0x65)  # ldmxcsr gs:[scratch]
    e1(cython.address(e), 0x0F)
    e1(cython.address(e), 0xAE)
    e1(cython.address(e), 0x14)
    e1(cython.address(e), 0x25)
    e4(cython.address(e), off.scratch)
    e1(cython.address(e), 0xC3)
    align(cython.address(e), 16)
    m.fx_read = e.p
    fx(cython.address(e), 0)
    e1(cython.address(e), 0xC3)
    align(cython.address(e), 16)
    m.fx_restore = e.p
    fx(cython.address(e), 1)
    e1(cython.address(e), 0xC3)
    align(cython.address(e), 64)
    m.free = e.p
    m.start = e.p


def second_jump(e, m, tlb):
    """The target in s1 isn't in its jump cache, or shares its place there: look in the second one before leaving."""
    gs_load(e, S2, off.second_now[tlb])  # second_hash
    op_rr(e, 4, 0x03, S2, S1)  # add s2d, s1d
    op_rr(e, 4, 0x69, S2, S2)  # imul s2d, s2d, 0x9E3779B1
    e4(e, 0x9E3779B1)
    shift_ri(e, 4, 5, S2, 19)
    gs_op_index(e, 0x3B, S1, S2, off.second_pc)
    other: cython.pointer(uint8_t) = jcc_hole(e, CC_NE)
    gs_load(e, S1, off.second_now[tlb])
    gs_op_index(e, 0x3B, S1, S2, off.second_key)
    stale: cython.pointer(uint8_t) = jcc_hole(e, CC_NE)
    gs_op_index(e, 0x8B, S1, S2, off.second_pc)
    op_ri(e, 8, 4, S1, -4096)
    gs_store(e, off.pc_page, S1)
    gs_op_index(e, 0xFF, 4, S2, off.second_host)
    fill_hole(stale, e.p)
    gs_op_index(e, 0x8B, S1, S2, off.second_pc)
    fill_hole(other, e.p)
    jmp_to(e, m.look_up)


def second_tlb(e, m, tlb, write, distance):
    """The address in s1 isn't in its TLB (or crosses a page), the site in s2 says whose it is: look in the second one.

    The page found, go on behind the site's check, the host's address or the ``distance`` to it in s1. From a page's
    last 63 bytes on this works where the TLB has the next page as well, and the two are neighbours in the host, too.
    """
    tags: uint32_t = off.tag_w[tlb] if write else off.tag_r[tlb]
    gs_op(e, 4, 0x89, S2, off.site)
    gs_store(e, off.target, S1)
    mov_rr32(e, S2, S1)
    shift_ri(e, 4, 5, S2, 12)
    op_rr(e, 4, 0x69, S2, S2)  # imul s2d, s2d, 0x9E3779B1
    e4(e, 0x9E3779B1)
    shift_ri(e, 4, 5, S2, 22)
    gs_load(e, S1, off.tlb_key[tlb])
    gs_op_index(e, 0x3B, S1, S2, off.second_access[write])
    wrong: cython.pointer(uint8_t) = jcc_hole(e, CC_NE)
    gs_load(e, S1, off.target)
    gs_op_index(e, 0x33, S1, S2, off.second_va)
    op_ri(e, 8, 7, S1, 4096 - SECOND_ROOM)
    other: cython.pointer(uint8_t) = jcc_hole(e, CC_A)
    gs_op_index(e, 0x03, S1, S2, off.second_page)
    if distance:
        gs_op(e, 8, 0x2B, S1, off.target)
    found: cython.pointer(uint8_t) = e.p
    gs_op(e, 4, 0x8B, S2, off.site)
    shift_ri(e, 8, 4, S2, 2)
    gs_op(e, 8, 0x03, S2, off.behind)
    op_mem(e, 4, 0x8B, S2, S2, REG_NONE, 0)
    gs_op(e, 8, 0x03, S2, off.code_run)
    op_rr(e, 4, 0xFF, 4, S2)
    fill_hole(wrong, e.p)
    fill_hole(other, e.p)
    gs_load(e, S1, off.target)
    mov_rr32(e, S2, S1)
    shift_ri(e, 4, 5, S2, 12)
    gs_op_index(e, 0x33, S1, S2, tags)
    op_ri(e, 8, 7, S1, 4095)
    absent: cython.pointer(uint8_t) = jcc_hole(e, CC_A)
    gs_op_index(e, 0x8B, S1, S2, off.distance[tlb])
    gs_store(e, off.scratch, S1)
    gs_load(e, S1, off.target)
    op_ri(e, 8, 0, S1, 4096)  # add
    mov_rr32(e, S2, S1)
    shift_ri(e, 4, 5, S2, 12)
    gs_op_index(e, 0x33, S1, S2, tags)
    op_ri(e, 8, 7, S1, 4095)
    absent_next: cython.pointer(uint8_t) = jcc_hole(e, CC_A)
    gs_load(e, S1, off.scratch)
    gs_op_index(e, 0x3B, S1, S2, off.distance[tlb])
    apart: cython.pointer(uint8_t) = jcc_hole(e, CC_NE)
    if not distance:
        gs_op(e, 8, 0x03, S1, off.target)
    jmp_to(e, found)
    fill_hole(absent, e.p)
    fill_hole(absent_next, e.p)
    fill_hole(apart, e.p)
    gs_load(e, S1, off.target)
    jmp_to(e, m.leave_mem)


def fx(e, digit):
    e1(e, 0x65)
    e1(e, 0x48)
    e1(e, 0x0F)
    e1(e, 0xAE)
    e1(e, 0x04 | digit << 3)
    e1(e, 0x25)
    e4(e, off.fx)


def vectors(e, store, first):
    """Put ymm`first`..15 away in VCpu.ymm or fetch them."""
    i: cython.int
    for i in range(first, 16):
        _vector(e, store, i, _avx)
    if store and _avx:
        _vzeroupper(e)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _vector(e: cython.pointer(Code), store: cython.bint, i: cython.int, whole: cython.bint) -> cython.void:
    """Put ymm i away or fetch it, or xmm i where it isn't to be ``whole``."""
    e1(e, 0x65)
    if _avx:  # vmovdqu; of 16 bytes it zeroes the upper half
        e1(e, 0xC5)
        e1(e, (0x7A if i & 8 else 0xFA) | (4 if whole else 0))
        e1(e, 0x7F if store else 0x6F)
    else:  # movups
        if i & 8:
            e1(e, 0x44)
        e1(e, 0x0F)
        e1(e, 0x11 if store else 0x10)
    e1(e, 0x04 | (i & 7) << 3)
    e1(e, 0x25)
    e4(e, off.ymm + 32 * i)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _vzeroupper(e: cython.pointer(Code)) -> cython.void:
    e1(e, 0xC5)
    e1(e, 0xF8)
    e1(e, 0x77)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fetch_vectors(e: cython.pointer(Code)) -> cython.void:
    """Fetch all of VCpu.ymm, in a way that leaves upper halves alone where all are zero. Once one has been written the
    processor takes each SSE instruction to depend on its destination, for it keeps the upper half: loops of moves and
    sums then wait for one another (measured: 3.3 times as long), until the guest's next VZEROUPPER, which never comes
    in programs without AVX."""
    i: cython.int
    hole: cython.pointer(uint8_t)
    done: cython.pointer(uint8_t)
    if not _avx:
        vectors(e, False, 0)
        return
    for i in range(16):  # vmovdqu xmm0 and 1, vpor to them
        e1(e, 0x65)
        e1(e, 0xC5)
        e1(e, 0xFA if i < 2 else 0xF1 if i & 1 else 0xF9)
        e1(e, 0x6F if i < 2 else 0xEB)
        e1(e, 0x04 | (i & 1) << 3)
        e1(e, 0x25)
        e4(e, off.ymm + 32 * i + 16)
    e1(e, 0xC5)  # vpor xmm0, xmm0, xmm1
    e1(e, 0xF9)
    e1(e, 0xEB)
    e1(e, 0xC1)
    e1(e, 0xC4)  # vptest xmm0, xmm0
    e1(e, 0xE2)
    e1(e, 0x79)
    e1(e, 0x17)
    e1(e, 0xC0)
    hole = jcc_hole(e, CC_NE)
    _vzeroupper(e)
    for i in range(16):
        _vector(e, False, i, False)
    done = jmp_hole(e)
    fill_hole(hole, e.p)
    vectors(e, False, 0)
    fill_hole(done, e.p)


def align(e, n):
    nops(e, cython.cast(cython.int, (n - cython.cast(cython.size_t, e.p) % n) % n))


def fields() -> dict:
    """Names of what lies at offsets from GS, for tools/showblock; once a machine has been made."""
    registers = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
    tables = ("user", "kernel", "kernel_ac")
    names = {off.r[i]: registers[i] for i in range(16)}
    names |= {off.scratch + 8 * i: f"scratch[{i}]" for i in range(8)}
    names |= {off.window + 8 * i: f"window[{i}]" for i in range(8)}
    for i in range(3):
        names[off.tag_r[i]] = f"tag_r[{tables[i]}]"
        names[off.tag_w[i]] = f"tag_w[{tables[i]}]"
        names[off.distance[i]] = f"distance[{tables[i]}]"
        names[off.jump_cache[i]] = f"jump_cache[{tables[i]}]"
    names |= {off.poll: "poll", off.flags_saved: "flags_saved", off.site: "site", off.target: "target"}
    names |= {off.host_pc: "host_pc", off.mode: "mode", off.n_insns: "n_insns"}
    names |= {off.seg_base[4]: "fs_base", off.seg_base[5]: "gs_base"}
    return names


def stub_names(m_address: cython.size_t) -> dict:
    """Names of places among the stubs, by offset in the code memory; for tools/showblock."""
    m: cython.pointer(Cache) = cython.cast(cython.pointer(Cache), m_address)
    names = {
        m.leave_site_mem - m.code: "leave", m.leave_site_host - m.code: "leave, flags first",
        m.look_up - m.code: "look_up",
    }  # fmt: skip
    tables = ("user", "kernel", "kernel_ac")
    for i in range(3):
        names[m.miss[i] - m.code] = f"miss[{tables[i]}]"
    for i in range(12):
        what = f"{tables[i % 6 >> 1]}, {'write' if i & 1 else 'read'}{', distance' if i >= 6 else ''}"
        names[m.second_tlb[i] - m.code] = f"second_tlb[{what}]"
    return names


def layout() -> dict:
    """Where VCpu's fields are from GS, by their names in translation.Offsets; once a machine exists."""
    found: dict = off
    return found
