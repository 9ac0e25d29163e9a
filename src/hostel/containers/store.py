"""Containers on disk: ``containers/NAME/`` with container.json (what it is), state.json (how it does), lock,
control.sock, container.log, monitor.log, config.json (its OCI bundle, made anew at each start), etc/ (hosts, hostname
and resolv.conf), and what images/oci/rootfs keeps of its file system.

Who holds ``lock`` owns the container: its monitor while it runs, else for a moment whoever removes it or clears up
after a monitor that was killed (containers/engine). A folder appears whole, and container.json is the first file to go.
"""

import contextlib
import os
import time
from pathlib import Path

import msgspec

from hostel.base import atomic, paths
from hostel.base.errors import MachineError
from hostel.base.names import new_name
from hostel.base.owned import OwnedFolder
from hostel.spec.container import LIVE, VERSION, ContainerSpec, ContainerState


class Folder(OwnedFolder):
    """One container's folder."""

    kind, described_by, live = "container", "container.json", LIVE

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

    def says(self) -> str:
        return self.state().state

    def is_unwanted(self) -> bool:
        """What a killed monitor left running isn't: that wants clearing up first."""
        return self.read_state().state in ("stopped", "died") and self.spec().remove

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
        if folder.is_forgotten():
            with contextlib.suppress(MachineError):
                folder.remove()
                continue
        found.append(folder)
    return found


def create(spec: ContainerSpec) -> Folder:
    """Make ``containers/NAME`` for ``spec``; an empty name is replaced by one that is made up."""
    generated = not spec.name

    def put(new: Path, path: Path) -> None:
        with atomic.told(path):
            write_spec(new, spec)
            (new / "state.json").write_bytes(msgspec.json.encode(ContainerState(created=time.time())) + b"\n")

    for _ in range(100):
        spec.name = new_name() if generated else spec.name
        folder = Folder(paths.containers() / spec.name)
        if not (generated and (paths.vms() / spec.name).exists()):
            # the container's own user may have to pass the folder of them all, where it isn't root
            if folder.claim(put, 0o711):
                return folder
        if not generated:
            break
    raise folder.taken()


def write_spec(folder: Path, spec: ContainerSpec) -> None:
    atomic.write(folder / "container.json", msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
