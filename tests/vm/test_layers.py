"""Layers of disks on files alone: links, tops, and merging what nobody else needs."""

import os

import pytest

from hostel.base import paths
from hostel.block.disk import open_disk
from hostel.block.qcow2 import create
from hostel.spec.disk import DiskSpec
from hostel.spec.vm import VmSpec
from hostel.vm import layers

SIZE = 1 << 20


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A VM with a disk of its own, as an image makes it."""
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path))
    folder = paths.vms() / "one"
    folder.mkdir(parents=True)
    create.create(folder / "disk.qcow2", SIZE)
    return VmSpec(name="one", disks=[DiskSpec(path=str(folder / "disk.qcow2"), format="qcow2", allow_backing=True)])


def write(spec, offset, data):
    disk = open_disk(spec.disks[0].path, "qcow2", allow_backing=True)
    disk.writev(offset, [memoryview(bytearray(data))])
    disk.close()


def read(path, offset, length):
    buffer = bytearray(length)
    disk = open_disk(path, "qcow2", readonly=True, allow_backing=True)
    disk.readv(offset, [memoryview(buffer)])
    disk.close()
    return bytes(buffer)


def freeze(spec):
    frozen = layers.tops(spec)
    return frozen, layers.on_tops(spec, layers.put_tops(spec.name, frozen))


def depth(spec):
    disk = open_disk(spec.disks[0].path, "qcow2", readonly=True, allow_backing=True)
    found = len(disk.chain())
    disk.close()
    return found


def test_tops_leave_what_is_below_as_it_was(spec, tmp_path):
    write(spec, 0, b"a" * 4096)
    frozen, after = freeze(spec)
    layers.link(frozen, layers.folder("one"), tmp_path / "snapshots" / "one@x")
    write(after, 0, b"b" * 4096)
    assert read(tmp_path / "snapshots" / "one@x" / frozen[0].file, 0, 4096) == b"a" * 4096
    assert read(after.disks[0].path, 0, 4096) == b"b" * 4096
    os.unlink(spec.disks[0].path)  # the VM's first disk is a layer now, under another name
    assert read(after.disks[0].path, 4096, 4096) == bytes(4096)


def test_layers_that_are_nobody_elses_are_merged(spec, tmp_path):
    expected = bytearray(SIZE)
    for number in range(1, 6):
        at = number * 65536
        write(spec, at, bytes([number]) * 70000)
        expected[at : at + 70000] = bytes([number]) * 70000
        if number == 1:
            _, spec = freeze(spec)
            os.unlink(paths.vms() / "one" / "disk.qcow2")
        else:
            _, spec = freeze(spec)
    assert depth(spec) == 6
    merged = layers.merge(spec)
    layers.sweep(merged)
    assert depth(merged) == 1
    assert read(merged.disks[0].path, 0, SIZE) == expected
    assert len(os.listdir(layers.folder("one"))) == 1


def test_what_a_snapshot_has_is_not_written_to(spec, tmp_path):
    write(spec, 0, b"a" * 4096)
    frozen, spec = freeze(spec)
    os.unlink(paths.vms() / "one" / "disk.qcow2")
    layers.link(frozen, layers.folder("one"), tmp_path / "snapshots" / "one@x")
    write(spec, 0, b"b" * 4096)
    _, spec = freeze(spec)
    write(spec, 0, b"c" * 4096)
    merged = layers.merge(spec)  # the two above it become one
    layers.sweep(merged)
    assert depth(merged) == 2
    assert read(merged.disks[0].path, 0, 4096) == b"c" * 4096
    assert read(tmp_path / "snapshots" / "one@x" / frozen[0].file, 0, 4096) == b"a" * 4096


def test_disks_given_by_the_user_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path / "home"))
    given = tmp_path / "given.raw"
    given.write_bytes(b"x" * SIZE)
    spec = VmSpec(name="one", disks=[DiskSpec(path=str(given), format="raw")])
    frozen, after = freeze(spec)
    assert frozen[0].elsewhere and frozen[0].file == str(given)
    write(after, 0, b"y" * 4096)
    assert read(after.disks[0].path, 4090, 10) == b"y" * 6 + b"x" * 4
    assert given.read_bytes() == b"x" * SIZE
    assert layers.merge(after).disks == after.disks


def test_disks_that_are_only_read_have_no_tops(spec, tmp_path):
    seed = paths.vms() / "one" / "seed.iso"
    seed.write_bytes(bytes(SIZE))
    spec.disks.append(DiskSpec(path=str(seed), format="raw", readonly=True))
    frozen, after = freeze(spec)
    assert [layer.fixed for layer in frozen] == [False, True]
    assert os.path.samefile(after.disks[1].path, seed)
    assert after.disks[1].format == "raw" and after.disks[1].readonly
