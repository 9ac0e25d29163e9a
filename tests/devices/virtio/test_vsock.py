"""vsock against a driver: connections either way, credit, half-closes, resets, and guests that lie."""

import contextlib
import os
import random
import socket
import struct

import pytest
from tests.devices.virtio.driver import Bench

from hostel.devices.virtio import vsock
from hostel.devices.virtio.vsock import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    Vsock,
)

HEADER = struct.Struct("<QQIIIHHIII")
CID = vsock.GUEST_CID


class Broker:
    """Connects at once, to sockets of ours: ``here[port]`` gets the other ends."""

    def __init__(self):
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.answers = []
        self.here = {}

    def ask(self, number, port):
        if port == 666:
            return False
        if port in self.here:
            ours, theirs = socket.socketpair()
            self.here[port].append(ours)
            self.answers.append((number, theirs))
        else:
            self.answers.append((number, None))
        os.eventfd_write(self.fd, 1)
        return True

    def take(self):
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        return self.answers.pop(0) if self.answers else None


class Ends:
    def __init__(self, path):
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.listener.setblocking(False)
        self.broker = Broker()

    def close(self):
        self.listener.close()
        for each in self.broker.here.values():
            for sock in each:
                sock.close()
        os.close(self.broker.fd)


class Packet:
    def __init__(self, data):
        fields = HEADER.unpack_from(data)
        self.source, self.to, self.source_port, self.port, self.length, self.type, self.op = fields[:7]
        self.flags, self.buffer, self.forwarded = fields[7:]
        self.data = data[HEADER.size :]
        assert (self.source, self.to, self.type) == (2, CID, 1) and len(self.data) == self.length


class Guest:
    """The driver with receive buffers, and the guest's side of the protocol."""

    def __init__(self, bench, buffers=64, size=4096, **way):
        self.bench, self.size = bench, size
        self.driver = bench.driver(**way)
        self.rx = self.driver.queues[vsock.RX]
        self.inbox = []
        self.supply(buffers)

    def supply(self, count):
        for _ in range(count):
            self.rx.add([], [self.size])
        self.rx.kick()

    def send(self, op, port, host_port, data=b"", flags=0, buffer=1 << 16, forwarded=0, length=None, **over):
        values = {"source": CID, "to": 2, "type": 1} | over
        size = len(data) if length is None else length
        header = HEADER.pack(
            values["source"], values["to"], port, host_port, size, values["type"], op, flags, buffer, forwarded
        )
        self.driver.request(vsock.TX, [header, data] if data else [header])

    def collect(self, supply=True):
        got = self.rx.collect()
        self.inbox += [Packet(got[token][0]) for token in sorted(got)]
        if supply and got:
            self.supply(len(got))

    def next(self, op):
        """The next packet, which must be that."""
        self.bench.wait(lambda: self.collect() or self.inbox)
        packet = self.inbox.pop(0)
        assert packet.op == op, packet.op
        return packet

    def quiet(self):
        self.bench.settle()
        self.collect()
        return not self.inbox

    def stats(self):
        return self.bench.device.statistics()


@pytest.fixture
def guest(tmp_path):
    stack = contextlib.ExitStack()

    def make(**options):
        ends = Ends(tmp_path / f"s{random.random()}")
        stack.callback(ends.close)
        bench = stack.enter_context(Bench(Vsock(None, ends)))
        return Guest(bench, **options)

    with stack:
        yield make


def dial(guest, port, text=None):
    """A host's program that connects."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(guest.bench.device.backend.path)
    sock.settimeout(10)
    sock.sendall(b"CONNECT %d\n" % port if text is None else text)
    return sock


def established(guest, port=1024):
    """A connection from the host that the guest has accepted: (the host's socket, the host's port)."""
    sock = dial(guest, port)
    request = guest.next(REQUEST)
    assert request.port == port and request.buffer == vsock.BUFFER
    guest.send(RESPONSE, port, request.source_port)
    guest.bench.settle()
    assert sock.recv(100) == b"OK %d\n" % request.source_port
    return sock, request.source_port


def from_guest(guest, port=5000, source=77):
    here = guest.bench.device.backend.broker.here.setdefault(port, [])
    guest.send(REQUEST, source, port)
    guest.next(RESPONSE)
    here[-1].settimeout(10)
    return here[-1]


WAYS = [dict(packed=p, indirect=i) for p in (False, True) for i in (False, True)]


@pytest.mark.parametrize("way", WAYS)
def test_the_host_connects(guest, way):
    guest = guest(**way)
    assert int.from_bytes(bytes(guest.bench.device_config(i, 1) for i in range(8)), "little") == CID
    sock, port = established(guest)
    sock.sendall(b"hello")
    assert guest.next(RW).data == b"hello"
    guest.send(RW, 1024, port, b"hi there", forwarded=5)
    guest.bench.settle()
    assert sock.recv(100) == b"hi there"
    sock.close()
    assert guest.next(SHUTDOWN).flags & vsock.SHUTDOWN_SEND
    guest.send(SHUTDOWN, 1024, port, flags=3)
    guest.next(RST)
    assert guest.stats()["connections"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_the_guest_connects(guest, way):
    guest = guest(**way)
    sock = from_guest(guest)
    guest.send(RW, 77, 5000, b"question")
    assert sock.recv(100) == b"question"
    sock.sendall(b"answer")
    assert guest.next(RW).data == b"answer"
    guest.send(SHUTDOWN, 77, 5000, flags=3)
    guest.next(RST)
    assert sock.recv(100) == b""


def test_nobody_listens(guest):
    guest = guest()
    for port in (9, 666):
        guest.send(REQUEST, 77, port)
        packet = guest.next(RST)
        assert (packet.port, packet.source_port) == (77, port)
    sock = dial(guest, 1024)
    request = guest.next(REQUEST)
    guest.send(RST, 1024, request.source_port)
    guest.bench.settle()
    assert sock.recv(100) == b""
    assert guest.stats()["connections"] == 0


@pytest.mark.parametrize("text", [b"GET / HTTP/1.1\r\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT 4294967296\n",
                                  b"CONNECT 99999999999999999999999999999", b"\n", b"\0" * 40])  # fmt: skip
def test_other_greetings(guest, text):
    guest = guest()
    sock = dial(guest, 0, text)
    guest.bench.wait(lambda: guest.stats()["refused"])
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(100) == b""
    assert guest.quiet()


def test_a_greeting_in_pieces_and_what_follows_it(guest):
    guest = guest()
    sock = dial(guest, 0, b"CONN")
    guest.bench.settle()
    sock.sendall(b"ECT 12")
    guest.bench.settle()
    sock.sendall(b"34\nearly")
    request = guest.next(REQUEST)
    assert request.port == 1234
    guest.send(RESPONSE, 1234, request.source_port)
    assert guest.next(RW).data == b"early"


def test_half_closes(guest):
    guest = guest()
    sock = from_guest(guest)
    guest.send(SHUTDOWN, 77, 5000, flags=vsock.SHUTDOWN_SEND)
    guest.bench.settle()
    assert sock.recv(10) == b""
    sock.sendall(b"after")
    assert guest.next(RW).data == b"after"
    sock.close()
    assert guest.next(SHUTDOWN).flags == vsock.SHUTDOWN_SEND
    guest.send(SHUTDOWN, 77, 5000, flags=3)
    guest.next(RST)
    # The other way round.
    sock, port = established(guest)
    sock.shutdown(socket.SHUT_WR)
    assert guest.next(SHUTDOWN).flags == vsock.SHUTDOWN_SEND
    guest.send(RW, 1024, port, b"more")
    guest.bench.settle()
    assert sock.recv(10) == b"more"
    guest.send(RST, 1024, port)
    guest.bench.settle()
    assert sock.recv(10) == b"" and guest.stats()["connections"] == 0


@pytest.mark.parametrize("size", [100, 4096, 65536])
def test_much_data_either_way(guest, size):
    guest = guest(size=size, buffers=32)
    sock, port = established(guest)
    data = random.Random(size).randbytes(300_000)
    sock.setblocking(False)
    got, sent, credit = b"", 0, 1 << 16
    while len(got) < len(data):
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(data[sent : sent + 50000])
        guest.bench.settle()
        guest.collect()
        for packet in guest.inbox:
            if packet.op == RW:
                got += packet.data
        guest.inbox.clear()
        guest.send(CREDIT_UPDATE, 1024, port, forwarded=len(got) & 0xFFFFFFFF, buffer=credit)
    assert got == data
    # And back, by the credit that the device gives.
    got, sent, forwarded = b"", 0, 0
    while len(got) < len(data):
        room = vsock.BUFFER - (sent - forwarded)
        part = data[sent : sent + min(room, 30000)]
        if part:
            guest.send(RW, 1024, port, part, forwarded=len(data))
            sent += len(part)
        guest.bench.settle()
        guest.collect()
        for packet in guest.inbox:
            forwarded = max(forwarded, packet.forwarded)
        guest.inbox.clear()
        with contextlib.suppress(BlockingIOError):
            got += sock.recv(1 << 20)
        if not part and not got:
            guest.send(CREDIT_REQUEST, 1024, port, forwarded=len(data))
    assert got == data and guest.stats()["overruns"] == 0


def test_no_more_than_the_guest_has_room_for(guest):
    guest = guest()
    sock = from_guest(guest)
    guest.send(CREDIT_UPDATE, 77, 5000, buffer=1000)
    sock.sendall(bytes(5000))
    assert len(guest.next(RW).data) == 1000
    guest.next(CREDIT_REQUEST)
    assert guest.quiet()
    guest.send(CREDIT_UPDATE, 77, 5000, buffer=1000, forwarded=400)
    assert len(guest.next(RW).data) == 400


def test_a_guest_that_sends_more_than_its_credit_is_reset(guest):
    guest = guest()
    sock = from_guest(guest)
    sent = 0
    while guest.stats()["overruns"] == 0:
        guest.send(RW, 77, 5000, bytes(60000))
        sent += 60000
        assert sent < 10 << 20
    guest.bench.settle()
    guest.collect()
    assert guest.inbox[-1].op == RST
    assert sock and guest.stats()["connections"] == 0


def test_without_receive_buffers_nothing_is_lost(guest):
    guest = guest(buffers=0)
    guest.send(REQUEST, 77, 9)
    sock = dial(guest, 1024)
    guest.bench.settle()
    guest.collect(supply=False)
    assert not guest.inbox
    guest.supply(8)
    ops = [guest.next(RST).op, guest.next(REQUEST).op]
    assert ops == [RST, REQUEST] and sock


def test_answers_are_bounded(guest):
    """A guest that provokes resets and takes none has its packets wait."""
    guest = guest(buffers=0)
    tx = guest.driver.queues[vsock.TX]
    sent = done = 0
    for _ in range(40):
        with contextlib.suppress(BufferError):
            while True:
                tx.add([HEADER.pack(CID, 2, sent, 5, 0, 1, RW, 0, 0, 0)], [])
                sent += 1
        tx.kick()
        guest.bench.settle()
        done += len(tx.collect())
    assert done <= vsock.RESETS_MAX and sent > done
    guest.supply(100)
    guest.bench.wait(lambda: guest.collect() or len(guest.inbox) == sent)
    assert {packet.op for packet in guest.inbox} == {RST}


def test_packets_that_make_no_sense(guest):
    guest = guest()
    sock = from_guest(guest)
    for over in ({"source": 9}, {"source": 2}):
        guest.send(RW, 77, 5000, b"x", **over)
    guest.send(RW, 77, 5000, b"x", length=2)
    guest.driver.request(vsock.TX, [b"short"])
    assert guest.quiet()
    guest.send(RW, 78, 5000, b"x")
    guest.next(RST)
    guest.send(RST, 78, 5000)
    assert guest.quiet()
    guest.send(REQUEST, 77, 9, to=99)
    guest.next(RST)
    guest.send(REQUEST, 79, 9, type=2)
    guest.next(RST)
    guest.send(99, 77, 5000)
    guest.next(RST)
    assert sock.recv(10) == b"" and not guest.driver.broken


def test_a_buffer_that_is_no_packets(guest):
    guest = guest(buffers=0, size=43)
    guest.supply(1)
    guest.send(REQUEST, 77, 9)
    guest.bench.wait(lambda: guest.driver.broken)


def test_many_connections_and_a_reset(guest):
    guest = guest()
    here = guest.bench.device.backend.broker.here.setdefault(1, [])
    for port in range(vsock.CONNECTIONS_MAX):
        guest.send(REQUEST, port, 1)
        guest.next(RESPONSE)
    guest.send(REQUEST, 99999, 1)
    guest.next(RST)
    assert guest.stats()["connections"] == vsock.CONNECTIONS_MAX
    guest.driver = guest.bench.driver()
    assert guest.stats()["connections"] == 0
    assert all(sock.recv(1) == b"" for sock in here)


def test_saved_and_loaded(guest):
    guest = guest()
    sock = from_guest(guest)
    bench = guest.bench
    state = bench.card.save()
    memory = bytes(bench.ram.view(0, bench.next_page))
    ends = bench.device.backend
    with Bench(Vsock(None, ends)) as other:
        bench.card.close()
        bench.card.close = lambda: None
        other.ram.write(0, memory)
        other.card.load(state)
        event = guest.driver.queues[vsock.EVENT]
        event.bench, event.view, event.ram = other, other.ram.view(0, len(event.view)), other.ram
        other.next_page = bench.next_page
        event.add([], [4])
        event.kick()
        found = {}
        other.wait(lambda: found.update(event.collect()) or found)
        assert [data for data, _ in found.values()] == [bytes(4)]  # transport reset
        assert sock.recv(1) == b""


@pytest.mark.parametrize("seed", range(20))
def test_anything(guest, seed):
    rnd = random.Random(seed)
    guest = guest(packed=bool(seed & 1), size=rnd.choice([44, 45, 100, 4096]))
    here = guest.bench.device.backend.broker.here.setdefault(1, [])
    dialed = []
    known = [(5, 1), (6, 1), (5, 2), (7, vsock.FIRST_PORT), (7, vsock.FIRST_PORT + 1)]
    for _ in range(300):
        if guest.driver.broken:
            guest.driver = guest.bench.driver(packed=bool(seed & 1))
            guest.rx = guest.driver.queues[vsock.RX]
            guest.supply(32)
        what = rnd.random()
        if what < 0.7:
            port, host_port = rnd.choice(known)
            guest.send(
                rnd.choice([REQUEST, RESPONSE, RST, SHUTDOWN, RW, RW, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 99]), port,
                host_port, rnd.randbytes(rnd.choice([0, 1, 500, 9000])), rnd.choice([0, 1, 2, 3, 0xFFFFFFFF]),
                rnd.choice([0, 1, 4096, 1 << 16, 0xFFFFFFFF]), rnd.choice([0, 1, 0xFFFFFFFF]),
                length=rnd.choice([None, None, None, 0, 7, 0xFFFFFFFF]), type=rnd.choice([1, 1, 1, 1, 2]),
            )
        elif what < 0.8:
            dialed.append(dial(guest, 7))
            dialed[-1].setblocking(False)
        elif here or dialed:
            sock = rnd.choice(here + dialed)
            with contextlib.suppress(OSError):
                sock.setblocking(False)
                rnd.choice([lambda s: s.recv(4096), lambda s: s.send(bytes(5000)), lambda s: s.close(),
                            lambda s: s.shutdown(rnd.choice([0, 1, 2]))])(sock)
        guest.bench.settle()
        try:
            guest.collect()
        except BufferError:
            pass
        guest.inbox.clear()
    guest.driver = guest.bench.driver()
    guest.rx = guest.driver.queues[vsock.RX]
    guest.size = 4096
    guest.supply(32)
    guest.inbox.clear()
    guest.send(REQUEST, 77, 4)
    guest.bench.wait(lambda: guest.collect() or any(p.op == RST and p.port == 77 for p in guest.inbox))
    for sock in dialed:
        sock.close()
