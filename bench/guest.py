"""What all peers run: one kernel, one initramfs, one command line, one busybox."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

# The kernel's first words come on the serial port as soon as it has read its command line, milliseconds after its
# entry, and the same in every machine; "quiet", which stands behind, then keeps the port out of the measurement.
EARLY = "earlyprintk=serial,ttyS0,115200"


@dataclass(frozen=True)
class Guest:
    kernel: Path
    initrd: Path
    cmdline: str
    kernel_version: str
    memory_mib: int = 512
    cpus: int = 1
    programs: Path | None = None  # a folder of the host's whose files the guest has in /bench
    disks: bool = False           # machines get three disks (bench/disks)
    network: bool = False         # machines get a card, and a forwarded port to the guest's 80
    snapshots: bool = False       # QEMU gets a place for snapshots, and a monitor to take them by
    share: bool = False           # machines get a folder of the host's by virtiofs (bench/shares)
    root: Path | None = None      # a folder of the host's with what the initramfs holds, to be the host's root for it

    def __str__(self) -> str:
        return f"Linux {self.kernel_version}, {self.memory_mib} MiB, {self.cpus} vCPU{'s' if self.cpus > 1 else ''}"

    def busybox(self) -> bytes:
        """The busybox of the initramfs, for the runs on the host itself."""
        return find_file(self.initrd.read_bytes(), "bin/busybox")


@functools.cache
def micro() -> Guest:
    """hostel's default image, made on first use."""
    from hostel.base.errors import HostelError
    from hostel.images import store

    try:
        image = store.ensure("micro")
    except HostelError as e:
        raise BenchError(str(e)) from e
    return Guest(image.kernel, image.initrd, f"{EARLY} {image.cmdline}", image.kernel_version)


def find_file(archive: bytes, wanted: str) -> bytes:
    """One file of an uncompressed cpio archive."""
    for path, _, data in entries(archive):
        if path == wanted:
            return data
    raise BenchError(f"the initramfs is no plain cpio archive with {wanted} in it")


def entries(archive: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Path, mode and data of all that is in a cpio archive ("newc": kernel, early-userspace/buffer-format)."""
    at = 0
    while archive[at : at + 6] == b"070701":
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode(errors="surrogateescape")
        data = _aligned(at + 110 + name_size)
        if name == "TRAILER!!!":
            return
        yield name, mode, archive[data : data + size]
        at = _aligned(data + size)


def _aligned(offset: int) -> int:
    return (offset + 3) & ~3
