"""Who connects for a worker that may open no sockets: a process that does nothing else.

A guest's program that connects to port N of the host (virtio-vsock, CID 2) reaches the unix socket ``PATH_N``, as with
Firecracker and Cloud Hypervisor. The worker asks for it by its number alone, and gets the connected socket
(SCM_RIGHTS) or an errno. So a worker that a guest has taken over reaches the sockets that somebody put there for it,
and nothing else. The broker is forked before the worker confines itself, confines itself too, and ends with it.
"""

import array
import errno
import os
import resource
import signal
import socket
import struct
from pathlib import Path

from hostel.base.linux import landlock, namespace, prctl, seccomp

_REQUEST = struct.Struct("<II")  # a number of the asker's, the port
_ANSWER = struct.Struct("<Ii")   # that number, an errno
MAX_WAITING = 128                # requests on their way, from the worker's side


class Broker:
    """The worker's end. ``fd`` is readable when ``take`` has an answer."""

    def __init__(self, path: Path):
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = self._ours.fileno()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                serve(theirs.detach(), path)
            finally:
                os._exit(0)
        theirs.close()
        self._ours.setblocking(False)

    def ask(self, number: int, port: int) -> bool:
        """Have a connection made; False where the broker doesn't take the request."""
        try:
            self._ours.send(_REQUEST.pack(number, port))
        except OSError:
            return False
        return True

    def take(self) -> tuple[int, socket.socket | None] | None:
        """An answer: the request's number and its connection, None where there is none to be had. None: no answer
        yet. ``EOFError`` where the broker has gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._ours, _ANSWER.size, 1)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        if len(data) != _ANSWER.size:
            raise EOFError
        number, _ = _ANSWER.unpack(data)
        return number, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fds[0]) if fds else None

    def close(self) -> None:
        self._ours.close()


def serve(fd: int, path: Path) -> None:
    """The broker's life, in a process of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(fd, 3)
    os.closerange(4, 1 << 20)
    os.chdir(path.parent)
    prctl.set_name("vsock-broker")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock = socket.socket(fileno=3)
    if os.environ.get("HOSTEL_UNCONFINED") != "1":
        # No namespaces of its own: a network's would hide abstract sockets only, which it names none of.
        namespace.drop_capabilities(but=namespace.DAC_OVERRIDE)
        prctl.set_no_new_privs()
        prctl.set_dumpable(False)
        landlock.restrict([])
        seccomp.restrict((), seccomp.BROKER, seccomp.BROKER_LIMITED)
    while True:
        request = sock.recv(_REQUEST.size)
        if len(request) != _REQUEST.size:
            return
        number, port = _REQUEST.unpack(request)
        fds: list[int] = []
        error = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as guest:
            error = guest.connect_ex(f"{path.name}_{port}")
            if not error:
                fds.append(guest.fileno())
            answer = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sock.sendmsg([_ANSWER.pack(number, error)], answer)
            except OSError as failed:
                if failed.errno != errno.ETOOMANYREFS:  # it has taken none of the last ones
                    return
                sock.sendmsg([_ANSWER.pack(number, failed.errno)])
