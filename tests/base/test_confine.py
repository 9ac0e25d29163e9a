"""seccomp and Landlock, each in a child that then tries what it may not."""

import subprocess
import sys

import pytest

from hostel.base.linux import landlock

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
refused(os.execv, "/bin/true", ["true"])
refused(socket.socket)
refused(os.kill, 1, 0)
refused(os.mkfifo, "/tmp/never")
for number in (101, 165, 272, 321, 310, 250, 175, 246):  # ptrace mount unshare bpf process_vm_readv keyctl module kexec
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
