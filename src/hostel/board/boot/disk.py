"""Which kernel a disk would boot: what a boot loader does, without one on the disk.

An ext4 file system is looked for on the whole disk and in its partitions (GPT, or MBR's primary ones). In it, as the
distributions keep them: the links ``vmlinuz`` and ``initrd.img`` in / or /boot, which package managers move to
the newest kernel, else the newest ``vmlinuz-VERSION`` in /boot. Its command line is /etc/kernel/cmdline
(kernel-install(8)), else just the root file system, by its UUID. What the kernel's package does with such files is
enough: ``apt upgrade`` and ``reboot`` start the new one.

The guest owns all of this: see ext4. Nothing is written.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hostel.base.errors import BootError
from hostel.board.boot.ext4 import Ext4
from hostel.board.boot.state import InMemory

SECTOR = 512
KERNEL_MAX = 128 << 20
INITRD_MAX = 256 << 20
CMDLINE_MAX = 1024
PARTITIONS = 128
LINKS = (("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img"))
INITRDS = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}")


@dataclass(frozen=True)
class Found:
    """What to boot. ``cmdline`` has a ``root=``."""

    kernel: InMemory
    initrd: InMemory | None
    cmdline: str


def find(read: Callable[[int, int], bytes], size: int) -> Found:
    """The kernel on a disk of ``size`` bytes that ``read(offset, size)`` reads. ``BootError``: there is none."""
    why = ""
    for start, length in _volumes(read, size):
        try:
            fs = Ext4(_part(read, start, length))
        except BootError as error:
            why = why if str(error) == "no ext4 file system" else str(error)
            continue
        try:
            pair = _kernel(fs)
            if pair:
                return _load(fs, *pair)
        except BootError as error:
            why = str(error)
    raise BootError(f"the disk has no kernel to boot: {why or 'no ext4 file system with a vmlinuz in it'}")


def _load(fs: Ext4, kernel: str, initrd: str) -> Found:
    cmdline = ""
    if fs.exists("/etc/kernel/cmdline"):
        raw = fs.file("/etc/kernel/cmdline", CMDLINE_MAX)
        cmdline = " ".join(raw.decode("ascii", errors="replace").split())
        if not cmdline.isprintable() or not cmdline.isascii():
            raise BootError("the disk's /etc/kernel/cmdline isn't plain text")
    if not re.search(r"(^| )root=", cmdline):
        uuid = fs.uuid
        name = f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
        cmdline = f"root=UUID={name} ro {cmdline}".strip()
    return Found(
        InMemory(f"the disk's {kernel}", fs.file(kernel, KERNEL_MAX)),
        InMemory(f"the disk's {initrd}", fs.file(initrd, INITRD_MAX)) if initrd else None,
        cmdline,
    )


def _kernel(fs: Ext4) -> tuple[str, str] | None:
    """The paths of a kernel and its initramfs ("" for none)."""
    for kernel, initrd in LINKS:
        if fs.exists(kernel):
            return kernel, initrd if fs.exists(initrd) else ""
    for folder in ("/boot", "/"):
        names = fs.names(folder) if fs.exists(folder) else []
        versions = [name.removeprefix("vmlinuz-") for name in names if name.startswith("vmlinuz-")]
        if versions:
            version = max(versions, key=_order)
            initrds = [form.format(version) for form in INITRDS if form.format(version) in names]
            base = folder.rstrip("/")
            return f"{base}/vmlinuz-{version}", f"{base}/{initrds[0]}" if initrds else ""
    return None


def _order(version: str) -> list[tuple[int, str]]:
    """Sorts 6.1.0-9 before 6.1.0-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d{1,18}|\D+", version)]


def _part(read: Callable[[int, int], bytes], start: int, length: int) -> Callable[[int, int], bytes]:
    return lambda offset, size: read(start + offset, size) if offset + size <= length else b""


def _volumes(read: Callable[[int, int], bytes], size: int) -> Iterator[tuple[int, int]]:
    """Where file systems may be: (byte, length)."""
    yield 0, size
    if size < 2 * SECTOR:
        return
    for first, sectors in _gpt(read, size) or _mbr(read):
        if 0 < first and 0 < sectors and (first + sectors) * SECTOR <= size:
            yield first * SECTOR, sectors * SECTOR


def _gpt(read: Callable[[int, int], bytes], size: int) -> list[tuple[int, int]]:
    """UEFI 2.10, 5.3: partitions as (first sector, sectors)."""
    head = read(SECTOR, 92)
    if head[:8] != b"EFI PART":
        return []
    table, count, length = struct.unpack_from("<QII", head, 72)
    if not 128 <= length <= 4096 or table * SECTOR > size - length * min(count, PARTITIONS):
        raise BootError("the disk's partition table makes no sense")
    data = read(table * SECTOR, length * min(count, PARTITIONS))
    found = []
    for at in range(0, len(data), length):
        first, last = struct.unpack_from("<QQ", data, at + 32)
        if any(data[at : at + 16]):
            found.append((first, last - first + 1))
    return found


def _mbr(read: Callable[[int, int], bytes]) -> list[tuple[int, int]]:
    sector = read(0, SECTOR)
    if sector[510:] != b"\x55\xaa":
        return []
    return [struct.unpack_from("<II", sector, at + 8) for at in range(446, 510, 16) if sector[at + 4]]  # type: ignore
