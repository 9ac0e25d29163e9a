"""Which mirrors the host uses: apt's own configuration, read as apt reads it (sources.list(5)).

Taken are Debian's suites with a ``main`` component for amd64, signed by Debian's archive keys. Third
parties' sources (nodesource, docker …) hold no kernel of Debian's and are passed over. A host without
such sources, another distribution's say, gets Debian's own over HTTPS.
"""

import re
import shlex
import shutil
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/etc/apt")
RELEASES = "bullseye bookworm trixie forky duke stable oldstable testing unstable sid".split()
SUITE = re.compile(rf"({'|'.join(RELEASES)})(-updates|-security|/updates)?")
SCHEMES = ("http", "https", "file")


@dataclass(frozen=True)
class Source:
    """One suite on one mirror, its component ``main``."""

    mirror: str  # a URL without a slash at its end
    suite: str

    def __str__(self) -> str:
        return f"{self.mirror} {self.suite}"


DEFAULT = (
    Source("https://deb.debian.org/debian", "bookworm"),
    Source("https://deb.debian.org/debian-security", "bookworm-security"),
)


def configured(root: Path = ROOT) -> tuple[Source, ...]:
    """The host's Debian sources, in order and each once; DEFAULT when there is none."""
    found: dict[Source, None] = {}
    for path in [root / "sources.list", *sorted(root.glob("sources.list.d/*"))]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            found.update(dict.fromkeys(one_line_style(text)))
        elif path.suffix == ".sources":
            found.update(dict.fromkeys(deb822_style(text)))
    if not any(re.fullmatch("|".join(RELEASES), source.suite) for source in found):
        return DEFAULT
    return tuple(found)


def one_line_style(text: str) -> list[Source]:
    """``deb [arch=amd64 signed-by=/a/key.gpg] http://deb.debian.org/debian bookworm main``"""
    result = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?([^#]*)", line)
        if not match:
            continue
        options = dict(pair.split("=", 1) for pair in (match[1] or "").split() if "=" in pair)
        words = match[2].split()
        if len(words) >= 3:
            architectures = options.get("arch", "").replace(",", " ").split()
            result += chosen([words[0]], [words[1]], words[2:], architectures, options.get("signed-by", ""))
    return result


def deb822_style(text: str) -> list[Source]:
    result = []
    for stanza in stanzas(text):
        if "deb" not in stanza.get("types", "").split() or stanza.get("enabled", "yes").lower() in ("no", "false"):
            continue
        result += chosen(
            stanza.get("uris", "").split(),
            stanza.get("suites", "").split(),
            stanza.get("components", "").split(),
            stanza.get("architectures", "").split(),
            stanza.get("signed-by", ""),
        )
    return result


def chosen(mirrors, suites, components, architectures, signed_by) -> list[Source]:
    if "main" not in components or (architectures and "amd64" not in architectures):
        return []
    if signed_by and "debian-archive" not in signed_by:
        return []
    return [
        Source(mirror.rstrip("/"), suite)
        for mirror in mirrors
        for suite in suites
        if SUITE.fullmatch(suite) and mirror.partition(":")[0] in SCHEMES
    ]


def stanzas(text: str) -> list[dict[str, str]]:
    """deb822(5): stanzas of ``Key: value``, keys in lower case, continuation lines joined by newlines."""
    result: list[dict[str, str]] = []
    stanza: dict[str, str] = {}
    key = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                result.append(stanza)
            stanza, key = {}, ""
        elif line[0] in " \t":
            if key:
                stanza[key] += "\n" + line.strip()
        else:
            name, _, value = line.partition(":")
            key = name.strip().lower()
            stanza[key] = value.strip()
    return result


def apt_settings() -> dict[str, str]:
    """apt's configuration, keys in lower case; empty where there is no apt."""
    program = shutil.which("apt-config")
    if not program:
        return {}
    try:
        text = subprocess.run([program, "dump"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    result = {}
    for line in text.splitlines():
        match = re.fullmatch(r'(\S+) (".*");', line)
        if match:
            try:
                result[match[1].lower()] = shlex.split(match[2])[0]
            except (ValueError, IndexError):
                continue
    return result


def proxies(settings: dict[str, str]) -> dict[str, str]:
    """A proxy for each scheme: apt's if it has one ("DIRECT": none), else the environment's."""
    result = urllib.request.getproxies()
    for scheme in ("http", "https"):
        proxy = settings.get(f"acquire::{scheme}::proxy", "")
        if proxy.upper() in ("DIRECT", "FALSE"):
            result.pop(scheme, None)
        elif proxy:
            result[scheme] = proxy
    return result
