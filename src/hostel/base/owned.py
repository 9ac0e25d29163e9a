"""A folder with a lock, whose holder owns what it describes, a VM or a container: its worker or monitor while it runs,
else for a moment whoever removes it.

The file that describes it is the first to go when it is removed, so that a folder without one is leftovers.
"""

import os
import time
from pathlib import Path

from hostel.base import atomic
from hostel.base.errors import MachineError
from hostel.base.linux import lock


class OwnedFolder:
    kind = ""                         # what it is of, for people
    described_by = ""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.lock_fd = -1             # once it is taken

    def owned(self) -> bool:
        """Whether a process holds the lock."""
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return lock.is_taken(fd)
        finally:
            os.close(fd)

    def wait_free(self, seconds: float) -> bool:
        """Return once no process owns it, or when the time is over: whether none does."""
        deadline = time.monotonic() + seconds
        while (owned := self.owned()) and time.monotonic() < deadline:
            time.sleep(0.001)
        return not owned

    def take(self) -> int:
        """Become the owner until the returned descriptor is closed; ``MachineError`` where another is."""
        path = self.path / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise MachineError(f"there is no {self.kind} named '{self.name}'") from None
        except OSError as e:
            raise MachineError(f"can't lock {path}: {atomic.ADVICE.get(e.errno or 0, e.strerror)}") from e
        try:
            # The folder may have been removed, and made again, between open and lock.
            if lock.take(fd) and os.path.samestat(os.fstat(fd), os.stat(path)):
                self.lock_fd = fd
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)
        raise MachineError(f"'{self.name}' is running")

    def drop_socket(self) -> None:
        """Nobody is behind it any more."""
        (self.path / "control.sock").unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder, which no process owns."""
        fd = self.take()
        try:
            self.delete()
        finally:
            os.close(fd)

    def delete(self) -> None:
        """The same for the owner itself."""
        import shutil  # as in base/atomic

        try:
            (self.path / self.described_by).unlink(missing_ok=True)
            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass
        except OSError as e:
            if isinstance(e, PermissionError) and not os.listdir(self.path):
                return  # a worker that is another user than its starter; ``folders`` sweeps
            raise MachineError(f"can't remove {self.path}: {e.strerror}") from e
