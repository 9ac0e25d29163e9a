"""ARP for IPv4 over Ethernet (RFC 826)."""

import struct

_PACKET = struct.Struct("!HHBBH6s4s6s4s")
SIZE = _PACKET.size
REQUEST, REPLY = 1, 2


def parse(packet: bytes | memoryview) -> tuple[int, bytes, bytes, bytes] | None:
    """(operation, sender's MAC, sender's address, the address asked for); None where it isn't one."""
    if len(packet) < SIZE:
        return None
    hardware, protocol, hlen, plen, operation, mac, sender, _, target = _PACKET.unpack_from(packet)
    if (hardware, protocol, hlen, plen) != (1, 0x0800, 6, 4):
        return None
    return operation, mac, sender, target


def reply(mac: bytes, address: bytes, to_mac: bytes, to: bytes) -> bytes:
    """``address`` is at ``mac``."""
    return _PACKET.pack(1, 0x0800, 6, 4, REPLY, mac, address, to_mac, to)
