"""What is at the other end of a machine's network: the host's server of streams, and passt for QEMU."""

import contextlib
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator

from bench.companion import Companion
from bench.errors import BenchError

# Guests' addresses, by card: eth0's are QEMU's user network's and hostel's, eth1's are what passt is told.
GATEWAYS = ("10.0.2.2", "10.0.3.2")
SETUP = (
    "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; "
    "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2; "
    "if [ -e /sys/class/net/eth1 ]; then ip link set eth1 mtu 65520 up && ip addr add 10.0.3.15/24 dev eth1; fi; "
    "until ping -c 1 -W 1 10.0.2.2 >/dev/null; do :; done"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def server() -> Iterator[int]:
    """Serves programs/net.c on the host's loopback; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _serve(listener: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        with sock, contextlib.suppress(OSError, struct.error):
            out, size = struct.unpack("=QQ", sock.recv(16, socket.MSG_WAITALL))
            left = size
            if out:
                while got := sock.recv_into(buffer):
                    left -= got
                sock.sendall(struct.pack("=Q", size - left))
            while left and not out:
                left -= sock.send(memoryview(buffer)[:left])


class Passt(Companion):
    """A passt process."""

    def __init__(self) -> None:
        super().__init__("passt", lambda socket: [
            "passt", "-f", "-q", "-s", str(socket), "-a", "10.0.3.15", "-n", "24", "-g", GATEWAYS[1],
            *(["--runas", "0"] if os.geteuid() == 0 else []),
        ])  # fmt: skip


def has_passt() -> bool:
    """Whether there is one that can start: it wants a route to somewhere."""
    if not shutil.which("passt"):
        return False
    try:
        Passt().close()
    except BenchError:
        return False
    return True
