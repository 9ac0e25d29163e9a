"""ICMP (RFC 792) and ICMPv6 (RFC 4443): echo, and the errors that a router reports."""

import struct

from hostel.net import ipv4, ipv6
from hostel.net.checksum import checksum

ECHO_REPLY, UNREACHABLE, ECHO, TIME_EXCEEDED = 0, 3, 8, 11
NET, HOST, PROTOCOL, PORT, NEEDS_FRAGMENTATION, PROHIBITED = 0, 1, 2, 3, 4, 13
UNREACHABLE6, TOO_BIG6, TIME_EXCEEDED6, PARAMETER6, ECHO6, ECHO_REPLY6 = 1, 2, 3, 4, 128, 129
# An error's code in the other family's words: (type, code) of RFC 4443 for an ICMPv4 "unreachable" (RFC 7915, 4.2).
_AS_6 = {
    NET: (UNREACHABLE6, 0), HOST: (UNREACHABLE6, 3), PROTOCOL: (PARAMETER6, 1), PORT: (UNREACHABLE6, 4),
    NEEDS_FRAGMENTATION: (TOO_BIG6, 0), PROHIBITED: (UNREACHABLE6, 1),
}  # fmt: skip


def message(kind: int, code: int, rest: int, data: bytes) -> bytes:
    """An ICMPv4 message; ``rest`` are the four bytes behind the checksum."""
    body = struct.pack("!BBHI", kind, code, 0, rest) + data
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def message6(source: bytes, destination: bytes, kind: int, code: int, rest: int, data: bytes) -> bytes:
    """An ICMPv6 message, whose checksum is over the addresses too (RFC 4443, 2.3)."""
    body = struct.pack("!BBHI", kind, code, 0, rest) + data
    head = ipv4.pseudo(ipv6.ICMP, source, destination, len(body))
    return body[:2] + struct.pack("!H", checksum(head + body)) + body[4:]


def unreachable(code: int, offending: bytes, mtu: int = 0) -> bytes:
    """What a guest hears of a packet of its own: that one's header and 8 bytes more are enough for it."""
    return message(UNREACHABLE, code, mtu, offending[: 60 + 8])


def unreachable6(source: bytes, destination: bytes, code: int, offending: bytes, mtu: int = 0) -> bytes:
    kind, code6 = _AS_6[code]
    rest = 6 if kind == PARAMETER6 else mtu  # where the "next header" field is
    return message6(source, destination, kind, code6, rest, offending[: 1280 - 48])  # RFC 4443, 3.1
