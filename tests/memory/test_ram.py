"""Which pages are dirty, taken and put back."""

import pytest

from hostel.base.errors import MemoryError_
from hostel.memory.ram import Ram

PAGE = 4096


@pytest.fixture
def ram():
    ram = Ram()
    ram.add(0, 10 * PAGE)
    ram.add(1 << 20, 5000 * PAGE)
    return ram


def dirty(ram):
    return [gpa // PAGE for gpa in ram.dirty_pages(0, 10 * PAGE) + ram.dirty_pages(1 << 20, 5000 * PAGE)]


def test_dirty_pages_are_taken(ram):
    ram.write(3 * PAGE, b"x")
    ram.write((1 << 20) + 4998 * PAGE, bytes(2 * PAGE))
    first, second = ram.take_dirty()
    assert first == bytes([0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    assert second == bytes(4998) + b"\1\1"
    assert dirty(ram) == []
    assert ram.take_dirty() == [bytes(10), bytes(5000)]


def test_and_put_back(ram):
    ram.write(3 * PAGE, b"x")
    copies = ram.take_dirty()
    ram.write(5 * PAGE, b"x")
    ram.put_back_dirty(copies)
    assert dirty(ram) == [3, 5]


@pytest.mark.parametrize("copies", [[], [bytes(10)], [bytes(10), bytes(4999)], [bytes(5000), bytes(10)]])
def test_of_another_memory(ram, copies):
    with pytest.raises(MemoryError_, match="of this memory"):
        ram.put_back_dirty(copies)


def test_a_discard_is_a_write(ram):
    ram.write(0, b"x" * 10 * PAGE)
    ram.take_dirty()
    assert ram.discard(PAGE, 2 * PAGE)
    assert dirty(ram) == [1, 2]
    assert ram.read(0, 10 * PAGE) == b"x" * PAGE + bytes(2 * PAGE) + b"x" * 7 * PAGE


@pytest.mark.parametrize("gpa, length", [(1, PAGE), (0, PAGE - 1), (9 * PAGE, 2 * PAGE), (11 * PAGE, PAGE)])
def test_only_whole_pages_that_are_there(ram, gpa, length):
    assert not ram.discard(gpa, length)
