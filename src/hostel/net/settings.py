"""What a network is to its router: the addresses it gives out, and what guests may reach.

The first addresses are as in QEMU's user network, which guests' scripts know: .2 is the gateway, .3 its DNS server,
guests come from .15 on. Their IPv6 addresses are of RFC 4193's kind, so that names with both kinds of address are
reached by IPv4 (RFC 6724, 2.1), which every host has.
"""

import ipaddress

from hostel.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # with which comes more than a router needs
    from hostel.spec.net import Forward

FIRST_GUEST = 15            # of a subnet with room for it; small ones have them from .4 on
ROUTER_MAC = bytes.fromhex("52550a000202")


class Settings(NamedTuple):
    subnet: str = "10.0.2.0/24"
    prefix: str = "fd68:6f73:7465:6c::/64"     # "": no IPv6
    mtu: int = 1500
    domain: str = ""                 # guests are found as NAME and as NAME.domain
    internal: bool = False           # no way out
    allow_host_loopback: bool = False  # the gateway's address is the host's loopback
    resolv_conf: str = "/etc/resolv.conf"


class Guest(NamedTuple):
    """One port of the network: a VM's card."""

    mac: bytes
    name: str = ""
    forwards: tuple["Forward", ...] = ()
    fd: int = -1                     # the card's wire, where there is one already: a tap


class Addresses:
    """``Settings`` as frames have them: bytes in network order, IPv4 addresses of guests as numbers."""

    def __init__(self, settings: Settings):
        subnet = ipaddress.IPv4Network(settings.subnet)
        small = subnet.num_addresses < 64
        self.network, self.mask = int(subnet.network_address), int(subnet.netmask)
        self.gateway = (self.network + (1 if small else 2)).to_bytes(4, "big")
        self.dns = (self.network + (2 if small else 3)).to_bytes(4, "big")
        self.broadcast = subnet.broadcast_address.packed
        self.first_guest = self.network + (3 if small else FIRST_GUEST)
        self.last_guest = int(subnet.broadcast_address) - 1
        self.link_local = b"\xfe\x80" + bytes(13) + b"\2"
        self.prefix = self.gateway6 = self.dns6 = b""     # the prefix: its upper 8 bytes; empty: no IPv6
        if settings.prefix:
            self.prefix = ipaddress.IPv6Network(settings.prefix).network_address.packed[:8]
            self.gateway6 = self.prefix + bytes(7) + b"\2"
            self.dns6 = self.prefix + bytes(7) + b"\3"
