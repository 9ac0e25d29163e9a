"""virtio-fs: FUSE requests through queues, by the vCPU that asks and by the share's thread."""

import os
import struct
import threading
import time

import pytest
from driver import Bench

from hostel.devices.virtio.fs import Fs
from hostel.spec.share import ShareSpec

LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, FSYNC, INIT, CREATE = 1, 2, 3, 14, 15, 16, 20, 26, 35


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


class Share(Bench):
    def __init__(self, folder, **options):
        readonly = options.pop("readonly", False)
        self.spec = ShareSpec(source=str(folder), target="/share", tag="hostel0", readonly=readonly)
        self.folder = Fs.open(self.spec)
        super().__init__(Fs(self.spec, self.folder))
        self.guest = self.driver(**options)

    def close(self):
        super().close()
        self.folder.close()

    def ask(self, opcode, nodeid, *payload, room=(65536,), which=1):
        """An error and what follows it. The pieces of ``payload`` and ``room`` are descriptors of their own."""
        size = 40 + sum(map(len, payload))
        head = struct.pack("<IIQQIIII", size, opcode, 5, nodeid, 0, 0, 1, 0)
        writable = [16, *room] if room else []
        answer, length = self.guest.request(which, [head, *payload], writable)
        assert length == len(answer)
        if not writable:
            return None
        size, error, unique = struct.unpack_from("<IiQ", answer)
        assert (size, unique) == (length, 5)
        return -error, answer[16:]

    def start(self):
        assert self.ask(INIT, 0, struct.pack("<IIII", 7, 36, 65536, 0xFFFFFFFF))[0] == 0

    def create(self, name):
        error, data = self.ask(CREATE, 1, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0), name + b"\0")
        assert error == 0
        return struct.unpack_from("<Q", data)[0], struct.unpack_from("<Q", data, 128)[0]


@pytest.mark.parametrize("packed", [False, True])
def test_files(folder, packed):
    with Share(folder, packed=packed) as share:
        assert share.device_config(0, 4) == int.from_bytes(b"host", "little")
        assert [share.device_config(36 + 4 * i, 4) for i in range(2)] == [1, 0]
        share.start()
        node, fh = share.create(b"file")
        data = os.urandom(600_000)
        pieces = [data[:1], data[1:5000], data[5000:100_000], data[100_000:]]  # too much for the vCPU's thread
        error, answer = share.ask(WRITE, node, struct.pack("<QQIIQII", fh, 0, len(data), 0, 0, 0, 0), *pieces)
        assert (error, struct.unpack_from("<I", answer)[0]) == (0, len(data))
        assert (folder / "file").read_bytes() == data
        assert share.ask(FSYNC, node, struct.pack("<QII", fh, 0, 0))[0] == 0
        for size, room in ((5000, (1, 4096, 903)), (600_000, (100, 599_900)), (700_000, (700_000,))):
            ask = struct.pack("<QQIIQII", fh, 7, size, 0, 0, 0, 0)
            assert share.ask(READ, node, ask, room=room) == (0, data[7 : 7 + size])
        share.ask(FORGET, node, struct.pack("<Q", 1), room=(), which=0)
        assert share.device.statistics()["requests"]["forget"] == 1


def test_only_what_is_there_already_is_read_by_the_vcpu(folder):
    with Share(folder) as share:
        share.start()
        node, fh = share.create(b"file")
        (folder / "file").write_bytes(b"x" * 100_000)
        fd = os.open(folder / "file", os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # not in the cache: the thread reads it
        os.close(fd)
        ask = struct.pack("<QQIIQII", fh, 0, 65536, 0, 0, 0, 0)
        for _ in range(2):
            assert share.ask(READ, node, ask) == (0, b"x" * 65536)
        assert share.ask(READ, node, struct.pack("<QQIIQII", fh, 99_990, 65536, 0, 0, 0, 0)) == (0, b"x" * 10)


def test_many_at_once(folder):
    with Share(folder) as share:
        share.start()
        node, fh = share.create(b"file")
        (folder / "file").write_bytes(bytes(range(256)) * 64)
        queue = share.guest.queues[1]
        asked = {}
        for i in range(100):
            head = struct.pack("<IIQQIIII", 80, READ, i, node, 0, 0, 1, 0)
            asked[queue.add([head, struct.pack("<QQIIQII", fh, i, 4, 0, 0, 0, 0)], [16, 4])] = i
        queue.kick()
        answers = {}
        share.wait(lambda: answers.update(queue.collect()) or len(answers) == 100)
        for key, i in asked.items():
            assert answers[key][0][16:] == bytes((i, i + 1, i + 2, i + 3))


def test_reset_closes_what_was_open(folder):
    with Share(folder) as share:
        share.start()
        share.create(b"a")
        share.create(b"b")
        before = len(os.listdir("/proc/self/fd"))
        share.set("device_status", 0)
        assert len(os.listdir("/proc/self/fd")) == before - 2
        assert share.device.statistics()["open"] == 0
        share.guest = share.driver()
        share.start()
        assert share.ask(LOOKUP, 1, b"a\0")[0] == 0


def test_readonly(folder):
    with Share(folder, readonly=True) as share:
        share.start()
        assert share.ask(CREATE, 1, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0), b"x\0")[0] == 30
    assert os.listdir(folder) == []


def test_nonsense_harms_nobody(folder):
    with Share(folder) as share:
        share.start()
        for readable, writable in (([b"x"], [16]), ([b"x" * 40], []), ([b"\xff" * 40], [16]), ([], [64])):
            share.guest.request(1, readable, writable)
        assert not share.guest.broken
        assert share.ask(GETATTR, 1, bytes(16))[0] == 0
        assert share.device.statistics()["malformed"] >= 3


def test_state_is_saved_with_the_card(folder):
    with Share(folder) as share:
        share.start()
        node, fh = share.create(b"file")
        (folder / "file").write_bytes(b"text")
        share.device.drain()
        state = share.device.save()
        other = Fs(share.spec, share.folder)
        with Bench(other) as bench:
            bench.driver()
            other.load(state)
            assert other.save() == state
            assert other.server.statistics()["open"] == 1


def test_a_queue_alone_is_reset(folder):
    with Share(folder) as share:
        share.start()
        share.guest.reset_queue(1)
        share.guest.queues[1] = share.guest.set_up(1)
        share.settle()
        assert share.ask(GETATTR, 1, bytes(16))[0] == 0


def test_the_thread_ends_with_the_card(folder):
    before = threading.active_count()
    share = Share(folder)
    share.start()
    share.close()
    end = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
