"""What a boot loader hands to an engine: the first processor's registers, and checks that loaders share."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hostel.base.errors import BootError, MemoryError_
from hostel.board.memmap import HIGH_MEMORY, PAGE
from hostel.memory.ram import Ram


@dataclass(frozen=True)
class SegmentValue:
    """A segment register. ``attr`` holds descriptor bits 40..47 in 0..7 and 52..55 in 12..15, as cpu/state does."""

    selector: int
    base: int
    limit: int  # in bytes
    attr: int


CODE64 = 0xA09B
CODE32 = 0xC09B
DATA32 = 0xC093
TSS_BUSY = 0x008B
_ZERO = bytes(PAGE)


@dataclass(frozen=True)
class BootState:
    """Registers at entry; those that aren't named are 0. Interrupts are off and the IDT is empty."""

    rip: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    cs: SegmentValue
    data: SegmentValue  # DS, ES, SS, FS and GS
    tr: SegmentValue
    gdt: tuple[int, int]  # base, limit
    registers: dict[str, int] = field(default_factory=dict)  # rsi, rbx, rsp ...
    rflags: int = 2
    idt: tuple[int, int] = (0, 0)


class HeldFile:
    """A file that stays readable under the name it had, whatever becomes of the name or of who may open it."""

    def __init__(self, path: str | Path, what: str):
        self.path = str(path)
        with _told(path, what):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_bytes(self, limit: int = -1) -> bytes:
        """What is in it now, or its beginning."""
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            return file.read(limit)

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class InMemory:
    """A file that has been read already."""

    name: str
    data: bytes = field(repr=False)

    def read_bytes(self, limit: int = -1) -> bytes:
        return self.data if limit < 0 else self.data[:limit]

    def __str__(self) -> str:
        return self.name


BootFile = str | Path | HeldFile | InMemory


def read_file(path: BootFile, what: str) -> bytes:
    """A file's content, or a ``BootError`` that names it."""
    with _told(path, what):
        data = path.read_bytes() if isinstance(path, HeldFile | InMemory) else Path(path).read_bytes()
    if not data:
        raise BootError(f"{what} {path}: the file is empty")
    return data


@contextlib.contextmanager
def _told(path: BootFile, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise BootError(f"{what} {path}: no such file") from None
    except OSError as e:
        raise BootError(f"{what} {path}: {e.strerror}") from e


def store(ram: Ram, address: int, data: bytes | memoryview, what: str) -> None:
    """Write to guest memory; ``BootError`` where there is none.

    Pages of zeros are left out where memory is zero already: a third of a kernel that then costs nothing.
    """
    try:
        view = ram.view(address, len(data))
        start = 0
        for at in range(0, len(data), PAGE):
            if bytes(data[at : at + PAGE]) == _ZERO and bytes(view[at : at + PAGE]) == _ZERO:
                if start < at:
                    ram.write(address + start, data[start:at])
                start = at + PAGE
        if start < len(data):
            ram.write(address + start, data[start:])
    except MemoryError_:
        mib = -(-(address + len(data)) >> 20)
        raise BootError(
            f"{what} needs {mib} MiB of memory and the machine has {ram.size >> 20} MiB: give it more"
        ) from None


def place_initrd(ram: Ram, initrd: bytes, kernel: tuple[int, int], highest: int) -> int:
    """Store the initramfs as high as it may lie below ``highest``, else below the kernel, which occupies
    ``(start, end)``; returns its address."""
    start, end = kernel
    address = (highest - len(initrd)) & ~0xFFF
    if address < end:
        address = (start - len(initrd)) & ~0xFFF
    if address < HIGH_MEMORY:
        need = (end + len(initrd) + 0xFFFFF) >> 20
        raise BootError(
            f"the initramfs ({(len(initrd) + 0xFFFFF) >> 20} MiB) doesn't fit beside the kernel: "
            f"the machine needs at least {need} MiB of memory"
        )
    store(ram, address, initrd, "the initramfs")
    return address
