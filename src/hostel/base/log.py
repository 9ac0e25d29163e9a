"""Log files of bounded size."""

import os

LOG_SIZE = 4 << 20         # bytes a log file; the one before it is kept


class Log:
    """An append-only file of bounded size: when full it becomes ``NAME.1``. A full disk loses bytes, not the VM."""

    def __init__(self, path: "str | os.PathLike[str]", limit: int = LOG_SIZE):
        self.path = path
        self.lost = 0
        self._limit = limit
        self._fd = self._old_fd = -1
        self._open()

    def write(self, data: bytes | str) -> None:
        if isinstance(data, str):
            data = data.encode(errors="replace")
        try:
            if self._size + len(data) > self._limit and self._size:
                self._turn_over()
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        self._size += written
        self.lost += len(data) - written

    def flush(self) -> None:
        """As a text file's, so that it can be sys.stderr."""

    def close(self) -> None:
        os.close(self._fd)

    def become(self, fd: int, old_fd: int) -> None:
        """Go on in files that another process opened: ``fd``, to which is appended, and ``old_fd`` for ``NAME.1``."""
        os.close(self._fd)
        self._fd, self._old_fd, self._size = fd, old_fd, os.fstat(fd).st_size

    def _turn_over(self) -> None:
        """Begin anew; what was is kept."""
        if self._old_fd < 0:
            os.rename(self.path, f"{self.path}.1")
            os.close(self._fd)
            self._open()
            return
        os.ftruncate(self._old_fd, 0)
        done = 0
        while part := os.pread(self._fd, 1 << 20, done):
            done += os.pwrite(self._old_fd, part, done)
        os.ftruncate(self._fd, 0)
        self._size = 0

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size


def last_line(path: "str | os.PathLike[str]") -> str:
    """For people who wonder why the process that wrote it has ended."""
    try:
        with open(path, errors="replace") as file:
            lines = file.read().strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "it left no log"
