"""A container's network cards, made in its network namespace from outside, with addresses and routes: nothing of the
container's is run or asked.

On nat and on networks of the driver 'user' a card is a tap whose frames go to hostel's router and switch, the same that
VMs are on (net/process, net/named); on those of the driver 'bridge' it is one end of a veth pair whose other end is a
port of the bridge. What a card on a named network lasts as long as is a *lease*, a descriptor that the monitor keeps:
when that has gone, so has the port. A router of the container's own is a child of the monitor's, which is smaller than
who is at work here.
"""

import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from hostel.base.errors import ContainerError, HostelError, NetworkError, UsageError
from hostel.base.linux.syscall import syscall
from hostel.net.listening import listen
from hostel.net.settings import Addresses, Settings
from hostel.net.tap import Tap, join_bridge, set_up
from hostel.spec.container import ContainerSpec
from hostel.spec.net import NicSpec, parse_forward

if TYPE_CHECKING:
    from hostel.containers import netlimit

_SETNS = 308
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
# linux/sockios.h
_SIOCADDRT, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFHWADDR, _SIOCSIFTXQLEN = 0x890B, 0x8916, 0x891C, 0x8924, 0x8943
_RTF_UP, _RTF_GATEWAY = 1, 2
_ARPHRD_ETHER = 1


class Wired(NamedTuple):
    """A container's cards: what they are, their leases, and the routers of its own that are wanted: for each the
    settings and the guest's MAC, name and ports, and the descriptors of its tap and of the ports' sockets."""

    cards: list[dict[str, Any]]
    leases: list[int]
    routes: list[tuple[dict[str, Any], list[int]]]

    def close(self) -> None:
        for fd in [*self.leases, *(fd for _, fds in self.routes for fd in fds)]:
            os.close(fd)


def connect(spec: ContainerSpec, pid: int) -> Wired:
    """Give the container with that first process its cards. Raises HostelError; then nothing is left."""
    wired = Wired([], [], [])
    try:
        _within(pid, _loopback)
        for number, nic in enumerate(spec.nics):
            name = f"eth{number}"
            if nic.network == "nat":
                card, route, fds = _nat(spec, nic, pid, name)
                wired.routes.append((route, fds))
            else:
                card, lease = _named(spec, nic, pid, name)
                wired.leases.append(lease)
            wired.cards.append(card)
            if nic.rate:
                _limit(pid, name, nic)
    except BaseException:
        wired.close()
        raise
    return wired


def _nat(
    spec: ContainerSpec, nic: NicSpec, pid: int, name: str
) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """A card on a router of the container's own: the card, what the router is, and its descriptors."""
    settings = Settings(mtu=nic.mtu, allow_host_loopback=nic.host_loopback)
    addresses = Addresses(settings)
    address = socket.inet_ntoa(addresses.first_guest.to_bytes(4, "big"))
    card = _card(nic, address, addresses, socket.inet_ntoa(addresses.gateway), "")
    forwards = [parse_forward(port) for port in nic.ports]
    fds: list[int] = []
    try:
        fds += [listen(forward).detach() for forward in forwards]
        fds.insert(0, _tap(pid, name, card))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    route = {
        "settings": settings._asdict(), "mac": nic.mac, "name": spec.name,
        "ports": [forward.guest_port for forward in forwards],
    }
    return card, route, fds


def _named(spec: ContainerSpec, nic: NicSpec, pid: int, name: str) -> tuple[dict[str, Any], int]:
    """A card on a named network."""
    from hostel.net import networks  # with what only these need
    from hostel.net.bridge import name_of

    folder = networks.find(nic.network)
    what = folder.spec()
    forwards = [parse_forward(port) for port in nic.ports]
    if forwards and what.internal:
        raise UsageError(f"the network '{nic.network}' is internal: no port of the host's can lead to it")
    if forwards and what.driver == "bridge":
        raise UsageError(f"the network '{nic.network}' is a bridge: the host reaches its containers by address")
    settings = dict(networks.settings_of(what))
    driver = settings.pop("driver")
    addresses = Addresses(Settings(**settings))
    listeners: list[socket.socket] = []
    tap = lease = -1
    try:
        for forward in forwards:
            listeners.append(listen(forward))
        if driver != "bridge":
            tap = _tap(pid, name, None)
        lease, address = folder.join(
            spec.name, nic.mac, listeners, [forward.guest_port for forward in forwards], tap=tap
        )
        first = socket.inet_ntoa((addresses.network + 1).to_bytes(4, "big"))
        gateway = "" if what.internal else first if driver == "bridge" else socket.inet_ntoa(addresses.gateway)
        card = _card(nic, address, addresses, gateway, what.name)
        if driver == "bridge":
            _veth(pid, name, name_of(folder.path))
        _within(pid, lambda: _configure(name, card))
        return card, lease
    except BaseException:
        if lease >= 0:
            os.close(lease)
        raise
    finally:
        if tap >= 0:
            os.close(tap)
        for listener in listeners:
            listener.close()


def _card(nic: NicSpec, address: str, addresses: Addresses, gateway: str, domain: str) -> dict[str, Any]:
    return {
        "network": nic.network, "mac": nic.mac, "mtu": nic.mtu, "address": address,
        "mask": socket.inet_ntoa(addresses.mask.to_bytes(4, "big")), "gateway": gateway,
        "dns": socket.inet_ntoa(addresses.dns), "domain": domain,
    }


def _limit(pid: int, name: str, nic: NicSpec) -> None:
    """Either way; in the container's namespace, whose root may not change it without CAP_NET_ADMIN."""
    from hostel.containers import netlimit

    def limit() -> list[int]:
        netlimit.shape(name, nic.rate, nic.burst)
        netlimit.police(name, nic.rate, nic.burst)
        return []

    _within(pid, limit)


def limits(pid: int) -> "list[netlimit.Limit]":
    """Of the cards of the container with that first process, each rate beside what went through."""
    from hostel.containers import netlimit

    def tell() -> list[int]:
        found = [limit for _, name in socket.if_nameindex() for limit in netlimit.limits(name)]
        fd = os.memfd_create("limits", os.MFD_CLOEXEC)
        os.write(fd, msgspec.json.encode(found))
        return [fd]

    (fd,) = _within(pid, tell)
    with open(fd, "rb") as file:
        file.seek(0)
        return msgspec.json.decode(file.read(), type=list[netlimit.Limit])


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# -- in the container's network namespace


def _tap(pid: int, name: str, card: dict[str, Any] | None) -> int:
    """A tap there; with ``card``, configured."""

    def make() -> list[int]:
        tap = Tap(name)
        if card:
            _configure(name, card)
        return tap.fds

    return _within(pid, make)[0]


def _loopback() -> list[int]:
    set_up("lo")
    return []


def _configure(name: str, card: dict[str, Any]) -> list[int]:
    """MAC, address and way out of an interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:

        def change(request: int, value: bytes) -> None:
            fcntl.ioctl(sock, request, struct.pack("16s24s", name.encode(), value))

        change(_SIOCSIFHWADDR, struct.pack("H6s", _ARPHRD_ETHER, _mac(card["mac"])))
        with contextlib.suppress(PermissionError):  # in a user namespace that is asked of the host's root
            change(_SIOCSIFTXQLEN, struct.pack("i", 1000))
        set_up(name, card["mtu"])
        change(_SIOCSIFADDR, _address(card["address"]))
        change(_SIOCSIFNETMASK, _address(card["mask"]))
        if card["gateway"]:
            # struct rtentry: pad, destination, gateway, mask, flags
            route = struct.pack("=Q16s16s16sH", 0, _address("0.0.0.0"), _address(card["gateway"]), _address("0.0.0.0"),
                                _RTF_UP | _RTF_GATEWAY)  # fmt: skip
            try:
                fcntl.ioctl(sock, _SIOCADDRT, route.ljust(120, b"\0"))
            except FileExistsError:
                pass  # an earlier card is the way out
    return []


def _address(text: str) -> bytes:
    return struct.pack("=H2s4s8x", socket.AF_INET, b"", socket.inet_aton(text))


def _veth(pid: int, name: str, bridge: str) -> None:
    """One end in the namespace, the other a port of the bridge; both go with the namespace."""
    from pyroute2 import IPRoute

    outside = f"hv{pid:x}{name[3:]}"
    try:
        with IPRoute() as route:
            route.link("add", ifname=outside, kind="veth", peer={"ifname": name, "net_ns_pid": pid})
        join_bridge(outside, bridge)
        set_up(outside)
    except HostelError:
        raise
    except Exception as error:  # pyroute2's own have no common ancestor
        raise NetworkError(f"can't make a card on the bridge {bridge}: {error}") from error


def _within(pid: int, make: Callable[[], list[int]]) -> list[int]:
    """The descriptors that ``make`` gives in the network namespace of a process; done by a child, since who joins a
    user namespace can't leave it. Errors come back as they are meant for people."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    child = os.fork()
    if not child:
        try:
            try:
                _enter(pid)
                fds = make()
                socket.send_fds(theirs, [b"ok"], fds) if fds else theirs.send(b"ok")
            except HostelError as error:
                theirs.send(str(error).encode()[:4096])
            except OSError as error:
                theirs.send(f"can't set up the container's network: {error.strerror}".encode())
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        select.select([ours], [], [], 20.0)
        said, fds, _, _ = socket.recv_fds(ours, 8192, 16, socket.MSG_CMSG_CLOEXEC)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    if said != b"ok":
        raise NetworkError(said.decode(errors="replace") or "the container's network can't be set up: its helper died")
    return fds


def _enter(pid: int) -> None:
    for kind, flag in (("user", _CLONE_NEWUSER), ("net", _CLONE_NEWNET)):
        try:
            own, other = os.stat(f"/proc/self/ns/{kind}"), os.stat(f"/proc/{pid}/ns/{kind}")
            if own.st_ino == other.st_ino:
                if kind == "net":
                    raise ContainerError("the container has the host's network: there is nothing to set up")
                continue
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ContainerError("the container ended before it had a network") from None
        try:
            syscall(_SETNS, fd, flag)
        finally:
            os.close(fd)
