"""Starting a container's monitor from another process, and ending it by force; as vm/launch does for workers.

The monitor's first word comes through a pipe: one JSON line, ``{"ok": true}`` once the container runs (or, where who
starts it wants to be at its streams from the beginning, once it is made), or the error that a person should read.
"""

import contextlib
import os
import select
import signal
import sys
import time

from hostel.base.errors import ContainerError
from hostel.base.leash import Leash, first_word, make_leash
from hostel.base.linux import prctl
from hostel.base.log import last_line
from hostel.containers import engine
from hostel.containers.store import Folder
from hostel.spec.container import ContainerState

_monitors: set[int] = set()   # this process's children; those that have ended are waited for when the next one starts
START_TIMEOUT = 120.0         # an image may have to be unpacked; seconds
_ENVIRONMENT = ("HOME", "LANG", "PATH", "TMPDIR", "XDG_RUNTIME_DIR")
# The interpreter is isolated (-I) and reads no site-packages until a hand needs them: where they are is told here.
_START = """
import os, sys
sys.path += sys.argv[1].split(":")
from hostel.containers import monitor
status = monitor.main(sys.argv[2:])
sys.stderr.flush()
os._exit(status)
"""


def start(folder: Folder, held: bool, attached: bool = False) -> Leash | None:
    """Start the container in ``folder``; returns once it runs, or, if ``attached``, once it waits for ``start``. The
    leash is that of a ``held`` one."""
    folder.spec()  # whether it makes sense
    owner = folder.take()
    try:
        engine.clear_owned(folder)
        return _start(folder, owner, held, attached)
    finally:
        os.close(owner)


def _start(folder: Folder, owner: int, held: bool, attached: bool) -> Leash | None:
    """The same, where the folder is ours, and then the monitor's: nobody can come between."""
    reader, writer = os.pipe()
    leash, theirs = make_leash() if held else (None, -1)
    environment = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith("HOSTEL_")}
    environment |= {"HOSTEL_READY_FD": str(writer), "HOSTEL_LEASH_FD": str(theirs), "HOSTEL_OWNER_FD": str(owner)}
    if attached:
        environment["HOSTEL_ATTACHED"] = "1"
    places = ":".join(dict.fromkeys(path for path in sys.path if path and os.path.isdir(path)))
    argv = [sys.executable, "-I", "-S", "-c", _START, places, str(folder.path)]
    try:
        with open(folder.path / "monitor.log", "ab", buffering=0) as log:
            pid = _spawn(argv, environment, log.fileno(), {writer, theirs, owner} - {-1})
    except OSError as e:
        os.close(reader)
        raise ContainerError(f"can't start the monitor: {e.strerror}") from e
    finally:
        os.close(writer)
        if theirs >= 0:
            os.close(theirs)
    try:
        word = first_word(reader, START_TIMEOUT)
    except BaseException:  # Ctrl-C while it starts
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.close(reader)
    if word is None:
        os.kill(pid, signal.SIGKILL)
        raise ContainerError(f"the container didn't start within {START_TIMEOUT:.0f} s")
    if word.get("ok"):
        return leash
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)  # with which the folder is ours alone again
    said = word.get("error") or f"the monitor ended at its start: {last_line(folder.path / 'monitor.log')}"
    error = ContainerError(said)
    error.status = word.get("status") or error.status
    raise error


def _spawn(argv: list[str], environment: dict[str, str], log: int, keep: set[int]) -> int:
    """In a session of its own, and as what orphans of the container go to (PR_SET_CHILD_SUBREAPER, which stays over
    exec)."""
    sys.stderr.flush()
    for ended in [pid for pid in list(_monitors) if _has_ended(pid)]:  # other threads may be at it as well
        _monitors.discard(ended)
    pid = os.fork()
    if pid:
        _monitors.add(pid)
        return pid
    try:
        os.setsid()
        prctl.set_subreaper()
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, number in ((null, 0), (log, 1), (log, 2)):
            os.dup2(fd, number)
        for fd in keep:
            os.set_inheritable(fd, True)
        last = 2
        for fd in sorted(keep):
            os.closerange(last + 1, fd)
            last = fd
        os.closerange(last + 1, 1 << 20)
        os.chdir("/")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.execve(argv[0], argv, environment)
    finally:
        os._exit(127)


def _has_ended(pid: int) -> bool:
    """Whether this child has, and is remembered by nobody any more."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def kill(folder: Folder) -> None:
    """Get rid of a monitor that doesn't answer, and of what it leaves."""
    state = folder.read_state()
    if folder.owned() and state.pid:
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(state.pid)
            try:
                if folder.owned() and folder.read_state().pid == state.pid:  # so that no other process has that PID
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    select.select([process], [], [], 10.0)
                    folder.wait_free(10.0)
            finally:
                os.close(process)
    engine.clear_up(folder)
    if folder.path.exists() and not folder.owned():
        state = folder.read_state()
        folder.write_state(ContainerState(
            state="stopped", created=state.created, started=state.started, stopped=time.time(), reason="killed",
            exit_status=137,
        ))
