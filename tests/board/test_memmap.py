"""The memory map: slots hold all RAM, the e820 list is sound, nothing overlaps what the board maps."""

import pytest

from hostel.base.errors import BootError
from hostel.board import memmap

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize("size", [16 * MIB, 64 * MIB, 3 * GIB - 4096, 3 * GIB, 3 * GIB + 4096, 4 * GIB, 4 << 40])
def test_all_of_it_is_there_and_nothing_overlaps(size):
    layout = memmap.build(size)
    assert layout.ram_bytes == size and sum(s for _, s in layout.slots) == size
    ends = [(start, start + length) for start, length, _ in layout.e820]
    assert ends == sorted(ends)
    assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:], strict=False))
    usable = sum(length for _, length, kind in layout.e820 if kind == memmap.RAM)
    assert usable == size - (memmap.HIGH_MEMORY - memmap.EBDA)
    for start, length, kind in layout.e820:
        if kind == memmap.RAM:
            assert any(base <= start and start + length <= base + slot for base, slot in layout.slots)
    windows = [layout.pci32, layout.pci64, (memmap.ECAM, memmap.ECAM_SIZE), (memmap.IOAPIC, 4096), (memmap.LAPIC, MIB)]
    every = sorted([*layout.slots, *windows])
    assert all(a[0] + a[1] <= b[0] for a, b in zip(every, every[1:], strict=False))
    assert layout.pci64[0] % layout.pci64[1] == 0


def test_too_little():
    with pytest.raises(BootError, match="at least 16 MiB"):
        memmap.build(8 * MIB)
