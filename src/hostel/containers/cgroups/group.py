"""A container's cgroup: one folder in each of the host's hierarchies, v1's and v2's, under one name.

A controller is limited by v1's files or v2's, as the host has it (``Place``). Nothing is made before ``check`` has
been passed; what ``create`` makes unwinds when it fails. Values that depend on one another (a memory limit and that of
memory and swap, a CPU quota and its period) may come in the wrong order for where the cgroup stands: what the kernel
refuses for its value is tried again after the others, as long as something changes.

``add`` moves a process that exists, for which the kernel waits for all CPUs once (15 ms on an idle host). A process
that is cloned into v2's cgroup (``clone_fd``) and then moves itself into v1's (``enter``) doesn't wait.

Rootless, what can't be made is left out, and ``unlimited`` says which settings that concerns.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostel.base.errors import ContainerError
from hostel.containers.cgroups import devices, freezer, limits, oom, stats, v1, v2
from hostel.containers.cgroups.hierarchy import BUILT_IN, V2_NAME
from hostel.containers.cgroups.resources import Resources
from hostel.containers.cgroups.setting import Setting, number, read, refuse
from hostel.containers.cgroups.stats import Place

STATE_VERSION = 1
_CORE = "cgroup"            # prefix of v2's files that belong to no controller
_DELETE_SECONDS = 10        # for processes that are being killed to be gone
_KILL_ROUNDS = 100


class Cgroup:
    """``places``: by controller, as v1 names it. ``unified``: the folder in v2's hierarchy, where there is one."""

    def __init__(self, id: str, places: dict[str, Place], unified: Path | None, rootless: bool):
        self.id, self.places, self.unified, self.rootless = id, places, unified, rootless
        self._new = False       # made by us, and nothing applied yet

    def _folders(self) -> list[Path]:
        """Each once: controllers may share a hierarchy. v2's comes first, since it is the one that kills at once."""
        folders = [self.unified] if self.unified else []
        return list(dict.fromkeys([*folders, *(place.folder for place in self.places.values())]))

    @property
    def paths(self) -> dict[str, str]:
        """The folder of each controller, and v2's under no name."""
        unified = {"": str(self.unified)} if self.unified else {}
        return unified | {name: str(place.folder) for name, place in self.places.items()}

    # Limits

    def _settings(self, resources: Resources) -> list[Setting]:
        """All that is asked but devices. Raises ContainerError for what the version of cgroups doesn't have."""
        known = 2 if not any(place.version == 1 for place in self.places.values()) else 1
        result: list[Setting] = []
        for name in v1.CONTROLLERS:
            place = self.places.get(name, Place(known, Path("/nonexistent")))
            settings = (v2.CONTROLLERS if place.version == 2 else v1.CONTROLLERS).get(name, v1.CONTROLLERS[name])
            result += settings(resources, place.folder)
        for setting in v2.unified(resources):
            if self.places.get(setting.controller, Place(2, Path())).version == 1:
                raise refuse(setting.name, f"this host has the controller {setting.controller} in cgroup v1")
            result.append(setting)
        return result

    def _folder(self, controller: str) -> Path | None:
        if controller == _CORE:
            return self.unified
        return self.places[controller].folder if controller in self.places else None

    def unlimited(self, resources: Resources) -> list[str]:
        """What of ``resources`` can't be limited here: the host hasn't the controller, or doesn't let us. Their names,
        as the specification has them."""
        names = []
        for setting in self._settings(resources):
            folder = self._folder(setting.controller)
            if not setting.optional and (folder is None or not _may(folder)):
                names.append(setting.name)
        if not self.rootless and not {"devices"} & set(self.places):
            names.append("devices")
        return list(dict.fromkeys(names))

    def check(self, resources: Resources) -> None:
        """Raises ContainerError, by the setting's name, for what is impossible or can't be limited here."""
        v1.check(resources)
        if "devices" in self.places and self.places["devices"].version == 1:
            devices.lists([*(resources.devices or []), *devices.DEFAULT])
        else:
            devices.rows(resources.devices or [])
        if names := self.unlimited(resources):
            why = "it isn't delegated to us" if self.rootless else "the host has no cgroup controller for it"
            raise ContainerError(f"linux.resources: {', '.join(names)} can't be limited here: {why}")

    def apply(self, resources: Resources) -> None:
        """Set what is asked, and leave the rest. The first time devices are limited in any case, to the standard ones.
        When it fails, values that have changed are set back. Raises ContainerError."""
        settings = self._settings(resources)
        if resources.memory and resources.memory.check_before_update:
            self._check_usage(resources)
        undo: list[tuple[Path, str, str]] = []
        try:
            self._write(settings, undo)
            if (resources.devices is not None or self._new) and not self.rootless and "devices" in self.places:
                self._limit_devices(resources)
        except ContainerError:
            for folder, file, old in reversed(undo):
                with contextlib.suppress(OSError):
                    _put(folder / file, old)
            raise
        self._new = False

    def _write(self, settings: list[Setting], undo: list[tuple[Path, str, str]]) -> None:
        while settings:
            again: list[tuple[Setting, ContainerError]] = []
            for setting in settings:
                try:
                    self._write_one(setting, undo)
                except OSError as error:
                    told = self._told(setting, error)
                    if error.errno != errno.EINVAL:
                        raise told from error
                    again.append((setting, told))
            if len(again) == len(settings):
                raise again[0][1]
            settings = [setting for setting, _ in again]

    def _write_one(self, setting: Setting, undo: list[tuple[Path, str, str]]) -> None:
        folder = self._folder(setting.controller)
        if folder is None:
            if setting.optional:
                return
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            old = read(folder, setting.file)
            _put(folder / setting.file, setting.value)
        except FileNotFoundError:
            if setting.otherwise:
                self._write_one(setting.otherwise, undo)
            elif not setting.optional:
                raise
            return
        if old and "\n" not in old:
            undo.append((folder, setting.file, old))

    def _told(self, setting: Setting, error: OSError) -> ContainerError:
        folder = self._folder(setting.controller)
        if error.errno == errno.ENOENT:
            return refuse(setting.name, f"this kernel has no {setting.file} for a cgroup here")
        if error.errno == errno.EBUSY and setting.controller == "memory" and folder:
            usage = number(folder, "memory.usage_in_bytes" if "limit_in_bytes" in setting.file else "memory.current")
            return refuse(setting.name, f"{setting.value} is under what is used now, {usage}")
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            return refuse(setting.name, f"'{setting.value}' in {setting.file}: the device or its I/O scheduler can't")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return refuse(setting.name, f"we may not write {folder}/{setting.file}")
        return refuse(setting.name, f"the kernel refuses '{setting.value}' in {setting.file}: {error.strerror}")

    def _check_usage(self, resources: Resources) -> None:
        assert resources.memory
        if not (place := self.places.get("memory")):
            return
        used = stats.collect({"memory": place}, None)["memory"]
        for name, kind, limit in (("limit", "usage", resources.memory.limit), ("swap", "swap", resources.memory.swap)):
            usage = used[kind].get("usage", 0)
            if limit and 0 < limit < usage:
                raise refuse(f"memory.{name}", f"{limit} is under what is used now, {usage}")

    def _limit_devices(self, resources: Resources) -> None:
        rules = [*(resources.devices or []), *devices.DEFAULT]
        place = self.places["devices"]
        if place.version == 2:
            devices.attach(place.folder, rules)
            return
        try:
            devices.write_lists(place.folder, rules)
        except OSError as error:
            raise refuse("devices", f"the kernel refuses a rule in {place.folder}: {error.strerror}") from error

    # The cgroup itself

    def create(self) -> None:
        """Make it. One that exists may be had if nothing is in it and it isn't frozen. Raises ContainerError."""
        for folder in self._folders():
            if pids := _members(folder, recursive=True):
                raise ContainerError(f"the cgroup {folder} is in use by {_listed(pids)}: give another cgroupsPath")
        if "freezer" in self.places and freezer.is_frozen(self.places["freezer"]):
            raise ContainerError(f"the cgroup {self.places['freezer'].folder} is frozen: thaw it, or give another path")
        with contextlib.ExitStack() as stack:
            for folder in self._folders():
                try:
                    self._make(folder, stack)
                except OSError as error:
                    if not self.rootless or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                        raise ContainerError(f"can't make the cgroup {folder}: {error.strerror}") from error
                    self._forget(folder)
            if self.unified:
                self._forget_what_is_off(self.unified)
            self._new = True
            stack.pop_all()

    def _make(self, folder: Path, stack: contextlib.ExitStack) -> None:
        missing = [folder]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for one in reversed(missing):
            if folder == self.unified:
                _enable(one.parent)
            with contextlib.suppress(FileExistsError):
                one.mkdir(0o755)
                stack.callback(_remove, one)
            if "cpuset" in self.places and self.places["cpuset"] == Place(1, folder):
                _inherit(one)

    def _forget(self, folder: Path) -> None:
        """A hierarchy that won't have us."""
        self.places = {name: place for name, place in self.places.items() if place.folder != folder}
        if self.unified == folder:
            self.unified = None

    def _forget_what_is_off(self, folder: Path) -> None:
        """Controllers that v2's cgroup didn't get: one above has processes of its own, or keeps them to itself."""
        on = {*(read(folder, "cgroup.controllers") or "").split(), *BUILT_IN}
        self.places = {
            name: place for name, place in self.places.items()
            if place.version == 1 or V2_NAME.get(name, name) in on
        }  # fmt: skip

    def add(self, pid: int, beside: int | None = None) -> None:
        """Move a process in, with all its threads. ``beside``: a process of the container's, in whose cgroup it may be
        instead where v2's has become one that others are in. Raises ContainerError."""
        for folder in self._folders():
            try:
                _put(folder / "cgroup.procs", str(pid))
            except OSError as error:
                if error.errno == errno.EBUSY and beside and folder == self.unified:
                    with contextlib.suppress(OSError, StopIteration):
                        _put(next(_inner(folder, beside)) / "cgroup.procs", str(pid))
                        continue
                raise ContainerError(f"can't put process {pid} into the cgroup {folder}: {error.strerror}") from error

    def clone_fd(self) -> int | None:
        """For clone3's CLONE_INTO_CGROUP: v2's folder, for the caller to close; ``None`` without v2."""
        return os.open(self.unified, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if self.unified else None

    def enter(self, cloned: bool = False) -> None:
        """Move the calling process in, which must have one thread only; ``cloned``: by ``clone_fd``, so that it is in
        v2's already. Raises OSError."""
        for folder in self._folders():
            if folder != self.unified:
                _put(folder / "tasks", "0")
            elif not cloned:
                _put(folder / "cgroup.procs", "0")

    def pids(self, recursive: bool = True) -> list[int]:
        """Its processes, in the numbers of our own PID namespace."""
        found: set[int] = set()
        for folder in self._folders()[:2]:  # a container may have moved its own about in v2's hierarchy
            found.update(_members(folder, recursive))
        return sorted(found - {0})

    def stats(self) -> dict[str, Any]:
        return stats.collect(self.places, self.unified)

    def limits(self) -> list[limits.Limit]:
        return limits.collect(self.places)

    def oom_fd(self) -> int | None:
        """A descriptor that can be read from when the kernel has killed for memory, or did something close to it:
        read it, then ask ``oom_kills``. For the caller to close; ``None`` without the controller."""
        return oom.watch(self.places["memory"]) if "memory" in self.places else None

    def oom_kills(self) -> int:
        return oom.kills(self.places["memory"]) if "memory" in self.places else 0

    def freeze(self) -> None:
        """All its processes stand still when this returns. Raises ContainerError."""
        freezer.freeze(self._freezer())

    def thaw(self) -> None:
        freezer.thaw(self._freezer())

    def frozen(self) -> bool:
        return "freezer" in self.places and freezer.is_frozen(self.places["freezer"])

    def _freezer(self) -> Place:
        if "freezer" not in self.places:
            raise ContainerError("this cgroup can't be paused: the host has no freezer for it, or we may not use it")
        return self.places["freezer"]

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send the signal to every process. None escapes SIGKILL by forking: v2 kills a cgroup at once (Linux 5.14),
        and else they are frozen meanwhile, or as many rounds are made as it takes."""
        killed: set[int] = set()
        if signum == signal.SIGKILL and self.unified and (self.unified / "cgroup.kill").exists():
            with contextlib.suppress(OSError):
                killed = set(_members(self.unified, recursive=True))
                _put(self.unified / "cgroup.kill", "1")
        for _ in range(_KILL_ROUNDS if signum == signal.SIGKILL else 1):
            if not (set(self.pids()) - killed):
                return
            with self._held():
                for pid in set(self.pids()) - killed:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signum)
            if "freezer" in self.places:
                return

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Frozen, as far as that goes."""
        if "freezer" not in self.places:
            yield
            return
        with contextlib.suppress(ContainerError):
            freezer.freeze(self.places["freezer"])
        try:
            yield
        finally:
            with contextlib.suppress(ContainerError):
                freezer.thaw(self.places["freezer"])

    def delete(self) -> None:
        """Remove it, and what the container made below it. Waits for processes that are being killed. Raises
        ContainerError."""
        deadline = time.monotonic() + _DELETE_SECONDS
        for folder in self._folders():
            pause = 0.0005
            while not _remove(folder):
                if time.monotonic() > deadline:
                    pids = _members(folder, recursive=True)
                    who = f" in use by {_listed(pids)}" if pids else " in use"
                    raise ContainerError(f"can't remove the cgroup {folder}: it is{who}")
                time.sleep(pause)
                pause = min(pause * 2, 0.05)

    def exists(self) -> bool:
        return any(folder.exists() for folder in self._folders())

    def state(self) -> dict[str, Any]:
        """For a file; ``from_state`` reads it."""
        return {
            "version": STATE_VERSION, "id": self.id, "rootless": self.rootless,
            "unified": str(self.unified) if self.unified else None,
            "places": {name: [place.version, str(place.folder)] for name, place in self.places.items()},
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Cgroup":
        if state.get("version") != STATE_VERSION:
            raise ContainerError(f"a cgroup's state of version {state.get('version')}; this hostel has {STATE_VERSION}")
        places = {name: Place(version, Path(folder)) for name, (version, folder) in state["places"].items()}
        unified = state["unified"]
        return cls(state["id"], places, Path(unified) if unified else None, state["rootless"])


def _put(path: Path, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)  # a kernel's file is never made
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _may(folder: Path) -> bool:
    """Whether it can be made, or its files written."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _members(folder: Path, recursive: bool) -> list[int]:
    found: list[int] = []
    for one in _tree(folder) if recursive else [folder]:
        with contextlib.suppress(OSError):  # gone, or a v2 cgroup of threads, whose processes are its parent's
            found += [int(line) for line in (one / "cgroup.procs").read_text().split()]
    return found


def _tree(folder: Path) -> list[Path]:
    """What is below, then it."""
    try:
        below = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        below = []
    return [*(path for one in below for path in _tree(Path(one))), folder]


def _remove(folder: Path) -> bool:
    """Whether it is gone."""
    try:
        os.rmdir(folder)  # the usual case: nothing below
        return True
    except FileNotFoundError:
        return True
    except OSError:
        pass
    for one in _tree(folder)[:-1]:
        with contextlib.suppress(OSError):
            one.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def _enable(folder: Path) -> None:
    """v2: for the cgroups in ``folder``, of its controllers all that can be. Which those are is seen afterwards."""
    have = set((read(folder, "cgroup.controllers") or "").split())
    off = sorted(have - set((read(folder, "cgroup.subtree_control") or "").split()))
    if not off:
        return
    try:
        _put(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in off))
    except OSError:  # one that can't be keeps none of the others
        for name in off:
            with contextlib.suppress(OSError):
                _put(folder / "cgroup.subtree_control", f"+{name}")


def _inherit(folder: Path) -> None:
    """v1's cpuset begins empty, and takes no process then."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if read(folder, file) == "":
            _put(folder / file, read(folder.parent, file) or "")


def _inner(folder: Path, pid: int) -> Iterator[Path]:
    """The cgroup of v2's below ``folder`` that ``pid`` is in."""
    for one in _tree(folder):
        if str(pid) in (one / "cgroup.procs").read_text().split():
            yield one


def _listed(pids: list[int]) -> str:
    shown = ", ".join(map(str, pids[:5]))
    return f"process{'es' if len(pids) > 1 else ''} {shown}{' and others' if len(pids) > 5 else ''}"
