"""Counting what an image refers to, comparing that with its refcounts, and mending what differs.

What is found is what qemu-img check finds, counted as it counts: *corruptions* are what loses data sooner or later,
*leaks* clusters that nobody uses. Only what the tables of the file say is looked at, so memory is bounded by them.

To mend means: count again. New refcount blocks and a new table are written behind everything, and the header then names
these (nothing that is right is overwritten), and the flags that say "refcount is one" are set to what is counted.
"""

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hostel.base.errors import BlockError
from hostel.block.disk import Disk
from hostel.block.file import File
from hostel.block.qcow2 import header as head
from hostel.block.qcow2.disk import Qcow2
from hostel.block.qcow2.mapping import (
    ALL,
    COMPRESSED,
    COPIED,
    L1_RESERVED,
    OFFSET_MASK,
    RESERVED,
    SUBCLUSTERS,
    compressed_place,
    read_l1,
)

MESSAGES = 100            # findings that are told one by one
_CHUNK_BITS = 7
_MAX_CHUNKS = 1 << 20     # as many take 700 MB, and count 8 TiB of clusters of 64 KiB in a row
_MAX_COUNT = (1 << 32) - 1
_TABLE_RESERVED = 511
_MAX_BITMAPS, _MAX_BITMAP_TABLES = 65535, 128 << 20  # QEMU's limit; bytes of all bitmaps' tables


@dataclass
class Found:
    """What a check found; the names are those of qemu-img's JSON."""

    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    image_end_offset: int = 0
    corruptions: int = 0
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    check_errors: int = 0
    messages: list[str] = field(default_factory=list)

    def corruption(self, text: str, times: int = 1) -> None:
        self.corruptions += times
        self.say("ERROR " + text)

    def leak(self, text: str) -> None:
        self.leaks += 1
        self.say("Leaked " + text)

    def say(self, text: str) -> None:
        if len(self.messages) < MESSAGES:
            self.messages.append(text)
        elif len(self.messages) == MESSAGES:
            self.messages.append("and more")


class Counts:
    """How often each cluster is referred to; memory for what is referred to only."""

    def __init__(self) -> None:
        self.chunks: dict[int, array[int]] = {}

    def add(self, first: int, last: int, times: int = 1) -> None:
        """So many more for each of the clusters from first to last."""
        while first <= last:
            number, index = first >> _CHUNK_BITS, first & (1 << _CHUNK_BITS) - 1
            chunk = self.chunks.get(number)
            if chunk is None:
                if len(self.chunks) == _MAX_CHUNKS:
                    raise BlockError("what this image refers to is too far apart to be counted")
                chunk = self.chunks[number] = array("I", bytes(4 << _CHUNK_BITS))
            chunk[index] = min(chunk[index] + times, _MAX_COUNT)
            first += 1

    def get(self, cluster: int) -> int:
        chunk = self.chunks.get(cluster >> _CHUNK_BITS)
        return chunk[cluster & (1 << _CHUNK_BITS) - 1] if chunk else 0

    def all(self) -> Iterator[tuple[int, int]]:
        """Clusters that are referred to, and how often, in order."""
        for number in sorted(self.chunks):
            base = number << _CHUNK_BITS
            for index, count in enumerate(self.chunks[number]):
                if count:
                    yield base + index, count


def check(disk: Disk) -> Found:
    """What is wrong with an image; nothing is changed. ``BlockError`` where its format has nothing to check."""
    if not isinstance(disk, Qcow2):
        raise BlockError("This image format does not support checks")
    return _Walk(disk).whole()


class _Walk:
    def __init__(self, disk: Qcow2):
        self.disk = disk
        self.found = Found()
        self.counts = Counts()
        self.l2_tables: dict[int, tuple[int, int]] = {}  # by offset: how often referred to, and from the active L1
        self.bits, self.size = disk.cluster_bits, disk.cluster_size
        self.end = disk.file.size
        self.found.total_clusters = -(-disk.size >> self.bits)

    def whole(self) -> Found:
        self.count()
        self.compare()
        self.check_copied()
        return self.found

    # -- what is referred to

    def refer(self, offset: int, length: int, times: int = 1) -> None:
        if not length:
            return
        if offset + length - self.end >= self.size:
            self.found.corruption(
                f"counting reference for region exceeding the end of the file by one cluster or more: "
                f"offset {offset:#x} size {length:#x}", times
            )
            return
        self.counts.add(offset >> self.bits, offset + length - 1 >> self.bits, times)

    def count(self) -> None:
        disk, header = self.disk, self.disk.header
        self.refer(0, self.size)
        self._mapping(header.l1_table_offset, header.l1_size, active=True)
        for snapshot in disk.snapshots:
            self._mapping(snapshot.l1_table_offset, snapshot.l1_size, active=False)
        # each table once, however often it is referred to
        for offset, (times, active) in self.l2_tables.items():
            self._l2(offset, times, active)
        self.refer(header.snapshots_offset, sum(snapshot.length for snapshot in disk.snapshots))
        self.refer(header.refcount_table_offset, header.refcount_table_clusters << self.bits)
        self._bitmaps()
        self._refcount_blocks()

    def _mapping(self, l1_offset: int, l1_size: int, active: bool) -> None:
        self.refer(l1_offset, l1_size * 8)
        l1 = self.disk.mapping.l1 if active else read_l1(self.disk.file, l1_offset, l1_size)
        for index, entry in enumerate(l1):
            if not entry:
                continue
            if entry & L1_RESERVED:
                self.found.corruption(f"found L1 entry with reserved bits set: {entry:#x}")
            offset = entry & OFFSET_MASK
            if not offset:
                continue
            self.refer(offset, self.size)
            if offset & self.size - 1:
                self.found.corruption(f"L1 entry {index} is corrupted: a table at {offset:#x} is not cluster aligned")
            elif offset < self.end:
                times, in_active = self.l2_tables.get(offset, (0, 0))
                self.l2_tables[offset] = times + 1, in_active + active

    def _l2(self, offset: int, times: int, active: int) -> None:
        """A table that is referred to so often, and so often from the active L1 table."""
        disk, found = self.disk, self.found
        mapping = disk.mapping
        entries = mapping.cache.get(offset).entries
        words = mapping.words
        contiguous = 0
        for index in range(0, len(entries), words):
            entry = entries[index]
            bitmap = entries[index + 1] if words == 2 else 0
            if not entry and not bitmap:
                continue
            if entry & COMPRESSED:
                if entry & COPIED:
                    found.corruption(f"compressed cluster {entry:#x}: copied flag must never be set", times)
                if disk.external:
                    found.corruption(f"compressed cluster {entry:#x} with data file", times)
                    continue
                if bitmap:
                    found.corruption(f"compressed cluster {entry:#x} with non-zero subcluster allocation bitmap", times)
                    continue
                self.refer(*compressed_place(entry, self.bits), times)
                found.allocated_clusters += active
                found.compressed_clusters += active
                found.fragmented_clusters += active  # by nature, qemu-img says
                continue
            if entry & RESERVED:
                found.corruption(f"found l2 entry with reserved bits set: {entry:#x}", times)
            host = entry & OFFSET_MASK
            if not host and not (disk.external and entry & COPIED):
                if bitmap & ALL:
                    found.corruption("Unallocated cluster has non-zero subcluster allocation map", times)
                continue
            if bitmap & bitmap >> SUBCLUSTERS & ALL:
                found.corruption(f"offset={host:#x}: Allocated cluster has corrupted subcluster bitmap", times)
            if host & self.size - 1:
                found.corruption(f"offset={host:#x}: Cluster is not properly aligned; L2 entry corrupted", times)
            found.allocated_clusters += active
            if contiguous and host != contiguous:
                found.fragmented_clusters += active
            contiguous = host + self.size
            if not disk.external:
                self.refer(host, self.size, times)

    def _bitmaps(self) -> None:
        """Dirty bitmaps of QEMU's, while their autoclear bit stands (the specification, "Bitmaps")."""
        data = self.disk.header.extension(head.BITMAPS_EXTENSION)
        if not self.disk.header.autoclear & head.BITMAPS or data is None or len(data) < 24:
            return
        number, _, length, at = struct.unpack(">IIQQ", data[:24])
        if length > _MAX_BITMAP_TABLES or number > _MAX_BITMAPS:
            self.found.corruption(f"{number} bitmaps in a directory of {length} bytes")
            return
        self.refer(at, length)
        directory = self.disk.file.read(at, length)
        at = tables = 0
        for _ in range(number):
            if at + 24 > len(directory):
                self.found.corruption("the bitmap directory ends early")
                return
            offset, entries, _, _, _, name, extra = struct.unpack_from(">QIIBBHI", directory, at)
            at += 24 + name + extra + 7 & ~7
            tables += entries * 8
            if tables > _MAX_BITMAP_TABLES or offset & self.size - 1:
                self.found.corruption(f"a bitmap table is at {offset:#x}")
                continue
            self.refer(offset, entries * 8)
            for entry in read_l1(self.disk.file, offset, entries):
                if entry & OFFSET_MASK:
                    self.refer(entry & OFFSET_MASK, self.size)

    def _refcount_blocks(self) -> None:
        for number, offset in self.disk.refcounts.blocks():
            if offset & _TABLE_RESERVED:
                self.found.corruption(f"refcount table entry {number} has reserved bits set")
            elif offset & self.size - 1:
                self.found.corruption(f"refcount block {number} is not cluster aligned; refcount table entry corrupted")
            elif offset >= self.end:
                self.found.corruption(f"refcount block {number} is outside image")
            else:
                self.refer(offset, self.size)
                count = self.counts.get(offset >> self.bits)
                if count != 1:
                    self.found.corruption(f"refcount block {number} refcount={count}")

    # -- against what is counted

    def compare(self) -> None:
        """Clusters of which refcounts and references differ."""
        refcounts, highest = self.disk.refcounts, 0
        clusters = -(-self.end >> self.bits)
        seen = set()
        for number, offset in refcounts.blocks():
            base = number << refcounts.block_bits
            if offset & self.size - 1 or offset >= self.end or base >= clusters or offset in seen:
                continue
            seen.add(offset)
            entries = refcounts.cache.get(offset).entries
            for index, count in enumerate(entries):
                if count and base + index < clusters:
                    highest = max(highest, base + index)
                    references = self.counts.get(base + index)
                    if count > references:
                        self.found.leak(f"cluster {base + index} refcount={count} reference={references}")
        for cluster, references in self.counts.all():
            highest = max(highest, cluster)
            count = self._refcount(cluster)
            if count < references:
                self.found.corruption(f"cluster {cluster} refcount={count} reference={references}")
        self.found.image_end_offset = highest + 1 << self.bits

    def _refcount(self, cluster: int) -> int:
        refcounts = self.disk.refcounts
        number = cluster >> refcounts.block_bits
        offset = refcounts.table[number] if number < len(refcounts.table) else 0
        if not offset or offset & self.size - 1 or offset >= self.end:
            return 0
        return refcounts.cache.get(offset).entries[cluster & refcounts.per_block - 1]

    def check_copied(self) -> None:
        """Entries of the active tables say whether a cluster's refcount is one."""
        for _, _, text in self.wrong_flags(self._refcount):
            self.found.corruption(text)

    def wrong_flags(self, refcount):  # type: ignore[no-untyped-def]
        """``(table, index, text)`` of entries with the wrong flag; table None: of the L1 table."""
        disk = self.disk
        mapping, seen = disk.mapping, set()
        for index, entry in enumerate(mapping.l1):
            offset = entry & OFFSET_MASK
            if not offset or offset & self.size - 1 or offset >= self.end or offset in seen:
                continue
            seen.add(offset)
            count = refcount(offset >> self.bits)
            if (count == 1) != bool(entry & COPIED):
                yield None, index, f"OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:#x} refcount={count}"
            table = mapping.cache.get(offset)
            for at in range(0, len(table.entries), mapping.words):
                entry = table.entries[at]
                host = entry & OFFSET_MASK
                if entry & COMPRESSED or not (host or disk.external and entry & COPIED):
                    continue
                count = 1 if disk.external else refcount(host >> self.bits)
                if (count == 1) != bool(entry & COPIED):
                    yield table, at, f"OFLAG_COPIED data cluster: l2_entry={entry:#x} refcount={count}"


def open_to_repair(path: Path) -> Qcow2:
    """The image alone, open for writing though it is dirty or marked as damaged."""
    file = File(path, writable=True)
    try:
        disk = Qcow2(file, False, repair=False)
        if disk.data_name is not None:
            disk.set_data_file(file)           # its data isn't looked at
        return disk
    except BaseException:
        file.close()
        raise


def repair(disk: Disk, leaks_only: bool = False) -> Found:
    """Check an image that is open for writing and mend what can be; what is left is counted in what is returned."""
    before = check(disk)
    assert isinstance(disk, Qcow2)
    dirty = disk.header.incompatible & (head.DIRTY | head.CORRUPT)
    if leaks_only:
        if not before.corruptions and before.leaks:
            _write_again(disk, flags=False)
    elif before.corruptions or before.leaks or dirty:
        _write_again(disk, flags=True)
    after = check(disk)
    if not leaks_only and not after.corruptions and dirty:
        disk.header.incompatible &= ~(head.DIRTY | head.CORRUPT)
        disk.header.write_features(disk.file)
        disk.file.sync()
    after.corruptions_fixed = max(0, before.corruptions - after.corruptions)
    after.leaks_fixed = max(0, before.leaks - after.leaks)
    return after


def repair_refcounts(disk: Qcow2) -> None:
    """Make a dirty image clean: its refcounts were put off and never written."""
    _write_again(disk, flags=True)
    disk.header.incompatible &= ~head.DIRTY
    disk.header.write_features(disk.file)
    disk.file.sync()


def _write_again(disk: Qcow2, flags: bool) -> None:
    """All refcounts as they are counted, in new blocks and a new table behind everything."""
    walk = _Walk(disk)
    disk.refcounts.table = array("Q", [0])     # the old blocks don't count
    walk.count()
    counts, refcounts, bits = walk.counts, disk.refcounts, disk.cluster_bits
    header = disk.header
    for cluster in range(header.refcount_table_offset >> bits,
                         (header.refcount_table_offset >> bits) + header.refcount_table_clusters):
        chunk = counts.chunks[cluster >> _CHUNK_BITS] if counts.get(cluster) else None
        if chunk:
            chunk[cluster & (1 << _CHUNK_BITS) - 1] -= 1
    block_bits, per_block = refcounts.block_bits, refcounts.per_block
    used = {cluster >> block_bits for cluster, _ in counts.all()}
    start = -(-disk.file.size >> bits)
    table = blocks = 0
    while True:  # what is new is counted too
        numbers = used | {n >> block_bits for n in range(start, start + table + blocks)}
        need = -(-(max(numbers) + 1) * 8 >> bits)
        if (need, len(numbers)) == (table, blocks):
            break
        table, blocks = need, len(numbers)
    if table << bits > head.MAX_REFCOUNT_TABLE:
        raise BlockError(f"{disk.path} is too large for its refcounts")
    counts.add(start, start + table + blocks - 1)
    entries = array("Q", bytes(table << bits))
    for i, number in enumerate(sorted(numbers)):
        block = array(refcounts.cache.codec.typecode, [0]) * per_block
        for index in range(per_block):
            block[index] = min(counts.get((number << block_bits) + index), refcounts.most)
        place = start + table + i << bits
        disk.file.write(place, refcounts.cache.codec.encode(block))
        entries[number] = place
    entries.byteswap()
    disk.file.write(start << bits, entries.tobytes())
    disk.file.sync()
    header.refcount_table_offset, header.refcount_table_clusters = start << bits, table
    header.write_refcount_table(disk.file)
    disk.file.sync()
    disk.read_tables()
    if flags:
        again = _Walk(disk)
        for l2, index, _ in list(again.wrong_flags(disk.refcounts.get)):
            if l2 is None:
                disk.mapping.l1[index] ^= COPIED
                disk.mapping.changed_l1.add(index)
            else:
                l2.entries[index] ^= COPIED
                disk.mapping.cache.touch(l2, index)
        disk.mapping.cache.write()
        disk.mapping.write_l1()
        disk.file.sync()
