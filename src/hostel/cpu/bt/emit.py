"""Encoding host instructions.

A ``Code`` is a cursor into executable memory. The guest's instructions are encoded again from their decoded
form (``native``), never copied, so that operands, addressing and modes can change on the way; the rest are the
few host instructions that translation itself needs. VCpu fields are reached as ``gs:[offset]``: no register is
reserved for them. Encodings: Intel SDM vol. 2, chapter 2.
"""

import cython
from cython.cimports.hostel.cpu.bt.insn import (
    O_LEGACY66,
    O_OPREG,
    O_PREFIX66,
    O_PREFIXF2,
    O_PREFIXF3,
    P_LOCK,
    P_REX,
    P_VEX,
)
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint32_t
from cython.cimports.libc.string import memcpy


def e1(e, byte):
    e.p[0] = cython.cast(uint8_t, byte)
    e.p += 1


def e4(e, value):
    memcpy(e.p, cython.address(value), 4)
    e.p += 4


def e8(e, value):
    memcpy(e.p, cython.address(value), 8)
    e.p += 8


def gs_op(e, w, opcode, reg, offset):
    """op reg, gs:[offset]; an opcode above 0xFF is 0F xx. w: 8 for 64-bit operands, 2 for 16-bit."""
    e1(e, 0x65)
    if w == 2:
        e1(e, 0x66)
    rex: cython.int = (0x48 if w == 8 else 0) | (0x44 if reg & 8 else 0)
    if rex:
        e1(e, rex)
    if opcode > 0xFF:
        e1(e, 0x0F)
    e1(e, opcode & 0xFF)
    e1(e, 0x04 | (reg & 7) << 3)
    e1(e, 0x25)
    e4(e, offset)


def gs_op_index(e, opcode, reg, index, offset):
    """op reg, gs:[index*8 + offset], 64-bit."""
    e1(e, 0x65)
    e1(e, 0x48 | (4 if reg & 8 else 0) | (2 if index & 8 else 0))
    e1(e, opcode)
    e1(e, 0x04 | (reg & 7) << 3)
    e1(e, 0xC5 | (index & 7) << 3)
    e4(e, offset)


def gs_load(e, reg, offset):
    gs_op(e, 8, 0x8B, reg, offset)


def gs_store(e, offset, reg):
    gs_op(e, 8, 0x89, reg, offset)


def gs_store_imm32(e, offset, value):
    gs_op(e, 4, 0xC7, 0, offset)
    e4(e, value)


def op_rr(e, w, opcode, reg, rm):
    rex: cython.int = (8 if w == 8 else 0) | (4 if reg & 8 else 0) | (1 if rm & 8 else 0)
    if w == 2:
        e1(e, 0x66)
    if rex:
        e1(e, 0x40 | rex)
    if opcode > 0xFF:
        e1(e, 0x0F)
    e1(e, opcode & 0xFF)
    e1(e, 0xC0 | (reg & 7) << 3 | (rm & 7))


def op_ri(e, w, digit, rm, imm):
    """The 81 /digit group: add or adc sbb and sub xor cmp."""
    op_rr(e, w, 0x81, digit, rm)
    if w == 2:
        e1(e, imm & 0xFF)
        e1(e, imm >> 8 & 0xFF)
    else:
        e4(e, cython.cast(uint32_t, imm))


def shift_ri(e, w, digit, rm, count):
    op_rr(e, w, 0xC1, digit, rm)
    e1(e, count)


def memory_field(e, reg, base, index, scale, disp):
    """ModRM, SIB and displacement of [base + index<<scale + disp]; index may be 16 for none."""
    r: cython.int = (reg & 7) << 3
    mod: cython.int
    if disp == 0 and (base & 7) != 5:
        mod = 0
    elif -128 <= disp <= 127:
        mod = 0x40
    else:
        mod = 0x80
    if index < 16 or (base & 7) == 4:
        e1(e, mod | r | 4)
        e1(e, scale << 6 | ((index & 7) << 3 if index < 16 else 0x20) | (base & 7))
    else:
        e1(e, mod | r | (base & 7))
    if mod == 0x40:
        e1(e, cython.cast(cython.int, disp & 0xFF))
    elif mod == 0x80:
        e4(e, cython.cast(uint32_t, disp))


def op_mem(e, w, opcode, reg, base, index, disp):
    """op reg, [base + index + disp]; index may be 16 for none. w: 1, 2, 4, 8 bytes (1 only with a REX-safe reg)."""
    if w == 2:
        e1(e, 0x66)
    rex: cython.int = (8 if w == 8 else 0) | (4 if reg & 8 else 0) | (1 if base & 8 else 0)
    if index < 16 and index & 8:
        rex |= 2
    if rex or w == 1:
        e1(e, 0x40 | rex)
    if opcode > 0xFF:
        e1(e, 0x0F)
    e1(e, opcode & 0xFF)
    memory_field(e, reg, base, index, 0, disp)


def mov_rr(e, dst, src):
    op_rr(e, 8, 0x89, src, dst)


def mov_rr32(e, dst, src):
    op_rr(e, 4, 0x89, src, dst)


def mov_ri(e, dst, value):
    sval: int64_t = cython.cast(int64_t, value)
    if value >> 32 == 0:
        if dst & 8:
            e1(e, 0x41)
        e1(e, 0xB8 | (dst & 7))
        e4(e, cython.cast(uint32_t, value))
    elif sval == cython.cast(int32_t, value):
        op_rr(e, 8, 0xC7, 0, dst)
        e4(e, cython.cast(uint32_t, value))
    else:
        e1(e, 0x48 | (1 if dst & 8 else 0))
        e1(e, 0xB8 | (dst & 7))
        e8(e, value)


def mov_site(e, dst, site):
    mov_ri(e, dst, site)
    _note(e, e.p - 4, True)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _note(e: cython.pointer(Code), at: cython.pointer(uint8_t), site: cython.bint) -> cython.void:
    if e.notes != cython.NULL and e.n_notes < MAX_NOTES:
        e.notes[e.n_notes].at = at
        e.notes[e.n_notes].site = site
        e.n_notes += 1


def lea(e, size, dst, base, index, scale, disp):
    """lea dst, [base + index<<scale + disp]; base and index may be 16 for none, disp fits 32 bits signed."""
    if size >= 4 and base < 16 and index >= 16 and disp == 0:  # processors need no time for it
        op_rr(e, size, 0x89, base, dst)
        return
    rex: cython.int = (8 if size == 8 else 0) | (4 if dst & 8 else 0)
    if base < 16 and base & 8:
        rex |= 1
    if index < 16 and index & 8:
        rex |= 2
    if size == 2:
        e1(e, 0x66)
    if rex:
        e1(e, 0x40 | rex)
    e1(e, 0x8D)
    d: cython.int = (dst & 7) << 3
    if base == 16:
        e1(e, d | 4)
        e1(e, scale << 6 | ((index & 7) << 3 if index < 16 else 0x20) | 5)
        e4(e, cython.cast(uint32_t, disp))
        return
    memory_field(e, dst, base, index, scale, disp)


def lea_rip(e, dst, target):
    """lea dst, [rip + ...]: the address of a place in the code."""
    e1(e, 0x48 | (4 if dst & 8 else 0))
    e1(e, 0x8D)
    e1(e, 5 | (dst & 7) << 3)
    e4(e, cython.cast(uint32_t, target - (e.p + 4)))


def jmp_to(e, target):
    fill_hole(jmp_hole(e), target)


def jmp_hole(e):
    e1(e, 0xE9)
    _note(e, e.p, False)
    e.p += 4
    return e.p - 4


def jcc_hole(e, cc):
    e1(e, 0x0F)
    e1(e, 0x80 | cc)
    _note(e, e.p, False)
    e.p += 4
    return e.p - 4


def fill_hole(hole, target):
    rel: int32_t = cython.cast(int32_t, target - (hole + 4))
    memcpy(hole, cython.address(rel), 4)


def align_link(e, opcode_bytes):
    """Pad so that a rel32 after ``opcode_bytes`` does not straddle a cache line: it is patched while others run."""
    last: cython.size_t = (cython.cast(cython.size_t, e.p) + opcode_bytes) & 63
    if last > 60:
        nops(e, cython.cast(cython.int, 64 - last))


def nops(e, count):
    while count >= 4:
        e1(e, 0x0F)
        e1(e, 0x1F)
        e1(e, 0x40)
        e1(e, 0x00)
        count -= 4
    if count == 3:
        e1(e, 0x0F)
        e1(e, 0x1F)
        e1(e, 0x00)
    elif count == 2:
        e1(e, 0x66)
        e1(e, 0x90)
    elif count == 1:
        e1(e, 0x90)


def native(e, insn, info, reg, rm, vvvv, memory, index, disp):
    """The guest's own instruction with its register fields replaced.

    ``reg``, ``rm``, ``vvvv``: host register numbers for the fields that exist. ``memory``: the operand is [rm + index +
    disp]; index may be 16 for none.
    """
    indexed: cython.bint = memory and index < 16 and index & 8
    if insn.prefixes & P_VEX:
        e1(e, 0xC4)
        e1(e, (0 if reg & 8 else 0x80) | (0 if indexed else 0x40) | (0 if rm & 8 else 0x20) | insn.opmap)
        e1(e, (0x80 if insn.rex & 8 else 0) | (~vvvv & 15) << 3 | insn.vex_l << 2 | insn.vex_pp)
    else:
        if insn.prefixes & P_LOCK:
            e1(e, 0xF0)
        if info.flags & O_PREFIX66 or (info.flags & O_LEGACY66 and insn.opsize == 2):
            e1(e, 0x66)
        if info.flags & O_PREFIXF2:
            e1(e, 0xF2)
        elif info.flags & O_PREFIXF3:
            e1(e, 0xF3)
        rex: cython.int = insn.rex & 8
        if insn.has_modrm and reg & 8:
            rex |= 4
        if rm & 8:
            rex |= 1
        if indexed:
            rex |= 2
        if rex or insn.prefixes & P_REX:
            e1(e, 0x40 | rex)
        if insn.opmap:
            e1(e, 0x0F)
            if insn.opmap == 2:
                e1(e, 0x38)
            elif insn.opmap == 3:
                e1(e, 0x3A)
    if insn.has_modrm:
        opcode: uint8_t = insn.opcode
        if insn.opmap == 0 and not insn.prefixes & P_VEX:
            if opcode == 0x82:  # 80's alias in 32-bit code, and undefined in ours
                opcode = 0x80
            elif opcode == 0x63 and insn.opsize == 2:  # MOVSXD of 16 bits is MOV, but reads 32 on AMD's processors
                opcode = 0x8B
        e1(e, opcode)
        if memory:
            memory_field(e, reg, rm, index, 0, disp)
        else:
            e1(e, 0xC0 | (reg & 7) << 3 | (rm & 7))
    elif info.flags & O_OPREG:
        e1(e, (insn.opcode & 0xF8) | (rm & 7))
    else:
        e1(e, insn.opcode)
    i: cython.int
    for i in range(insn.imm_size):
        e1(e, cython.cast(cython.int, insn.imm >> (8 * i) & 0xFF))
