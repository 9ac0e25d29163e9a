"""A disk: bytes that are read and written at offsets, whatever image they are in.

``open_disk`` gives the disk that an image is, with the images below it (``block/chain`` says which those may be). A
device asks ``readv`` and the others for whole requests, or, to move data by itself (io_uring, threads), ``map``:

    fd, host_offset, run, kind = disk.map(offset, length)

says of the ``run`` bytes at ``offset`` (0 < run <= length) where they are:

- ``DATA``: at ``host_offset`` of ``fd``, to be read and overwritten there. An answer holds until the next call of
  ``discard``, ``write_zeroes``, or ``writev`` to the same place, so these wait for I/O in flight there.
- ``BACKING``: at ``host_offset`` of ``fd``, to be read only; ``writev`` writes them (and allocates).
- ``ZERO``: they read as zeros; ``writev`` writes them.
- ``OTHER``: ``readv`` and ``writev`` alone know (compressed, encrypted, not a file).

I/O on ``fd`` is aligned to ``alignment`` (1 with the page cache); past the end of ``fd`` there are zeros. ``writev``
returns with the data in the file and metadata in memory; nothing is safe before ``flush``. Who writes to ``fd`` by
himself lets his writes end before he calls that.

A disk belongs to one thread at a time.
"""

import errno
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostel.base.errors import BlockError
from hostel.block.file import Buffer, File, length_of

# One row a format: what opens it. ``probe`` looks for what an image begins with; raw has no mark.
FORMATS = {
    "raw": "hostel.block.raw:Raw",
    "qcow2": "hostel.block.qcow2.disk:Qcow2",
}
MAGIC = {b"QFI\xfb": "qcow2"}
DATA, BACKING, ZERO, OTHER = 0, 1, 2, 3
_VERSION = 1


@dataclass(frozen=True)
class Extent:
    """A stretch of a disk whose bytes are in one place. ``depth``: how many images below the top; ``present``: some
    image of the chain says what is there; ``data``: there are bytes for it, at ``offset`` of ``path`` unless that is
    None; ``zero``: it reads as zeros."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    compressed: bool = False
    offset: int | None = None
    path: Path | None = None


class Disk:
    """What a device, a conversion and the chain know of an image. A format is a subclass in a file of its own.

    ``size`` is in bytes. Requests outside of it, and writes when ``readonly``, are ``BlockError``s; so is whatever the
    host refuses, with the host's errno (ENOSPC: the same request may be made again when there is room).
    """

    format = ""

    def __init__(self, file: File, size: int, readonly: bool):
        self.file = file
        self.path = file.path
        self.size = size
        self.readonly = readonly
        self.backing: Disk | None = None
        self.backing_name: str | None = None    # what the image says stands below it
        self.backing_format: str | None = None
        self.data_name: str | None = None       # the file with its data, where that isn't its own

    def set_data_file(self, file: File) -> None:
        """Give it the file that ``data_name`` names."""
        raise NotImplementedError

    # -- requests

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> None:
        raise NotImplementedError

    def writev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """What was written is safe from a crash of the host."""
        raise NotImplementedError

    def discard(self, offset: int, length: int) -> None:
        """The guest doesn't need these bytes; they may read as anything that was there, or zeros."""
        raise NotImplementedError

    def write_zeroes(self, offset: int, length: int, may_unmap: bool = True) -> None:
        raise NotImplementedError

    def map(self, offset: int, length: int) -> tuple[int, int, int, int]:
        """``(fd, host_offset, run, kind)``, see above."""
        raise NotImplementedError

    def resize(self, size: int) -> None:
        """``size`` bytes from now on; what is new is zeros."""
        raise NotImplementedError

    def finish(self) -> None:
        """Bring the file into the state of one that is closed, before ``readonly`` is set."""
        self.flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What is where, this image's own part and that of those below it."""
        raise NotImplementedError

    def close(self) -> None:
        """Writes what is in memory, as ``flush``, and gives the image back; also the images below it."""
        raise NotImplementedError

    # -- for all formats

    @property
    def alignment(self) -> int:
        return self.file.alignment

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.readv(offset, [memoryview(data)])
        return bytes(data)

    def write(self, offset: int, data: bytes | bytearray) -> None:
        self.writev(offset, [memoryview(data)])

    def check(self, offset: int, length: int, writing: bool = False) -> None:
        """Whether a request makes sense here."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BlockError(f"{self.path}: a request for {length} bytes at {offset} of {self.size}", errno.EINVAL)
        if writing and self.readonly:
            raise BlockError(f"{self.path} is open for reading only", errno.EROFS)

    def check_buffers(self, offset: int, buffers: Sequence[Buffer], writing: bool = False) -> int:
        length = length_of(buffers)
        self.check(offset, length, writing)
        return length

    def chain(self) -> list["Disk"]:
        """The images, the top first."""
        return [self, *(self.backing.chain() if self.backing else [])]

    def save(self) -> dict[str, Any]:
        """What it takes to open this disk again as it is: after this nothing is only in memory."""
        if not self.readonly:
            self.flush()
        images = [{"path": str(disk.path.resolve()), "format": disk.format} for disk in self.chain()]
        return {"version": _VERSION, "size": self.size, "chain": images}

    def load(self, state: dict[str, Any]) -> None:
        """Makes sure that this is the disk that was saved; an image may be elsewhere by now, but not another."""
        if state.get("version") != _VERSION:
            raise BlockError(f"the state of {self.path} is of version {state.get('version')}, not {_VERSION}")
        if state["size"] != self.size:  # of what images it is made may be others by now: deltas, one that has all
            raise BlockError(f"{self.path} isn't the disk that was saved: its size differs")


def probe(path: str | os.PathLike[str]) -> str:
    """The format of an image, by what it begins with. Only for images that no guest has written: a guest can make a
    raw image begin with anything."""
    file = File(path, locked=False)
    try:
        return MAGIC.get(file.read(0, 4), "raw")
    finally:
        file.close()


def format_class(name: str) -> Callable[[File, bool], Disk]:
    """What makes a disk of an open file, and whether it is only to be read."""
    if name not in FORMATS:
        raise BlockError(f"'{name}' is no format of disk images; there are {' and '.join(FORMATS)}", errno.EINVAL)
    module, _, attribute = FORMATS[name].partition(":")
    found: Callable[[File, bool], Disk] = getattr(importlib.import_module(module), attribute)
    return found


def open_disk(
    path: str | os.PathLike[str], format: str | None = None, readonly: bool = False, direct: bool = False,
    allow_backing: bool = False, locked: bool = True,
) -> Disk:
    """The disk that the image ``path`` is, with the images below it.

    ``format`` None: what it begins with. ``direct``: data goes past the host's page cache. ``allow_backing``: further
    files that the image names are opened wherever they are (``block/chain``); only for images that one trusts.
    ``locked`` False: though another writes to it, as when one only looks; its content may then make no sense.
    """
    from hostel.block.chain import open_chain

    return open_chain(Path(path), format, readonly, direct, allow_backing, locked)
