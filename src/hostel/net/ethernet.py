"""Frames as they come and go: ``virtio_net_hdr_v1`` (virtio 1.2, 5.1.6), then Ethernet (IEEE 802.3, 3.1)."""

import struct

VNET = 12                    # bytes of virtio_net_hdr_v1
HEADER = VNET + 14           # where an IP packet begins
# What a worker says in a frame's place: its guest goes on from an earlier state, and knows none of its connections.
FORGET = b"\0"
MAX_FRAME = HEADER + 65535
BROADCAST = b"\xff" * 6

F_NEEDS_CSUM = 1             # the checksum is a sum of the pseudo-header yet
F_DATA_VALID = 2             # nobody needs to look
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 3, 4, 5
GSO_ECN = 0x80

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
_PLAIN = bytes(VNET)
_VALID = bytes((F_DATA_VALID,)) + bytes(VNET - 1)
_TYPE = {kind: struct.pack("!H", kind) for kind in (IPV4, ARP, IPV6)}


def header(destination: bytes, source: bytes, kind: int) -> bytes:
    """What goes before a packet with whole checksums."""
    return _PLAIN + destination + source + _TYPE[kind]


def multicast6(address: bytes) -> bytes:
    """The MAC of an IPv6 group (RFC 2464, 7)."""
    return b"\x33\x33" + address[12:]
