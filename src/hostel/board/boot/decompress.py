"""Kernel payloads, decompressed on the host: gzip, bzip2, xz, lzma, zstd, lz4 (legacy frames).

The kernel's build appends the uncompressed size (32 bits, little endian) to all of them but gzip, whose
own trailer ends with it; so it is always the last word (scripts/Makefile.lib, size_append). Trailing
bytes are therefore expected. LZO is not supported: such a kernel decompresses itself.
"""

import bz2
import lzma
import struct
import zlib

from hostel.base.errors import BootError

LIMIT = 1 << 28  # no kernel is that large; a bound for damaged and hostile files
_LZ4_BLOCK = 8 << 20  # lz4 legacy format: each block but the last holds this much


def _gzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, LIMIT)


def _bzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, LIMIT)


def _xz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, LIMIT)


def _lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, LIMIT)


def _zstd(data: bytes) -> bytes:
    import zstandard

    # Debian's kernels have windows of 128 MiB; a bound is what a guest's own kernel may have us allocate
    return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data).read(LIMIT)


def _lz4(data: bytes) -> bytes:
    import lz4.block

    size = min(struct.unpack("<I", data[-4:])[0], LIMIT)
    out = bytearray()
    at = 4
    whole = memoryview(data)
    while len(out) < size:
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length == 0x184C2102:  # a further frame
            continue
        out += lz4.block.decompress(whole[at : at + length], uncompressed_size=_LZ4_BLOCK)
        at += length
    return out


_FORMATS = {
    b"\x1f\x8b": _gzip,
    b"BZh": _bzip2,
    b"\xfd7zXZ\0": _xz,
    b"\x5d\0\0": _lzma,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x02\x21\x4c\x18": _lz4,
}


def load_all() -> None:
    """Imports what each format needs: a confined process can't later."""
    import lz4.block  # noqa: F401
    import zstandard  # noqa: F401


def is_known(data: bytes) -> bool:
    """Whether ``decompress`` knows the format."""
    return any(data.startswith(magic) for magic in _FORMATS)


def decompress(data: bytes, what: str) -> bytes:
    """The payload's content; ``BootError`` naming ``what`` where it is damaged or of an unknown format."""
    for magic, unpack in _FORMATS.items():
        if data.startswith(magic):
            break
    else:
        raise BootError(f"{what}: the kernel inside is compressed in a way that hostel doesn't know")
    try:
        return unpack(data)
    except Exception as e:  # each library has errors of its own
        raise BootError(f"{what}: the compressed kernel inside is damaged ({e})") from e
