"""Which clusters of an image are taken, and how often: the refcount table and its blocks.

Clusters are taken from the lowest free ones on, in runs where that is possible. A block of refcounts lies in the first
cluster that it counts. What is freed is counted down only after nothing in the file refers to it any more
(``disk.Qcow2.write_metadata``), so that a crash leaves clusters that nobody uses, never one that two use.
"""

import errno
import struct
from array import array
from collections.abc import Callable, Iterable

from hostel.base.errors import BlockError
from hostel.block.file import File
from hostel.block.qcow2.header import MAX_REFCOUNT_TABLE, Header
from hostel.block.qcow2.tables import Table, TableCache

CACHE = 4 << 20           # bytes of blocks in memory; with the default sizes they count 128 GiB
_WORD = struct.Struct(">Q")


class Refcounts:
    """``metadata``: clusters that are known to hold metadata; what is allocated may not be among them."""

    def __init__(
        self, file: File, header: Header, metadata: set[int], corrupt: Callable[[str], BlockError],
        make_room: Callable[[], None],
    ):
        self.file = file
        self.header = header
        self.metadata = metadata
        self.corrupt = corrupt
        self.make_room = make_room
        self.bits = 1 << header.refcount_order
        self.cluster_bits = header.cluster_bits
        self.block_bits = self.cluster_bits + 3 - header.refcount_order
        self.per_block = 1 << self.block_bits
        self.most = (1 << self.bits) - 1
        self.cache = TableCache(file, self.cluster_bits, self.bits, CACHE, make_room)
        self.table = self._read_table()
        self.new_entries: set[int] = set()     # of the table, that aren't in the file yet
        self.next = 0                          # no cluster below is free
        self.end = file.size + header.cluster_size - 1 >> self.cluster_bits  # no cluster from here on holds anything

    def _read_table(self) -> "array[int]":
        header = self.header
        length = header.refcount_table_clusters << self.cluster_bits
        table = array("Q", self.file.read(header.refcount_table_offset, length).ljust(length, b"\0"))
        table.byteswap()
        start = header.refcount_table_offset >> self.cluster_bits
        self.metadata.update(range(start, start + header.refcount_table_clusters))
        end = self.file.size                   # what isn't in the file isn't used
        self.metadata.update(entry >> self.cluster_bits for entry in table if entry and entry < end)
        return table

    def block(self, number: int) -> Table | None:
        """The block that counts clusters from ``number << block_bits`` on; None: they are all free."""
        if number >= len(self.table):
            return None
        offset = self.table[number]
        if not offset:
            return None
        table = self.cache.tables.get(offset)
        if table is not None:
            return table
        if offset & (1 << self.cluster_bits) - 1 or offset >= self.file.size:
            raise self.corrupt(f"refcount block {number} is at {offset:#x}")
        return self.cache.get(offset)

    def get(self, cluster: int) -> int:
        block = self.block(cluster >> self.block_bits)
        return block.entries[cluster & self.per_block - 1] if block else 0

    # -- taking

    def allocate(self, count: int) -> tuple[int, int]:
        """Take up to ``count`` clusters in a row, at least one: the first, and how many."""
        while True:
            number = self.next >> self.block_bits
            block = self._block_to_write(number)
            if self.next >> self.block_bits != number:
                continue                       # a longer table was made, and the old one's clusters are free
            entries, base = block.entries, number << self.block_bits
            try:
                first = entries.index(0, self.next - base)
            except ValueError:
                self.next = base + self.per_block
                continue
            last = first + 1
            most = min(first + count, self.per_block)
            while last < most and not entries[last]:
                last += 1
            got = last - first
            for index in range(first, last):
                entries[index] = 1
            self.cache.touch_range(block, first, got)
            start = base + first
            self.next = start + got
            self.end = max(self.end, self.next)
            if not self.metadata.isdisjoint(range(start, start + got)):
                raise self.corrupt(f"cluster {start} holds metadata but counts as free")
            return start, got

    def allocate_run(self, count: int) -> int:
        """Take exactly ``count`` clusters in a row."""
        if count >= self.per_block:            # more than fit between two blocks
            return self._append(count)
        start, got = self.allocate(count)
        while got < count:
            more, n = self.allocate(count - got)
            if more == start + got:
                got += n
            else:
                self.release(start, got)
                start, got = more, n
        return start

    def _append(self, count: int) -> int:
        """``count`` clusters in a row behind everything, and right before them the blocks that count them."""
        blocks = 1
        while blocks * self.per_block < blocks + count:
            blocks = -(-(blocks + count) >> self.block_bits)
        while True:
            number = self.end + self.per_block - 1 >> self.block_bits
            if number + blocks <= len(self.table):
                break
            self._grow_table(number + blocks)
        start = number << self.block_bits
        for i in range(blocks):
            block = self.cache.new(start + i << self.cluster_bits)
            for index in range(min(blocks + count - (i << self.block_bits), self.per_block)):
                block.entries[index] = 1
            self.table[number + i] = block.offset
            self.new_entries.add(number + i)
        self.metadata.update(range(start, start + blocks))
        self.end = start + blocks + count
        return start + blocks

    def release(self, start: int, count: int) -> None:
        """Give back what was taken and nothing refers to, neither in the file nor in memory."""
        for cluster in range(start, start + count):
            self.lower(cluster)

    def add(self, cluster: int) -> bool:
        """One reference more to a cluster that is taken; False where that doesn't fit into its bits."""
        block = self.block(cluster >> self.block_bits)
        index = cluster & self.per_block - 1
        if block is None or not 0 < block.entries[index] < self.most:
            return False
        block.entries[index] += 1
        self.cache.touch(block, index)
        return True

    def lower(self, cluster: int) -> int:
        """One reference less; how many are left."""
        block = self.block(cluster >> self.block_bits)
        index = cluster & self.per_block - 1
        if block is None or not block.entries[index]:
            raise self.corrupt(f"cluster {cluster} is freed but counts as free")
        left = block.entries[index] - 1
        block.entries[index] = left
        self.cache.touch(block, index)
        if not left:
            self.next = min(self.next, cluster)
        return left

    def _block_to_write(self, number: int) -> Table:
        block = self.block(number)
        if block is not None:
            return block
        if number >= len(self.table):
            self._grow_table(number + 1)
            block = self.block(number)
            if block is not None:
                return block
        first = number << self.block_bits
        if first in self.metadata:
            raise self.corrupt(f"cluster {first} holds metadata but counts as free")
        block = self.cache.new(first << self.cluster_bits)
        block.entries[0] = 1
        self.table[number] = first << self.cluster_bits
        self.new_entries.add(number)
        self.metadata.add(first)
        self.end = max(self.end, first + 1)
        return block

    def _grow_table(self, entries: int) -> None:
        """Another, longer table, behind everything: written whole and safe before the header names it. The blocks
        that count its own clusters are written with it."""
        entries = max(entries, len(self.table) * 3 // 2)
        base = max(self.end, len(self.table) << self.block_bits)
        start = base + self.per_block - 1 & -self.per_block      # where a block's range begins, for simplicity
        first_block = start >> self.block_bits
        clusters = blocks = 0
        while True:  # the table counts blocks that count the table
            need = -(-max(entries, first_block + blocks) * 8 >> self.cluster_bits)
            need_blocks = -(-(need + blocks) >> self.block_bits)
            if (need, need_blocks) == (clusters, blocks):
                break
            clusters, blocks = need, need_blocks
        if clusters << self.cluster_bits > MAX_REFCOUNT_TABLE:
            raise BlockError(f"{self.file.path} can't grow any more: its refcount table is full", errno.EFBIG)
        self.make_room()                       # everything that is new is in the file, the old table's entries too
        table = array("Q", self.table)
        table.extend([0] * ((clusters << self.cluster_bits - 3) - len(table)))
        used = blocks + clusters
        for number in range(blocks):
            counts = array(self.cache.codec.typecode, [0]) * self.per_block
            for index in range(min(used - (number << self.block_bits), self.per_block)):
                counts[index] = 1
            self.file.write(start + number << self.cluster_bits, self.cache.codec.encode(counts))
            table[first_block + number] = start + number << self.cluster_bits
        offset = start + blocks << self.cluster_bits
        swapped = table[:]
        swapped.byteswap()
        self.file.write(offset, swapped.tobytes())
        self.file.sync()
        old = self.header.refcount_table_offset >> self.cluster_bits, self.header.refcount_table_clusters
        self.header.refcount_table_offset, self.header.refcount_table_clusters = offset, clusters
        self.header.write_refcount_table(self.file)
        self.file.sync()
        self.table = table
        self.end = max(self.end, start + used)
        self.metadata.difference_update(range(old[0], sum(old)))
        self.metadata.update(range(start, start + used))
        self.release(*old)

    # -- writing

    def write_entries(self) -> bool:
        """Write the table's new entries; whether there were any. Their blocks are safe already."""
        for number in sorted(self.new_entries):
            self.file.write(self.header.refcount_table_offset + number * 8, _WORD.pack(self.table[number]))
        done = bool(self.new_entries)
        self.new_entries.clear()
        return done

    def blocks(self) -> Iterable[tuple[int, int]]:
        """The numbers and offsets of all blocks."""
        return ((number, offset) for number, offset in enumerate(self.table) if offset)
