"""Reading a Debian binary package: an ``ar`` archive with two tars in it (deb(5)), without dpkg.

Nothing is ever unpacked by the names in the archive: a caller asks for members and gets bytes, so a
hostile path has nowhere to go. Symbolic links are told as such and never followed.
"""

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostel.base.errors import ImageError

MAGIC = b"!<arch>\n"
UNPACKED_LIMIT = 1 << 30  # bytes; Debian's largest kernel package unpacks to 500 MB


@dataclass(frozen=True)
class Member:
    """A file (or, with ``link``, a symbolic link) of the package; ``path`` has no leading slash."""

    path: str
    mode: int
    data: bytes
    link: str = ""


def sections(path: Path) -> Iterator[tuple[str, bytes]]:
    """The members of an ar archive. Raises ImageError when it isn't one."""
    try:
        with open(path, "rb") as file:
            if file.read(8) != MAGIC:
                raise ImageError(f"{path} is no Debian package")
            while header := file.read(60):
                if len(header) < 60 or header[58:] != b"`\n":
                    raise ImageError(f"{path} is a damaged Debian package")
                size = int(header[48:58])
                data = file.read(size)
                if len(data) != size:
                    raise ImageError(f"{path} is cut short")
                yield header[:16].decode("ascii").rstrip(" /"), data
                file.read(size % 2)
    except (OSError, ValueError) as error:
        raise ImageError(f"can't read the package {path}: {error}") from error


def unpacked(name: str, data: bytes) -> bytes:
    """Undoes the compression that the ending of ``name`` tells."""
    kind = name.rpartition(".")[2]
    try:
        if kind == "xz":
            return bounded(name, lzma.LZMADecompressor(), data)
        if kind == "gz":
            return bounded(name, zlib.decompressobj(wbits=31), data)
        if kind == "zst":
            return unpacked_zstd(name, data)
        if kind in ("tar", "ko"):
            return data
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise ImageError(f"{name} is damaged: {error}") from error
    raise ImageError(f"{name} is compressed in a way that hostel doesn't know")


def bounded(name: str, decompressor, data: bytes) -> bytes:
    result = decompressor.decompress(data, UNPACKED_LIMIT)
    if not decompressor.eof:
        raise ImageError(f"{name} is cut short or unpacks to more than {UNPACKED_LIMIT >> 20} MiB")
    return result


def unpacked_zstd(name: str, data: bytes) -> bytes:
    """Ubuntu's packages and some kernels' modules; Debian's are xz."""
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            result = reader.read(UNPACKED_LIMIT + 1)
    except zstandard.ZstdError as error:
        raise ImageError(f"{name} is damaged: {error}") from error
    if len(result) > UNPACKED_LIMIT:
        raise ImageError(f"{name} unpacks to more than {UNPACKED_LIMIT >> 20} MiB")
    return result


def members(path: Path, wanted) -> Iterator[Member]:
    """The files and symbolic links for whose path ``wanted(path)`` is true.

    A path that climbs out (``..``) or isn't normal makes the package refused, wanted or not.
    """
    for name, data in sections(path):
        if not name.startswith("data.tar"):
            continue
        try:
            with tarfile.open(fileobj=io.BytesIO(unpacked(name, data)), mode="r:") as archive:
                for entry in archive:
                    where = entry.name.removeprefix("./").strip("/")
                    if entry.name.startswith("/") or ".." in where.split("/"):
                        raise ImageError(f"{path} holds the path {entry.name!r}: refused")
                    if not (entry.isreg() or entry.issym()) or not wanted(where):
                        continue
                    if entry.issym():
                        yield Member(where, 0o777, b"", entry.linkname)
                        continue
                    file = archive.extractfile(entry)
                    assert file is not None
                    yield Member(where, entry.mode & 0o777, file.read())
        except tarfile.TarError as error:
            raise ImageError(f"{path} is a damaged package: {error}") from error
        return
    raise ImageError(f"{path} is no Debian package: it has no data")
