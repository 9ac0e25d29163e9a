"""A network of the kernel's, by root: a bridge with an address, and what lets guests out by it (nftables).

Everything unwinds from a stack; what a killed process leaves (the bridge, the table of the same name) is found by its
name and removed by ``remove``. The rules, in a table ``inet`` of the network's own:

- what comes from the subnet and leaves by another interface gets that interface's address (masquerade);
- from the bridge to another network of ours: nothing; of an internal network: nothing to anywhere;
- to the bridge from elsewhere, and from the bridge to the host itself: only answers.

pyroute2 speaks netlink; it is imported when it is needed, as that takes a tenth of a second.
"""

import contextlib
import hashlib
import importlib.util
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import Any

from hostel.base.errors import NetworkError

PREFIX = "hostel"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# linux/netfilter.h, nf_tables.h
_INET = 1
_DROP, _ACCEPT = 0, 1
_META_IIFNAME, _META_OIFNAME, _META_NFPROTO = 6, 7, 15
_NFPROTO_IPV4 = 2
_EQUAL, _DIFFERENT = 0, 1
_CT_STATE = 0
_ESTABLISHED_OR_RELATED = 2 | 4
_SOURCE_OFFSET = 12           # of an IPv4 header
_SRCNAT, _FILTER = 100, 0     # priorities


def name_of(folder: Path) -> str:
    """The bridge's name, which no other network's has."""
    return PREFIX + hashlib.sha256(str(folder).encode()).hexdigest()[:8]


def exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def check() -> None:
    """``NetworkError`` where there can't be one."""
    if os.geteuid() != 0:
        raise NetworkError("the driver 'bridge' takes root; without it networks are of the driver 'user'")
    if importlib.util.find_spec("pyroute2") is None:
        raise NetworkError("the driver 'bridge' needs pyroute2: pip install 'hostel[bridge]'")


def create(stack: contextlib.ExitStack, name: str, subnet: str, internal: bool) -> str:
    """Make the network until ``stack`` closes; its gateway's address. Raises NetworkError."""
    network = ipaddress.IPv4Network(subnet)
    gateway = network.network_address + 1
    check()
    remove(name)
    try:
        from pyroute2 import IPRoute

        stack.callback(remove, name)
        with IPRoute() as route:
            route.link("add", ifname=name, kind="bridge")
            index = route.link_lookup(ifname=name)[0]
            route.addr("add", index=index, address=str(gateway), prefixlen=network.prefixlen)
            route.link("set", index=index, state="up")
        _write_rules(name, network, internal)
        if not internal and _FORWARDING.read_text().strip() == "0":
            _FORWARDING.write_text("1")
    except Exception as error:  # pyroute2's own have no common ancestor
        raise NetworkError(f"can't make the bridge {name}: {error}") from error
    return str(gateway)


def remove(name: str) -> None:
    """Of the bridge and its table what there is."""
    from pyroute2 import IPRoute
    from pyroute2.nftables.main import NFTables

    with contextlib.suppress(Exception), NFTables(nfgen_family=_INET) as tables:
        tables.table("del", name=name)
    with contextlib.suppress(Exception), IPRoute() as route:
        for index in route.link_lookup(ifname=name):
            route.link("del", index=index)


def _write_rules(name: str, network: ipaddress.IPv4Network, internal: bool) -> None:
    from pyroute2.nftables.main import NFTables

    ours = name.encode().ljust(16, b"\0")
    here = _named(_META_IIFNAME, _EQUAL, ours)
    nowhere = [] if internal else _named(_META_OIFNAME, _EQUAL, PREFIX.encode())
    answers = [*_answers(), _verdict(_ACCEPT)]
    with NFTables(nfgen_family=_INET) as tables:
        tables.table("add", name=name)
        for chain, kind, priority in (
            ("postrouting", "nat", _SRCNAT), ("forward", "filter", _FILTER), ("input", "filter", _FILTER)
        ):
            tables.chain("add", table=name, name=chain, hook=chain, type=kind, policy=_ACCEPT, priority=priority)
        rules = [
            ("forward", [*here, *_named(_META_OIFNAME, _EQUAL, ours), _verdict(_ACCEPT)]),
            ("forward", [*here, *nowhere, _verdict(_DROP)]),
            ("forward", [*_named(_META_OIFNAME, _EQUAL, ours), *answers]),
            ("forward", [*_named(_META_OIFNAME, _EQUAL, ours), _verdict(_DROP)]),
            ("input", [*here, *answers]),
            ("input", [*here, _verdict(_DROP)]),
        ]
        if not internal:
            rules.append(
                ("postrouting", [*_from(network), *_named(_META_OIFNAME, _DIFFERENT, ours), _expression("masq")])
            )
        for chain, expressions in rules:
            tables.rule("add", table=name, chain=chain, expressions=[expressions])


def _expression(name: str, **fields: Any) -> dict[str, Any]:
    data = [(f"NFTA_{name.upper()}_{key.upper()}", value) for key, value in fields.items()]
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": data})]}


def _value(data: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}


def _compare(operation: int, data: bytes) -> dict[str, Any]:
    return _expression("cmp", sreg=1, op=operation, data=_value(data))


def _named(key: int, operation: int, name: bytes) -> list[dict[str, Any]]:
    """An interface's name; less than 16 bytes are a name's beginning."""
    return [_expression("meta", key=key, dreg=1), _compare(operation, name)]


def _answers() -> list[dict[str, Any]]:
    """Packets of connections that are there, and errors about them."""
    mask, none = struct.pack("=I", _ESTABLISHED_OR_RELATED), bytes(4)
    return [
        _expression("ct", key=_CT_STATE, dreg=1),
        _expression("bitwise", sreg=1, dreg=1, len=4, mask=_value(mask), xor=_value(none)),
        _compare(_DIFFERENT, none),
    ]


def _from(network: ipaddress.IPv4Network) -> list[dict[str, Any]]:
    return [
        _expression("meta", key=_META_NFPROTO, dreg=1),
        _compare(_EQUAL, bytes((_NFPROTO_IPV4,))),
        _expression("payload", dreg=1, base=1, offset=_SOURCE_OFFSET, len=4),
        _expression("bitwise", sreg=1, dreg=1, len=4, mask=_value(network.netmask.packed), xor=_value(bytes(4))),
        _compare(_EQUAL, socket.inet_aton(str(network.network_address))),
    ]


def _verdict(code: int) -> dict[str, Any]:
    verdict = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]}
    return _expression("immediate", dreg=0, data=verdict)
