"""Commands by a zygote (vm/zygote), which has imported all that they need: a tenth of a second less to wait for.

``ask`` is what the command that was typed does then: it hands over its words, folder, environment and standard files,
and its signals, and ends as the command does. Imported are what Python has built in, and vm/place: that is the point.
The zygote's side is cli/served.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import os

from hostel.base import home
from hostel.vm import place

# Those that are wanted often and by programs, and that don't live long.
COMMANDS = {"run", "exec", "fork", "cp", "ps", "inspect", "snapshot", "suspend", "resume"}
_REQUEST_MAX = 1 << 16
_FORWARDED = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGWINCH, _signal.SIGUSR1)
_WAIT = 2.0  # for an answer; it takes some milliseconds


def ask(argv: list[str]) -> int | None:
    """The exit status; None where no zygote runs the command."""
    if os.environ.get("HOSTEL_ZYGOTE_SECONDS") == "0":
        return None
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(_WAIT)
        pid, pidfd = _begin(sock, argv)
        if not pid:
            return None
        before = [(number, _signal.signal(number, lambda n, _: _forward(pidfd, n))) for number in _FORWARDED]
        try:
            sock.send(b"go")
            sock.settimeout(None)
            status = int(sock.recv(_REQUEST_MAX).rpartition(b" ")[2].rstrip(b"}"))
        except (OSError, ValueError):
            os.write(2, b"hostel: the process that runs commands has gone, and how this one ended isn't known\n")
            return 125
        finally:
            for number, action in before:
                _signal.signal(number, action)
            os.close(pidfd)
    finally:
        sock.close()
    if status < 0:
        if -status != _signal.SIGKILL:
            _signal.signal(-status, _signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _begin(sock: _socket.socket, argv: list[str]) -> tuple[int, int]:
    """The command's process, which waits for 'go', and a descriptor of it; (0, -1) where there is none."""
    try:
        environment = [name + b"=" + value for name, value in os.environb.items()]
        words = [b"command", b"%d" % len(argv), os.getcwdb(), *map(os.fsencode, argv), *environment]
        request = b"\0".join(words) + b"\0"
        if len(request) > _REQUEST_MAX:
            return 0, -1
        sock.connect(f"{home.home()}/zygote/{place.key(place.place())}.sock")
        peer = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        if int.from_bytes(peer[4:8], "little") != os.geteuid():
            return 0, -1
        standard = b"".join(fd.to_bytes(4, "little") for fd in (0, 1, 2))
        sock.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, standard)])
        data, received, _, _ = sock.recvmsg(_REQUEST_MAX, _socket.CMSG_LEN(4), _socket.MSG_CMSG_CLOEXEC)
        if not received:
            return 0, -1
        return int(data.rpartition(b" ")[2].rstrip(b"}")), int.from_bytes(received[0][2], "little")
    except (OSError, ValueError):
        return 0, -1


def _forward(pidfd: int, number: int) -> None:
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass  # it has just ended


def serve() -> None:
    """Zygotes that are started by this process run commands."""
    from hostel.vm import zygote

    zygote.commands = "hostel.cli.served"  # by name, as the command line is a user of this room
