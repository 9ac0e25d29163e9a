"""Where the host's cgroups are: /proc/self/mountinfo and /proc/self/cgroup (cgroups(7)).

A host has the hierarchies of v1, each with some controllers; or v2's, with all of them; or both (hybrid), and then a
controller is in one or the other. Where it is decides which files limit it (``v1``, ``v2``).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hostel.base.errors import ContainerError

# What v2 can do in each of its cgroups, without a controller by that name.
BUILT_IN = ("devices", "freezer")
# v1's names for what v2 calls otherwise.
V2_NAME = {"blkio": "io"}


@dataclass(frozen=True)
class Mount:
    """A hierarchy: ``point`` shows its cgroup ``root``; we are in its cgroup ``own``."""

    point: Path
    root: str
    own: str

    def folder(self, path: str) -> Path:
        """Of the cgroup ``path``, absolute in the hierarchy, of what we see of it."""
        return self.point / path.lstrip("/")

    def ours(self) -> str:
        """Our own cgroup, as what we see of the hierarchy has it."""
        own, root = PurePosixPath(self.own), PurePosixPath(self.root)
        if ".." in own.parts or not own.is_relative_to(root):
            raise ContainerError(
                f"our own cgroup {self.own} isn't under {self.point}, which shows {self.root}:"
                " give an absolute cgroupsPath"
            )
        return "/" + "/".join(own.relative_to(root).parts)


@dataclass
class Hierarchies:
    v1: dict[str, Mount] = field(default_factory=dict)  # by controller; name=systemd too
    v2: Mount | None = None

    def available(self) -> set[str]:
        """The controllers of v2, as its topmost cgroup that we see has them."""
        if self.v2 is None:
            return set()
        try:
            return set((self.v2.point / "cgroup.controllers").read_text().split())
        except OSError:
            return set()


def find(proc: Path = Path("/proc/self")) -> Hierarchies:
    """The host's. Where one is mounted twice, the first counts."""
    own: dict[str, str] = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    found = Hierarchies()
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, point = (_unescaped(part) for part in before.split(" ")[3:5])
        if kind == "cgroup2" and found.v2 is None:
            found.v2 = Mount(Path(point), root, own.get("", "/"))
        elif kind == "cgroup":
            for option in options.split(","):
                if option in own and option not in found.v1:
                    found.v1[option] = Mount(Path(point), root, own[option])
    return found


def _unescaped(text: str) -> str:
    """mountinfo has spaces and the like as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
