"""Content-addressed files: ``blobs/ALGORITHM/HEX``, each of which is what its name says, and what is on its way in.

A blob gets its name only when its digest and its size are right. What was begun and broke off stays in ``ingest/``
for the next attempt. Blobs aren't flushed to the disk: whoever reads one checks it again.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from hostel.base import atomic
from hostel.base.errors import ImageError
from hostel.images.oci.config import Descriptor, digest_of
from hostel.images.oci.reference import DIGEST

PIECE = 1 << 20


class Blobs:
    """Those in ``folder``, which is an image layout's."""

    def __init__(self, folder: Path, ingest: Path | None = None) -> None:
        self.folder = folder
        self.ingest = ingest or folder.parent / "ingest"

    def path(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ImageError(f"{digest[:100]!r} is no digest")
        return self.folder.joinpath(*digest.split(":"))

    def has(self, blob: Descriptor) -> bool:
        try:
            return self.path(blob.digest).stat().st_size == blob.size
        except FileNotFoundError:
            return False

    def drop_damaged(self, blob: Descriptor) -> bool:
        """Removes a blob that isn't what its name says, as after a crash of the host; whether it was so."""
        algorithm, _, wanted = blob.digest.partition(":")
        made = hashlib.new(algorithm)
        with self.open(blob) as file:
            while data := file.read(PIECE):
                made.update(data)
        whole = made.hexdigest() == wanted
        if not whole:
            self.path(blob.digest).unlink(missing_ok=True)
        return not whole

    def open(self, blob: Descriptor) -> BinaryIO:
        """To read; its size is right, and its hash not yet checked."""
        try:
            file = open(self.path(blob.digest), "rb")
        except FileNotFoundError:
            raise ImageError(f"the blob {blob.digest} isn't here; 'hostel image pull' brings it again") from None
        except OSError as error:
            raise ImageError(f"the blob {blob.digest} can't be read: {error.strerror}") from error
        size = os.fstat(file.fileno()).st_size
        if size != blob.size:
            file.close()
            raise ImageError(f"the blob {blob.digest} has {size} bytes instead of {blob.size}")
        return file

    def read(self, blob: Descriptor, limit: int) -> bytes:
        """A short one, whole and checked."""
        if blob.size > limit:
            raise ImageError(f"the blob {blob.digest} has {blob.size} bytes; {limit} are more than such a one needs")
        with self.open(blob) as file:
            data = file.read(limit + 1)
        check(blob, data)
        return data

    def add(self, data: bytes, digest: str = "") -> str:
        """Keeps ``data``; its digest."""
        digest = digest or digest_of(data)
        path = self.path(digest)
        if not path.exists() or path.read_bytes() != data:  # it isn't, after a crash of the host
            atomic.write(path, data, durable=False)
        return digest

    def take(self, pieces: Iterable[bytes | memoryview], wanted: str = "") -> tuple[str, int]:
        """Keeps a stream, whose digest must be ``wanted`` if that is known; digest and size."""
        name = self.ingest / f"stream-{os.urandom(8).hex()}"
        algorithm = wanted.partition(":")[0] or "sha256"
        made, size = hashlib.new(algorithm), 0
        with atomic.told(name):
            self.ingest.mkdir(parents=True, exist_ok=True)
            try:
                with open(name, "xb") as file:
                    for piece in pieces:
                        file.write(piece)
                        made.update(piece)
                        size += len(piece)
                digest = f"{algorithm}:{made.hexdigest()}"
                if wanted and digest != wanted:
                    raise ImageError(f"a blob is damaged: its hash is {digest} instead of {wanted}; it wasn't kept")
                self.place(name, digest)
            finally:
                name.unlink(missing_ok=True)
        return digest, size

    def part(self, digest: str) -> Path:
        """Where a blob that is on its way in is collected."""
        return self.ingest / digest.replace(":", "-")

    def place(self, name: Path, digest: str) -> None:
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.rename(name, path)

    @contextlib.contextmanager
    def locked(self, digest: str) -> Iterator[None]:
        """While a blob or a layer is brought in; others that want the same wait."""
        lock = self.ingest / f"{digest.replace(':', '-')}.lock"
        with atomic.locked(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)

    def all(self) -> Iterator[str]:
        for path in self.folder.glob("*/*"):
            digest = f"{path.parent.name}:{path.name}"
            if DIGEST.fullmatch(digest):
                yield digest


def check(blob: Descriptor, data: bytes) -> None:
    if len(data) != blob.size or digest_of(data, blob.digest.partition(":")[0]) != blob.digest:
        raise ImageError(f"something isn't what it should be: the hash of {blob.digest} is another; nothing was kept")
