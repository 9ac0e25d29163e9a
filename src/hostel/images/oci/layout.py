"""OCI image layouts in folders (image-spec 1.1, image-layout.md): read into the store, and written from it."""

import os
import shutil
from functools import partial
from pathlib import Path

from hostel.base import atomic
from hostel.base.errors import ImageError
from hostel.images.oci import config as spec
from hostel.images.oci import reference
from hostel.images.oci.blobs import Blobs
from hostel.images.oci.config import Descriptor, Index, Platform
from hostel.images.oci.store import HOST, Image, Store

_NAMES = ("io.containerd.image.name", spec.REF_NAME)  # containerd writes whole names into the first
_DEPTH = 4  # indexes in indexes


def load(store: Store, folder: Path, wanted: Platform = HOST, tag: str = "") -> list[Image]:
    """The images of the layout in ``folder``, or the one with this ``tag``."""
    if not (folder / "index.json").is_file():
        raise ImageError(f"{folder} is no OCI image layout: there is no index.json in it")
    return take(store, Blobs(folder / "blobs"), (folder / "index.json").read_bytes(), str(folder), wanted, tag)


def take(store: Store, source: Blobs, index: bytes, what: str, wanted: Platform = HOST, tag: str = "") -> list[Image]:
    """Images from a layout's blobs into the store: each blob is checked."""
    top = spec.decode(index, Index, f"{what}'s index.json")
    entries = [entry for entry in top.manifests if not tag or (entry.annotations or {}).get(spec.REF_NAME) == tag]
    if not entries:
        tags = sorted(filter(None, ((entry.annotations or {}).get(spec.REF_NAME) for entry in top.manifests)))
        raise ImageError(f"{what} has no image '{tag}'; it has {', '.join(tags) or 'none that is named'}")
    found = []
    with store.using():
        for entry in entries:
            chosen = entry
            for _ in range(_DEPTH):
                if chosen.media_type not in spec.INDEXES:
                    break
                data = source.read(chosen, spec.MANIFEST_LIMIT)
                chosen = spec.choose(spec.decode(data, Index, f"an index of {what}"), wanted, what)
            found.append(_take_one(store, source, chosen, _name(entry, what), what))
    return found


def _take_one(store: Store, source: Blobs, entry: Descriptor, name: reference.Reference | None, what: str) -> Image:
    data = source.read(entry, spec.MANIFEST_LIMIT)
    manifest = spec.manifest(data, f"an image of {what}")
    config = source.read(manifest.config, spec.CONFIG_LIMIT)
    spec.image_config(config, manifest, f"an image of {what}")
    store.blobs.add(config, manifest.config.digest)
    for layer in manifest.layers:
        if not store.blobs.has(layer):
            with source.open(layer) as file:
                store.blobs.take(iter(partial(file.read, 1 << 20), b""), layer.digest)
    store.blobs.add(data, entry.digest)
    store.name(entry, name)
    return store.load(entry, [str(name)] if name else [])


def _name(entry: Descriptor, what: str) -> reference.Reference | None:
    """What the image is called; where a layout has a tag only, after the folder or file that it is in."""
    for key in _NAMES:
        if text := (entry.annotations or {}).get(key):
            whole = text if "/" in text or ":" in text else f"{_stem(what)}:{text}"
            try:
                return reference.parse(whole)
            except ImageError:
                continue
    return None


def _stem(what: str) -> str:
    return os.path.basename(what).partition(".")[0].lower() or "image"


def save(images: list[Image], folder: Path) -> None:
    """A layout of these images. Raises where ``folder`` has something else in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ImageError(f"{folder} is there already, and not empty")
    with atomic.told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for image in images:
            for blob in (image.entry, image.manifest.config, *image.manifest.layers):
                path = Blobs(folder / "blobs").path(blob.digest)
                path.parent.mkdir(parents=True, exist_ok=True)
                with image.store.blobs.open(blob) as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        (folder / "oci-layout").write_bytes(spec.LAYOUT)
        (folder / "index.json").write_bytes(index_of(images))


def index_of(images: list[Image]) -> bytes:
    """index.json: an entry for each name, with the tag (as skopeo and umoci look for) and the whole name."""
    entries = []
    for image in images:
        for name in image.names or ("",):
            entry = Descriptor(image.entry.media_type, image.digest, image.entry.size)
            entry.platform = image.config.platform
            if name:
                tag = reference.parse(name).tag
                entry.annotations = {_NAMES[0]: name, **({spec.REF_NAME: tag} if tag else {})}
            entries.append(entry)
    return spec.encode(Index(2, entries, media_type=spec.OCI_INDEX))
