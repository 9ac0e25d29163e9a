"""The Linux boot protocol, 64-bit entry (Documentation/arch/x86/boot.rst and zero-page.rst).

A bzImage is either run as it is, and decompresses itself in the guest, or (the default) its payload is
decompressed here, which is faster by far under an emulated CPU, and the ELF vmlinux is entered at
startup_64. A kernel decompressed here lies where it was linked: no KASLR for its text.

What the loader leaves in low memory: GDT, zero page, setup_data, page tables, command line. The kernel
copies or reserves them before it uses the memory.
"""

import struct

from hostel.base.errors import BootError
from hostel.board.boot import decompress as payloads
from hostel.board.boot import elf, initramfs
from hostel.board.boot.state import (
    CODE64,
    DATA32,
    TSS_BUSY,
    BootFile,
    BootState,
    SegmentValue,
    place_initrd,
    read_file,
    store,
)
from hostel.board.memmap import FOUR_GIB, Layout
from hostel.memory.ram import Ram

GDT = 0x1000
ZERO_PAGE = 0x7000
SETUP_DATA = 0x8000
PAGE_TABLES = 0x9000  # PML4, PDPT, four page directories: up to 0xF000
COMMAND_LINE = 0x20000
LOADER_UNDEFINED = 0xFF
SETUP_RNG_SEED = 9
XLF_KERNEL_64 = 1
DEFAULT_COMMAND_LINE_SIZE = 2047


def is_bzimage(data: bytes) -> bool:
    """Whether the file starts as bzImages do."""
    return len(data) > 0x264 and data[0x202:0x206] == b"HdrS" and data[0x1FE:0x200] == b"\x55\xaa"


class Header:
    """The setup header of a bzImage, fields named as in boot.rst."""

    def __init__(self, data: bytes, name: str):
        self.data = data
        self.version = self.u16(0x206)
        if self.version < 0x20C:
            raise BootError(f"kernel {name}: boot protocol {self.version >> 8}.{self.version & 255:02} is too old")
        self.setup_size = ((data[0x1F1] or 4) + 1) * 512
        self.syssize = self.u32(0x1F4) * 16
        self.initrd_addr_max = self.u32(0x22C)
        self.relocatable_kernel = data[0x234]
        self.xloadflags = self.u16(0x236)
        self.cmdline_size = self.u32(0x238)
        self.payload_offset = self.u32(0x248)
        self.payload_length = self.u32(0x24C)
        self.pref_address = struct.unpack_from("<Q", data, 0x258)[0]
        self.init_size = self.u32(0x260)
        # 16 bytes of slack: older builds round syssize up
        if len(data) < self.setup_size + self.syssize - 16:
            raise BootError(f"kernel {name}: the file is truncated")
        if not self.xloadflags & XLF_KERNEL_64:
            raise BootError(f"kernel {name}: not a 64-bit kernel")

    def u16(self, at: int) -> int:
        return struct.unpack_from("<H", self.data, at)[0]

    def u32(self, at: int) -> int:
        return struct.unpack_from("<I", self.data, at)[0]

    @property
    def payload(self) -> bytes:
        """The compressed kernel."""
        start = self.setup_size + self.payload_offset
        return self.data[start : start + self.payload_length]

    def raw(self) -> bytes:
        """The header as it goes into the zero page at 0x1F1: up to 0x202 + the byte at 0x201."""
        return self.data[0x1F1 : 0x202 + self.data[0x201]]


def extract_vmlinux(data: bytes, name: str = "bzImage") -> bytes | None:
    """The ELF vmlinux inside a bzImage; None where its compression isn't known or it is no ELF file."""
    payload = Header(data, name).payload
    if not payloads.is_known(payload):
        return None
    image = payloads.decompress(payload, f"kernel {name}")
    return image if elf.is_elf(image) else None


def load(
    ram: Ram,
    layout: Layout,
    kernel: BootFile,
    initrd: BootFile | None = None,
    cmdline: str = "",
    rsdp: int = 0,
    decompress: bool = True,
    seed: bytes = b"",
) -> BootState:
    """Put a kernel (bzImage or ELF vmlinux) and its data into memory, and return how to enter it.

    ``rsdp``: the address of ACPI's root pointer, 0 for none. ``seed``: entropy for the guest, 32 bytes or so.
    ``BootError`` for files that are missing, damaged, no kernels or too large for the machine.
    """
    data = read_file(kernel, "kernel")
    name = str(kernel)
    header = None
    image = data
    if is_bzimage(data):
        header = Header(data, name)
        image = (extract_vmlinux(data, name) if decompress else None) or b""
    elif not elf.is_elf(data):
        raise BootError(f"kernel {name}: neither a bzImage nor an ELF file, so no kernel that hostel can boot")
    if image:
        vmlinux = elf.parse(image, name)
        if vmlinux.machine != elf.EM_X86_64:
            raise BootError(f"kernel {name}: not a 64-bit kernel")
        vmlinux.load(ram)
        entry = vmlinux.entry
        if not any(s.paddr <= entry < s.paddr + s.memsz for s in vmlinux.loads):
            raise BootError(f"kernel {name}: its entry point {entry:#x} isn't inside it")
        start, end = vmlinux.loads[0].paddr, vmlinux.end
    else:
        assert header is not None
        start = header.pref_address if header.relocatable_kernel else 0x100000
        end = start + max(header.init_size, header.syssize)
        store(ram, start, data[header.setup_size : header.setup_size + header.syssize], f"kernel {name}")
        entry = start + 0x200
    if end > layout.low_end:
        raise BootError(
            f"kernel {name} needs at least {(end + 0xFFFFF) >> 20} MiB of memory "
            f"and the machine has {ram.size >> 20} MiB: give it more"
        )
    zero_page = bytearray(4096)
    if header:
        raw = header.raw()
        zero_page[0x1F1 : 0x1F1 + len(raw)] = raw
    else:
        struct.pack_into("<HH4sH", zero_page, 0x1FE, 0xAA55, 0, b"HdrS", 0x20F)
        zero_page[0x211] = 1  # LOADED_HIGH
        struct.pack_into("<I", zero_page, 0x230, 0x1000000)
    zero_page[0x210] = LOADER_UNDEFINED
    if initrd is not None:
        content = read_file(initrd, "initramfs")
        initramfs.check(content, str(initrd))
        limit = header.initrd_addr_max + 1 if header else 0x80000000
        address = place_initrd(ram, content, (start, end), min(limit, layout.low_end))
        struct.pack_into("<II", zero_page, 0x218, address, len(content))
    _command_line(ram, zero_page, cmdline, header.cmdline_size if header else DEFAULT_COMMAND_LINE_SIZE)
    struct.pack_into("<Q", zero_page, 0x70, rsdp)
    zero_page[0x1E8] = len(layout.e820)
    for i, entry820 in enumerate(layout.e820):
        struct.pack_into("<QQI", zero_page, 0x2D0 + 20 * i, *entry820)
    if seed:
        ram.write(SETUP_DATA, struct.pack("<QII", 0, SETUP_RNG_SEED, len(seed)) + seed)
        struct.pack_into("<Q", zero_page, 0x250, SETUP_DATA)
    ram.write(ZERO_PAGE, bytes(zero_page))
    return _enter(ram, entry)


def _command_line(ram: Ram, zero_page: bytearray, cmdline: str, longest: int) -> None:
    raw = cmdline.encode()
    if len(raw) > longest:
        raise BootError(f"the kernel's command line has {len(raw)} bytes; this kernel takes {longest}")
    if b"\0" in raw:
        raise BootError("the kernel's command line has a zero byte in it")
    ram.write(COMMAND_LINE, raw + b"\0")
    struct.pack_into("<I", zero_page, 0x228, COMMAND_LINE)


def _enter(ram: Ram, entry: int) -> BootState:
    # boot.rst, "64-bit boot protocol": __BOOT_CS = 0x10, __BOOT_DS = 0x18, identity-mapped pages
    gdt = struct.pack("<6Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067, 0)
    ram.write(GDT, gdt)
    present_writable = 3
    large = 0x80
    tables = [struct.pack("<Q", PAGE_TABLES + 0x1000 | present_writable).ljust(4096, b"\0")]
    directories = FOUR_GIB >> 30
    pointers = [PAGE_TABLES + 0x2000 + 0x1000 * i | present_writable for i in range(directories)]
    tables.append(struct.pack(f"<{directories}Q", *pointers).ljust(4096, b"\0"))
    pages = [address | present_writable | large for address in range(0, FOUR_GIB, 2 << 20)]
    tables.append(struct.pack(f"<{len(pages)}Q", *pages))
    ram.write(PAGE_TABLES, b"".join(tables))
    return BootState(
        rip=entry,
        cr0=0x80000031,  # PG, NE, ET, PE
        cr3=PAGE_TABLES,
        cr4=0x20,  # PAE
        efer=0x500,  # LMA, LME
        cs=SegmentValue(0x10, 0, 0xFFFFFFFF, CODE64),
        data=SegmentValue(0x18, 0, 0xFFFFFFFF, DATA32),
        tr=SegmentValue(0x20, 0, 0x67, TSS_BUSY),
        gdt=(GDT, len(gdt) - 1),
        registers={"rsi": ZERO_PAGE, "rsp": ZERO_PAGE},
    )
