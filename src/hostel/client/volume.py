"""The SDK's volumes: ``Volume.create("data")``, then ``Container.run("db", shares=["data:/var/lib/db"])``; the CLI's
words. One that is used without having been made is made then."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hostel.containers import volumes


class Volume:
    """A volume of this host. Made by ``create``, ``get`` and ``list``, not by calling it."""

    def __init__(self, name: str):
        self._folder = volumes.find(name)

    @classmethod
    def create(cls, name: str | None = None, *, labels: dict[str, str] | None = None) -> "Volume":
        """Make an empty one, which is filled with what the image has in its place when it is used first; a name is made
        up where none is given. Raises HostelError."""
        from hostel.base.names import new_name

        name = name or new_name()
        volumes.create(name, labels or {})
        return cls(name)

    @classmethod
    def get(cls, name: str) -> "Volume":
        return cls(name)

    @classmethod
    def list(cls) -> "list[Volume]":
        """All volumes of this home, by name."""
        return [cls(name) for name in volumes.names()]

    @classmethod
    def prune(cls) -> Sequence[str]:
        """Remove all that no container has; their names."""
        return volumes.prune()

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def path(self) -> Path:
        """Where its files are."""
        return self._folder / "data"

    @property
    def spec(self) -> volumes.VolumeSpec:
        return volumes.spec(self.name)

    def used_by(self) -> Sequence[str]:
        """The containers that have it, whether they run or not."""
        return volumes.users().get(self.name, [])

    def inspect(self) -> dict[str, Any]:
        return self._told(self.used_by())

    @classmethod
    def inspect_all(cls) -> Sequence[dict[str, Any]]:
        """The same of each."""
        users = volumes.users()
        return [volume._told(users.get(volume.name, [])) for volume in cls.list()]

    def _told(self, used_by: Sequence[str]) -> dict[str, Any]:
        spec = self.spec
        return {
            "name": self.name, "path": str(self.path), "created": spec.created, "labels": spec.labels,
            "used_by": used_by,
        }

    def rm(self) -> None:
        """Remove it and what is in it; no container may have it."""
        volumes.remove(self.name)

    def __repr__(self) -> str:
        return f"<Volume {self.name}>"
