"""Just enough of ELF to load a kernel: program headers and notes of x86 executables (System V gABI, chapter 5)."""

import struct
from dataclasses import dataclass

from hostel.base.errors import BootError
from hostel.board.boot.state import store
from hostel.memory.ram import Ram

PT_LOAD, PT_NOTE = 1, 4
EM_386, EM_X86_64 = 3, 62
LOWEST = 0x100000  # what lies below belongs to the machine


@dataclass(frozen=True)
class Segment:
    """One program header."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True)
class Elf:
    """An executable; ``data`` is the whole file."""

    data: bytes
    name: str
    entry: int
    machine: int
    segments: tuple[Segment, ...]

    @property
    def loads(self) -> list[Segment]:
        """What is to be in memory, lowest address first."""
        return sorted((s for s in self.segments if s.type == PT_LOAD and s.memsz), key=lambda s: s.paddr)

    @property
    def end(self) -> int:
        """The physical address behind the last byte."""
        return max(s.paddr + s.memsz for s in self.loads)

    def notes(self):
        """``(owner, type, content)`` of each note."""
        for s in self.segments:
            if s.type != PT_NOTE:
                continue
            at, end = s.offset, s.offset + s.filesz
            while at + 12 <= end:
                name_size, size, kind = struct.unpack_from("<III", self.data, at)
                at += 12
                owner = self.data[at : at + name_size].rstrip(b"\0")
                at += (name_size + 3) & ~3
                content = self.data[at : at + size]
                at += (size + 3) & ~3
                if at > end:
                    return
                yield owner, kind, content

    def load(self, ram: Ram) -> None:
        """Store every segment at its physical address and zero what the file doesn't hold."""
        for s in self.loads:
            if s.paddr < LOWEST:
                raise BootError(f"kernel {self.name}: wants to be loaded at {s.paddr:#x}, below 1 MiB")
            content = memoryview(self.data)[s.offset : s.offset + s.filesz]
            store(ram, s.paddr, content, f"kernel {self.name}")
            if s.memsz > s.filesz:
                store(ram, s.paddr + s.filesz, bytes(s.memsz - s.filesz), f"kernel {self.name}")


def is_elf(data: bytes) -> bool:
    """Whether the file starts as ELF files do."""
    return data[:4] == b"\x7fELF"


def parse(data: bytes, name: str) -> Elf:
    """Check and read the headers; ``BootError`` naming ``name`` for what can't be a kernel."""
    try:
        kind, machine = data[4], struct.unpack_from("<H", data, 18)[0]
        if (kind, machine) not in ((2, EM_X86_64), (1, EM_386)):
            raise BootError(f"kernel {name}: an ELF file, but not for x86")
        entry, phoff = struct.unpack_from("<QQ" if kind == 2 else "<II", data, 24)
        phentsize, phnum = struct.unpack_from("<HH", data, 54 if kind == 2 else 42)
        segments = []
        for i in range(phnum):
            at = phoff + i * phentsize
            if kind == 2:
                type_, _, offset, vaddr, paddr, filesz, memsz = struct.unpack_from("<IIQQQQQ", data, at)
            else:
                type_, offset, vaddr, paddr, filesz, memsz = struct.unpack_from("<IIIIII", data, at)
            segments.append(Segment(type_, offset, vaddr, paddr, filesz, memsz))
    except (struct.error, IndexError):
        raise BootError(f"kernel {name}: the file is truncated") from None
    for s in segments:
        if s.type in (PT_LOAD, PT_NOTE) and s.offset + s.filesz > len(data):
            raise BootError(f"kernel {name}: the file is truncated")
        if s.type == PT_LOAD and (s.memsz < s.filesz or s.paddr + s.memsz > 1 << 40):
            raise BootError(f"kernel {name}: its program headers make no sense")
    elf = Elf(data, name, entry, machine, tuple(segments))
    if not elf.loads:
        raise BootError(f"kernel {name}: an ELF file with nothing to load; a kernel module perhaps?")
    return elf
