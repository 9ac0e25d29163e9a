"""The layers of VMs' own disks: what is frozen by snapshots and forks, and the new tops above.

``disks/VM/`` has a VM's layers, which name one another by bare names, and so does each snapshot's folder
(vm/snapshot), as other links to the same files: whoever goes takes only its links along. It is out of the reach of
workers, which get descriptors. An image's disk at the bottom is named relative to the folder, and all such folders are
as deep; what the user gave (``--disk``) stays where it is, by its absolute path.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hostel.base import atomic, paths
from hostel.spec.disk import DiskSpec
from hostel.spec.vm import VmSpec


class DiskLayer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The frozen top of disk ``number``: the name of a file of the folder's, or (``elsewhere``) a path. ``below``: the
    files of the folder's that it stands on. A ``fixed`` one is only read, and goes without a top."""

    number: int
    file: str
    format: str
    size: int
    elsewhere: bool = False
    fixed: bool = False
    below: list[str] = []


def folder(vm: str) -> Path:
    return paths.disks() / vm


def tops(spec: VmSpec, blank: Sequence[int] = ()) -> list[DiskLayer]:
    """What the VM's own disks stand at, each with a link in the VM's folder of layers, unless it is elsewhere; of those
    whose tops are ``blank``, in that folder, what is below: a thousand forks should make no chain of a thousand."""
    from hostel.block.disk import open_disk  # a VM without disks starts faster without it

    found = []
    own = folder(spec.name)
    for number, disk in enumerate(spec.disks):
        path, ours = Path(disk.path), (own, paths.vms() / spec.name)
        if disk.readonly and path.parent not in ours:
            continue
        image = open_disk(path, disk.format, readonly=True, allow_backing=True, locked=False)
        format = disk.format or "raw"
        layer = image
        if number in blank and image.backing:
            layer = image.backing
            path, format = layer.path, layer.format
        elsewhere = path.parent not in ours
        below = [layer.path.name for layer in layer.chain()[1:] if layer.path.parent == own]
        size = image.size
        image.close()
        name = str(path) if elsewhere else path.name
        if not elsewhere and path.parent != own:
            name = _new_name(number)
            with atomic.told(own):
                own.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.link(path, own / name)
        found.append(
            DiskLayer(
                number=number, file=name, format=format, size=size, elsewhere=elsewhere, fixed=disk.readonly,
                below=below,
            )
        )
    return found


def link(layers: Sequence[DiskLayer], source: Path, target: Path) -> None:
    """Have what is in the folder ``source`` in ``target`` too."""
    with atomic.told(target):
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for layer in layers:
            for name in [*layer.below, *([] if layer.elsewhere else [layer.file])]:
                with contextlib.suppress(FileExistsError):
                    os.link(source / name, target / name)


def put_tops(vm: str, layers: Sequence[DiskLayer]) -> dict[int, Path]:
    """New, empty tops on ``layers``, which are linked in the VM's folder, by the disks' numbers; of those that are only
    read the layers themselves."""
    own = folder(vm)
    made: dict[int, Path] = {}
    if not layers:
        return made
    from hostel.block.qcow2 import create

    with atomic.told(own):
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        for layer in layers:
            if layer.fixed:
                made[layer.number] = own / layer.file
                continue
            path = made[layer.number] = own / _new_name(layer.number)
            create.create(path, layer.size, create.Options(backing_file=layer.file, backing_fmt=layer.format))
    return made


def on_tops(spec: VmSpec, new: dict[int, Path]) -> VmSpec:
    """The VM with these tops for its disks."""
    disks = [
        disk if number not in new
        else msgspec.structs.replace(disk, path=str(new[number])) if disk.readonly
        else msgspec.structs.replace(disk, path=str(new[number]), format="qcow2", allow_backing=True)
        for number, disk in enumerate(spec.disks)
    ]
    return msgspec.structs.replace(spec, disks=disks)


def sweep(spec: VmSpec) -> None:
    """Let go of the VM's layers that its disks don't stand on."""
    own = folder(spec.name)
    if not own.is_dir():
        return
    needed = set()
    for disk in spec.disks:
        if Path(disk.path).parent == own:
            needed |= chain(disk)
    with atomic.told(own):
        for entry in list(os.scandir(own)):
            if entry.name not in needed:
                os.unlink(entry.path)


def merge(spec: VmSpec) -> VmSpec:
    """Write tops into the layers below them as far as those are nobody else's any more; the VM, which doesn't run, as
    it is then. Stopped in the middle it is as it was: what the top says counts."""
    from hostel.block.disk import open_disk
    from hostel.block.layers import commit

    own = folder(spec.name)
    merged: dict[int, Path] = {}
    for number, disk in enumerate(spec.disks):
        path = Path(disk.path)
        while path.parent == own and not disk.readonly:
            top = open_disk(path, "qcow2", allow_backing=True)
            try:
                below = top.backing
                if below is None or below.path.parent != own or below.format != "qcow2":
                    break
                if below.path.stat().st_nlink > 1:
                    break
                path = merged[number] = below.path
                commit(top, keep=True)
            finally:
                top.close()
    return on_tops(spec, merged)


def chain(disk: DiskSpec) -> set[str]:
    """The names of the files in its folder that a disk is made of."""
    from hostel.block.disk import open_disk

    top = open_disk(disk.path, disk.format, readonly=True, allow_backing=True, locked=False)
    try:
        return {layer.path.name for layer in top.chain() if layer.path.parent == Path(disk.path).parent}
    finally:
        top.close()


def _new_name(number: int) -> str:
    return f"disk{number}-{os.urandom(6).hex()}.qcow2"
