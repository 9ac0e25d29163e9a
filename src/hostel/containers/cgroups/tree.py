"""A cgroup's folder and those below it: who is in them, making and removing them."""

import os

from hostel.containers.cgroups.setting import put, read


def walk(folder: str) -> list[str]:
    """What is below, then it."""
    try:
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        below = []
    return [*(path for one in below for path in walk(one)), folder]


def members(folder: str, recursive: bool = True) -> list[int]:
    """Processes, in the numbers of our PID namespace; 0 for one that isn't in it."""
    found: list[int] = []
    for one in walk(folder) if recursive else [folder]:
        # None: gone, or a v2 cgroup of threads, whose processes are its parent's
        found += [int(line) for line in (read(one, "cgroup.procs") or "").split()]
    return found


def make(folder: str) -> bool:
    """Whether it wasn't there."""
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        return False
    return True


def missing(folder: str) -> list[str]:
    """What has to be made for it to be there, the topmost first."""
    result: list[str] = []
    while not os.path.isdir(folder):
        result.insert(0, folder)
        folder = os.path.dirname(folder)
    return result


def remove(folder: str) -> bool:
    """Whether it is gone, with all below it; not while there are processes."""
    try:
        os.rmdir(folder)  # the usual case: nothing below
    except FileNotFoundError:
        return True
    except OSError:
        for one in walk(folder):
            try:
                os.rmdir(one)
            except OSError:
                pass
        return not os.path.isdir(folder)
    return True


def may_write(folder: str) -> bool:
    """Whether it can be made, or its files written."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK)


def enable(folder: str) -> None:
    """v2: for the cgroups in ``folder``, of its controllers all that can be. Which those are is seen afterwards."""
    have = set((read(folder, "cgroup.controllers") or "").split())
    off = sorted(have - set((read(folder, "cgroup.subtree_control") or "").split()))
    # at once; and where that fails, since one that can't be keeps none of the others, each by itself
    for words in [off, *([name] for name in off)] if off else []:
        try:
            put(folder, "cgroup.subtree_control", " ".join(f"+{name}" for name in words))
        except OSError:
            continue
        if words is off:
            return


def enable_above(folder: str) -> None:
    """v2: in all above it, from the top of what we see: who made them may have had no use for a controller."""
    above: list[str] = []
    while os.path.exists(f"{(folder := os.path.dirname(folder))}/cgroup.subtree_control"):
        above.insert(0, folder)
    for one in above:
        enable(one)


def inherit(folder: str) -> None:
    """v1's cpuset begins empty, and takes no process then."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if read(folder, file) == "":
            put(folder, file, read(os.path.dirname(folder), file) or "")
