"""Raw images: bytes, holes, direct I/O, and who may open them beside whom."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from hostel.base.errors import BlockError
from hostel.block import disk, raw
from hostel.block.disk import open_disk, probe
from hostel.block.file import cut, fill


@pytest.fixture
def image(tmp_path):
    raw.create(tmp_path / "disk", 8 << 20)
    return tmp_path / "disk"


def views(*sizes):
    return [memoryview(bytearray(os.urandom(size))) for size in sizes]


def test_cut():
    a, b, c = views(3, 0, 5)
    whole = bytes(a) + bytes(b) + bytes(c)
    for start in range(9):
        for length in range(9 - start):
            assert b"".join(cut([a, b, c], start, length)) == whole[start : start + length]
    fill([a, b, c])
    assert bytes(a) + bytes(c) == bytes(8)


@pytest.mark.parametrize("direct", [False, True])
def test_reads_what_was_written(image, direct):
    with_holes = open_disk(image, direct=direct)
    model = bytearray(8 << 20)
    requests = [(0, [512]), (4096, [4096, 8192]), (1000, [7, 1, 5000]), ((8 << 20) - 3, [3]), (3 << 20, [2 << 20])]
    for offset, sizes in requests:
        buffers = views(*sizes)
        with_holes.writev(offset, buffers)
        model[offset : offset + sum(sizes)] = b"".join(buffers)
    with_holes.flush()
    assert with_holes.read(0, 8 << 20) == model
    assert with_holes.read(1003, 4099) == model[1003 : 1003 + 4099]
    with_holes.close()
    assert image.read_bytes() == model


def test_many_buffers(image):
    it = open_disk(image, "raw")
    buffers = views(*[512] * 3000)
    it.writev(512, buffers)
    back = [memoryview(bytearray(512)) for _ in buffers]
    it.readv(512, back)
    assert back == buffers
    it.close()


def test_direct_writes_at_the_end_keep_the_size(tmp_path):
    raw.create(tmp_path / "odd", 5 * 512)
    it = open_disk(tmp_path / "odd", direct=True)
    it.write(4 * 512, b"x" * 512)
    assert it.read(4 * 512, 512) == b"x" * 512
    it.close()
    assert (tmp_path / "odd").stat().st_size == 5 * 512


def test_requests_outside(image):
    it = open_disk(image, "raw")
    for offset, length in [(8 << 20, 1), (-1, 1), ((8 << 20) - 1, 2)]:
        with pytest.raises(BlockError) as error:
            it.read(offset, length)
        assert error.value.errno == errno.EINVAL
    it.close()
    it = open_disk(image, "raw", readonly=True)
    for action in (lambda: it.write(0, b"x"), lambda: it.discard(0, 512), lambda: it.write_zeroes(0, 512)):
        with pytest.raises(BlockError) as error:
            action()
        assert error.value.errno == errno.EROFS
    it.flush()
    it.close()


def test_holes(image):
    it = open_disk(image, "raw")
    it.write(1 << 20, b"x" * (1 << 20))
    it.flush()
    assert [(e.start, e.length, e.zero, e.data) for e in it.extents(0, 8 << 20)] == [
        (0, 1 << 20, True, False), (1 << 20, 1 << 20, False, True), (2 << 20, 6 << 20, True, False)]
    before = it.file.allocated
    it.discard(1 << 20, 512 << 10)
    assert it.read(1 << 20, 1 << 20) == bytes(512 << 10) + b"x" * (512 << 10)
    assert it.file.allocated <= before - (512 << 10)
    it.write_zeroes((1 << 20) + (512 << 10) + 1, 1000)
    it.write_zeroes(7 << 20, 4096, may_unmap=False)
    assert it.read((1 << 20) + (512 << 10), 1002) == b"x" + bytes(1000) + b"x"
    assert it.map(5, 1000) == (it.file.fd, 5, 1000, disk.DATA)
    it.close()


def test_locks(image):
    one = open_disk(image, "raw")
    for readonly in (False, True):
        with pytest.raises(BlockError, match="is in use") as error:
            open_disk(image, "raw", readonly=readonly)
        assert error.value.errno == errno.EBUSY
    open_disk(image, "raw", readonly=True, locked=False).close()
    one.close()
    first, second = (open_disk(image, "raw", readonly=True) for _ in range(2))
    with pytest.raises(BlockError, match="another VM or program has it open"):
        open_disk(image, "raw")
    first.close()
    second.close()
    one = open_disk(image, "raw")
    one.file.reader()
    two = open_disk(image, "raw", readonly=True)
    with pytest.raises(BlockError):
        one.file.writer()
    with pytest.raises(BlockError):
        open_disk(image, "raw")
    two.close()
    with pytest.raises(BlockError):
        open_disk(image, "raw")
    one.file.writer()
    one.close()


def test_a_dead_owner_holds_nothing(image):
    code = "import sys; from hostel.block.disk import open_disk as o; d = o(sys.argv[1]); print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"1\n"
    with pytest.raises(BlockError):
        open_disk(image)
    other.kill()
    other.communicate()
    open_disk(image).close()


def test_what_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, pattern in [("none", "there is no such file"), (".", "neither a file nor a block device"),
                          ("fifo", "neither a file")]:  # fmt: skip
        with pytest.raises(BlockError, match=pattern):
            open_disk(tmp_path / name)
    with pytest.raises(BlockError, match="'vhd' is no format of disk images; there are raw and qcow2"):
        raw.create(tmp_path / "a", 512)
        open_disk(tmp_path / "a", "vhd")


def test_probe_and_state(image):
    assert probe(image) == "raw"
    it = open_disk(image)
    state = it.save()
    assert state == {"version": 1, "size": 8 << 20, "chain": [{"path": str(image), "format": "raw"}]}
    it.load(state)
    with pytest.raises(BlockError, match="isn't the disk that was saved"):
        it.load({**state, "size": 1})
    with pytest.raises(BlockError, match="version 9"):
        it.load({**state, "version": 9})
    it.close()


def test_sizes_that_end_in_a_sector(tmp_path):
    (tmp_path / "odd").write_bytes(b"a" * 700)
    it = open_disk(tmp_path / "odd")
    assert it.size == 1024
    assert it.read(512, 512) == b"a" * 188 + bytes(324)
    it.close()


def test_a_full_disk_is_told_by_its_errno(image):
    """The kernel refuses what goes beyond RLIMIT_FSIZE (Python ignores the signal); then there is room again."""
    it = open_disk(image, "raw")
    it.write(0, b"a" * 4096)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(BlockError, match="can't write to") as error:
            it.write(4096, b"b" * 4096)
        assert error.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    it.write(4096, b"b" * 4096)
    assert it.read(0, 8192) == b"a" * 4096 + b"b" * 4096
    it.close()
