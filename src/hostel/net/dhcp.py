"""A DHCP server (RFC 2131, options of RFC 2132). A guest's address follows from its card, so there is nothing to
remember but who else asked: cards that the guest made itself share a pool, the longest unheard of first.
"""

import struct
from collections import OrderedDict

from hostel.base.typed import NamedTuple

CLIENT_PORT, SERVER_PORT = 68, 67
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
LEASE = 86400                 # seconds
MAX_STRANGERS = 64            # addresses of the pool for cards that aren't a port's own
_COOKIE = b"\x63\x82\x53\x63"
_MESSAGE = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_BROADCAST = 0x8000
_MASK, _ROUTER, _DNS, _HOST_NAME, _DOMAIN, _MTU, _BROADCAST_ADDRESS = 1, 3, 6, 12, 15, 26, 28
_REQUESTED, _LEASE, _TYPE, _SERVER, _PARAMETERS, _RENEWAL, _REBINDING, _CLIENT_ID = 50, 51, 53, 54, 55, 58, 59, 61


class Query(NamedTuple):
    """What a client sent, as far as it matters."""

    kind: int
    xid: int
    flags: int
    client: bytes              # ciaddr, the address it has already
    relay: bytes
    hardware: bytes            # chaddr, all 16 bytes
    requested: bytes           # option 50
    server: bytes              # option 54

    @property
    def mac(self) -> bytes:
        return self.hardware[:6]


def parse(data: bytes | memoryview) -> Query | None:
    """None where it is no request of DHCP over Ethernet."""
    if len(data) < _MESSAGE.size:
        return None
    op, htype, hlen, _, xid, _, flags, client, _, _, relay, hardware, _, _, cookie = _MESSAGE.unpack_from(data)
    if (op, htype, hlen, cookie) != (1, 1, 6, _COOKIE):
        return None
    options = _options(bytes(data[_MESSAGE.size :]))
    kind = options.get(_TYPE, b"")
    if len(kind) != 1:
        return None
    return Query(
        kind[0], xid, flags, client, relay, hardware, _address(options.get(_REQUESTED)), _address(options.get(_SERVER))
    )


def _options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        if at + 2 > len(data):
            break
        length = data[at + 1]
        options.setdefault(data[at], data[at + 2 : at + 2 + length])
        at += 2 + length
    return options


def _address(option: bytes | None) -> bytes:
    return option if option is not None and len(option) == 4 else b""


class Lease:
    """What guests are told beside their address. ``router`` is empty where there is no way out."""

    def __init__(
        self, mask: bytes, router: bytes, dns: bytes, broadcast: bytes, server: bytes, mtu: int, domain: str = ""
    ):
        self.mask, self.router, self.dns, self.broadcast = mask, router, dns, broadcast
        self.server, self.mtu, self.domain = server, mtu, domain


class Server:
    """Answers queries. ``fixed`` are the addresses of the ports' own cards, by MAC, with their names."""

    def __init__(self, lease: Lease, first: int, last: int):
        self.lease = lease
        self.fixed: dict[bytes, tuple[int, str]] = {}
        self._first, self._last = first, last
        self._strangers: OrderedDict[bytes, int] = OrderedDict()

    def assign(self, mac: bytes, name: str) -> int:
        """A port's address, the lowest that is free; the same again for a MAC that was here before.
        0 where the subnet has no more."""
        if mac in self.fixed:
            return self.fixed[mac][0]
        taken = {address for address, _ in self.fixed.values()} | set(self._strangers.values())
        for address in range(self._first, self._last + 1):
            if address not in taken:
                self.fixed[mac] = (address, name)
                return address
        return 0

    def release(self, mac: bytes) -> None:
        """The port has gone."""
        self.fixed.pop(mac, None)

    def address(self, mac: bytes) -> int:
        """Of a client; a stranger gets one from the pool's upper end."""
        if mac in self.fixed:
            return self.fixed[mac][0]
        if mac in self._strangers:
            self._strangers.move_to_end(mac)
            return self._strangers[mac]
        taken = {address for address, _ in self.fixed.values()} | set(self._strangers.values())
        for address in range(self._last, max(self._first, self._last - MAX_STRANGERS), -1):
            if address not in taken:
                break
        else:
            if not self._strangers:
                return 0
            address = self._strangers.popitem(last=False)[1]
        self._strangers[mac] = address
        return address

    def answer(self, query: Query) -> tuple[bytes, bytes] | None:
        """(the address it goes to, the message) for a query; None where there is nothing to say."""
        if query.kind in (DECLINE, RELEASE):
            self._strangers.pop(query.mac, None)
            return None
        if query.kind == INFORM:
            return query.client, self._message(query, ACK, bytes(4), b"")
        if query.kind not in (DISCOVER, REQUEST):
            return None
        number = self.address(query.mac)
        if not number:
            return None
        address = number.to_bytes(4, "big")
        name = self.fixed.get(query.mac, (0, ""))[1].encode()
        to = query.client if any(query.client) else b"\xff" * 4
        if query.kind == DISCOVER:
            return to, self._message(query, OFFER, address, name)
        if query.server and query.server != self.lease.server:
            return None  # another server's offer was taken (RFC 2131, 3.1, 4)
        wanted = query.requested or query.client
        if wanted != address:  # an address of another network, or of another time (RFC 2131, 4.3.2)
            return b"\xff" * 4, self._message(query, NAK, bytes(4), b"")
        return to, self._message(query, ACK, address, name)

    def _message(self, query: Query, kind: int, address: bytes, name: bytes) -> bytes:
        lease = self.lease
        head = _MESSAGE.pack(
            2, 1, 6, 0, query.xid, 0, query.flags & _BROADCAST, query.client if kind == ACK else bytes(4), address,
            bytes(4) if kind == NAK else lease.server, query.relay, query.hardware, b"", b"", _COOKIE,
        )
        options = [(_TYPE, bytes((kind,))), (_SERVER, lease.server)]
        if kind != NAK:
            if any(address):  # an INFORM has no lease (RFC 2131, 3.4)
                for code, seconds in ((_LEASE, LEASE), (_RENEWAL, LEASE // 2), (_REBINDING, LEASE * 7 // 8)):
                    options.append((code, struct.pack("!I", seconds)))
            options += [(_MASK, lease.mask), (_ROUTER, lease.router), (_DNS, lease.dns)]
            options += [(_BROADCAST_ADDRESS, lease.broadcast), (_MTU, struct.pack("!H", lease.mtu))]
            options += [(_HOST_NAME, name), (_DOMAIN, lease.domain.encode())]
        text = b"".join(bytes((code, len(value))) + value for code, value in options if value)
        return (head + text + b"\xff").ljust(300, b"\0")  # what BOOTP's clients expect at least (RFC 1542, 2.1)
