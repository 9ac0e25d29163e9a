"""Register and memory operands of the instructions that the monitor runs itself."""

import cython
from cython.cimports.hostel.cpu.bt.insn import REG_NONE, REG_RIP
from cython.cimports.hostel.cpu.bt.mmu import read_segment, write_segment
from cython.cimports.hostel.cpu.bt.x86 import M32
from cython.cimports.libc.stdint import uint64_t


def address_mask(size):
    if size == 8:
        return cython.cast(uint64_t, -1)
    return M32 if size == 4 else 0xFFFF


def effective_address(c, insn):
    ea: uint64_t = cython.cast(uint64_t, insn.disp)
    if insn.base == REG_RIP:
        ea += insn.pc + insn.length
    elif insn.base != REG_NONE:
        ea += c.r[insn.base]
    if insn.index != REG_NONE:
        ea += c.r[insn.index] << insn.scale
    return ea & address_mask(insn.addrsize)


def set_register(c, n, value, size):
    if size == 8:
        c.r[n] = value
    elif size == 4:
        c.r[n] = value & M32
    else:
        c.r[n] = (c.r[n] & ~0xFFFF) | (value & 0xFFFF)


def read_operand(c, insn, buffer, size):
    return read_segment(c, insn.seg, effective_address(c, insn), buffer, size)


def write_operand(c, insn, buffer, size):
    return write_segment(c, insn.seg, effective_address(c, insn), buffer, size)


def read_rm(c, insn, size, value):
    if insn.mod == 3:
        value[0] = c.r[insn.rm] & address_mask(size)
        return 0
    value[0] = 0
    return read_operand(c, insn, value, size)


def write_rm(c, insn, size, value):
    if insn.mod == 3:
        set_register(c, insn.rm, value, size)
        return 0
    return write_operand(c, insn, cython.address(value), size)
