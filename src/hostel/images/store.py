"""The images on this machine: ``HOME/images/NAME/`` with ``image.toml`` and what it names.

There are two kinds: kernels with an initramfs (RECIPES), and disks (``debian``, ``debian:SUITE``; images/bootstrap),
below which VMs have their own. So a disk that VMs stand on isn't removed, and when its image is made anew it stays
beside the new one for as long as they do.

``ensure`` makes an image that hostel has a recipe for on first use, under a lock, and again when a newer
hostel's recipe differs; then from the same packages while the cache has them, so that it needs no network.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import struct
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hostel._version import __version__
from hostel.base import atomic, paths
from hostel.base.errors import ImageError
from hostel.images import micro

if TYPE_CHECKING:
    from hostel.images.bootstrap import Options
    from hostel.images.debian import Archive, Package
    from hostel.images.fetch import Progress

RECIPES = {"micro": micro}
DISKS = ("debian",)  # images/bootstrap makes these, of the suite that follows a colon
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(:[a-z0-9][a-z0-9._-]{0,30})?")


@dataclass(frozen=True)
class Image:
    """An image on disk, ready to boot."""

    name: str
    folder: Path
    cmdline: str
    kernel_version: str
    recipe: str
    created: str
    tight: int = 0  # bytes of memory below which a guest is started otherwise
    tight_cmdline: str = ""
    packages: list[dict] = field(default_factory=list)
    disk_name: str = ""
    disk_size: int = 0  # bytes, as the guest sees it
    include: tuple[str, ...] = ()  # packages that somebody wanted in it
    agent_port: str = ""  # the virtio console's port on which its agent answers; "": the second serial port

    @property
    def disk(self) -> Path | None:
        """The qcow2 image that a VM's own disk stands on; None where the image is a kernel."""
        return self.folder / self.disk_name if self.disk_name else None

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    def start(self, memory: int) -> tuple[Path, Path, str]:
        """The kernel, the initramfs and the command line for a guest with so many bytes of memory."""
        if memory < self.tight:
            return self.kernel, self.folder / "initrd.zst", self.tight_cmdline
        return self.kernel, self.initrd, self.cmdline

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def ensure(name: str = "micro", progress: "Progress | None" = None, say: Callable[[str], None] | None = None) -> Image:
    """The image ``name``, made first if need be. Raises ImageError."""
    image = find(name)
    if image and (name not in RECIPES or image.recipe == RECIPES[name].recipe()):
        return image
    say = say or tell
    if name.partition(":")[0] in DISKS:
        return build(name, say=say, only_absent=True)
    if name not in RECIPES:
        raise unknown(name)
    with locked(name, say):
        image = find(name)  # another process may have made it while this one waited
        if image and image.recipe == RECIPES[name].recipe():
            return image
        return make(name, archives(progress), say, image)


def pull(name: str, progress: "Progress | None" = None, say: Callable[[str], None] | None = None) -> Image:
    """Makes the image ``name`` from the packages' current versions, unless it is so already."""
    say = say or tell
    if name.partition(":")[0] in DISKS:
        return build(name, say=say)
    if name not in RECIPES:
        raise unknown(name)
    archive = archives(progress)
    with locked(name, say):
        current = find(name)
        packages = RECIPES[name].resolve(archive)
        if current and current.recipe == RECIPES[name].recipe():
            if [entry["sha256"] for entry in current.packages] == [package.sha256 for package in packages]:
                return current
        return make(name, archive, say, None, packages)


def build(
    name: str, options: "Options | None" = None, say: Callable[[str], None] | None = None, only_absent: bool = False
) -> Image:
    """Makes the disk image ``name`` (``debian`` or ``debian:SUITE``) anew; without ``options`` by those that it had."""
    from hostel.images import bootstrap

    say = say or tell
    base, _, suite = name.partition(":")
    if base not in DISKS or not NAME.fullmatch(name):
        raise unknown(name) if base in RECIPES else ImageError(
            f"there is no recipe for an image '{name}'; there is {' and '.join(DISKS)}, and SUITE may follow a colon"
        )
    with locked(name, say):
        current = find(name)
        if current and only_absent:
            return current  # another process made it while this one waited
        if options is None:
            options = bootstrap.Options()
            if current:
                noted = tomllib.loads((current.folder / "image.toml").read_text())
                options = bootstrap.Options(
                    include=tuple(noted["include"].split()), size=noted["disk_size"], ssh_key=noted["ssh_key"]
                )
        options = dataclasses.replace(options, suite=suite)
        with atomic.replacing_folder(folder(name)) as new:
            notes = bootstrap.build(options, new, say)
            (new / "image.toml").write_text(described(name, bootstrap.recipe(), notes, [], new))
            for path in sorted(used_disks(name)):  # VMs go on standing on what they were made from
                os.link(path, new / path.name)
    image = find(name)
    assert image is not None
    return image


def users(name: str) -> dict[Path, list[str]]:
    """Which of the image's disks VMs stand on, and which VMs: by the backing files that their disks name."""
    found: dict[Path, list[str]] = {}
    for path in sorted(paths.vms().glob("[!.]*/disk.qcow2")):
        try:
            with open(path, "rb") as file:
                head = file.read(4096)
            offset, size = struct.unpack_from(">QI", head, 8)  # qcow2: backing_file_offset and _size
            below = Path(os.path.normpath(path.parent / os.fsdecode(head[offset : offset + size])))
        except (OSError, struct.error):
            continue
        if below.parent == Path(os.path.normpath(folder(name))) and below.exists():
            found.setdefault(below, []).append(path.parent.name)
    return found


def used_disks(name: str) -> set[Path]:
    return set(users(name))


def archives(progress: "Progress | None") -> "Archive":
    """Debian's, with a progress bar unless somebody else watches."""
    from hostel.images.debian import Archive
    from hostel.images.fetch import Bar

    return Archive(progress=progress or Bar())


def make(
    name: str,
    archive: "Archive",
    say: Callable[[str], None],
    old: Image | None,
    packages: "list[Package] | None" = None,
) -> Image:
    from hostel.images.debian import Package

    recipe = RECIPES[name]
    if packages is None and old:
        noted = [Package(**entry) for entry in old.packages]
        if noted and all(archive.cached(package) for package in noted):
            packages = noted
    packages = packages or recipe.resolve(archive)
    files = [archive.fetch(package) for package in packages]
    with atomic.replacing_folder(folder(name)) as new:
        notes = recipe.build(files, new, say)
        (new / "image.toml").write_text(described(name, recipe.recipe(), notes, packages, new))
    image = find(name)
    assert image is not None
    return image


def described(name: str, recipe: str, notes: dict[str, str | int], packages: "list[Package]", where: Path) -> str:
    """The text of image.toml. JSON's strings are TOML's basic strings."""
    import datetime

    from hostel.images.fetch import digest

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    top = {"name": name, "recipe": recipe, "created": now, "hostel": __version__, **notes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for path in sorted(where.iterdir()):
        lines += ["", f'[files."{path.name}"]', f"size = {path.stat().st_size}", f'sha256 = "{digest(path)}"']
    for package in packages:
        lines += ["", "[[packages]]"]
        for key in ("name", "version", "url", "size", "sha256"):
            lines.append(f"{key} = {json.dumps(getattr(package, key))}")
    return "\n".join(lines) + "\n"


def find(name: str) -> Image | None:
    """The image ``name`` if it is on this machine and whole."""
    if not NAME.fullmatch(name):
        raise ImageError(f"{name!r} can't be an image's name: small letters, digits, '.', '_' and '-'")
    where = folder(name)
    try:
        values = tomllib.loads((where / "image.toml").read_text())
        if not all((where / file).stat().st_size == entry["size"] for file, entry in values["files"].items()):
            return None
        wanted = ("cmdline", "kernel_version", "recipe", "created", "tight", "tight_cmdline", "packages")
        optional = {"cmdline": "", "tight": 0, "tight_cmdline": "", "packages": []} if "disk" in values else {}
        return Image(
            name, where, **{key: {**optional, **values}[key] for key in wanted},
            disk_name=values.get("disk", ""), disk_size=values.get("disk_size", 0),
            include=tuple(values.get("include", "").split()), agent_port=values.get("agent_port", ""),
        )  # fmt: skip
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ImageError(f"the image {name} can't be read: {error.filename}: permission denied") from error
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: as good as absent, and replaced by ensure


def images() -> list[Image]:
    """Every image on this machine, by name."""
    where = paths.images()
    names = sorted(path.name for path in where.iterdir() if NAME.fullmatch(path.name)) if where.is_dir() else []
    return [image for name in names if (image := find(name))]


def remove(name: str) -> None:
    """Removes the image ``name``. Running VMs keep what they have read; a disk that VMs stand on stays."""
    if not NAME.fullmatch(name) or not folder(name).exists():
        raise unknown(name, built=True)
    standing = sorted(vm for vms in users(name).values() for vm in vms)
    if standing:
        raise ImageError(f"the disks of these VMs stand on the image {name}: {', '.join(standing)}; 'hostel rm' first")
    with locked(name, tell), atomic.told(folder(name)):
        shutil.rmtree(folder(name))


def unknown(name: str, built: bool = False) -> ImageError:
    names = sorted({image.name for image in images()} | (set() if built else {*RECIPES, *DISKS}))
    there = f"there is {', '.join(names)}" if names else "there is none yet"
    return ImageError(f"there is no image {name!r}; {there}")


def folder(name: str) -> Path:
    return paths.images() / name


@contextlib.contextmanager
def locked(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the image's lock, and clears what a killed owner left half made."""
    waiting = f"waiting for another hostel that works on the image {name}"
    with atomic.locked(paths.images() / f".{name}.lock", lambda: say(waiting)):
        for left in paths.images().glob(f".{name}.*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        yield


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
