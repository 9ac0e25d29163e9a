"""What the runtime knows of its containers: ``ROOT/ID/state.json``, and the live process that it names.

A process is known by its ID and its start time together, so that another one by the same number is never taken for
it; it is signalled by a pidfd that was opened before the two were compared.
"""

import os
import time

from hostel.base.errors import ContainerError
from hostel.containers import fastjson
from hostel.containers.spec import VERSION

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def check_id(id: str) -> None:
    if not id or id in (".", "..") or not _ALLOWED.issuperset(id) or len(id) > 200:
        raise ContainerError(f"'{id}' can't be a container's ID: letters, digits and _+-. only")


def start_time(pid: int) -> tuple[str, int]:
    """A process's state's letter and when it started, in clock ticks since boot; ("", 0) without one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return "", 0
    return fields[0].decode(), int(fields[19])


class State:
    """One container's folder and what is in its file."""

    def __init__(self, folder: str, content: dict):
        self.folder = folder
        self.content = content

    @property
    def id(self) -> str:
        return self.content["id"]

    @property
    def pid(self) -> int:
        return self.content["pid"]

    @property
    def config(self) -> dict:
        return self.content["config"]

    @property
    def fifo(self) -> str:
        return f"{self.folder}/exec.fifo"

    @property
    def hooked(self) -> str:
        """What the first process writes to when its startContainer hooks have succeeded."""
        return f"{self.folder}/hooks.fifo"

    def write(self) -> None:
        raw = fastjson.dumps(self.content).encode()
        path = f"{self.folder}/state.json"
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            while raw:
                raw = raw[os.write(fd, raw):]
        finally:
            os.close(fd)
        os.rename(path + ".new", path)

    def write_quick(self, folders: "list[str]") -> None:
        """What the launcher must know to do without us (launcher_quick): whether it may start the container, and
        remove it, the first process, and the cgroups' folders. Where it may neither, nothing."""
        hooks = self.config.get("hooks") or {}
        own_pids = any(n["type"] == "pid" and not n.get("path") for n in self.config["linux"]["namespaces"])
        starts = not (hooks.get("startContainer") or hooks.get("poststart"))
        deletes = own_pids and not hooks.get("poststop") and "systemd" not in (self.content.get("cgroup") or {})
        if not (starts or deletes) or any("\n" in folder for folder in folders):
            return
        lines = [f"{starts:d}{deletes:d} {self.pid} {self.content['start_time']}", *folders, ""]
        fd = os.open(f"{self.folder}/quick", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, "\n".join(lines).encode())
        finally:
            os.close(fd)

    def alive(self) -> bool:
        letter, started = start_time(self.pid) if self.pid > 0 else ("", 0)
        return bool(letter) and letter not in "ZX" and started == self.content["start_time"]

    def status(self) -> str:
        if not self.content.get("ready"):
            letter, started = start_time(self.content["runtime"][0])
            return "creating" if letter and started == self.content["runtime"][1] else "stopped"
        if not self.alive():
            return "stopped"
        if os.path.exists(self.fifo):
            return "created"
        return "paused" if self._frozen() else "running"

    def _frozen(self) -> bool:
        """As ``Cgroup.frozen`` says, without what it would take to import that."""
        version, folder = ((self.content.get("cgroup") or {}).get("places") or {}).get("freezer") or (0, "")
        if not version:
            return False
        try:
            with open(f"{folder}/freezer.state" if version == 1 else f"{folder}/cgroup.freeze") as file:
                return file.read().strip() in ("FROZEN", "FREEZING", "1")
        except OSError:
            return False

    def pidfd(self) -> int:
        """Of the first process. Raises ContainerError where it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            raise ContainerError(f"container {self.id} isn't running") from None
        if not self.alive():
            os.close(fd)
            raise ContainerError(f"container {self.id} isn't running")
        return fd

    def public(self, status: str | None = None) -> dict:
        """The state as the specification has it (runtime.md, "State"); what hooks read."""
        status = status or self.status()
        found = {
            "ociVersion": VERSION, "id": self.id, "status": status, "bundle": self.content["bundle"],
            "annotations": self.config.get("annotations") or {},
        }  # fmt: skip
        if status != "stopped" and self.pid:
            found["pid"] = self.pid
        return found

    def shown(self) -> dict:
        """What ``state`` and ``list`` print: other runtimes' names."""
        public = self.public()
        return {
            "ociVersion": public["ociVersion"], "id": self.id, "pid": public.get("pid", 0), "status": public["status"],
            "bundle": self.content["bundle"], "rootfs": self.content["rootfs"], "created": self.content["created"],
            "annotations": public["annotations"], "owner": self.content.get("owner", ""),
        }  # fmt: skip


def load(root: str, id: str) -> State:
    check_id(id)
    folder = f"{root}/{id}"
    try:
        with open(f"{folder}/state.json", "rb") as file:
            raw = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise ContainerError(f"container \"{id}\" does not exist: 'hostel-oci list' shows those that do") from None
    except OSError as error:
        raise ContainerError(f"{folder}/state.json: {error.strerror}") from None
    return State(folder, fastjson.loads(raw, f"{folder}/state.json"))


def now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09}Z"
