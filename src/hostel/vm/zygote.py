"""A process from which workers are forked: it has imported all that they need, so that a VM starts at once.

It listens at ``$HOSTEL_HOME/zygote/KEY.sock``. vm/launch sends a request there, with the descriptors that a worker is
started with, and gets a descriptor of the forked process (pidfd). Where there is no zygote, one is started, which takes
no longer than a worker would; who finds that one is just being started waits for it. Where it fails in any way, the
worker is started as a program. ``HOSTEL_ZYGOTE_SECONDS`` is how long one lives after its last use; with 0 there are
none.

A worker must be the same however it was started:

- **The code is what is on the disk.** At each request the zygote looks whether a file that it has imported has changed;
  then it ends.
- **The place is the asker's** (``place``): user, groups, capabilities, namespaces, root, cgroups, limits, processors,
  LSM profile, and what of the environment has a say when Python starts. A zygote serves one place, the one that it was
  started in; ``KEY`` is the place's checksum. The asker's is read from the kernel, not from its words: nobody who has
  been confined gets a worker that isn't. The signals that the asker ignores (SIGINT, with a script's ``&``) the child
  ignores as well.
- **It owns nothing**: no threads, and no descriptors but its socket, those of who asks, and three of /dev/null. What is
  asked is read by the child that is to do it: nothing of a VM's gets into another's worker.

Workers of one zygote share the layout of their address space and Python's hash seed.

A request and the answers to it are one packet each (SOCK_SEQPACKET): the request in JSON with log, ready pipe and, for
a held VM, leash; then the child's ``{"pid": ...}`` with its pidfd, or ``{"refused": why}``; ``go`` from the asker,
without which the child ends; and ``{"status": ...}`` when it has ended, if the asker is still there.

**Commands** (client/quick) are the other thing that a zygote forks, where who started it named a module for them
(``commands``): the request is ``COMMAND``, the number of words, working directory, words and environment, each ended
by a zero byte, with the asker's standard input, output and error; the rest is as with workers. A command ends when its
asker does.
"""

import contextlib
import fcntl
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from hostel.base import paths
from hostel.base.linux import unix
from hostel.vm.place import PYTHONS, ignored, key, place

SECONDS = 600.0
_WAIT = 2.0             # for an answer of a zygote; it takes some milliseconds
_START = 5.0            # for one that is being started; it takes some tenths of a second
_LOOK = 20.0            # seconds between looks whether the socket is still there
_REQUEST_MAX = 1 << 16
_MAX_ASKERS = 128
# Nobody's child: who starts it needn't wait for it. Before anything of ours is imported.
_ORPHAN = "import os, sys\nif os.fork() == 0: os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"
_TITLE_ROOM = 512       # bytes of /proc/PID/cmdline
COMMAND = b"command"    # a request for one begins so

commands = ""           # the module that zygotes started from here run commands with, by its ``load`` and ``main``


def seconds() -> float:
    """How long a zygote lives after its last use; 0: there is to be none."""
    try:
        return max(0.0, float(os.environ.get("HOSTEL_ZYGOTE_SECONDS", SECONDS)))
    except ValueError:
        return SECONDS


def folder() -> Path:
    return paths.home() / "zygote"


class Forked:
    """A worker that a zygote has forked: to vm/launch what subprocess.Popen is."""

    def __init__(self, sock: socket.socket, pid: int, pidfd: int):
        self._sock = sock
        self._pidfd = pidfd
        self.pid = pid

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait(self) -> int | None:
        """Its exit status, negative for a signal; None where its zygote has gone and nobody knows."""
        select.select([self._pidfd], [], [])
        self._sock.settimeout(10 * _WAIT)  # one that has gone is seen at once
        try:
            return int(json.loads(self._sock.recv(_REQUEST_MAX))["status"])
        except (OSError, ValueError, KeyError):
            return None

    def close(self) -> None:
        self._sock.close()
        os.close(self._pidfd)


def ask(argv: list[str], environment: dict[str, str], log: int, fds: dict[str, int]) -> Forked | None:
    """Have a worker forked with ``argv`` and ``environment``, which writes to ``log``, and to which ``fds`` are given
    as the variables of those names; None where no zygote does it."""
    with contextlib.ExitStack() as undo:
        try:
            sock = _connect(folder(), f"{key(place())}.sock")
            if sock is None:
                return None
            undo.callback(sock.close)
            if _peer(sock)[1] != os.geteuid():
                return None
            request = json.dumps({"argv": argv, "environment": environment, "fds": [*fds]})
            socket.send_fds(sock, [request.encode()], [log, *fds.values()])
            data, received, _, _ = socket.recv_fds(sock, _REQUEST_MAX, 1, socket.MSG_CMSG_CLOEXEC)
            for fd in received:
                undo.callback(os.close, fd)
            if not received:
                return None
            pid = int(json.loads(data)["pid"])
            sock.send(b"go")
            sock.settimeout(None)
        except (OSError, ValueError, KeyError):
            return None
        undo.pop_all()
    return Forked(sock, pid, received[0])


def start() -> bool:
    """Have a zygote for this place, in the background: wait for one that is just being started, or start it. False:
    there has been one all along, or it didn't come."""
    until = time.monotonic() + _START
    name = f"{key(place())}.sock"
    came = False
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        while time.monotonic() < until:
            # Locked by one that is being started, until it listens or ends: it inherits the lock.
            lock = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there = _connect(folder(), name)
                if there:
                    there.close()
                if there or came:
                    return came and there is not None
                _start(lock)
            except BlockingIOError:
                time.sleep(0.005)
            finally:
                os.close(lock)
            came = True
    except OSError:
        pass
    return False


def _start(lock: int) -> None:
    import subprocess

    names = (*PYTHONS, "HOME", "PATH", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "HOSTEL_HOME", "HOSTEL_ZYGOTE_SECONDS",
             "HOSTEL_TRANSLATIONS")
    # Its last argument is room for the names of its children.
    command = [sys.executable, "-P", "-m", "hostel.vm.zygote", str(folder()), commands, str(lock), "-" * _TITLE_ROOM]
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", _ORPHAN, *command], cwd="/", pass_fds=[lock],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in names if name in os.environ},
    )


def _connect(where: Path, name: str) -> socket.socket | None:
    """To the zygote that listens at ``name`` in the folder; None where there is none."""
    try:
        fd = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(_WAIT)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{name}")  # an address holds 107 bytes only
    except OSError:
        sock.close()
        return None
    finally:
        os.close(fd)
    return sock


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


# -- the zygote's side


class Zygote:
    """Forks workers for those who ask at ``where``/``name`` from ``here``."""

    def __init__(self, where: Path, name: str, here: str, files: dict[str, tuple[int, ...]], commands: str = ""):
        self._path = where / name
        self._here = here
        self._files = files
        self._commands = commands
        self._askers: dict[int, socket.socket] = {}   # by descriptor
        self._children: dict[int, socket.socket] = {}  # by process: who waits for it
        self._maker = 0        # the process that makes translations (vm/translations)
        self._poll = select.poll()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fd = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        new = f".{os.getpid()}.sock"
        try:
            unix.bind(self._listener, f"/proc/self/fd/{fd}/{new}")
            self._listener.listen(64)
            self._own = (where / new).stat().st_ino
            os.rename(where / new, self._path)
        finally:
            os.close(fd)

    def run(self, idle: float) -> None:
        """Until it hasn't been used for ``idle`` seconds, its files have changed, or its socket is another's."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken)
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(self._listener, select.POLLIN)
        used = time.monotonic()
        try:
            while (left := used + idle - time.monotonic()) > 0 and self._is_there():
                ready = self._poll.poll(min(left, _LOOK) * 1000)
                for fd, events in ready:
                    if fd == self._wake:
                        self._reap()
                    elif fd == self._listener.fileno():
                        self._accept()
                    elif fd in self._askers:
                        if events & ~select.POLLIN:
                            self._dismiss(self._askers[fd])
                        elif not self._serve(self._askers[fd]):
                            return
                        used = time.monotonic()
                if not ready or ready[0][0] == self._wake:
                    self._make_translations()
        finally:
            if self._is_there():
                self._path.unlink()

    def _is_there(self) -> bool:
        try:
            return self._path.stat().st_ino == self._own
        except OSError:
            return False

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._askers) == _MAX_ASKERS or _peer(sock)[1] != os.geteuid():
            sock.close()
            return
        sock.setblocking(False)
        self._askers[sock.fileno()] = sock
        self._poll.register(sock, select.POLLIN)

    def _serve(self, sock: socket.socket) -> bool:
        """False: nobody is to be served any more."""
        if _changed(self._files):
            _tell(sock, {"refused": "files have changed"})
            return False
        try:
            pid = os.fork()
        except OSError as e:
            _tell(sock, {"refused": e.strerror})
            self._dismiss(sock)
            return True
        if pid == 0:
            self._be_child(sock)
        self._poll.modify(sock, 0)  # what comes by it is the child's to read; here it is heard when its end closes
        self._children[pid] = sock
        return True

    def _dismiss(self, sock: socket.socket) -> None:
        self._poll.unregister(sock)
        del self._askers[sock.fileno()]
        for pid in [pid for pid, asker in self._children.items() if asker is sock]:
            del self._children[pid]
        with contextlib.suppress(OSError):  # 'go', if its child never read it: left there, it resets the other end
            sock.recv(_REQUEST_MAX, socket.MSG_DONTWAIT)
        sock.close()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid == self._maker:
                    self._maker = 0
                sock = self._children.get(pid)
                if sock:
                    _tell(sock, {"status": os.waitstatus_to_exitcode(status)})
                    self._dismiss(sock)

    def _make_translations(self) -> None:
        """When VMs have ended: of what they ran, for those to come; whoever else wants the processor comes first."""
        from hostel.vm import translations  # it is there: the worker's

        if self._maker or not translations.enabled() or not translations.waiting():
            return
        with contextlib.suppress(OSError):
            self._maker = os.fork()
            if self._maker == 0:
                status = 1
                try:
                    self._shed(None)
                    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                    _set_title(["hostel", "translations", "make"])
                    translations.make()
                    status = 0
                finally:
                    os._exit(status)

    # -- in the child

    def _shed(self, sock: socket.socket | None) -> None:
        """Be no zygote any more; only ``sock`` is kept of what is one's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._wake)
        os.close(self._woken)
        self._listener.close()
        for asker in self._askers.values():
            if asker is not sock:
                asker.close()

    def _be_child(self, sock: socket.socket) -> None:
        """What fork and exec of who asks, and Python's start, would have made of it. Never returns."""
        status = 1
        try:
            self._shed(sock)
            os.setsid()
            sock.setblocking(True)
            data, fds, _, _ = socket.recv_fds(sock, _REQUEST_MAX, 8, socket.MSG_CMSG_CLOEXEC)
            asker = _peer(sock)[0]
            _ignore(ignored(asker))
            if place(asker) != self._here:
                _tell(sock, {"refused": "it is no request of somebody here"})
            elif data.startswith(COMMAND + b"\0"):
                status = self._command(sock, data, fds)
            else:
                status = self._worker(sock, json.loads(data), fds)
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.stderr)
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)

    def _worker(self, sock: socket.socket, request: dict, fds: list[int]) -> int:
        if len(fds) != 1 + len(request["fds"]):
            _tell(sock, {"refused": "descriptors are missing"})
            return 1
        if not _may_go(sock):
            return 1
        sock.close()
        log, *given = fds
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.environ.update({name: str(fd) for name, fd in zip(request["fds"], given, strict=True)})
        sys.argv = ["hostel.vm.worker", *request["argv"]]
        _set_title([sys.executable, "-P", "-m", *sys.argv])
        from hostel.vm import worker

        return worker.main(request["argv"])

    def _command(self, sock: socket.socket, data: bytes, fds: list[int]) -> int:
        if not self._commands or len(fds) != 3:
            _tell(sock, {"refused": "no commands are run here"})
            return 1
        if not _may_go(sock):
            return 1
        _, number, folder, *rest = data.split(b"\0")[:-1]
        words = [os.fsdecode(word) for word in rest[: int(number)]]
        os.chdir(folder)
        os.environb.clear()
        os.environb.update(dict(entry.split(b"=", 1) for entry in rest[int(number) :]))
        for fd, given in enumerate(fds):
            os.dup2(given, fd)
            os.close(given)
        sys.stdin = open(0, closefd=False)
        sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        _set_title(["hostel", *words])
        _end_with(sock)
        return int(importlib.import_module(self._commands).main(words))


def _ignore(numbers: set[int]) -> None:
    """In the child: these signals, and none else, are ignored, as if Python had started so."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if number in numbers:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.SIGINT not in numbers:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _may_go(sock: socket.socket) -> bool:
    """In the child: who asked gets a descriptor of it, and says that it may go on."""
    pidfd = os.pidfd_open(os.getpid())
    socket.send_fds(sock, [json.dumps({"pid": os.getpid()}).encode()], [pidfd])
    os.close(pidfd)
    return sock.recv(16) == b"go"


def _end_with(sock: socket.socket) -> None:
    """This process ends when who asked for it does."""

    def wait() -> None:
        while sock.recv(16):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _tell(sock: socket.socket, word: dict) -> None:
    with contextlib.suppress(OSError):
        sock.send(json.dumps(word).encode(), socket.MSG_DONTWAIT)


def load() -> None:
    """Import all that a worker may need before it has confined itself."""
    import tomllib  # noqa: F401  vm/store's

    from hostel.block.disk import FORMATS
    from hostel.board.boot import decompress
    from hostel.vm import cards, machine, worker  # noqa: F401

    for row in (*machine.ENGINES.values(), *cards.CARDS.values(), *cards.OPENERS.values(), *FORMATS.values()):
        importlib.import_module(row.partition(":")[0])
    for name in ("hostel.net.process", "hostel.net.settings", "hostel.cpu.bt.keeper"):  # of cards on nat; translations
        importlib.import_module(name)
    decompress.load_all()


def _imported() -> dict[str, tuple[int, ...]]:
    """The files that this process has its code from, as they are now."""
    names = {getattr(module, "__file__", None) for module in list(sys.modules.values())} | {sys.executable}
    return {name: _look(name) for name in names if name}


def _look(name: str) -> tuple[int, ...]:
    try:
        status = os.stat(name)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _changed(files: dict[str, tuple[int, ...]]) -> bool:
    return any(_look(name) != before for name, before in files.items())


def _set_title(words: list[str]) -> None:
    """What ps(1) shows of this process, in the place of its own command line, as far as there is room."""
    import ctypes

    from hostel.base.linux import prctl

    prctl.set_name(os.path.basename(sys.executable))
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start, arg_end (proc_pid_stat(5))
    if begin and end > begin:
        text = b"\0".join(os.fsencode(word) for word in words)[: end - begin - 1]
        ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def _sweep(where: Path) -> None:
    """Remove the sockets of zygotes that were killed."""
    for path in where.glob("*.sock"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with sock, contextlib.suppress(OSError):
            try:
                sock.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def main(where: Path, commands: str, lock: int) -> None:
    """``lock``: a descriptor that is closed once others may ask."""
    begun = time.time_ns()
    os.set_inheritable(lock, False)
    here = place()
    name = f"{key(here)}.sock"
    load()
    if commands:
        importlib.import_module(commands).load()
    files = _imported()
    # A file that came while it imported may not be what it has.
    if any(not seen or seen[-1] >= begun for seen in files.values()):
        return
    import gc

    _sweep(where)
    zygote = Zygote(where, name, here, files, commands)
    os.close(lock)
    _set_title([sys.executable, "-P", "-m", "hostel.vm.zygote", str(where), commands])
    gc.collect()
    gc.freeze()  # a collection in a child would write to pages that it shares
    zygote.run(seconds())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
