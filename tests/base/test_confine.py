"""seccomp and Landlock, each in a child that then tries what it may not."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hostel.base.linux import landlock, seccomp

PRELUDE = """
import ctypes, errno, os, signal, socket, sys, threading, time
from pathlib import Path
from hostel.base.linux import landlock, prctl, seccomp
prctl.set_no_new_privs()
def refused(what, *args, error=errno.EPERM):
    try:
        what(*args)
    except OSError as e:
        assert e.errno == error, (what, e)
    else:
        raise AssertionError(f"{what} was allowed")
"""


def child(code):
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_seccomp_refuses_what_is_not_on_the_list():
    child("""
seccomp.restrict()
libc = ctypes.CDLL(None, use_errno=True)
refused(os.fork)
refused(socket.socket)
refused(os.kill, 1, 0)
refused(os.mkfifo, "/tmp/never")
for number in (90, 92, 188, 268, 161 + 1000):  # chmod chown setxattr fchmodat, none at all
    assert libc.syscall(number, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM, number
""")


def test_seccomp_lets_a_worker_work():
    child("""
seccomp.restrict()
seen = []
threads = [threading.Thread(target=seen.append, args=(i,)) for i in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert sorted(seen) == list(range(8))
os.kill(os.getpid(), 0)
signal.raise_signal(signal.SIGCHLD)
a, b = os.pipe(); os.write(b, b"x"); assert os.read(a, 1) == b"x"
time.sleep(0.001)
bytearray(50 << 20)
""")


def test_seccomp_holds_for_threads_that_exist():
    child("""
go, out = threading.Event(), []
def work():
    go.wait()
    try:
        os.fork()
    except OSError as e:
        out.append(e.errno)
t = threading.Thread(target=work); t.start()
seccomp.restrict(); go.set(); t.join()
assert out == [errno.EPERM]
""")


@pytest.mark.parametrize("calls, allowed", [("SHARES", False), ("WRITABLE_SHARES", True)])
def test_a_share_s_calls_take_no_paths_but_landlocks(tmp_path, calls, allowed):
    """Times, modes and attributes, which Landlock doesn't know, are of open files only."""
    (tmp_path / "file").write_text("")
    child(f"""
fd = os.open({str(tmp_path / "file")!r}, os.O_RDWR)
path = {str(tmp_path / "file")!r}
tv = ctypes.create_string_buffer(32)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 5
seccomp.restrict((), seccomp.{calls})
os.fstatvfs(fd)
for what, *args in ((os.utime, path), (os.chmod, path, 0o777), (os.chown, path, -1, -1), (os.getxattr, path, "user.a"),
                    (os.setxattr, path, "user.a", b""), (os.chown, fd, -1, -1), (os.removexattr, path, "user.a")):
    refused(what, *args)
for path in (b"file", 1 << 32):  # also one whose low half looks like no path
    assert libc.syscall(280, fd, path, tv, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM
for what, *args in ((os.utime, fd), (os.setxattr, fd, "user.a", b"x")):
    what(*args) if {allowed} else refused(what, *args)
os.listxattr(fd)
if {allowed}:
    os.symlink("x", {str(tmp_path / "link")!r}, dir_fd=fd)
""")


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_landlock_leaves_only_what_is_named(tmp_path):
    for name in ("own", "read", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    child(f"""
base = Path({str(tmp_path)!r})
assert landlock.restrict([(base / "own", landlock.OWN), (base / "read", landlock.READ), (base / "none", landlock.READ)])
(base / "own/file").write_text("y"); (base / "own/new").write_text("z"); (base / "own/new").rename(base / "own/newer")
(base / "own/newer").unlink()
assert (base / "read/file").read_text() == "x"
for call in (lambda: (base / "read/file").write_text("y"), lambda: (base / "read/new").touch(),
             lambda: (base / "other/file").read_text(), lambda: os.listdir(base), lambda: open("/etc/passwd")):
    refused(call, error=errno.EACCES)
if landlock.abi() >= 4:
    refused(lambda: socket.socket().connect(("127.0.0.1", 9)), error=errno.EACCES)
""")


@pytest.mark.parametrize("name", sorted(seccomp.BREACHES))
def test_what_nobody_calls_by_mistake_ends_the_process(name):
    code = f"seccomp.restrict(); ctypes.CDLL(None).syscall({seccomp.BREACHES[name]}, 0, 0, 0, 0, 0)"
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, timeout=30)
    assert done.returncode == -signal.SIGSYS, done.stderr


def test_rings_that_are_there_may_be_entered_others_not():
    code = """
from hostel.base.aio import open_aio
try:
    ring, other = (open_aio([os.memfd_create("disk")], 8, "io_uring") for _ in range(2))
except OSError:
    sys.exit(42)
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
seccomp.restrict([ring.fd])
held = ring.start_py("write", 0, [b"abc"], 0, 1)
assert ring.submit_py() == 0
while not (done := ring.reap_py()):
    pass
assert done == [(1, 3)]
print("entered", flush=True)
"""
    for end, status in (
        ("held = other.start_py('read', 0, [bytearray(1)], 0, 1); other.submit_py()", -signal.SIGSYS),
        ("open_aio([1], 8, 'io_uring')", -signal.SIGSYS),
        ("ctypes.CDLL(None).syscall(427, ring.fd, 2, 0, 0)", -signal.SIGSYS),
        ("open_aio([1], 8, 'threads').close()", 0),
    ):
        done = subprocess.run([sys.executable, "-c", PRELUDE + code + end], capture_output=True, text=True, timeout=30)
        if done.returncode == 42:
            pytest.skip("this host has no io_uring")
        assert (done.stdout, done.returncode) == ("entered\n", status), done.stderr


def test_nothing_is_mapped_writable_and_executable():
    child("""
seccomp.restrict()
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
none = ctypes.c_void_p(-1).value
assert libc.mmap(None, 4096, 7, 0x22, -1, 0) == none and ctypes.get_errno() == errno.EPERM
assert libc.mmap(None, 4096, 6, 0x22, -1, 0) == none
there = libc.mmap(None, 4096, 3, 0x22, -1, 0)
assert there != none
assert libc.mprotect(there, 4096, 7) == -1 and ctypes.get_errno() == errno.EPERM
assert libc.mprotect(there, 4096, 5) == 0
""")


def test_no_file_is_made_set_user_id(tmp_path):
    child(f"""
seccomp.restrict((), seccomp.WRITABLE_SHARES)
fd = os.open({str(tmp_path / "file")!r}, os.O_CREAT | os.O_RDWR, 0o755)
folder = os.open({str(tmp_path)!r}, os.O_RDONLY)
for mode in (0o4755, 0o2755, 0o6000):
    refused(os.fchmod, fd, mode)
    refused(os.open, {str(tmp_path / "other")!r}, os.O_CREAT | os.O_RDWR, mode)
    refused(lambda: os.open("other", os.O_CREAT | os.O_RDWR, mode, dir_fd=folder))
    refused(lambda: os.mknod("other", 0o100000 | mode, dir_fd=folder))
os.fchmod(fd, 0o1777)
os.mkfifo("fifo", 0o600, dir_fd=folder)
""")
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file"]


def test_limited_calls_take_what_is_listed_only():
    child("""
import fcntl, resource
seccomp.restrict()
assert resource.getrlimit(resource.RLIMIT_CORE)
refused(resource.prlimit, 1, resource.RLIMIT_CORE)
refused(resource.prlimit, os.getppid(), resource.RLIMIT_NOFILE)
refused(fcntl.ioctl, 0, 0x5412, b"x")  # TIOCSTI
refused(prctl.set_dumpable, True)
prctl.set_name("other")
""")


@pytest.mark.parametrize("title, allowed", [
    ("calls", seccomp.allowed()),
    ("the network's calls", seccomp.allowed(seccomp.NETWORK, seccomp.NETWORK_LIMITED)),
    ("the broker's calls", seccomp.allowed(seccomp.BROKER, seccomp.BROKER_LIMITED)),
    ("shares' calls", seccomp.SHARES.keys() - seccomp.ALLOWED.keys()),
    ("writable shares' calls", seccomp.WRITABLE_SHARES.keys() - seccomp.SHARES.keys()),
])
def test_the_list_in_the_docs_is_the_filters(title, allowed):
    text = (Path(__file__).parents[2] / "docs/security.md").read_text()
    table = text[text.index(f"| {title} | why |") :].split("\n\n")[0]
    listed = [name for row in re.findall(r"^\| (`.*?) \| \S", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert len(listed) == len(set(listed))
    assert set(listed) == allowed


def test_no_capabilities_and_namespaces_of_its_own():
    child("""
from hostel.base.linux import namespace
before = {n: os.readlink(f"/proc/self/ns/{n}") for n in ("user", *namespace.OWN)}
entered = namespace.leave()
for name, link in before.items():
    assert (os.readlink(f"/proc/self/ns/{name}") != link) == (name in entered), name
namespace.drop_capabilities()
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
    assert int(status[kind], 16) == 0, kind
refused(os.chroot, "/")
refused(os.sethostname if hasattr(os, "sethostname") else socket.sethostname, "other")
""")
