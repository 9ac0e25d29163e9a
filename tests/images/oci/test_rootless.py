"""Images of an ordinary user, and of root in a user namespace."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from oci_layouts import layer, member, need, tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root becomes others here")
USER = "65534"  # nobody: fusermount3 wants a user with a name
MAPPED = """
import os, sys
from hostel.base.linux.syscall import syscall
asked, made = os.pipe(), os.pipe()
child = os.fork()
if not child:
    syscall(272, 0x10020000)  # unshare: a user and a mount namespace
    os.write(asked[1], b"x")
    os.read(made[0], 1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.execv(sys.argv[1], sys.argv[1:])
os.read(asked[0], 1)
for name in ("gid_map", "uid_map"):
    with open(f"/proc/{child}/{name}", "w") as file:
        file.write("0 0 1000")  # the first ones are the host's: Python's files may be root's only
os.write(made[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
PROGRAM = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from oci_layouts import tree
from hostel.images.oci import archive, rootfs
from hostel.images.oci.store import Store
[image] = archive.source(Store(), sys.argv[1], None)
folder = Path(sys.argv[2])
made = rootfs.prepare(image, folder, json.loads(sys.argv[4]))
try:
    found = {name: value if isinstance(value, str) else value.decode() for name, value in tree(made.path).items()}
    status = os.stat(made.path / "d/b")
    (made.path / "written").write_text("x")
    (made.path / "d/b").unlink()
    print(json.dumps([made.kind, found, status.st_uid, status.st_mode & 0o7777, sorted(os.listdir(made.path / "d"))]))
finally:
    rootfs.release(folder)
    rootfs.remove(folder)
image.store.remove(image.name)
print(json.dumps([sorted(os.listdir(folder)), [str(path) for path in Store().folder.glob("layers/*")]]))
"""


@pytest.fixture
def run(layout, tmp_path):
    """Runs PROGRAM by ``command`` as somebody to whom ``tmp_path`` belongs; what it printed."""
    layout.image(
        layer("d/", ("d/a", b"1"), (member("d/b", tarfile.REGTYPE, uid=33, gid=33, mode=0o4750), b"1"),
              (member("closed", tarfile.DIRTYPE, mode=0o500), b""), ("closed/x", b"1"), "o/", ("o/x", b"1")),
        layer("d/", ("d/.wh.a", b""), "o/", ("o/.wh..wh..opq", b"")),
    )  # fmt: skip

    def run(command, kinds, owner=0):
        home, folder = tmp_path / "home", tmp_path / "container"
        home.mkdir()
        folder.mkdir()
        for path in (home, folder):
            os.chown(path, owner, owner)
        for path in tmp_path.parents:
            if path.name.startswith("pt-") or "pytest" in path.name or path == tmp_path.parent:
                path.chmod(0o755)
        tmp_path.chmod(0o755)
        here = os.path.dirname(__file__)
        done = subprocess.run(
            [*command, sys.executable, "-c", PROGRAM, layout.folder, folder, here, json.dumps(kinds)],
            capture_output=True, text=True, env={**os.environ, "HOSTEL_HOME": str(home)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        first, last = map(json.loads, done.stdout.splitlines())
        assert last == [[], []]
        return first

    return run


SEEN = {"d": "/", "d/b": "1", "closed": "/", "closed/x": "1", "o": "/"}


def test_overlayfs_in_a_user_namespace(run):
    kind, seen, user, mode, left = run(["unshare", "--user", "--map-root-user", "--mount"], ["overlay"])
    assert (kind, seen, left) == ("overlay", SEEN, [])
    assert (user, mode) == (0, 0o750)  # there is nobody else, and no reason to become anybody


def test_owners_in_a_user_namespace_with_more_users(run):
    kind, seen, user, mode, left = run([sys.executable, "-c", MAPPED], ["overlay"])
    assert (kind, seen, left, user, mode) == ("overlay", SEEN, [], 33, 0o4750)


@pytest.mark.parametrize("kind", ["fuse-overlayfs", "copy"])
def test_an_ordinary_user(run, kind):
    need("setpriv")
    python = os.path.realpath(sys.executable)
    command = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    if subprocess.run([*command, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"others can't run {python}")
    if kind == "fuse-overlayfs":
        if not shutil.which(kind) or not shutil.which("fusermount3"):
            pytest.skip("there is no fuse-overlayfs; on Debian: apt-get install fuse-overlayfs")
        if not os.path.exists("/dev/fuse") or os.stat("/dev/fuse").st_mode & 0o6 != 0o6:
            pytest.skip("ordinary users may not open /dev/fuse here")
        command.remove("--bounding-set=-all")  # fusermount3 is set-user-ID
    found, seen, user, mode, left = run(command, [kind], int(USER))
    assert (found, seen, left, user, mode) == (kind, SEEN, [], int(USER), 0o750)


def test_tree_sees_what_it_should(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    assert tree(tmp_path) == {"a": b"1"}
