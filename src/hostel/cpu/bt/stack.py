"""PUSH, POP, CALL, RET and indirect jumps."""

import cython
from cython.cimports.hostel.cpu.bt.address import (
    check_access,
    check_operand,
    guest_pc,
    guest_reg_to,
    load,
    operand_address,
    stack_address,
)
from cython.cimports.hostel.cpu.bt.emit import (
    S1,
    S2,
    Code,
    away,
    e1,
    e4,
    gs_load,
    gs_op,
    gs_store,
    lea,
    mov_ri,
    mov_rr32,
    op_mem,
    op_rr,
)
from cython.cimports.hostel.cpu.bt.insn import REG_NONE, Insn
from cython.cimports.hostel.cpu.bt.leave import cut, exit_s1
from cython.cimports.hostel.cpu.bt.stubs import off
from cython.cimports.hostel.cpu.bt.translation import Address, Operand
from cython.cimports.hostel.cpu.bt.vcpu import ACCESS_READ, ACCESS_WRITE
from cython.cimports.libc.stdint import int32_t, int64_t, uint32_t


def move_stack(t, amount):
    """Move rsp, once with what comes next where that doesn't look at it."""
    t.moved += amount


def settle_stack(t):
    """Have rsp be what it is."""
    if t.moved:
        lea(cython.address(t.e), t.stack_size, 4, 4, REG_NONE, 0, t.moved)
        t.moved = 0


def push_value(t, i, size, source, imm):
    """Push host register `source` (not s1), guest r10/r11 by number, or a constant: an immediate, or code's address."""
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    o: Operand
    stack_address(t, -size, cython.address(a))
    check_operand(t, i, cython.address(a), size, ACCESS_WRITE, cython.address(o))
    if source == PUSH_PC and t.pic:
        guest_pc(t, S2, imm)
        op_mem(e, size, 0x89, S2, o.base, o.index, o.disp)
    elif source < 0:
        if size != 8 or fits32(imm):
            op_mem(e, size, 0xC7, 0, o.base, o.index, o.disp)
            if size == 2:
                e1(e, cython.cast(cython.int, imm & 0xFF))
                e1(e, cython.cast(cython.int, imm >> 8 & 0xFF))
            else:
                e4(e, cython.cast(uint32_t, imm))
        else:
            mov_ri(e, S2, imm)
            op_mem(e, size, 0x89, S2, o.base, o.index, o.disp)
    else:
        if away(source):
            gs_load(e, S2, off.r[source])
            source = S2
        op_mem(e, size, 0x89, source, o.base, o.index, o.disp)
    move_stack(t, -size)


def fits32(imm):
    return cython.cast(int64_t, imm) == cython.cast(int32_t, imm)


def gen_push(t, i):
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    a: Address
    o: Operand
    if insn.has_modrm and insn.mod != 3:
        operand_address(t, insn, cython.address(a))
        check_operand(t, i, cython.address(a), insn.opsize, ACCESS_READ, cython.address(o))
        load(e, insn.opsize, S2, cython.address(o))
        gs_store(e, off.scratch + 16, S2)
        stack_address(t, -cython.cast(int64_t, insn.opsize), cython.address(a))
        check_operand(t, i, cython.address(a), insn.opsize, ACCESS_WRITE, cython.address(o))
        gs_load(e, S2, off.scratch + 16)
        op_mem(e, insn.opsize, 0x89, S2, o.base, o.index, o.disp)
        move_stack(t, -cython.cast(int64_t, insn.opsize))
    elif insn.imm_size:
        push_value(t, i, insn.opsize, PUSH_IMM, insn.imm)
    else:
        push_value(t, i, insn.opsize, insn.rm, 0)


def gen_pop(t, i):
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    size: cython.int = insn.opsize
    memory: cython.bint = insn.has_modrm and insn.mod != 3
    a: Address
    o: Operand
    stack_address(t, 0, cython.address(a))
    if not memory and insn.rm == 4:
        check_access(t, i, cython.address(a), size, ACCESS_READ)
        lea(e, t.stack_size, 4, 4, REG_NONE, 0, size)
        op_mem(e, size, 0x8B, 4, S1, REG_NONE, 0)
        return
    check_operand(t, i, cython.address(a), size, ACCESS_READ, cython.address(o))
    if memory:
        load(e, size, S2, cython.address(o))
        gs_store(e, off.scratch + 16, S2)
        operand_address(t, insn, cython.address(a))
        if a.base == 4:  # the address is computed after rsp moved (SDM, POP)
            a.disp += size
        check_operand(t, i, cython.address(a), size, ACCESS_WRITE, cython.address(o))
        gs_load(e, S2, off.scratch + 16)
        op_mem(e, size, 0x89, S2, o.base, o.index, o.disp)
    elif away(insn.rm):
        op_mem(e, size, 0x8B, S1, o.base, o.index, o.disp)
        t.in_s1 = -1
        if size == 2:
            gs_op(e, 2, 0x89, S1, off.r[insn.rm])
        else:
            gs_store(e, off.r[insn.rm], S1)
    else:
        op_mem(e, size, 0x8B, insn.rm, o.base, o.index, o.disp)
    move_stack(t, size)


def gen_indirect(t, i, call):
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    size: cython.int = insn.opsize
    a: Address
    o: Operand
    if insn.mod != 3:
        operand_address(t, insn, cython.address(a))
        check_operand(t, i, cython.address(a), size, ACCESS_READ, cython.address(o))
        load(e, size, S1, cython.address(o))
        t.in_s1 = -1
    elif size == 8:
        guest_reg_to(e, insn.rm, S1)
    else:
        guest_reg_to(e, insn.rm, S1)
        if size == 4:
            mov_rr32(e, S1, S1)
        else:
            op_rr(e, 4, 0x1B7, S1, S1)
    if call:
        t.in_s1 = -1
        gs_store(e, off.scratch + 16, S1)
        push_value(t, i, size, PUSH_PC, cut(t, insn.pc + insn.length, size))
        gs_load(e, S1, off.scratch + 16)
        settle_stack(t)
    exit_s1(t)


def gen_ret(t, i):
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    e: cython.pointer(Code) = cython.address(t.e)
    size: cython.int = insn.opsize
    a: Address
    o: Operand
    stack_address(t, 0, cython.address(a))
    check_operand(t, i, cython.address(a), size, ACCESS_READ, cython.address(o))
    load(e, size, S1, cython.address(o))
    move_stack(t, size + cython.cast(int64_t, insn.imm if insn.imm_size else 0))
    settle_stack(t)
    exit_s1(t)
