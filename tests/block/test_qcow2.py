"""qcow2 images: features one by one, their limits, and who may name which files."""

import errno
import os
import resource
import struct

import pytest
import qemu

from hostel.base.errors import BlockError
from hostel.block import disk as kinds
from hostel.block.chain import MAX_DEPTH, open_chain
from hostel.block.disk import open_disk, probe
from hostel.block.layers import commit, put_delta
from hostel.block.qcow2 import mapping, refcounts
from hostel.block.qcow2 import tables as table_cache
from hostel.block.qcow2.check import check
from hostel.block.qcow2.create import Options, create
from hostel.block.qcow2.header import BITMAPS, CORRUPT, DIRTY, read


@pytest.fixture
def make(tmp_path, monkeypatch):
    """``make(name, size, options...)``: a new image in this folder."""
    monkeypatch.chdir(tmp_path)

    def make(name="image", size=1 << 20, **options):
        create(tmp_path / name, size, Options(**options))
        return tmp_path / name

    return make


def clean(path):
    disk = open_chain(path, readonly=True, bare=True)
    found = check(disk)
    disk.close()
    return found.corruptions == found.leaks == 0


def patch(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def add_extension(path, kind, data):
    disk = open_disk(path)
    disk.header.set_extension(kind, data)
    disk.file.write(0, disk.header.encode())
    disk.close()


def test_what_map_says(make):
    (make().parent / "base").write_bytes(b"b" * (1 << 20))
    disk = open_disk(make("top", backing_file="base", backing_fmt="raw"))
    disk.write(0, b"x" * 65536)
    disk.write_zeroes(65536, 65536)
    fd, host, run, kind = disk.map(100, 1 << 19)
    assert (fd, run, kind) == (disk.file.data_fd, 65436, kinds.DATA)
    assert os.pread(fd, 5, host) == b"xxxxx"
    assert disk.map(65536, 1 << 19)[2:] == (65536, kinds.ZERO)
    fd, host, run, kind = disk.map(131072, 1 << 19)
    assert (fd, host, run, kind) == (disk.backing.file.data_fd, 131072, 1 << 19, kinds.BACKING)
    assert disk.save()["chain"] == [{"path": str(disk.path), "format": "qcow2"},
                                    {"path": str(disk.path.parent / "base"), "format": "raw"}]  # fmt: skip
    disk.load(disk.save())
    disk.close()
    disk = open_disk("top", readonly=True)
    assert disk.map(0, 1)[3] == kinds.BACKING, "a read-only disk isn't written in place"
    disk.close()


def test_large_writes_are_one_piece(make):
    disk = open_disk(make(size=64 << 20))
    disk.write(1000, b"y" * (8 << 20))
    assert disk.map(65536, 8 << 20)[2] >= (8 << 20) - 65536
    disk.close()


@qemu.needed
def test_snapshots_are_preserved(make, tmp_path):
    path = make(cluster_size=4096)
    disk = open_disk(path)
    disk.write(0, b"a" * 65536)
    disk.close()
    qemu.img("snapshot", "-c", "one", path)
    disk = open_disk(path)
    assert disk.map(0, 1)[3] == kinds.BACKING
    disk.write(4096, b"b" * 5000)
    disk.discard(0, 4096)
    disk.write_zeroes(16384, 4096)
    now = disk.read(0, 1 << 20)
    assert [snapshot.name for snapshot in disk.snapshots] == ["one"]
    with pytest.raises(BlockError, match="internal snapshots"):
        disk.resize(512)
    disk.close()
    assert qemu.check(path).get("leaks", 0) == 0
    assert qemu.content(path, tmp_path) == now
    qemu.img("snapshot", "-a", "one", path)
    qemu.io(path, "read -P 0x61 0 64k")
    qemu.img("snapshot", "-d", "one", path)
    assert qemu.check(path).get("leaks", 0) == 0


@qemu.needed
@pytest.mark.parametrize("method", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", [512, 65536, 2 << 20])
def test_compressed_clusters(tmp_path, method, cluster):
    data = b"".join(bytes([n]) * 300 + os.urandom(30) for n in range(250)) * 60
    (tmp_path / "raw").write_bytes(data.ljust(-(-len(data) // 512) * 512, b"\0"))
    options = f"compression_type={method},cluster_size={cluster}"
    qemu.img("convert", "-c", "-O", "qcow2", "-o", options, tmp_path / "raw", tmp_path / "packed")
    disk = open_disk(tmp_path / "packed")
    whole = bytearray(disk.read(0, disk.size))
    assert whole == (tmp_path / "raw").read_bytes()
    assert disk.map(0, 512)[3] == kinds.OTHER
    disk.write(cluster // 2 + 5, b"z" * 100)
    whole[cluster // 2 + 5 : cluster // 2 + 105] = b"z" * 100
    disk.discard(0, 1)
    assert disk.read(0, disk.size) == whole
    disk.close()
    assert qemu.check(tmp_path / "packed").get("leaks", 0) == 0
    assert qemu.content(tmp_path / "packed", tmp_path) == whole


def test_space_comes_back(make):
    path = make(size=64 << 20)
    disk = open_disk(path)
    disk.write(0, os.urandom(32 << 20))
    disk.flush()
    before, length = disk.file.allocated, disk.file.size
    disk.discard(0, 24 << 20)
    disk.flush()
    assert disk.file.allocated <= before - (23 << 20)
    disk.write(0, os.urandom(24 << 20))
    assert disk.file.size <= length + (1 << 20), "freed clusters are taken again"
    disk.close()
    assert clean(path)


def test_bits_and_extensions_that_we_do_not_know(make):
    path = make()
    add_extension(path, 0x12345678, b"kept for others")
    patch(path, 80, (1 << 40 | 1).to_bytes(8, "big"))          # compatible
    patch(path, 88, (1 << 41 | BITMAPS).to_bytes(8, "big"))    # autoclear
    disk = open_disk(path)
    disk.read(0, 512)
    assert disk.header.autoclear == 1 << 41 | BITMAPS, "who only reads keeps them"
    disk.write(0, b"x")
    disk.set_backing("base", "raw")
    disk.close()
    disk = open_chain(path, bare=True)
    assert disk.header.autoclear == 0 and disk.header.compatible == 1 << 40 | 1
    assert (0x12345678, b"kept for others") in disk.header.extensions
    assert (disk.backing_name, disk.backing_format) == ("base", "raw")
    disk.close()


def test_an_unknown_incompatible_feature_is_named(make):
    path = make()
    patch(path, 72, (1 << 7 | 1 << 9).to_bytes(8, "big"))
    with pytest.raises(BlockError, match="hostel doesn't know: incompatible feature 7, incompatible feature 9"):
        open_disk(path)
    patch(path, 72, bytes(8))
    add_extension(path, 0x6803F857, struct.pack("BB46s", 0, 7, b"telepathy\x1b[31m"))
    patch(path, 72, (1 << 7).to_bytes(8, "big"))
    with pytest.raises(BlockError, match=r"'telepathy\?\[31m'") as error:
        open_disk(path, readonly=True)
    assert error.value.errno == errno.ENOTSUP


def test_a_corrupt_image_is_only_read(make):
    path = make()
    disk = open_disk(path)
    disk.write(0, b"x" * 65536)
    host = disk.map(0, 512)[1]
    disk.close()
    # a cluster of the guest's that is the refcount table
    at = next(i for i in range(0, path.stat().st_size, 8)
              if path.read_bytes()[i : i + 8] == (host | 1 << 63).to_bytes(8, "big"))  # fmt: skip
    patch(path, at, (0x10000 | 1 << 63).to_bytes(8, "big"))
    disk = open_disk(path)
    with pytest.raises(BlockError, match="would be where a table is"):
        disk.write(0, b"y")
    with pytest.raises(BlockError, match="takes no more writes|would be where"):
        disk.write(0, b"y")
    disk.close()
    assert int.from_bytes(path.read_bytes()[72:80], "big") == CORRUPT
    with pytest.raises(BlockError, match="marked as damaged"):
        open_disk(path)
    disk = open_disk(path, readonly=True)
    disk.read(0, 512)
    disk.close()


def test_lazy_refcounts(make):
    path = make(lazy_refcounts=True)
    disk = open_disk(path)
    disk.write(0, b"x" * 300000)
    disk.flush()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    assert read(disk.file).incompatible == DIRTY
    disk.close()
    assert clean(path)
    disk = open_disk(copy, readonly=True)
    assert check(disk).corruptions, "refcounts weren't written"
    assert disk.read(0, 300000) == b"x" * 300000
    disk.close()
    disk = open_disk(copy)
    assert disk.header.incompatible == 0
    disk.write(500000, b"y")
    disk.close()
    assert clean(copy)


def test_many_tables_in_small_caches(make, monkeypatch):
    monkeypatch.setattr(mapping, "CACHE", 4096)
    monkeypatch.setattr(refcounts, "CACHE", 2048)
    monkeypatch.setattr(table_cache, "MIN_TABLES", 4)
    path = make(size=16 << 20, cluster_size=512, refcount_bits=64)
    disk = open_disk(path)
    model = bytearray(16 << 20)
    for i in range(600):
        offset = i * 7919 * 512 % (16 << 20)
        model[offset : offset + 512] = bytes([i % 255 + 1]) * 512
        disk.write(offset, model[offset : offset + 512])
    assert len(disk.mapping.cache.tables) <= 8
    assert disk.read(0, 16 << 20) == model
    disk.close()
    assert clean(path)


def test_the_refcount_table_grows(make):
    """Clusters of 512 bytes with refcounts of 64 bits: a table of one cluster counts 2 MiB."""
    path = make(size=64 << 20, cluster_size=512, refcount_bits=64)
    disk = open_disk(path)
    before = disk.header.refcount_table_offset
    data = os.urandom(12 << 20)
    disk.write(0, data)
    assert disk.header.refcount_table_offset != before
    disk.close()
    assert clean(path)
    disk = open_disk(path)
    assert disk.read(0, 12 << 20) == data
    disk.resize(8 << 30)                       # an L1 table longer than what one refcount block counts
    disk.close()
    assert clean(path)


def test_a_write_that_fails_takes_nothing(make):
    path = make(size=8 << 20)
    disk = open_disk(path)
    disk.write(0, b"a" * 65536)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        for _ in range(3):
            with pytest.raises(BlockError) as error:
                disk.write(4 << 20, b"b" * 65536)
            assert error.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    disk.write(4 << 20, b"b" * 65536)
    disk.close()
    assert clean(path)
    assert path.stat().st_size <= 8 * 65536


# -- who may name which files


def test_names_lead_nowhere_else(make, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:x" * 100)
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    for name in (str(secret), "../secret", "link", "/etc/passwd", "sub/../../secret"):
        image = folder / "image"
        image.unlink(missing_ok=True)
        create(image, 1 << 20, Options(backing_file=name, backing_fmt="raw"))
        for readonly in (True, False):
            with pytest.raises(BlockError, match="outside of its own folder; if you trust this image, --allow-backing"):
                open_disk(image, readonly=readonly)
        open_disk(image, allow_backing=True, readonly=True).close() if name != "sub/../../secret" else None
    for name in ("nbd:host:1", "json:{}", "https://x/y"):
        create(folder / name[:3], 1 << 20, Options(backing_file=name, backing_fmt="raw"))
        with pytest.raises(BlockError, match="opens files only"):
            open_disk(folder / name[:3])
    for name in (str(secret), "link", "image"):
        (folder / "data").unlink(missing_ok=True)
        create(folder / "data", 1 << 20, Options(data_file=name))
        with pytest.raises(BlockError, match="has its data in another file, .*--allow-backing"):
            open_disk(folder / "data")


def test_formats_of_backing_files_are_not_guessed(make, tmp_path):
    (tmp_path / "base").write_bytes(bytes(1 << 20))
    path = make("top", backing_file="base")
    with pytest.raises(BlockError, match="doesn't record the format of its backing file base"):
        open_disk(path)
    open_disk(path, allow_backing=True).close()
    # what a guest writes at the beginning of a raw disk isn't taken for an image where the format is recorded
    path = make("above", backing_file="base", backing_fmt="raw")
    (tmp_path / "base").write_bytes((tmp_path / "top").read_bytes())
    disk = open_disk(path)
    assert disk.read(0, 4) == b"QFI\xfb"
    disk.close()
    assert probe(path) == "qcow2"


def test_chains_that_never_end(make, tmp_path):
    make("a", backing_file="b", backing_fmt="qcow2")
    make("b", backing_file="a", backing_fmt="qcow2")
    with pytest.raises(BlockError, match="comes back to"):
        open_disk(tmp_path / "a", readonly=True)
    make("self", backing_file="self", backing_fmt="qcow2")
    with pytest.raises(BlockError, match="comes back to|is in use"):
        open_disk(tmp_path / "self")
    for i in range(MAX_DEPTH + 1):
        make(f"link{i}", cluster_size=512, backing_file=f"link{i + 1}", backing_fmt="qcow2")
    with pytest.raises(BlockError, match=f"more than {MAX_DEPTH} images"):
        open_disk(tmp_path / "link0")


def test_a_data_file_is_locked_and_found_beside_the_image(make, tmp_path):
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    disk = open_disk(make("top", data_file="data"), allow_backing=True)
    disk.write(70000, b"here")
    assert disk.map(70000, 4)[1] == 70000
    with pytest.raises(BlockError, match="data is in use"):
        open_disk(tmp_path / "data")
    disk.close()
    assert (tmp_path / "data").read_bytes()[70000:70004] == b"here"


# -- deltas


def test_a_delta_freezes_what_is_below(make, tmp_path):
    base = open_disk(make("base", size=4 << 20))
    base.write(0, b"a" * 100000)
    top = put_delta(base, tmp_path / "delta1")
    top.write(50000, b"b" * 100000)
    with pytest.raises(BlockError, match="for reading only"):
        base.write(0, b"c")
    other = open_disk(tmp_path / "base", readonly=True)
    assert other.read(0, 100000) == b"a" * 100000, "another delta may stand on it"
    other.close()
    top = put_delta(top, tmp_path / "delta2")
    top.write(140000, b"c" * 10)
    expected = b"a" * 50000 + b"b" * 90000 + b"c" * 10 + b"b" * 9990 + bytes((4 << 20) - 150000)
    assert top.read(0, 4 << 20) == expected
    assert [image["format"] for image in top.save()["chain"]] == ["qcow2"] * 3
    top.close()
    for name in ("base", "delta1", "delta2"):
        assert clean(tmp_path / name), name
    top = open_disk(tmp_path / "delta2")
    assert top.read(0, 4 << 20) == expected
    commit(top)
    top.close()
    top = open_disk(tmp_path / "delta1")
    assert top.read(0, 4 << 20) == expected
    commit(top)
    top.close()
    disk = open_disk(tmp_path / "base")
    assert disk.read(0, 4 << 20) == expected
    disk.close()
    for name in ("base", "delta1", "delta2"):
        assert clean(tmp_path / name), name


def test_a_delta_on_a_raw_disk(make, tmp_path):
    (tmp_path / "flat").write_bytes(b"r" * 65536)
    base = open_disk(tmp_path / "flat")
    with pytest.raises(BlockError, match="exists already"):
        put_delta(base, tmp_path / "flat")
    base.write(0, b"still writable")
    top = put_delta(base, tmp_path / "delta")
    top.write(0, b"x")
    top.close()
    assert (tmp_path / "flat").read_bytes()[:5] == b"still"
    top = open_disk(tmp_path / "delta")
    assert top.read(0, 3) == b"xti" and top.backing.format == "raw"
    top.close()
