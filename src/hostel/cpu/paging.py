"""Virtual to physical addresses by the guest's page tables, for those who only look: no faults, no accessed bits.

The engines have walkers of their own, which do what a processor does; this one is for debuggers (SDM vol. 3, 4).
"""

from collections.abc import Callable

from hostel.cpu.state import VcpuState

PAGE = 4096
_ADDRESS = 0xF_FFFF_FFFF_F000


def translate(state: VcpuState, va: int, read: Callable[[int, int], bytes]) -> int | None:
    """The physical address of ``va`` in the address space of ``state``; None where nothing is mapped.

    ``read(gpa, size)`` reads guest-physical memory; what it raises comes through.
    """
    if not state.cr0 >> 31:
        return va & 0xFFFF_FFFF
    long_mode = bool(state.efer & 0x400)
    if not state.cr4 & 0x20:
        return _translate32(state, va & 0xFFFF_FFFF, read)
    if long_mode:
        if va >> 47 not in (0, 0x1FFFF):
            return None
        table, shift = state.cr3 & _ADDRESS, 39
    else:
        va &= 0xFFFF_FFFF
        entry = state.pdptes[va >> 30]
        if not entry & 1:
            return None
        table, shift = entry & _ADDRESS, 21
    while True:
        entry = int.from_bytes(read(table + (va >> shift & 511) * 8, 8), "little")
        if not entry & 1:
            return None
        if shift == 12 or (entry & 0x80 and shift < 39):
            mask = (1 << shift) - 1
            return entry & _ADDRESS & ~mask | va & mask
        table, shift = entry & _ADDRESS, shift - 9


def _translate32(state: VcpuState, va: int, read: Callable[[int, int], bytes]) -> int | None:
    entry = int.from_bytes(read((state.cr3 & 0xFFFFF000) + (va >> 22) * 4, 4), "little")
    if not entry & 1:
        return None
    if entry & 0x80 and state.cr4 & 0x10:
        return (entry & 0xFFC00000) | (entry & 0x1FE000) << 19 | va & 0x3FFFFF
    entry = int.from_bytes(read((entry & 0xFFFFF000) + (va >> 12 & 1023) * 4, 4), "little")
    return entry & 0xFFFFF000 | va & 0xFFF if entry & 1 else None
