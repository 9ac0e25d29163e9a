"""Translating blocks of guest code to host code.

A block is a run of instructions up to a call, a return, an indirect jump, the end of the page or 48 instructions, with
side exits at conditional branches. Direct jumps within the page are followed, and a loop that comes back to the block's
start is unrolled. Guest registers live in the host's of the same name but for r10 and r11, which live in
``VCpu.r`` and give their host registers as scratch (s1, s2); rsp is the guest's too. Most instructions run as
themselves (``native``) with their memory operand replaced by [s1], after s1 was turned from a linear address into a
host address by an inline TLB look-up: one compare checks page, permission and page crossing. Accesses at a known
distance from each other share one (windows.py).

Flags. The guest's arithmetic flags live in the host's where nothing in between needs those; an address check does, so
flags that are live there are first put away (lahf/seto form in ``flags_saved``) and fetched again by the next
instruction that reads or merges them. Liveness is computed backwards over the block; everything is live at an exit,
unless it leads to a known place of the page where a few instructions set the flags before a jump: the block depends on
those, too.
Where flags are dead at a fault, the arithmetic bits of the EFLAGS image pushed for it are whatever they happen to be
(docs/decisions.md).

Transfers. Within the page: direct jumps, linked when the target is first reached. Across pages and indirect: through
the jump cache, a table of landing pads by the target's low bits; the pad checks that it is the right one. The jump
cache is emptied whenever mappings change. Flags are put away before these. Direct jumps leave them in the host's or put
away, whichever they are: there are two entries.

Interrupts. At backward and indirect transfers translated code reads through ``VCpu.poll``; a kick stores 0 there, and
the read faults. The site that belongs to the faulting host instruction tells where the guest is.
"""

import cython
from cython.cimports.hostel.cpu.bt.address import (
    check_access,
    check_operand,
    check_windows,
    guest_pc,
    guest_reg,
    guest_reg_to,
    offset_to_s1,
    operand_address,
    stack_address,
    write_reg,
)
from cython.cimports.hostel.cpu.bt.cache import (
    MODE_SINGLE,
    POLL_PAUSE,
    SK_FAULT,
    SK_POLL,
    SK_RAISE,
    Block,
    add_fault,
    add_site,
    block_pc,
    enlist,
    find_page,
    is_break,
    is_modest,
    resume_world,
    stop_world,
)
from cython.cimports.hostel.cpu.bt.cpuid import rdseed_by_rdrand
from cython.cimports.hostel.cpu.bt.decode import decode, table
from cython.cimports.hostel.cpu.bt.emit import (
    CC_B,
    CC_NE,
    S1,
    S2,
    Code,
    align_link,
    away,
    e1,
    e4,
    fill_hole,
    gs_load,
    gs_op,
    gs_op_index,
    gs_store,
    jcc_hole,
    jmp_hole,
    jmp_to,
    lea,
    mov_ri,
    mov_rr,
    mov_rr32,
    native,
    nops,
    op_mem,
    op_ri,
    op_rr,
    shift_ri,
)
from cython.cimports.hostel.cpu.bt.flags import (
    after_op,
    before_op,
    clobber,
    clobbers_first,
    emit_restore_flags,
    emit_save_flags,
    inline_string,
    liveness,
    looked_at,
)
from cython.cimports.hostel.cpu.bt.inline import gen_kernel, gen_string, gs_imm
from cython.cimports.hostel.cpu.bt.insn import (
    CS,
    F_ALL,
    FE_RDSEED,
    K_BT,
    K_CALL,
    K_CALL_IND,
    K_FENCE,
    K_FLAGOP,
    K_JCC,
    K_JMP,
    K_JMP_IND,
    K_LEA,
    K_LEAVE,
    K_LOOP,
    K_MOV_MOFFS,
    K_NATIVE,
    K_NOP,
    K_POP,
    K_PUSH,
    K_RDTSC,
    K_RET,
    K_SHORT32,
    K_STRING,
    K_UD,
    K_XLAT,
    M_READ,
    M_WRITE,
    MS_EIGHTH,
    MS_ENV,
    MS_FSAVE,
    MS_HALF,
    MS_QUARTER,
    MS_TWICE,
    MS_X,
    O_ALIGNED,
    O_BYTEOP,
    O_END,
    O_VECTOR,
    O_X87,
    P_REP,
    P_REX,
    P_VEX,
    REG_NONE,
    REG_RIP,
    S_CALL_FAR,
    S_CALL_FAR_MEM,
    S_HLT,
    S_INT,
    S_INT1,
    S_INT3,
    S_IRET,
    S_JMP_FAR,
    S_JMP_FAR_MEM,
    S_LMSW,
    S_MOV_TO_CR,
    S_RETF,
    S_SYSCALL,
    S_SYSENTER,
    S_SYSEXIT,
    S_SYSRET,
    U_BYTE,
    U_R,
    U_W,
    Insn,
    OpInfo,
)
from cython.cimports.hostel.cpu.bt.leave import (
    cold_code,
    cold_site,
    cut,
    exit_to,
    leave,
    monitor_site,
    poll,
    same_page,
    side_exit,
)
from cython.cimports.hostel.cpu.bt.mmu import lookup_exec, protect_page, raise_error
from cython.cimports.hostel.cpu.bt.stack import (
    PUSH_PC,
    fits32,
    gen_indirect,
    gen_pop,
    gen_push,
    gen_ret,
    push_value,
    settle_stack,
)
from cython.cimports.hostel.cpu.bt.stubs import align, off, vectors
from cython.cimports.hostel.cpu.bt.system import feature_present
from cython.cimports.hostel.cpu.bt.translation import (
    EA_BT,
    EA_XLAT,
    FLAGS_HOST,
    FLAGS_MEM,
    MAX_FOLLOW,
    MAX_INSNS,
    MAX_LOOP,
    Address,
    Operand,
    Translation,
)
from cython.cimports.hostel.cpu.bt.vcpu import (
    ACCESS_READ,
    ACCESS_RW,
    ACCESS_WRITE,
    MODE_AC,
    MODE_CODE32,
    MODE_CODE64,
    MODE_COUNT,
    MODE_DEBUG,
    MODE_NOAVX,
    MODE_NOFPU,
    MODE_NOSSE,
    MODE_PE,
    MODE_PIC,
    MODE_SS32,
    MODE_TF,
    MODE_TSD,
    MODE_USER,
    TLB_KERNEL,
    TLB_KERNEL_AC,
    TLB_USER,
    X_GP,
    X_NM,
    X_UD,
)
from cython.cimports.hostel.cpu.bt.windows import ignores_stack, plan
from cython.cimports.hostel.memory.ram import Slot
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset


def memory_size(insn, info):
    n: cython.int = info.mem_size
    vector: cython.int = 32 if insn.vex_l else 16
    if n == 0:
        return 1 if info.flags & O_BYTEOP else insn.opsize
    if n < 0x80:
        return n
    if n == MS_X:
        return vector
    if n == MS_HALF:
        return vector // 2
    if n == MS_QUARTER:
        return vector // 4
    if n == MS_EIGHTH:
        return vector // 8
    if n == MS_TWICE:
        return 2 * insn.opsize
    if n == MS_ENV:
        return 14 if insn.opsize == 2 else 28
    if n == MS_FSAVE:
        return 94 if insn.opsize == 2 else 108
    return 512


def may_fault(insn, info):
    """Whether the host's processor may refuse the instruction for its operands' values (#DE, #XM, #MF, alignment)."""
    if info.flags & (O_VECTOR | O_X87 | O_ALIGNED):
        return True
    return insn.opmap == 0 and (insn.opcode & 0xFE) == 0xF6 and not insn.prefixes & P_VEX and (insn.reg & 7) >= 6


def note_fault(t, insn, info):
    """The next host instruction is the guest's and may be refused."""
    site: uint32_t = add_site(t.m, SK_FAULT, insn.pc, t.block)
    add_fault(t.m, t.e.p, site, t.flags == FLAGS_HOST)


def writes(info, reg, rm, vvvv, r):
    """Whether the instruction writes guest register r through one of its fields."""
    if info.reg_use & U_W and reg == r or info.rm_use & U_W and rm == r:
        return True
    return (info.vvvv_use & U_W) != 0 and vvvv == r


def reads(info, reg, rm, vvvv, r):
    """Whether the instruction reads guest register r through one of its fields."""
    if info.reg_use & U_R and reg == r or info.rm_use & U_R and rm == r:
        return True
    return (info.vvvv_use & U_R) != 0 and vvvv == r


def gen_native(t, i):
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    e: cython.pointer(Code) = cython.address(t.e)
    reg: cython.int = insn.reg
    rm: cython.int = insn.rm
    vvvv: cython.int = insn.vvvv
    memory: cython.bint = insn.has_modrm and insn.mod != 3
    a: Address
    o: Operand
    if not memory:
        before_op(t, i)
        # r10 and r11 come to the host registers of the same name: the encoding need not change
        if reads(info, reg, rm, vvvv, S1):
            t.in_s1 = -1
            gs_load(e, S1, off.r[S1])
        if reads(info, reg, rm, vvvv, S2):
            gs_load(e, S2, off.r[S2])
        if may_fault(insn, info):
            note_fault(t, insn, info)
        upper: cython.bint = not t.code64 and insn.prefixes & P_VEX and insn.opmap == 1 and insn.opcode == 0x77
        if upper:  # VZEROUPPER, VZEROALL leave ymm8 to 15 alone
            vectors(e, True, 8)
        native(e, insn, info, reg, rm, vvvv, False, REG_NONE, 0)
        if upper:
            vectors(e, False, 8)
        after_op(t, i)
        if writes(info, reg, rm, vvvv, S1):
            t.in_s1 = -1
            gs_store(e, off.r[S1], S1)
        if writes(info, reg, rm, vvvv, S2):
            gs_store(e, off.r[S2], S2)
        return
    operand_address(t, insn, cython.address(a))
    access: cython.int = ACCESS_READ if info.mem == M_READ else ACCESS_WRITE if info.mem == M_WRITE else ACCESS_RW
    if info.reg_use & U_BYTE and not insn.prefixes & (P_REX | P_VEX) and 4 <= reg <= 7:
        # ah..bh can't be named beside s1: lend rdi
        check_access(t, i, cython.address(a), memory_size(insn, info), access)
        before_op(t, i)
        gs_store(e, off.scratch + 8, 7)
        mov_rr(e, 7, S1)
        native(e, insn, info, reg, 7, 0, True, REG_NONE, 0)
        gs_load(e, 7, off.scratch + 8)
        after_op(t, i)
        return
    check_operand(t, i, cython.address(a), memory_size(insn, info), access, cython.address(o))
    before_op(t, i)
    # guest r10/r11 as other operands come to s2, a second one to a borrowed register
    borrowed: cython.int = -1
    hreg: cython.int = reg
    hv: cython.int = vvvv
    if info.reg_use and away(reg):
        hreg = S2
        if info.reg_use & U_R or (info.vvvv_use and reg == vvvv):
            gs_load(e, S2, off.r[reg])
    if info.vvvv_use and away(vvvv):
        if hreg == S2 and reg == vvvv:
            hv = S2
        elif hreg == S2 and info.reg_use:
            borrowed = 6 if o.base != 6 else 7
            gs_store(e, off.scratch + 8, borrowed)
            gs_load(e, borrowed, off.r[vvvv])
            hv = borrowed
        else:
            hv = S2
            gs_load(e, S2, off.r[vvvv])
    if may_fault(insn, info):
        note_fault(t, insn, info)
    native(e, insn, info, hreg, o.base, hv, True, o.index, o.disp)
    after_op(t, i)
    if info.reg_use & U_W and away(reg):
        gs_store(e, off.r[reg], hreg)
    if info.vvvv_use & U_W and away(vvvv) and not (reg == vvvv and hv == hreg):
        gs_store(e, off.r[vvvv], hv)
    if borrowed >= 0:
        gs_load(e, borrowed, off.scratch + 8)


def gen_lea(t, insn):
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    operand_address(t, insn, cython.address(a))
    if not away(insn.reg) and a.size >= 4 and insn.opsize <= a.size and a.base != REG_RIP and a.base < 16:
        if a.base == S1 or a.index == S1:
            t.in_s1 = -1
        guest_reg(e, a.base)
        if a.index < 16:
            guest_reg(e, a.index)
        lea(e, insn.opsize, insn.reg, a.base, a.index, a.scale, a.disp)
        return
    if not away(insn.reg) and a.base == REG_RIP and a.size == 8 and insn.opsize == 8:
        guest_pc(t, insn.reg, a.rip + cython.cast(uint64_t, a.disp))
        return
    offset_to_s1(t, cython.address(a))
    write_reg(e, insn.opsize, insn.reg, S1)


def branch(t, insn):
    return cut(t, insn.pc + insn.length + insn.imm, insn.opsize if not t.code64 else 8)


def gen_loop(t, i):
    """LOOPNE E0, LOOPE E1, LOOP E2, JCXZ E3; the count register's width is the address size."""
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    target: uint64_t = branch(t, insn)
    width: cython.int = insn.addrsize
    if target <= insn.pc and not t.single:
        poll(t, SK_POLL, insn.pc)
    which: cython.int = insn.opcode & 3
    out1: cython.pointer(uint8_t) = cython.NULL
    if which < 2 and t.flags == FLAGS_MEM:
        emit_restore_flags(e)
        t.flags = FLAGS_HOST
    if which != 3:
        lea(e, width, 1, 1, REG_NONE, 0, -1)
    if which == 0:
        out1 = jcc_hole(e, 4)
    elif which == 1:
        out1 = jcc_hole(e, 5)
    # rcx == 0 without touching the flags: jrcxz over a copy of the counted part
    if width == 2:
        gs_store(e, off.scratch + 8, 1)
        op_rr(e, 4, 0x1B7, 1, 1)
    if width == 4:
        e1(e, 0x67)
    e1(e, 0xE3)
    zero: cython.pointer(uint8_t) = e.p
    e1(e, 0)
    # rcx != 0
    hole_nonzero: cython.pointer(uint8_t) = cython.NULL
    hole_zero: cython.pointer(uint8_t) = cython.NULL
    if width == 2:
        gs_load(e, 1, off.scratch + 8)
    hole_nonzero = jmp_hole(e)
    zero[0] = cython.cast(uint8_t, e.p - (zero + 1))
    if width == 2:
        gs_load(e, 1, off.scratch + 8)
    if which == 3:
        hole_zero = jmp_hole(e)
        fill_hole(hole_nonzero, e.p)
        side_exit(t, hole_zero, target)
    else:
        if out1:
            fill_hole(out1, e.p)
        side_exit(t, hole_nonzero, target)


def gen_bt(t, i):
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    operand_address(t, insn, cython.address(a))
    a.kind = EA_BT
    a.bit_reg = insn.reg
    a.opsize = insn.opsize
    check_access(t, i, cython.address(a), insn.opsize, ACCESS_READ if info.mem == M_READ else ACCESS_RW)
    guest_reg_to(e, insn.reg, S2)
    op_ri(e, 4, 4, S2, 8 * insn.opsize - 1)
    before_op(t, i)
    native(e, insn, info, S2, S1, 0, True, REG_NONE, 0)
    after_op(t, i)


def gen_monitor(t, i):
    """Leave for the monitor to run the instruction, and go on behind it if that is possible."""
    site: uint32_t = monitor_site(t, i)
    leave(t, site)
    t.flags = FLAGS_MEM
    if ends_block(cython.address(table[t.insns[i].op])):
        t.done = True
    else:
        t.m.sites[site].host = cython.cast(uint32_t, t.e.p - t.m.code)


def gen_pause(t, i):
    """Behind PAUSE: who spins may wait for a vCPU that has no processor. Leave now and then, and let that one run."""
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    next_pc: uint64_t = cut(t, insn.pc + insn.length, 8 if t.code64 else 4)
    site: uint32_t = add_site(t.m, SK_POLL, next_pc, t.block)
    t.m.sites[site].extra = POLL_PAUSE
    clobber(t, t.live[i])
    gs_imm(cython.address(t.e), 0x81, 5, off.pauses, 1)
    cold_site(t, CC_B, site)


def gen_raise(t, i, vector):
    site: uint32_t = add_site(t.m, SK_RAISE, t.insns[i].pc, t.block)
    t.m.sites[site].extra = vector
    t.m.sites[site].size = (table[t.insns[i].op].flags & O_VECTOR) != 0
    leave(t, site)
    t.done = True


def refused(t, insn, info):
    """The exception that the mode or the announced features give the instruction, or -1."""
    if insn.op == 0:
        return X_UD if insn.length else X_GP
    if info.kind == K_UD or not feature_present(info.feature):
        return X_UD
    if insn.prefixes & P_VEX:
        if not t.mode & MODE_PE or (info.flags & O_VECTOR and t.mode & MODE_NOAVX):
            return X_UD
    elif info.flags & O_VECTOR and not info.flags & O_X87 and t.mode & MODE_NOSSE:
        return X_UD
    if info.flags & (O_VECTOR | O_X87) and t.mode & MODE_NOFPU:
        return X_NM
    return -1


def generate(t, i):
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    e: cython.pointer(Code) = cython.address(t.e)
    kind: cython.int = info.kind
    vector: cython.int = refused(t, insn, info)
    next_pc: uint64_t = insn.pc + insn.length
    target: uint64_t
    size: cython.int
    a: Address
    o: Operand
    if vector >= 0:
        gen_raise(t, i, vector)
    elif kind == K_NATIVE or kind == K_FENCE:
        if info.feature == FE_RDSEED and rdseed_by_rdrand:
            insn.reg = 6  # 0F C7 /6 for /7: the same operands and flags
        gen_native(t, i)
    elif kind == K_LEA:
        gen_lea(t, insn)
    elif kind == K_PUSH:
        gen_push(t, i)
    elif kind == K_POP:
        gen_pop(t, i)
    elif kind == K_JCC:
        target = branch(t, insn)
        if t.flags == FLAGS_MEM:
            emit_restore_flags(e)
            t.flags = FLAGS_HOST
        if t.follows[i]:
            align_link(e, 2)
            side_exit(t, jcc_hole(e, insn.opcode & 15 ^ 1), next_pc)
            return
        if target <= insn.pc and not t.single:
            poll(t, SK_POLL, insn.pc)
        align_link(e, 2)
        side_exit(t, jcc_hole(e, insn.opcode & 15), target)
    elif kind == K_JMP:
        target = branch(t, insn)
        if t.follows[i]:
            # a loop that only goes round in its own block polls at the block's end
            if target <= insn.pc and target != t.first_pc:
                poll(t, SK_POLL, target)
            return
        exit_to(t, target, target <= insn.pc, False)
        t.done = True
    elif kind == K_CALL:
        size = 8 if t.code64 else insn.opsize
        push_value(t, i, size, PUSH_PC, cut(t, next_pc, size))
        settle_stack(t)
        target = branch(t, insn)
        exit_to(t, target, target <= insn.pc, False)
        t.done = True
    elif kind == K_JMP_IND or kind == K_CALL_IND:
        gen_indirect(t, i, kind == K_CALL_IND)
        t.done = True
    elif kind == K_RET:
        gen_ret(t, i)
        t.done = True
    elif kind == K_LOOP:
        gen_loop(t, i)
    elif kind == K_NOP:
        if insn.opcode == 0x90 and insn.opmap == 0 and insn.prefixes & P_REP:
            e1(e, 0xF3)
            e1(e, 0x90)
            if t.m.n_vcpus > 1 and not t.single:
                gen_pause(t, i)
    elif kind == K_LEAVE:
        size = insn.opsize
        stack_address(t, 0, cython.address(a))
        a.base = 5
        check_operand(t, i, cython.address(a), size, ACCESS_READ, cython.address(o))
        lea(e, t.stack_size, 4, 5, REG_NONE, 0, size)
        op_mem(e, size, 0x8B, 5, o.base, o.index, o.disp)
    elif kind == K_XLAT:
        operand_address(t, insn, cython.address(a))
        a.kind = EA_XLAT
        check_access(t, i, cython.address(a), 1, ACCESS_READ)
        op_mem(e, 1, 0x8A, 0, S1, REG_NONE, 0)
    elif kind == K_MOV_MOFFS:
        operand_address(t, insn, cython.address(a))
        a.base = REG_NONE
        a.index = REG_NONE
        size = insn.opsize if insn.opcode & 1 else 1
        check_access(t, i, cython.address(a), size, ACCESS_WRITE if insn.opcode & 2 else ACCESS_READ)
        op_mem(e, size, (0x88 if insn.opcode & 2 else 0x8A) | (insn.opcode & 1), 0, S1, REG_NONE, 0)
    elif kind == K_SHORT32:
        before_op(t, i)
        op_rr(e, insn.opsize, 0xFF, insn.opcode >> 3 & 1, insn.rm)
        after_op(t, i)
    elif kind == K_BT:
        gen_bt(t, i)
    elif kind == K_RDTSC and not t.mode & MODE_TSD:
        clobber(t, t.live[i])
        e1(e, 0x0F)
        e1(e, 0x31)
        shift_ri(e, 8, 4, 2, 32)
        op_rr(e, 8, 0x09, 2, 0)
        gs_op(e, 8, 0x03, 0, off.tsc_offset)
        mov_rr(e, 2, 0)
        shift_ri(e, 8, 5, 2, 32)
        mov_rr32(e, 0, 0)
        if insn.opcode == 0x01:  # rdtscp
            gs_op(e, 4, 0x8B, 1, off.tsc_aux)
    elif kind == K_STRING and inline_string(t, insn):
        gen_string(t, i)
    elif not gen_kernel(t, i):
        gen_monitor(t, i)
    if not (kind == K_NATIVE or kind == K_LEA or kind == K_PUSH or kind == K_POP or kind == K_JCC or kind == K_NOP):
        t.in_s1 = -1


def ends_block(info):
    """Whether nothing need be translated behind an instruction that the monitor runs."""
    s: cython.int = info.system
    if info.flags & O_END or info.kind == K_FLAGOP:
        return True
    return (
        s == S_IRET or s == S_SYSRET or s == S_SYSCALL or s == S_SYSENTER or s == S_SYSEXIT or s == S_INT or s == S_INT3
        or s == S_INT1 or s == S_JMP_FAR or s == S_JMP_FAR_MEM or s == S_CALL_FAR or s == S_CALL_FAR_MEM or s == S_RETF
        or s == S_HLT or s == S_MOV_TO_CR or s == S_LMSW
    )


def ends_flow(insn):
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    k: cython.int = info.kind
    if insn.op == 0 or k == K_UD or k == K_JMP or k == K_CALL or k == K_JMP_IND or k == K_CALL_IND or k == K_RET:
        return True
    if k == K_NATIVE or k == K_LEA or k == K_PUSH or k == K_POP or k == K_JCC:
        return False
    return ends_block(info)


def follow(t, insn):
    """Whether the block goes on at a jump's target: in the page, and for a conditional one only at the block's start.

    A loop that comes to the block's start is unrolled as often as all of it has room, a short one within the block too.
    """
    kind: cython.int = table[insn.op].kind
    target: uint64_t = insn.pc + insn.length + insn.imm
    j: cython.int
    if not t.code64 or t.single or t.n > MAX_FOLLOW or (kind != K_JMP and kind != K_JCC):
        return False
    if target == t.first_pc:
        if 2 * t.n - t.head > MAX_INSNS:
            return False
        t.head = t.n
        return True
    if kind == K_JMP:
        return same_page(t, target)
    j = t.n - 1
    while j >= 0 and j >= t.n - MAX_LOOP:
        if t.insns[j].pc == target:
            return 2 * t.n - j <= MAX_INSNS
        j -= 1
    return False


def exits(t, page, one_page, low, high):
    """What may be looked at of the flags where the block is left."""
    last: cython.pointer(Insn) = cython.address(t.insns[t.n - 1])
    kind: cython.int = table[last.op].kind
    i: cython.int
    for i in range(t.n):
        insn: cython.pointer(Insn) = cython.address(t.insns[i])
        if table[insn.op].kind == K_JCC:
            t.exits[i] = F_ALL
            if one_page:
                t.exits[i] = cython.cast(
                    uint16_t,
                    looked_at(t, page, insn.pc + insn.length + (0 if t.follows[i] else insn.imm), low, high),
                )
    t.live[t.n] = F_ALL
    if not one_page or t.next_crosses:
        return
    if kind == K_JMP or kind == K_CALL:
        t.live[t.n] = cython.cast(uint16_t, looked_at(t, page, last.pc + last.length + last.imm, low, high))
    elif not ends_flow(last):
        t.live[t.n] = cython.cast(uint16_t, looked_at(t, page, t.next_pc, low, high))


def may_leave(insn):
    """Whether a block goes on behind it in some cases only."""
    k: cython.int = table[insn.op].kind
    return k == K_JCC or k == K_LOOP


def count(t, i):
    """Count the instructions from i to the next that may leave the block; no flag and no register changes."""
    e: cython.pointer(Code) = cython.address(t.e)
    n: cython.int = 1
    while i + 1 < t.n and not may_leave(cython.address(t.insns[i])):
        i += 1
        n += 1
    gs_store(e, off.count_spill, S2)
    gs_load(e, S2, off.n_insns)
    lea(e, 8, S2, S2, REG_NONE, 0, n)
    gs_store(e, off.n_insns, S2)
    gs_load(e, S2, off.count_spill)


def find_slot(m, gpa):
    page: uint64_t = 0
    i: cython.int = find_page(m, gpa, cython.address(page))
    return cython.address(m.slots[i]) if i >= 0 else cython.NULL


def fetch(m, gpa, buffer, size):
    slot: cython.pointer(Slot) = find_slot(m, gpa)
    if slot == cython.NULL:
        memset(buffer, 0xFF, size)
    else:
        memcpy(buffer, slot.host + (gpa - slot.gpa), size)


def protect(m, me, gpa):
    slot: cython.pointer(Slot) = find_slot(m, gpa)
    i: cython.int
    page: uint64_t
    others: cython.bint = False
    if slot == cython.NULL:
        return
    page = (gpa - slot.gpa) >> 12
    if not slot.code[page]:
        slot.code[page] = 1
        for i in range(m.n_vcpus):
            if protect_page(m.vcpus[i], slot.host + (page << 12)) and m.vcpus[i] != me:
                others = True
        if others:  # one may be between its check and its write
            stop_world(m, me)
            resume_world(m)


def landing_pad(t, pc):
    """Whoever comes through a jump cache: whether s1 is pc. Flags are put away; entry_mem follows."""
    e: cython.pointer(Code) = cython.address(t.e)
    align(e, 8)
    short: cython.bint = not t.pic and fits32(pc)
    if short:
        nops(e, 3)  # what follows takes 13 bytes
    t.m.blocks[t.block].pad = cython.cast(uint32_t, e.p - t.m.code)
    if t.pic:
        op_rr(e, 4, 0x1B7, S2, S1)  # movzx s2d, s1w
        gs_op_index(e, 0x3B, S1, S2, off.jump_pc)
    elif short:
        op_ri(e, 8, 7, S1, cython.cast(cython.int, pc))
    else:
        mov_ri(e, S2, pc)
        op_rr(e, 8, 0x39, S2, S1)
    fill_hole(jcc_hole(e, CC_NE), t.m.miss[t.table])
    if t.pic:
        keep_page(t, pc)
    align(e, 8)


def keep_page(t, pc):
    """At a pad of MODE_PIC, with the target in s1: the page in VCpu.pc_page."""
    e: cython.pointer(Code) = cython.address(t.e)
    lea(e, 8, S1, S1, REG_NONE, 0, -cython.cast(int64_t, pc & 0xFFF))
    gs_store(e, off.pc_page, S1)


def translate(m, c, gpa, mode):
    """Translate the block at c.rip, whose first byte is at gpa; the lock is held and there is room.

    Returns its number, or 0 with an exception pending when the bytes of its first instruction can't be fetched.
    """
    t: cython.pointer(Translation) = cython.cast(cython.pointer(Translation), m.translation)
    e: cython.pointer(Code) = cython.address(t.e)
    page: uint8_t[4096 + 16]
    length: cython.int = 0
    limit: cython.int
    at: cython.int = cython.cast(cython.int, gpa & 4095)
    code: cython.int = 8 if mode & MODE_CODE64 else 4 if mode & MODE_CODE32 else 2
    pc: uint64_t = block_pc(c.rip, mode)
    gpa2: uint64_t = 1
    next_page: uint64_t
    t.m = m
    t.mode = mode & ~MODE_PIC
    t.pic = (mode & MODE_PIC) != 0
    t.modest = is_modest(m, gpa)
    t.single = (mode & (MODE_SINGLE | MODE_TF | MODE_DEBUG)) != 0
    t.code64 = (mode & MODE_CODE64) != 0
    t.stack_size = 8 if t.code64 else 4 if mode & MODE_SS32 else 2
    t.table = TLB_USER if mode & MODE_USER else TLB_KERNEL_AC if mode & MODE_AC else TLB_KERNEL
    t.first_pc = pc
    t.page_offset = at
    t.n = 0
    t.n_cold = 0
    t.done = False
    t.next_crosses = False
    t.head = 0
    t.moved = 0
    t.polled = False
    e.n_notes = 0
    protect(m, c, gpa)
    fetch(m, gpa & ~cython.cast(uint64_t, 4095), page, 4096)
    limit = 1 if t.single else MAX_INSNS
    low: cython.int = at
    high: cython.int = at
    while t.n < limit:
        if m.n_breaks and t.n and is_break(m, pc if t.code64 else cython.cast(uint32_t, pc + c.seg[CS].base)):
            break
        insn: cython.pointer(Insn) = cython.address(t.insns[t.n])
        length = decode(insn, page + at, 4096 - at, pc, code)
        if length == 0:
            if t.n:
                t.next_crosses = True
                break
            next_page = (pc + (4096 - at)) if t.code64 else cython.cast(uint32_t, pc + (4096 - at))
            if not t.code64:
                next_page = cython.cast(uint32_t, next_page + c.seg[CS].base)
            if t.pic:
                next_page = c.pc_page + 4096
            if lookup_exec(c, next_page, cython.address(gpa2)):
                return 0
            gpa2 &= ~cython.cast(uint64_t, 4095)
            protect(m, c, gpa2)
            fetch(m, gpa2, page + 4096, 16)
            length = decode(insn, page + at, 4096 - at + 15, pc, code)
        if not t.code64 and length > 0 and pc + length - 1 > c.seg[CS].limit:
            if t.n:
                break
            raise_error(c, X_GP, 0)  # its first byte is within the limit, its last isn't
            return 0
        if length <= 0:
            memset(insn, 0, cython.sizeof(Insn))
            insn.pc = pc
            length = 0
        t.n += 1
        if length == 0:
            high = max(high, min(at + 15, 4096))  # what made it undefined may change
            break
        pc = cut(t, pc + length, 8 if t.code64 else 4)
        at += length
        high = max(high, at)
        t.follows[t.n - 1] = gpa2 == 1 and follow(t, insn)
        if t.follows[t.n - 1]:
            pc = insn.pc + insn.length + insn.imm
            at = cython.cast(cython.int, pc - t.first_pc + t.page_offset)
            low = min(low, at)
            continue
        if ends_flow(insn) or at >= 4096 or gpa2 != 1 or (code == 2 and pc > 0xFFFF):
            break
    t.next_pc = pc
    exits(t, page, gpa2 == 1, cython.address(low), cython.address(high))
    liveness(t)
    plan(t)

    t.block = m.n_blocks
    m.n_blocks += 1
    b: cython.pointer(Block) = cython.address(m.blocks[t.block])
    memset(b, 0, cython.sizeof(Block))
    b.gpa = gpa
    b.gpa2 = gpa2
    b.pc = t.first_pc
    b.first_pc = c.rip
    b.mode = mode
    b.insns = cython.cast(uint16_t, t.n)
    e.p = m.free
    b.start = cython.cast(uint32_t, e.p - m.code)
    # the three entries, each where it can be redirected by one store
    mem_first: cython.bint = t.live[0] and clobbers_first(t)
    entered: cython.pointer(uint8_t) = cython.NULL
    if mem_first:
        align(e, 8)
        b.entry_host = cython.cast(uint32_t, e.p - m.code)
        emit_save_flags(e)
        entered = jmp_hole(e)
    landing_pad(t, b.pc)
    b.entry_mem = cython.cast(uint32_t, e.p - m.code)
    if mem_first:
        fill_hole(entered, e.p)
        t.flags = FLAGS_MEM
    else:
        if t.live[0]:
            emit_restore_flags(e)
            align(e, 8)
        else:
            e1(e, 0x0F)  # one nop of 8 bytes: the entries must differ
            e1(e, 0x1F)
            e1(e, 0x84)
            e1(e, 0)
            e4(e, 0)
        b.entry_host = cython.cast(uint32_t, e.p - m.code)
        t.flags = FLAGS_HOST
    i: cython.int = 0
    while i < t.n and not t.done:
        t.starts[i] = cython.cast(uint32_t, e.p - m.code)
        if mode & MODE_COUNT and (i == 0 or may_leave(cython.address(t.insns[i - 1]))):
            count(t, i)
        if t.moved and not ignores_stack(t, i):
            settle_stack(t)
        check_windows(t, i)
        generate(t, i)
        i += 1
    if not t.done:
        settle_stack(t)
        exit_to(t, t.next_pc, False, t.next_crosses)
    b.end = cython.cast(uint32_t, e.p - m.code)
    m.free = e.p
    e.p = m.cold_free
    b.cold = cython.cast(uint32_t, e.p - m.code)
    cold_code(t)
    # where the entries lead once the block is dead
    b.cold_host = cython.cast(uint32_t, e.p - m.code)
    t.flags = FLAGS_HOST
    clobber(t, F_ALL)
    b.cold_mem = cython.cast(uint32_t, e.p - m.code)
    guest_pc(t, S1, b.pc)
    jmp_to(e, m.look_up)
    m.cold_free = e.p
    b.low = (gpa & ~cython.cast(uint64_t, 4095)) + low
    b.size = cython.cast(uint32_t, high - low)
    m.total_blocks += 1
    m.total_insns += t.n
    enlist(m, t.block)
    return t.block
