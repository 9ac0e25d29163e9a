"""Frames of an upgraded control connection: one byte of type, four of length (little-endian), the bytes.

A sender must not exceed ``MAX_PAYLOAD`` a frame. The stream needs no credits: a side that does not want more
stops reading, and the socket's own flow control holds the other one back.
"""

import struct
from collections.abc import Iterator

STDIN = 0        # client to worker; empty: end of file
STDOUT = 1       # worker to client; a console's output too
STDERR = 2
EXIT = 3         # worker to client, last: exit status as a 32-bit integer (128+n for signals, 125..127 as shells do)
ERROR = 4        # worker to client, last: a line for people
RESIZE = 5       # client to worker: rows, columns (16 bits each)
SIGNAL = 6       # client to worker: one byte, a signal for the command

HEADER = struct.Struct("<BI")
MAX_PAYLOAD = 1 << 16
_SIZE = struct.Struct("<HH")
_STATUS = struct.Struct("<i")


def frame(kind: int, payload: bytes | bytearray | memoryview = b"") -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def resize(rows: int, cols: int) -> bytes:
    return frame(RESIZE, _SIZE.pack(min(rows, 0xFFFF), min(cols, 0xFFFF)))


def read_resize(payload: bytes) -> tuple[int, int]:
    rows, cols = _SIZE.unpack(payload)
    return rows, cols


def exit_status(status: int) -> bytes:
    return frame(EXIT, _STATUS.pack(status))


def read_exit_status(payload: bytes) -> int:
    return int(_STATUS.unpack(payload)[0])


class FrameError(ValueError):
    """The peer breaks the protocol; the connection can't go on."""


class FrameReader:
    """Cuts a byte stream into frames: ``feed(data)`` yields ``(kind, payload)``."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = 0
        while len(data) - at >= HEADER.size:
            kind, length = HEADER.unpack_from(data, at)
            if length > MAX_PAYLOAD:
                raise FrameError(f"a frame of {length} bytes; at most {MAX_PAYLOAD} are allowed")
            end = at + HEADER.size + length
            if end > len(data):
                break
            payload = data[at + HEADER.size : end]
            at = end
            yield kind, payload
        self._rest = data[at:]
