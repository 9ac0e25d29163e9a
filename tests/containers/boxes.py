"""OCI images for tests: a static busybox and two users, as docker-archive."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile

CONFIG = {"Cmd": ["sh"], "Env": ["PATH=/bin", "IMAGE=yes"], "WorkingDir": "/"}


def busybox():
    """A static one; None where there is none."""
    path = shutil.which("busybox")
    if path:
        with open(path, "rb") as file:
            if b"ld-linux" not in file.read(4096):
                return path
    return None


def layer(more=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def add(name, data=b"", mode=0o644, kind=tarfile.REGTYPE, link=""):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.type, info.linkname = len(data), mode, kind, link
            tar.addfile(info, io.BytesIO(data))

        for folder in ("bin", "etc", "proc", "sys", "dev", "root", "var", "home", "srv", "tmp"):
            add(folder, mode=0o1777 if folder == "tmp" else 0o755, kind=tarfile.DIRTYPE)
        path = busybox()
        with open(path, "rb") as file:
            add("bin/busybox", file.read(), 0o755)
        for name in subprocess.check_output([path, "--list"], text=True).split():
            if name != "busybox":
                add(f"bin/{name}", kind=tarfile.SYMTYPE, link="busybox")
        add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
        add("etc/group", b"root:x:0:\nusers:x:1000:\nextra:x:1001:user\n")
        for name, data in more:
            add(name, data, 0o755)
    return out.getvalue()


def archive(path, config=None, tag="box:latest", more=()):
    """Write a docker-archive of it; ``more``: further files, (name, content)."""
    data = layer(more)
    described = {
        "architecture": "amd64", "os": "linux", "config": {**CONFIG, **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]},
    }  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("config.json", json.dumps(described).encode()), ("layer.tar", data),
            ("manifest.json", json.dumps(manifest).encode()),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
