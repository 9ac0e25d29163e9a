"""MOVS, CMPS, STOS, LODS and SCAS by hand: where they can't run inline (inline.py), and what repeats over pages."""

import cython
from cython.cimports.hostel.cpu.bt.insn import DS, ES, FS, P_REP, P_REPNE
from cython.cimports.hostel.cpu.bt.mmu import current_table, lookup
from cython.cimports.hostel.cpu.bt.piecewise import read_pieces, write_pieces
from cython.cimports.hostel.cpu.bt.vcpu import ACCESS_READ, ACCESS_WRITE, FL_ARITH, FL_DF, MODE_CODE64, MODE_TF
from cython.cimports.libc.stdint import int64_t, uint8_t, uint64_t
from cython.cimports.libc.string import memcpy, memmove, memset


def mask_of(size):
    if size == 8:
        return cython.cast(uint64_t, -1)
    return (cython.cast(uint64_t, 1) << (8 * size)) - 1


def set_reg(c, r, size, value):
    """Write the low `size` bytes as an instruction would: 4 zero-extends, 1 and 2 keep the rest."""
    if size >= 4:
        c.r[r] = value & mask_of(size)
    else:
        c.r[r] = (c.r[r] & ~mask_of(size)) | (value & mask_of(size))


def compare(c, a, b, size):
    """EFLAGS of CMP a, b."""
    mask: uint64_t = mask_of(size)
    a &= mask
    b &= mask
    d: uint64_t = (a - b) & mask
    top: uint64_t = (mask >> 1) + 1
    f: uint64_t = 0
    p: uint64_t = d & 0xFF
    p ^= p >> 4
    p ^= p >> 2
    p ^= p >> 1
    if a < b:
        f |= 1
    if not p & 1:
        f |= 4
    if (a ^ b ^ d) & 0x10:
        f |= 0x10
    if d == 0:
        f |= 0x40
    if d & top:
        f |= 0x80
    if (a ^ b) & (a ^ d) & top:
        f |= 0x800
    c.eflags = (c.eflags & ~cython.cast(uint64_t, FL_ARITH)) | f


def run_string(c, insn):
    """Run it, or as much of it as goes before an interrupt, a fault or a device; registers say how far it came.

    STRING_DONE, STRING_MORE (interrupted between elements), STRING_ASK (c.io asks a device) or STRING_FAULT.
    """
    size: cython.int = insn.opsize if insn.opcode & 1 else 1
    which: cython.int = insn.opcode & 0xFE
    wide: cython.int = insn.addrsize
    mask: uint64_t = mask_of(wide)
    linear_mask: uint64_t = mask_of(8 if c.mode & MODE_CODE64 else 4)
    step: int64_t = -size if c.eflags & FL_DF else size
    rep: cython.bint = (insn.prefixes & (P_REP | P_REPNE)) != 0
    tlb: cython.int = current_table(c)
    base_s: uint64_t = c.seg[insn.seg].base if insn.seg >= FS or not c.mode & MODE_CODE64 else 0
    base_d: uint64_t = 0 if c.mode & MODE_CODE64 else c.seg[ES].base
    src: uint64_t
    dst: uint64_t
    count: uint64_t
    n: uint64_t
    a: uint64_t
    b: uint64_t
    i: uint64_t
    hs: cython.pointer(uint8_t) = cython.NULL
    hd: cython.pointer(uint8_t) = cython.NULL
    gpa: uint64_t = 0
    flags: uint64_t = c.eflags & FL_ARITH
    r: cython.int = 0
    trap: cython.bint = (c.mode & MODE_TF) != 0  # after every element
    c.mmio_next = 0
    c.access_seg = DS
    while True:
        if rep and c.r[1] & mask == 0:
            break
        src = (base_s + (c.r[6] & mask)) & linear_mask
        dst = (base_d + (c.r[7] & mask)) & linear_mask
        if rep and step > 0 and (which == 0xA4 or which == 0xAA) and c.mmio_answers == 0 and not trap:
            # as many elements as lie in one page on either side
            n = (4096 - (dst & 0xFFF)) // size
            if which == 0xA4 and (4096 - (src & 0xFFF)) // size < n:
                n = (4096 - (src & 0xFFF)) // size
            count = c.r[1] & mask
            if n > count:
                n = count
            if wide != 8 and ((c.r[6] & mask) + n * size > mask or (c.r[7] & mask) + n * size > mask):
                n = 0
            if n > 1:
                if which == 0xA4:
                    if lookup(c, src, ACCESS_READ, tlb, cython.address(hs), cython.address(gpa)):
                        r = -1
                        break
                if lookup(c, dst, ACCESS_WRITE, tlb, cython.address(hd), cython.address(gpa)):
                    r = -1
                    break
                if hd != cython.NULL and (hs != cython.NULL or which == 0xAA):
                    if which == 0xAA:
                        if size == 1:
                            memset(hd, cython.cast(cython.int, c.r[0] & 0xFF), n)
                        else:
                            for i in range(n):
                                memcpy(hd + i * size, cython.address(c.r[0]), size)
                    elif hd > hs and hd < hs + n * size:
                        # overlapping upwards: what was stored is read again
                        for i in range(n):
                            a = 0
                            memcpy(cython.address(a), hs + i * size, size)
                            memcpy(hd + i * size, cython.address(a), size)
                    else:
                        memmove(hd, hs, n * size)
                    if which == 0xA4:
                        set_reg(c, 6, wide, c.r[6] + n * size)
                    set_reg(c, 7, wide, c.r[7] + n * size)
                    set_reg(c, 1, wide, c.r[1] - n)
                    if c.poll == 0:
                        break
                    continue
        a = 0
        b = 0
        if which == 0xA4 or which == 0xA6 or which == 0xAC:
            r = read_pieces(c, src, cython.cast(cython.pointer(uint8_t), cython.address(a)), size, tlb)
            if r:
                break
        if which == 0xA6 or which == 0xAE:
            r = read_pieces(c, dst, cython.cast(cython.pointer(uint8_t), cython.address(b)), size, tlb)
            if r:
                break
        if which == 0xAA:
            a = c.r[0]
        if which == 0xA4 or which == 0xAA:
            r = write_pieces(c, dst, cython.cast(cython.pointer(uint8_t), cython.address(a)), size, tlb)
            if r:
                break
        c.mmio_answers = 0
        c.mmio_next = 0
        if which == 0xAC:
            set_reg(c, 0, size, a)
        if which != 0xAA and which != 0xAE:
            set_reg(c, 6, wide, c.r[6] + step)
        if which != 0xAC:
            set_reg(c, 7, wide, c.r[7] + step)
        if rep:
            set_reg(c, 1, wide, c.r[1] - 1)
        if which == 0xA6:
            compare(c, a, b, size)
        elif which == 0xAE:
            compare(c, c.r[0], b, size)
        if not rep:
            break
        if (which == 0xA6 or which == 0xAE) and ((c.eflags >> 6 & 1) == (1 if insn.prefixes & P_REPNE else 0)):
            rep = False  # the condition ends it
            break
        if c.mmio_pending_count or c.poll == 0 or trap:
            break
    if r == 0 and not (rep and c.r[1] & mask):
        return STRING_DONE
    # SDM, REP: what interrupts CMPS or SCAS between elements sees the flags from before the instruction
    c.eflags = (c.eflags & ~cython.cast(uint64_t, FL_ARITH)) | flags
    return STRING_FAULT if r < 0 else STRING_ASK if r > 0 else STRING_MORE
