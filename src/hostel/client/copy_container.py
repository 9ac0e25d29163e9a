"""Files and folders into a container and out of it: ``hostel cp``, from the host's side, as its files are the host's.

A container is as hostile as a guest: every path is resolved beneath the container's root (openat2), where no link leads
out of it, and what follows is relative to open folders (client/copy). A running container is seen with what is mounted
into it, one that isn't by its own root alone.
"""

import contextlib
import os
import sys
import tarfile
from collections.abc import Iterator

from hostel.base.errors import MachineError
from hostel.base.linux import openat2
from hostel.client.container import Container
from hostel.client.copy import Reader, ToFolder, ToTar, from_tar, last, walk


def copy_in(container: Container, source: str, path: str) -> None:
    """The host's ``source``, or the tar archive on standard input for ``-``, to ``path`` in the container."""
    try:
        entries = from_tar(sys.stdin.buffer) if source == "-" else walk(source)
        with _root(container) as root, _place(root, path) as (where, new):
            sink = ToFolder(where, "" if source == "-" else last(source), new)
            reader = Reader(sink, links=True)
            with contextlib.closing(sink):
                for piece in entries:
                    reader.feed(piece)
    except tarfile.TarError as error:
        raise MachineError(f"what comes in is no tar archive, or a damaged one: {error}") from error
    except OSError as error:
        raise MachineError(f"can't copy to {container.name}:{path}: {error.strerror}") from error


def copy_out(container: Container, path: str, destination: str) -> None:
    """``path`` in the container to the host's ``destination``, or as a tar archive to standard output for ``-``."""
    name = last(path)
    sink: ToTar | ToFolder
    try:
        with _root(container) as root, contextlib.ExitStack() as stack:
            if name:
                folder = _open(root, os.path.dirname(path.rstrip("/")) or "/", os.O_PATH | os.O_DIRECTORY)
            else:
                folder = _open(root, path, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, folder)
            source = f"/proc/self/fd/{folder}/{name or '.'}"
            try:
                os.lstat(source)
            except OSError as error:
                raise MachineError(f"can't read {container.name}:{path}: {error.strerror}") from error
            sink = ToTar(sys.stdout.buffer, name or ".") if destination == "-" else ToFolder(destination, name)
            stack.enter_context(contextlib.closing(sink))
            reader = Reader(sink, links=True)
            for piece in walk(source):
                reader.feed(piece)
            sink.finish()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MachineError(f"can't copy {container.name}:{path}: {error.strerror}") from error


@contextlib.contextmanager
def _root(container: Container) -> Iterator[int]:
    """The container's root folder."""
    from hostel.containers import engine

    state = container.state
    with contextlib.ExitStack() as stack:
        if state.state in ("running", "paused"):
            path = f"/proc/{state.init}/root/"
        else:
            path = str(stack.enter_context(engine.mounted(container._folder)))
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MachineError(f"can't look into '{container.name}': {error.strerror}") from error
        stack.callback(os.close, fd)
        if state.init and engine.start_time(state.init) != state.init_start:
            raise MachineError(f"'{container.name}' has just ended")
        yield fd


@contextlib.contextmanager
def _place(root: int, path: str) -> Iterator[tuple[str, bool]]:
    """A path of the host's for the place, and whether that is a name in the folder above, not a folder that is there.
    Such a name may be a link, which would lead the host elsewhere: it is replaced."""
    name = last(path)
    try:
        folder, rest = openat2.beneath(root, os.fsencode(path or "/"), os.O_PATH | os.O_DIRECTORY), ""
    except FileNotFoundError:
        if not name or path.endswith("/"):
            raise MachineError(f"there is no folder {path}") from None
        folder, rest = _open(root, os.path.dirname(path) or "/", os.O_PATH | os.O_DIRECTORY), f"/{name}"
    except NotADirectoryError:
        folder, rest = _open(root, os.path.dirname(path) or "/", os.O_PATH | os.O_DIRECTORY), f"/{name}"
    try:
        yield f"/proc/self/fd/{folder}{rest}", bool(rest)
    finally:
        os.close(folder)


def _open(root: int, path: str, flags: int) -> int:
    try:
        return openat2.beneath(root, os.fsencode(path), flags)
    except OSError as error:
        raise MachineError(f"{path} in the container: {error.strerror}") from error
