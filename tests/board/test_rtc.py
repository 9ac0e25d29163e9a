"""MC146818: time formats, setting, the century, CMOS sizes, and the three interrupts."""

from datetime import UTC, datetime

import pytest

from hostel.board.pic import Pic
from hostel.board.rtc import Rtc
from hostel.bus.irq import IrqLine
from hostel.bus.space import Space

S = 10**9
START = int(datetime(2024, 2, 29, 23, 58, 57, tzinfo=UTC).timestamp()) * S + S // 4  # a Thursday


class Machine:
    def __init__(self, low=512 << 20, high=0):
        self.events, self.elapsed = [], 0
        self.pic, self.pio = Pic(), Space("pio")
        for port, size, region in self.pic.ports():
            self.pio.map(port, size, region)
        self.line = IrqLine((self.pic, 8))
        self.rtc = Rtc(
            self.line, lambda deadline, callback: self.events.append((deadline, callback)), low, high,
            time_ns=lambda: START + self.elapsed, now_ns=lambda: 1000 + self.elapsed,
        )
        self.pio.map(0x70, 2, self.rtc)

    def get(self, register):
        self.pio.write_from_python(0x70, 1, register | 0x80)
        return self.pio.read_from_python(0x71, 1)

    def set(self, register, value):
        self.pio.write_from_python(0x70, 1, register)
        self.pio.write_from_python(0x71, 1, value)

    def time(self):
        return [self.get(r) for r in (0x32, 9, 8, 7, 4, 2, 0)]

    def run(self, until):
        """Serve events up to ``until`` ns; returns how often the line rose."""
        rises = 0
        while due := [e for e in self.events if e[0] <= 1000 + until]:
            event = min(due, key=lambda e: e[0])
            self.events.remove(event)
            self.elapsed = max(self.elapsed, event[0] - 1000)
            before = self.line.level
            event[1]()
            if self.line.level and not before:
                rises += 1
                self.get(0xC)
        self.elapsed = until
        return rises


def test_bcd_24_hours():
    assert Machine().time() == [0x20, 0x24, 0x02, 0x29, 0x23, 0x58, 0x57]
    assert Machine().get(6) == 5  # Thursday, Sunday being 1


def test_binary_and_12_hours():
    m = Machine()
    m.set(0xB, 4)  # binary, 12 hours
    assert m.time() == [20, 24, 2, 29, 11 | 0x80, 58, 57]
    m.elapsed = 2 * 60 * S
    assert m.get(4) == 12  # midnight


def test_time_goes_on():
    m = Machine()
    m.elapsed = 63 * S
    assert m.time() == [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00]


def test_setting_the_time():
    m = Machine()
    m.set(0xB, 0x82)
    for register, value in ((0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)):
        m.set(register, value)
    m.elapsed = 10 * S
    assert m.get(0) == 0x58  # stands still
    m.set(0xB, 0x02)
    m.elapsed += 2 * S
    assert m.time() == [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]


def test_a_date_that_does_not_exist_is_ignored():
    m = Machine()
    m.set(8, 0x13)
    assert m.get(8) == 0x02


def test_update_in_progress_precedes_the_second():
    m = Machine()
    assert not m.get(0xA) & 0x80
    m.elapsed = 3 * S // 4 - 100_000
    assert m.get(0xA) & 0x80
    m.elapsed = 3 * S // 4
    assert not m.get(0xA) & 0x80


def test_status_registers():
    m = Machine()
    assert m.get(0xD) == 0x80 and m.get(0xA) == 0x26 and m.get(0xB) == 2
    m.set(0xD, 0)
    assert m.get(0xD) == 0x80
    m.set(0x5F, 0xA5)
    assert m.get(0x5F) == 0xA5
    assert m.pio.read_from_python(0x70, 1) == 0xFF


def test_memory_sizes():
    m = Machine(low=3 << 30, high=5 << 30)
    assert m.get(0x15) | m.get(0x16) << 8 == 640
    assert m.get(0x30) | m.get(0x31) << 8 == 63 << 10
    assert m.get(0x34) | m.get(0x35) << 8 == ((3 << 30) - (16 << 20)) >> 16
    assert m.get(0x5B) | m.get(0x5C) << 8 | m.get(0x5D) << 16 == 5 << 14


def test_no_events_while_nothing_is_enabled():
    m = Machine()
    m.set(0xA, 0x2F)
    m.set(0xB, 2)
    assert m.events == []


def test_periodic_interrupt():
    m = Machine()
    m.set(0xA, 0x2F)  # 2 Hz
    m.set(0xB, 0x42)
    assert m.run(3 * S) == 6
    m.set(0xB, 2)
    assert m.run(9 * S) == 0


def test_update_interrupt_each_second_and_flags_clear_on_read():
    m = Machine()
    m.set(0xB, 0x12)
    assert m.run(5 * S) == 5
    m.events[-1][1]()  # not due yet: no flag
    assert m.get(0xC) == 0
    m.elapsed = 6 * S
    m.events[-1][1]()
    assert m.get(0xC) == 0x90 and m.line.level == 0
    assert m.get(0xC) == 0


def test_alarm_with_and_without_wildcards():
    m = Machine()
    for register, value in ((1, 0x00), (3, 0x59), (5, 0xFF)):
        m.set(register, value)
    m.set(0xB, 0x22)
    assert m.run(120 * S) == 1  # 23:59:00
    assert m.run(3700 * S) == 1  # and an hour later


def test_save_and_load_keeps_the_guests_time():
    m = Machine()
    m.set(4, 0x12)
    other = Machine()
    other.rtc.load(m.rtc.save())
    assert other.time() == [0x20, 0x24, 0x02, 0x29, 0x12, 0x58, 0x57]
    with pytest.raises(ValueError):
        other.rtc.load({"version": 0})
