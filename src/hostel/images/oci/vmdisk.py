"""An image's root folder as a disk for a micro-VM: ext4 by ``mkfs.ext4 -d``, with its owners, modes and attributes.

The disk of an image is made once (``disks/DIGEST.raw``, as sparse as it can be); each VM has a qcow2 image of its own
above it. No layer is copied where overlayfs can show them together.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostel.base import atomic
from hostel.base.errors import ImageError
from hostel.base.linux import mount
from hostel.base.units import format_rough
from hostel.block.create import create_image
from hostel.images.oci.rootfs import flatten
from hostel.images.oci.store import Image

SIZE = 8 << 30  # bytes at least; more for images that need it
LABEL = "root"  # of the file system
NAME = "root.qcow2"
_SECONDS = 1800


@dataclass(frozen=True)
class VmRoot:
    """What a VM has its root file system on: ``kind`` is 'disk'."""

    path: Path
    kind: str
    format: str
    filesystem: str
    label: str


def root_for_vm(image: Image, folder: Path, size: int = SIZE) -> VmRoot:
    """A disk of the VM's own in its ``folder``, on the image's; the one that is there stays."""
    path = folder.absolute() / NAME
    with image.store.using():
        base = disk_of(image, size)
        image.store.users.note(folder, image.digest, [])
        if not path.exists():
            options = {"backing_file": str(base), "backing_fmt": "raw"}
            create_image(path, "qcow2", max(size, base.stat().st_size), options)
    return VmRoot(path, "disk", "qcow2", "ext4", LABEL)


def disk_of(image: Image, size: int = SIZE) -> Path:
    """The image's own disk, made if need be."""
    store = image.store
    path = store.disks / f"{image.digest.replace(':', '-')}.raw"
    if path.exists():
        return path
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not program:
        raise ImageError("there is no mkfs.ext4 to make a disk of the image with; on Debian: apt-get install e2fsprogs")
    with atomic.told(path):
        store.disks.mkdir(parents=True, exist_ok=True)
        with store.blobs.locked(f"disk-{image.digest}"):
            if path.exists():
                return path
            new = path.with_suffix(".new")
            try:
                with shown(image) as tree:
                    notes = filter(None, map(store.layers.note, image.layers))
                    _make(program, tree, new, max(size, 2 * sum(note.size for note in notes)))
                os.rename(new, path)
            finally:
                new.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def shown(image: Image) -> Iterator[Path]:
    """A folder, to read, with all that the image's layers show together."""
    lower = image.unpack()
    if len(lower) == 1:
        yield lower[0]
        return
    with tempfile.TemporaryDirectory(prefix=".shown-", dir=image.store.folder) as name:
        folder = Path(name) / "root"
        folder.mkdir()
        options: list[tuple[str, str | None]] = [("lowerdir+", str(path)) for path in lower]
        mounted = False
        with contextlib.suppress(OSError):
            if os.geteuid() == 0 and lower:
                mount.mount("overlay", options, folder, mount.READ_ONLY)
                mounted = True
        try:
            if not mounted:
                flatten(lower, folder)
            yield folder
        finally:
            if mounted:
                mount.unmount(folder)


def _make(program: str, tree: Path, target: Path, size: int) -> None:
    # Features that older e2fsprogs don't know would keep an older guest from its own file system.
    command = [
        program, "-q", "-F", "-L", LABEL, "-m", "1", "-O", "^orphan_file,^metadata_csum_seed",
        "-E", "lazy_itable_init=0", "-d", str(tree), str(target), f"{size >> 10}k",
    ]  # fmt: skip
    if os.geteuid():
        command = ["unshare", "--map-root-user", *command]  # files of ours are root's in there
    try:
        with open(target, "wb") as file:
            file.truncate(size)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"mkfs.ext4 can't make a disk of the image: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise ImageError(f"mkfs.ext4 can't make a disk of {format_rough(size)} of the image: {said}")
