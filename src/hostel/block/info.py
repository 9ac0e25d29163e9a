"""What an image says of itself, and where its bytes are, in the words of qemu-img's JSON."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from hostel.block.chain import locate
from hostel.block.disk import Disk, Extent
from hostel.block.qcow2 import header as head
from hostel.block.qcow2.disk import Qcow2


def describe(disk: Disk) -> dict[str, Any]:
    """One image, as ``qemu-img info --output=json`` has it."""
    out: dict[str, Any] = {
        "filename": str(disk.path),
        "format": disk.format,
        "virtual-size": disk.size,
        "actual-size": disk.file.allocated,
        "dirty-flag": False,
    }
    if isinstance(disk, Qcow2):
        header = disk.header
        out["cluster-size"] = header.cluster_size
        out["dirty-flag"] = bool(header.incompatible & head.DIRTY)
        out["format-specific"] = {"type": "qcow2", "data": _specific(disk)}
        if disk.backing_name is not None:
            out["backing-filename"] = disk.backing_name
            out["full-backing-filename"] = str(locate(disk.path, disk.backing_name))
            if disk.backing_format is not None:
                out["backing-filename-format"] = disk.backing_format
        if disk.snapshots:
            out["snapshots"] = [_snapshot(snapshot) for snapshot in disk.snapshots]
    return out


def _specific(disk: Qcow2) -> dict[str, Any]:
    header = disk.header
    if header.version < 3:
        return {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16}
    out: dict[str, Any] = {
        "compat": "1.1",
        "compression-type": head.COMPRESSIONS[header.compression],
        "lazy-refcounts": bool(header.compatible & head.LAZY_REFCOUNTS),
        "refcount-bits": 1 << header.refcount_order,
    }
    if disk.external:
        out |= {"data-file": disk.data_name, "data-file-raw": disk.raw_data}
    return out | {
        "corrupt": bool(header.incompatible & head.CORRUPT),
        "extended-l2": header.extended_l2,
    }


def _snapshot(snapshot: Any) -> dict[str, Any]:
    out = {
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date,
        "date-nsec": snapshot.date_nanoseconds,
        "vm-clock-sec": snapshot.vm_clock // 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock % 1_000_000_000,
    }
    return out if snapshot.icount is None else out | {"icount": snapshot.icount}


def joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Neighbours that go on where the last one ends, as one."""
    last: Extent | None = None
    for extent in extents:
        if last is None:
            last = extent
            continue
        offset = None if last.offset is None else last.offset + last.length
        goes_on = dataclasses.replace(last, start=last.start + last.length, length=extent.length, offset=offset)
        if goes_on == extent:
            last = dataclasses.replace(last, length=last.length + extent.length)
        else:
            yield last
            last = extent
    if last is not None:
        yield last


def mapped(extent: Extent) -> dict[str, Any]:
    """An extent as ``qemu-img map --output=json`` has it (version 8.2 and later say ``compressed``)."""
    out: dict[str, Any] = {
        "start": extent.start, "length": extent.length, "depth": extent.depth, "present": extent.present,
        "zero": extent.zero, "data": extent.data, "compressed": extent.compressed,
    }
    return out if extent.offset is None else out | {"offset": extent.offset}


def checked(disk: Disk, found: Any) -> dict[str, Any]:
    """What a check found, as ``qemu-img check --output=json`` has it: what is nothing isn't said."""
    out: dict[str, Any] = {"filename": str(disk.path), "format": disk.format, "check-errors": found.check_errors}
    for name in ("image_end_offset", "total_clusters", "allocated_clusters", "fragmented_clusters",
                 "compressed_clusters", "corruptions", "leaks", "corruptions_fixed", "leaks_fixed"):  # fmt: skip
        value = getattr(found, name)
        if value or name == "total_clusters":
            out[name.replace("_", "-")] = value
    return out
