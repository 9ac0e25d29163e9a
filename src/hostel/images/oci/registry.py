"""Images from registries and to them (distribution-spec 1.1).

A pull asks for the manifest, chooses the platform's from an index, and brings the blobs, several at a time; a layer
is unpacked while others are on their way. Nothing is used before its digest and size are right. What broke off is
resumed where it was, now and by the next pull. A push leaves out what the registry has, has it mount what another of
its repositories has, and sends the rest in pieces, each of which can be sent again.
"""

import contextlib
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO
from urllib.parse import urlencode, urljoin

import msgspec
import urllib3

from hostel.base import atomic, paths
from hostel.base.errors import ImageError
from hostel.images.fetch import Progress, Silence
from hostel.images.oci import config as spec
from hostel.images.oci import reference
from hostel.images.oci.blobs import Blobs, check
from hostel.images.oci.config import Descriptor, Manifest, Platform
from hostel.images.oci.limits import Limits
from hostel.images.oci.reference import Reference
from hostel.images.oci.session import CONNECTIONS, Access, Interrupted, Refused, Session
from hostel.images.oci.store import HOST, Image, Store

__all__ = ["Access", "check_login", "pull", "push"]

PIECE = 512 * 1024
CHUNK = 16 << 20  # bytes of an upload that are sent again when they break off
_ACCEPT = ", ".join((*spec.MANIFESTS, *spec.INDEXES))


def pull(
    store: Store, name: str, platform: Platform = HOST, access: Access | None = None, progress: Progress | None = None,
    limits: Limits | None = None, unpack: bool = True,
) -> Image:  # fmt: skip
    """Brings the image ``name`` into the store, and unpacks its layers. Raises ImageError."""
    name_ = reference.parse(name)
    errors: list[str] = []
    with store.using():
        for registry, repository in [*mirrors(name_), (name_.registry, name_.repository)]:
            with contextlib.closing(Session(registry, repository, access or Access())) as session:
                try:
                    entry, data = _manifest(session, name_, platform)
                except ImageError as error:
                    errors.append(str(error))
                    continue
                return _pull(store, session, name_, entry, data, progress or Silence(), limits, unpack)
    raise ImageError("; ".join(errors))


def mirrors(name: Reference) -> Iterator[tuple[str, str]]:
    """Where to look first: in HOME/registries.toml the table ``mirrors`` has lists of REGISTRY[/PREFIX]."""
    path = paths.home() / "registries.toml"
    try:
        table = tomllib.loads(path.read_text()).get("mirrors", {})
        entries = table.get(name.registry, [])
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError("'mirrors' has lists of strings")
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError) as error:
        raise ImageError(f"{path} can't be read: {error}") from error
    for entry in entries:
        registry, _, prefix = entry.rstrip("/").partition("/")
        yield registry, f"{prefix}/{name.repository}" if prefix else name.repository


def _manifest(session: Session, name: Reference, platform: Platform) -> tuple[Descriptor, bytes]:
    entry, data = _ask(session, name.wanted)
    for _ in range(2):  # an index may have an index in it; more is nonsense
        if entry.media_type not in spec.INDEXES:
            break
        index = spec.decode(data, spec.Index, f"the index of {name}")
        chosen = spec.choose(index, platform, f"the image {name}")
        entry, data = _ask(session, chosen.digest)
        check(chosen, data)
        entry.platform = chosen.platform
    if entry.media_type not in spec.MANIFESTS:
        raise ImageError(f"{name} is of a kind that isn't known here: {entry.media_type[:100]}")
    return entry, data


def _ask(session: Session, wanted: str) -> tuple[Descriptor, bytes]:
    """A manifest or index, and what it is. The hash is our own: by digest it must be the one that was asked for."""
    with session.request("GET", f"manifests/{wanted}", headers={"Accept": _ACCEPT}) as answer:
        data = _read(answer, spec.MANIFEST_LIMIT, "a manifest")
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    by_digest = reference.DIGEST.fullmatch(wanted)
    digest = spec.digest_of(data, wanted.partition(":")[0] if by_digest else "sha256")
    if by_digest and digest != wanted:
        raise ImageError(f"{session.registry} sent something else for {wanted}: its hash is {digest}")
    if kind not in spec.MANIFESTS + spec.INDEXES:  # some servers of files say application/octet-stream
        kind = spec.decode(data, _Kind, "the manifest").media_type or kind
    return Descriptor(kind, digest, len(data)), data


class _Kind(msgspec.Struct, rename="camel"):
    media_type: str = ""


def _read(answer: Any, limit: int, what: str) -> bytes:
    try:
        data = answer.read(limit + 1)
        if answer.length_remaining:
            raise ImageError(f"{what} came in part only; try again")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ImageError(f"{what} came in part only ({error}); try again") from error
    if len(data) > limit:
        raise ImageError(f"{what} has more than {limit} bytes; none needs so many")
    return data


def _pull(
    store: Store, session: Session, name: Reference, entry: Descriptor, data: bytes, progress: Progress,
    limits: Limits | None, unpack: bool,
) -> Image:  # fmt: skip
    manifest = spec.manifest(data, f"the image {name}")
    fetching = Fetching(store.blobs, session, progress, manifest, name.familiar)
    with fetching:
        fetching.fetch(manifest.config, spec.CONFIG_LIMIT)
        config = store.config_of(manifest, str(name))
        store.blobs.add(data, entry.digest)
        futures = fetching.start()
        if unpack:
            image = Image(store, (str(name),), entry, manifest, config)
            store.layers.unpack(image.layers, limits, lambda layer: futures[layer.blob.digest].result(), fetching.stop)
        for future in futures.values():
            future.result()
    store.name(entry, name)
    return store.get(str(name))


class Fetching:
    """The blobs of one image on their way in; as a context, it ends its threads."""

    def __init__(
        self, blobs: Blobs, session: Session, progress: Progress, manifest: Manifest, label: str
    ) -> None:
        self.blobs, self.session, self.progress = blobs, session, progress
        self.layers = {layer.digest: layer for layer in manifest.layers}
        self.label = label
        self.done = 0
        self.stopped = False
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(CONNECTIONS, "fetch")

    def __enter__(self) -> "Fetching":
        self.progress.begin(self.label, sum(layer.size for layer in self.layers.values()))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._pool.shutdown(cancel_futures=True)
        self.progress.end()

    def start(self) -> dict[str, Future]:
        return {digest: self._pool.submit(self.fetch, layer) for digest, layer in self.layers.items()}

    def stop(self) -> None:
        self.stopped = True

    def _advance(self, count: int) -> None:
        with self._lock:
            self.done += count
            self.progress.advance(self.done)

    def fetch(self, blob: Descriptor, limit: int = 0) -> None:
        """Brings a blob into the store, unless it is there."""
        if limit and blob.size > limit:
            raise ImageError(f"the blob {blob.digest} has {blob.size} bytes; {limit} are more than such a one needs")
        if self.blobs.has(blob) and not (limit and self.blobs.drop_damaged(blob)):
            self._advance(blob.size)
            return
        with self.blobs.locked(blob.digest), atomic.told(self.blobs.folder):
            pauses = iter(self.session.access.pauses)
            while not self.blobs.has(blob):
                if self.stopped:
                    raise ImageError("it was broken off")
                try:
                    self._attempt(blob)
                except Interrupted as error:
                    pause = next(pauses, None)
                    if pause is None:
                        raise ImageError(
                            f"can't bring {blob.digest} from {self.session.registry}: {error}; the next pull goes on"
                            " where this one ended"
                        ) from error
                    time.sleep(pause)

    def _attempt(self, blob: Descriptor) -> None:
        """One transfer of what is lacking."""
        part = self.blobs.part(blob.digest)
        part.parent.mkdir(parents=True, exist_ok=True)
        made, counted = spec.hasher(blob.digest), 0
        with open(part, "a+b", buffering=0) as file:
            file.seek(0)
            while data := file.read(PIECE):
                made.update(data)
                counted += len(data)
            have = counted
            if have > blob.size:
                have = 0
            resumed = have > 0
            try:
                if have < blob.size or not resumed:
                    headers = {"Range": f"bytes={have}-"} if have else {}
                    with self.session.request("GET", f"blobs/{blob.digest}", (200, 206), headers, once=True) as answer:
                        if answer.status != 206 or not _starts_at(answer, have):
                            have = 0
                        if not have:
                            file.truncate(0)
                            made = spec.hasher(blob.digest)
                        have = self._receive(answer, file, made, have, blob)
            except Refused as error:
                if error.status == 416:
                    part.unlink()
                    raise Interrupted("the registry has another blob by that name") from error
                raise
        if f"{made.name}:{made.hexdigest()}" == blob.digest:
            self.blobs.place(part, blob.digest)
            return
        part.unlink()
        self._advance(-have)
        if resumed:  # what was there may have been the damage: once more, whole
            raise Interrupted("what was begun earlier was damaged")
        raise ImageError(f"{self.session.registry} sent something else for {blob.digest}: nothing was kept")

    def _receive(self, answer: Any, file: BinaryIO, made: Any, have: int, blob: Descriptor) -> int:
        self._advance(have)
        try:
            while have < blob.size + 1:
                if self.stopped:
                    raise ImageError("it was broken off")
                try:
                    data = answer.read(PIECE)
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    raise Interrupted("the connection broke") from error
                if not data:
                    break
                if have + len(data) > blob.size:
                    file.truncate(0)
                    raise ImageError(f"{self.session.registry} sent more for {blob.digest} than its {blob.size} bytes")
                file.write(data)
                made.update(data)
                have += len(data)
                self._advance(len(data))
            if have < blob.size:
                raise Interrupted(f"the connection ended after {have} of {blob.size} bytes")
        except Interrupted:
            self._advance(-have)
            raise
        return have


def _starts_at(answer: Any, offset: int) -> bool:
    return answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


# -- push


def push(
    image: Image, target: str, access: Access | None = None, progress: Progress | None = None
) -> Reference:
    """Brings ``image`` to a registry as ``target``. Raises ImageError."""
    name = reference.parse(target)
    if name.digest and name.digest != image.digest:
        raise ImageError(f"the image's digest is {image.digest}; it can't be pushed as {name.digest}")
    data = image.store.blobs.read(image.entry, spec.MANIFEST_LIMIT)
    with image.store.using(), contextlib.closing(
        Session(name.registry, name.repository, access or Access(), "pull,push")
    ) as session:
        sources = _repositories(image.store, name)
        for others in sources.values():
            session.scopes += [f"repository:{other}:pull" for other in others]
        session.scopes = list(dict.fromkeys(session.scopes))
        blobs = {blob.digest: blob for blob in (image.manifest.config, *image.manifest.layers)}
        sending = Sending(image.store.blobs, session, progress or Silence(), sources)
        sending.progress.begin(name.familiar, sum(blob.size for blob in blobs.values()))
        pool = ThreadPoolExecutor(CONNECTIONS, "push")
        try:
            for future in [pool.submit(sending.send, blob) for blob in blobs.values()]:
                future.result()
        finally:
            sending.stopped = True
            pool.shutdown(cancel_futures=True)
            sending.progress.end()
        headers = {"Content-Type": image.entry.media_type}
        with session.request("PUT", f"manifests/{name.wanted}", (201, 202), headers, lambda: data):
            pass
    return name


def _repositories(store: Store, target: Reference) -> dict[str, list[str]]:
    """For each blob other repositories of the same registry that should have it, as images' names say."""
    found: dict[str, list[str]] = {}
    for image in store.images():
        for name in map(reference.parse, image.names):
            if name.registry == target.registry and name.repository != target.repository:
                for blob in (image.manifest.config, *image.manifest.layers):
                    found.setdefault(blob.digest, []).append(name.repository)
    return found


class Sending:
    """The blobs of one image on their way out."""

    def __init__(self, blobs: Blobs, session: Session, progress: Progress, sources: dict[str, list[str]]) -> None:
        self.blobs, self.session, self.progress, self.sources = blobs, session, progress, sources
        self.done = 0
        self.stopped = False
        self._lock = threading.Lock()

    def _advance(self, count: int) -> None:
        with self._lock:
            self.done += count
            self.progress.advance(self.done)

    def send(self, blob: Descriptor) -> None:
        with self.session.request("HEAD", f"blobs/{blob.digest}", (200, 404)) as answer:
            if answer.status == 200:
                self._advance(blob.size)
                return
        query = ""
        if sources := self.sources.get(blob.digest):
            query = f"?{urlencode({'mount': blob.digest, 'from': sources[0]})}"
        headers = {"Content-Length": "0"}
        with self.session.request("POST", f"blobs/uploads/{query}", (201, 202), headers) as answer:
            if answer.status == 201:
                self._advance(blob.size)
                return
            location = self._location(answer)
            least = answer.headers.get("OCI-Chunk-Min-Length") or "0"
            chunk = max(CHUNK, min(int(least) if least.isdigit() else 0, 1 << 30))
        with self.blobs.open(blob) as file:
            self._upload(blob, file, location, chunk)

    def _location(self, answer: Any) -> str:
        location = urljoin(f"{self.session.base}/v2/", answer.headers.get("Location") or "")
        self.session.check(location)
        return location

    def _upload(self, blob: Descriptor, file: BinaryIO, location: str, chunk: int) -> None:
        pauses = iter(self.session.access.pauses)
        at = 0
        while at < blob.size:
            if self.stopped:
                raise ImageError("it was broken off")
            size = min(chunk, blob.size - at)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size),
                       "Content-Range": f"{at}-{at + size - 1}"}  # fmt: skip
            before = at
            try:
                body = _Piece(file, at, size)
                with self.session.request("PATCH", location, (202,), headers, body.again, once=True) as answer:
                    location = self._location(answer)
                    at += size
            except (Interrupted, Refused) as error:
                if isinstance(error, Refused) and error.status != 416:
                    raise
                pause = next(pauses, None)
                if pause is None:
                    raise ImageError(f"can't send {blob.digest} to {self.session.registry}: {error}") from error
                time.sleep(pause)
                with self.session.request("GET", location, (204,)) as answer:  # how far did it come?
                    location = self._location(answer)
                    at = _received(answer)
            self._advance(at - before)
        closing = f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': blob.digest})}"
        with self.session.request("PUT", closing, (201, 204), {"Content-Length": "0"}):
            pass


def _received(answer: Any) -> int:
    """``Range: 0-1023`` says that 1024 bytes are there; ``0-0`` that none is, with some, and is sent again."""
    end = (answer.headers.get("Range") or "0-0").rpartition("-")[2]
    return int(end) + 1 if end.isdigit() and int(end) else 0


class _Piece:
    """A part of a file, as the body of a request."""

    def __init__(self, file: BinaryIO, at: int, size: int) -> None:
        self.file, self.at, self.size = file, at, size
        self.left = 0

    def again(self) -> "_Piece":
        self.file.seek(self.at)
        self.left = self.size
        return self

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(self.left if size < 0 else min(size, self.left, PIECE))
        self.left -= len(data)
        return data


def check_login(registry: str, name: str, password: str, access: Access) -> None:
    """Whether the registry knows them. Raises ImageError."""
    asked = Access(access.verify, f"{name}:{password}", access.pauses)
    with contextlib.closing(Session(registry, "", asked)) as session:
        with session.request("GET", "/v2/"):
            pass
