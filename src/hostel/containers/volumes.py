"""Volumes: folders that containers have in common and that outlive them, ``volumes/NAME/`` with volume.json (what it
is), ``data`` and ``used``, once it was. What an image calls a VOLUME, and nobody gave a name, is in the container's own
folder and goes with it.

When it is first used an empty one is filled with what the image has in that place. Lock: ``lock`` in the folder of
them all, held by who makes, fills or removes one.
"""

import contextlib
import os
import re
import time
from pathlib import Path

import msgspec

from hostel.base import atomic, paths
from hostel.base.errors import MachineError, UsageError
from hostel.base.linux import openat2
from hostel.containers import copyup, store
from hostel.spec.container import VOLUME_NAME, ContainerSpec, Mount

VERSION = 1


class VolumeSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """volume.json."""

    version: int = VERSION
    created: float = 0.0          # seconds since the epoch
    labels: dict[str, str] = {}


def is_name(text: str) -> bool:
    return bool(re.fullmatch(VOLUME_NAME, text, re.ASCII))


def home() -> Path:
    return paths.home() / "volumes"


def check_name(name: str) -> str:
    if not is_name(name):
        raise UsageError(f"'{name}' is no name for a volume: up to 64 letters, digits and _.-, a letter or digit first")
    return name


def find(name: str) -> Path:
    """The folder of an existing volume."""
    folder = home() / name
    if not is_name(name) or not (folder / "volume.json").exists():
        raise MachineError(f"there is no volume named '{name}'; 'hostel volume ls' lists what there is")
    return folder


def names() -> list[str]:
    try:
        found = sorted(os.listdir(home()))
    except OSError:
        return []
    return [name for name in found if is_name(name) and (home() / name / "volume.json").exists()]


def spec(name: str) -> VolumeSpec:
    file = find(name) / "volume.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=VolumeSpec)
    except (OSError, msgspec.MsgspecError) as e:
        raise MachineError(f"{file} is damaged: {e}") from e


def create(name: str, labels: dict[str, str]) -> None:
    """Make it; ``MachineError`` where there is one of that name."""
    check_name(name)
    with _locked():
        if (home() / name).exists():
            raise MachineError(f"a volume named '{name}' exists already; 'hostel volume rm {name}' removes it")
        _make(name, labels)


def remove(name: str) -> None:
    """Remove it with what is in it; no container may have it, whether it runs or not."""
    with _locked():
        find(name)
        if has := users().get(name):
            raise MachineError(f"the volume '{name}' is used by {', '.join(has)}; 'hostel rm' removes containers")
        _delete(name)


def prune() -> list[str]:
    """Remove those that no container has; their names."""
    with _locked():
        used = users()
        gone = [name for name in names() if name not in used]
        for name in gone:
            _delete(name)
    return gone


def users() -> dict[str, list[str]]:
    """The containers that have volumes, by these."""
    found: dict[str, list[str]] = {}
    for folder in store.folders():
        with contextlib.suppress(MachineError):  # one that is damaged
            for name in {mount.volume for mount in folder.spec().mounts if mount.volume}:
                found.setdefault(name, []).append(folder.name)
    return found


def source(container: Path, mount: Mount, number: int) -> Path:
    """Where on the host the volume ``mount`` is, the container's mount of that ``number``."""
    return home() / mount.volume / "data" if mount.volume else container / "volumes" / str(number)


def prepare(container: Path, spec: ContainerSpec, root: Path) -> None:
    """Make the volumes of a container whose root is at ``root``, where they aren't there, and fill the empty ones."""
    wanted = [(number, mount) for number, mount in enumerate(spec.mounts) if mount.volume or mount.own]
    if not wanted:
        return
    with _locked():
        for number, mount in wanted:
            place = source(container, mount, number)
            with atomic.told(place):
                if mount.volume:
                    if not (home() / mount.volume / "volume.json").exists():
                        _make(mount.volume, {})
                    if not (used := place.with_name("used")).exists():
                        if not os.listdir(place):
                            _fill(root, mount.target, place)
                        used.touch()
                elif not place.exists():
                    place.parent.mkdir(mode=0o700, exist_ok=True)
                    _fill(root, mount.target, place)


def _fill(root: Path, target: str, place: Path) -> None:
    """``place`` becomes a copy of the image's folder, whole or not at all; an empty folder where it has none."""
    new = atomic.new_folder(place.parent, ".new-")
    try:
        new.chmod(0o755)
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = openat2.beneath(top, target.lstrip("/").encode(), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            found = -1
        finally:
            os.close(top)
        if found >= 0:
            try:
                copyup.copy_into(found, new)
            finally:
                os.close(found)
        os.rename(new, place)  # onto a folder that is empty, or nothing
    except BaseException:
        atomic.remove_folder(new)
        raise


def _delete(name: str) -> None:
    (home() / name / "volume.json").unlink()
    atomic.remove_folder(home() / name)


def _make(name: str, labels: dict[str, str]) -> None:
    if (home() / name).exists():  # leftovers of a removal
        atomic.remove_folder(home() / name)
    with atomic.replacing_folder(home() / name, 0o700) as new:
        (new / "data").mkdir(mode=0o755)
        (new / "volume.json").write_bytes(msgspec.json.encode(VolumeSpec(created=time.time(), labels=labels)) + b"\n")


def _locked() -> contextlib.AbstractContextManager[None]:
    with atomic.told(home()):
        home().mkdir(mode=0o700, parents=True, exist_ok=True)
    return atomic.locked(home() / "lock")
