"""Where things are in guest-physical memory, and what the guest is told about it.

    0                low RAM, up to 3 GiB
      0x9FC00        EBDA (reserved), then the VGA hole
      0xE0000        ACPI tables, RSDP first (reserved)
      0xFF000        the VM generation ID, in a page of its own, up to 1 MiB (reserved)
    0xC0000000       PCI memory, 32-bit window
    0xE0000000       PCI ECAM
    0xFEC00000       I/O APIC
    0xFEE00000       local APIC
    0x100000000      the rest of RAM, then the 64-bit PCI window

The stretch 0xA0000..0x100000 is backed by RAM like all around it; only the map hides it.
"""

from dataclasses import dataclass

from hostel.base.errors import BootError

PAGE = 4096
EBDA = 0x9FC00
VGA_HOLE = 0xA0000
ACPI_TABLES = 0xE0000
GENERATION_ID = 0xFF000
HIGH_MEMORY = 0x100000
PCI_HOLE = 0xC0000000
ECAM = 0xE0000000
ECAM_BUSES = 1  # one bus is all there is; a guest need not look for more
ECAM_SIZE = ECAM_BUSES << 20
PCI_WINDOW_END = ECAM
IOAPIC = 0xFEC00000
LAPIC = 0xFEE00000
FOUR_GIB = 1 << 32
PCI64_SIZE = 16 << 30
SMALLEST = 16 << 20

RAM, RESERVED, ACPI = 1, 2, 3  # E820 types (ACPI 6.4, 15.1)


@dataclass(frozen=True)
class Layout:
    """Addresses and sizes in bytes; ranges are ``(start, size)``."""

    slots: tuple[tuple[int, int], ...]  # RAM to map
    e820: tuple[tuple[int, int, int], ...]  # (start, size, type)
    low_end: int  # end of RAM below 4 GiB
    pci32: tuple[int, int]
    pci64: tuple[int, int]

    @property
    def ram_bytes(self) -> int:
        """All RAM."""
        return sum(size for _, size in self.slots)


def build(ram_bytes: int) -> Layout:
    """Lay out ``ram_bytes`` (a multiple of 4 KiB, at least 16 MiB); ``BootError`` for less."""
    if ram_bytes < SMALLEST:
        raise BootError(f"{ram_bytes >> 20} MiB of memory are too little: a machine has at least 16 MiB")
    ram_bytes -= ram_bytes % PAGE
    low = min(ram_bytes, PCI_HOLE)
    high = ram_bytes - low
    slots = [(0, low)]
    e820 = [
        (0, EBDA, RAM),
        (EBDA, VGA_HOLE - EBDA, RESERVED),
        (ACPI_TABLES, HIGH_MEMORY - ACPI_TABLES, RESERVED),
        (HIGH_MEMORY, low - HIGH_MEMORY, RAM),
        (ECAM, ECAM_SIZE, RESERVED),
        (IOAPIC, PAGE, RESERVED),
        (LAPIC, PAGE, RESERVED),
    ]
    if high:
        slots.append((FOUR_GIB, high))
        e820.append((FOUR_GIB, high, RAM))
    top = FOUR_GIB + high
    pci64 = (top + PCI64_SIZE - 1) // PCI64_SIZE * PCI64_SIZE
    return Layout(tuple(slots), tuple(e820), low, (PCI_HOLE, PCI_WINDOW_END - PCI_HOLE), (pci64, PCI64_SIZE))
