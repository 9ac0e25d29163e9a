"""Accesses that go piece by piece: across pages, to devices, to pages with translations.

What a device must be asked comes back as an exit of its own; the instruction then starts again and finds the answers so
far in ``mmio_answer``. Writes to devices are queued in ``mmio_pending`` until the instruction is done.
"""

import cython
from cython.cimports.hostel.cpu.bt.mmu import code_written, find_slot, lookup, raise_segment
from cython.cimports.hostel.cpu.bt.vcpu import ACCESS_READ, ACCESS_WRITE, MODE_LONG
from cython.cimports.hostel.cpu.bt.x86 import canonical
from cython.cimports.hostel.cpu.engine import EXIT_MMIO
from cython.cimports.hostel.memory.ram import Slot
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset


def device_read(c, gpa, to, size):
    """Bytes of a device through the answers that this instruction has had so far; 1: c.io asks for the next."""
    n: cython.int
    while size > 0:
        n = 8 - cython.cast(cython.int, gpa & 7)
        if n > size:
            n = size
        if n != 8 and n & (n - 1):
            n = 4 if n > 4 else 2 if n > 2 else 1
        if c.mmio_next >= c.mmio_answers:
            c.io.reason = EXIT_MMIO
            c.io.address = gpa
            c.io.size = n
            c.io.is_write = False
            c.io.data = 0
            return 1
        memcpy(to, cython.address(c.mmio_answer[c.mmio_next]), n)
        c.mmio_next += 1
        gpa += n
        to += n
        size -= n
    return 0


def device_write(c, gpa, source, size):
    n: cython.int
    k: cython.int
    while size > 0 and c.mmio_pending_count < 8:
        n = 8 - cython.cast(cython.int, gpa & 7)
        if n > size:
            n = size
        if n != 8 and n & (n - 1):
            n = 4 if n > 4 else 2 if n > 2 else 1
        k = c.mmio_pending_count
        c.mmio_pending[2 * k] = gpa
        c.mmio_pending[2 * k + 1] = 0
        memcpy(cython.address(c.mmio_pending[2 * k + 1]), source, n)
        c.mmio_pending_size[k] = cython.cast(uint8_t, n)
        c.mmio_pending_count = k + 1
        gpa += n
        source += n
        size -= n


def read_pieces(c, va, to, size, tlb):
    """Linear memory to a buffer, page by page, devices included: 0, -1 (fault) or 1 (c.io asks a device)."""
    host: cython.pointer(uint8_t) = cython.NULL
    gpa: uint64_t = 0
    n: cython.int
    if c.mode & MODE_LONG and not canonical(va + size - 1):
        return raise_segment(c, c.access_seg)
    while size > 0:
        n = 4096 - cython.cast(cython.int, va & 0xFFF)
        if n > size:
            n = size
        if lookup(c, va, ACCESS_READ, tlb, cython.address(host), cython.address(gpa)):
            return -1
        if host != cython.NULL:
            memcpy(to, host, n)
        elif device_read(c, gpa, to, n):
            return 1
        va += n
        if not c.mode & MODE_LONG:
            va = cython.cast(uint32_t, va)
        to += n
        size -= n
    return 0


def writable(c, va, size, tlb):
    """0 when all bytes may be written, else -1 with the fault pending."""
    host: cython.pointer(uint8_t) = cython.NULL
    gpa: uint64_t = 0
    last: uint64_t = va + size - 1
    if not c.mode & MODE_LONG:
        last = cython.cast(uint32_t, last)
    elif not canonical(last):
        return raise_segment(c, c.access_seg)
    if lookup(c, va, ACCESS_WRITE, tlb, cython.address(host), cython.address(gpa)):
        return -1
    if (va ^ last) >> 12:
        last &= ~cython.cast(uint64_t, 0xFFF)
        return lookup(c, last, ACCESS_WRITE, tlb, cython.address(host), cython.address(gpa))
    return 0


def write_pieces(c, va, source, size, tlb):
    """A buffer to linear memory; what goes to devices is queued. 0, or -1 before anything was stored."""
    host: cython.pointer(uint8_t) = cython.NULL
    gpa: uint64_t = 0
    n: cython.int
    slot: cython.pointer(Slot)
    if writable(c, va, size, tlb):
        return -1
    while size > 0:
        n = 4096 - cython.cast(cython.int, va & 0xFFF)
        if n > size:
            n = size
        lookup(c, va, ACCESS_WRITE, tlb, cython.address(host), cython.address(gpa))
        if host != cython.NULL:
            memcpy(host, source, n)
        else:
            slot = find_slot(c, gpa)
            if slot == cython.NULL:
                device_write(c, gpa, source, n)
            elif not slot.readonly:
                slot.dirty[(gpa - slot.gpa) >> 12] = 1
                memcpy(slot.host + (gpa - slot.gpa), source, n)
                code_written(c, slot, gpa, n)
        va += n
        if not c.mode & MODE_LONG:
            va = cython.cast(uint32_t, va)
        source += n
        size -= n
    return 0


def peek(c, va, to, size, tlb):
    """What lies where a write may go (``writable``); zeros for devices."""
    host: cython.pointer(uint8_t) = cython.NULL
    gpa: uint64_t = 0
    n: cython.int
    slot: cython.pointer(Slot)
    while size > 0:
        n = 4096 - cython.cast(cython.int, va & 0xFFF)
        if n > size:
            n = size
        lookup(c, va, ACCESS_WRITE, tlb, cython.address(host), cython.address(gpa))
        slot = find_slot(c, gpa) if host == cython.NULL else cython.NULL
        if slot != cython.NULL:
            host = slot.host + (gpa - slot.gpa)
        if host != cython.NULL:
            memcpy(to, host, n)
        else:
            memset(to, 0, n)
        va += n
        if not c.mode & MODE_LONG:
            va = cython.cast(uint32_t, va)
        to += n
        size -= n


def stage(c, va):
    """Where in c.stage an operand at va lies: as far from a multiple of 64 as there."""
    at: cython.size_t = cython.cast(cython.size_t, cython.address(c.stage[0]))
    return cython.cast(cython.pointer(uint8_t), (at + 63) // 64 * 64 + (va & 63))
