"""The FUSE server and a client that may say anything: requests as bytes, without a kernel between them."""

import contextlib
import errno
import gc
import os
import struct
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostel.devices.fuse.server import Server

ROOM = (1 << 20) + 4096
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK = (
    1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13
)  # fmt: skip
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT, OPENDIR = (
    14, 15, 16, 17, 18, 20, 21, 22, 23, 24, 25, 26, 27
)  # fmt: skip
READDIR, RELEASEDIR, CREATE, DESTROY, BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK, COPY, SYNCFS, TMPFILE = (
    28, 29, 35, 38, 42, 43, 44, 45, 46, 47, 50, 51
)  # fmt: skip


class Client:
    def __init__(self, folder, start=True, **options):
        self.server = Server(os.open(folder, os.O_PATH | os.O_DIRECTORY), **options)
        if start:
            self.call(INIT, 0, struct.pack("<IIII", 7, 36, 65536, 0xFFFFFFFF))

    def send(self, opcode, nodeid, payload=b"", room=ROOM, length=None):
        """The reply's error and what follows it; None where there is no reply."""
        size = 40 + len(payload) if length is None else length
        request = struct.pack("<IIQQIIIHH", size, opcode, 77, nodeid, 0, 0, 1, 0, 0) + payload
        reply = self.server.request(request, room)
        if not reply:
            return None
        size, error, unique = struct.unpack_from("<IiQ", reply)
        assert size == len(reply) and unique == 77 and -4096 < error <= 0
        return -error, reply[16:]

    def call(self, *args):
        error, data = self.send(*args)
        if error:
            raise OSError(error, os.strerror(error))
        return data

    def lookup(self, name, folder=1):
        return struct.unpack_from("<Q", self.call(LOOKUP, folder, os.fsencode(name) + b"\0"))[0]

    def open(self, nodeid, flags=os.O_RDONLY):
        return struct.unpack_from("<Q", self.call(OPEN, nodeid, struct.pack("<II", flags, 0)))[0]

    def create(self, name, folder=1, mode=0o644):
        data = self.call(CREATE, folder, struct.pack("<IIII", os.O_RDWR, mode, 0, 0) + os.fsencode(name) + b"\0")
        return struct.unpack_from("<Q", data)[0], struct.unpack_from("<Q", data, 128)[0]

    def mkdir(self, name, folder=1):
        return struct.unpack_from("<Q", self.call(MKDIR, folder, struct.pack("<II", 0o755, 0) + name + b"\0"))[0]

    def read(self, nodeid, fh, size=4096, offset=0):
        return self.call(READ, nodeid, struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0))


def descriptors():
    gc.collect()  # what earlier tests left would go in the midst of this one
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "outside").write_text("outside")
    return tmp_path / "share"


def test_names_lead_nowhere_else(folder):
    os.symlink("..", folder / "up")
    os.symlink("/etc", folder / "etc")
    os.symlink("../outside", folder / "file")
    client = Client(folder)
    for name in ("..", ".", "", "a/b", "../outside", "/etc/passwd", "up/outside"):
        for opcode, head in ((LOOKUP, b""), (UNLINK, b""), (MKDIR, bytes(8)), (CREATE, bytes(16)), (MKNOD, bytes(16))):
            assert client.send(opcode, 1, head + os.fsencode(name) + b"\0")[0] == errno.EINVAL
    assert client.send(LOOKUP, 1, b"no end")[0] == errno.EINVAL
    for name in ("up", "etc", "file"):
        link = client.lookup(name)
        for opcode, payload, error in (
            (LOOKUP, b"outside\0", errno.ENOTDIR), (OPEN, bytes(8), errno.EOPNOTSUPP),
            (OPENDIR, bytes(8), errno.EINVAL), (CREATE, struct.pack("<IIII", 2, 0o644, 0, 0) + b"new\0", errno.ENOTDIR),
        ):  # fmt: skip
            assert client.send(opcode, link, payload)[0] == error
    # A name that is taken by a link isn't followed either.
    with pytest.raises(OSError) as refusal:
        client.create("file")
    assert refusal.value.errno in (errno.EEXIST, errno.ELOOP)
    assert (folder.parent / "outside").read_text() == "outside"


def test_what_took_a_files_place_is_not_opened(folder):
    (folder / "d").mkdir()
    (folder / "d" / "f").write_text("mine")
    (folder.parent / "f").write_text("another's")
    client = Client(folder)
    d = client.lookup("d")
    f = client.lookup("f", d)
    os.rename(folder / "d" / "f", folder / "d" / "g")
    os.symlink("../../f", folder / "d" / "f")
    assert client.send(OPEN, f, bytes(8))[0] == errno.ESTALE
    os.unlink(folder / "d" / "f")
    os.mkfifo(folder / "d" / "f")
    assert client.send(OPEN, f, bytes(8))[0] == errno.ESTALE
    assert client.send(GETATTR, f, bytes(16))[0] == errno.ESTALE
    assert client.send(OPEN, client.lookup("f", d), bytes(8))[0] == errno.EOPNOTSUPP  # FIFOs are the client's business
    g = client.lookup("g", d)
    assert g == f  # the same file under its new name
    assert client.read(g, client.open(g)) == b"mine"


def test_a_folder_swapped_for_a_link_again_and_again(folder):
    """A racer on the host: what the client makes and opens must be in the share all the same."""
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    (outside / "x").write_text("secret")
    (folder / "d").mkdir()
    (folder / "d" / "x").write_text("public")
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(folder / "d", folder / "real")
            os.symlink(outside, folder / "d")
            os.unlink(folder / "d")
            os.rename(folder / "real", folder / "d")

    racer = threading.Thread(target=swap)
    racer.start()
    try:
        for i in range(2000):
            if i % 50 == 0:
                client = Client(folder)
            with contextlib.suppress(OSError):
                d = client.lookup("d")
                x = client.lookup("x", d)
                assert client.read(x, client.open(x)) == b"public"
                client.create(f"new{i % 10}", d)
    finally:
        stop.set()
        racer.join()
    assert os.listdir(outside) == ["x"] and (outside / "x").read_text() == "secret"


def test_numbers_that_mean_nothing(folder):
    (folder / "f").write_text("x")
    client = Client(folder)
    f = client.lookup("f")
    fh = client.open(f)
    for nodeid in (0, 99, 1 << 40, (1 << 64) - 1):
        for opcode in (GETATTR, LOOKUP, OPEN, READ, READDIR, UNLINK):
            assert client.send(opcode, nodeid, bytes(40))[0] == errno.ESTALE
    for bad in (0, fh + 1, 1 << 31, (1 << 64) - 1):
        assert client.send(READ, f, struct.pack("<QQIIQII", bad, 0, 9, 0, 0, 0, 0))[0] == errno.EBADF
    assert client.send(READ, 1, struct.pack("<QQIIQII", fh, 0, 9, 0, 0, 0, 0))[0] == errno.EBADF  # another's
    assert client.send(READDIR, f, struct.pack("<QQIIQII", fh, 0, 9, 0, 0, 0, 0))[0] == errno.EBADF
    assert client.send(WRITE, f, struct.pack("<QQIIQII", fh, 0, 1, 0, 0, 0, 0) + b"y")[0] == errno.EBADF  # not for that
    client.send(FORGET, f, struct.pack("<Q", 1 << 63))
    assert client.send(GETATTR, f, bytes(16))[0] == errno.ESTALE
    client.send(FORGET, 1, struct.pack("<Q", 1 << 63))
    client.call(GETATTR, 1, bytes(16))
    assert client.send(200, 1)[0] == errno.ENOSYS
    assert client.server.request(b"short", ROOM) == b""
    assert client.send(GETATTR, 1, bytes(16), 15) is None
    assert client.send(GETATTR, 1, bytes(16), 40)[0] == errno.ERANGE
    assert client.send(GETATTR, 1, bytes(16), ROOM, 1000)[0] == errno.EINVAL
    assert client.server.statistics()["malformed"] == 3


def test_start(folder):
    client = Client(folder, start=False)
    assert client.send(GETATTR, 1, bytes(16))[0] == errno.EIO
    assert client.send(INIT, 0, struct.pack("<IIII", 7, 23, 0, 0))[0] == errno.EIO
    data = client.call(INIT, 0, struct.pack("<IIII", 8, 0, 0, 0))
    assert struct.unpack_from("<II", data) == (7, 38)
    data = client.call(INIT, 0, struct.pack("<IIII", 7, 31, 4096, 1 << 5 | 1 << 22 | 1 << 16))
    major, minor, ahead, flags, _, _, write, _, pages = struct.unpack_from("<IIIIHHIIH", data)
    assert (major, minor, ahead, flags, write, pages) == (7, 38, 4096, 1 << 5 | 1 << 22, 1 << 20, 256)
    # Another INIT is another client: what the first knew is gone.
    client.create("f")
    client.call(INIT, 0, struct.pack("<IIII", 7, 31, 4096, 0))
    assert client.server.statistics()["open"] == 0 and client.server.statistics()["inodes"] == 1


def test_bounds(folder):
    before = descriptors()
    client = Client(folder, inodes=20, descriptors=16, files=10)
    for i in range(19):
        client.mkdir(b"%d" % i)
    assert client.send(MKDIR, 1, bytes(8) + b"more\0")[0] == errno.ENFILE
    for i in range(10):
        client.call(OPENDIR, 2 + i, bytes(8))
    assert client.send(OPENDIR, 1, bytes(8))[0] == errno.ENFILE
    assert descriptors() - before <= 16 + 10
    client.server.reset()
    assert descriptors() - before <= 2
    del client
    assert descriptors() == before


def test_deep_folders_are_reached_again(folder):
    client = Client(folder, descriptors=16)
    at = 1
    ids = []
    for _ in range(200):
        at = client.mkdir(b"d", at)
        ids.append(at)
    for nodeid in (ids[150], ids[3], ids[199], ids[40]):
        client.call(GETATTR, nodeid, bytes(16))
        client.call(STATFS, nodeid)
        client.create("f", nodeid)
    assert client.server.statistics()["descriptors"] <= 16


def test_listing_goes_on_where_it_stopped(folder):
    names = {f"name-{i}" for i in range(2000)}
    for name in names:
        (folder / name).touch()
    client = Client(folder)
    fh = struct.unpack_from("<Q", client.call(OPENDIR, 1, bytes(8)))[0]

    def listing(opcode, skip, size, offset=0):
        out = []
        while data := client.call(opcode, 1, struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0)):
            at = 0
            while at < len(data):
                _, offset, length, _ = struct.unpack_from("<QQII", data, at + skip)
                out.append((data[at + skip + 24 : at + skip + 24 + length].decode(), offset))
                at += (skip + 24 + length + 7) & ~7
        return out

    for opcode, skip in ((READDIR, 0), (READDIRPLUS, 128)):
        for size in (300, 4096, 65536):
            out = listing(opcode, skip, size)
            assert {name for name, _ in out} == names | {".", ".."} and len(out) == 2002
    # from the middle, as after seekdir
    assert [name for name, _ in listing(READDIR, 0, 4096, out[999][1])] == [name for name, _ in out[1000:]]
    assert client.send(READDIR, 1, struct.pack("<QQIIQII", fh, 0, 8, 0, 0, 0, 0))[0] == errno.EINVAL


def test_state_is_saved_and_loaded(folder):
    client = Client(folder)
    d = client.mkdir(b"d")
    f, fh = client.create("f", d)
    client.call(WRITE, f, struct.pack("<QQIIQII", fh, 0, 4, 0, 0, 0, 0) + b"text")
    g, gh = client.create("gone", d)
    client.call(UNLINK, d, b"gone\0")
    state = client.server.save()
    before = descriptors()
    other = Client(folder, start=False)
    other.server.load(state)
    assert other.read(f, fh) == b"text"
    other.call(WRITE, f, struct.pack("<QQIIQII", fh, 4, 1, 0, 0, 0, 0) + b"!")
    assert (folder / "d" / "f").read_text() == "text!"
    assert other.lookup("d") == d and other.lookup("f", d) == f
    # What had no name is lost, and said so.
    assert other.send(GETATTR, g, bytes(16))[0] == errno.ESTALE
    assert other.send(READ, g, struct.pack("<QQIIQII", gh, 0, 4, 0, 0, 0, 0))[0] == errno.EBADF
    other.call(RELEASE, g, struct.pack("<QIIQ", gh, 0, 0, 0))
    assert other.mkdir(b"e") not in (d, f, g)
    with pytest.raises(ValueError, match="version 9"):
        other.server.load({**state, "version": 9})
    del other
    assert descriptors() == before


NODE = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 1 << 33, (1 << 64) - 1])
NUMBER = st.sampled_from([0, 1, 2, 3, 4, 7, 4096, 1 << 20, 1 << 31, (1 << 32) - 1])
NAME = st.sampled_from([b"a", b"b", b"c", b"d", b"link", b"..", b".", b"", b"x/y", b"../outside", b"n" * 256, b"\xff"])
WORDS = st.lists(st.one_of(NUMBER, st.integers(0, (1 << 32) - 1)), max_size=24).map(
    lambda words: struct.pack(f"<{len(words)}I", *words)
)
FIXED = {  # opcode: the size of what comes before its names
    LOOKUP: 0, SYMLINK: 0, MKNOD: 16, MKDIR: 8, UNLINK: 0, RMDIR: 0, RENAME: 8, RENAME2: 16, LINK: 8, CREATE: 16,
    TMPFILE: 16, SETXATTR: 8, GETXATTR: 8, REMOVEXATTR: 0,
}  # fmt: skip


@st.composite
def requests(draw):
    opcode = draw(st.one_of(st.sampled_from(sorted({*FIXED, *range(1, 52)} - {INIT, SYNCFS})), st.integers(0, 4200)))
    node = draw(NODE)
    if opcode in FIXED:
        head = draw(WORDS)[: FIXED[opcode]]
        if draw(st.integers(0, 3)):
            head = head.ljust(FIXED[opcode], b"\0")
        if opcode in (RENAME, RENAME2, LINK):
            head = struct.pack("<Q", draw(NODE)) + head[8:]
        payload = head + draw(NAME) + b"\0" * draw(st.integers(0, 1)) + draw(NAME) + b"\0" * draw(st.integers(0, 1))
    else:
        payload = struct.pack("<Q", draw(NODE)) + draw(WORDS)
    return opcode, node, payload, draw(st.sampled_from([ROOM, 16, 17, 56, 200, 4096])), draw(st.integers(0, 30))


@settings(max_examples=int(os.environ.get("FUSE_FUZZ", "60")), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(requests(), max_size=60), st.booleans())
def test_anything_may_be_asked(asked, readonly):
    with tempfile.TemporaryDirectory() as base:
        share, outside = Path(base, "share"), Path(base, "outside")
        share.mkdir()
        outside.write_text("outside")
        (share / "a").write_text("text")
        (share / "b").mkdir()
        (share / "b" / "c").write_text("text")
        os.symlink("../outside", share / "link")
        os.mkfifo(share / "d")
        before = descriptors()
        client = Client(share, readonly=readonly, inodes=100, descriptors=8, files=8)
        for name in ("a", "b", "link", "d"):
            client.lookup(name)
        client.open(2)
        client.call(OPENDIR, 3, bytes(8))
        for opcode, node, payload, room, cut in asked:
            client.send(opcode, node, payload if cut else payload[:-3], room)
            if not client.server.started:  # DESTROY
                client.call(INIT, 0, struct.pack("<IIII", 7, 36, 0, 0))
        assert descriptors() - before <= 8 + 8
        assert os.listdir(base) in (["share", "outside"], ["outside", "share"]) and outside.read_text() == "outside"
        assert outside.stat().st_nlink == 1
        if readonly:
            assert (share / "a").read_text() == "text" and sorted(os.listdir(share)) == ["a", "b", "d", "link"]
        client.server.reset()
        assert client.server.statistics()["inodes"] == 1 and client.server.statistics()["open"] == 0
        del client
        assert descriptors() == before
