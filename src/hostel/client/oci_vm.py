"""An OCI image as the root of a micro-VM: ``hostel run --isolation vm IMAGE``.

The VM boots micro's kernel and initramfs, whose agent makes the image's disk (images/oci/vmdisk) the root of all that
it runs (images/agent_root): so the image's command, ``exec``, ``cp`` and shares are in the image, as in a container.
The disk stays with the VM.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hostel.base import atomic
from hostel.base.errors import UsageError
from hostel.base.units import format_size, parse_size
from hostel.block.create import create_image
from hostel.client.container import find_image, process_of
from hostel.containers import engine
from hostel.images.oci import vmdisk
from hostel.spec.disk import MAX_QUEUES, DiskSpec
from hostel.spec.vm import VmSpec
from hostel.vm.disks import OWN


class OciImage:
    """An image, and how its command is run; what isn't given is the image's. ``command`` is the whole argv."""

    def __init__(
        self, name: str, *, command: Sequence[str] = (), entrypoint: str | None = None, env: Sequence[str] = (),
        user: str | None = None, workdir: str | None = None, hostname: str | None = None,
    ):
        self.name = name
        self.image = find_image(name)
        self.hostname = hostname
        self.command, self.environment, name, self.workdir = process_of(
            self.image, command, entrypoint, env, user, workdir
        )
        with vmdisk.shown(self.image) as tree:
            self.user = engine.find_user(tree, name)

    def prepare(self, spec: VmSpec, size: int | str | None) -> Callable[[Path, Path], None]:
        """Have ``spec`` be a VM of the image; what is to be in its folder."""
        base = vmdisk.disk_of(self.image)
        wanted = parse_size(size) if isinstance(size, str) else size or os.path.getsize(base)
        if wanted < os.path.getsize(base):
            raise UsageError(f"the image's disk has {format_size(os.path.getsize(base))}; a VM's can't be smaller")
        spec.environment = [f"HOME={self.user['home']}", *self.environment]
        spec.workdir, spec.uid, spec.gid = self.workdir, self.user["uid"], self.user["gid"]
        spec.rng, spec.oci = True, self.image.name
        given, others = spec.cmdline, spec.disks

        def fill(new: Path, path: Path) -> None:
            with atomic.told(new / OWN):
                create_image(new / OWN, "qcow2", wanted, {"backing_file": str(base), "backing_fmt": "raw"})
            self.image.store.users.note(path, self.image.digest, [])
            queues = min(spec.cpus, MAX_QUEUES)
            spec.disks = [DiskSpec(path=str(path / OWN), format="qcow2", queues=queues, allow_backing=True), *others]
            host = self.hostname or spec.name.replace("_", "-")
            spec.cmdline = f"hostel.root=vda hostel.hostname={host} {given}".strip()

        return fill
