"""A container's terminal: made from its own devpts, its master handed to who asked, its slave the program's.

What is opened has to be a pseudo terminal's multiplexer, whatever the rootfs put in its place; the slave comes from
the master (TIOCGPTPEER), not from a path.
"""

import contextlib
import os
import struct
from collections.abc import Iterator

from hostel.containers.mounts import Mounts
from hostel.containers.stage import Script, Slot

_OPEN = 2 | 0o400 | 0x80000  # O_RDWR | O_NOCTTY | O_CLOEXEC
_TIOCSPTLCK, _TIOCGPTPEER, _TIOCSWINSZ, _TIOCSCTTY = 0x40045431, 0x5441, 0x5414, 0x540E
_ST_RDEV = 40  # in struct stat


def make(script: Script, world: Mounts, connection: int, process: dict) -> Slot:
    """At creation: also /dev/console."""
    script.doing = "making the container's terminal"
    master = script.slot()
    how = script.place(struct.pack("<QQQ", _OPEN, 0, 0x10 | 0x02))
    script.call("openat2", world.root, "dev/pts/ptmx", how, 24, to=master)
    slave = _slave(script, master, connection, process)
    tree = script.slot()
    script.call("open_tree", slave, "", 1 | 0x80000 | 0x1000, to=tree)
    target = world.resolve("/dev/console", False)
    script.call("move_mount", tree, "", target, "", 0x44)
    script.call("close", target)
    script.call("close", tree)
    return slave


def make_inside(script: Script, connection: int, process: dict) -> Slot:
    """For a process that joins a container, when it is in."""
    script.doing = "making a terminal"
    master = script.slot()
    script.call("openat", -100, "/dev/ptmx", _OPEN, 0, to=master)
    return _slave(script, master, connection, process)


def _slave(script: Script, master: Slot, connection: int, process: dict) -> Slot:
    status, slave = script.place(bytes(144)), script.slot()
    script.call("fstat", master, status)
    script.test(status + _ST_RDEV, -1, os.makedev(5, 2), what="the container's /dev/ptmx is no terminal multiplexer")
    script.call("ioctl", master, _TIOCSPTLCK, script.place(bytes(8)))
    script.call("ioctl", master, _TIOCGPTPEER, _OPEN, to=slave)
    size = process.get("consoleSize")
    if size:
        script.call("ioctl", slave, _TIOCSWINSZ, script.place(struct.pack("<4H", size["height"], size["width"], 0, 0)))
    script.call("fchown", slave, (process.get("user") or {}).get("uid", 0), -1)
    control = script.place(struct.pack("<QiiQ", 20, 1, 1, 0))  # SCM_RIGHTS
    script.copy(control + 16, master)
    name = b"/dev/ptmx"
    vector = script.place(struct.pack("<QQ", script.text(name), len(name)))
    message = script.place(struct.pack("<QIxxxxQQQQQ", 0, 0, vector, 1, control, 24, 0))
    script.call("sendmsg", connection, message, 0x4000, what="handing over the terminal")  # MSG_NOSIGNAL
    script.call("close", master)
    script.call("close", connection)
    return slave


def take(script: Script, slave: Slot) -> None:
    """As the controlling terminal and the standard descriptors; the session is the process's own."""
    script.doing = "taking the terminal"
    script.call("ioctl", slave, _TIOCSCTTY, 0)
    for number in range(3):
        script.call("dup2", slave, number)
    script.call("close", slave)


def receive(connection: int) -> int:
    """The master that came over the other end of a socket pair."""
    import socket

    end = socket.socket(fileno=connection)
    try:
        _, fds, _, _ = socket.recv_fds(end, 64, 1)
    finally:
        end.detach()
    os.set_inheritable(fds[0], False)
    return fds[0]


@contextlib.contextmanager
def relayed(master: int) -> Iterator[None]:
    """Our own terminal, raw, is the container's until the end of the block; then its last output is written."""
    import signal
    import threading

    from hostel.base.linux import tty

    def resize(*_: object) -> None:
        import fcntl
        import termios

        rows, columns = tty.size(0)
        if rows:
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def copy(source: int, target: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(source, 65536):
                while data:
                    data = data[os.write(target, data):]

    resize()
    old = signal.signal(signal.SIGWINCH, resize)
    out = threading.Thread(target=copy, args=(master, 1), daemon=True)
    out.start()
    threading.Thread(target=copy, args=(0, master), daemon=True).start()
    with tty.raw(0) if tty.is_tty(0) else contextlib.nullcontext():
        try:
            yield
            out.join(2)
        finally:
            signal.signal(signal.SIGWINCH, old)
