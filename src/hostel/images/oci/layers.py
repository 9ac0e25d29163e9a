"""Unpacked layers: ``layers/CHAIN/fs`` with ``layer.json`` beside it, named by image-spec's chain ID.

Layers are unpacked side by side, each from a blob whose digest is right, into a folder that gets its name only when
the hash of what was unpacked is the one that the image's configuration says. Whoever needs a layer that another
process works on waits for it.

Nothing is flushed to the disk while somebody waits. A layer is believed in the boot in which it was unpacked, and
later only if it was flushed since (``flush``); otherwise it is unpacked again.
"""

import contextlib
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hostel.base import atomic
from hostel.base.errors import HostelError, ImageError
from hostel.base.linux.syscall import syscall
from hostel.images.oci.blobs import Blobs
from hostel.images.oci.compression import Unpacking
from hostel.images.oci.config import Descriptor
from hostel.images.oci.limits import Limits
from hostel.images.oci.settle import Below, aliases, settle
from hostel.images.oci.unpack import Owners, Unpacked, Unpacker, opaque_xattr

WORKERS = 4
FORM = 1  # of what unpacking makes; another one is made anew
_SYNCFS = 306
_SETTLED = 60.0  # seconds after which the kernel has written most of it anyway (vm.dirty_expire_centisecs is 30 s)
_ROUNDS = 4  # of links in lower layers that lead to links


class Note(msgspec.Struct):
    """layer.json."""

    diff_id: str
    size: int
    entries: int
    devices: int  # nodes that were left out
    opaque: bool  # hides all layers below
    xattr: str  # overlayfs's name for opaque folders: a mount must fit it
    owners: bool  # whether files have the owners that the layer says
    boot: str  # in which it was unpacked; empty: it was flushed
    form: int = FORM


@dataclass(frozen=True)
class Layer:
    """One of an image's layers."""

    blob: Descriptor
    diff_id: str
    chain_id: str


@functools.cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Layers:
    """Those in ``folder``."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self.folder = folder
        self.blobs = blobs

    def path(self, layer: Layer) -> Path:
        return self.folder / layer.chain_id.replace(":", "-")

    def note(self, layer: Layer) -> Note | None:
        """What is known of an unpacked layer; None where it must be unpacked (again)."""
        try:
            note = msgspec.json.decode((self.path(layer) / "layer.json").read_bytes(), type=Note)
        except (OSError, msgspec.MsgspecError):
            return None
        fits = note.form == FORM and note.xattr == opaque_xattr() and note.owners == Owners.here().keep
        return note if fits and note.boot in ("", boot_id()) else None

    def lower(self, layers: list[Layer]) -> list[Path]:
        """overlayfs's lower directories for unpacked layers, the uppermost first."""
        found = []
        for layer in reversed(layers):
            note = self.note(layer)
            if not note:
                raise ImageError(f"the layer {layer.chain_id} isn't unpacked")
            found.append(self.path(layer) / "fs")
            if note.opaque:
                break
        return found

    def unpack(
        self, layers: list[Layer], limits: Limits | None = None,
        ready: Callable[[Layer], object] = lambda layer: None, abort: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """Unpacks those that aren't yet; ``ready`` returns when a layer's blob is there, or soon after ``abort``."""
        wanted = [layer for layer in layers if not self.note(layer)]
        if not wanted:
            for layer in layers:
                ready(layer)
            return
        with contextlib.ExitStack() as stack, atomic.told(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for chain in sorted({layer.chain_id for layer in wanted}):  # in one order: no two wait for each other
                stack.enter_context(self.blobs.locked(f"layer-{chain}"))
            wanted = [layer for layer in layers if not self.note(layer)]
            works = {layer.chain_id: _Work(self, layer, limits) for layer in wanted}
            for work in works.values():
                stack.callback(work.remove)
            pool = stack.enter_context(ThreadPoolExecutor(WORKERS, "unpack"))
            stack.callback(pool.shutdown, cancel_futures=True)
            futures: dict[str, Future] = {}
            for layer in layers:
                if layer.chain_id in works:
                    futures[layer.chain_id] = pool.submit(_when_ready, works[layer.chain_id], ready)
                else:
                    ready(layer)
            try:
                below: list[Layer] = []
                for layer in layers:
                    if layer.chain_id in futures:
                        futures[layer.chain_id].result()
                        works[layer.chain_id].settle(below)
                    below.append(layer)
            except BaseException:
                for future in futures.values():
                    future.cancel()
                for work in works.values():
                    work.stop()
                abort()
                raise

    def flush(self, layers: list[Layer]) -> None:
        """Makes layers outlive a crash, at a time at which that costs little."""
        notes = [(layer, note) for layer in layers if (note := self.note(layer)) and note.boot]
        with contextlib.suppress(OSError):
            ages = [time.time() - (self.path(layer) / "layer.json").stat().st_mtime for layer, _ in notes]
            if not notes or min(ages) < _SETTLED:
                return
            number = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                syscall(_SYNCFS, number)
            finally:
                os.close(number)
            for layer, note in notes:
                note.boot = ""
                atomic.write(self.path(layer) / "layer.json", msgspec.json.encode(note), durable=False)

    def all(self) -> Iterator[tuple[str, Path]]:
        """Chain IDs and folders of what is there."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if not path.name.startswith("."):
                    yield path.name.replace("-", ":", 1), path

    def remove(self, path: Path) -> None:
        aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        os.rename(path, aside)
        shutil.rmtree(aside)

    def clear(self) -> None:
        """Removes what killed processes left half made. Only while nobody works here."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*"):
                shutil.rmtree(path, ignore_errors=True)


def _when_ready(work: "_Work", ready: Callable[[Layer], object]) -> None:
    ready(work.layer)
    work.unpack()


class _Work:
    """One layer while it is unpacked."""

    def __init__(self, layers: Layers, layer: Layer, limits: Limits | None) -> None:
        self.layers, self.layer, self.limits = layers, layer, limits or Limits()
        self.folder: Path | None = None
        self.result: Unpacked | None = None
        self.stopped = False

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
        note = Note(
            self.layer.diff_id, done.size, done.entries, done.devices, done.opaque, opaque_xattr(),
            Owners.here().keep, boot_id(),
        )  # fmt: skip
        (self.folder / "layer.json").write_bytes(msgspec.json.encode(note))
        path = self.layers.path(self.layer)
        if path.exists():
            self.layers.remove(path)
        os.rename(self.folder, path)
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
