"""Unix sockets that are their owner's only (unix(7))."""

import os

from hostel.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


def bind(sock: "socket.socket", path: "str | os.PathLike[str]") -> None:
    """Bind ``sock`` to ``path``, born with mode 0600: Linux takes it from the socket's own (net/unix/af_unix.c,
    unix_bind_bsd). The umask would do it as well, but is all threads': a folder that another makes meanwhile
    couldn't be entered."""
    os.fchmod(sock.fileno(), 0o600)
    sock.bind(os.fspath(path))
