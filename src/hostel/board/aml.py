"""Encoding of ACPI machine language, as much as our DSDT needs: constant objects, an event (ACPI 6.4, chapter 20).

Every function returns bytes; terms are nested by passing bytes.
"""

import struct


def name_seg(name: str) -> bytes:
    """A four-character segment, padded with underscores."""
    return name.ljust(4, "_").encode()


def name_string(path: str) -> bytes:
    """``\\_SB_.PCI0`` and the like (20.2.2)."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [name_seg(s) for s in path.lstrip("\\").split(".") if s]
    if not segments:
        return root + b"\0"
    if len(segments) == 1:
        return root + segments[0]
    if len(segments) == 2:
        return root + b"\x2e" + segments[0] + segments[1]
    return root + b"\x2f" + bytes([len(segments)]) + b"".join(segments)


def with_length(body: bytes) -> bytes:
    """PkgLength and the body that it measures, itself included (20.2.4)."""
    if len(body) + 1 < 64:
        return bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        total = len(body) + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 15]) + (total >> 4).to_bytes(extra, "little") + body
    raise ValueError("an AML package is too long")


def integer(n: int) -> bytes:
    """The shortest constant."""
    if n in (0, 1):
        return bytes([n])
    for prefix, code in ((0x0A, "B"), (0x0B, "H"), (0x0C, "I"), (0x0E, "Q")):
        if n < 1 << 8 * struct.calcsize(code):
            return struct.pack("<B" + code, prefix, n)
    raise ValueError(f"{n} has no AML constant")


def string(s: str) -> bytes:
    """A zero-terminated string."""
    return b"\x0d" + s.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """``PNP0A08`` as the compressed 32-bit constant (19.3.4)."""
    letters = [ord(c) - 0x40 for c in text[:3]]
    packed = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + struct.pack(">I", packed)


def buffer(data: bytes) -> bytes:
    """A constant buffer."""
    return b"\x11" + with_length(integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """A constant package."""
    return b"\x12" + with_length(bytes([len(elements)]) + b"".join(elements))


def name(path: str, value: bytes) -> bytes:
    """``Name (path, value)``."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """``Scope (path) { ... }``."""
    return b"\x10" + with_length(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """``Device (path) { ... }``."""
    return b"\x5b\x82" + with_length(name_string(path) + b"".join(terms))


def method(path: str, *terms: bytes) -> bytes:
    """``Method (path, 0) { ... }``, without arguments."""
    return b"\x14" + with_length(name_string(path) + b"\0" + b"".join(terms))


def notify(path: str, value: int) -> bytes:
    """``Notify (path, value)``."""
    return b"\x86" + name_string(path) + integer(value)


# -- resource descriptors (6.4)


def resources(*descriptors: bytes) -> bytes:
    """A ResourceTemplate: descriptors and the end tag, whose checksum 0 means "not summed"."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io_ports(base: int, length: int) -> bytes:
    """Fixed ports, decoded with 16 bits."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, length)


def irq_edge(number: int) -> bytes:
    """An ISA interrupt: edge, high, exclusive."""
    return struct.pack("<BH", 0x22, 1 << number)


def irq_level(number: int) -> bytes:
    """An ISA interrupt: level, high, exclusive (ACPI 6.4, 6.4.2.1)."""
    return struct.pack("<BHB", 0x23, 1 << number, 0)


def memory_fixed(base: int, length: int) -> bytes:
    """Memory32Fixed, writable."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, length)


def bus_range(first: int, last: int) -> bytes:
    """The bus numbers behind a host bridge (WordBusNumber, produced)."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, 0x0C, 0, 0, first, last, 0, last - first + 1)


def io_range(first: int, last: int) -> bytes:
    """I/O ports behind a host bridge (WordIO, the entire range)."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 1, 0x0C, 3, 0, first, last, 0, last - first + 1)


def memory_range(first: int, last: int) -> bytes:
    """32-bit memory behind a host bridge (DWordMemory, not cacheable, writable)."""
    return struct.pack("<BHBBBIIIII", 0x87, 23, 0, 0x0C, 1, 0, first, last, 0, last - first + 1)


def memory_range64(first: int, last: int) -> bytes:
    """64-bit memory behind a host bridge (QWordMemory, prefetchable, writable)."""
    return struct.pack("<BHBBBQQQQQ", 0x8A, 43, 0, 0x0C, 7, 0, first, last, 0, last - first + 1)
