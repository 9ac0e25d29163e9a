"""IPv6 (RFC 8200): packets built and taken apart."""

import struct

from hostel.net.ipv4 import TCP, UDP

__all__ = ["TCP", "UDP"]
HEADER = 40
ICMP = 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS, NONE = 0, 43, 44, 60, 59
HOP_LIMIT = 64
MAX_EXTENSIONS = 8            # a chain that is longer has no honest purpose
ALL_NODES = b"\xff\x02" + bytes(13) + b"\1"
ALL_ROUTERS = b"\xff\x02" + bytes(13) + b"\2"
UNSPECIFIED = bytes(16)
_HEADER = struct.Struct("!IHBB16s16s")
_FRAGMENT = struct.Struct("!BBHI")


def packet(protocol: int, source: bytes, destination: bytes, payload: bytes, ident: int = 0, mtu: int = 65575,
           hops: int = HOP_LIMIT) -> list[bytes]:
    """The packet, or its fragments where it is larger than ``mtu``."""
    if HEADER + len(payload) <= mtu:
        return [_HEADER.pack(6 << 28, len(payload), protocol, hops, source, destination) + payload]
    step = (mtu - HEADER - 8) & ~7
    parts = []
    for offset in range(0, len(payload), step):
        part = payload[offset : offset + step]
        fragment = _FRAGMENT.pack(protocol, 0, offset | (offset + step < len(payload)), ident)
        head = _HEADER.pack(6 << 28, 8 + len(part), FRAGMENT, hops, source, destination)
        parts.append(head + fragment + part)
    return parts


def upper(packet: memoryview, start: int, end: int) -> tuple[int, int, tuple[int, bool, int] | None] | None:
    """Behind the extension headers of the packet at ``start``: (protocol, where it begins, (offset, more, ident) of a
    fragment). None where they make no sense."""
    protocol, at = packet[start + 6], start + HEADER
    for _ in range(MAX_EXTENSIONS):
        if protocol in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS):
            if at + 8 > end:
                return None
            protocol, at = packet[at], at + 8 + 8 * packet[at + 1]
        elif protocol == FRAGMENT:
            if at + 8 > end:
                return None
            inner, _, field, ident = _FRAGMENT.unpack_from(packet, at)
            if field & 0xFFF9:
                return inner, at + 8, (field & 0xFFF8, bool(field & 1), ident)
            protocol, at = inner, at + 8  # an atomic fragment (RFC 6946)
        else:
            return (protocol, at, None) if at <= end else None
    return None
