"""A pipe that only its starter's end keeps open: whatever ends the starter ends the VM or container on it."""

import contextlib
import os


class Leash:
    """The starter's end; ``close`` ends what is on it, ``release`` lets it live on."""

    def __init__(self, fd: int):
        self._fd = fd

    def release(self) -> None:
        with contextlib.suppress(OSError):  # it has ended by itself
            os.write(self._fd, b"r")
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def make_leash() -> tuple[Leash, int]:
    """One, and its other end, which is that one's."""
    end, mine = os.pipe()
    return Leash(mine), end
