"""The folders of VMs: ``vms/NAME/`` with vm.toml (what it is), state.json (how it does), lock, control.sock,
console.log and worker.log.

Who holds ``lock`` owns the VM: its worker while it runs, else for a moment whoever removes it. A folder
appears whole (made beside, then renamed), and vm.toml is the first file to go when it is removed, so that a
folder without one is leftovers, which the next VM of that name sweeps away.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from hostel.base import atomic, paths
from hostel.base.errors import HostelError, MachineError
from hostel.base.names import new_name
from hostel.base.owned import OwnedFolder
from hostel.base.toml import write_toml
from hostel.base.units import format_size, parse_size
from hostel.spec.vm import VERSION, VmSpec, VmState

STATE_SIZE = 1024             # bytes of a state that is written in its place
LIVE = ("starting", "running", "paused")


class Folder(OwnedFolder):
    """One VM's folder."""

    kind, described_by, live = "VM", "vm.toml", LIVE

    def spec(self) -> VmSpec:
        import tomllib  # not for those that make a VM or talk to one

        try:
            data = tomllib.loads((self.path / "vm.toml").read_text())
        except OSError as e:
            raise MachineError(f"can't read {self.path / 'vm.toml'}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise MachineError(f"{self.path / 'vm.toml'} is damaged: {e}") from e
        if data.get("version", VERSION) != VERSION:
            raise MachineError(
                f"{self.path / 'vm.toml'} has version {data['version']}; this hostel knows version {VERSION}"
            )
        try:
            if isinstance(data.get("memory"), str):
                data["memory"] = parse_size(data["memory"])
            return msgspec.convert({**data, "name": self.name}, VmSpec)
        except msgspec.ValidationError as e:
            raise MachineError(f"{self.path / 'vm.toml'}: {e}") from e

    def write_spec(self, spec: VmSpec) -> None:
        atomic.replace(self.path / "vm.toml", write_toml(_described(spec)))

    def state(self) -> VmState:
        """What the worker last said, or ``died`` where it said it lives and does not."""
        for attempt in (1, 2):  # a worker may stop or start between the two looks
            owned = self.owned()
            state = self._read_state()
            if owned or state.state not in LIVE:
                break
            if attempt == 2:
                state.state = "died"
                state.reason = state.reason or "the worker ended without a word"
        return state

    def write_state(self, state: VmState) -> None:
        # A crash of the host ends the VM, whatever it said before: only its last word is worth waiting for the disk.
        atomic.write(self.path / "state.json", msgspec.json.encode(state) + b"\n", durable=state.state not in LIVE)

    def write_state_anyway(self, state: VmState) -> None:
        """The same, in the file's place where there is no space for another: why it stands still, and its last word,
        should not be lost."""
        try:
            self.write_state(state)
        except HostelError:
            data = msgspec.json.encode(state) + b"\n"
            with atomic.told(self.path / "state.json"), open(self.path / "state.json", "r+b") as file:
                file.write(data)
                file.truncate()

    def _read_state(self) -> VmState:
        for _ in range(20):
            try:
                return msgspec.json.decode((self.path / "state.json").read_bytes(), type=VmState)
            except OSError:
                break
            except msgspec.DecodeError:  # it is being written in its place (HeldFolder)
                time.sleep(0.001)
        return VmState()

    def is_unborn(self) -> bool:
        """Whether it is a fork that never said how it does: it is being made, or will never be."""
        return self._read_state().state == "unborn"

    def says(self) -> str:
        return self.state().state

    def is_unwanted(self) -> bool:
        state = self.state()
        if state.reason == "suspended":
            return False
        return self.is_unborn() or self.spec().remove and state.state in ("died", "stopped")


class HeldFolder(Folder):
    """One to which the process that owns it has no way: it has what it needs open."""

    def __init__(self, path: Path, lock_fd: int, state_fd: int):
        super().__init__(path)
        self.lock_fd = lock_fd
        self._state_fd = state_fd

    def write_state(self, state: VmState) -> None:
        data = msgspec.json.encode(state)
        with atomic.told(self.path / "state.json"):  # in its place, in one write that covers what was there
            os.pwrite(self._state_fd, data.ljust(-(-len(data) // STATE_SIZE) * STATE_SIZE - 1) + b"\n", 0)

    def delete(self) -> None:
        """Others do that: what has ended and isn't wanted any more is swept away (``folders``)."""

    def drop_socket(self) -> None:
        """It stays, with nobody behind it."""


def find(name: str) -> Folder:
    """The folder of an existing VM."""
    return Folder(paths.vm(name))


def folders() -> list[Folder]:
    """All VMs, by name. Empty folders, left by workers that may not remove them, go, and so do VMs that were to be
    removed with their end, some time after it: who started one may still want to see how it ended."""
    try:
        names = sorted(os.listdir(paths.vms()))
    except OSError:
        return []
    found = []
    for name in names:
        folder = Folder(paths.vms() / name)
        if name.startswith("."):
            continue
        if (folder.path / "vm.toml").exists():
            if folder.is_unborn():
                continue
            if folder.is_forgotten():
                with contextlib.suppress(MachineError):
                    folder.remove()
                    atomic.remove_folder(paths.disks() / name)
                    continue
            found.append(folder)
        else:
            with contextlib.suppress(OSError):
                folder.path.rmdir()
    return found


def sweep_unborn() -> None:
    """Remove forks that were never made. Nobody is at work on any."""
    try:
        names = os.listdir(paths.vms())
    except OSError:
        return
    for name in names:
        folder = Folder(paths.vms() / name)
        if folder.is_unborn() and not folder.owned():
            with contextlib.suppress(MachineError):
                folder.remove()


def create(spec: VmSpec, fill: Callable[[Path, Path], None] | None = None, unborn: bool = False) -> Folder:
    """Make ``vms/NAME`` for ``spec``; an empty name is replaced by a generated one. The folder is the claim.

    ``fill(new, path)`` puts files into the folder ``new``, which is to become ``path``, and may change ``spec``. One
    that is ``unborn`` isn't there for others until its worker, a fork, says how it does; it may be lost if the host
    crashes soon, as the running machine is that it is made for.
    """
    generated = not spec.name
    state = VmState(state="unborn" if unborn else "created", created=time.time())

    def put(new: Path, path: Path) -> None:
        if fill:
            fill(new, path)
        with atomic.told(path):
            (new / "vm.toml").write_text(write_toml(_described(spec)))
            (new / "state.json").write_bytes(msgspec.json.encode(state) + b"\n")
            if not unborn:
                for name in ("vm.toml", "state.json", "."):
                    atomic.sync_file(new / name)

    for _ in range(100):
        spec.name = new_name() if generated else spec.name
        folder = Folder(paths.vms() / spec.name)
        if folder.claim(put):
            return folder
        if not generated:
            break
    raise folder.taken()


def _described(spec: VmSpec) -> dict:
    """As vm.toml has it."""
    data = msgspec.to_builtins(spec)
    del data["name"]  # the folder's
    data = {"version": spec.version, "cpus": spec.cpus, "memory": format_size(spec.memory), **data}
    data["memory"] = format_size(spec.memory)
    return data
