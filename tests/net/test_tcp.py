"""TCP towards a guest, by hand-made segments: what a well-behaved stack never sends, too."""

import contextlib
import socket
import struct

import pytest
from card import ACK, FIN, GATEWAY, GUEST, PSH, RST, SYN, Card, Stream

from hostel.net import connection, tcp

M = 0xFFFFFFFF


@pytest.fixture
def card():
    card = Card(allow_host_loopback=True)
    yield card
    card.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        yield listener


@pytest.fixture
def pair(card, listener):
    """A connection: the guest's end, the outside's."""
    stream = Stream(card, listener.getsockname()[1]).connect()
    sock, _ = listener.accept()
    sock.settimeout(5)
    card.run()
    with sock:
        yield stream, sock


def read(card, sock, size):
    data = b""
    sock.setblocking(False)
    for _ in range(2000):
        with contextlib.suppress(BlockingIOError):
            data += sock.recv(size - len(data))
        if len(data) == size:
            break
        card.run()
    sock.settimeout(5)
    return data


def is_open(sock):
    sock.setblocking(False)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(5)


def test_syn_is_answered_when_the_outside_has_answered(card, listener):
    stream = Stream(card, listener.getsockname()[1], options=bytes((2, 4, 5, 0xB4, 1, 3, 3, 7)))
    stream.send(SYN, options=stream.options)
    card.run(0.05)
    (frame,) = [f for f in card.frames()]
    bits, window = struct.unpack_from("!HH", frame, 46 + 12)
    assert bits & 0x3F == SYN | ACK and window == 65535
    assert frame[66:] == bytes((2, 4, 5, 0xB4, 1, 3, 3, connection.SCALE))


def test_no_window_scale_unless_offered(card, listener):
    stream = Stream(card, listener.getsockname()[1])
    stream.send(SYN)
    card.run(0.05)
    (frame,) = card.frames()
    assert frame[66:] == bytes((2, 4, 5, 0xB4))


def test_refused_is_a_reset(card):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    stream = Stream(card, port)
    stream.send(SYN)
    card.run(0.05)
    ((flags, seq, ack, _, _),) = stream.segments()
    assert flags == RST | ACK and seq == 0 and ack == stream.seq + 1 & M
    assert not card.port.connections


def test_what_belongs_to_no_connection_is_reset(card):
    stream = Stream(card, 9)
    stream.send(ACK, b"data", ack=77)
    assert stream.segments() == [(RST, 77, 0, 0, b"")]
    stream.send(FIN, b"data")
    assert stream.segments() == [(RST | ACK, 0, stream.seq + 5 & M, 0, b"")]
    stream.send(RST)
    stream.send(SYN | ACK, ack=5)
    assert stream.segments() == [(RST, 5, 0, 0, b"")]


def test_data_both_ways(card, pair):
    stream, sock = pair
    stream.write(b"hello")
    assert read(card, sock, 5) == b"hello"
    sock.sendall(b"world" * 10000)
    got = b""
    for _ in range(100):
        for flags, seq, ack, _, data in stream.segments():
            assert flags & ACK and ack == stream.seq
            if data:
                assert seq == stream.ack
                stream.ack = stream.ack + len(data) & M
                got += data
                stream.send(ACK)
        if len(got) == 50000:
            break
    assert got == b"world" * 10000


def test_retransmitted_overlapping_and_early_segments(card, pair):
    stream, sock = pair
    start = stream.seq
    stream.send(PSH | ACK, b"345", seq=start + 3)      # early: dropped, and said where we are
    assert [(s[0], s[2]) for s in stream.segments()] == [(ACK, start)]
    stream.send(PSH | ACK, b"0123", seq=start)
    stream.send(PSH | ACK, b"0123", seq=start)         # again
    stream.send(PSH | ACK, b"23456789", seq=start + 2)  # half of it new
    stream.send(ACK, b"", seq=start + 10)
    assert read(card, sock, 10) == b"0123456789"
    assert stream.segments()[-1][2] == start + 10 & M
    assert is_open(sock)


def test_keep_alives_are_answered(card, pair):
    stream, _ = pair
    stream.segments()
    for data in (b"", b"x"):
        stream.send(ACK, data, seq=stream.seq - 1)
        assert [(s[0], s[2]) for s in stream.segments()] == [(ACK, stream.seq)]


@pytest.mark.parametrize("offset, closes", [(0, True), (1, False), (1000, False), (-1, False), (1 << 30, False)])
def test_only_a_reset_in_order_resets(card, pair, offset, closes):
    """RFC 5961, 3.2."""
    stream, sock = pair
    stream.segments()
    stream.send(RST, seq=stream.seq + offset)
    answers = stream.segments()
    if closes:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert not card.port.connections
    else:
        assert is_open(sock) and card.port.connections
        assert [s[0] for s in answers] == ([ACK] if 0 < offset < 65535 else [])


def test_a_syn_in_a_connection_is_challenged(card, pair):
    stream, sock = pair
    for offset in (0, 100, -1):
        stream.segments()
        stream.send(SYN, seq=stream.seq + offset)
        assert [s[0] for s in stream.segments()] == [ACK]
    assert is_open(sock)


def test_acknowledgements_of_what_was_never_sent(card, pair):
    """RFC 5961, 5."""
    stream, sock = pair
    stream.segments()
    for offset in (1, 1000, 1 << 30, -(1 << 30)):
        stream.send(PSH | ACK, b"evil", ack=stream.ack + offset)
        assert [s[2] for s in stream.segments()] == [stream.seq]
    stream.write(b"good")
    assert read(card, sock, 4) == b"good"


def test_challenges_are_few(card, pair):
    stream, _ = pair
    stream.segments()
    for _ in range(100):
        stream.send(SYN)
        card.run()
    assert len(stream.segments()) <= connection.CHALLENGES


def test_a_shut_window_is_probed_and_opens(card, pair):
    stream, sock = pair
    stream.send(ACK, window=0)
    card.run()
    stream.segments()
    sock.sendall(b"x" * 3000)
    card.run(0.1)
    assert not any(s[4] for s in stream.segments())
    card.run(2 * connection.RTO)
    probes = stream.segments()
    assert probes and all(s[:2] == (ACK, stream.ack - 1 & M) and not s[4] for s in probes)
    stream.send(ACK, window=1000)
    assert [s[4] for s in stream.segments()] == [b"x" * 536]  # who doesn't say takes so much (RFC 9293, 3.7.1)
    stream.ack = stream.ack + 536 & M
    stream.send(ACK)
    assert sum(len(s[4]) for s in stream.segments()) == 3000 - 536


def test_lost_data_comes_again(card, pair):
    stream, sock = pair
    sock.sendall(b"first")
    assert [s[4] for s in stream.segments()] == [b"first"]
    sock.sendall(b"second")
    assert [s[4] for s in stream.segments()] == [b"second"]
    for _ in range(3):
        stream.send(ACK)
    assert [s[4] for s in stream.segments()] == [b"first"]  # at once
    card.run(2 * connection.RTO)
    assert [s[4] for s in stream.segments()][0] == b"first"  # after a while
    stream.send(ACK, ack=stream.ack + 5)
    assert [s[4] for s in stream.segments()] == [b"second"]
    stream.send(ACK, ack=stream.ack + 11)
    card.run()
    assert card.network.tcp.held == 0


def test_a_part_of_a_segment_is_acknowledged(card, pair):
    stream, sock = pair
    sock.sendall(b"0123456789")
    stream.segments()
    stream.send(ACK, ack=stream.ack + 4)
    card.run(3 * connection.RTO)
    again = [(s[1], s[4]) for s in stream.segments()]
    assert again and again[0] == (stream.ack + 4 & M, b"456789")


def test_the_window_shrinks_by_what_the_outside_does_not_read(card, pair):
    stream, sock = pair
    sent = 0
    edge = 65535
    for _ in range(3000):
        size = min(8000, edge - sent)
        if size <= 0:
            break
        stream.write(bytes(size))
        sent += size
        for _, _, ack, window, _ in stream.segments():
            edge = max(edge, (ack - stream.seq & M if ack != stream.seq else 0) + sent + window)
    else:
        raise AssertionError("the window never shut")
    assert card.network.tcp.held <= connection.WINDOW
    stream.send(ACK, b"x", seq=stream.seq)  # beyond the window: not taken
    assert stream.segments()[-1][2:4] == (stream.seq, 0)
    assert len(read(card, sock, sent)) == sent
    card.run()
    assert any(window > 0 for _, _, _, window, _ in stream.segments())


def test_memory_is_bounded_whatever_was_promised(card, pair, monkeypatch):
    """What windows let in of all connections together may be more than there is: it is dropped and comes again."""
    monkeypatch.setattr(connection, "MAX_HELD", 20000)
    stream, sock = pair
    (ours,) = card.port.connections.values()
    ours.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    start, acked = stream.seq, 0
    for _ in range(6000):
        stream.write(bytes(1400))
        for segment in stream.segments():
            acked = segment[2] - start & M
        if card.network.tcp.dropped:
            break
    assert card.network.tcp.dropped and acked < (stream.seq - start & M)
    assert card.network.tcp.held <= 20000 + 1400
    assert len(read(card, sock, acked)) == acked
    stream.send(PSH | ACK, b"on we go", seq=start + acked)
    assert read(card, sock, 8) == b"on we go"


def test_unread_data_of_many_segments_is_counted(card, pair):
    """A byte a segment, never acknowledged."""
    stream, sock = pair
    for number in range(1, 101):
        sock.send(b"x")
        card.run()
        assert card.network.tcp.held == number * (1 + connection.OVERHEAD)


def test_closing_by_the_guest_first(card, pair):
    stream, sock = pair
    stream.send(FIN | ACK, b"bye")
    assert read(card, sock, 3) == b"bye" and sock.recv(1) == b""
    stream.seq += 4
    sock.sendall(b"still here")  # half closed
    assert [s[4] for s in stream.segments() if s[4]] == [b"still here"]
    stream.ack += 10
    stream.send(ACK)
    sock.close()
    assert [s[0] for s in stream.segments()] == [FIN | ACK]
    stream.ack += 1
    stream.send(ACK)
    card.run()
    assert not card.port.connections


def test_closing_by_the_outside_first(card, pair):
    stream, sock = pair
    stream.segments()
    sock.shutdown(socket.SHUT_WR)
    card.run()
    assert [s[0] for s in stream.segments()] == [FIN | ACK]
    stream.ack += 1
    stream.send(ACK)
    stream.write(b"last words")
    assert read(card, sock, 10) == b"last words"
    stream.send(FIN | ACK)
    assert stream.segments()[-1][2] == stream.seq + 1 & M
    assert sock.recv(1) == b""
    stream.send(FIN | ACK)  # TIME_WAIT: it is answered again
    assert stream.segments()[-1][2] == stream.seq + 1 & M
    assert card.network.tcp.open == 0 and len(card.port.connections) == 1
    again = Stream(card, stream.dport, sport=stream.sport)  # and the port can be used again
    again.seq = stream.seq + 1000
    again.connect()


def test_closing_at_once_from_both_sides(card, pair):
    stream, sock = pair
    stream.segments()
    sock.close()
    card.run()
    (fin,) = stream.segments()
    assert fin[0] == FIN | ACK
    stream.send(FIN | ACK)  # not having seen it
    stream.seq += 1
    assert stream.segments()[-1][2] == stream.seq & M
    stream.ack += 1
    stream.send(ACK)
    card.run()
    assert card.network.tcp.open == 0


def test_a_reset_from_outside(card, pair):
    stream, sock = pair
    stream.segments()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    card.run()
    ((flags, seq, _, _, _),) = stream.segments()
    assert flags == RST | ACK and seq == stream.ack
    assert not card.port.connections


def test_a_flood_of_syns_is_bounded(card, listener):
    for port in range(2000):
        Stream(card, listener.getsockname()[1], sport=1024 + port).send(SYN)
        if port % 16 == 0:
            card.run()
    card.run(0.1)
    assert card.port.half_open <= tcp.MAX_HALF_OPEN
    assert len(card.port.connections) <= tcp.MAX_HALF_OPEN
    for made in list(card.port.connections.values()):
        made.abort()
    assert card.port.half_open == 0


def test_connections_are_bounded_and_time_wait_makes_way(card, listener, monkeypatch):
    monkeypatch.setattr(tcp, "MAX_CONNECTIONS", 3)
    port = listener.getsockname()[1]
    streams = [Stream(card, port).connect() for _ in range(3)]
    Stream(card, port).send(SYN)
    card.run(0.05)
    assert len(card.port.connections) == 3 and card.network.tcp.dropped == 1
    sock, _ = listener.accept()
    peers = {sock}
    while len(peers) < 3:
        peers.add(listener.accept()[0])
    for peer in peers:
        peer.close()
    card.run(0.02)
    for stream in streams:
        stream.segments()
    for stream in streams:
        stream.ack += 1
        stream.send(FIN | ACK)
    card.run(0.02)
    assert card.network.tcp.open == 0 and len(card.port.connections) == 3
    Stream(card, port).connect()


def test_a_forward_to_a_guest(card):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    assert card.network.tcp.forward(card.port, theirs, GATEWAY, 4000, 80)
    stream = Stream(card, 4000, sport=80)
    ((flags, seq, _, window, _),) = stream.segments()
    assert flags == SYN and window == 65535
    stream.ack = seq + 1 & M
    stream.send(SYN | ACK, options=bytes((2, 4, 5, 0xB4)))
    stream.seq += 1
    assert [s[0] for s in stream.segments()] == [ACK]
    stream.write(b"hi")
    assert read(card, ours, 2) == b"hi"
    ours.close()


def test_initial_numbers_grow(card):
    """So that a guest takes a SYN from a port that it has in TIME_WAIT (RFC 6528)."""
    numbers = [card.network.tcp.initial_number(b"one") for _ in range(100)]
    assert all((b - a) & M < 0x80000000 for a, b in zip(numbers, numbers[1:], strict=False))
    others = {card.network.tcp.initial_number(b"%d" % i) >> 28 for i in range(200)}
    assert len(others) > 8  # but of others they tell nothing


def test_a_forward_that_is_refused(card):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    card.network.tcp.forward(card.port, theirs, GATEWAY, 4000, 80)
    stream = Stream(card, 4000, sport=80)
    ((_, seq, _, _, _),) = stream.segments()
    stream.send(RST | ACK, seq=0, ack=seq + 9)      # not for our SYN
    card.run()
    assert card.port.connections
    stream.send(RST | ACK, seq=0, ack=seq + 1)
    card.run()
    assert not card.port.connections
    assert ours.recv(1) == b""
    ours.close()


def test_one_guest_is_not_another(card, listener):
    """Addresses that aren't the guest's can't be used for a connection."""
    stream = Stream(card, listener.getsockname()[1], source=socket.inet_aton("192.0.2.1"))
    stream.send(SYN)
    assert card.frames() == [] and card.network.spoofed == 1
    assert GUEST not in card.port.neighbours
