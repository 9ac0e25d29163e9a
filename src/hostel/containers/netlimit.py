"""How much a container's network card may carry: the fourth row of what a container may use, which cgroups v2 don't
have and v1 only mark packets for (``network.classID``, ``network.priorities``: ``containers/cgroups``).

- ``shape``: what leaves by an interface waits until it may go, in a token bucket filter (tc-tbf(8)).
- ``police``: what comes in by it beyond the rate is dropped, by a rule of nftables at the interface's ingress; there is
  nowhere to wait there, and TCP slows down by itself.

Both are of the network namespace that the caller is in. In the container's own they end with it; a container that has
CAP_NET_ADMIN could remove them there, so one end of a veth pair is better limited from the host's: what leaves there is
what the container gets. What ``police`` makes in the host's namespace stays when the interface goes, and since Linux
6.16 is for the next one of that name, until ``remove``.

Rates are bytes a second, bursts bytes.
"""

import errno
import socket
import struct

from hostel.base.errors import NetworkError
from hostel.base.linux import netlink
from hostel.containers.cgroups.limits import Limit

MIN_RATE = 1 << 10              # a frame must get through in reasonable time
MAX_RATE = MAX_BURST = (1 << 32) - 1
_MIN_BURST = 16 << 10           # some frames
_TABLE = "hostel-limit-"
# linux/rtnetlink.h, pkt_sched.h
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_ROOT = 0xFFFFFFFF
_KIND, _OPTIONS, _STATS2 = 1, 2, 7
_TBF_PARMS, _TBF_BURST = 1, 6
_STATS_BASIC, _STATS_QUEUE = 1, 3
_ETHERNET = 1
_RATE = struct.Struct("=BBHhHI")
# linux/netfilter/nfnetlink.h, nf_tables.h
_BATCH_BEGIN, _BATCH_END, _SUBSYSTEM = 16, 17, 10
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _GETRULE = (_SUBSYSTEM << 8 | number for number in (0, 2, 3, 6, 7))
_NETDEV = 5
_INGRESS = 0


def shape(interface: str, rate: int, burst: int = 0) -> None:
    """Let what leaves by it go at ``rate``, and ``burst`` at once (0: what a tenth of a second carries). An older limit
    is replaced. Raises NetworkError."""
    burst = _checked(rate, burst)
    parms = _RATE.pack(0, _ETHERNET, 0, 0, 0, rate) + bytes(_RATE.size)
    waiting = min(burst + max(rate // 5, 1 << 16), MAX_RATE)  # bytes that may: a fifth of a second, and a large packet
    options = netlink.nested(
        _OPTIONS, netlink.attribute(_TBF_PARMS, parms, struct.pack("=III", waiting, 0, 0)),
        netlink.attribute(_TBF_BURST, burst),
    )  # fmt: skip
    flags = netlink.ACK | netlink.CREATE | netlink.REPLACE
    _tc(interface, netlink.message(_NEWQDISC, flags, _tcmsg(interface), netlink.attribute(_KIND, "tbf"), options))


def police(interface: str, rate: int, burst: int = 0) -> None:
    """Let come in by it what is within ``rate``, and at once ``burst`` above what a second carries, as nftables has it.
    An older limit is replaced, with no moment between. Raises NetworkError."""
    burst = _checked(rate, burst)

    def expression(name: str, *attributes: bytes) -> bytes:
        return netlink.nested(1, netlink.attribute(1, name), netlink.nested(2, *attributes))

    table = _TABLE + interface
    hook = netlink.nested(
        4, netlink.attribute(1, _be32(_INGRESS)), netlink.attribute(2, _be32(0)), netlink.attribute(3, interface)
    )
    counter = expression("counter", netlink.attribute(1, _be64(0)), netlink.attribute(2, _be64(0)))
    limit = expression(
        "limit", netlink.attribute(1, _be64(rate)), netlink.attribute(2, _be64(1)), netlink.attribute(3, _be32(burst)),
        netlink.attribute(4, _be32(1)), netlink.attribute(5, _be32(1)),  # bytes, and what is over
    )  # fmt: skip
    verdict = netlink.nested(2, netlink.nested(2, netlink.attribute(1, _be32(0))))
    drop = expression("immediate", netlink.attribute(1, _be32(0)), verdict)
    flags = netlink.ACK | netlink.CREATE
    _tables(
        interface,
        _nft(_NEWTABLE, flags, netlink.attribute(1, table)),  # so that there is one to remove
        _nft(_DELTABLE, netlink.ACK, netlink.attribute(1, table)),
        _nft(_NEWTABLE, flags, netlink.attribute(1, table)),
        _nft(_NEWCHAIN, flags, netlink.attribute(1, table), netlink.attribute(3, "in"), hook,
             netlink.attribute(7, "filter")),
        _nft(_NEWRULE, flags, netlink.attribute(1, table), netlink.attribute(2, "in"),
             netlink.nested(4, counter, limit, counter, drop)),
    )  # fmt: skip


def remove(interface: str) -> None:
    """Both limits, as far as there are some; also of an interface that is gone. Raises NetworkError."""
    try:
        number = socket.if_nametoindex(interface)
    except OSError:
        number = 0
    if number:
        message = netlink.message(_DELQDISC, netlink.ACK, _tcmsg(interface))
        try:
            netlink.ask(netlink.ROUTE, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # there was none
                raise _told(interface, error) from error
    try:
        netlink.ask(
            netlink.NETFILTER, _batch(_BATCH_BEGIN),
            _nft(_DELTABLE, netlink.ACK, netlink.attribute(1, _TABLE + interface)), _batch(_BATCH_END),
        )  # fmt: skip
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
            raise _told(interface, error) from error


def limits(interface: str) -> list[Limit]:
    """What the kernel has, beside what went through since. Raises NetworkError."""
    result = []
    number = _index(interface)
    try:
        shaped = netlink.ask(netlink.ROUTE, netlink.message(_GETQDISC, netlink.DUMP, _tcmsg(interface)))
    except OSError as error:
        raise _told(interface, error) from error
    try:
        rules = netlink.ask(netlink.NETFILTER, _nft(_GETRULE, netlink.DUMP, netlink.attribute(1, _TABLE + interface)))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise _told(interface, error) from error
        rules = []  # the kernel has no nftables, or no such table
    for body in shaped:
        found = dict(netlink.attributes(body[20:]))
        if struct.unpack_from("=i", body, 4)[0] == number and found.get(_KIND) == b"tbf\0":
            parms = dict(netlink.attributes(found[_OPTIONS]))[_TBF_PARMS]
            stats = dict(netlink.attributes(found[_STATS2]))
            sent = struct.unpack_from("=Q", stats[_STATS_BASIC])[0]
            rate = _RATE.unpack_from(parms)[5]
            result.append(Limit("network", f"sent by {interface}", rate, sent, "bytes/s", "tc tbf"))
    for body in rules:
        found = dict(netlink.attributes(body[4:]))
        over = use = None
        for _, one in netlink.attributes(found.get(4, b"")):
            fields = dict(netlink.attributes(one))
            data = dict(netlink.attributes(fields.get(2, b"")))
            if fields[1] == b"limit\0":
                over = int.from_bytes(data[1], "big")
            elif fields[1] == b"counter\0":
                count = int.from_bytes(data[1], "big")
                use = count if use is None else use - count  # all, less what was dropped
        if over is not None:
            result.append(Limit("network", f"received by {interface}", over, use, "bytes/s", "nftables ingress"))
    return result


def _checked(rate: int, burst: int) -> int:
    if not MIN_RATE <= rate <= MAX_RATE or not 0 <= burst <= MAX_BURST:
        raise NetworkError(f"a rate is from {MIN_RATE} to {MAX_RATE} bytes a second, not {rate} ({burst} at once)")
    return max(burst or rate // 10, _MIN_BURST)


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise NetworkError(f"there is no network interface '{interface}' here") from None


def _tcmsg(interface: str) -> bytes:
    return struct.pack("=BxxxiIII", 0, _index(interface), 0, _ROOT, 0)


def _tc(interface: str, message: bytes) -> None:
    try:
        netlink.ask(netlink.ROUTE, message)
    except OSError as error:
        raise _told(interface, error) from error


def _be32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _be64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _nft(kind: int, flags: int, *attributes: bytes) -> bytes:
    return netlink.message(kind, flags, struct.pack(">BBH", _NETDEV, 0, 0), *attributes)


def _batch(kind: int) -> bytes:
    return netlink.message(kind, 0, struct.pack(">BBH", 0, 0, _SUBSYSTEM))


def _tables(interface: str, *messages: bytes) -> None:
    _index(interface)
    try:
        netlink.ask(netlink.NETFILTER, _batch(_BATCH_BEGIN), *messages, _batch(_BATCH_END))
    except OSError as error:
        raise _told(interface, error) from error


def _told(interface: str, error: OSError) -> NetworkError:
    why = {
        errno.EPERM: "it takes CAP_NET_ADMIN", errno.ENOENT: "the kernel lacks sch_tbf, or nftables at ingress",
    }.get(error.errno or 0, error.strerror)  # fmt: skip
    return NetworkError(f"can't limit the network interface '{interface}': {why}")
