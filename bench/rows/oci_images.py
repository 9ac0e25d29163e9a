"""Pull and unpack of an image of 100 MB, packed, from a docker-registry on loopback: hostel beside skopeo and umoci,
which stand for "the host itself". The machines just stand there.

The image has the host's own libraries and documentation. What both unpack must be the same: names, kinds, modes,
owners, sizes and links.
"""

import atexit
import functools
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.errors import Missing, Wrong
from bench.hostel import program
from bench.peer import Peer
from bench.row import Context, Goal, Row, Sample, Values

SIZE = 100_000_000  # bytes of all layers together, packed
PROGRAMS = ("docker-registry", "skopeo", "umoci", "gzip")
SOURCES = ("/usr/lib/x86_64-linux-gnu", "/usr/share/doc", "/usr/lib/python3", "/usr/share/perl", "/usr/bin")
_CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
log: {{level: error}}
"""


def pulling(layers: int) -> Callable[[Sequence[Peer], Context], Values]:
    def measure(peers: Sequence[Peer], context: Context) -> Values:
        if lacking := [name for name in PROGRAMS if not shutil.which(name)]:
            raise Missing(f"there is no {lacking[0]} to compare with; on Debian: apt-get install {' '.join(lacking)}")
        if os.geteuid():
            raise Missing("pulling images is compared as root: umoci keeps owners")
        address = registry(layers, context.scaled(SIZE))
        values: Values = {}
        trees: dict[str, set[tuple[Any, ...]]] = {}
        with tempfile.TemporaryDirectory(prefix="hostel-bench-", dir="/var/tmp") as name:
            folder = Path(name)
            for peer in peers:
                if peer.name == "hostel":
                    values[peer.name] = timed(
                        [*program(), "image", "pull", "-q", f"{address}/it"], HOSTEL_HOME=str(folder / "home")
                    )
                    trees[peer.name] = tree(sorted(folder.glob("home/images/oci/layers/*/fs")))
                elif peer.name == "native":
                    copied = timed(
                        ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false",
                         f"docker://{address}/it:latest", f"oci:{folder}/layout:it"])  # fmt: skip
                    unpacked = timed(["umoci", "unpack", "--image", f"{folder}/layout:it", str(folder / "bundle")])
                    assert copied.cpu and unpacked.cpu
                    values[peer.name] = Sample(copied.value + unpacked.value, copied.cpu + unpacked.cpu)
                    trees[peer.name] = tree([folder / "bundle/rootfs"])
        if len(trees) == 2 and trees["hostel"] != trees["native"]:
            odd = sorted(map(str, trees["hostel"] ^ trees["native"]))
            raise Wrong(f"hostel and umoci unpacked the image to different trees: {odd[:4]}")
        return values

    return measure


def timed(command: list[str], **environment: str) -> Sample:
    """Nothing is flushed by either, so what others wrote is on the disk first."""
    os.sync()
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Wrong(f"{' '.join(command)} ended with status {process.returncode}")
    return Sample(time.monotonic() - started, used.ru_utime + used.ru_stime)


def tree(folders: list[Path]) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()
    for folder in folders:
        for where, names, files in os.walk(folder):
            for name in (*names, *files):
                path = Path(where, name)
                status = path.lstat()
                link = os.readlink(path) if path.is_symlink() else ""
                size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
                found.add((str(path.relative_to(folder)), status.st_mode, status.st_uid, status.st_gid, size, link))
    return found


# -- the registry and its image, made once a process


@functools.cache
def registry(layers: int, size: int) -> str:
    """HOST:PORT of a registry that has the image 'it'."""
    folder = Path(tempfile.mkdtemp(prefix="hostel-bench-registry-", dir="/var/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "config.yml").write_text(_CONFIG.format(root=folder / "data", port=port))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.kill)
    make_layout(folder / "layout", layers, size)
    address = f"127.0.0.1:{port}"
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://{address}/v2/", timeout=10).close()
            break
        except OSError:
            time.sleep(0.1)
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", f"oci:{folder}/layout:it",
         f"docker://{address}/it:latest"], check=True)  # fmt: skip
    return address


def make_layout(folder: Path, layers: int, size: int) -> None:
    """An image layout with the image 'it': files of the host's, each source's in turns, until they are enough."""
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    kind = "application/vnd.oci.image."
    sources = sorted_files()
    blobs, diff_ids = [], []
    for number in range(layers):
        path = folder / f"layer{number}"
        hashed = hashlib.sha256()
        gzip = ["gzip", "-c", "-5"]
        with open(path, "wb") as out, subprocess.Popen(gzip, stdin=subprocess.PIPE, stdout=out) as packer:
            assert packer.stdin
            with tarfile.open(fileobj=Tee(packer.stdin, hashed), mode="w|") as tar:  # type: ignore[call-overload]
                made: set[str] = set()
                while path.stat().st_size < size // layers:
                    file = next(sources)
                    for parent in [*reversed(Path(f"layer{number}", file.relative_to("/")).parents)][1:]:
                        if str(parent) not in made:
                            made.add(str(parent))
                            info = tarfile.TarInfo(str(parent))
                            info.type, info.mode = tarfile.DIRTYPE, 0o755
                            tar.addfile(info)
                    tar.add(file, f"layer{number}{file}", recursive=False)
            packer.stdin.close()
        diff_ids.append(f"sha256:{hashed.hexdigest()}")
        blobs.append(blob(folder, path.read_bytes(), kind + "layer.v1.tar+gzip"))
        path.unlink()
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2, "mediaType": kind + "manifest.v1+json",
        "config": blob(folder, json.dumps(config).encode(), kind + "config.v1+json"), "layers": blobs,
    }  # fmt: skip
    entry = blob(folder, json.dumps(manifest).encode(), kind + "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "it"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def sorted_files() -> Any:
    """Ordinary files of the host's below 8 MB, so that the image has thousands; no name twice."""
    walks = [os.walk(source) for source in SOURCES if os.path.isdir(source)]
    while walks:
        for walk in list(walks):
            step = next(walk, None)
            if step is None:
                walks.remove(walk)
                continue
            step[1].sort()
            for name in sorted(step[2]):
                path = Path(step[0], name)
                status = path.lstat()
                if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_size < 8_000_000
                                                    and status.st_nlink == 1):  # fmt: skip
                    yield path
    raise Missing("this host has too few files to make an image of")


def blob(folder: Path, data: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


class Tee:
    """What is written goes on, and is hashed."""

    def __init__(self, file: Any, hashed: Any) -> None:
        self.file, self.hashed = file, hashed

    def write(self, data: bytes) -> int:
        self.hashed.update(data)
        self.file.write(data)
        return len(data)


ROWS = [
    Row("oci-pull", "pull and unpack an image of 100 MB, 1 layer (host: skopeo, umoci)", "s", pulling(1),
        Goal(slower=1.2)),
    Row("oci-pull-5", "the same, 5 layers", "s", pulling(5), Goal(slower=1.2)),
]  # fmt: skip
