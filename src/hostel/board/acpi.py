"""The ACPI tables (ACPI 6.4, chapter 5): RSDP, XSDT, FADT, FACS, MADT, MCFG and a DSDT in AML.

They describe the board that board.py wires: legacy PC interrupts with IRQ 0 at pin 2, SCI at 9, one PCI
root whose slots use GSI 16..23, COM ports, CMOS clock, VM generation ID. There is no HPET, no VGA and no keyboard.
"""

import struct
from collections.abc import Sequence

from hostel.board import aml, pm
from hostel.board.memmap import ACPI_TABLES, ECAM, ECAM_BUSES, ECAM_SIZE, GENERATION_ID, IOAPIC, LAPIC, Layout

OEM = b"HOSTEL"
SCI = 9
FIRST_PCI_GSI = 16
PCI_GSIS = 8
RESET_PORT, RESET_VALUE = 0xCF9, 6
RTC_CENTURY = 0x32
GENERATION_EVENT = 5  # a bit of the general-purpose events; the DSDT's _E05
PCI_IO_WINDOW = (0x1000, 0xEFFF)  # (first, last) of what cards get; the legacy ports are below


def pci_gsi(slot: int, pin: int) -> int:
    """The global system interrupt of a slot's pin (1 = INTA)."""
    return FIRST_PCI_GSI + (slot + pin - 1) % PCI_GSIS


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, OEM, OEM + b"PC", 1, b"HSTL", 1
    )
    table = bytearray(header + body)
    table[9] = _checksum(table)
    return bytes(table)


def _gas(port: int, width: int, access: int) -> bytes:
    """A generic address in I/O space (5.2.3.2)."""
    return struct.pack("<BBBBQ", 1, width, 0, access, port)


def _fadt(facs: int, dsdt: int) -> bytes:
    event, control, timer = pm.PM_BASE + pm.EVENT, pm.PM_BASE + pm.CONTROL, pm.PM_BASE + pm.TIMER
    events = pm.PM_BASE + pm.GPE
    none = bytes(12)
    # WBINVD works, C1 on all processors, no sleep button, RTC wake not in fixed registers, 32-bit PM timer,
    # reset register there
    flags = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10
    boot_flags = 1 << 0 | 1 << 2  # devices on the ISA bus; no VGA. Not set: 8042
    body = struct.pack("<IIBBHIBBBB", facs, dsdt, 0, 0, SCI, 0, 0, 0, 0, 0)
    body += struct.pack("<IIIIIIII", event, 0, control, 0, 0, timer, events, 0)
    body += struct.pack("<BBBBBBBB", 4, 2, 0, 4, pm.GPE_SIZE, 0, 0, 0)
    body += struct.pack("<HHHHBBBBB", 0xFFF, 0xFFF, 0, 0, 0, 0, 0, 0, RTC_CENTURY)  # no C2, no C3
    body += struct.pack("<HBI", boot_flags, 0, flags)
    body += _gas(RESET_PORT, 8, 1) + struct.pack("<BHB", RESET_VALUE, 0, 4)  # ARM flags; FADT 6.4
    body += struct.pack("<QQ", facs, dsdt)
    body += _gas(event, 32, 2) + none + _gas(control, 16, 2) + none + none + _gas(timer, 32, 3)
    body += _gas(events, 8 * pm.GPE_SIZE, 1) + none * 3 + bytes(8)  # GPE1, sleep registers, hypervisor vendor
    return _table(b"FACP", 6, body)


def _facs() -> bytes:
    return struct.pack("<4sIIIIIQB", b"FACS", 64, 0, 0, 0, 0, 0, 2).ljust(64, b"\0")


def _madt(apic_ids: Sequence[int], ioapic_id: int, serial: Sequence[tuple[int, int]]) -> bytes:
    body = struct.pack("<II", LAPIC, 1)  # the 8259s are there
    for uid, apic_id in enumerate(apic_ids):
        if apic_id < 255 and uid < 255:
            body += struct.pack("<BBBBI", 0, 8, uid, apic_id, 1)
        else:
            body += struct.pack("<BBHIII", 9, 16, 0, apic_id, 1, uid)
    body += struct.pack("<BBBBII", 1, 12, ioapic_id, 0, IOAPIC, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)  # IRQ 0 is pin 2, as the bus has it
    body += struct.pack("<BBBBIH", 2, 10, 0, SCI, SCI, 0xD)  # SCI: level, active high
    for _, irq in serial:  # so are these: see board.SERIAL_PORTS
        body += struct.pack("<BBBBIH", 2, 10, 0, irq, irq, 0xD)
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI on everyone's LINT1
    if len(apic_ids) > 255:
        body += struct.pack("<BBHIBBBB", 0xA, 12, 0, 0xFFFFFFFF, 1, 0, 0, 0)
    return _table(b"APIC", 5, body)


def _mcfg() -> bytes:
    return _table(b"MCFG", 1, bytes(8) + struct.pack("<QHBBI", ECAM, 0, 0, ECAM_BUSES - 1, 0))


def _dsdt(apic_ids: Sequence[int], serial: Sequence[tuple[int, int]], layout: Layout) -> bytes:
    processors = [
        aml.device(
            f"C{uid:03X}", aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", aml.integer(uid)),
        )
        for uid in range(len(apic_ids))
    ]
    routes = [
        aml.package(
            aml.integer(slot << 16 | 0xFFFF), aml.integer(pin - 1), aml.integer(0), aml.integer(pci_gsi(slot, pin))
        )
        for slot in range(1, 32)
        for pin in (1, 2, 3, 4)
    ]
    first_io, last_io = PCI_IO_WINDOW
    windows = aml.resources(
        aml.bus_range(0, ECAM_BUSES - 1),
        aml.io_ports(0xCF8, 8),
        aml.io_range(first_io, last_io),
        aml.memory_range(layout.pci32[0], sum(layout.pci32) - 1),
        aml.memory_range64(layout.pci64[0], sum(layout.pci64) - 1),
    )
    ports = [
        aml.device(
            f"COM{n + 1}",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(n + 1)),
            aml.name("_CRS", aml.resources(aml.io_ports(port, 8), aml.irq_level(irq))),
        )
        for n, (port, irq) in enumerate(serial)
    ]
    # ECAM must be claimed by the motherboard for Linux to trust it (PCI Firmware 3.0, 4.1.2).
    board = aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name(
            "_CRS",
            aml.resources(aml.memory_fixed(ECAM, ECAM_SIZE), aml.io_ports(pm.PM_BASE, pm.PM_SIZE)),
        ),
    )
    clock = aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resources(aml.io_ports(0x70, 2), aml.irq_edge(8))),
    )
    root = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", windows),
        aml.name("_PRT", aml.package(*routes)),
    )
    # "Virtual Machine Generation ID" (Microsoft, 2018). Its _CID is longer than ACPI allows, hence the second one.
    generation = aml.device(
        "VGEN",
        aml.name("_HID", aml.string("HSTL0001")),
        aml.name("_CID", aml.package(aml.string("VM_Gen_Counter"), aml.string("VMGENCTR"))),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("ADDR", aml.package(aml.integer(GENERATION_ID & 0xFFFFFFFF), aml.integer(GENERATION_ID >> 32))),
    )
    changed = aml.method(f"_E{GENERATION_EVENT:02X}", aml.notify("\\_SB.VGEN", 0x80))
    sleep = aml.package(aml.integer(pm.SLP_TYP_S5), aml.integer(0), aml.integer(0), aml.integer(0))
    return _table(
        b"DSDT",
        2,
        aml.scope("\\_SB", *processors, root, board, *ports, clock, generation)
        + aml.scope("\\_GPE", changed)
        + aml.name("\\_S5", sleep),
    )


def build(
    layout: Layout, apic_ids: Sequence[int], ioapic_id: int = 0, serial: Sequence[tuple[int, int]] = ()
) -> tuple[int, bytes]:
    """``(address, image)`` of all tables, to be stored there; the RSDP is at the address itself.

    ``serial``: ``(port, irq)`` of COM1, COM2 ...
    """
    at = ACPI_TABLES + 64
    image = bytearray(64)

    def put(table: bytes) -> int:
        nonlocal at
        address = at
        image.extend(table)
        image.extend(bytes(-len(image) % 64))  # FACS wants 64-byte alignment
        at = ACPI_TABLES + len(image)
        return address

    facs = put(_facs())
    dsdt = put(_dsdt(apic_ids, serial, layout))
    tables = [put(_fadt(facs, dsdt)), put(_madt(apic_ids, ioapic_id, serial)), put(_mcfg())]
    xsdt = put(_table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    if at > GENERATION_ID:
        raise ValueError("the ACPI tables don't fit below 1 MiB")
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM, 2, 0, 36, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    image[:36] = rsdp
    return ACPI_TABLES, bytes(image)
