"""Containers on disk: ``containers/NAME/`` with container.json (what it is), state.json (how it does), lock,
control.sock, container.log, monitor.log, config.json (its OCI bundle, made anew at each start), etc/ (hosts, hostname
and resolv.conf), and what images/oci/rootfs keeps of its file system.

Who holds ``lock`` owns the container: its monitor while it runs, else for a moment whoever removes it or clears up
after a monitor that was killed (containers/engine). A folder appears whole, and container.json is the first file to go.
"""

import contextlib
import errno
import os
import time
from pathlib import Path

import msgspec

from hostel.base import atomic, paths
from hostel.base.errors import MachineError
from hostel.base.names import new_name
from hostel.base.owned import OwnedFolder
from hostel.spec.container import LIVE, VERSION, ContainerSpec, ContainerState

FORGOTTEN = 60.0              # seconds after the end of a container that was to be removed with it


class Folder(OwnedFolder):
    """One container's folder."""

    kind, described_by = "container", "container.json"

    def spec(self) -> ContainerSpec:
        file = self.path / "container.json"
        try:
            data = msgspec.json.decode(file.read_bytes())
            version = data.get("version", VERSION) if isinstance(data, dict) else VERSION
            if version != VERSION:
                raise MachineError(f"{file} has version {version}; this hostel knows version {VERSION}")
            return msgspec.convert({**data, "name": self.name}, ContainerSpec)
        except OSError as e:
            raise MachineError(f"can't read {file}: {e.strerror}") from e
        except (msgspec.MsgspecError, TypeError) as e:
            raise MachineError(f"{file} is damaged: {e}") from e

    def state(self) -> ContainerState:
        """What the monitor last said, or ``died`` where it said it lives and does not."""
        for attempt in (1, 2):  # a monitor may stop or start between the two looks
            owned = self.owned()
            state = self.read_state()
            if owned or state.state not in LIVE:
                break
            if attempt == 2:
                state.state = "died"
                state.reason = "its monitor was killed"
        return state

    def read_state(self) -> ContainerState:
        """As it was written."""
        try:
            return msgspec.json.decode((self.path / "state.json").read_bytes(), type=ContainerState)
        except (OSError, msgspec.MsgspecError):
            return ContainerState()

    def write_state(self, state: ContainerState) -> None:
        atomic.write(self.path / "state.json", msgspec.json.encode(state) + b"\n", durable=state.state not in LIVE)


    def delete(self) -> None:
        """Its root is unmounted first, and its image no longer in use by it."""
        from hostel.images.oci import rootfs

        (self.path / self.described_by).unlink(missing_ok=True)
        rootfs.remove(self.path)
        super().delete()


def find(name: str) -> Folder:
    """The folder of an existing container."""
    return Folder(paths.container(name))


def folders() -> list[Folder]:
    """All containers, by name; those to be removed with their end go some time after it, in case nobody did it."""
    try:
        names = sorted(os.listdir(paths.containers()))
    except OSError:
        return []
    found = []
    for name in names:
        folder = Folder(paths.containers() / name)
        if name.startswith(".") or not (folder.path / "container.json").exists():
            continue
        if _is_forgotten(folder):
            with contextlib.suppress(MachineError):
                folder.remove()
                continue
        found.append(folder)
    return found


def create(spec: ContainerSpec) -> Folder:
    """Make ``containers/NAME`` for ``spec``; an empty name is replaced by one that is made up."""
    generated = not spec.name
    for _ in range(100):
        spec.name = new_name() if generated else spec.name
        folder = Folder(paths.containers() / spec.name)
        if not (generated and (paths.vms() / spec.name).exists()) and _claim(folder, spec):
            return folder
        if not generated:
            break
    raise taken(folder)


def check_free(name: str) -> None:
    """``MachineError`` where ``create`` would find the name taken."""
    folder = Folder(paths.containers() / name)
    if folder.path.exists() and not _is_leftover(folder):
        raise taken(folder)


def taken(folder: Folder) -> MachineError:
    name, state = folder.name, folder.state().state
    hint = f"'hostel rm {name}' removes it" if state not in LIVE else f"'hostel stop {name}' ends it"
    return MachineError(f"a container named '{name}' exists already ({state}); choose another name, or {hint}")


def _is_leftover(folder: Folder) -> bool:
    """What nobody owns or wants: an interrupted removal, or one that was to go with its end and whose end came before
    it could. What a killed monitor left running isn't: that wants clearing up first."""
    if folder.owned():
        return False
    if not (folder.path / "container.json").exists():
        return True
    try:
        return folder.read_state().state in ("stopped", "died") and folder.spec().remove
    except MachineError:
        return False


def _is_forgotten(folder: Folder) -> bool:
    try:
        return time.time() - (folder.path / "state.json").stat().st_mtime > FORGOTTEN and _is_leftover(folder)
    except OSError:
        return False


def _claim(folder: Folder, spec: ContainerSpec) -> bool:
    if folder.path.exists():
        if not _is_leftover(folder):
            return False
        try:
            folder.remove()
        except MachineError:
            return False
    home = paths.containers()
    with atomic.told(home):
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o711)  # the container's own user may have to pass, where it isn't root
        new = atomic.new_folder(home, ".new-")
    try:
        with atomic.told(folder.path):
            write_spec(new, spec)
            state = ContainerState(created=time.time())
            (new / "state.json").write_bytes(msgspec.json.encode(state) + b"\n")
            try:
                os.rename(new, folder.path)  # onto a folder that isn't empty it fails: that name is taken
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                atomic.remove_folder(new)
                return False
    except BaseException:
        atomic.remove_folder(new)
        raise
    return True


def write_spec(folder: Path, spec: ContainerSpec) -> None:
    atomic.write(folder / "container.json", msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
