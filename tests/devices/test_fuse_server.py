"""The FUSE server with the host's kernel as its client, doing what programs do in a folder."""

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fuse_mount import libc, mounted


@pytest.fixture
def share(tmp_path):
    with mounted(tmp_path) as share:
        yield share


def refused(error, what, *args, **options):
    with pytest.raises(OSError) as caught:
        what(*args, **options)
    assert caught.value.errno == error, caught.value


def shell(folder, script):
    done = subprocess.run(["sh", "-ec", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- programs


def test_archives_and_copies_are_the_same(share):
    source = Path(os.__file__).parent
    shell(share.guest, f"tar cf - -C {source} json email logging | tar xf -; cp -a email copy; mv logging moved")
    for name, original in (("json", "json"), ("email", "email"), ("copy", "email"), ("moved", "logging")):
        for path in sorted((source / original).rglob("*")):
            theirs = share.guest / name / path.relative_to(source / original)
            assert theirs.lstat().st_mode == path.lstat().st_mode
            if path.is_file():
                assert theirs.read_bytes() == path.read_bytes()
                assert theirs.stat().st_mtime == path.stat().st_mtime
                assert (share.host / name / path.relative_to(source / original)).read_bytes() == path.read_bytes()
    shell(share.guest, "rm -r json email copy moved")
    assert list(share.host.iterdir()) == []


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_git(share):
    out = shell(share.guest, """
        git init -q r && cd r && git config user.email a@b && git config user.name a
        for i in 1 2 3 4 5 6 7 8 9; do mkdir d$i; for j in 1 2 3 4 5; do echo $i$j > d$i/f$j; done; done
        git add . && git commit -qm one && git mv d1 e1 && echo x >> d2/f1 && git commit -qam two
        git fsck --strict 2>&1; git gc -q; git status --porcelain; git log --format=%s
        cd .. && git clone -q r s && diff -r -x .git r s && echo same
    """)
    assert out.split() == ["two", "one", "same"]


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("make")), reason="there is no compiler")
def test_make(share):
    (share.guest / "Makefile").write_text(
        "prog: a.o b.o\n\tgcc -o $@ $^\n%.o: %.c x.h\n\tgcc -c -o $@ $<\nclean:\n\trm -f *.o prog\n"
    )
    (share.guest / "x.h").write_text("int b(void);\n")
    (share.guest / "a.c").write_text('#include "x.h"\nint main(void) { return b(); }\n')
    (share.guest / "b.c").write_text('#include "x.h"\nint b(void) { return 7; }\n')
    shell(share.guest, "make -s -j2")
    assert subprocess.run([share.guest / "prog"]).returncode == 7
    assert "up to date" in shell(share.guest, "make prog")
    (share.guest / "b.c").write_text('#include "x.h"\nint b(void) { return 8; }\n')
    shell(share.guest, "make -s")
    assert subprocess.run([share.guest / "prog"]).returncode == 8
    assert subprocess.run([share.host / "prog"]).returncode == 8


# -- what POSIX says of names


def test_names(share):
    folder = share.guest
    (folder / "a").write_text("a")
    (folder / "d").mkdir()
    (folder / "d" / "x").write_text("x")
    refused(errno.ENOENT, os.stat, folder / "none")
    refused(errno.ENOTDIR, os.stat, folder / "a" / "b")
    refused(errno.ENAMETOOLONG, os.stat, folder / ("n" * 256))
    (folder / ("n" * 255)).write_text("")
    refused(errno.EEXIST, os.mkdir, folder / "a")
    refused(errno.EEXIST, os.open, folder / "a", os.O_CREAT | os.O_EXCL)
    refused(errno.ENOTEMPTY, os.rmdir, folder / "d")
    refused(errno.ENOTDIR, os.rmdir, folder / "a")
    refused(errno.EISDIR, os.unlink, folder / "d")
    refused(errno.EISDIR, os.rename, folder / "a", folder / "d")
    refused(errno.ENOTDIR, os.rename, folder / "d", folder / "a")
    refused(errno.EINVAL, os.rename, folder / "d", folder / "d" / "e")
    refused(errno.EPERM, os.link, folder / "d", folder / "e")
    refused(errno.EEXIST, os.link, folder / "a", folder / "d" / "x")
    refused(errno.EPERM, os.mknod, folder / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    refused(errno.EISDIR, os.open, folder / "d", os.O_WRONLY)
    os.rename(folder / "a", folder / "d" / "x")
    assert (folder / "d" / "x").read_text() == "a" and not (folder / "a").exists()
    assert sorted(os.listdir(folder)) == ["d", "n" * 255]
    for name in ("ü", "a b", "\n", "-", ".hidden", b"\xff\xfe"):
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        assert os.fsencode(name) in os.listdir(os.fsencode(folder))
        assert os.path.exists(os.path.join(os.fsencode(share.host), os.fsencode(name)))


def test_rename_exchanges_and_refuses_to_replace(share):
    (share.guest / "a").write_text("a")
    (share.guest / "b").write_text("b")

    def renameat2(flags):
        if libc.renameat2(-100, bytes(share.guest / "a"), -100, bytes(share.guest / "b"), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    refused(errno.EEXIST, renameat2, 1)
    renameat2(2)
    assert (share.guest / "a").read_text() == "b" and (share.guest / "b").read_text() == "a"
    assert (share.host / "a").read_text() == "b"


def test_hard_links(share):
    a, b = share.guest / "a", share.guest / "b"
    a.write_text("one")
    os.link(a, b)
    assert a.stat().st_ino == b.stat().st_ino and a.stat().st_nlink == 2
    b.write_text("two")
    assert a.read_text() == "two"
    a.unlink()
    assert b.read_text() == "two" and b.stat().st_nlink == 1
    os.link(b, a)
    os.rename(a, b)  # two names of one file: nothing happens
    assert a.exists() and b.exists()
    os.symlink("a", share.guest / "s")
    os.link(share.guest / "s", share.guest / "t", follow_symlinks=False)
    assert os.readlink(share.guest / "t") == "a"


def test_files_without_a_name(share):
    a = share.guest / "a"
    a.write_bytes(b"one")
    os.link(a, share.guest / "b")
    with open(a, "r+b") as file:
        a.unlink()
        (share.guest / "b").unlink()
        a.write_bytes(b"another")
        assert file.read() == b"one" and os.fstat(file.fileno()).st_nlink == 0
        file.write(b" two")
        os.fchmod(file.fileno(), 0o640)
        file.truncate(5)
        file.seek(0)
        assert file.read() == b"one t" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o640
    assert a.read_bytes() == b"another"
    (share.guest / "d").mkdir()
    fd = os.open(share.guest / "d", os.O_RDONLY)
    (share.guest / "d").rmdir()
    assert os.listdir(fd) == []
    refused(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.close(fd)
    with open(a, "rb") as file:  # replaced by another
        (share.guest / "c").write_bytes(b"new")
        os.rename(share.guest / "c", a)
        assert file.read() == b"another" and a.read_bytes() == b"new"


def test_unnamed_files(share):
    fd = os.open(share.guest, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"text")
    assert list(share.guest.iterdir()) == []
    assert libc.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, bytes(share.guest / "named"), 0x400) == 0
    os.close(fd)
    assert (share.guest / "named").read_bytes() == b"text"


def test_large_folders(share):
    names = {f"file-{i:05}" for i in range(5000)}
    for name in names:
        (share.host / name).touch()
    assert set(os.listdir(share.guest)) == names
    assert {entry.name for entry in os.scandir(share.guest) if entry.stat(follow_symlinks=False).st_size == 0} == names
    seen = set()
    for name in os.listdir(share.guest):  # removed while it is listed
        seen.add(name)
        os.unlink(share.guest / name)
    assert seen == names and os.listdir(share.host) == []
    deep = share.guest
    for _ in range(100):
        deep = deep / "d"
        deep.mkdir()
    (deep / "end").write_text("x")
    assert len(list(share.guest.rglob("*"))) == 101


# -- contents


def test_contents_agree_with_a_plain_file(share, tmp_path):
    """fsx: random reads, writes, truncations, holes and mappings of two files, one of them in the share."""
    order = random.Random(5)
    mine, plain = share.guest / "file", tmp_path / "plain"
    files = [open(path, "w+b", buffering=0) for path in (mine, plain)]
    for _ in range(1500):
        at, size = order.randrange(300_000), order.choice((1, 100, 4096, 70_000, order.randrange(1, 200_000)))
        data = order.randbytes(size)
        what = order.choice(("write", "read", "read", "truncate", "append", "allocate", "punch", "map", "again"))
        if what == "write":
            assert [os.pwrite(f.fileno(), data, at) for f in files] == [size, size]
        elif what == "read":
            assert os.pread(files[0].fileno(), size, at) == os.pread(files[1].fileno(), size, at)
        elif what == "truncate":
            [f.truncate(at) for f in files]
        elif what == "append":
            for path in (mine, plain):
                with open(path, "ab") as file:
                    file.write(data[:5000])
        elif what in ("allocate", "punch"):
            mode = 0 if what == "allocate" else 3
            results = [libc.fallocate64(f.fileno(), mode, at, size) for f in map(_int64, files)]
            assert results == [0, 0]
        elif what == "map" and os.path.getsize(plain):
            for f in files:
                with mmap.mmap(f.fileno(), 0) as view:
                    part = data[: max(0, len(view) - at)]
                    view[at : at + len(part)] = part
                    view.flush()
        elif what == "again":
            [f.close() for f in files]
            files = [open(path, "r+b", buffering=0) for path in (mine, plain)]
        assert os.path.getsize(mine) == os.path.getsize(plain)
    [f.close() for f in files]
    assert mine.read_bytes() == plain.read_bytes() == (share.host / "file").read_bytes()


class _int64:
    """A file whose descriptor goes to libc; its offsets are 64 bits."""

    def __init__(self, file):
        libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        self.fileno = file.fileno


def test_holes_and_copies(share):
    with open(share.guest / "sparse", "wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
    assert (share.guest / "sparse").stat().st_blocks < 1000
    with open(share.guest / "sparse", "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 10 << 20
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0
        with open(share.guest / "copy", "wb") as copy:
            assert os.copy_file_range(file.fileno(), copy.fileno(), 3, 10 << 20, 0) == 3
    assert (share.host / "copy").read_bytes() == b"end"
    total = os.statvfs(share.guest)
    theirs = os.statvfs(share.host)
    assert (total.f_blocks, total.f_frsize, total.f_namemax) == (theirs.f_blocks, theirs.f_frsize, 255)


def test_appending_is_atomic(share):
    code = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for i in range(300):
    os.write(fd, sys.argv[2].encode() * 100 + b"\\n")
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, folder / "log", letter])
        for folder, letter in ((share.guest, "a"), (share.guest, "b"), (share.host, "c"))
    ]
    assert [w.wait(60) for w in writers] == [0, 0, 0]
    text = (share.host / "log").read_text()
    lines = text.splitlines()
    assert len(lines) == 900 and all(text.count(letter) == 30000 for letter in "abc")  # nothing is overwritten
    # The kernel sends a write in two pieces where part of what is to be written has just been paged out.
    assert sum(line in ("a" * 100, "b" * 100, "c" * 100) for line in lines) >= 890
    # The flag may come and go while a file is open.
    fd = os.open(share.guest / "log", os.O_WRONLY)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"end\n")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"start", 0)
    os.close(fd)
    text = (share.host / "log").read_text()
    assert text.startswith("start") and text.endswith("\nend\n")


def test_mapped_files_and_programs(share):
    code = """
import mmap, sys
with open(sys.argv[1], "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    m[5000:5003] = b"new"
    m.flush()
"""
    (share.guest / "f").write_bytes(bytes(10000))
    subprocess.run([sys.executable, "-c", code, share.guest / "f"], check=True, timeout=30)
    assert (share.host / "f").read_bytes()[5000:5003] == b"new"
    shutil.copy("/bin/true", share.guest / "true")
    subprocess.run([share.guest / "true"], check=True)


def test_locks_of_the_client(share):
    with open(share.guest / "f", "w") as a, open(share.guest / "f", "w") as b:
        fcntl.flock(a, fcntl.LOCK_EX)
        refused(errno.EAGAIN, fcntl.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(a, fcntl.LOCK_UN)
        fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(a, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_fifos_and_sockets_are_the_clients(share):
    os.mkfifo(share.guest / "fifo")
    writer = threading.Thread(target=lambda: (share.guest / "fifo").write_text("through"))
    writer.start()
    assert (share.guest / "fifo").read_text() == "through"
    writer.join()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(share.guest / "socket"))
        listener.listen()
        client.connect(str(share.guest / "socket"))
    assert stat.S_ISFIFO((share.host / "fifo").stat().st_mode)


def test_races_of_renaming_and_removing(share):
    """Several at once in few names: only what POSIX allows may be said, and nothing hangs or is left."""
    fine = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ESTALE, errno.EINVAL}
    fine.add(errno.EPERM)  # a link to a folder
    wrong = []

    def run(seed, folder):
        order = random.Random(seed)
        for _ in range(400):
            a, b = (folder / order.choice("abcd") for _ in range(2))
            try:
                what, *given = order.choice((
                    (a.write_bytes, b"x" * 5000), (a.unlink,), (os.rename, a, b), (os.link, a, b), (a.mkdir,),
                    (a.rmdir,), (a.read_bytes,), ((a / "x").touch,), ((a / "x").unlink,), (os.listdir, folder),
                ))  # fmt: skip
                what(*given)
            except OSError as e:
                if e.errno not in fine:
                    wrong.append(e)

    threads = [threading.Thread(target=run, args=(i, share.guest if i < 3 else share.host)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong
    shutil.rmtree(share.host)
    share.host.mkdir()


# -- owners and modes


def test_owners_are_kept(share):
    f, d = share.guest / "f", share.guest / "d"
    f.write_text("x")
    os.chown(f, 1000, 100)
    os.chmod(f, 0o6711)
    d.mkdir()
    os.chown(d, 5, 6)
    os.chmod(d, 0o2500)
    (d / "inner").write_text("y")
    (d / "sub").mkdir()
    find = lambda path: (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode))  # noqa: E731
    assert find(f) == (1000, 100, 0o6711) and find(d) == (5, 6, 0o2500)
    assert find(d / "inner") == (0, 6, 0o644) and find(d / "sub") == (0, 6, 0o2755)
    # Never on the host: whoever could run it there would be the owner of the share.
    assert find(share.host / "f") == (0, 0, 0o711) and find(share.host / "d") == (0, 0, 0o700)
    assert os.getxattr(share.host / "f", "user.containers.override_stat") == b"1000:100:06711"
    assert os.listxattr(f) == []
    refused(errno.EPERM, os.setxattr, f, "user.containers.override_stat", b"0:0:0777")
    os.chown(f, 0, 0)
    os.chmod(f, 0o711)
    assert os.listxattr(share.host / "f") == []
    f.chmod(0o400)  # its owner may still write to it on the host, as root may in the guest
    assert find(f) == (0, 0, 0o400) and find(share.host / "f") == (0, 0, 0o600)
    f.write_text("z")
    os.chmod(share.host / "f", 0o644)  # and there it may be changed
    time.sleep(1.1)
    assert find(f) == (0, 0, 0o644)
    os.chown(share.host / "f", 1234, 1234)
    time.sleep(1.1)
    assert find(f)[:2] == (65534, 65534)


def test_owners_are_not_kept(tmp_path):
    with mounted(tmp_path, keeps_owners=False) as share:
        f = share.guest / "f"
        f.write_text("x")
        os.chown(f, 1000, 100)
        f.chmod(0o4444)
        assert (f.stat().st_uid, stat.S_IMODE(f.stat().st_mode)) == (0, 0o444)
        assert stat.S_IMODE((share.host / "f").stat().st_mode) == 0o444
        assert os.listxattr(share.host / "f") == []


def test_extended_attributes(share):
    f = share.guest / "f"
    f.write_text("x")
    os.setxattr(f, "user.a", b"1")
    os.setxattr(f, "trusted.b", b"2" * 1000)
    assert sorted(os.listxattr(f)) == ["trusted.b", "user.a"]
    assert os.getxattr(f, "trusted.b") == b"2" * 1000
    assert sorted(os.listxattr(share.host / "f")) == ["user.a", "user.hostel.trusted.b"]
    refused(errno.EEXIST, os.setxattr, f, "user.a", b"", os.XATTR_CREATE)
    os.removexattr(f, "user.a")
    refused(errno.ENODATA, os.getxattr, f, "user.a")
    refused(errno.EOPNOTSUPP, os.setxattr, f, "other.c", b"x")


def test_times(share):
    f = share.guest / "f"
    f.write_text("x")
    os.utime(f, ns=(1_000_000_007, 2_000_000_009))
    assert (f.stat().st_atime_ns, f.stat().st_mtime_ns) == (1_000_000_007, 2_000_000_009)
    assert (share.host / "f").stat().st_mtime_ns == 2_000_000_009
    os.utime(f, ns=(5, -10**9))
    assert f.stat().st_mtime_ns == -(10**9)


# -- the other side


def test_what_the_host_changes_is_seen(share):
    f = share.guest / "f"
    (share.host / "f").write_text("one")
    assert f.read_text() == "one"
    (share.host / "f").write_text("three")
    (share.host / "g").write_text("g")
    time.sleep(1.1)
    assert f.read_text() == "three" and (share.guest / "g").read_text() == "g"
    os.rename(share.host / "g", share.host / "f")
    time.sleep(1.1)
    assert f.read_text() == "g" and not (share.guest / "g").exists()
    shutil.rmtree(share.host)
    share.host.mkdir()


def test_contents_stay_in_the_cache(share):
    data = os.urandom(300_000)
    (share.host / "f").write_bytes(data)
    old = time.time() - 100
    time.sleep(0.1)
    digests = {hashlib.sha256((share.guest / "f").read_bytes()).digest() for _ in range(5)}
    os.utime(share.host / "f", (old, old))
    assert digests == {hashlib.sha256(data).digest()}
    assert share.unmount()["bytes_read"] < 2 * len(data)


def test_readonly(tmp_path):
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "f").write_text("x")
    os.symlink("f", tmp_path / "host" / "s")
    with mounted(tmp_path, readonly=True) as share:
        f = share.guest / "f"
        assert f.read_text() == "x" and (share.guest / "s").read_text() == "x"
        for what, *args in (
            (os.open, f, os.O_WRONLY), (os.open, f, os.O_RDWR), (os.open, f, os.O_RDONLY | os.O_TRUNC),
            (os.open, share.guest / "new", os.O_CREAT), (os.unlink, f), (os.mkdir, share.guest / "d"),
            (os.rename, f, share.guest / "g"), (os.link, f, share.guest / "g"), (os.symlink, "x", share.guest / "g"),
            (os.chmod, f, 0o777), (os.chown, f, 1, 1), (os.truncate, f, 0), (os.utime, f),
            (os.setxattr, f, "user.a", b""), (os.mkfifo, share.guest / "p"),
        ):  # fmt: skip
            refused(errno.EROFS, what, *args)
        os.sync()
    assert (tmp_path / "host" / "f").read_text() == "x" and sorted(os.listdir(tmp_path / "host")) == ["f", "s"]


# -- nothing leads out


def test_links_are_the_clients(share, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "guest-secret").write_text("")
    os.symlink("../secret", share.guest / "up")
    os.symlink(tmp_path / "secret", share.guest / "absolute")
    # The client follows them in its own tree: there the first leads beside the mount point.
    assert os.readlink(share.guest / "up") == "../secret"
    (share.guest / "up").write_text("new")
    assert (tmp_path / "secret").read_text() == "new"  # by the client's own rights, not through the server
    assert share.unmount()["requests"].get("open", 0) == 0


def test_mounts_below_are_not_shared(share):
    (share.host / "m").mkdir()
    (share.host / "m" / "under").write_text("")
    assert libc.mount(b"tmpfs", bytes(share.host / "m"), b"tmpfs", 0, b"") == 0
    try:
        (share.host / "m" / "inner").write_text("inner")
        assert (share.guest / "m").is_dir()
        refused(errno.EXDEV, os.listdir, share.guest / "m")
        refused(errno.EXDEV, os.stat, share.guest / "m" / "inner")
        refused(errno.EXDEV, os.mkdir, share.guest / "m" / "d")
        refused(errno.EXDEV, os.chmod, share.guest / "m", 0o777)
    finally:
        libc.umount2(bytes(share.host / "m"), 0)


def test_few_descriptors_are_enough(tmp_path):
    with mounted(tmp_path, descriptors=16, files=40) as share:
        for i in range(60):
            (share.guest / f"d{i}" / "e" / "f").mkdir(parents=True)
            (share.guest / f"d{i}" / "e" / "f" / "file").write_text(str(i))
        time.sleep(1.1)  # what the client remembers of names has expired
        for i in reversed(range(60)):
            assert (share.guest / f"d{i}" / "e" / "f" / "file").read_text() == str(i)
        assert len(list(share.guest.rglob("*"))) == 240
        held = [open(share.guest / f"d{i}" / "e" / "f" / "file") for i in range(40)]
        refused(errno.ENFILE, open, share.guest / "d50" / "e" / "f" / "file")
        for file in held:
            os.unlink(file.name)
        assert [int(file.read()) for file in held] == list(range(40))
        [file.close() for file in held]
        assert (share.guest / "d50" / "e" / "f" / "file").read_text() == "50"
        statistics = share.unmount()
    assert statistics["evicted"] > 100 and statistics["descriptors"] <= 16
