"""IPv4 (RFC 791): packets built and taken apart, and fragments put together in bounded memory."""

import struct
from collections import OrderedDict

from hostel.net.checksum import checksum

ICMP, TCP, UDP = 1, 6, 17
TTL = 64
MIN_HEADER = 20
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000
_HEADER = struct.Struct("!BBHHHBBH4s4s")

MAX_REASSEMBLIES = 32         # packets being put together at once, of all guests
MAX_PARTS = 64                # fragments of one: 64 KiB at an MTU of 1024
REASSEMBLY_TIME = 15.0        # seconds (RFC 791, 3.2)


def packet(protocol: int, source: bytes, destination: bytes, payload: bytes, ident: int = 0, mtu: int = 65535,
           ttl: int = TTL) -> list[bytes]:
    """The packet, or its fragments where it is larger than ``mtu``."""
    if MIN_HEADER + len(payload) <= mtu:
        return [_header(protocol, source, destination, len(payload), ident, 0, ttl) + payload]
    step = (mtu - MIN_HEADER) & ~7
    parts = []
    for offset in range(0, len(payload), step):
        part = payload[offset : offset + step]
        more = MORE_FRAGMENTS if offset + step < len(payload) else 0
        parts.append(_header(protocol, source, destination, len(part), ident, more | offset >> 3, ttl) + part)
    return parts


def _header(
    protocol: int, source: bytes, destination: bytes, length: int, ident: int, fragment: int, ttl: int
) -> bytes:
    head = _HEADER.pack(0x45, 0, MIN_HEADER + length, ident, fragment, ttl, protocol, 0, source, destination)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def pseudo(protocol: int, source: bytes, destination: bytes, length: int) -> bytes:
    """The header that checksums of TCP and UDP are over (RFC 9293, 3.1; RFC 8200, 8.1, sums to the same)."""
    return source + destination + struct.pack("!HH", protocol, length)


class Reassembly:
    """Fragments until they are a packet. What overlaps is refused whole (as RFC 5722 has it for IPv6)."""

    def __init__(self) -> None:
        self._packets: OrderedDict[tuple, tuple[float, dict[int, tuple[bytes, bool]]]] = OrderedDict()
        self.dropped = 0

    def add(self, key: tuple, offset: int, more: bool, data: bytes, now: float) -> bytes | None:
        """The payload, once its last part is here. ``offset`` in bytes."""
        while self._packets and next(iter(self._packets.values()))[0] < now - REASSEMBLY_TIME:
            self._packets.popitem(last=False)
            self.dropped += 1
        _, parts = self._packets.setdefault(key, (now, {}))
        if len(self._packets) > MAX_REASSEMBLIES:
            self._packets.popitem(last=False)
            self.dropped += 1
        wrong = not data or offset + len(data) > 65535 or (more and len(data) & 7) or len(parts) >= MAX_PARTS
        if wrong or parts.get(offset, (data, more)) != (data, more):
            self._packets.pop(key, None)
            self.dropped += 1
            return None
        parts[offset] = (data, more)
        return self._whole(key, parts)

    def _whole(self, key: tuple, parts: dict[int, tuple[bytes, bool]]) -> bytes | None:
        expected = 0
        for offset in sorted(parts):
            data, more = parts[offset]
            if offset < expected:
                self._packets.pop(key, None)
                self.dropped += 1
                return None
            if offset > expected:
                return None
            expected = offset + len(data)
            if not more:
                whole = b"".join(parts[o][0] for o in sorted(parts))
                self._packets.pop(key, None)
                if len(whole) != expected:  # parts behind the last one
                    self.dropped += 1
                    return None
                return whole
        return None
