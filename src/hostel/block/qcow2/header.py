"""A qcow2 image's header and its extensions: read, judged, written.

What an image says is hostile: every table has to be aligned and inside of the file, and of a size that the format and
QEMU's limits allow, before anything is read or allocated by it. Extensions and bits that we don't know are kept or
cleared as the specification says.
"""

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from hostel.base.errors import BlockError
from hostel.block.file import File

MAGIC = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")          # up to byte 72
_V3 = struct.Struct(">QQQII")                   # bytes 72 to 104
V2_LENGTH, V3_LENGTH = _V2.size, _V2.size + _V3.size

# incompatible features
DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION, EXTENDED_L2 = 1, 2, 4, 8, 16
_KNOWN = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2
LAZY_REFCOUNTS = 1        # a compatible one
BITMAPS, RAW_DATA = 1, 2  # autoclear ones
# extensions
_END, BACKING_FORMAT, FEATURE_NAMES, BITMAPS_EXTENSION, DATA_NAME = 0, 0xE2792ACA, 0x6803F857, 0x23852875, 0x44415441
ZLIB, ZSTD = 0, 1
COMPRESSIONS = {ZLIB: "zlib", ZSTD: "zstd"}

# QEMU's limits; what is larger it can't open either, and it bounds our memory.
MAX_L1 = 32 << 20         # bytes
MAX_REFCOUNT_TABLE = 8 << 20
MAX_SNAPSHOTS = 65536
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_SIZE = (1 << 63) - 1
MAX_NAME = 1023
_FEATURES_AT = 72

# What 'create' writes, so that who doesn't know a feature can name it.
_NAMES = [
    (0, 0, b"dirty bit"), (0, 1, b"corrupt bit"), (0, 2, b"external data file"), (0, 3, b"compression type"),
    (0, 4, b"extended L2 entries"), (1, 0, b"lazy refcounts"), (2, 0, b"bitmaps"), (2, 1, b"raw external data"),
]


@dataclass
class Header:
    """The fields by the specification's names, offsets and sizes in bytes. ``rest``: fields that we don't know."""

    version: int = 3
    backing_name: str | None = None
    cluster_bits: int = 16
    size: int = 0
    l1_size: int = 0          # entries
    l1_table_offset: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression: int = ZLIB
    rest: bytes = b""
    extensions: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def l2_bits(self) -> int:
        """An L2 table has 2 to the power of this many entries."""
        return self.cluster_bits - (4 if self.extended_l2 else 3)

    @property
    def min_l1_size(self) -> int:
        """Entries that the size of the disk asks for."""
        return -(-self.size >> (self.cluster_bits + self.l2_bits))

    def extension(self, kind: int) -> bytes | None:
        return next((data for known, data in self.extensions if known == kind), None)

    def set_extension(self, kind: int, data: bytes | None) -> None:
        """In its old place or as the last; None removes it."""
        kinds = [known for known, _ in self.extensions]
        if data is None:
            self.extensions = [item for item in self.extensions if item[0] != kind]
        elif kind in kinds:
            self.extensions[kinds.index(kind)] = (kind, data)
        else:
            self.extensions.append((kind, data))

    def encode(self) -> bytes:
        """The beginning of the image; ``BlockError`` if it doesn't fit into the first cluster."""
        head = b""
        if self.version >= 3:
            head = bytes([self.compression]) + bytes(7) + self.rest if self.compression or self.rest else b""
            length = V3_LENGTH + len(head)
            head = _V3.pack(self.incompatible, self.compatible, self.autoclear, self.refcount_order, length) + head
        parts = [head]
        for kind, data in self.extensions:
            parts.append(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8))
        parts.append(struct.pack(">II", _END, 0))
        body = b"".join(parts)
        name = (self.backing_name or "").encode(errors="surrogateescape")
        if len(name) > MAX_NAME:
            raise BlockError(f"the backing file's name is longer than {MAX_NAME} bytes", errno.ENAMETOOLONG)
        offset = _V2.size + len(body) if name else 0
        if _V2.size + len(body) + len(name) > self.cluster_size:
            raise BlockError("the image's header has no room for this in its first cluster", errno.ENOSPC)
        return _V2.pack(
            MAGIC, self.version, offset, len(name), self.cluster_bits, self.size, 0, self.l1_size,
            self.l1_table_offset, self.refcount_table_offset, self.refcount_table_clusters, self.nb_snapshots,
            self.snapshots_offset,
        ) + body + name

    def write_features(self, file: File) -> None:
        """Only the feature bits, in place."""
        if self.version >= 3:
            file.write(_FEATURES_AT, struct.pack(">QQQ", self.incompatible, self.compatible, self.autoclear))

    def write_l1(self, file: File) -> None:
        """Size and L1 table together, in one sector: bytes 24 to 47."""
        file.write(24, struct.pack(">QIIQ", self.size, 0, self.l1_size, self.l1_table_offset))

    def write_refcount_table(self, file: File) -> None:
        file.write(48, struct.pack(">QI", self.refcount_table_offset, self.refcount_table_clusters))


def feature_names() -> bytes:
    return b"".join(struct.pack("BB46s", kind, bit, name) for kind, bit, name in _NAMES)


def read(file: File) -> Header:
    """The header of an image; ``BlockError`` for what makes no sense or isn't supported."""
    path = file.path

    def wrong(what: str, number: int = errno.EINVAL) -> BlockError:
        return BlockError(f"{path} is damaged: {what}", number)

    data = file.read(0, 1 << 16)
    if len(data) < V2_LENGTH or data[:4] != MAGIC:
        raise BlockError(f"{path} is no qcow2 image", errno.EINVAL)
    (_, version, backing_offset, backing_size, cluster_bits, size, crypt, l1_size, l1_offset, table_offset,
     table_clusters, snapshots, snapshots_offset) = _V2.unpack_from(data)  # fmt: skip
    if version not in (2, 3):
        raise BlockError(f"{path} is of version {version} of qcow2; hostel knows 2 and 3", errno.ENOTSUP)
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise wrong(f"clusters of 2^{cluster_bits} bytes")
    header = Header(
        version, None, cluster_bits, size, l1_size, l1_offset, table_offset, table_clusters, snapshots, snapshots_offset
    )
    data = data[: header.cluster_size] if header.cluster_size <= len(data) else file.read(0, header.cluster_size)
    length = V2_LENGTH
    if version >= 3:
        if len(data) < V3_LENGTH:
            raise wrong("its header ends early")
        header.incompatible, header.compatible, header.autoclear, header.refcount_order, length = _V3.unpack_from(
            data, V2_LENGTH)  # fmt: skip
        if not V3_LENGTH <= length <= len(data):
            raise wrong(f"its header is {length} bytes long")
        if length > V3_LENGTH:
            header.compression = data[V3_LENGTH]
            header.rest = data[V3_LENGTH + 8 : length]
    unknown = header.incompatible & ~_KNOWN
    _read_extensions(header, data, length, wrong, lenient=bool(unknown))
    if unknown:
        names = ", ".join(_name_of(header, bit) for bit in range(64) if unknown >> bit & 1)
        raise BlockError(f"{path} needs what hostel doesn't know: {names}", errno.ENOTSUP)
    if crypt:
        raise BlockError(f"{path} is encrypted; hostel can't read that", errno.ENOTSUP)
    if header.refcount_order > 6:
        raise wrong(f"refcounts of 2^{header.refcount_order} bits")
    if bool(header.incompatible & COMPRESSION) != (header.compression != ZLIB):
        raise wrong("its compression type and its feature bits contradict each other")
    if header.compression not in COMPRESSIONS:
        raise BlockError(f"{path} is compressed by a method that hostel doesn't know", errno.ENOTSUP)
    if header.extended_l2 and cluster_bits < 14:
        raise wrong("extended L2 entries in clusters of less than 16 KiB")
    if backing_offset:
        if backing_size > MAX_NAME or backing_offset + backing_size > len(data):
            raise wrong("the name of its backing file is outside of the first cluster")
        name = data[backing_offset : backing_offset + backing_size]
        header.backing_name = name.decode(errors="surrogateescape") or None
    _check_tables(header, file, wrong)
    return header


def _read_extensions(
    header: Header, data: bytes, at: int, wrong: Callable[[str], BlockError], lenient: bool
) -> None:
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        if kind == _END:
            return
        if at + 8 + length > len(data):
            if lenient:
                return
            raise wrong("a header extension goes past the first cluster")
        header.extensions.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + (length + 7 & ~7)


def _name_of(header: Header, bit: int) -> str:
    table = header.extension(FEATURE_NAMES) or b""
    for at in range(0, len(table) - 47, 48):
        if table[at] == 0 and table[at + 1] == bit:
            name = table[at + 2 : at + 48].rstrip(b"\0").decode(errors="replace")
            return "'" + "".join(c if c.isprintable() else "?" for c in name) + "'"
    return f"incompatible feature {bit}"


def _check_tables(header: Header, file: File, wrong: Callable[[str], BlockError]) -> None:
    """Every table that the header names is where it can be."""
    cluster = header.cluster_size
    end = file.size + cluster - 1 & -cluster
    if header.size > MAX_SIZE:
        raise wrong(f"a disk of {header.size} bytes")
    if header.l1_size * 8 > MAX_L1:
        raise wrong(f"an L1 table of {header.l1_size} entries")
    if header.l1_size < header.min_l1_size:
        raise wrong(f"an L1 table of {header.l1_size} entries for a disk of {header.size} bytes")
    if header.refcount_table_clusters * cluster > MAX_REFCOUNT_TABLE:
        raise wrong(f"a refcount table of {header.refcount_table_clusters} clusters")
    if not header.refcount_table_clusters:
        raise wrong("it has no refcount table")
    if header.nb_snapshots > MAX_SNAPSHOTS:
        raise wrong(f"{header.nb_snapshots} snapshots")
    tables = [
        ("L1 table", header.l1_table_offset, header.l1_size * 8),
        ("refcount table", header.refcount_table_offset, header.refcount_table_clusters * cluster),
        ("snapshot table", header.snapshots_offset, 40 * header.nb_snapshots),
    ]
    for what, offset, length in tables:
        if not length:
            continue
        if offset % cluster or offset < cluster:
            raise wrong(f"its {what} is at {offset:#x}")
        if offset + length > end:
            raise wrong(f"its {what} is past the end of the file")


def string(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="surrogateescape")
