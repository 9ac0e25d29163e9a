"""Packages from Debian's archive, each verified (Debian wiki, SecureApt).

The chain of trust: a key of Debian's signed the suite's ``InRelease``; that holds the SHA-256 of the
package index ``Packages.xz``; that holds the SHA-256 of every ``.deb``. A link that doesn't hold refuses
the package and keeps nothing. Release files past their ``Valid-Until`` are refused as well, since an
attacker could serve old, vulnerable packages with good signatures; apt's ``Acquire::Check-Valid-Until``
is heeded.
"""

import email.utils
import lzma
import re
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from hostel.base import atomic, paths
from hostel.base.errors import ImageError
from hostel.images import deb, openpgp, sources
from hostel.images.fetch import Fetcher, Progress, digest
from hostel.images.sources import Source

INDEX = "main/binary-amd64/Packages.xz"


@dataclass(frozen=True)
class Package:
    """One version of a package, as an index describes it."""

    name: str
    version: str
    url: str
    size: int
    sha256: str
    depends: str = ""

    @property
    def filename(self) -> str:
        return self.url.rpartition("/")[2]


class Archive:
    """The union of some suites, from which the highest version of a package is had."""

    def __init__(
        self,
        chosen: tuple[Source, ...] | None = None,
        keyring: Path | None = None,
        progress: Progress | None = None,
        cache: Path | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        settings = sources.apt_settings()
        self.sources = chosen or sources.configured()
        self.keyring = keyring or openpgp.debian_keyring()
        self.fetcher = fetcher or Fetcher(sources.proxies(settings), progress)
        self.cache = cache or paths.cache() / "debian"
        self.check_valid_until = settings.get("acquire::check-valid-until", "true").lower() not in ("false", "no", "0")
        self.indexes: list[tuple[Source, bytes]] = []

    def package(self, name: str) -> Package:
        """The highest version of ``name``. Raises ImageError: none, or an index that doesn't verify."""
        if not self.indexes:
            self.indexes = [(source, text) for source in self.sources if (text := self.index(source)) is not None]
        found = [package for source, text in self.indexes for package in packages(source, text, name)]
        if not found:
            raise ImageError(f"no package {name} in {', '.join(map(str, self.sources))}")
        return max(found, key=lambda package: version_key(package.version))

    def fetch(self, package: Package) -> Path:
        """The package's file, in the cache."""
        return self.fetcher.fetch(
            package.url, self.cache / package.filename, package.name, package.size, package.sha256
        )

    def cached(self, package: Package) -> Path | None:
        """The package's file if it is there and right, without a network."""
        path = self.cache / package.filename
        return path if path.exists() and digest(path) == package.sha256 else None

    def release(self, source: Source) -> str | None:
        """The signed text of the suite's InRelease; None where the suite isn't Debian's."""
        url = f"{source.mirror}/dists/{source.suite}/InRelease"
        path = self.cache / f"{source.suite.replace('/', '-')}.InRelease"
        with atomic.told(path):
            try:
                message = self.fetcher.fetch(url, path, f"{source.suite} release file").read_bytes()
            finally:
                path.unlink(missing_ok=True)
        origin = re.search(rb"^Origin: (.*)$", message, re.MULTILINE)
        if origin and not origin[1].startswith(b"Debian"):
            return None  # unverified, but all it can do is hide a source, as a dead mirror can
        text = openpgp.signed_text(message, self.keyring, url)
        limit = re.search(r"^Valid-Until: (.*)$", text, re.MULTILINE)
        if limit and self.check_valid_until:
            until = email.utils.parsedate_to_datetime(limit[1]).timestamp()
            if time.time() > until:
                raise ImageError(f"{url} expired on {limit[1]}: a stale mirror, or a wrong clock on this machine")
        return text

    def index(self, source: Source) -> bytes | None:
        """The suite's index, unpacked and verified."""
        text = self.release(source)
        if text is None:
            return None
        sums = text.partition("\nSHA256:")[2]
        entry = re.search(rf"^ ([0-9a-f]{{64}}) +(\d+) {re.escape(INDEX)}$", sums, re.MULTILINE)
        if not entry:
            raise ImageError(f"{source} has no {INDEX}")
        sha256, size = entry[1], int(entry[2])
        folder = f"{source.mirror}/dists/{source.suite}/main/binary-amd64"
        # By its hash, an index can't change between the release file and itself.
        by_hash = re.search(r"^Acquire-By-Hash: yes$", text, re.MULTILINE)
        url = f"{folder}/by-hash/SHA256/{sha256}" if by_hash else f"{folder}/Packages.xz"
        path = self.cache / f"{source.suite.replace('/', '-')}.Packages.xz"
        self.fetcher.fetch(url, path, f"{source.suite} index", size, sha256)
        try:
            return lzma.LZMADecompressor().decompress(path.read_bytes(), deb.UNPACKED_LIMIT)
        except lzma.LZMAError as error:
            raise ImageError(f"{url} is damaged: {error}") from error


def packages(source: Source, index: bytes, name: str) -> list[Package]:
    """Every version of ``name`` in an index: found as bytes, for parsing 60,000 stanzas takes seconds."""
    result = []
    for match in re.finditer(rb"^Package: " + re.escape(name.encode()) + rb"\n", index, re.MULTILINE):
        end = index.find(b"\n\n", match.start())
        fields = sources.stanzas(index[match.start() : None if end < 0 else end].decode(errors="replace"))[0]
        filename = fields.get("filename", "")
        if not re.fullmatch(r"[0-9a-f]{64}", fields.get("sha256", "")) or ".." in filename.split("/") or not filename:
            raise ImageError(f"the index of {source} is damaged at {name}")
        result.append(
            Package(
                name,
                fields["version"],
                f"{source.mirror}/{urllib.parse.quote(filename, safe='/+~:')}",
                int(fields["size"]),
                fields["sha256"],
                fields.get("depends", ""),
            )
        )
    return result


def version_key(version: str) -> tuple:
    """Orders Debian versions (deb-version(7)) when compared as tuples."""
    epoch, colon, rest = version.rpartition(":")
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
    return (int(epoch) if colon else 0, part_key(upstream), part_key(revision))


def part_key(text: str) -> tuple:
    """Alternating non-digits and numbers; in the former ~ sorts before the end, letters before the rest."""
    key: list = []
    for letters, digits in re.findall(r"([^0-9]*)([0-9]*)", text):
        if letters or digits:
            key += [(*map(letter_order, letters), 0), int(digits or 0)]
    return (*key, (0,))


def letter_order(letter: str) -> int:
    if letter == "~":
        return -1
    return ord(letter) if letter.isalpha() else ord(letter) + 256
