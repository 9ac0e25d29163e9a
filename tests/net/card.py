"""A guest made by hand: frames in, frames out, with the router in the same process. Time passes in ``run`` only."""

import os
import socket
import struct
import time

from hostel.base.loop import Loop
from hostel.net import ethernet, ipv4, ipv6
from hostel.net.checksum import total
from hostel.net.router import Network
from hostel.net.settings import ROUTER_MAC, Settings

MAC = bytes.fromhex("525400123456")
GUEST, GATEWAY, DNS = socket.inet_aton("10.0.2.15"), socket.inet_aton("10.0.2.2"), socket.inet_aton("10.0.2.3")
PREFIX = bytes.fromhex("fd686f737465006c")
GUEST6, GATEWAY6 = PREFIX + bytes.fromhex("505400fffe123456"), PREFIX + bytes(7) + b"\2"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


class Card:
    def __init__(self, **settings):
        self.loop = Loop()
        self.network = Network(self.loop, Settings(**settings))
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.port = self.network.add_port(theirs.detach(), MAC, "vm")

    def close(self):
        self.socket.close()
        self.run()
        assert not self.network.ports
        assert self.network.errors == 0
        assert self.network.tcp.held == self.network.tcp.open == self.network.udp.open == 0
        self.loop.close()

    def run(self, seconds=0.0):
        """Let the router do what there is to do, for ``seconds`` at least."""
        deadline = time.monotonic() + seconds
        while True:
            self.loop.call_later(0.002, self.loop.stop)
            self.loop.run()
            if time.monotonic() >= deadline:
                return

    def raw(self, frame):
        try:
            self.socket.send(frame)
        except BlockingIOError:
            self.run()
            self.socket.send(frame)

    def packet(self, kind, packet, source=MAC, destination=ROUTER_MAC):
        self.raw(bytes(12) + destination + source + struct.pack("!H", kind) + packet)

    def ip(self, protocol, destination, payload, source=GUEST, ttl=64):
        if len(destination) == 16:
            self.packet(ethernet.IPV6, ipv6.packet(protocol, source, destination, payload, hops=ttl)[0])
        else:
            self.packet(ethernet.IPV4, ipv4.packet(protocol, source, destination, payload, ttl=ttl)[0])

    def frames(self):
        """What the router has sent since the last time; each with its checksums right."""
        self.run()
        found = []
        while True:
            try:
                frame = self.socket.recv(1 << 17)
            except BlockingIOError:
                return found
            check(frame)
            found.append(frame)

    def packets(self, protocol):
        """(source, destination, payload) of IPv4 and IPv6 packets of ``protocol``."""
        found = []
        for frame in self.frames():
            kind = frame[24] << 8 | frame[25]
            if kind == ethernet.IPV4 and frame[26 + 9] == protocol:
                found.append((frame[38:42], frame[42:46], frame[46:]))
            elif kind == ethernet.IPV6 and frame[26 + 6] == protocol:
                found.append((frame[34:50], frame[50:66], frame[66:]))
        return found


def check(frame):
    """What any receiver would look at."""
    flags, gso, _, size, start, offset = struct.unpack_from("<BBHHHH", frame)
    kind = frame[24] << 8 | frame[25]
    if kind == ethernet.ARP:
        return
    if kind == ethernet.IPV4:
        assert total(frame[26:46]) == 0, "IPv4 header's checksum"
        assert frame[28] << 8 | frame[29] == len(frame) - 26
        protocol, at, head = frame[35], 46, frame[38:46]
        if (frame[32] << 8 | frame[33]) & 0x3FFF:
            return
    else:
        assert frame[30] << 8 | frame[31] == len(frame) - 66
        protocol, at, head = frame[32], 66, frame[34:66]
    body = frame[at:]
    head += struct.pack("!HH", protocol, len(body))
    if protocol == ipv4.ICMP:
        head = b""
    if flags & 1:
        assert (start, offset) == (at - 12, 16) and protocol == ipv4.TCP
        assert body[16] << 8 | body[17] == total(head)
    elif protocol in (ipv4.TCP, ipv4.UDP, ipv4.ICMP, ipv6.ICMP):
        assert total(head + body) == 0, "checksum"
    assert gso or len(frame) <= 26 + 1500
    assert not gso or 0 < size <= 1460


class Stream:
    """One TCP connection of the card's, segment by segment."""

    def __init__(self, card, port, address=GATEWAY, source=GUEST, sport=None, window=65535, options=b""):
        self.card, self.address, self.source = card, address, source
        self.sport = sport or 1024 + int.from_bytes(os.urandom(2), "big") % 60000
        self.dport = port
        self.seq = int.from_bytes(os.urandom(4), "big")
        self.ack = 0
        self.window = window
        self.options = options

    def send(self, flags, data=b"", seq=None, ack=None, window=None, options=b""):
        seq = self.seq if seq is None else seq & 0xFFFFFFFF
        ack = self.ack if ack is None else ack & 0xFFFFFFFF
        window = self.window if window is None else window
        offset = 5 + len(options) // 4
        segment = struct.pack("!HHIIHHHH", self.sport, self.dport, seq, ack, offset << 12 | flags, window, 0, 0)
        self.card.ip(ipv4.TCP, self.address, segment + options + data, self.source)

    def segments(self):
        """(flags, seq, ack, window, payload) of what came for this connection."""
        found = []
        for _, _, body in self.card.packets(ipv4.TCP):
            sport, dport, seq, ack, bits, window = struct.unpack_from("!HHIIHH", body)
            if (sport, dport) == (self.dport, self.sport):
                found.append((bits & 0x3F, seq, ack, window, body[(bits >> 12) * 4 :]))
        return found

    def connect(self):
        self.send(SYN, options=self.options)
        self.seq = self.seq + 1 & 0xFFFFFFFF
        answers = []
        for _ in range(1000):
            answers = self.segments()
            if answers:
                break
        flags, seq, ack, _, _ = answers[0]
        assert flags == SYN | ACK and ack == self.seq
        self.ack = seq + 1 & 0xFFFFFFFF
        self.send(ACK)
        return self

    def write(self, data):
        self.send(PSH | ACK, data)
        self.seq = self.seq + len(data) & 0xFFFFFFFF
