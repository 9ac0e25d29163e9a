"""Where the host's cgroups are: /proc/self/mountinfo and /proc/self/cgroup (cgroups(7)).

A host has the hierarchies of v1, each with some controllers; or v2's, with all of them; or both (hybrid), and then a
controller is in one or the other. Where it is decides which files limit it (``v1``, ``v2``).
"""

from hostel.base.errors import ContainerError
from hostel.containers.cgroups.setting import read

# What v2 can do in each of its cgroups, without a controller by that name.
BUILT_IN = {"devices", "freezer"}
# v1's names for what v2 calls otherwise.
V2_NAME = {"blkio": "io"}


class Mount:
    """A hierarchy: ``point`` shows its cgroup ``root``; we are in its cgroup ``own``."""

    __slots__ = ("point", "root", "own")

    def __init__(self, point: str, root: str, own: str):
        self.point, self.root, self.own = point, root, own

    def ours(self) -> list[str]:
        """The names from what we see of the hierarchy to our own cgroup."""
        root = self.root.rstrip("/") + "/"
        own = self.own.rstrip("/") + "/"
        if "/../" in own or not own.startswith(root):
            raise ContainerError(
                f"our own cgroup {self.own} isn't under {self.point}, which shows {self.root}:"
                " give linux.cgroupsPath as an absolute path"
            )
        return own[len(root) :].split("/")[:-1]


class Hierarchies:
    """``v1`` by controller, ``name=systemd`` too."""

    def __init__(self, v1: dict[str, Mount], v2: Mount | None):
        self.v1, self.v2 = v1, v2

    def available(self) -> set[str]:
        """The controllers of v2, as its topmost cgroup that we see has them."""
        return set((read(self.v2.point, "cgroup.controllers") or "").split()) if self.v2 else set()


def find(proc: str = "/proc/self") -> Hierarchies:
    """The host's. Where one is mounted twice, the first counts."""
    own: dict[str, str] = {}
    for line in (read(proc, "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    old: dict[str, Mount] = {}
    new = None
    for line in (read(proc, "mountinfo") or "").splitlines():
        before, _, after = line.partition(" - cgroup")  # file systems have many other mounts
        if not after:
            continue
        root, point = (_unescaped(part) for part in before.split(" ")[3:5])
        if after.startswith("2 "):
            new = new or Mount(point, root, own.get("", "/"))
        elif after.startswith(" "):
            for option in after.rsplit(" ", 1)[1].split(","):
                if option in own:
                    old.setdefault(option, Mount(point, root, own[option]))
    return Hierarchies(old, new)


def _unescaped(text: str) -> str:
    """mountinfo has spaces and the like as octal numbers."""
    for code in (" ", "\t", "\n", "\\"):
        text = text.replace(f"\\{ord(code):03o}", code)
    return text
