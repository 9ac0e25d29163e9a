"""One layer while it is unpacked."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hostel.base import atomic
from hostel.base.errors import HostelError, ImageError
from hostel.images.oci.compression import Unpacking
from hostel.images.oci.layers import Layer, Layers
from hostel.images.oci.limits import Limits
from hostel.images.oci.settle import Below, aliases, settle
from hostel.images.oci.unpack import Unpacked, Unpacker

_ROUNDS = 4  # of links in lower layers that lead to links


class Work:
    """From its blob into a folder of its own, and from there into its place."""

    def __init__(self, layers: Layers, layer: Layer, limits: Limits | None) -> None:
        self.layers, self.layer, self.limits = layers, layer, limits or Limits()
        self.folder: Path | None = None
        self.result: Unpacked | None = None
        self.stopped = False

    def unpack_when(self, ready: Callable[[Layer], object]) -> None:
        ready(self.layer)
        try:
            self.unpack()
        except ImageError as error:
            if not self.stopped and self.layers.blobs.drop_damaged(self.layer.blob):
                raise ImageError(
                    f"the blob {self.layer.blob.digest} was damaged on the disk, and was removed; 'hostel image pull'"
                    " brings it again"
                ) from error
            raise

    def unpack(self, links: dict[bytes, bytes] | None = None) -> None:
        if self.stopped:
            return
        self.remove()
        self.folder = atomic.new_folder(self.layers.folder, f".{self.layers.path(self.layer).name}.")
        root = self.folder / "fs"
        root.mkdir(mode=0o755)
        number = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        algorithm = self.layer.diff_id.partition(":")[0]
        try:
            with self.layers.blobs.open(self.layer.blob) as file:
                stream = Unpacking(file, self.limits, algorithm)
                try:
                    self.result = Unpacker(number, self.limits, aliases=links).unpack(self._watched(stream))
                    digest = stream.digest
                finally:
                    stream.close()
        finally:
            os.close(number)
        if digest != self.layer.diff_id:
            raise ImageError(
                f"a layer's content isn't what the image says (its hash is {digest} instead of {self.layer.diff_id});"
                " nothing was kept"
            )

    def _watched(self, stream: Unpacking) -> Iterator[bytes]:
        for piece in stream:
            if self.stopped:
                raise ImageError("another layer couldn't be unpacked")
            yield piece

    def settle(self, lower: list[Layer]) -> None:
        """With those below it in their places, into its own."""
        with contextlib.ExitStack() as stack:
            numbers = []
            for path in self.layers.lower(lower):
                numbers.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                stack.callback(os.close, numbers[-1])
            assert self.folder and self.result
            below = Below(numbers)
            known: dict[bytes, bytes] = {}
            for _ in range(_ROUNDS):
                new = aliases(self.result.needs, below)
                if not new:
                    break
                known |= new
                self.unpack(known)
            done = self.result
            root = os.open(self.folder / "fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root)
            settle(root, done.needs, below)
        self.layers.keep(self.layer, self.folder, done)
        self.folder = None

    def stop(self) -> None:
        self.stopped = True

    def remove(self) -> None:
        if self.folder:
            try:
                shutil.rmtree(self.folder)
            except OSError as error:
                raise HostelError(f"can't remove {self.folder}: {error.strerror}") from error
            self.folder = None
