"""What a VM's network cards are (``NicSpec``, in ``vm.toml``), ports of the host that lead to it (``Forward``), and
named networks (``NetworkSpec``, kept as ``networks/NAME/network.toml``)."""

import ipaddress
import os
import re

import msgspec

from hostel.base.errors import UsageError
from hostel.base.units import format_size, parse_size

NETWORK_VERSION = 1
MAX_NICS = 8
MAX_RANGE = 1024               # ports of one -p
MAX_QUEUES = 16                # pairs; a vCPU has no use for more than one
MIN_MTU, MAX_MTU = 68, 65521   # virtio 1.2, 5.1.4.1 says 68 to 65535; with its Ethernet header a frame is under 64 KiB
DEFAULT_MTU = 1500
MIN_RATE = 1 << 10             # a frame must get through in reasonable time
KINDS = ("nat", "none")        # words that name no network
VSOCK = "vsock.sock"           # in the VM's folder, where no path was given
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)     # also a part of DNS names and of a folder's
_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}", re.ASCII)  # IFNAMSIZ - 1


class NicSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One network card. ``network`` is ``nat``, a named network, ``tap:INTERFACE`` or ``bridge:BRIDGE``."""

    network: str = "nat"
    mac: str = ""               # as check_mac writes it; make_mac gives one that stays
    mtu: int = DEFAULT_MTU      # bytes, without the Ethernet header
    queues: int = 1             # pairs of a receive and a transmit queue
    rate: int = 0               # bytes a second, either way; 0: as fast as it goes
    burst: int = 0              # bytes at once above the rate; 0: what a tenth of a second carries
    spoof: bool = False         # the guest may use other MACs than its own
    ports: list[str] = []       # ports of the host's that lead to it, as parse_forward reads them
    host_loopback: bool = False  # the guest may reach the host's loopback as the gateway's address


class Forward(msgspec.Struct, frozen=True):
    """A port of the host's that leads to one of the guest's."""

    protocol: str               # tcp or udp
    address: str                # of the host's
    host_port: int
    guest_port: int

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.host_port}:{self.guest_port}{'/udp' if self.protocol == 'udp' else ''}"


class NetworkSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A network with a name: its VMs see one another, and nobody else's."""

    version: int = NETWORK_VERSION
    name: str
    driver: str = "user"        # user: a process that is switch and router; bridge: the kernel's, by root
    subnet: str = ""            # IPv4, the first address is the router's
    subnet6: str = ""           # IPv6, a /64; empty: none
    internal: bool = False      # no way out


DRIVERS = ("user", "bridge")


def check_network_name(name: str) -> str:
    if name == "host":
        raise UsageError("'host' is the host's own network, and for containers alone")
    if not _NAME.fullmatch(name) or name in KINDS:
        raise UsageError(
            f"'{name}' is no name for a network: use up to 32 of a-z 0-9 _ - and begin with a letter ('nat' and 'none' "
            "have a meaning already)"
        )
    return name


def check_mac(text: str) -> str:
    """Six bytes in lower case with colons; no multicast address."""
    match = re.fullmatch(r"([0-9a-f]{2}[:-]){5}[0-9a-f]{2}", text.lower(), re.ASCII)
    if not match:
        raise UsageError(f"'{text}' is no MAC address: write for example 02:00:5e:10:00:01")
    mac = text.lower().replace("-", ":")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise UsageError(f"'{text}' can't be a card's MAC address: it is a group's, or none")
    return mac


def make_mac() -> str:
    """A MAC of nobody else's: locally administered (IEEE 802, 8.4), kept in vm.toml."""
    raw = bytearray(os.urandom(6))
    raw[0] = raw[0] & 0xFC | 2
    return raw.hex(":")


def parse_rate(text: str) -> tuple[int, int]:
    """Bytes a second and burst in bytes of ``RATE[:BURST]``; a rate of 0 is none."""
    rate_text, colon, burst_text = text.partition(":")
    rate, burst = parse_size(rate_text.removesuffix("/s")), parse_size(burst_text) if colon else 0
    if rate and rate < MIN_RATE:
        raise UsageError(f"a network rate is at least {format_size(MIN_RATE)} bytes a second, not {rate_text}")
    if burst and not rate:
        raise UsageError(f"'{text}': a burst needs a rate")
    return rate, burst


def parse_nic(text: str) -> NicSpec:
    """A card as ``--network`` has it: ``NETWORK[,mac=MAC][,mtu=N][,queues=N][,rate=RATE[:BURST]][,spoof=on]``."""
    network, *options = text.split(",")
    nic = NicSpec(network=check_network(network))
    for option in options:
        key, equals, value = option.partition("=")
        if key == "mac" and equals:
            nic.mac = check_mac(value)
        elif key == "mtu" and equals:
            nic.mtu = _number(value, MIN_MTU, MAX_MTU, "an MTU")
        elif key == "queues" and equals:
            nic.queues = _number(value, 1, MAX_QUEUES, "the number of queues")
        elif key == "rate" and equals:
            nic.rate, nic.burst = parse_rate(value)
        elif key == "spoof" and value in ("on", "off"):
            nic.spoof = value == "on"
        else:
            raise UsageError(
                f"--network {text}: '{option}' is none of mac=MAC, mtu=N, queues=N, rate=RATE[:BURST], spoof=on"
            )
    return nic


def check_network(network: str) -> str:
    """``nat``, ``none``, a network's name, or ``tap:INTERFACE`` or ``bridge:BRIDGE``."""
    kind, colon, interface = network.partition(":")
    if not colon:
        return network if network in KINDS else check_network_name(network)
    if kind not in ("tap", "bridge") or not _INTERFACE.fullmatch(interface) or interface in (".", ".."):
        raise UsageError(
            f"'{network}' is no network: it is nat, none, a network's name, tap:INTERFACE or bridge:BRIDGE"
        )
    return network


def parse_forward(text: str) -> Forward:
    """``[ADDRESS:]HOST:GUEST[/udp]``. Without an address only the host itself can use it; IPv6 needs brackets."""
    where, slash, protocol = text.partition("/")
    match = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?(\d{1,5}):(\d{1,5})", where, re.ASCII)
    if not match or slash and protocol not in ("tcp", "udp"):
        raise UsageError(f"'{text}' is no port forward: write [ADDRESS:]HOST:GUEST[/udp], for example 8080:80")
    try:
        address = str(ipaddress.ip_address((match[1] or "127.0.0.1").strip("[]")))
    except ValueError:
        raise UsageError(f"'{text}': {match[1]} is no address") from None
    ports = [_number(port, 1, 65535, "a port") for port in match.group(2, 3)]
    return Forward(protocol or "tcp", address, *ports)


def parse_forwards(text: str) -> list[Forward]:
    """The same with ranges: ``8000-8009:9000-9009`` is ten forwards."""
    match = re.fullmatch(r"(.*:|)(\d{1,5})-(\d{1,5}):(\d{1,5})-(\d{1,5})(/\w+|)", text, re.ASCII)
    if not match:
        return [parse_forward(text)]
    where, protocol = match[1], match[6]
    host, host_last, guest, guest_last = (int(port) for port in match.group(2, 3, 4, 5))
    count = host_last - host + 1
    if not 1 <= count <= MAX_RANGE or guest_last - guest + 1 != count:
        raise UsageError(f"'{text}': the two ranges must be of one length, and of up to {MAX_RANGE} ports")
    return [parse_forward(f"{where}{host + i}:{guest + i}{protocol}") for i in range(count)]


def check_network_spec(spec: NetworkSpec) -> NetworkSpec:
    """What a person asked for, in the form that the rest relies on."""
    check_network_name(spec.name)
    if spec.driver not in DRIVERS:
        raise UsageError(f"there is no network driver '{spec.driver}'; there is {', '.join(DRIVERS)}")
    if spec.subnet:
        spec.subnet = str(_subnet(spec.subnet, 4, 8, 29))
    if spec.subnet6:
        spec.subnet6 = str(_subnet(spec.subnet6, 6, 64, 64))
    return spec


def _subnet(text: str, version: int, shortest: int, longest: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is no subnet: {error}") from None
    if subnet.version != version or not shortest <= subnet.prefixlen <= longest:
        prefixes = f"/{shortest}" if shortest == longest else f"/{shortest} to /{longest}"
        raise UsageError(f"'{text}' can't be the network's IPv{version} subnet: it must be one of {prefixes}")
    if subnet.is_multicast or subnet.is_loopback or subnet.is_unspecified or version == 6 and subnet.is_link_local:
        raise UsageError(f"'{text}' can't be a network's subnet: it has a meaning already")
    return subnet


def _number(text: str, least: int, most: int, what: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not least <= int(text) <= most:
        raise UsageError(f"{what} is {least} to {most}, not '{text}'")
    return int(text)
