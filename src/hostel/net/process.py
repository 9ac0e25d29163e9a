"""The process of a network: the router, and the switch between its guests (net/router), confined to what it needs.

``start`` forks it from a process that has little yet: a VM's worker before its machine, as a rule. That costs a few
milliseconds and shares the interpreter's memory; what only the router needs is imported in the child. Forwarded ports
are opened before the fork, so that who asked for a port that is taken hears it.

Each guest's card is one end of a SOCK_SEQPACKET pair whose messages are frames (net/ethernet). The process ends
when the last of them is closed. It keeps sockets of the internet's families; of files, only reading in the folder of
resolv.conf, which may be replaced at any time. Root's becomes nobody, so that this is what everybody may read.
"""

import contextlib
import functools
import gc
import itertools
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Sequence

from hostel.base.errors import NetworkError
from hostel.base.linux import identity, landlock, namespace, prctl, seccomp
from hostel.base.typed import Any
from hostel.net.counters import COUNTERS
from hostel.net.listening import listen
from hostel.net.settings import Guest, Settings

NOBODY = 65534
SOCKET_BUFFER = 4 << 20       # between a card and its port, asked for: the kernel gives what net.core.wmem_max allows
MAX_DESCRIPTORS = 1 << 16
_NAMESPACES = ("ipc", "uts", "cgroup")  # not net: it is the host's network that guests go out by


class Process:
    """A network's process, from outside. ``fds``: for each guest that came without one its card's end,
    non-blocking, which is the caller's."""

    def __init__(self, pid: int, fds: list[int], forwards: list[str], shared: mmap.mmap):
        self.pid = pid
        self.fds = fds
        self.forwards = forwards   # as they listen
        self._shared = shared

    def describe(self) -> dict[str, Any]:
        """For inspect: which process, what leads to guests, what it has counted."""
        return {"pid": self.pid, "forwards": self.forwards, **self.counters()}

    def counters(self) -> dict[str, int]:
        """What it has counted, up to a second ago; empty until it runs."""
        values = struct.unpack_from(f"={len(COUNTERS)}Q", self._shared)
        return dict(zip(COUNTERS, values, strict=True)) if any(values) else {}


def become(settings: Settings, guest: Guest, listeners: list[tuple[socket.socket, int]], leash: int) -> None:
    """Have this process, a forked child, be the network of one guest with a tap; never returns. For who is smaller than
    what ``start`` needs."""
    _child(settings, [guest], [guest.fd], [listeners], mmap.mmap(-1, mmap.PAGESIZE), set(), [1], leash)


def start(
    settings: Settings, guests: Sequence[Guest], keep: Sequence[int] = (), apart: Sequence[int] = (), leash: int = -1,
    log: int = -1,
) -> Process:
    """Fork the process of a network with these guests; of several, where ``apart`` says how many guests each has.
    ``keep``: descriptors that it shall keep for the caller, open and unused. It ends with the other end of the pipe
    ``leash``, if that is given: a tap, unlike a socket, doesn't tell when its guest has gone. ``log``: where its output
    goes, if not to the caller's. Raises NetworkError."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    pairs: list[tuple[socket.socket, socket.socket]] = []
    fds: list[int] = []
    listeners: list[list[tuple[socket.socket, int]]] = []
    told = []
    try:
        for guest in guests:
            fds.append(guest.fd)
            if guest.fd < 0:
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
                pairs.append(pair)
                fds[-1] = pair[0].fileno()
                for sock in pair:
                    sock.setblocking(False)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            own: list[tuple[socket.socket, int]] = []
            listeners.append(own)
            for forward in guest.forwards:
                sock = listen(forward)
                own.append((sock, forward.guest_port))
                address, port = sock.getsockname()[:2]
                address = f"[{address}]" if ":" in address else address
                told.append(f"{address}:{port}:{forward.guest_port}{'/udp' if forward.protocol == 'udp' else ''}")
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            if log >= 0:
                os.dup2(log, 1)
                os.dup2(log, 2)
            _child(settings, guests, fds, listeners, shared, set(keep), apart or [len(guests)], leash)
    except OSError as e:
        raise NetworkError(f"can't start a network: {e.strerror}") from e
    finally:
        for own in listeners:
            for sock, _ in own:
                sock.close()
        for ours, _ in pairs:
            ours.close()
    return Process(pid, [theirs.detach() for _, theirs in pairs], told, shared)


def _child(settings: Settings, guests: Sequence[Guest], fds: list[int],
           listeners: list[list[tuple[socket.socket, int]]], shared: mmap.mmap, keep: set[int],
           apart: Sequence[int], leash: int) -> None:
    """Never returns: what the parent had on its stack and heap is not this process's to finish."""
    status = 1
    try:
        gc.freeze()  # and nothing of the parent's is collected, with descriptors whose numbers are others' now
        keep |= {*fds} | {sock.fileno() for own in listeners for sock, _ in own} | {leash} - {-1}
        last = 2
        for fd in sorted(keep):
            os.closerange(last + 1, fd)
            last = fd
        os.closerange(last + 1, 1 << 20)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        prctl.set_name("hostel-net")
        from hostel.base.loop import READ, Loop
        from hostel.net.router import Network

        confine(settings)
        loop = Loop()
        ports = zip(guests, fds, listeners, strict=True)
        networks: list[Network] = []
        alone = len(apart) == 1
        if leash >= 0:
            loop.watch(leash, READ, lambda _: loop.stop())

        def empty(network: Network) -> None:
            networks.remove(network)
            if not networks:
                loop.stop()

        for count in apart:
            network = Network(loop, settings)
            networks.append(network)
            network.on_empty = functools.partial(empty, network)
            for guest, fd, own in itertools.islice(ports, count):
                network.add_port(fd, guest.mac, guest.name, own)
        values = memoryview(shared).cast("Q")

        def publish() -> None:
            for index, value in enumerate(networks[0].counters().values()):
                values[index] = value

        assert len(COUNTERS) <= len(values)
        if alone:
            publish()
            networks[0].publish = publish
        loop.run()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


def confine(settings: Settings) -> None:
    """Give up all but sockets and resolv.conf's folder, for ever."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if os.environ.get("HOSTEL_UNCONFINED") == "1":
        return
    namespace.leave(user=os.geteuid() != 0, names=_NAMESPACES)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # in a user namespace there may be no other user
            identity.become(NOBODY)
    namespace.drop_capabilities()
    prctl.set_no_new_privs()
    prctl.set_dumpable(False)
    folders = {os.path.dirname(path) for path in (settings.resolv_conf, os.path.realpath(settings.resolv_conf))}
    landlock.restrict([(folder, landlock.READ_FILE) for folder in folders], connect=True)
    seccomp.restrict((), seccomp.NETWORK, seccomp.NETWORK_LIMITED)
