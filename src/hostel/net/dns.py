"""DNS messages (RFC 1035), as far as a forwarder looks into them: the question, and answers of our own."""

import struct

from hostel.base.typed import NamedTuple

PORT = 53
A, PTR, AAAA, ANY = 1, 12, 28, 255
IN = 1
SERVFAIL, NXDOMAIN, REFUSED = 2, 3, 5
TTL = 5                       # seconds; machines come and go
MAX_MESSAGE = 65535
_HEADER = struct.Struct("!HHHHHH")
_RESPONSE, _OPCODE, _AUTHORITATIVE, _DESIRED, _AVAILABLE = 0x8000, 0x7800, 0x0400, 0x0100, 0x0080


class Question(NamedTuple):
    name: str                  # lower case, without the last dot
    kind: int
    end: int                   # where it ends in its message


def question(message: bytes) -> Question | None:
    """Of a query for one name; None for all else, which goes to who knows more."""
    if len(message) < _HEADER.size:
        return None
    _, flags, questions, *_ = _HEADER.unpack_from(message)
    if flags & (_RESPONSE | _OPCODE) or questions != 1:
        return None
    labels, at = [], _HEADER.size
    while True:
        if at >= len(message):
            return None
        length = message[at]
        if length == 0:
            break
        if length > 63 or at + 1 + length > len(message) or at > _HEADER.size + 255:
            return None  # no compression in a question: there is nothing before it
        labels.append(message[at + 1 : at + 1 + length].decode("latin-1").lower())
        at += 1 + length
    if at + 5 > len(message):
        return None
    kind, cls = struct.unpack_from("!HH", message, at + 1)
    return Question(".".join(labels), kind, at + 5) if cls == IN else None


def answer(query: bytes, asked: Question, data: list[tuple[int, bytes]], code: int = 0) -> bytes:
    """What we know ourselves: records of (type, data) for the name asked for."""
    ident, flags, *_ = _HEADER.unpack_from(query)
    flags = _RESPONSE | _AUTHORITATIVE | _AVAILABLE | flags & (_OPCODE | _DESIRED) | code
    records = b"".join(struct.pack("!HHHIH", 0xC00C, kind, IN, TTL, len(value)) + value for kind, value in data)
    return _HEADER.pack(ident, flags, 1, len(data), 0, 0) + query[_HEADER.size : asked.end] + records


def failure(query: bytes, code: int) -> bytes:
    """That it didn't work."""
    ident, flags, *_ = _HEADER.unpack_from(query)
    asked = question(query)
    body = query[_HEADER.size : asked.end] if asked else b""
    flags = _RESPONSE | _AVAILABLE | flags & (_OPCODE | _DESIRED) | code
    return _HEADER.pack(ident, flags, 1 if asked else 0, 0, 0, 0) + body


def is_answer(message: bytes, query: bytes) -> bool:
    """Whether ``message`` answers ``query``: the same number and question (RFC 5452, 9.1)."""
    if len(message) < _HEADER.size or message[:2] != query[:2] or not message[2] & 0x80:
        return False
    asked = question(query)
    if asked is None or message[4:6] == b"\0\0":  # an error may come without the question
        return True
    return message[_HEADER.size : asked.end].lower() == query[_HEADER.size : asked.end].lower()


def encode(name: str) -> bytes:
    """A name as a record's data has it."""
    return b"".join(bytes((len(label),)) + label.encode("latin-1") for label in name.split(".") if label) + b"\0"


def reversed_address(name: str) -> bytes | None:
    """The address whose name is asked for, of ``2.0.0.10.in-addr.arpa`` and of ip6.arpa's kind."""
    labels = name.split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return bytes(int(label) for label in reversed(labels[:4]))
        if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34:
            return bytes.fromhex("".join(reversed(labels[:32])))
    except ValueError:
        pass
    return None
