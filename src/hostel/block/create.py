"""New images, which appear under their names whole or not at all."""

import contextlib
import dataclasses
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hostel.base import atomic
from hostel.base.errors import BlockError
from hostel.base.linux.syscall import syscall
from hostel.base.units import parse_size
from hostel.block import raw
from hostel.block.chain import locate, open_chain
from hostel.block.disk import FORMATS, Disk
from hostel.block.file import File
from hostel.block.qcow2 import create as qcow2
from hostel.block.qcow2.disk import Qcow2

_FALLOCATE = 285
PREALLOCATIONS = ("off", "metadata", "falloc", "full")


@contextlib.contextmanager
def appearing(path: Path, force: bool = False) -> Iterator[Path]:
    """A name to make a file under, in the folder of ``path``, which it becomes when the block ends well. An image
    that is there is replaced only with ``force``, and only if nobody has it open."""
    path = Path(path)
    with atomic.told(path):
        if path.exists():
            if not path.is_file():
                raise BlockError(f"{path} is there and is no file", errno.EEXIST)
            if not force:
                raise _exists(path)
            File(path, writable=True).close()
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        new = folder / path.name
        try:
            yield new
            atomic.sync_file(new)
            if force:
                os.rename(new, path)
            else:
                os.link(new, path)             # unlike rename, this never replaces
        except FileExistsError:
            raise _exists(path) from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(new)
            os.rmdir(folder)
        atomic.sync_folder(path.parent)


def _exists(path: Path) -> BlockError:
    return BlockError(f"{path} exists already; --force replaces it", errno.EEXIST)


def parse_options(format: str, words: Mapping[str, str]) -> dict[str, Any]:
    """Options by QEMU's names, as text, for ``create``."""
    known = {field.name: field.default for field in dataclasses.fields(qcow2.Options)} if format == "qcow2" else {}
    out: dict[str, Any] = {}
    for name, text in words.items():
        if name == "preallocation":
            if text not in PREALLOCATIONS:
                raise BlockError(f"preallocation is one of {', '.join(PREALLOCATIONS)}", errno.EINVAL)
            out[name] = text
        elif name not in known:
            raise BlockError(f"{format} has no option '{name}'", errno.EINVAL)
        elif isinstance(known[name], bool):
            if text not in ("on", "off", "true", "false"):
                raise BlockError(f"{name} is on or off", errno.EINVAL)
            out[name] = text in ("on", "true")
        elif name == "refcount_bits":
            if not text.isascii() or not text.isdigit():
                raise BlockError("refcount_bits is a number", errno.EINVAL)
            out[name] = int(text)
        elif name == "cluster_size":
            out[name] = parse_size(text)
        else:
            out[name] = text
    return out


def create_image(
    path: Path, format: str, size: int | None, options: Mapping[str, Any] | None = None, force: bool = False,
    allow_backing: bool = False,
) -> int:
    """A new image at ``path``, of the size of its backing file where none is given; its size."""
    options = dict(options or {})
    if options.get("backing_file"):
        if not options.get("backing_fmt"):
            raise BlockError("say which format the backing file has (-F FORMAT): hostel doesn't guess", errno.EINVAL)
        below = open_chain(
            locate(Path(path), options["backing_file"]), options["backing_fmt"], True, allow_backing=allow_backing)
        size = below.size if size is None else size
        below.close()
    if size is None:
        raise BlockError("say how large the disk shall be", errno.EINVAL)
    with contextlib.ExitStack() as stack:
        if options.get("data_file"):
            data = options["data_file"] = os.path.abspath(options["data_file"])
            with atomic.told(Path(data)), open(data, "xb") as file:
                file.truncate(size)
            stack.callback(os.unlink, data)
        with appearing(path, force) as new:
            make(new, format, size, options)
        stack.pop_all()
    return size


def make(path: Path, format: str, size: int, options: Mapping[str, Any]) -> None:
    """The image itself, where there is no file yet."""
    if format not in FORMATS:
        raise BlockError(f"'{format}' is no format of disk images; there are {' and '.join(FORMATS)}", errno.EINVAL)
    options = dict(options)
    preallocation = options.pop("preallocation", "off")
    if format == "raw":
        if preallocation == "metadata":
            raise BlockError("a raw image has no metadata to preallocate", errno.EINVAL)
        raw.create(path, size)
    else:
        if options.get("backing_file") and preallocation != "off":
            raise BlockError("an image above another isn't preallocated: it would hide what is below", errno.EINVAL)
        qcow2.create(path, size, qcow2.Options(**options))
        if preallocation != "off" or options.get("data_file_raw"):
            file = File(path, writable=True)
            disk = Qcow2(file, False)
            try:
                if disk.data_name is not None:
                    disk.set_data_file(File(disk.data_name, writable=True))
                disk.preallocate()
            finally:
                disk.close()
    if preallocation in ("falloc", "full"):
        reserve(path, written=preallocation == "full")


def reserve(path: Path, written: bool) -> None:
    """Have the file system give the whole file its space; ``written``: by zeros where there are holes."""
    file = File(path, writable=True)
    try:
        if not written:
            with atomic.told(path):
                syscall(_FALLOCATE, file.fd, 0, 0, file.size)
            return
        at, size = 0, file.size
        zeros = memoryview(bytes(1 << 20))
        while at < size:
            data, run = file.data_run(at, size - at)
            for start in range(at, at + run if not data else at, len(zeros)):
                file.writev(start, [zeros[: min(len(zeros), at + run - start)]])
            at += run
        file.sync()
    finally:
        file.close()


def open_target(path: Path, format: str) -> Disk:
    """What ``make`` made, to be written."""
    file = File(path, writable=True)
    return Qcow2(file, False) if format == "qcow2" else raw.Raw(file, False)
