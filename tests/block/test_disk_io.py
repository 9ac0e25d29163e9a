"""Requests to disks, many at once: each byte is where a plain array says, by io_uring and by threads, on files that are
the disk and on disks that are scattered over theirs."""

import errno
import os
import random
import resource
import select
import signal

import pytest

from hostel.base.errors import BlockError
from hostel.base.token_bucket import TokenBucket
from hostel.block import disk as kinds
from hostel.block.disk import Disk, open_disk
from hostel.block.file import File, fill
from hostel.block.io import DiskIo

CLUSTER = 65536
SIZE = 40 * CLUSTER + 512 * 7
WAIT = 30.0


class Scattered(Disk):
    """Clusters lie in its file in the order in which they are first written, with a stranger between two of them
    now and then; some clusters only this class can read; discards drop a cluster, whose place another gets."""

    format = "scattered"

    def __init__(self, path, size):
        super().__init__(File(path, True), size, False)
        self.places = {}
        self.spare = []
        self.end = 0
        self.opaque = set()
        self.calls = 0

    def readv(self, offset, buffers):
        self.calls += 1
        for at, piece in pieces(offset, buffers):
            place = self.places.get(at // CLUSTER)
            if place is None:
                fill([piece])
            else:
                self.file.readv(place + at % CLUSTER, [piece])

    def writev(self, offset, buffers):
        self.calls += 1
        for at, piece in pieces(offset, buffers):
            number = at // CLUSTER
            if number not in self.places:
                if self.spare:
                    self.places[number] = self.spare.pop()
                    self.file.write(self.places[number], bytes(CLUSTER))
                else:
                    self.places[number] = self.end
                    self.end += CLUSTER * (2 if number % 7 == 0 else 1)
                if number % 11 == 3:
                    self.opaque.add(number)
            self.file.writev(self.places[number] + at % CLUSTER, [piece])

    def flush(self):
        self.file.sync()

    def discard(self, offset, length):
        for number in range(-(-offset // CLUSTER), (offset + length) // CLUSTER):
            if number in self.places:
                self.spare.append(self.places.pop(number))

    def write_zeroes(self, offset, length, may_unmap=True):
        self.writev(offset, [memoryview(bytes(length))])

    def map(self, offset, length):
        number = offset // CLUSTER
        run = min(length, CLUSTER - offset % CLUSTER)
        if number in self.opaque:
            return -1, 0, run, kinds.OTHER
        if number not in self.places:
            return -1, 0, run, kinds.ZERO
        return self.file.data_fd, self.places[number] + offset % CLUSTER, run, kinds.DATA

    def close(self):
        self.file.close()


def pieces(offset, buffers):
    """Cut at clusters."""
    for buffer in buffers:
        while len(buffer):
            size = min(len(buffer), CLUSTER - offset % CLUSTER)
            yield offset, buffer[:size]
            offset += size
            buffer = buffer[size:]


@pytest.fixture(params=["io_uring", "threads"])
def engine(request):
    return request.param


@pytest.fixture
def make(engine, tmp_path):
    made = []

    def make_one(kind="raw", size=SIZE, depth=64, **options):
        path = tmp_path / f"disk{len(made)}"
        with open(path, "wb") as file:
            file.truncate(size if kind != "scattered" else 0)
        disk = Scattered(path, size) if kind == "scattered" else open_disk(path, "raw", direct=kind == "direct")
        try:
            made.append(DiskIo(disk, depth, engine=engine, **options))
        except OSError as e:
            pytest.skip(f"this host has no {engine}: {e.strerror}")
        return made[-1]

    yield make_one
    for io in made:
        io.close()
    HELD.clear()


HELD = []


def start(io, *args, **options):
    """Whether there was room; buffers stay while the test runs."""
    HELD.append(io.start_py(*args, **options))
    return HELD[-1] is not None


def step(io):
    """What is finished, as a device's thread gets it: sleeping where nothing is."""
    done = io.step_py()
    if not done and not io.full and not io.arm_py():
        assert io.delay_ns or select.select([io.aio.event_fd], [], [], WAIT)[0], "nothing happens"
        if io.delay_ns:
            select.select([io.aio.event_fd], [], [], io.delay_ns / 1e9)
        try:
            os.eventfd_read(io.aio.event_fd)
        except BlockingIOError:
            pass
    return done


def finish(io, count):
    done = {}
    while len(done) < count:
        done.update(step(io))
    return done


def cut_randomly(rng, data):
    """Buffers that are ``data`` together, some of them empty."""
    view = memoryview(data)
    marks = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))
    return [view[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]


@pytest.mark.parametrize("kind", ["raw", "direct", "scattered"])
@pytest.mark.parametrize("seed", range(3))
def test_every_byte_is_where_it_should_be(make, kind, seed):
    """Rounds of requests at the same time that don't overlap; between rounds everything may."""
    rng = random.Random(seed)
    io = make(kind)
    model = bytearray(SIZE)
    for _ in range(30):
        taken, tokens, reads = [], [], {}
        for token in range(rng.randrange(1, 30)):
            length = 512 * rng.choice((1, 1, 7, 8, 8, 16, 128, 200, 300))
            offset = 512 * rng.randrange((SIZE - length) // 512 + 1)
            if any(offset < b and a < offset + length for a, b in taken):
                continue
            taken.append((offset, offset + length))
            tokens.append(token)
            op = rng.choice(("read", "read", "write", "write", "write", "zeroes", "discard", "flush"))
            if op == "read":
                data = bytearray(os.urandom(length))
                reads[token] = (data, bytes(model[offset : offset + length]))
                assert start(io, "read", offset, cut_randomly(rng, data), token)
            elif op == "write":
                data = rng.randbytes(length)
                model[offset : offset + length] = data
                flags = rng.choice((0, 0, 0, 1))
                assert start(io, "write", offset, cut_randomly(rng, data), token, flags=flags)
            elif op == "zeroes":
                model[offset : offset + length] = bytes(length)
                assert start(io, op, offset, [], token, length=length, flags=rng.choice((0, 2)))
            elif op == "discard":
                if kind == "scattered":  # whole clusters read as zeros afterwards
                    first, last = -(-offset // CLUSTER) * CLUSTER, (offset + length) // CLUSTER * CLUSTER
                else:                    # a hole
                    first, last = offset, offset + length
                if first < last:
                    model[first:last] = bytes(last - first)
                assert start(io, op, offset, [], token, length=length)
            else:
                assert start(io, "flush", 0, [], token)
        assert finish(io, len(tokens)) == dict.fromkeys(tokens, 0)
        for data, expected in reads.values():
            assert data == expected
    assert io.held == io.under_way == 0
    whole = bytearray(SIZE)
    assert start(io, "read", 0, [memoryview(whole)], 1)
    assert finish(io, 1) == {1: 0} and whole == model
    counts = io.statistics()
    if kind == "raw":
        assert io.identity and counts["in_python"] == counts["zeroes"] + counts["discards"]


def test_python_is_asked_once_for_a_place(make):
    io = make("scattered")
    for token in range(10):
        assert start(io, "write", 5 * CLUSTER + 4096 * token, [bytes(4096)], token)
        assert finish(io, 1) == {token: 0}
        buffer = bytearray(4096)
        assert start(io, "read", 5 * CLUSTER + 4096 * token, [buffer], token)
        assert finish(io, 1) == {token: 0}
    assert io.disk.calls == 1


def test_a_file_that_ends_early_reads_as_zeros(make):
    io = make()
    os.ftruncate(io.disk.file.fd, 1000)
    os.pwrite(io.disk.file.fd, b"x" * 1000, 0)
    buffer = bytearray(b"y" * 4096)
    assert start(io, "read", 0, [memoryview(buffer)[:700], memoryview(buffer)[700:]], 1)
    assert finish(io, 1) == {1: 0}
    assert buffer == b"x" * 1000 + bytes(3096)


def test_outside_is_an_error(make):
    io = make()
    assert all([
        start(io, "read", SIZE - 512, [bytearray(1024)], 1), start(io, "write", -512, [bytes(512)], 2),
        start(io, "write", 1 << 62, [bytes(512)], 3), start(io, "discard", 0, [], 4, length=SIZE + 1),
        start(io, "zeroes", SIZE, [], 5, length=1), start(io, "read", SIZE, [], 6),
    ])
    assert finish(io, 6) == {**dict.fromkeys(range(1, 6), errno.EINVAL), 6: 0}


def test_a_disk_that_may_only_be_read(tmp_path):
    (tmp_path / "disk").write_bytes(bytes(4096))
    io = DiskIo(open_disk(tmp_path / "disk", "raw", readonly=True), 8)
    ops = ("write", "zeroes", "discard", "flush")
    assert all(start(io, op, 0, [], token, length=512) for token, op in enumerate(ops))
    assert finish(io, 4) == {0: errno.EROFS, 1: errno.EROFS, 2: errno.EROFS, 3: 0}
    io.close()


def test_no_more_than_its_depth(make):
    io = make(depth=4)
    buffers = [bytearray(512) for _ in range(5)]
    assert [start(io, "read", 0, [buffer], i) for i, buffer in enumerate(buffers)] == [True] * 4 + [False]
    assert set(finish(io, 4)) == {0, 1, 2, 3}
    assert start(io, "read", 0, [buffers[0]], 9) and finish(io, 1) == {9: 0}


@pytest.mark.parametrize("kind", ["raw", "scattered"])
def test_no_room_stalls_and_loses_nothing(make, kind):
    """Writes that the host has no room for wait until it has; what has room isn't done twice."""
    io = make(kind)
    if kind == "raw":
        os.ftruncate(io.disk.file.fd, 0)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    data = [bytes([65 + i]) * CLUSTER for i in range(12)]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * CLUSTER + 4096, old[1]))
        left = dict(enumerate(data))
        for _ in range(2):
            assert all(start(io, "write", i * CLUSTER, [part], i) for i, part in left.items())
            done = []
            while not io.full or io.under_way:
                done += step(io)
            assert io.full == errno.EFBIG
            io.give_up_py()
            done += step(io)
            assert io.held == io.full == 0 and {result for _, result in done} <= {0, -1}
            for i, result in done:
                if result == 0:
                    del left[i]
            assert 8 <= len(left) < 12
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert all(start(io, "write", i * CLUSTER, [part], i) for i, part in left.items())
        assert finish(io, len(left)) == dict.fromkeys(left, 0) and io.statistics()["no_room"] >= 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    back = bytearray(12 * CLUSTER)
    assert start(io, "read", 0, [back], 1)
    assert finish(io, 1) == {1: 0} and back == b"".join(data)


def test_what_is_given_up_comes_back_undone(make):
    io = make(iops=TokenBucket(1, 2))
    buffers = [bytes([i]) * 512 for i in range(6)]
    assert all(start(io, "write", 512 * i, [part], i) for i, part in enumerate(buffers))
    done = finish(io, 2)
    assert done == {0: 0, 1: 0} and 0 < io.delay_ns <= 1_000_000_000
    io.give_up_py()
    assert dict(io.step_py()) == dict.fromkeys(range(2, 6), -1) and io.held == 0


@pytest.mark.parametrize("limit", ["iops", "rate"])
def test_limits_hold_back_and_let_through(make, limit):
    bucket = TokenBucket(400, 4) if limit == "iops" else TokenBucket(400 * 512, 2048)
    io = make(**{limit: bucket})
    buffers = [bytearray(512) for _ in range(20)]
    assert all(start(io, "read", 0, [buffer], i) for i, buffer in enumerate(buffers))
    assert finish(io, 20) == dict.fromkeys(range(20), 0)
    assert io.statistics()["held_back"]


def test_errors_of_the_disk_are_results(make):
    io = make("scattered")

    def fails(*args):
        raise BlockError("the cable is loose", errno.ENXIO)

    io.disk.readv, io.disk.flush, io.disk.writev = fails, fails, lambda *args: 1 / 0
    assert all([start(io, "read", 0, [bytearray(512)], 1), start(io, "flush", 0, [], 2)])
    assert finish(io, 2) == {1: errno.ENXIO, 2: errno.ENXIO} and io.message == "the cable is loose"
    assert start(io, "write", 0, [bytes(512)], 3) and finish(io, 1) == {3: errno.EIO}


def test_save_and_load(make):
    io = make(iops=TokenBucket(1, 10))
    buffers = [bytearray(512) for _ in range(10)]
    assert all(start(io, "read", 0, [buffer], i) for i, buffer in enumerate(buffers))
    finish(io, 10)
    other = make(iops=TokenBucket(1, 10))
    other.load(io.save())
    assert start(other, "read", 0, [buffers[0]], 0)
    assert other.step_py() == [] and other.delay_ns > 100_000_000
    with pytest.raises(ValueError, match="version 9"):
        io.load({"version": 9})
    other.give_up_py()
    assert other.step_py() == [(0, -1)]
