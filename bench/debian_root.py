"""A Debian root as an initramfs: what real programs need, without a disk. For benchmarks and tests.

``mmdebstrap`` makes it from the host's own mirrors (apt verifies the packages); its tar becomes a cpio archive with
hostel's agent as ``/init``, so that a kernel with nothing but this initramfs takes commands through the SDK:

    VM.run("micro", initrd=str(debian_root.initramfs(["python3-minimal"])), memory="2G")

It is compressed with zstd (kernels since 5.9 unpack it): the guest holds the archive and its files at once. The
files may take half of the guest's memory, as tmpfs has it.

What was made is kept in hostel's cache under a hash of the recipe; an older one of the same name is removed. The
packages' versions are the mirrors' of that day, and are in the guest's ``dpkg -l``.
"""

import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from bench.errors import BenchError, Missing
from hostel.base import atomic, paths
from hostel.images import agent, cpio, sources, tiny

TIME_LIMIT = 1200  # seconds for mmdebstrap: hundreds of megabytes through a slow mirror
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
MAKERS = (Path(__file__), Path(cpio.__file__), Path(agent.__file__), Path(tiny.__file__))


def initramfs(
    packages: Sequence[str], name: str = "debian", suite: str = "bookworm", architectures: Sequence[str] = ("amd64",)
) -> Path:
    """The initramfs with ``suite`` and ``packages``, made if it isn't there. Raises BenchError and HostelError."""
    recipe = hashlib.sha256(repr((sorted(packages), suite, list(architectures))).encode())
    for path in MAKERS:
        recipe.update(path.read_bytes())
    folder = paths.cache() / "roots"
    path = folder / f"{name}-{recipe.hexdigest()[:16]}.cpio.zst"
    with atomic.locked(folder / f".{name}.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix="hostel-root-", dir=folder) as temporary:
                tar = Path(temporary, "root.tar")
                bootstrap(tar, packages, suite, architectures)
                with atomic.replacing(path) as file, tarfile.open(tar) as archive:
                    with zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as packed:
                        for piece in records(archive):
                            packed.write(piece)
            for old in folder.glob(f"{name}-*.cpio.zst"):
                if old != path:
                    old.unlink()
    return path


def bootstrap(tar: Path, packages: Sequence[str], suite: str, architectures: Sequence[str]) -> None:
    program = shutil.which("mmdebstrap")
    if not program:
        raise Missing("mmdebstrap isn't installed: apt install mmdebstrap")
    # A second architecture comes from the suite itself, without its updates: with static programs that's enough, and
    # mirrors lag behind with those.
    mirrors = [
        f"deb [arch={','.join(architectures if source.suite == suite else architectures[:1])}]"
        f" {source.mirror} {source.suite} main"
        for source in sources_of(suite)
    ]
    command = [program, "--variant=minbase", f"--architectures={','.join(architectures)}"]
    command += [f"--include={','.join(packages)}"] if packages else []
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(int(time.time())), "LC_ALL": "C.UTF-8"}
    try:
        made = subprocess.run(
            [*command, suite, str(tar), *mirrors],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIME_LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BenchError(f"mmdebstrap didn't make a {suite} root in {TIME_LIMIT} seconds") from None
    if made.returncode:
        errors = [line for line in made.stderr.splitlines() if line.startswith(("E:", "error"))] or ["it failed"]
        raise BenchError(f"mmdebstrap: {errors[0]}")


def sources_of(suite: str) -> list[sources.Source]:
    """The host's own sources for ``suite`` and its updates; another suite is looked for on the same mirror."""
    configured = sources.configured()
    own = [source for source in configured if source.suite.partition("-")[0] == suite]
    return own or [sources.Source(configured[0].mirror, suite)]


def records(archive: tarfile.TarFile) -> Iterator[bytes]:
    """The tar's entries as those of a cpio archive. Owners are root, hard links become symbolic ones."""
    number = 0
    for entry in archive:
        path = entry.name.removeprefix("./").strip("/")
        if not path or path.startswith("dev/") or ".." in path.split("/"):
            continue  # the kernel's own devtmpfs comes over /dev
        data, kind = b"", 0
        if entry.isdir():
            kind = stat.S_IFDIR
        elif entry.issym():
            kind, data = stat.S_IFLNK, entry.linkname.encode()
        elif entry.islnk():
            kind, data = stat.S_IFLNK, b"/" + entry.linkname.removeprefix("./").encode()
        elif entry.isreg():
            file = archive.extractfile(entry)
            assert file is not None
            kind, data = stat.S_IFREG, file.read()
        else:
            continue
        mode = 0o777 if kind == stat.S_IFLNK else entry.mode & 0o7777
        number += 1
        yield from cpio.record(number, path, kind | mode, data, 0)
    # The kernel opens /dev/console for init before init can mount anything.
    yield from cpio.record(number + 1, "dev/console", stat.S_IFCHR | 0o600, b"", 5 << 20 | 1)
    yield from cpio.record(number + 2, "init", stat.S_IFREG | 0o755, tiny.compiled(agent), 0)
    yield from cpio.record(0, "TRAILER!!!", 0, b"", 0)
