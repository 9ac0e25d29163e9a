"""The balloon: pages go back to the host and come back as zeroes, statistics, reports, hostile page numbers."""

import struct

import pytest
from tests.devices.virtio.driver import MEMORY, Bench

from hostel.devices.virtio import balloon, pci
from hostel.devices.virtio.balloon import Balloon, runs


def pages(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


@pytest.mark.parametrize("packed", [False, True])
def test_inflated_pages_are_zero_and_counted(packed):
    with Bench(Balloon()) as bench:
        driver = bench.driver(packed=packed)
        at = 32 << 20
        bench.ram.view(at, 16 * 4096)[:] = b"\xaa" * (16 * 4096)
        first = at // 4096
        driver.request(0, [pages(first + 3, first + 1, first + 2, first + 9)])
        content = bench.ram.view(at, 16 * 4096)
        for page in range(16):
            expected = 0 if page in (1, 2, 3, 9) else 0xAA
            assert content[page * 4096] == content[page * 4096 + 4095] == expected
        driver.request(1, [pages(first + 3, first + 1)])
        assert bench.device.inflated == 4 * 4096 and bench.device.deflated == 2 * 4096
        assert bench.ram.dirty_pages(at, 16 * 4096) == [(first + n) * 4096 for n in (1, 2, 3, 9)]


def test_page_numbers_of_no_memory_are_counted_only():
    with Bench(Balloon()) as bench:
        driver = bench.driver()
        driver.request(0, [pages(0xFFFFFFFF, MEMORY // 4096, 0xC0000), b"\1\2\3"])
        assert bench.device.refused == 3 * 4096 and bench.device.inflated == 0 and not driver.broken


def test_the_target_is_a_configuration_change():
    with Bench(Balloon()) as bench:
        bench.driver()
        bench.device.set_target(48 << 20)
        total = bench.ram.size
        assert bench.interrupts() == [0]
        assert bench.device_config(0, 4) == (total - (48 << 20)) // 4096 and bench.device.target() == 48 << 20
        bench.write(pci.LAYOUT["config"] + 4, 4, 100)
        assert bench.device.actual() == total - 100 * 4096
        bench.device.set_target(1 << 40)
        assert bench.device_config(0, 4) == 0


def test_statistics_when_asked_for():
    with Bench(Balloon()) as bench:
        driver = bench.driver()
        queue = driver.queues[2]
        assert not bench.device.ask()
        queue.add([struct.pack("<HQ", 4, 111) + struct.pack("<HQ", 99, 5) + b"?"], [])
        queue.kick()
        bench.settle()
        assert bench.device.guest == {"free": 111}
        assert bench.device.ask() and not bench.device.ask()
        assert len(queue.collect()) == 1
        queue.add([struct.pack("<HQ", 4, 222)], [])
        queue.kick()
        bench.settle()
        assert bench.device.statistics()["guest"] == {"free": 222}


@pytest.mark.parametrize("queues", [[0, 1, 2, 3], [0, 1, 2, 4]], ids=["Linux before 6.14", "as numbered"])
def test_reported_pages_go_back(queues):
    with Bench(Balloon()) as bench:
        driver = bench.driver(queues=queues)
        at = bench.allocate(8192 * 2, 4096)
        bench.ram.view(at, 16384)[:] = b"\xbb" * 16384
        bench.next_page = at + 16384
        queue = driver.queues[queues[-1]]
        queue._pool[8192] = [at]
        queue._pool[6000] = [at + 8192 + 100]  # no whole page but one
        driver.request(queues[-1], [], [8192, 6000])
        view = bench.ram.view(at, 16384)
        assert bytes(view[:8192]) == bytes(8192) and set(view[8192:]) == {0xBB}
        assert bench.device.reported == 8192
        assert balloon.REPORTING == 5


def test_runs():
    assert runs([5, 3, 4, 9, 9, 1]) == [(1, 1), (3, 3), (9, 1)] and runs([]) == []
