"""vsock's unix sockets, opened before the worker confines itself: the listening one, and the broker (vm/broker)."""

import contextlib
import errno
import os
import socket
from pathlib import Path

from hostel.base import paths
from hostel.base.errors import MachineError
from hostel.base.linux import unix
from hostel.spec.net import VSOCK
from hostel.spec.vm import VmSpec
from hostel.vm.broker import Broker

BACKLOG = 64


class Ends:
    """What devices/virtio/vsock needs of the host. Closing removes the socket from its folder, where we may."""

    def __init__(self, path: Path):
        self.path = path
        self.listener = listen(path)
        try:
            self.broker = Broker(path)
        except BaseException:
            self.close()
            raise

    def release(self) -> None:
        """Somebody else has them now."""
        self.listener.close()
        self.broker.close()

    def close(self) -> None:
        self.listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        if hasattr(self, "broker"):
            self.broker.close()


def open_vsock(spec: VmSpec) -> list[Ends]:
    """The ends of the VM's one vsock card. Raises MachineError."""
    return [Ends(paths.vms() / spec.name / VSOCK if spec.vsock == VSOCK else Path(spec.vsock))]


def listen(path: Path) -> socket.socket:
    """A unix socket at ``path``, of mode 0600. One that nobody listens on any more is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            where = f"/proc/self/fd/{folder}/{path.name}"  # whose length doesn't matter
            if _is_left(where):
                os.unlink(where)
            unix.bind(sock, where)
        finally:
            os.close(folder)
        sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        why = "it exists already" if e.errno == errno.EADDRINUSE else e.strerror or str(e)
        raise MachineError(f"can't make vsock's socket {path}: {why}") from e
    return sock


def _is_left(path: str) -> bool:
    """Whether a socket is there with nobody behind it."""
    if not os.path.exists(path):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED
