"""A container's cgroup: one folder in each of the host's hierarchies, v1's and v2's, under one name.

A controller is limited by v1's files or v2's, as the host has it (``Place``). Nothing is made before ``check`` has
been passed; what ``create`` makes unwinds when it fails. Values that depend on one another (a memory limit and that of
memory and swap, a CPU quota and its period) may come in the wrong order for where the cgroup stands: what the kernel
refuses for its value is tried again after the others, as long as something changes.

``add`` moves a process that exists, for which the kernel waits for all CPUs once (15 ms on an idle host). A process
that is cloned into v2's cgroup (``clone_fd``) and then moves itself into v1's (``entries``) doesn't wait.

Rootless, what can't be made is left out, and ``unlimited`` says which settings that concerns.
"""

import errno
import os
import time

from hostel.base.errors import ContainerError
from hostel.containers.cgroups import devices, freezer, tree, v1, v2
from hostel.containers.cgroups import resources as asked
from hostel.containers.cgroups.hierarchy import BUILT_IN, V2_NAME
from hostel.containers.cgroups.resources import refuse
from hostel.containers.cgroups.setting import Place, Setting, number, put, read

STATE_VERSION = 1
_CORE = "cgroup"            # prefix of v2's files that belong to no controller
_NO_FOLDER = "/proc/none"   # nobody can make it
_DELETE_SECONDS = 10        # for processes that are being killed to be gone
_KILL_ROUNDS = 100          # against one that forks, where nothing freezes
_SIGKILL = 9                # 'import signal' takes 8 ms
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hostel.containers.cgroups.limits import Limit


class Cgroup:
    """``places``: by controller, as v1 names it. ``unified``: the folder in v2's hierarchy, where there is one."""

    def __init__(self, id: str, places: dict[str, Place], unified: str | None, rootless: bool):
        self.id, self.places, self.unified, self.rootless = id, places, unified, rootless
        self._new = False       # made by us, and nothing applied yet
        self.placeholders: set[int] = set()  # processes that don't count

    def folders(self) -> list[str]:
        """Each once: controllers may share a hierarchy. v2's comes first."""
        first = [self.unified] if self.unified else []
        return list(dict.fromkeys([*first, *(place.folder for place in self.places.values())]))

    @property
    def paths(self) -> dict[str, str]:
        """The folder of each controller, and v2's under no name."""
        unified = {"": self.unified} if self.unified else {}
        return unified | {name: place.folder for name, place in self.places.items()}

    def _folder(self, controller: str) -> str | None:
        if controller == _CORE:
            return self.unified
        return self.places[controller].folder if controller in self.places else None

    # Limits

    def _settings(self, resources: dict) -> list[Setting]:
        """All that is asked but devices. Raises ContainerError for what the version of cgroups doesn't have."""
        version = 1 if not self.unified or any(place.version == 1 for place in self.places.values()) else 2
        result: list[Setting] = []
        for name in v1.CONTROLLERS:
            place = self.places.get(name) or Place(version, _NO_FOLDER)
            table = v1.CONTROLLERS if place.version == 1 else v2.CONTROLLERS
            result += table[name](resources, place.folder)
        for setting in v2.unified(resources):
            if setting.controller in self.places and self.places[setting.controller].version == 1:
                raise refuse(setting.name, f"this host has the controller {setting.controller} in cgroup v1")
            result.append(setting)
        return result

    def unlimited(self, resources: dict) -> list[str]:
        """What of ``resources`` can't be limited here: the host hasn't the controller, or doesn't let us. Their names,
        as the specification has them. Rootless, devices aren't among them: a user namespace lets nobody make any."""
        names: dict[str, None] = {}
        for setting in self._settings(resources):
            folder = self._folder(setting.controller)
            if not setting.optional and (folder is None or not tree.may_write(folder)):
                names[setting.name] = None
        if not self.rootless and "devices" not in self.places:
            names["devices"] = None
        return list(names)

    def check(self, resources: dict) -> None:
        """Raises ContainerError, by the setting's name, for what is impossible or can't be limited here."""
        asked.check(resources)
        rules = [*(resources.get("devices") or []), *devices.DEFAULT]
        if not self.rootless and "devices" in self.places and self.places["devices"].version == 1:
            devices.lists(rules)
        else:
            devices.rows(rules)
        if names := self.unlimited(resources):
            why = "that isn't delegated to us" if self.rootless else "the host has no cgroup controller for that"
            raise ContainerError(f"linux.resources: {', '.join(names)} can't be limited here: {why}")

    def apply(self, resources: dict) -> None:
        """Set what is asked, and leave the rest. The first time devices are limited in any case, to the standard ones.
        When it fails, values that have changed are set back. Raises ContainerError."""
        settings = self._settings(resources)
        if (resources.get("memory") or {}).get("checkBeforeUpdate"):
            self._check_usage(resources["memory"])
        undo: list[tuple[str, str, str]] = []
        try:
            self._write(settings, undo)
            if (resources.get("devices") is not None or self._new) and not self.rootless and "devices" in self.places:
                self._limit_devices(resources.get("devices") or [])
        except ContainerError:
            for folder, file, old in reversed(undo):
                try:
                    put(folder, file, old)
                except OSError:
                    pass
            raise
        self._new = False

    def _write(self, settings: list[Setting], undo: list[tuple[str, str, str]]) -> None:
        while settings:
            refused: list[tuple[Setting, ContainerError]] = []
            for setting in settings:
                try:
                    self._write_one(setting, undo)
                except OSError as error:
                    told = self._told(setting, error)
                    if error.errno != errno.EINVAL:
                        raise told from error
                    refused.append((setting, told))
            if len(refused) == len(settings):
                raise refused[0][1]
            settings = [setting for setting, _ in refused]

    def _write_one(self, setting: Setting, undo: list[tuple[str, str, str]]) -> None:
        folder = self._folder(setting.controller) or _NO_FOLDER
        old = None if self._new else read(folder, setting.file)
        try:
            put(folder, setting.file, setting.value)
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
        if error.errno == errno.ENOENT or folder is None:
            return refuse(setting.name, f"this kernel has no {setting.file} for a cgroup here")
        if error.errno == errno.EBUSY and setting.controller == "memory":
            usage = number(folder, "memory.usage_in_bytes")
            return refuse(setting.name, f"{setting.value} is under what is used now, {usage}")
        if setting.controller == "cpuset":
            return refuse(setting.name, f"'{setting.value}' isn't among what the host, or the cgroup above, has")
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            return refuse(setting.name, f"'{setting.value}' in {setting.file}: the device or its I/O scheduler can't")
        if error.errno in _REFUSED:
            return refuse(setting.name, f"we may not write '{setting.value}' to {folder}/{setting.file}")
        return refuse(setting.name, f"the kernel refuses '{setting.value}' in {setting.file}: {error.strerror}")

    def _check_usage(self, memory: dict) -> None:
        from hostel.containers.cgroups import stats

        if "memory" in self.places:
            used = stats.collect({"memory": self.places["memory"]}, None)["memory"]
            for name, kind in (("limit", "usage"), ("swap", "swap")):
                limit, usage = memory.get(name) or 0, used[kind].get("usage", 0)
                if 0 < limit < usage:
                    raise refuse(f"memory.{name}", f"{limit} is under what is used now, {usage}")

    def _limit_devices(self, rules: list[dict]) -> None:
        rules, place = [*rules, *devices.DEFAULT], self.places["devices"]
        if place.version == 2:
            devices.attach(place.folder, rules)
            return
        try:
            devices.write_lists(place.folder, rules)
        except OSError as error:
            why = "the cgroup above doesn't allow it" if error.errno == errno.EPERM else error.strerror
            raise refuse("devices", f"the kernel refuses a rule in {place.folder}: {why}") from error

    # The cgroup itself

    def create(self) -> None:
        """Make it. One that exists may be had if nothing is in it and it isn't frozen. Raises ContainerError."""
        if self.frozen():
            raise ContainerError(f"the cgroup {self.places['freezer'].folder} is frozen: thaw it, or give another path")
        made: list[str] = []
        try:
            for folder in self.folders():
                try:
                    self._make(folder, made)
                except OSError as error:
                    if not self.rootless or error.errno not in _REFUSED:
                        raise ContainerError(f"can't make the cgroup {folder}: {error.strerror}") from error
                    self._leave_out(folder)
        except BaseException:
            for folder in reversed(made):
                tree.remove(folder)
            raise
        if self.unified:
            # an inner cgroup of v2 may have processes of its own, or keep a controller to itself
            on = {*(read(self.unified, "cgroup.controllers") or "").split(), *BUILT_IN}
            for name, place in list(self.places.items()):
                if place.version == 2 and V2_NAME.get(name, name) not in on:
                    del self.places[name]
        self._new = True

    def _make(self, folder: str, made: list[str]) -> None:
        missing = tree.missing(folder)
        if not missing and (pids := set(tree.members(folder)) - self.placeholders):
            raise ContainerError(f"the cgroup {folder} is in use by {_listed(pids)}: give another linux.cgroupsPath")
        cpuset = self.places.get("cpuset")
        if folder == self.unified:
            tree.enable_above(missing[0] if missing else folder)
        for one in missing or [folder]:
            if tree.make(one):
                made.append(one)
            if folder == self.unified and one != folder:
                tree.enable(one)
            if cpuset and cpuset.version == 1 and cpuset.folder == folder:
                tree.inherit(one)

    def _leave_out(self, folder: str) -> None:
        """A hierarchy that won't have us."""
        self.places = {name: place for name, place in self.places.items() if place.folder != folder}
        if self.unified == folder:
            self.unified = None

    def add(self, pid: int, beside: int | None = None) -> None:
        """Move a process in, with all its threads. ``beside``: a process of the container's, in whose cgroup it may be
        instead where v2's has become one that others are in. Raises ContainerError."""
        for folder in self.folders():
            try:
                put(folder, "cgroup.procs", str(pid))
            except OSError as error:
                if error.errno == errno.EBUSY and beside and folder == self.unified:
                    inner = [one for one in tree.walk(folder) if beside in tree.members(one, recursive=False)]
                    if inner:
                        put(inner[0], "cgroup.procs", str(pid))
                        continue
                raise ContainerError(f"can't put process {pid} into the cgroup {folder}: {error.strerror}") from error

    def clone_fd(self) -> int | None:
        """For clone3's CLONE_INTO_CGROUP: v2's folder, for the caller to close; ``None`` without v2."""
        return os.open(self.unified, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if self.unified else None

    def entries(self, cloned: bool = False) -> list[str]:
        """The files into which a process with one thread writes ``0`` to move itself in; ``cloned``: but v2's, where it
        is by ``clone_fd``."""
        files = ["" if folder == self.unified else f"{folder}/tasks" for folder in self.folders()]
        return [file or f"{self.unified}/cgroup.procs" for file in files if file or not cloned]

    def pids(self, recursive: bool = True) -> list[int]:
        """Its processes, in the numbers of our own PID namespace."""
        found: set[int] = set()
        for folder in self.folders()[:2]:  # v2's and one of v1's, where the container may have moved about
            found.update(tree.members(folder, recursive))
        return sorted(found - {0} - self.placeholders)

    def stats(self) -> dict:
        """The data of ``runc events --stats``."""
        from hostel.containers.cgroups import stats

        return stats.collect(self.places, self.unified)

    def limits(self) -> "list[Limit]":
        """Each limit beside its use."""
        from hostel.containers.cgroups import limits

        return limits.collect(self.places)

    def oom_fd(self) -> int | None:
        """A descriptor that can be read from when the kernel has killed for memory, or did something close to it:
        read it, then ask ``oom_kills``. For the caller to close; ``None`` without the controller."""
        from hostel.containers.cgroups import oom

        return oom.watch(self.places["memory"]) if "memory" in self.places else None

    def oom_kills(self) -> int:
        from hostel.containers.cgroups import oom

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

    def kill(self, signum: int = _SIGKILL) -> None:
        """Send the signal to every process. None escapes SIGKILL by forking: v2 kills a cgroup at once (Linux 5.14),
        and else they are frozen meanwhile, or as many rounds are made as it takes. A frozen cgroup stays so, but for
        SIGKILL."""
        killing, frozen = signum == _SIGKILL, self.frozen()
        killed: set[int] = set()
        if killing and self.unified and os.path.exists(f"{self.unified}/cgroup.kill"):
            killed = set(tree.members(self.unified))
            put(self.unified, "cgroup.kill", "1")
        for _ in range(_KILL_ROUNDS if killing else 1):
            if not set(self.pids()) - killed:
                break
            held = frozen or self._hold()
            for pid in set(self.pids()) - killed:
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:
                    pass
            if held and not frozen:
                self.thaw()
            if held:
                break
        if killing and frozen:
            self.thaw()  # v1 lets nobody die that stands still

    def _hold(self) -> bool:
        """Whether all stand still."""
        try:
            self.freeze()
        except ContainerError:
            return False
        return True

    def delete(self) -> None:
        """Remove it, and what the container made below it. Waits for processes that are being killed. Raises
        ContainerError."""
        deadline, pause = time.monotonic() + _DELETE_SECONDS, 0.0005
        for folder in self.folders():
            while not tree.remove(folder):
                if time.monotonic() > deadline:
                    pids = tree.members(folder)
                    by = f" by {_listed(pids)}" if pids else ""
                    raise ContainerError(f"can't remove the cgroup {folder}: it is in use{by}")
                time.sleep(pause)
                pause = min(pause * 2, 0.05)

    def exists(self) -> bool:
        return any(os.path.isdir(folder) for folder in self.folders())

    def state(self) -> dict:
        """For a file; ``from_state`` reads it."""
        return {
            "version": STATE_VERSION, "id": self.id, "rootless": self.rootless, "unified": self.unified,
            "places": {name: [place.version, place.folder] for name, place in self.places.items()},
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict) -> "Cgroup":
        if state.get("version") != STATE_VERSION:
            raise ContainerError(f"a cgroup's state of version {state.get('version')}; this hostel has {STATE_VERSION}")
        places = {name: Place(*place) for name, place in state["places"].items()}
        if "systemd" in state:
            from hostel.containers.cgroups.systemd import ScopedCgroup

            return ScopedCgroup(state["id"], places, state["unified"], state["rootless"], *state["systemd"])
        return cls(state["id"], places, state["unified"], state["rootless"])


def _listed(pids: list[int] | set[int]) -> str:
    shown = ", ".join(map(str, sorted(pids)[:5]))
    return f"process{'es' if len(pids) > 1 else ''} {shown}{' and others' if len(pids) > 5 else ''}"
