"""8254: counting in every mode, latches and read-back, the gate, interrupts; time is frozen."""

import pytest

from hostel.board.pic import Pic
from hostel.board.pit import Pit
from hostel.bus.irq import IrqLine
from hostel.bus.space import Space

HZ = 1193182
T0 = 10**12


class Machine:
    def __init__(self):
        self.pio, self.pic, self.events = Space("pio"), Pic(), []
        for port, size, region in self.pic.ports():
            self.pio.map(port, size, region)
        self.pit = Pit(IrqLine((self.pic, 0)), lambda deadline, callback: self.events.append((deadline, callback)))
        self.pio.map(0x40, 4, self.pit)
        self.pio.map(0x61, 1, self.pit.control_port())
        self.at(0)

    def at(self, ticks):
        self.pit.freeze(T0 + -(-ticks * 10**9 // HZ))

    def out(self, port, *values):
        for value in values:
            self.pio.write_from_python(port, 1, value)

    def inb(self, port):
        return self.pio.read_from_python(port, 1)

    def count(self, channel):
        self.out(0x43, channel << 6)
        return self.inb(0x40 + channel) | self.inb(0x40 + channel) << 8

    def irr(self):
        self.out(0x20, 0x0A)
        return self.inb(0x20) & 1


def test_mode_2_counts_and_reloads():
    m = Machine()
    m.out(0x43, 0x34)
    m.out(0x40, 0xE8, 0x03)  # 1000
    assert m.count(0) == 1000
    m.at(1)
    assert m.count(0) == 999
    m.at(999)
    assert m.count(0) == 1 and not m.pit.output_py(0)
    m.at(1000)
    assert m.count(0) == 1000 and m.pit.output_py(0)
    m.at(2500)
    assert m.count(0) == 500


def test_mode_3_counts_by_two_and_is_square():
    m = Machine()
    m.out(0x43, 0x36)
    m.out(0x40, 0, 0)  # 65536
    m.at(100)
    assert m.count(0) == 65536 - 200 and m.pit.output_py(0)
    m.at(32768)
    assert not m.pit.output_py(0)
    m.at(65536)
    assert m.pit.output_py(0)


def test_mode_0_terminal_count_and_wrap():
    m = Machine()
    m.out(0x43, 0x30)
    assert not m.pit.output_py(0)
    m.out(0x40, 100, 0)
    m.at(99)
    assert not m.pit.output_py(0)
    m.at(100)
    assert m.pit.output_py(0) and m.count(0) == 0
    m.at(101)
    assert m.count(0) == 0xFFFF


def test_latch_holds_until_read():
    m = Machine()
    m.out(0x43, 0x34)
    m.out(0x40, 0, 0x10)
    m.out(0x43, 0)
    m.at(500)
    m.out(0x43, 0)  # a second latch command is ignored
    assert m.inb(0x40) | m.inb(0x40) << 8 == 0x1000
    assert m.count(0) == 0x1000 - 500


def test_read_back_status_and_count():
    m = Machine()
    m.out(0x43, 0x34)
    m.out(0x43, 0xE2)  # status of channel 0, count not loaded
    assert m.inb(0x40) == 0xC0 | 0x34
    m.out(0x40, 0, 0x10)
    m.at(16)
    m.out(0x43, 0xC2)  # both
    assert m.inb(0x40) == 0x80 | 0x34
    assert m.inb(0x40) | m.inb(0x40) << 8 == 0x1000 - 16


def test_byte_access_modes():
    m = Machine()
    m.out(0x43, 0x94)  # channel 2, low byte
    m.out(0x61, 1)
    m.out(0x42, 50)
    assert m.inb(0x42) == 50
    m.out(0x43, 0xA4)  # high byte
    m.out(0x42, 2)
    m.at(0x10)
    assert m.inb(0x42) == 1  # 0x200 - 0x10


def test_bcd():
    m = Machine()
    m.out(0x43, 0x35)
    m.out(0x40, 0x00, 0x10)  # 1000 in BCD
    m.at(1)
    assert m.count(0) == 0x0999


def test_linux_calibration_by_channel_2():
    # arch/x86/kernel/tsc.c, pit_calibrate_tsc: gate on, speaker off, mode 0, wait for bit 5 of port 0x61
    m = Machine()
    m.out(0x61, m.inb(0x61) & ~2 | 1)
    m.out(0x43, 0xB0)
    m.out(0x42, 0x9B, 0x2E)  # 11931: 10 ms
    assert not m.inb(0x61) & 0x20
    m.at(11930)
    assert not m.inb(0x61) & 0x20
    m.at(11931)
    assert m.inb(0x61) & 0x21 == 0x21


def test_gate_pauses_mode_0():
    m = Machine()
    m.out(0x61, 1)
    m.out(0x43, 0xB0)
    m.out(0x42, 100, 0)
    m.at(40)
    m.out(0x61, 0)
    m.at(1000)
    assert m.count(2) == 60
    m.out(0x61, 1)
    m.at(1030)
    assert m.count(2) in (30, 31)  # it starts within a tick
    m.at(1061)
    assert m.pit.output_py(2)


def test_gate_triggers_mode_1():
    m = Machine()
    m.out(0x43, 0xB2)
    m.out(0x42, 100, 0)
    assert m.pit.output_py(2)
    m.at(50)
    m.out(0x61, 1)
    assert not m.pit.output_py(2)
    m.at(150)
    assert m.pit.output_py(2)


def test_refresh_bit_toggles():
    m = Machine()
    values = set()
    for tick in range(0, 100, 10):
        m.at(tick)
        values.add(m.inb(0x61) & 0x10)
    assert values == {0, 0x10}


def test_periodic_interrupts_keep_their_phase():
    m = Machine()
    m.out(0x43, 0x34)
    assert m.events == []
    m.out(0x40, 0x9C, 0x2E)  # 11932
    (deadline, callback), m.events = m.events[0], []
    assert 0 <= deadline - T0 - 11932 * 10**9 // HZ <= 1
    m.pit.freeze(deadline + 300_000)  # a late event loop
    callback()
    assert m.irr()
    (after, callback), m.events = m.events[0], []
    assert 0 <= after - T0 - 2 * 11932 * 10**9 // HZ <= 1
    m.pit.freeze(after - 500)  # an early one
    callback()
    assert len(m.events) == 1 and m.events[0][0] == after


def test_reprogramming_forgets_the_planned_interrupt():
    m = Machine()
    m.out(0x43, 0x34)
    m.out(0x40, 0, 0x10)
    stale = m.events.pop()[1]
    m.out(0x43, 0x30)
    m.at(0x2000)
    stale()
    assert not m.irr() and m.events == []
    m.out(0x40, 10, 0)
    deadline, callback = m.events.pop()
    m.pit.freeze(deadline)
    callback()
    assert m.irr() and m.events == []  # once only


def test_a_tiny_period_is_bounded():
    m = Machine()
    m.out(0x43, 0x34)
    m.out(0x40, 2, 0)
    assert m.events[0][0] >= T0 + 20_000


def test_time_that_is_skipped_is_none_of_the_channels():
    m = Machine()
    m.out(0x43, 0x34)
    m.out(0x40, 0, 0x10)
    stale = m.events.pop()[1]
    m.at(700)
    m.pit.freeze(5 * T0)
    m.pit.skip(4 * T0 - -(-700 * 10**9 // HZ))
    assert m.count(0) == 0x1000 - 700
    stale()
    assert not m.irr()
    (deadline, callback) = m.events.pop()
    assert abs(deadline - 5 * T0 - (0x1000 - 700) * 10**9 // HZ) <= 2
    m.pit.freeze(deadline)
    callback()
    assert m.irr()


def test_save_and_load():
    m = Machine()
    m.out(0x43, 0x34)
    m.out(0x40, 0, 0x10)
    m.at(700)
    state = m.pit.save()
    other = Machine()
    other.pit.freeze(5 * T0)
    other.pit.load(state)
    assert other.count(0) == 0x1000 - 700
    assert len(other.events) == 1
    with pytest.raises(ValueError):
        other.pit.load({"version": 0})
