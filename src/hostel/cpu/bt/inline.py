"""Instructions with a helping of code of their own: strings, and what kernels do all the time."""

import cython
from cython.cimports.hostel.cpu.bt.address import check_access, guest_pc, guest_reg_to, stack_address, write_reg
from cython.cimports.hostel.cpu.bt.cache import SITE_STRING
from cython.cimports.hostel.cpu.bt.decode import table
from cython.cimports.hostel.cpu.bt.emit import (
    CC_B,
    CC_E,
    CC_NE,
    S1,
    S2,
    Code,
    e1,
    e4,
    fill_hole,
    gs_load,
    gs_op,
    gs_store,
    gs_store_imm32,
    jcc_hole,
    lea,
    mov_rr,
    mov_rr32,
    op_mem,
    op_ri,
    op_rr,
    shift_ri,
)
from cython.cimports.hostel.cpu.bt.flags import clobber
from cython.cimports.hostel.cpu.bt.insn import (
    CS,
    ES,
    F_ALL,
    FS,
    GS,
    P_REP,
    P_REPNE,
    REG_NONE,
    S_CLAC,
    S_CLD,
    S_CLI,
    S_MOV_FROM_CR,
    S_MOV_FROM_SEG,
    S_PUSHF,
    S_RDFSBASE,
    S_RDGSBASE,
    S_STAC,
    S_STD,
    S_STI,
    S_SWAPGS,
    S_SYSCALL,
    S_SYSRET,
    S_WRFSBASE,
    S_WRGSBASE,
    SS,
    Insn,
)
from cython.cimports.hostel.cpu.bt.leave import cold_site, jump_far, jump_s1, monitor_site
from cython.cimports.hostel.cpu.bt.stubs import off
from cython.cimports.hostel.cpu.bt.translation import COLD_MEM, FLAGS_HOST, Address
from cython.cimports.hostel.cpu.bt.vcpu import (
    ACCESS_READ,
    ACCESS_WRITE,
    FL_AC,
    FL_DF,
    FL_TF,
    MODE_AC,
    MODE_DF,
    MODE_RING12,
    MODE_TSD,
    MODE_USER,
    TLB_KERNEL,
    TLB_KERNEL_AC,
    TLB_USER,
)
from cython.cimports.hostel.cpu.bt.x86 import CR4_FSGSBASE, CR4_SMAP, CR4_TSD, EFER_SCE
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t


def string_access(t, i, reg, seg, size, access):
    a: Address
    stack_address(t, 0, cython.address(a))
    a.base = cython.cast(uint8_t, reg)
    a.seg = cython.cast(uint8_t, seg)
    check_access(t, i, cython.address(a), size, access)


def string_room(t, shift, site):
    """Leave at the site unless rcx elements at s1 end in its page."""
    e: cython.pointer(Code) = cython.address(t.e)
    mov_rr(e, S2, S1)
    op_ri(e, 8, 1, S2, -4096)  # or
    op_rr(e, 8, 0xF7, 3, S2)  # neg: bytes up to the page's end
    if shift:
        shift_ri(e, 4, 5, S2, shift)
    op_rr(e, 8, 0x39, 1, S2)  # cmp s2, rcx
    cold_site(t, CC_B, site)


def gen_string(t, i):
    """Single elements, and repeated moves and stores within a page: as the host's own instruction."""
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    which: cython.int = insn.opcode & 0xFE
    size: cython.int = insn.opsize if insn.opcode & 1 else 1
    shift: cython.int = 3 if size == 8 else 2 if size == 4 else 1 if size == 2 else 0
    step: cython.int = -size if t.mode & MODE_DF else size
    op: cython.int = insn.opcode & 1
    site: uint32_t
    done: cython.pointer(uint8_t)
    first: cython.int = t.n_cold
    if not insn.prefixes & (P_REP | P_REPNE):
        if which == 0xA4 or which == 0xA6 or which == 0xAC:
            string_access(t, i, 6, insn.seg, size, ACCESS_READ)
            if which == 0xAC:
                op_mem(e, size, 0x8A | op, 0, S1, REG_NONE, 0)
            else:
                op_mem(e, size, 0x8A | op, S2, S1, REG_NONE, 0)
                gs_store(e, off.scratch + 16, S2)
        if which == 0xA4:
            string_access(t, i, 7, ES, size, ACCESS_WRITE)
            gs_load(e, S2, off.scratch + 16)
            op_mem(e, size, 0x88 | op, S2, S1, REG_NONE, 0)
        elif which == 0xAA:
            string_access(t, i, 7, ES, size, ACCESS_WRITE)
            op_mem(e, size, 0x88 | op, 0, S1, REG_NONE, 0)
        elif which == 0xA6:
            string_access(t, i, 7, ES, size, ACCESS_READ)
            gs_load(e, S2, off.scratch + 16)
            op_mem(e, size, 0x3A | op, S2, S1, REG_NONE, 0)
            t.flags = FLAGS_HOST
        elif which == 0xAE:
            string_access(t, i, 7, ES, size, ACCESS_READ)
            op_mem(e, size, 0x3A | op, 0, S1, REG_NONE, 0)
            t.flags = FLAGS_HOST
        if which != 0xAA and which != 0xAE:
            lea(e, 8, 6, 6, REG_NONE, 0, step)
        if which != 0xAC:
            lea(e, 8, 7, 7, REG_NONE, 0, step)
        return
    site = monitor_site(t, i)
    clobber(t, t.live[i])
    op_rr(e, 8, 0x85, 1, 1)  # test rcx, rcx
    done = jcc_hole(e, CC_E)
    if which == 0xA4:
        string_access(t, i, 6, insn.seg, size, ACCESS_READ)
        string_room(t, shift, site)
        gs_store(e, off.scratch + 16, S1)
    string_access(t, i, 7, ES, size, ACCESS_WRITE)
    string_room(t, shift, site)
    while first < t.n_cold:  # the accesses' sites: more is written than they say
        if t.cold[first].kind == COLD_MEM:
            t.m.sites[t.cold[first].site].extra |= SITE_STRING
        first += 1
    mov_rr(e, S2, 1)
    gs_store(e, off.scratch + 24, 7)
    if which == 0xA4:
        gs_store(e, off.scratch + 32, 6)
        gs_load(e, 6, off.scratch + 16)
    mov_rr(e, 7, S1)
    e1(e, 0xF3)
    if size == 2:
        e1(e, 0x66)
    elif size == 8:
        e1(e, 0x48)
    e1(e, which | op)
    gs_load(e, 7, off.scratch + 24)
    lea(e, 8, 7, 7, S2, shift, 0)
    if which == 0xA4:
        gs_load(e, 6, off.scratch + 32)
        lea(e, 8, 6, 6, S2, shift, 0)
    fill_hole(done, e.p)
    t.m.sites[site].host = cython.cast(uint32_t, e.p - t.m.code)


def flags_image(t):
    """s2 = RFLAGS: the flags that were put away (ah: SZAPC, al: O) joined with the others; RF and VM read as 0."""
    e: cython.pointer(Code) = cython.address(t.e)
    gs_op(e, 4, 0x1B6, S2, off.flags_saved + 1)
    op_ri(e, 4, 4, S2, 0xD5)
    gs_op(e, 4, 0x1B6, S1, off.flags_saved)
    shift_ri(e, 4, 4, S1, 11)
    op_rr(e, 4, 0x09, S1, S2)
    gs_op(e, 4, 0x8B, S1, off.eflags)
    op_ri(e, 4, 4, S1, ~(F_ALL | 0x30000))
    op_rr(e, 4, 0x09, S1, S2)


def gen_pushf(t, i):
    """PUSHFQ."""
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    clobber(t, F_ALL)
    flags_image(t)
    gs_store(e, off.scratch + 16, S2)
    stack_address(t, -8, cython.address(a))
    check_access(t, i, cython.address(a), 8, ACCESS_WRITE)
    gs_load(e, S2, off.scratch + 16)
    op_mem(e, 8, 0x89, S2, S1, REG_NONE, 0)
    lea(e, 8, 4, 4, REG_NONE, 0, -8)


def to_ring(t, which, mode):
    """The end of SYSCALL (0) and SYSRET (1): flags from s2, CS and SS from what the monitor kept, the new mode."""
    e: cython.pointer(Code) = cython.address(t.e)
    gs_store(e, off.eflags, S2)
    mov_rr32(e, S1, S2)
    op_ri(e, 4, 4, S1, 0xD5)
    shift_ri(e, 4, 4, S1, 8)
    shift_ri(e, 4, 5, S2, 11)
    op_ri(e, 4, 4, S2, 1)
    op_rr(e, 4, 0x09, S2, S1)
    gs_store(e, off.flags_saved, S1)
    gs_load(e, S1, off.fast_cs[which])
    gs_store(e, off.seg_base[CS] + 8, S1)
    gs_load(e, S1, off.fast_ss[which])
    gs_store(e, off.seg_base[SS] + 8, S1)
    op_rr(e, 4, 0x31, S1, S1)
    gs_store(e, off.seg_base[CS], S1)
    gs_store(e, off.seg_base[SS], S1)
    gs_op(e, 4, 0xC6, 0, off.cpl)
    e1(e, 3 if which else 0)
    gs_store_imm32(e, off.mode, mode)


def gen_syscall(t, i):
    """SYSCALL where the kernel's mode is the usual one: SMAP on, AC TF and DF masked."""
    e: cython.pointer(Code) = cython.address(t.e)
    masked: cython.int = FL_AC | FL_TF | FL_DF
    mode: uint32_t = t.mode & ~(MODE_USER | MODE_TSD)
    site: uint32_t = monitor_site(t, i)
    clobber(t, F_ALL)
    gs_load(e, S1, off.star)
    gs_op(e, 8, 0x3B, S1, off.fast_star[0])
    cold_site(t, CC_NE, site)
    gs_imm(e, 0xF7, 0, off.cr4, CR4_SMAP)
    cold_site(t, CC_E, site)
    gs_imm(e, 0xF7, 0, off.efer, EFER_SCE)
    cold_site(t, CC_E, site)
    gs_op(e, 4, 0x8B, S1, off.sfmask)
    op_ri(e, 4, 4, S1, masked)
    op_ri(e, 4, 7, S1, masked)
    cold_site(t, CC_NE, site)
    gs_imm(e, 0x81, 7, off.table_mode[TLB_KERNEL], mode)
    cold_site(t, CC_NE, site)
    flags_image(t)
    write_reg(e, 8, 11, S2)
    guest_pc(t, 1, t.insns[i].pc + t.insns[i].length)
    gs_op(e, 4, 0x8B, S1, off.sfmask)
    op_rr(e, 4, 0xF7, 2, S1)  # not
    op_rr(e, 4, 0x21, S1, S2)
    op_ri(e, 4, 1, S2, 2)
    to_ring(t, 0, mode)
    gs_load(e, S1, off.lstar)
    jump_s1(t, TLB_KERNEL)
    t.done = True


def gen_sysret(t, i):
    """SYSRET to 64-bit code with nothing out of the ordinary: no interrupt waits, TF and DF are clear."""
    e: cython.pointer(Code) = cython.address(t.e)
    mode: uint32_t = (t.mode & ~MODE_AC) | MODE_USER
    site: uint32_t = monitor_site(t, i)
    clobber(t, F_ALL)
    gs_load(e, S1, off.star)
    gs_op(e, 8, 0x3B, S1, off.fast_star[1])
    cold_site(t, CC_NE, site)
    gs_imm(e, 0xF7, 0, off.efer, EFER_SCE)
    cold_site(t, CC_E, site)
    gs_imm(e, 0xF7, 0, off.cr4, CR4_TSD)
    cold_site(t, CC_NE, site)
    gs_imm(e, 0x81, 7, off.irq_wait, 0)
    cold_site(t, CC_NE, site)
    gs_imm(e, 0x81, 7, off.table_mode[TLB_USER], mode)
    cold_site(t, CC_NE, site)
    mov_rr(e, S1, 1)
    shift_ri(e, 8, 5, S1, 47)
    cold_site(t, CC_NE, site)
    guest_reg_to(e, 11, S2)
    op_rr(e, 4, 0xF7, 0, S2)  # test s2d, TF | DF
    e4(e, FL_TF | FL_DF)
    cold_site(t, CC_NE, site)
    op_ri(e, 4, 4, S2, 0x3C7FD7)
    op_ri(e, 4, 1, S2, 2)
    to_ring(t, 1, mode)
    mov_rr(e, S1, 1)
    jump_s1(t, TLB_USER)
    t.done = True


def gen_base(t, i, what):
    """RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE."""
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    seg: cython.int = FS if what == S_RDFSBASE or what == S_WRFSBASE else GS
    site: uint32_t = monitor_site(t, i)
    clobber(t, t.live[i])
    gs_imm(e, 0xF7, 0, off.cr4, CR4_FSGSBASE)
    cold_site(t, CC_E, site)
    if what == S_RDFSBASE or what == S_RDGSBASE:
        gs_load(e, S1, off.seg_base[seg])
        write_reg(e, insn.opsize, insn.rm, S1)
    else:
        guest_reg_to(e, insn.rm, S1)
        if insn.opsize == 4:
            mov_rr32(e, S1, S1)
        else:  # canonical: bits 63:47 are all the same
            mov_rr(e, S2, S1)
            shift_ri(e, 8, 4, S2, 16)
            shift_ri(e, 8, 7, S2, 16)
            op_rr(e, 8, 0x39, S1, S2)
            cold_site(t, CC_NE, site)
        gs_store(e, off.seg_base[seg], S1)
    t.m.sites[site].host = cython.cast(uint32_t, e.p - t.m.code)


def gs_imm(e, opcode, digit, offset, imm):
    gs_op(e, 4, opcode, digit, offset)
    e4(e, imm)


def gen_kernel(t, i):
    """What 64-bit kernels do all the time, inline; False: not one of these, or not here."""
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    what: cython.int = table[insn.op].system
    mode: uint32_t
    other: cython.int
    site: uint32_t
    next_pc: uint64_t
    if t.single or not t.code64:
        return False
    if what == S_PUSHF and insn.opsize == 8:
        gen_pushf(t, i)
        return True
    if what == S_MOV_FROM_SEG and insn.mod == 3:
        gs_op(e, 4, 0x1B7, S1, off.selector[insn.reg])
        write_reg(e, insn.opsize, insn.rm, S1)
        return True
    if what == S_SYSCALL and t.mode & MODE_USER:
        gen_syscall(t, i)
        return True
    if what == S_CLD and not t.mode & MODE_DF or what == S_STD and t.mode & MODE_DF:
        return True
    if S_RDFSBASE <= what <= S_WRGSBASE and insn.opsize != 2:
        gen_base(t, i, what)
        return True
    if t.mode & (MODE_USER | MODE_RING12):
        return False
    if what == S_CLAC and not t.mode & MODE_AC:
        return True
    if what == S_MOV_FROM_CR and (insn.reg == 0 or 2 <= insn.reg <= 4):
        gs_load(e, S1, off.cr[insn.reg])
        write_reg(e, 8, insn.rm, S1)
        return True
    if what == S_SYSRET and insn.opsize == 8:
        gen_sysret(t, i)
        return True
    if what == S_CLI:
        clobber(t, t.live[i])
        gs_imm(e, 0x81, 4, off.eflags, ~0x200)
        return True
    if what == S_STI:
        # with an interrupt waiting the monitor does it, which knows of the instruction's shadow
        site = monitor_site(t, i)
        clobber(t, F_ALL)
        gs_imm(e, 0x81, 7, off.irq_wait, 0)
        cold_site(t, CC_NE, site)
        gs_imm(e, 0x81, 1, off.eflags, 0x200)
        t.m.sites[site].host = cython.cast(uint32_t, e.p - t.m.code)
        return True
    if what == S_SWAPGS:
        gs_load(e, S1, off.seg_base[GS])
        gs_load(e, S2, off.kernel_gs_base)
        gs_store(e, off.kernel_gs_base, S1)
        gs_store(e, off.seg_base[GS], S2)
        return True
    if (what == S_STAC and not t.mode & MODE_AC) or (what == S_CLAC and t.mode & MODE_AC):
        # the mode changes: the rest is another block's, in the other table's jump cache if that is of this mode
        mode = t.mode ^ MODE_AC
        other = TLB_KERNEL_AC if what == S_STAC else TLB_KERNEL
        next_pc = insn.pc + insn.length
        site = monitor_site(t, i)
        clobber(t, F_ALL)
        if what == S_CLAC:  # without SMAP the kernel may always touch users' pages
            gs_imm(e, 0xF7, 0, off.cr4, 1 << 21)
            cold_site(t, CC_E, site)
        gs_imm(e, 0x81, 7, off.table_mode[other], mode)
        cold_site(t, CC_NE, site)
        gs_imm(e, 0x81, 1 if what == S_STAC else 4, off.eflags, 0x40000 if what == S_STAC else ~0x40000)
        gs_store_imm32(e, off.mode, mode)
        jump_far(t, other, next_pc)
        t.done = True
        return True
    return False
