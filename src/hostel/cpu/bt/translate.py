"""Translating blocks of guest code to host code.

A block is a run of instructions up to an unconditional transfer, the end of the page or 48 instructions, with side
exits at conditional branches. Guest registers live in the host's of the same name but for r14 and r15, which live in
``VCpu.r`` and give their host registers as scratch (s1, s2); rsp is the guest's too. Most instructions run as
themselves (``native``) with their memory operand replaced by [s1], after s1 was turned from a linear address into a host
address by an inline TLB look-up: one compare checks page, permission and page crossing.

Flags. The guest's arithmetic flags live in the host's where nothing in between needs those; an address check does, so
flags that are live there are first put away (lahf/seto form in ``flags_saved``) and fetched again by the next instruction
that reads or merges them. Liveness is computed backwards over the block; everything is live at an exit. Where flags are
dead at a fault, the arithmetic bits of the EFLAGS image pushed for it are whatever they happen to be
(docs/decisions.md).

Transfers. Within the page: direct jumps, linked when the target is first reached, flags in the host's or put away, whichever
they are (two entries). Across pages and indirect: through the jump cache, a table of landing pads hashed by target;
flags are always put away, and the pad checks that it is the right one. The jump cache is emptied whenever mappings change.

Interrupts. At backward and indirect transfers translated code reads through ``VCpu.poll``; a kick stores 0 there, and the
read faults. The site that belongs to the faulting host instruction tells where the guest is.
"""

import cython
from cython.cimports.hostel.cpu.bt.cache import (
    MODE_SINGLE,
    SITE_ATOMIC,
    SITE_STRING,
    SK_FAULT,
    SK_LINK,
    SK_MEM,
    SK_POLL,
    SK_POLL_S1,
    SK_RAISE,
    SK_STEP,
    SK_STEP_S1,
    SK_SYS,
    Block,
    Cache,
    Site,
    add_fault,
    add_site,
    enlist,
)
from cython.cimports.hostel.cpu.bt.decode import decode, table
from cython.cimports.hostel.cpu.bt.emit import (
    CC_A,
    CC_B,
    CC_E,
    CC_NE,
    S1,
    S2,
    Code,
    align_link,
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
from cython.cimports.hostel.cpu.bt.insn import (
    CS,
    ES,
    F_ALL,
    FE_CLFLUSHOPT,
    FS,
    GS,
    K_BT,
    K_CALL,
    K_CALL_IND,
    K_ENTER,
    K_FENCE,
    K_FLAGOP,
    K_GATHER,
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
    K_PUSHPOPF,
    K_RDTSC,
    K_RET,
    K_SHORT32,
    K_STICLI,
    K_STRING,
    K_SYSTEM,
    K_UD,
    K_XLAT,
    M_ADDR,
    M_NONE,
    M_READ,
    M_RW,
    M_WRITE,
    MS_512,
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
    O_FLAGS_COUNT,
    O_VECTOR,
    O_X87,
    P_LOCK,
    P_REP,
    P_REPNE,
    P_REX,
    P_VEX,
    REG_NONE,
    REG_RIP,
    S_CALL_FAR,
    S_CLAC,
    S_CLI,
    S_MOV_FROM_SEG,
    S_PUSHF,
    S_STAC,
    S_STI,
    S_SWAPGS,
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
    S_WRMSR,
    SS,
    U_BYTE,
    U_R,
    U_RW,
    U_W,
    Insn,
    OpInfo,
)
from cython.cimports.hostel.cpu.bt.mmu import jump_hash, lookup_exec, protect_page
from cython.cimports.hostel.cpu.bt.system import feature_present
from cython.cimports.hostel.cpu.bt.vcpu import (
    ACCESS_READ,
    ACCESS_RW,
    ACCESS_WRITE,
    MODE_AC,
    MODE_CODE32,
    MODE_CODE64,
    MODE_DF,
    MODE_FLAT,
    MODE_NOAVX,
    MODE_NOFPU,
    MODE_NOSSE,
    MODE_PE,
    MODE_RING12,
    MODE_SS32,
    MODE_TF,
    MODE_TSD,
    MODE_USER,
    TLB_KERNEL,
    TLB_KERNEL_AC,
    TLB_SIZE,
    TLB_USER,
    X_DE,
    X_GP,
    X_MF,
    X_NM,
    X_UD,
    X_XM,
    VCpu,
)
from cython.cimports.hostel.memory.ram import Slot
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset

_t = cython.declare(Translation)     # the block in the making; the cache's lock is held
_avx = cython.declare(cython.bint)   # the host has AVX: vector registers are 32 bytes


# ---------------------------------------------------------------- set-up: offsets and stubs


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
        off.page[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.page[i][0])) - base)
        off.jump_cache[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.jump_cache[i][0])) - base)
    off.poll = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.poll)) - base)
    off.flags_saved = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.flags_saved)) - base)
    off.scratch = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.scratch[0])) - base)
    off.site = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.site)) - base)
    off.target = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.target)) - base)
    off.host_pc = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.host_pc)) - base)
    off.host_rsp = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.host_rsp)) - base)
    off.ymm = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.ymm[0])) - base)
    off.fx = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.fx[0])) - base)
    off.tsc_offset = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.tsc_offset)) - base)
    off.tsc_aux = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.msr_tsc_aux)) - base)
    off.eflags = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.eflags)) - base)
    off.mode = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.mode)) - base)
    off.cr4 = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.cr4)) - base)
    off.irq_wait = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.irq_wait)) - base)
    off.second_pc = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_pc[0])) - base)
    off.second_key = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_key[0])) - base)
    off.second_host = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.second_host[0])) - base)
    off.kernel_gs_base = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.msr_kernel_gs_base)) - base)
    for i in range(3):
        off.table_mode[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.table_mode[i])) - base)
    for i in range(6):
        off.selector[i] = cython.cast(uint32_t, cython.cast(cython.size_t, cython.address(c.seg[i].selector)) - base)
    _avx = feature_present(8)  # FE_AVX
    e: Code
    e.p = m.free
    # enter(): from the monitor to c.host_pc; System V callee-saved registers are kept on the host's stack
    m.enter = e.p
    e1(cython.address(e), 0x53)
    e1(cython.address(e), 0x55)
    for i in range(12, 16):
        e1(cython.address(e), 0x41)
        e1(cython.address(e), 0x50 | (i & 7))
    e1(cython.address(e), 0x50)
    gs_store(cython.address(e), off.host_rsp, 4)
    _vectors(cython.address(e), False)
    for i in range(14):
        gs_load(cython.address(e), i, off.r[i])
    gs_load(cython.address(e), S1, off.target)
    gs_op(cython.address(e), 4, 0xFF, 4, off.host_pc)
    _align(cython.address(e), 16)
    # leave: back to the monitor; leave_host puts the flags away first
    m.leave_host = e.p
    _emit_save_flags(cython.address(e))
    m.leave_mem = e.p
    for i in range(14):
        gs_store(cython.address(e), off.r[i], i)
    gs_store(cython.address(e), off.target, S1)
    _vectors(cython.address(e), True)
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
    _align(cython.address(e), 16)
    # miss: the target in s1 isn't (alone) in the jump cache; look in the second one before leaving
    m.miss = e.p
    e1(cython.address(e), 0x45)  # imul s2d, s1d, 0x9E3779B1
    e1(cython.address(e), 0x69)
    e1(cython.address(e), 0xFE)
    e4(cython.address(e), 0x9E3779B1)
    shift_ri(cython.address(e), 4, 5, S2, 20)
    gs_op_index(cython.address(e), 0x3B, S1, S2, off.second_pc)
    hole: cython.pointer(uint8_t) = jcc_hole(cython.address(e), CC_NE)
    gs_load(cython.address(e), S1, off.mode)  # and jump_generation
    gs_op_index(cython.address(e), 0x3B, S1, S2, off.second_key)
    stale: cython.pointer(uint8_t) = jcc_hole(cython.address(e), CC_NE)
    gs_op_index(cython.address(e), 0xFF, 4, S2, off.second_host)
    fill_hole(stale, e.p)
    gs_op_index(cython.address(e), 0x8B, S1, S2, off.second_pc)
    fill_hole(hole, e.p)
    m.look_up = e.p
    gs_store_imm32(cython.address(e), off.site, 0)
    jmp_to(cython.address(e), m.leave_mem)
    _align(cython.address(e), 16)
    # fxsave64 / fxrstor64 gs:[fx]; the host's own control words come back with the save
    m.fx_save = e.p
    _fx(cython.address(e), 0)
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
    _align(cython.address(e), 16)
    m.fx_restore = e.p
    _fx(cython.address(e), 1)
    e1(cython.address(e), 0xC3)
    _align(cython.address(e), 64)
    m.free = e.p
    m.start = e.p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fx(e: cython.pointer(Code), digit: cython.int) -> cython.void:
    e1(e, 0x65)
    e1(e, 0x48)
    e1(e, 0x0F)
    e1(e, 0xAE)
    e1(e, 0x04 | digit << 3)
    e1(e, 0x25)
    e4(e, off.fx)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _vectors(e: cython.pointer(Code), store: cython.bint) -> cython.void:
    i: cython.int
    for i in range(16):
        e1(e, 0x65)
        if _avx:  # vmovdqu
            e1(e, 0xC5)
            e1(e, 0x7E if i & 8 else 0xFE)
            e1(e, 0x7F if store else 0x6F)
        else:  # movups
            if i & 8:
                e1(e, 0x44)
            e1(e, 0x0F)
            e1(e, 0x11 if store else 0x10)
        e1(e, 0x04 | (i & 7) << 3)
        e1(e, 0x25)
        e4(e, off.ymm + 32 * i)
    if store and _avx:
        e1(e, 0xC5)  # vzeroupper
        e1(e, 0xF8)
        e1(e, 0x77)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _align(e: cython.pointer(Code), n: cython.int) -> cython.void:
    nops(e, cython.cast(cython.int, (n - cython.cast(cython.size_t, e.p) % n) % n))


# ---------------------------------------------------------------- flags


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _emit_save_flags(e: cython.pointer(Code)) -> cython.void:
    mov_rr(e, S2, 0)
    e1(e, 0x9F)  # lahf
    e1(e, 0x0F)  # seto al
    e1(e, 0x90)
    e1(e, 0xC0)
    gs_store(e, off.flags_saved, 0)
    mov_rr(e, 0, S2)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _emit_restore_flags(e: cython.pointer(Code)) -> cython.void:
    gs_store(e, off.scratch, 0)
    gs_load(e, 0, off.flags_saved)
    e1(e, 0x04)  # add al, 127: OF again
    e1(e, 0x7F)
    e1(e, 0x9E)  # sahf: the others
    gs_load(e, 0, off.scratch)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _clobber(t: cython.pointer(Translation), live: cython.int) -> cython.void:
    """The host's flags are about to be overwritten: keep the guest's where they live on."""
    if t.flags == FLAGS_HOST:
        if live:
            _emit_save_flags(cython.address(t.e))
        t.flags = FLAGS_MEM


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _before_op(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    """The instruction itself comes next: have in the host's flags what it reads or leaves alone."""
    kill: cython.int
    mod: cython.int
    info: cython.pointer(OpInfo) = cython.address(table[t.insns[i].op])
    _flag_effect(cython.address(t.insns[i]), cython.address(kill), cython.address(mod))
    if t.flags == FLAGS_MEM and (info.flags_read or (mod and t.live[i + 1] & ~kill)):
        _emit_restore_flags(cython.address(t.e))
        t.flags = FLAGS_HOST


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _after_op(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    kill: cython.int
    mod: cython.int
    _flag_effect(cython.address(t.insns[i]), cython.address(kill), cython.address(mod))
    if mod:
        t.flags = FLAGS_HOST


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _flag_effect(insn: cython.pointer(Insn), kill: cython.p_int, mod: cython.p_int) -> cython.void:
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    kill[0] = info.flags_kill
    mod[0] = info.flags_mod
    if info.flags & O_FLAGS_COUNT and insn.imm_size:
        # a constant count: it is known whether the flags change
        if insn.imm & (63 if insn.rex & 8 else 31):
            if not info.flags_read:
                kill[0] = info.flags_mod
        else:
            mod[0] = 0
            kill[0] = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _liveness(t: cython.pointer(Translation)) -> cython.void:
    i: cython.int
    kill: cython.int
    mod: cython.int
    live: cython.int = F_ALL
    t.live[t.n] = F_ALL
    i = t.n - 1
    while i >= 0:
        info: cython.pointer(OpInfo) = cython.address(table[t.insns[i].op])
        _flag_effect(cython.address(t.insns[i]), cython.address(kill), cython.address(mod))
        if info.kind == K_JCC or info.kind == K_LOOP or info.kind == K_UD:
            live = F_ALL
        elif info.kind == K_STRING:
            if not _inline_string(t, cython.address(t.insns[i])):
                live = F_ALL
            elif _compares(t.insns[i].opcode):
                live = 0
        elif info.kind == K_SYSTEM or info.kind == K_PUSHPOPF or info.kind == K_STICLI:
            if not _keeps_flags(t, cython.address(t.insns[i])):
                live = F_ALL
        else:
            live = (live & ~kill) | info.flags_read
        t.live[i] = cython.cast(uint16_t, live)
        i -= 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _keeps_flags(t: cython.pointer(Translation), insn: cython.pointer(Insn)) -> cython.bint:
    """Monitor's instructions that _gen_kernel puts inline without looking at the flags."""
    what: cython.int = table[insn.op].system
    if t.single or not t.code64:
        return False
    if what == S_MOV_FROM_SEG:
        return insn.mod == 3
    return (what == S_CLI or what == S_SWAPGS) and not t.mode & (MODE_USER | MODE_RING12)


# ---------------------------------------------------------------- string instructions: which run inline


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _compares(opcode: cython.int) -> cython.bint:
    """CMPS or SCAS."""
    return (opcode & 0xFE) == 0xA6 or (opcode & 0xFE) == 0xAE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _inline_string(t: cython.pointer(Translation), insn: cython.pointer(Insn)) -> cython.bint:
    if t.single or not t.code64 or insn.addrsize != 8:
        return False
    if not insn.prefixes & (P_REP | P_REPNE):
        return True
    which: cython.int = insn.opcode & 0xFE
    return (which == 0xA4 or which == 0xAA) and not t.mode & MODE_DF


# ---------------------------------------------------------------- addresses and the TLB


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _operand_address(t: cython.pointer(Translation), insn: cython.pointer(Insn), a: cython.pointer(Address)) -> cython.void:
    a.kind = EA_PLAIN
    a.base = insn.base
    a.index = insn.index
    a.scale = insn.scale
    a.disp = insn.disp
    a.seg = insn.seg
    a.size = insn.addrsize
    a.rip = insn.pc + insn.length


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _stack_address(t: cython.pointer(Translation), disp: int64_t, a: cython.pointer(Address)) -> cython.void:
    a.kind = EA_PLAIN
    a.base = 4
    a.index = REG_NONE
    a.scale = 0
    a.disp = disp
    a.seg = SS
    a.size = cython.cast(uint8_t, t.stack_size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _guest_reg(e: cython.pointer(Code), r: cython.int) -> cython.void:
    """Have guest register r in the host register of its name."""
    if r == 14 or r == 15:
        gs_load(e, r, off.r[r])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _offset_to_s1(t: cython.pointer(Translation), a: cython.pointer(Address)) -> cython.void:
    """s1 = the operand's offset in its segment, cut to the address size. Leaves the flags alone; uses s2."""
    e: cython.pointer(Code) = cython.address(t.e)
    if a.kind == EA_XLAT:
        op_rr(e, 4, 0x1B6, S2, 0)  # movzx s2d, al
        lea(e, 8 if a.size == 8 else 4, S1, 3, S2, 0, 0)
    elif a.base == REG_RIP:
        value: uint64_t = a.rip + cython.cast(uint64_t, a.disp)
        mov_ri(e, S1, value if a.size == 8 else cython.cast(uint32_t, value))
    elif a.base == REG_NONE and a.index == REG_NONE:
        mov_ri(e, S1, cython.cast(uint64_t, a.disp) if a.size == 8 else cython.cast(uint32_t, a.disp))
    else:
        if a.base < 16:
            _guest_reg(e, a.base)
        if a.index < 16:
            _guest_reg(e, a.index)
        lea(e, 8 if a.size == 8 else 4, S1, a.base, a.index, a.scale, a.disp)
    if a.size == 2:
        op_rr(e, 4, 0x1B7, S1, S1)  # movzx s1d, s1w


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _address_to_s1(t: cython.pointer(Translation), a: cython.pointer(Address)) -> cython.void:
    """s1 = the operand's linear address. The host's flags are lost; uses s2."""
    e: cython.pointer(Code) = cython.address(t.e)
    _offset_to_s1(t, a)
    if a.kind == EA_BT:  # s1 += (bit number / operand bits) * operand bytes, signed
        shift: cython.int = 4 if a.opsize == 2 else 5 if a.opsize == 4 else 6
        _guest_reg_to(e, a.bit_reg, S2)
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _guest_reg_to(e: cython.pointer(Code), r: cython.int, host: cython.int) -> cython.void:
    if r == 14 or r == 15:
        gs_load(e, host, off.r[r])
    else:
        mov_rr(e, host, r)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _atomic(insn: cython.pointer(Insn)) -> cython.int:
    """SITE_ATOMIC for LOCK, or XCHG with memory, which is locked by itself."""
    return SITE_ATOMIC * (insn.prefixes & P_LOCK) != 0 or (insn.opmap == 0 and (insn.opcode & 0xFE) == 0x86 and not insn.prefixes & P_VEX)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _access(t: cython.pointer(Translation), i: cython.int, a: cython.pointer(Address), size: cython.int, access: cython.int) -> cython.void:
    """s1 = host address of `size` bytes at `a`, checked for the access. The guest's flags are kept; s2 is free after.

    The check is always 45 bytes, so that the monitor can go on behind it (run.py, CHECK_LENGTH).
    """
    e: cython.pointer(Code) = cython.address(t.e)
    _clobber(t, t.live[i])
    _address_to_s1(t, a)
    site: uint32_t = add_site(t.m, SK_MEM, t.insns[i].pc, t.block)
    s: cython.pointer(Site) = cython.address(t.m.sites[site])
    s.size = cython.cast(uint16_t, size)
    s.access = cython.cast(uint8_t, access)
    s.extra = _atomic(cython.address(t.insns[i]))
    s.host = cython.cast(uint32_t, e.p - t.m.code)
    mov_rr32(e, S2, S1)
    shift_ri(e, 4, 5, S2, 12)
    op_ri(e, 4, 4, S2, TLB_SIZE - 1)
    gs_op_index(e, 0x33, S1, S2, off.tag_r[t.table] if access == ACCESS_READ else off.tag_w[t.table])
    op_ri(e, 8, 7, S1, 4096 - size)
    c: cython.pointer(Cold) = cython.address(t.cold[t.n_cold])
    t.n_cold += 1
    c.kind = COLD_MEM
    c.hole = jcc_hole(e, CC_A)
    c.address = a[0]
    c.site = site
    gs_op_index(e, 0x03, S1, S2, off.page[t.table])


# ---------------------------------------------------------------- leaving a block


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _leave(t: cython.pointer(Translation), site: uint32_t) -> cython.void:
    e: cython.pointer(Code) = cython.address(t.e)
    gs_store_imm32(e, off.site, site)
    jmp_to(e, t.m.leave_host if t.flags == FLAGS_HOST else t.m.leave_mem)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _poll(t: cython.pointer(Translation), kind: cython.int, pc: uint64_t, reg: cython.int) -> cython.void:
    """Read through VCpu.poll (docs above); no flags change."""
    e: cython.pointer(Code) = cython.address(t.e)
    gs_load(e, reg, off.poll)
    add_fault(t.m, e.p, add_site(t.m, kind, pc, t.block), t.flags == FLAGS_HOST)
    op_mem(e, 0, 8, 0x8B, reg, reg)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _cut(t: cython.pointer(Translation), pc: uint64_t, opsize: cython.int) -> uint64_t:
    if opsize == 8:
        return pc
    return cython.cast(uint32_t, pc) if opsize == 4 else cython.cast(uint16_t, pc)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _same_page(t: cython.pointer(Translation), target: uint64_t) -> cython.bint:
    """Whether target lies in the page of the block's start (offsets in CS; CS's base need not be aligned)."""
    return target - t.first_pc + t.page_offset < 4096


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _exit_to(t: cython.pointer(Translation), target: uint64_t, backward: cython.bint, far: cython.bint) -> cython.void:
    """Go on at a known address. far: go through the jump cache in any case."""
    e: cython.pointer(Code) = cython.address(t.e)
    if t.single:
        _leave(t, add_site(t.m, SK_STEP, target, t.block))
        return
    if backward:
        _poll(t, SK_POLL, target, S1)
    if far or not _same_page(t, target):
        _clobber(t, F_ALL)
        mov_ri(e, S1, target)
        gs_op(e, 4, 0xFF, 4, off.jump_cache[t.table] + 8 * jump_hash(target))
        return
    align_link(e, 1)
    c: cython.pointer(Cold) = cython.address(t.cold[t.n_cold])
    t.n_cold += 1
    c.kind = COLD_EXIT
    c.hole = jmp_hole(e)
    c.target = target
    c.flags = t.flags


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _exit_s1(t: cython.pointer(Translation)) -> cython.void:
    """Go on at the address in s1."""
    e: cython.pointer(Code) = cython.address(t.e)
    if t.single:
        _leave(t, add_site(t.m, SK_STEP_S1, 0, t.block))
        return
    _clobber(t, F_ALL)  # by way of s2 only
    _poll(t, SK_POLL_S1, 0, S2)
    mov_rr32(e, S2, S1)
    shift_ri(e, 4, 5, S2, 12)
    op_rr(e, 4, 0x33, S2, S1)
    op_ri(e, 4, 4, S2, 4095)
    gs_op_index(e, 0xFF, 4, S2, off.jump_cache[t.table])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _cold_code(t: cython.pointer(Translation)) -> cython.void:
    e: cython.pointer(Code) = cython.address(t.e)
    i: cython.int = 0
    site: uint32_t
    while i < t.n_cold:
        c: cython.pointer(Cold) = cython.address(t.cold[i])
        fill_hole(c.hole, e.p)
        if c.kind == COLD_MEM:
            t.flags = FLAGS_MEM
            _address_to_s1(t, cython.address(c.address))
            _leave(t, c.site)
        elif c.kind == COLD_SITE:
            t.flags = FLAGS_MEM
            _leave(t, c.site)
        elif c.kind == COLD_EXIT:
            t.flags = c.flags
            site = add_site(t.m, SK_LINK, c.target, t.block)
            t.m.sites[site].host = cython.cast(uint32_t, c.hole - t.m.code)
            t.m.sites[site].access = cython.cast(uint8_t, c.flags)
            _leave(t, site)
        else:
            t.flags = c.flags
            _exit_to(t, c.target, c.backward, True)
        i += 1


# ---------------------------------------------------------------- instructions


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _memory_size(insn: cython.pointer(Insn), info: cython.pointer(OpInfo)) -> cython.int:
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _may_fault(insn: cython.pointer(Insn), info: cython.pointer(OpInfo)) -> cython.bint:
    """Whether the host's processor may refuse the instruction for its operands' values (#DE, #XM, #MF, alignment)."""
    if info.flags & (O_VECTOR | O_X87 | O_ALIGNED):
        return True
    return insn.opmap == 0 and (insn.opcode & 0xFE) == 0xF6 and not insn.prefixes & P_VEX and (insn.reg & 7) >= 6


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _note_fault(t: cython.pointer(Translation), insn: cython.pointer(Insn), info: cython.pointer(OpInfo)) -> cython.void:
    """The next host instruction is the guest's and may be refused; SIGFPE then means `extra`."""
    site: uint32_t = add_site(t.m, SK_FAULT, insn.pc, t.block)
    t.m.sites[site].extra = X_MF if info.flags & O_X87 else X_XM if info.flags & O_VECTOR else X_DE
    add_fault(t.m, t.e.p, site, t.flags == FLAGS_HOST)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_native(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    e: cython.pointer(Code) = cython.address(t.e)
    reg: cython.int = insn.reg
    rm: cython.int = insn.rm
    vvvv: cython.int = insn.vvvv
    memory: cython.bint = insn.has_modrm and insn.mod != 3
    a: Address
    if not memory:
        _before_op(t, i)
        # r14 and r15 come to the host registers of the same name: the encoding need not change
        in14: cython.bint = False
        in15: cython.bint = False
        if insn.has_modrm and info.reg_use:
            in14 = in14 or reg == 14
            in15 = in15 or reg == 15
        if info.rm_use:
            in14 = in14 or rm == 14
            in15 = in15 or rm == 15
        if info.vvvv_use:
            in14 = in14 or vvvv == 14
            in15 = in15 or vvvv == 15
        if in14:
            gs_load(e, 14, off.r[14])
        if in15:
            gs_load(e, 15, off.r[15])
        if _may_fault(insn, info):
            _note_fault(t, insn, info)
        native(e, insn, info, reg, rm, vvvv, False)
        _after_op(t, i)
        if in14 and (
            (info.reg_use & U_W and reg == 14) or (info.rm_use & U_W and rm == 14) or (info.vvvv_use & U_W and vvvv == 14)
        ):
            gs_store(e, off.r[14], 14)
        if in15 and (
            (info.reg_use & U_W and reg == 15) or (info.rm_use & U_W and rm == 15) or (info.vvvv_use & U_W and vvvv == 15)
        ):
            gs_store(e, off.r[15], 15)
        return
    _operand_address(t, insn, cython.address(a))
    access: cython.int = ACCESS_READ if info.mem == M_READ else ACCESS_WRITE if info.mem == M_WRITE else ACCESS_RW
    _access(t, i, cython.address(a), _memory_size(insn, info), access)
    _before_op(t, i)
    if info.reg_use & U_BYTE and not insn.prefixes & (P_REX | P_VEX) and 4 <= reg <= 7:
        # ah..bh can't be named beside s1: lend rdi
        gs_store(e, off.scratch + 8, 7)
        mov_rr(e, 7, S1)
        native(e, insn, info, reg, 7, 0, True)
        gs_load(e, 7, off.scratch + 8)
        _after_op(t, i)
        return
    # s1 holds the address; guest r14/r15 as other operands come to s2, a second one to a borrowed register
    borrowed: cython.int = -1
    hreg: cython.int = reg
    hv: cython.int = vvvv
    if info.reg_use and reg >= 14:
        hreg = S2
        gs_load(e, S2, off.r[reg])
    if info.vvvv_use and vvvv >= 14:
        if hreg == S2 and reg == vvvv:
            hv = S2
        elif hreg == S2 and info.reg_use:
            borrowed = 6 if reg != 6 else 7
            gs_store(e, off.scratch + 8, borrowed)
            gs_load(e, borrowed, off.r[vvvv])
            hv = borrowed
        else:
            hv = S2
            gs_load(e, S2, off.r[vvvv])
    if _may_fault(insn, info):
        _note_fault(t, insn, info)
    native(e, insn, info, hreg, S1, hv, True)
    _after_op(t, i)
    if info.reg_use & U_W and reg >= 14:
        gs_store(e, off.r[reg], hreg)
    if info.vvvv_use & U_W and vvvv >= 14 and not (reg == vvvv and hv == hreg):
        gs_store(e, off.r[vvvv], hv)
    if borrowed >= 0:
        gs_load(e, borrowed, off.scratch + 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _write_reg(e: cython.pointer(Code), size: cython.int, r: cython.int, host: cython.int) -> cython.void:
    """Guest register r := host register, by operand size (2: in part, 4: zero-extended)."""
    if r >= 14:
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _load(e: cython.pointer(Code), size: cython.int, host: cython.int) -> cython.void:
    """host := zero-extended [s1] of 2, 4 or 8 bytes."""
    if size == 2:
        op_mem(e, 0, 4, 0x1B7, host, S1)
    else:
        op_mem(e, 0, size, 0x8B, host, S1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_lea(t: cython.pointer(Translation), insn: cython.pointer(Insn)) -> cython.void:
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    _operand_address(t, insn, cython.address(a))
    if insn.reg < 14 and a.size >= 4 and insn.opsize <= a.size and a.base != REG_RIP and a.base < 16:
        _guest_reg(e, a.base)
        if a.index < 16:
            _guest_reg(e, a.index)
        lea(e, insn.opsize, insn.reg, a.base, a.index, a.scale, a.disp)
        return
    _offset_to_s1(t, cython.address(a))
    _write_reg(e, insn.opsize, insn.reg, S1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_push_s2_or_imm(t: cython.pointer(Translation), i: cython.int, size: cython.int, source: cython.int, imm: uint64_t) -> cython.void:
    """Push host register `source` (not s1), or guest r14/r15 by number, or with source < 0 a constant."""
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    _stack_address(t, -size, cython.address(a))
    _access(t, i, cython.address(a), size, ACCESS_WRITE)
    if source < 0:
        if size != 8 or _fits32(imm):
            op_mem(e, 0, size, 0xC7, 0, S1)
            if size == 2:
                e1(e, cython.cast(cython.int, imm & 0xFF))
                e1(e, cython.cast(cython.int, imm >> 8 & 0xFF))
            else:
                e4(e, cython.cast(uint32_t, imm))
        else:
            mov_ri(e, S2, imm)
            op_mem(e, 0, size, 0x89, S2, S1)
    else:
        if source >= 14:
            gs_load(e, S2, off.r[source])
            source = S2
        op_mem(e, 0, size, 0x89, source, S1)
    lea(e, t.stack_size, 4, 4, REG_NONE, 0, -size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fits32(imm: uint64_t) -> cython.bint:
    return cython.cast(int64_t, imm) == cython.cast(int32_t, imm)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_push(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    if insn.has_modrm and insn.mod != 3:
        _operand_address(t, insn, cython.address(a))
        _access(t, i, cython.address(a), insn.opsize, ACCESS_READ)
        _load(e, insn.opsize, S2)
        gs_store(e, off.scratch + 16, S2)
        _stack_address(t, -cython.cast(int64_t, insn.opsize), cython.address(a))
        _access(t, i, cython.address(a), insn.opsize, ACCESS_WRITE)
        gs_load(e, S2, off.scratch + 16)
        op_mem(e, 0, insn.opsize, 0x89, S2, S1)
        lea(e, t.stack_size, 4, 4, REG_NONE, 0, -cython.cast(int64_t, insn.opsize))
    elif insn.imm_size:
        _gen_push_s2_or_imm(t, i, insn.opsize, -1, insn.imm)
    else:
        _gen_push_s2_or_imm(t, i, insn.opsize, insn.rm, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_pop(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    size: cython.int = insn.opsize
    a: Address
    _stack_address(t, 0, cython.address(a))
    _access(t, i, cython.address(a), size, ACCESS_READ)
    if insn.has_modrm and insn.mod != 3:
        _load(e, size, S2)
        gs_store(e, off.scratch + 16, S2)
        _operand_address(t, insn, cython.address(a))
        if a.base == 4:  # the address is computed after rsp moved (SDM, POP)
            a.disp += size
        _access(t, i, cython.address(a), size, ACCESS_WRITE)
        gs_load(e, S2, off.scratch + 16)
        op_mem(e, 0, size, 0x89, S2, S1)
        lea(e, t.stack_size, 4, 4, REG_NONE, 0, size)
        return
    if insn.rm == 4:
        lea(e, t.stack_size, 4, 4, REG_NONE, 0, size)
        op_mem(e, 0, size, 0x8B, 4, S1)
    elif insn.rm >= 14:
        op_mem(e, 0, size, 0x8B, S1, S1)
        if size == 2:
            gs_op(e, 2, 0x89, S1, off.r[insn.rm])
        else:
            gs_store(e, off.r[insn.rm], S1)
        lea(e, t.stack_size, 4, 4, REG_NONE, 0, size)
    else:
        op_mem(e, 0, size, 0x8B, insn.rm, S1)
        lea(e, t.stack_size, 4, 4, REG_NONE, 0, size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_indirect(t: cython.pointer(Translation), i: cython.int, call: cython.bint) -> cython.void:
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    size: cython.int = insn.opsize
    a: Address
    if insn.mod != 3:
        _operand_address(t, insn, cython.address(a))
        _access(t, i, cython.address(a), size, ACCESS_READ)
        _load(e, size, S1)
    elif size == 8:
        _guest_reg_to(e, insn.rm, S1)
    else:
        _guest_reg_to(e, insn.rm, S1)
        if size == 4:
            mov_rr32(e, S1, S1)
        else:
            op_rr(e, 4, 0x1B7, S1, S1)
    if call:
        gs_store(e, off.scratch + 16, S1)
        _gen_push_s2_or_imm(t, i, size, -1, _cut(t, insn.pc + insn.length, size))
        gs_load(e, S1, off.scratch + 16)
    _exit_s1(t)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_ret(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    size: cython.int = insn.opsize
    a: Address
    _stack_address(t, 0, cython.address(a))
    _access(t, i, cython.address(a), size, ACCESS_READ)
    _load(e, size, S1)
    lea(e, t.stack_size, 4, 4, REG_NONE, 0, size + cython.cast(int64_t, insn.imm if insn.imm_size else 0))
    _exit_s1(t)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _branch(t: cython.pointer(Translation), insn: cython.pointer(Insn)) -> uint64_t:
    return _cut(t, insn.pc + insn.length + insn.imm, insn.opsize if not t.code64 else 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _side_exit(t: cython.pointer(Translation), hole: cython.pointer(uint8_t), target: uint64_t) -> cython.void:
    """A conditional jump's taken side; any poll was made before."""
    c: cython.pointer(Cold) = cython.address(t.cold[t.n_cold])
    t.n_cold += 1
    c.kind = COLD_EXIT if _same_page(t, target) and not t.single else COLD_CROSS
    c.hole = hole
    c.target = target
    c.flags = t.flags
    c.backward = False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_loop(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    """LOOPNE E0, LOOPE E1, LOOP E2, JCXZ E3; the count register's width is the address size."""
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    target: uint64_t = _branch(t, insn)
    width: cython.int = insn.addrsize
    if target <= insn.pc and not t.single:
        _poll(t, SK_POLL, insn.pc, S1)
    which: cython.int = insn.opcode & 3
    out1: cython.pointer(uint8_t) = cython.NULL
    if which < 2 and t.flags == FLAGS_MEM:
        _emit_restore_flags(e)
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
        _side_exit(t, hole_zero, target)
    else:
        if out1:
            fill_hole(out1, e.p)
        _side_exit(t, hole_nonzero, target)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_bt(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    _operand_address(t, insn, cython.address(a))
    a.kind = EA_BT
    a.bit_reg = insn.reg
    a.opsize = insn.opsize
    _access(t, i, cython.address(a), insn.opsize, ACCESS_READ if info.mem == M_READ else ACCESS_RW)
    _guest_reg_to(e, insn.reg, S2)
    op_ri(e, 4, 4, S2, 8 * insn.opsize - 1)
    _before_op(t, i)
    native(e, insn, info, S2, S1, 0, True)
    _after_op(t, i)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_monitor(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    """Leave for the monitor to run the instruction, and go on behind it if that is possible."""
    site: uint32_t = _monitor_site(t, i)
    _leave(t, site)
    t.flags = FLAGS_MEM
    if _ends(cython.address(table[t.insns[i].op])):
        t.done = True
    else:
        t.m.sites[site].host = cython.cast(uint32_t, t.e.p - t.m.code)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _monitor_site(t: cython.pointer(Translation), i: cython.int) -> uint32_t:
    """A site at which the monitor runs instruction i; where it goes on is up to the caller."""
    site: uint32_t = add_site(t.m, SK_SYS, t.insns[i].pc, t.block)
    t.m.pool[t.m.n_pool] = t.insns[i]
    t.m.sites[site].extra = t.m.n_pool
    t.m.n_pool += 1
    return site


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _cold_site(t: cython.pointer(Translation), cc: cython.int, site: uint32_t) -> cython.void:
    """If cc: leave at the site. The guest's flags are put away."""
    c: cython.pointer(Cold) = cython.address(t.cold[t.n_cold])
    t.n_cold += 1
    c.kind = COLD_SITE
    c.hole = jcc_hole(cython.address(t.e), cc)
    c.site = site


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _string_access(t: cython.pointer(Translation), i: cython.int, reg: cython.int, seg: cython.int, size: cython.int, access: cython.int) -> cython.void:
    a: Address
    _stack_address(t, 0, cython.address(a))
    a.base = cython.cast(uint8_t, reg)
    a.seg = cython.cast(uint8_t, seg)
    _access(t, i, cython.address(a), size, access)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _string_room(t: cython.pointer(Translation), shift: cython.int, site: uint32_t) -> cython.void:
    """Leave at the site unless rcx elements at s1 end in its page."""
    e: cython.pointer(Code) = cython.address(t.e)
    mov_rr(e, S2, S1)
    op_ri(e, 8, 1, S2, -4096)  # or
    op_rr(e, 8, 0xF7, 3, S2)  # neg: bytes up to the page's end
    if shift:
        shift_ri(e, 4, 5, S2, shift)
    op_rr(e, 8, 0x39, 1, S2)  # cmp s2, rcx
    _cold_site(t, CC_B, site)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_string(t: cython.pointer(Translation), i: cython.int) -> cython.void:
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
            _string_access(t, i, 6, insn.seg, size, ACCESS_READ)
            if which == 0xAC:
                op_mem(e, 0, size, 0x8A | op, 0, S1)
            else:
                op_mem(e, 0, size, 0x8A | op, S2, S1)
                gs_store(e, off.scratch + 16, S2)
        if which == 0xA4:
            _string_access(t, i, 7, ES, size, ACCESS_WRITE)
            gs_load(e, S2, off.scratch + 16)
            op_mem(e, 0, size, 0x88 | op, S2, S1)
        elif which == 0xAA:
            _string_access(t, i, 7, ES, size, ACCESS_WRITE)
            op_mem(e, 0, size, 0x88 | op, 0, S1)
        elif which == 0xA6:
            _string_access(t, i, 7, ES, size, ACCESS_READ)
            gs_load(e, S2, off.scratch + 16)
            op_mem(e, 0, size, 0x3A | op, S2, S1)
            t.flags = FLAGS_HOST
        elif which == 0xAE:
            _string_access(t, i, 7, ES, size, ACCESS_READ)
            op_mem(e, 0, size, 0x3A | op, 0, S1)
            t.flags = FLAGS_HOST
        if which != 0xAA and which != 0xAE:
            lea(e, 8, 6, 6, REG_NONE, 0, step)
        if which != 0xAC:
            lea(e, 8, 7, 7, REG_NONE, 0, step)
        return
    site = _monitor_site(t, i)
    _clobber(t, t.live[i])
    op_rr(e, 8, 0x85, 1, 1)  # test rcx, rcx
    done = jcc_hole(e, CC_E)
    if which == 0xA4:
        _string_access(t, i, 6, insn.seg, size, ACCESS_READ)
        _string_room(t, shift, site)
        gs_store(e, off.scratch + 16, S1)
    _string_access(t, i, 7, ES, size, ACCESS_WRITE)
    _string_room(t, shift, site)
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_pushf(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    """PUSHFQ: the flags that were put away (ah: SZAPC, al: O) joined with the others; RF and VM read as 0."""
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    _clobber(t, F_ALL)
    gs_op(e, 4, 0x1B6, S2, off.flags_saved + 1)
    op_ri(e, 4, 4, S2, 0xD5)
    gs_op(e, 4, 0x1B6, S1, off.flags_saved)
    shift_ri(e, 4, 4, S1, 11)
    op_rr(e, 4, 0x09, S1, S2)
    gs_op(e, 4, 0x8B, S1, off.eflags)
    op_ri(e, 4, 4, S1, ~(F_ALL | 0x30000))
    op_rr(e, 4, 0x09, S1, S2)
    gs_store(e, off.scratch + 16, S2)
    _stack_address(t, -8, cython.address(a))
    _access(t, i, cython.address(a), 8, ACCESS_WRITE)
    gs_load(e, S2, off.scratch + 16)
    op_mem(e, 0, 8, 0x89, S2, S1)
    lea(e, 8, 4, 4, REG_NONE, 0, -8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gs_imm(e: cython.pointer(Code), opcode: cython.int, digit: cython.int, offset: uint32_t, imm: uint32_t) -> cython.void:
    gs_op(e, 4, opcode, digit, offset)
    e4(e, imm)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_kernel(t: cython.pointer(Translation), i: cython.int) -> cython.bint:
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
        _gen_pushf(t, i)
        return True
    if what == S_MOV_FROM_SEG and insn.mod == 3:
        gs_op(e, 4, 0x1B7, S1, off.selector[insn.reg])
        _write_reg(e, insn.opsize, insn.rm, S1)
        return True
    if t.mode & (MODE_USER | MODE_RING12):
        return False
    if what == S_CLI:
        _clobber(t, t.live[i])
        _gs_imm(e, 0x81, 4, off.eflags, ~0x200)
        return True
    if what == S_STI:
        # with an interrupt waiting the monitor does it, which knows of the instruction's shadow
        site = _monitor_site(t, i)
        _clobber(t, F_ALL)
        _gs_imm(e, 0x81, 7, off.irq_wait, 0)
        _cold_site(t, CC_NE, site)
        _gs_imm(e, 0x81, 1, off.eflags, 0x200)
        t.m.sites[site].host = cython.cast(uint32_t, e.p - t.m.code)
        return True
    if what == S_SWAPGS:
        gs_load(e, S1, off.seg_base[GS])
        gs_load(e, S2, off.kernel_gs_base)
        gs_store(e, off.kernel_gs_base, S1)
        gs_store(e, off.seg_base[GS], S2)
        return True
    if (what == S_STAC and not t.mode & MODE_AC) or (what == S_CLAC and t.mode & MODE_AC):
        # the mode changes, so the rest is another block's: found in the other table's jump cache, if that is of this mode
        mode = t.mode ^ MODE_AC
        other = TLB_KERNEL_AC if what == S_STAC else TLB_KERNEL
        next_pc = insn.pc + insn.length
        site = _monitor_site(t, i)
        _clobber(t, F_ALL)
        if what == S_CLAC:  # without SMAP the kernel may always touch users' pages
            _gs_imm(e, 0xF7, 0, off.cr4, 1 << 21)
            _cold_site(t, CC_E, site)
        _gs_imm(e, 0x81, 7, off.table_mode[other], mode)
        _cold_site(t, CC_NE, site)
        _gs_imm(e, 0x81, 1 if what == S_STAC else 4, off.eflags, 0x40000 if what == S_STAC else ~0x40000)
        gs_store_imm32(e, off.mode, mode)
        mov_ri(e, S1, next_pc)
        gs_op(e, 4, 0xFF, 4, off.jump_cache[other] + 8 * jump_hash(next_pc))
        t.done = True
        return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen_raise(t: cython.pointer(Translation), i: cython.int, vector: cython.int) -> cython.void:
    site: uint32_t = add_site(t.m, SK_RAISE, t.insns[i].pc, t.block)
    t.m.sites[site].extra = vector
    t.m.sites[site].size = (table[t.insns[i].op].flags & O_VECTOR) != 0
    _leave(t, site)
    t.done = True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _refused(t: cython.pointer(Translation), insn: cython.pointer(Insn), info: cython.pointer(OpInfo)) -> cython.int:
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gen(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    e: cython.pointer(Code) = cython.address(t.e)
    kind: cython.int = info.kind
    refused: cython.int = _refused(t, insn, info)
    next_pc: uint64_t = insn.pc + insn.length
    target: uint64_t
    size: cython.int
    a: Address
    if refused >= 0:
        _gen_raise(t, i, refused)
    elif kind == K_NATIVE or kind == K_FENCE:
        _gen_native(t, i)
    elif kind == K_LEA:
        _gen_lea(t, insn)
    elif kind == K_PUSH:
        _gen_push(t, i)
    elif kind == K_POP:
        _gen_pop(t, i)
    elif kind == K_JCC:
        target = _branch(t, insn)
        if t.flags == FLAGS_MEM:
            _emit_restore_flags(e)
            t.flags = FLAGS_HOST
        if target <= insn.pc and not t.single:
            _poll(t, SK_POLL, insn.pc, S1)
        align_link(e, 2)
        _side_exit(t, jcc_hole(e, insn.opcode & 15), target)
    elif kind == K_JMP:
        target = _branch(t, insn)
        _exit_to(t, target, target <= insn.pc, False)
        t.done = True
    elif kind == K_CALL:
        size = 8 if t.code64 else insn.opsize
        _gen_push_s2_or_imm(t, i, size, -1, _cut(t, next_pc, size))
        target = _branch(t, insn)
        _exit_to(t, target, target <= insn.pc, False)
        t.done = True
    elif kind == K_JMP_IND or kind == K_CALL_IND:
        _gen_indirect(t, i, kind == K_CALL_IND)
        t.done = True
    elif kind == K_RET:
        _gen_ret(t, i)
        t.done = True
    elif kind == K_LOOP:
        _gen_loop(t, i)
    elif kind == K_NOP:
        if insn.opcode == 0x90 and insn.opmap == 0 and insn.prefixes & P_REP:
            e1(e, 0xF3)
            e1(e, 0x90)
    elif kind == K_LEAVE:
        size = insn.opsize
        _stack_address(t, 0, cython.address(a))
        a.base = 5
        _access(t, i, cython.address(a), size, ACCESS_READ)
        lea(e, t.stack_size, 4, 5, REG_NONE, 0, size)
        op_mem(e, 0, size, 0x8B, 5, S1)
    elif kind == K_XLAT:
        _operand_address(t, insn, cython.address(a))
        a.kind = EA_XLAT
        _access(t, i, cython.address(a), 1, ACCESS_READ)
        e1(e, 0x41)  # mov al, [s1]
        e1(e, 0x8A)
        e1(e, 0x06)
    elif kind == K_MOV_MOFFS:
        _operand_address(t, insn, cython.address(a))
        a.base = REG_NONE
        a.index = REG_NONE
        size = insn.opsize if insn.opcode & 1 else 1
        _access(t, i, cython.address(a), size, ACCESS_WRITE if insn.opcode & 2 else ACCESS_READ)
        op_mem(e, 0, size, (0x88 if insn.opcode & 2 else 0x8A) | (insn.opcode & 1), 0, S1)
    elif kind == K_SHORT32:
        _before_op(t, i)
        op_rr(e, insn.opsize, 0xFF, insn.opcode >> 3 & 1, insn.rm)
        _after_op(t, i)
    elif kind == K_BT:
        _gen_bt(t, i)
    elif kind == K_RDTSC and not t.mode & MODE_TSD:
        _clobber(t, t.live[i])
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
    elif kind == K_STRING and _inline_string(t, insn):
        _gen_string(t, i)
    elif not _gen_kernel(t, i):
        _gen_monitor(t, i)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _ends(info: cython.pointer(OpInfo)) -> cython.bint:
    """Whether nothing need be translated behind an instruction that the monitor runs."""
    s: cython.int = info.system
    if info.flags & O_END or info.kind == K_FLAGOP:
        return True
    return (
        s == S_IRET or s == S_SYSRET or s == S_SYSCALL or s == S_SYSENTER or s == S_SYSEXIT or s == S_INT or s == S_INT3
        or s == S_INT1 or s == S_JMP_FAR or s == S_JMP_FAR_MEM or s == S_CALL_FAR or s == S_CALL_FAR_MEM or s == S_RETF
        or s == S_HLT or s == S_MOV_TO_CR or s == S_LMSW
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _ends_flow(insn: cython.pointer(Insn)) -> cython.bint:
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    k: cython.int = info.kind
    if insn.op == 0 or k == K_UD or k == K_JMP or k == K_CALL or k == K_JMP_IND or k == K_CALL_IND or k == K_RET:
        return True
    if k == K_NATIVE or k == K_LEA or k == K_PUSH or k == K_POP or k == K_JCC:
        return False
    return _ends(info)


# ---------------------------------------------------------------- blocks


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _find_slot(m: cython.pointer(Cache), gpa: uint64_t) -> cython.pointer(Slot):
    i: cython.int
    for i in range(m.n_slots):
        if gpa - m.slots[i].gpa < m.slots[i].size:
            return cython.address(m.slots[i])
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fetch(m: cython.pointer(Cache), gpa: uint64_t, buffer: cython.pointer(uint8_t), size: cython.int) -> cython.void:
    slot: cython.pointer(Slot) = _find_slot(m, gpa)
    if slot == cython.NULL:
        memset(buffer, 0xFF, size)
    else:
        memcpy(buffer, slot.host + (gpa - slot.gpa), size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _protect(m: cython.pointer(Cache), gpa: uint64_t) -> cython.void:
    slot: cython.pointer(Slot) = _find_slot(m, gpa)
    i: cython.int
    page: uint64_t
    if slot == cython.NULL:
        return
    page = (gpa - slot.gpa) >> 12
    if not slot.code[page]:
        slot.code[page] = 1
        for i in range(m.n_vcpus):
            protect_page(m.vcpus[i], slot.host + (page << 12))


def translate(m, c, gpa, mode):
    """Translate the block at c.rip, whose first byte is at gpa; the lock is held and there is room.

    Returns its number, or 0 with an exception pending when the bytes of its first instruction can't be fetched.
    """
    t: cython.pointer(Translation) = cython.address(_t)
    e: cython.pointer(Code) = cython.address(t.e)
    page: uint8_t[4096 + 16]
    n: cython.int
    length: cython.int
    limit: cython.int
    at: cython.int = cython.cast(cython.int, gpa & 4095)
    code: cython.int = 8 if mode & MODE_CODE64 else 4 if mode & MODE_CODE32 else 2
    pc: uint64_t = c.rip
    gpa2: uint64_t = 1
    next_page: uint64_t
    t.m = m
    t.mode = mode
    t.single = (mode & (MODE_SINGLE | MODE_TF)) != 0
    t.code64 = (mode & MODE_CODE64) != 0
    t.stack_size = 8 if t.code64 else 4 if mode & MODE_SS32 else 2
    t.table = TLB_USER if mode & MODE_USER else TLB_KERNEL_AC if mode & MODE_AC else TLB_KERNEL
    t.first_pc = pc
    t.page_offset = at
    t.n = 0
    t.n_cold = 0
    t.done = False
    t.next_crosses = False
    _protect(m, gpa)
    _fetch(m, gpa, page, 4096 - at)
    limit = 1 if t.single else MAX_INSNS
    n = 0
    start: cython.int = at
    while t.n < limit:
        insn: cython.pointer(Insn) = cython.address(t.insns[t.n])
        length = decode(insn, page + (at - start), 4096 - at, pc, code)
        if length == 0:
            if t.n:
                t.next_crosses = True
                break
            next_page = (pc + (4096 - at)) if t.code64 else cython.cast(uint32_t, pc + (4096 - at))
            if not t.code64:
                next_page = cython.cast(uint32_t, next_page + c.seg[CS].base)
            if lookup_exec(c, next_page, cython.address(gpa2)):
                return 0
            gpa2 &= ~cython.cast(uint64_t, 4095)
            _protect(m, gpa2)
            _fetch(m, gpa2, page + (4096 - at), 16)
            length = decode(insn, page, 4096 - at + 15, pc, code)
        if length <= 0:
            memset(insn, 0, cython.sizeof(Insn))
            insn.pc = pc
            length = 0
        t.n += 1
        if length == 0:
            break
        pc = _cut(t, pc + length, code)
        at += length
        if _ends_flow(insn) or at >= 4096 or gpa2 != 1:
            break
    _liveness(t)

    t.block = m.n_blocks
    m.n_blocks += 1
    b: cython.pointer(Block) = cython.address(m.blocks[t.block])
    memset(b, 0, cython.sizeof(Block))
    b.gpa = gpa
    b.gpa2 = gpa2
    b.pc = c.rip
    b.mode = mode
    b.insns = cython.cast(uint16_t, t.n)
    e.p = m.free
    # the three entries, each at a multiple of 8 so that it can be redirected by one store
    mem_first: cython.bint = False
    if t.live[0]:
        mem_first = _clobbers_first(t)
    _align(e, 16)
    b.pad = cython.cast(uint32_t, e.p - m.code)
    if _fits32(b.pc):
        op_ri(e, 8, 7, S1, cython.cast(cython.int, b.pc))
    else:
        mov_ri(e, S2, b.pc)
        op_rr(e, 8, 0x39, S2, S1)
    hole: cython.pointer(uint8_t) = jcc_hole(e, CC_NE)
    fill_hole(hole, m.miss)
    if mem_first:
        hole = jmp_hole(e)
        _align(e, 8)
        b.entry_host = cython.cast(uint32_t, e.p - m.code)
        _emit_save_flags(e)
        _align(e, 8)
        fill_hole(hole, e.p)
        b.entry_mem = cython.cast(uint32_t, e.p - m.code)
        t.flags = FLAGS_MEM
    else:
        _align(e, 8)
        b.entry_mem = cython.cast(uint32_t, e.p - m.code)
        if t.live[0]:
            _emit_restore_flags(e)
            _align(e, 8)
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
        _gen(t, i)
        i += 1
    if not t.done:
        insn = cython.address(t.insns[t.n - 1])
        _exit_to(t, _cut(t, insn.pc + insn.length, code), False, t.next_crosses)
    _cold_code(t)
    # where the entries lead once the block is dead
    b.cold_host = cython.cast(uint32_t, e.p - m.code)
    t.flags = FLAGS_HOST
    _clobber(t, F_ALL)
    b.cold_mem = cython.cast(uint32_t, e.p - m.code)
    mov_ri(e, S1, b.pc)
    jmp_to(e, m.look_up)
    b.end = cython.cast(uint32_t, e.p - m.code)
    b.size = cython.cast(uint32_t, at - start if length else 1)
    m.free = e.p
    m.total_blocks += 1
    m.total_insns += t.n
    enlist(m, t.block)
    return t.block


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _clobbers_first(t: cython.pointer(Translation)) -> cython.bint:
    """Whether the first thing that happens to the flags is that they must be put away."""
    i: cython.int
    for i in range(t.n):
        insn: cython.pointer(Insn) = cython.address(t.insns[i])
        info: cython.pointer(OpInfo) = cython.address(table[insn.op])
        k: cython.int = info.kind
        if k == K_LEA or k == K_NOP:
            continue
        if k == K_NATIVE:
            if insn.has_modrm and insn.mod != 3 and info.mem != M_NONE and info.mem != M_ADDR:
                return t.live[i] != 0
            if info.flags_read or info.flags_mod:
                return False
            continue
        if k == K_JCC or k == K_SHORT32:
            return False
        if k == K_JMP:
            return False
        return True
    return False
