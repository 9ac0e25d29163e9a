"""Kernels read from disks: file systems that mkfs.ext4 and debugfs made, and damaged ones."""

import os
import random
import shutil
import struct
import subprocess

import pytest

from hostel.base.errors import BootError
from hostel.board.boot import disk
from hostel.board.boot.ext4 import Ext4

pytestmark = pytest.mark.skipif(
    not shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"), reason="no mkfs.ext4 here"
)
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
KERNEL, OLD, INITRD = random.Random(1).randbytes(3_000_001), b"old" * 1000, random.Random(2).randbytes(700_000)


def mkfs(tree, path, *options, size="24M"):
    command = ["mkfs.ext4", "-q", "-F", *options, "-d", str(tree), str(path), size]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    return path


def reader(data):
    return lambda offset, size: bytes(data[offset : offset + size])


def found(path):
    data = path.read_bytes()
    return disk.find(reader(data), len(data))


@pytest.fixture
def tree(tmp_path):
    """As Debian has it after an update of the kernel."""
    top = tmp_path / "tree"
    (top / "boot").mkdir(parents=True)
    (top / "etc/kernel").mkdir(parents=True)
    (top / "boot/vmlinuz-6.1.0-9").write_bytes(OLD)
    (top / "boot/vmlinuz-6.1.0-10").write_bytes(KERNEL)
    (top / "boot/initrd.img-6.1.0-10").write_bytes(INITRD)
    (top / "etc/kernel/cmdline").write_text("root=/dev/vda ro\nquiet\n")
    os.symlink("boot/vmlinuz-6.1.0-10", top / "vmlinuz")
    os.symlink("/boot/initrd.img-6.1.0-10", top / "initrd.img")
    return top


@pytest.mark.parametrize("options", [
    (), ("-b", "1024"), ("-O", "^has_journal,^64bit"), ("-O", "meta_bg,^resize_inode"), ("-I", "128"), ("-g", "1024"),
], ids=str)  # fmt: skip
def test_the_kernel_of_the_links(tree, tmp_path, options):
    got = found(mkfs(tree, tmp_path / "disk", *options))
    assert (got.kernel.data, got.initrd.data, got.cmdline) == (KERNEL, INITRD, "root=/dev/vda ro quiet")


def test_without_links_the_newest_and_the_root_by_its_name(tree, tmp_path):
    (tree / "vmlinuz").unlink()
    (tree / "etc/kernel/cmdline").unlink()
    got = found(mkfs(tree, tmp_path / "disk", "-U", "01234567-89ab-cdef-0123-456789abcdef"))
    assert (got.kernel.data, got.initrd.data) == (KERNEL, INITRD)
    assert got.cmdline == "root=UUID=01234567-89ab-cdef-0123-456789abcdef ro"


def test_a_folder_of_thousands(tree, tmp_path):
    for n in range(3000):
        (tree / f"boot/a-file-with-some-name-{n}").touch()
    path = mkfs(tree, tmp_path / "disk", "-N", "4000")
    subprocess.run(["e2fsck", "-fyD", str(path)], env=ENVIRONMENT, capture_output=True)  # hashes the folder
    assert found(path).kernel.data == KERNEL


def test_partitions(tree, tmp_path):
    part = mkfs(tree, tmp_path / "part").read_bytes()
    gpt = bytearray((1 << 20) + len(part))
    gpt[512:520] = b"EFI PART"
    struct.pack_into("<QII", gpt, 512 + 72, 2, 128, 128)
    struct.pack_into("<16sQQ", gpt, 1024 + 128, b"x" * 16, 0, 0)
    struct.pack_into("<16s16sQQ", gpt, 1024 + 256, b"x" * 16, b"y" * 16, 2048, 2048 + len(part) // 512 - 1)
    gpt[1 << 20 :] = part
    assert disk.find(reader(gpt), len(gpt)).kernel.data == KERNEL
    mbr = bytearray((1 << 20) + len(part))
    mbr[510:512] = b"\x55\xaa"
    struct.pack_into("<BxxxBxxxII", mbr, 446 + 16, 0x80, 0x83, 2048, len(part) // 512)
    mbr[1 << 20 :] = part
    assert disk.find(reader(mbr), len(mbr)).kernel.data == KERNEL
    struct.pack_into("<QII", gpt, 512 + 72, 1 << 60, 128, 128)
    with pytest.raises(BootError, match="partition table"):
        disk.find(reader(gpt), len(gpt))


def test_what_stands_in_the_journal_alone_is_read(tree, tmp_path):
    """After a crash: debugfs writes the new kernel's blocks to the journal only."""
    path = mkfs(tree, tmp_path / "disk", "-b", "1024", size="32M")
    fs = Ext4(reader(path.read_bytes()))
    root = next(iter(fs._extents(fs._inode(2).map, 0)))
    folder = fs._blocks(root[2], 1)
    at = folder.index(b"vmlinuz")
    changed = folder[:at] + b"VMLINUZ" + folder[at + 7 :]
    block = tmp_path / "block"
    block.write_bytes(changed)
    commands = f"journal_open\njournal_write -b {root[2]} {block}\njournal_close\n"
    done = subprocess.run(["debugfs", "-w", "-f", "-", str(path)], input=commands, text=True, env=ENVIRONMENT,
                          capture_output=True)  # fmt: skip
    data = path.read_bytes()
    assert struct.unpack_from("<I", data, 1024 + 0x60)[0] & 4, f"no recovery needed: {done.stdout}{done.stderr}"
    assert "VMLINUZ" in Ext4(reader(data)).names("/")
    clean = bytearray(data)
    clean[1024 + 0x60] &= ~4
    assert "vmlinuz" in Ext4(reader(clean)).names("/")


def test_a_revoked_block_stays_as_it_is(tree, tmp_path):
    path = mkfs(tree, tmp_path / "disk", "-b", "1024", size="32M")
    fs = Ext4(reader(path.read_bytes()))
    root = next(iter(fs._extents(fs._inode(2).map, 0)))[2]
    block = tmp_path / "block"
    block.write_bytes(bytes(1024))
    commands = f"journal_open\njournal_write -b {root} {block}\njournal_write -r {root}\njournal_close\n"
    subprocess.run(["debugfs", "-w", "-f", "-", str(path)], input=commands, text=True, env=ENVIRONMENT,
                   capture_output=True)  # fmt: skip
    data = path.read_bytes()
    assert struct.unpack_from("<I", data, 1024 + 0x60)[0] & 4
    assert "vmlinuz" in Ext4(reader(data)).names("/")


@pytest.mark.parametrize(("change", "why"), [
    (lambda top: (top / "vmlinuz").unlink() or [p.unlink() for p in (top / "boot").glob("vmlinuz*")], "no kernel"),
    (lambda top: (top / "etc/kernel/cmdline").write_bytes(b"a\x1b[2J"), "plain text"),
    (lambda top: (top / "etc/kernel/cmdline").write_text("x" * 5000), "5000 bytes"),
    (lambda top: (top / "vmlinuz").unlink() or os.symlink("vmlinuz", top / "vmlinuz"), None),
    (lambda top: (top / "vmlinuz").unlink() or (top / "vmlinuz").mkdir(), "no file"),
])  # fmt: skip
def test_what_cant_be_booted_is_said_in_one_line(tree, tmp_path, change, why):
    change(tree)
    path = mkfs(tree, tmp_path / "disk")
    if why is None:  # a link to itself is as good as none
        assert found(path).kernel.data == KERNEL
        return
    with pytest.raises(BootError, match=why) as error:
        found(path)
    assert "\n" not in str(error.value)


def test_no_file_system(tmp_path):
    for data in (b"", bytes(100), bytes(1 << 20), os.urandom(1 << 20)):
        with pytest.raises(BootError, match="no kernel to boot"):
            disk.find(reader(data), len(data))


def test_damage_anywhere_is_an_error_or_harmless(tree, tmp_path):
    """Metadata with bytes changed: an answer or one BootError, always, and no endless work."""
    data = bytearray(mkfs(tree, tmp_path / "disk", "-b", "1024", size="16M").read_bytes())
    random_ = random.Random(7)
    fs = Ext4(reader(data))
    spots = [1024 + random_.randrange(0x160) for _ in range(60)]
    table = struct.unpack_from("<I", fs._descriptor(0), 8)[0] * 1024
    spots += [table + fs.inode_size * (n - 1) + random_.randrange(128) for n in (2, 12, 13, 14) for _ in range(25)]
    spots += [2048 + random_.randrange(64) for _ in range(20)]
    for number in (2, 12, 13):
        for _, count, start in fs._extents(fs._inode(number).map, 0):
            spots += [start * 1024 + random_.randrange(64) for _ in range(10 * min(count, 3))]
    for spot in spots:
        old = data[spot]
        for value in (0, 0xFF, old ^ 1 << random_.randrange(8)):
            data[spot] = value
            try:
                disk.find(reader(data), len(data))
            except BootError as error:
                assert "\n" not in str(error)
        data[spot] = old
    assert disk.find(reader(data), len(data)).kernel.data == KERNEL


def test_an_extent_tree_that_loops_ends(tree, tmp_path):
    data = bytearray(mkfs(tree, tmp_path / "disk").read_bytes())
    fs = Ext4(reader(data))
    inode = fs._find("/vmlinuz")
    group, index = divmod(inode.number - 1, fs.inodes_per_group)
    at = struct.unpack_from("<I", fs._descriptor(group), 8)[0] * fs.block_size + index * fs.inode_size + 40
    victim = next(iter(fs._extents(inode.map, 0)))[2]
    for depth in range(1, 9):
        struct.pack_into("<HHHHIIIHH", data, at, 0xF30A, 1, 4, depth, 0, 0, victim, 0, 0)
        entries = (fs.block_size - 12) // 12
        struct.pack_into("<HHHHI", data, victim * fs.block_size, 0xF30A, entries, entries, depth - 1, 0)
        for n in range(entries):  # all of them lead back
            struct.pack_into("<IIHH", data, victim * fs.block_size + 12 + n * 12, 0, victim, 0, 0)
        with pytest.raises(BootError, match="makes no sense"):
            fs = Ext4(reader(data))
            fs.file("/vmlinuz", 1 << 24)
