"""Names and passwords for registries, in the files that other tools keep theirs in, too (containers-auth.json(5)).

Looked at in this order: ``$REGISTRY_AUTH_FILE``, ``HOME/auth.json`` of hostel's own, where ``hostel image login``
keeps what it is told, ``$XDG_RUNTIME_DIR/containers/auth.json``, and Docker's ``config.json``. Where a file names a
credential helper, that program is asked.
"""

import base64
import binascii
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostel.base import atomic, paths
from hostel.base.errors import ImageError
from hostel.images.oci.reference import DEFAULT_REGISTRY

_DOCKER_KEY = "https://index.docker.io/v1/"
_HELPER_SECONDS = 30


@dataclass(frozen=True)
class Login:
    name: str
    password: str
    token: str = ""  # an identity token, instead of a password


def own_file() -> Path:
    chosen = os.environ.get("REGISTRY_AUTH_FILE")
    return Path(chosen) if chosen else paths.home() / "auth.json"


def files() -> list[Path]:
    found = [own_file(), paths.home() / "auth.json"]
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(folder) / "containers/auth.json")
    found.append(Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json")
    return list(dict.fromkeys(found))


def find(registry: str) -> Login | None:
    for path in files():
        if login := _find_in(_read(path), registry):
            return login
    return None


def keep(registry: str, name: str, password: str) -> Path:
    """In a file that only its owner can read."""
    path = own_file()
    values = _read(path)
    text = base64.b64encode(f"{name}:{password}".encode()).decode()
    values.setdefault("auths", {})[_key(registry)] = {"auth": text}
    atomic.write(path, json.dumps(values, indent=1) + "\n", mode=0o600)
    return path


def forget(registry: str) -> None:
    path = own_file()
    values = _read(path)
    if values.get("auths", {}).pop(_key(registry), None) is None:
        raise ImageError(f"nothing is kept for {registry} in {path}")
    atomic.write(path, json.dumps(values, indent=1) + "\n", mode=0o600)


def _key(registry: str) -> str:
    return _DOCKER_KEY if registry == DEFAULT_REGISTRY else registry


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} can't be read, or isn't JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("auths", {}), dict):
        raise ImageError(f"{path} isn't a file of credentials")
    return values


def _find_in(values: dict[str, Any], registry: str) -> Login | None:
    helpers = values.get("credHelpers")
    helper = helpers.get(registry) if isinstance(helpers, dict) else None
    for key, entry in values.get("auths", {}).items():
        bare = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
        if bare in ("index.docker.io", "registry-1.docker.io"):
            bare = DEFAULT_REGISTRY
        if bare == registry and isinstance(entry, dict) and entry.get("auth"):
            try:
                name, colon, password = base64.b64decode(entry["auth"]).decode().partition(":")
            except (binascii.Error, ValueError, TypeError):
                colon = ""
            if not colon:
                raise ImageError(f"what is kept for {registry} is damaged; 'hostel image login {registry}' anew")
            return Login(name, password.rstrip("\0"), entry.get("identitytoken") or "")
    if not helper and values.get("credsStore"):
        helper = values["credsStore"]
    return _ask(str(helper), registry) if helper else None


def _ask(helper: str, registry: str) -> Login | None:
    program = f"docker-credential-{helper}"
    if "/" in helper:
        raise ImageError(f"{program!r} can't be a credential helper's name")
    try:
        done = subprocess.run(
            [program, "get"], input=_key(registry).encode(), capture_output=True, timeout=_HELPER_SECONDS
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
        name, secret = answer.get("Username"), answer.get("Secret")
    except (OSError, subprocess.TimeoutExpired, ValueError, AttributeError) as error:
        raise ImageError(f"{program}, which keeps passwords, can't be asked: {error}") from error
    if not secret:
        return None
    return Login("", "", secret) if name == "<token>" else Login(str(name), str(secret))
