"""What a layer leaves to those below it: metadata of folders that it has something in but doesn't name, files that it
only has hard links to, and links among its folders' names that are in lower layers (``/bin`` that leads to
``usr/bin``).
"""

import os
import stat

from hostel.base.linux import openat2
from hostel.images.oci import tar
from hostel.images.oci.unpack import Needs, joined, link, opaque_xattr

_LINKS = 40
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPIED = ("security.capability",)


class Below:
    """The layers below one, newest first, as descriptors: what they show together, as overlayfs would."""

    def __init__(self, layers: list[int]) -> None:
        self.layers = layers
        self.opaque = opaque_xattr()

    def find(self, path: bytes) -> tuple[int, bytes, os.stat_result] | None:
        """The layer that shows ``path``, how far the path goes before something that is no folder, and what is there.
        No link is followed."""
        layers = self.layers
        at = b""
        found: list[tuple[int, os.stat_result]] = []
        for part in filter(None, path.split(b"/")):
            at = at + b"/" + part if at else part
            found = []
            for layer in layers:
                try:
                    number = openat2.beneath(layer, at, _LOOK, openat2.NO_SYMLINKS)
                except OSError:
                    continue
                try:
                    status = os.fstat(number)
                    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                        break
                    if not stat.S_ISDIR(status.st_mode):
                        if not found:
                            return layer, at, status
                        break
                    found.append((layer, status))
                    if self._is_opaque(number):
                        break
                finally:
                    os.close(number)
            if not found:
                return None
            layers = [layer for layer, _ in found]
        if not found:
            return (self.layers[0], b"", os.fstat(self.layers[0])) if self.layers else None
        return found[0][0], at, found[0][1]

    def _is_opaque(self, number: int) -> bool:
        try:
            return os.getxattr(f"/proc/self/fd/{number}", self.opaque) == b"y"
        except OSError:
            return False

    def real(self, path: bytes) -> bytes:
        """``path`` with the links in it followed; what isn't there stays as it is."""
        for _ in range(_LINKS):
            found = self.find(path)
            if not found:
                # something of it may still be a link: look at the longest part that is there
                parts = path.split(b"/")
                for count in range(len(parts) - 1, 0, -1):
                    found = self.find(b"/".join(parts[:count]))
                    if found:
                        break
                else:
                    return path
            layer, at, status = found
            if not stat.S_ISLNK(status.st_mode):
                return path
            number = openat2.beneath(layer, at, _LOOK, openat2.NO_SYMLINKS)
            try:
                target = os.readlink(b"", dir_fd=number)
            finally:
                os.close(number)
            path = joined(joined(at.rpartition(b"/")[0], target), path[len(at) + 1 :])
        raise tar.TarError(f"the layers' links lead in circles at {os.fsdecode(path[:200])!r}")


def aliases(needs: Needs, below: Below) -> dict[bytes, bytes]:
    """Folders without an entry that are links in the layers below: the layer must be unpacked again with these."""
    found: dict[bytes, bytes] = {}
    for folder in filter(None, needs.folders):
        if not any(folder.startswith(known + b"/") for known in found):
            there = below.find(folder)
            if there and there[1] == folder and stat.S_ISLNK(there[2].st_mode):
                real = below.real(folder)
                end = below.find(real)
                if end is None or stat.S_ISDIR(end[2].st_mode):
                    found[folder] = real
    return found


def settle(root: int, needs: Needs, below: Below) -> None:
    """Gives the layer in the folder ``root`` what it needs. Raises TarError where a hard link leads to nothing."""
    for target, path in needs.links:
        parent, slash, name = target.rpartition(b"/")
        source = joined(below.real(parent), name) if slash else name  # a link that is the target itself stays one
        found = below.find(source)
        if not found or found[1] != source or not (stat.S_ISREG(found[2].st_mode) or stat.S_ISLNK(found[2].st_mode)):
            raise tar.TarError(
                f"a layer has a hard link {os.fsdecode(path[:200])!r} to {os.fsdecode(target[:200])!r}, and there is no"
                " such file"
            )
        _copy_up(root, source, found[0], below)
        link(root, source, path)
    for folder in sorted(needs.folders, reverse=True):
        _like_below(root, folder, below)


def _like_below(root: int, folder: bytes, below: Below) -> None:
    """Owner, mode, times and attributes of ``folder`` as they are below, if it is there."""
    found = below.find(folder)
    if not found or found[1] != folder or not stat.S_ISDIR(found[2].st_mode):
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with _open(root, folder, flags) as number, _open(found[0], folder, flags) as source:
        _copy_metadata(source, number)


def _copy_up(root: int, path: bytes, layer: int, below: Below) -> None:
    parent, _, name = path.rpartition(b"/")
    made = b""
    for part in filter(None, parent.split(b"/")):
        with _open(root, made, os.O_PATH | os.O_DIRECTORY) as at:
            made = made + b"/" + part if made else part
            try:
                os.mkdir(part, 0o755, dir_fd=at)
            except FileExistsError:
                continue
            _like_below(root, made, below)
    with _open(root, parent, os.O_PATH | os.O_DIRECTORY) as at, _open(layer, parent, os.O_PATH | os.O_DIRECTORY) as old:
        try:
            if stat.S_ISLNK(os.lstat(name, dir_fd=old).st_mode):
                os.symlink(os.readlink(name, dir_fd=old), name, dir_fd=at)
                status = os.lstat(name, dir_fd=old)
                if os.geteuid() == 0:
                    os.chown(name, status.st_uid, status.st_gid, dir_fd=at, follow_symlinks=False)
                return
            number = os.open(name, _NEW, 0o600, dir_fd=at)
        except FileExistsError:
            return  # copied for another link
        try:
            with _open(layer, path, os.O_RDONLY | os.O_NOFOLLOW) as source:
                while os.sendfile(number, source, None, 1 << 30):
                    pass
                _copy_metadata(source, number)
        finally:
            os.close(number)


def _copy_metadata(source: int, target: int) -> None:
    status = os.fstat(source)
    if os.geteuid() == 0:
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if name in _COPIED or (name.startswith("user.") and not name.startswith("user.overlay.")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


class _open:  # noqa: N801 - reads as the function that it stands for
    """A descriptor beneath ``root`` for a while; the path has no links in it."""

    def __init__(self, root: int, path: bytes, flags: int) -> None:
        self.number = openat2.beneath(root, path or b".", flags | os.O_CLOEXEC, openat2.NO_SYMLINKS)

    def __enter__(self) -> int:
        return self.number

    def __exit__(self, *_: object) -> None:
        os.close(self.number)
