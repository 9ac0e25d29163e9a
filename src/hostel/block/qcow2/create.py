"""New qcow2 images: header, refcounts and an empty mapping, written at once."""

import errno
import os
from array import array
from dataclasses import dataclass
from pathlib import Path

from hostel.base.errors import BlockError
from hostel.base.units import format_size
from hostel.block.qcow2 import header as head
from hostel.block.qcow2.header import Header
from hostel.block.qcow2.tables import Codec


@dataclass(frozen=True)
class Options:
    """What QEMU's options of the same names say; sizes in bytes. ``compat`` 1.1 is version 3, 0.10 version 2."""

    cluster_size: int = 1 << 16
    compat: str = "1.1"
    refcount_bits: int = 16
    lazy_refcounts: bool = False
    extended_l2: bool = False
    compression_type: str = "zlib"
    data_file: str | None = None
    data_file_raw: bool = False
    backing_file: str | None = None
    backing_fmt: str | None = None


def header_for(size: int, options: Options) -> Header:
    """The header of an image of ``size`` bytes, without the places of its tables; ``BlockError`` for what can't be."""

    def wrong(text: str) -> BlockError:
        return BlockError(text, errno.EINVAL)

    bits = options.cluster_size.bit_length() - 1
    if options.cluster_size != 1 << bits or not head.MIN_CLUSTER_BITS <= bits <= head.MAX_CLUSTER_BITS:
        raise wrong("a cluster has a power of two of bytes, 512 to 2M")
    if options.compat not in ("0.10", "1.1", "v2", "v3"):
        raise wrong("compat is 1.1 (or v3), or 0.10 (or v2)")
    if options.refcount_bits not in (1, 2, 4, 8, 16, 32, 64):
        raise wrong("refcount_bits is 1, 2, 4, 8, 16, 32 or 64")
    if options.compression_type not in head.COMPRESSIONS.values():
        raise wrong(f"compression_type is {' or '.join(head.COMPRESSIONS.values())}")
    version = 2 if options.compat in ("0.10", "v2") else 3
    if version == 2 and (
        options.refcount_bits != 16 or options.lazy_refcounts or options.extended_l2 or options.data_file
        or options.compression_type != "zlib"
    ):
        raise wrong("only version 3 (compat=1.1) knows these features")
    if options.extended_l2 and bits < 14:
        raise wrong("extended L2 entries need clusters of at least 16K")
    if options.data_file_raw and not options.data_file:
        raise wrong("data_file_raw goes with a data_file")
    if options.data_file_raw and options.backing_file:
        raise wrong("an image with a raw external data file has no backing file")
    if options.backing_fmt and not options.backing_file:
        raise wrong("there is a format, but no backing file")
    if not 0 <= size <= head.MAX_SIZE:
        raise wrong(f"a disk of {size} bytes is too large")
    header = Header(
        version=version, backing_name=options.backing_file, cluster_bits=bits, size=size + 511 & -512,
        refcount_order=options.refcount_bits.bit_length() - 1,
    )
    if options.lazy_refcounts:
        header.compatible |= head.LAZY_REFCOUNTS
    if options.extended_l2:
        header.incompatible |= head.EXTENDED_L2
    if options.compression_type == "zstd":
        header.incompatible |= head.COMPRESSION
        header.compression = head.ZSTD
    if options.backing_fmt:
        header.set_extension(head.BACKING_FORMAT, options.backing_fmt.encode())
    if options.data_file:
        header.incompatible |= head.EXTERNAL_DATA
        header.autoclear |= head.RAW_DATA if options.data_file_raw else 0
        header.set_extension(head.DATA_NAME, options.data_file.encode(errors="surrogateescape"))
    if version >= 3 and header.cluster_size > 512:
        header.set_extension(head.FEATURE_NAMES, head.feature_names())
    if header.min_l1_size * 8 > head.MAX_L1:
        raise wrong(f"clusters of {format_size(options.cluster_size)} are too small for a disk of {size} bytes")
    return header


def create(path: str | os.PathLike[str], size: int, options: Options | None = None) -> None:
    """A new image where there is no file yet. An external data file must be there, or be made by the caller."""
    header = header_for(size, options or Options())
    bits, cluster = header.cluster_bits, header.cluster_size
    header.l1_size = max(header.min_l1_size, 1)
    l1_clusters = -(-header.l1_size * 8 >> bits)
    block_bits = bits + 3 - header.refcount_order
    table = blocks = 1
    while True:  # the table counts the blocks, which count everything
        used = 1 + table + blocks + l1_clusters
        need = max(1, -(-used >> block_bits))
        need_table = -(-need * 8 >> bits)
        if (need, need_table) == (blocks, table):
            break
        blocks, table = need, need_table
    header.refcount_table_offset, header.refcount_table_clusters = cluster, table
    header.l1_table_offset = 1 + table + blocks << bits
    try:
        data = header.encode()
    except BlockError as error:
        raise BlockError(f"{path}: {error}", error.errno) from error
    entries = array("Q", (1 + table + i << bits for i in range(blocks)))
    entries.byteswap()
    codec = Codec(1 << header.refcount_order)
    path = Path(path)
    with open(path, "xb") as file:
        file.write(data)
        file.seek(cluster)
        file.write(entries.tobytes())
        for number in range(blocks):
            counted = min(used - (number << block_bits), 1 << block_bits)
            counts = array(codec.typecode, [1]) * counted
            counts.extend([0] * (-counted % (8 * codec.per_byte)))
            file.seek(1 + table + number << bits)
            file.write(codec.encode(counts))
        file.truncate(used << bits)
