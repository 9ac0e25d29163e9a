"""The network card against a driver: frames both ways with and without everything that can be negotiated, hostile
headers, filters, limits, back-pressure, saved state."""

import os
import random
import socket
import struct
import time

import pytest
from tests.devices.virtio import packets
from tests.devices.virtio.driver import Bench

from hostel.devices.virtio import net
from hostel.devices.virtio.net import Net
from hostel.spec.net import NicSpec

MAC = "02:00:00:00:00:01"
OWN, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
WAYS = [dict(packed=p, indirect=i) for p in (False, True) for i in (False, True)]
PLAIN = bytes(12)
NO_OFFLOADS = 1 << net.MAC | 1 << net.STATUS
MERGEABLE = NO_OFFLOADS | 1 << net.MRG_RXBUF
RX, TX = 0, 1


class Wires:
    """One end of a pair, or of several, for the card; ``peers`` are the others'."""

    def __init__(self, count=1, ufo=True, uso=True):
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        self._held = [ours for ours, _ in pairs]
        self.peers = [theirs for _, theirs in pairs]
        for sock in [*self._held, *self.peers]:
            sock.setblocking(False)
        self.fds = [sock.fileno() for sock in self._held]
        self.ufo, self.uso = ufo, uso
        self.counters = None

    @property
    def peer(self):
        return self.peers[0]

    def close(self):
        for sock in [*self._held, *self.peers]:
            sock.close()


@pytest.fixture
def wires():
    made = []

    def make(*args, **more):
        made.append(Wires(*args, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def eth(payload=b"", to=OTHER, source=OWN, kind=0x88B5):
    return to + source + struct.pack("!H", kind) + payload


def incoming(payload=b"", to=OWN):
    return eth(payload, to, OTHER)


def received(peer):
    out = []
    while True:
        try:
            out.append(peer.recv(70000))
        except BlockingIOError:
            return out


def collect(bench, driver, count, queue=RX):
    """That many used buffers, in order."""
    found = {}
    bench.wait(lambda: found.update(driver.queues[queue].collect()) or len(found) >= count)
    return [found[token] for token in sorted(found)]


def control(driver, group, command, data=b"", queue=2):
    return driver.request(queue, [bytes([group, command]), data] if data else [bytes([group, command])], [1])[0]


@pytest.mark.parametrize("way", WAYS)
def test_frames_go_out(wires, way):
    ends = wires()
    rnd = random.Random(2)
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver(**way)
        sent = [eth(rnd.randbytes(rnd.randint(1, 1486))) for _ in range(300)]
        for frame in sent:
            cuts = sorted(rnd.sample(range(1, len(frame)), rnd.randint(0, 3)))
            whole = PLAIN + frame
            pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
            assert driver.request(TX, pieces)[1] == 0
            assert received(ends.peer) == [whole]
        assert bench.device.statistics()["tx_frames"] == 300


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("features", [None, MERGEABLE, NO_OFFLOADS])
def test_frames_come_in(wires, way, features):
    ends = wires()
    rnd = random.Random(3)
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver(features=features, **way)
        queue = driver.queues[RX]
        for _ in range(200):
            frame = PLAIN + incoming(rnd.randbytes(rnd.randint(1, 1486)))
            ends.peer.send(frame)
            bench.settle()
            queue.add([], [100, 12, 1500, 30])
            queue.kick()
            ((data, length),) = collect(bench, driver, 1)
            assert length == len(frame) and data[10:12] == b"\1\0" and data[:10] + b"\0\0" + data[12:] == frame
        assert bench.device.statistics()["rx_frames"] == 200


def merged(answers):
    """The frame of buffers that belong together, and how many they are."""
    count = struct.unpack_from("<H", answers[0][0], 10)[0]
    return b"".join(data for data, _ in answers[:count]), count


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [64, 300, 1526, 4096])
def test_large_frames_take_as_many_buffers_as_they_need(wires, way, size):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver(**way)
        for length in (1, 3000, 9000, 65000 if size > 300 else 12000):
            header, frame = packets.large(4, 6, os.urandom(length), 1448)
            frame = OWN + frame[6:]
            queue = driver.queues[RX]
            needed = -(-(12 + len(frame)) // size)
            ends.peer.send(header + frame)
            for _ in range(needed - 1):
                queue.add([], [size])
            queue.kick()
            bench.settle()
            assert not queue.collect()  # not yet: there are too few
            queue.add([], [size])
            queue.kick()
            data, count = merged(collect(bench, driver, needed))
            assert count == needed
            assert data[:10] == header[:10] and data[12:] == frame
            # And at once, where there are enough from the beginning.
            for _ in range(needed + 1):
                queue.add([], [size])
            queue.kick()
            bench.settle()
            ends.peer.send(header + frame)
            ends.peer.send(PLAIN + incoming(b"x"))
            answers = collect(bench, driver, needed + 1)
            assert merged(answers)[0][12:] == frame and merged(answers[needed:])[0][12:] == incoming(b"x")
        assert not driver.broken


def test_a_guest_that_takes_nothing_large_gets_small_frames(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver(features=NO_OFFLOADS)
        payload = os.urandom(20000)
        header, frame = packets.large(4, 6, payload, 1448)
        ends.peer.send(header + OWN + frame[6:])
        for _ in range(5):
            driver.queues[RX].add([], [1526])
        driver.queues[RX].kick()
        answers = collect(bench, driver, 5)
        for _ in range(20):
            driver.queues[RX].add([], [1526])
        driver.queues[RX].kick()
        answers += collect(bench, driver, 14 - 5)
        got = b""
        for data, length in answers:
            assert data[:12] == bytes(10) + b"\1\0" and length <= 1526
            got += packets.parse(data[12:])["payload"]
        assert got == payload


def test_checksums_are_finished_for_who_cannot(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver(features=MERGEABLE)
        _, frame = packets.large(6, 6, b"some bytes", 0)
        ends.peer.send(packets.net_header(1, start=54, offset=16) + OWN + frame[6:])
        driver.queues[RX].add([], [2000])
        driver.queues[RX].kick()
        ((data, _),) = collect(bench, driver, 1)
        assert data[:2] == b"\0\0" and packets.parse(data[12:])["payload"] == b"some bytes"


def test_a_frame_larger_than_the_buffers_is_dropped_without_merging(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver(features=NO_OFFLOADS)
        ends.peer.send(PLAIN + incoming(bytes(1000)))
        ends.peer.send(PLAIN + incoming(b"small"))
        driver.queues[RX].add([], [200])
        driver.queues[RX].kick()
        ((data, _),) = collect(bench, driver, 1)
        assert data[12:] == incoming(b"small")
        assert bench.device.statistics()["no_room"] == 1


def test_only_its_own_mac_may_send(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        driver.request(TX, [PLAIN + eth(b"no", source=OTHER)])
        driver.request(TX, [PLAIN + eth(b"yes")])
        assert received(ends.peer) == [PLAIN + eth(b"yes")]
        assert bench.device.statistics()["spoofed"] == 1
        assert control(driver, net.MAC_CLASS, net.ADDR_SET, OTHER) == net.ERR
        assert control(driver, net.MAC_CLASS, net.ADDR_SET, OWN) == net.OK
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC, spoof=True), ends)) as bench:
        driver = bench.driver()
        assert control(driver, net.MAC_CLASS, net.ADDR_SET, OTHER) == net.OK
        driver.request(TX, [PLAIN + eth(b"yes", source=bytes(5) + b"\7")])
        assert len(received(ends.peer)) == 1
        assert bytes(bench.device_config(i, 1) for i in range(6)) == OTHER


HEADERS = [
    (packets.net_header(1, start=14, offset=2000), "malformed"),
    (packets.net_header(1, start=65535, offset=65535), "malformed"),
    (packets.net_header(1, start=0, offset=0), "malformed"),
    (packets.net_header(0, packets.TCPV4, size=100), "malformed"),
    (packets.net_header(1, packets.TCPV4, size=0, start=34, offset=16), "malformed"),
    (packets.net_header(1, 99, size=100, start=34, offset=16), "malformed"),
    (packets.net_header(1, packets.UDP | packets.ECN, size=100, start=34, offset=6), "malformed"),
    (packets.net_header(1, packets.TCPV4, hdr_len=65535, size=100, start=34, offset=16), "malformed"),
]


@pytest.mark.parametrize("header, counter", HEADERS)
def test_headers_that_make_no_sense_reach_nobody(wires, header, counter):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        driver.request(TX, [header + eth(bytes(100))])
        assert received(ends.peer) == []
        assert bench.device.statistics()[counter] == 1
        driver.request(TX, [PLAIN + eth(b"fine")])
        assert len(received(ends.peer)) == 1 and not driver.broken


def test_what_was_not_negotiated_is_not_obeyed(wires):
    ends = wires(ufo=False, uso=False)
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        assert not driver.features >> net.HOST_UFO & 1 and not driver.features >> net.HOST_USO & 1
        for kind in (117, 17):
            header, frame = packets.large(4, kind, bytes(3000), 1000)
            driver.request(TX, [header + OTHER + OWN + frame[12:]])
        assert bench.device.statistics()["malformed"] == 2
        driver = bench.driver(features=NO_OFFLOADS)
        header, frame = packets.large(4, 6, bytes(3000), 1000)
        driver.request(TX, [header + OTHER + OWN + frame[12:]])
        driver.request(TX, [packets.net_header(1, start=34, offset=16) + eth(bytes(100))])
        assert bench.device.statistics()["malformed"] == 4
        assert received(ends.peer) == []


def test_lengths(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC, mtu=1500), ends)) as bench:
        driver = bench.driver()
        for pieces in ([b"x"], [PLAIN], [PLAIN + bytes(13)], [bytes(60000), bytes(60000)]):
            driver.request(TX, pieces)
        assert bench.device.statistics()["malformed"] == 4
        driver.request(TX, [PLAIN + eth(bytes(1505))])
        assert bench.device.statistics()["too_long"] == 1
        driver.request(TX, [PLAIN + eth(bytes(1500))])
        driver.request(TX, [PLAIN + eth(b"")])
        assert [len(frame) for frame in received(ends.peer)] == [12 + 1514, 26]
        token = driver.queues[TX].add([PLAIN + eth(b"")], [10])  # nothing to write in a frame that goes out
        driver.queues[TX].kick()
        bench.settle()
        assert token in driver.queues[TX].collect() and bench.device.statistics()["malformed"] == 5
        assert not driver.broken


def test_a_frame_in_a_thousand_pieces(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver(indirect=True)
        whole = PLAIN + eth(os.urandom(1400))
        step = [whole[i : i + 2] for i in range(0, len(whole), 2)]
        driver.request(TX, step[:1000] + [b"".join(step[1000:])] if len(step) > 1000 else step)
        assert received(ends.peer) == [whole]
        driver.queues[RX].add([], [3] * 900)
        driver.queues[RX].kick()
        ends.peer.send(PLAIN + incoming(bytes(1000)))
        ((data, _),) = collect(bench, driver, 1)
        assert data[12:] == incoming(bytes(1000))


def test_a_buffer_smaller_than_the_header_breaks_the_device(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        driver.queues[RX].add([], [11])
        driver.queues[RX].kick()
        ends.peer.send(PLAIN + incoming(b""))
        bench.wait(lambda: driver.broken)


def test_filters(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        group, stranger = bytes.fromhex("01005e000001"), bytes.fromhex("020000000009")

        def wanted(to, kind=0x88B5, tag=b""):
            before = bench.device.statistics()["filtered"]
            ends.peer.send(PLAIN + to + OTHER + (tag or struct.pack("!H", kind)) + bytes(50))
            driver.queues[RX].add([], [2000])
            driver.queues[RX].kick()
            bench.settle()
            return bool(driver.queues[RX].collect()), bench.device.statistics()["filtered"] - before

        assert wanted(OWN) == (True, 0)
        assert wanted(b"\xff" * 6) == (True, 0)
        assert wanted(group) == (False, 1)
        assert wanted(stranger) == (False, 1)
        one = struct.pack("<I", 1)
        assert control(driver, net.MAC_CLASS, net.TABLE_SET, one + stranger + one + group) == net.OK
        assert wanted(group) == wanted(stranger) == (True, 0)
        many = struct.pack("<I", 200) + bytes(1200)
        assert control(driver, net.MAC_CLASS, net.TABLE_SET, bytes(4) + many) == net.OK
        assert wanted(group) == (True, 0) and wanted(stranger) == (False, 1)
        assert control(driver, net.MAC_CLASS, net.TABLE_SET, bytes(8)) == net.OK
        for command, to, before, after in (
            (0, stranger, False, True), (1, group, False, True), (2, stranger, False, True), (3, group, False, False),
            (4, OWN, True, False), (5, b"\xff" * 6, True, False),
        ):
            assert wanted(to)[0] == before
            assert control(driver, net.RX, command, b"\1") == net.OK
            assert wanted(to)[0] == after, command
            assert control(driver, net.RX, command, b"\0") == net.OK
        tag = b"\x81\x00\x00\x05\x88\xb5"
        assert wanted(OWN, tag=tag) == (False, 1)
        assert control(driver, net.VLAN, net.VLAN_ADD, b"\5\0") == net.OK
        assert wanted(OWN, tag=tag) == (True, 0)
        assert control(driver, net.VLAN, net.VLAN_DEL, b"\5\0") == net.OK
        assert wanted(OWN, tag=tag) == (False, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\0", b"\0\0", b"\0\6\1", b"\0\0\2", b"\1\0", b"\1\0\1\0\0\0", b"\1\0\xff\xff\xff\xff" + bytes(100),
        b"\1\1\1\2", b"\1\1\1\1\1\1\1\1\1", b"\1\2", b"\2\0\0\x10", b"\2\2\0\0", b"\3\1", b"\4\0\0\0",
        b"\4\0\1\0", b"\5\0", b"\x63\0",
        b"\5\0" + b"\xff" * 8,
    ],
)  # fmt: skip
def test_commands_that_make_no_sense(wires, data):
    with Bench(Net(NicSpec(mac=MAC), wires())) as bench:
        driver = bench.driver()
        assert driver.request(2, [data], [1])[0] == net.ERR
        assert not driver.broken


def test_a_command_without_room_for_its_answer(wires):
    with Bench(Net(NicSpec(mac=MAC), wires())) as bench:
        driver = bench.driver()
        driver.queues[2].add([b"\0\0\1"], [])
        driver.queues[2].kick()
        bench.wait(lambda: driver.broken)


def test_offloads_can_be_switched_off(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        assert control(driver, net.OFFLOADS, 0, bytes(8)) == net.OK
        header, frame = packets.large(4, 6, os.urandom(4000), 1448)
        ends.peer.send(header + OWN + frame[6:])
        for _ in range(3):
            driver.queues[RX].add([], [2000])
        driver.queues[RX].kick()
        assert [len(packets.parse(data[12:])["payload"]) for data, _ in collect(bench, driver, 3)] == [1448, 1448, 1104]


def test_back_pressure(wires):
    """A full socket holds the queue; frames go on in order when there is room."""
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        header, frame = packets.large(4, 6, bytes(60000), 1448)
        frame = OTHER + OWN + frame[12:]
        total = 40
        for number in range(total):
            driver.queues[TX].add([header, frame[:-4] + struct.pack("<I", number)], [])
        driver.queues[TX].kick()
        bench.settle()
        first = driver.queues[TX].collect()
        assert 0 < len(first) < total
        got = []

        def drained():
            got.extend(received(ends.peer))
            return len(got) == total

        bench.wait(drained)
        assert [struct.unpack("<I", data[-4:])[0] for data in got] == list(range(total))
        bench.settle()
        assert len(driver.queues[TX].collect()) + len(first) == total


def test_without_buffers_nothing_is_read(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        bench.driver()
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                ends.peer.send(PLAIN + incoming(bytes(60000)))
                sent += 1
                bench.settle()
        assert sent < 20
        assert bench.device.statistics()["rx_frames"] == 0


def test_one_interrupt_a_batch(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        for _ in range(50):
            driver.queues[RX].add([], [1526])
        driver.queues[RX].kick()
        bench.settle()
        bench.interrupts()
        for _ in range(50):
            ends.peer.send(PLAIN + incoming(b"x"))
        found = {}
        interrupts = []
        bench.wait(lambda: interrupts.extend(bench.interrupts()) or found.update(driver.queues[RX].collect())
                   or len(found) == 50)
        assert len(interrupts) <= 2


def test_the_other_end_goes_away(wires):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver()
        driver.queues[RX].add([], [1526])
        driver.queues[RX].kick()
        bench.settle()
        bench.interrupts()
        assert bench.device_config(6, 2) == net.LINK_UP
        ends.peer.close()
        bench.wait(lambda: bench.device_config(6, 2) == 0)
        assert 0 in bench.interrupts()
        driver.queues[TX].add([PLAIN + eth(b"x")], [])
        driver.queues[TX].kick()
        bench.settle()
        assert not driver.broken and not bench.device.statistics()["link"]


def test_a_rate(wires):
    """In the long run no more than the rate and the burst."""
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC, rate=200_000, burst=5_000), ends)) as bench:
        driver = bench.driver()
        start = time.monotonic()
        for _ in range(100):
            driver.queues[TX].add([PLAIN + eth(bytes(986))], [])
        driver.queues[TX].kick()
        sent = []
        bench.wait(lambda: sent.extend(received(ends.peer)) or len(sent) == 100)
        assert time.monotonic() - start > (100_000 - 5_000 - 2_000) / 200_000
        start = time.monotonic()
        for _ in range(60):
            driver.queues[RX].add([], [1526])
            ends.peer.send(PLAIN + incoming(bytes(986)))
        driver.queues[RX].kick()
        assert len(collect(bench, driver, 60)) == 60
        assert time.monotonic() - start > (60_000 - 5_000 - 2_000) / 200_000


def test_several_queues(wires):
    ends = wires(2)
    with Bench(Net(NicSpec(mac=MAC, queues=2), ends)) as bench:
        driver = bench.driver()
        assert bench.device_config(8, 2) == 2
        for number in range(2):
            driver.queues[2 * number].add([], [1526])
            driver.queues[2 * number].kick()
        ends.peers[1].send(PLAIN + incoming(b"second"))
        bench.settle()
        assert not driver.queues[2].collect()  # one pair, until the driver wants more
        assert control(driver, net.MQ_CLASS, 0, b"\2\0", queue=4) == net.OK
        assert collect(bench, driver, 1, queue=2)[0][0][12:] == incoming(b"second")
        driver.request(3, [PLAIN + eth(b"out")])
        assert received(ends.peers[1]) == [PLAIN + eth(b"out")] and received(ends.peers[0]) == []
        assert control(driver, net.MQ_CLASS, 0, b"\3\0", queue=4) == net.ERR


def test_several_queues_over_one_socket(wires):
    ends = wires(1)
    with Bench(Net(NicSpec(mac=MAC, queues=2), ends)) as bench:
        driver = bench.driver()
        assert control(driver, net.MQ_CLASS, 0, b"\2\0", queue=4) == net.OK
        for queue in (1, 3):
            driver.request(queue, [PLAIN + eth(b"out")])
        assert received(ends.peer) == [PLAIN + eth(b"out")] * 2
        for number in range(2):
            driver.queues[2 * number].add([], [1526])
            driver.queues[2 * number].kick()
        ends.peer.send(PLAIN + incoming(b"in"))
        assert collect(bench, driver, 1)[0][0][12:] == incoming(b"in")


def test_announcing(wires):
    with Bench(Net(NicSpec(mac=MAC), wires())) as bench:
        driver = bench.driver()
        bench.device.announce()
        assert bench.device_config(6, 2) == net.LINK_UP | net.ANNOUNCE
        assert bench.interrupts() == [0]
        assert control(driver, net.ANNOUNCE_CLASS, 0) == net.OK
        assert bench.device_config(6, 2) == net.LINK_UP


@pytest.mark.parametrize("packed", [False, True])
def test_saved_and_loaded(wires, packed):
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC), ends)) as bench:
        driver = bench.driver(packed=packed)
        group = bytes.fromhex("01005e000001")
        assert control(driver, net.MAC_CLASS, net.TABLE_SET, bytes(4) + struct.pack("<I", 1) + group) == net.OK
        assert control(driver, net.OFFLOADS, 0, bytes(8)) == net.OK
        queue = driver.queues[RX]
        queue.add([], [100])
        queue.kick()
        ends.peer.send(PLAIN + incoming(bytes(500)))  # waits for buffers, in the card
        bench.settle()
        assert not queue.collect()
        state = bench.card.save()
        memory = bytes(bench.ram.view(0, bench.next_page))
        again = Net(NicSpec(mac=MAC), ends)
        with Bench(again) as other:
            other.ram.write(0, memory)
            other.card.load(state)
            driver.bench = queue.bench = other
            for each in driver.queues.values():
                each.bench, each.view, each.ram = other, other.ram.view(0, len(queue.view)), other.ram
            other.next_page = bench.next_page
            bench.card.close()
            for _ in range(5):
                queue.add([], [200])
            queue.kick()
            data, count = merged(collect(other, driver, 4))
            assert data[12:] == incoming(bytes(500)) and count == 4  # 100 and three of 200
            ends.peer.send(PLAIN + incoming(b"multi", to=group))
            assert collect(other, driver, 1)[0][0][12:] == incoming(b"multi", to=group)
            bench.card.close = lambda: None


@pytest.mark.parametrize("seed", range(20))
def test_anything_on_any_queue(wires, seed):
    """Chains of any shape and content, with traffic: never an error of ours, and the card works after a reset."""
    rnd = random.Random(seed)
    ends = wires()
    with Bench(Net(NicSpec(mac=MAC, spoof=bool(seed & 1)), ends)) as bench:
        features = rnd.choice([None, None, MERGEABLE, NO_OFFLOADS, rnd.getrandbits(64)])
        driver = bench.driver(packed=rnd.random() < 0.5, indirect=rnd.random() < 0.5, features=features, size=64)
        for _ in range(150):
            if driver.broken:
                driver = bench.driver(packed=rnd.random() < 0.5, size=64)
            queue = driver.queues[rnd.randrange(3)]
            header = packets.net_header(*(rnd.choice([0, 1, 3, 4, 5, 14, 34, 54, 1448, 65535]) & 0xFFFF if i > 1 else
                                          rnd.choice([0, 1, 3, 4, 5, 129]) for i in range(7)))
            body = rnd.choice([header + eth(rnd.randbytes(rnd.randint(0, 3000))), rnd.randbytes(rnd.randint(1, 300)),
                               header + packets.large(rnd.choice([4, 6]), rnd.choice([6, 17, 117]), bytes(3000), 9)[1]])
            readable = rnd.choice([[], [body], [body[:20], body[20:]] if len(body) > 20 else [body]])
            writable = [rnd.choice([1, 12, 26, 60, 1526, 5000]) for _ in range(rnd.choice([0, 1, 1, 3]))]
            if not readable and not writable:
                continue
            try:
                queue.add(readable, writable)
                queue.kick()
            except BufferError:
                bench.settle()
            try:
                ends.peer.send(body if rnd.random() < 0.5 else PLAIN + incoming(bytes(rnd.randint(0, 3000))))
            except BlockingIOError:
                pass
            if rnd.random() < 0.3:
                bench.settle()
                queue.collect()
                received(ends.peer)
        received(ends.peer)
        driver = bench.driver()
        bench.settle()
        received(ends.peer)
        driver.request(TX, [PLAIN + eth(b"still")])
        bench.wait(lambda: PLAIN + eth(b"still") in received(ends.peer))
