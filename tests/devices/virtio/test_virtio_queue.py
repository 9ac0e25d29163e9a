"""Rings as devices see them: both kinds, all negotiable ways, orders, notifications both ways, saved state."""

import itertools
import random
import struct

import pytest
from tests.devices.virtio.driver import HIGH, INDIRECT, MEMORY, NEXT, WRITE, Bench, capability

from hostel.devices.virtio import pci
from hostel.devices.virtio.device import Device
from hostel.devices.virtio.rng import Rng

WAYS = [dict(packed=p, event_idx=e, indirect=i) for p, e, i in itertools.product((False, True), repeat=3)]


class Echo(Device):
    """Answers each chain with what it read; ``hold`` keeps chains until ``give_back``, in an order of its own."""

    name, id = "echo", 63
    queue_sizes = (64, 8)

    def __init__(self):
        super().__init__()
        self.hold, self.held, self.seen = False, [], []

    def notified(self, queue):
        for request in queue:
            self.seen.append(request.read())
            if self.hold:
                self.held.append(request)
            else:
                request.write(request.read())
                request.push()
        queue.signal_py()

    def give_back(self, order=None):
        held, self.held = self.held, []
        for i in order or range(len(held)):
            held[i].write(held[i].read())
            held[i].push()
        self.queues[0].signal_py()

    def reset(self):
        self.held = []


@pytest.mark.parametrize("way", WAYS)
def test_chains_of_every_shape_go_and_come(way):
    rnd = random.Random(1)
    with Bench(Echo()) as bench:
        driver = bench.driver(**way)
        for _ in range(300):
            readable = [rnd.randbytes(rnd.randint(1, 300)) for _ in range(rnd.randint(0, 5))]
            total = sum(map(len, readable))
            writable = [rnd.randint(1, 200) for _ in range(rnd.randint(0 if readable else 1, 5))]
            data, length = driver.request(0, readable, writable)
            room = sum(writable)
            assert length == min(total, room)
            assert data == b"".join(readable)[:room]
        assert not driver.broken


@pytest.mark.parametrize("way", WAYS)
def test_batches_out_of_order_wrap_many_times(way):
    rnd = random.Random(2)
    with Bench(Echo()) as bench:
        driver = bench.driver(**way, size=16)
        queue = driver.queues[0]
        bench.device.hold = True
        for round_ in range(200):
            sent = {}
            while queue.free >= 3 and len(sent) < 12:
                text = b"%d/%d" % (round_, len(sent))
                sent[queue.add([text], [4, 28])] = text
            queue.kick()
            bench.settle()
            order = list(range(len(sent)))
            rnd.shuffle(order)
            bench.device.give_back(order)
            assert {token: data for token, (data, _) in queue.collect().items()} == sent
        assert not driver.broken and bench.card.queues[0].statistics()["in_flight"] == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_busy_device_isn_t_notified_and_no_wake_up_is_lost(packed):
    with Bench(Echo()) as bench:
        driver = bench.driver(packed=packed)
        queue = driver.queues[0]
        done = 0
        kicks = 0
        rnd = random.Random(3)
        for _ in range(3000):  # the driver goes on adding while the device works at arbitrary moments
            if queue.free >= 2:
                queue.add([b"x" * 8], [8])
            kicks += queue.kick()
            if rnd.random() < 0.2:
                bench.settle()
                done += len(queue.collect())
        bench.settle()
        done += len(queue.collect())
        assert done == queue.tokens and not driver.broken
        assert kicks < done / 3


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
def test_interrupts_come_as_asked_for(packed, event_idx):
    with Bench(Echo()) as bench:
        driver = bench.driver(packed=packed, event_idx=event_idx, size=8)
        queue = driver.queues[0]
        for round_ in range(40):  # wraps at every place
            driver.request(0, [b"a"], [1])
            assert bench.interrupts() == [1], round_
        if event_idx:
            for _ in range(20):
                queue.collect()
                queue.interrupt_me(after=2)
                for n in range(3):
                    queue.add([], [1])
                    queue.kick()
                    bench.settle()
                    assert bench.interrupts() == ([1] if n == 2 else [])
        queue.collect()
        queue.be_quiet()
        queue.add([b"a"], [1])
        queue.kick()
        bench.settle()
        assert bench.interrupts() == [] and len(queue.collect()) == 1


def test_msix_masks_and_pending_bits():
    with Bench(Echo()) as bench:
        driver = bench.driver()
        entry = pci.LAYOUT["msix"] + 16
        bench.write(entry + 12, 4, 1)
        driver.request(0, [b"a"], [1])
        assert bench.interrupts() == [] and bench.read(pci.LAYOUT["msix"] + 0x1000, 4) == 2
        bench.write(entry + 12, 4, 0)
        assert bench.interrupts() == [1] and bench.read(pci.LAYOUT["msix"] + 0x1000, 4) == 0
        control = capability(bench.card, 0x11) + 2
        bench.write_config(control, 2, 0xC000)  # function mask
        driver.request(0, [b"a"], [1])
        assert bench.interrupts() == [] and bench.card.msix.pending(1)
        bench.write_config(control, 2, 0x8000)
        assert bench.interrupts() == [1]
        bench.write(entry, 4, 0x1000)  # an address that is no APIC's
        driver.request(0, [b"a"], [1])
        assert bench.interrupts() == [] and bench.card.msix.misdirected == 1


class Line:
    level = 0

    def set_py(self, level):
        self.level = level


def test_the_pin_and_isr_where_there_is_no_msix():
    with Bench(Echo()) as bench:
        bench.card.irq = line = Line()
        driver = bench.driver(msix=False)
        driver.request(0, [b"a"], [1])
        assert line.level == 1
        assert bench.read(pci.LAYOUT["isr"], 1) == 1
        assert line.level == 0 and bench.read(pci.LAYOUT["isr"], 1) == 0
        bench.device.config_changed()
        assert line.level == 1 and bench.read(pci.LAYOUT["isr"], 1) == 2 and bench.get("config_generation") == 1
        driver.request(0, [b"a"], [1])
        bench.write_config(4, 2, 0x406)  # INTx off
        assert line.level == 0
        bench.write_config(4, 2, 0x6)
        assert line.level == 1
        bench.set("device_status", 0)
        assert line.level == 0


def test_status_and_features_by_the_rules():
    with Bench(Rng()) as bench:
        bench.set("device_status", 1)
        bench.set("device_status", 3)
        bench.set("device_status", 11)  # FEATURES_OK without VERSION_1
        assert bench.get("device_status") == 3
        bench.set("driver_feature_select", 1)
        bench.set("driver_feature", 1 | 1 << 20)  # bit 52 isn't offered
        bench.set("device_status", 11)
        assert bench.get("device_status") == 3
        bench.set("device_status", 7)  # DRIVER_OK without FEATURES_OK
        assert bench.get("device_status") == 3
        bench.set("queue_select", 0)
        bench.set("queue_enable", 1)
        assert bench.get("queue_enable") == 0
        bench.set("driver_feature", 1)
        bench.set("device_status", 11)
        assert bench.get("device_status") == 11
        bench.set("driver_feature", 3)  # too late
        assert bench.get("driver_feature") == 1
        bench.set("queue_select", 7)
        assert bench.get("queue_size") == 0
        bench.set("device_status", 0)
        assert bench.get("device_status") == 0 and bench.get("driver_feature") == 0


def test_capabilities_tell_where_everything_is():
    with Bench(Rng()) as bench:
        for kind, name in ((1, "common"), (2, "notify"), (3, "isr"), (4, "config")):
            at = capability(bench.card, 9, kind)
            assert bench.read_config(at + 4, 1) == 0
            assert bench.read_config(at + 8, 4) == pci.LAYOUT[name]
        window = capability(bench.card, 9, 5)
        bench.write_config(window + 4, 1, 0)
        bench.write_config(window + 8, 4, 18)  # num_queues
        bench.write_config(window + 12, 4, 2)
        assert bench.read_config(window + 16, 2) == 1
        bench.write_config(window + 8, 4, 20)  # device_status
        bench.write_config(window + 12, 4, 1)
        bench.write_config(window + 16, 1, 3)
        assert bench.get("device_status") == 3
        for offset, size in ((0x8000, 4), (0xFFFFFFFC, 4), (2, 4), (0, 3)):  # ignored
            bench.write_config(window + 8, 4, offset)
            bench.write_config(window + 12, 4, size)
            bench.write_config(window + 16, 4, 0xFFFFFFFF)
            bench.read_config(window + 16, 4)
        assert bench.read_config(0, 4) == 0x1044_1AF4


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_device_writes_is_marked(packed):
    with Bench(Rng()) as bench:
        driver = bench.driver(packed=packed)
        bench.ram.view(0, 4096)
        at = bench.allocate(3 * 4096, 4096)
        queue = driver.queues[0]
        bench.next_page = at + 3 * 4096
        assert at not in bench.ram.dirty_pages(at, 3 * 4096)
        queue._pool[4096 + 10] = [at + 4090]
        driver.request(0, [], [4096 + 10])
        assert bench.ram.dirty_pages(at, 3 * 4096) == [at, at + 4096, at + 8192][:3]


def test_memory_above_4_gib_is_memory():
    with Bench(Rng()) as bench:
        driver = bench.driver()
        queue = driver.queues[0]
        struct.pack_into("<QIHH", queue.view, queue.desc, HIGH + 0x1000, 64, WRITE, 0)
        queue.put16(queue.driver_area + 2, 1)
        bench.notify(0)
        bench.settle()
        assert bytes(bench.ram.view(HIGH + 0x1000, 64)) != bytes(64)


@pytest.mark.parametrize("packed", [False, True])
def test_a_reset_in_the_middle_makes_chains_void(packed):
    with Bench(Echo()) as bench:
        driver = bench.driver(packed=packed)
        bench.device.hold = True
        queue = driver.queues[0]
        for _ in range(5):
            queue.add([b"abc"], [8])
        queue.kick()
        bench.settle()
        held = list(bench.device.held)
        assert len(held) == 5
        bench.set("device_status", 0)
        before = bytes(queue.view[0x100000 : 0x100000 + (1 << 20)])
        for request in held:
            assert request.readable == [] and request.write(b"zzz") == 0
            request.push()
            request.give_back()
        assert bytes(queue.view[0x100000 : 0x100000 + (1 << 20)]) == before
        bench.device.hold = False
        driver = bench.driver(packed=not packed)
        assert driver.request(0, [b"again"], [8]) == (b"again", 5)


@pytest.mark.parametrize("packed", [False, True])
def test_one_queue_can_be_reset(packed):
    with Bench(Echo()) as bench:
        driver = bench.driver(packed=packed)
        driver.request(0, [b"a"], [1])
        driver.reset_queue(0)
        assert driver.request(1, [b"b"], [1]) == (b"b", 1)
        driver.queues[0] = driver.set_up(0, 4)
        assert driver.request(0, [b"c"], [1]) == (b"c", 1)


@pytest.mark.parametrize("way", WAYS)
def test_saved_and_loaded_with_chains_in_the_device_s_hands(way):
    with Bench(Echo()) as bench:
        driver = bench.driver(**way, size=8)
        queue = driver.queues[0]
        for i in range(21):
            driver.request(0, [b"%d" % i], [4])
        bench.device.hold = True
        tokens = [queue.add([b"held %d" % i], [16]) for i in range(3)]
        queue.kick()
        bench.settle()
        bench.device.held[1].write(b"second")
        bench.device.held[1].push()
        state = bench.card.save()
        with Bench(Echo()) as other:
            other.ram.view(0, MEMORY)[:] = bench.ram.view(0, MEMORY)
            other.next_page = bench.next_page
            other.card.load(state)
            assert other.card.save() == state
            driver.bench = queue.bench = other
            queue.view = other.ram.view(0, MEMORY)
            other.settle()
            answers = queue.collect()
            assert [answers[token][0] for token in tokens] == [b"held 0", b"second", b"held 2"]
            assert other.device.seen == [b"held 0", b"held 2"]
            for i in range(30):
                assert driver.request(0, [b"%d" % i], [4])[0] == b"%d" % i


def test_a_guest_that_never_stops_doesn_t_keep_the_loop():
    class Endless(Device):
        name, id, queue_sizes = "endless", 63, (4,)
        taken = 0

        def notified(self, queue):
            for request in queue:
                self.taken += 1
                q = driver.queues[0]
                q.put16(q.driver_area + 2, q.get16(q.driver_area + 2) + 1)  # there is always one more
                request.push()

    with Bench(Endless()) as bench:
        driver = bench.driver()
        q = driver.queues[0]
        struct.pack_into("<QIHH", q.view, q.desc, 0x100000, 16, WRITE, 0)
        for i in range(4):
            q.put16(q.driver_area + 4 + 2 * i, 0)
        q.put16(q.driver_area + 2, 1)
        bench.notify(0)
        ticks = []
        bench.loop.call_later(0, lambda: ticks.append(bench.device.taken))
        bench.settle()
        first = bench.device.taken
        assert ticks and 0 < first
        bench.settle()
        assert bench.device.taken > first and not driver.broken


def test_without_bus_mastering_nothing_moves():
    with Bench(Echo()) as bench:
        driver = bench.driver()
        queue = driver.queues[0]
        bench.write_config(4, 2, 2)
        queue.add([b"a"], [1])
        queue.kick()
        bench.settle()
        assert queue.collect() == {}
        bench.write_config(4, 2, 6)
        bench.settle()
        assert len(queue.collect()) == 1 and bench.interrupts() == [1]


AT, TABLE = 0x300000, 0x310000
# what is wrong, the ring's descriptors (address, length, flags), an indirect table at TABLE; of a split ring a next
# descriptor follows the one before
WRONG = [
    ("bad length", [(AT, 0, 0)], []),
    ("bad length", [(AT, 1 << 24, NEXT | WRITE)] * 3 + [(AT, 0, WRITE)], []),
    ("buffer outside memory", [(MEMORY, 1, 0)], []),
    ("buffer outside memory", [(MEMORY - 8, 9, WRITE)], []),
    ("buffer outside memory", [((1 << 64) - 8, 16, 0)], []),
    ("buffer outside memory", [(AT, 0xFFFFFFFF, 0)], []),
    ("readable behind writable", [(AT, 8, WRITE | NEXT), (AT, 8, 0)], []),
    ("loop", [(AT, 8, NEXT)] * 8, []),
    ("bad indirect table", [(TABLE, 16, INDIRECT | NEXT), (AT, 8, 0)], [(AT, 8, 0, 0)]),
    ("bad indirect table", [(TABLE, 24, INDIRECT)], [(AT, 8, 0, 0)]),
    ("bad indirect table", [(TABLE, 0, INDIRECT)], []),
    ("bad indirect table", [(TABLE, 16, INDIRECT)], [(TABLE, 16, INDIRECT, 0)]),
    ("buffer outside memory", [(MEMORY - 16, 32, INDIRECT)], []),
    ("loop", [(TABLE, 16 * 1025, INDIRECT)], [(AT, 8, NEXT, n + 1) for n in range(1025)]),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reason, ring, table", WRONG)
def test_each_wrong_chain_breaks_the_device_for_its_reason(reason, ring, table, packed):
    with Bench(Echo()) as bench:
        driver = bench.driver(packed=packed, size=8, indirect=True)
        q = driver.queues[0]
        for n, (address, length, flags) in enumerate(ring):
            if packed:
                struct.pack_into("<QIHH", q.view, q.desc + 16 * n, address, length, 0, flags | 0x80)
            else:
                struct.pack_into("<QIHH", q.view, q.desc + 16 * n, address, length, flags, (n + 1) % 8)
        for n, (address, length, flags, following) in enumerate(table):
            last = (0, flags & ~NEXT) if packed else (flags, following)
            struct.pack_into("<QIHH", q.view, TABLE + 16 * n, address, length, *last)
        q.put16(q.driver_area + 2, 0 if packed else 1)
        bench.notify(0)
        bench.settle()
        assert bench.card.wires.broken_by() == {reason: 1} and driver.broken
        assert bench.interrupts() == [0]  # a configuration change says so
        assert bench.device.seen == []
        bench.notify(1)
        bench.settle()
        assert bench.card.wires.broken_by() == {reason: 1}  # and nothing else happens
        assert bench.driver(packed=packed).request(0, [b"x"], [1]) == (b"x", 1)


def test_heads_and_indices_of_a_split_ring_that_can_t_be():
    for avail, entries, chain, reason in (
        (9, [0] * 9, (AT, 8, 0, 0), "avail index jumped"),
        (1, [8], (AT, 8, 0, 0), "no such head"),
        (1, [0], (AT, 8, NEXT, 8), "no such next descriptor"),
        (2, [0, 0], (AT, 8, 0, 0), "chain made available twice"),
    ):
        with Bench(Echo()) as bench:
            bench.device.hold = True
            driver = bench.driver(size=8)
            q = driver.queues[0]
            struct.pack_into("<QIHH", q.view, q.desc, *chain)
            for n, head in enumerate(entries[:8]):
                q.put16(q.driver_area + 4 + 2 * n, head)
            q.put16(q.driver_area + 2, avail)
            bench.notify(0)
            bench.settle()
            assert bench.card.wires.broken_by() == {reason: 1}


def test_more_in_a_packed_ring_than_it_holds():
    with Bench(Echo()) as bench:
        bench.device.hold = True
        driver = bench.driver(packed=True, size=8)
        q = driver.queues[0]
        for _ in range(8):
            q.add([b"a"], [])
        q.kick()
        bench.settle()
        q.put16(q.desc + 14, 0x8000)  # the first again, of the next round
        bench.notify(0)
        bench.settle()
        assert bench.card.wires.broken_by() == {"chain made available twice": 1} and len(bench.device.held) == 8


def test_rings_that_can_t_be():
    for name, value in (("desc", MEMORY - 16), ("desc", 8), ("driver", 1), ("device", (1 << 64) - 4), ("size", 3)):
        with Bench(Echo()) as bench:
            with pytest.raises(AssertionError):
                bench.driver(queues=[])
                bench.set("queue_select", 0)
                bench.set("queue_size", 8)
                if name == "size":
                    bench.set("queue_size", value)
                else:
                    bench.set(f"queue_{name}", value & 0xFFFFFFFF)
                    bench.set(f"queue_{name}_high", value >> 32)
                bench.set("queue_enable", 1)
                assert bench.get("queue_enable") == 1
            assert bench.card.wires.broken_by() == {"ring outside memory": 1}
