"""Images' names: ``[REGISTRY/]REPOSITORY[:TAG][@DIGEST]``, as Docker reads them.

The first part is a registry if it has a dot or a colon or is ``localhost``; without one it is docker.io, where a
repository of one part is in ``library``. The grammar of the parts is distribution-spec 1.1's.
"""

import re
from dataclasses import dataclass

from hostel.base.errors import ImageError

DEFAULT_REGISTRY = "docker.io"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LONGEST = 255  # of registry and repository together, as registries have it


@dataclass(frozen=True)
class Reference:
    """One image somewhere. ``str()`` is the whole name, ``familiar`` the shortest that means the same."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}{self.suffix}"

    @property
    def suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def familiar(self) -> str:
        if self.registry != DEFAULT_REGISTRY:
            return str(self)
        return self.repository.removeprefix("library/") + self.suffix

    @property
    def wanted(self) -> str:
        """What a registry is asked for: the digest where there is one."""
        return self.digest or self.tag


def parse(text: str) -> Reference:
    """The reference that ``text`` is, with the tag ``latest`` where it names neither tag nor digest."""
    rest, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise ImageError(f"{text!r} names no image: after '@' comes a digest, 'sha256:' and 64 hexadecimal digits")
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        registry, path = head, tail
    else:
        registry, path = DEFAULT_REGISTRY, rest
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = DEFAULT_REGISTRY
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise ImageError(f"{text!r} names no image: {tag!r} can't be a tag (128 letters, digits, '_', '.', '-')")
    if not _REGISTRY.fullmatch(registry):
        raise ImageError(f"{text!r} names no image: {registry!r} can't be a registry's address")
    if not _REPOSITORY.fullmatch(path) or len(registry) + len(path) > _LONGEST:
        raise ImageError(f"{text!r} names no image: write [REGISTRY/]REPOSITORY[:TAG], the repository in small letters")
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    return Reference(registry, path, tag or ("" if digest else "latest"), digest)
