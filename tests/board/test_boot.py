"""Kernel loaders on made-up kernels: what lands where, and one clear line for every bad file."""

import bz2
import gzip
import lzma
import struct

import lz4.block
import pytest
import zstandard

from hostel.base.errors import BootError
from hostel.board import memmap
from hostel.board.boot import decompress, elf, initramfs, linux, pvh
from hostel.memory.ram import Ram

MIB = 1 << 20
TEXT = bytes(range(256)) * 150 + bytes(20_000) + bytes(range(256)) * 150


def machine(size=64 * MIB):
    layout, ram = memmap.build(size), Ram()
    for base, length in layout.slots:
        ram.add(base, length)
    return ram, layout


def make_elf(paddr=0x1000000, entry=None, text=TEXT, memsz=None, note=None, machine=62):
    header = struct.pack("<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, machine, 1,
                         paddr if entry is None else entry, 64, 0, 0, 64, 56, 2 if note else 1, 0, 0, 0)  # fmt: skip
    start = 0x200
    programs = struct.pack("<IIQQQQQQ", 1, 5, start, 1 << 63, paddr, len(text), memsz or len(text), 4096)
    tail = b""
    if note is not None:
        tail = struct.pack("<III4sQ", 4, 8, 18, b"Xen", note)
        programs += struct.pack("<IIQQQQQQ", 4, 4, start + len(text), 0, 0, len(tail), len(tail), 4)
    return (header + programs).ljust(start, b"\0") + text + tail


def lz4_legacy(data):
    out = struct.pack("<I", 0x184C2102)
    for i in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[i : i + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


COMPRESSORS = {
    "gzip": lambda d: gzip.compress(d, mtime=0),
    "bzip2": lambda d: bz2.compress(d) + struct.pack("<I", len(d)),
    "xz": lambda d: lzma.compress(d) + struct.pack("<I", len(d)),
    "lzma": lambda d: lzma.compress(d, lzma.FORMAT_ALONE) + struct.pack("<I", len(d)),
    "zstd": lambda d: zstandard.compress(d) + struct.pack("<I", len(d)),
    "lz4": lambda d: lz4_legacy(d) + struct.pack("<I", len(d)),
}


def make_bzimage(payload, xloadflags=1, version=0x20F, init_size=0x400000, cmdline_size=2047):
    setup = bytearray(1024)
    stub = bytes(0x300)
    body = stub + payload
    body += bytes(-len(body) % 16)
    setup[0x1F1] = 1
    struct.pack_into("<I", setup, 0x1F4, len(body) // 16)
    setup[0x1FE:0x202] = b"\x55\xaa\xeb\x66"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = 1
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<I", setup, 0x230, 0x200000)
    setup[0x234] = 1
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, cmdline_size)
    struct.pack_into("<II", setup, 0x248, len(stub), len(payload))
    struct.pack_into("<QI", setup, 0x258, 0x1000000, init_size)
    return bytes(setup + body)


def cpio(*files):
    out = b""
    for name, content in (*files, ("TRAILER!!!", b"")):
        raw = name.encode() + b"\0"
        fields = (1, 0o100755, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % n for n in fields)
        out += (header + raw).ljust((len(header + raw) + 3) & ~3, b"\0")
        out += content.ljust((len(content) + 3) & ~3, b"\0")
    return out


@pytest.fixture
def put(tmp_path):
    def write(content, name="file"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def zero_page(ram, state):
    return ram.read(state.registers["rsi"], 4096)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_every_compression_of_a_bzimage(put, kind):
    ram, layout = machine()
    state = linux.load(ram, layout, put(make_bzimage(COMPRESSORS[kind](make_elf()))))
    assert state.rip == 0x1000000
    assert ram.read(0x1000000, len(TEXT)) == TEXT


def test_lz4_of_several_blocks():
    data = bytes(range(251)) * 80_000  # 20 MB: three blocks
    assert decompress.decompress(COMPRESSORS["lz4"](data), "x") == data


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_damaged_payload(put, kind):
    payload = bytearray(COMPRESSORS[kind](make_elf()))
    payload[12 : len(payload) // 2] = bytes(len(payload) // 2 - 12)
    with pytest.raises(BootError) as e:
        linux.load(*machine(), put(make_bzimage(bytes(payload))))
    assert "\n" not in str(e.value)


def test_64_bit_entry_state_and_zero_page(put):
    ram, layout = machine(5 << 30)
    archive = cpio(("init", b"#!/bin/sh\n"))
    state = linux.load(
        ram, layout, put(make_bzimage(COMPRESSORS["gzip"](make_elf()))), put(archive, "initrd"),
        "console=ttyS0 quiet", rsdp=0xE0000, seed=bytes(range(32)),
    )  # fmt: skip
    page = zero_page(ram, state)
    assert page[0x1F1:0x1F2] == b"\1" and page[0x202:0x206] == b"HdrS" and page[0x210] == 0xFF
    assert struct.unpack_from("<Q", page, 0x70)[0] == 0xE0000
    command_line = struct.unpack_from("<I", page, 0x228)[0]
    assert ram.read(command_line, 20) == b"console=ttyS0 quiet\0"
    address, size = struct.unpack_from("<II", page, 0x218)
    assert size == len(archive) and ram.read(address, size) == archive
    assert address % 4096 == 0 and address + size <= 0x80000000 and address > 0x70000000  # high, below initrd_addr_max
    count = page[0x1E8]
    assert [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(count)] == list(layout.e820)
    data = struct.unpack_from("<Q", page, 0x250)[0]
    assert ram.read(data, 48) == struct.pack("<QII", 0, 9, 32) + bytes(range(32))
    # boot.rst: long mode, paging, flat segments with selectors 0x10 and 0x18
    assert state.cr0 & 0x80000001 == 0x80000001 and state.cr4 == 0x20 and state.efer == 0x500
    assert (state.cs.selector, state.data.selector) == (0x10, 0x18)
    assert state.cs.attr >> 13 & 1 and state.rflags & 0x200 == 0
    base, limit = state.gdt
    gdt = struct.unpack(f"<{(limit + 1) // 8}Q", ram.read(base, limit + 1))
    assert gdt[2] >> 40 & 0xF0FF == state.cs.attr and gdt[3] >> 40 & 0xF0FF == state.data.attr


def test_page_tables_map_the_first_4_gib_onto_themselves(put):
    ram, layout = machine()
    state = linux.load(ram, layout, put(make_elf()))

    def walk(address):
        table = state.cr3
        for shift in (39, 30, 21):
            entry = struct.unpack("<Q", ram.read(table + (address >> shift & 511) * 8, 8))[0]
            assert entry & 3 == 3
            if entry & 0x80:
                return (entry & ~0xFFF) + (address & (1 << shift) - 1)
            table = entry & ~0xFFF
        raise AssertionError

    for address in (0, 0x7000, 0x1000000, 0x3FFFFFFF, 0x40000000, 0xE0000000, 0xFFFFFFFF):
        assert walk(address) == address


def test_bzimage_as_it_is(put):
    ram, layout = machine()
    image = make_bzimage(COMPRESSORS["gzip"](make_elf()))
    state = linux.load(ram, layout, put(image), decompress=False)
    assert state.rip == 0x1000200
    assert ram.read(0x1000000, len(image) - 1024) == image[1024:]


def test_unknown_compression_is_left_to_the_guest(put):
    ram, layout = machine()
    assert linux.load(ram, layout, put(make_bzimage(b"\x89LZO" + bytes(100)))).rip == 0x1000200


def test_elf_directly(put):
    ram, layout = machine()
    ram.write(0x1000000 + len(TEXT), b"left over from before a reset")
    state = linux.load(ram, layout, put(make_elf(memsz=len(TEXT) + 4096)), cmdline="x")
    assert state.rip == 0x1000000
    assert ram.read(0x1000000 + len(TEXT), 4096) == bytes(4096)
    assert ram.read(0x1000000, len(TEXT)) == TEXT
    page = zero_page(ram, state)
    assert page[0x1FE:0x200] == b"\x55\xaa" and page[0x202:0x206] == b"HdrS"


def test_pvh(put):
    ram, layout = machine()
    archive = cpio(("init", b"x"))
    state = pvh.load(ram, layout, put(make_elf(note=0x1000850)), put(archive, "i"), "a=b", rsdp=0xE0000)
    assert state.rip == 0x1000850 and state.cr0 == 0x11 and state.efer == state.cr4 == 0
    assert state.cs.attr == 0xC09B and state.data.attr == 0xC093
    info = ram.read(state.registers["rbx"], 56)
    magic, version, flags, modules, modlist, cmdline, rsdp, memory, entries, _ = struct.unpack("<IIIIQQQQII", info)
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, 0xE0000)
    assert ram.read(cmdline, 4) == b"a=b\0"
    address, size, _, _ = struct.unpack("<QQQQ", ram.read(modlist, 32))
    assert ram.read(address, size) == archive
    table = [struct.unpack_from("<QQI", ram.read(memory, 24 * entries), 24 * i) for i in range(entries)]
    assert table == list(layout.e820)


def bad(call, *words):
    with pytest.raises(BootError) as e:
        call()
    message = str(e.value)
    assert "\n" not in message and len(message) < 220
    for word in words:
        assert word in message


def test_bad_kernels(put, tmp_path):
    good = make_bzimage(COMPRESSORS["gzip"](make_elf()))
    vmlinux = make_elf()

    def load(content):
        return lambda: linux.load(*machine(), put(content))

    bad(lambda: linux.load(*machine(), tmp_path / "none"), "no such file", "none")
    bad(lambda: linux.load(*machine(), tmp_path), "directory")
    bad(load(b""), "empty")
    bad(load(b"#!/bin/sh\n" * 1000), "no kernel")
    bad(load(good[: len(good) // 2]), "truncated")
    bad(load(good[:0x280]), "truncated")
    bad(load(good[:0x220]), "no kernel")
    bad(load(vmlinux[: len(vmlinux) // 2]), "truncated")
    bad(load(vmlinux[:40]), "truncated")
    bad(load(vmlinux[:5]), "truncated")
    bad(load(make_elf(machine=183)), "not for x86")
    bad(load(make_elf(entry=0x5000)), "entry point")
    bad(load(make_elf(paddr=0x1000)), "below 1 MiB")
    bad(load(make_elf(paddr=1 << 39)), "memory")
    bad(load(make_elf(paddr=1 << 62)), "no sense")
    bad(load(make_bzimage(b"", xloadflags=0)), "64-bit")
    bad(load(make_bzimage(b"", version=0x203)), "too old")
    bad(lambda: pvh.load(*machine(), put(vmlinux)), "no PVH entry")
    bad(lambda: pvh.load(*machine(), put(good)), "not an ELF")


def test_too_little_memory(put):
    path = put(make_bzimage(COMPRESSORS["gzip"](make_elf()), init_size=0x2000000))
    bad(lambda: linux.load(*machine(16 * MIB), path), "MiB of memory", "has 16 MiB")
    linux.load(*machine(32 * MIB), path)  # init_size is what decompression in the guest takes
    bad(lambda: linux.load(*machine(32 * MIB), path, decompress=False), "at least 48 MiB")
    bad(lambda: pvh.load(*machine(16 * MIB), put(make_elf(note=0x1000000))), "has 16 MiB")


def test_command_line_limits(put):
    path = put(make_bzimage(COMPRESSORS["gzip"](make_elf()), cmdline_size=100))
    linux.load(*machine(), path, cmdline="x" * 100)
    bad(lambda: linux.load(*machine(), path, cmdline="x" * 101), "command line")
    bad(lambda: linux.load(*machine(), path, cmdline="a\0b"), "zero byte")


# -- initramfs


def archives():
    plain = cpio(("init", b"#!/bin/sh\n" * 50), ("bin/busybox", bytes(range(256)) * 40))
    yield "plain", plain
    yield "gzip", gzip.compress(plain, mtime=0)
    yield "bzip2", bz2.compress(plain)
    yield "xz", lzma.compress(plain, check=lzma.CHECK_CRC32)
    yield "lzma", lzma.compress(plain, lzma.FORMAT_ALONE)
    yield "zstd", zstandard.ZstdCompressor(write_checksum=True).compress(plain)
    yield "lz4", lz4_legacy(plain)
    yield "microcode first", cpio(("kernel/x86/microcode/x.bin", b"abc")) + bytes(512) + gzip.compress(plain)
    yield "padded", plain + bytes(4096)


@pytest.mark.parametrize(("kind", "data"), list(archives()))
def test_whole_archives_pass_and_cut_ones_do_not(kind, data):
    initramfs.check(data, "i")
    whole = data.rstrip(b"\0")
    cuts = [len(whole) - 12, len(whole) - 40]
    if kind != "microcode first":  # there, an earlier cut leaves a whole archive
        cuts += [len(whole) // 2, len(whole) * 9 // 10]
    for cut in cuts:
        bad(lambda cut=cut: initramfs.check(data[:cut], "name"), "initramfs name", "truncated")


def test_things_that_are_no_archives(put, tmp_path):
    for data in (b"hello" * 100, bytes(1000)):
        bad(lambda data=data: initramfs.check(data, "name"), "initramfs name")
    damaged = bytearray(gzip.compress(cpio(("init", TEXT))))
    damaged[40:60] = bytes(20)
    bad(lambda: initramfs.check(bytes(damaged), "name"), "initramfs name")
    kernel = put(make_elf(), "k")
    bad(lambda: linux.load(*machine(), kernel, tmp_path / "none"), "initramfs", "no such file")
    bad(lambda: linux.load(*machine(), kernel, put(b"", "i")), "initramfs", "empty")


def test_initramfs_too_large_for_the_machine(put):
    big = put(cpio(("init", bytes(20 * MIB))), "big")
    kernel = put(make_elf(), "k")
    bad(lambda: linux.load(*machine(32 * MIB), kernel, big), "initramfs", "at least 37 MiB")
    ram, layout = machine(18 * MIB)
    small = put(cpio(("init", bytes(10 * MIB))), "small")
    page = zero_page(ram, linux.load(ram, layout, kernel, small))
    assert 5 * MIB <= struct.unpack_from("<I", page, 0x218)[0] < 6 * MIB  # below the kernel
    state = linux.load(*machine(64 * MIB), kernel, big)
    assert state.rip == 0x1000000


def test_notes_that_lie_are_survived():
    image = elf.parse(make_elf(note=5), "k")
    assert pvh.entry_point(image) == 5
    broken = bytearray(make_elf(note=5))
    at = broken.rindex(struct.pack("<III4s", 4, 8, 18, b"Xen"))
    broken[at : at + 4] = b"\xff\xff\xff\x7f"
    assert pvh.entry_point(elf.parse(bytes(broken), "k")) is None
