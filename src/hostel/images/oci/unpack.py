"""A layer's tar stream becomes a folder that overlayfs takes as a lower directory (image-spec 1.1, layer.md).

The stream is hostile. Each entry's parent is opened by openat2 with RESOLVE_IN_ROOT beneath the layer's own folder,
where links lead nowhere else, and the entry is made in it by its last name alone, exclusively and without following
anything. ``..`` is refused, a leading ``/`` means the layer's root. Hard links join files of the layer only. Device
nodes aren't made: a container's runtime makes those that it has. Of extended attributes only ``security.capability``
and ``user.*`` are taken, without overlayfs's own.

Whiteouts become overlayfs's (a character device 0:0; an opaque attribute on folders). A layer may rely on those below
it: by a folder that it has something in but doesn't name, and by a hard link to a file that it doesn't have. Both are
noted in ``Needs`` and settled when the lower layers are there (``settle``); so layers can be unpacked side by side.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from hostel.base.errors import ImageError
from hostel.base.linux import openat2
from hostel.images.oci import tar
from hostel.images.oci.limits import Limits

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_HELD = 64  # folders that stay open
_DEPTH = 128  # folders in each other, each open while the next is made
_LINKS = 40  # that lead to a folder which isn't there, before it is a loop; the kernel's own number
_ROOT_XATTRS = (b"security.capability",)
_FOLLOW = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BEYOND = 0xFFFFFFFF  # (uid_t)-1: nobody


@dataclass(frozen=True)
class Owners:
    """Who owns what is unpacked. ``keep``: whom the layer says, in this process's user namespace; else this process's
    user, without set-user-ID and set-group-ID bits."""

    keep: bool = True
    count: int = _BEYOND  # numbers that the user namespace has

    @classmethod
    def here(cls) -> "Owners":
        """What this process may do: in a user namespace with a single user nobody else can own anything."""
        if os.geteuid():
            return cls(keep=False)
        with open("/proc/self/uid_map") as file:
            count = max(int(line.split()[0]) + int(line.split()[2]) for line in file)
        return cls(keep=count > 1, count=count)


@dataclass
class Needs:
    """What a layer leaves to those below it: folders without an entry, (target, name) of hard links."""

    folders: list[bytes] = field(default_factory=list)
    links: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass
class Unpacked:
    needs: Needs
    size: int = 0  # bytes of files
    entries: int = 0
    devices: int = 0  # nodes that were left out
    opaque: bool = False  # hides all layers below


def normal(name: bytes) -> bytes:
    """``a/b`` for what a tar calls ``./a//b/`` or ``/a/b``; empty for the root."""
    if b"/." not in name and b"//" not in name and name[0] not in b"./" and name[-1] != 47:
        return name
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise tar.TarError(f"a layer has an entry that leads out of it: {os.fsdecode(name[:200])!r}")
    return b"/".join(parts)


def opaque_xattr() -> str:
    """overlayfs's name for it: ``trusted`` is for mounts of the host's root, ``user`` for those with userxattr."""
    with open("/proc/self/uid_map") as file:
        whole = file.read().split() == ["0", "0", "4294967295"]
    return "trusted.overlay.opaque" if whole and os.geteuid() == 0 else "user.overlay.opaque"


class Unpacker:
    """Unpacks one layer into the empty folder ``root``, a descriptor. ``aliases``: folders without an entry that are
    links in the layers below, and where those lead."""

    def __init__(
        self, root: int, limits: Limits | None = None, owners: Owners | None = None,
        aliases: dict[bytes, bytes] | None = None,
    ) -> None:  # fmt: skip
        self.root = root
        self.limits = limits or Limits()
        self.owners = owners or Owners.here()
        self.aliases = aliases or {}
        self.opaque = opaque_xattr()
        self.done = Unpacked(Needs())
        self._held: dict[bytes, int] = {}
        self._folders: dict[bytes, tar.Entry | None] = {b"": None}  # metadata for the end; None: it has no entry
        self._whiteouts: set[bytes] = set()

    def unpack(self, pieces: Iterator[bytes]) -> Unpacked:
        reader = tar.Reader(pieces)
        name = b""
        try:
            for entry in reader:
                name = entry.name
                self.done.entries += 1
                self.limits.check_entries(self.done.entries)
                self._take(entry, reader)
            self._link_late()
            for name in sorted(self._folders, reverse=True):
                self._finish(name)
            self.done.needs.folders.sort()
        except OSError as error:
            raise _told(error, name) from error
        finally:
            self._forget()
        return self.done

    def _take(self, entry: tar.Entry, reader: tar.Reader) -> None:
        path = self._renamed(normal(entry.name))
        if not path:
            if entry.kind != tar.FOLDER:
                raise tar.TarError("a layer's root is no folder")
            self._folders[b""] = entry
            return
        if path.count(b"/") > _DEPTH:
            raise tar.TarError(f"a layer has more than {_DEPTH} folders in each other")
        if len(self._held) > _HELD:
            self._forget()
        parent, _, name = path.rpartition(b"/")
        if name.startswith(_WHITEOUT):
            self._whiteout(parent, name)
            return
        at = self._parent(parent)
        kind = entry.kind
        if kind == tar.REGULAR:
            self._file(at, path, name, entry, reader)
        elif kind == tar.FOLDER:
            self._folder(at, path, name, entry)
        elif kind == tar.SYMLINK:
            if not entry.link:
                raise tar.TarError(f"a layer has a symbolic link to nothing: {os.fsdecode(path[:200])!r}")
            self._make(at, path, name, lambda: os.symlink(entry.link, name, dir_fd=at))
            self._own(entry, at, name)
        elif kind == tar.LINK:
            self._link(at, path, name, entry)
        elif kind == tar.FIFO:
            self._make(at, path, name, lambda: os.mkfifo(name, 0o600, dir_fd=at))
            self._own(entry, at, name)
        else:
            self.done.devices += 1

    def _renamed(self, path: bytes) -> bytes:
        for old, new in self.aliases.items():
            if path.startswith(old + b"/"):
                return new + path[len(old) :] if new else path[len(old) + 1 :]
        return path

    # -- the kinds

    def _file(self, at: int, path: bytes, name: bytes, entry: tar.Entry, reader: tar.Reader) -> None:
        self.done.size += entry.size
        self.limits.check_size(self.done.size)
        try:
            number = os.open(name, _NEW, 0o600, dir_fd=at)
        except FileExistsError:
            self._clear(at, path, name)
            number = os.open(name, _NEW, 0o600, dir_fd=at)
        try:
            if entry.sparse is not None:
                os.ftruncate(number, entry.size)
                for offset, length in entry.sparse:
                    os.lseek(number, offset, os.SEEK_SET)
                    for view in reader.part(length):
                        _write(number, view)
            else:
                for view in reader.content():
                    _write(number, view)
            if self.owners.keep:
                if entry.uid or entry.gid:
                    os.fchown(number, *self._owner(entry))
                os.fchmod(number, entry.mode)
            else:
                os.fchmod(number, entry.mode & 0o1777 | 0o400)  # or it couldn't be copied
            if entry.xattrs:
                self._xattrs(number, entry.xattrs)
            os.utime(number, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(number)

    def _folder(self, at: int, path: bytes, name: bytes, entry: tar.Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=at).st_mode):
                self._clear(at, path, name)
                os.mkdir(name, 0o700, dir_fd=at)
                if path in self._whiteouts:  # what is below it stays hidden
                    self._hide_below(path)
        self._folders[path] = entry

    def _link(self, at: int, path: bytes, name: bytes, entry: tar.Entry) -> None:
        target = self._renamed(normal(entry.link or b"/"))
        if not target or target == path:
            raise tar.TarError(f"a layer has a hard link to itself or to no file: {os.fsdecode(path[:200])!r}")
        parent, _, last = target.rpartition(b"/")
        try:
            source = self._held.get(parent) or self._open(parent)
            self._make(at, path, name, lambda: os.link(
                last, name, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False))  # fmt: skip
        except (FileNotFoundError, NotADirectoryError):
            self.done.needs.links.append((target, path))

    def _whiteout(self, parent: bytes, name: bytes) -> None:
        if name == _OPAQUE:
            if parent:
                self._hide_below(parent)
            else:
                self.done.opaque = True
            return
        if name.startswith(_WHITEOUT * 2):  # AUFS's own, which image-spec reserves
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise tar.TarError(f"a layer hides something that can't be: {os.fsdecode(name)!r}")
        at = self._parent(parent)
        path = parent + b"/" + hidden if parent else hidden
        try:
            os.mknod(hidden, stat.S_IFCHR | 0o600, 0, dir_fd=at)
            self._whiteouts.add(path)
        except FileExistsError:  # what the layer itself has stays: whiteouts are of lower layers' things
            if stat.S_ISDIR(os.lstat(hidden, dir_fd=at).st_mode):
                self._hide_below(path)

    def _hide_below(self, folder: bytes) -> None:
        os.setxattr(f"/proc/self/fd/{self._parent(folder)}", self.opaque, b"y")

    # -- beneath the root

    def _open(self, folder: bytes) -> int:
        """A descriptor that ``_forget`` closes. Links are followed, as in a root."""
        self._held[folder] = number = openat2.beneath(self.root, folder or b".", _FOLLOW)
        return number

    def _parent(self, folder: bytes, links: int = 0) -> int:
        """``folder`` open, and made where it isn't there."""
        number = self._held.get(folder)
        if number is not None:
            return number
        try:
            return self._open(folder)
        except (FileNotFoundError, NotADirectoryError):
            pass
        above, _, name = folder.rpartition(b"/")
        at = self._parent(above, links)
        try:
            os.mkdir(name, 0o755, dir_fd=at)
            self._folders.setdefault(folder, None)
        except FileExistsError:
            if folder in self._whiteouts:  # what is below it stays hidden
                self._whiteouts.remove(folder)
                os.unlink(name, dir_fd=at)
                self._parent(folder, links)
                self._hide_below(folder)
                return self._held[folder]
            try:  # a link to where nothing is, in this layer
                target = os.readlink(name, dir_fd=at)
            except OSError:
                raise tar.TarError(f"a layer has something in {os.fsdecode(folder[:200])!r}, no folder") from None
            if links == _LINKS:
                raise tar.TarError(f"a layer's links lead in circles at {os.fsdecode(folder[:200])!r}") from None
            return self._parent(joined(above, target), links + 1)
        return self._open(folder)

    def _make(self, at: int, path: bytes, name: bytes, make) -> None:
        try:
            make()
        except FileExistsError:
            self._clear(at, path, name)
            make()

    def _clear(self, at: int, path: bytes, name: bytes) -> None:
        """Makes room for an entry that replaces an earlier one."""
        mode = os.lstat(name, dir_fd=at).st_mode
        if stat.S_ISDIR(mode):
            import shutil

            shutil.rmtree(name, dir_fd=at)
        else:
            os.unlink(name, dir_fd=at)
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._forget(but=at)

    def _forget(self, but: int = -1) -> None:
        for folder, number in list(self._held.items()):
            if number != but:
                os.close(number)
                del self._held[folder]

    # -- metadata

    def _owner(self, entry: tar.Entry) -> tuple[int, int]:
        for number in (entry.uid, entry.gid):
            if not 0 <= number < self.owners.count:
                raise ImageError(
                    f"{os.fsdecode(entry.name[:200])!r} belongs to the user or group {number}, and there are"
                    f" {self.owners.count} here; more can be had in /etc/subuid and /etc/subgid"
                )
        return entry.uid, entry.gid

    def _own(self, entry: tar.Entry, at: int, name: bytes) -> None:
        """Owner, mode and times of what can't be opened."""
        if self.owners.keep:
            uid, gid = self._owner(entry)
            os.chown(name, uid, gid, dir_fd=at, follow_symlinks=False)
        if entry.kind == tar.FIFO:
            os.chmod(name, entry.mode & 0o777, dir_fd=at)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=at, follow_symlinks=False)

    def _xattrs(self, number: int, xattrs: dict[bytes, bytes]) -> None:
        for key, value in xattrs.items():
            mine = key.startswith(b"user.") and not key.startswith(b"user.overlay.")
            if mine or (key in _ROOT_XATTRS and self.owners.keep):
                try:
                    os.setxattr(number, key, value)
                except OSError as error:
                    if error.errno != errno.ENOTSUP:
                        raise

    def _finish(self, path: bytes) -> None:
        """A folder's metadata, once nothing more is made in it."""
        entry = self._folders[path]
        try:
            number = openat2.beneath(
                self.root, path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, openat2.NO_SYMLINKS
            )
        except (FileNotFoundError, NotADirectoryError):
            return  # a later entry took its place
        except OSError as error:
            if error.errno == errno.ELOOP:
                return
            raise
        try:
            if entry is None:
                os.fchmod(number, 0o755)
                self.done.needs.folders.append(path)
                return
            if self.owners.keep:
                os.fchown(number, *self._owner(entry))
            if entry.xattrs:
                self._xattrs(number, entry.xattrs)
            os.fchmod(number, entry.mode if self.owners.keep else entry.mode & 0o1777 | 0o700)
            os.utime(number, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(number)

    def _link_late(self) -> None:
        """Links whose target came after them; what still isn't there may be in a lower layer."""
        wanted, self.done.needs.links = self.done.needs.links, []
        for target, path in wanted:
            if not link(self.root, target, path):
                self.done.needs.links.append((target, path))


def link(root: int, target: bytes, path: bytes) -> bool:
    """A hard link ``path`` to ``target``, both beneath ``root``; False where there is no target."""
    parents = []
    try:
        for name in (target, path):
            parents.append(openat2.beneath(root, name.rpartition(b"/")[0] or b".", _FOLLOW))
        os.link(
            target.rpartition(b"/")[2], path.rpartition(b"/")[2], src_dir_fd=parents[0], dst_dir_fd=parents[1],
            follow_symlinks=False,
        )  # fmt: skip
    except FileExistsError:
        return True  # a later entry of that name
    except (FileNotFoundError, NotADirectoryError):
        return False
    finally:
        for number in parents:
            os.close(number)
    return True


def joined(folder: bytes, target: bytes) -> bytes:
    """Where a link in ``folder`` leads, as in a root: ``..`` above the root is the root."""
    parts: list[bytes] = [] if target.startswith(b"/") else list(filter(None, folder.split(b"/")))
    for part in target.split(b"/"):
        if part == b"..":
            parts = parts[:-1]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _write(number: int, view: memoryview) -> None:
    written = os.write(number, view)
    while written < len(view):
        written += os.write(number, view[written:])


def _told(error: OSError, name: bytes) -> ImageError:
    where = os.fsdecode(name[:200])
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ImageError(f"no room for {where!r} of a layer; free some, or set HOSTEL_HOME to another disk")
    return ImageError(f"can't unpack {where!r} of a layer: {error.strerror}")
