"""seccomp and Landlock, each in a child that then tries what it may not."""

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


def test_the_list_in_the_docs_is_the_filters():
    text = (Path(__file__).parents[2] / "docs/security.md").read_text()
    table = text[text.index("| calls | why |") :]
    listed = [name for row in re.findall(r"^\| (`.*?) \| \S", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert len(listed) == len(set(listed))
    assert set(listed) == seccomp.allowed()


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
