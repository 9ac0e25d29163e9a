"""Fetching files: resumable, verified, shown.

``urllib`` from the standard library is enough here (one connection, a handful of files, proxies from the
environment) and costs no dependency; what it lacks, resumption and retries, is what this module adds.

A file arrives as ``NAME.part`` beside its place and is renamed when it is whole and its SHA-256 is right.
A broken transfer leaves the part for the next attempt, which asks for the rest only (RFC 9110, 14.2:
``Range``; a server may ignore it and send all, status 200). A wrong hash leaves nothing.
"""

import contextlib
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from hostel._version import __version__
from hostel.base import atomic
from hostel.base.errors import ImageError

CHUNK = 256 * 1024
TIMEOUT = 30.0  # seconds without a byte; a transfer as a whole may take as long as it needs
ATTEMPTS = 4
PAUSES = (0.5, 2.0, 5.0)  # seconds between attempts
UNSIZED_LIMIT = 64 << 20  # bytes taken from a server when nobody has vouched for a size (InRelease)


class Progress(Protocol):
    """Somebody who watches a transfer; byte counts, ``total`` is 0 when unknown."""

    def begin(self, label: str, total: int) -> None: ...
    def advance(self, done: int) -> None: ...
    def end(self) -> None: ...


class Silence:
    """A watcher who says nothing."""

    def begin(self, label: str, total: int) -> None:
        pass

    def advance(self, done: int) -> None:
        pass

    def end(self) -> None:
        pass


class Bar:
    """A progress bar on a terminal; elsewhere one plain line a file."""

    def __init__(self, stream=None, terminal: bool | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty() if terminal is None else terminal

    def begin(self, label: str, total: int) -> None:
        self.label, self.total, self.shown, self.done = label, total, 0.0, 0
        self.since = time.monotonic()
        if not self.terminal:
            size = f" ({total / 1e6:.1f} MB)" if total else ""
            print(f"fetching {label}{size}", file=self.stream, flush=True)

    def advance(self, done: int) -> None:
        self.done = done
        now = time.monotonic()
        if self.terminal and now - self.shown >= 0.1:
            self.shown = now
            self.draw(now)

    def draw(self, now: float) -> None:
        columns = os.get_terminal_size(self.stream.fileno()).columns if self.stream.isatty() else 80
        rate = self.done / 1e6 / max(now - self.since, 0.001)
        text = f" {self.done / 1e6:6.1f} MB  {rate:5.1f} MB/s"
        if self.total:
            share = min(self.done / self.total, 1)
            text = f" {share:4.0%}{text}"
            room = min(columns - len(text) - 31, 40)
            if room > 4:
                text = f" [{'#' * int(share * room):<{room}}]{text}"
        self.stream.write(f"\r{self.label[:26]:<26}{text}\x1b[K"[: columns + 3])
        self.stream.flush()

    def end(self) -> None:
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


class Interrupted(Exception):
    """A transfer that broke, and may go better next time."""


class Fetcher:
    """Fetches over http, https and file URLs. ``proxies`` maps a scheme to a URL; None: environment's."""

    def __init__(
        self,
        proxies: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        timeout: float = TIMEOUT,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler(dict(proxies) if proxies is not None else None)
        )
        self.opener.addheaders = [("User-Agent", f"hostel/{__version__}")]
        self.progress = progress or Silence()
        self.timeout = timeout
        self.pauses = pauses

    def fetch(self, url: str, to: Path, label: str, size: int = 0, sha256: str = "") -> Path:
        """Brings ``url`` to the file ``to``, unless what is there has the right hash already.

        Raises ImageError: it can't be fetched, or isn't what ``size`` and ``sha256`` say.
        """
        if sha256 and to.exists() and digest(to) == sha256:
            return to
        part = to.with_name(to.name + ".part")
        with atomic.told(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            if not sha256:  # nothing would tell an old part from a new one
                part.unlink(missing_ok=True)
        for attempt in range(len(self.pauses) + 1):
            resumed = part.exists()
            try:
                self.transfer(url, part, label, size)
            except Interrupted as error:
                if attempt == len(self.pauses):
                    raise ImageError(f"can't fetch {url}: {error}") from error
                time.sleep(self.pauses[attempt])
                continue
            if not sha256 or digest(part) == sha256:
                with atomic.told(to):
                    atomic.sync_file(part)
                    os.replace(part, to)
                    atomic.sync_folder(to.parent)
                return to
            part.unlink()
            if not resumed:  # a resumed part may have been begun on another server's file: once more, whole
                break
        raise ImageError(f"{url} isn't what the signed index promises (wrong SHA-256); nothing was kept")

    def transfer(self, url: str, part: Path, label: str, size: int) -> None:
        """One attempt: appends to ``part`` what it lacks."""
        limit = size or UNSIZED_LIMIT
        have = part.stat().st_size if part.exists() else 0
        if have and have >= limit:
            if have == size:
                return
            part.unlink()
            have = 0
        request = urllib.request.Request(url)
        if have:
            request.add_header("Range", f"bytes={have}-")
        with self.opened(request) as reply:
            # A file: reply has no status and always begins at the beginning.
            if getattr(reply, "status", None) != 206 or not starts_at(reply, have):
                have = 0
            length = reply.headers.get("Content-Length") or ""
            announced = int(length) if length.isascii() and length.isdigit() else 0
            if size and announced and have + announced != size:
                part.unlink(missing_ok=True)
                raise ImageError(
                    f"{url} has {have + announced} bytes where the signed index promises {size}; nothing was kept"
                )
            self.progress.begin(label, size or announced)
            try:
                self.append(reply, part, have, limit, announced)
            finally:
                self.progress.end()

    def append(self, reply, part: Path, have: int, limit: int, announced: int) -> None:
        done = have
        try:
            with atomic.told(part), open(part, "r+b" if have else "wb") as file:
                file.seek(have)
                while True:
                    with broken_transfers():
                        data = reply.read(CHUNK)
                    if not data:
                        break
                    done += len(data)
                    if done > limit:
                        raise ImageError(f"{reply.url} is longer than the {limit} bytes it may have")
                    file.write(data)
                    self.progress.advance(done)
        except Interrupted:
            raise
        except BaseException as error:
            if isinstance(error, (atomic.StorageError, ImageError)):
                part.unlink(missing_ok=True)
            raise
        if announced and done - have < announced:
            raise Interrupted(f"the connection ended after {done} of {have + announced} bytes")

    @contextlib.contextmanager
    def opened(self, request: urllib.request.Request) -> Iterator:
        try:
            with broken_transfers():
                reply = self.opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # Range Not Satisfiable: our part is longer than their file
                raise ImageError(f"{request.full_url} isn't the file it was; try again") from error
            if error.code in (408, 429) or error.code >= 500:
                raise Interrupted(f"the server said {error.code} {error.reason}") from error
            raise ImageError(f"can't fetch {request.full_url}: {error.code} {error.reason}") from error
        with reply:
            yield reply


@contextlib.contextmanager
def broken_transfers() -> Iterator[None]:
    """Names what can go wrong on the way; HTTPError, an answer, passes."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, FileNotFoundError):
            raise ImageError(f"there is no {reason.filename}") from error
        text = getattr(reason, "strerror", None) or str(reason)
        raise Interrupted(f"{text} (is there a network? a proxy goes into https_proxy)") from error
    except TimeoutError as error:
        raise Interrupted("no answer in time") from error
    except http.client.HTTPException as error:
        raise Interrupted(f"what answers there doesn't speak HTTP ({type(error).__name__})") from error
    except OSError as error:
        raise Interrupted(error.strerror or str(error)) from error
    except ValueError as error:  # urllib on a URL it can't take
        raise ImageError(str(error)) from error


def starts_at(reply, offset: int) -> bool:
    """Whether a 206 reply holds what follows ``offset`` (``Content-Range: bytes 100-199/200``)."""
    return reply.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
