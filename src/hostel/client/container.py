"""The Python SDK: a ``Container`` is a handle on a container of this host, with a VM's words (client/vm).

    with Container.run("alpine", command=["sleep", "1000"], memory="64M") as box:
        print(box.exec(["id"]).stdout)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hostel.base.errors import ContainerError, MachineError, UsageError
from hostel.base.leash import Leash
from hostel.client.attach import attach
from hostel.client.connection import Connection
from hostel.client.nics import make_nics
from hostel.client.result import CommandFailed, Result
from hostel.containers import launch, store
from hostel.spec import container as words
from hostel.spec import vm as spec_vm
from hostel.spec.container import LIVE, ContainerSpec, ContainerState, Health

if TYPE_CHECKING:
    from hostel.images.oci.store import Image


MAX_PORTS = 200               # each is a descriptor in one message to the monitor, which takes 253
MAX_PORTS_NAMED = 64          # net/named's


class Container:
    """One container. Made by ``run``, ``get`` and ``list``, not by calling it."""

    isolation = "container"

    def __init__(self, folder: store.Folder):
        self._folder = folder
        self._leash: Leash | None = None

    # -- making and finding

    @classmethod
    def run(cls, image: str, *, attached: bool = False, detach: bool = False, **options: Any) -> "Container":
        """Make a container and start it; ``options`` are those of ``make_spec``. It ends with this process or the
        ``with`` block unless ``detach``, and is removed then unless it has a ``name`` (``rm`` says otherwise). With
        ``attached`` it is made, and begins with ``begin``. Raises HostelError."""
        spec = make_spec(image, detach=detach, attached=attached, **options)
        folder = store.create(spec)
        container = cls(folder)
        try:
            container._leash = launch.start(folder, held=not detach, attached=attached)
        except BaseException:
            launch.kill(folder)
            if folder.path.exists():
                folder.wait_free(5.0)  # what another thread forks has the lock for a moment, too
                folder.remove()
            raise
        return container

    @classmethod
    def get(cls, name: str) -> "Container":
        """The container of that name, running or not."""
        return cls(store.find(name))

    @classmethod
    def list(cls) -> "list[Container]":
        """All containers of this home, by name."""
        return [cls(folder) for folder in store.folders()]

    # -- looking

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def folder(self) -> Path:
        """Where the container's files are."""
        return self._folder.path

    @property
    def spec(self) -> ContainerSpec:
        return self._folder.spec()

    @property
    def state(self) -> ContainerState:
        """How it does. What a killed monitor left is cleared up first."""
        if self._folder.state().state == "died":
            from hostel.containers import engine

            engine.clear_up(self._folder)
        return self._folder.state()

    def inspect(self) -> dict[str, Any]:
        """Everything known: spec, state and, while it runs, what its cgroup counts."""
        try:
            with Connection(self.folder) as connection:
                found = dict(connection.call("inspect"))
        except MachineError:
            return {
                "name": self.name, "isolation": "container", "spec": msgspec.to_builtins(self.spec),
                "state": msgspec.to_builtins(self.state),
            }
        if found["state"]["state"] in ("running", "paused"):
            found["statistics"] = self.stats()
        return found

    def stats(self) -> dict[str, Any]:
        """What its cgroup counts, as ``runc events --stats`` has it."""
        if self._folder.state().state not in ("running", "paused"):
            raise ContainerError(f"'{self.name}' is not running")
        from hostel.containers import engine

        return dict(engine.cgroup(self.folder).stats())

    def explain(self) -> dict[str, Any]:
        """Its namespaces, limits and privileges, from the live kernel."""
        from hostel.containers.explain import explain

        return explain(self._folder)

    def log_entries(self, since: float = 0.0, end: int | None = None) -> Iterator[dict[str, Any]]:
        """What it wrote, as far as that is kept: ``time``, ``stream``, ``log`` (text; bytes that aren't UTF-8 are
        surrogates). Of container.log only the first ``end`` bytes are read."""
        for name, limit in (("container.log.1", None), ("container.log", end)):
            try:
                with open(self.folder / name, "rb") as file:
                    at = 0
                    for line in file:
                        at += len(line)
                        if limit is not None and at > limit:
                            break
                        entry = parse_log(line)
                        if entry and entry["time"] >= since:
                            yield entry
            except OSError:
                continue

    def logs(self) -> bytes:
        """The same as it was written, both streams together."""
        return b"".join(log_bytes(entry) for entry in self.log_entries())

    # -- using

    def exec(
        self, argv: Sequence[str], *, input: str | bytes | None = None, env: dict[str, str] | None = None,
        cwd: str = "", user: str = "", text: bool = True, check: bool = False, timeout: float | None = None,
    ) -> Result:
        """Run a command in the container and wait for it; as ``VM.exec``."""
        out, err = bytearray(), bytearray()
        data = input.encode() if isinstance(input, str) else input
        status = self.attach(
            argv, env=env, cwd=cwd, more={"user": user} if user else None, timeout=timeout, stdin=None,
            input=data or b"", on_stdout=out.extend, on_stderr=err.extend,
        )
        decode: Callable[[bytearray], Any] = (lambda b: b.decode(errors="replace")) if text else bytes
        result = Result(status, decode(out), decode(err))
        if check and status:
            raise CommandFailed(argv, result)
        return result

    def attach(self, argv: Sequence[str], **bridge: Any) -> int:
        """Run a command with its streams bridged (client/attach); its exit status."""
        return attach(self.folder, argv, **bridge)

    def console(self, *, replay: bool = False, begin: bool = False, **bridge: Any) -> int | None:
        """Bridge the streams of the container's first process until it ends: its exit status. With ``begin`` it is
        started once we are there."""
        from hostel.client.bridge import Bridge

        with Connection(self.folder) as connection:
            sock, early = connection.upgrade("console", replay=replay)
            carried = Bridge(sock, early, **bridge)
            if begin:
                self.begin()
            return carried.run()

    def begin(self) -> None:
        """Start the first process of one that was made ``attached``."""
        self._call("start")

    def copy_in(self, source: str, path: str) -> None:
        """Copy a file or folder of the host's to ``path`` in the container, as ``hostel cp`` does."""
        from hostel.client import copy_container

        copy_container.copy_in(self, source, path)

    def copy_out(self, path: str, destination: str) -> None:
        """Copy ``path`` in the container to the host, as ``hostel cp`` does."""
        from hostel.client import copy_container

        copy_container.copy_out(self, path, destination)

    def wait(self, timeout: float | None = None) -> ContainerState:
        """Return how it ended, once it has. ``TimeoutError`` after ``timeout`` seconds."""
        try:
            with Connection(self.folder) as connection:
                state = msgspec.convert(connection.call("wait", timeout=timeout), ContainerState)
        except MachineError:
            return self.state
        self._folder.wait_free(5.0)
        return state

    # -- changing

    def start(self) -> None:
        """Start one that has stopped, in the background."""
        launch.start(self._folder, held=False)

    def is_missing(self) -> bool:
        """Whether it doesn't run and should, as its restart policy says: the host has booted, or its monitor was
        killed."""
        policy, state = self.spec.restart, self.state
        if state.state in LIVE or state.state == "created":
            return False
        if policy == "unless-stopped":
            return not state.by_hand
        return policy == "always" or policy == "on-failure" and state.state == "died"

    def pause(self) -> None:
        """Freeze all of its processes."""
        self._call("pause")

    def resume(self) -> None:
        self._call("resume")

    def signal(self, number: int) -> None:
        """Send the first process a signal."""
        self._call("signal", number=int(number))

    def update(self, **limits: Any) -> None:
        """Change limits while it runs: memory, memory_swap, memory_reservation (bytes), cpus, cpu_shares, cpuset,
        pids_limit."""
        self._call("update", resources=limits)

    # -- ending

    def stop(self, timeout: float = -1.0) -> None:
        """Send its stop signal; end it after ``timeout`` seconds (default: its own stop timeout)."""
        grace = self.spec.stop_timeout if timeout < 0 else timeout
        self._end("stop", {"grace": float(grace)}, grace + 10.0)

    def kill(self) -> None:
        """End it at once, and also a monitor that doesn't answer."""
        self._end("quit", {}, 3.0)

    def rm(self, force: bool = False) -> None:
        """Remove the container and its files; a running one only with ``force``."""
        if self.state.state in LIVE:
            if not force:
                raise MachineError(
                    f"'{self.name}' is running; 'hostel stop {self.name}' ends it, 'hostel rm --force' does both"
                )
            self.kill()
        if self.folder.exists():
            self._folder.wait_free(5.0)
            if self.folder.exists():
                self._folder.remove()

    def end(self) -> tuple[bool, str]:
        """Whether it ended in order, and one line on how."""
        self._folder.wait_free(2.0)
        state = self.state
        reason = state.reason or state.state
        return state.state == "stopped" and not reason.startswith("error"), f"'{self.name}' ended: {reason}"

    def detach(self) -> None:
        """Let it live on after this process or ``with`` block."""
        if self._leash:
            self._leash.release()
            self._leash = None

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._leash:
            return
        try:
            temporary = self.spec.remove
        except MachineError:
            temporary = False
        if self._folder.owned():
            self.kill() if temporary else self.stop()
        self._leash.close()
        self._leash = None
        if temporary and self.folder.exists():
            self._folder.wait_free(5.0)
            if self.folder.exists():
                self._folder.remove()

    def __repr__(self) -> str:
        return f"<Container {self.name}: {self.state.state}>"

    def _call(self, method: str, **params: Any) -> Any:
        with Connection(self.folder) as connection:
            return connection.call(method, **params)

    def _end(self, method: str, params: dict[str, Any], timeout: float) -> None:
        """Ask the monitor to end it; if it hasn't after ``timeout`` seconds, end the monitor."""
        if self.state.state not in LIVE:
            return
        try:
            with Connection(self.folder) as connection:
                connection.call(method, timeout=timeout, **params)
                connection.call("wait", timeout=timeout)
        except MachineError:
            pass
        except TimeoutError:
            launch.kill(self._folder)
        if not self._folder.wait_free(5.0):
            launch.kill(self._folder)


def make_spec(
    image: str,
    *,
    name: str | None = None,
    command: Sequence[str] = (),
    entrypoint: str | None = None,
    detach: bool = False,
    attached: bool = False,
    rm: bool | None = None,
    tty: bool = False,
    stdin: bool = False,
    env: Sequence[str] = (),
    user: str | None = None,
    workdir: str | None = None,
    hostname: str | None = None,
    init: bool = False,
    memory: int | str = 0,
    memory_swap: int | str = 0,
    memory_reservation: int | str = 0,
    cpus: float | str = 0.0,
    cpu_shares: int = 0,
    cpuset: str = "",
    pids_limit: int = 0,
    disk_rate: int | str = 0,
    disk_iops: int | str = 0,
    oom_score_adj: int = 0,
    networks: Sequence[str] | None = None,
    ports: Sequence[str] = (),
    mac: str | None = None,
    allow_host_loopback: bool = False,
    shares: Sequence[str] = (),
    tmpfs: Sequence[str] = (),
    read_only: bool = False,
    cap_add: Sequence[str] = (),
    cap_drop: Sequence[str] = (),
    security: Sequence[str] = (),
    devices: Sequence[str] = (),
    ulimits: Sequence[str] = (),
    sysctls: Sequence[str] = (),
    labels: Sequence[str] = (),
    restart: str = "no",
    health_command: str | None = None,
    health_interval: str | float | None = None,
    health_timeout: str | float | None = None,
    health_start_period: str | float | None = None,
    health_retries: int | None = None,
    no_health: bool = False,
    stop_signal: str | None = None,
    stop_timeout: float | None = None,
    log_size: int | str = "4M",
) -> ContainerSpec:
    """A checked ``ContainerSpec``; the image is fetched where it is needed and absent. The words are those of
    ``hostel run``; what isn't given is the image's."""
    from hostel.base.units import parse_size
    from hostel.client.machines import check_free

    if name is not None:
        spec_vm.check_name(name)
        check_free(name)  # before a download
    policy, most = words.parse_restart(restart)
    remove = (name is None and not detach) if rm is None else rm
    if policy != "no" and remove:
        if rm:
            raise UsageError("--rm and --restart don't go together: one that is to be removed isn't started again")
        remove = False
    spec = ContainerSpec(
        name=name or "", image=image, tty=tty, stdin=stdin, init=init, remove=remove, restart=policy, restart_max=most,
        hostname=_hostname(hostname), memory=words.check_memory(memory),
        memory_swap=-1 if memory_swap in (-1, "-1") else words.check_memory(memory_swap),
        memory_reservation=words.check_memory(memory_reservation), cpus=words.check_cpus(cpus),
        cpu_shares=words.check_count("--cpu-shares", cpu_shares, 2), cpuset=words.check_cpuset(cpuset),
        pids_limit=words.check_count("--pids-limit", pids_limit, 1), oom_score_adj=oom_score_adj,
        disk_rate=words.check_disk("--disk-rate", disk_rate, 4096),
        disk_iops=words.check_disk("--disk-iops", disk_iops, 1),
        mounts=[words.parse_mount(share) for share in shares] + [words.parse_tmpfs(text) for text in tmpfs],
        read_only=read_only, cap_add=[words.check_capability(text) for text in cap_add],
        cap_drop=[words.check_capability(text) for text in cap_drop],
        security=[words.check_security(text) for text in security],
        devices=[words.parse_device(text) for text in devices], ulimits=[words.parse_ulimit(text) for text in ulimits],
        sysctls=dict(words.parse_sysctl(text) for text in sysctls), labels=labels_of(labels),
        host_network="host" in (networks or ()),
        log_size=max(1 << 12, parse_size(log_size) if isinstance(log_size, str) else log_size),
    )
    if spec.memory_swap > 0 and spec.memory_swap < spec.memory:
        raise UsageError("--memory-swap is memory and swap together: it can't be less than --memory")
    if not -1000 <= oom_score_adj <= 1000:
        raise UsageError(f"--oom-score-adj is -1000 to 1000, not {oom_score_adj}")
    targets = [mount.target for mount in spec.mounts]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"two mounts can't both be {target} in the container")
    if spec.host_network:
        if ports or mac or allow_host_loopback or len(networks or ()) > 1:
            raise UsageError("--network host stands alone: the container has the host's network, its ports too")
        if wrong := next((name for name in spec.sysctls if name.startswith("net")), None):
            raise UsageError(f"--sysctl {wrong} doesn't go with --network host: it would be the host's")
    else:
        spec.nics = make_nics(networks, ports, mac, None, allow_host_loopback)
    for nic in spec.nics:
        if ":" in nic.network:
            raise UsageError(f"a container can't be on {nic.network}: --network is nat, none or a named network")
        most = MAX_PORTS if nic.network == "nat" else MAX_PORTS_NAMED
        if len(nic.ports) > most:
            raise UsageError(f"a container has up to {most} forwarded ports on {nic.network}, not {len(nic.ports)}")
        if nic.queues > 1 or nic.spoof:
            raise UsageError("queues= and spoof= are for VMs' cards, not for containers'")
    words.parse_env(list(env))  # before an image is fetched
    found = find_image(image)
    spec.digest = found.digest
    spec.mounts += [
        words.Mount(target=target, own=True, options=["rbind"])
        for target in dict.fromkeys(map(words.check_target, found.config.volumes)) if target not in targets
    ]
    spec.command, spec.env, spec.user, spec.workdir = process_of(found, command, entrypoint, env, user, workdir)
    spec.stop_signal = words.parse_signal(stop_signal or found.config.stop_signal)
    if stop_timeout is not None:
        if not 0 <= stop_timeout <= 86400:
            raise UsageError(f"--stop-timeout is 0 to 86400 seconds, not {stop_timeout}")
        spec.stop_timeout = stop_timeout
    spec.health = None if no_health else _health(
        found, health_command, health_interval, health_timeout, health_start_period, health_retries
    )
    return spec


def process_of(
    image: "Image", command: Sequence[str], entrypoint: str | None, env: Sequence[str], user: str | None,
    workdir: str | None,
) -> tuple[list[str], list[str], str, str]:
    """argv, environment, user and folder of an image's command: the image's, but for what a person says."""
    config = image.config
    first = [entrypoint] if entrypoint else [] if entrypoint == "" else config.entrypoint
    argv = [*first, *(list(command) or (config.cmd if entrypoint is None else []))]
    if not argv:
        raise UsageError(f"the image {image.name} has no command of its own: say what to run behind --")
    own = {item.partition("=")[0]: item for item in config.env if "=" in item}
    extra = {item.partition("=")[0]: item for item in words.parse_env(list(env))}
    where = _workdir(config.working_dir if workdir is None else workdir)
    return argv, list((own | extra).values()), config.user if user is None else user, where


def find_image(name: str) -> "Image":
    """The OCI image of that name; from its registry where it isn't here."""
    from hostel.images.oci.store import Store

    images = Store()
    return images.find(name) or images.pull(name)


def _health(
    image: "Image", command: str | None, interval: str | float | None, timeout: str | float | None,
    start_period: str | float | None, retries: int | None,
) -> Health | None:
    """The image's, but for what a person says."""
    own = image.config.healthcheck
    test = list(own.test or []) if own else []
    if command is not None:
        argv = ["/bin/sh", "-c", command]
    elif test[:1] == ["CMD-SHELL"] and len(test) == 2:
        argv = ["/bin/sh", "-c", test[1]]
    elif test[:1] == ["CMD"] and len(test) > 1:
        argv = test[1:]
    else:
        if (interval, timeout, start_period, retries) != (None, None, None, None):
            raise UsageError(f"the image {image.name} has no health check: --health-cmd says what it is")
        return None
    health = Health(command=argv)
    if own:
        health.interval = own.interval / 1e9 or health.interval
        health.timeout = own.timeout / 1e9 or health.timeout
        health.start_period = own.start_period / 1e9
        health.retries = own.retries or health.retries
    for field, value in (("interval", interval), ("timeout", timeout), ("start_period", start_period)):
        if value is not None:
            setattr(health, field, words.parse_seconds(value))
    if retries is not None:
        health.retries = words.check_count("--health-retries", retries, 1)
    if health.interval < 0.1 or health.timeout < 0.1:
        raise UsageError("a health check's interval and timeout are at least 0.1 seconds")
    return health


def _hostname(name: str | None) -> str:
    import re

    if name is not None and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", name, re.ASCII):
        raise UsageError(f"'{name}' is no host name: up to 63 of A-Z a-z 0-9 . -")
    return name or ""


def _workdir(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"--workdir is a folder from the root, as /srv; not '{path}'")
    return os.path.normpath(path)


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if any(not key for key, _, _ in pairs):
        raise UsageError("--label takes KEY=VALUE")
    return {key: value for key, _, value in pairs}


def parse_log(line: bytes) -> dict[str, Any] | None:
    """An entry of container.log; None for half a line, which a crash may have left."""
    import json

    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.keys() >= {"time", "stream", "log"} else None


def log_bytes(entry: dict[str, Any]) -> bytes:
    return bytes(entry["log"].encode(errors="surrogateescape"))


