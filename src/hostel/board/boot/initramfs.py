"""Whether an initramfs is whole: one that is cut short would panic the guest late and without a reason.

It is any number of cpio archives (newc), each plain or compressed, with zero bytes between them
(Documentation/driver-api/early-userspace/buffer-format.rst). Plain archives are walked; of zstd, lz4 and
xz the framing is walked; gzip, bzip2 and lzma have none and are decompressed.
"""

import bz2
import lzma
import zlib

from hostel.base.errors import BootError

_CHUNK = 1 << 20


class _Cut(Exception):
    """The data ends too early."""


def check(data: bytes, name: str) -> None:
    """``BootError`` naming ``name`` if ``data`` is no initramfs or only the beginning of one."""
    at = 0
    found = False
    try:
        while True:
            at = _skip_zeros(data, at)
            if at >= len(data):
                break
            after = _archive(data, at)
            if after is None:
                if found:
                    break  # the kernel, too, stops with a message at junk behind an archive
                raise BootError(f"initramfs {name}: neither a cpio archive nor a compressed one")
            found = True
            at = after
    except _Cut:
        raise BootError(f"initramfs {name}: the file is truncated") from None
    except (zlib.error, lzma.LZMAError, OSError, ValueError) as e:
        raise BootError(f"initramfs {name}: the file is damaged ({e})") from None
    if not found:
        raise BootError(f"initramfs {name}: the file holds only zeros")


def _skip_zeros(data: bytes, at: int) -> int:
    while at < len(data) and data[at] == 0:
        step = data[at : at + 4096]
        at += len(step) - len(step.lstrip(b"\0"))
    return at


def _archive(data: bytes, at: int) -> int | None:
    """Where the archive at ``at`` ends; None if there is none."""
    magic = data[at : at + 6]
    if magic in (b"070701", b"070702"):
        return _cpio(data, at)
    if magic[:2] == b"\x1f\x8b":
        return _stream(data, at, zlib.decompressobj(wbits=31))
    if magic[:3] == b"BZh":
        return _stream(data, at, bz2.BZ2Decompressor())
    if magic == b"\xfd7zXZ\0":
        return _stream(data, at, lzma.LZMADecompressor(lzma.FORMAT_XZ)) if not _xz_whole(data) else len(data)
    if magic[:3] == b"\x5d\0\0":
        return _stream(data, at, lzma.LZMADecompressor(lzma.FORMAT_ALONE))
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        return _zstd(data, at)
    if magic[:4] == b"\x02\x21\x4c\x18":
        return _lz4(data, at)
    if magic == b"\x89LZO\0\r":
        return len(data)
    return None


def _cpio(data: bytes, at: int) -> int:
    while True:
        header = data[at : at + 110]
        if len(header) < 110:
            raise _Cut
        if header[:6] not in (b"070701", b"070702"):
            raise ValueError("a cpio header is missing")
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        name = data[at + 110 : at + 110 + name_size]
        at = (at + 110 + name_size + 3) & ~3
        at = (at + size + 3) & ~3
        # The padding behind the last archive's trailer may be missing.
        if name == b"TRAILER!!!\0":
            return min(at, len(data))
        if at >= len(data):
            raise _Cut


def _stream(data: bytes, at: int, decompressor) -> int:
    while not decompressor.eof:
        if at >= len(data):
            raise _Cut
        decompressor.decompress(data[at : at + _CHUNK])
        at += _CHUNK
    return min(at, len(data)) - len(decompressor.unused_data)


def _xz_whole(data: bytes) -> bool:
    # A stream's footer ends with "YZ" (xz file format 2.1.2.4).
    return data.rstrip(b"\0").endswith(b"YZ")


def _zstd(data: bytes, at: int) -> int:
    # RFC 8878, 3.1.1
    if at + 5 > len(data):
        raise _Cut
    descriptor = data[at + 4]
    single = descriptor >> 5 & 1
    at += 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    at += (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    last = False
    while not last:
        if at + 3 > len(data):
            raise _Cut
        block = int.from_bytes(data[at : at + 3], "little")
        last = bool(block & 1)
        kind = block >> 1 & 3
        at += 3 + (1 if kind == 1 else block >> 3)
    at += 4 if descriptor & 4 else 0
    if at > len(data):
        raise _Cut
    return at


def _lz4(data: bytes, at: int) -> int:
    at += 4
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if size == 0:
            return at
        at += 4 if size == 0x184C2102 else 4 + size
    if at > len(data):
        raise _Cut
    return at
