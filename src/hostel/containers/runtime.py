"""The runtime: containers are made, started, entered and removed (runtime-spec 1.2, runtime.md).

The runtime itself never enters a container. It reads the configuration, refuses what can't be had, makes the cgroup,
and writes down what the container's processes do until their exec (``stage``, ``namespaces``, ``mounts``, ``process``).
What it makes on the host is undone in reverse order where a step fails; mounts and namespaces end with the processes.

Imports are few and late, since each is a good part of the time that a container takes to start.
"""

import os
import time

from hostel.base.errors import ContainerError
from hostel.containers import dialogue, mounts, namespaces, process, spec, stage
from hostel.containers.state import State, check_id, load, now, start_time

TYPE_CHECKING = False  # as typing's, which takes longer to import than a container to start
if TYPE_CHECKING:
    from collections.abc import Callable

_SIGKILL = 9
_DELETE_SECONDS = 10
# An annotation: the first process is killed when its parent ends. The engine's monitor is that (containers/monitor).
ENDS_WITH_PARENT = "org.hostel.ends-with-parent"


class Runtime:
    """``root`` is the folder of the containers' states."""

    def __init__(self, root: "str | os.PathLike[str]"):
        self.root = os.fspath(root)

    # create

    def create(
        self, id: str, bundle: "str | os.PathLike[str]", *, console_socket: "str | int | None" = None,
        pid_file: str | None = None, preserve_fds: int = 0, no_pivot: bool = False, no_new_keyring: bool = False,
        stdio: "tuple[int, int, int] | None" = None, systemd_cgroup: bool = False,
        wire: "Callable[[int], None] | None" = None,
    ) -> State:  # fmt: skip
        """A container whose program waits for ``start``. ``wire(pid)`` is called when its namespaces are there, as a
        createRuntime hook would be: the only time at which an unprivileged user may enter them."""
        check_id(id)
        bundle = os.path.realpath(bundle)
        config = spec.load(bundle)
        if "process" not in config:
            raise ContainerError("config.json: process is missing")
        undo: list = []  # not contextlib's ExitStack: its import takes longer than all of this
        try:
            state = _Creation(self, id, bundle, config, undo, console_socket, preserve_fds, no_pivot, no_new_keyring,
                              stdio, systemd_cgroup, wire).run()  # fmt: skip
            if pid_file:
                _replace(pid_file, str(state.pid))
            undo.clear()
            return state
        finally:
            for step in reversed(undo):
                try:
                    step()
                except (OSError, ContainerError):
                    pass  # what made us fail is what is told

    # The life of one

    def load(self, id: str) -> State:
        return load(self.root, id)

    def state(self, id: str) -> dict:
        return self.load(id).shown()

    def start(self, id: str) -> None:
        """Returns when the program runs, or has failed to."""
        state = self.load(id)
        status = state.status()
        if status != "created":
            raise ContainerError(f"cannot start container {id}: it is {status}, not created")
        taken = state.fifo + ".taken"
        try:
            os.rename(state.fifo, taken)  # of two that start it, one
        except FileNotFoundError:
            raise ContainerError(f"cannot start container {id}: somebody else does") from None
        try:
            try:
                fd = os.open(taken, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                raise ContainerError(f"cannot start container {id}: its process has ended") from None
        finally:
            os.unlink(taken)
        import select

        kinds = state.config.get("hooks") or {}
        hooked = -1
        if kinds.get("startContainer"):
            hooked = os.open(state.hooked, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        poll = select.poll()
        poll.register(fd, 0)
        os.write(fd, b"+")
        poll.poll()  # until nobody has the other end: it is closed by exec
        os.close(fd)
        if hooked >= 0:
            passed = os.read(hooked, 1)
            os.close(hooked)
            if not passed:
                raise ContainerError(f"container {id} ended at its start: a startContainer hook failed")
        if kinds.get("poststart"):
            from hostel.containers import hooks

            try:
                hooks.run(kinds["poststart"], "poststart", _json(state.public()))
            except ContainerError:
                self._kill(state)
                raise

    def kill(self, id: str, signum: int, all: bool = False) -> None:
        state = self.load(id)
        if all:
            cgroup = _cgroup(state)
            if cgroup:
                cgroup.kill(signum)
                return
        from _signal import pidfd_send_signal  # type: ignore[import-not-found]

        fd = state.pidfd()
        try:
            pidfd_send_signal(fd, signum)
        except ProcessLookupError:
            raise ContainerError(f"container {id} isn't running") from None
        finally:
            os.close(fd)
        if signum == _SIGKILL and state.status() == "paused":
            self._thaw(state)

    def delete(self, id: str, force: bool = False) -> None:
        try:
            state = self.load(id)
        except ContainerError:
            folder = f"{self.root}/{id}"
            if force and not os.path.isdir(folder):
                return
            if force and not os.path.exists(f"{folder}/state.json"):  # a create that was killed at its first step
                _remove(folder)
                return
            raise
        status = state.status()
        if status not in ("stopped", "created") and not force:
            raise ContainerError(f"cannot delete container {id} that is not stopped: it is {status}; "
                                 "'hostel-oci delete --force' ends it")  # fmt: skip
        if status != "stopped":
            self._kill(state)
        shared = not any(n["type"] == "pid" and not n.get("path") for n in state.config["linux"]["namespaces"])
        cgroup = _cgroup(state)
        if not state.content.get("ready"):
            self._kill(state)
        if cgroup:
            if shared or not state.content.get("ready"):
                cgroup.kill(_SIGKILL)
            cgroup.delete()
        _remove(state.folder)
        poststop = (state.config.get("hooks") or {}).get("poststop")
        if poststop:
            from hostel.containers import hooks

            for hook in poststop:
                try:
                    hooks.run([hook], "poststop", _json(state.public("stopped")))
                except ContainerError as error:  # runtime-spec, lifecycle 12: logged, and the rest goes on
                    os.write(2, f"hostel-oci: {error}\n".encode())

    def _kill(self, state: State) -> None:
        """End the first process, and so its PID namespace, and wait."""
        try:
            fd = state.pidfd()
        except ContainerError:
            return
        import select
        from _signal import pidfd_send_signal

        try:
            pidfd_send_signal(fd, _SIGKILL)
            self._thaw(state)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(_DELETE_SECONDS * 1000):
                raise ContainerError(f"container {state.id}: its process {state.pid} doesn't end: the kernel holds it")
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)

    def _thaw(self, state: State) -> None:
        if state._frozen():
            cgroup = _cgroup(state)
            if cgroup:
                cgroup.thaw()

    def pause(self, id: str) -> None:
        state = self.load(id)
        status = state.status()
        if status not in ("created", "running"):
            raise ContainerError(f"container {id} can't be paused: it is {status}")
        self._limited(state).freeze()

    def resume(self, id: str) -> None:
        state = self.load(id)
        status = state.status()
        if status != "paused":
            raise ContainerError(f"container {id} can't be resumed: it is {status}")
        self._limited(state).thaw()

    def update(self, id: str, resources: dict) -> None:
        state = self.load(id)
        if state.status() == "stopped":
            raise ContainerError(f"container {id} isn't running")
        cgroup = self._limited(state)
        cgroup.check(resources)
        cgroup.apply(resources)
        linux = state.config["linux"]
        known = linux["resources"] = linux.get("resources") or {}
        for name, value in resources.items():
            if isinstance(value, dict):
                known[name] = {**(known.get(name) or {}), **value}
            else:
                known[name] = value
        state.write()

    def ps(self, id: str) -> list[int]:
        """The container's processes, as the host numbers them."""
        state = self.load(id)
        if state.status() == "stopped":
            raise ContainerError(f"container {id} isn't running")
        cgroup = _cgroup(state)
        return cgroup.pids() if cgroup else [state.pid]

    def stats(self, id: str) -> dict:
        state = self.load(id)
        if state.status() == "stopped":
            raise ContainerError(f"container {id} isn't running")
        return self._limited(state).stats()

    def cgroup(self, id: str):  # type: ignore[no-untyped-def]
        """Its ``Cgroup``: ``oom_fd``, ``limits`` and so on."""
        return self._limited(self.load(id))

    def _limited(self, state: State):  # type: ignore[no-untyped-def]
        cgroup = _cgroup(state)
        if cgroup is None:
            raise ContainerError(f"container {state.id} has no cgroup of its own: we may make none")
        return cgroup

    def list(self) -> "list[dict]":
        """Of all, those that can't be read left out."""
        try:
            names = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            try:
                found.append(load(self.root, name).shown())
            except ContainerError:
                continue
        return found

    # exec

    def exec(
        self, id: str, config: dict, *, console_socket: "str | int | None" = None, pid_file: str | None = None,
        preserve_fds: int = 0, stdio: "tuple[int, int, int] | None" = None,
        ignore_paused: bool = False,
    ) -> int:  # fmt: skip
        """Another process in a running container; ``config`` is one of ``process``. Its ID; it is our child."""
        from hostel.containers import execution

        state = self.load(id)
        status = state.status()
        if status == "paused" and not ignore_paused:
            raise ContainerError(f"cannot exec in container {id}: it is paused; 'hostel-oci resume {id}'")
        if status not in ("running", "created", "paused"):
            raise ContainerError(f"cannot exec in container {id}: it is {status}")
        pid = execution.run(state, _cgroup(state), config, console_socket, preserve_fds, stdio)
        if pid_file:
            _replace(pid_file, str(pid))
        return pid


class _Creation:
    """One container's create: what is kept from step to step."""

    def __init__(
        self, runtime: Runtime, id: str, bundle: str, config: dict, undo: list, console: "str | int | None",
        preserved: int, no_pivot: bool, no_keyring: bool, stdio: "tuple[int, int, int] | None", systemd: bool,
        wire: "Callable[[int], None] | None",
    ):  # fmt: skip
        self.id, self.bundle, self.config, self.undo = id, bundle, config, undo
        self.folder = f"{runtime.root}/{id}"
        self.root = runtime.root
        self.console, self.preserved, self.no_pivot, self.no_keyring = console, preserved, no_pivot, no_keyring
        self.stdio, self.systemd, self.wire = stdio, systemd, wire
        self.name = f"hostel:{hash((id, time.monotonic_ns())) & 0xFFFFFFFF:08x}"  # the kernel keeps 15 characters
        self.linux = config["linux"]
        self.process = config["process"]
        self.privileged = os.geteuid() == 0
        self.hooks = config.get("hooks") or {}
        self.keep: list[int] = list(range(3, 3 + preserved))
        self.pids: list[int] = []

    def fd(self, fd: int) -> int:
        """To be inherited, and closed here at the end."""
        fd = stage.to_keep(fd)
        self.keep.append(fd)
        self.opened.append(fd)
        return fd

    def run(self) -> State:
        self.opened: list[int] = []
        self.closers: list = []
        try:
            return self._run()
        finally:
            for fd in self.opened:
                os.close(fd)
            for close in self.closers:
                close()

    def _check(self) -> None:
        """Everything that can be refused before anything is made."""
        process.check(self.process, self.linux.get("personality"))
        self.mounts = mounts.find(self.config, self.bundle)
        rootfs = os.path.join(self.bundle, self.config["root"]["path"])
        if not os.path.isdir(rootfs):
            raise ContainerError(f"config.json: root.path: {rootfs} is no folder")
        for fd in range(3, 3 + self.preserved):
            try:
                os.fstat(fd)
            except OSError:
                raise ContainerError(f"--preserve-fds {self.preserved}: descriptor {fd} isn't open") from None
        terminal = self.process.get("terminal")
        if terminal and self.console is None:
            raise ContainerError("process.terminal is true: give a --console-socket, or use 'run'")
        if self.console is not None and not terminal:
            raise ContainerError("--console-socket is given, but process.terminal is false")
        if self.linux.get("mountLabel") and not process.selinux():
            raise ContainerError("config.json: linux.mountLabel: this host has no SELinux")
        self.namespaces = namespaces.Namespaces(self.config)
        self.closers.append(self.namespaces.close)
        if not self.privileged and not self.namespaces.own_user:
            raise ContainerError("config.json: linux.namespaces has no user namespace: without root one is needed")
        if "user" in self.namespaces.new and not (self.linux.get("uidMappings") and self.linux.get("gidMappings")):
            raise ContainerError("config.json: linux.uidMappings and gidMappings are needed for a new user namespace")
        self.filter = None
        if self.linux.get("seccomp"):
            from hostel.containers import seccomp

            self.filter = seccomp.compile(self.linux["seccomp"], f"{self.root}/.seccomp")

    def _run(self) -> State:
        self._check()
        cgroup = self.cgroup = self._open_cgroup()
        try:
            os.makedirs(self.root, 0o700, exist_ok=True)
            os.mkdir(self.folder, 0o711)
        except FileExistsError:
            raise ContainerError(f"container with id exists: {self.id}") from None
        except OSError as error:
            raise ContainerError(f"{self.folder}: {error.strerror}") from None
        self.undo.append(lambda: _remove(self.folder))
        me = os.getpid()
        state = State(self.folder, {
            "id": self.id, "pid": 0, "start_time": 0, "runtime": [me, start_time(me)[1]], "bundle": self.bundle,
            "rootfs": os.path.join(self.bundle, self.config["root"]["path"]), "created": now(), "config": self.config,
            "owner": "" if self.privileged else str(os.geteuid()), "cgroup": None, "no_pivot": self.no_pivot,
            "no_keyring": self.no_keyring,
        })  # fmt: skip
        tasks: list[int] = []
        unified = None
        if cgroup:
            state.content["cgroup"] = cgroup.state()
        state.write()
        if cgroup:
            cgroup.create()
            self.undo.append(cgroup.delete)
            cgroup.apply(self.linux.get("resources") or {})
            state.content["cgroup"] = cgroup.state()
            tasks = [self.fd(os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC)) for folder in v1_folders(cgroup)]
            if cgroup.unified:
                unified = self.fd(cgroup.clone_fd())
        os.mkfifo(state.fifo, 0o600)
        fifo = self.fd(os.open(state.fifo, os.O_RDWR | os.O_CLOEXEC))
        script, ours, theirs = self._script(fifo, tasks, unified, cgroup.paths if cgroup else {})
        self.undo.append(self._end_processes)
        self.pids.append(stage.launch(script, self.keep, self.stdio))
        os.close(theirs)
        self.opened.remove(theirs)
        self._converse(script, ours, state)
        return state

    def _open_cgroup(self):  # type: ignore[no-untyped-def]
        from hostel.containers.cgroups import open_cgroup

        resources = self.linux.get("resources") or {}
        cgroup = open_cgroup(self.linux.get("cgroupsPath"), self.id, systemd=self.systemd)
        cgroup.check(resources)
        return cgroup

    def _script(
        self, fifo: int, tasks: list[int], unified: int | None, folders: dict[str, str]
    ) -> tuple[stage.Script, int, int]:
        """All that the container's processes do until exec."""
        from _socket import socketpair  # type: ignore[import-not-found]

        left, right = socketpair()
        ours, theirs = left.detach(), right.detach()
        self.opened.append(ours)
        theirs = self.fd(theirs)
        script = stage.Script(theirs)
        spaces, linux = self.namespaces, self.linux
        world = mounts.Mounts(script, self.config, self.bundle, self.mounts, self.privileged, spaces.own_user)
        world.copy = lambda number: self._copy_up(script, theirs, world, number)  # type: ignore[method-assign]
        self._id_maps(world)
        console = None
        if self.console is not None:
            console = self.fd(_connect(self.console) if isinstance(self.console, str) else os.dup(self.console))
        insides = self._inside_hooks()
        inner = [theirs, fifo, *range(3, 3 + self.preserved)]
        if "startContainer" in insides:
            path = f"{self.folder}/hooks.fifo"
            os.mkfifo(path, 0o600)
            hooked = self.fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            inner += [hooked, *insides["startContainer"].fds]
        for fd in (fd for _, fd in spaces.joined):
            self.keep.append(fd)
        script.call("prctl", 15, self.name)  # PR_SET_NAME
        stage.closed_gaps(script, self.keep)
        # The first process.
        if self.privileged:
            namespaces.hide(script)
            namespaces.join(script, spaces, user=False)
            world.open_sources()
        process.raise_limits(script, self.process)
        self.handed_on = spaces.own_user and unified is not None
        if self.handed_on:
            namespaces.clone(script, theirs, 0, unified, dialogue.FIRST)
            unified = None
        sync = bool(spaces.new & {"user"} or linux.get("timeOffsets") or self.process.get("oomScoreAdj") is not None)
        namespaces.enter_user(script, spaces, theirs, sync)
        if not self.privileged:
            namespaces.join(script, spaces, user=False)
        namespaces.clone(script, theirs, spaces.flags("user", "time", "cgroup"), unified)
        # The second: the container's.
        namespaces.enter_cgroups(script, tasks)
        script.call("setsid", what="making a session")
        if not self.no_keyring:
            process.keyring(script, self.id)
        script.call("umask", 0)
        namespaces.settle(script, self.config, spaces)
        world.attach_root()
        apart = "cgroup" in spaces.new or any(kind == "cgroup" for kind, _ in spaces.joined)
        world.mount_all(mounts.cgroup_hierarchies(), None if apart else folders)
        world.make_devices()
        slave = None
        if console is not None:
            from hostel.containers import console as terminal

            slave = terminal.make(script, world, console, self.process)
        world.protect()
        process.label(script, self.process)
        if self.hooks.get("prestart") or self.hooks.get("createRuntime") or insides or self.wire:
            dialogue.tell(script, theirs, dialogue.HOOKS)
            dialogue.wait(script, theirs)
        if "createContainer" in insides:
            insides["createContainer"].write(script)
        world.enter(self.no_pivot)
        if slave is not None:
            terminal.take(script, slave)
        stage.closed_gaps(script, inner)  # before a path of the image's is looked up: /proc/self/fd/N/.. leads out
        process.own_null(script)
        process.tune(script, self.process, linux.get("personality"))

        def install() -> None:
            if self.filter is not None:
                self.filter.write(script, theirs)

        process.become(script, self.process, spaces.own_user, self.filter is not None, install)
        program = process.find_program(script, self.process)
        namespaces.hide(script)  # a change of user may have undone it
        process.limit(script, self.process)
        process.close_others(script, self.preserved)
        if self.process.get("noNewPrivileges"):
            install()
        dialogue.tell(script, theirs, dialogue.READY)
        dialogue.wait(script, theirs)  # if the runtime is killed until here, this ends
        script.call("close", theirs)
        script.set(stage.DATA + 16, -1)  # nobody listens any more
        over, on = stage.Label(), stage.Label()
        script.call("read", fifo, script.place(bytes(8)), 1, zero=over, what="waiting for the start")
        script.jump(on)
        script.bind(over)
        script.call("exit_group", 1)
        script.bind(on)
        if (self.config.get("annotations") or {}).get(ENDS_WITH_PARENT):
            script.call("prctl", 1, _SIGKILL)  # PR_SET_PDEATHSIG; whose child it is by now, as it was started
        if "startContainer" in insides:
            insides["startContainer"].write(script)
            script.call("write", hooked, ".", 1)
            script.call("close", hooked)
        home = process.home(world.rootfs, (self.process.get("user") or {}).get("uid", 0))
        process.execute(script, self.process, program, process.environment(self.process, home), False)
        return script, ours, theirs

    def _inside_hooks(self) -> dict:
        found = {}
        for kind in ("createContainer", "startContainer"):
            if self.hooks.get(kind):
                from hostel.containers.hooks import Inside

                found[kind] = Inside(self.hooks[kind], kind)
                self.keep += found[kind].fds
                self.closers.append(found[kind].close)
        self.insides = found
        return found

    def _id_maps(self, world: mounts.Mounts) -> None:
        """A user namespace for each mount with ids of its own."""
        for number, mount in enumerate(self.mounts):
            if mount.idmap:
                if not self.privileged:
                    raise ContainerError(f"config.json: mounts: {mount.destination}: id mappings of mounts need root")
                own = (self.linux.get("uidMappings") or [], self.linux.get("gidMappings") or [])
                uids, gids = mount.maps if mount.maps[0] else own
                if not uids or not gids:
                    raise ContainerError(f"config.json: mounts: {mount.destination}: idmap needs uid and gidMappings")
                world.idmaps[number] = self.fd(_user_namespace({"uidMappings": uids, "gidMappings": gids}))

    def _copy_up(self, script: stage.Script, theirs: int, world: mounts.Mounts, number: int) -> None:
        source, target, _ = world.copies[number]
        dialogue.tell(script, theirs, dialogue.COPY, source)
        dialogue.tell(script, theirs, dialogue.COPY, target)
        dialogue.wait(script, theirs)

    # What the runtime does meanwhile

    def _converse(self, script: stage.Script, fd: int, state: State) -> None:
        copied: list[int] = []
        while True:
            message = dialogue.hear(fd, script)
            if message is None:
                raise ContainerError(f"container {self.id}: its process ended before it was ready: {self._death()}")
            code, value = message
            if code == dialogue.FIRST:
                self._hand_on(value)
            elif code == dialogue.MAP:
                if self.handed_on:  # it may speak before the one that tells of it
                    following = dialogue.hear(fd, script)
                    if following is None or following[0] != dialogue.FIRST:
                        raise ContainerError(f"container {self.id}: its first process ended early: {self._death()}")
                    self._hand_on(following[1])
                first = self.pids[0]
                if "user" in self.namespaces.new:
                    namespaces.write_maps(first, self.linux, self.privileged)
                if self.linux.get("timeOffsets"):
                    namespaces.write_offsets(first, self.linux["timeOffsets"])
                if self.process.get("oomScoreAdj") is not None:
                    _adjust(first, self.process["oomScoreAdj"])
                dialogue.go(fd)
            elif code == dialogue.PID:
                self.pids.append(value)
                state.content["pid"] = value
                state.content["start_time"] = start_time(value)[1]
                state.write()
            elif code == dialogue.COPY:
                copied.append(value)
                if len(copied) == 2:
                    from hostel.containers import copyup

                    copyup.copy(self._second(fd, script, state), *copied)
                    copied = []
                    dialogue.go(fd)
            elif code == dialogue.HOOKS:
                self._second(fd, script, state)
                self._run_hooks(state)
                dialogue.go(fd)
            elif code == dialogue.LISTENER:
                self.filter.hand_over(self._second(fd, script, state), value, state)  # type: ignore[union-attr]
                dialogue.go(fd)
            elif code == dialogue.READY:
                self._second(fd, script, state)
                stage.reap(self.pids.pop(0))
                state.content["ready"] = True
                state.write()
                state.write_quick(self.cgroup.folders() if self.cgroup else [])
                dialogue.go(fd)
                return

    def _hand_on(self, pid: int) -> None:
        """Another process has the first one's place."""
        stage.reap(self.pids[0])
        self.pids[0] = pid
        self.handed_on = False

    def _second(self, fd: int, script: stage.Script, state: State) -> int:
        """The second process's ID, which the first may tell a little after the second's own message."""
        while len(self.pids) < 2 or self.handed_on:
            message = dialogue.hear(fd, script)
            if message and message[0] == dialogue.FIRST:
                self._hand_on(message[1])
                continue
            if message is None or message[0] != dialogue.PID:
                raise ContainerError(f"container {self.id}: its first process ended early: {self._death()}")
            self.pids.append(message[1])
            state.content["pid"] = message[1]
            state.content["start_time"] = start_time(message[1])[1]
        return self.pids[1]

    def _run_hooks(self, state: State) -> None:
        for kind in ("prestart", "createRuntime"):
            if self.hooks.get(kind):
                from hostel.containers import hooks

                hooks.run(self.hooks[kind], kind, _json(state.public("creating")))
        if self.wire:
            self.wire(state.pid)
        for kind, inside in self.insides.items():
            inside.tell(_json(state.public("creating" if kind == "createContainer" else "created")))

    def _death(self) -> str:
        status = 0
        for pid in reversed(self.pids):
            try:
                status = os.waitpid(pid, 0)[1] or status
            except ChildProcessError:
                continue
        self.pids = []
        return f"signal {status & 127}" if status & 127 else f"exit status {status >> 8}"

    def _end_processes(self) -> None:
        self._end(self.pids)
        self._end(stage.stragglers(self.name))  # looked for when there is nobody who could clone another

    @staticmethod
    def _end(pids: "list[int]") -> None:
        for pid in pids:
            try:
                os.kill(pid, _SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def _connect(path: str) -> int:
    from _socket import AF_UNIX, SOCK_STREAM, socket

    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        raise ContainerError(f"{path}: {error.strerror}") from None
    return connection.detach()


def _user_namespace(maps: dict) -> int:
    """A descriptor of a new one with these mappings, which no process is in."""
    from _socket import socketpair

    left, right = socketpair()
    ours, theirs = left.detach(), right.detach()
    script = stage.Script(theirs)
    stage.closed_gaps(script, [theirs])
    script.call("unshare", spec.NAMESPACES["user"][0], what="making a user namespace for a mount")
    dialogue.tell(script, theirs, dialogue.MAP)
    dialogue.wait(script, theirs)
    script.call("exit_group", 0)
    pid = stage.launch(script, [theirs], here=True)
    try:
        os.close(theirs)
        dialogue.hear(ours, script)
        namespaces.write_maps(pid, maps, True)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ours)  # which ends it
        os.waitpid(pid, 0)


def _adjust(pid: int, score: int) -> None:
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(score))
    except OSError as error:
        raise ContainerError(f"config.json: process.oomScoreAdj: {error.strerror}") from None


def _cgroup(state: State):  # type: ignore[no-untyped-def]
    if not state.content.get("cgroup"):
        return None
    from hostel.containers.cgroups import Cgroup

    return Cgroup.from_state(state.content["cgroup"])


def v1_folders(cgroup) -> "list[str]":  # type: ignore[no-untyped-def]
    """Of a ``Cgroup``: each once, as controllers may share a hierarchy."""
    return sorted({folder for name, folder in cgroup.paths.items() if name and folder != cgroup.paths.get("")})


def _json(value: dict) -> bytes:
    from hostel.containers import fastjson

    return fastjson.dumps(value).encode()


def _replace(path: str, text: str) -> None:
    new = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)  # no link of somebody else's
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        os.rename(new, path)
    except OSError as error:
        raise ContainerError(f"{path}: {error.strerror}") from None


def _remove(folder: str) -> None:
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    os.rmdir(folder)


def wait(pid: int) -> int:
    """A child's exit status as a shell has it."""
    _, status = os.waitpid(pid, 0)
    return 128 + (status & 127) if status & 127 else status >> 8

