"""The worker's part of a snapshot: the machine's state and memory into files, and out of them again.

The machine stands still only while its state is taken and the process forks: the child has memory as it was then, page
by page as the kernel copies what the guest changes, and writes it down while the guest goes on. Memory files hold what
changed since the snapshot that this one stands on (memory/image); the rest is in the state file (vm/saved).
"""

import contextlib
import gc
import mmap
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hostel.base.errors import HostelError, MachineError
from hostel.base.linux import prctl
from hostel.base.loop import READ, Loop
from hostel.memory import image
from hostel.memory.ram import Ram
from hostel.spec import rpc
from hostel.spec.control import Connection, Later
from hostel.spec.vm import VmSpec
from hostel.vm.saved import Base, Memory, State, read_state

if TYPE_CHECKING:
    from hostel.vm.worker import Worker


class Checkpoints:
    """Takes snapshots of ``worker``'s machine, one at a time."""

    def __init__(self, worker: "Worker"):
        self._worker = worker
        self.busy = False
        self.base: Base | None = None     # what ``dirty`` marks in memory are about; None: power-on

    def resume(self, base: Base, kept: bool = False) -> State:
        """Restore the machine, which is blank, from the snapshot ``base``. ``kept``: its memory is another's that stood
        on ``base`` already."""
        machine = self._worker.machine
        state = base.state()
        put = image.put_back if kept else image.restore
        try:
            put(machine.ram, state.memory.runs, [base.fds[id] for id in state.memory.files])
            if kept:
                machine.engine.note_writes()
            machine.load(state.machine)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
            raise MachineError(f"the snapshot's state makes no sense: {type(e).__name__}: {e}") from e
        self.base = base
        return state

    def stands_on(self, base: Base) -> bool:
        """Whether memory differs from that snapshot's in dirty pages only."""
        return self.base is not None and self.base.id == base.id

    def forget(self) -> None:
        """The machine is another: its memory stands on nothing."""
        if self.base:
            self.base.close()
        self.base = None

    def find(self, params: rpc.Revert, fds: list[int]) -> "tuple[Base, Deltas] | None":
        """What the worker's machine is to be put back to (``rpc.Revert``); None where it can't. The descriptors are
        this method's to close."""
        worker = self._worker
        machine = worker.machine
        deltas = Deltas(machine, params.disks)
        count = 2 + len(params.files)
        with contextlib.ExitStack() as undo:
            for fd in fds:
                undo.callback(os.close, fd)
            if self.busy or machine.full or worker.debugger.attached:
                return None
            if _but_disks(params.spec) != _but_disks(worker.spec):
                return None
            if len(fds) < count:
                raise MachineError("revert: the files' descriptors are missing")
            base = Base(params.id, fds[1], dict(zip(params.files, fds[2:], strict=False)), fds[0])
            base.state()  # or it makes no sense
            deltas.take(fds[count:])
            if not deltas.find(params.layers):
                return None
            undo.pop_all()
        return base, deltas

    def take(self, connection: Connection, params: rpc.Snapshot, fds: list[int]) -> Any:
        """For the control socket; see ``rpc.Snapshot``. The descriptors are this method's to close."""
        worker = self._worker
        machine = worker.machine
        deltas = Deltas(machine, params.disks)
        try:
            if self.busy:
                raise MachineError(f"a snapshot of '{worker.spec.name}' is being written")
            if machine.full:
                raise MachineError(f"'{worker.spec.name}' waits for room on the host: no snapshot can be taken now")
            if not worker.complete:
                raise MachineError(f"'{worker.spec.name}' is just starting: its shares aren't mounted yet")
            state_fds = fds[: 2 if params.memory else 0]
            deltas.take(fds[len(state_fds) :])
            if len(state_fds) != 2 * params.memory:
                raise MachineError("snapshot: the files' descriptors are missing")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        base = self.base if self.base and self.base.id == params.base else None
        begun = time.monotonic_ns()
        running = worker.running
        if running:
            machine.stop()
        stands = False
        try:
            if params.memory and self.base and not base:  # it is gone: what is in its files is to be written anew
                machine.ram.put_back_dirty(marks(machine.ram, self.base.state().memory.runs))
            answer = self._take(connection, params, state_fds, deltas, base, begun, running)
            stands = params.stop
            return answer
        finally:
            if running and not stands:
                self._go_on(machine)

    def _go_on(self, machine: Any) -> None:
        if machine is self._worker.machine and not self._worker.ended:
            machine.start()

    def _take(
        self, connection: Connection, params: rpc.Snapshot, fds: list[int], deltas: "Deltas", base: Base | None,
        begun: int, running: bool,
    ) -> Any:
        worker, machine = self._worker, self._worker.machine
        ram = machine.ram
        worker.drain()
        parts = {
            "machine": machine.save(), "exec": worker.exec.save(), "console": worker.console.past(),
        }  # fmt: skip
        deltas.freeze()
        if not params.memory:
            deltas.stack(worker.spec)
            deltas.go_on()
            return {"pause_ns": time.monotonic_ns() - begun, "files": []}
        state_fd, memory_fd = fds
        dirty: list[bytes] = []
        later = Later()
        result = {"pause_ns": 0, "files": base.state().memory.files if base else []}

        def ended(error: str) -> None:
            self.busy = False
            if machine is not worker.machine:  # it was reset meanwhile
                error = error or "the VM was reset"
            if error:
                ram.put_back_dirty(dirty)
                os.close(state_fd)
                os.close(memory_fd)
                later.failed(f"can't write the snapshot: {error}")
                if params.stop and running:
                    self._go_on(machine)
                return
            kept = {id: os.dup(base.fds[id]) for id in read_state(state_fd).memory.files[:-1]} if base else {}
            self.forget()
            self.base = Base(params.id, state_fd, {**kept, params.id: memory_fd})
            later.done(result)
            if params.stop:
                connection.on_close = abandoned
                if connection.closed:
                    abandoned()

        def abandoned() -> None:
            """Who wanted it to stop has gone before they said that they have all they need."""
            if machine is worker.machine and not worker.ended:
                worker.has_started()  # so that what was saved is stale
                if running:
                    machine.start()

        try:
            write_beside(worker.loop, lambda: write(ram, parts, params.id, base, (state_fd, memory_fd)), ended)
        except BaseException:
            os.close(state_fd)
            os.close(memory_fd)
            raise
        finally:
            deltas.stack(worker.spec)
            deltas.go_on()
        self.busy = True
        dirty = ram.take_dirty()
        machine.engine.note_writes()
        result["pause_ns"] = time.monotonic_ns() - begun
        return later


def marks(ram: Ram, runs: bytes) -> list[bytes]:
    """As ``Ram.take_dirty`` gives them: the pages that ``runs`` (memory/image) have."""
    regions = [(gpa >> 12, bytearray(size >> 12)) for gpa, size, _ in ram.regions()]
    for first, count, _, _ in image.RUN.iter_unpack(runs):
        for start, dirty in regions:
            if start <= first < start + len(dirty):
                dirty[first - start : first - start + count] = b"\1" * count
    return [bytes(dirty) for _, dirty in regions]


def _but_disks(spec: VmSpec) -> VmSpec:
    """All that two must have alike for the same cards to serve both."""
    disks = [msgspec.structs.replace(disk, path="", format="", allow_backing=False) for disk in spec.disks]
    return msgspec.structs.replace(spec, disks=disks, remove=False)


class Deltas:
    """New tops for disks: ``take`` their descriptors, ``freeze`` what is to be below them, ``stack``, ``go_on``."""

    def __init__(self, machine: Any, wanted: Sequence[rpc.Delta]):
        self._disks = machine.disks()
        self._wanted = wanted
        self._fds: list[tuple[int, ...]] = []
        self._ios: list[Any] = []
        self._found: list[Any] = []

    def take(self, fds: list[int]) -> None:
        """``MachineError`` where they aren't what is asked for; then they are still the caller's."""
        numbers = [delta.number for delta in self._wanted]
        if sum(1 + delta.direct for delta in self._wanted) != len(fds) or len({*numbers}) != len(numbers):
            raise MachineError("snapshot: the disks' descriptors are missing")
        if any(number >= len(self._disks) or self._disks[number].io.readonly for number in numbers):
            raise MachineError("snapshot: there is no such disk that can be written")
        rest = iter(fds)
        self._fds = [(next(rest), next(rest)) if delta.direct else (next(rest),) for delta in self._wanted]

    def find(self, layers: Sequence[rpc.Layer]) -> bool:
        """Whether ``layers`` are images of the disks' that the deltas can be put on; ``go_back`` does."""
        self._ios, self._disks = [disk.io for disk in self._disks], []  # the machine may go
        wanted = {delta.number: layer for delta, layer in zip(self._wanted, layers, strict=False)}
        if sorted(wanted) != [number for number, io in enumerate(self._ios) if not io.disk.readonly]:
            return False
        for number, layer in wanted.items():
            below = self._ios[number].disk.chain()[1:]
            found = [disk for disk in below if disk.file.identity == (layer.device, layer.inode)]
            self._found += found
        return len(self._found) == len(wanted)

    def go_back(self, spec: VmSpec) -> None:
        """After ``find``, without a machine: what was written above the layers is gone, as ``spec`` says."""
        if not self._wanted:
            return
        from hostel.block.file import File  # which a worker with disks has
        from hostel.block.layers import go_back
        from hostel.block.qcow2.disk import Qcow2

        for delta, fds, layer in zip(self._wanted, self._fds, self._found, strict=True):
            io = self._ios[delta.number]
            io.hold_on()
            top = Qcow2(File.adopt(Path(delta.path), fds[0], fds[1] if len(fds) > 1 else -1), False)
            go_back(io.disk, layer, top)
            io.disk = top
            io.go_on()
            _say(spec, delta)

    def freeze(self) -> None:
        """The machine stands still."""
        for delta in self._wanted:
            self._disks[delta.number].hold()
        for delta in self._wanted:
            self._disks[delta.number].freeze()

    def stack(self, spec: VmSpec, instead: Sequence[int] = ()) -> None:
        """What is written from now on is the deltas', and ``spec`` says so; some are there ``instead`` of the tops."""
        for delta, fds in zip(self._wanted, self._fds, strict=True):
            direct = fds[1] if len(fds) > 1 else -1
            self._disks[delta.number].stack(Path(delta.path), fds[0], direct, delta.number in instead)
            _say(spec, delta)

    def go_on(self) -> None:
        """As the same machine, after ``freeze``."""
        for delta in self._wanted:
            self._disks[delta.number].go_on(False)


def _say(spec: VmSpec, delta: rpc.Delta) -> None:
    disk = spec.disks[delta.number]
    disk.path, disk.format, disk.allow_backing = delta.path, "qcow2", True


def write(ram: Ram, parts: dict[str, Any], id: str, base: Base | None, fds: tuple[int, int]) -> None:
    """State and memory into the files ``fds``. Memory stands still."""
    state_fd, memory_fd = fds
    files, runs, views = [], b"", []
    if base:
        memory = base.state().memory
        files, runs = memory.files, memory.runs
        for name in files:
            size = os.fstat(base.fds[name]).st_size
            views.append(mmap.mmap(base.fds[name], size, access=mmap.ACCESS_READ) if size else b"")
    written = image.write(ram, memory_fd, runs, views, len(files))
    used = image.files(written.runs) | {len(files)}
    keep = [index for index in range(len(files) + 1) if index in used]
    table = {old: new for new, old in enumerate(keep)}
    state = State(
        memory=Memory(
            [(*files, id)[index] for index in keep], image.remap_files(written.runs, table), written.pages,
            written.digests,
        ),
        **parts,
    )
    data = memoryview(msgspec.msgpack.encode(state))
    while data:
        data = data[os.write(state_fd, data) :]


def write_beside(loop: Loop, write: Callable[[], None], done: Callable[[str], None]) -> None:
    """Have a forked child ``write``, and ``done`` called with what went wrong, or "". Nothing else may run here
    meanwhile that the child must not see half done."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as e:
        os.close(reader)
        os.close(writer)
        raise MachineError(f"can't make a process that writes the snapshot: {e.strerror}") from e
    if pid == 0:
        word = "it ended"
        try:
            gc.disable()
            prctl.end_with_parent(parent)  # it has the VM's lock and its disks open
            write()
            word = "."
        except OSError as e:
            word = e.strerror or str(e)
        except HostelError as e:
            word = str(e)
        except BaseException as e:
            word = f"{type(e).__name__}: {e}"
        finally:
            os.write(writer, word.encode()[:4096])
            os._exit(0)
    os.close(writer)

    def ended() -> None:
        word = os.read(reader, 4096).decode(errors="replace")
        loop.unwatch(reader)
        os.close(reader)
        done("" if word == "." else word or "the process that wrote it was killed")

    loop.watch(reader, READ, lambda _: ended())
