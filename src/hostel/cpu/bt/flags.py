"""Where the guest's arithmetic flags are while a block is translated, and which of them matter.

See translate.py. ``flags_saved`` holds what lahf (ah) and seto (al) gave.
"""

import cython
from cython.cimports.hostel.cpu.bt.decode import decode, table
from cython.cimports.hostel.cpu.bt.emit import S2, e1, gs_load, gs_store, mov_rr
from cython.cimports.hostel.cpu.bt.insn import (
    F_ALL,
    K_JCC,
    K_JMP,
    K_LEA,
    K_LOOP,
    K_NATIVE,
    K_NOP,
    K_POP,
    K_PUSH,
    K_PUSHPOPF,
    K_SHORT32,
    K_STICLI,
    K_STRING,
    K_SYSTEM,
    K_UD,
    O_BYTEOP,
    O_FLAGS_COUNT,
    P_REP,
    P_REPNE,
    S_CLI,
    S_MOV_FROM_SEG,
    S_SWAPGS,
    Insn,
    OpInfo,
)
from cython.cimports.hostel.cpu.bt.stubs import off
from cython.cimports.hostel.cpu.bt.translate import refused
from cython.cimports.hostel.cpu.bt.translation import AHEAD, AHEAD_SPAN, FLAGS_HOST, FLAGS_MEM
from cython.cimports.hostel.cpu.bt.vcpu import MODE_DF, MODE_RING12, MODE_USER
from cython.cimports.hostel.cpu.bt.windows import checked_at, covered
from cython.cimports.libc.stdint import uint16_t


def emit_save_flags(e):
    mov_rr(e, S2, 0)
    e1(e, 0x9F)  # lahf
    e1(e, 0x0F)  # seto al
    e1(e, 0x90)
    e1(e, 0xC0)
    gs_store(e, off.flags_saved, 0)
    mov_rr(e, 0, S2)


def emit_restore_flags(e):
    gs_store(e, off.scratch, 0)
    gs_load(e, 0, off.flags_saved)
    e1(e, 0x04)  # add al, 127: OF again
    e1(e, 0x7F)
    e1(e, 0x9E)  # sahf: the others
    gs_load(e, 0, off.scratch)


def clobber(t, live):
    """The host's flags are about to be overwritten: keep the guest's where they live on."""
    if t.flags == FLAGS_HOST:
        if live:
            emit_save_flags(cython.address(t.e))
        t.flags = FLAGS_MEM


def before_op(t, i):
    """The instruction itself comes next: have in the host's flags what it reads or leaves alone."""
    kill: cython.int
    mod: cython.int
    info: cython.pointer(OpInfo) = cython.address(table[t.insns[i].op])
    flag_effect(cython.address(t.insns[i]), cython.address(kill), cython.address(mod))
    if t.flags == FLAGS_MEM and (info.flags_read or (mod and t.live[i + 1] & ~kill)):
        emit_restore_flags(cython.address(t.e))
        t.flags = FLAGS_HOST


def after_op(t, i):
    kill: cython.int
    mod: cython.int
    flag_effect(cython.address(t.insns[i]), cython.address(kill), cython.address(mod))
    if mod:
        t.flags = FLAGS_HOST


def flag_effect(insn, kill, mod):
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    kill[0] = info.flags_kill
    mod[0] = info.flags_mod
    if not info.flags & O_FLAGS_COUNT:
        kill[0] |= info.flags_undef  # nobody may count on the old ones
    elif insn.imm_size:
        # a constant count: it is known whether the flags change
        if insn.imm & (63 if insn.rex & 8 and not info.flags & O_BYTEOP else 31):
            if not info.flags_read:
                kill[0] = info.flags_mod
        else:
            mod[0] = 0
            kill[0] = 0


def looked_at(t, page, pc, low, high):
    """The flags that the code at pc may look at: all, unless its next few instructions set them without a jump.

    The block depends on these then: low and high are moved.
    """
    insn: Insn
    info: cython.pointer(OpInfo)
    at: cython.int = cython.cast(cython.int, pc - t.first_pc + t.page_offset)
    first: cython.int = at
    left: cython.int = F_ALL
    read: cython.int = 0
    kill: cython.int
    mod: cython.int
    i: cython.int
    k: cython.int
    if t.single or not t.code64 or t.m.n_breaks or pc - t.first_pc + t.page_offset >= 4096:
        return F_ALL
    for i in range(AHEAD):
        if decode(cython.address(insn), page + at, 4096 - at, pc, 8) <= 0:
            return F_ALL
        info = cython.address(table[insn.op])
        k = info.kind
        if not (k == K_NATIVE or k == K_LEA or k == K_PUSH or k == K_POP or k == K_NOP):
            return F_ALL
        if refused(t, cython.address(insn), info) >= 0:
            return F_ALL
        flag_effect(cython.address(insn), cython.address(kill), cython.address(mod))
        read |= info.flags_read & left
        left &= ~kill
        pc += insn.length
        at += insn.length
        if not left:
            if read == F_ALL or max(high[0], at) - min(low[0], first) > AHEAD_SPAN:
                return F_ALL
            low[0] = min(low[0], first)
            high[0] = max(high[0], at)
            return read
    return F_ALL


def liveness(t):
    """Flags live before each instruction; ``exits`` and the last of ``live`` are known."""
    i: cython.int
    kill: cython.int
    mod: cython.int
    live: cython.int = t.live[t.n]
    i = t.n - 1
    while i >= 0:
        info: cython.pointer(OpInfo) = cython.address(table[t.insns[i].op])
        flag_effect(cython.address(t.insns[i]), cython.address(kill), cython.address(mod))
        if info.kind == K_JCC:
            live |= info.flags_read | t.exits[i]
        elif info.kind == K_LOOP or info.kind == K_UD:
            live = F_ALL
        elif info.kind == K_STRING:
            if not inline_string(t, cython.address(t.insns[i])):
                live = F_ALL
            elif compares(t.insns[i].opcode):
                live = 0
        elif info.kind == K_SYSTEM or info.kind == K_PUSHPOPF or info.kind == K_STICLI:
            if not keeps_flags(t, cython.address(t.insns[i])):
                live = F_ALL
        else:
            live = (live & ~kill) | info.flags_read
        t.live[i] = cython.cast(uint16_t, live)
        i -= 1


def keeps_flags(t, insn):
    """Monitor's instructions that _gen_kernel puts inline without looking at the flags."""
    what: cython.int = table[insn.op].system
    if t.single or not t.code64:
        return False
    if what == S_MOV_FROM_SEG:
        return insn.mod == 3
    return (what == S_CLI or what == S_SWAPGS) and not t.mode & (MODE_USER | MODE_RING12)


def compares(opcode):
    """CMPS or SCAS."""
    return (opcode & 0xFE) == 0xA6 or (opcode & 0xFE) == 0xAE


def inline_string(t, insn):
    if t.single or not t.code64 or insn.addrsize != 8:
        return False
    if not insn.prefixes & (P_REP | P_REPNE):
        return True
    which: cython.int = insn.opcode & 0xFE
    return (which == 0xA4 or which == 0xAA) and not t.mode & MODE_DF


def clobbers_first(t):
    """Whether the first thing that happens to the flags is that they must be put away."""
    i: cython.int
    for i in range(t.n):
        insn: cython.pointer(Insn) = cython.address(t.insns[i])
        info: cython.pointer(OpInfo) = cython.address(table[insn.op])
        k: cython.int = info.kind
        if checked_at(t, i):
            return t.live[i] != 0
        if k == K_LEA or k == K_NOP or ((k == K_PUSH or k == K_POP) and covered(t, i)):
            continue
        if k == K_NATIVE:
            if not covered(t, i):
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
