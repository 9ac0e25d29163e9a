"""Translated code that is kept between runs: ``$HOSTEL_HOME/translations/``, its owner's only.

``KEY.code`` is what workers adopt from (cpu/bt/kept), for one build of the translator, one kind of processor, and
machines of one or of several vCPUs. It is mapped before the worker is confined, checked before it is used, and each
block's checksum again before that is copied to the worker's own code memory; nothing is run where it lies.

A worker that a guest has taken over could tell anything, so it tells no code. What it says at its end is which guest
bytes it translated (``wishes/``, a file that was opened before the guest ran); ``make`` translates those again, in a
process that has no guest and may do nothing but write the new file. Whatever the bytes are, what comes out is what any
worker would have made of them. Zygotes (vm/zygote) do this in the background when a VM has ended, ``hostel
translations make`` does it at once.

``HOSTEL_TRANSLATIONS=0``: nothing is adopted or told.
"""

import contextlib
import mmap
import os
import resource
import stat
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from hostel._version import __version__
from hostel.base import atomic, paths
from hostel.base.linux import landlock, lock, namespace, prctl, seccomp

ROOM = 512 << 20            # bytes of a file; what nobody wanted for longest goes first
WAITING = 8                 # so many files of wishes may wait; more VMs tell nothing
WORTH = 64 << 10            # bytes of wishes that are worth telling, some 700 blocks
_WORTH_MAKING = 64          # so many of a file's bytes are worth one byte that comes new
_MOST = 64 << 20            # bytes of a file of wishes
_SECONDS = 120              # of a processor, for a file
_HEAD = struct.Struct("=8s32sq")   # of a file of wishes: magic, key, stamp of the file adopted from or -1; then parts
_MAGIC = b"hostelTW"


def enabled() -> bool:
    return os.environ.get("HOSTEL_TRANSLATIONS", "1") != "0"


def key(identity: bytes) -> bytes:
    """Of files for engines that say this of themselves (keeper.identity), with today's translator: 32 bytes."""
    total = sha256(f"{__version__}\0".encode() + identity)
    with os.scandir(Path(__file__).parent.parent / "cpu" / "bt") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".so"):
                status = entry.stat()
                total.update(f"{entry.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return total.digest()


def _keeper() -> Any:
    from hostel.cpu.bt import keeper  # with an engine, which comes in late

    return keeper


def _map(path: Path, wanted: bytes) -> tuple[mmap.mmap | None, int]:
    """A file for that key, if it is there, ours alone, and whole; and its stamp."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None, -1
    try:
        status = os.fstat(fd)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
        if not ours or not status.st_size:
            return None, -1
        file = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    except OSError:
        return None, -1
    finally:
        os.close(fd)
    stamp = _keeper().check(file, wanted)
    return (file, stamp) if stamp >= 0 else (None, -1)


# ---------------------------------------------------------------- a worker's


class Kept:
    """What a worker adopts from, and where it says what it translated; opened before it is confined."""

    def __init__(self, engine: Any):
        self._keeper = _keeper()
        self._key = key(self._keeper.identity(engine))
        self._file, self._stamp = _map(paths.translations() / f"{self._key.hex()}.code", self._key)
        self._wishes = _open_wishes(_HEAD.pack(_MAGIC, self._key, self._stamp))

    def give(self, engine: Any) -> None:
        """Have a new machine's engine adopt."""
        if self._file:
            self._keeper.use(engine, self._file)
        self._keeper.collect(engine, self._wishes)

    def take(self, engine: Any) -> None:
        """Say what it has translated, if that is much; its machine has stopped for good."""
        with contextlib.suppress(OSError):  # no room: next time
            os.write(self._wishes, self._keeper.tell(engine, WORTH))

    def leave(self, engine: Any) -> None:
        """In a fork: its parent speaks for both."""
        if self._wishes >= 0:
            os.close(self._wishes)
            self._wishes = -1
        self._keeper.collect(engine, -1)


def _open_wishes(head: bytes) -> int:
    """A new file of wishes, locked for as long as it may be written to; -1: there is to be none."""
    folder = paths.translations() / "wishes"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if len(os.listdir(folder)) >= WAITING:
            return -1
        fd = os.open(folder / os.urandom(8).hex(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        lock.take(fd)
        os.write(fd, head)
    except OSError:
        return -1
    return fd


# ---------------------------------------------------------------- making files


def waiting() -> list[Path]:
    """Files of wishes that nobody writes to any more; those that hold nothing go."""
    folder = paths.translations() / "wishes"
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = folder / name
            if not lock.is_held(path):
                if path.stat().st_size > _HEAD.size:
                    found.append(path)
                else:
                    path.unlink()
    return found


def make() -> int:
    """Translate what is wished for; the number of blocks that came new."""
    folder = paths.translations()
    if not folder.exists():
        return 0
    with atomic.locked(folder / "lock"):
        for path in folder.glob(".*.code.*"):  # of a maker that was killed
            path.unlink(missing_ok=True)
        told = list(_told())
        return sum(_make(folder, told, smp) for smp in (False, True)) if told else 0


def _told() -> Iterator[tuple[bytes, int, bytes]]:
    """(key, stamp, parts) of all that waits, which is removed: whatever they hold, nobody tries it twice."""
    for path in waiting():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            path.unlink()
            data = file.read(_MOST)
            magic, wanted, stamp = _HEAD.unpack_from(data)
            if magic == _MAGIC:
                yield wanted, stamp, data[_HEAD.size :]


class _Nothing(Exception):
    """There is no new file."""


def _make(folder: Path, told: list[tuple[bytes, int, bytes]], smp: bool) -> int:
    maker = _keeper().Keeper(smp)
    wanted = key(maker.identity())
    told = [row for row in told if row[0] == wanted]
    if not told:
        return 0
    path = folder / f"{wanted.hex()}.code"
    old, stamp = _map(path, wanted)
    reader, writer = os.pipe()
    try:
        with atomic.replacing(path, 0o600, durable=False) as file:
            pid = os.fork()
            if pid == 0:
                _be_child(lambda: _translate(maker, wanted, old, stamp, told, file.fileno(), writer))
            os.close(writer)
            writer = -1
            _, status = os.waitpid(pid, 0)
            count = int(os.read(reader, 16) or b"0")
            if status or not count:
                raise _Nothing
        _sweep(folder)
        return count
    except _Nothing:
        return 0
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _be_child(work: Callable[[], None]) -> None:
    """Never returns. The bytes are a guest's: who translates them may do nothing but this."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        namespace.drop_capabilities()
        prctl.set_no_new_privs()
        prctl.set_dumpable(False)
        landlock.restrict([])
        seccomp.restrict()
        work()
        status = 0
    finally:
        os._exit(status)


def _translate(
    maker: Any, wanted: bytes, old: mmap.mmap | None, stamp: int, told: list[tuple[bytes, int, bytes]], out: int,
    count: int,
) -> None:
    """Write the new file to ``out``, and how many blocks are new to ``count``; nothing where that isn't worth it."""
    keeper = _keeper()
    records: dict[bytes, tuple[int, bytes]] = {}
    if old:
        bits = 0
        for _, adopted_from, parts in told:
            for start, end in keeper.parts(parts) if adopted_from == stamp else ():
                bits |= int.from_bytes(parts[start:end], "little")
        marks = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        for place, age, record in keeper.read(old):
            again = place >> 3 < len(marks) and marks[place >> 3] >> (place & 7) & 1
            records[keeper.content(record)] = (0 if again else age + 1, record)
    before, came, seen = len(records), 0, set[bytes]()
    for _, _, parts in told:
        for record in maker.records(parts, seen):
            if keeper.content(record) not in records:
                came += len(record)
                records[keeper.content(record)] = (0, record)
    if old and came * _WORTH_MAKING < len(old):
        return
    kept, size = [], 0
    for age, record in sorted(records.values(), key=lambda row: row[0]):
        size += len(record)
        if size > ROOM:
            break
        kept.append((age, record))
    file = memoryview(keeper.make(wanted, int.from_bytes(os.urandom(7), "little"), kept))
    while file:
        file = file[os.write(out, file) :]
    os.write(count, str(len(records) - before).encode())


def _sweep(folder: Path) -> None:
    """Remove the files of translators that aren't here any more: all but the last four that were made."""
    files = sorted(folder.glob("*.code"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[4:]:
        path.unlink(missing_ok=True)


def clear() -> None:
    """Forget all that is kept."""
    folder = paths.translations()
    for path in (*folder.glob("*.code"), *waiting()):
        with atomic.told(path):
            path.unlink(missing_ok=True)
