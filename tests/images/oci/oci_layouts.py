"""Peers on loopback: Debian's docker-registry and skopeo; and images that tests make themselves."""

import gzip
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path

import pytest

CONFIG = """\
version: 0.1
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
log: {{level: error}}
{auth}
"""


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"there is no {program}; on Debian: apt-get install {program}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_registry(folder, auth=""):
    """A docker-registry that keeps its blobs in ``folder``; the process and HOST:PORT."""
    need("docker-registry")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(CONFIG.format(root=folder / "data", port=port, auth=auth))
    tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # a killed pytest leaves none
    process = subprocess.Popen(
        [*tied, "docker-registry", "serve", str(folder / "config.yml")],
        stdout=(folder / "log").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5).close()
            break
        except urllib.error.HTTPError:
            break  # it wants a password
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
    return process, f"127.0.0.1:{port}"


def layer(*entries, form=tarfile.PAX_FORMAT):
    """A tar of (name, content) or TarInfo or (TarInfo, content); a name that ends with a slash is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for entry in entries:
            name, content = entry if isinstance(entry, tuple) else (entry, b"")
            if isinstance(name, str):
                info = tarfile.TarInfo(name.rstrip("/"))
                info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                info.mode = 0o755 if name.endswith("/") else 0o644
                info.mtime = 1_000_000_000
            else:
                info = name
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(name, type_, **values):
    info = tarfile.TarInfo(name)
    info.type = type_
    info.mode = 0o644
    for key, value in values.items():
        setattr(info, key, value)
    return info


def sha256(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Layout:
    """An image layout that is written by hand, in a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "blobs/sha256").mkdir(parents=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.manifests = []
        self.write()

    def write(self):
        index = {"schemaVersion": 2, "manifests": self.manifests}
        (self.folder / "index.json").write_text(json.dumps(index))

    def blob(self, data, kind=""):
        digest = sha256(data)
        (self.folder / "blobs/sha256" / digest[7:]).write_bytes(data)
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def image(self, *tars, tag="latest", pack=gzip.compress, suffix="+gzip", config=None, architecture="amd64",
              diff_ids=None, listed=True, docker=False):  # fmt: skip
        """Adds an image of these layers; its descriptor."""
        base = "application/vnd.oci.image."
        kinds = (base + "config.v1+json", base + "layer.v1.tar" + suffix, base + "manifest.v1+json")
        if docker:
            base = "application/vnd.docker."
            kinds = (base + "container.image.v1+json", base + "image.rootfs.diff.tar.gzip",
                     base + "distribution.manifest.v2+json")  # fmt: skip
        about = {
            "architecture": architecture, "os": "linux", "config": config or {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [sha256(tar) for tar in tars]},
        }  # fmt: skip
        manifest = {
            "schemaVersion": 2, "mediaType": kinds[2],
            "config": self.blob(json.dumps(about).encode(), kinds[0]),
            "layers": [self.blob(pack(tar), kinds[1]) for tar in tars],
        }  # fmt: skip
        entry = self.blob(json.dumps(manifest).encode(), kinds[2])
        entry["platform"] = {"architecture": architecture, "os": "linux"}
        if tag:
            entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        if listed:
            self.manifests.append(entry)
            self.write()
        return entry

    def index(self, *entries, tag="latest"):
        data = json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()
        entry = self.blob(data, "application/vnd.oci.image.index.v1+json")
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.manifests.append(entry)
        self.write()


def skopeo(*arguments):
    need("skopeo")
    done = subprocess.run(["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree(folder):
    """What is in a folder: name to kind and content."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "/"
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "special"
    return found
