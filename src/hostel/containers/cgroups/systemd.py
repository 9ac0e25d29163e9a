"""Cgroups that systemd gives (``--systemd-cgroup``): where it runs, the tree is its own, and others ask it for a part.

The container gets a transient scope, ``PREFIX-NAME.scope`` in the slice that is asked for, delegated to us
(systemd.resource-control(5), Delegate=). Its cgroup is one below the scope's, so that all of its files are ours and
systemd never sets them back. A scope has a process from its start to its end: a placeholder waits in it until the
container's are there, or until we end.

systemd is asked by ``busctl``, which comes with it: over the system's bus, or the user's where we aren't root.
"""

import os
import time

from hostel.base.errors import ContainerError
from hostel.containers.cgroups import tree
from hostel.containers.cgroups.group import Cgroup
from hostel.containers.cgroups.setting import Place, put

LEAF = "container"
_RUNNING = "/run/systemd/system"    # as sd_booted(3) has it
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_SECONDS = 20                       # for systemd to make a scope
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess


def named(path: str | None, id: str, user: bool) -> tuple[str, str]:
    """Slice and unit, of ``slice:prefix:name``."""
    parts = path.split(":") if path else ["", "hostel", id]
    if len(parts) != 3 or not parts[2] or "/" in "".join(parts):
        raise ContainerError(f"linux.cgroupsPath '{path}' isn't slice:prefix:name, which --systemd-cgroup takes")
    slice, prefix, name = parts
    slice = slice or ("user.slice" if user else "system.slice")
    unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    for word in (slice, unit):
        if set(word) - _LETTERS or len(word) > 255:
            raise ContainerError(f"linux.cgroupsPath '{path}': systemd has no unit of the name '{word}'")
    return slice, unit


def folder_of(slice: str) -> str:
    """``a-b.slice`` is ``/a.slice/a-b.slice`` (systemd.slice(5))."""
    stem = slice.removesuffix(".slice")
    words = stem.split("-")
    if stem == "-":
        return ""
    if stem == slice or not all(words):
        raise ContainerError(f"'{slice}' is no name of a slice of systemd's: it is such as a-b.slice")
    return "".join(f"/{'-'.join(words[: number + 1])}.slice" for number in range(len(words)))


def find(user: bool) -> str:
    """The cgroup under which the manager has its slices. Raises ContainerError where there is none to ask."""
    if not os.path.isdir(_RUNNING):
        raise ContainerError(
            "cgroups by systemd need systemd's D-Bus, and this host doesn't run systemd: leave out --systemd-cgroup,"
            " and give linux.cgroupsPath as a path"
        )
    return _busctl(user, "get-property", *_MANAGER, "ControlGroup").removeprefix("s").strip().strip('"').rstrip("/")


def _busctl(user: bool, *words: str) -> str:
    import subprocess

    command = ["busctl", "--user" if user else "--system", *words]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError:
        raise ContainerError("cgroups by systemd need its program busctl: leave out --systemd-cgroup") from None
    except subprocess.TimeoutExpired:
        raise ContainerError(f"systemd doesn't answer in {_SECONDS} seconds") from None
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"busctl ended with {result.returncode}"]
        raise ContainerError(f"systemd refuses: {lines[-1]}")
    return result.stdout


class ScopedCgroup(Cgroup):
    """One below a scope."""

    def __init__(
        self, id: str, places: dict[str, Place], unified: str | None, rootless: bool, slice: str, unit: str, user: bool
    ):
        super().__init__(id, places, unified, rootless)
        self.slice, self.unit, self.user = slice, unit, user
        self._placeholder: subprocess.Popen | None = None

    def create(self) -> None:
        import subprocess

        nowhere = subprocess.DEVNULL
        self._placeholder = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere)
        self.placeholders = {self._placeholder.pid}
        try:
            self._start(self._placeholder.pid)
        except BaseException:  # it may be another container's
            self._release()
            raise
        try:
            if self.unified:
                # v2's scope gives its controllers to what is below it only while it has no processes itself
                tree.make(self.unified)
                put(self.unified, "cgroup.procs", str(self._placeholder.pid))
            super().create()
        except OSError as error:
            self.delete()
            raise ContainerError(f"can't make a cgroup in systemd's scope {self.unit}: {error.strerror}") from error
        except BaseException:
            self.delete()
            raise

    def _start(self, pid: int) -> None:
        properties = (
            ("Description", "s", f"container {self.id}"), ("Slice", "s", self.slice), ("PIDs", "au", "1", str(pid)),
            ("Delegate", "b", "true"), ("DefaultDependencies", "b", "false"),
            ("CollectMode", "s", "inactive-or-failed"),
            *((f"{name}Accounting", "b", "true") for name in ("CPU", "Memory", "Tasks", "IO")),
        )  # fmt: skip
        words = [word for row in properties for word in row]
        _busctl(
            self.user, "call", *_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", self.unit, "fail",
            str(len(properties)), *words, "0",
        )  # fmt: skip
        deadline, pause = time.monotonic() + _SECONDS, 0.002
        while not self._is_in(pid):
            if time.monotonic() > deadline:
                raise ContainerError(f"systemd didn't make the scope {self.unit} in {_SECONDS} seconds")
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    def _is_in(self, pid: int) -> bool:
        with open(f"/proc/{pid}/cgroup") as file:
            return any(line.rstrip("\n").endswith(f"/{self.unit}") for line in file)

    def add(self, pid: int, beside: int | None = None) -> None:
        super().add(pid, beside)
        self._release()

    def pids(self, recursive: bool = True) -> list[int]:
        found = super().pids(recursive)
        if found:
            self._release()
        return found

    def _release(self) -> None:
        if self._placeholder and self._placeholder.stdin:
            self._placeholder.stdin.close()
            self._placeholder.wait()
            self._placeholder = None
            self.placeholders = set()

    def delete(self) -> None:
        self._release()
        super().delete()
        try:
            _busctl(self.user, "call", *_MANAGER, "StopUnit", "ss", self.unit, "replace")
        except ContainerError:
            pass  # it has gone with its last process
        for folder in self.folders():
            tree.remove(os.path.dirname(folder))  # in hierarchies that systemd doesn't use, the scope's is ours too

    def state(self) -> dict:
        return super().state() | {"systemd": [self.slice, self.unit, self.user]}
