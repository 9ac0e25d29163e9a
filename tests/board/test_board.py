"""The board as a whole: wiring, ports, tables in memory, saved state."""

import random
import struct

import pytest

from hostel.board import memmap
from hostel.board.board import Board
from hostel.board.pci import PciFunction
from hostel.bus.space import Region, Space
from hostel.cpu.engine import Vcpu
from hostel.devices.uart import Uart
from hostel.memory.ram import Ram

MIB = 1 << 20


class Machine:
    def __init__(self, size=64 * MIB, cpus=2):
        self.layout, self.ram = memmap.build(size), Ram()
        for base, length in self.layout.slots:
            self.ram.add(base, length)
        self.pio, self.mmio = Space("pio"), Space("mmio")
        self.events, self.timers = [], []
        self.vcpus = [Vcpu() for _ in range(cpus)]
        self.board = Board(
            self.ram, self.layout, self.pio, self.mmio, self.vcpus,
            lambda deadline, callback: self.timers.append((deadline, callback)),
            lambda: self.events.append("off"), lambda: self.events.append("reset"),
        )  # fmt: skip
        self.uart = Uart(self.board.serial_irq(0))
        self.board.attach_serial(0, self.uart)

    def out(self, port, value, size=1):
        self.pio.write_from_python(port, size, value)

    def inb(self, port):
        return self.pio.read_from_python(port, 1)


def test_every_way_out():
    m = Machine()
    for port, value, size in ((0x604, 0x3400, 2), (0xCF9, 6, 1), (0x64, 0xFE, 1), (0x92, 1, 1)):
        m.out(port, value, size)
    assert m.events == ["off", "reset", "reset", "reset"]


def test_serial_interrupt_reaches_both_controllers():
    m = Machine()
    apic = m.board.apics[0]
    m.board.ioapic.register(0x10 + 8, 0x34)
    m.out(0x3FC, 8)
    m.out(0x3F9, 2)
    assert apic.pending_py() >= 0 and m.board.pic.intr()
    apic.write(0x350, 0x10700)  # LINT0 masked: only the I/O APIC's message is left
    assert apic.acknowledge_py() == 0x34


def test_a_serial_interrupt_that_its_handler_leaves_raised_comes_again():
    """Linux gives up after so many passes (board.SERIAL_PORTS); the pin is set up as the MADT tells an OS to."""
    m = Machine()
    m.board.write_tables()
    low = m.ram.read(0xE0000, 0x20000)
    at = low.index(b"APIC")
    override = low.find(struct.pack("<BBBBI", 2, 10, 0, 4, 4), at)  # ACPI 6.4, 5.2.12.5
    level = override >= 0 and low[override + 8] & 0xC == 0xC
    m.board.ioapic.register(0x10 + 8, 0x34 | (0x8000 if level else 0))
    apic = m.board.apics[0]
    m.out(0x3FC, 8)
    m.out(0x3F9, 2)
    assert m.board.pic.intr() and m.inb(0x4D0) & 0x10
    apic.write(0x350, 0x10700)
    for _ in range(3):
        assert apic.acknowledge_py() == 0x34
        apic.write(0xB0, 0)
    assert m.inb(0x3FA) & 0xF == 2  # the handler looks, and the line falls
    assert apic.acknowledge_py() == 0x34
    apic.write(0xB0, 0)
    assert apic.pending_py() < 0


def test_timer_is_at_pin_2_and_irq_0():
    m = Machine()
    m.board.ioapic.register(0x10 + 4, 0x30)
    m.out(0x43, 0x30)
    m.out(0x40, 1)
    m.out(0x40, 0)
    while m.timers:
        deadline, callback = m.timers.pop()
        m.board.pit.freeze(deadline)
        callback()
    assert m.board.pic.intr()
    m.board.apics[0].write(0x350, 0x10700)
    assert m.board.apics[0].pending_py() == 0x30


def test_msi_by_a_write_to_memory():
    m = Machine()
    m.board.apics[1].write(0xF0, 0x1FF)
    m.mmio.write_from_python(0xFEE00000 | 1 << 12, 4, 0x55)
    assert m.board.apics[1].pending_py() == 0x55


def test_tables_are_found_by_scanning_and_name_what_is_plugged_in():
    m = Machine()
    assert m.board.write_tables() == 0xE0000
    low = m.ram.read(0xE0000, 0x20000)
    found = [i for i in range(0, len(low), 16) if low[i : i + 8] == b"RSD PTR "]
    assert found == [0]
    assert b"COM1" in low and b"COM2" not in low
    xsdt = struct.unpack_from("<Q", low, 24)[0] - 0xE0000
    assert low[xsdt : xsdt + 4] == b"XSDT"


def test_quiet_and_missing_ports():
    m = Machine()
    m.out(0x80, 1)
    m.out(0xED, 1)
    assert m.pio.unclaimed == 0
    assert m.pio.read_from_python(0x3C0, 1) == 0xFF
    assert m.pio.unclaimed == 1


def test_power_button():
    m = Machine()
    m.board.ioapic.register(0x10 + 18, 0x39 | 0x8000)
    assert not m.board.press_power_button()
    m.out(0x602, 0x100, 2)
    m.out(0x600, 0x100, 2)
    assert m.board.press_power_button()
    m.board.apics[0].write(0x350, 0x10700)
    assert m.board.apics[0].pending_py() == 0x39


def test_a_new_generation_is_told():
    m = Machine()
    m.board.write_tables()
    first = m.ram.read(memmap.GENERATION_ID, 16)
    assert any(start <= memmap.GENERATION_ID < start + size and kind == memmap.RESERVED
               for start, size, kind in m.layout.e820)  # fmt: skip
    other = Machine()
    other.board.write_tables()
    assert other.ram.read(memmap.GENERATION_ID, 16) != first
    m.board.ioapic.register(0x10 + 18, 0x39 | 0x8000)
    m.board.apics[0].write(0x350, 0x10700)
    m.out(0x60E, 1 << 5, 2)
    other.board.load(m.board.save())
    assert other.board.apics[0].pending_py() < 0
    other.board.new_generation(bytes(range(16)))
    assert other.ram.read(memmap.GENERATION_ID, 16) == bytes(range(16))
    assert other.board.apics[0].pending_py() == 0x39
    other.out(0x60C, 1 << 5, 2)
    assert other.board.pm.sci.level == 0
    with pytest.raises(ValueError):
        m.board.new_generation(bytes(8))


def test_save_and_load_into_a_new_board():
    m = Machine()
    m.board.ioapic.register(0x10 + 8, 0x34)
    m.out(0x3FC, 8)
    m.out(0x3F9, 2)
    m.out(0x43, 0x34)
    m.out(0x40, 0x9C)
    m.out(0x40, 0x2E)
    m.out(0x602, 0x100, 2)
    other = Machine()
    other.board.load(m.board.save())
    other.uart.load(m.uart.save())
    assert other.board.ioapic.save() == m.board.ioapic.save()
    assert other.board.pic.save() == m.board.pic.save()
    assert other.board.apics[0].save() == m.board.apics[0].save()
    assert other.board.serial_irq(0).level == 1
    assert len(other.timers) == 1
    with pytest.raises(ValueError):
        Machine(cpus=3).board.load(m.board.save())


def test_what_a_card_interrupts_with_as_it_is_loaded_is_not_lost():
    """A disk goes on as soon as it is loaded."""

    class Disk(PciFunction):
        def load(self, state):
            super().load(state)
            self.machine.mmio.write_from_python(0xFEE00000 | 1 << 12, 4, 0x55)

    machines = Machine(), Machine()
    for m in machines:
        card = Disk(0x1AF4, 0x1042, 0x010000)
        card.machine = m
        m.board.pci.attach(card)
    saved, loaded = machines
    saved.board.apics[1].write(0xF0, 0x1FF)
    loaded.board.load(saved.board.save())
    assert loaded.board.apics[1].pending_py() == 0x55


def test_a_guest_that_writes_everywhere_breaks_nothing(capfd):
    """Random accesses to every port and window: no exception in a device (PyRegion prints them), no hang."""
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    m = Machine()
    m.board.attach_serial(1, Uart(m.board.serial_irq(1)))
    card = PciFunction(0x1AF4, 0x1042, 0x010000)
    card.add_bar(0, 0x1000, Region("card"), m.mmio)
    card.add_bar(2, 0x100, Region("card"), m.pio, is_io=True)
    m.board.pci.attach(card)
    m.board.write_tables()
    ports = [*range(0x20, 0x22), *range(0x40, 0x44), 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xA0, 0xA1, 0xED]
    ports += [*range(0x2F8, 0x300), *range(0x3F8, 0x400), 0x4D0, 0x4D1, *range(0x600, 0x610), *range(0xCF8, 0xD00)]
    windows = [memmap.ECAM, memmap.ECAM + 0x8000, memmap.IOAPIC, memmap.LAPIC, memmap.PCI_HOLE]
    values = (0, 1, 0xFF, 0x80000000, 0x80000800, 0xFFFFFFFF, (1 << 64) - 1)
    for _ in range(20_000):
        size = dice.choice((1, 2, 4, 8))
        value = dice.choice(values) if dice.random() < 0.3 else dice.getrandbits(8 * size)
        value &= (1 << 8 * size) - 1
        if dice.random() < 0.6:
            space, address, size = m.pio, dice.choice(ports), min(size, 4)
            value &= (1 << 8 * size) - 1
        else:
            space, address = m.mmio, dice.choice(windows) + dice.choice((0, 4, 0x10, dice.randrange(4096 - 8)))
        if dice.random() < 0.5:
            space.write_from_python(address, size, value)
        else:
            space.read_from_python(address, size)
        apic, register = dice.choice(m.board.apics), 16 * dice.randrange(64)
        if dice.random() < 0.3:
            apic.write(register, dice.getrandbits(32))
            apic.wrmsr(0x800 + (register >> 4), dice.getrandbits(32))
            apic.read(register)
            apic.rdmsr(0x800 + (register >> 4))
            apic.pending_py()
            apic.acknowledge_py()
        if m.timers and dice.random() < 0.2:
            m.timers.pop(dice.randrange(len(m.timers)))[1]()
        del m.timers[:-50]
    m.board.load(m.board.save())
    assert capfd.readouterr().err == "", f"seed {seed}"
