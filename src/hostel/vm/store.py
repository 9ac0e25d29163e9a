"""The folders of VMs: ``vms/NAME/`` with vm.toml (what it is), state.json (how it does), lock, control.sock,
console.log and worker.log.

Who holds ``lock`` owns the VM: its worker while it runs, else for a moment whoever removes it. A folder
appears whole (made beside, then renamed), and vm.toml is the first file to go when it is removed, so that a
folder without one is leftovers, which the next VM of that name sweeps away.
"""

import errno
import os
import random
import shutil
import tempfile
import time
import tomllib
from pathlib import Path

import msgspec

from hostel.base import atomic, paths
from hostel.base.errors import HostelError, MachineError
from hostel.base.linux import lock
from hostel.base.units import format_size, parse_size
from hostel.spec.vm import VERSION, VmSpec, VmState

LIVE = ("starting", "running", "paused")

_ADJECTIVES = (
    "able amber bold brave brisk calm clear clever cosy crisp deft eager early fair fleet fond frank fresh gentle "
    "glad golden grand green hardy honest humble jolly keen kind light lively lucky mellow merry mild modest neat "
    "nimble noble olive patient plain polite prime proud quick quiet ready rosy royal shiny silent silver sleek "
    "smart snug solid spry steady still stout sunny swift tidy true vivid warm wise witty young"
).split()
_NOUNS = (
    "acorn alder ash aspen badger beaver birch bison brook cedar clover comet coral crane crow dove eagle elm falcon "
    "fern finch fir fox gull harbor hare hawk hazel heron hill ibis iris jay juniper kestrel lake lark laurel lynx "
    "maple marten meadow mole moss newt oak orchid osprey otter owl panda pearl pine plover pond poplar quail raven "
    "reed robin rowan sable sparrow spruce stork stream swan thrush tiger trout tulip violet vole walnut willow wolf "
    "wren yew"
).split()


class Folder:
    """One VM's folder."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name

    def spec(self) -> VmSpec:
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
        data = msgspec.to_builtins(spec)
        del data["name"]  # the folder's
        data = {"version": spec.version, "cpus": spec.cpus, "memory": format_size(spec.memory), **data}
        data["memory"] = format_size(spec.memory)
        atomic.write(self.path / "vm.toml", write_toml(data))

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
        atomic.write(self.path / "state.json", msgspec.json.encode(state) + b"\n")

    def write_last_state(self, state: VmState) -> None:
        """The same, in the file's place where there is no space for another: the last word should not be lost."""
        try:
            self.write_state(state)
        except HostelError:
            data = msgspec.json.encode(state) + b"\n"
            with atomic.told(self.path / "state.json"), open(self.path / "state.json", "r+b") as file:
                file.write(data)
                file.truncate()

    def _read_state(self) -> VmState:
        try:
            return msgspec.json.decode((self.path / "state.json").read_bytes(), type=VmState)
        except (OSError, msgspec.DecodeError):
            return VmState()

    def owned(self) -> bool:
        """Whether a process holds the VM's lock."""
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return lock.is_taken(fd)
        finally:
            os.close(fd)

    def take(self) -> int:
        """Become the owner until the returned descriptor is closed; ``MachineError`` where another is."""
        path = self.path / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise MachineError(f"there is no VM named '{self.name}'") from None
        except OSError as e:
            raise MachineError(f"can't lock {path}: {atomic.ADVICE.get(e.errno or 0, e.strerror)}") from e
        try:
            # The folder may have been removed, and made again, between open and lock.
            if lock.take(fd) and os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)
        raise MachineError(f"'{self.name}' is running")

    def remove(self) -> None:
        """Delete the folder of a VM that no process owns."""
        fd = self.take()
        try:
            self.delete()
        finally:
            os.close(fd)

    def delete(self) -> None:
        """The same for the owner itself."""
        try:
            (self.path / "vm.toml").unlink(missing_ok=True)
            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise MachineError(f"can't remove {self.path}: {e.strerror}") from e


def find(name: str) -> Folder:
    """The folder of an existing VM."""
    folder = Folder(paths.vms() / name)
    if "/" in name or name.startswith(".") or not name or not (folder.path / "vm.toml").exists():
        raise MachineError(f"there is no VM named '{name}'; 'hostel ps' lists what there is")
    return folder


def folders() -> list[Folder]:
    """All VMs, by name."""
    try:
        names = sorted(os.listdir(paths.vms()))
    except OSError:
        return []
    all_ = [Folder(paths.vms() / name) for name in names if not name.startswith(".")]
    return [folder for folder in all_ if (folder.path / "vm.toml").exists()]


def create(spec: VmSpec) -> Folder:
    """Make ``vms/NAME`` for ``spec``; an empty name is replaced by a generated one. The folder is the claim."""
    generated = not spec.name
    for _ in range(100):
        name = f"{random.choice(_ADJECTIVES)}-{random.choice(_NOUNS)}" if generated else spec.name
        folder = Folder(paths.vms() / name)
        spec.name = name
        if _claim(folder, spec):
            return folder
        if not generated:
            break
    raise _taken(folder)


def check_free(name: str) -> None:
    """``MachineError`` where ``create`` would find the name taken."""
    folder = Folder(paths.vms() / name)
    if folder.path.exists() and not _is_leftover(folder):
        raise _taken(folder)


def _taken(folder: Folder) -> MachineError:
    name, state = folder.name, folder.state().state
    hint = f"'hostel rm {name}' removes it" if state not in LIVE else f"'hostel stop {name}' ends it"
    return MachineError(f"a VM named '{name}' exists already ({state}); choose another name, or {hint}")


def _is_leftover(folder: Folder) -> bool:
    """What nobody owns or wants: an interrupted removal, or a VM to be removed with its end whose worker was
    killed before it could."""
    if folder.owned():
        return False
    if not (folder.path / "vm.toml").exists():
        return True
    try:
        return folder.spec().remove and folder.state().state in ("died", "stopped")
    except MachineError:
        return False


def _claim(folder: Folder, spec: VmSpec) -> bool:
    if folder.path.exists():
        if not _is_leftover(folder):
            return False
        try:
            folder.remove()
        except MachineError:
            return False
    vms = paths.vms()
    with atomic.told(vms):
        vms.mkdir(parents=True, exist_ok=True)
        new = Folder(Path(tempfile.mkdtemp(prefix=".new-", dir=vms)))
    try:
        new.write_spec(spec)
        new.write_state(VmState(created=time.time()))
        with atomic.told(folder.path):
            try:
                os.rename(new.path, folder.path)  # onto a folder that isn't empty it fails: that name is taken
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(new.path, ignore_errors=True)
                return False
    except BaseException:
        shutil.rmtree(new.path, ignore_errors=True)
        raise
    return True


def write_toml(data: dict) -> str:
    """TOML of one flat table: strings, integers, booleans and lists of strings."""
    lines = []
    for key, value in data.items():
        if value is None:
            continue
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, (int, float)):
            text = str(value)
        elif isinstance(value, str):
            text = _toml_string(value)
        else:
            text = "[" + ", ".join(_toml_string(item) for item in value) + "]"
        lines.append(f"{key} = {text}\n")
    return "".join(lines)


def _toml_string(text: str) -> str:
    escaped = "".join(
        {"\\": "\\\\", '"': '\\"'}.get(c) or (c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in text
    )
    return f'"{escaped}"'
