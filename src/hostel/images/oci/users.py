"""Who stands on an image's layers: a file each in ``users/``, which names a container's or a VM's folder. One whose
folder is gone doesn't count.
"""

import hashlib
import os
from pathlib import Path

import msgspec

from hostel.base import atomic


class User(msgspec.Struct):
    folder: str
    digest: str  # of the image's manifest
    layers: list[str]  # chain IDs

    @property
    def name(self) -> str:
        return Path(self.folder).name


class Users:
    """Those noted in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, user: Path) -> Path:
        return self.folder / f"{hashlib.sha256(os.fsencode(user.absolute())).hexdigest()[:32]}.json"

    def note(self, user: Path, digest: str, layers: list[str]) -> None:
        atomic.write(self._path(user), msgspec.json.encode(User(str(user.absolute()), digest, layers)), durable=False)

    def forget(self, user: Path) -> None:
        self._path(user).unlink(missing_ok=True)

    def all(self) -> list[User]:
        found = []
        for path in sorted(self.folder.glob("[!.]*.json")) if self.folder.is_dir() else ():
            try:
                user = msgspec.json.decode(path.read_bytes(), type=User)
            except (OSError, msgspec.MsgspecError):
                continue
            if os.path.isdir(user.folder):
                found.append(user)
            else:
                path.unlink(missing_ok=True)
        return found
