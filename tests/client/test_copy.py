"""hostel cp: the agent's end as a process of the host's (vm/fake_worker), so that two folders stand for both worlds."""

import io
import os
import random
import stat
import subprocess
import sys
import tarfile

import pytest

from hostel.base.errors import MachineError
from hostel.client import copy
from hostel.client.copy import DATA, END, FILE, FILE_END, FOLDER, LEAVE, LINK, SAME_FILE, Entry, Reader, ToFolder, ToTar


@pytest.fixture
def vm(start):
    return start(agent=True)


@pytest.fixture
def tree(tmp_path):
    """Files of all sorts."""
    top = tmp_path / "tree"
    (top / "empty").mkdir(parents=True)
    (top / "deep/er/still").mkdir(parents=True)
    (top / "deep/er/still/file").write_bytes(random.Random(1).randbytes(300_001))
    (top / "nothing").write_bytes(b"")
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o751)
    (top / "ü\n name").write_text("odd")
    os.symlink("deep/er", top / "link")
    os.symlink("/no/such", top / "dangling")
    with open(top / "sparse", "wb") as file:
        file.seek(50 << 20)
        file.write(b"x" * 5000)
        file.truncate(200 << 20)
    for path in (top / "run", top / "deep/er", top / "link"):
        os.utime(path, ns=(1_000_000_007, 1_234_567_890_123_456_789), follow_symlinks=False)
    os.utime(top, ns=(0, 1_000_000_000_000_000_001))
    (top / "deep").chmod(0o2750)
    (top / "deep").chmod(0o750)
    return top


def looks(top):
    """What two copies must agree in."""
    found = {}
    for root, folders, files in os.walk(top):
        for name in [".", *folders, *files]:
            path = os.path.join(root, name)
            s = os.lstat(path)
            what = b""
            if stat.S_ISLNK(s.st_mode):
                what = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(s.st_mode):
                with open(path, "rb") as file:
                    what = file.read(1 << 20) + os.pread(file.fileno(), 9999, 50 << 20)
            size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
            found[os.path.relpath(path, top)] = (s.st_mode, s.st_uid, s.st_gid, size, s.st_mtime_ns, what)
    return found


def test_a_tree_goes_in_and_out_and_is_the_same(vm, tree, tmp_path):
    if os.geteuid() == 0:
        os.chown(tree / "run", 12345, 54321)
        os.lchown(tree / "link", 12345, 54321)
    vm.copy_in(str(tree), str(tmp_path / "inside"))
    assert looks(tmp_path / "inside") == looks(tree)
    assert os.stat(tmp_path / "inside/sparse").st_blocks * 512 < 1 << 20
    vm.copy_out(str(tmp_path / "inside"), str(tmp_path / "outside"))
    assert looks(tmp_path / "outside") == looks(tree)
    assert os.stat(tmp_path / "outside/sparse").st_blocks * 512 < 1 << 20


def test_names_are_as_podmans(vm, tmp_path):
    (tmp_path / "file").write_text("1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_text("2")
    inside, out = tmp_path / "inside", tmp_path / "out"
    for made in (inside, out):
        made.mkdir()
    for give, top in ((vm.copy_in, inside), (vm.copy_out, out)):
        give(str(tmp_path / "file"), str(top))
        give(str(tmp_path / "file"), str(top / "renamed"))
        give(str(tmp_path / "folder"), str(top))
        give(str(tmp_path / "folder"), str(top / "new"))
        give(f"{tmp_path}/folder/.", str(top))
        give(f"{tmp_path}/folder/.", str(top / "other"))
        with pytest.raises(MachineError):
            give(str(tmp_path / "file"), f"{top}/none/")
        with pytest.raises(MachineError):
            give(str(tmp_path / "file"), str(top / "none/file"))
        with pytest.raises(MachineError):
            give(str(tmp_path / "folder"), str(top / "file"))
        with pytest.raises(MachineError, match="no-such"):
            give(str(tmp_path / "no-such"), str(top))
        names = sorted(str(path.relative_to(top)) for path in top.rglob("*"))
        assert names == ["a", "file", "folder", "folder/a", "new", "new/a", "other", "other/a", "renamed"]


def test_an_existing_folder_keeps_its_mode_and_a_file_is_replaced(vm, tmp_path):
    (tmp_path / "from").mkdir(0o700)
    (tmp_path / "from/file").write_text("new")
    for top, give in ((tmp_path / "in", vm.copy_in), (tmp_path / "out", vm.copy_out)):
        (top / "from").mkdir(parents=True)
        (top / "from").chmod(0o755)
        (top / "from/file").write_text("old and longer")
        (top / "from/stays").write_text("stays")
        give(str(tmp_path / "from"), str(top))
        assert stat.S_IMODE((top / "from").stat().st_mode) == 0o755
        assert (top / "from/file").read_text() == "new" and (top / "from/stays").read_text() == "stays"


def test_hard_links_go_in_as_such(vm, tmp_path):
    (tmp_path / "from/sub").mkdir(parents=True)
    (tmp_path / "from/sub/a").write_text("one")
    os.link(tmp_path / "from/sub/a", tmp_path / "from/z")
    vm.copy_in(str(tmp_path / "from"), str(tmp_path / "to"))
    assert (tmp_path / "to/z").samefile(tmp_path / "to/sub/a")
    vm.copy_in(str(tmp_path / "from"), str(tmp_path / "to"))
    vm.copy_in(str(tmp_path / "from/."), str(tmp_path / "to"))
    assert sorted(os.listdir(tmp_path / "to")) == ["from", "sub", "z"]
    vm.copy_out(str(tmp_path / "to"), str(tmp_path / "back"))
    assert (tmp_path / "back/z").read_text() == "one"


def test_what_a_guest_cant_read_or_write_is_one_line(vm, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("whole")
    with pytest.raises(MachineError, match="No such file"):
        vm.copy_out(str(tmp_path / "none"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(MachineError, match="can't write"):
        vm.copy_in(str(tmp_path / "a/file"), "/proc/none")
    with pytest.raises(MachineError, match="can't read"):
        vm.copy_in(str(tmp_path / "none"), str(tmp_path))
    vm.kill()
    with pytest.raises(MachineError, match="not running"):
        vm.copy_in(str(tmp_path / "a"), "/x")


def tar_of(members):
    """An archive; members are (name, type, content or target)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = kind, 0o640 if kind == tarfile.REGTYPE else 0o755, 1_000_000
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            elif kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content
            archive.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return file.getvalue()


def test_a_tar_archive_goes_in_by_the_command(vm, tmp_path):
    archive = tar_of([
        ("./top/sub/file", tarfile.REGTYPE, b"x" * 70_000), ("top", tarfile.DIRTYPE, None),
        ("other", tarfile.REGTYPE, b"o"), ("top/sub/two", tarfile.REGTYPE, bytes(200_000)),
        ("top/link", tarfile.SYMTYPE, "sub/file"), ("hard", tarfile.LNKTYPE, "top/sub/file"),
    ])  # fmt: skip
    (tmp_path / "in").mkdir()
    command = [sys.executable, "-m", "hostel.cli.main", "cp", "-", f"{vm.name}:{tmp_path}/in"]
    done = subprocess.run(command, input=archive, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    top = tmp_path / "in"
    assert (top / "top/sub/file").read_bytes() == b"x" * 70_000 and (top / "hard").samefile(top / "top/sub/file")
    assert (top / "top/sub/two").read_bytes() == bytes(200_000) and (top / "top/link").read_text() == "x" * 70_000
    assert (top / "other").stat().st_mtime == 1_000_000 and stat.S_IMODE((top / "other").stat().st_mode) == 0o640
    for bad, why in ((b"no tar", b"no tar archive"), (tar_of([("../x", tarfile.REGTYPE, b"")]), b"leads out")):
        done = subprocess.run(command, input=bad, capture_output=True)
        assert done.returncode == 125 and why in done.stderr and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_tree_comes_out_as_a_tar_archive(vm, tree, tmp_path):
    command = [sys.executable, "-m", "hostel.cli.main", "cp", f"{vm.name}:{tree}", "-"]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(tmp_path / "x", filter="fully_trusted")
    assert {path: look[:4] + look[5:] for path, look in looks(tmp_path / "x/tree").items()} == {
        path: look[:4] + look[5:] for path, look in looks(tree).items()
    }


def test_a_copy_that_breaks_off_leaves_nothing_under_the_name(vm, tmp_path, monkeypatch):
    (tmp_path / "big").write_bytes(bytes(range(256)) * 40_000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/big").write_text("the old one")

    def cut(path):
        yield Entry(FILE, size=10_240_000, mode=0o100644).pack()
        yield Entry(DATA, size=5).pack() + b"12345"
        raise OSError(5, "Input/output error", "big")

    monkeypatch.setattr(copy, "walk", cut)
    with pytest.raises(MachineError, match="can't read big"):
        vm.copy_in(str(tmp_path / "big"), str(tmp_path / "in"))
    assert os.listdir(tmp_path / "in") == ["big"] and (tmp_path / "in/big").read_text() == "the old one"


# -- what a hostile guest may send


def received(entries, top):
    """Feed a stream, a byte at a time in places, to the host's receiver."""
    data = b"".join(entry.pack() if isinstance(entry, Entry) else entry for entry in entries)
    sink = ToFolder(str(top), "copy")
    reader = Reader(sink)
    try:
        for at in range(0, len(data), 61):
            reader.feed(data[at : at + 61])
    finally:
        sink.close()
    return reader


FILES = [Entry(FILE, b"f", size=3, mode=0o100644), Entry(DATA, size=3), b"abc", Entry(FILE_END)]


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(FOLDER), Entry(FOLDER, b".."), Entry(FILE, b"f")],
        [Entry(FOLDER), Entry(FILE, b"../f", size=1)],
        [Entry(FOLDER), Entry(FILE, b"/etc/f", size=1)],
        [Entry(FOLDER), Entry(FILE, b".", size=1)],
        [Entry(FOLDER), Entry(FILE, b"", size=1)],
        [Entry(FOLDER), Entry(FILE, b"a\0b", size=1)],
        [Entry(FOLDER), Entry(LINK, b"x/y", b"/etc")],
        [Entry(FOLDER), Entry(LEAVE), Entry(LEAVE)],
        [Entry(FOLDER), Entry(LEAVE), Entry(FILE)],
        [Entry(FILE, size=3), Entry(DATA, size=4), b"abcd"],
        [Entry(FILE, size=3), Entry(DATA, size=1, seconds=3), b"a"],
        [Entry(FILE, size=3), Entry(DATA, size=1, seconds=-1), b"a"],
        [Entry(FILE, size=1 << 40), Entry(DATA, size=1 << 30)],
        [Entry(FILE, size=1 << 63)],
        [Entry(FILE, size=3), Entry(FILE, size=3)],
        [Entry(FILE, size=3), Entry(END)],
        [Entry(DATA, size=3)],
        [Entry(FILE_END)],
        [Entry(FOLDER), Entry(SAME_FILE, b"a", b"../../etc/passwd")],
        [Entry(0)],
        [Entry(77)],
        [Entry(FOLDER)] + [Entry(FOLDER, b"d")] * 600,
        [Entry(FOLDER, b"x", mode=0o40755, seconds=1 << 62)],
        [Entry(FOLDER), Entry(END)],
        [Entry(FILE, mode=0o100644, nanoseconds=4_000_000_000)],
        [b"\x02" + b"\xff" * 100],
    ],
)
def test_nonsense_from_a_guest_ends_the_copy_and_nothing_is_outside(entries, tmp_path):
    (tmp_path / "to").mkdir()
    with pytest.raises(MachineError, match="makes no sense"):
        received(entries, tmp_path / "to")
    assert os.listdir(tmp_path) == ["to"]
    assert set(os.listdir(tmp_path / "to")) <= {"copy"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_link_on_the_way_isnt_followed(tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "away").mkdir()
    link = [Entry(FOLDER, mode=0o40755), Entry(LINK, b"way", os.fsencode(tmp_path / "away"))]
    with pytest.raises(OSError):
        received([*link, Entry(FOLDER, b"way", mode=0o40755), *FILES], tmp_path / "to")
    assert os.listdir(tmp_path / "away") == []
    # a file in a link's place replaces the link
    reader = received([*link, Entry(FILE, b"way", size=3, mode=0o100644), *FILES[1:], Entry(LEAVE), Entry(END)],
                      tmp_path / "to")  # fmt: skip
    assert reader.ended and (tmp_path / "to/copy/way").read_text() == "abc"
    assert not (tmp_path / "to/copy/way").is_symlink() and os.listdir(tmp_path / "away") == []


def test_nothing_runs_as_another_and_no_devices_come_out(tmp_path, capsys):
    entries = [
        Entry(FOLDER, mode=0o46755), Entry(FILE, b"su", size=3, mode=0o106755), *FILES[1:],
        Entry(copy.NODE, b"sda", mode=stat.S_IFBLK | 0o666, device=0x800), Entry(LEAVE), Entry(END),
    ]  # fmt: skip
    assert received(entries, tmp_path).ended
    assert stat.S_IMODE((tmp_path / "copy/su").stat().st_mode) == 0o755
    assert os.listdir(tmp_path / "copy") == ["su"] and stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o755
    assert "sda" in capsys.readouterr().err


def test_a_tar_of_a_hostile_guest_has_no_paths_that_lead_out(tmp_path):
    out = io.BytesIO()
    reader = Reader(ToTar(out, "root"))
    reader.feed(Entry(FOLDER, mode=0o40755).pack())
    with pytest.raises(MachineError):
        reader.feed(Entry(FILE, b"../../x", size=0).pack())
    reader = Reader(ToTar(io.BytesIO(), "root"))
    with pytest.raises(MachineError):  # backwards in a file
        for entry in (Entry(FILE, size=9), Entry(DATA, size=3, seconds=3), b"abc", Entry(DATA, size=3), b"abc"):
            reader.feed(entry.pack() if isinstance(entry, Entry) else entry)


def test_a_files_rest_after_an_error_isnt_taken_for_it(tmp_path):
    entries = [Entry(FILE, size=10, mode=0o100644), Entry(DATA, size=3), b"abc", Entry(copy.ERROR, b"f", device=5),
               Entry(FILE_END), Entry(END)]  # fmt: skip
    reader = received(entries, tmp_path)
    assert reader.complaints and os.listdir(tmp_path) == []
