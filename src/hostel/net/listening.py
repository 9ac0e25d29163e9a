"""The sockets of ports of the host's that lead to guests: they are opened before the process that serves them confines
itself, as those below 1024 take root."""

import errno
import socket

from hostel.base.errors import NetworkError

TYPE_CHECKING = False
if TYPE_CHECKING:  # as in net/settings
    from hostel.spec.net import Forward

BACKLOG = 128


def listen(forward: "Forward") -> socket.socket:
    """The socket of a forward; ``NetworkError`` says who has it already or why not."""
    address = forward.address
    kind = socket.SOCK_DGRAM if forward.protocol == "udp" else socket.SOCK_STREAM
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" is all of both families, another address is itself
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        sock.bind((address, forward.host_port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        why = {
            errno.EADDRINUSE: "another program has it",
            errno.EACCES: "ports below 1024 take root",
            errno.EADDRNOTAVAIL: "that address isn't this host's",
        }.get(e.errno or 0, e.strerror)
        raise NetworkError(f"can't listen on {forward.protocol} port {forward.host_port} of {address}: {why}") from e
    return sock
