"""One image into another: what reads as zeros takes no space in the new one.

The source is read by a thread of its own, one piece ahead of the writer; clusters are packed by as many threads as
there are processors. The new image has its name only when it is whole.
"""

import collections
import concurrent.futures
import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hostel.base.errors import BlockError
from hostel.block.create import appearing, make, open_target
from hostel.block.disk import Disk
from hostel.block.file import is_zero
from hostel.block.qcow2.compression import compress
from hostel.block.qcow2.disk import Qcow2

PIECE = 2 << 20           # bytes that are read and written at once
GRAIN = 4096              # bytes: as few zeros in a row become a hole, as with qemu-img
_AHEAD = 2                # pieces in memory


def convert(
    source: Disk, path: Path, format: str, options: Mapping[str, Any] | None = None, compressed: bool = False,
    force: bool = False, progress: Callable[[int, int], None] | None = None,
) -> None:
    """``progress(done, all)`` is told of bytes now and then."""
    if compressed and format != "qcow2":
        raise BlockError("only qcow2 images can be compressed")
    for name in ("backing_file", "data_file"):
        if (options or {}).get(name):
            raise BlockError(f"{name}: a conversion makes one image with everything in it")
    with appearing(path, force) as new:
        make(new, format, source.size, options or {})
        target = open_target(new, format)
        try:
            copy(source, target, compressed, progress)
        finally:
            target.close()


def copy(
    source: Disk, target: Disk, compressed: bool = False, progress: Callable[[int, int], None] | None = None
) -> None:
    """Into a new image, which reads as zeros."""
    if isinstance(target, Qcow2):
        grain = max(target.cluster_size, GRAIN)
        write = _Packer(target).write if compressed else target.writev
    else:
        grain, write = GRAIN, target.writev
    pieces = _pieces(source, grain)

    def read_next(buffer: mmap.mmap) -> tuple[int, int] | None:
        piece = next(pieces, None)
        if piece:
            source.readv(piece[0], [memoryview(buffer)[: piece[1]]])
        return piece

    with concurrent.futures.ThreadPoolExecutor(1) as reader:  # a disk belongs to one thread at a time
        buffers = [mmap.mmap(-1, PIECE) for _ in range(_AHEAD)]
        ahead = collections.deque((reader.submit(read_next, buffer), buffer) for buffer in buffers)
        while ahead:
            done, buffer = ahead.popleft()
            piece = done.result()
            if piece is None:
                continue
            _write_data(write, grain, *piece, buffer)
            ahead.append((reader.submit(read_next, buffer), buffer))
            if progress:
                progress(sum(piece), source.size)
    if progress:
        progress(source.size, source.size)
    if compressed and isinstance(target, Qcow2):
        target.file.truncate(-(-target.file.size // target.cluster_size) * target.cluster_size)


def _pieces(source: Disk, grain: int) -> Iterator[tuple[int, int]]:
    """What isn't known to be zeros, in whole grains, cut at multiples of ``PIECE``."""
    at = end = 0
    for extent in source.extents(0, source.size):
        if extent.zero:
            continue
        start = max(end, extent.start & -grain)
        if start > end:
            if end > at:
                yield at, end - at
            at = start
        end = max(end, min(extent.start + extent.length + grain - 1 & -grain, source.size))
        while end - at >= PIECE - at % PIECE:
            length = PIECE - at % PIECE
            yield at, length
            at += length
    if end > at:
        yield at, end - at


def _write_data(
    write: Callable[[int, list[memoryview]], None], grain: int, offset: int, length: int, buffer: mmap.mmap
) -> None:
    """A piece without the grains of it that are zeros."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    view = memoryview(buffer)
    start = at = 0
    while at < length:
        size = min(grain - (offset + at) % grain, length - at)
        if is_zero(address + at, size):
            if at > start:
                write(offset + start, [view[start:at]])
            start = at + size
        at += size
    if length > start:
        write(offset + start, [view[start:length]])


class _Packer:
    """Writes clusters packed; those that don't get smaller, and parts of clusters, as they are."""

    def __init__(self, target: Qcow2):
        self.target = target
        self.pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)

    def write(self, offset: int, buffers: list[memoryview]) -> None:
        size, view = self.target.cluster_size, buffers[0]
        kind = self.target.header.compression
        packing = []
        for at in range(0, len(view), size):
            cluster = view[at : at + size]
            if len(cluster) < size and offset + at + len(cluster) == self.target.size:
                cluster = memoryview(bytes(cluster).ljust(size, b"\0"))
            packing.append((offset + at, cluster, self.pool.submit(compress, kind, cluster)))
        for at, cluster, packed in packing:
            data = packed.result()
            if at % size == 0 and len(cluster) == size and len(data) < size:
                self.target.write_compressed(at, data)
            else:
                self.target.writev(at, [cluster[: self.target.size - at]])
