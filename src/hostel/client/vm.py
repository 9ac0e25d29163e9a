"""The Python SDK: a ``VM`` is a handle on a virtual machine of this host, with the CLI's words.

    with VM.run("micro", cpus=2, memory="512M") as vm:
        print(vm.exec(["uname", "-r"]).stdout)

It needs no daemon: ``run`` starts the VM's worker, everything else talks to its control socket. A ``VM`` is
not for several threads at once; make one each with ``VM.get``.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hostel.base.errors import MachineError, UsageError
from hostel.client.bridge import Bridge
from hostel.client.connection import Connection, Gone
from hostel.client.debugger import Debugger
from hostel.spec import vm as spec_vm
from hostel.spec.vm import VmSpec, VmState
from hostel.vm import launch, store
from hostel.vm.symbols import Symbols

DEFAULT_IMAGE = "micro"


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended: ``status`` as in a shell (128+n for signals)."""

    status: int
    stdout: Any  # str, or bytes with text=False
    stderr: Any


class CommandFailed(MachineError):
    """``exec(check=True)``: the command's exit status wasn't 0."""

    def __init__(self, argv: Sequence[str], result: Result):
        super().__init__(f"'{argv[0]}' ended with status {result.status}")
        self.result = result


class VM:
    """One virtual machine. Made by ``run``, ``get`` and ``list``, not by calling it."""

    def __init__(self, folder: store.Folder):
        self._folder = folder
        self._leash: launch.Leash | None = None

    # -- making and finding

    @classmethod
    def run(
        cls,
        image: str | None = None,
        *,
        name: str | None = None,
        cpus: int = 1,
        memory: int | str = "512M",
        kernel: str | None = None,
        initrd: str | None = None,
        append: str = "",
        engine: str = "bt",
        command: Sequence[str] = (),
        detach: bool = False,
        rm: bool | None = None,
        debug: bool = False,
        trace: str | None = None,
        verify_code: bool = False,
        perf_map: bool = False,
        symbols: str | None = None,
    ) -> "VM":
        """Make a VM and start it; returns when the guest begins to boot.

        Without ``kernel`` it boots ``image`` (default: micro), which is made on first use; with it, and no
        image, only what is given. It ends with this process or the ``with`` block unless ``detach``, and is
        removed then unless it has a ``name`` (``rm`` says otherwise). ``command`` is run in the guest once
        that is up, and the VM ends with it. With ``debug`` it waits for a debugger at its first instruction.
        ``trace`` is KIND[,KIND...][:FILE] of blocks, exits and faults: what the translator does is written there
        (else to hostel.trace).
        ``verify_code`` has a sample of its translated code proved harmless before that runs.
        ``perf_map`` keeps /tmp/perf-PID.map for perf(1), with names from ``symbols`` (a System.map, or the guest's
        /proc/kallsyms). Raises HostelError.
        """
        spec = make_spec(
            image, name=name, cpus=cpus, memory=memory, kernel=kernel, initrd=initrd, append=append, engine=engine
        )
        if command and not spec.agent:
            raise UsageError("a command needs hostel's agent in the guest: name an image beside the kernel")
        spec.remove = (name is None and not detach) if rm is None else rm
        spec.command = list(command)
        spec.debug = debug
        if trace is not None:
            kinds, path = spec_vm.parse_trace(trace)
            spec.trace = f"{','.join(kinds)}:{Path(path).absolute()}"
        spec.verify_code = verify_code
        spec.perf_map = perf_map
        if symbols is not None:
            spec.symbols = _file(symbols, "file of symbols")
            Symbols.read(spec.symbols)  # before anything is made
        folder = store.create(spec)
        vm = cls(folder)
        try:
            vm._leash = launch.start(folder, held=not detach)
        except BaseException:
            launch.kill(folder)
            if os.environ.get("HOSTEL_DEBUG") and (folder.path / "worker.log").exists():
                sys.stderr.write((folder.path / "worker.log").read_text(errors="replace"))
            if folder.path.exists():
                folder.remove()
            raise
        return vm

    @classmethod
    def get(cls, name: str) -> "VM":
        """The VM of that name, running or not."""
        return cls(store.find(name))

    @classmethod
    def list(cls) -> "list[VM]":
        """All VMs of this home, by name."""
        return [cls(folder) for folder in store.folders()]

    # -- looking

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def folder(self) -> Path:
        """Where the VM's files are."""
        return self._folder.path

    @property
    def spec(self) -> VmSpec:
        return self._folder.spec()

    @property
    def state(self) -> VmState:
        return self._folder.state()

    def inspect(self) -> dict:
        """Everything known: spec, state and, of a running VM, its counters."""
        try:
            with Connection(self.folder) as connection:
                return dict(connection.call("inspect"))
        except MachineError:
            spec = self.spec
            return {"name": self.name, "spec": msgspec.to_builtins(spec), "state": msgspec.to_builtins(self.state)}

    def logs(self) -> bytes:
        """What the guest wrote to its console, as far as it is kept."""
        data = b""
        for name in ("console.log.1", "console.log"):
            try:
                data += (self.folder / name).read_bytes()
            except OSError:
                continue
        return data

    # -- using

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes | None = None,
        env: dict[str, str] | None = None,
        cwd: str = "",
        text: bool = True,
        check: bool = False,
        timeout: float | None = None,
    ) -> Result:
        """Run a command in the guest, as soon as it is up, and wait for it.

        ``timeout`` bounds the silence between two pieces of output, and the wait for the guest, in seconds.
        """
        out, err = bytearray(), bytearray()
        data = input.encode() if isinstance(input, str) else input
        status = self.attach(
            argv, env=env, cwd=cwd, timeout=timeout, stdin=None, input=data or b"",
            on_stdout=out.extend, on_stderr=err.extend,
        )
        decode: Callable[[bytearray], Any] = (lambda b: b.decode(errors="replace")) if text else bytes
        result = Result(status, decode(out), decode(err))
        if check and status:
            raise CommandFailed(argv, result)
        return result

    def attach(
        self,
        argv: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        cwd: str = "",
        tty: tuple[int, int] | None = None,
        timeout: float | None = None,
        **bridge: Any,
    ) -> int:
        """Run a command with its streams bridged (client/bridge); its exit status."""
        if isinstance(argv, str) or not argv:
            raise UsageError("a command is a list of strings: its name and its arguments")
        with Connection(self.folder) as connection:
            connection.call("wait_agent", timeout=timeout)
            rows, cols = tty or (0, 0)
            sock, early = connection.upgrade(
                "exec", argv=[*argv], env=env or {}, cwd=cwd, tty=tty is not None, rows=rows, cols=cols
            )
            status = Bridge(sock, early, **bridge).run(timeout)
        if status is None:
            raise Gone(f"{self.end()[1]} (while the command ran)")
        return status

    def console(self, *, replay: bool = False, **bridge: Any) -> None:
        """Bridge the guest's serial console until the VM ends, or ``bridge.Left`` is raised."""
        with Connection(self.folder) as connection:
            sock, early = connection.upgrade("console", replay=replay)
            Bridge(sock, early, **bridge).run()

    def wait_agent(self, timeout: float | None = None) -> None:
        """Return once the guest takes commands."""
        with Connection(self.folder) as connection:
            connection.call("wait_agent", timeout=timeout)

    def wait(self, timeout: float | None = None) -> VmState:
        """Return how the VM ended, once it has. ``TimeoutError`` after ``timeout`` seconds."""
        try:
            with Connection(self.folder) as connection:
                state = msgspec.convert(connection.call("wait", timeout=timeout), VmState)
        except MachineError:
            return self.state
        deadline = time.monotonic() + 5
        while self._folder.owned() and time.monotonic() < deadline:
            time.sleep(0.005)
        return state

    def debug(self) -> Debugger:
        """Stop it and look into it, until that is closed."""
        return Debugger(self.folder)

    # -- ending

    def start(self) -> None:
        """Start a VM that has stopped, in the background."""
        launch.start(self._folder, held=False)

    def pause(self) -> None:
        self._call("pause")

    def resume(self) -> None:
        self._call("resume")

    def reset(self) -> None:
        """Press the reset button."""
        self._call("reset")

    def stop(self, timeout: float = 10.0) -> None:
        """Have the guest power off; switch the machine off after ``timeout`` seconds."""
        self._end("stop", {"grace": timeout}, timeout + 5.0)

    def kill(self) -> None:
        """Switch the machine off at once; also gets rid of a worker that doesn't answer."""
        self._end("quit", {}, 2.0)

    def rm(self, force: bool = False) -> None:
        """Remove the VM and its files; a running one only with ``force``."""
        if self._folder.owned():
            if not force:
                raise MachineError(
                    f"'{self.name}' is running; 'hostel stop {self.name}' ends it, 'hostel rm --force' does both"
                )
            self.kill()
        if self.folder.exists():
            self._folder.remove()

    def detach(self) -> None:
        """Let the VM live on after this process or ``with`` block."""
        if self._leash:
            self._leash.release()
            self._leash = None

    def end(self) -> tuple[bool, str]:
        """Whether the VM that has just ended did so in order (powered off or was switched off), and one line on
        how."""
        deadline = time.monotonic() + 2
        while self._folder.owned() and time.monotonic() < deadline:
            time.sleep(0.01)
        state = self.state
        reason = state.reason or state.state
        in_order = reason in ("poweroff", "killed") or reason.startswith(("stopped", "its command"))
        return in_order, f"'{self.name}' ended: {reason}"

    def __enter__(self) -> "VM":
        return self

    def __exit__(self, *error: object) -> None:
        if self._leash:
            temporary = self._is_temporary()
            if temporary:
                self.kill()
            else:  # it may be started again: the guest should find its things in order
                self.stop()
            self._leash.close()
            self._leash = None
            if temporary and self.folder.exists():
                self._folder.remove()

    def __repr__(self) -> str:
        return f"<VM {self.name}: {self.state.state}>"

    def _call(self, method: str, **params: Any) -> Any:
        with Connection(self.folder) as connection:
            return connection.call(method, **params)

    def _is_temporary(self) -> bool:
        try:
            return self.spec.remove
        except MachineError:
            return False

    def _end(self, method: str, params: dict, timeout: float) -> None:
        """Ask the worker to end; if it hasn't after ``timeout`` seconds, end it."""
        try:
            with Connection(self.folder) as connection:
                connection.call(method, timeout=timeout, **params)
                connection.call("wait", timeout=timeout)
        except (MachineError, TimeoutError):
            pass
        deadline = time.monotonic() + 2.0
        while self._folder.owned() and time.monotonic() < deadline:
            time.sleep(0.005)
        if self._folder.owned():
            launch.kill(self._folder)


def make_spec(
    image: str | None,
    *,
    name: str | None,
    cpus: int,
    memory: int | str,
    kernel: str | None,
    initrd: str | None,
    append: str,
    engine: str,
) -> VmSpec:
    """A checked ``VmSpec``; fetches the image where it is needed and absent."""
    try:
        f"{kernel} {initrd} {append}".encode()
    except UnicodeEncodeError:
        raise UsageError("paths and the kernel's command line must be UTF-8") from None
    if name is not None:
        spec_vm.check_name(name)
    spec = VmSpec(
        name=name or "", cpus=spec_vm.check_cpus(cpus), memory=spec_vm.check_memory(memory), engine=engine, kernel=""
    )
    launch.check_host(spec)
    if name is not None:
        store.check_free(name)  # before a download
    if image is None and kernel is None:
        image = DEFAULT_IMAGE
    if image is not None:
        from hostel.images import store as images

        found = images.ensure(image)
        spec.image = image
        boot_kernel, boot_initrd, spec.cmdline = found.start(spec.memory)
        spec.kernel, spec.initrd = str(boot_kernel), str(boot_initrd)
    if kernel is not None:
        spec.kernel = _file(kernel, "kernel")
        spec.agent = image is not None
    if initrd is not None:
        spec.initrd = _file(initrd, "initramfs")
    # A kernel that panics resets (and the worker sees that it doesn't boot), unless ``append`` says otherwise.
    spec.cmdline = f"panic=-1 {spec.cmdline} {append}".strip()
    return spec


def _file(path: str, what: str) -> str:
    full = Path(path).absolute()
    if not full.exists():
        raise UsageError(f"there is no {what} {path}")
    if full.is_dir():
        raise UsageError(f"the {what} {path} is a folder")
    return str(full)
