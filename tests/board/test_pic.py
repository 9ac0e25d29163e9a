"""8259A data sheet behaviour: initialisation, priorities, EOI forms, cascade, edge and level, poll, spurious."""

import pytest

from hostel.board.pic import Pic
from hostel.bus.space import Space
from hostel.cpu.engine import Vcpu


class Machine:
    def __init__(self, icw4=1, slave_icw4=1):
        self.pic, self.pio, self.vcpu = Pic(), Space("pio"), Vcpu()
        for port, size, region in self.pic.ports():
            self.pio.map(port, size, region)
        self.pic.connect(self.vcpu)
        for base, vector, icw3, last in ((0x20, 0x30, 4, icw4), (0xA0, 0x38, 2, slave_icw4)):
            self.out(base, 0x11)
            for value in (vector, icw3, last):
                self.out(base + 1, value)
            self.out(base + 1, 0)

    def out(self, port, value):
        self.pio.write_from_python(port, 1, value)

    def inb(self, port):
        return self.pio.read_from_python(port, 1)

    def pulse(self, pin):
        self.pic.set_level_py(pin, 1)
        self.pic.set_level_py(pin, 0)


def test_an_edge_interrupts_kicks_and_is_taken_once():
    m = Machine()
    assert m.pic.peek_py() == -1 and m.vcpu.wakeups() == 0
    m.pulse(4)
    assert m.pic.intr() and m.vcpu.wakeups() == 1
    assert m.pic.peek_py() == 0x34
    assert m.pic.acknowledge_py() == 0x34
    assert not m.pic.intr()
    m.out(0x20, 0x0B)  # read ISR
    assert m.inb(0x20) == 0x10
    m.out(0x20, 0x0A)  # read IRR
    assert m.inb(0x20) == 0


def test_held_edge_line_does_not_interrupt_again_but_a_new_edge_does():
    m = Machine()
    m.pic.set_level_py(4, 1)
    m.pic.acknowledge_py()
    m.out(0x20, 0x20)
    assert not m.pic.intr()
    m.pic.set_level_py(4, 1)
    assert not m.pic.intr()
    m.pulse(4)
    m.pic.set_level_py(4, 1)
    assert m.pic.intr()


def test_fixed_priority_and_nesting():
    m = Machine()
    m.pulse(5)
    assert m.pic.acknowledge_py() == 0x35
    m.pulse(6)
    assert not m.pic.intr()  # lower than what is in service
    m.pulse(1)
    assert m.pic.acknowledge_py() == 0x31
    m.out(0x20, 0x20)  # non-specific: ends the highest, 1
    assert not m.pic.intr()
    m.out(0x20, 0x65)  # specific: ends 5
    assert m.pic.acknowledge_py() == 0x36


def test_slave_through_cascade():
    m = Machine()
    m.pulse(12)
    m.pulse(9)
    assert m.pic.acknowledge_py() == 0x39
    assert not m.pic.intr()
    m.out(0xA0, 0x20)
    m.out(0x20, 0x20)
    assert m.pic.acknowledge_py() == 0x3C


def test_slave_interrupt_lower_than_masters_service_waits_and_special_fully_nested_mode_nests():
    m = Machine(icw4=0x11)  # special fully nested
    m.pulse(12)
    assert m.pic.acknowledge_py() == 0x3C
    m.pulse(8)
    assert m.pic.intr()
    plain = Machine()
    plain.pulse(12)
    plain.pic.acknowledge_py()
    plain.pulse(8)
    assert not plain.pic.intr()


def test_mask_hides_and_unmask_shows():
    m = Machine()
    m.out(0x21, 0x10)
    assert m.inb(0x21) == 0x10
    m.pulse(4)
    assert not m.pic.intr()
    m.out(0x21, 0)
    assert m.pic.intr()


def test_level_triggered_input_follows_its_line():
    m = Machine()
    m.out(0x4D1, 0xFF)
    assert m.inb(0x4D1) == 0xDE  # 8 and 13 stay edge triggered
    m.pic.set_level_py(11, 1)
    assert m.pic.acknowledge_py() == 0x3B
    m.out(0xA0, 0x20)
    m.out(0x20, 0x20)
    assert m.pic.intr()  # still high
    m.pic.set_level_py(11, 0)
    assert not m.pic.intr()


def test_request_that_goes_away_before_inta_is_spurious_irq7():
    m = Machine()
    m.out(0x4D0, 0x20)
    m.pic.set_level_py(5, 1)
    m.pic.set_level_py(5, 0)
    assert m.pic.acknowledge_py() == 0x37
    m.out(0x20, 0x0B)
    assert m.inb(0x20) == 0  # and is not in service


def test_automatic_eoi():
    m = Machine(icw4=3)
    m.pulse(3)
    assert m.pic.acknowledge_py() == 0x33
    m.out(0x20, 0x0B)
    assert m.inb(0x20) == 0


def test_automatic_eoi_on_slave_lets_the_next_one_through():
    m = Machine(icw4=3, slave_icw4=3)
    m.pulse(9)
    m.pulse(10)
    assert [m.pic.acknowledge_py(), m.pic.acknowledge_py()] == [0x39, 0x3A]
    assert not m.pic.intr()


def test_rotation_on_eoi():
    m = Machine()
    for pin in (1, 3, 4):
        m.pulse(pin)
    assert m.pic.acknowledge_py() == 0x31
    m.out(0x20, 0xA0)  # rotate on non-specific EOI: 1 is the lowest now
    m.pulse(1)
    assert m.pic.acknowledge_py() == 0x33
    m.out(0x20, 0x20)
    assert m.pic.acknowledge_py() == 0x34
    m.out(0x20, 0x20)
    assert m.pic.acknowledge_py() == 0x31


def test_set_priority():
    m = Machine()
    m.out(0x20, 0xC0 | 3)  # 3 is the lowest, 4 the highest
    m.pulse(0)
    m.pulse(5)
    assert m.pic.acknowledge_py() == 0x35


def test_special_mask_mode_lets_lower_priorities_in():
    m = Machine()
    m.pulse(3)
    m.pic.acknowledge_py()
    m.pulse(6)
    assert not m.pic.intr()
    m.out(0x21, 1 << 3)
    m.out(0x20, 0x68)
    assert m.pic.acknowledge_py() == 0x36


def test_poll_takes_the_interrupt():
    m = Machine()
    m.pulse(6)
    m.out(0x20, 0x0C)
    assert m.inb(0x20) == 0x86
    m.out(0x20, 0x0C)
    assert m.inb(0x20) == 0
    assert not m.pic.intr()


def test_linux_probe_reads_back_the_mask():
    m = Machine()
    m.out(0xA1, 0xFF)
    m.out(0x21, 0xFB)
    assert m.inb(0x21) == 0xFB


def test_cascade_input_cannot_be_driven():
    m = Machine()
    m.pulse(2)
    m.pulse(99)
    assert not m.pic.intr()


def test_save_and_load():
    m = Machine()
    m.pulse(4)
    m.pulse(9)
    m.pic.acknowledge_py()
    other = Machine()
    other.pic.load(m.pic.save())
    assert other.pic.save() == m.pic.save()
    assert not other.pic.intr()
    other.out(0x20, 0x62)  # 9 came first, through input 2
    assert other.pic.acknowledge_py() == 0x34
    with pytest.raises(ValueError):
        other.pic.load({"version": 99})
