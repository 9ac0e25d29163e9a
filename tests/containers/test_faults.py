"""Whatever step of create fails, nothing is left: no mount, cgroup, namespace, process, file or descriptor."""

import contextlib
import gc
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.containers.bundles import COMMAND

from hostel.base.errors import ContainerError
from hostel.containers import dialogue, hooks, namespaces, runtime, stage
from hostel.containers.cgroups import Cgroup
from hostel.containers.state import State

ID = "hostel-fault"


def leftovers(root):
    """What a container of this name could leave on the host."""
    found = [str(path) for path in Path(root).glob("*") if not path.name.startswith(".")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{ID}")]
    found += [line for line in open("/proc/self/mountinfo") if "/bundle/" in line]
    return found + [f"a child, {pid}" for pid in children() - others]


def children():
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


@pytest.fixture(autouse=True)
def without_others():
    """What other tests have begun is none of ours."""
    global others
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    others = children()


@pytest.fixture
def box(bundle, tmp_path):
    bundle.script("exit 0")
    bundle.namespaces().append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"boottime": {"secs": 5}}
    bundle.map_users()
    for kind in ("prestart", "createContainer", "startContainer"):
        bundle.config.setdefault("hooks", {})[kind] = [{"path": "/bin/true"}]
    bundle.config["linux"]["resources"]["pids"] = {"limit": 100}
    bundle.write()
    return runtime.Runtime(tmp_path / "root"), bundle.folder


def attempt(box):
    """Create, start and delete; the error of the first that fails."""
    engine, folder = box
    null = os.open("/dev/null", os.O_RDWR)
    try:
        state = engine.create(ID, folder, stdio=(null, null, null))
    except (ContainerError, OSError) as error:
        return error
    finally:
        os.close(null)
    error = None
    try:
        engine.start(ID)
    except ContainerError as failed:
        error = failed
    os.waitpid(state.pid, 0)
    engine.delete(ID, force=True)
    return error


@pytest.mark.parametrize("each", [pytest.param(1, marks=pytest.mark.slow), 11])
def test_every_operation_of_the_containers_processes(box, monkeypatch, each):
    engine, folder = box
    sizes = []
    program = stage.Script.program
    monkeypatch.setattr(stage.Script, "program", lambda script: sizes.append(len(script)) or program(script))
    assert attempt(box) is None and not leftovers(engine.root)
    operations = max(sizes)
    gc.collect()  # what earlier tests left goes now, not in the middle
    descriptors = os.listdir("/proc/self/fd")
    failures = 0
    for number in range(each // 2, operations, each):
        monkeypatch.setattr(stage, "fault", number)
        failures += attempt(box) is not None
        assert not leftovers(engine.root), number
    monkeypatch.setattr(stage, "fault", None)
    assert operations > 150 and failures > 80 // each
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert attempt(box) is None


STEPS = [
    (os, "mkfifo"), (stage, "launch"), (namespaces, "write_maps"), (namespaces, "write_offsets"), (dialogue, "hear"),
    (dialogue, "go"), (hooks, "run"), (Cgroup, "create"), (Cgroup, "apply"), (Cgroup, "clone_fd"), (State, "write"),
    (hooks.Inside, "tell"), (runtime, "_connect"), (os, "mkdir"),
]  # fmt: skip


@pytest.mark.parametrize("place, name", STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize("when", range(3))
def test_every_step_of_the_runtime(box, monkeypatch, place, name, when):
    """The first, second and third time that it is done."""
    engine, _ = box
    real, calls = getattr(place, name), []

    def failing(*args, **more):
        calls.append(args)
        if len(calls) == when + 1:
            raise OSError(5, "an injected fault")
        return real(*args, **more)

    monkeypatch.setattr(place, name, failing)
    error = attempt(box)
    assert (error is not None) == (len(calls) > when)
    monkeypatch.undo()
    assert not leftovers(engine.root)


def test_the_runtime_is_killed_at_any_moment(oci, bundle):
    """What was begun ends by itself, and 'delete --force' clears up."""
    bundle.map_users()
    bundle.script("exec sleep 1000").write()
    words = [*COMMAND, "--root", str(oci.root), "create", "--bundle", str(bundle.folder), ID]
    chance = random.Random(1)
    for _ in range(12):
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.02, 0.09))
        process.send_signal(signal.SIGKILL)
        process.wait()
        oci("delete", "--force", ID)
        assert not leftovers(oci.root)
        assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and _in_bundle(pid, bundle)]


def _in_bundle(pid, bundle):
    try:
        return str(bundle.folder) in open(f"/proc/{pid}/mountinfo").read() and pid != str(os.getpid())
    except OSError:
        return False
