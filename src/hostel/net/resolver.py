"""Guests' DNS questions, answered from the network's own names or by the host's resolvers.

/etc/resolv.conf is looked at again when it has changed. Resolvers on the host's loopback (systemd-resolved's
127.0.0.53) are asked like any other: it is this process that asks. Every question has a socket of its own, so that
its port is as random as the kernel makes it (RFC 5452, 9.2); the next server is asked when one is silent.
"""

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable
from functools import partial

from hostel.base.loop import READ, WRITE, Loop, Timer
from hostel.net import dns

MAX_QUESTIONS = 256           # asked and not answered yet, of all guests
PATIENCE = 1.5                # seconds before the next server is asked too
TIMEOUT = 8.0                 # seconds before the guest hears SERVFAIL; its own is 5 as a rule, and it asks again
LOOK = 1.0                    # seconds between looks at resolv.conf
MAX_SERVERS = 3               # as many as the C library takes
MAX_STREAMS = 64              # TCP connections to the resolver at once
MAX_BUFFERED = 1 << 18        # bytes of a stream that wait for a slow reader
_SIOCGIFINDEX = 0x8933        # linux/sockios.h
_DEFAULT = [("127.0.0.1", 0)]  # resolv.conf(5)

Names = Callable[[dns.Question], tuple[list[tuple[int, bytes]], int] | None]


class ResolvConf:
    """The host's resolvers: (address, scope) of each."""

    def __init__(self, path: str):
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._looked = -LOOK
        self._servers: list[tuple[str, int]] = _DEFAULT
        self._search = ""

    def servers(self) -> list[tuple[str, int]]:
        self._look()
        return self._servers

    def domain(self) -> str:
        """The first name of its search list; empty where there is none."""
        self._look()
        return self._search

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        try:
            state = os.stat(self._path)
            seen = (state.st_mtime_ns, state.st_ino, state.st_size)
            if seen == self._seen:
                return
            with open(self._path, "rb") as file:
                text = file.read(1 << 16).decode("latin-1")
        except OSError:
            return  # it is being replaced, or there is none: what was last known is better than nothing
        self._seen = seen
        self._servers, self._search = parse(text)


def parse(text: str) -> tuple[list[tuple[str, int]], str]:
    """(servers, first domain of the search list) of a resolv.conf."""
    servers: list[tuple[str, int]] = []
    search = ""
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and len(servers) < MAX_SERVERS:
            address, _, zone = words[1].partition("%")
            with contextlib.suppress(ValueError, OSError):
                ipaddress.ip_address(address)
                scope = 0
                if zone:
                    scope = int(zone) if zone.isdigit() else _index(zone)
                servers.append((address, scope))
        elif words[0] in ("search", "domain"):
            search = words[1].rstrip(".")
            if len(search) > 100 or not all(0 < len(label) < 64 for label in search.split(".")):
                search = ""
    return servers or _DEFAULT, search


def _index(interface: str) -> int:
    """An interface's number; ``if_nametoindex`` takes a unix socket, which a confined router may not have."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFINDEX, struct.pack("16s24x", interface.encode()[:15]))
    return int(struct.unpack_from("=i", answer, 16)[0])


def _open(server: tuple[str, int], kind: socket.SocketKind) -> socket.socket:
    """A socket that is connected, or about to be, to a resolver."""
    address, scope = server
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    where = (address, dns.PORT, 0, scope) if family == socket.AF_INET6 else (address, dns.PORT)
    try:
        with contextlib.suppress(BlockingIOError):
            sock.connect(where)
    except OSError:
        sock.close()
        raise
    return sock


class _Asked:
    """A question on its way."""

    def __init__(self, query: bytes, reply: Callable[[bytes], None]):
        self.query = query
        self.reply = reply
        self.sockets: list[socket.socket] = []
        self.timer: Timer | None = None
        self.next = 0
        self.deadline = time.monotonic() + TIMEOUT


class Resolver:
    """Answers questions. ``names`` are those of the network: (records, code) of a name that is its own, else None."""

    def __init__(self, loop: Loop, conf: ResolvConf, names: Names):
        self._loop = loop
        self._conf = conf
        self._names = names
        self._asked: dict[int, _Asked] = {}    # by id()
        self._streams: set[_Stream] = set()
        self.questions = 0
        self.dropped = 0
        self.failed = 0

    def domain(self) -> str:
        return self._conf.domain()

    def local(self, query: bytes) -> bytes | None:
        """The answer, where we know it ourselves."""
        asked = dns.question(query)
        known = self._names(asked) if asked else None
        if asked is None or known is None:
            return None
        return dns.answer(query, asked, *known)

    def ask(self, query: bytes, reply: Callable[[bytes], None]) -> None:
        """``reply(answer)``, now or later, or never where too many ask."""
        self.questions += 1
        if len(query) < 12 or query[2] & 0x80:
            self.dropped += 1
            return
        answer = self.local(query)
        if answer is not None:
            reply(answer)
        elif len(self._asked) >= MAX_QUESTIONS:
            self.dropped += 1
        else:
            asked = _Asked(query, reply)
            self._asked[id(asked)] = asked
            self._next(asked)

    def _next(self, asked: _Asked) -> None:
        """Ask the next server; when all have been silent for long enough, say so."""
        servers = self._conf.servers()
        now = time.monotonic()
        while asked.next < len(servers) and now < asked.deadline:
            server = servers[asked.next]
            asked.next += 1
            try:
                sock = _open(server, socket.SOCK_DGRAM)
            except OSError:
                continue
            asked.sockets.append(sock)
            self._loop.watch(sock.fileno(), READ, partial(self._answered, asked, sock))
            try:
                sock.send(asked.query)
            except OSError:
                continue
            asked.timer = self._loop.call_later(PATIENCE, lambda: self._next(asked))
            return
        if asked.sockets and now < asked.deadline:
            asked.timer = self._loop.call_at(asked.deadline, lambda: self._next(asked))
            return
        self._done(asked)
        self.failed += 1
        asked.reply(dns.failure(asked.query, dns.SERVFAIL))

    def _answered(self, asked: _Asked, sock: socket.socket, events: int) -> None:
        try:
            message = sock.recv(dns.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:  # nobody listens there
            self._loop.unwatch(sock.fileno())
            sock.close()
            asked.sockets.remove(sock)
            if not asked.sockets:
                if asked.timer:
                    asked.timer.cancel()
                self._next(asked)
            return
        if dns.is_answer(message, asked.query):
            self._done(asked)
            asked.reply(message)

    def _done(self, asked: _Asked) -> None:
        self._asked.pop(id(asked), None)
        if asked.timer:
            asked.timer.cancel()
        for sock in asked.sockets:
            self._loop.unwatch(sock.fileno())
            sock.close()
        asked.sockets = []

    def stream(self) -> socket.socket | None:
        """The other end of a TCP conversation with a guest (RFC 7766); None where too many have one."""
        if len(self._streams) >= MAX_STREAMS:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        theirs.setblocking(False)
        self._streams.add(_Stream(self._loop, ours, self))
        return theirs

    def open_stream(self) -> socket.socket | None:
        """A connection to the first server that can be had."""
        for server in self._conf.servers():
            with contextlib.suppress(OSError):
                return _open(server, socket.SOCK_STREAM)
        return None

    def closed(self, stream: "_Stream") -> None:
        self._streams.discard(stream)


class _Stream:
    """A guest's DNS connection: questions that are ours are answered, the others go on to the host's resolver by a
    connection of their own, whose answers come back as they are."""

    def __init__(self, loop: Loop, guest: socket.socket, resolver: Resolver):
        self._loop = loop
        self._resolver = resolver
        self._ends: dict[bool, socket.socket | None] = {True: guest, False: None}   # the guest's; the server's
        self._unsent = {True: bytearray(), False: bytearray()}
        self._read = bytearray()
        self._watch(True)

    def _watch(self, guest: bool) -> None:
        sock = self._ends[guest]
        if sock is not None:
            events = READ if max(map(len, self._unsent.values())) < MAX_BUFFERED else 0
            events |= WRITE if self._unsent[guest] else 0
            self._loop.watch(sock.fileno(), events, partial(self._ready, guest))

    def _ready(self, guest: bool, events: int) -> None:
        sock = self._ends[guest]
        if sock is None:
            return
        try:
            if events & WRITE:
                self._flush(guest)
            if events & ~WRITE:
                data = sock.recv(1 << 16)
                if not data:
                    return self.close()  # answers to come are lost to who doesn't wait for them
                if guest:
                    self._questions(data)
                else:
                    self._unsent[True] += data
                    self._flush(True)
        except BlockingIOError:
            pass
        except OSError:
            return self.close()
        for end in (True, False):
            self._watch(end)

    def _questions(self, data: bytes) -> None:
        self._read += data
        while len(self._read) >= 2:
            size = int.from_bytes(self._read[:2], "big")
            if len(self._read) < 2 + size:
                break
            query = bytes(self._read[2 : 2 + size])
            del self._read[: 2 + size]
            self._resolver.questions += 1
            if size < 12:
                raise OSError("no question")
            answer = self._resolver.local(query)
            if answer is None and self._ends[False] is None:
                self._ends[False] = self._resolver.open_stream()
            if answer is None and self._ends[False] is None:
                answer = dns.failure(query, dns.SERVFAIL)
            if answer is not None:
                self._unsent[True] += len(answer).to_bytes(2, "big") + answer
            else:
                self._unsent[False] += size.to_bytes(2, "big") + query
        self._flush(True)
        self._flush(False)

    def _flush(self, guest: bool) -> None:
        sock = self._ends[guest]
        if sock is not None and self._unsent[guest]:
            with contextlib.suppress(BlockingIOError):
                del self._unsent[guest][: sock.send(self._unsent[guest])]

    def close(self) -> None:
        for end, sock in self._ends.items():
            if sock is not None:
                self._loop.unwatch(sock.fileno())
                sock.close()
                self._ends[end] = None
        self._resolver.closed(self)
