"""One port of a network: a guest's card, or rather the descriptor that leads to it: a SOCK_SEQPACKET socket or a tap,
of which each read and write is a frame (net/ethernet).

Nothing is queued here. When it is full, ``send`` says so, and who has more to say waits in ``waiting``
until there is room, in turn; what can be lost (UDP, echoes) is. So a guest that doesn't read costs nothing.
"""

import os
from collections import OrderedDict, deque

from hostel.base.loop import READ, WRITE, Loop
from hostel.base.typed import Any, Protocol


class Waiter(Protocol):
    """Who wants to send when there is room; ``waits`` is for the port, which sets and clears it."""

    waits: bool

    def resume(self) -> None: ...


class Port:
    def __init__(self, loop: Loop, fd: int, mac: bytes, name: str, address: bytes):
        os.set_blocking(fd, False)
        self.fd = fd
        self.mac = mac                     # of the guest's own card
        self.name = name
        self.address = address             # its IPv4 address
        self.macs: OrderedDict[bytes, None] = OrderedDict()  # seen behind it, the last one last
        self.neighbours: OrderedDict[bytes, bytes] = OrderedDict()  # MAC by IP address, as seen in what it sent
        self.connections: dict[bytes, Any] = {}   # net/tcp's, by addresses and ports as in a guest's segment
        self.half_open = 0
        self.flows: OrderedDict[bytes, Any] = OrderedDict()     # net/udp's
        self.forwarded: OrderedDict[bytes, Any] = OrderedDict()  # net/udp's, which came from outside
        self.admit: Any = None             # (source MAC, length) -> bool, for who limits and guards a port
        self.blocked = False
        self.open = True
        self.waiting: deque[Waiter] = deque()
        self.rx_frames = self.rx_bytes = self.tx_frames = self.tx_bytes = self.tx_dropped = 0
        self._loop = loop
        self.on_readable: Any = None

    def start(self, on_readable: Any) -> None:
        self.on_readable = on_readable
        self._loop.watch(self.fd, READ, self._ready)

    def send(self, *parts: Any) -> bool:
        """Send a frame of these parts; False where there is no room now."""
        if self.blocked:
            return False
        try:
            self.tx_bytes += os.writev(self.fd, parts)
        except BlockingIOError:
            self.blocked = True
            self._loop.watch(self.fd, READ | WRITE, self._ready)
            return False
        except OSError:
            return True  # the other end has gone, which reading will tell; there is nobody to send to
        self.tx_frames += 1
        return True

    def offer(self, *parts: Any) -> None:
        """Send a frame that may get lost."""
        if not self.send(*parts):
            self.tx_dropped += 1

    def wait(self, waiter: Waiter) -> None:
        if not waiter.waits:
            waiter.waits = True
            self.waiting.append(waiter)

    def close(self) -> None:
        if self.open:
            self.open = False
            self._loop.unwatch(self.fd)
            os.close(self.fd)

    def _ready(self, events: int) -> None:
        if events & WRITE and self.blocked:
            self.blocked = False
            self._loop.watch(self.fd, READ, self._ready)
            for _ in range(len(self.waiting)):
                if self.blocked:
                    break
                waiter = self.waiting.popleft()
                waiter.waits = False
                try:
                    waiter.resume()
                except Exception as error:  # a bug of ours: the others go on
                    if self._loop.on_error is None:
                        raise
                    self._loop.on_error(error)
        if events & ~WRITE and self.open:
            self.on_readable(self)
