"""Configuration space by both ways, BAR sizing and moving, capabilities, interrupts, hostile guests."""

import pytest

from hostel.base.errors import BusError
from hostel.board.apic import ApicBus
from hostel.board.ioapic import IoApic
from hostel.board.pci import ConfigPorts, Ecam, PciBus, PciFunction
from hostel.bus.irq import IrqLine
from hostel.bus.space import PyRegion, Space

ECAM = 0xE0000000


class Registers(PyRegion):
    def __init__(self):
        super().__init__("card")
        self.log = []

    def read_py(self, offset, size):
        return 0x11223344 + offset

    def write_py(self, offset, size, value):
        self.log.append((offset, size, value))


class Machine:
    def __init__(self):
        self.pio, self.mmio, self.resets = Space("pio"), Space("mmio"), 0
        self.io = IoApic(ApicBus())
        self.pci = PciBus(self.pio, self.mmio, lambda slot, pin: (IrqLine((self.io, 16 + pin)), 16 + pin))
        self.pio.map(0xCF8, 8, ConfigPorts(self.pci, self.reset))
        self.mmio.map(ECAM, 1 << 20, Ecam(self.pci))
        self.regs, self.ports = Registers(), Registers()
        self.card = PciFunction(0x1AF4, 0x1042, class_code=0x018000, revision=1, subsystem=(0x1AF4, 2))
        self.card.add_bar(0, 0x1000, self.regs, self.mmio)
        self.card.add_bar(1, 0x20, self.ports, self.pio, is_io=True)
        self.card.add_bar(4, 0x4000, Registers(), self.mmio, is_64bit=True, prefetchable=True)
        self.card.use_pin(1)
        self.slot = self.pci.attach(self.card)

    def reset(self):
        self.resets += 1

    def rd(self, offset, size=4, slot=None):
        """Through mechanism #1, compared with ECAM."""
        devfn = (self.slot if slot is None else slot) << 3
        self.pio.write_from_python(0xCF8, 4, 0x80000000 | devfn << 8 | offset & 0xFC)
        value = self.pio.read_from_python(0xCFC + (offset & 3), size)
        assert value == self.mmio.read_from_python(ECAM + (devfn << 12) + offset, size)
        return value

    def wr(self, offset, value, size=4, ecam=True):
        devfn = self.slot << 3
        if ecam:
            self.mmio.write_from_python(ECAM + (devfn << 12) + offset, size, value)
        else:
            self.pio.write_from_python(0xCF8, 4, 0x80000000 | devfn << 8 | offset & 0xFC)
            self.pio.write_from_python(0xCFC + (offset & 3), size, value)


def test_host_bridge_in_slot_0_and_nobody_elsewhere():
    m = Machine()
    assert m.rd(8, slot=0) >> 8 == 0x060000
    assert m.rd(0, slot=0) != 0xFFFFFFFF
    assert m.rd(0, slot=7) == 0xFFFFFFFF and m.rd(0, 2, slot=31) == 0xFFFF
    assert m.slot == 1


def test_identity():
    m = Machine()
    assert m.rd(0) == 0x10421AF4
    assert m.rd(8) == 0x01800001
    assert m.rd(0x2C) == 0x00021AF4
    assert m.rd(0x0E, 1) == 0
    assert m.rd(0x3C, 2) == 0x0111
    m.wr(0, 0xDEADBEEF)
    assert m.rd(0) == 0x10421AF4  # read only


def test_mechanism_1_corner_cases():
    m = Machine()
    m.pio.write_from_python(0xCF8, 4, 0xFFFFFFFF)
    assert m.pio.read_from_python(0xCF8, 4) == 0x80FFFFFC
    assert m.pio.read_from_python(0xCFC, 4) == 0xFFFFFFFF  # bus 255
    m.pio.write_from_python(0xCF8, 4, 0)
    assert m.pio.read_from_python(0xCFC, 4) == 0xFFFFFFFF  # not enabled
    m.pio.write_from_python(0xCF8, 1, 0x55)  # only 32-bit writes latch
    assert m.pio.read_from_python(0xCF8, 4) == 0


def test_linux_probe_of_mechanism_1():
    # arch/x86/pci/direct.c, pci_check_type1
    m = Machine()
    m.pio.write_from_python(0xCFB, 1, 1)
    m.pio.write_from_python(0xCF8, 4, 0x80000000)
    assert m.pio.read_from_python(0xCF8, 4) == 0x80000000
    assert m.resets == 0


def test_reset_register():
    m = Machine()
    m.pio.write_from_python(0xCF9, 1, 2)
    assert m.resets == 0 and m.pio.read_from_python(0xCF9, 1) == 2
    m.pio.write_from_python(0xCF9, 1, 6)
    assert m.resets == 1


@pytest.mark.parametrize("ecam", [False, True])
def test_bar_sizing(ecam):
    m = Machine()
    for at, ones, size in ((0x10, 0xFFFFF000, 0x1000), (0x14, 0xFFFFFFE1, 0x20)):
        before = m.rd(at)
        m.wr(at, 0xFFFFFFFF, ecam=ecam)
        assert m.rd(at) == ones and -(ones & ~0xF) & 0xFFFFFFFF in (size, size)
        m.wr(at, before, ecam=ecam)
    m.wr(0x20, 0xFFFFFFFF)
    m.wr(0x24, 0xFFFFFFFF)
    assert (m.rd(0x20), m.rd(0x24)) == (0xFFFFC00C, 0xFFFFFFFF)
    m.wr(0x18, 0xFFFFFFFF)
    assert m.rd(0x18) == 0  # no such BAR


def test_bars_answer_where_they_are_and_only_while_enabled():
    m = Machine()
    m.wr(0x10, 0xC0001000)
    assert m.mmio.read_from_python(0xC0001000, 4) == 0xFFFFFFFF
    m.wr(4, 2, 2)
    assert m.mmio.read_from_python(0xC0001004, 4) == 0x11223348
    m.wr(0x10, 0xC0008000)
    assert m.mmio.read_from_python(0xC0001004, 4) == 0xFFFFFFFF
    m.mmio.write_from_python(0xC0008010, 4, 7)
    assert m.regs.log == [(0x10, 4, 7)]
    m.wr(0x14, 0xC000)
    m.wr(4, 1, 2)
    assert m.mmio.read_from_python(0xC0008004, 4) == 0xFFFFFFFF
    assert m.pio.read_from_python(0xC002, 2) == 0x3346


def test_64_bit_bar_above_4_gib():
    m = Machine()
    m.wr(4, 2, 2)
    m.wr(0x24, 0x4)
    m.wr(0x20, 0x8000)
    assert m.mmio.read_from_python(0x400008000, 4) == 0x11223344
    assert m.card.bar_address(4) == 0x400008000


def test_a_bar_on_top_of_another_device_decodes_nothing():
    m = Machine()
    m.wr(4, 2, 2)
    m.wr(0x10, ECAM)
    assert m.card.misplaced == 1
    assert m.rd(0) == 0x10421AF4
    m.wr(0x10, 0xC0001000)
    assert m.mmio.read_from_python(0xC0001000, 4) == 0x11223344


def test_firmware_assigns_aligned_bars():
    m = Machine()
    second = PciFunction(0x1AF4, 0x1041, class_code=0x020000)
    second.add_bar(0, 0x10000, Registers(), m.mmio)
    m.pci.attach(second)
    m.pci.assign((0x1000, 0xE000), (0xC0000000, 1 << 29), (1 << 34, 1 << 34))
    addresses = {second.bar_address(0), m.card.bar_address(0)}
    assert addresses == {0xC0000000, 0xC0010000}
    assert m.card.bar_address(1) == 0x1000 and m.card.bar_address(4) == 1 << 34
    with pytest.raises(BusError):
        m.pci.assign((0x1000, 0x10), (0xC0000000, 1 << 29), (1 << 34, 1 << 34))


def test_capabilities_are_linked():
    m = Machine()
    assert not m.rd(6, 2) & 0x10
    first = m.card.add_capability(0x11, bytes(10), b"\x00\xc0")
    second = m.card.add_capability(0x09, b"\x10\x01\x02")
    assert m.rd(6, 2) & 0x10 and m.rd(0x34, 1) == first == 0x40
    assert m.rd(first, 2) == 0x11 | second << 8
    assert m.rd(second, 4) == 0x01100009
    m.wr(first + 2, 0xFFFF, 2)
    assert m.rd(first + 2, 2) == 0xC000
    with pytest.raises(ValueError):
        m.card.add_capability(9, bytes(255))


def test_interrupt_pin_and_disable_bit():
    m = Machine()
    m.card.set_intx(1)
    assert m.card.irq.level == 1 and m.rd(6, 2) & 8
    m.wr(4, 0x400, 2)
    assert m.card.irq.level == 0 and m.rd(6, 2) & 8
    m.wr(4, 0, 2)
    assert m.card.irq.level == 1
    m.card.set_intx(0)
    assert m.card.irq.level == 0


def test_slots():
    m = Machine()
    with pytest.raises(BusError):
        m.pci.attach(PciFunction(1, 1, 0), 1)
    for _ in range(30):
        m.pci.attach(PciFunction(1, 1, 0))
    with pytest.raises(BusError):
        m.pci.attach(PciFunction(1, 1, 0))


def test_every_access_is_survived():
    m = Machine()
    for offset in (0, 1, 2, 3, 0x10, 0x13, 0x3D, 0xFC, 0xFF, 0xFFC, 0xFFF):
        for size in (1, 2, 4, 8):
            m.mmio.write_from_python(ECAM + (1 << 15) + offset, size, 0xA5A5A5A5A5A5A5A5)
            m.mmio.read_from_python(ECAM + (1 << 15) + offset, size)
            m.pio.write_from_python(0xCF8 + offset % 8, size, 0xA5A5A5A5)
            m.pio.read_from_python(0xCF8 + offset % 8, size)
    assert m.rd(0) == 0x10421AF4


def test_written_hook():
    m, seen = Machine(), []
    m.card.written = lambda offset, size: seen.append((offset, size))
    m.wr(0x40, 1, 2)
    assert seen == [(0x40, 2)]


def test_save_and_load_maps_bars():
    m = Machine()
    m.wr(0x10, 0xC0001000)
    m.wr(4, 6, 2)
    assert m.card.is_bus_master
    other = Machine()
    other.pci.load(m.pci.save())
    assert other.mmio.read_from_python(0xC0001000, 4) == 0x11223344
    with pytest.raises(ValueError):
        other.pci.load(m.pci.save() | {"functions": {}})
