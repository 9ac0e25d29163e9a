"""virtio-vsock: stream sockets between the guest and unix sockets of the host (virtio 1.2, 5.10).

The convention on the host is Firecracker's and Cloud Hypervisor's. Who connects to the socket PATH and writes
``CONNECT port\\n`` reaches the program that listens on that port in the guest and reads ``OK hostport\\n``; without
such a program the connection closes. A guest's program that connects to port N of CID 2 reaches the unix socket
``PATH_N``; that connection is made by a broker, since a worker may open no sockets.

What flows: bytes go from the guest's pages into a socket and from a socket into its pages, without a copy between.
What a socket doesn't take waits in ``Flow.unsent``, never more than BUFFER, which is all the credit that the guest has
(5.10.6.3); a guest that sends more is reset. What goes to the guest waits in the socket, until the guest has
given credit and receive buffers. Replies that the guest's packets cause are bounded: one of each kind a
connection, and while RESETS_MAX resets for unknown ones wait, no more of its packets are taken.

Half-closed either way; closed at once by a reset. Limits: CONNECTIONS_MAX; stream sockets only. Everything runs on the
event loop's thread. Connections don't outlive a save: after ``load`` the guest is told so by a transport reset event
(5.10.6.7), and its programs see their connections reset.
"""

import contextlib
import re
import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from hostel.base.loop import READ, WRITE, Timer
from hostel.devices.virtio.device import Device
from hostel.devices.virtio.queue import Queue, Request

HOST_CID = 2
GUEST_CID = 3               # each VM has its own unix sockets, so that all can have the same
F_STREAM = 0                # a feature: stream sockets (5.10.3)
# src_cid dst_cid src_port dst_port len type op flags buf_alloc fwd_cnt
_HEADER = struct.Struct("<QQIIIHHIII")
STREAM = 1
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = 1, 2, 3, 4, 5, 6, 7
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2
EVENT_TRANSPORT_RESET = 0

RX, TX, EVENT = 0, 1, 2

BUFFER = 256 << 10          # bytes of the guest's that wait for a socket: buf_alloc
DATA_MAX = 64 << 10         # of one packet to the guest
CONNECTIONS_MAX = 1024
GREETINGS_MAX = 64          # connections that haven't said CONNECT yet
RESETS_MAX = 256            # resets for no connection of ours that wait for a receive buffer
BATCH = 64                  # packets of one connection before others have their turn
FIRST_PORT = 1 << 30        # of the host's side, for connections from the host
CLOSE_TIMEOUT = 8.0         # seconds that the guest has to agree to the end of a connection (Linux waits as long)
GREETING_TIMEOUT = 10.0
_NOWHERE = (-1, -1)
_CONNECT = re.compile(rb"CONNECT (\d{1,10})\r?\n", re.IGNORECASE)

_VERSION = 1

ASKED, OFFERED, OPEN = "asked", "offered", "open"


class Flow:
    """One connection. The counts are 5.10.6.3's, modulo 2³² on the wire."""

    def __init__(self, guest_port: int, host_port: int, state: str):
        self.guest_port, self.host_port, self.state = guest_port, host_port, state
        self.sock: socket.socket | None = None
        self.unsent = bytearray()      # from the guest, for the socket
        self.forwarded = 0             # bytes that the socket took: fwd_cnt
        self.told = 0                  # of them the guest knows
        self.sent = 0                  # bytes to the guest: tx_cnt
        self.peer_buffer = 0           # the guest's buf_alloc and fwd_cnt
        self.peer_forwarded = 0
        self.owed: set[int] = set()    # operations that the guest is still to be told: RESPONSE, CREDIT_UPDATE ...
        self.ended = 0                 # SHUTDOWN flags that we have told, or owe
        self.guest_ended = 0           # that the guest has told
        self.readable = False          # the socket may have something
        self.asked_credit = False
        self.queued = False            # in Vsock._ready
        self.timer: Timer | None = None

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for."""
        return max(0, min(self.peer_buffer - (self.sent - self.peer_forwarded & 0xFFFFFFFF), DATA_MAX))


class Ends(Protocol):
    """The host's end: the listening unix socket PATH, and who makes connections to ``PATH_N`` (vm/broker)."""

    listener: socket.socket
    broker: Any


class Vsock(Device):
    """The device; its back end is ``Ends``."""

    name = "vsock"
    id = 19
    class_code = 0x078000  # a communication controller
    queue_sizes = (128, 128, 16)
    features = 1 << F_STREAM
    backend: Ends

    def __init__(self, spec: Any, backend: Ends):
        super().__init__(spec, backend)
        self.cid = GUEST_CID
        self.config[:] = self.cid.to_bytes(8, "little")
        self._broker = backend.broker
        self._flows: dict[tuple[int, int], Flow] = {}      # by the guest's port and ours
        self._asked: dict[int, tuple[int, int]] = {}       # the broker's requests
        self._greetings: dict[socket.socket, Timer] = {}
        self._ready: deque[Flow] = deque()                 # have something for the guest
        self._resets: deque[tuple[int, int]] = deque()     # for connections that don't exist
        self._next_port = FIRST_PORT
        self._next_request = 0
        self._event_owed = False
        self._active = False
        self.packets_in = self.packets_out = self.bytes_in = self.bytes_out = 0
        self.opened = self.refused = self.dropped = self.overruns = 0

    # -- what the driver does

    def activate(self) -> None:
        self._active = True
        self.loop.watch(self.backend.listener.fileno(), READ, lambda _: self._locked(self._accept))
        if self._broker is not None:
            self.loop.watch(self._broker.fd, READ, lambda _: self._locked(self._answered))

    def reset(self) -> None:
        self._stop()

    def notified(self, queue: Queue) -> None:
        if queue.index == TX:
            self._take()
        elif queue.index == RX:
            self._take()  # it may wait for room for its answers
        else:
            self._events()
        self._pump()

    def _locked(self, action: Callable[..., None], *args: Any) -> None:
        with self.lock:
            if self._active:
                action(*args)

    def _when_ready(self, action: Callable[[Any], None], what: Any) -> Callable[[int], None]:
        return lambda _: self._locked(action, what)

    def _take(self) -> None:
        """Packets of the guest's, while there is room for the answers that they may need."""
        queue = self.queues[TX]
        for request in queue:
            if len(self._resets) >= RESETS_MAX:
                request.give_back()
                break
            if request.readable_bytes < _HEADER.size:
                self.dropped += 1
            else:
                self._packet(request.read(_HEADER.size), _behind(request.readable, _HEADER.size),
                             request.readable_bytes - _HEADER.size)
            request.push(0)
        queue.signal_py()

    # -- packets from the guest

    def _packet(self, header: bytes, payload: list[memoryview], room: int) -> None:
        """One packet, with the ``room`` bytes of payload that its buffers have."""
        source, to, guest_port, host_port, length, kind, op, flags, buffer, forwarded = _HEADER.unpack(header)
        self.packets_in += 1
        if source != self.cid or length > room:
            self.dropped += 1
            return
        key = guest_port, host_port
        flow = self._flows.get(key)
        if to != HOST_CID or kind != STREAM:
            self._refuse(key, op)
            return
        if flow is None:
            if op == REQUEST:
                self._request(key, buffer, forwarded)
            else:
                self._refuse(key, op)
            return
        flow.peer_buffer, flow.peer_forwarded = buffer, forwarded
        if op == RST:
            self._close(flow)
        elif op == RESPONSE and flow.state == OFFERED:
            self._established(flow)
        elif flow.state != OPEN:
            self._reset(flow)
        elif op == RW:
            self._data(flow, payload, length)
        elif op == CREDIT_UPDATE:
            pass
        elif op == CREDIT_REQUEST:
            self._owe(flow, CREDIT_UPDATE)
        elif op == SHUTDOWN:
            flow.guest_ended |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND)
            self._guest_ended(flow)
        else:
            self._reset(flow)
            return
        if flow.readable:
            self._queue(flow)  # there may be credit now

    def _refuse(self, key: tuple[int, int], op: int) -> None:
        """A packet of no connection is answered by a reset, unless it is one (5.10.6.4.1)."""
        self.dropped += 1
        if op != RST:
            self._resets.append(key)

    def _request(self, key: tuple[int, int], buffer: int, forwarded: int) -> None:
        """The guest wants to connect."""
        self._next_request = self._next_request + 1 & 0xFFFFFFFF
        full = len(self._flows) >= CONNECTIONS_MAX
        if full or self._broker is None or not self._broker.ask(self._next_request, key[1]):
            self.refused += 1
            self._resets.append(key)
            return
        flow = self._flows[key] = Flow(*key, ASKED)
        flow.peer_buffer, flow.peer_forwarded = buffer, forwarded
        self._asked[self._next_request] = key

    def _answered(self) -> None:
        """The broker has connected, or couldn't."""
        while True:
            try:
                answer = self._broker.take()
            except EOFError:
                self.loop.unwatch(self._broker.fd)
                self._broker = None
                for key in self._asked.values():
                    if key in self._flows:
                        self._refused(self._flows[key])
                self._asked.clear()
                break
            if answer is None:
                break
            number, sock = answer
            flow = self._flows.get(self._asked.pop(number, _NOWHERE))
            if flow is None or flow.state != ASKED:
                if sock:
                    sock.close()
            elif sock is None:
                self._refused(flow)
            else:
                self._start(flow, sock)
                self._owe(flow, RESPONSE)
        self._pump()

    def _refused(self, flow: Flow) -> None:
        """The connection isn't to be had."""
        if flow.state == ASKED:
            self.refused += 1
            self._reset(flow)

    def _data(self, flow: Flow, payload: list[memoryview], length: int) -> None:
        """Bytes of the guest's, into the socket as far as that takes them."""
        if flow.guest_ended & SHUTDOWN_SEND or flow.sock is None:
            self._reset(flow)
            return
        if len(flow.unsent) + length > BUFFER:  # it had no credit for that
            self.overruns += 1
            self._reset(flow)
            return
        self.bytes_in += length
        parts = []
        for part in payload:
            if length <= 0:
                break
            parts.append(part[:length])
            length -= len(part)
        taken = 0
        if not flow.unsent and parts:
            try:
                taken = flow.sock.sendmsg(parts)
            except BlockingIOError:
                pass
            except OSError:  # its reader has gone
                self._reset(flow)
                return
            self._forwarded(flow, taken)
        for part in parts:
            if taken < len(part):
                flow.unsent += part[taken:]
            taken = max(0, taken - len(part))
        if flow.unsent:
            self._watch(flow)

    def _forwarded(self, flow: Flow, count: int) -> None:
        flow.forwarded += count
        # When half of its credit is used up it is told, not at every packet.
        if flow.forwarded - flow.told >= BUFFER // 2:
            self._owe(flow, CREDIT_UPDATE)

    def _guest_ended(self, flow: Flow) -> None:
        """What the guest has shut down is shut down here, once everything from it has gone."""
        if flow.unsent or flow.sock is None:
            return
        if flow.guest_ended == SHUTDOWN_RECEIVE | SHUTDOWN_SEND:
            self._reset(flow)  # the answer that the guest waits for (5.10.6.6.1)
            return
        how = socket.SHUT_WR if flow.guest_ended & SHUTDOWN_SEND else socket.SHUT_RD
        with contextlib.suppress(OSError):
            flow.sock.shutdown(how)

    # -- the host's side

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                sock, _ = self.backend.listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            if len(self._greetings) >= GREETINGS_MAX or len(self._flows) >= CONNECTIONS_MAX or not self._active:
                sock.close()
                self.refused += 1
                continue
            self._greetings[sock] = self.loop.call_later(GREETING_TIMEOUT, partial(self._locked, self._dismiss, sock))
            self.loop.watch(sock.fileno(), READ, self._when_ready(self._greeted, sock))

    def _dismiss(self, sock: socket.socket) -> None:
        self._greetings.pop(sock).cancel()
        self.loop.unwatch(sock.fileno())
        sock.close()

    def _greeted(self, sock: socket.socket) -> None:
        """``CONNECT port``; what comes behind the line is the connection's."""
        try:
            said = sock.recv(32, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        match = _CONNECT.match(said)
        if match is None and said and b"\n" not in said and len(said) < 32 and b"CONNECT ".startswith(said[:8].upper()):
            self._await_more(sock, len(said))
            return
        if match is None or int(match[1]) > 0xFFFFFFFF:
            self.refused += 1
            self._dismiss(sock)
            return
        sock.recv(match.end())
        self._greetings.pop(sock).cancel()
        self.loop.unwatch(sock.fileno())
        port = self._free_port(int(match[1]))
        flow = self._flows[int(match[1]), port] = Flow(int(match[1]), port, OFFERED)
        flow.sock = sock
        flow.timer = self.loop.call_later(CLOSE_TIMEOUT, partial(self._locked, self._reset_and_pump, flow))
        self._owe(flow, REQUEST)
        self._pump()

    def _await_more(self, sock: socket.socket, had: int) -> None:
        """A line in pieces: looked at again in a moment, as what was looked at stays readable."""
        self.loop.unwatch(sock.fileno())

        def again() -> None:
            if sock in self._greetings:
                self.loop.watch(sock.fileno(), READ, self._when_ready(self._greeted, sock))

        self.loop.call_later(0.01, partial(self._locked, again))

    def _free_port(self, guest_port: int) -> int:
        while (guest_port, self._next_port) in self._flows:
            self._next_port = self._next_port + 1 & 0xFFFFFFFF or FIRST_PORT
        port = self._next_port
        self._next_port = self._next_port + 1 & 0xFFFFFFFF or FIRST_PORT
        return port

    def _established(self, flow: Flow) -> None:
        """The guest has accepted a connection from the host."""
        assert flow.sock is not None and flow.timer is not None
        flow.timer.cancel()
        flow.timer = None
        try:
            flow.sock.send(b"OK %d\n" % flow.host_port)
        except OSError:
            self._reset(flow)
            return
        self._start(flow, flow.sock)

    def _start(self, flow: Flow, sock: socket.socket) -> None:
        sock.setblocking(False)
        flow.sock, flow.state, flow.readable = sock, OPEN, False
        self.opened += 1
        self._watch(flow)

    def _watch(self, flow: Flow) -> None:
        """Have epoll tell what the flow waits for."""
        assert flow.sock is not None
        wanted = WRITE if flow.unsent else 0
        if not flow.readable and not flow.ended & SHUTDOWN_SEND:
            wanted |= READ
        if wanted:
            self.loop.watch(flow.sock.fileno(), wanted, lambda events: self._locked(self._moved, flow, events))
        else:
            self.loop.unwatch(flow.sock.fileno())  # its end would be told again and again

    def _moved(self, flow: Flow, events: int) -> None:
        """The socket has something, or room."""
        assert flow.sock is not None
        if flow.unsent and events & ~READ:
            try:
                count = flow.sock.send(flow.unsent)
            except BlockingIOError:
                count = 0
            except OSError:
                self._reset_and_pump(flow)
                return
            del flow.unsent[:count]
            self._forwarded(flow, count)
            if flow.guest_ended:
                self._guest_ended(flow)
        if flow.sock is not None:
            if events & ~WRITE and not flow.ended & SHUTDOWN_SEND:
                flow.readable = True
                self._queue(flow)
            self._watch(flow)
        self._pump()

    # -- packets to the guest

    def _owe(self, flow: Flow, op: int) -> None:
        flow.owed.add(op)
        self._queue(flow)

    def _queue(self, flow: Flow) -> None:
        if not flow.queued:
            flow.queued = True
            self._ready.append(flow)

    def _reset_and_pump(self, flow: Flow) -> None:
        self._reset(flow)
        self._pump()

    def _reset(self, flow: Flow) -> None:
        """End it at once, and tell the guest."""
        if self._flows.get((flow.guest_port, flow.host_port)) is flow:
            self._close(flow)
            self._resets.append((flow.guest_port, flow.host_port))

    def _close(self, flow: Flow) -> None:
        """Forget it."""
        self._flows.pop((flow.guest_port, flow.host_port), None)
        flow.owed.clear()
        flow.readable = False
        if flow.timer:
            flow.timer.cancel()
        if flow.sock is not None:
            self.loop.unwatch(flow.sock.fileno())
            flow.sock.close()
            flow.sock = None

    def _pump(self) -> None:
        """Send what there is for the guest, a packet of each connection in turn, while it has buffers."""
        queue = self.queues[RX]
        work = len(self._resets) + BATCH * max(1, len(self._ready))
        while work > 0 and self._active and (self._resets or self._ready):
            work -= 1
            request = next(queue, None)
            if request is None:
                break
            if request.writable_bytes < _HEADER.size or request.readable_bytes:
                queue.fail_py()  # 5.10.6.3: a buffer is for a packet
                return
            if self._resets:
                guest_port, host_port = self._resets.popleft()
                self._send(request, _HEADER.pack(HOST_CID, self.cid, host_port, guest_port, 0, STREAM, RST, 0, 0, 0))
                continue
            flow = self._ready[0]
            if not self._fill(flow, request):
                request.give_back()
                self._ready.popleft()
                flow.queued = False
            else:
                self._ready.rotate(-1)
        queue.signal_py()
        if self._ready and work <= 0:
            queue.ring_py()  # others' turn

    def _fill(self, flow: Flow, request: Request) -> bool:
        """One packet of the flow's into the guest's buffer; False where it has none now."""
        for op in (REQUEST, RESPONSE, CREDIT_UPDATE, SHUTDOWN, CREDIT_REQUEST):
            if op in flow.owed:
                flow.owed.discard(op)
                self._send(request, self._header(flow, op, flow.ended if op == SHUTDOWN else 0, 0))
                return True
        if not flow.readable or flow.state != OPEN or flow.sock is None:
            return False
        room = min(flow.credit, request.writable_bytes - _HEADER.size)
        if room <= 0:
            if flow.credit <= 0 and not flow.asked_credit:
                flow.asked_credit = True
                self._send(request, self._header(flow, CREDIT_REQUEST, 0, 0))
                return True
            return False
        buffers = _behind(request.writable, _HEADER.size, room)
        try:
            count = flow.sock.recvmsg_into(buffers)[0]
        except BlockingIOError:
            flow.readable = False
            self._watch(flow)
            return False
        except OSError:  # reset by the other side
            self._close(flow)
            self._send(request, _HEADER.pack(
                HOST_CID, self.cid, flow.host_port, flow.guest_port, 0, STREAM, RST, 0, 0, 0
            ))
            return True
        if count == 0:
            self._host_ended(flow)
            return self._fill(flow, request)
        flow.sent = flow.sent + count & 0xFFFFFFFF
        flow.asked_credit = False
        self.bytes_out += count
        self._send(request, self._header(flow, RW, 0, count), count)
        return True

    def _host_ended(self, flow: Flow) -> None:
        """The host's program has said its last word; it may still listen."""
        flow.readable = False
        flow.ended |= SHUTDOWN_SEND
        self._watch(flow)
        flow.owed.add(SHUTDOWN)

    def _header(self, flow: Flow, op: int, flags: int, length: int) -> bytes:
        flow.told = flow.forwarded
        return _HEADER.pack(
            HOST_CID, self.cid, flow.host_port, flow.guest_port, length, STREAM, op, flags, BUFFER,
            flow.forwarded & 0xFFFFFFFF,
        )

    def _send(self, request: Request, header: bytes, payload: int = 0) -> None:
        """The header before a payload that is there already."""
        request.write(header)
        request.push(len(header) + payload)
        self.packets_out += 1

    # -- what the machine does

    def _events(self) -> None:
        """The guest is to drop all its connections: they are of before."""
        queue = self.queues[EVENT]
        if self._event_owed:
            for request in queue:
                request.write(EVENT_TRANSPORT_RESET.to_bytes(4, "little"))
                request.push()
                self._event_owed = False
                break
            queue.signal_py()

    def _stop(self) -> None:
        self._active = False
        for flow in list(self._flows.values()):
            self._close(flow)
        for sock in list(self._greetings):
            self._dismiss(sock)
        self._asked.clear()
        self._ready.clear()
        self._resets.clear()
        self._event_owed = False
        self.loop.unwatch(self.backend.listener.fileno())
        if self._broker is not None:
            self.loop.unwatch(self._broker.fd)

    def go_on(self, copy: bool) -> None:
        if copy:  # connections are the other machine's
            with self.lock:
                active = self._active
                self._stop()
                if active:
                    self.activate()
                    self._event_owed = True
                    self._events()

    def close(self) -> None:
        self._stop()

    def statistics(self) -> dict[str, Any]:
        names = ("packets_in", "packets_out", "bytes_in", "bytes_out", "opened", "refused", "dropped", "overruns")
        return {"connections": len(self._flows), **{name: getattr(self, name) for name in names}}

    def save(self) -> dict[str, Any]:
        """Connections end with this machine: their sockets can't be saved."""
        return {"version": _VERSION, "cid": self.cid, "event_owed": True}

    def load(self, state: dict[str, Any]) -> None:
        if state["version"] != _VERSION:
            raise ValueError(f"vsock: state version {state['version']} is not {_VERSION}")
        self.cid, self._event_owed = state["cid"], state["event_owed"]
        self.config[:] = self.cid.to_bytes(8, "little")


def _behind(buffers: list[memoryview], skip: int, size: int = 1 << 32) -> list[memoryview]:
    """``size`` bytes of the buffers, without the first ``skip``."""
    found = []
    for buffer in buffers:
        part = buffer[skip : skip + size]
        skip = max(0, skip - len(buffer))
        size -= len(part)
        if part:
            found.append(part)
        if size <= 0:
            break
    return found
