"""Internal snapshots: what the snapshot table lists (the specification, "Snapshots"). They are kept, never made."""

import struct
from dataclasses import dataclass

from hostel.base.errors import BlockError
from hostel.block.file import File
from hostel.block.qcow2.header import MAX_L1, Header

_ENTRY = struct.Struct(">QIHHIIQII")
_MAX_EXTRA, _MAX_TABLE = 1024, 64 << 20   # QEMU's limits, bytes
_MAX_L1_TABLES = 4 * MAX_L1               # of all snapshots together; bytes


@dataclass(frozen=True)
class Snapshot:
    """``length``: of its entry in the table; sizes are bytes, ``date`` seconds since the epoch."""

    id: str
    name: str
    l1_table_offset: int
    l1_size: int
    date: int
    date_nanoseconds: int
    vm_clock: int             # nanoseconds
    vm_state_size: int
    disk_size: int
    icount: int | None
    length: int


def read_snapshots(file: File, header: Header) -> list[Snapshot]:
    found: list[Snapshot] = []
    at, l1_tables, end = header.snapshots_offset, 0, file.size + header.cluster_size - 1
    for number in range(header.nb_snapshots):
        raw = file.read(at, _ENTRY.size)
        if len(raw) < _ENTRY.size or at - header.snapshots_offset > _MAX_TABLE:
            raise BlockError(f"{file.path} is damaged: its snapshot table ends after {number} entries")
        offset, l1_size, id_size, name_size, date, nanoseconds, clock, state_size, extra = _ENTRY.unpack(raw)
        length = _ENTRY.size + extra + id_size + name_size
        rest = file.read(at + _ENTRY.size, length - _ENTRY.size) if extra <= _MAX_EXTRA else b""
        if len(rest) < length - _ENTRY.size:
            raise BlockError(f"{file.path} is damaged: entry {number} of its snapshot table makes no sense")
        l1_tables += l1_size * 8
        if offset & header.cluster_size - 1 or offset + l1_size * 8 > end or l1_size * 8 > MAX_L1:
            raise BlockError(f"{file.path} is damaged: the L1 table of snapshot {number} makes no sense")
        if l1_tables > _MAX_L1_TABLES:
            raise BlockError(f"{file.path} has more in its snapshots' L1 tables than hostel opens")
        disk_size, icount = header.size, None
        if extra >= 8:
            state_size = struct.unpack_from(">Q", rest)[0]
        if extra >= 16:
            disk_size = struct.unpack_from(">Q", rest, 8)[0]
        if extra >= 24:
            icount = struct.unpack_from(">Q", rest, 16)[0]
        texts = rest[extra:]
        found.append(Snapshot(
            texts[:id_size].decode(errors="replace"), texts[id_size:].decode(errors="replace"), offset, l1_size, date,
            nanoseconds, clock, state_size, disk_size, None if icount == (1 << 64) - 1 else icount, length + 7 & ~7,
        ))  # fmt: skip
        at += length + 7 & ~7
    return found
