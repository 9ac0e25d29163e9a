"""Netlink (netlink(7)): requests to the kernel's network, and its answers. For the few that hostel makes by itself,
where pyroute2's import alone would take ten times as long as the work, or pyroute2 has no such request."""

import os
import socket
import struct
from collections.abc import Iterator

ROUTE, NETFILTER = 0, 12        # NETLINK_ROUTE, NETLINK_NETFILTER
ACK, CREATE, REPLACE, DUMP = 0x4, 0x400, 0x100, 0x300
_REQUEST = 0x1
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_ROOM = 1 << 17


def attribute(kind: int, *parts: bytes | str | int) -> bytes:
    """A string ends with a zero byte; a number has 32 bits."""
    data = b"".join(
        part if isinstance(part, bytes) else part.encode() + b"\0" if isinstance(part, str) else struct.pack("=I", part)
        for part in parts
    )
    return _ATTRIBUTE.pack(len(data) + _ATTRIBUTE.size, kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, *attributes)


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    """Of what the kernel has said. Those of the same kind may come more than once."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, bytes(data[at + _ATTRIBUTE.size : at + size])
        at += size + -size % 4


def message(kind: int, flags: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, 0, 0) + body


def ask(family: int, *messages: bytes) -> list[bytes]:
    """Send them as one; the bodies of the answers. Those with ``ACK`` are waited for. Raises OSError with the kernel's
    first error."""
    waited = sum(bool(_HEADER.unpack_from(one)[2] & ACK) for one in messages)
    dump = any(_HEADER.unpack_from(one)[2] & DUMP == DUMP for one in messages)
    answers: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as sock:
        sock.bind((0, 0))
        sock.send(b"".join(messages))
        while waited or dump:
            data, at = sock.recv(_ROOM), 0
            while at + _HEADER.size <= len(data):
                size, kind, _, _, _ = _HEADER.unpack_from(data, at)
                body = data[at + _HEADER.size : at + size]
                at += size + -size % 4
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    waited -= 1
                elif kind == _DONE:
                    return answers
                else:
                    answers.append(body)
    return answers
