"""TCP (RFC 9293) between guests and the host's sockets: each connection ends here and goes on in a socket.

The wire to a guest neither loses nor reorders, so this is the protocol without congestion control, SACK and
timestamps, but with everything that keeps a hostile or slow guest from doing harm:

*From a guest*: payload goes from the frame to the socket at once. What the socket doesn't take is kept, up to the
window that was advertised, and the window shrinks by it: the guest is held back as the outside is.

*To a guest*: a socket is read only as far as the guest's window reaches, at most ``MAX_FLIGHT``. Payload stays until it
is acknowledged, in the buffer that it was read to. Segments are up to 64 KiB, for the guest's card to cut (GSO), with
checksums that nobody computes.

A connection from a guest is answered when the outside has answered: refused is RST, unreachable an ICMP error. One
from outside (a forward) is accepted and then tried in the guest; RST gives RST.

Everything is bounded: connections and half-open ones of a port, memory of all (``MAX_HELD``), challenges (RFC 5961).
Segments that come out of order are dropped: they only do after we dropped one. Urgent data is ordinary data (RFC 6093).
"""

import errno
import os
import socket
import struct
import time
from _blake2 import blake2b  # hashlib would bring OpenSSL along
from collections import deque
from collections.abc import Callable

from hostel.base.loop import Loop, Timer
from hostel.net import ethernet, ipv4
from hostel.net.checksum import total
from hostel.net.connection import (
    ACK,
    BUFFER,
    CLOSED,
    ESTABLISHED,
    FIN,
    MAX_HELD,
    RST,
    SYN,
    TIME_WAITING,
    WINDOW,
    Connection,
    M,
    options,
)
from hostel.net.port import Port

MAX_CONNECTIONS = 4096        # of a port
MAX_HALF_OPEN = 512           # of them that are being made
POOL = 64                     # buffers that are kept
TICK = 0.1
TIME_WAIT = 5.0               # seconds: only to answer a FIN that comes again
IDLE = 7200.0                 # seconds before a silent guest is probed (RFC 9293, 3.8.4)

_SEGMENT = struct.Struct("!HHIIHH")


class Tcp:
    """All connections of a network. ``unreachable(port, mac, key, error)`` tells a guest by ICMP."""

    def __init__(self, loop: Loop, router_mac: bytes, mtu: int, unreachable: Callable[[Port, bytes, bytes, int], None]):
        self.loop = loop
        self.router_mac = router_mac
        self.mtu = mtu
        self.unreachable = unreachable
        self.now = time.monotonic()
        self.held = 0
        self.starved: deque[Connection] = deque()
        self.to_acknowledge: list[Connection] = []
        self.open = self.opened = self.refused = self.retransmitted = self.resets = self.dropped = 0
        self._secret = os.urandom(32)
        self._pool: list[memoryview] = []
        self._timed: set[Connection] = set()
        self._timer: Timer | None = None
        self._waiting: deque[Connection] = deque()   # TIME_WAIT, the oldest first
        self._last_sweep = self.now
        self._all: set[Connection] = set()

    def initial_number(self, key: bytes) -> int:
        """RFC 6528: nobody can guess it, and of the same two ends a later one is greater, so that a guest's TIME_WAIT
        makes way."""
        secret = blake2b(key, digest_size=4, key=self._secret).digest()
        return (int.from_bytes(secret, "big") + (time.monotonic_ns() >> 6)) & M

    # -- memory

    def buffer(self) -> memoryview:
        return self._pool.pop() if self._pool else memoryview(bytearray(BUFFER))

    def give_back(self, buffer: memoryview) -> None:
        if len(self._pool) < POOL:
            self._pool.append(buffer)

    def hold(self, size: int) -> None:
        """Count memory that a connection keeps (or, negative, no longer does)."""
        self.held += size
        if size < 0 and self.starved and self.held < MAX_HELD // 2:
            for _ in range(len(self.starved)):
                if self.held >= MAX_HELD:
                    break
                connection = self.starved.popleft()
                connection.starves = False
                self.loop.call_later(0, connection.pull)

    def window(self) -> int:
        return WINDOW if self.held < MAX_HELD // 2 else WINDOW // 16

    # -- connections

    def input(self, port: Port, frame: memoryview, ip: int, start: int, end: int, v6: bool,
              connect: Callable[[bytes, int], socket.socket | int]) -> None:
        """A segment at ``start`` of the packet at ``ip``. ``connect(address, port)`` gives a socket that connects for a
        new connection, or an errno: why there is none."""
        if end - start < 20:
            self.dropped += 1
            return
        _, target, seq, ack, bits, window = _SEGMENT.unpack_from(frame, start)
        payload = start + (bits >> 12) * 4
        if bits >> 12 < 5 or payload > end:
            self.dropped += 1
            return
        key = bytes(frame[ip + 8 : ip + 40] if v6 else frame[ip + 12 : ip + 20]) + bytes(frame[start : start + 4])
        connection = port.connections.get(key)
        flags = bits & 0x3F
        if connection is not None and connection.state == TIME_WAITING and flags & (SYN | ACK | RST) == SYN:
            if (seq - connection.rcv_nxt) & M < 0x80000000:  # the guest may use the port again (RFC 9293, 3.6.1)
                connection.close()
                connection = None
        if connection is not None:
            connection.segment(flags, seq, ack, window, frame, start, payload, end)
        elif flags & RST:
            pass
        elif flags & (SYN | ACK) == SYN:
            self._syn(port, bytes(frame[18:24]), key, v6, seq, frame[start + 20 : payload], window, connect, target)
        else:  # RFC 9293, 3.10.7.1
            length = end - payload + bool(flags & SYN) + bool(flags & FIN)
            self.refuse_segment(port, bytes(frame[18:24]), key, v6, ack if flags & ACK else 0,
                        None if flags & ACK else (seq + length) & M)

    def _syn(self, port: Port, mac: bytes, key: bytes, v6: bool, seq: int, opts: memoryview, window: int,
             connect: Callable[[bytes, int], socket.socket | int], target: int) -> None:
        if not self._room(port):
            self.dropped += 1  # it will come again
            return
        half = (len(key) - 4) // 2
        sock = connect(key[half : 2 * half], target)
        if isinstance(sock, int):
            self.refuse(port, mac, key, v6, seq, sock)
            return
        connection = Connection(self, port, key, mac, v6, sock)
        connection.mss, connection.snd_scale = options(opts)
        connection.begin_passive(seq, window)

    def refuse(self, port: Port, mac: bytes, key: bytes, v6: bool, seq: int, error: int) -> None:
        """What a guest hears whose SYN leads nowhere."""
        if error in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EADDRNOTAVAIL):
            self.dropped += 1  # ours is the lack: it may be better when it asks again
            return
        self.refused += 1
        if error in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EACCES, errno.EPERM, errno.ENETDOWN):
            self.unreachable(port, mac, key + seq.to_bytes(4, "big"), error)
        else:
            self.refuse_segment(port, mac, key, v6, 0, (seq + 1) & M)

    def forward(self, port: Port, sock: socket.socket, source: bytes, source_port: int, target_port: int) -> bool:
        """Connect an accepted ``sock`` to a guest's port, as from ``source``; False where there is no room."""
        if not self._room(port):
            return False
        start = source_port
        while True:
            key = port.address + source + struct.pack("!HH", target_port, source_port)
            if key not in port.connections:
                break
            source_port = source_port + 1 if source_port < 65535 else 1024
            if source_port == start:
                return False
        mac = port.neighbours.get(port.address, port.mac)
        Connection(self, port, key, mac, False, sock).begin_active()
        return True

    def _room(self, port: Port) -> bool:
        """Whether one more can be; who waits for nothing but time makes way."""
        if port.half_open >= MAX_HALF_OPEN:
            return False
        if len(port.connections) >= MAX_CONNECTIONS:
            for connection in self._waiting:
                if connection.port is port and connection.state == TIME_WAITING:
                    connection.close()
                    return True
            return False
        return True

    def added(self, connection: Connection) -> None:
        self._all.add(connection)
        self.open += 1
        self.opened += 1

    def removed(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._timed.discard(connection)

    def closed(self, port: Port) -> None:
        """The port has gone, or what is behind it is another machine: all of its connections go."""
        for connection in list(port.connections.values()):
            connection.abort()

    def refuse_segment(self, port: Port, mac: bytes, key: bytes, v6: bool, seq: int, ack: int | None) -> None:
        """A RST for what belongs to no connection."""
        self.resets += 1
        half = (len(key) - 4) // 2
        source, target = key[:half], key[half : 2 * half]
        flags = RST if ack is None else RST | ACK
        sport, dport = key[-4:-2], key[-2:]
        head = dport + sport + struct.pack("!IIHHHH", seq, ack or 0, 5 << 12 | flags, 0, 0, 0)
        port.offer(self.frame(mac, v6, target, source, head))

    def frame(self, mac: bytes, v6: bool, source: bytes, target: bytes, segment: bytes) -> bytes:
        """A segment without payload in its frame, checksums done."""
        check = total(ipv4.pseudo(ipv4.TCP, source, target, len(segment)) + segment) ^ 0xFFFF
        segment = segment[:16] + struct.pack("!H", check) + segment[18:]
        if v6:
            packet = struct.pack("!IHBB", 6 << 28, len(segment), ipv4.TCP, 64) + source + target + segment
            return ethernet.header(mac, self.router_mac, ethernet.IPV6) + packet
        return ethernet.header(mac, self.router_mac, ethernet.IPV4) + ipv4.packet(ipv4.TCP, source, target, segment)[0]

    def flush(self) -> None:
        """Acknowledge what has come since the last time."""
        for connection in self.to_acknowledge:
            connection.acknowledge()
        self.to_acknowledge.clear()

    # -- time

    def time(self, connection: Connection, deadline: float) -> None:
        """Have ``connection.timeout()`` called at ``deadline``, give or take a tick, unless that is moved on."""
        connection.deadline = deadline
        self._timed.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK, self._tick)

    def wait(self, connection: Connection) -> None:
        """TIME_WAIT begins for it."""
        self._waiting.append(connection)
        self.time(connection, self.now + TIME_WAIT)

    def _tick(self) -> None:
        self.now = now = time.monotonic()
        self._timer = self.loop.call_later(TICK, self._tick)
        for connection in [c for c in self._timed if c.deadline <= now]:
            if connection.deadline == 0.0:
                self._timed.discard(connection)
            else:
                connection.timeout(now)
        while self._waiting and self._waiting[0].state == CLOSED:
            self._waiting.popleft()
        self.flush()
        if not self._timed:
            self._timer.cancel()
            self._timer = None

    def sweep(self) -> None:
        """Called about once a minute: probe guests that were silent for long."""
        self.now = time.monotonic()
        self._pool.clear()
        for connection in list(self._all):
            if connection.state == ESTABLISHED and self.now - connection.heard > IDLE:
                connection.probe()
