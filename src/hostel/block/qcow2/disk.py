"""A qcow2 image as a disk.

**What is written when.** Data goes into the file at once, into new clusters where the image has none of its own.
Refcounts and tables change in memory, and ``write_metadata`` (a flush, or a full cache) writes them:

1. new L2 tables, to which nothing refers yet, and refcounts that went up; wait for the disk, so for the data too;
2. new entries of the refcount table; wait, if there were any;
3. entries of L2 tables and of the L1 table; wait;
4. only now what these no longer refer to is counted down, its space given back, and may be taken again.

Whatever of this a crash cuts off, what is in the file refers only to what is there and counted. At worst clusters count
as taken that nobody uses. With lazy refcounts the image is marked dirty instead, and 1 and 2 wait until it is closed.

**A guest's writes never reach metadata**: a cluster that an entry says is data but that is known to hold a table is
damage; then, and where the tables say other things that can't be, the image is marked corrupt (as QEMU does), and
takes no more writes.
"""

import contextlib
import errno
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hostel.base.errors import BlockError
from hostel.block.disk import BACKING, DATA, OTHER, ZERO, Disk, Extent
from hostel.block.file import Buffer, File, cut, fill
from hostel.block.qcow2 import header as head
from hostel.block.qcow2.compression import decompress
from hostel.block.qcow2.mapping import (
    ALL,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    SUBCLUSTERS,
    UNALLOCATED,
    ZERO_FLAG,
    Mapping,
    compressed_place,
)
from hostel.block.qcow2.refcounts import Refcounts
from hostel.block.qcow2.snapshots import Snapshot, read_snapshots
from hostel.block.qcow2.tables import Table

UNPACKED = 4              # clusters that are kept after they were unpacked
FREED = 4096              # runs of clusters; as many wait for the next flush, more make one
_AT_ONCE = 64             # clusters that ``extents`` looks up
_ZEROS = memoryview(bytes(1 << 20))


class Qcow2(Disk):
    format = "qcow2"

    def __init__(self, file: File, readonly: bool, repair: bool = True):
        """``repair`` False: leave a dirty image so; for who is going to repair it."""
        self.header = head.read(file)
        super().__init__(file, self.header.size, readonly)
        self.backing_name = self.header.backing_name
        self.backing_format = head.string(self.header.extension(head.BACKING_FORMAT))
        self.external = bool(self.header.incompatible & head.EXTERNAL_DATA)
        self.raw_data = self.external and bool(self.header.autoclear & head.RAW_DATA)
        if self.external:
            self.data_name = head.string(self.header.extension(head.DATA_NAME))
            if self.data_name is None:
                raise BlockError(f"{self.path} has its data in another file, and doesn't say in which")
        if self.header.compression == head.ZSTD:
            import zstandard  # noqa: F401 - a confined worker can't, later
        self.data = file
        self.cluster_bits = self.header.cluster_bits
        self.cluster_size = self.header.cluster_size
        self.snapshots: list[Snapshot] = read_snapshots(file, self.header)
        self._begun = False
        self.freed: list[tuple[int, int]] = []      # runs of clusters to count down after the next flush
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._pack_at = 0                           # where the next compressed cluster goes, inside of a cluster
        self._data_end = 0                          # of an external data file: nothing was ever behind it
        self.read_tables()
        if not readonly:
            if self.header.incompatible & head.CORRUPT and repair:
                raise BlockError(f"{self.path} is marked as damaged: 'hostel disk check --repair all' may mend it")
            if self.header.incompatible & head.DIRTY and repair:
                from hostel.block.qcow2.check import repair_refcounts

                repair_refcounts(self)

    def read_tables(self) -> None:
        """Take mapping and refcounts from the file, as when it was opened."""
        header = self.header
        self.mapping = Mapping(self.file, header, self._corrupt, self.write_metadata)
        metadata = {0}
        for offset, length in [
            (header.l1_table_offset, header.l1_size * 8),
            (header.snapshots_offset, sum(snapshot.length for snapshot in self.snapshots)),
            *((snapshot.l1_table_offset, snapshot.l1_size * 8) for snapshot in self.snapshots),
        ]:
            metadata.update(range(offset >> self.cluster_bits, offset + length + self.cluster_size - 1
                                  >> self.cluster_bits))  # fmt: skip
        end = self.file.size                   # what isn't in the file isn't used
        metadata.update((entry & OFFSET_MASK) >> self.cluster_bits
                        for entry in self.mapping.l1 if entry and entry & OFFSET_MASK < end)  # fmt: skip
        self.metadata = metadata
        self.refcounts = Refcounts(self.file, header, metadata, self._corrupt, self.write_metadata)

    def set_data_file(self, file: File) -> None:
        self.data = file
        self._data_end = file.size

    def _corrupt(self, what: str) -> BlockError:
        """The error for damage that was met; an image that is open for writing is marked."""
        if not self.readonly and not self.header.incompatible & head.CORRUPT:
            self.header.incompatible |= head.CORRUPT
            self.header.write_features(self.file)
        return BlockError(f"{self.path} is damaged: {what}; 'hostel disk check' tells more")

    @property
    def blank(self) -> bool:
        """Whether nothing was ever written to it, so that it is what is below, and no more."""
        below = self.backing
        return below is not None and below.size == self.size and not any(self.mapping.l1) and not self.snapshots

    @property
    def alignment(self) -> int:
        return max(self.file.alignment, self.backing.alignment if self.backing else 1)

    @property
    def lazy(self) -> bool:
        """Whether refcounts may wait."""
        return bool(self.header.compatible & head.LAZY_REFCOUNTS and self.header.incompatible & head.DIRTY)

    # -- reading

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = self.check_buffers(offset, buffers)
        done = 0
        while done < length:
            kind, host, run = self.mapping.lookup(offset + done, length - done)
            part = buffers if run == length else cut(buffers, done, run)
            if kind <= BACKING:
                self.data.readv(host, part)
            elif kind == UNALLOCATED:
                self._read_below(offset + done, run, part)
            elif kind == ZERO:
                fill(part)
            else:
                at = offset + done & self.cluster_size - 1
                data = self.unpack(host)
                for view in part:
                    view[:] = data[at : at + len(view)]
                    at += len(view)
            done += run

    def _read_below(self, offset: int, length: int, buffers: Sequence[Buffer]) -> None:
        """What the backing file has, and zeros behind its end."""
        have = max(0, min(length, self.backing.size - offset)) if self.backing else 0
        if self.backing and have:
            self.backing.readv(offset, buffers if have == length else cut(buffers, 0, have))
        if have < length:
            fill(cut(buffers, have, length - have))

    def unpack(self, entry: int) -> bytes:
        """A compressed cluster's bytes."""
        data = self._unpacked.get(entry)
        if data is None:
            offset, length = compressed_place(entry, self.cluster_bits)
            try:
                data = decompress(self.header.compression, self.file.read(offset, length), self.cluster_size)
            except BlockError as error:
                raise BlockError(f"{self.path}: {error}") from error
            if len(self._unpacked) >= UNPACKED:
                self._unpacked.popitem(last=False)
            self._unpacked[entry] = data
        return data

    def map(self, offset: int, length: int) -> tuple[int, int, int, int]:
        self.check(offset, length)
        kind, host, run = self.mapping.lookup(offset, length)
        if kind == DATA:
            if self.readonly:
                kind = BACKING
            else:
                self._begin()
                self._check_place(host, run)
            return self.data.data_fd, host, run, kind
        if kind == BACKING:
            return self.data.data_fd, host, run, kind
        if kind == UNALLOCATED:
            if self.backing and offset < self.backing.size:
                return self.backing.map(offset, min(run, self.backing.size - offset))
            kind = ZERO
        return -1, 0, run, kind

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self.check(offset, length)
        while length:
            most = length
            if self.mapping.l1[offset >> self.cluster_bits + self.mapping.l2_bits]:
                # a few clusters at once, as what comes back may be cut shorter and asked for again
                clusters = 1 if self.mapping.extended else _AT_ONCE
                most = min(length, (clusters << self.cluster_bits) - (offset & self.cluster_size - 1))
            kind, host, run = self.mapping.lookup(offset, most)
            if kind == UNALLOCATED:
                if self.mapping.extended and host:  # a subcluster has a place, though there is nothing yet
                    yield from self._extents_below(offset, run, host + (offset & self.cluster_size - 1), self.path)
                else:
                    yield from self._extents_below(offset, run, None, None)
            elif kind == OTHER:
                yield Extent(offset, run, 0, True, False, True, True, None, self.path)
            elif kind == ZERO and not host:
                run = self._zero_run(offset, run)
                yield Extent(offset, run, 0, True, True, False)
            elif kind == ZERO:                 # in a cluster that is reserved for it
                within = offset & self.cluster_size - 1
                run = min(run, self.cluster_size - within)
                yield Extent(offset, run, 0, True, True, False, False, host + within, self.path)
            else:
                yield Extent(offset, run, 0, True, False, True, False, host, self.data.path)
            offset += run
            length -= run

    def _zero_run(self, offset: int, length: int) -> int:
        """As much of a stretch of zeros as has no cluster."""
        run = 0
        while run < length:
            _, host, this = self.mapping.lookup(offset + run, min(length - run, self.mapping.unit))
            if host:
                break
            run += this
        return run

    def _extents_below(self, offset: int, length: int, host: int | None, path: Path | None) -> Iterator[Extent]:
        have = max(0, min(length, self.backing.size - offset)) if self.backing else 0
        if self.backing and have:
            for extent in self.backing.extents(offset, have):
                yield Extent(
                    extent.start, extent.length, extent.depth + 1, extent.present, extent.zero, extent.data,
                    extent.compressed, extent.offset, extent.path,
                )
        if have < length:
            yield Extent(offset + have, length - have, 0, False, True, False, False, host and host + have, path)

    def reads_zero(self, offset: int, length: int) -> bool:
        """Whether there are surely only zeros, without reading data."""
        while length > 0:
            kind, _, run = self.mapping.lookup(offset, length)
            if kind == UNALLOCATED and self.backing and offset < self.backing.size:
                _, _, run, kind = self.backing.map(offset, min(run, self.backing.size - offset))
                if kind != ZERO:
                    return False
            elif kind not in (ZERO, UNALLOCATED):
                return False
            offset += run
            length -= run
        return True

    # -- writing

    def _begin(self) -> None:
        """Before the first change: bits that promise what we don't keep are cleared (the specification,
        "autoclear_features"), and an image with lazy refcounts is marked."""
        if self._begun:
            return
        if self.header.incompatible & head.CORRUPT:
            raise BlockError(f"{self.path} is damaged and takes no more writes")
        header = self.header
        before = header.incompatible, header.autoclear
        header.autoclear &= head.RAW_DATA
        if header.compatible & head.LAZY_REFCOUNTS:
            header.incompatible |= head.DIRTY
        if before != (header.incompatible, header.autoclear):
            header.write_features(self.file)
            self.file.sync()
        self._begun = True

    def _check_place(self, host: int, length: int) -> None:
        """Whether data may be written there."""
        if self.external:
            return
        first, last = host >> self.cluster_bits, host + length - 1 >> self.cluster_bits
        if last >= self.refcounts.end:
            raise self._corrupt(f"data at {host:#x} is past the end of the file")
        if first in self.metadata or not (first == last or self.metadata.isdisjoint(range(first, last + 1))):
            raise self._corrupt(f"data at {host:#x} would be where a table is")

    def writev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = self.check_buffers(offset, buffers, writing=True)
        self._begin()
        done = 0
        while done < length:
            kind, host, run = self.mapping.lookup(offset + done, length - done)
            if kind == DATA:
                self._check_place(host, run)
                self.data.writev(host, buffers if run == length else cut(buffers, done, run))
            else:
                run = self._write_new(offset + done, length - done, buffers, done)
            done += run

    def l2_to_write(self, index: int) -> Table:
        """The L2 table of an L1 entry, made or copied if it isn't there or a snapshot shares it."""
        entry = self.mapping.l1[index]
        old = self.mapping.table(index)
        if old is not None and entry & COPIED:
            return old
        cluster, _ = self.refcounts.allocate(1)
        self.metadata.add(cluster)
        table = self.mapping.set_table(index, cluster << self.cluster_bits, old.entries[:] if old else None)
        if old is not None:
            self._free((entry & OFFSET_MASK) >> self.cluster_bits, 1)
        return table

    def _is_own(self, entry: int) -> bool:
        """Whether an entry has a cluster that may be written in place."""
        return bool(entry & COPIED and not entry & COMPRESSED and (entry & OFFSET_MASK or self.external))

    def _write_new(self, offset: int, length: int, buffers: Sequence[Buffer], skip: int) -> int:
        """Write what has no place of its own yet, as much of ``length`` as gets one in a row; how much that was.

        What the units (clusters or subclusters) at its edges have beside it is written with it.
        """
        mapping, bits, size = self.mapping, self.cluster_bits, self.cluster_size
        index = offset >> bits
        table = self.l2_to_write(index >> mapping.l2_bits)
        first = index & mapping.l2_entries - 1
        within = offset & size - 1
        entry, bitmap = mapping.entry(table, first)
        count, taken = 1, False
        if self._is_own(entry):
            host, fresh = entry & OFFSET_MASK, False
            self._check_place(host, size)
        elif self.external:
            host, fresh = index << bits, index << bits >= self._data_end
            self._data_end = max(self._data_end, host + size)
        else:
            most = min(within + length + size - 1 >> bits, mapping.l2_entries - first)
            while count < most and not self._is_allocated(table, first + count):
                count += 1
            end = self.refcounts.end
            start, count = self.refcounts.allocate(count)
            host, fresh, taken = start << bits, start >= end, True
        run = min(length, (count << bits) - within)
        last_entry, last_bitmap = (entry, bitmap) if count == 1 else mapping.entry(table, first + count - 1)
        left, right = offset, offset + run
        if entry or last_entry or not fresh or self.backing or mapping.extended:  # else there are zeros around it
            left &= -self._copied_unit(taken, entry, bitmap)
            unit = self._copied_unit(taken, last_entry, last_bitmap)
            right = right + unit - 1 & -unit
        pieces = cut(buffers, skip, run) if skip or run < length else list(buffers)
        at = host + within
        try:
            before, after = self._around(left, offset, fresh), self._around(offset + run, right, fresh)
            if before is not None:
                pieces.insert(0, before)
                at -= len(before)
            if after is not None:
                pieces.append(after)
            self.data.writev(at, pieces)
        except BlockError:
            if taken:
                self.refcounts.release(start, count)
            raise
        for i in range(count):
            base = index + i << bits
            self._set_data(table, first + i, host + (i << bits), left - base, right - base)
        return run

    def _is_allocated(self, table: Table, index: int) -> bool:
        entry, bitmap = self.mapping.entry(table, index)
        return self._is_own(entry) and (self.mapping.extended or not entry & ZERO_FLAG)

    def _copied_unit(self, taken: bool, entry: int, bitmap: int) -> int:
        """To multiples of what the edges of a write are completed. With subclusters that is one of them, unless the
        cluster moves and has data."""
        if taken and (entry & COMPRESSED or bitmap & ALL):
            return self.cluster_size
        return self.mapping.unit

    def _around(self, start: int, end: int, fresh: bool) -> Buffer | None:
        """The bytes between, to be written beside others; None where there are zeros already."""
        if start == end:
            return None
        data = memoryview(bytearray(end - start))
        inside = min(end, self.size) - start
        if inside > 0 and not self.reads_zero(start, inside):
            self.readv(start, [data[:inside]])
            if fresh and data.obj == bytes(len(data)):
                return None
            return data
        return None if fresh else data

    def _set_data(self, table: Table, index: int, host: int, left: int, right: int) -> None:
        """A cluster is at ``host`` now, with data from ``left`` to ``right`` of it."""
        entry, bitmap = self.mapping.entry(table, index)
        if self.mapping.extended:
            low, high = max(left, 0) // self.mapping.unit, min(right, self.cluster_size) // self.mapping.unit
            touched = (1 << high) - (1 << low)
            bitmap = 0 if entry & COMPRESSED else bitmap
            bitmap = bitmap & ~(touched | touched << SUBCLUSTERS) | touched
        self.mapping.set_entry(table, index, host | COPIED, bitmap)
        if entry & OFFSET_MASK != host or entry & COMPRESSED:
            self._free_entry(entry)

    # -- freeing

    def _free_entry(self, entry: int) -> None:
        """Its place isn't referred to any more, once this is in the file."""
        if entry & COMPRESSED:
            offset, length = compressed_place(entry, self.cluster_bits)
            first = offset >> self.cluster_bits
            self._free(first, (offset + length - 1 >> self.cluster_bits) - first + 1)
            self._unpacked.pop(entry, None)
        elif entry & OFFSET_MASK and not self.external:
            self._free((entry & OFFSET_MASK) >> self.cluster_bits, 1)

    def _free(self, first: int, count: int) -> None:
        if self.freed and sum(self.freed[-1]) == first:
            self.freed[-1] = (self.freed[-1][0], self.freed[-1][1] + count)
        else:
            self.freed.append((first, count))

    def _apply_freed(self) -> None:
        freed, self.freed = self.freed, []
        for first, count in freed:
            start = first                      # of a run that nobody refers to any more
            for cluster in range(first, first + count):
                if self.refcounts.lower(cluster):
                    self._discard_clusters(start, cluster)
                    start = cluster + 1
                else:
                    self.metadata.discard(cluster)
            self._discard_clusters(start, first + count)

    def _discard_clusters(self, start: int, end: int) -> None:
        self.file.discard(start << self.cluster_bits, end - start << self.cluster_bits)

    def discard(self, offset: int, length: int) -> None:
        self.check(offset, length, writing=True)
        if self.header.version < 3 and self.backing:
            return                             # it can't be said in version 2, and the backing file would show
        self._begin()
        unit = self.mapping.unit
        start = offset + unit - 1 & -unit
        end = offset + length & -unit if offset + length < self.size else self.size
        if self.raw_data:
            self._each_place(start, end, self.data.discard)
        else:
            self._clear(start, end, keep=False)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool = True) -> None:
        self.check(offset, length, writing=True)
        self._begin()
        unit, end = self.mapping.unit, offset + length
        first = min(offset + unit - 1 & -unit, end)
        last = end if end == self.size else max(first, end & -unit)
        cheap = self.header.version >= 3 and not self.raw_data
        if not cheap and not (may_unmap and not self.backing and not self.raw_data):
            first = last = offset
        self._write_zeros(offset, first)
        self._clear(first, last, keep=cheap and not may_unmap)
        self._write_zeros(last, end)

    def _write_zeros(self, offset: int, end: int) -> None:
        """Where there aren't zeros already."""
        while offset < end:
            kind, host, run = self.mapping.lookup(offset, end - offset)
            if kind == DATA:
                self._check_place(host, run)
                self.data.write_zeroes(host, run, may_unmap=False)
            elif self.raw_data or not self.reads_zero(offset, run):
                run = min(run, len(_ZEROS))
                self.writev(offset, [_ZEROS[:run]])
            offset += run

    def _each_place(self, offset: int, end: int, action: Callable[[int, int], None]) -> None:
        while offset < end:
            kind, host, run = self.mapping.lookup(offset, end - offset)
            if kind == DATA:
                action(host, run)
            offset += run

    def _clear(self, offset: int, end: int, keep: bool) -> None:
        """Whole units read as zeros from now on; ``keep``: with their clusters reserved for them."""
        mapping = self.mapping
        per_table = mapping.l2_bits + self.cluster_bits
        zero = keep or self.backing is not None
        while offset < end:
            index = offset >> per_table
            until = min(end, index + 1 << per_table)
            below = self.backing is not None and offset < self.backing.size
            if mapping.l1[index] & OFFSET_MASK or below:
                table = self.l2_to_write(index)
                while offset < until:
                    cluster_end = min(until, (offset >> self.cluster_bits) + 1 << self.cluster_bits)
                    self._clear_in(table, offset, cluster_end, zero, keep)
                    offset = cluster_end
            offset = until
            if len(self.freed) > FREED:
                self.write_metadata()

    def _clear_in(self, table: Table, offset: int, end: int, zero: bool, keep: bool) -> None:
        """The same within a cluster."""
        mapping = self.mapping
        index = offset >> self.cluster_bits & mapping.l2_entries - 1
        entry, bitmap = mapping.entry(table, index)
        if not mapping.extended:
            if not entry and not zero:
                return
            new = ZERO_FLAG if zero else 0
            if keep and self._is_own(entry):
                new |= entry
            elif keep and not entry and self.backing is None:
                return
            if new != entry:
                mapping.set_entry(table, index, new)
                if not new & OFFSET_MASK and not (keep and self.external):
                    self._free_entry(entry)
                    if self.external and self._is_own(entry):
                        self.data.discard(entry & OFFSET_MASK, self.cluster_size)
            return
        low = (offset & self.cluster_size - 1) // mapping.unit
        high = (end - 1 & self.cluster_size - 1) // mapping.unit + 1
        touched = (1 << high) - (1 << low)
        if entry & COMPRESSED:
            if touched != ALL:                 # its other subclusters get a place first
                start = offset & -self.cluster_size
                data = memoryview(bytearray(self.unpack(entry)))[: min(self.cluster_size, self.size - start)]
                self._write_new(start, len(data), [data], 0)
                return self._clear_in(table, offset, end, zero, keep)
            bitmap = 0
        new = bitmap & ~(touched | touched << SUBCLUSTERS)
        if zero:
            new |= touched << SUBCLUSTERS
        place = entry
        if entry & COMPRESSED or (not new & ALL and not (keep and self._is_own(entry))):
            place = 0
        elif not self._is_own(entry) and entry:
            place = entry                      # a snapshot's: it stays referred to as long as subclusters need it
        if (place, new) != (entry, bitmap) or entry & COMPRESSED:
            mapping.set_entry(table, index, place, new)
            if not place:
                self._free_entry(entry)

    # -- in order

    def write_metadata(self) -> None:
        """Bring the file up to date; see above."""
        mapping, refcounts = self.mapping, self.refcounts
        mapping.cache.write(fresh=True)
        lazy = self.lazy
        if not lazy:
            refcounts.cache.write()
        if self.external:
            self.data.sync()
        self.file.sync()
        if not lazy and refcounts.write_entries():
            self.file.sync()
        changed = mapping.cache.write()
        if mapping.write_l1() or changed:
            self.file.sync()
        if self.freed:
            self._apply_freed()

    def flush(self) -> None:
        if not self.readonly:
            self.write_metadata()

    def close(self) -> None:
        try:
            if not self.readonly and self.file.fd >= 0 and not self.header.incompatible & head.CORRUPT:
                self.finish()
        finally:
            with contextlib.ExitStack() as stack:
                if self.backing:
                    stack.callback(self.backing.close)
                if self.data is not self.file:
                    stack.callback(self.data.close)
                stack.callback(self.file.close)

    def finish(self) -> None:
        self.flush()
        if self._begun:
            self._write_refcounts()
            self._begun = False

    def _write_refcounts(self) -> None:
        """What is counted down since the last flush, and what lazy refcounts put off."""
        if self.refcounts.cache.write():
            self.file.sync()
        if self.refcounts.write_entries():
            self.file.sync()
        if self.header.incompatible & head.DIRTY:
            self.header.incompatible &= ~head.DIRTY
            self.header.write_features(self.file)
            self.file.sync()

    # -- changing the image

    def write_compressed(self, offset: int, packed: bytes) -> None:
        """A whole cluster, packed by ``compression``, where there is none yet (a conversion)."""
        self.check(offset, 0, writing=True)
        self._begin()
        index = offset >> self.cluster_bits
        table = self.l2_to_write(index >> self.mapping.l2_bits)
        first = index & self.mapping.l2_entries - 1
        if any(self.mapping.entry(table, first)):
            raise BlockError(f"{self.path}: cluster {index} is there already", errno.EEXIST)
        host = self._place_bytes(len(packed))
        self.file.write(host, packed)
        sectors = (host + len(packed) - 1 >> 9) - (host >> 9)
        self.mapping.set_entry(table, first, COMPRESSED | sectors << 62 - (self.cluster_bits - 8) | host)

    def _place_bytes(self, length: int) -> int:
        """Room for less than a cluster, right behind the last that was packed if it may be."""
        at, size = self._pack_at, self.cluster_size
        cluster = at - 1 >> self.cluster_bits
        room = -at % size if at else 0
        if length <= room and self.refcounts.add(cluster):
            self._pack_at = at + length
            return at
        new, _ = self.refcounts.allocate(1)
        if room and length > room and new == cluster + 1 and self.refcounts.add(cluster):
            self._pack_at = at + length
            return at
        self._pack_at = (new << self.cluster_bits) + length
        return new << self.cluster_bits

    def resize(self, size: int) -> None:
        """``size`` bytes from now on: zeros behind the old end, whatever the backing file has there."""
        self.check(0, 0, writing=True)
        old, header = self.size, self.header
        if self.snapshots and (size < old or header.version < 3):
            raise BlockError(f"{self.path} has internal snapshots, so it can't be made smaller", errno.ENOTSUP)
        self._begin()
        if size < old:
            edge = min(size + self.cluster_size - 1 & -self.cluster_size, old)
            if edge < old:
                self._clear_to_nothing(edge, old)
        self.write_metadata()
        needed = head.Header(version=3, cluster_bits=header.cluster_bits, size=size,
                             incompatible=header.incompatible).min_l1_size  # fmt: skip
        if needed * 8 > head.MAX_L1:
            raise BlockError(f"clusters of {self.cluster_size} bytes are too small for a disk of {size}", errno.EFBIG)
        if needed > header.l1_size:
            self._grow_l1(needed, size)
        header.size = self.size = size
        header.write_l1(self.file)
        self.file.sync()
        if self.raw_data:
            self.data.truncate(size)
        if size > old:
            end = size if self.backing and self.backing.size > old else min(size, old + self.cluster_size - 1
                                                                            & -self.cluster_size)  # fmt: skip
            self.write_zeroes(old, end - old)
        self.flush()

    def _clear_to_nothing(self, offset: int, end: int) -> None:
        """Entries behind a new, smaller end are emptied."""
        backing, self.backing = self.backing, None
        try:
            self._clear(offset, end, keep=False)
        finally:
            self.backing = backing

    def _grow_l1(self, entries: int, size: int) -> None:
        header, bits = self.header, self.cluster_bits
        clusters = -(-entries * 8 >> bits)
        start = self.refcounts.allocate_run(clusters)
        l1 = array("Q", self.mapping.l1)
        l1.extend([0] * (entries - len(l1)))
        swapped = l1[:]
        swapped.byteswap()
        self.file.write(start << bits, swapped.tobytes().ljust(clusters << bits, b"\0"))
        self.write_metadata()
        old = header.l1_table_offset >> bits, -(-header.l1_size * 8 >> bits)
        header.l1_table_offset, header.l1_size, header.size = start << bits, entries, size
        header.write_l1(self.file)
        self.file.sync()
        self.mapping.l1 = l1
        self.metadata.update(range(start, start + clusters))
        if old[0]:
            self._free(*old)

    def preallocate(self) -> None:
        """Give every cluster its place now; they read as zeros, as the file has holes there."""
        self._begin()
        mapping, at = self.mapping, 0
        while at < self.size:
            index = at >> self.cluster_bits
            table = self.l2_to_write(index >> mapping.l2_bits)
            first = index & mapping.l2_entries - 1
            count = min(-(-(self.size - at) >> self.cluster_bits), mapping.l2_entries - first)
            if self.external:
                host = at
            else:
                start, count = self.refcounts.allocate(count)
                host = start << self.cluster_bits
            for i in range(count):
                mapping.set_entry(table, first + i, host + (i << self.cluster_bits) | COPIED, ALL)
            at += count << self.cluster_bits
        if not self.external:
            self.file.truncate(max(self.file.size, self.refcounts.end << self.cluster_bits))
        self.flush()

    def set_backing(self, name: str | None, format: str | None) -> None:
        """Change what the header says; the disk's content is the caller's business."""
        self.check(0, 0, writing=True)
        if self.raw_data and name:
            raise BlockError(f"{self.path} has a raw external data file, so it can't have a backing file", errno.EINVAL)
        self._begin()
        header = self.header
        header.backing_name = name
        header.set_extension(head.BACKING_FORMAT, format.encode() if name and format else None)
        data = header.encode()
        self.file.write(0, data.ljust(min(self.cluster_size, len(data) + head.MAX_NAME), b"\0"))
        self.file.sync()
        self.backing_name, self.backing_format = name, format

    def empty(self) -> None:
        """Forget all data: the backing file shows again everywhere. For an image that was committed."""
        self._begin()
        self.write_metadata()
        self._clear_to_nothing(0, self.size)
        for index, entry in enumerate(self.mapping.l1):
            if entry & OFFSET_MASK:
                self.mapping.cache.forget(entry & OFFSET_MASK)
                self.mapping.l1[index] = 0
                self.mapping.changed_l1.add(index)
                self._free((entry & OFFSET_MASK) >> self.cluster_bits, 1)
        self.flush()
