"""The disk as its driver sees it: requests of all kinds and shapes, errors, resets under load, saved state."""

import errno
import os
import random
import resource
import signal
import struct

import pytest
from driver import HIGH, Bench

from hostel.base.errors import BlockError
from hostel.devices.virtio import blk
from hostel.devices.virtio.blk import Blk
from hostel.spec.disk import DiskSpec
from hostel.spec.rate import Rate

SIZE = 1 << 20
IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"


@pytest.fixture(params=["io_uring", "threads"], autouse=True)
def engine(request, monkeypatch):
    monkeypatch.setenv("HOSTEL_AIO", request.param)


@pytest.fixture
def make(tmp_path):
    """``make(**options)`` a bench with a disk of 1 MiB, whose file is ``bench.path``."""
    made = []

    def make_one(size=SIZE, features=None, **options):
        path = tmp_path / f"disk{len(made)}"
        with open(path, "wb") as file:
            file.truncate(size)
        spec = DiskSpec(path=str(path), format="raw", **options)
        try:
            io = Blk.open(spec)
        except OSError as e:
            pytest.skip(str(e))
        bench = Bench(Blk(spec, io))
        bench.path = path
        made.append(bench)
        return bench

    def end(bench):
        made.remove(bench)
        bench.close()
        bench.device.io.close()

    make_one.end = end
    yield make_one
    for bench in list(made):
        end(bench)


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector, count, flags=0):
    return struct.pack("<QII", sector, count, flags)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
def test_what_is_written_is_read(make, packed, indirect):
    bench = make(queues=2)
    driver = bench.driver(packed=packed, indirect=indirect)
    data = os.urandom(4096)
    assert driver.request(0, [header(OUT, 8), data[:1024], data[1024:]], [1]) == (OK, 1)
    assert driver.request(1, [header(IN, 8)], [512, 3584, 1]) == (data + OK, 4097)
    assert driver.request(1, [header(FLUSH)], [1]) == (OK, 1)
    assert bench.path.read_bytes()[4096:8192] == data
    assert bench.interrupts() == [1, 2]


def test_any_layout_will_do(make):
    """Header and status needn't have buffers of their own (2.7.4)."""
    driver = make().driver()
    data = os.urandom(1024)
    head = header(OUT, 4)
    assert driver.request(0, [head[:5], head[5:11], head[11:] + data[:100], data[100:]], [1]) == (OK, 1)
    assert driver.request(0, [head + data], [1]) == (OK, 1)
    assert driver.request(0, [header(IN, 4)], [1025]) == (data + OK, 1025)
    head = header(IN, 4)
    assert driver.request(0, [head[:1], head[1:]], [700, 324, 1]) == (data + OK, 1025)
    assert driver.request(0, [header(OUT)], [1]) == driver.request(0, [header(IN)], [1]) == (OK, 1)


def test_id_and_what_is_not_known(make):
    driver = make(serial="disk-of-tests").driver()
    assert driver.request(0, [header(GET_ID)], [20, 1]) == (b"disk-of-tests".ljust(20, b"\0") + OK, 21)
    assert driver.request(0, [header(GET_ID)], [4, 1]) == (b"disk" + OK, 5)
    for kind in (2, 3, 5, 7, 9, 10, 14, 15, 16, 24, 0xFFFFFFFF):
        assert driver.request(0, [header(kind)], [8, 1])[0][-1:] == UNSUPP


def test_what_can_not_be_is_an_error(make):
    bench = make()
    driver = bench.driver()
    last = SIZE // 512
    for readable, writable in (
        ([header(IN, last)], [512, 1]), ([header(IN, last - 1)], [1024, 1]), ([header(IN, 1 << 63)], [512, 1]),
        ([header(IN, (1 << 64) - 1)], [512, 1]), ([header(IN)], [100, 1]), ([header(OUT, last), bytes(512)], [1]),
        ([header(OUT), bytes(511)], [1]), ([header(DISCARD)], [1]), ([header(DISCARD), bytes(15)], [1]),
        ([header(DISCARD), segment(0, 1) * 65], [1]), ([header(DISCARD), segment(last, 1)], [1]),
        ([header(ZEROES), segment(0, (1 << 22) + 1)], [1]), ([header(ZEROES), segment(1 << 63, 1)], [1]),
    ):  # fmt: skip
        assert driver.request(0, readable, writable)[0][-1:] == IOERR, (readable, writable)
    assert driver.request(0, [header(DISCARD), segment(0, 1, 1)], [1])[0] == UNSUPP
    assert driver.request(0, [header(ZEROES), segment(0, 1, 2)], [1])[0] == UNSUPP
    assert driver.request(0, [header(IN)], [1]) == (OK, 1) and not driver.broken


@pytest.mark.parametrize("readable, writable", [([b"x" * 15], [1]), ([header(IN)], []), ([], [513])])
def test_no_room_for_header_or_status_breaks_the_device(make, readable, writable):
    bench = make()
    driver = bench.driver()
    driver.queues[0].add(readable, writable)
    driver.queues[0].kick()
    bench.wait(lambda: driver.broken)
    assert bench.card.statistics()["broken"] == {"bad request": 1}
    driver = bench.driver()
    assert driver.request(0, [header(IN)], [512, 1]) == (bytes(512) + OK, 513)


def test_zeroes_and_discards(make):
    bench = make()
    bench.path.write_bytes(b"x" * SIZE)
    driver = bench.driver()
    parts = segment(8, 8) + segment(32, 64, 1) + segment(0, 1)
    assert driver.request(0, [header(ZEROES), parts], [1]) == (OK, 1)
    expected = bytearray(b"x" * SIZE)
    for first, count in ((8, 8), (32, 64), (0, 1)):
        expected[first * 512 : (first + count) * 512] = bytes(count * 512)
    assert bench.path.read_bytes() == expected
    before = os.stat(bench.path).st_blocks
    assert driver.request(0, [header(DISCARD), segment(256, 1024), segment(1280, 512)], [1]) == (OK, 1)
    assert os.stat(bench.path).st_blocks <= before - 1500  # a tree of extents takes a block, too


def test_configuration(make):
    bench = make(queues=3)
    bench.driver()
    config = struct.unpack(blk.CONFIG.format, bytes(bench.device_config(i, 1) for i in range(blk.CONFIG.size)))
    assert config[0] == SIZE // 512 and config[2] == 510 and config[6] == 512
    assert config[11] == 1 and config[12] == 3 and config[-1] == 1


def test_a_disk_to_read_only(make):
    bench = make(readonly=True)
    driver = bench.driver()
    assert driver.features >> blk.RO & 1 and not driver.features >> blk.DISCARD & 1
    assert driver.request(0, [header(OUT), bytes(512)], [1]) == (IOERR, 1)
    assert driver.request(0, [header(DISCARD), segment(0, 8)], [1])[0] == UNSUPP
    assert driver.request(0, [header(IN)], [512, 1]) == (bytes(512) + OK, 513)
    assert driver.request(0, [header(FLUSH)], [1]) == (OK, 1)


def test_without_a_cache_every_write_is_synced(make):
    bench = make()
    driver = bench.driver(features=0)
    assert driver.request(0, [header(OUT), bytes(512)], [1]) == (OK, 1)
    assert bench.device.io.aio.started == 1  # the sync; the write was done at once
    driver = bench.driver()
    assert driver.request(0, [header(OUT), bytes(512)], [1]) == (OK, 1)
    assert bench.device.io.aio.started == 1
    bench.write(0x2000 + blk.WRITEBACK, 1, 0)
    assert bench.device_config(blk.WRITEBACK, 1) == 0
    assert driver.request(0, [header(OUT), bytes(512)], [1]) == (OK, 1)
    assert bench.device.io.aio.started == 2


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_many_at_once_on_all_queues(make, cache):
    """As many as the rings hold, with one interrupt for several; every byte is right."""
    bench = make(queues=3, cache=cache)
    driver = bench.driver(indirect=True)
    rng = random.Random(7)
    model = bytearray(SIZE)
    for _ in range(5):
        sectors = rng.sample(range(0, SIZE // 512, 8), 240)
        expected = {}
        for number, sector in enumerate(sectors):
            queue = driver.queues[number % 3]
            if rng.random() < 0.5:
                data = rng.randbytes(4096)
                model[sector * 512 : sector * 512 + 4096] = data
                token = queue.add([header(OUT, sector), data[:512], data[512:]], [1])
                expected[number % 3, token] = (OK, 1)
            else:
                token = queue.add([header(IN, sector)], [2048, 2048, 1])
                expected[number % 3, token] = (bytes(model[sector * 512 : sector * 512 + 4096]) + OK, 4097)
        got = {}

        def collect(got=got):
            for index, queue in driver.queues.items():
                got.update({(index, token): answer for token, answer in queue.collect().items()})
            return len(got) == 240

        for queue in driver.queues.values():
            queue.kick()
        bench.wait(collect)
        assert got == expected
    queues = bench.card.statistics()["queues"]
    assert sum(queue["interrupts"] for queue in queues) < sum(queue["requests"] for queue in queues) / 2


def test_resets_under_load_leave_nothing_behind(make):
    """After a reset no buffer changes any more, and all requests of the next driver are answered."""
    bench = make(queues=2)
    bench.path.write_bytes(b"d" * SIZE)
    for round_ in range(20):
        driver = bench.driver(indirect=True, packed=bool(round_ & 1))
        for queue in driver.queues.values():
            for n in range(60):
                queue.add([header(IN, n * 8)], [4096, 1])
            queue.kick()
        bench.set("device_status", 0)
        assert bench.get("device_status") == 0 and bench.device.io.held == 0
        bench.next_page = 0x100000
        view = bench.ram.view(0x100000, 32 << 20)
        view[:] = bytes(len(view))
    bench.settle()
    assert not any(view)
    assert bench.driver().request(0, [header(IN)], [512, 1]) == (b"d" * 512 + OK, 513)


def test_one_queue_can_be_reset_alone(make):
    bench = make(queues=2)
    driver = bench.driver()
    for n in range(50):
        driver.queues[0].add([header(OUT, n), bytes([n]) * 512], [1])
        driver.queues[1].add([header(OUT, 100 + n), bytes([n]) * 512], [1])
    driver.queues[0].kick()
    driver.queues[1].kick()
    driver.reset_queue(0)
    driver.queues[0] = driver.set_up(0)
    answers = {}
    bench.wait(lambda: answers.update(driver.queues[1].collect()) or len(answers) == 50)
    assert set(answers.values()) == {(OK, 1)}
    assert driver.request(0, [header(IN, 149)], [512, 1]) == (bytes([49]) * 512 + OK, 513)


def test_no_room_on_the_host(make):
    """Nothing is answered while there is none; afterwards everything is, and is there."""
    bench = make()
    os.truncate(bench.path, 0)
    lines = []
    bench.device.on_full = lines.append
    driver = bench.driver(indirect=True)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    queue, answers = driver.queues[0], {}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40960, old[1]))
        for n in range(100):
            queue.add([header(OUT, n * 8), bytes([n]) * 4096], [1])
        queue.kick()
        bench.wait(lambda: lines)
        bench.wait(lambda: bench.device.io.under_way == 0)
        answers.update(queue.collect())
        assert len(answers) <= 10 and bench.device.full
        bench.device.retry()
        bench.wait(lambda: len(lines) == 2)
        assert str(bench.path) in lines[0] and len(answers) <= 10
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    bench.device.retry()
    bench.wait(lambda: answers.update(queue.collect()) or len(answers) == 100)
    assert set(answers.values()) == {(OK, 1)} and not bench.device.full
    assert bench.path.read_bytes() == b"".join(bytes([n]) * 4096 for n in range(100))
    assert bench.device.statistics()["errors"] == 0


def test_a_reset_without_room(make):
    bench = make()
    os.truncate(bench.path, 0)
    lines = []
    bench.device.on_full = lines.append
    driver = bench.driver()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, old[1]))
        driver.queues[0].add([header(OUT, 8), bytes(512)], [1])
        driver.queues[0].kick()
        bench.wait(lambda: lines)
        driver = bench.driver()
        assert not bench.device.full
        assert driver.request(0, [header(IN)], [512, 1]) == (bytes(512) + OK, 513)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


def test_limits(make):
    bench = make(iops=Rate(200, 10))
    driver = bench.driver()
    queue, answers = driver.queues[0], {}
    for n in range(20):
        queue.add([header(IN, n)], [512, 1])
    queue.kick()
    bench.wait(lambda: answers.update(queue.collect()) or len(answers) == 20)
    assert bench.device.statistics()["held_back"]


def test_it_grows_and_says_so(make):
    bench = make()
    driver = bench.driver()
    generation = bench.get("config_generation")
    bench.interrupts()
    bench.device.resize(2 * SIZE)
    assert bench.interrupts() == [0] and bench.get("config_generation") != generation
    assert bench.device_config(0, 4) == 2 * SIZE // 512
    assert driver.request(0, [header(OUT, SIZE // 512), bytes(512)], [1]) == (OK, 1)
    assert os.path.getsize(bench.path) == 2 * SIZE


def test_save_and_load_in_the_middle(make):
    """What was begun is done by who loads it, as if nothing had happened."""
    bench = make(iops=Rate(1, 5))
    driver = bench.driver(indirect=True)
    queue, answers = driver.queues[0], {}
    for n in range(12):
        queue.add([header(OUT, 8 * n), bytes([n + 1]) * 4096], [1])
    queue.kick()
    bench.wait(lambda: answers.update(queue.collect()) or len(answers) >= 5)
    state = bench.card.save()
    memory = bytes(bench.ram.view(0, 64 << 20))
    high = bytes(bench.ram.view(HIGH, 4 << 20))
    make.end(bench)

    spec = DiskSpec(path=str(bench.path), format="raw")
    io = Blk.open(spec)
    with Bench(Blk(spec, io)) as other:
        other.ram.write(0, memory)
        other.ram.write(HIGH, high)
        other.card.load(state)
        queue.bench = driver.bench = other
        queue.view = other.ram.view(0, 64 << 20)
        other.wait(lambda: answers.update(queue.collect()) or len(answers) == 12)
        assert set(answers.values()) == {(OK, 1)}
        assert driver.request(0, [header(IN, 88)], [4096, 1]) == (bytes([12]) * 4096 + OK, 4097)
    io.close()
    assert bench.path.read_bytes()[: 12 * 4096] == b"".join(bytes([n + 1]) * 4096 for n in range(12))


def test_an_image_in_use_is_not_opened(make):
    bench = make()
    with pytest.raises(BlockError, match="in use") as caught:
        Blk.open(DiskSpec(path=str(bench.path), format="raw"))
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("seed", range(4))
def test_any_request_is_answered_or_breaks_the_device(make, seed):
    """Random kinds, sectors and shapes: no answer but the three there are, nothing outside the disk's bytes."""
    rng = random.Random(seed)
    bench = make(queues=2)
    bench.path.write_bytes(b"d" * SIZE)
    driver = bench.driver(indirect=bool(seed & 1), packed=bool(seed & 2))
    kinds = (IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES, 2, 77)
    for _ in range(150):
        kind = rng.choice(kinds)
        sector = rng.choice((0, rng.randrange(SIZE // 512 + 9), rng.getrandbits(64)))
        readable = [header(kind, sector)]
        if rng.random() < 0.1:
            readable = [readable[0][: rng.randrange(1, 17)]]
        if rng.random() < 0.6:
            readable.append(rng.choice((
                rng.randbytes(rng.choice((1, 16, 512, 4096))), segment(rng.randrange(3000), rng.randrange(3000)),
                rng.randbytes(512) + segment(1, 1),
            )))
        writable = [rng.choice((1, 2, 512, 513, 4096)) for _ in range(rng.randrange(3))] + [1] * (rng.random() < 0.9)
        queue = driver.queues[rng.randrange(2)]
        token = queue.add(readable, writable)
        queue.kick()
        answers = {}
        bench.wait(lambda q=queue, a=answers, t=token, d=driver: a.update(q.collect()) or t in a or d.broken)
        if driver.broken:
            assert len(b"".join(readable)) < 16 or not writable
            driver = bench.driver(indirect=bool(seed & 1), packed=bool(seed & 2))
        else:
            data, length = answers[token]
            assert length == sum(writable) and data[-1:] in (OK, IOERR, UNSUPP)
    assert os.path.getsize(bench.path) == SIZE and bench.device.io.held == 0
