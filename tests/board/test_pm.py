"""ACPI's fixed registers, and what resets or switches off a PC: PM1, PM timer, 0xCF9, 0x92, the 8042."""

import pytest

from hostel.board.i8042 import I8042
from hostel.board.pic import Pic
from hostel.board.pm import FastA20, PowerManagement
from hostel.bus.irq import IrqLine
from hostel.bus.space import Space


class Machine:
    def __init__(self):
        self.now, self.events = 5 * 10**9, []
        self.pio = Space("pio")
        self.sci = IrqLine((Pic(), 9))
        self.pm = PowerManagement(self.sci, lambda: self.events.append("off"), lambda: self.now)
        self.pio.map(0x600, 16, self.pm)
        self.i8042 = I8042(lambda: self.events.append("reset"))
        self.pio.map(0x60, 1, self.i8042.data)
        self.pio.map(0x64, 1, self.i8042.command)
        self.pio.map(0x92, 1, FastA20(lambda: self.events.append("reset")))

    def out(self, port, value, size=1):
        self.pio.write_from_python(port, size, value)

    def inp(self, port, size=1):
        return self.pio.read_from_python(port, size)


def test_pm_timer_runs_at_its_frequency_and_wraps():
    m = Machine()
    assert m.inp(0x608, 4) == 0
    m.now += 10**9
    assert m.inp(0x608, 4) == 3579545
    assert m.inp(0x608, 1) == 3579545 & 0xFF and m.inp(0x609, 1) == 3579545 >> 8 & 0xFF
    m.now += 1200 * 10**9
    assert m.inp(0x608, 4) == 1201 * 3579545 % 2**32


def test_soft_off():
    m = Machine()
    assert m.inp(0x604, 2) == 1  # SCI_EN
    m.out(0x604, 5 << 10, 2)
    assert m.events == []
    m.out(0x604, 3 << 10 | 0x2000, 2)  # another sleep state
    assert m.events == []
    m.out(0x604, 5 << 10 | 0x2000, 2)
    assert m.events == ["off"]
    assert m.inp(0x604, 2) == 5 << 10 | 1  # SLP_EN reads 0


def test_soft_off_by_bytes():
    m = Machine()
    m.out(0x605, 0x34)
    assert m.events == ["off"]


def test_power_button_raises_sci_only_if_enabled_and_status_clears_by_one():
    m = Machine()
    assert not m.pm.press_power_button()
    assert m.sci.level == 0 and m.inp(0x600, 2) == 0x100
    m.out(0x602, 0x100, 2)
    assert m.sci.level == 1
    m.out(0x600, 1, 2)
    assert m.sci.level == 1
    m.out(0x600, 0x100, 2)
    assert m.sci.level == 0 and m.inp(0x600, 4) == 0x100 << 16
    assert m.pm.press_power_button() and m.sci.level == 1


def test_general_purpose_events():
    m = Machine()
    m.pm.raise_event(5)
    assert m.sci.level == 0 and m.inp(0x60C, 2) == 0x20
    m.out(0x60E, 0x20)
    assert m.sci.level == 1 and m.inp(0x60E, 2) == 0x20
    m.out(0x60C, 0xDF)  # others' bits
    assert m.sci.level == 1
    m.out(0x60C, 0x20)
    assert m.sci.level == 0 and m.inp(0x60C, 4) == 0x20 << 16
    m.pm.raise_event(11)
    m.out(0x60F, 0x08)  # the second byte, by itself
    assert m.sci.level == 1 and m.inp(0x60D) == 8
    m.out(0x602, 0x100, 2)
    m.pm.press_power_button()
    m.out(0x60D, 8)
    assert m.sci.level == 1  # the button's
    m.out(0x600, 0x100, 2)
    assert m.sci.level == 0


def test_time_that_is_skipped_is_none_of_the_pm_timers():
    m = Machine()
    m.now += 10**9
    before = m.inp(0x608, 4)
    m.now += 60 * 10**9
    m.pm.skip(60 * 10**9)
    assert m.inp(0x608, 4) == before


def test_pm_save_and_load():
    m = Machine()
    m.out(0x602, 0x120, 2)
    m.out(0x60E, 0x8020, 2)
    m.pm.raise_event(5)
    m.now += 12345678
    state = m.pm.save()
    other = Machine()
    other.now = 77
    other.pm.load(state)
    assert other.pm.save() == state
    old = {name: value for name, value in state.items() if not name.startswith("gpe")} | {"version": 1}
    other.pm.load(old)
    assert other.pm.save() == state | {"gpe_status": 0, "gpe_enable": 0}
    with pytest.raises(ValueError):
        other.pm.load({"version": 5})


def test_keyboard_controller_resets():
    m = Machine()
    m.out(0x64, 0xFE)
    assert m.events == ["reset"]
    m.out(0x64, 0xFF)  # pulses nothing
    m.out(0x64, 0xD1)
    m.out(0x60, 0xDF)  # A20 on
    assert m.events == ["reset"]
    m.out(0x64, 0xD1)
    m.out(0x60, 0xDE)
    assert m.events == ["reset"] * 2


def test_keyboard_controller_passes_its_probes():
    # as drivers/input/serio/i8042.c does: flush, read the CTR, self test, write the CTR, test the AUX loop
    m = Machine()
    assert m.inp(0x64) & 3 == 0

    def ask(command, *data):
        m.out(0x64, command)
        for value in data:
            m.out(0x60, value)
        assert m.inp(0x64) & 1
        value = m.inp(0x60)
        assert not m.inp(0x64) & 1
        return value

    assert ask(0xAA) == 0x55
    ctr = ask(0x20)
    m.out(0x64, 0x60)
    m.out(0x60, ctr | 0x30)
    assert ask(0x20) == ctr | 0x30
    assert ask(0xAB) == 0 and ask(0xA9) == 0
    assert ask(0xD3, 0x5A) == 0x5A
    m.out(0x64, 0xA8)
    assert not ask(0x20) & 0x20
    m.out(0x60, 0xF2)  # identify: nobody
    assert m.inp(0x64) & 0x40
    assert m.inp(0x60) == 0xFE
    other = Machine().i8042
    other.load(m.i8042.save())
    assert other.save() == m.i8042.save()
    with pytest.raises(ValueError):
        other.load({"version": 0})


def test_fast_a20_and_reset():
    m = Machine()
    assert m.inp(0x92) == 2
    m.out(0x92, 2)
    m.out(0x92, 0)
    assert m.inp(0x92) == 2 and m.events == []
    m.out(0x92, 3)
    m.out(0x92, 3)
    assert m.events == ["reset"]
