"""A container's root folder on an image's layers: ``rootfs`` in the container's own folder, by

- overlayfs, mounted through the descriptor calls, so that the number of layers isn't bound by a page of options;
- fuse-overlayfs, where the kernel refuses that (an ordinary user outside of a user namespace);
- a copy, where neither is there.

What the container writes is in ``upper``, or in ``rootfs`` itself where that is a copy, and stays when the container
stops: ``release`` only unmounts. It goes with the container's folder (``remove``).
"""

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hostel.base import atomic
from hostel.base.errors import ImageError
from hostel.base.linux import mount
from hostel.images.oci.limits import Limits
from hostel.images.oci.store import Image
from hostel.images.oci.unpack import opaque_xattr

KINDS = ("overlay", "fuse-overlayfs", "copy")
_VALUE_LIMIT = 255  # bytes of one option's value (fsconfig(2))


@dataclass(frozen=True)
class Rootfs:
    """A prepared root: ``path``; for an overlay what it is made of, the uppermost layer first."""

    path: Path
    kind: str
    lower: tuple[Path, ...] = ()
    upper: Path | None = None
    work: Path | None = None


class _Note(msgspec.Struct):
    """rootfs.json."""

    kind: str
    digest: str


def prepare(image: Image, folder: Path, kinds: Sequence[str] = KINDS, limits: Limits | None = None) -> Rootfs:
    """The root in ``folder``, which is the container's and there; again after ``release`` or a reboot it is what it
    was. Raises ImageError where none of ``kinds`` can be had."""
    folder = folder.absolute()
    path = folder / "rootfs"
    store = image.store
    note = _note(folder)
    if note and note.digest != image.digest:
        raise ImageError(f"{folder} stands on another image ({note.digest}); remove the container first")
    with store.using(), atomic.told(folder):
        lower = image.unpack(limits)
        store.users.note(folder, image.digest, [layer.chain_id for layer in image.layers])
        if not lower:
            (folder / "empty").mkdir(exist_ok=True)
            lower = [folder / "empty"]
        path.mkdir(mode=0o755, exist_ok=True)
        if note and note.kind == "copy":
            return Rootfs(path, "copy")
        refusals = []
        for kind in [note.kind] if note else kinds:
            try:
                made = _MAKERS[kind](folder, path, lower)
            except ImageError as error:
                refusals.append(str(error))
                continue
            (folder / "rootfs.json").write_bytes(msgspec.json.encode(_Note(kind, image.digest)))
            return made
    if not note:
        remove(folder)
    raise ImageError(f"no root folder can be had for {folder.name}: {'; '.join(refusals)}")


def release(folder: Path) -> None:
    """Unmounts the root, if it is mounted."""
    path = folder.absolute() / "rootfs"
    note = _note(folder)
    for _ in range(8):  # nobody hides one mount below another, but who was killed may have
        if not mount.is_mounted(path):
            return
        if os.geteuid() and note and note.kind == "fuse-overlayfs":
            import subprocess

            done = subprocess.run(["fusermount3", "-u", "-z", path], capture_output=True, text=True)
            if done.returncode:
                raise ImageError(f"can't unmount {path}: {done.stderr.strip()}")
        else:
            with atomic.told(path):
                mount.unmount(path)


def remove(folder: Path) -> None:
    """Unmounts the root and removes all of it, with what the container wrote."""
    import shutil  # with libraries that compress: a container starts faster without it

    from hostel.images.oci.store import Store

    release(folder)
    for name in ("rootfs", "upper", "work", "empty"):
        with atomic.told(folder / name), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder / name)
    (folder / "rootfs.json").unlink(missing_ok=True)
    Store().users.forget(folder)


def _note(folder: Path) -> _Note | None:
    try:
        return msgspec.json.decode((folder / "rootfs.json").read_bytes(), type=_Note)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _upper(folder: Path, lower: list[Path]) -> tuple[Path, Path]:
    """What is written, and overlayfs's own; the root looks as in the uppermost layer."""
    upper, work = folder / "upper", folder / "work"
    work.mkdir(mode=0o700, exist_ok=True)
    if not upper.exists():
        upper.mkdir(mode=0o700)
        _like(lower[0], upper)
    return upper, work


def _like(source: Path, target: Path) -> None:
    status = os.lstat(source)
    if os.geteuid() == 0:
        os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _overlay(folder: Path, path: Path, lower: list[Path]) -> Rootfs:
    upper, work = _upper(folder, lower)
    made = Rootfs(path, "overlay", tuple(lower), upper, work)
    if mount.is_mounted(path):
        return made
    with contextlib.ExitStack() as stack:

        def name(where: Path) -> str:
            if len(os.fsencode(where)) <= _VALUE_LIMIT:
                return str(where)
            number = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, number)
            return f"/proc/self/fd/{number}"

        own: list[tuple[str, str | None]] = [("upperdir", name(upper)), ("workdir", name(work))]
        if opaque_xattr().startswith("user."):
            own.append(("userxattr", None))
        try:
            mount.mount("overlay", [*(("lowerdir+", name(where)) for where in lower), *own], path)
        except OSError as error:
            try:  # before Linux 6.8 lower directories come in one option
                numbers = [os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for where in lower]
                for number in numbers:
                    stack.callback(os.close, number)
                together = ":".join(f"/proc/self/fd/{number}" for number in numbers)
                mount.mount("overlay", [("lowerdir", together), *own], path)
            except OSError:
                raise ImageError(f"overlayfs: {error.strerror}") from error
    return made


def _fuse_overlayfs(folder: Path, path: Path, lower: list[Path]) -> Rootfs:
    import shutil
    import subprocess

    program = shutil.which("fuse-overlayfs")
    if not program:
        raise ImageError("fuse-overlayfs isn't installed")
    upper, work = _upper(folder, lower)
    made = Rootfs(path, "fuse-overlayfs", tuple(lower), upper, work)
    if mount.is_mounted(path):
        return made
    if any(character in str(where) for where in (folder, *lower) for character in ",:"):
        raise ImageError("fuse-overlayfs: the path has a comma or a colon in it")
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    done = subprocess.run([program, "-o", options, path], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode or not mount.is_mounted(path):
        raise ImageError(f"fuse-overlayfs: {' '.join(done.stderr.split()) or f'status {done.returncode}'}")
    return made


def _copy(folder: Path, path: Path, lower: list[Path]) -> Rootfs:
    flatten(lower, path)
    return Rootfs(path, "copy")


_MAKERS = {"overlay": _overlay, "fuse-overlayfs": _fuse_overlayfs, "copy": _copy}


def flatten(lower: list[Path], target: Path) -> None:
    """Copies what layers (the uppermost first) show together into ``target``, an empty folder of nobody else's."""
    for layer in reversed(lower):
        _lay(layer, target, {})


def _lay(source: Path, target: Path, links: dict[tuple[int, int], Path]) -> None:
    """One layer over what is there; hard links in it stay such."""
    for entry in os.scandir(source):
        path = target / entry.name
        status = entry.stat(follow_symlinks=False)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            hides = opaque_xattr() in os.listxattr(entry.path)
            if os.path.lexists(path) and (hides or path.is_symlink() or not path.is_dir()):
                _gone(path)
            path.mkdir(mode=0o700, exist_ok=True)
            _lay(Path(entry.path), path, links)
        else:
            if os.path.lexists(path):
                _gone(path)
            if stat.S_ISCHR(mode):  # a whiteout; unpacking makes no other devices
                continue
            key = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and key in links:
                os.link(links[key], path, follow_symlinks=False)
                continue
            links[key] = path
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink(entry.path), path)
            elif stat.S_ISFIFO(mode):
                os.mkfifo(path)
            else:
                _copy_file(entry.path, path, status.st_size)
        _like_entry(entry.path, path, status)
    _like_entry(str(source), target, os.lstat(source))


def _copy_file(source: str, target: Path, size: int) -> None:
    """Holes stay holes."""
    with open(source, "rb", buffering=0) as old, open(target, "xb", buffering=0) as new:
        new.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            os.lseek(new.fileno(), at, os.SEEK_SET)
            while at < end:
                copied = os.sendfile(new.fileno(), old.fileno(), at, end - at)
                if not copied:
                    raise ImageError(f"{source} became shorter while it was copied")
                at += copied


def _like_entry(source: str, target: Path, status: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
        for name in os.listxattr(source):
            if name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay.")):
                with contextlib.suppress(PermissionError):
                    os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path)
    else:
        path.unlink()
