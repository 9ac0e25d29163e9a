"""Starting a VM's worker from another process, and ending it by force.

A worker is forked from a zygote (vm/zygote), or, where there is none, started as a program.

The worker's first word comes through a pipe: one JSON line, ``{"ok": true}`` once the guest runs, or the
error that a person should read. What it prints goes to worker.log in the VM's folder.

A VM that belongs to its starter has a leash, a pipe that only the starter's end keeps open: whatever ends the
starter ends the VM.
"""

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hostel.base.errors import MachineError
from hostel.base.leash import Leash, first_word, make_leash
from hostel.base.log import last_line
from hostel.base.units import format_rough
from hostel.spec.vm import VmSpec, VmState
from hostel.vm import zygote
from hostel.vm.store import Folder

if TYPE_CHECKING:
    import subprocess

WORKER = "hostel.vm.worker"
START_TIMEOUT = 60.0    # to build a machine; seconds
# What a worker may see of its starter's environment: no secrets live in a process that runs guests.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "TMPDIR")


def host_memory() -> int:
    """Bytes that this host can promise to one VM: its RAM and swap, less what a cgroup or limit denies."""
    total = 0
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith(("MemTotal:", "SwapTotal:")):
                total += int(line.split()[1]) << 10
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def check_host(spec: VmSpec) -> None:
    """``MachineError`` where this host can't give what ``spec`` asks for."""
    promise = host_memory()
    if spec.memory > promise:
        raise MachineError(
            f"this host can't give {format_rough(spec.memory)} of memory: it has {format_rough(promise)}"
        )


def start(folder: Folder, held: bool, snapshot: Path | None = None) -> Leash | None:
    """Start the worker of the VM in ``folder``, at the state in ``snapshot`` (vm/snapshot) if that is given; returns
    once the guest runs, of a ``held`` one with its leash. ``MachineError`` says why it doesn't."""
    reader, writer = os.pipe()
    environment = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith("HOSTEL_")}
    if snapshot:
        environment["HOSTEL_SNAPSHOT"] = str(snapshot)
    theirs = {"HOSTEL_READY_FD": writer}
    leash = None
    if held:
        leash, theirs["HOSTEL_LEASH_FD"] = make_leash()
    log = folder.path / "worker.log"
    try:
        worker = _worker(folder, environment, log, theirs)
    except OSError as e:
        os.close(reader)
        raise MachineError(f"can't start the worker: {e.strerror}") from e
    finally:
        for fd in theirs.values():
            os.close(fd)
    try:
        return _started(folder, worker, reader, log, leash)
    finally:
        os.close(reader)
        if isinstance(worker, zygote.Forked):
            worker.close()


def _worker(
    folder: Folder, environment: dict[str, str], log: Path, theirs: dict[str, int]
) -> "zygote.Forked | subprocess.Popen":
    """Its process, to which the descriptors ``theirs`` are given as the variables of those names."""
    with open(log, "ab", buffering=0) as output:
        if zygote.seconds() and WORKER == "hostel.vm.worker":  # tests have others
            request = [str(folder.path)], environment, output.fileno(), theirs
            forked = zygote.ask(*request)
            if not forked and zygote.start():
                forked = zygote.ask(*request)
            if forked:
                return forked
        import subprocess  # which most don't need

        return subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, str(folder.path)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[*theirs.values()],
            env={**environment, **{name: str(fd) for name, fd in theirs.items()}}, start_new_session=True, cwd="/",
        )


def _started(
    folder: Folder, worker: "zygote.Forked | subprocess.Popen", reader: int, log: Path, leash: Leash | None
) -> Leash | None:
    """The leash, once the worker's guest runs."""
    try:
        word = first_word(reader, START_TIMEOUT)
    except BaseException:  # Ctrl-C while it starts
        worker.kill()
        worker.wait()
        raise
    if word is None:
        worker.kill()
        raise MachineError(f"the worker didn't start within {START_TIMEOUT:.0f} s; see {log}")
    if not word:
        status = worker.wait()
        how = "" if status is None else f" by signal {-status}" if status < 0 else f" with status {status}"
        raise MachineError(f"the worker ended{how} at its start: {last_line(log)}")
    if "error" in word:
        worker.wait()
        raise MachineError(word["error"])
    return leash


def kill(folder: Folder, reason: str = "killed") -> None:
    """SIGKILL the worker that owns ``folder``, wait until it is gone, and write down that it was us."""
    state = folder.state()
    pid = state.pid
    if not folder.owned() or not pid:
        return
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if folder.owned() and folder.state().pid == pid:  # so that no other process has that pid
            state.reason = reason  # before: who waits for its end may look at once
            folder.write_state_anyway(state)
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], 10.0)
            folder.wait_free(10.0)  # it may have had a process that wrote a snapshot
    except ProcessLookupError:
        pass
    finally:
        os.close(process)
    if folder.path.exists() and not folder.owned():
        state = folder.state()
        folder.write_state(
            VmState(
                state="stopped", created=state.created, started=state.started, stopped=time.time(), reason=reason
            )
        )
