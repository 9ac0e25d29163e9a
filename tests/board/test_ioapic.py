"""I/O APIC: edges, levels with remote IRR, masks, destinations, the EOI register."""

import pytest

from hostel.board.apic import ApicBus, LocalApic
from hostel.board.ioapic import IoApic, WiredOr
from hostel.bus.irq import IrqLine
from hostel.bus.space import Space
from hostel.cpu.engine import Vcpu

EOI, SVR = 0xB0, 0xF0
LEVEL, MASKED, REMOTE_IRR = 0x8000, 0x10000, 0x4000


class Machine:
    def __init__(self):
        self.bus = ApicBus()
        self.apics = [LocalApic(self.bus, Vcpu(), i) for i in range(2)]
        for apic in self.apics:
            apic.write(SVR, 0x1FF)
        self.io = IoApic(self.bus)

    def route(self, pin, low, dest=0):
        self.io.register(0x11 + 2 * pin, dest << 24)
        self.io.register(0x10 + 2 * pin, low)

    def take(self, cpu=0):
        vector = self.apics[cpu].acknowledge_py()
        if vector >= 0:
            self.apics[cpu].write(EOI, 0)
        return vector


def test_edge_sends_once():
    m = Machine()
    m.route(4, 0x44, dest=1)
    m.io.set_level_py(4, 1)
    m.io.set_level_py(4, 1)
    assert m.take(1) == 0x44 and m.take(1) == -1 and m.take(0) == -1
    m.io.set_level_py(4, 0)
    m.io.set_level_py(4, 1)
    assert m.take(1) == 0x44


def test_masked_edge_is_lost():
    m = Machine()
    m.route(4, 0x44 | MASKED)
    m.io.set_level_py(4, 1)
    m.route(4, 0x44)
    assert m.take() == -1


def test_level_waits_for_eoi_and_comes_again_while_asserted():
    m = Machine()
    m.route(16, 0x60 | LEVEL)
    m.io.set_level_py(16, 1)
    assert m.io.register(0x10 + 32) & REMOTE_IRR
    assert m.apics[0].acknowledge_py() == 0x60
    assert m.apics[0].read(0x180 + 0x30) == 1  # TMR
    assert m.apics[0].pending_py() == -1
    m.apics[0].write(EOI, 0)
    assert m.apics[0].acknowledge_py() == 0x60  # still asserted
    m.io.set_level_py(16, 0)
    m.apics[0].write(EOI, 0)
    assert not m.io.register(0x10 + 32) & REMOTE_IRR
    assert m.take() == -1
    m.io.set_level_py(16, 1)
    assert m.take() == 0x60


def test_masked_level_is_held():
    m = Machine()
    m.route(16, 0x60 | LEVEL | MASKED)
    m.io.set_level_py(16, 1)
    assert m.take() == -1
    m.route(16, 0x60 | LEVEL)
    assert m.take() == 0x60


def test_shared_vector_eoi_reaches_every_pin():
    m = Machine()
    for pin in (16, 17):
        m.route(pin, 0x60 | LEVEL)
        m.io.set_level_py(pin, 1)
    assert m.apics[0].acknowledge_py() == 0x60
    m.io.set_level_py(16, 0)
    m.apics[0].write(EOI, 0)
    assert m.apics[0].acknowledge_py() == 0x60
    m.io.set_level_py(17, 0)
    m.apics[0].write(EOI, 0)
    assert m.take() == -1


def test_changing_to_edge_clears_remote_irr():
    m = Machine()
    m.route(16, 0x60 | LEVEL)
    m.io.set_level_py(16, 1)
    m.io.set_level_py(16, 0)
    m.io.register(0x10 + 32, 0x60 | MASKED)
    assert not m.io.register(0x10 + 32) & REMOTE_IRR


def test_edge_vector_of_a_level_pins_vector_is_no_eoi():
    m = Machine()
    m.route(16, 0x60 | LEVEL)
    m.io.set_level_py(16, 1)
    m.apics[0].acknowledge_py()
    m.io.set_level_py(16, 0)
    m.apics[0].write(0x300, 1 << 18 | 0x90)  # a self-IPI, edge
    assert m.apics[0].acknowledge_py() == 0x90
    m.apics[0].write(EOI, 0)
    assert m.io.register(0x10 + 32) & REMOTE_IRR


def test_registers_through_the_window():
    m = Machine()
    mmio = Space("mmio")
    mmio.map(0xFEC00000, 4096, m.io.window())

    def register(index, value=None):
        mmio.write_from_python(0xFEC00000, 4, index)
        if value is not None:
            mmio.write_from_python(0xFEC00010, 4, value)
        return mmio.read_from_python(0xFEC00010, 4)

    assert register(1) == 0x170020
    assert register(0, 5 << 24) == 5 << 24 and register(2) == 5 << 24
    assert register(0x10) == MASKED
    assert register(0x12, 0xFFFFFFFF) == 0x1AFFF  # status and remote IRR are read only
    assert register(0x3F, 0xAB000000) == 0xAB000000
    assert register(0x40, 1) == 0
    m.route(16, 0x60 | LEVEL)
    m.io.set_level_py(16, 1)
    m.io.set_level_py(16, 0)
    mmio.write_from_python(0xFEC00040, 4, 0x60)
    assert not m.io.register(0x10 + 32) & REMOTE_IRR


def test_logical_and_nmi_delivery():
    m = Machine()
    m.apics[1].write(0xD0, 2 << 24)
    m.route(5, 0x800 | 0x55, dest=2)
    m.io.set_level_py(5, 1)
    assert m.take(1) == 0x55 and m.take(0) == -1


def test_pins_that_do_not_exist():
    m = Machine()
    m.io.set_level_py(24, 1)
    m.io.set_level_py(-1, 1)
    assert m.take() == -1


def test_save_and_load():
    m = Machine()
    m.route(16, 0x60 | LEVEL)
    m.io.set_level_py(16, 1)
    other = Machine()
    other.io.load(m.io.save())
    assert other.io.save() == m.io.save()
    other.io.set_level_py(16, 1)
    assert other.take() == -1  # remote IRR came along
    with pytest.raises(ValueError):
        other.io.load({"version": 2})


def test_shared_wire_is_asserted_while_any_source_asserts():
    m = Machine()
    m.route(16, 0x60 | LEVEL)
    gate = WiredOr(IrqLine((m.io, 16)))
    a, b = IrqLine((gate, 1)), IrqLine((gate, 2))
    a.set_py(1)
    b.set_py(1)
    a.set_py(0)
    assert m.take() == 0x60 and m.take() == 0x60
    b.set_py(0)
    m.take()
    assert m.take() == -1
