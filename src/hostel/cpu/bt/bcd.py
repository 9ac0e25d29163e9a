"""Decimal arithmetic of 16- and 32-bit code (SDM vol. 2). Flags that the manual leaves undefined are cleared."""

import cython
from cython.cimports.hostel.cpu.bt.insn import S_AAA, S_AAD, S_AAM, S_AAS, S_DAA, S_SALC
from cython.cimports.hostel.cpu.bt.mmu import raise_exception
from cython.cimports.hostel.cpu.bt.vcpu import FL_AF, FL_ARITH, FL_CF, FL_PF, FL_SF, FL_ZF, X_DE, VCpu
from cython.cimports.libc.stdint import uint64_t


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _result(c: cython.pointer(VCpu), al: cython.int, flags: cython.int) -> cython.void:
    """Store al, and flags with SF, ZF and PF of it."""
    parity: cython.int = al & 0xFF
    parity ^= parity >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    if not al & 0xFF:
        flags |= FL_ZF
    if al & 0x80:
        flags |= FL_SF
    if not parity & 1:
        flags |= FL_PF
    c.r[0] = (c.r[0] & ~0xFF) | (al & 0xFF)
    c.eflags = (c.eflags & ~FL_ARITH) | flags


def bcd(c, what, base):
    al: cython.int = cython.cast(cython.int, c.r[0] & 0xFF)
    ah: cython.int = cython.cast(cython.int, (c.r[0] >> 8) & 0xFF)
    cf: cython.bint = (c.eflags & FL_CF) != 0
    adjust: cython.bint = (al & 15) > 9 or (c.eflags & FL_AF) != 0
    high: cython.bint = al > 0x99 or cf
    flags: cython.int = 0
    ax: cython.int
    if what == S_SALC:
        c.r[0] = (c.r[0] & ~0xFF) | (0xFF if cf else 0)
        return 0
    if what == S_AAM or what == S_AAD:
        if what == S_AAM:
            if not base:
                raise_exception(c, X_DE)
                return -1
            ah = al // base
            al = al % base
        else:
            al = (al + ah * base) & 0xFF
            ah = 0
        c.r[0] = (c.r[0] & ~0xFF00) | cython.cast(uint64_t, ah) << 8
        _result(c, al, 0)
        return 0
    if what == S_AAA or what == S_AAS:
        ax = ah << 8 | al
        if adjust:
            ax = ax + 0x106 if what == S_AAA else ax - 0x106
            flags = FL_AF | FL_CF
        c.r[0] = (c.r[0] & ~0xFFFF) | (ax & 0xFF00)
        _result(c, ax & 15, flags)
        return 0
    if what == S_DAA:
        if adjust:
            flags |= FL_AF
            al += 6
        if high:
            flags |= FL_CF
            al += 0x60
    else:
        if adjust:
            flags |= FL_AF
            if al < 6 or cf:
                flags |= FL_CF
            al -= 6
        if high:
            flags |= FL_CF
            al -= 0x60
    _result(c, al, flags)
    return 0
