"""A launcher and its helper: the same commands, without a start of Python for each."""

import json
import os
import select
import subprocess
import sys
import time

import pytest
from tests.containers.bundles import COMMAND

from hostel.containers import helper


@pytest.fixture
def launcher(oci, tmp_path):
    """A launcher with a helper that runs."""
    path, socket = tmp_path / "launcher", tmp_path / "helper/socket"
    oci("launcher", "--socket", socket, path)
    process = subprocess.Popen([*COMMAND, "helper", "--socket", str(socket)], stdin=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while not socket.exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    yield path
    process.kill()
    process.wait()


def run(launcher, oci, *words):
    return subprocess.run(
        [launcher, "--root", oci.root, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )


def test_commands_by_a_helper(launcher, oci, bundle, tmp_path):
    bundle.map_users()
    for kind in ("prestart", "createContainer", "startContainer"):
        bundle.config.setdefault("hooks", {})[kind] = [{"path": "/bin/true"}]
    bundle.script("echo hello $(id -u); sleep 1000").write()
    out = tmp_path / "out"
    trace = f"{launcher} --root {oci.root} create --bundle {bundle.folder} --pid-file {tmp_path}/pid box"
    # the container's first process is its starter's, as an engine's monitor needs it: here a subreaper's grandchild
    reaper = (
        "import ctypes, os, subprocess, sys\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
        f"status = subprocess.run({trace.split()!r}, stdin=0).returncode\n"
        f"print('mine', open('/proc/self/task/%d/children' % os.getpid()).read().split(), status, flush=True)\n"
    )
    with open(out, "w") as file:
        subprocess.run([COMMAND[0], "-c", reaper], stdout=file, stderr=file, stdin=subprocess.DEVNULL, check=True)
    pid = int((tmp_path / "pid").read_text())
    assert f"'{pid}'" in out.read_text() and out.read_text().endswith(" 0\n")
    assert json.loads(run(launcher, oci, "state", "box").stdout)["status"] == "created"
    assert run(launcher, oci, "start", "box").returncode == 0
    until = time.monotonic() + 20
    while "hello 0" not in out.read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
    again = run(launcher, oci, "create", "--bundle", bundle.folder, "box")
    assert again.returncode == 1 and again.stderr == "hostel-oci: container with id exists: box\n"
    assert run(launcher, oci, "kill", "box", "KILL").returncode == 0
    until = time.monotonic() + 20
    while json.loads(run(launcher, oci, "state", "box").stdout)["status"] != "stopped":
        assert time.monotonic() < until
    assert run(launcher, oci, "delete", "box").returncode == 0
    assert not [name for name in os.listdir(oci.root) if not name.startswith(".")]
    assert run(launcher, oci, "run", "--bundle", bundle.script("exit 4").write(), "box").returncode == 4  # by itself


def test_a_failing_create_leaves_nothing(launcher, oci, bundle):
    bundle.config["process"]["args"] = ["/nothing"]
    failed = run(launcher, oci, "create", "--bundle", bundle.write(), "box")
    assert failed.returncode == 1 and failed.stderr.startswith('hostel-oci: exec: "/nothing"')
    assert not [name for name in os.listdir(oci.root) if not name.startswith(".")]
    assert not [line for line in open("/proc/mounts") if str(bundle.folder) in line]


def test_who_isnt_like_the_helper_is_on_its_own(launcher, oci, bundle):
    """In other namespaces, or without a helper: the interpreter, with the same result."""
    words = [launcher, "--root", oci.root, "state", "none"]
    for before in (["unshare", "--mount", "--"], ["unshare", "--uts", "--"], []):
        done = subprocess.run([*before, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "does not exist" in done.stderr
    oci("launcher", "--socket", "/nonexistent/socket", str(launcher) + "2")
    alone = run(str(launcher) + "2", oci, "state", "none")
    assert alone.returncode == 1 and "does not exist" in alone.stderr


@pytest.fixture
def bare(oci, tmp_path, monkeypatch):
    """A launcher that has neither a helper nor an interpreter: what it does it does itself."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    helper.write_launcher(str(tmp_path / "bare"), "")
    return tmp_path / "bare"


GONE = "hostel-oci: the interpreter that this launcher was written for is gone: write it anew\n"


class Made:
    """A container that waits for its start: what it says, its first process, its cgroups."""

    def __init__(self, oci, bundle, folder, script="true"):
        self.out, pid = folder / "out", folder / "pid"
        bundle.script(script).write()
        words = [*COMMAND, "--root", str(oci.root), "create", "--bundle", str(bundle.folder), "--pid-file", str(pid)]
        with open(self.out, "w") as file:
            subprocess.run([*words, "box"], stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=60)
        assert not self.out.read_text()
        self.process = os.pidfd_open(int(pid.read_text()))
        with open(f"{oci.root}/box/state.json") as file:
            self.cgroups = {folder for _, folder in json.load(file)["cgroup"]["places"].values()}
        assert self.cgroups and all(map(os.path.isdir, self.cgroups))

    def wait(self):
        assert select.select([self.process], [], [], 20)[0]
        os.close(self.process)


def test_start_and_delete_without_python(bare, oci, bundle, tmp_path):
    made = Made(oci, bundle, tmp_path, "echo here")
    for words in (("start",), ("start", "other"), ("start", "../box"), ("start", "box/"), ("start", "--help"),
                  ("delete", "box"), ("delete", "-f", "box"), ("kill", "box"), ("--no", "start", "box")):  # fmt: skip
        done = run(bare, oci, *words)
        assert (done.returncode, done.stderr) == (1, GONE), words
    assert run(bare, oci, "--log", "/dev/null", "--log-format=json", "start", "box").returncode == 0
    assert run(bare, oci, "start", "box").stderr == GONE  # once only
    made.wait()
    assert made.out.read_text() == "here\n"
    assert run(bare, oci, "--debug", "delete", "box").returncode == 0
    assert not os.path.exists(f"{oci.root}/box") and not any(map(os.path.isdir, made.cgroups))
    assert run(bare, oci, "delete", "box").stderr == GONE


def test_one_that_was_never_started_is_removed_without_python(bare, oci, bundle, tmp_path):
    made = Made(oci, bundle, tmp_path)
    oci("kill", "box", "KILL")
    made.wait()
    assert run(bare, oci, "start", "box").stderr == GONE  # it has ended: the runtime's to say
    assert run(bare, oci, "delete", "box").returncode == 0 and not os.path.exists(f"{oci.root}/box")


@pytest.mark.parametrize("kind", ["startContainer", "poststart", "poststop"])
def test_hooks_are_the_runtimes_to_run(bare, oci, bundle, tmp_path, kind):
    bundle.config["hooks"] = {kind: [{"path": "/bin/true"}]}
    made = Made(oci, bundle, tmp_path)
    assert (run(bare, oci, "start", "box").returncode == 0) == (kind == "poststop")
    if kind != "poststop":
        oci("start", "box")
    made.wait()
    assert run(bare, oci, "delete", "--force", "other").stderr == GONE
    assert (run(bare, oci, "delete", "--force", "box").returncode == 0) == (kind != "poststop")


def test_a_cgroup_that_is_in_use_is_the_runtimes_to_remove(bare, oci, bundle, tmp_path):
    made = Made(oci, bundle, tmp_path)
    assert run(bare, oci, "start", "box").returncode == 0
    made.wait()
    os.mkdir(f"{sorted(made.cgroups)[-1]}/inner")
    assert run(bare, oci, "delete", "box").stderr == GONE
    assert oci.state("box")["status"] == "stopped"
    oci("delete", "box")
    assert not any(map(os.path.isdir, made.cgroups))
