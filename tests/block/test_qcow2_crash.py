"""A crash at any moment, of the process or of the machine, leaves an image that is clean or leaks, with all that was
flushed in it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import crash
import pytest
import qemu

from hostel.block import chain
from hostel.block.disk import open_disk
from hostel.block.file import File
from hostel.block.qcow2.check import check, open_to_repair
from hostel.block.qcow2.create import Options, create

SIZE = 4 << 20
SEED = int(os.environ.get("DISK_SEED", "1"))
BASE = os.urandom(SIZE // 2)


def make(folder, seed):
    """An image of features that follow from the seed, perhaps above another; its cluster size, and what is below."""
    chance = random.Random(seed)
    extended = chance.random() < 0.25
    cluster = 1 << chance.choice([14, 16] if extended else [9, 12, 16, 16, 18])
    options = {"cluster_size": cluster, "extended_l2": extended, "refcount_bits": chance.choice([1, 16, 64]),
               "lazy_refcounts": chance.random() < 0.2}  # fmt: skip
    base = b""
    if chance.random() < 0.4:
        base = BASE
        (folder / "base").write_bytes(base)
        options |= {"backing_file": "base", "backing_fmt": "raw"}
    create(folder / "image", SIZE, Options(**options))
    return cluster, base


def judge(path, expected, peer=None):
    """The image at ``path`` may leak, no more; opened for writing it has what is expected, and is clean afterwards."""
    looked = open_to_repair(path)
    dirty = looked.header.incompatible & 1
    found = check(looked)
    looked.close()
    assert dirty or not found.corruptions, found
    if peer and not dirty:
        qemu.check(path)
    disk = open_disk(path)
    wrong = expected.judge(disk.read(0, SIZE))
    assert wrong is None, wrong
    disk.write(0, disk.read(0, 512))
    disk.close()
    disk = open_disk(path, readonly=True)
    found = check(disk)
    assert found.corruptions == 0, found
    disk.close()
    if peer:
        qemu.check(path)


def kill_one(folder, seed):
    cluster, base = make(folder, seed)
    words = [sys.executable, Path(crash.__file__), folder / "image", str(seed)]
    writer = subprocess.Popen(words, stdout=subprocess.PIPE)
    chance = random.Random(seed + 1)
    told = writer.stdout.read1()               # it is at work
    end = time.monotonic() + chance.random() * 0.3
    while time.monotonic() < end:
        told += writer.stdout.read1()
    writer.send_signal(signal.SIGKILL)
    told += writer.stdout.read()
    writer.wait()
    words = told.decode().split(" ")[:-1]
    begun = max((int(word) for word in words if word != "f"), default=0)
    flushed = max((int(words[i - 1]) for i, word in enumerate(words) if word == "f"), default=0)
    judge(folder / "image", crash.expected(seed, SIZE, cluster, begun, flushed, base), peer=True)


@qemu.needed
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer(seed, tmp_path):
    kill_one(tmp_path, SEED * 1000 + seed)


@qemu.needed
@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_killed_writers(part, tmp_path):
    for seed in range(10):
        (tmp_path / str(seed)).mkdir()
        kill_one(tmp_path / str(seed), SEED * 1000 + 100 + part * 10 + seed)


class Recorder(File):
    """A file whose changes are written down; ``events`` are shared by all that are open for writing."""

    events: list[tuple] = []

    def write(self, offset, data):
        self._note(offset, bytes(data))
        super().write(offset, data)

    def writev(self, offset, buffers):
        self._note(offset, b"".join(buffers))
        super().writev(offset, buffers)

    def _note(self, offset, data):
        """Sector by sector: a disk writes whole ones."""
        while data:
            size = 512 - offset % 512
            self.events.append(("write", offset, data[:size]))
            offset, data = offset + size, data[size:]

    def discard(self, offset, length):
        self.events.append(("discard", offset, length))
        super().discard(offset, length)

    def write_zeroes(self, offset, length, may_unmap=True):
        self.events.append(("zero", offset, length))
        super().write_zeroes(offset, length, may_unmap)

    def truncate(self, size):
        self.events.append(("truncate", size, 0))
        super().truncate(size)

    def sync(self):
        self.events.append(("sync", 0, 0))
        super().sync()


def replay(image, events, chance):
    """The image after a power failure: what was synced is there, and of the rest some sectors are, some aren't."""
    last = max((i for i, event in enumerate(events) if event[0] == "sync"), default=-1)
    survive = chance.choice([0.0, 0.2, 0.5, 0.8, 1.0])
    for i, (kind, offset, what) in enumerate(events):
        if i > last and chance.random() >= survive:
            continue
        if kind == "write":
            image[len(image) : offset] = bytes(max(0, offset - len(image)))
            image[offset : offset + len(what)] = what
        elif kind in ("discard", "zero"):
            if kind == "zero":
                image.extend(bytes(max(0, offset + what - len(image))))
            end = min(offset + what, len(image))
            if end > offset:
                image[offset:end] = bytes(end - offset)
        elif kind == "truncate":
            image[:] = image[:offset].ljust(offset, b"\0")


def fail_power(folder, seed, count, points, peer=None):
    cluster, base = make(folder, seed)
    before = (folder / "image").read_bytes()
    disk = open_disk(folder / "image")
    marks = []                                 # (events so far, requests begun, requests flushed)
    flushed = 0
    for number, request in zip(range(count), crash.requests(seed, SIZE, cluster), strict=False):
        marks.append((len(Recorder.events), number, flushed))
        crash.apply(disk, number, request)
        if request[0] == "f":
            flushed = number + 1
            marks.append((len(Recorder.events), number + 1, flushed))
    events = list(Recorder.events)
    disk.close()
    chance = random.Random(seed)
    syncs = [i for i, event in enumerate(events) if event[0] == "sync"]
    for _ in range(points):
        cut = chance.randrange(len(events) + 1)
        if chance.random() < 0.8:              # where metadata is written
            cut = min(len(events), chance.choice(syncs) + chance.choice([0, 1, 2, 5]))
        begun, safe = next(
            ((mark[1] + 1, mark[2]) for mark in reversed(marks) if mark[0] <= cut), (1, 0))  # fmt: skip
        image = bytearray(before)
        replay(image, events[:cut], chance)
        path = folder / "after"
        path.write_bytes(image)
        judge(path, crash.expected(seed, SIZE, cluster, begun, safe, base), peer)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(chain, "File", Recorder)
    Recorder.events.clear()


@pytest.mark.parametrize("seed", range(6))
def test_a_power_failure(seed, tmp_path, recorded):
    fail_power(tmp_path, SEED * 1000 + seed, 80, 10)


@qemu.needed
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_power_failures(seed, tmp_path, recorded):
    fail_power(tmp_path, SEED * 1000 + 100 + seed, 300, 30, peer=True)
