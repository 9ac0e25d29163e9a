"""Where an image's guest clusters are: the L1 table and the L2 tables, or one of both for a snapshot.

``lookup`` answers for as many bytes as are in one place. Kinds are those of ``block.disk`` (``DATA`` in clusters that
are the image's alone, ``BACKING`` in clusters that a snapshot shares, ``ZERO``, ``OTHER`` for a compressed cluster,
whose entry then stands for the place) and ``UNALLOCATED``: look below. With extended L2 entries the unit is the
subcluster, a 32nd of a cluster; else the two are the same here.
"""

import struct
import sys
from array import array
from collections.abc import Callable

from hostel.base.errors import BlockError
from hostel.block.disk import BACKING, DATA, OTHER, ZERO
from hostel.block.file import File
from hostel.block.qcow2.header import EXTERNAL_DATA, Header
from hostel.block.qcow2.tables import Table, TableCache

UNALLOCATED = 4
COPIED, COMPRESSED, ZERO_FLAG = 1 << 63, 1 << 62, 1
OFFSET_MASK = (1 << 56) - 512
RESERVED = 0x3F << 56 | 0x1FE          # of a standard cluster's L2 entry
L1_RESERVED = 0x7F << 56 | 0x1FF
SUBCLUSTERS = 32
ALL = (1 << SUBCLUSTERS) - 1
CACHE = 16 << 20          # bytes of L2 tables in memory; with clusters of 64 KiB they map 128 GiB
_WORD = struct.Struct(">Q")


class Mapping:
    def __init__(
        self, file: File, header: Header, corrupt: Callable[[str], BlockError], make_room: Callable[[], None]
    ):
        self.file = file
        self.header = header
        self.corrupt = corrupt
        self.bits = header.cluster_bits
        self.cluster_size = header.cluster_size
        self.extended = header.extended_l2
        self.unit = self.cluster_size // SUBCLUSTERS if self.extended else self.cluster_size
        self.l2_bits = header.l2_bits
        self.l2_entries = 1 << self.l2_bits
        self.words = 2 if self.extended else 1    # of an entry
        self.external = bool(header.incompatible & EXTERNAL_DATA)
        self.cache = TableCache(file, self.bits, 64, CACHE, make_room)
        self.l1 = read_l1(file, header.l1_table_offset, header.l1_size)
        self.changed_l1: set[int] = set()         # entries that differ from the file

    # -- looking

    def table(self, index: int) -> Table | None:
        """The L2 table of an L1 entry, if it has one."""
        offset = self.l1[index] & OFFSET_MASK
        if not offset:
            return None
        table = self.cache.tables.get(offset)
        if table is not None:
            return table
        if offset & self.cluster_size - 1 or offset >= self.file.size or self.l1[index] & L1_RESERVED:
            raise self.corrupt(f"L1 entry {index} is {self.l1[index]:#x}")
        return self.cache.get(offset)

    def lookup(self, offset: int, length: int) -> tuple[int, int, int]:
        """``(kind, host_offset, run)`` of the bytes at ``offset``, 0 < run <= length."""
        bits = self.bits
        index = offset >> bits
        table = self.table(index >> self.l2_bits)
        first = index & self.l2_entries - 1
        if table is None:
            return UNALLOCATED, 0, min(length, (self.l2_entries - first << bits) - (offset & self.cluster_size - 1))
        if self.extended:
            return self._lookup_extended(table, first, offset, length)
        entries = table.entries
        entry = entries[first]
        within = offset & self.cluster_size - 1
        run = self.cluster_size - within
        if entry & COMPRESSED:
            return OTHER, entry, min(run, length)
        host = entry & OFFSET_MASK
        if entry & (ZERO_FLAG | RESERVED) or host & self.cluster_size - 1 or self.external:
            self.check_entry(entry, index)
        if entry & ZERO_FLAG:
            while run < length and first + 1 < self.l2_entries:
                first += 1
                if entries[first] & (ZERO_FLAG | COMPRESSED) != ZERO_FLAG:
                    break
                run += self.cluster_size
            return ZERO, host, min(run, length)
        if not host and not (self.external and entry & COPIED):
            while run < length and first + 1 < self.l2_entries:
                first += 1
                if entries[first]:
                    break
                run += self.cluster_size
            return UNALLOCATED, 0, min(run, length)
        expected = entry
        while run < length and first + 1 < self.l2_entries:
            first += 1
            expected += self.cluster_size
            if entries[first] != expected:
                break
            run += self.cluster_size
        return DATA if entry & COPIED else BACKING, host + within, min(run, length)

    def check_entry(self, entry: int, index: int) -> None:
        """``BlockError`` for what a standard cluster's entry can't be."""
        if entry & RESERVED or entry & OFFSET_MASK & self.cluster_size - 1:
            raise self.corrupt(f"the L2 entry of cluster {index} is {entry:#x}")
        if entry & ZERO_FLAG and (self.header.version < 3 or self.extended):
            raise self.corrupt(f"the L2 entry of cluster {index} has the zero flag")
        if self.external and entry & (COPIED | OFFSET_MASK) and entry & OFFSET_MASK != index << self.bits:
            raise self.corrupt(f"cluster {index} is at {entry & OFFSET_MASK:#x} of the data file")

    def _lookup_extended(self, table: Table, first: int, offset: int, length: int) -> tuple[int, int, int]:
        kind = host = -1
        run = 0
        while run < length and first < self.l2_entries:
            entry, bitmap = table.entries[2 * first], table.entries[2 * first + 1]
            within = offset + run & self.cluster_size - 1
            here = entry & OFFSET_MASK
            if entry & COMPRESSED:
                return (kind, host, run) if run else (OTHER, entry, min(self.cluster_size - within, length))
            self.check_entry(entry, offset + run >> self.bits)
            if bitmap & bitmap >> 32 & ALL:
                raise self.corrupt(f"the subclusters of cluster {offset + run >> self.bits} are {bitmap:#x}")
            sub = within // self.unit
            this = self._state(entry, bitmap, sub)
            last = sub + 1
            while last < SUBCLUSTERS and self._state(entry, bitmap, last) == this:
                last += 1
            if not run:
                kind, host = this, here + within if this in (DATA, BACKING) else here
            elif this != kind or (kind in (DATA, BACKING) and host + run != here):
                break
            run += last * self.unit - within
            if last < SUBCLUSTERS:
                break
            first += 1
        return kind, host, min(run, length)

    def _state(self, entry: int, bitmap: int, sub: int) -> int:
        if bitmap >> sub & 1:
            if not entry & OFFSET_MASK and not self.external:
                raise self.corrupt("a subcluster is allocated without a cluster")
            return DATA if entry & COPIED else BACKING
        return ZERO if bitmap >> 32 + sub & 1 else UNALLOCATED

    # -- changing, in memory

    def entry(self, table: Table, index: int) -> tuple[int, int]:
        """An L2 entry and its subclusters' bits; 0 without extended entries."""
        if self.extended:
            return table.entries[2 * index], table.entries[2 * index + 1]
        return table.entries[index], 0

    def set_entry(self, table: Table, index: int, entry: int, bitmap: int = 0) -> None:
        if self.extended:
            table.entries[2 * index] = entry
            table.entries[2 * index + 1] = bitmap
            self.cache.touch(table, 2 * index)
        else:
            table.entries[index] = entry
            self.cache.touch(table, index)

    def set_table(self, index: int, host: int, entries: "array[int] | None") -> Table:
        """A new L2 table at ``host``, with a copy of ``entries`` if there are some."""
        table = self.cache.new(host, entries)
        self.l1[index] = host | COPIED
        self.changed_l1.add(index)
        return table

    def write_l1(self) -> bool:
        """Write the entries that changed; whether there were any. The tables that they name are safe already."""
        for index in self.changed_l1:
            self.file.write(self.header.l1_table_offset + index * 8, _WORD.pack(self.l1[index]))
        done = bool(self.changed_l1)
        self.changed_l1.clear()
        return done


def read_l1(file: File, offset: int, entries: int) -> "array[int]":
    table = array("Q", file.read(offset, entries * 8).ljust(entries * 8, b"\0"))
    if sys.byteorder == "little":
        table.byteswap()
    return table


def compressed_place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Where a compressed cluster's data begins, and how many bytes it may have (the specification, "Compressed
    Clusters Descriptor"): up to the end of its last sector."""
    x = 62 - (cluster_bits - 8)
    offset = entry & (1 << x) - 1
    sectors = (entry & ~COMPRESSED & ~COPIED) >> x
    return offset, (sectors + 1) * 512 - (offset & 511)
