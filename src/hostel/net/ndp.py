"""IPv6 neighbour discovery (RFC 4861): advertisements of the router and of its addresses."""

import struct

from hostel.net import ipv6
from hostel.net.icmp import message6
from hostel.net.settings import Addresses

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT, SOLICITATION, ADVERTISEMENT = 133, 134, 135, 136
_SOURCE_LINK, _TARGET_LINK, _PREFIX, _MTU, _RDNSS, _DNSSL = 1, 2, 3, 5, 25, 31
LIFETIME = 1800               # seconds that a router's word is good for
INTERVAL = 400.0              # seconds between advertisements that nobody asked for
_ROUTER, _SOLICITED, _OVERRIDE = 0x80000000, 0x40000000, 0x20000000
_ON_LINK_AND_AUTONOMOUS = 0xC0


def router_advertisement(addresses: Addresses, mac: bytes, mtu: int, domain: str, to: bytes) -> bytes:
    """A prefix to make addresses from (RFC 4862) and where names are resolved (RFC 8106)."""
    lifetime = 3 * LIFETIME
    # No preference of ours for DHCPv6: flags 0. Reachable and retransmission times are the guest's business.
    data = struct.pack("!II", 0, 0)
    data += struct.pack("!BB6s", _SOURCE_LINK, 1, mac)
    data += struct.pack("!BBHI", _MTU, 1, 0, max(mtu, 1280))
    data += struct.pack(
        "!BBBBIII16s", _PREFIX, 4, 64, _ON_LINK_AND_AUTONOMOUS, 86400, 14400, 0, addresses.prefix + bytes(8)
    )
    data += struct.pack("!BBHI16s", _RDNSS, 3, 0, lifetime, addresses.dns6)
    if domain:
        name = b"".join(bytes((len(label),)) + label.encode() for label in domain.split(".")) + b"\0"
        name += bytes(-len(name) % 8)
        data += struct.pack("!BBHI", _DNSSL, 1 + len(name) // 8, 0, lifetime) + name
    flags = 64 << 24 | LIFETIME  # hop limit, flags, lifetime
    return message6(addresses.link_local, to, ROUTER_ADVERTISEMENT, 0, flags, data)


def solicited(body: bytes | memoryview) -> bytes | None:
    """The address that a neighbour solicitation asks for, where it is one (RFC 4861, 7.1.1)."""
    if len(body) < 24 or body[1] != 0:
        return None
    return bytes(body[8:24])


def advertisement(address: bytes, mac: bytes, to: bytes) -> tuple[bytes, bytes]:
    """(who it goes to, the message): that ``address`` is at ``mac``. Who has no address yet is told with all."""
    flags = _ROUTER | _OVERRIDE
    if to == ipv6.UNSPECIFIED:
        to = ipv6.ALL_NODES
    else:
        flags |= _SOLICITED
    data = address + struct.pack("!BB6s", _TARGET_LINK, 1, mac)
    return to, message6(address, to, ADVERTISEMENT, 0, flags, data)
