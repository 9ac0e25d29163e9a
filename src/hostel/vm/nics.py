"""The host's ends of a VM's network cards, opened before the worker confines itself and kept for all of its life.

A ``Wire`` is what devices/virtio/net needs: descriptors of frames. Behind it is the VM's own router (nat: net/process,
forked from here), a named network's process (net/networks), or a tap.
"""

import contextlib
import os
import select
import socket
import stat
from collections.abc import Callable, Sequence

from hostel.base.errors import MachineError, UsageError
from hostel.net import bridge, ethernet, tap
from hostel.spec.net import NicSpec, parse_forward
from hostel.spec.vm import VmSpec


class Wire:
    """One card's other end. ``counters`` are those of what is behind it, where that is the VM's own."""

    def __init__(self, fds: list[int], ufo: bool, uso: bool, counters: Callable[[], dict[str, int]] | None = None):
        self.fds, self.ufo, self.uso = fds, ufo, uso
        self.counters = counters
        self.lease = -1

    def forget(self) -> None:
        """The guest goes on from an earlier state: what is on its way to it, and its connections in a router, are of no
        use to it. ``MachineError`` where the router doesn't take that for a second."""
        for fd in self.fds:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue  # a tap: whoever is behind it finds out
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            if not poll.poll(1000):
                raise MachineError("the network doesn't answer")
            with contextlib.suppress(OSError):  # it may have ended
                os.write(fd, ethernet.FORGET)
                while os.read(fd, 1):  # the rest of each goes with it
                    pass

    def close(self) -> None:
        if self.lease >= 0:
            os.close(self.lease)
            self.lease = -1
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def open_nics(spec: VmSpec) -> list[Wire]:
    """A wire for each of ``spec.nics``, in order. Raises HostelError; then nothing is left open."""
    return open_alike([spec])[0]


def open_alike(specs: Sequence[VmSpec], log: int = -1) -> list[list[Wire]]:
    """The same for several VMs whose cards differ in nothing but addresses and ports. Their routers are one process,
    but know nothing of one another; ``log`` is where it writes, if not where the caller does."""
    with contextlib.ExitStack() as undo:
        wires: list[dict[int, Wire]] = [{} for _ in specs]
        own = [number for number, nic in enumerate(specs[0].nics) if nic.network == "nat"]
        if own:
            started = iter(_nat(specs, own, log))
            for index, _ in enumerate(specs):
                for number in own:
                    wires[index][number] = undo.enter_context(contextlib.closing(next(started)))
        for index, spec in enumerate(specs):
            for number, nic in enumerate(spec.nics):
                if number not in own:
                    kind, _, interface = nic.network.partition(":")
                    wire = _tap(kind, interface, nic) if interface else _named(spec.name, nic)
                    wires[index][number] = undo.enter_context(contextlib.closing(wire))
        undo.pop_all()
    return [[found[number] for number in sorted(found)] for found in wires]


def _nat(specs: Sequence[VmSpec], numbers: list[int], log: int) -> list[Wire]:
    """Cards on the VMs' own routers, in one process."""
    from hostel.net import process
    from hostel.net.settings import Guest, Settings

    nics = [specs[0].nics[number] for number in numbers]
    settings = Settings(
        mtu=min(nic.mtu for nic in nics), allow_host_loopback=any(nic.host_loopback for nic in nics),
    )
    guests = []
    for spec in specs:
        for nic in (spec.nics[number] for number in numbers):
            forwards = tuple(map(parse_forward, nic.ports))
            guests.append(Guest(bytes.fromhex(nic.mac.replace(":", "")), spec.name, forwards=forwards))
    started = process.start(settings, guests, apart=[len(numbers)] * len(specs), log=log)
    counters = started.describe if len(specs) == 1 else None
    return [Wire([fd], ufo=True, uso=True, counters=counters) for fd in started.fds]


def _named(vm: str, nic: NicSpec) -> Wire:
    """A card on a named network."""
    from hostel.net import networks
    from hostel.net.listening import listen

    listeners: list[socket.socket] = []
    try:
        forwards = [parse_forward(port) for port in nic.ports]
        for forward in forwards:
            listeners.append(listen(forward))
        folder = networks.find(nic.network)
        if forwards and folder.spec().internal:
            raise UsageError(f"the network '{nic.network}' is internal: no port of the host's can lead to it")
        driver = folder.spec().driver
        if forwards and driver == "bridge":
            raise UsageError(f"the network '{nic.network}' is a bridge: its VMs have addresses that the host reaches")
        fd, _ = folder.join(vm, nic.mac, listeners, [forward.guest_port for forward in forwards])
    finally:
        for listener in listeners:
            listener.close()
    if driver != "bridge":
        return Wire([fd], ufo=True, uso=True)
    try:
        wire = _tap("bridge", bridge.name_of(folder.path), nic)
    except BaseException:
        os.close(fd)
        raise
    wire.lease = fd  # who is on the network is known by it
    return wire


def _tap(kind: str, interface: str, nic: NicSpec) -> Wire:
    """A tap of the host's own, or one that is made here as a port of a bridge and goes with its descriptors."""
    opened = tap.Tap(interface if kind == "tap" else "hostel%d", nic.queues)
    try:
        if kind == "bridge":
            tap.join_bridge(opened.name, interface)
            tap.set_up(opened.name, nic.mtu)
        elif os.geteuid() == 0:
            tap.set_up(opened.name)
    except BaseException:
        opened.close()
        raise
    return Wire(opened.fds, opened.ufo, opened.uso)

