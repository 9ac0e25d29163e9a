"""Changing chains of images: a delta put on top, a top written into what is below, another image put below.

A **delta** freezes a disk: from then on its top is only read, and a new qcow2 image above it takes the writes. That is
a snapshot of the disk; the frozen images can have any number of deltas. ``commit`` is the way back.
"""

import os
from collections.abc import Callable
from pathlib import Path

from hostel.base.errors import BlockError
from hostel.block.chain import MAX_DEPTH, locate, open_chain
from hostel.block.create import appearing
from hostel.block.disk import Disk
from hostel.block.file import File
from hostel.block.qcow2 import create as qcow2
from hostel.block.qcow2.disk import Qcow2

PIECE = 1 << 20           # bytes that are copied at once

Progress = Callable[[int, int], None]


def put_delta(disk: Disk, path: Path, cluster_size: int = 1 << 16) -> Disk:
    """The disk that goes on where ``disk`` stands, its writes in a new image at ``path``. What was written is safe
    before the new image is there; ``disk`` is below it then, read only, and is closed with it."""
    path = Path(path)
    if len(disk.chain()) >= MAX_DEPTH:
        raise BlockError(f"{disk.path} stands on {MAX_DEPTH - 1} images already; 'hostel disk commit' makes it fewer")
    disk.flush()
    options = qcow2.Options(cluster_size, backing_file=relative(disk.path, path.parent), backing_fmt=disk.format)
    with appearing(path) as new:
        qcow2.create(new, disk.size, options)
    delta = Qcow2(File(path, writable=True, direct=disk.file.alignment > 1), False)
    stack(disk, delta)
    return delta


def stack(disk: Disk, delta: Disk) -> None:
    """Put the empty image ``delta`` on top of ``disk``, which is only read from then on."""
    if delta.size != disk.size:
        raise BlockError(f"{delta.path} has {delta.size} bytes, what it is to stand on {disk.size}")
    freeze(disk)
    delta.backing = disk


def go_back(top: Disk, layer: Disk, delta: Disk) -> None:
    """Put the empty image ``delta`` on ``layer``, one of those below ``top``: what is above that is given up."""
    while top is not layer:
        below, top.backing, top.readonly = top.backing, None, True  # nothing of it need be written down
        top.close()
        assert below is not None
        top = below
    stack(layer, delta)


def freeze(disk: Disk) -> None:
    """Only read from now on, here and elsewhere."""
    if disk.readonly:
        return
    disk.finish()
    disk.readonly = True
    for file in {disk.file, getattr(disk, "data", disk.file)}:
        file.reader()


def relative(target: Path, folder: Path) -> str:
    """A name for ``target`` in an image in ``folder``: short beside it, so that both can move; else absolute."""
    target, folder = Path(os.path.abspath(target)), Path(os.path.abspath(folder))
    return str(target.relative_to(folder)) if target.is_relative_to(folder) else str(target)


def _open_below(top: Disk, depth: int) -> Disk:
    """The image ``depth`` below the top, now to be written too."""
    above = top.chain()[depth - 1]
    base = above.backing
    assert base is not None
    further, base.backing = base.backing, None
    base.close()
    # alone: what is below it is open already
    above.backing = base = open_chain(base.path, base.format, alone=True, allow_backing=True)
    base.backing = further
    return base


def commit(top: Disk, depth: int = 1, keep: bool = False, progress: Progress | None = None) -> None:
    """Write what the images above the ``depth``-th below the top say into that one; it then reads as the top does.
    The top is emptied, unless ``keep``, or there are others in between, which make no sense any more."""
    if not 0 < depth < len(top.chain()):
        raise BlockError(f"{top.path} has no backing file to commit into")
    base = _open_below(top, depth)
    if base.size < top.size:
        base.resize(top.size)
    for extent in top.extents(0, top.size):
        if extent.depth < depth and extent.present:
            if extent.zero:
                base.write_zeroes(extent.start, extent.length)
            else:
                _copy(top, base, extent.start, extent.length)
        if progress:
            progress(extent.start + extent.length, top.size)
    base.flush()
    if depth == 1 and not keep and isinstance(top, Qcow2):
        top.empty()


def _copy(source: Disk, target: Disk, offset: int, length: int) -> None:
    buffer = memoryview(bytearray(min(length, PIECE)))
    for at in range(offset, offset + length, PIECE):
        view = buffer[: min(PIECE, offset + length - at)]
        source.readv(at, [view])
        target.writev(at, [view])


def rebase(
    top: Disk, name: str | None, format: str | None, unsafe: bool = False, allow_backing: bool = False,
    progress: Progress | None = None,
) -> None:
    """Put another image below ``top``, or none. What the top has from below is kept: where the old and the new one
    differ it is written into the top. ``unsafe``: only the name is changed, for a file that has moved."""
    if not isinstance(top, Qcow2):
        raise BlockError(f"{top.path}: an image of format {top.format} has no backing file")
    if name and not format:
        raise BlockError("say which format the backing file has (-F FORMAT): hostel doesn't guess")
    if not unsafe:
        new = open_chain(locate(top.path, name), format, True, allow_backing=allow_backing) if name else None
        try:
            if new and any(disk.file.identity == top.file.identity for disk in new.chain()):
                raise BlockError(f"{name} stands on {top.path}")
            _keep_differences(top, new, progress)
        finally:
            if new:
                new.close()
        top.flush()
    top.set_backing(name or None, format)


def _keep_differences(top: Qcow2, new: Disk | None, progress: Progress | None) -> None:
    ours, theirs = memoryview(bytearray(PIECE)), memoryview(bytearray(PIECE))
    step = max(PIECE // top.cluster_size, 1) * top.cluster_size
    for extent in list(top.extents(0, top.size)):
        at, end = extent.start, extent.start + extent.length
        if extent.depth == 0 and extent.present:
            at = end
        while at < end:
            length = min(PIECE, end - at, step - at % step)
            top.readv(at, [ours[:length]])
            have = max(0, min(length, new.size - at)) if new else 0
            if new and have:
                new.readv(at, [theirs[:have]])
            theirs[have:length] = bytes(length - have)
            if ours[:length].tobytes() != theirs[:length].tobytes():
                top.writev(at, [ours[:length]])
            at += length
        if progress:
            progress(end, top.size)
