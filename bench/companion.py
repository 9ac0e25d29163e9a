"""A process beside QEMU, which QEMU connects to by a unix socket."""

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.errors import BenchError

START_TIMEOUT = 10.0


class Companion:
    """``command`` makes its command line of the socket's path; ``BenchError`` where it doesn't start."""

    def __init__(self, name: str, command: Callable[[Path], list[str]]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"hostel-{name}-")
        self.socket = Path(self._folder.name, "socket")
        Path(self._folder.name).chmod(0o755)  # some become users of their own
        self._process = subprocess.Popen(
            command(self.socket), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise BenchError(f"{name} doesn't start")
            time.sleep(0.05)

    def pids(self) -> list[int]:
        """Its own, and those of processes in namespaces of their own which do its work."""
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
