"""A peer's console: bytes over a pair of pipes, each with the time at which it came."""

import os
import re
import select
import subprocess
import time

from bench.errors import BenchError

_TAIL = 400  # characters of output that an error shows


class Console:
    """Reads what ``process`` writes to its stdout and types on its stdin. Times are ``time.monotonic()``."""

    def __init__(self, process: subprocess.Popen, name: str):
        assert process.stdin and process.stdout
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._name = name
        self._data = b""

    def type(self, text: str) -> None:
        data = text.encode()
        try:
            while data:
                data = data[os.write(self._in, data) :]
        except BrokenPipeError:
            raise BenchError(f"{self._name} has ended: {self._tail()}") from None

    def expect(self, pattern: bytes, timeout: float) -> tuple[float, re.Match[bytes], bytes]:
        """Wait for ``pattern``: when its last byte came, the match, and what stood before it. Bytes up to the
        match's end are used up."""
        deadline = time.monotonic() + timeout
        wanted = re.compile(pattern)
        now = time.monotonic()
        while not (match := wanted.search(self._data)):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._out], [], [], left)[0]:
                what = pattern.decode(errors="replace")
                raise BenchError(f"{self._name} hasn't said '{what}' within {timeout:.0f} s: {self._tail()}")
            data = os.read(self._out, 1 << 16)
            now = time.monotonic()
            if not data:
                raise BenchError(f"{self._name} ended too early: {self._tail()}")
            self._data += data
        before = self._data[: match.start()]
        self._data = self._data[match.end() :]
        return now, match, before

    def _tail(self) -> str:
        return repr(self._data[-_TAIL:].decode(errors="replace"))
