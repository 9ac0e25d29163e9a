"""What a container may use: cgroups, v1, v2 and both.

``open_cgroup`` decides where a container's cgroup is; the rest is ``Cgroup``'s. Every command of the runtime imports
this, so it stands on as few modules as can be: no pathlib, typing, contextlib or msgspec, which take longer than all of
a cgroup's making.
"""

import os

from hostel.base.errors import ContainerError
from hostel.containers.cgroups.group import Cgroup
from hostel.containers.cgroups.hierarchy import BUILT_IN, V2_NAME, Hierarchies, Mount, find
from hostel.containers.cgroups.setting import Place

__all__ = ["Cgroup", "open_cgroup"]

_CONTROLLERS = ("cpuset", "cpu", "memory", "blkio", "pids", "hugetlb", "rdma", "misc", "devices", "freezer")


def open_cgroup(
    path: str | None, id: str, *, systemd: bool = False, rootless: bool | None = None, host: Hierarchies | None = None
) -> Cgroup:
    """The cgroup of the container ``id``; nothing is made yet.

    ``path`` is ``linux.cgroupsPath``: an absolute one is from the top of each hierarchy; another is below our own
    cgroup in v1, and beside it in v2, where a cgroup that has processes can't have any below it that are limited; none
    is the id. ``..`` doesn't lead out. ``systemd``: ``slice:prefix:name``. ``rootless``: whether to do without what we
    may not have; else as our user ID says. Raises ContainerError.
    """
    rootless = os.geteuid() != 0 if rootless is None else rootless
    scope: tuple[str, str, bool] | None = None
    if systemd:
        from hostel.containers.cgroups.systemd import LEAF, ScopedCgroup, folder_of, named
        from hostel.containers.cgroups.systemd import find as find_systemd

        slice, unit = named(path, id, rootless)
        path = f"{find_systemd(rootless)}{folder_of(slice)}/{unit}/{LEAF}"
        scope = (slice, unit, rootless)
    path = path or id
    if path.count(":") == 2 and "/" not in path:
        raise ContainerError(f"linux.cgroupsPath '{path}' is systemd's form: it takes --systemd-cgroup")
    host = host or find()
    if not host.v1 and not host.v2:
        raise ContainerError("the host has no cgroups mounted: mount cgroup2 on /sys/fs/cgroup")
    places = {name: Place(1, _folder(mount, path, beside=False)) for name, mount in host.v1.items()}
    unified = _folder(host.v2, path, beside=not host.v1) if host.v2 else None
    if unified:
        available = host.available() | BUILT_IN
        for name in _CONTROLLERS:
            if name not in places and V2_NAME.get(name, name) in available:
                places[name] = Place(2, unified)
    if scope:
        return ScopedCgroup(id, places, unified, rootless, *scope)
    return Cgroup(id, places, unified, rootless)


def _folder(mount: Mount, path: str, beside: bool) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    if not parts:
        raise ContainerError(f"linux.cgroupsPath '{path}' is the whole host's cgroup: give a name below it")
    if not path.startswith("/"):
        ours = mount.ours()
        parts = (ours[:-1] if beside else ours) + parts
    return "/".join([mount.point.rstrip("/"), *parts])
