"""A network: a switch with guests at its ports, and the router that is its way out.

Frames between guests go from port to port (MACs are learned); those for the router end here, and what they carry
goes on through ordinary sockets of this process (net/tcp, net/udp). Everything a guest sends is hostile: what makes no
sense is counted and dropped.

What guests may reach: everything the host can, but nothing by way of the host's loopback, unspecified, link-local
(where clouds keep their hosts' credentials), multicast and broadcast addresses, however written. With
``allow_host_loopback`` the gateway's address is the host's loopback.
"""

import errno
import os
import socket
import struct
import sys
import time
from functools import partial

from hostel.base.loop import Loop, Timer
from hostel.base.typed import Any
from hostel.net import arp, dhcp, dns, ethernet, icmp, ipv4, ipv6, ndp
from hostel.net.counters import COUNTERS
from hostel.net.forward import Forwarder
from hostel.net.port import Port
from hostel.net.resolver import ResolvConf, Resolver
from hostel.net.settings import ROUTER_MAC, Addresses, Settings
from hostel.net.tcp import Tcp
from hostel.net.udp import CODES, Udp

TURN = 32                     # frames of one port before it is another's turn
MAX_MACS = 32                 # behind one port: a guest's own, and those of what it runs
MAX_NEIGHBOURS = 64           # addresses behind one port
SWEEP = 60.0                  # seconds
PUBLISH = 1.0                 # seconds that published counters may be old
MAX_REPORTS = 20              # tracebacks in the log: a guest mustn't fill it
_HEADER = ethernet.HEADER
_ANY = b"\0\0\0\0"
_MAPPED = bytes(10) + b"\xff\xff"


class Network:
    """One network, on ``loop``. Ports come and go; ``on_empty`` is called when the last has gone."""

    def __init__(self, loop: Loop, settings: Settings):
        self.loop = loop
        self.settings = settings
        self.addresses = Addresses(settings)
        self.mac = ROUTER_MAC
        self.ports: list[Port] = []
        self.macs: dict[bytes, Port] = {}
        self.on_empty: Any = None          # called when the last port has gone
        self.publish: Any = None           # called a second after something has happened
        self._publishing: Timer | None = None
        self.malformed = self.spoofed = self.refused = self.switched = self.errors = 0
        self._gone = [0] * 5               # what ports that have gone had counted
        self._frame = memoryview(bytearray(ethernet.MAX_FRAME + 64))
        self._reassembly = ipv4.Reassembly()
        self._forwarders: dict[Port, Forwarder] = {}
        self._ident = 0
        self.tcp = Tcp(loop, self.mac, settings.mtu, self._tcp_unreachable)
        self.udp = Udp(loop, self.send, self.tell, self._reach)
        self.resolver = Resolver(loop, ResolvConf(settings.resolv_conf), self._names)
        a = self.addresses
        lease = dhcp.Lease(
            a.mask.to_bytes(4, "big"), b"" if settings.internal else a.gateway, a.dns, a.broadcast, a.gateway,
            settings.mtu, settings.domain or self.resolver.domain(),
        )
        self.dhcp = dhcp.Server(lease, a.first_guest, a.last_guest)
        self._domain = settings.domain or self.resolver.domain()
        self._connect4, self._connect6 = partial(self._connect, False), partial(self._connect, True)
        loop.on_error = self._failed
        loop.call_later(SWEEP, self._sweep)
        self._next_advertisement = time.monotonic() + ndp.INTERVAL

    # -- ports

    def add_port(self, fd: int, mac: bytes, name: str = "",
                 listeners: list[tuple[socket.socket, int]] | None = None) -> Port:
        """A guest's card at ``fd``, which is the port's from now on. ``listeners`` (net/forward) come with the guest's
        ports that they lead to."""
        address = self.dhcp.assign(mac, name).to_bytes(4, "big")
        port = Port(self.loop, fd, mac, name, address)
        self.ports.append(port)
        port.start(self._readable)
        if listeners:
            self._forwarders[port] = Forwarder(self.loop, port, self.addresses, self.tcp, self.udp, listeners)
        return port

    def remove_port(self, port: Port) -> None:
        if not port.open:
            return
        port.close()
        self.ports.remove(port)
        self.tcp.closed(port)
        self.udp.closed(port)
        if port in self._forwarders:
            self._forwarders.pop(port).close()
        self.dhcp.release(port.mac)
        for mac in port.macs:
            if self.macs.get(mac) is port:
                del self.macs[mac]
        for index, value in enumerate(self._of(port)):
            self._gone[index] += value
        if not self.ports and self.on_empty:
            self.on_empty()

    @staticmethod
    def _of(port: Port) -> tuple[int, ...]:
        return port.rx_frames, port.rx_bytes, port.tx_frames, port.tx_bytes, port.tx_dropped

    def counters(self) -> dict[str, int]:
        rows = [self._gone, *(self._of(port) for port in self.ports)]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        tcp, udp = self.tcp, self.udp
        values = (
            len(self.ports), *sums, self.malformed, self.spoofed, self.refused + udp.refused, self.switched,
            tcp.open, tcp.opened, tcp.refused, tcp.resets, tcp.retransmitted, tcp.dropped, tcp.held,
            udp.open, udp.dropped, self.resolver.questions, self.resolver.failed, self.errors,
        )
        return dict(zip(COUNTERS, values, strict=True))

    # -- frames

    def _readable(self, port: Port) -> None:
        self.tcp.now = self.udp.now = time.monotonic()
        fd, buffers = port.fd, (self._frame,)
        for _ in range(TURN):
            try:
                length = os.readv(fd, buffers)
            except BlockingIOError:
                break
            except OSError:
                length = 0
            if not length:
                self.remove_port(port)
                return
            port.rx_frames += 1
            port.rx_bytes += length
            try:
                self._switch(port, length)
            except Exception as error:  # a bug of ours: the frame's loss mustn't be the network's
                self._failed(error)
        self.tcp.flush()
        if self._publishing is None and self.publish is not None:
            self._publishing = self.loop.call_later(PUBLISH, self._publish)

    def _switch(self, port: Port, length: int) -> None:
        frame = self._frame
        if not _HEADER <= length <= ethernet.MAX_FRAME:
            if frame[:length] == ethernet.FORGET:
                self.tcp.closed(port)
                self.udp.closed(port)
            else:
                self.malformed += 1
            return
        source = bytes(frame[18:24])
        if port.admit is not None and not port.admit(source, length):
            self.spoofed += 1
            return
        if source not in port.macs:
            if source[0] & 1 or source == self.mac:
                self.spoofed += 1
                return
            self._learn(port, source)
        destination = bytes(frame[12:18])
        if destination == self.mac:
            self._route(port, length)
        elif destination[0] & 1:
            for other in self.ports:
                if other is not port:
                    other.offer(frame[:length])
            self._route(port, length)
        elif len(self.ports) > 1:
            known = self.macs.get(destination)
            self.switched += 1
            if known is None:
                for other in self.ports:
                    if other is not port:
                        other.offer(frame[:length])
            elif known is not port:
                known.offer(frame[:length])

    def _learn(self, port: Port, mac: bytes) -> None:
        before = self.macs.get(mac)
        if before is not None:
            before.macs.pop(mac, None)
        port.macs[mac] = None
        self.macs[mac] = port
        if len(port.macs) > MAX_MACS:
            old = port.macs.popitem(last=False)[0]
            if self.macs.get(old) is port:
                del self.macs[old]

    def _route(self, port: Port, length: int) -> None:
        frame = self._frame
        kind = frame[24] << 8 | frame[25]
        if kind == ethernet.IPV4:
            self._ipv4(port, length)
        elif kind == ethernet.IPV6:
            if self.addresses.prefix:
                self._ipv6(port, length)
        elif kind == ethernet.ARP:
            self._arp(port, frame[_HEADER:length])

    def _neighbour(self, port: Port, address: bytes, mac: bytes) -> None:
        if port.neighbours.get(address) != mac:
            port.neighbours[address] = mac
            if len(port.neighbours) > MAX_NEIGHBOURS:
                port.neighbours.popitem(last=False)

    def _arp(self, port: Port, packet: memoryview) -> None:
        parsed = arp.parse(packet)
        if parsed is None:
            self.malformed += 1
            return
        operation, mac, sender, target = parsed
        if self._is_guest(sender):
            self._neighbour(port, sender, mac)
        if operation == arp.REQUEST and target in (self.addresses.gateway, self.addresses.dns):
            head = ethernet.header(mac, self.mac, ethernet.ARP)
            port.offer(head + arp.reply(self.mac, target, mac, sender))

    def _is_guest(self, address: bytes) -> bool:
        a = self.addresses
        number = int.from_bytes(address, "big")
        return number & a.mask == a.network != number and address not in (a.gateway, a.dns, a.broadcast)

    # -- IPv4

    def _ipv4(self, port: Port, length: int) -> None:
        frame = self._frame
        if length < _HEADER + ipv4.MIN_HEADER:
            self.malformed += 1
            return
        first, _, total, ident, fragment, ttl, protocol = struct.unpack_from("!BBHHHBB", frame, _HEADER)
        start = _HEADER + (first & 15) * 4
        end = _HEADER + total
        if first >> 4 != 4 or first & 15 < 5 or end < start or end > length:
            self.malformed += 1
            return
        source, destination = bytes(frame[38:42]), bytes(frame[42:46])
        if source not in port.neighbours:
            if not self._is_guest(source):
                if source == _ANY and protocol == ipv4.UDP and not fragment & 0x3FFF:
                    self._dhcp(port, frame[start:end])
                else:
                    self.spoofed += 1
                return
            self._neighbour(port, source, bytes(frame[18:24]))
        if fragment & 0x3FFF:
            key = (id(port), source, destination, ident, protocol)
            offset, more = (fragment & 0x1FFF) << 3, bool(fragment & ipv4.MORE_FRAGMENTS)
            whole = self._reassembly.add(key, offset, more, bytes(frame[start:end]), self.tcp.now)
            if whole is None:
                return
            # As if it had come so: the first header, without options, and the payload.
            end = _HEADER + ipv4.MIN_HEADER + len(whole)
            if end > ethernet.MAX_FRAME:
                self.malformed += 1
                return
            start = _HEADER + ipv4.MIN_HEADER
            frame[_HEADER], frame[1] = 0x45, 0
            struct.pack_into("!H", frame, _HEADER + 2, end - _HEADER)
            frame[start:end] = whole
        a = self.addresses
        if destination in (a.gateway, a.dns):
            if protocol == ipv4.ICMP:
                self._echo_ours(port, source, destination, frame[start:end])
                return
        elif destination == a.broadcast or destination == b"\xff\xff\xff\xff" or destination[0] >= 224:
            if protocol == ipv4.UDP:
                self._dhcp(port, frame[start:end])
            return
        elif ttl <= 1:
            self._tell_frame(port, source, start, end, -1)
            return
        if protocol == ipv4.TCP:
            self.tcp.input(port, frame, _HEADER, start, end, False, self._connect4)
        elif end - start < 8:
            self.malformed += 1
        elif protocol == ipv4.UDP:
            self._datagram(port, source, destination, ttl, frame[start:end])
        elif protocol == ipv4.ICMP:
            if frame[start] == icmp.ECHO and frame[start + 1] == 0:
                self.udp.echo(port, source, destination, ttl, frame[start:end])
        else:
            self._tell_frame(port, source, start, end, icmp.PROTOCOL)

    def _datagram(self, port: Port, source: bytes, destination: bytes, hops: int, datagram: memoryview) -> None:
        """UDP for the router or the outside, of either family."""
        a = self.addresses
        to = datagram[2] << 8 | datagram[3]
        if to == dns.PORT and destination in (a.dns, a.dns6):
            size = datagram[4] << 8 | datagram[5]
            if 8 <= size <= len(datagram):
                sport = datagram[0] << 8 | datagram[1]
                reply = partial(self._resolved, port, destination, source, sport)
                self.resolver.ask(bytes(datagram[8:size]), reply)
            return
        if to == dhcp.SERVER_PORT and destination == a.gateway:
            self._dhcp(port, datagram)
            return
        segment = 0
        if self._frame[1] & ~ethernet.GSO_ECN == ethernet.GSO_UDP_L4:
            segment = self._frame[4] | self._frame[5] << 8
        self.udp.input(port, source, destination, hops, datagram, segment)

    def _resolved(self, port: Port, ours: bytes, guest: bytes, sport: int, answer: bytes) -> None:
        if port.open and len(answer) <= 65507:
            head = struct.pack("!HHHH", dns.PORT, sport, 8 + len(answer), 0)
            self.udp._deliver(port, ours, guest, head, answer)

    def _dhcp(self, port: Port, datagram: memoryview) -> None:
        if len(datagram) < 8 or datagram[2] << 8 | datagram[3] != dhcp.SERVER_PORT:
            return
        query = dhcp.parse(datagram[8:])
        if query is None:
            self.malformed += 1
            return
        answer = self.dhcp.answer(query)
        if answer is None:
            return
        to, message = answer
        # By Ethernet's broadcast only where the client says it needs that (RFC 2131, 4.1).
        mac = query.mac
        if query.flags & 0x8000 and not any(query.client):
            mac = ethernet.BROADCAST
        elif to == b"\xff" * 4:
            to = message[16:20] if any(message[16:20]) else to
        source = self.addresses.gateway
        head = struct.pack("!HHHH", dhcp.SERVER_PORT, dhcp.CLIENT_PORT, 8 + len(message), 0)
        check = icmp.checksum(ipv4.pseudo(ipv4.UDP, source, to, 8 + len(message)) + head + message)
        packet = ipv4.packet(ipv4.UDP, source, to, head[:6] + struct.pack("!H", check) + message)[0]
        port.offer(ethernet.header(mac, self.mac, ethernet.IPV4) + packet)

    def _echo_ours(self, port: Port, source: bytes, destination: bytes, message: memoryview) -> None:
        if len(message) >= 8 and message[0] == icmp.ECHO and message[1] == 0:
            rest = int.from_bytes(message[4:8], "big")
            self.send(port, destination, source, ipv4.ICMP, icmp.message(icmp.ECHO_REPLY, 0, rest, bytes(message[8:])))

    # -- IPv6

    def _ipv6(self, port: Port, length: int) -> None:
        frame = self._frame
        if length < _HEADER + ipv6.HEADER or frame[_HEADER] >> 4 != 6:
            self.malformed += 1
            return
        end = _HEADER + ipv6.HEADER + (frame[_HEADER + 4] << 8 | frame[_HEADER + 5])
        if end > length:
            self.malformed += 1
            return
        hops = frame[_HEADER + 7]
        source, destination = bytes(frame[34:50]), bytes(frame[50:66])
        found = ipv6.upper(frame, _HEADER, end)
        if found is None:
            self.malformed += 1
            return
        protocol, start, fragment = found
        a = self.addresses
        ours = destination in (a.gateway6, a.dns6, a.link_local)
        if source == ipv6.UNSPECIFIED:
            if protocol != ipv6.ICMP:  # somebody looks for doubles of its address (RFC 4862, 5.4)
                self.spoofed += 1
                return
        elif source not in port.neighbours:
            if source in (a.gateway6, a.dns6, a.link_local) or not (
                source[:8] == a.prefix or source[0] == 0xFE and source[1] & 0xC0 == 0x80
            ):
                self.spoofed += 1
                return
            self._neighbour(port, source, bytes(frame[18:24]))
        if fragment is not None:
            offset, more, ident = fragment
            key = (id(port), source, destination, ident, protocol)
            whole = self._reassembly.add(key, offset, more, bytes(frame[start:end]), self.tcp.now)
            if whole is None:
                return
            start = _HEADER + ipv6.HEADER
            end = start + len(whole)
            if end > ethernet.MAX_FRAME:
                self.malformed += 1
                return
            frame[1] = 0
            frame[start:end] = whole
        if protocol == ipv6.ICMP:
            self._icmp6(port, source, destination, hops, frame[start:end], ours)
            return
        if destination[0] == 0xFF or (destination[0] == 0xFE and destination[1] & 0xC0 == 0x80 and not ours):
            return
        if hops <= 1 and not ours:
            self._tell_frame(port, source, start, end, -1)
        elif source[:8] != a.prefix and not ours:
            self.spoofed += 1  # a link-local address goes nowhere
        elif protocol == ipv6.TCP:
            # The packet's addresses are read where they stand; extension headers are before ``start``.
            self.tcp.input(port, frame, _HEADER, start, end, True, self._connect6)
        elif protocol == ipv6.UDP:
            if end - start < 8:
                self.malformed += 1
            else:
                self._datagram(port, source, destination, hops, frame[start:end])
        elif protocol != ipv6.NONE:
            self._tell_frame(port, source, start, end, icmp.PROTOCOL)

    def _icmp6(self, port: Port, source: bytes, destination: bytes, hops: int, message: memoryview, ours: bool) -> None:
        a = self.addresses
        if len(message) < 8:
            self.malformed += 1
            return
        kind = message[0]
        if kind in (ndp.ROUTER_SOLICITATION, ndp.SOLICITATION, ndp.ADVERTISEMENT):
            if hops != 255 or message[1] != 0:  # RFC 4861, 6.1 and 7.1
                self.malformed += 1
                return
            mac = bytes(self._frame[18:24])
            if kind == ndp.ROUTER_SOLICITATION:
                self._advertise(port)
            elif kind == ndp.SOLICITATION:
                target = ndp.solicited(message)
                if target is None:
                    self.malformed += 1
                elif target in (a.gateway6, a.dns6, a.link_local):
                    to, body = ndp.advertisement(target, self.mac, source)
                    self._send6(port, mac if source != ipv6.UNSPECIFIED else b"", target, to, body, 255)
                elif source == ipv6.UNSPECIFIED and target[:8] == a.prefix:
                    self._neighbour(port, target, mac)  # it is about to have it
        elif kind == icmp.ECHO6 and message[1] == 0 and source != ipv6.UNSPECIFIED:
            rest = int.from_bytes(message[4:8], "big")
            if ours or destination in (ipv6.ALL_NODES, ipv6.ALL_ROUTERS):
                replier = destination if ours else a.link_local
                body = icmp.message6(replier, source, icmp.ECHO_REPLY6, 0, rest, bytes(message[8:]))
                self.send(port, replier, source, ipv6.ICMP, body)
            elif destination[0] != 0xFF and source[:8] == a.prefix:
                if hops <= 1:
                    self.tell(port, source, destination, ipv6.ICMP, bytes(message[:48]), -1, 0, None)
                else:
                    self.udp.echo(port, source, destination, hops, message)

    def _advertise(self, port: Port) -> None:
        a = self.addresses
        body = ndp.router_advertisement(a, self.mac, self.settings.mtu, self._domain, ipv6.ALL_NODES)
        self._send6(port, b"", a.link_local, ipv6.ALL_NODES, body, 255)

    def _send6(self, port: Port, mac: bytes, source: bytes, to: bytes, body: bytes, hops: int) -> None:
        """An ICMPv6 message to ``mac``, or to a group's."""
        head = ethernet.header(mac or ethernet.multicast6(to), self.mac, ethernet.IPV6)
        port.offer(head + ipv6.packet(ipv6.ICMP, source, to, body, hops=hops)[0])

    # -- to guests

    def send(self, port: Port, source: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
        """A packet of ours or from the outside, in fragments where it must be."""
        if not port.open:
            return
        self._ident = (self._ident + 1) & 0xFFFF
        mac = port.neighbours.get(destination, port.mac)
        if len(destination) == 16:
            head = ethernet.header(mac, self.mac, ethernet.IPV6)
            packets = ipv6.packet(protocol, source, destination, payload, self._ident, self.settings.mtu)
        else:
            head = ethernet.header(mac, self.mac, ethernet.IPV4)
            packets = ipv4.packet(protocol, source, destination, payload, self._ident, self.settings.mtu)
        for packet in packets:
            port.offer(head + packet)

    def tell(self, port: Port, guest: bytes, other: bytes, protocol: int, start: bytes, code: int, mtu: int,
             offender: bytes | None) -> None:
        """An ICMP error about the guest's packet to ``other`` whose payload began with ``start``. ``code``: net/icmp's,
        or -1 for "time exceeded"; it comes from the gateway or from ``offender``."""
        if len(guest) == 16:
            original = ipv6.packet(protocol, guest, other, start)[0]
            source = offender if offender and len(offender) == 16 else self.addresses.gateway6
            if code < 0:
                body = icmp.message6(source, guest, icmp.TIME_EXCEEDED6, 0, 0, original)
            else:
                body = icmp.unreachable6(source, guest, code, original, mtu)
            self.send(port, source, guest, ipv6.ICMP, body)
        else:
            original = ipv4.packet(protocol, guest, other, start)[0]
            source = offender if offender and len(offender) == 4 else self.addresses.gateway
            if code < 0:
                body = icmp.message(icmp.TIME_EXCEEDED, 0, 0, original)
            else:
                body = icmp.unreachable(code, original, mtu)
            self.send(port, source, guest, ipv4.ICMP, body)

    def _tell_frame(self, port: Port, guest: bytes, start: int, end: int, code: int) -> None:
        """An error about the frame that is being looked at; never about an error (RFC 1122, 3.2.2)."""
        frame = self._frame
        v6 = len(guest) == 16
        other = bytes(frame[50:66] if v6 else frame[42:46])
        protocol = frame[_HEADER + 6] if v6 else frame[_HEADER + 9]
        if protocol == ipv4.ICMP and not v6 and frame[start] not in (icmp.ECHO, icmp.ECHO_REPLY):
            return
        self.tell(port, guest, other, protocol, bytes(frame[start : min(end, start + 64)]), code, 0, None)

    def _tcp_unreachable(self, port: Port, mac: bytes, key: bytes, error: int) -> None:
        """``key``: net/tcp's, and the number of the SYN that can't get on."""
        half = (len(key) - 8) // 2
        code = CODES.get(error, icmp.HOST)
        self.tell(port, key[:half], key[half : 2 * half], ipv4.TCP, key[2 * half :], code, 0, None)

    # -- the outside

    def _reach(self, address: bytes) -> str | int:
        """The host's name for what a guest means by ``address``, or an errno."""
        a = self.addresses
        settings = self.settings
        if len(address) == 16:
            if address in (a.gateway6, a.dns6, a.link_local):
                if address == a.gateway6 and settings.allow_host_loopback:
                    return "::1"
                return errno.ECONNREFUSED
            if settings.internal:
                return errno.EACCES
            # Unspecified, loopback, IPv4-compatible and mapped; link- and site-local; groups
            if address[:10] == _MAPPED[:10] or address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0x80):
                return errno.EACCES
            if address[:8] == a.prefix:
                return errno.EHOSTUNREACH
            if address[:12] == b"\0\x64\xff\x9b" + bytes(8) and not self._outside(address[12:]):
                return errno.EACCES  # NAT64 of what IPv4 may not reach (RFC 6052)
            return socket.inet_ntop(socket.AF_INET6, address)
        if address in (a.gateway, a.dns):
            if address == a.gateway and settings.allow_host_loopback:
                return "127.0.0.1"
            return errno.ECONNREFUSED
        if settings.internal or not self._outside(address):
            return errno.EACCES
        if int.from_bytes(address, "big") & a.mask == a.network:
            return errno.EHOSTUNREACH
        return socket.inet_ntoa(address)

    @staticmethod
    def _outside(address: bytes) -> bool:
        """Neither this network, loopback, link-local, multicast, reserved nor broadcast (RFC 6890)."""
        return not (address[0] in (0, 127) or address[0] >= 224 or address[:2] == b"\xa9\xfe")

    def _connect(self, v6: bool, address: bytes, port: int) -> socket.socket | int:
        """For net/tcp: a socket on its way to what a guest means."""
        a = self.addresses
        if port == dns.PORT and address in (a.dns, a.dns6):
            return self.resolver.stream() or errno.EAGAIN
        where = self._reach(address)
        if isinstance(where, int):
            self.refused += 1
            return where
        sock = None
        try:
            family = socket.AF_INET6 if v6 else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.connect((where, port))
        except BlockingIOError:
            pass
        except OSError as error:
            if sock is not None:
                sock.close()
            return error.errno or errno.EIO
        return sock  # type: ignore[return-value]

    def _names(self, asked: dns.Question) -> tuple[list[tuple[int, bytes]], int] | None:
        """What the network itself knows of a name: its guests, and the gateway."""
        address = dns.reversed_address(asked.name)
        if address is not None:
            return self._name_of(asked, address)
        name = asked.name
        domain = self.settings.domain
        if domain and name.endswith("." + domain):
            name = name[: -len(domain) - 1]
        elif "." in name:
            return None
        a = self.addresses
        found4: list[bytes] = []
        found6: list[bytes] = []
        if name == "_gateway":
            found4, found6 = [a.gateway], [a.gateway6] if a.prefix else []
        else:
            for port in self.ports:
                if port.name and port.name.lower() == name:
                    found4.append(port.address)
                    found6 += [address for address in port.neighbours if len(address) == 16 and address[:8] == a.prefix]
        if not found4:
            return ([], dns.NXDOMAIN) if domain and asked.name.endswith("." + domain) else None
        records = [(dns.A, address) for address in found4 if asked.kind in (dns.A, dns.ANY)]
        records += [(dns.AAAA, address) for address in found6[-4:] if asked.kind in (dns.AAAA, dns.ANY)]
        return records, 0

    def _name_of(self, asked: dns.Question, address: bytes) -> tuple[list[tuple[int, bytes]], int] | None:
        a = self.addresses
        if len(address) == 16:
            if not a.prefix or address[:8] != a.prefix:
                return None
        elif int.from_bytes(address, "big") & a.mask != a.network:
            return None
        name = "_gateway" if address in (a.gateway, a.gateway6) else ""
        for port in self.ports:
            if port.address == address or (len(address) == 16 and address in port.neighbours):
                name = port.name
        if not name:
            return [], dns.NXDOMAIN
        full = f"{name}.{self.settings.domain}" if self.settings.domain else name
        return ([(dns.PTR, dns.encode(full))] if asked.kind in (dns.PTR, dns.ANY) else []), 0

    # -- now and then

    def _publish(self) -> None:
        self._publishing = None
        self.publish()

    def _sweep(self) -> None:
        self.loop.call_later(SWEEP, self._sweep)
        now = time.monotonic()
        self.tcp.sweep()
        for port in self.ports:
            self.udp.sweep(port, now)
        if self.addresses.prefix and now >= self._next_advertisement:
            self._next_advertisement = now + ndp.INTERVAL
            for port in self.ports:
                self._advertise(port)

    def _failed(self, error: BaseException) -> None:
        """A bug of ours: the log has it, and the network goes on."""
        self.errors += 1
        if self.errors <= MAX_REPORTS:
            sys.excepthook(type(error), error, error.__traceback__)
            sys.stderr.flush()
