"""What a VM's disks are, when it is made: before anything of it exists, and once for all of its life."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from hostel.base import atomic
from hostel.base.errors import UsageError
from hostel.base.units import format_size
from hostel.block.disk import open_disk, probe
from hostel.block.qcow2 import create
from hostel.spec.disk import MAX_DISKS, MAX_QUEUES, DiskSpec, check_disk, parse_disk
from hostel.spec.vm import VmSpec

OWN = "disk.qcow2"  # in the VM's folder, on the image's disk (images/store knows it by this name)


def prepare(disks: Sequence[str | DiskSpec], cpus: int) -> list[DiskSpec]:
    """Specs as ``vm.toml`` keeps them, with formats; ``HostelError`` where a disk can't be had as it is wanted."""
    if len(disks) > MAX_DISKS:
        raise UsageError(f"a VM has up to {MAX_DISKS} disks, not {len(disks)}")
    out = []
    for disk in disks:
        spec = parse_disk(disk) if isinstance(disk, str) else check_disk(msgspec.structs.replace(disk))
        spec.format = spec.format or probe(spec.path)
        spec.queues = min(cpus, MAX_QUEUES)
        open_disk(
            spec.path, spec.format, readonly=spec.readonly, direct=spec.cache == "none",
            allow_backing=spec.allow_backing,
        ).close()
        out.append(spec)
    return out


def own(spec: VmSpec, base: Path, size: int, seed: Callable[[Path, str], bool]) -> Callable[[Path, Path], None]:
    """What ``store.create`` is to fill the folder of a VM with whose first disk is its own, of ``size`` bytes (0: as
    the image's), on that of an image at ``base``. ``seed(path, name)`` writes a seed disk, if there is to be one."""
    others = spec.disks

    def fill(new: Path, path: Path) -> None:
        below = open_disk(base, "qcow2", readonly=True)
        try:
            if size and size < below.size:
                raise UsageError(f"the image's disk has {format_size(below.size)}; a VM's can't be smaller")
            options = create.Options(backing_file=os.path.relpath(base, path), backing_fmt="qcow2")
            with atomic.told(new / OWN):
                create.create(new / OWN, size or below.size, options)
        finally:
            below.close()
        queues = min(spec.cpus, MAX_QUEUES)
        spec.disks = [DiskSpec(path=str(path / OWN), format="qcow2", queues=queues, allow_backing=True), *others]
        if seed(new / "seed.iso", spec.name):
            spec.disks.append(DiskSpec(path=str(path / "seed.iso"), format="raw", readonly=True))

    return fill
