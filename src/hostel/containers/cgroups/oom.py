"""What the kernel has killed for memory, and being told of it: an eventfd in v1, inotify in v2."""

import ctypes
import os

from hostel.base.errors import ContainerError
from hostel.base.linux.syscall import syscall
from hostel.containers.cgroups.setting import Place, put, table

_INOTIFY_INIT1, _INOTIFY_ADD_WATCH = 294, 254
_IN_MODIFY = 2


def kills(place: Place) -> int:
    """In the cgroup and, as far as they are still there, those below."""
    if place.version == 2:
        return table(place.folder, "memory.events").get("oom_kill", 0)
    folders = (folder for folder, _, _ in os.walk(place.folder))
    return sum(table(folder, "memory.oom_control").get("oom_kill", 0) for folder in folders)


def watch(place: Place) -> int:
    """A non-blocking descriptor that gets readable; v1's also when the cgroup is removed."""
    try:
        return (_eventfd if place.version == 1 else _inotify)(place)
    except OSError as error:
        raise ContainerError(f"can't watch the memory of {place.folder}: {error.strerror}") from error


def _eventfd(place: Place) -> int:
    control = os.open(f"{place.folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            put(place.folder, "cgroup.event_control", f"{event} {control}")
        except OSError:
            os.close(event)
            raise
        return event
    finally:
        os.close(control)


def _inotify(place: Place) -> int:
    fd = syscall(_INOTIFY_INIT1, os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        path = ctypes.c_char_p(os.fsencode(f"{place.folder}/memory.events"))
        syscall(_INOTIFY_ADD_WATCH, fd, path, _IN_MODIFY)
    except OSError:
        os.close(fd)
        raise
    return fd
