"""Files and folders into a guest and out of it: the host's end of ``hostel cp``.

A tree goes over the agent's channel as a stream of entries, in both directions the same (the guest's end:
images/agent_copy)::

    u8 kind, u8 zero, u16 length of the name, u32 of the target, u32 mode, u32 uid, u32 gid, u32 device or errno,
    u64 size, s64 and u32 modification time, u32 zero; the name, the target

FOLDER and LEAVE enclose what is in a folder; FILE is followed by DATA entries (``size`` bytes from the offset in the
time's field on, which follow) for the pieces that aren't holes, and FILE_END; LINK has a target, NODE a device;
SAME_FILE is another name of an earlier file, its target that file's path from the tree's root. END is the last one.

A guest is hostile, and this is not a tar: an entry's name is one component, made below the open folder that it is in
(openat, no links followed), so that nothing a guest sends can be written elsewhere. A file gets its name once it is
whole. Nothing a guest sends makes a device or a set-user-ID program on the host.

Not kept: extended attributes, ACLs, and out of a guest which files were hard links of one another.
"""

import contextlib
import errno
import os
import secrets
import stat
import struct
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from hostel.base.errors import MachineError

if TYPE_CHECKING:
    from hostel.client.vm import VM

FILE, FOLDER, LEAVE, LINK, NODE, DATA, FILE_END, ERROR, END, SAME_FILE = range(1, 11)
HEADER = struct.Struct("<BxHIIIIIQqII")
PIECE = 0x10000
FOLDERS = 500   # deep, at most: each holds a descriptor
ZEROS = bytes(PIECE)
NAME_MAX = 255
TARGET_MAX = 4096


@dataclass(slots=True)
class Entry:
    """``size`` and ``seconds`` are a piece's length and offset in a DATA entry; ``device`` an ERROR's errno."""

    kind: int
    name: bytes = b""
    target: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    device: int = 0
    size: int = 0
    seconds: int = 0
    nanoseconds: int = 0

    def pack(self) -> bytes:
        head = HEADER.pack(
            self.kind, len(self.name), len(self.target), self.mode, self.uid, self.gid, self.device, self.size,
            self.seconds, self.nanoseconds, 0,
        )  # fmt: skip
        return head + self.name + self.target

    @property
    def time(self) -> int:
        """In nanoseconds."""
        return self.seconds * 1_000_000_000 + self.nanoseconds


def copy_in(vm: "VM", source: str, path: str) -> None:
    """The host's ``source``, or the tar archive on standard input for ``-``, to ``path`` in the guest."""
    if source == "-":
        _push(vm, from_tar(sys.stdin.buffer), path, "")
        return
    try:
        os.lstat(source)
    except OSError as error:
        raise MachineError(f"can't read {source}: {error.strerror}") from error
    _push(vm, walk(source), path, last(source))


def copy_out(vm: "VM", path: str, destination: str) -> None:
    """``path`` in the guest to the host's ``destination``, or as a tar archive to standard output for ``-``."""
    name = last(path)
    sink: ToTar | ToFolder
    if destination == "-":
        sink = ToTar(sys.stdout.buffer, name or ".")
    else:
        sink = ToFolder(destination, name)
    reader = Reader(sink)
    errors = bytearray()
    try:
        with contextlib.closing(sink):
            status = vm.attach(
                ["agent", "send", path], itself=True, stdin=None, input=b"", on_stdout=reader.feed,
                on_stderr=errors.extend,
            )  # fmt: skip
            _must_be(status in (0, 1) and reader.ended, errors)
            sink.finish()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MachineError(f"can't write {error.filename or destination}: {error.strerror}") from error
    if reader.complaints:
        raise MachineError("; ".join(reader.complaints[:3]) + (" ..." if len(reader.complaints) > 3 else ""))


def _push(vm: "VM", entries: Iterator[bytes], path: str, name: str) -> None:
    """Feed ``entries`` to the guest's receiver; by a thread, since the bridge reads a descriptor."""
    reader, writer = os.pipe()
    failure: list[Exception] = []

    def produce() -> None:
        try:
            with open(writer, "wb", buffering=1 << 18) as pipe:
                for piece in entries:
                    pipe.write(piece)
        except BrokenPipeError:
            pass
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=produce, daemon=True)
    said = Sayings()
    thread.start()
    errors = bytearray()
    try:
        status = vm.attach(
            ["agent", "receive", path, name], itself=True, stdin=reader, on_stdout=Reader(said).feed,
            on_stderr=errors.extend,
        )  # fmt: skip
    finally:
        os.close(reader)
        thread.join()
    if failure:
        error = failure[0]
        if isinstance(error, OSError):
            raise MachineError(f"can't read {error.filename}: {error.strerror}") from error
        if isinstance(error, tarfile.TarError):
            raise MachineError(f"what comes in is no tar archive, or a damaged one: {error}") from error
        raise error
    if said.errors:
        number, what = said.errors[0]
        raise MachineError(f"{vm.name}: can't write {what or path}: {os.strerror(number)}")
    _must_be(status == 0, errors)


def _must_be(well: bool, errors: bytearray) -> None:
    if not well:
        raise MachineError(errors.decode(errors="replace").strip().removeprefix("hostel: ") or "the copy was cut off")


def last(path: str) -> str:
    """The name that a copy gets in an existing folder; "" for a folder's content (``dir/.``, as docker's cp)."""
    name = os.path.basename(path.rstrip("/"))
    return "" if name in (".", "..") or not name else name


# -- reading the host's files


def walk(path: str) -> Iterator[bytes]:
    """The stream of the tree at ``path``; its first entry has no name."""
    seen: dict[tuple[int, int], bytes] = {}
    yield from _send(None, path.encode(errors="surrogateescape"), b"", b"", seen, 0)
    yield Entry(END).pack()


def _send(
    folder: int | None, path: bytes, name: bytes, way: bytes, seen: dict[tuple[int, int], bytes], depth: int
) -> Iterator[bytes]:
    status = os.stat(path, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
        fd = _open(folder, path)
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                if depth >= FOLDERS:
                    raise MachineError(f"{os.fsdecode(way)}: folders are nested more than {FOLDERS} deep")
                yield _entry(FOLDER, name, status).pack()
                with os.scandir(fd) as listing:
                    names = sorted(os.fsencode(each.name) for each in listing)
                for each in names:
                    yield from _send(fd, each, each, way + b"/" + each if way else each, seen, depth + 1)
                yield Entry(LEAVE).pack()
            elif stat.S_ISREG(status.st_mode):
                if status.st_nlink > 1 and depth:
                    first = seen.setdefault((status.st_dev, status.st_ino), way)
                    if first != way:
                        yield Entry(SAME_FILE, name, first).pack()
                        return
                yield _entry(FILE, name, status).pack()
                yield from _pieces(fd, status.st_size)
                yield Entry(FILE_END).pack()
        finally:
            os.close(fd)
    elif stat.S_ISLNK(status.st_mode):
        entry = _entry(LINK, name, status)
        entry.target = os.readlink(path, dir_fd=folder)
        yield entry.pack()
    elif not stat.S_ISSOCK(status.st_mode):
        yield _entry(NODE, name, status).pack()


def _open(folder: int | None, path: bytes) -> int:
    """A file or folder, to be read. A container may put a device in its place meanwhile, whose opening alone may do
    something: so it is looked at before, by a descriptor that nothing else can come under."""
    seen = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        mode = os.fstat(seen).st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise OSError(errno.EAGAIN, "it became something else meanwhile", path)
        try:
            return os.open(f"/proc/self/fd/{seen}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            error.filename = path
            raise
    finally:
        os.close(seen)


def _entry(kind: int, name: bytes, status: os.stat_result) -> Entry:
    seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
    return Entry(
        kind, name, b"", status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_size, seconds,
        nanoseconds,
    )  # fmt: skip


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    """What is data in a file."""
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            end = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            end = size
        while at < end:
            data = os.pread(fd, min(PIECE, end - at), at)
            if not data:
                return  # it shrank
            yield Entry(DATA, size=len(data), seconds=at).pack()
            yield data
            at += len(data)


# -- reading a tar archive


def from_tar(file: IO[bytes]) -> Iterator[bytes]:
    """The stream of an archive's content, as that of a folder."""
    way: list[str] = []
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        yield Entry(FOLDER, mode=0o755).pack()
        for member in archive:
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            if ".." in parts:
                raise MachineError(f"the archive has a path that leads out of it: {member.name}")
            if not parts:
                continue
            parents = parts if member.isdir() else parts[:-1]
            common = 0
            while common < min(len(way), len(parents)) and way[common] == parents[common]:
                common += 1
            for _ in way[common:]:
                yield Entry(LEAVE).pack()
            for n, part in enumerate(parents[common:], common + 1):
                last = member.isdir() and n == len(parents)
                yield _of_member(member, FOLDER, part).pack() if last else Entry(
                    FOLDER, os.fsencode(part), mode=0o755, seconds=int(member.mtime)
                ).pack()
            way = parents
            if member.isdir():
                continue
            name = parts[-1]
            if member.issym():
                entry = _of_member(member, LINK, name)
                entry.target = os.fsencode(member.linkname)
                yield entry.pack()
            elif member.islnk():
                target = "/".join(part for part in member.linkname.split("/") if part not in ("", "."))
                yield Entry(SAME_FILE, os.fsencode(name), os.fsencode(target)).pack()
            elif member.isreg():
                yield _of_member(member, FILE, name).pack()
                content = archive.extractfile(member)
                assert content is not None
                at = 0
                while data := content.read(PIECE):
                    if data != ZEROS[: len(data)]:
                        yield Entry(DATA, size=len(data), seconds=at).pack()
                        yield data
                    at += len(data)
                yield Entry(FILE_END).pack()
            else:
                yield _of_member(member, NODE, name).pack()
        for _ in way:
            yield Entry(LEAVE).pack()
        yield Entry(LEAVE).pack()
    yield Entry(END).pack()


def _of_member(member: tarfile.TarInfo, kind: int, name: str) -> Entry:
    kinds = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}
    seconds = int(member.mtime // 1)
    device = os.makedev(member.devmajor, member.devminor) if member.isdev() and not member.isfifo() else 0
    return Entry(
        kind, os.fsencode(name), b"", member.mode & 0o7777 | kinds.get(member.type, 0), member.uid, member.gid, device,
        member.size, seconds, int((member.mtime - seconds) * 1e9),
    )  # fmt: skip


# -- what the guest sends


class Reader:
    """Cuts what a guest sends into entries for a ``sink``. ``MachineError`` where they make no sense."""

    def __init__(self, sink: "ToFolder | ToTar | Sayings", links: bool = False):
        self._links = links   # whether there may be further names of files
        self.ended = False
        self.complaints: list[str] = []
        self._sink = sink
        self._rest = b""
        self._way: list[bytes] = []
        self._file = False
        self._size = 0        # of the file that is being received
        self._at = 0          # offset of the next byte of a DATA entry, of which ...
        self._left = 0        # ... so many bytes are still to come
        self._begun = False

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        at = 0
        while at < len(data):
            if self._left:
                piece = memoryview(data)[at : at + self._left]
                self._sink.data(self._at, piece)
                self._at += len(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            if len(data) - at < HEADER.size:
                break
            fields = HEADER.unpack_from(data, at)
            name_size, target_size = fields[1], fields[2]
            if name_size > NAME_MAX * (1 if fields[0] != ERROR else 17) or target_size > TARGET_MAX:
                raise self._nonsense()
            end = at + HEADER.size + name_size + target_size
            if len(data) < end:
                break
            names = data[at + HEADER.size : end]
            self._entry(Entry(fields[0], names[:name_size], names[name_size:], *fields[3:10]))
            at = end
        self._rest = data[at:]

    def _entry(self, entry: Entry) -> None:
        kind = entry.kind
        if self.ended or not (FILE <= kind <= END or kind == SAME_FILE and self._links):
            raise self._nonsense()
        if kind == ERROR:
            way = b"/".join([*self._way[1:], entry.name])
            text = "".join(c if c.isprintable() else "?" for c in way.decode(errors="replace"))
            self._sink.error(entry.device, text)
            self.complaints.append(f"can't read {text} in the guest: {os.strerror(entry.device)}")
            del self.complaints[100:]
        elif kind == DATA:
            if not self._file or not 0 < entry.size <= PIECE or not 0 <= entry.seconds <= self._size - entry.size:
                raise self._nonsense()
            self._at, self._left = entry.seconds, entry.size
        elif kind == FILE_END:
            if not self._file:
                raise self._nonsense()
            self._file = False
            self._sink.file_end()
        elif self._file:
            raise self._nonsense()
        elif kind == LEAVE:
            if not self._way:
                raise self._nonsense()
            self._way.pop()
            self._sink.leave()
        elif kind == END:
            if self._way:
                raise self._nonsense()
            self.ended = True
        else:
            self._make(entry)

    def _make(self, entry: Entry) -> None:
        if self._way:
            name = entry.name
            if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
                raise self._nonsense()
        elif self._begun:
            raise self._nonsense()  # one tree
        self._begun = True
        if b"\0" in entry.target or not -1 << 40 < entry.seconds < 1 << 40 or entry.nanoseconds >= 1_000_000_000:
            raise self._nonsense()
        if entry.size >= 1 << 63:
            raise self._nonsense()
        if entry.kind == FOLDER:
            if len(self._way) >= FOLDERS:
                raise self._nonsense()
            self._way.append(entry.name)
            self._sink.folder(entry)
        elif entry.kind == FILE:
            self._file, self._size = True, entry.size
            self._sink.file(entry)
        elif entry.kind == SAME_FILE:
            self._sink.same(entry)
        else:
            self._sink.special(entry)

    @staticmethod
    def _nonsense() -> MachineError:
        return MachineError("what the guest sends makes no sense as files")


class Sayings:
    """The sink of what a receiver in the guest says: errors."""

    def __init__(self) -> None:
        self.errors: list[tuple[int, str]] = []

    def error(self, number: int, name: str) -> None:
        self.errors = self.errors or [(number, name)]

    def _unexpected(self, *_: Any) -> None:
        raise Reader._nonsense()

    folder = leave = file = data = file_end = special = same = _unexpected


class ToFolder:
    """Makes files of the host's: under ``name`` in the folder ``path`` ("": its content there), or where there is no
    such folder under ``path`` itself. ``new``: under ``path`` in any case, whatever a link of that name leads to."""

    def __init__(self, path: str, name: str, new: bool = False):
        self._stack: list[tuple[int, Entry | None]] = []  # open folders; the entries of those that are new
        self._temporary = f".hostel-cp-{secrets.token_hex(8)}"
        self._file = -1
        self._entry = Entry(0)
        self._failed = False
        self._owner = os.geteuid() == 0
        self._merge = False
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            if not new and os.path.isdir(path):
                self._base = os.open(path, flags)
                self._name, self._merge = name.encode(errors="surrogateescape"), not name
            else:
                if path.endswith("/"):
                    raise MachineError(f"there is no folder {path}")
                self._base = os.open(os.path.dirname(path) or ".", flags)
                self._name = os.path.basename(path).encode(errors="surrogateescape")
        except OSError as error:
            raise MachineError(f"can't write {path}: {error.strerror}") from error

    def folder(self, entry: Entry) -> None:
        at = self._where()
        name = entry.name if self._stack else self._name
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        if self._merge and not self._stack:
            self._stack.append((os.open(".", flags, dir_fd=at), None))
            return
        new: Entry | None = entry
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            new = None  # it keeps its mode, owner and time
        self._stack.append((os.open(name, flags, dir_fd=at), new))

    def leave(self) -> None:
        fd, entry = self._stack.pop()
        try:
            if entry:
                self._attributes(fd, entry)
        finally:
            os.close(fd)

    def file(self, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self._temporary, flags, 0o600, dir_fd=self._where())
        self._entry, self._failed = entry, False

    def data(self, offset: int, data: memoryview) -> None:
        while data:
            n = os.pwrite(self._file, data, offset)
            data, offset = data[n:], offset + n

    def file_end(self) -> None:
        if self._failed:
            self._drop()
            return
        os.ftruncate(self._file, self._entry.size)
        self._attributes(self._file, self._entry)
        os.close(self._file)
        self._file = -1
        self._rename(self._entry)

    def special(self, entry: Entry) -> None:
        if entry.kind != LINK:
            name = (entry.name or self._name).decode(errors="replace")
            print(f"hostel: {name} is a device or pipe in the guest, and was left out", file=sys.stderr)
            return
        at = self._where()
        os.symlink(entry.target, os.fsencode(self._temporary), dir_fd=at)
        if self._owner:
            os.chown(self._temporary, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
        os.utime(self._temporary, ns=(entry.time, entry.time), dir_fd=at, follow_symlinks=False)
        self._rename(entry)

    def same(self, entry: Entry) -> None:
        """Another name of an earlier file of the tree."""
        *parents, name = entry.target.split(b"/")
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.ExitStack() as stack:
            at = self._stack[0][0]
            for part in parents:
                at = os.open(part, flags, dir_fd=at)
                stack.callback(os.close, at)
            os.link(name, os.fsencode(self._temporary), src_dir_fd=at, dst_dir_fd=self._where(), follow_symlinks=False)
        self._rename(entry)

    def error(self, number: int, name: str) -> None:
        """The rest goes on; a file that is open is given up."""
        self._failed = True

    def finish(self) -> None:
        pass

    def close(self) -> None:
        """Whatever happened: nothing half made is left."""
        self._drop()
        while self._stack:
            os.close(self._stack.pop()[0])
        os.close(self._base)

    def _where(self) -> int:
        return self._stack[-1][0] if self._stack else self._base

    def _drop(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        with contextlib.suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._where())

    def _rename(self, entry: Entry) -> None:
        name = entry.name if self._stack else self._name
        os.rename(os.fsencode(self._temporary), name, src_dir_fd=self._where(), dst_dir_fd=self._where())

    def _attributes(self, fd: int, entry: Entry) -> None:
        if self._owner:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & (0o1777 if stat.S_ISDIR(entry.mode) else 0o777))
        os.utime(fd, ns=(entry.time, entry.time))


class ToTar:
    """Writes a tar archive (POSIX pax) with ``name`` as the root's name."""

    def __init__(self, file: IO[bytes], name: str):
        self._file = file
        self._way: list[str] = []
        self._name = name
        self._at = self._size = 0

    def folder(self, entry: Entry) -> None:
        self._head(entry, tarfile.DIRTYPE)
        self._way.append(os.fsdecode(entry.name) if self._way else self._name)

    def leave(self) -> None:
        self._way.pop()

    def file(self, entry: Entry) -> None:
        self._head(entry, tarfile.REGTYPE)
        self._at, self._size = 0, entry.size

    def data(self, offset: int, data: memoryview) -> None:
        if offset < self._at:
            raise Reader._nonsense()
        self._zeros(offset - self._at)
        self._file.write(data)
        self._at = offset + len(data)

    def file_end(self) -> None:
        self._zeros(self._size - self._at + -self._size % tarfile.BLOCKSIZE)

    def special(self, entry: Entry) -> None:
        kinds = {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
        kind = tarfile.SYMTYPE if entry.kind == LINK else kinds.get(stat.S_IFMT(entry.mode))
        if kind is None:
            raise Reader._nonsense()
        self._head(entry, kind)

    def same(self, entry: Entry) -> None:
        info = tarfile.TarInfo("/".join([*self._way, os.fsdecode(entry.name)]))
        info.type, info.linkname = tarfile.LNKTYPE, f"{self._name}/{os.fsdecode(entry.target)}"
        self._file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def error(self, number: int, name: str) -> None:
        """Told at the end; a file that can't be read on is filled with zeros."""

    def finish(self) -> None:
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.flush()

    def close(self) -> None:
        pass

    def _head(self, entry: Entry, kind: bytes) -> None:
        info = tarfile.TarInfo("/".join([*self._way, os.fsdecode(entry.name) if self._way else self._name]))
        info.type, info.mode, info.uid, info.gid = kind, entry.mode & 0o7777, entry.uid, entry.gid
        info.mtime = entry.time / 1e9 if entry.nanoseconds else entry.seconds
        info.size = entry.size if kind == tarfile.REGTYPE else 0
        info.linkname = os.fsdecode(entry.target)
        info.devmajor, info.devminor = os.major(entry.device), os.minor(entry.device)
        self._file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _zeros(self, count: int) -> None:
        while count > 0:
            self._file.write(ZEROS[: min(count, PIECE)])
            count -= PIECE
