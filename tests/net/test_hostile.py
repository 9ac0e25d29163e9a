"""Frames that make no sense, and packets for where guests may not go: dropped, counted, answered as a router would."""

import errno
import socket
import struct

import pytest
from card import ACK, DNS, GATEWAY, GATEWAY6, GUEST, GUEST6, MAC, PREFIX, SYN, Card, Stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostel.net import arp, dhcp, dns, ethernet, icmp, ipv4, ipv6
from hostel.net.checksum import checksum, total
from hostel.net.resolver import parse
from hostel.net.settings import ROUTER_MAC


@pytest.fixture
def card():
    card = Card()
    yield card
    card.close()


def four(text):
    return socket.inet_aton(text)


def six(text):
    return socket.inet_pton(socket.AF_INET6, text)


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "169.254.169.254", "10.0.2.2", "10.0.2.3", "10.0.2.99",
    "255.255.255.255", "224.0.0.251", "240.0.0.1",
    "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.2.2", "::127.0.0.1", "fe80::1", "fec0::1", "ff02::1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "fd68:6f73:7465:6c::2", "fd68:6f73:7465:6c::9", "fe80::2",
])  # fmt: skip
def test_the_host_is_out_of_reach(card, address, monkeypatch):
    """By no protocol does a socket go there."""
    def never(*args):
        raise AssertionError("a socket was made")

    v6 = ":" in address
    to, source = (six(address), GUEST6) if v6 else (four(address), GUEST)
    assert isinstance(card.network._reach(to), int)
    monkeypatch.setattr(socket, "socket", never)
    for port in (22, 80, 8000):
        Stream(card, port, address=to, source=source).send(SYN)
        card.ip(ipv4.UDP, to, struct.pack("!HHHH", 5000, port, 8, 0), source)
    echo = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, 1, 1)
    card.ip(ipv6.ICMP if v6 else ipv4.ICMP, to, echo, source)
    card.frames()
    assert not card.port.connections and not card.port.flows


def test_reachable_addresses(card):
    assert card.network._reach(four("192.0.2.7")) == "192.0.2.7"
    assert card.network._reach(six("2001:db8::7")) == "2001:db8::7"


def test_loopback_by_the_gateway_only_when_allowed():
    card = Card(allow_host_loopback=True)
    assert card.network._reach(GATEWAY) == "127.0.0.1" and card.network._reach(GATEWAY6) == "::1"
    assert card.network._reach(DNS) == errno.ECONNREFUSED
    assert card.network._reach(four("127.0.0.1")) == errno.EACCES
    card.close()


def test_an_internal_network_has_no_way_out():
    card = Card(internal=True)
    assert card.network._reach(four("192.0.2.7")) == card.network._reach(six("2001:db8::7")) == errno.EACCES
    card.close()


@pytest.mark.parametrize("source", ["10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255", "127.0.0.1", "192.0.2.1",
                                    "::1", "fd68:6f73:7465:6c::2", "2001:db8::1", "fe80::2", "ff02::1"])
def test_sources_that_are_not_a_guests(card, source):
    v6 = ":" in source
    Stream(card, 80, six("2001:db8::1") if v6 else four("192.0.2.1"), six(source) if v6 else four(source)).send(SYN)
    assert card.frames() == [] and card.network.spoofed == 1


def test_a_frame_that_claims_to_be_the_routers(card):
    card.packet(ethernet.ARP, b"", source=ROUTER_MAC)
    card.packet(ethernet.ARP, b"", source=b"\xff" * 6)
    card.run()
    assert card.network.spoofed == 2 and ROUTER_MAC not in card.network.macs


def test_macs_are_bounded(card):
    for number in range(100):
        card.packet(0x9999, b"", source=bytes.fromhex("02000000") + struct.pack("!H", number))
        card.run()
    assert len(card.network.macs) == len(card.port.macs) <= 32


def test_arp(card):
    for target, answered in ((GATEWAY, True), (DNS, True), (GUEST, False), (four("10.0.2.77"), False)):
        packet = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, MAC, GUEST, bytes(6), target)
        card.packet(ethernet.ARP, packet, destination=b"\xff" * 6)
        frames = card.frames()
        assert len(frames) == answered
        if answered:
            assert frames[0][12:24] == MAC + ROUTER_MAC
            assert arp.parse(frames[0][26:]) == (2, ROUTER_MAC, target, GUEST)


def test_echoes_to_the_router(card):
    card.ip(ipv4.ICMP, GATEWAY, icmp.message(8, 0, 0x12340001, b"abc"))
    ((source, to, body),) = card.packets(ipv4.ICMP)
    assert (source, to) == (GATEWAY, GUEST) and body[0] == 0 and body[4:] == b"\x12\x34\0\1abc"
    card.ip(ipv6.ICMP, GATEWAY6, icmp.message6(GUEST6, GATEWAY6, 128, 0, 7, b"abc"), GUEST6)
    ((source, to, body),) = card.packets(ipv6.ICMP)
    assert (source, to) == (GATEWAY6, GUEST6) and body[0] == 129 and body[4:] == b"\0\0\0\7abc"


def test_hop_limits(card):
    card.ip(ipv4.UDP, four("192.0.2.1"), struct.pack("!HHHH", 5000, 80, 8, 0), ttl=1)
    ((source, _, body),) = card.packets(ipv4.ICMP)
    assert source == GATEWAY and body[:2] == b"\x0b\0" and body[8 + 12 : 8 + 20] == GUEST + four("192.0.2.1")
    card.ip(ipv4.UDP, six("2001:db8::1"), struct.pack("!HHHH", 5000, 80, 8, 0), GUEST6, ttl=1)
    ((source, _, body),) = card.packets(ipv6.ICMP)
    assert source == GATEWAY6 and body[:2] == b"\3\0"


def test_unknown_protocols(card):
    card.ip(132, four("192.0.2.1"), bytes(20))
    assert card.packets(ipv4.ICMP)[0][2][:2] == b"\3\2"
    card.ip(132, six("2001:db8::1"), bytes(20), GUEST6)
    assert card.packets(ipv6.ICMP)[0][2][:2] == b"\4\1"


def test_neighbour_and_router_discovery(card):
    group = six("ff02::1:ff00:2")
    body = struct.pack("!BBHI", 135, 0, 0, 0) + GATEWAY6 + b"\1\1" + MAC
    card.ip(ipv6.ICMP, group, body, GUEST6, ttl=255)
    ((source, to, answer),) = card.packets(ipv6.ICMP)
    assert (source, to) == (GATEWAY6, GUEST6) and answer[0] == 136 and answer[8:24] == GATEWAY6
    assert answer[24:] == b"\2\1" + ROUTER_MAC
    card.ip(ipv6.ICMP, group, body, GUEST6, ttl=64)  # from another link
    assert card.packets(ipv6.ICMP) == []
    card.ip(ipv6.ICMP, six("ff02::2"), struct.pack("!BBHI", 133, 0, 0, 0), six("fe80::99"), ttl=255)
    ((_, to, answer),) = card.packets(ipv6.ICMP)
    assert to == six("ff02::1") and answer[0] == 134
    options = {}
    at = 16
    while at < len(answer):
        options[answer[at]] = answer[at : at + 8 * answer[at + 1]]
        at += 8 * answer[at + 1]
    assert options[3][2] == 64 and options[3][3] == 0xC0 and options[3][16:] == PREFIX + bytes(8)
    assert options[25][8:] == PREFIX + bytes(7) + b"\3" and options[1][2:] == ROUTER_MAC


def fragments(card, parts, ident=1, protocol=ipv4.UDP, to=None):
    for offset, more, data in parts:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), ident, more << 13 | offset >> 3, 64, protocol, 0,
                           GUEST, to or DNS)
        card.packet(ethernet.IPV4, head + data)
    card.run()


def test_fragments(card):
    query = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\x08_gateway\0\0\1\0\1"
    datagram = struct.pack("!HHHH", 5000, 53, 8 + len(query), 0) + query
    parts = [(0, 1, datagram[:16]), (16, 1, datagram[16:32]), (32, 0, datagram[32:])]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 1, 2)):
        fragments(card, [parts[i] for i in order])
        ((source, _, answer),) = card.packets(ipv4.UDP)
        assert source == DNS and answer.endswith(GATEWAY)
    before = card.network._reassembly.dropped
    fragments(card, [(0, 1, datagram[:24]), (16, 1, datagram[16:32]), (32, 0, datagram[32:])])     # they overlap
    fragments(card, [(0, 1, datagram[:15])], 2)                              # not a multiple of 8
    fragments(card, [(65528, 1, bytes(16))], 3)                              # beyond 64 KiB
    assert card.packets(ipv4.UDP) == [] and card.network._reassembly.dropped >= before + 3
    for ident in range(100):
        fragments(card, [(0, 1, bytes(8))], ident)
    assert len(card.network._reassembly._packets) <= ipv4.MAX_REASSEMBLIES


def test_dhcp_for_strangers_is_bounded(card):
    addresses = set()
    for number in range(300):
        mac = bytes.fromhex("02000000") + struct.pack("!H", number)
        query = struct.pack("!BBBBIHH4s4s4s4s16s64s128s4s", 1, 1, 6, 0, number, 0, 0, *[bytes(4)] * 4, mac, b"", b"",
                            b"\x63\x82\x53\x63") + b"\x35\1\1\xff"
        card.ip(ipv4.UDP, b"\xff" * 4, struct.pack("!HHHH", 68, 67, 8 + len(query), 0) + query, bytes(4))
        ((_, _, answer),) = card.packets(ipv4.UDP)
        addresses.add(answer[8 + 16 : 8 + 20])
    assert len(addresses) <= dhcp.MAX_STRANGERS and GUEST not in addresses


def test_a_wrong_address_is_refused(card):
    def ask(options):
        query = struct.pack("!BBBBIHH4s4s4s4s16s64s128s4s", 1, 1, 6, 0, 9, 0, 0, *[bytes(4)] * 4, MAC, b"", b"",
                            b"\x63\x82\x53\x63") + options + b"\xff"
        card.ip(ipv4.UDP, b"\xff" * 4, struct.pack("!HHHH", 68, 67, 8 + len(query), 0) + query, bytes(4))
        return [body[8 + 240 + 2] for _, _, body in card.packets(ipv4.UDP)]

    assert ask(b"\x35\1\3\x32\4" + four("192.168.1.5")) == [dhcp.NAK]
    assert ask(b"\x35\1\3\x32\4" + GUEST) == [dhcp.ACK]
    assert ask(b"\x35\1\3\x32\4" + GUEST + b"\x36\4" + four("10.0.2.9")) == []  # it took another server's
    assert ask(b"\x35\1\4") == ask(b"\x35\2\1\1") == ask(b"") == []


def test_a_guest_that_does_not_read_loses_only_its_own(card):
    for _ in range(20000):
        card.raw(bytes(12) + ROUTER_MAC + MAC + b"\x08\0" + ipv4.packet(
            ipv4.ICMP, GUEST, GATEWAY, icmp.message(8, 0, 1, bytes(1400)))[0])
        if card.port.blocked and card.port.tx_dropped > 100:
            break
    else:
        raise AssertionError("its socket never filled")
    assert card.frames()
    card.ip(ipv4.ICMP, GATEWAY, icmp.message(8, 0, 1, b"again"))
    assert card.packets(ipv4.ICMP)[-1][2].endswith(b"again")


VALID = [
    ipv4.packet(6, GUEST, four("192.0.2.1"), struct.pack("!HHIIHHHH", 1, 80, 1, 0, 0x5002, 100, 0, 0))[0],
    ipv4.packet(17, GUEST, DNS, struct.pack("!HHHH", 1, 53, 30, 0) + bytes(range(22)))[0],
    ipv4.packet(17, bytes(4), b"\xff" * 4, struct.pack("!HHHH", 68, 67, 300, 0) + bytes(292))[0],
    ipv4.packet(1, GUEST, GATEWAY, icmp.message(8, 0, 1, b"x"))[0],
]
VALID6 = [
    ipv6.packet(58, GUEST6, GATEWAY6, icmp.message6(GUEST6, GATEWAY6, 128, 0, 1, b"x"))[0],
    ipv6.packet(58, GUEST6, six("ff02::1:ff00:2"), struct.pack("!BBHI", 135, 0, 0, 0) + GATEWAY6, hops=255)[0],
    ipv6.packet(17, GUEST6, PREFIX + bytes(7) + b"\3", struct.pack("!HHHH", 1, 53, 30, 0) + bytes(range(22)))[0],
    ipv6.packet(0, GUEST6, GATEWAY6, b"\x2c\0" + bytes(6) + b"\x11\0\0\1" + bytes(4) + bytes(16))[0],
]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(
    st.binary(max_size=200),
    st.tuples(
        st.sampled_from([(0x800, p) for p in VALID] + [(0x86DD, p) for p in VALID6] + [(0x806, bytes(28))]),
        st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6),
        st.integers(0, 40), st.binary(max_size=12),
    ),
))
def test_no_frame_is_a_bug_of_ours(case):
    card = CARD
    if isinstance(case, bytes):
        card.raw(case or b"\0")
    else:
        (kind, packet), changes, cut, header = case
        data = bytearray(packet)
        for at, value in changes:
            if at < len(data):
                data[at] = value
        card.raw(header.ljust(12, b"\0") + ROUTER_MAC + MAC + struct.pack("!H", kind) + bytes(data[: len(data) - cut]))
    card.frames()
    assert card.network.errors == 0


CARD = None


@pytest.fixture(autouse=True, scope="module")
def shared_card():
    global CARD
    CARD = Card(internal=True)  # nothing may leave
    yield
    CARD.close()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_dns_and_dhcp_take_anything(data):
    asked = dns.question(data)
    if asked is not None:
        assert 17 <= asked.end <= len(data)
        assert dns.answer(data, asked, [(1, bytes(4))])[:2] == data[:2]
    if len(data) >= 12:
        assert dns.failure(data, 2)[3] & 15 == 2
    dhcp.parse(bytes(236) + b"\x63\x82\x53\x63" + data)
    query = dhcp.parse(b"\1\1\6\0" + bytes(232) + b"\x63\x82\x53\x63" + data)
    assert query is None or query.mac == bytes(6)
    parse(data.decode("latin-1"))


@given(st.binary(min_size=1, max_size=99))
def test_checksums(data):
    """As RFC 1071 adds them up, word by word."""
    padded = data + bytes(len(data) & 1)
    value = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    assert total(data) in (value, value % 0xFFFF)
    assert total(padded + struct.pack("!H", checksum(data))) == 0


def test_resolv_conf():
    text = "# x\nsearch a.example b.example\nnameserver 192.0.2.1 # one\nnameserver nonsense\nnameserver 2001:db8::1\n"
    assert parse(text) == ([("192.0.2.1", 0), ("2001:db8::1", 0)], "a.example")
    assert parse("nameserver 1.1.1.1\n" * 9)[0] == [("1.1.1.1", 0)] * 3
    assert parse("") == ([("127.0.0.1", 0)], "")
    assert parse("nameserver fe80::1%lo\n")[0] == [("fe80::1", 1)]
    assert parse("nameserver fe80::1%none\n")[0] == [("127.0.0.1", 0)]


def test_an_unanswered_syn_keeps_nothing(card):
    Stream(card, 80, address=four("10.0.2.99")).send(ACK)
    card.run()
    assert not card.port.connections
