"""Address spaces: who answers where, what nobody answers, and what happens to windows that go."""

import pytest

from hostel.base.errors import BusError
from hostel.bus.space import PyRegion, Space


class Echo(PyRegion):
    def __init__(self, value):
        super().__init__(f"echo {value}")
        self.value, self.seen = value, []

    def read_py(self, offset, size):
        return self.value + offset

    def write_py(self, offset, size, value):
        self.seen.append((offset, size, value))


class Broken(PyRegion):
    def read_py(self, offset, size):
        raise RuntimeError("a bug of ours")

    write_py = read_py


def test_windows_offsets_and_sizes():
    space, low, high = Space("pio"), Echo(0x1000), Echo(0x8877665544332200)
    space.map(0x10, 0x10, low)
    space.map(1 << 63, 1 << 63, high)
    assert space.read_from_python(0x10, 2) == 0x1000 and space.read_from_python(0x1F, 2) == 0x100F
    assert [space.read_from_python((1 << 64) - 1 - 0x10, size) & 0xFF for size in (1, 2, 4, 8)] == [0xEF] * 4
    assert space.read_from_python(1 << 63, 4) == 0x44332200
    assert space.read_from_python(1 << 63, 8) == 0x8877665544332200
    space.write_from_python(0x12, 4, 0xDEADBEEF)
    assert low.seen == [(2, 4, 0xDEADBEEF)]


def test_unclaimed_reads_all_ones_and_is_counted():
    space = Space("pio")
    assert [space.read_from_python(5, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    space.write_from_python(5, 1, 0)
    assert space.unclaimed == 4


def test_overlaps_are_refused_and_unmapped_room_is_free_again():
    space, region = Space("mmio"), Echo(1)
    space.map(0x1000, 0x1000, region)
    for base, size in ((0x1000, 1), (0x1FFF, 1), (0, 0x1001), (0, 0x10000)):
        with pytest.raises(BusError):
            space.map(base, size, Echo(2))
    space.map(0x2000, 0x1000, Echo(2))
    space.unmap(0x1000)
    assert space.read_from_python(0x1000, 1) == 0xFF and space.read_from_python(0x2000, 1) == 2
    for _ in range(1000):  # as a guest that moves a BAR for ever
        space.map(0x1000, 0x1000, region)
        space.unmap(0x1000)
    space.unmap(0x9999)


def test_a_device_with_a_bug_does_not_take_the_machine_down(capfd):
    space = Space("pio")
    space.map(0, 8, Broken("broken"))
    assert space.read_from_python(0, 1) == 0xFF
    space.write_from_python(0, 1, 0)
    assert "a bug of ours" in capfd.readouterr().err
