"""What a VM or container and its starter have to do with each other: a pipe that only the starter's end keeps open, so
that whatever ends the starter ends what is on it, and another by which one says that it has started."""

import contextlib
import json
import os
import select
import time


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


def first_word(reader: int, timeout: float) -> dict | None:
    """The line, in JSON, by which what was started says how it is; empty where it ended without one; None after
    ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(reader, 65536)
        if not part:
            return {}
        data += part
    word = json.loads(data)
    return word if isinstance(word, dict) else {}
