"""The user's terminal: raw mode that is always undone, and its size."""

import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Iterator


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key goes through as it is typed, Ctrl-C and Ctrl-Z too; the old settings come back at the end."""
    old = termios.tcgetattr(fd)
    new = termios.tcgetattr(fd)
    new[0] &= ~(
        termios.BRKINT | termios.ICRNL | termios.IGNBRK | termios.IGNCR | termios.INLCR | termios.INPCK
        | termios.ISTRIP | termios.IXON | termios.PARMRK
    )
    new[1] &= ~termios.OPOST
    new[2] = (new[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    new[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
    new[6][termios.VMIN] = 1
    new[6][termios.VTIME] = 0
    termios.tcsetattr(fd, termios.TCSADRAIN, new)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may have gone
            termios.tcsetattr(fd, termios.TCSADRAIN, old)


def size(fd: int) -> tuple[int, int]:
    """Rows and columns; (0, 0) where ``fd`` is no terminal."""
    try:
        rows, cols, _, _ = struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return 0, 0
    return rows, cols


def is_tty(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
