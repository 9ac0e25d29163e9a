"""How long containers take to come and go: ``hostel-oci`` beside crun and runc, which stand for "the host itself". The
machines just stand there.

All get the same bundle: a static busybox, each kind of namespace, and limits of processors, memory and processes.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.errors import Missing, Wrong
from bench.hostel import program
from bench.mounts import V1_ALONE, changed
from bench.peer import Peer
from bench.row import Context, Goal, Row, Sample, Values

TIMES = 5                 # whose mean is a round's value
MANY = 100


def life(warm: bool) -> Callable[[Sequence[Peer], Context], Values]:
    """create, start and delete of ``true``, on all in turns; between start and delete it ends, which isn't counted."""

    def measure(peers: Sequence[Peer], context: Context) -> Values:
        with runtimes(peers, "crun", warm) as commands, bundle("true") as folder:
            for command in commands.values():
                live(command, folder)
            sums = dict.fromkeys(commands, 0.0)
            for _ in range(TIMES):
                for name, command in commands.items():
                    sums[name] += live(command, folder)
        return {name: Sample(total / TIMES) for name, total in sums.items()}

    return measure


def live(command: list[str], folder: Path) -> float:
    pid_file = folder / "pid"
    words = ["create", "--bundle", str(folder), "--pid-file", str(pid_file), "it"]
    begun = time.monotonic()
    run([*command, *words])
    run([*command, "start", "it"])
    taken = time.monotonic() - begun
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(int(pid_file.read_text()))
        select.select([process], [], [], 10.0)
        os.close(process)
    begun = time.monotonic()
    run([*command, "delete", "it"])
    return taken + time.monotonic() - begun


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise Wrong(f"{' '.join(command)} ended with status {done.returncode}")


def parallel(warm: bool) -> Callable[[Sequence[Peer], Context], Values]:
    """Until all run, that were begun at once."""

    def measure(peers: Sequence[Peer], context: Context) -> Values:
        values: Values = {}
        names = [f"it{number}" for number in range(context.scaled(MANY))]
        with runtimes(peers, "runc", warm) as commands, bundle("sleep", "1000", lacking="time") as folder:
            for peer, command in commands.items():
                script = 'one=$1; shift; "$@" create --bundle . $one && exec "$@" start $one'
                begun = time.monotonic()
                running = [
                    subprocess.Popen(["sh", "-c", script, "sh", name, *command], cwd=folder, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL)
                    for name in names
                ]  # fmt: skip
                failed = sum(bool(process.wait()) for process in running)
                values[peer] = Sample(time.monotonic() - begun)
                for name in names:
                    subprocess.run([*command, "delete", "--force", name], check=not failed)
                if failed:
                    raise Wrong(f"{failed} of {len(names)} containers didn't start")
        return values

    return measure


@contextlib.contextmanager
def runtimes(peers: Sequence[Peer], other: str, warm: bool) -> Iterator[dict[str, list[str]]]:
    """The commands by peers' names, each with a folder of its own for its state."""
    if os.geteuid():
        raise Missing("containers are measured as root")
    if not shutil.which(other):
        raise Missing(f"there is no {other} to compare with; on Debian: apt-get install {other}")
    ours = Path(program()[0]).with_name("hostel-oci")
    if not ours.exists():
        raise Missing(f"there is no {ours}: install hostel")
    known = {peer.name for peer in peers}
    with contextlib.ExitStack() as stack:
        stack.enter_context(changed(V1_ALONE))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostel-bench-", dir="/run")))
        command = [str(ours)]
        if warm:
            command = [str(folder / "launcher")]
            run([str(ours), "launcher", "--socket", str(folder / "helper/socket"), command[0]])
            helper = subprocess.Popen([str(ours), "helper", "--socket", str(folder / "helper/socket")])
            stack.callback(helper.wait)
            stack.callback(helper.terminate)
            while not (folder / "helper/socket").exists():
                time.sleep(0.01)
        commands = {"hostel": [*command, "--root", f"{folder}/ours"], "native": [other, "--root", f"{folder}/theirs"]}
        yield {name: command for name, command in commands.items() if name in known}


@contextlib.contextmanager
def bundle(*arguments: str, lacking: str = "") -> Iterator[Path]:
    """A bundle whose program is one of busybox's; by runc's own defaults, with more of what can be asked for, but the
    kind of namespace that a peer lacks."""
    with tempfile.TemporaryDirectory(prefix="hostel-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        os.symlink(rootfs(), folder / "rootfs")
        ours = Path(program()[0]).with_name("hostel-oci")
        run([str(ours), "spec", "--bundle", name])
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        config["ociVersion"] = "1.0.2"  # others say that they don't know 1.2
        config["process"]["args"] = list(arguments)
        config["process"]["terminal"] = False
        config["root"] = {"path": rootfs(), "readonly": True}
        linux = config["linux"]
        kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup", "user", "time")
        linux["namespaces"] = [{"type": kind} for kind in kinds if kind != lacking]
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 65536}]
        linux["resources"] = {
            "devices": [{"allow": False, "access": "rwm"}],
            "cpu": {"shares": 512, "quota": 50000, "period": 100000},
            "memory": {"limit": 64 << 20},
            "pids": {"limit": 100},
        }
        (folder / "config.json").write_text(json.dumps(config))
        yield folder


@functools.cache
def rootfs() -> str:
    """Made once a process."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise Missing("there is no busybox to run; on Debian: apt-get install busybox-static")
    folder = tempfile.mkdtemp(prefix="hostel-bench-", dir="/var/tmp")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.chmod(folder, 0o755)
    for name in ("bin", "proc", "sys", "dev"):
        Path(folder, name).mkdir()
    for name in ("true", "sleep"):
        shutil.copy(busybox, Path(folder, "bin", name))
    return folder


ROWS = [
    Row("life", "create, start and delete of true, from cold (host: crun)", "s", life(False), Goal(slower=1.5)),
    Row("life-warm", "the same through the warm helper", "s", life(True), Goal(slower=1.0)),
    Row("parallel", f"{MANY} containers started at once (host: runc)", "s", parallel(False), Goal(slower=1.0)),
    Row("parallel-warm", f"{MANY} at once through the warm helper", "s", parallel(True), Goal(slower=1.0)),
]
