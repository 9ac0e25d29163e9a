"""Chains of images: what stands below an image, and who may say so.

An image can name two files: the one below it (its backing file) and, as qcow2, the one with its data. The name is data
of whoever made the image, and what is in the named file shows in the guest: an image from the outside that names
``/etc/shadow`` is an attack (CVE-2024-32498 was of this kind). So a name is followed only when

- it is a backing file's, which is only read, and
- the file it leads to, with all symbolic links resolved, lies in the image's own folder or below it, and
- the image records its format, so that nothing is guessed from bytes that a guest wrote;

or when who opens the disk says that the image is trusted (``allow_backing``). Names of protocols (``nbd:``, ``json:``)
aren't followed at all.
"""

import contextlib
import errno
import os
import re
from pathlib import Path

from hostel.base.errors import BlockError
from hostel.block.disk import MAGIC, Disk, format_class
from hostel.block.file import File

MAX_DEPTH = 256           # images; each takes descriptors and a step for every look-up
_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def open_chain(
    path: Path, format: str | None = None, readonly: bool = False, direct: bool = False, allow_backing: bool = False,
    locked: bool = True, alone: bool = False, bare: bool = False,
) -> Disk:
    """The disk at ``path``; ``alone``: without the images below it, which then read as zeros; ``bare``: without its
    data file too, for who looks at metadata only."""
    with contextlib.ExitStack() as stack:
        top = above = _open_image(path, format, readonly, direct, locked)
        stack.callback(top.close)
        seen = [above.file.identity]
        while True:
            if bare:
                break
            if above.data_name is not None:
                if not allow_backing:
                    raise BlockError(
                        f"{above.path} has its data in another file, {above.data_name}; if you trust this image, "
                        "--allow-backing opens that",
                        errno.EPERM,
                    )
                data = resolve(above, above.data_name, "data file", True)
                above.set_data_file(File(data, above.file.writable, direct, locked))
            if above.backing_name is None or alone:
                break
            if len(seen) == MAX_DEPTH:
                raise BlockError(f"{path} stands on more than {MAX_DEPTH} images")
            if above.backing_format is None and not allow_backing:
                raise BlockError(
                    f"{above.path} doesn't record the format of its backing file {above.backing_name}: "
                    f"'hostel disk rebase -u -b {above.backing_name} -F FORMAT {above.path}' does"
                )
            below = resolve(above, above.backing_name, "backing file", allow_backing)
            image, above = above, _open_image(below, above.backing_format, True, direct, locked)
            image.backing = above
            if not allow_backing:              # what was opened, whatever the name leads to by now
                _check_inside(image, Path(os.readlink(f"/proc/self/fd/{above.file.fd}")), "backing file")
            if above.file.identity in seen:
                raise BlockError(f"{path} stands on itself: its chain of backing files comes back to {above.path}")
            seen.append(above.file.identity)
        stack.pop_all()
    return top


def _open_image(path: Path, format: str | None, readonly: bool, direct: bool, locked: bool) -> Disk:
    """One image, without what it names."""
    file = File(path, not readonly, direct, locked)
    try:
        return format_class(format or MAGIC.get(file.read(0, 4), "raw"))(file, readonly)
    except BaseException:
        file.close()
        raise


def locate(image: Path, name: str) -> Path:
    """Where a name in ``image`` leads: relative ones start in its folder."""
    if name.startswith("file:"):
        name = name.removeprefix("file:")
    elif _PROTOCOL.match(name):
        raise BlockError(f"{image} names '{name[:100]}': hostel opens files only", errno.EINVAL)
    return Path(os.path.normpath(image.parent / name)) if ".." not in name else image.parent / name


def resolve(image: Disk, name: str, what: str, allowed: bool) -> Path:
    """The same, if that may be opened."""
    if "\0" in name or not name:
        raise BlockError(f"{image.path}: the name of its {what} makes no sense")
    path = locate(image.path, name)
    if not allowed:
        _check_inside(image, Path(os.path.realpath(path)), what)
    return path


def _check_inside(image: Disk, target: Path, what: str) -> None:
    if Path(os.path.realpath(image.path.parent)) not in target.parents:
        raise BlockError(
            f"{image.path} names {target} as its {what}, which is outside of its own folder; "
            "if you trust this image, --allow-backing opens it",
            errno.EPERM,
        )
