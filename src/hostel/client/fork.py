"""Copies of a running VM, each of which goes on as a VM of its own (vm/fork)."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hostel.base import atomic, paths
from hostel.base.errors import MachineError, UsageError
from hostel.base.names import new_name
from hostel.client.connection import Connection
from hostel.client.snapshots import CURRENT, at_work, go_over, open_tops, spec_for
from hostel.spec.control import listen
from hostel.spec.vm import VmSpec, check_name
from hostel.vm import launch, layers, store
from hostel.vm.layers import DiskLayer
from hostel.vm.nics import Wire, open_alike
from hostel.vm.vsock import open_vsock

MOST = 1000
_THREADS = 4
_OPEN = 16                # folders that are open at once


class Made(NamedTuple):
    """Copies, what holds them, and how long the VM stood still."""

    folders: list[store.Folder]
    leash: launch.Leash | None
    pause_ns: int


def names(vm: str, count: int, pattern: str | None) -> list[str]:
    """The children's: ``pattern`` with a number for %d, or behind it where there are several and none is."""
    if not 1 <= count <= MOST:
        raise UsageError(f"a VM is forked into 1 to {MOST} copies, not {count}")
    if pattern is not None and count == 1 and "%d" not in pattern:
        return [check_name(pattern)]
    pattern = pattern or f"{vm}-%d"
    if "%d" not in pattern:
        pattern += "-%d"
    taken = set(os.listdir(paths.vms()))
    found: list[str] = []
    number = 0
    while len(found) < count:
        number += 1
        name = check_name(pattern.replace("%d", str(number)))
        if name not in taken:
            found.append(name)
    return found


def fork(
    folder: store.Folder, names: Callable[[], Sequence[str | None]], ports: Sequence[str] = (), held: bool = False,
    remove: bool = False, run: bool = False,
) -> Made:
    """Make them, of these ``names`` (None: one that is made up), all or none: on one leash if they are to be ``held``,
    to be removed (``remove``) when they end; they ``run`` though the VM itself stands still."""
    with at_work(folder.name), contextlib.ExitStack() as undo, contextlib.ExitStack() as opened:
        spec = folder.spec()
        for nic in spec.nics:
            if nic.network.startswith(("tap:", "bridge:")):
                raise MachineError(f"'{folder.name}' can't be forked: its card on {nic.network} is one VM's")
        if not folder.owned():
            raise MachineError(f"'{folder.name}' is not running")
        with Connection(folder.path) as connection:
            blank = connection.call("blank_disks") if spec.disks else []
        blank = [number for number in blank if Path(spec.disks[number].path).parent == layers.folder(folder.name)]
        frozen = layers.tops(spec, blank)
        own = [layer for layer in frozen if layer.number not in blank]
        specs = [spec_for(spec, name or new_name(), ports) for name in names()]
        for child in specs:
            child.remove = remove
        leash, end = launch.make_leash() if held else (None, -1)
        if held:
            undo.callback(os.close, end)
        # Routers write to the worker's log, not to ours: who waits for the end of that would wait for them.
        how = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # the folder is the worker's
        log = os.open(folder.path / "worker.log", how)
        opened.callback(os.close, log)
        wires = open_alike(specs, log) if spec.nics else [[] for _ in specs]
        for wire in itertools.chain(*wires):
            undo.callback(wire.close)
        made: list[store.Folder] = []
        prepare = functools.partial(_Copy, folder, frozen, undo)
        with Connection(folder.path) as connection:
            with contextlib.closing(_at_once(prepare, specs)) as copies:
                for copy, cards in zip(copies, wires, strict=True):
                    fds, params = _hand(copy, cards, end)
                    connection.call("hand", fds=fds, **params)
                    copy.opened.close()
                    made.append(copy.folder)
            with go_over(folder, spec, own) as tops:
                fds, deltas = open_tops(spec, tops, opened)
                pause = connection.call("fork", fds=fds, disks=deltas, run=run, blank=blank)["pause_ns"]
        for born in made:
            if not _is_born(born):
                raise MachineError(f"'{born.name}' didn't come to life; the host may have too many processes")
        undo.pop_all()
        if held:
            os.close(end)
        return Made(made, leash, pause)


def _is_born(copy: store.Folder) -> bool:
    """Once it has said so, or can't any more."""
    while copy.is_unborn():
        if not copy.owned():
            return False
        time.sleep(0.001)
    return copy.owned()


def _undo(copy: store.Folder) -> None:
    if _is_born(copy):
        launch.kill(copy)
    copy.delete()


class _Copy:
    """A child's folder and disks, and what is open of them. May be made by any thread."""

    def __init__(self, parent: store.Folder, frozen: Sequence[DiskLayer], undo: contextlib.ExitStack, spec: VmSpec):
        if frozen:
            layers.link(frozen, layers.folder(parent.name), layers.folder(spec.name))
            undo.callback(_drop_layers, spec.name)
        self.tops = layers.put_tops(spec.name, frozen) if frozen else {}
        self.spec = layers.on_tops(spec, self.tops)
        self._parent = parent.path
        with contextlib.ExitStack() as self.opened:
            self.folder = store.create(self.spec, self._fill, unborn=True)
            self.opened = self.opened.pop_all()
        undo.callback(_undo, self.folder)
        undo.callback(self.opened.close)  # before that: whose lock is held may still come to life

    def _fill(self, new: Path, path: Path) -> None:
        """The files of its folder: the lock, which is held, logs, and what snapshot it stands on."""
        self.lock = store.Folder(new).take()
        self.opened.callback(os.close, self.lock)
        for name in ("console.log", "console.log.1", "worker.log", "worker.log.1"):
            (new / name).touch(0o600)
        try:
            (new / CURRENT).write_bytes((self._parent / CURRENT).read_bytes())
        except FileNotFoundError:
            pass


def _at_once(prepare: Callable[[VmSpec], _Copy], specs: Sequence[VmSpec]) -> Generator[_Copy, None, None]:
    """Each prepared, in order, some at a time: most of it is waiting for the file system."""
    if len(specs) == 1:
        yield prepare(specs[0])
        return
    from concurrent.futures import ThreadPoolExecutor  # not for a single one: that takes as long as one

    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(specs), _OPEN):
            yield from pool.map(prepare, specs[first: first + _OPEN])


def _hand(copy: _Copy, wires: Sequence[Wire], leash: int) -> tuple[list[int], dict[str, Any]]:
    """What the child gets: descriptors, and the rest of ``rpc.Hand``."""
    fds, opened, spec = [copy.lock], copy.opened, copy.spec
    for name, flags in (
        ("state.json", os.O_RDWR), ("console.log", os.O_RDWR | os.O_APPEND), ("console.log.1", os.O_RDWR),
        ("worker.log", os.O_RDWR | os.O_APPEND), ("worker.log.1", os.O_RDWR),
    ):  # fmt: skip
        fds.append(os.open(copy.folder.path / name, flags | os.O_CLOEXEC))
        opened.callback(os.close, fds[-1])
    place = os.open(copy.folder.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, place)
    control = listen(place, "control.sock")
    opened.callback(control.close)
    fds.append(control.fileno())
    if leash >= 0:
        fds.append(leash)
    for wire in wires:
        opened.callback(wire.close)
        fds += wire.fds
    counts = [len(wire.fds) for wire in wires]
    if spec.vsock:
        ends = open_vsock(spec)[0]
        opened.callback(ends.release)
        fds += [ends.listener.fileno(), ends.broker.fd]
    disk_fds, deltas = open_tops(spec, copy.tops, opened)
    return fds + disk_fds, {
        "spec": msgspec.to_builtins(spec), "leash": leash >= 0, "nics": counts, "vsock": bool(spec.vsock),
        "disks": deltas,
    }  # fmt: skip


def _drop_layers(vm: str) -> None:
    atomic.remove_folder(layers.folder(vm))
