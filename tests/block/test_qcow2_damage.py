"""Images that somebody damaged on purpose: one clear error or some content, soon, in bounded memory; nothing else."""

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostel.base.errors import BlockError
from hostel.block.chain import open_chain
from hostel.block.disk import open_disk
from hostel.block.info import describe, joined
from hostel.block.qcow2.check import check, open_to_repair, repair
from hostel.block.qcow2.compression import compress, decompress
from hostel.block.qcow2.create import Options, create

MEMORY = 64 << 20         # bytes; beside what the tests themselves have

FEATURES = [
    {}, {"compat": "0.10"}, {"cluster_size": 512, "refcount_bits": 64}, {"extended_l2": True, "cluster_size": 16384},
    {"lazy_refcounts": True}, {"refcount_bits": 1, "cluster_size": 4096}, {"compression_type": "zstd"},
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Small images of all features, with data, zeros and compressed clusters: (bytes, offsets of interesting words)."""
    out = []
    for number, features in enumerate(FEATURES):
        path = tmp_path_factory.mktemp("images") / str(number)
        create(path, 4 << 20, Options(**features))
        disk = open_disk(path)
        disk.write(100000, os.urandom(200000))
        disk.write_zeroes(1 << 20, 300000)
        packed = compress(disk.header.compression, b"z" * disk.cluster_size)
        if len(packed) < disk.cluster_size:
            disk.write_compressed(2 << 20, packed)
        header = disk.header
        tables = [header.l1_table_offset, header.refcount_table_offset, disk.refcounts.table[0],
                  *(entry & ((1 << 56) - 512) for entry in disk.mapping.l1 if entry)]  # fmt: skip
        disk.close()
        words = list(range(0, 112, 4))
        for table in tables:
            words += range(table, table + min(disk.cluster_size, 512), 8)
        out.append((path.read_bytes(), words))
    return out


def ask(disk, offset, length):
    """Every kind of request; an error is one line."""
    actions = [disk.read, lambda at, n: list(joined(disk.extents(at, n)))]
    if not disk.readonly:
        actions[1:1] = [lambda at, n: disk.write(at + n // 2, b"w" * (n // 2)), disk.write_zeroes, disk.discard]
    for action in actions:
        try:
            action(offset, length)
        except BlockError as error:
            assert "\n" not in str(error)


def use(path):
    """What users do with an image; only ``BlockError`` may come."""
    for readonly in (True, False):
        try:
            disk = open_disk(path, readonly=readonly)
        except BlockError:
            continue
        try:
            describe(disk)
            for offset in (0, 1 << 20, 2 << 20, disk.size - 4096):
                if 0 <= offset < disk.size:
                    ask(disk, offset, min(300000, disk.size - offset))
        finally:
            try:
                disk.close()
            except BlockError:
                pass
            assert disk.file.fd == -1
    for mend in (False, True):
        try:
            disk = open_to_repair(path) if mend else open_chain(path, readonly=True, bare=True)
            try:
                found = repair(disk) if mend else check(disk)
                assert len(found.messages) <= 101
            finally:
                disk.close()
        except BlockError:
            pass


NUMBERS = st.one_of(
    st.integers(0, (1 << 64) - 1), st.integers(0, 64),
    st.builds(lambda bit, low, flags: (1 << bit | low << 9 | flags << 62) & (1 << 64) - 1,
              st.integers(0, 63), st.integers(0, 1024), st.integers(0, 3)),
    st.sampled_from([0x10000, 0x20000, 0x30000, 0x40000 | 1 << 63, 0x10000 | 1 << 63, 1 << 62, 0x200, 512 << 9]),
)  # fmt: skip


def damage(images, folder, data):
    image, words = data.draw(st.sampled_from(images))
    image = bytearray(image)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(words))
        if data.draw(st.booleans()):
            image[at : at + 8] = data.draw(NUMBERS).to_bytes(8, "big")
        else:
            image[at : at + 4] = (data.draw(NUMBERS) & 0xFFFFFFFF).to_bytes(4, "big")
    image = image[: data.draw(st.sampled_from([len(image), len(image) // 2, 4096, 100]))]
    path = Path(folder) / "damaged"
    path.write_bytes(image)
    tracemalloc.start()
    try:
        use(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
        path.unlink()


def fuzz(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@fuzz(40)
@given(data=st.data())
def test_damage(images, tmp_path_factory, data):
    damage(images, tmp_path_factory.getbasetemp(), data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@fuzz(1000)
@given(data=st.data())
def test_much_damage(images, tmp_path_factory, data):
    damage(images, tmp_path_factory.getbasetemp(), data)


@pytest.mark.parametrize(
    "at, data, message",
    [
        (4, 9, "of version 9 of qcow2"), (20, 8, r"clusters of 2\^8 bytes"), (20, 30, r"clusters of 2\^30"),
        (32, 1, "is encrypted"), (36, 1 << 28, "L1 table of 268435456 entries"), (36, 0, "an L1 table of 0 entries"),
        (56, 0, "no refcount table"), (56, 1 << 20, "refcount table of 1048576 clusters"), (60, 1 << 20, "snapshots"),
        (96, 7, r"refcounts of 2\^7 bits"), (100, 1 << 20, "its header is 1048576 bytes"), (100, 50, "header is 50"),
        (0, 0, "is no qcow2 image"), (44, 0x30001, "L1 table is at 0x30001"), (44, 0x7FFF0000, "past the end"),
        (52, 0x7FFF0000, "refcount table is past the end"), (24, 1 << 30, "entries for a disk of"),
    ],
)  # fmt: skip
def test_headers(tmp_path, at, data, message):
    create(tmp_path / "image", 1 << 20)
    image = bytearray((tmp_path / "image").read_bytes())
    image[at : at + 4] = struct.pack(">I", data)
    (tmp_path / "image").write_bytes(image)
    with pytest.raises(BlockError, match=message):
        open_disk(tmp_path / "image", "qcow2")


def test_an_l1_table_that_is_its_own_l2_table(tmp_path):
    create(tmp_path / "image", 1 << 20)
    image = bytearray((tmp_path / "image").read_bytes())
    image[0x30000:0x30008] = struct.pack(">Q", 0x30000 | 1 << 63)
    (tmp_path / "image").write_bytes(image)
    disk = open_disk(tmp_path / "image")
    with pytest.raises(BlockError, match="where a table is"):
        disk.write(0, b"x")
    disk.close()
    disk = open_disk(tmp_path / "image", readonly=True)
    assert check(disk).corruptions
    disk.close()


def test_clusters_that_unpack_to_anything_else_than_a_cluster():
    import zlib

    import zstandard

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bombs = [(0, packer.compress(bytes(64 << 20)) + packer.flush()),
             (1, zstandard.ZstdCompressor().compress(bytes(64 << 20)))]  # fmt: skip
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    wide = stream.compress(os.urandom(64)) + stream.flush()
    tracemalloc.start()
    for kind, bomb in bombs:
        assert decompress(kind, bomb, 65536) == bytes(65536)
    for kind, data, message in [
        (0, compress(0, b"short"), "5 bytes instead of"), (1, compress(1, b"short"), "5 bytes instead of"),
        (0, b"\xff" * 100, "can't be unpacked"), (1, b"\xff" * 100, "can't be unpacked"),
        (1, wide, "can't be unpacked"),
    ]:  # fmt: skip
        with pytest.raises(BlockError, match=message):
            decompress(kind, data, 65536)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
