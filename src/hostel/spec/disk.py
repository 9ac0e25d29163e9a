"""A disk of a VM (``DiskSpec``), and how people write one: ``PATH[,OPTION[=VALUE]]...``."""

from pathlib import Path
from typing import Any

import msgspec

from hostel.base.errors import UsageError
from hostel.spec.rate import Rate, parse_rate

FORMATS = ("raw", "qcow2")
CACHES = ("writeback", "none")
MAX_SERIAL = 20              # bytes: virtio 1.2, 5.2.6 (VIRTIO_BLK_T_GET_ID)
MAX_DISKS = 16               # of the bus's 32 slots
MAX_QUEUES = 16


class DiskSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An image file and how the guest gets it. ``format`` is found out once, when the VM is made, and never again: a
    guest can write another format's header into a raw disk, and name files of the host in it."""

    path: str                     # absolute
    format: str = ""              # raw or qcow2; empty: not looked at yet
    readonly: bool = False
    cache: str = "writeback"      # through the host's page cache; none: past it (O_DIRECT). Flushes count in both
    serial: str = ""
    iops: Rate | None = None      # requests a second
    rate: Rate | None = None      # bytes a second
    queues: int = 1               # one for each vCPU
    allow_backing: bool = False   # files that the image names may lie anywhere (block/chain)


def parse_disk(text: str) -> DiskSpec:
    """``PATH[,format=raw|qcow2][,readonly][,cache=writeback|none][,serial=TEXT][,iops=RATE][,rate=RATE]``; a comma
    in the path is written twice."""
    first, *options = text.replace(",,", "\0").split(",")
    path = first.replace("\0", ",")
    if not path:
        raise UsageError(f"--disk takes PATH[,OPTION...]; '{text}' has no path")
    fields: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.replace("\0", ",").partition("=")
        if name in fields:
            raise UsageError(f"--disk: '{name}' is there twice")
        if name == "readonly" and not equals:
            fields[name] = True
        elif name in ("format", "cache", "serial") and value:
            fields[name] = value
        elif name in ("iops", "rate") and equals:
            fields[name] = parse_rate(value, f"--disk: {name}")
        else:
            raise UsageError(
                f"--disk takes format=, readonly, cache=, serial=, iops= and rate= behind the path; not '{option}'"
            )
    return check_disk(DiskSpec(path=str(Path(path).absolute()), **fields))


def check_disk(disk: DiskSpec) -> DiskSpec:
    """``disk`` itself; ``UsageError`` for values that can't be."""
    if disk.format and disk.format not in FORMATS:
        raise UsageError(f"a disk's format is {' or '.join(FORMATS)}; not '{disk.format}'")
    if disk.cache not in CACHES:
        raise UsageError(f"a disk's cache is {' or '.join(CACHES)}; not '{disk.cache}'")
    if len(disk.serial.encode(errors="replace")) > MAX_SERIAL or not disk.serial.isascii():
        raise UsageError(f"a disk's serial number has up to {MAX_SERIAL} ASCII characters; not '{disk.serial}'")
    if not disk.serial.isprintable():
        raise UsageError("a disk's serial number is printable")
    return disk
