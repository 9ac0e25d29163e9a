"""A NoCloud seed: the small ISO 9660 disk, labelled CIDATA, by which a VM gets what is its own (cloud-init, NoCloud).

It holds ``user-data``, ``meta-data`` and what else was given. For images without cloud-init the same is there as shell
scripts (images/cloud_config), which their first boot runs.
"""

import io
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hostel.base import atomic
from hostel.base.errors import UsageError
from hostel.images import cloud_config

LABEL = "CIDATA"
NAMES = ("user-data", "meta-data", "network-config", "vendor-data")
LONGEST = 4 << 20  # bytes of a file


@dataclass
class Seed:
    """``files`` as they were given; ``ignored``: keys of the user data that an image without cloud-init ignores."""

    files: dict[str, bytes] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """The disk."""
        atomic.write(path, iso(self.files), 0o600)


def read(source: str | None, name: str, keys: Iterable[str] = ()) -> Seed:
    """The seed of the VM ``name`` from a file of user data, or a folder with NAMES. ``keys`` may be root's in it.
    Raises UsageError."""
    keys = list(keys)
    files: dict[str, bytes] = {}
    if source is not None and os.path.isdir(source):
        there = [each for each in NAMES if os.path.exists(os.path.join(source, each))]
        files = {each: _read(os.path.join(source, each)) for each in there}
        if not files:
            raise UsageError(f"cloud-init: the folder {source} has none of {', '.join(NAMES)}")
    elif source is not None:
        files["user-data"] = _read(source)
    user_data = files.setdefault("user-data", b"#cloud-config\n{}\n")
    meta = _meta(files.get("meta-data", b""))
    meta.setdefault("instance-id", f"hostel-{uuid.uuid4()}")
    meta.setdefault("local-hostname", name)
    if keys:
        meta["public-keys"] = [*meta.get("public-keys", []), *keys]
    files["meta-data"] = json.dumps(meta, indent=1).encode() + b"\n"  # JSON is YAML
    scripts = cloud_config.scripts(user_data, keys)
    hostname = meta["local-hostname"]
    early = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "export PATH"]
    if hostname != name:
        early += cloud_config.scripts(b"#cloud-config\nhostname: " + json.dumps(hostname).encode()).early
    files["hostel-early"] = "\n".join([*early, *scripts.early, ""]).encode()
    if scripts.late:
        files["hostel-late"] = "\n".join([*early[:2], *scripts.late, ""]).encode()
    ignored = scripts.ignored + [each for each in ("network-config", "vendor-data") if each in files]
    return Seed(files, ignored)


def iso(files: dict[str, bytes]) -> bytes:
    """ISO 9660 with Rock Ridge and Joliet names, as every Linux reads it."""
    import pycdlib

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, data) in enumerate(sorted(files.items())):
        image.add_fp(
            io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}", file_mode=0o100600
        )
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST + 1)
    except OSError as error:
        raise UsageError(f"cloud-init: can't read {path}: {error.strerror}") from error
    if len(data) > LONGEST:
        raise UsageError(f"cloud-init: {path} is longer than {LONGEST >> 20} MiB")
    return data


def _meta(data: bytes) -> dict:
    import yaml

    try:
        meta = yaml.safe_load(data) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"cloud-init: the meta data is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("local-hostname", ""), str):
        raise UsageError("cloud-init: the meta data is no mapping of keys")
    return meta


def public_keys(path: str) -> list[str]:
    """The keys in a file of OpenSSH's public keys. Raises UsageError."""
    lines = [line.strip() for line in _read(path).decode(errors="replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or not all(_is_key(line) for line in keys):
        hint = "; the public key is the file that ends with .pub" if any("PRIVATE KEY" in line for line in keys) else ""
        raise UsageError(f"{path} holds no SSH public key{hint}")
    return keys


def _is_key(line: str) -> bool:
    words = line.split()
    return any(
        word.startswith(("ssh-", "ecdsa-", "sk-")) and next_.startswith("AAAA")
        for word, next_ in zip(words, words[1:], strict=False)
    )
