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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hostel.base import atomic
from hostel.base.errors import ImageError
from hostel.images.oci.blobs import Blobs
from hostel.images.oci.config import Descriptor
from hostel.images.oci.limits import Limits
from hostel.images.oci.unpack import Owners, opaque_xattr

if TYPE_CHECKING:
    from hostel.images.oci.unpack import Unpacked

WORKERS = 4
FORM = 1  # of what unpacking makes; another one is made anew
_FLUSHED = "flushed"  # a file beside layer.json
_FLUSH = f'sync -f "$0" && for path; do : > "$path/{_FLUSHED}"; done'
_SETTLED = 60.0  # seconds after which the kernel has written most of it anyway (vm.dirty_expire_centisecs is 30 s)


class Note(msgspec.Struct):
    """layer.json."""

    diff_id: str
    size: int
    entries: int
    devices: int  # nodes that were left out
    opaque: bool  # hides all layers below
    xattr: str  # overlayfs's name for opaque folders: a mount must fit it
    owners: bool  # whether files have the owners that the layer says
    boot: str  # in which it was unpacked
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
        believed = note.boot == boot_id() or self.path(layer).joinpath(_FLUSHED).exists()
        return note if fits and believed else None

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
        from concurrent.futures import Future, ThreadPoolExecutor

        from hostel.images.oci.work import Work

        with contextlib.ExitStack() as stack, atomic.told(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for chain in sorted({layer.chain_id for layer in wanted}):  # in one order: no two wait for each other
                stack.enter_context(self.blobs.locked(f"layer-{chain}"))
            wanted = [layer for layer in layers if not self.note(layer)]
            works = {layer.chain_id: Work(self, layer, limits) for layer in wanted}
            for work in works.values():
                stack.callback(work.remove)
            pool = stack.enter_context(ThreadPoolExecutor(WORKERS, "unpack"))
            stack.callback(pool.shutdown, cancel_futures=True)
            futures: dict[str, Future] = {}
            for layer in layers:
                if layer.chain_id in works:
                    futures[layer.chain_id] = pool.submit(works[layer.chain_id].unpack_when, ready)
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

    def keep(self, layer: Layer, folder: Path, done: "Unpacked") -> None:
        """``folder``, in which a layer was unpacked, becomes its place."""
        note = Note(
            layer.diff_id, done.size, done.entries, done.devices, done.opaque, opaque_xattr(), Owners.here().keep,
            boot_id(),
        )  # fmt: skip
        (folder / "layer.json").write_bytes(msgspec.json.encode(note))
        path = self.path(layer)
        if path.exists():
            self.remove(path)
        os.rename(folder, path)

    def flush(self, layers: list[Layer]) -> None:
        """Has layers outlive a crash, at a time at which that costs little; doesn't wait for it. No thread: whoever
        starts a container may need to be without any."""
        paths = [path for layer in layers if not (path := self.path(layer)).joinpath(_FLUSHED).exists()]
        with contextlib.suppress(OSError):
            if paths and time.time() - max((path / "layer.json").stat().st_mtime for path in paths) >= _SETTLED:
                command = ["setsid", "-f", "sh", "-c", _FLUSH, str(self.folder), *map(str, paths)]
                os.waitpid(os.posix_spawnp(command[0], command, os.environ), 0)

    def all(self) -> Iterator[tuple[str, Path]]:
        """Chain IDs and folders of what is there."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if not path.name.startswith("."):
                    yield path.name.replace("-", ":", 1), path

    def remove(self, path: Path) -> None:
        aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        os.rename(path, aside)
        atomic.remove_folder(aside)

    def clear(self) -> None:
        """Removes what killed processes left half made. Only while nobody works here."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*"):
                atomic.remove_folder(path)
