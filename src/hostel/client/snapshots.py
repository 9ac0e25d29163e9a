"""Taking snapshots of a VM, going back to them, and starting others from them. The files are vm/snapshot's."""

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hostel.base import atomic, paths
from hostel.base.errors import MachineError, UsageError
from hostel.block import lock as block_lock
from hostel.client.connection import Connection
from hostel.spec import net as spec_net
from hostel.spec.control import MAX_FDS
from hostel.spec.vm import VmSpec
from hostel.vm import launch, layers, store
from hostel.vm import snapshot as snapshots
from hostel.vm.layers import DiskLayer
from hostel.vm.saved import Base, read_state
from hostel.vm.snapshot import Manifest, MemoryFile, Snapshot, damaged, find, of_vm, vms

__all__ = ["Snapshot", "damaged", "find", "of_vm", "vms"]  # what callers upstairs need of vm/snapshot

CURRENT = "snapshot"      # in a VM's folder: VM@NAME of the snapshot that it stands on
SUSPENDED = ".suspended"  # a snapshot's name that no person can give
ENDS = 30.0               # seconds that a worker has to end


@contextlib.contextmanager
def at_work(vm: str) -> Iterator[None]:
    """One at a time makes, removes or goes back to snapshots of a VM, or forks it. Who finds nobody else at work, on
    no VM, sweeps away what was left by processes that were killed at it."""
    everybody = paths.snapshots() / ".lock"
    with atomic.told(everybody):
        everybody.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(everybody, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sweep_all()
        except BlockingIOError:
            pass
        fcntl.flock(fd, fcntl.LOCK_SH)
        with atomic.locked(_lock_of(vm)):
            yield
    finally:
        os.close(fd)


def _lock_of(vm: str) -> Path:
    return paths.snapshots() / f".lock-{vm}"


def _sweep_all() -> None:
    """Nobody is at work."""
    snapshots.sweep()
    store.sweep_unborn()
    with contextlib.suppress(OSError):
        for entry in os.scandir(paths.disks()):
            if not (paths.vms() / entry.name / "vm.toml").exists():
                atomic.remove_folder(Path(entry.path))


def current(vm: str) -> Snapshot | None:
    """The snapshot that the VM stands on, if it is still there."""
    try:
        return Snapshot.read(paths.snapshots() / (paths.vms() / vm / CURRENT).read_text().strip())
    except (OSError, MachineError):
        return None


def create(
    folder: store.Folder, name: str | None = None, memory: bool = True, description: str = "", stop: bool = False
) -> Snapshot:
    """Take one. The VM goes on, unless it is to ``stop``; of one that doesn't run the disks are kept."""
    vm = folder.name
    with at_work(vm):
        taken = set(snapshots.names(vm))
        if name is None:
            name = next(f"snap{n}" for n in range(1, len(taken) + 2) if f"snap{n}" not in taken)
        if name in taken:
            raise MachineError(f"'{vm}' has a snapshot '{name}' already")
        return _create(folder, name, memory and folder.owned(), description, stop)


def _create(folder: store.Folder, name: str, memory: bool, description: str, stop: bool) -> Snapshot:
    spec, state, below = folder.spec(), folder.state(), current(folder.name)
    manifest = Manifest(
        id=os.urandom(8).hex(), vm=folder.name, name=name, parent=below.full_name if below else "",
        created=time.time(), description=description, spec=spec, paused=state.state == "paused",
        started=state.started, cpu=snapshots.cpu_features() if memory else [],
    )
    path = paths.snapshots() / f"{folder.name}@{name}"
    whole = below.known() if below and memory else []
    pause = 0
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(Connection(folder.path)) if folder.owned() else None
        if connection is None:
            stack.callback(os.close, folder.take())  # nobody starts it meanwhile
        with new_folder(path) as new:
            manifest.disks = layers.tops(spec)
            layers.link(manifest.disks, layers.folder(folder.name), new)
            with go_over(folder, spec, [] if stop else manifest.disks, connection is not None) as tops:
                if connection:
                    pause = _have_it_saved(connection, manifest, new, below, tops, memory, stop)
            Snapshot(new, manifest).write()
        taken = Snapshot(path, manifest, pause)
        if memory:  # the others' files have got another link
            shared = {f"memory-{file.id}" for file in manifest.memory[:-1]} & {*whole}
            taken.vouch(["state", f"memory-{manifest.id}", *shared])
            if below:
                below.vouch(whole)
        if stop and connection:  # it stands still, but goes on if we don't come so far
            connection.call("quit", reason="suspended")
            folder.wait_free(ENDS)
    if not stop:
        atomic.write(folder.path / CURRENT, path.name)
    return taken


@contextlib.contextmanager
def go_over(
    folder: store.Folder, spec: VmSpec, frozen: Sequence[DiskLayer], runs: bool = True
) -> Iterator[dict[int, Path]]:
    """New tops for the VM's disks on what is to be ``frozen``; in the block its worker, if it ``runs``, goes over to
    them. vm.toml says so before: they are empty, and what is below them is complete at any moment."""
    tops = layers.put_tops(folder.name, frozen) if frozen else {}
    if tops:
        folder.write_spec(layers.on_tops(spec, tops))
    try:
        yield tops
    except BaseException:
        if tops and not (runs and _went_over(folder, tops)):
            folder.write_spec(spec)
            _sweep(folder)
        raise
    _sweep(folder)


def open_tops(
    spec: VmSpec, tops: dict[int, Path], stack: contextlib.ExitStack
) -> tuple[list[int], list[dict[str, Any]]]:
    """Descriptors, which are ``stack``'s, and ``rpc.Delta``s."""
    fds, deltas = [], []
    for number, path in tops.items():
        if spec.disks[number].readonly:
            continue
        direct = spec.disks[number].cache == "none"
        for flags in (os.O_RDWR, os.O_RDWR | os.O_DIRECT)[: 1 + direct]:
            fds.append(_open(path, flags, stack))
        # Nobody else may write to it, as long as it is open here or in the worker.
        if not block_lock.take(fds[-1 - direct], True):
            raise MachineError(f"{path} is in use")
        deltas.append({"number": number, "path": str(path), "direct": direct})
    return fds, deltas


def _open(path: Path, flags: int, stack: contextlib.ExitStack) -> int:
    with atomic.told(path):
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    return fd


def _have_it_saved(
    connection: Connection, manifest: Manifest, new: Path, below: Snapshot | None, tops: dict[int, Path], memory: bool,
    stop: bool,
) -> int:
    """The worker's part; how long it stood still."""
    with contextlib.ExitStack() as stack:
        fds = []
        for name in ("state", f"memory-{manifest.id}") if memory else ():
            fds.append(_open(new / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, stack))
        disk_fds, deltas = open_tops(manifest.spec, tops, stack)
        fds += disk_fds
        answer = connection.call(
            "snapshot", fds=fds, id=manifest.id, base=below.manifest.id if below else "", memory=memory, stop=stop,
            disks=deltas,
        )
        if memory:
            _describe(manifest, new, below, fds[0])
        return int(answer["pause_ns"])


def _describe(manifest: Manifest, new: Path, below: Snapshot | None, state_fd: int) -> None:
    """What the worker wrote, and links to what that stands on."""
    memory = read_state(state_fd).memory
    known = {file.id: file for file in below.manifest.memory} if below else {}
    for id in memory.files[:-1]:
        if below is None or id not in known:
            raise MachineError("the snapshot's state makes no sense: it stands on memory that isn't there")
        os.link(below.path / f"memory-{id}", new / f"memory-{id}")
    own = MemoryFile(id=manifest.id, pages=memory.pages, digests=memory.digests)
    manifest.memory = [*(known[id] for id in memory.files[:-1]), own]
    manifest.state = snapshots.digest(state_fd)


def _went_over(folder: store.Folder, tops: dict[int, Path]) -> bool:
    """It failed: whether the worker may have gone over to the new tops nevertheless. One that has ended doesn't say,
    and may have written to them."""
    try:
        with Connection(folder.path) as connection:
            cards = connection.call("inspect")["statistics"]["cards"]
        return any(cards[f"disk{number}"]["path"] == str(path) for number, path in tops.items())
    except (MachineError, KeyError):
        return True


def _sweep(folder: store.Folder, spec: VmSpec | None = None) -> None:
    """Drop the links of layers that the VM no longer stands on, and its first disk's once that is a layer."""
    spec = spec or folder.spec()
    layers.sweep(spec)
    first = folder.path / "disk.qcow2"
    if first.exists() and first.stat().st_nlink > 1 and str(first) not in [disk.path for disk in spec.disks]:
        first.unlink()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The folder of a snapshot, which is there when the block ends well."""
    with atomic.told(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = atomic.new_folder(path.parent, ".new-")
    try:
        yield new
        with atomic.told(path):
            for entry in os.scandir(new):
                atomic.sync_file(Path(entry.path))
            atomic.sync_folder(new)
            os.rename(new, path)
            atomic.sync_folder(path.parent)
    except BaseException:
        atomic.remove_folder(new)
        raise


def revert(folder: store.Folder, snapshot: Snapshot, leash: launch.Leash | None = None) -> launch.Leash | None:
    """Back to the VM's ``snapshot``: what was since, on disks too, is discarded. It runs then if it did there, or if
    it does now. Who holds it by ``leash`` has another then, or the same."""
    if snapshot.manifest.vm != folder.name:
        raise MachineError(f"{snapshot.full_name} isn't of '{folder.name}'; 'hostel run --from' starts another VM")
    with at_work(folder.name), contextlib.ExitStack() as stack:
        base = None
        if snapshot.manifest.state:
            base = stack.enter_context(contextlib.closing(snapshot.check()))  # all of it, before anything is lost
        ran = folder.owned()
        new = put_disks(snapshot, folder.name)
        spec = msgspec.structs.replace(
            layers.on_tops(snapshot.manifest.spec, new), remove=folder.spec().remove
        )

        def write() -> None:
            folder.write_spec(spec)
            atomic.replace(folder.path / CURRENT, snapshot.full_name)
            _drop_suspended(folder.name)
            _sweep(folder, spec)

        if ran and base and _revert_in_place(folder, snapshot, base, spec, new, write, bool(leash)):
            return leash
        if ran:
            launch.kill(folder, "reverted")
        fd = folder.take()  # nobody starts it meanwhile
        try:
            write()
        finally:
            os.close(fd)
        if base:
            return launch.start(folder, bool(leash), snapshot.path)
        return launch.start(folder, bool(leash)) if ran else None


def _revert_in_place(
    folder: store.Folder, snapshot: Snapshot, base: Base, spec: VmSpec, tops: dict[int, Path],
    write: Callable[[], None], held: bool,
) -> bool:
    """Have the worker go back, which takes a fraction of the time that another takes to start; it goes on once
    ``write`` has said so. False where it can't, or doesn't know how: then it is to end."""
    wanted = [layer for layer in snapshot.manifest.disks if not layer.fixed]
    with contextlib.suppress(MachineError), contextlib.ExitStack() as stack:
        connection = stack.enter_context(Connection(folder.path))
        fds, deltas = open_tops(spec, tops, stack)
        fds = [*base.all_fds(), *fds]
        if len(fds) > MAX_FDS:
            return False
        status = [os.stat(snapshot.path / layer.file) for layer in wanted]  # absolute, if it is elsewhere
        done = connection.call(
            "revert", fds=fds, id=snapshot.manifest.id, spec=spec, files=list(base.fds),
            held=held, paused=snapshot.manifest.paused, disks=deltas,
            layers=[{"device": layer.st_dev, "inode": layer.st_ino} for layer in status],
        )
        if done:
            write()
            connection.call("reverted")
            return True
    return False


def start_other(snapshot: Snapshot, name: str | None, ports: Sequence[str], remove: bool) -> store.Folder:
    """Make a VM that is to start where ``snapshot`` was taken."""
    spec = spec_for(snapshot.manifest.spec, name or "", ports)
    spec.remove = remove
    generated = name is None

    def fill(new: Path, path: Path) -> None:
        given = spec_for(spec, path.name, ()) if generated else spec
        spec.nics, spec.cmdline = given.nics, given.cmdline
        spec.disks = layers.on_tops(spec, put_disks(snapshot, path.name)).disks
        (new / CURRENT).write_text(snapshot.full_name)

    with at_work(snapshot.manifest.vm):
        try:
            return store.create(spec, fill)
        except BaseException:
            if spec.name:
                atomic.remove_folder(layers.folder(spec.name))
            raise


def spec_for(spec: VmSpec, name: str, ports: Sequence[str]) -> VmSpec:
    """A copy's: its own name, MACs and ports."""
    spec = msgspec.structs.replace(spec, name=name, remove=False, debug=False, idle=0)
    spec.cmdline = re.sub(r"\bhostel\.hostname=\S+", f"hostel.hostname={name.replace('_', '-')}", spec.cmdline)
    spec.nics = [msgspec.structs.replace(nic, mac=spec_net.make_mac()) for nic in spec.nics]
    for nic in spec.nics:
        nic.ports = [_free_port(port) for port in nic.ports]
    if ports:
        ways = [nic for nic in spec.nics if ":" not in nic.network]
        if not ways:
            raise UsageError("-p needs a card on nat or a named network")
        for nic in spec.nics:
            nic.ports = []
        ways[0].ports = [str(forward) for text in ports for forward in spec_net.parse_forwards(text)]
    if spec.vsock:
        spec.vsock = spec_net.VSOCK
    return spec


def _free_port(text: str) -> str:
    """The same forward from a port that nobody has."""
    forward = spec_net.parse_forward(text)
    family = socket.AF_INET6 if ":" in forward.address else socket.AF_INET
    kind = socket.SOCK_DGRAM if forward.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as probe:
        probe.bind((forward.address, 0))
        return str(msgspec.structs.replace(forward, host_port=probe.getsockname()[1]))


def put_disks(snapshot: Snapshot, vm: str) -> dict[int, Path]:
    """New tops for the VM on the disks as they were."""
    snapshot.check_disks()
    layers.link(snapshot.manifest.disks, snapshot.path, layers.folder(vm))
    return layers.put_tops(vm, snapshot.manifest.disks)


def remove(full_name: str) -> None:
    """VM@NAME; ``MachineError`` where it is in use."""
    path = snapshots.place(full_name)
    with at_work(full_name.partition("@")[0]):
        try:
            snapshot = Snapshot.read(path)
        except MachineError:  # a damaged one is of no use
            snapshots.remove(path)
        else:
            snapshot.remove()
        with contextlib.suppress(MachineError):  # there is no such VM, or it runs
            _merge(store.find(full_name.partition("@")[0]))


def _merge(folder: store.Folder) -> None:
    """Have a VM that doesn't run stand on fewer layers, where nobody else needs them."""
    fd = folder.take()
    try:
        spec = folder.spec()
        merged = layers.merge(spec)
        if merged != spec:
            folder.write_spec(merged)
            _sweep(folder, merged)
    finally:
        os.close(fd)


def remove_all(vm: str) -> None:
    """With the VM: its snapshots and layers. Others that were started from them keep what they need."""
    with at_work(vm):
        for name in snapshots.names(vm):
            snapshots.remove(paths.snapshots() / f"{vm}@{name}")
        _drop_suspended(vm)
        atomic.remove_folder(layers.folder(vm))
        _lock_of(vm).unlink(missing_ok=True)


def suspend(folder: store.Folder) -> None:
    """Save the machine and end it; ``resume`` goes on."""
    with at_work(folder.name):
        _drop_suspended(folder.name)
        _create(folder, SUSPENDED, True, "", stop=True)


def suspended(folder: store.Folder) -> Snapshot | None:
    """What ``suspend`` saved, if the VM hasn't run since."""
    path = _suspended_at(folder.name)
    if not path.is_dir():
        return None
    saved = Snapshot.read(path)
    return saved if folder.state().started in (0.0, saved.manifest.started) else None


def _suspended_at(vm: str) -> Path:
    return paths.snapshots() / f"{vm}@{SUSPENDED}"


def _drop_suspended(vm: str) -> None:
    if _suspended_at(vm).is_dir():
        snapshots.remove(_suspended_at(vm))


def resume(folder: store.Folder, held: bool = False) -> launch.Leash | None:
    """Go on with what ``suspend`` saved."""
    with at_work(folder.name):
        saved = suspended(folder)
        if saved is None:
            raise MachineError(f"'{folder.name}' isn't suspended")
        leash = launch.start(folder, held, saved.path)
        _drop_suspended(folder.name)  # the running machine has its files open: only the name goes
        return leash
