"""An ELF file of nothing but symbols, which gdb loads, from what a guest's /proc/kallsyms shows."""

import struct

from hostel.base.errors import MachineError

_TEXT, _DATA = "tTwW", "dDbBrRvV"
_ABSOLUTE_FROM = 1 << 47        # kernel addresses; what lies below are offsets of per-CPU variables


def elf(kallsyms: str) -> bytes:
    """``MachineError`` where it names no addresses."""
    found: list[tuple[int, str, bool]] = []
    for line in kallsyms.splitlines():
        parts = line.split()
        if len(parts) in (3, 4) and parts[1] in _TEXT + _DATA:
            address = int(parts[0], 16)
            if address >= _ABSOLUTE_FROM:
                found.append((address, parts[2], parts[1] in _TEXT))
    if not found:
        raise MachineError("the guest shows no kernel symbols: /proc/kallsyms is there for root only")
    found.sort(key=lambda symbol: symbol[0])
    code = [address for address, _, is_code in found if is_code]
    low, high = min(code), max(code) + 4096
    # sections: 0, .text (no bytes in the file), .data, .symtab, .strtab, .shstrtab
    section_names = b"\0.text\0.data\0.symtab\0.strtab\0.shstrtab\0"
    strings = bytearray(b"\0")
    symbols = bytearray(24)
    for i, (address, name, is_code) in enumerate(found):
        following = next((a for a, _, _ in found[i + 1 : i + 20] if a > address), address)
        size = min(following - address, 1 << 20)
        symbols += struct.pack(
            "<IBBHQQ", len(strings), 0x12 if is_code else 0x11, 0, 1 if is_code else 2, address, size
        )
        strings += name.encode() + b"\0"
    header_size = 64
    at_symbols = header_size
    at_strings = at_symbols + len(symbols)
    at_names = at_strings + len(strings)
    at_sections = (at_names + len(section_names) + 7) & ~7

    def section(name: bytes, kind: int, flags: int, address: int, offset: int, size: int, *more: int) -> bytes:
        link, info, align, entry = more or (0, 0, 1, 0)
        named = section_names.index(name + b"\0")
        return struct.pack("<IIQQQQIIQQ", named, kind, flags, address, offset, size, link, info, align, entry)

    sections = bytes(64)
    sections += section(b".text", 8, 6, low, header_size, high - low)
    sections += section(b".data", 8, 3, 0, header_size, 0)
    sections += section(b".symtab", 2, 0, 0, at_symbols, len(symbols), 4, 1, 8, 24)
    sections += section(b".strtab", 3, 0, 0, at_strings, len(strings))
    sections += section(b".shstrtab", 3, 0, 0, at_names, len(section_names))
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, low, 0, at_sections, 0, 64, 56, 0, 64, 6, 5)
    body = head + bytes(symbols) + bytes(strings) + section_names
    return body + bytes(at_sections - len(body)) + sections
