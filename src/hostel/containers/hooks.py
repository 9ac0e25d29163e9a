"""Hooks: programs that run at six points of a container's life, with its state on their standard input.

Those of the runtime's namespaces (prestart, createRuntime, poststart, poststop) the runtime runs; createContainer and
startContainer are operations of the container's first process (``stage``), which gets their input through pipes.
"""

import os
import select
import struct
import time

from hostel.base.errors import ContainerError
from hostel.containers.stage import ANY, Label, Script, to_keep

_SIGCHLD, _SIGKILL = 17, 9


def run(hooks: list[dict], kind: str, state: bytes) -> None:
    """Here, one after the other. Raises for the first that fails."""
    for hook in hooks:
        name = f"the {kind} hook {hook['path']}"
        reader, writer = os.pipe()
        try:
            try:
                pid = os.posix_spawn(
                    hook["path"], hook.get("args") or [hook["path"]], _environment(hook),
                    file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)], setsigdef=range(1, 32), setsigmask=(),
                )  # fmt: skip
            except OSError as error:
                raise ContainerError(f"{name}: {error.strerror}") from None
            _feed(writer, state)
        finally:
            os.close(reader)
            os.close(writer)
        status = _wait(pid, hook.get("timeout"))
        if status is None:
            raise ContainerError(f"{name} took longer than its {hook['timeout']} s, and was ended")
        if status:
            raise ContainerError(f"{name} failed: {_said(status)}")


def _wait(pid: int, timeout: int | None) -> int | None:
    if timeout is not None:
        fd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        ended = poll.poll(timeout * 1000)
        os.close(fd)
        if not ended:
            os.kill(pid, _SIGKILL)
            os.waitpid(pid, 0)
            return None
    return os.waitpid(pid, 0)[1]


def _said(status: int) -> str:
    return f"signal {status & 127}" if status & 127 else f"exit status {status >> 8}"


def _environment(hook: dict) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in hook.get("env") or [])


def _feed(fd: int, state: bytes) -> None:
    """A hook need not read it."""
    os.set_blocking(fd, False)
    deadline = time.monotonic() + 10
    while state and time.monotonic() < deadline:
        try:
            state = state[os.write(fd, state):]
        except BlockingIOError:
            time.sleep(0.01)
        except BrokenPipeError:
            return


class Inside:
    """The hooks of one kind that the container's first process runs. ``fds`` are what it has to inherit."""

    def __init__(self, hooks: list[dict], kind: str):
        self.hooks, self.kind = hooks, kind
        self.pipes = [(to_keep(reader), writer) for reader, writer in (os.pipe() for _ in hooks)]

    @property
    def fds(self) -> list[int]:
        return [reader for reader, _ in self.pipes]

    def tell(self, state: bytes) -> None:
        """What they will read; a pipe holds it until then."""
        for number, (reader, writer) in enumerate(self.pipes):
            os.set_blocking(writer, False)
            try:
                if os.write(writer, state) != len(state):
                    raise BlockingIOError
            except BlockingIOError:
                raise ContainerError(f"the state is too long for a {self.kind} hook: fewer annotations") from None
            os.close(writer)
            self.pipes[number] = (reader, -1)

    def close(self) -> None:
        for pair in self.pipes:
            for fd in pair:
                if fd >= 0:
                    os.close(fd)
        self.pipes = []

    def write(self, script: Script) -> None:
        """The operations."""
        for hook, (reader, _) in zip(self.hooks, self.pipes, strict=True):
            script.doing = f"the {self.kind} hook {hook['path']}"
            child, failed, pid, pidfd, late, after = Label(), Label(), script.slot(), script.slot(), Label(), Label()
            status = script.place(bytes(8))
            script.call("clone", _SIGCHLD, 0, 0, 0, 0, to=pid, zero=child)
            script.call("close", reader)
            if hook.get("timeout"):
                script.call("pidfd_open", pid, 0, to=pidfd)
                entry = script.place(bytes(16))  # struct pollfd
                script.copy(entry, pidfd)
                script.set(entry + 4, 1)         # POLLIN, over the upper half of the slot's 8 bytes
                script.call("ppoll", entry, 1, script.place(struct.pack("<qq", hook["timeout"], 0)), 0, 8, zero=late)
                script.call("close", pidfd)
            script.call("wait4", pid, status, 0, 0)
            script.test(status, 0xFFFFFFFF, 0, what=f"{script.doing} failed")
            script.jump(after)
            script.bind(late)
            script.call("kill", pid, _SIGKILL)
            script.call("wait4", pid, status, 0, 0)
            script.test(status, 0, 1,
                        what=f"{script.doing} took longer than its {hook.get('timeout')} s, and was ended")  # fmt: skip
            script.bind(child)
            script.call("dup2", reader, 0)
            script.call("close_range", 3, 0xFFFFFFFF, 0)
            script.call("execve", hook["path"], script.pointers(hook.get("args") or [hook["path"]]),
                        script.pointers(hook.get("env") or []), on={ANY: failed})  # fmt: skip
            script.bind(failed)
            script.call("exit_group", 127)
            script.bind(after)
