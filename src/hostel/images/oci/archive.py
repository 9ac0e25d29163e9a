"""Images in one tar file: oci-archive (a layout, packed) and docker-archive (what ``docker save`` writes), from files
and streams, packed or not.

A stream can't be read twice, and its index may come last: every file in it is kept by its digest as it passes, and
what no image turns out to need is removed again.
"""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from hostel.base import atomic
from hostel.base.errors import ImageError
from hostel.images.oci import config as spec
from hostel.images.oci import layout, reference, tar
from hostel.images.oci.blobs import Blobs
from hostel.images.oci.compression import pieces
from hostel.images.oci.config import Descriptor, Manifest, Platform
from hostel.images.oci.store import HOST, Image, Store

FORMATS = ("oci-archive", "docker-archive", "oci")
_FILES = 100_000  # in an archive; an image has a few for each layer


class Saved(msgspec.Struct, rename="pascal"):
    """An entry of docker-archive's manifest.json."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


def load(store: Store, file: BinaryIO, what: str, wanted: Platform = HOST, tag: str = "") -> list[Image]:
    """The images in the tar stream ``file``."""
    try:
        with store.using():
            names, links = _keep(store, file, what)
            for name, target in links.items():
                names[name] = _followed(target, links, names, what)
            if "oci-layout" in names and "index.json" in names:
                index = _read(store, names["index.json"])
                return layout.take(store, store.blobs, index, what, wanted, tag)
            if "manifest.json" in names:
                return _docker(store, names, what)
            raise ImageError(f"{what} has no image in it: neither index.json (OCI) nor manifest.json (Docker)")
    finally:
        store.sweep()


def _keep(store: Store, file: BinaryIO, what: str) -> tuple[dict[str, Descriptor], dict[str, str]]:
    """All files of the stream, by name, as blobs; and links among them, which Docker made of equal layers."""
    names: dict[str, Descriptor] = {}
    links: dict[str, str] = {}
    reader = tar.entries(file)
    for entry in reader:
        name = os.path.normpath(os.fsdecode(entry.name)).lstrip("/")
        if entry.kind == tar.REGULAR and entry.sparse is None:
            digest, size = store.blobs.take(reader.content())
            names[name] = Descriptor("", digest, size)
        elif entry.kind == tar.SYMLINK:
            links[name] = os.path.normpath(os.path.join(os.path.dirname(name), os.fsdecode(entry.link)))
        elif entry.kind == tar.LINK:
            links[name] = os.path.normpath(os.fsdecode(entry.link)).lstrip("/")
        if len(names) + len(links) > _FILES:
            raise ImageError(f"{what} has more than {_FILES} files; no archive of images has so many")
    return names, links


def _followed(name: str, links: dict[str, str], names: dict[str, Descriptor], what: str) -> Descriptor:
    for _ in range(40):
        if name in names:
            return names[name]
        if name not in links:
            break
        name = links[name]
    raise ImageError(f"{what} has a link to {name!r}, which isn't in it")


def _read(store: Store, blob: Descriptor) -> bytes:
    return store.blobs.read(blob, spec.CONFIG_LIMIT)


def _docker(store: Store, names: dict[str, Descriptor], what: str) -> list[Image]:
    saved = spec.decode(_read(store, names["manifest.json"]), list[Saved], f"{what}'s manifest.json")
    found = []
    for one in saved:
        try:
            config = names[os.path.normpath(one.config)]
            layers = [names[os.path.normpath(path)] for path in one.layers]
        except KeyError as error:
            raise ImageError(f"{what} lacks {error.args[0]!r}, which its manifest.json names") from None
        manifest = Manifest(2, Descriptor(spec.OCI_CONFIG, config.digest, config.size), [], spec.OCI_MANIFEST)
        for layer in layers:
            with store.blobs.open(layer) as file:
                suffix = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}.get(file.read(2), "")
            manifest.layers.append(Descriptor(spec.OCI_LAYER + suffix, layer.digest, layer.size))
        spec.image_config(_read(store, config), manifest, what)
        data = spec.encode(manifest)
        entry = Descriptor(spec.OCI_MANIFEST, store.blobs.add(data), len(data))
        tags = [reference.parse(name) for name in one.repo_tags or ()]
        for name in tags or (None,):
            store.name(entry, name)
        found.append(store.load(entry, [str(name) for name in tags]))
    return found


# -- writing


def save(images: list[Image], file: BinaryIO, form: str) -> None:
    """The images as one tar stream, the same bytes each time."""
    try:
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as out:
            if form == "oci-archive":
                _save_oci(images, out)
            else:
                _save_docker(images, out)
    except OSError as error:
        raise ImageError(f"can't write the archive: {error.strerror}") from error


def _put(out: tarfile.TarFile, name: str, size: int, content: BinaryIO) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    out.addfile(info, content)


def _put_bytes(out: tarfile.TarFile, name: str, data: bytes) -> None:
    _put(out, name, len(data), io.BytesIO(data))


def _save_oci(images: list[Image], out: tarfile.TarFile) -> None:
    _put_bytes(out, "oci-layout", spec.LAYOUT)
    _put_bytes(out, "index.json", layout.index_of(images))
    done: set[str] = set()
    for image in images:
        for blob in (image.entry, image.manifest.config, *image.manifest.layers):
            if blob.digest not in done:
                done.add(blob.digest)
                with image.store.blobs.open(blob) as source:
                    _put(out, f"blobs/{blob.digest.replace(':', '/')}", blob.size, source)


def _save_docker(images: list[Image], out: tarfile.TarFile) -> None:
    """Layers are unpacked, as ``docker save`` does: what reads these need not know zstd."""
    saved = []
    done: set[str] = set()
    for image in images:
        config = f"{image.id.partition(':')[2]}.json"
        paths = [f"{layer.diff_id.partition(':')[2]}/layer.tar" for layer in image.layers]
        tags = [reference.parse(name) for name in image.names]
        repo_tags = [name.familiar for name in tags if name.tag and not name.digest]
        saved.append(Saved(config, paths, repo_tags))
        if config not in done:
            done.add(config)
            _put_bytes(out, config, image.store.blobs.read(image.manifest.config, spec.CONFIG_LIMIT))
        for layer, path in zip(image.layers, paths, strict=True):
            if path not in done:
                done.add(path)
                with _unpacked(image.store.blobs, layer.blob, layer.diff_id) as (source, size):
                    _put(out, path, size, source)
    _put_bytes(out, "manifest.json", spec.encode(saved))


@contextlib.contextmanager
def _unpacked(blobs: Blobs, blob: Descriptor, diff_id: str) -> Iterator[tuple[BinaryIO, int]]:
    """A layer's tar, whose size must be known before it is written, and its hash right."""
    with blobs.open(blob) as packed:
        head = packed.read(2)
        packed.seek(0)
        if head not in (b"\x1f\x8b", b"\x28\xb5"):
            yield packed, blob.size
            return
        name = blobs.ingest / f"stream-{os.urandom(8).hex()}"
        with atomic.told(name):
            blobs.ingest.mkdir(parents=True, exist_ok=True)
            with open(name, "x+b") as file:
                name.unlink()
                made = spec.hasher(diff_id)
                for piece in pieces(packed):
                    made.update(piece)
                    file.write(piece)
                if made.hexdigest() != diff_id.partition(":")[2]:
                    raise ImageError(f"a layer's content isn't what the image says ({diff_id}); pull the image again")
                size = file.tell()
                file.seek(0)
                yield file, size


def source(store: Store, path: str, stdin: BinaryIO, wanted: Platform = HOST) -> list[Image]:
    """As ``read``; ``-`` is a stream."""
    return load(store, stdin, "what came in", wanted) if path == "-" else read(store, path, wanted)


def read(store: Store, path: str, wanted: Platform = HOST) -> list[Image]:
    """What ``path`` has: a layout's folder (with ``:TAG``, one image of it) or an archive."""
    rest, tag = path, ""
    if not os.path.exists(path) and ":" in path:
        rest, _, tag = path.rpartition(":")
    try:
        if os.path.isdir(rest):
            return layout.load(store, Path(rest), wanted, tag)
        with open(rest, "rb") as file:
            return load(store, file, rest, wanted, tag)
    except OSError as error:
        raise ImageError(f"can't read {rest}: {error.strerror}") from error
