"""A folder with a lock, whose holder owns what it describes, a VM or a container: its worker or monitor while it runs,
else for a moment whoever removes it.

The file that describes it is the first to go when it is removed, so that a folder without one is leftovers.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from hostel.base import atomic
from hostel.base.errors import MachineError
from hostel.base.linux import lock

FORGOTTEN = 60.0              # seconds after the end of what was to be removed with it


class OwnedFolder:
    kind = ""                         # what it is of, for people
    described_by = ""
    live: tuple[str, ...] = ()        # states in which it has an owner

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.lock_fd = -1             # once it is taken

    def owned(self) -> bool:
        """Whether a process holds the lock."""
        return lock.is_held(self.path / "lock")

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

    # -- its name

    def says(self) -> str:
        """The state that it is in, in a word."""
        raise NotImplementedError

    def is_unwanted(self) -> bool:
        """Whether it was to go with its end, which came before it could. ``MachineError`` where that can't be read."""
        raise NotImplementedError

    def is_leftover(self) -> bool:
        """What nobody owns or wants: an interrupted removal, or one that is unwanted."""
        if self.owned():
            return False
        if not (self.path / self.described_by).exists():
            return True
        try:
            return self.is_unwanted()
        except MachineError:
            return False

    def is_forgotten(self) -> bool:
        """The same, and for some time: who started it may want to see how it ended."""
        try:
            return time.time() - (self.path / "state.json").stat().st_mtime > FORGOTTEN and self.is_leftover()
        except OSError:
            return False

    def check_free(self) -> None:
        """``MachineError`` where ``claim`` would find the name taken."""
        if self.path.exists() and not self.is_leftover():
            raise self.taken()

    def taken(self) -> MachineError:
        state = self.says()
        hint = f"'hostel stop {self.name}' ends it" if state in self.live else f"'hostel rm {self.name}' removes it"
        return MachineError(
            f"a {self.kind} named '{self.name}' exists already ({state}); choose another name, or {hint}"
        )

    def claim(self, fill: Callable[[Path, Path], None], mode: int | None = None) -> bool:
        """Make the folder, whole or not at all: ``fill(new, path)`` puts files into one beside it that is to become
        ``path``. ``mode`` is for the folder that it is in. False where the name is taken."""
        if self.path.exists():
            if not self.is_leftover():
                return False
            try:
                self.remove()
            except MachineError:
                return False
        home = self.path.parent
        with atomic.told(home):
            home.mkdir(parents=True, exist_ok=True)
            if mode is not None:
                home.chmod(mode)
            new = atomic.new_folder(home, ".new-")
        try:
            fill(new, self.path)
            with atomic.told(self.path):
                try:
                    os.rename(new, self.path)  # onto a folder that isn't empty it fails: that name is taken
                except OSError as e:
                    if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    atomic.remove_folder(new)
                    return False
        except BaseException:
            atomic.remove_folder(new)
            raise
        return True

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
