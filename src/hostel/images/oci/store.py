"""The OCI images on this machine: ``HOME/images/oci``, itself an OCI image layout that others can read.

``index.json`` has the names, ``blobs/`` everything that has a digest, ``layers/`` what is unpacked, ``ingest/`` what
is on its way in, ``users/`` a file for each container that stands on layers.

Locks: who brings something in or uses it holds ``.use`` shared; who removes what nobody needs any more holds it
alone, and leaves it for another time where somebody is at work. ``.index`` is held while index.json is read and
replaced. In this order, and a blob's or a layer's own lock (``Blobs.locked``) between the two.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from hostel.base import atomic, paths
from hostel.base.errors import ImageError
from hostel.images.oci import config as spec
from hostel.images.oci import reference
from hostel.images.oci.blobs import Blobs
from hostel.images.oci.config import Descriptor, ImageConfig, Index, Manifest
from hostel.images.oci.layers import Layer, Layers
from hostel.images.oci.limits import Limits
from hostel.images.oci.users import Users

HOST = spec.Platform("amd64", "linux")
_ID = re.compile(r"(sha256:)?[0-9a-f]{4,64}")


@dataclass(frozen=True)
class Image:
    """An image whose manifest, configuration and layers' blobs are in the store."""

    store: "Store" = field(repr=False)
    names: tuple[str, ...]  # whole references
    entry: Descriptor  # of the manifest
    manifest: Manifest = field(repr=False)
    config: ImageConfig = field(repr=False)

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return self.entry.digest

    @property
    def id(self) -> str:
        """As Docker has it: the configuration's digest, which stays when layers are packed otherwise."""
        return self.manifest.config.digest

    @property
    def name(self) -> str:
        """The shortest name; the digest where it has none."""
        return reference.parse(self.names[0]).familiar if self.names else self.digest

    @property
    def size(self) -> int:
        """Bytes of its blobs."""
        return self.manifest.config.size + sum(layer.size for layer in self.manifest.layers)

    @cached_property
    def layers(self) -> list[Layer]:
        """The lowest first."""
        diff_ids = self.config.rootfs.diff_ids
        return [
            Layer(blob, diff_id, chain_id)
            for blob, diff_id, chain_id in zip(self.manifest.layers, diff_ids, spec.chain_ids(diff_ids), strict=True)
        ]

    def unpack(self, limits: Limits | None = None) -> list[Path]:
        """overlayfs's lower directories, the uppermost first; unpacked if need be."""
        with self.store.using():
            self.store.layers.unpack(self.layers, limits)
            self.store.layers.flush(self.layers)
            return self.store.layers.lower(self.layers)


class Store:
    """The store in ``folder`` (default: this machine's)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or paths.images() / "oci"
        self.blobs = Blobs(self.folder / "blobs")
        self.layers = Layers(self.folder / "layers", self.blobs)
        self.users = Users(self.folder / "users")
        self.disks = self.folder / "disks"  # of images/oci/vmdisk

    # -- locks

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """While blobs or layers must stay."""
        with self._use(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def _use(self, how: int) -> Iterator[None]:
        with atomic.told(self.folder):
            if not self.blobs.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in (self.blobs.folder, self.blobs.ingest):  # images may be secret
                    path.mkdir(mode=0o700, exist_ok=True)
            number = os.open(self.folder / ".use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, how)
            yield
        finally:
            os.close(number)

    # -- the index

    def index(self) -> Index:
        try:
            data = (self.folder / "index.json").read_bytes()
        except FileNotFoundError:
            return Index(2, [])
        except OSError as error:
            raise ImageError(f"{self.folder / 'index.json'} can't be read: {error.strerror}") from error
        return spec.decode(data, Index, str(self.folder / "index.json"))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Descriptor]]:
        """The index's entries, written back when the block ends well."""
        with atomic.locked(self.folder / ".index"):
            index = self.index()
            yield index.manifests
            layout = self.folder / "oci-layout"
            if not layout.exists():
                atomic.write(layout, spec.LAYOUT)
            index.media_type = spec.OCI_INDEX
            atomic.write(self.folder / "index.json", spec.encode(index))

    def images(self) -> list[Image]:
        """All that are whole, by name; those without a name last."""
        by_digest: dict[str, tuple[Descriptor, list[str]]] = {}
        for entry in self.index().manifests:
            names = by_digest.setdefault(entry.digest, (entry, []))[1]
            if name := name_of(entry):
                names.append(name)
        found = []
        for entry, names in by_digest.values():
            with contextlib.suppress(ImageError):
                found.append(self.load(entry, sorted(names, key=lambda name: (len(name), name))))
        return sorted(found, key=lambda image: (not image.names, image.name))

    def load(self, entry: Descriptor, names: Iterable[str] = ()) -> Image:
        """The image whose manifest ``entry`` is, from its blobs. Raises ImageError where one is missing."""
        what = next(iter(names), entry.digest)
        manifest = spec.manifest(self.blobs.read(entry, spec.MANIFEST_LIMIT), f"the image {what}")
        config = self.config_of(manifest, what)
        for layer in manifest.layers:
            if not self.blobs.has(layer):
                raise ImageError(f"the image {what} lacks a layer; 'hostel image pull {what}' brings it again")
        return Image(self, tuple(names), entry, manifest, config)

    def config_of(self, manifest: Manifest, what: str = "") -> ImageConfig:
        data = self.blobs.read(manifest.config, spec.CONFIG_LIMIT)
        return spec.image_config(data, manifest, f"the image {what}")

    def get(self, name: str) -> Image:
        """By reference, or by the begin of its ID or digest. Raises ImageError where there is none."""
        image = self.find(name)
        if image is None:
            raise ImageError(f"there is no image '{name}' here; 'hostel image pull {name}' may bring it")
        return image

    def named(self, names: Iterable[str]) -> list[Image]:
        """These images, each once, with only those of their names that are among ``names``, if any is."""
        found: dict[str, Image] = {}
        for name in names:
            image = self.get(name)
            with contextlib.suppress(ImageError):
                if (whole := str(reference.parse(name))) in image.names:
                    had = found[image.digest].names if image.digest in found else ()
                    image = replace(image, names=(*had, whole) if whole not in had else had)
            found[image.digest] = image
        return list(found.values())

    def find(self, name: str) -> Image | None:
        entries = self.index().manifests
        error: ImageError | None = None
        try:
            wanted = reference.parse(name)
        except ImageError as raised:
            error = raised
        else:
            for entry in entries:
                if name_of(entry) == str(wanted):
                    return self.load(entry, self._names(entries, entry.digest))
            if wanted.digest:  # whatever its name: the content is the same
                for entry in entries:
                    if wanted.digest == entry.digest:
                        return self.load(entry, self._names(entries, entry.digest))
        if _ID.fullmatch(name):
            prefix = name if ":" in name else f"sha256:{name}"
            found = {image.digest: image for image in self.images() if image.id.startswith(prefix)}
            found |= {image.digest: image for image in self.images() if image.digest.startswith(prefix)}
            if len(found) > 1:
                raise ImageError(f"'{name}' is the begin of the IDs of {len(found)} images; write more of it")
            return next(iter(found.values()), None)
        if error:
            raise error
        return None

    @staticmethod
    def _names(entries: list[Descriptor], digest: str) -> list[str]:
        names = [name for entry in entries if entry.digest == digest and (name := name_of(entry))]
        return sorted(names, key=lambda name: (len(name), name))

    def name(self, entry: Descriptor, name: reference.Reference | None) -> None:
        """``name`` is this image from now on (None: it has no name yet); the one that had it stays without."""
        clean = unnamed(entry)
        with self._changing() as entries:
            wanted = str(name) if name else ""
            had = [old for old in entries if wanted and name_of(old) == wanted]
            entries[:] = [
                old for old in entries if old not in had and not (old.digest == entry.digest and not name_of(old))
            ]
            if wanted:
                clean.annotations = {spec.REF_NAME: wanted}
            if wanted or not any(old.digest == entry.digest for old in entries):
                entries.append(clean)
            for old in had:
                if not any(other.digest == old.digest for other in entries):
                    entries.append(unnamed(old))

    # -- what people do

    def pull(self, name: str, **options) -> Image:
        """Brings an image from its registry; see ``registry.pull`` for the options."""
        from hostel.images.oci import registry

        return registry.pull(self, name, **options)

    def tag(self, source: str, target: str) -> None:
        image = self.get(source)
        name = reference.parse(target)
        if name.digest:
            raise ImageError(f"'{target}' has a digest; a name that somebody gives has none")
        self.name(image.entry, name)

    def remove(self, name: str, force: bool = False) -> list[str]:
        """Removes a name, and with the last one the image; all its names where ``name`` is its ID. What was removed.
        With ``force`` an image that containers stand on loses its names only: ``prune`` has the rest, once they are
        gone."""
        image = self.get(name)
        wanted = ""
        with contextlib.suppress(ImageError):
            wanted = str(reference.parse(name))
        gone = [wanted] if wanted in image.names else list(image.names)
        users: list[str] = []
        if len(gone) == len(image.names):
            users = sorted(user.name for user in self.users.all() if user.digest == image.digest)
            if users and not force:
                raise ImageError(f"these stand on the image {image.name}: {', '.join(users)}; 'hostel rm' first")
        with self._changing() as entries:
            entries[:] = [
                entry for entry in entries
                if not (entry.digest == image.digest and (name_of(entry) in gone or not name_of(entry)))
            ]
            if users:
                entries.append(unnamed(image.entry))
        self.sweep()
        return gone or [image.digest]

    def prune(self, all_: bool = False) -> int:
        """Removes images without a name (``all_``: those that no container stands on), blobs and layers that no image
        needs, and what broke off on its way in. Bytes that were freed."""
        used = {user.digest for user in self.users.all()}
        doomed = {image.digest for image in self.images() if (all_ or not image.names) and image.digest not in used}
        with self._changing() as entries:
            entries[:] = [entry for entry in entries if entry.digest not in doomed]
        return self.sweep(ingest=True)

    def sweep(self, ingest: bool = False) -> int:
        """Removes blobs and layers that no image and no container needs; bytes that were freed. Nothing, while others
        work here: the next one does it."""
        freed = 0
        try:
            lock = self._use(fcntl.LOCK_EX | fcntl.LOCK_NB)
            with lock, atomic.told(self.folder):
                needed, chains = self._needed()
                used = needed | {user.digest for user in self.users.all()}
                for digest in list(self.blobs.all()):
                    if digest not in needed:
                        path = self.blobs.path(digest)
                        freed += path.stat().st_size
                        path.unlink()
                for chain, path in list(self.layers.all()):
                    if chain not in chains:
                        freed += self._size(path)
                        self.layers.remove(path)
                for path in self.disks.glob("*") if self.disks.is_dir() else ():
                    if path.stem.replace("-", ":") not in used:
                        freed += path.stat().st_blocks * 512
                        path.unlink()
                self.layers.clear()
                for path in self.blobs.ingest.glob("*") if ingest or self.blobs.ingest.is_dir() else ():
                    if ingest or path.name.startswith("stream-"):
                        freed += path.stat().st_size
                        path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        return freed

    def _needed(self) -> tuple[set[str], set[str]]:
        """Digests of blobs and chain IDs of layers."""
        needed: set[str] = set()
        chains = {chain for user in self.users.all() for chain in user.layers}
        for entry in self.index().manifests:
            needed.add(entry.digest)
            try:
                image = self.load(entry)
            except ImageError:  # not whole; what there is of it is still its own
                with contextlib.suppress(ImageError):
                    manifest = spec.manifest(self.blobs.read(entry, spec.MANIFEST_LIMIT), entry.digest)
                    needed |= {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
                continue
            needed |= {image.id, *(layer.digest for layer in image.manifest.layers)}
            chains |= {layer.chain_id for layer in image.layers}
        return needed, chains

    @staticmethod
    def _size(layer: Path) -> int:
        try:
            return int(json.loads((layer / "layer.json").read_text())["size"])
        except (OSError, ValueError, KeyError):
            return 0


def name_of(entry: Descriptor) -> str:
    """The whole reference that an entry of index.json has."""
    return (entry.annotations or {}).get(spec.REF_NAME, "")


def unnamed(entry: Descriptor) -> Descriptor:
    return Descriptor(entry.media_type, entry.digest, entry.size, platform=entry.platform)
