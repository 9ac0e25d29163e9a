"""Streams of tar, packed by gzip or zstd or not at all: told apart by their first bytes, as media types lie.

``isal`` (Intel's ISA-L) inflates two and a half times as fast as zlib. A packed byte may stand for a thousand: output
is taken a piece at a time, so that memory is bounded whatever comes.
"""

import contextlib
import hashlib
import queue
import threading
from collections.abc import Iterator
from typing import BinaryIO, cast

import zstandard
from isal import isal_zlib

from hostel.base.errors import ImageError
from hostel.images.oci.limits import Limits

PIECE = 512 * 1024
_AHEAD = 6  # pieces that are ready before somebody takes them
_ZSTD_WINDOW = 128 << 20  # what 'zstd --long' makes, and memory at most
_DAMAGED = cast(type[Exception], isal_zlib.IsalError)
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def pieces(file: BinaryIO, limits: Limits | None = None) -> Iterator[bytes]:
    """The unpacked content of ``file``, from where it stands. Raises ImageError where it is damaged."""
    first = file.read(PIECE)
    if first.startswith(GZIP):
        found = _inflated(file, first)
    elif first.startswith(ZSTD):
        found = _zstd(file, first)
    else:
        found = ((data, 0) for data in _plain(file, first))
    total = 0
    for data, packed in found:
        total += len(data)
        if limits:
            limits.check_size(total // 2)  # headers and padding may be as much as the files
            if packed:
                limits.check_ratio(packed, total)
        yield data


def _plain(file: BinaryIO, data: bytes) -> Iterator[bytes]:
    while data:
        yield data
        data = file.read(PIECE)


def _inflated(file: BinaryIO, data: bytes) -> Iterator[tuple[bytes, int]]:
    packed = len(data)
    machine = isal_zlib.decompressobj(wbits=31)
    try:
        while True:
            if out := machine.decompress(data, PIECE):
                yield out, packed
            data = machine.unused_data if machine.eof else machine.unconsumed_tail
            if not data:
                data = file.read(PIECE)
                packed += len(data)
                if not data and not machine.eof:
                    while out := machine.decompress(b"", PIECE):  # what it had in store
                        yield out, packed
                    if not machine.eof:
                        raise ImageError("a layer's gzip stream ends too early")
                if not data:
                    return
            if machine.eof:  # RFC 1952: members may follow each other; some tools pad with zeros
                if not data.startswith(b"\x1f"):
                    if data.strip(b"\0"):
                        raise ImageError("something follows a layer's gzip stream that is none")
                    return
                machine = isal_zlib.decompressobj(wbits=31)
    except _DAMAGED as error:
        raise ImageError(f"a layer's gzip stream is damaged ({error})") from error


def _zstd(file: BinaryIO, data: bytes) -> Iterator[tuple[bytes, int]]:
    counted = _Counted(file, data)
    machine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    reader = machine.stream_reader(cast(BinaryIO, counted), read_across_frames=True)
    try:
        while out := reader.read(PIECE):
            yield out, counted.count
    except zstandard.ZstdError as error:
        raise ImageError(f"a layer's zstd stream is damaged ({error})") from error


class _Counted:
    """A file whose first bytes were read already, that knows how many were taken."""

    def __init__(self, file: BinaryIO, first: bytes) -> None:
        self.file, self.first, self.count = file, first, 0

    def read(self, size: int = -1) -> bytes:
        data = self.first[:size] if self.first else self.file.read(size)
        self.first = self.first[len(data) :] if self.first else b""
        self.count += len(data)
        return data


class Unpacking:
    """Iterates over the unpacked pieces of ``file``, made and hashed by a thread ahead of who takes them. ``digest`` is
    known at the end."""

    def __init__(self, file: BinaryIO, limits: Limits | None, algorithm: str = "sha256") -> None:
        self._ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._hash = hashlib.new(algorithm)
        self._gone = False
        self.size = 0
        self._thread = threading.Thread(target=self._work, args=(file, limits), daemon=True)
        self._thread.start()

    def _work(self, file: BinaryIO, limits: Limits | None) -> None:
        try:
            for data in pieces(file, limits):
                if self._gone:
                    return
                self._ready.put(data)
                self._hash.update(data)
                self.size += len(data)
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)

    def __iter__(self) -> Iterator[bytes]:
        while (data := self._ready.get()) is not None:
            if isinstance(data, BaseException):
                raise data
            yield data

    @property
    def digest(self) -> str:
        self._thread.join()
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def close(self) -> None:
        self._gone = True
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.01)
