"""Another process in a running container (``exec``).

It joins all of the container's namespaces at once, by a pidfd of the first process whose start time was compared, so
that no other process by that number can be meant. The program that joins is ``stage``'s, from the first moment that
the container's processes can see it; it was never Python's and isn't dumpable.
"""

import os
import struct
from errno import EBUSY, EOPNOTSUPP

from hostel.base.errors import ContainerError
from hostel.containers import dialogue, namespaces, process, spec, stage
from hostel.containers.runtime import _adjust, _connect, v1_folders
from hostel.containers.state import State


def run(
    state: State, cgroup, config: dict, console: "str | int | None", preserved: int,  # type: ignore[no-untyped-def]
    stdio: "tuple[int, int, int] | None",
) -> int:  # fmt: skip
    """Its process ID, once it has become the program; it is our child."""
    spec.check_process(config)
    process.check(config)
    if bool(config.get("terminal")) != (console is not None):
        raise ContainerError("a terminal and a console socket go together")
    opened: list[int] = []
    pids: list[int] = []
    try:
        return _run(state, cgroup, config, console, preserved, stdio, opened, pids)
    except BaseException:
        for pid in pids:
            try:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
        raise
    finally:
        for fd in opened:
            os.close(fd)


def _run(state, cgroup, config, console, preserved, stdio, opened, pids):  # type: ignore[no-untyped-def]
    from _socket import socketpair

    privileged = os.geteuid() == 0
    keep = list(range(3, 3 + preserved))

    def fd(number: int) -> int:
        opened.append(number)
        keep.append(number)
        return number

    container = fd(state.pidfd())
    flags = _others(state.pid)
    tasks: list[int] = []
    unified = None
    if cgroup:
        tasks = [fd(os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC)) for folder in v1_folders(cgroup)]
        if cgroup.unified:
            unified = fd(cgroup.clone_fd())
    connection = None
    if console is not None:
        connection = fd(_connect(console) if isinstance(console, str) else os.dup(console))
    root = None
    if state.content.get("no_pivot"):
        root = fd(os.open(f"/proc/{state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    filter_ = None
    if state.config["linux"].get("seccomp"):
        from hostel.containers import seccomp

        filter_ = seccomp.compile(state.config["linux"]["seccomp"], f"{os.path.dirname(state.folder)}/.seccomp")
    left, right = socketpair()
    ours, theirs = left.detach(), right.detach()
    opened.append(ours)
    keep.append(theirs)
    script = stage.Script(theirs)
    stage.closed_gaps(script, keep)
    if privileged:
        namespaces.hide(script)
    process.label(script, config)
    process.raise_limits(script, config)
    own_user = bool(flags & spec.NAMESPACES["user"][0])
    if unified is not None:
        _enter_cgroup(script, theirs, unified)
    script.call("setns", container, flags, what=f"joining container {state.id}")
    # Before the container's processes see us: who has CAP_SYS_PTRACE goes through a folder's descriptor to the host.
    needed = [theirs, *tasks, *([connection] if connection is not None else []), *([root] if root is not None else [])]
    stage.closed_gaps(script, [*needed, *range(3, 3 + preserved)])
    if own_user:
        unmapped = stage.Label()
        script.call("setresgid", 0, 0, 0, on={stage.ANY: unmapped})
        script.call("setresuid", 0, 0, 0, on={stage.ANY: unmapped})
        script.bind(unmapped)
    namespaces.clone(script, theirs, 0, None)
    namespaces.hide(script)
    namespaces.enter_cgroups(script, tasks)
    if root is not None:
        script.call("fchdir", root, what="the container's root")
        script.call("chroot", ".", what="the container's root")
    script.call("setsid", what="making a session")
    if not state.content.get("no_keyring"):
        process.keyring(script, state.id)
    if connection is not None:
        from hostel.containers import console as terminal

        terminal.take(script, terminal.make_inside(script, connection, config))
    stage.closed_gaps(script, [theirs, *range(3, 3 + preserved)])  # as in ``runtime``
    process.own_null(script)
    process.tune(script, config, state.config["linux"].get("personality"))

    def install() -> None:
        if filter_ is not None:
            filter_.write(script, theirs)

    process.become(script, config, own_user, filter_ is not None, install)
    program = process.find_program(script, config)
    namespaces.hide(script)
    process.limit(script, config)
    process.close_others(script, preserved)
    if config.get("noNewPrivileges"):
        install()
    dialogue.tell(script, theirs, dialogue.READY)
    dialogue.wait(script, theirs)
    home = process.home(f"/proc/{state.pid}/root", (config.get("user") or {}).get("uid", 0))
    process.execute(script, config, program, process.environment(config, home), True)
    pids.append(stage.launch(script, keep, stdio))
    os.close(theirs)
    outside, child = False, 0
    waiting: tuple[int, int] | None = None  # the process's message, until its number is known, which another tells
    while (message := dialogue.hear(ours, script)) is not None:
        code, value = message
        if code == dialogue.OUTSIDE:
            outside = True
        elif code in (dialogue.FIRST, dialogue.PID):
            pids.append(value)
            child = value if code == dialogue.PID else child
        else:
            waiting = message
        if not child or waiting is None:
            continue
        code, value = waiting
        waiting = None
        if code == dialogue.LISTENER:
            assert filter_
            filter_.hand_over(child, value, state)
        else:
            if outside:
                cgroup.add(child, beside=state.pid)
            affinity = config.get("execCPUAffinity") or {}
            if affinity.get("final") or affinity.get("initial"):
                os.sched_setaffinity(child, process.cpus(affinity.get("final") or affinity["initial"]))
            if config.get("oomScoreAdj") is not None:
                _adjust(child, config["oomScoreAdj"])
        dialogue.go(ours)
    for pid in pids:
        if pid != child:
            os.waitpid(pid, 0)
    if not child:
        raise ContainerError(f"exec in container {state.id}: the process ended early")
    return child


def _enter_cgroup(script: stage.Script, fd: int, unified: int) -> None:
    """Into v2's cgroup by a clone, while there is the right to; or tell that it takes none, as others are below it."""
    script.doing = "cloning the process"
    child, outside, pid = stage.Label(), stage.Label(), script.slot()
    arguments = struct.pack("<11Q", 0x8000 | 0x2_0000_0000, 0, 0, 0, 0, 0, 0, 0, 0, 0, unified)
    refused = {EBUSY: outside, EOPNOTSUPP: outside}
    script.call("clone3", script.place(arguments), len(arguments), to=pid, zero=child, on=refused)
    dialogue.tell(script, fd, dialogue.FIRST, pid)
    script.call("exit_group", 0)
    script.bind(outside)
    dialogue.tell(script, fd, dialogue.OUTSIDE)
    script.bind(child)


def _others(pid: int) -> int:
    """The flags of the namespaces that the process has and we don't."""
    flags = 0
    for flag, name in spec.NAMESPACES.values():
        try:
            theirs, ours = os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")
        except OSError as error:
            raise ContainerError(f"/proc/{pid}/ns/{name}: {error.strerror}") from None
        if theirs.st_ino != ours.st_ino:
            flags |= flag
    return flags
