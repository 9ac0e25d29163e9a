"""Tables of an image that are read, changed in memory and written back: L2 tables and refcount blocks.

A table is one cluster. What has changed is known by slices of 4 KiB, and only these are written. The cache is bounded
in bytes; when it is full of changes, whoever knows the order in which metadata may be written is asked to write them.
"""

import sys
from array import array
from collections import OrderedDict
from collections.abc import Callable

from hostel.block.file import File

SLICE = 4096
MIN_TABLES = 4            # even of 2 MiB each


class Table:
    """``entries`` in the host's byte order; ``dirty``: a bit for each slice that differs from the file; ``fresh``:
    nothing in the file refers to it yet, so it may be written at any time, and is to be written whole."""

    __slots__ = ("dirty", "entries", "fresh", "offset")

    def __init__(self, offset: int, entries: "array[int]"):
        self.offset = offset
        self.entries = entries
        self.dirty = 0
        self.fresh = False


class Codec:
    """Between the file's big-endian numbers of ``bits`` each and an array; those of less than a byte take one each in
    memory, the first in the low bits of its byte (the specification, "Refcount block entry")."""

    def __init__(self, bits: int):
        self.bits = bits
        self.typecode = {64: "Q", 32: "I", 16: "H"}.get(bits, "B")
        self.per_byte = 8 // bits if bits < 8 else 1
        if bits < 8:
            mask = (1 << bits) - 1
            self._unpacked = [
                bytes(byte >> bits * i & mask for i in range(self.per_byte)) for byte in range(256)
            ]
            self._packed = {unpacked: byte for byte, unpacked in enumerate(self._unpacked)}

    def decode(self, data: bytes) -> "array[int]":
        if self.bits < 8:
            return array("B", b"".join(map(self._unpacked.__getitem__, data)))
        entries = array(self.typecode, data)
        if sys.byteorder == "little":
            entries.byteswap()
        return entries

    def encode(self, entries: "array[int]") -> bytes:
        if self.bits < 8:
            data, n = entries.tobytes(), self.per_byte
            return bytes(self._packed[data[at : at + n]] for at in range(0, len(data), n))
        if sys.byteorder == "little":
            entries = entries[:]
            entries.byteswap()
        return entries.tobytes()


class TableCache:
    """The tables of one kind. ``make_room`` writes all changes of the image, in their order."""

    def __init__(self, file: File, cluster_bits: int, bits: int, limit: int, make_room: Callable[[], None]):
        self.file = file
        self.codec = Codec(bits)
        self.cluster_size = 1 << cluster_bits
        self.slice_size = min(SLICE, self.cluster_size)
        # of an entry's index, this many bits are within a slice
        self.slice_bits = (self.slice_size * 8 // bits).bit_length() - 1
        in_memory = self.cluster_size * self.codec.per_byte
        self.capacity = max(MIN_TABLES, limit // in_memory)
        self.tables: OrderedDict[int, Table] = OrderedDict()
        self.changed: dict[int, Table] = {}
        self.make_room = make_room

    def get(self, offset: int) -> Table:
        table = self.tables.get(offset)
        if table is not None:
            self.tables.move_to_end(offset)
            return table
        self._reserve()
        table = self.tables.get(offset)  # making room may have brought it
        if table is not None:
            return table
        data = self.file.read(offset, self.cluster_size)
        if len(data) < self.cluster_size:  # the file's last cluster needn't be whole
            data += bytes(self.cluster_size - len(data))
        table = self.tables[offset] = Table(offset, self.codec.decode(data))
        return table

    def new(self, offset: int, entries: "array[int] | None" = None) -> Table:
        """A table that isn't in the file yet: of zeros, or with a copy of ``entries``."""
        if entries is None:
            entries = self.codec.decode(bytes(self.cluster_size))
        self._reserve()
        table = self.tables[offset] = Table(offset, entries)
        table.fresh = True
        table.dirty = (1 << self.cluster_size // self.slice_size) - 1
        self.changed[offset] = table
        return table

    def _reserve(self) -> None:
        while len(self.tables) >= self.capacity:
            victim = next((old for old in self.tables.values() if not old.dirty), None)
            if victim is None:
                self.make_room()
                victim = next((old for old in self.tables.values() if not old.dirty), None)
                if victim is None:
                    break
            del self.tables[victim.offset]

    def forget(self, offset: int) -> None:
        """Its cluster isn't a table any more."""
        self.tables.pop(offset, None)
        self.changed.pop(offset, None)

    def touch(self, table: Table, index: int) -> None:
        """The entry has changed."""
        table.dirty |= 1 << (index >> self.slice_bits)
        self.changed[table.offset] = table

    def touch_range(self, table: Table, first: int, count: int) -> None:
        low, high = first >> self.slice_bits, first + count - 1 >> self.slice_bits
        table.dirty |= (1 << high + 1) - (1 << low)
        self.changed[table.offset] = table

    def write(self, fresh: bool = False) -> bool:
        """Write what has changed, of ``fresh`` tables only if that is said; whether there was anything."""
        chosen = [table for table in self.changed.values() if not fresh or table.fresh]
        for table in chosen:
            self._write(table)
            table.fresh = False
            del self.changed[table.offset]
        return bool(chosen)

    def _write(self, table: Table) -> None:
        size, entries = self.slice_size, 1 << self.slice_bits
        while table.dirty:
            first = (table.dirty & -table.dirty).bit_length() - 1
            last = first
            while table.dirty >> last + 1 & 1:
                last += 1
            data = self.codec.encode(table.entries[first * entries : (last + 1) * entries])
            self.file.write(table.offset + first * size, data)
            table.dirty &= ~((1 << last + 1) - (1 << first))
