"""Ports of the host's that lead to guests: what comes in by their sockets (net/listening).

A client's address is the guest's to see, where it is an IPv4 address from elsewhere; else, as for all clients on the
host itself, it is the gateway's. Guests are reached by IPv4, whatever the client came by.
"""

import contextlib
import socket
import time
from functools import partial

from hostel.base.loop import READ, Loop
from hostel.net.port import Port
from hostel.net.settings import Addresses
from hostel.net.tcp import Tcp
from hostel.net.udp import Udp

TURN = 16                     # clients of one socket before it is another's turn
_PAUSE = 0.2                  # seconds, where there is no room for another connection


class Forwarder:
    """The listening sockets of one guest's port."""

    def __init__(self, loop: Loop, port: Port, addresses: Addresses, tcp: Tcp, udp: Udp,
                 listeners: list[tuple[socket.socket, int]]):
        self._loop = loop
        self._port = port
        self._addresses = addresses
        self._tcp = tcp
        self._udp = udp
        self._sockets = [sock for sock, _ in listeners]
        for sock, target in listeners:
            self._listen(sock, target)

    def _listen(self, sock: socket.socket, target: int) -> None:
        if sock.fileno() < 0:
            return
        handler = self._accept if sock.type == socket.SOCK_STREAM else self._receive
        self._loop.watch(sock.fileno(), READ, partial(handler, sock, target))

    def _accept(self, listener: socket.socket, target: int, events: int) -> None:
        self._tcp.now = time.monotonic()
        for _ in range(TURN):
            try:
                sock, client = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # no more descriptors: clients wait in the backlog
                self._pause(listener, target)
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if not self._tcp.forward(self._port, sock, self._source(client[0]), client[1], target):
                sock.close()
                self._pause(listener, target)
                return

    def _pause(self, listener: socket.socket, target: int) -> None:
        self._loop.unwatch(listener.fileno())
        self._loop.call_later(_PAUSE, lambda: self._listen(listener, target))

    def _receive(self, sock: socket.socket, target: int, events: int) -> None:
        self._udp.now = time.monotonic()
        for _ in range(TURN):
            try:
                payload, client = sock.recvfrom(65536)
            except BlockingIOError:
                return
            except OSError:
                continue  # an answer of ours found nobody
            self._udp.from_client(self._port, sock, client, self._source(client[0]), payload, target)

    def _source(self, client: str) -> bytes:
        """Whom the guest sees."""
        client = client.removeprefix("::ffff:")
        gateway = self._addresses.gateway
        try:
            address = socket.inet_aton(client) if ":" not in client else b""
        except OSError:
            return gateway
        number = int.from_bytes(address, "big")
        if not address or address[0] in (0, 127) or number & self._addresses.mask == self._addresses.network:
            return gateway
        return address

    def close(self) -> None:
        for sock in self._sockets:
            self._loop.unwatch(sock.fileno())
            sock.close()
