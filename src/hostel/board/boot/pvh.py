"""Xen's PVH entry: an ELF image entered in 32-bit protected mode (xen/include/public/arch-x86/hvm/start_info.h
and docs/misc/pvh.pandoc). The note XEN_ELFNOTE_PHYS32_ENTRY says where.
"""

import struct

from hostel.base.errors import BootError
from hostel.board.boot import elf, initramfs
from hostel.board.boot.state import (
    CODE32,
    DATA32,
    TSS_BUSY,
    BootFile,
    BootState,
    SegmentValue,
    place_initrd,
    read_file,
)
from hostel.board.memmap import Layout
from hostel.memory.ram import Ram

XEN_ELFNOTE_PHYS32_ENTRY = 18
MAGIC = 0x336EC578
GDT = 0x1000
START_INFO = 0x6000
MEMORY_MAP = 0x6100
MODULES = 0x6F00
COMMAND_LINE = 0x20000
LONGEST_COMMAND_LINE = 0x8000


def entry_point(image: elf.Elf) -> int | None:
    """The 32-bit entry, where the image has one."""
    for owner, kind, content in image.notes():
        if owner == b"Xen" and kind == XEN_ELFNOTE_PHYS32_ENTRY and len(content) in (4, 8):
            return int.from_bytes(content, "little")
    return None


def load(
    ram: Ram,
    layout: Layout,
    kernel: BootFile,
    initrd: BootFile | None = None,
    cmdline: str = "",
    rsdp: int = 0,
) -> BootState:
    """Put an ELF kernel with a PVH entry, and its data, into memory; errors as in ``linux.load``."""
    data = read_file(kernel, "kernel")
    if not elf.is_elf(data):
        raise BootError(f"kernel {kernel}: not an ELF file, so nothing to enter by PVH")
    image = elf.parse(data, str(kernel))
    entry = entry_point(image)
    if entry is None:
        raise BootError(f"kernel {kernel}: no PVH entry (Xen note 18) in it")
    if image.end > layout.low_end:
        raise BootError(
            f"kernel {kernel} needs at least {(image.end + 0xFFFFF) >> 20} MiB of memory "
            f"and the machine has {ram.size >> 20} MiB: give it more"
        )
    image.load(ram)
    raw = cmdline.encode()
    if len(raw) > LONGEST_COMMAND_LINE or b"\0" in raw:
        raise BootError("the kernel's command line is longer than 32 KiB or has a zero byte in it")
    ram.write(COMMAND_LINE, raw + b"\0")
    modules = 0
    if initrd is not None:
        content = read_file(initrd, "initramfs")
        initramfs.check(content, str(initrd))
        kernel_range = (image.loads[0].paddr, image.end)
        address = place_initrd(ram, content, kernel_range, min(0x80000000, layout.low_end))
        ram.write(MODULES, struct.pack("<QQQQ", address, len(content), 0, 0))
        modules = 1
    ram.write(MEMORY_MAP, b"".join(struct.pack("<QQII", *entry820, 0) for entry820 in layout.e820))
    ram.write(
        START_INFO,
        struct.pack(
            "<IIIIQQQQII",
            MAGIC, 1, 0, modules, MODULES if modules else 0, COMMAND_LINE, rsdp, MEMORY_MAP, len(layout.e820), 0,
        ),
    )  # fmt: skip
    gdt = struct.pack("<5Q", 0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067)
    ram.write(GDT, gdt)
    return BootState(
        rip=entry,
        cr0=0x11,  # ET, PE
        cr3=0,
        cr4=0,
        efer=0,
        cs=SegmentValue(0x10, 0, 0xFFFFFFFF, CODE32),
        data=SegmentValue(0x18, 0, 0xFFFFFFFF, DATA32),
        tr=SegmentValue(0x20, 0, 0x67, TSS_BUSY),
        gdt=(GDT, len(gdt) - 1),
        registers={"rbx": START_INFO},
    )
