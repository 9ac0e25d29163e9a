"""Snapshots on the host's disk: ``snapshots/VM@NAME/``, one folder each, outside of the reach of workers.

A snapshot stands on nothing but its own folder: what it shares with others (earlier memory files, frozen layers of
disks) is there under the same name, as another link to the same file. So any of them can go at any time, and what
nobody needs any more goes with the last link. The folder appears whole (made beside, then renamed):

    manifest      MessagePack and its SHA-256: what the snapshot is, and the checksums of the rest
    state         the machine (vm/checkpoint)
    memory-ID     pages (memory/image), its own and those of the snapshots that it stands on
    verified      which of these were whole when they were looked at last (vm/verified); no part of it
    diskN-ID...   frozen layers; the first one below which none is hostel's own names a file elsewhere

docs/snapshot-format.md has the whole format. Who uses a snapshot holds a shared lock on its manifest.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from hostel import __version__
from hostel.base import atomic, paths
from hostel.base.errors import MachineError, MemoryError_, UsageError
from hostel.spec.vm import VmSpec
from hostel.vm.layers import DiskLayer
from hostel.vm.saved import Base
from hostel.vm.verified import Verified

FORMAT = 1
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)
_DIGEST = 32


class MemoryFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``memory-ID``: pages of 4 KiB, and SHA-256 of each 256 of them."""

    id: str
    pages: int
    digests: bytes


class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a snapshot is. ``parent``: VM@NAME of the one it was taken after; it may be gone."""

    format: int = FORMAT
    id: str
    vm: str
    name: str
    parent: str = ""
    created: float
    started: float = 0.0                # when its VM was (VmState.started): one that is suspended wasn't since
    description: str = ""
    hostel: str = __version__
    spec: VmSpec
    paused: bool = False
    cpu: list[str] = []                 # what the guest was told that it can do (cpu_features)
    disks: list[DiskLayer] = []
    state: bytes = b""                  # SHA-256 of the file; empty: there is neither that nor memory
    memory: list[MemoryFile] = []


class Snapshot:
    """One of them, by its folder. ``pause_ns``: how long the VM stood still, if it has just been taken."""

    def __init__(self, path: Path, manifest: Manifest, pause_ns: int = 0):
        self.path = path
        self.manifest = manifest
        self.pause_ns = pause_ns

    @property
    def full_name(self) -> str:
        return self.path.name

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """``MachineError`` where there is none, or it is damaged or of another format."""
        try:
            data = (path / "manifest").read_bytes()
        except OSError as e:
            raise MachineError(f"there is no snapshot {path.name}: {e.strerror}") from e
        content, digest = data[:-_DIGEST], data[-_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            raise _damaged(path, "its manifest isn't what was written")
        try:
            form = msgspec.msgpack.decode(content, type=dict).get("format")
            if form != FORMAT:
                raise MachineError(f"the snapshot {path.name} has format {form}; this hostel reads {FORMAT}")
            return cls(path, msgspec.msgpack.decode(content, type=Manifest))
        except msgspec.MsgspecError as e:
            raise _damaged(path, str(e)) from e

    def write(self) -> None:
        content = msgspec.msgpack.encode(self.manifest)
        (self.path / "manifest").write_bytes(content + hashlib.sha256(content).digest())

    def lock(self) -> int:
        """A descriptor: nobody removes it until that is closed."""
        fd = os.open(self.path / "manifest", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise MachineError(f"the snapshot {self.full_name} is being removed") from None
        return fd

    def in_use(self) -> bool:
        fd = os.open(self.path / "manifest", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)

    def open(self) -> Base:
        """Its files, whole and locked; ``MachineError`` where something is missing or damaged, or this host lacks
        what the guest was told that it has."""
        missing = sorted(set(self.manifest.cpu) - set(cpu_features()) - HINTS)
        if missing:
            raise MachineError(f"the snapshot {self.full_name} needs a processor with {', '.join(missing)}")
        if not self.manifest.state:
            raise MachineError(f"the snapshot {self.full_name} has no memory: its disks can be gone back to only")
        with contextlib.ExitStack() as undo:
            lock = self.lock()
            undo.callback(os.close, lock)
            state = self._open("state", undo)
            verified = Verified(self.path, lock)
            if not verified.has("state", state) and digest(state) != self.manifest.state:
                raise _damaged(self.path, "state isn't what was written")
            fds = {}
            for file in self.manifest.memory:
                fds[file.id] = self._open(f"memory-{file.id}", undo)
                if verified.has(f"memory-{file.id}", fds[file.id]):
                    continue
                from hostel.memory import pagefile  # with ctypes; most have been looked at before

                try:
                    pagefile.check(fds[file.id], file.pages, file.digests)
                except MemoryError_ as e:
                    raise _damaged(self.path, f"memory-{file.id}: {e}") from e
            verified.keep()
            undo.pop_all()
        return Base(self.manifest.id, state, fds, lock)

    def vouch(self, names: Iterable[str]) -> None:
        """These files of it are whole: they are new, or were known to be before they got another link."""
        with contextlib.ExitStack() as stack, contextlib.suppress(MachineError, OSError):  # it may be going, too
            lock = self.lock()
            stack.callback(os.close, lock)
            verified = Verified(self.path, lock)
            for name in names:
                verified.vouch(name, self._open(name, stack))
            verified.keep()

    def known(self) -> list[str]:
        """Which of its files were found whole and are as they were."""
        with contextlib.ExitStack() as stack, contextlib.suppress(MachineError, OSError):
            lock = self.lock()
            stack.callback(os.close, lock)
            verified = Verified(self.path, lock)
            names = ["state", *(f"memory-{file.id}" for file in self.manifest.memory)]
            return [name for name in names if verified.knows(name, self._open(name, stack))]
        return []

    def check_disks(self) -> None:
        """``MachineError`` where a file of its disks is missing; what is in them has no checksums."""
        for layer in self.manifest.disks:
            for name in [*layer.below, layer.file]:
                if not (self.path / name).exists():  # absolute, if it is elsewhere
                    raise _damaged(self.path, f"its disk {layer.number} is gone: there is no {self.path / name}")

    def check(self) -> Base:
        """As ``open``, of a state that makes sense to this hostel."""
        base = self.open()
        try:
            base.state()
        except MachineError as e:
            base.close()
            raise MachineError(f"the snapshot {self.full_name}: {e}") from e
        return base

    def _open(self, name: str, undo: contextlib.ExitStack) -> int:
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as e:
            raise _damaged(self.path, f"{name}: {e.strerror}") from e
        undo.callback(os.close, fd)
        return fd

    def size(self) -> int:
        """Bytes that go when it goes: those of files that nobody else has."""
        total = 0
        for entry in os.scandir(self.path):
            status = entry.stat(follow_symlinks=False)
            total += status.st_blocks * 512 if status.st_nlink == 1 else 0
        return total

    def remove(self) -> None:
        """``MachineError`` where it is in use."""
        if self.in_use():
            raise MachineError(f"the snapshot {self.full_name} is in use: a VM that was started from it runs")
        remove(self.path)


def remove(path: Path) -> None:
    """Whatever is at ``path``, be it damaged or in use: who has its files open keeps them."""
    with atomic.told(path):
        gone = atomic.new_folder(path.parent, ".old-")
        os.rename(path, gone / "it")
        atomic.remove_folder(gone)


def digest(fd: int) -> bytes:
    """A file's SHA-256."""
    return hashlib.sha256(os.pread(fd, os.fstat(fd).st_size, 0)).digest()


def _damaged(path: Path, what: str) -> MachineError:
    return MachineError(f"the snapshot {path.name} is damaged: {what}")


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a snapshot: use up to 63 of a-z A-Z 0-9 _ . - and begin with a letter or digit"
        )
    return name


def names(vm: str) -> list[str]:
    """Of its snapshots, in no order; also of those that can't be read."""
    try:
        found = os.listdir(paths.snapshots())
    except OSError:
        return []
    own = [name.partition("@")[2] for name in found if name.startswith(f"{vm}@")]
    return [name for name in own if _NAME.fullmatch(name)]


def of_vm(vm: str) -> list[Snapshot]:
    """Those of a VM that can be read, the oldest first."""
    found = []
    for name in names(vm):
        with contextlib.suppress(MachineError):
            found.append(Snapshot.read(paths.snapshots() / f"{vm}@{name}"))
    return sorted(found, key=lambda snapshot: snapshot.manifest.created)


def damaged(vm: str) -> list[str]:
    """What is wrong with the others, a line each."""
    found = []
    for name in sorted(names(vm)):
        try:
            Snapshot.read(paths.snapshots() / f"{vm}@{name}")
        except MachineError as e:
            found.append(str(e))
    return found


def vms() -> list[str]:
    """The names of VMs that have snapshots, be they there or not."""
    try:
        names = os.listdir(paths.snapshots())
    except OSError:
        return []
    return sorted({name.partition("@")[0] for name in names if "@" in name and not name.startswith(".")})


def find(full_name: str) -> Snapshot:
    """``VM@NAME``."""
    return Snapshot.read(place(full_name))


def place(full_name: str) -> Path:
    """Its folder; it may be damaged."""
    vm, at, name = full_name.partition("@")
    if not at or not vm or "/" in full_name or vm.startswith("."):
        raise UsageError(f"'{full_name}' is no snapshot's name: VM@NAME")
    path = paths.snapshots() / f"{vm}@{check_name(name)}"
    if not path.is_dir():
        raise MachineError(f"there is no snapshot {full_name}; 'hostel snapshot ls {vm}' lists what there is")
    return path


def sweep() -> None:
    """Remove what was left half made or half removed by processes that were killed. Nobody is at work on snapshots."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(paths.snapshots()):
            if entry.name.startswith((".new-", ".old-")):
                atomic.remove_folder(Path(entry.path))


def cpu_features() -> list[str]:
    """What guests here are told that the processor can do."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                if "rdrand" in flags:
                    flags.add("rdseed")
                return sorted(flags & GUEST_FEATURES)
    return []


# What guests get of the host's features, since the translator runs them as they are (cpu/bt/cpuid), by their names in
# /proc/cpuinfo
GUEST_FEATURES = frozenset(
    "pni ssse3 sse4_1 sse4_2 avx avx2 fma f16c bmi1 bmi2 aes pclmulqdq sha_ni adx movbe popcnt abm rdrand rdseed cx16 "
    "vaes vpclmulqdq gfni clflushopt clwb fsrm".split()
)
HINTS = frozenset({"fsrm"})             # what a guest that was told of them goes on without, more slowly at most
