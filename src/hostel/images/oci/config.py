"""The JSON of OCI images: descriptors, manifests, indexes, image configurations (image-spec 1.1), and Docker's schema
2, which is the same but for its media types. What is read here came from strangers: checked once, by type and by
grammar.
"""

import hashlib
from typing import Any, TypeVar

import msgspec

from hostel.base.errors import ImageError
from hostel.images.oci.reference import DIGEST

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_LIST)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
LAYERS = frozenset(
    {OCI_LAYER + suffix for suffix in ("", "+gzip", "+zstd")}
    | {f"application/vnd.oci.image.layer.nondistributable.v1.tar{suffix}" for suffix in ("", "+gzip", "+zstd")}
    | {f"application/vnd.docker.image.rootfs.{kind}" for kind in ("diff.tar", "diff.tar.gzip", "diff.tar.zstd")}
    | {"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
)
MANIFEST_LIMIT = 4 << 20  # bytes; distribution-spec wants registries to take so many, and none needs to take more
CONFIG_LIMIT = 8 << 20
LAYER_COUNT = 500  # overlayfs takes no more
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME = "org.opencontainers.image.ref.name"
T = TypeVar("T")


class Platform(msgspec.Struct, omit_defaults=True):
    architecture: str
    os: str
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a blob is, how long it is and what its hash must be."""

    media_type: str
    digest: str
    size: int
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    data: str | None = None
    artifact_type: str | None = None
    platform: Platform | None = None

    def __post_init__(self) -> None:
        if not DIGEST.fullmatch(self.digest):
            raise ValueError(f"{self.digest[:80]!r} is no digest (sha256 and sha512 are known)")
        if self.size < 0:
            raise ValueError("a size is negative")


class Manifest(msgspec.Struct, rename="camel", omit_defaults=True):
    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, rename="camel", omit_defaults=True):
    schema_version: int
    manifests: list[Descriptor]
    media_type: str | None = None
    annotations: dict[str, str] | None = None


class Healthcheck(msgspec.Struct, rename="pascal", omit_defaults=True):
    """Docker's extension; times in nanoseconds, 0: the default."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Execution(msgspec.Struct, rename="pascal", omit_defaults=True):
    """How a container of the image is run, unless somebody says otherwise: the property ``config``."""

    user: str | None = None
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    healthcheck: Healthcheck | None = None


class Rootfs(msgspec.Struct):
    type: str
    diff_ids: list[str]

    def __post_init__(self) -> None:
        if self.type != "layers":
            raise ValueError(f"rootfs.type is {self.type[:40]!r}, not 'layers'")
        if not all(map(DIGEST.fullmatch, self.diff_ids)):
            raise ValueError("rootfs.diff_ids has something that is no digest")


class Step(msgspec.Struct, omit_defaults=True):
    """An entry of ``history``."""

    created: str | None = None
    author: str | None = None
    created_by: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ImageConfig(msgspec.Struct):
    """The image configuration; what a container needs is at hand under plain names."""

    architecture: str
    os: str
    rootfs: Rootfs
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    config: Execution | None = None
    history: list[Step] | None = None

    @property
    def execution(self) -> Execution:
        return self.config or Execution()

    @property
    def entrypoint(self) -> list[str]:
        return self.execution.entrypoint or []

    @property
    def cmd(self) -> list[str]:
        return self.execution.cmd or []

    @property
    def env(self) -> list[str]:
        return self.execution.env or []

    @property
    def user(self) -> str:
        return self.execution.user or ""

    @property
    def working_dir(self) -> str:
        return self.execution.working_dir or "/"

    @property
    def exposed_ports(self) -> list[str]:
        """As ``80/tcp``."""
        return sorted(self.execution.exposed_ports or ())

    @property
    def volumes(self) -> list[str]:
        return sorted(self.execution.volumes or ())

    @property
    def labels(self) -> dict[str, str]:
        return self.execution.labels or {}

    @property
    def stop_signal(self) -> str:
        return self.execution.stop_signal or "SIGTERM"

    @property
    def healthcheck(self) -> Healthcheck | None:
        return self.execution.healthcheck

    @property
    def platform(self) -> Platform:
        return Platform(self.architecture, self.os, variant=self.variant)


def decode(data: bytes, kind: type[T], what: str) -> T:
    """``data`` as a ``kind``, or an ImageError that says what is wrong with ``what``."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ImageError(f"{what} is damaged or no such thing: {' '.join(str(error).split())[:200]}") from error


def encode(value: Any) -> bytes:
    """As image-spec wants JSON that is hashed to stay: the same bytes each time."""
    return msgspec.json.encode(value)


def manifest(data: bytes, what: str) -> Manifest:
    found = decode(data, Manifest, what)
    if found.schema_version != 2:
        raise ImageError(f"{what} has schema version {found.schema_version}; only 2 is known")
    if found.config.media_type not in CONFIGS:
        kind = found.artifact_type or found.config.media_type
        raise ImageError(f"{what} is no image that can be run, but an artifact ({kind[:100]})")
    for layer in found.layers:
        if layer.media_type not in LAYERS:
            raise ImageError(f"{what} has a layer of an unknown kind: {layer.media_type[:100]!r}")
    if len(found.layers) > LAYER_COUNT:
        raise ImageError(f"{what} has {len(found.layers)} layers; {LAYER_COUNT} can be mounted at most")
    return found


def image_config(data: bytes, of: Manifest, what: str) -> ImageConfig:
    found = decode(data, ImageConfig, f"the configuration of {what}")
    if len(found.rootfs.diff_ids) != len(of.layers):
        hashes = len(found.rootfs.diff_ids)
        raise ImageError(f"{what} contradicts itself: {len(of.layers)} layers, but {hashes} hashes of their contents")
    return found


def platform(text: str) -> Platform:
    """``OS/ARCHITECTURE[/VARIANT]``."""
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise ImageError(f"{text!r} is no platform: write for example linux/amd64")
    return Platform(parts[1], parts[0], variant=parts[2] if len(parts) > 2 else None)


def choose(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The manifest for ``wanted``; an entry that names no platform will do where there is only one."""
    entries = [entry for entry in index.manifests if entry.media_type in MANIFESTS + INDEXES]
    for entry in entries:
        has = entry.platform
        if has and (has.os, has.architecture) == (wanted.os, wanted.architecture):
            if wanted.variant is None or has.variant == wanted.variant:
                return entry
    if len(entries) == 1 and not entries[0].platform:
        return entries[0]
    there = ", ".join(sorted({str(entry.platform) for entry in entries if entry.platform})) or "none that is named"
    raise ImageError(f"{what} isn't there for {wanted}; it is for {there}")


def hasher(digest: str) -> "hashlib._Hash":
    """Of the algorithm that ``digest`` names."""
    return hashlib.new(digest.partition(":")[0])


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def chain_ids(diff_ids: list[str]) -> list[str]:
    """image-spec, config.md, "Layer ChainID": what names a layer together with all that are below it."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
