"""A network card (virtio 1.2, 5.1). Its wires are file descriptors of frames, one a queue pair or one for all; what
moves frames is frames.py, compiled. Here is the rest: features, configuration, the control queue, the event loop.

Offered are checksums, large segments either way and merged receive buffers, whatever the back end is: what the
driver doesn't take is done for it in frames.py. UDP's large datagrams (UFO, USO) are offered to the back end's measure.

The driver may ask for another MAC, promiscuous mode and so on: that decides what it gets, not what it may send. With
a source that isn't the card's own a frame is dropped, unless the card's owner allows it (``NicSpec.spoof``).

When the other end goes away the link is down, and stays so until the VM starts again.
"""

import struct
from collections.abc import Callable
from typing import Any, Protocol

from hostel.base.loop import READ, WRITE, Timer
from hostel.devices.virtio.device import Carrier, Device
from hostel.devices.virtio.frames import STOPS, Filter, Pair
from hostel.devices.virtio.queue import Queue, Request
from hostel.spec.net import NicSpec

_, MORE, FULL, LATE, GONE = STOPS
QUEUE_SIZE = 256
CONTROL_SIZE = 64
TURN = 64                     # frames of one queue before others have their turn

# Feature bits (5.1.3)
CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC = 0, 1, 2, 3, 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO, HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO = 7, 8, 9, 10, 11, 12, 13, 14
MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR = range(15, 24)
GUEST_USO4, GUEST_USO6, HOST_USO = 54, 55, 56  # virtio 1.3
# A feature needs those behind it (5.1.3.1).
NEEDS = {
    GUEST_TSO4: (GUEST_CSUM,), GUEST_TSO6: (GUEST_CSUM,), GUEST_ECN: (GUEST_CSUM,), GUEST_UFO: (GUEST_CSUM,),
    GUEST_USO4: (GUEST_CSUM,), GUEST_USO6: (GUEST_CSUM,),
    HOST_TSO4: (CSUM,), HOST_TSO6: (CSUM,), HOST_ECN: (CSUM,), HOST_UFO: (CSUM,), HOST_USO: (CSUM,),
    CTRL_RX: (CTRL_VQ,), CTRL_VLAN: (CTRL_VQ,), CTRL_RX_EXTRA: (CTRL_VQ,), GUEST_ANNOUNCE: (CTRL_VQ,), MQ: (CTRL_VQ,),
    CTRL_MAC_ADDR: (CTRL_VQ,), CTRL_GUEST_OFFLOADS: (CTRL_VQ,),
}  # fmt: skip
GUEST_OFFLOADS = {
    "csum": GUEST_CSUM, "tso4": GUEST_TSO4, "tso6": GUEST_TSO6, "ecn": GUEST_ECN, "ufo": GUEST_UFO,
    "uso4": GUEST_USO4, "uso6": GUEST_USO6,
}  # fmt: skip
HOST_OFFLOADS = {"csum": CSUM, "tso4": HOST_TSO4, "tso6": HOST_TSO6, "ecn": HOST_ECN, "ufo": HOST_UFO, "uso": HOST_USO}

LINK_UP, ANNOUNCE = 1, 2      # configuration: status
_CONFIG = struct.Struct("<6sHHHIB")

# The control queue (5.1.6.5): classes and commands
RX, MAC_CLASS, VLAN, ANNOUNCE_CLASS, MQ_CLASS, OFFLOADS = range(6)
RX_MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
TABLE_SET, ADDR_SET = 0, 1
VLAN_ADD, VLAN_DEL = 0, 1
OK, ERR = b"\0", b"\1"
COMMAND_MAX = 65536           # bytes: more than a table of addresses needs
_VERSION = 1


class Wires(Protocol):
    """The host's end. ``fds`` are non-blocking, one, or one a queue pair; ``ufo`` and ``uso``: it takes such frames,
    and may send them. ``counters`` are of what is behind it, where that is the VM's alone."""

    fds: list[int]
    ufo: bool
    uso: bool
    counters: Callable[[], dict[str, int]] | None


class Net(Device):
    """``spec`` is the card, ``backend`` its ``Wires``."""

    name = "net"
    id = 1
    class_code = 0x020000  # Ethernet controller
    spec: NicSpec
    backend: Wires

    def __init__(self, spec: NicSpec, backend: Wires):
        super().__init__(spec, backend)
        self.queue_sizes = (*(QUEUE_SIZE,) * (2 * spec.queues), CONTROL_SIZE)
        offered = {
            CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6,
            HOST_ECN, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA, GUEST_ANNOUNCE, CTRL_MAC_ADDR,
            GUEST_UFO, GUEST_USO4, GUEST_USO6,
        }  # fmt: skip
        if spec.queues > 1:
            offered.add(MQ)
        if backend.ufo:
            offered.add(HOST_UFO)
        if backend.uso:
            offered.add(HOST_USO)
        self.features = sum(1 << bit for bit in offered)
        self.filter = Filter(bytes.fromhex(spec.mac.replace(":", "")), spec.spoof)
        self.link = LINK_UP
        self.announcing = False
        self.commands = self.refused_commands = 0
        self._pairs: list[Pair] = []
        self._in_use = 1                       # pairs that the driver uses
        self._guest_offloads: dict[str, bool] | None = None  # as the driver set them; else what it negotiated
        self._active = False
        self._watched: dict[int, int] = {}     # events by descriptor
        self._full: set[Pair] = set()          # what they send isn't taken now
        self._timers: dict[tuple[int, bool], Timer] = {}
        self._write_config()

    def attach(self, carrier: Carrier) -> None:
        super().attach(carrier)
        fds = self.backend.fds
        for n in range(self.spec.queues):
            fd = fds[n] if len(fds) > n else fds[0]
            pair = Pair(
                self.queues[2 * n], self.queues[2 * n + 1], fd, self.filter, self.spec.mtu, self.spec.rate,
                self.spec.burst or self.spec.rate // 10,
            )
            pair.set_other_end(self.backend.ufo, self.backend.uso)
            self._pairs.append(pair)

    def _write_config(self) -> None:
        status = self.link | (ANNOUNCE if self.announcing else 0)
        self.config[:] = _CONFIG.pack(self.filter.get_mac(), status, self.spec.queues, self.spec.mtu, 0xFFFFFFFF, 0xFF)

    # -- what the driver does

    def negotiable(self, bit: int) -> bool:
        """Whether the feature holds: negotiated, with what it needs."""
        return self.has(bit) and all(self.has(other) for other in NEEDS.get(bit, ()))

    def activate(self) -> None:
        host = {name: self.negotiable(bit) for name, bit in HOST_OFFLOADS.items()}
        guest = self._guest_offloads or {name: self.negotiable(bit) for name, bit in GUEST_OFFLOADS.items()}
        for pair in self._pairs:
            pair.set_offloads(host, guest, self.has(MRG_RXBUF))
        self.filter.vlan = self.negotiable(CTRL_VLAN)
        if not self.negotiable(CTRL_RX):
            self.filter.promiscuous = True  # who can't ask must get its multicasts
        self._active = True

    def reset(self) -> None:
        self._active = False
        self._in_use = 1
        self._guest_offloads = None
        self.filter.reset()
        self.announcing = False
        self._write_config()
        for pair in self._pairs:
            pair.reset()
        self._stop()

    def queue_reset(self, queue: Queue) -> None:
        if queue.index < 2 * len(self._pairs):
            self._pairs[queue.index // 2].reset()

    def notified(self, queue: Queue) -> None:
        control = 2 * len(self._pairs) if self.negotiable(MQ) else 2
        if queue.index == control and self.has(CTRL_VQ):
            self._control(queue)
        elif queue.index // 2 < self._in_use:
            pair = self._pairs[queue.index // 2]
            if queue.index & 1:
                self._transmit(pair)
            else:
                self._receive(pair)

    # -- frames

    def _transmit(self, pair: Pair) -> None:
        if self.link:
            result = pair.transmit(TURN)
            if result == MORE:
                self.queues[2 * self._pairs.index(pair) + 1].ring_py()
            self._stopped(pair, result, WRITE)

    def _receive(self, pair: Pair) -> None:
        # With one descriptor for all pairs what comes in goes to the first.
        if self.link and self._active and (len(self.backend.fds) > 1 or pair is self._pairs[0]):
            result = pair.receive(TURN)
            # Nothing more to read, or others' turn: the descriptor says when there is something.
            self._want(pair.fd, READ, result not in (FULL, LATE))
            self._stopped(pair, result, READ)

    def _stopped(self, pair: Pair, result: int, direction: int) -> None:
        """A pair has stopped, and why: when does it go on?"""
        if result == GONE:
            self.link = 0
            self._write_config()
            self._stop()
            self.config_changed()
        elif result == LATE:
            key = self._pairs.index(pair), direction == WRITE
            if key not in self._timers:
                delay = max(pair.wait_ns / 1e9, 0.001)
                self._timers[key] = self.loop.call_later(delay, lambda: self._late(pair, key))
        if direction == WRITE and result != GONE:
            (self._full.add if result == FULL else self._full.discard)(pair)
            self._want(pair.fd, WRITE, any(other.fd == pair.fd for other in self._full))

    def _late(self, pair: Pair, key: tuple[int, bool]) -> None:
        with self.lock:
            if self._timers.pop(key, None):
                self._transmit(pair) if key[1] else self._receive(pair)

    def _want(self, fd: int, event: int, on: bool) -> None:
        """Have the loop tell of ``event``, or not."""
        before = self._watched.get(fd, 0)
        now = before | event if on else before & ~event
        if now == before or not self.link:
            return
        self._watched[fd] = now
        if now:
            self.loop.watch(fd, now, lambda events: self._ready(fd, events))
        else:
            self.loop.unwatch(fd)

    def _ready(self, fd: int, events: int) -> None:
        with self.lock:
            if not self._active:
                self._stop()
                return
            for pair in self._pairs[: self._in_use]:
                if pair.fd != fd:
                    continue
                if events & ~READ and pair in self._full:
                    self._transmit(pair)
                if events & ~WRITE:
                    self._receive(pair)

    def _stop(self) -> None:
        for fd in self._watched:
            self.loop.unwatch(fd)
        self._watched.clear()
        self._full.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # -- the control queue

    def _control(self, queue: Queue) -> None:
        for request in queue:
            if not request.writable_bytes:
                queue.fail_py()  # there is no place for the answer
                return
            done = 2 <= request.readable_bytes <= COMMAND_MAX and self._command(request)
            self.commands += 1
            self.refused_commands += not done
            request.write(OK if done else ERR)
            request.push()
        queue.signal_py()

    def _command(self, request: Request) -> bool:
        """Whether it was obeyed."""
        group, command, *_ = data = request.read()
        data = data[2:]
        if group == RX and self.negotiable(CTRL_RX) and len(data) >= 1 and command < len(RX_MODES):
            if command > 1 and not self.negotiable(CTRL_RX_EXTRA):
                return False
            setattr(self.filter, RX_MODES[command], bool(data[0]))
            return data[0] < 2
        if group == MAC_CLASS and command == TABLE_SET and self.negotiable(CTRL_RX):
            return self._set_table(data)
        if group == MAC_CLASS and command == ADDR_SET and self.negotiable(CTRL_MAC_ADDR):
            done = self.filter.set_mac(data)
            self._write_config()
            return done
        if group == VLAN and self.negotiable(CTRL_VLAN) and len(data) >= 2 and command in (VLAN_ADD, VLAN_DEL):
            number = data[0] | data[1] << 8
            self.filter.set_vlan(number, command == VLAN_ADD)
            return number < 4096
        if group == ANNOUNCE_CLASS and self.negotiable(GUEST_ANNOUNCE) and command == 0:
            self.announcing = False
            self._write_config()
            return True
        if group == MQ_CLASS and self.negotiable(MQ) and command == 0 and len(data) >= 2:
            return self._set_pairs(data[0] | data[1] << 8)
        if group == OFFLOADS and self.negotiable(CTRL_GUEST_OFFLOADS) and command == 0 and len(data) >= 8:
            return self._set_offloads(int.from_bytes(data[:8], "little"))
        return False

    def _set_table(self, data: bytes) -> bool:
        """Two lists of addresses, each behind its length."""
        lists = []
        for _ in range(2):
            if len(data) < 4:
                return False
            count = int.from_bytes(data[:4], "little")
            if count * 6 > len(data) - 4:
                return False
            lists.append([data[4 + 6 * i : 10 + 6 * i] for i in range(count)])
            data = data[4 + 6 * count :]
        self.filter.set_table(*lists)
        return True

    def _set_pairs(self, count: int) -> bool:
        if not 1 <= count <= len(self._pairs):
            return False
        self._in_use = count
        for n in range(count):  # what waits there is looked at again
            for queue in self.queues[2 * n : 2 * n + 2]:
                if queue.enabled:
                    queue.ring_py()
        return True

    def _set_offloads(self, mask: int) -> bool:
        wanted = {name: bool(mask >> bit & 1) for name, bit in GUEST_OFFLOADS.items()}
        if mask & ~sum(1 << bit for bit in GUEST_OFFLOADS.values()):
            return False
        if any(on and not self.negotiable(GUEST_OFFLOADS[name]) for name, on in wanted.items()):
            return False
        self._guest_offloads = wanted
        for pair in self._pairs:
            pair.set_guest_offloads(wanted)
        return True

    # -- what the machine does

    def announce(self) -> None:
        """Have the guest tell its neighbours where it is now, as after a move."""
        with self.lock:
            if self.negotiable(GUEST_ANNOUNCE):
                self.announcing = True
                self._write_config()
                self.config_changed()

    def go_on(self, copy: bool) -> None:
        if copy:  # which is another card on another wire
            self.filter.give(bytes.fromhex(self.spec.mac.replace(":", "")))

    def close(self) -> None:
        self._active = False
        self._stop()

    def statistics(self) -> dict[str, Any]:
        total: dict[str, Any] = {}
        for pair in self._pairs:
            for name, value in pair.statistics().items():
                total[name] = total.get(name, 0) + value
        return {
            "network": self.spec.network, "mac": self.filter.get_mac().hex(":"), "link": bool(self.link),
            "commands": self.commands, "refused_commands": self.refused_commands, **total,
            **({"router": self.backend.counters()} if self.backend.counters else {}),
        }  # fmt: skip

    def save(self) -> dict[str, Any]:
        return {
            "version": _VERSION, "filter": self.filter.save(), "announcing": self.announcing, "in_use": self._in_use,
            "guest_offloads": self._guest_offloads,
            "pairs": [pair.save() for pair in self._pairs],
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        if state["version"] != _VERSION or len(state["pairs"]) != len(self._pairs):
            raise ValueError(f"virtio-net: state version {state['version']} with {len(state['pairs'])} pairs of queues")
        self.filter.load(state["filter"])
        self.announcing, self._in_use = state["announcing"], state["in_use"]
        self._guest_offloads = state["guest_offloads"]
        self._write_config()
        self.activate()  # what waits is looked at by what the driver takes
        for pair, saved in zip(self._pairs, state["pairs"], strict=True):
            pair.load(saved)
