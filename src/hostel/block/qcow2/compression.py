"""Compressed clusters: deflate without a header and a window of 4 KiB, as QEMU reads and writes it, or zstd.

What is unpacked is bounded by the cluster, whatever the data say; so is the window that a zstd frame asks for.
"""

import zlib

from hostel.base.errors import BlockError
from hostel.block.qcow2.header import ZLIB

_WINDOW = -12             # bits; QEMU's decoder takes no more
_ZSTD_WINDOW = 8 << 20    # bytes; encoders need no more than a cluster


def compress(kind: int, data: bytes | bytearray | memoryview) -> bytes:
    if kind == ZLIB:
        packer = zlib.compressobj(-1, zlib.DEFLATED, _WINDOW, 9)
        return packer.compress(data) + packer.flush()
    import zstandard

    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def decompress(kind: int, data: bytes, size: int) -> bytes:
    """``size`` bytes; ``BlockError`` where that isn't what is in ``data``."""
    try:
        if kind == ZLIB:
            out = zlib.decompressobj(-15).decompress(data, size)
        else:
            import zstandard

            unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
            out = unpacker.stream_reader(data, read_across_frames=True).read(size)
    except Exception as error:  # zlib.error, zstandard.ZstdError: no common base
        raise BlockError(f"a compressed cluster can't be unpacked: {error}") from error
    if len(out) != size:
        raise BlockError(f"a compressed cluster has {len(out)} bytes instead of {size}")
    return out
