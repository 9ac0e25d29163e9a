"""Asynchronous file I/O, by io_uring and by threads: the same answers, many at once, and no other files."""

import errno
import os
import random
import resource
import select
import signal

import pytest

from hostel.base.aio import open_aio

KINDS = ["io_uring", "threads"]


@pytest.fixture(params=KINDS)
def make(request):
    """``make(fds, depth)`` an engine of one kind."""
    made = []

    def make_one(fds, depth=64):
        try:
            made.append(open_aio(fds, depth, request.param))
        except OSError as e:
            pytest.skip(f"this host has no {request.param}: {e.strerror}")
        return made[-1]

    yield make_one
    for engine in made:
        engine.close()


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def reap(engine, count):
    """That many completions, as a sleeping thread gets them."""
    done = {}
    while len(done) < count:
        while engine.submit_py():
            pass
        if not engine.arm_py():
            assert select.select([engine.event_fd], [], [], 30)[0], "nothing happens"
            os.eventfd_read(engine.event_fd)
        done.update(engine.reap_py())
    return done


def test_what_is_written_is_read(make, file):
    engine = make([file])
    held = engine.start_py("write", 0, [b"abc", b"", b"defg"], 4096, 7)
    assert held and reap(engine, 1) == {7: 7}
    buffers = [bytearray(2), bytearray(100)]
    held = engine.start_py("read", 0, buffers, 4097, 8)
    assert reap(engine, 1) == {8: 6}
    assert buffers == [b"bc", b"defg" + bytes(96)]
    assert engine.start_py("sync", 0, [], 0, 9) and reap(engine, 1) == {9: 0}
    assert held and os.pread(file, 7, 4096) == b"abcdefg"
    assert (engine.running, engine.started) == (0, 3)


def test_many_at_once_as_a_file_has_them(make, file):
    """As many as fit, on top of each other never; then all are read back by others."""
    engine = make([file], depth=1000)
    source = random.Random(5).randbytes(1000 * 512)
    parts = [memoryview(source)[i * 512 : (i + 1) * 512] for i in range(1000)]
    held = [engine.start_py("write", 0, [part[:100], part[100:]], i * 512, i) for i, part in enumerate(parts)]
    assert all(held)
    assert engine.start_py("read", 0, [bytearray(1)], 0, 5000) is None  # there is no room
    assert reap(engine, 1000) == dict.fromkeys(range(1000), 512)
    assert os.pread(file, len(source), 0) == source
    back = [bytearray(512) for _ in parts]
    held = [engine.start_py("read", 0, [buffer], i * 512, i) for i, buffer in enumerate(back)]
    assert reap(engine, 1000) == dict.fromkeys(range(1000), 512)
    assert held and b"".join(back) == source


def test_errors_come_as_results(make, file, tmp_path):
    readonly = os.open(tmp_path / "file", os.O_RDONLY)
    engine = make([readonly, file])
    os.close(readonly)  # the engine has its own
    held = [
        engine.start_py("write", 0, [b"x"], 0, 1), engine.start_py("read", 1, [bytearray(8)], 1 << 40, 2)
    ]
    assert reap(engine, 2) == {1: -errno.EBADF, 2: 0} and held
    assert engine.start_py("read", 1, [bytearray(8)], -1, 3) is None


def test_a_file_that_may_not_grow(make, file):
    engine = make([file])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
        held = [engine.start_py("write", 0, [bytes(8192)], at, at) for at in (0, 4096, 8192)]
        assert reap(engine, 3) == {0: 8192, 4096: 4096, 8192: -errno.EFBIG} and held
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


def test_other_files_are_not_reached(make, file):
    engine = make([file])
    other = os.memfd_create("other")
    for index in (1, other, -1, 1 << 30):
        assert engine.start_py("write", index, [b"x"], 0, 1) is None
    assert engine.running == 0
    os.close(other)


def test_closing_waits_for_what_is_under_way(make, file):
    engine = make([file])
    held = [engine.start_py("write", 0, [bytes([i]) * 65536], i * 65536, i) for i in range(32)]
    engine.close()
    assert all(held) and os.fstat(file).st_size == 32 * 65536
    assert engine.start_py("write", 0, [b"x"], 0, 1) is None


def test_direct_io(make, tmp_path):
    try:
        fd = os.open(tmp_path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError:
        pytest.skip("no O_DIRECT here")
    import mmap

    page = mmap.mmap(-1, 8192)
    page[:] = b"ab" * 4096
    engine = make([fd])
    held = engine.start_py("write", 0, [page], 0, 1)
    assert reap(engine, 1) == {1: 8192}
    back = mmap.mmap(-1, 8192)
    held = engine.start_py("read", 0, [back], 0, 2)
    assert reap(engine, 1) == {2: 8192} and held and back[:] == page[:]
    os.close(fd)


def test_restrictions_hold(file, tmp_path):
    """Even who writes entries of his own into the ring gets at nothing else: here a child does, with the system calls
    that the filter leaves it."""
    import subprocess
    import sys

    code = f"""
import ctypes, errno, os, select, struct
from hostel.base.aio import open_aio
fd = os.open({str(tmp_path / "file")!r}, os.O_RDWR | os.O_CREAT)
try:
    engine = open_aio([fd], 8, "io_uring")
except OSError as e:
    print("skip"); raise SystemExit
libc = ctypes.CDLL(None, use_errno=True)
there = [int(line.split("-")[0], 16) for line in open("/proc/self/maps") if "[io_uring]" in line]
tries = 0
def entry(opcode, flags, fd, off=0, addr=0, length=0):
    return struct.pack("<BBHiQQIIQQQQ", opcode, flags, 0, fd, off, addr, length, 0, 99, 0, 0, 0)
def attempt(sqe):
    # Have the engine fill its next entry, put another in its place, and submit that
    global tries
    place, tries = 64 * (tries % 8), tries + 1
    held = engine.start_py("read", 0, [bytearray(8)], 0, 1)
    entries = next(at for at in there if ctypes.string_at(at + place, 2) == b"\\x01\\x01")
    ctypes.memmove(entries + place, sqe, 64)
    engine.submit_py()
    while not (done := engine.reap_py()):
        pass
    assert done[0][0] == 99
    return done[0][1]
buffer = ctypes.create_string_buffer(64)
vector = ctypes.create_string_buffer(struct.pack("<QQ", ctypes.addressof(buffer), 8))
READV, OPENAT, SOCKET, CLOSE, NOP = 1, 18, 45, 19, 0
assert attempt(entry(READV, 1, 0, addr=ctypes.addressof(vector), length=1)) >= 0     # as the engine does
for what in (
    entry(READV, 0, fd, addr=ctypes.addressof(vector), length=1),      # a descriptor of the process
    entry(OPENAT, 1, 0), entry(OPENAT, 0, -100), entry(SOCKET, 1, 2), entry(SOCKET, 0, 2), entry(CLOSE, 1, 0),
    entry(NOP, 1, 0),
):
    assert attempt(what) == -errno.EACCES, what
assert libc.syscall(427, engine.fd, 2, ctypes.byref(ctypes.c_int(0)), 1) == -1      # other files
assert ctypes.get_errno() == errno.EACCES
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if done.stdout == "skip\n":
        pytest.skip("this host has no io_uring")
    assert (done.stdout, done.stderr) == ("ok\n", "")
