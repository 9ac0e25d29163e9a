"""Standing still and going on: v1's freezer.state, v2's cgroup.freeze."""

import os
import time

from hostel.base.errors import ContainerError
from hostel.containers.cgroups.setting import Place, put, read, table

_SECONDS = 10   # a process in an uninterruptible call stands still only after it
_AGAIN = 0.02   # v1 may miss one that is forked meanwhile: it is told again


def is_frozen(place: Place) -> bool:
    """Told to be, at least."""
    if place.version == 1:
        return read(place.folder, "freezer.state") in ("FROZEN", "FREEZING")
    return read(place.folder, "cgroup.freeze") == "1"


def freeze(place: Place) -> None:
    """Returns when all stand still; those that don't are let go on, and ContainerError is raised."""
    deadline = time.monotonic() + _SECONDS
    try:
        (_freeze_v1 if place.version == 1 else _freeze_v2)(place, deadline)
    except (OSError, TimeoutError) as error:
        try:
            thaw(place)
        except ContainerError:
            pass
        why = error.strerror if isinstance(error, OSError) and error.strerror else "a process doesn't stand still"
        raise ContainerError(f"can't freeze the cgroup {place.folder}: {why}") from error


def _freeze_v1(place: Place, deadline: float) -> None:
    pause = 0.0001
    while time.monotonic() < deadline:
        put(place.folder, "freezer.state", "FROZEN")
        again = time.monotonic() + _AGAIN
        while time.monotonic() < again:
            if read(place.folder, "freezer.state") == "FROZEN":
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.005)
    raise TimeoutError


def _freeze_v2(place: Place, deadline: float) -> None:
    import select

    events = os.open(f"{place.folder}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        put(place.folder, "cgroup.freeze", "1")
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while not table(place.folder, "cgroup.events").get("frozen"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            poll.poll(min(left, 0.1) * 1000)
            os.pread(events, 4096, 0)  # else it stays signalled
    finally:
        os.close(events)


def thaw(place: Place) -> None:
    file, value = ("freezer.state", "THAWED") if place.version == 1 else ("cgroup.freeze", "0")
    try:
        put(place.folder, file, value)
    except OSError as error:
        raise ContainerError(f"can't thaw the cgroup {place.folder}: {error.strerror}") from error
