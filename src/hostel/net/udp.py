"""UDP and echoes through the host's sockets.

A guest's port is one unconnected socket (endpoint-independent mapping, RFC 4787, 4.1), to which only hosts may answer
that were sent to (address-dependent filtering, 5). ICMP errors come by its error queue and go on to the guest. Flows
are bounded; the one that was used longest ago makes way. Echoes ("ping sockets") are flows whose number is their
identifier.
"""

import contextlib
import errno
import os
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from hostel.base.loop import READ, WRITE, Loop
from hostel.base.typed import Any
from hostel.net import icmp, ipv4, ipv6
from hostel.net.checksum import checksum
from hostel.net.port import Port

MAX_FLOWS = 1024              # of a port, and again as many that came from outside
MAX_PEERS = 256               # hosts that may answer a flow
IDLE = 180.0                  # seconds (RFC 4787, 4.3: two minutes at least)
TURN = 32                     # datagrams of one socket before it is another's turn
TRACED = 32                   # hop limits below this are copied, for traceroute; others are the host's own

_IP_TTL, _IP_RECVERR, _IP_MTU_DISCOVER = 2, 11, 10
_IPV6_UNICAST_HOPS, _IPV6_RECVERR, _IPV6_MTU_DISCOVER = 16, 25, 23
_MSG_ERRQUEUE = 0x2000
_UDP_SEGMENT = 103            # linux/udp.h
_SOL_UDP = 17
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err
# What a guest is told of an error that the kernel reports by number only.
CODES = {
    errno.ECONNREFUSED: icmp.PORT, errno.EHOSTUNREACH: icmp.HOST, errno.ENETUNREACH: icmp.NET,
    errno.EMSGSIZE: icmp.NEEDS_FRAGMENTATION, errno.EACCES: icmp.PROHIBITED, errno.EPERM: icmp.PROHIBITED,
    errno.ETIMEDOUT: icmp.HOST, errno.ENETDOWN: icmp.NET, errno.EADDRNOTAVAIL: icmp.NET,
    errno.ENOPROTOOPT: icmp.PROTOCOL,
}  # fmt: skip


class Flow:
    """One socket, for one port (or echo identifier) of a guest's address."""

    __slots__ = ("sock", "port", "guest", "number", "v6", "echo", "peers", "used", "hops", "waits")

    def __init__(self, sock: socket.socket, port: Port, guest: bytes, number: int, echo: bool):
        self.sock = sock
        self.port = port
        self.guest = guest
        self.number = number
        self.v6 = len(guest) == 16
        self.echo = echo
        # The guest's name for each host that was sent to, by the socket's.
        self.peers: OrderedDict[str, bytes] = OrderedDict()
        self.used = 0.0
        self.hops = 0              # 0: the host's own


class Forwarded:
    """A client outside that a listening socket had a datagram from, as the guest sees it."""

    __slots__ = ("sock", "client", "used")

    def __init__(self, sock: socket.socket, client: Any):
        self.sock = sock
        self.client = client
        self.used = 0.0


# (port, source, destination, protocol, payload): a packet for a guest.
Send = Callable[[Port, bytes, bytes, int, bytes], None]
# (port, guest, other, protocol, start of the payload, code, mtu, offender): an ICMP error for a guest.
Tell = Callable[[Port, bytes, bytes, int, bytes, int, int, bytes | None], None]
# What a socket should send to for the address that a guest means; an errno where it may not.
Reach = Callable[[bytes], str | int]


class Udp:
    def __init__(self, loop: Loop, send: Send, tell: Tell, reach: Reach):
        self._loop = loop
        self._send = send
        self._tell = tell
        self._reach = reach
        self._buffer = memoryview(bytearray(65536))
        self.now = 0.0
        self.open = self.dropped = self.refused = 0

    # -- from a guest

    def input(self, port: Port, source: bytes, destination: bytes, hops: int, datagram: memoryview,
              segment: int = 0) -> None:
        """A datagram with its header. ``segment``: it is several, of so many bytes each (UDP_SEGMENT)."""
        sport, dport, length, _ = struct.unpack_from("!HHHH", datagram)
        if not segment and not 8 <= length <= len(datagram):
            self.dropped += 1
            return
        payload = datagram[8:] if segment else datagram[8:length]
        back = port.forwarded.get(source + destination + datagram[:4])
        if back is not None:
            back.used = self.now
            with contextlib.suppress(OSError):
                back.sock.sendto(payload, back.client)
            return
        where = self._reach(destination)
        head = bytes(datagram[:8])
        if isinstance(where, int):
            self.refused += 1
            self._refuse(port, source, destination, ipv4.UDP, head, where)
            return
        flow = self._flow(port, source, sport, False)
        if flow is None:
            return
        self._out(flow, destination, where, dport, payload, hops, segment, head)

    def echo(self, port: Port, source: bytes, destination: bytes, hops: int, message: memoryview) -> None:
        """An echo request for the outside."""
        where = self._reach(destination)
        head = bytes(message[:8])
        protocol = ipv6.ICMP if len(source) == 16 else ipv4.ICMP
        if isinstance(where, int):
            self.refused += 1
            self._refuse(port, source, destination, protocol, head, where)
            return
        flow = self._flow(port, source, message[4] << 8 | message[5], True)
        if flow is None:  # the host doesn't let us (net.ipv4.ping_group_range)
            self._refuse(port, source, destination, protocol, head, errno.EACCES)
            return
        self._out(flow, destination, where, 0, message, hops, 0, head)

    def _refuse(self, port: Port, source: bytes, destination: bytes, protocol: int, head: bytes, error: int) -> None:
        if error in CODES:
            self._tell(port, source, destination, protocol, head, CODES[error], 0, None)

    def _out(self, flow: Flow, destination: bytes, where: str, dport: int, payload: memoryview, hops: int, segment: int,
             head: bytes) -> None:
        flow.used = self.now
        if flow.peers.get(where) != destination:
            flow.peers[where] = destination
            if len(flow.peers) > MAX_PEERS:
                flow.peers.popitem(last=False)
        wanted = hops - 1 if hops < TRACED else 0
        for attempt in (1, 2):  # the first may report what came of an earlier datagram
            try:
                if wanted != flow.hops:
                    level = (socket.IPPROTO_IPV6, _IPV6_UNICAST_HOPS) if flow.v6 else (socket.IPPROTO_IP, _IP_TTL)
                    flow.sock.setsockopt(*level, wanted or -1)
                    flow.hops = wanted
                if segment:
                    self._segments(flow.sock, payload, segment, (where, dport))
                else:
                    flow.sock.sendto(payload, (where, dport))
                return
            except BlockingIOError:
                self.dropped += 1
                return
            except OSError as error:
                if attempt == 1 and self._errors(flow):
                    continue
                protocol = ipv4.UDP if not flow.echo else ipv6.ICMP if flow.v6 else ipv4.ICMP
                self._refuse(flow.port, flow.guest, destination, protocol, head, error.errno or 0)
                return

    @staticmethod
    def _segments(sock: socket.socket, payload: memoryview, size: int, to: tuple[str, int]) -> None:
        """Datagrams of ``size`` bytes, 64 at once as the kernel takes them (UDP_MAX_SEGMENTS)."""
        for start in range(0, len(payload), 64 * size):
            part = payload[start : start + 64 * size]
            sock.sendmsg([part], [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", size))], 0, to)

    def _flow(self, port: Port, guest: bytes, number: int, echo: bool) -> Flow | None:
        key = guest + struct.pack("!H?", number, echo)
        flow = port.flows.get(key)
        if flow is not None:
            port.flows.move_to_end(key)
            return flow
        while len(port.flows) >= MAX_FLOWS:
            self._close(port.flows.popitem(last=False)[1])
        v6 = len(guest) == 16
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            if echo:
                protocol = ipv6.ICMP if v6 else ipv4.ICMP
                sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind, protocol)
            else:
                sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind)
        except OSError:
            self.dropped += 1
            return None
        try:
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, 0)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, 0)
        except OSError:
            pass  # an option that this kernel lacks
        flow = Flow(sock, port, guest, number, echo)
        port.flows[key] = flow
        self.open += 1
        self._loop.watch(sock.fileno(), READ, partial(self._ready, flow))
        return flow

    # -- from the outside

    def _ready(self, flow: Flow, events: int) -> None:
        self.now = time.monotonic()
        if events & ~(READ | WRITE):
            self._errors(flow)
        buffer = self._buffer
        for _ in range(TURN):
            try:
                size, address = flow.sock.recvfrom_into(buffer)
            except BlockingIOError:
                return
            except OSError:
                continue  # what the error queue tells too
            other = flow.peers.get(address[0])
            if other is None:
                self.dropped += 1
                continue
            flow.used = self.now
            if flow.echo:
                self._echoed(flow, other, bytes(buffer[:size]))
            else:
                head = struct.pack("!HHHH", address[1], flow.number, 8 + size, 0)
                self._deliver(flow.port, other, flow.guest, head, bytes(buffer[:size]))

    def _deliver(self, port: Port, source: bytes, destination: bytes, head: bytes, payload: bytes) -> None:
        datagram = head + payload
        check = checksum(datagram, checksum_start(source, destination, ipv4.UDP, len(datagram)))
        self._send(port, source, destination, ipv4.UDP, head[:6] + struct.pack("!H", check) + payload)

    def _echoed(self, flow: Flow, other: bytes, message: bytes) -> None:
        """An echo's reply; its identifier was the socket's."""
        if len(message) < 8 or message[0] not in (icmp.ECHO_REPLY, icmp.ECHO_REPLY6):
            return
        rest = flow.number << 16 | int.from_bytes(message[6:8], "big")
        if flow.v6:
            body = icmp.message6(other, flow.guest, icmp.ECHO_REPLY6, 0, rest, message[8:])
            self._send(flow.port, other, flow.guest, ipv6.ICMP, body)
        else:
            body = icmp.message(icmp.ECHO_REPLY, 0, rest, message[8:])
            self._send(flow.port, other, flow.guest, ipv4.ICMP, body)

    def _errors(self, flow: Flow) -> bool:
        """Pass on what the socket's error queue has; whether there was anything."""
        found = False
        for _ in range(TURN):
            try:
                data, ancillary, _, address = flow.sock.recvmsg(64, 256, _MSG_ERRQUEUE)
            except OSError:
                return found
            found = True
            other = flow.peers.get(address[0]) if address else None
            for level, kind, value in ancillary:
                if (level, kind) not in (
                    (socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)
                ) or len(value) < _ERROR.size or other is None:
                    continue
                number, origin, what, code, info, _ = _ERROR.unpack_from(value)
                offender = None
                if origin == _ORIGIN_ICMP and len(value) >= 24:
                    offender = value[20:24]
                elif origin == _ORIGIN_ICMP6 and len(value) >= 40:
                    offender = value[24:40]
                protocol = ipv4.UDP
                if flow.echo:
                    protocol = ipv6.ICMP if flow.v6 else ipv4.ICMP
                    kind_ = icmp.ECHO6 if flow.v6 else icmp.ECHO
                    head = struct.pack("!BBHHH", kind_, 0, 0, flow.number, int.from_bytes(data[6:8], "big"))
                else:
                    head = struct.pack("!HHHH", flow.number, address[1], 8 + len(data), 0)
                expired = icmp.TIME_EXCEEDED6 if origin == _ORIGIN_ICMP6 else icmp.TIME_EXCEEDED
                if origin in (_ORIGIN_ICMP, _ORIGIN_ICMP6) and what == expired and offender:
                    self._tell(flow.port, flow.guest, other, protocol, head, -1, 0, offender)
                elif number in CODES:
                    self._tell(flow.port, flow.guest, other, protocol, head, CODES[number], info, None)
        return found

    def from_client(self, port: Port, sock: socket.socket, client: Any, source: bytes, payload: bytes,
                    target: int) -> None:
        """A datagram for a forwarded port, from ``client`` of ``sock``, whom the guest sees as ``source``."""
        sport = client[1]
        guest = port.address
        for _ in range(64):
            key = guest + source + struct.pack("!HH", target, sport)
            known = port.forwarded.get(key)
            if known is None or (known.sock is sock and known.client == client):
                break
            sport = int.from_bytes(os.urandom(2), "big") | 1024  # another client with the same port
        else:
            self.dropped += 1
            return
        if known is None:
            known = port.forwarded[key] = Forwarded(sock, client)
            if len(port.forwarded) > MAX_FLOWS:
                port.forwarded.popitem(last=False)
        known.used = self.now
        port.forwarded.move_to_end(key)
        self._deliver(port, source, guest, struct.pack("!HHHH", sport, target, 8 + len(payload), 0), payload)

    # -- their end

    def sweep(self, port: Port, now: float) -> None:
        """Forget what is idle."""
        for key in [key for key, flow in port.flows.items() if now - flow.used > IDLE]:
            self._close(port.flows.pop(key))
        for key in [key for key, known in port.forwarded.items() if now - known.used > IDLE]:
            del port.forwarded[key]

    def closed(self, port: Port) -> None:
        while port.flows:
            self._close(port.flows.popitem()[1])
        port.forwarded.clear()

    def _close(self, flow: Flow) -> None:
        self.open -= 1
        self._loop.unwatch(flow.sock.fileno())
        flow.sock.close()


def checksum_start(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The pseudo-header's part of a checksum."""
    return int.from_bytes(ipv4.pseudo(protocol, source, destination, length), "big") % 0xFFFF
