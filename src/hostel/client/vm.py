"""The Python SDK: a ``VM`` is a handle on a virtual machine of this host, with the CLI's words.

    with VM.run("micro", cpus=2, memory="512M") as vm:
        print(vm.exec(["uname", "-r"]).stdout)

It needs no daemon: ``run`` starts the VM's worker, everything else talks to its control socket. A ``VM`` is
not for several threads at once; make one each with ``VM.get``.
"""

import builtins
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hostel.base import paths
from hostel.base.errors import MachineError, UsageError
from hostel.base.units import parse_size
from hostel.client import machines, quick
from hostel.client.attach import attach
from hostel.client.connection import Connection
from hostel.client.nics import make_nics
from hostel.client.result import CommandFailed, Result
from hostel.spec import net as spec_net
from hostel.spec import vm as spec_vm
from hostel.spec.cards import ConsoleSpec, parse_devices
from hostel.spec.disk import DiskSpec
from hostel.spec.share import check_shares, parse_share
from hostel.spec.vm import VmSpec, VmState
from hostel.vm import launch, store

# What only some need is imported where it is needed: a command should start at once.
if TYPE_CHECKING:
    from hostel.client.debugger import Debugger
    from hostel.client.fork import Made
    from hostel.client.oci_vm import OciImage
    from hostel.images.seed import Seed
    from hostel.vm.snapshot import Snapshot

DEFAULT_IMAGE = "micro"
quick.serve()


class VM:
    """One virtual machine. Made by ``run``, ``get`` and ``list``, not by calling it."""

    isolation = "vm"

    def __init__(self, folder: store.Folder):
        self._folder = folder
        self._leash: launch.Leash | None = None
        self._pid = 0                 # of the worker on it

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
        disks: Sequence[str | DiskSpec] = (),
        disk_size: int | str | None = None,
        cloud_init: str | None = None,
        ssh_key: str | None = None,
        command: Sequence[str] = (),
        detach: bool = False,
        rm: bool | None = None,
        devices: Sequence[str] = (),
        debug: bool = False,
        trace: str | None = None,
        verify_code: bool = False,
        perf_map: bool = False,
        symbols: str | None = None,
        networks: Sequence[str] | None = None,
        ports: Sequence[str] = (),
        mac: str | None = None,
        net_rate: str | None = None,
        allow_host_loopback: bool = False,
        vsock: str | None = None,
        shares: Sequence[str] = (),
        oci: "OciImage | None" = None,
    ) -> "VM":
        """Make a VM and start it; returns when the guest begins to boot.

        Without ``kernel`` it boots ``image`` (default: micro), which is made on first use; with it, and no
        image, only what is given. It ends with this process or the ``with`` block unless ``detach``, and is
        removed then unless it has a ``name`` (``rm`` says otherwise). ``disks`` are
        written as for ``--disk`` (spec/disk), or specs; a format that isn't said is looked for now, and never again.
        An image that is a disk (debian) is booted from a disk of the VM's own on top of it, of ``disk_size``, with the
        NoCloud data of ``cloud_init`` (a file of user data, or a folder) and the public keys of ``ssh_key`` for root.
        ``command`` is run in the guest once
        that is up, and the VM ends with it. With ``debug`` it waits for a debugger at its first instruction.
        ``trace`` is KIND[,KIND...][:FILE] of blocks, exits and faults: what the translator does is written there
        (else to hostel.trace).
        ``devices`` are virtio cards: rng, balloon, hvc, port:NAME.
        ``verify_code`` has a sample of its translated code proved harmless before that runs.
        ``perf_map`` keeps /tmp/perf-PID.map for perf(1), with names from ``symbols`` (a System.map, or the guest's
        /proc/kallsyms).
        ``networks`` are its cards as ``--network`` has them (default: one on ``nat``), ``ports`` are forwarded,
        [ADDRESS:]HOST:GUEST[/udp], to the first card that can have them. ``vsock`` is a socket's path, or "" for
        vsock.sock in the VM's folder. ``shares`` are folders of the host's in the guest, HOSTDIR:GUESTDIR[:ro]. With
        ``oci`` an OCI image is the guest's root (client/oci_vm; the kernel is micro's). Raises HostelError.
        """
        folders = check_shares([parse_share(share) for share in shares])  # before an image is fetched
        spec = make_spec(
            image, name=name, cpus=cpus, memory=memory, kernel=kernel, initrd=initrd, append=append, engine=engine
        )
        if command and not spec.agent:
            raise UsageError("a command needs hostel's agent in the guest: name an image beside the kernel")
        if disks:
            from hostel.vm.disks import prepare

            spec.disks = prepare(disks, cpus)
        spec.remove = (name is None and not detach) if rm is None else rm
        spec.command = list(command)
        spec.shares = folders
        spec.debug = debug
        if trace is not None:
            kinds, path = spec_vm.parse_trace(trace)
            spec.trace = f"{','.join(kinds)}:{Path(path).absolute()}"
        for field, card in parse_devices(list(devices)).items():
            setattr(spec, field, card)
        fill = oci.prepare(spec, disk_size) if oci else own_disk(spec, disk_size, cloud_init, ssh_key)
        spec.verify_code = verify_code
        spec.perf_map = perf_map
        spec.nics = make_nics(networks, ports, mac, net_rate, allow_host_loopback)
        if vsock is not None:
            spec.vsock = str(Path(vsock).absolute()) if vsock else spec_net.VSOCK
        if symbols is not None:
            spec.symbols = _file(symbols, "file of symbols")
            from hostel.vm.symbols import Symbols

            Symbols.read(spec.symbols)  # before anything is made
        folder = store.create(spec, fill)
        vm = cls(folder)
        try:
            vm._hold(launch.start(folder, held=not detach))
        except BaseException:
            launch.kill(folder)
            if os.environ.get("HOSTEL_DEBUG") and (folder.path / "worker.log").exists():
                sys.stderr.write((folder.path / "worker.log").read_text(errors="replace"))
            if folder.path.exists():
                folder.remove()
            raise
        return vm

    @classmethod
    def run_from(
        cls, at: "str | Snapshot", *, name: str | None = None, ports: Sequence[str] = (), detach: bool = False,
        rm: bool | None = None,
    ) -> "VM":
        """Start another VM where a snapshot (VM@NAME) was taken: with the same memory, devices and disks, but a name,
        MACs and entropy of its own. The rest is as with ``run``."""
        from hostel.client import snapshots
        from hostel.vm import snapshot

        origin = snapshot.find(at) if isinstance(at, str) else at
        if name is not None:
            spec_vm.check_name(name)
            machines.check_free(name)
        folder = snapshots.start_other(origin, name, ports, (name is None and not detach) if rm is None else rm)
        vm = cls(folder)
        try:
            vm._hold(launch.start(folder, not detach, origin.path if origin.manifest.state else None))
        except BaseException:
            launch.kill(folder)
            vm.rm(force=True)
            raise
        return vm

    @classmethod
    def run_warm(
        cls, image: str | None = None, *, cpus: int = 1, memory: int | str = "512M", name: str | None = None,
        ports: Sequence[str] = (), detach: bool = False, rm: bool | None = None,
    ) -> "VM":
        """A VM of that image that takes commands at once: a fork of one that has booted before (client/warm). The rest
        is as with ``run``."""
        from hostel.client import fork, warm

        if name is not None:
            spec_vm.check_name(name)
            machines.check_free(name)
        remove = (name is None and not detach) if rm is None else rm
        folder = warm.ensure(image or DEFAULT_IMAGE, spec_vm.check_cpus(cpus), spec_vm.check_memory(memory))
        made = fork.fork(folder, lambda: [name], ports, held=not detach, remove=remove, run=True)
        vm = cls(made.folders[0])
        vm._hold(made.leash)
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

    def explain(self) -> dict[str, Any]:
        """Why its vCPUs leave guest code, translations, TLBs, interrupts, memory by state."""
        from hostel.client.explain import explain

        return explain(self.inspect())

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
        itself: bool = False,
        **bridge: Any,
    ) -> int:
        """Run a command with its streams bridged (client/bridge); its exit status. ``itself``: one of the agent's own
        (client/copy)."""
        return attach(
            self.folder, argv, env=env, cwd=cwd, tty=tty, timeout=timeout, itself=itself, **bridge
        )

    def copy_in(self, source: str, path: str) -> None:
        """Copy a file or folder of the host's to ``path`` in the guest, as ``hostel cp`` does."""
        from hostel.client import copy

        copy.copy_in(self, source, path)

    def copy_out(self, path: str, destination: str) -> None:
        """Copy ``path`` in the guest to the host, as ``hostel cp`` does."""
        from hostel.client import copy

        copy.copy_out(self, path, destination)

    def console(self, *, replay: bool = False, **bridge: Any) -> None:
        """Bridge the guest's serial console until the VM ends, or ``bridge.Left`` is raised."""
        from hostel.client.bridge import Bridge

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

    def debug(self) -> "Debugger":
        """Stop it and look into it, until that is closed."""
        from hostel.client.debugger import Debugger

        return Debugger(self.folder)

    # -- ending

    def start(self) -> None:
        """Start a VM that has stopped, in the background; one that is suspended goes on."""
        from hostel.client import snapshots

        if not self._folder.owned() and snapshots.suspended(self._folder):
            self.resume()
        else:
            launch.start(self._folder, held=False)

    def balloon(self, size: int | str | None = None) -> dict[str, Any]:
        """Leave the guest ``size`` of its memory (None: as it is). Returns target, actual (bytes) and what the guest
        last said of its memory; it obeys as fast as it can."""
        if isinstance(size, str):
            size = parse_size(size)
        return dict(self._call("balloon", size=size))

    def grow_disk(self, number: int, size: int | str) -> None:
        """Make disk ``number`` (0 is the first) of a running VM ``size`` large; the guest sees it at once."""
        self._call("grow_disk", number=number, size=parse_size(size) if isinstance(size, str) else size)

    def pause(self) -> None:
        self._call("pause")

    def resume(self) -> None:
        """Let it go on, paused or suspended."""
        if self._folder.owned():
            self._call("resume")
            return
        from hostel.client import snapshots

        leash = snapshots.resume(self._folder, held=self._leash is not None)
        self._hold(leash)

    # -- snapshots

    def snapshot(self, name: str | None = None, *, memory: bool = True, description: str = "") -> "Snapshot":
        """Keep all of it as it is now, without ``memory`` its disks only; it goes on meanwhile. ``name``: default
        snap1, snap2, ..."""
        from hostel.client import snapshots
        from hostel.vm import snapshot

        return snapshots.create(self._folder, name and snapshot.check_name(name), memory, description)

    def snapshots(self) -> "builtins.list[Snapshot]":
        """The oldest first."""
        from hostel.vm import snapshot

        return snapshot.of_vm(self.name)

    def revert(self, to: "str | Snapshot") -> None:
        """Go back to a snapshot (its name, with or without VM@): what was since is discarded."""
        from hostel.client import snapshots
        from hostel.vm import snapshot

        if isinstance(to, str):
            to = snapshot.find(to if "@" in to else f"{self.name}@{to}")
        self._hold(snapshots.revert(self._folder, to, self._leash))

    def fork(
        self, count: int = 1, *, name: str | None = None, ports: Sequence[str] = (), detach: bool = False
    ) -> "Forks":
        """``count`` copies of this running VM, each of which goes on as a VM of its own: named as ``name`` with a
        number for %d (default: NAME-%d), with its own MACs, and free ports of the host's for those that are forwarded
        (or ``ports``, for one copy). A ``with`` block around them removes them at its end, unless ``detach``."""
        from hostel.client import fork

        if ports and count > 1:
            raise UsageError("ports can be given to one copy, not to several")
        return Forks(fork.fork(
            self._folder, lambda: fork.names(self.name, count, name), ports, held=not detach
        ))

    def suspend(self) -> None:
        """Save it to disk and end it, until ``resume`` or ``start``."""
        if not self._folder.owned():
            raise MachineError(f"'{self.name}' is not running")
        from hostel.client import snapshots

        snapshots.suspend(self._folder)

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
        _remove_snapshots(self.name)

    def _hold(self, leash: launch.Leash | None) -> None:
        if self._leash and self._leash is not leash:
            self._leash.close()
        self._leash = leash
        if leash:
            self._pid = self.state.pid

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
        if self._leash and self._is_others():
            self._leash.close()
            self._leash = None
        if self._leash:
            temporary = self._is_temporary()
            if temporary:
                self.kill()
            else:  # it may be started again: the guest should find its things in order
                self.stop()
            self._leash.close()
            self._leash = None
            if temporary:
                if self.folder.exists():
                    self._folder.remove()
                _remove_snapshots(self.name)

    def _is_others(self) -> bool:
        """Whether somebody else has reverted it, or is just about it: then it runs on without us."""
        state = self.state
        return state.reason == "reverted" or (self._folder.owned() and state.pid != self._pid)

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


class Forks(builtins.list[VM]):
    """The copies that ``VM.fork`` made, on one leash; ``pause_ns`` is how long the VM stood still."""

    def __init__(self, made: "Made"):
        super().__init__(VM(folder) for folder in made.folders)
        self._leash = made.leash
        self.pause_ns = made.pause_ns

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *error: object) -> None:
        if self._leash:
            self._leash.close()
            for vm in self:
                vm.rm(force=True)


def _remove_snapshots(vm: str) -> None:
    """With their VM, if it ever had some."""
    if (paths.snapshots() / f".lock-{vm}").exists() or (paths.disks() / vm).exists():
        from hostel.client import snapshots

        snapshots.remove_all(vm)


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
        machines.check_free(name)  # before a download
    if image is None and kernel is None:
        image = DEFAULT_IMAGE
    if image is not None:
        from hostel.images import store as images

        found = images.ensure(image)
        spec.image = image
        if found.disk is None:
            boot_kernel, boot_initrd, spec.cmdline = found.start(spec.memory)
            spec.kernel, spec.initrd = str(boot_kernel), str(boot_initrd)
        elif kernel is not None:
            spec.cmdline = "root=/dev/vda ro console=ttyS0,115200"
    if kernel is not None:
        spec.kernel = _file(kernel, "kernel")
        spec.agent = image is not None
    if initrd is not None:
        spec.initrd = _file(initrd, "initramfs")
    # A kernel that panics resets (and the worker sees that it doesn't boot), unless ``append`` says otherwise.
    spec.cmdline = f"panic=-1 {spec.cmdline} {append}".strip()
    return spec


def own_disk(
    spec: VmSpec, size: int | str | None, cloud_init: str | None, ssh_key: str | None
) -> "Callable[[Path, Path], None] | None":
    """What is in the folder of a VM whose image is a disk: its own disk, and a seed if it was given something."""
    from hostel.images import store as images

    found = images.find(spec.image) if spec.image else None
    if found is None or found.disk is None:
        if size is not None or cloud_init is not None or ssh_key is not None:
            raise UsageError("a disk's size, cloud-init's data and SSH keys are for images with a disk, as debian")
        return None
    seeded = cloud_init is not None or ssh_key is not None

    def read_seed(name: str) -> "Seed":
        from hostel.images import seed

        return seed.read(cloud_init, name, seed.public_keys(ssh_key) if ssh_key else ())

    if seeded:
        ignored = read_seed("a-name").ignored  # before anything is made
        if ignored and "cloud-init" not in found.include:
            print(f"hostel: cloud-init: not honoured by this image: {', '.join(ignored)}; one that is built with "
                  "--include cloud-init does", file=sys.stderr)  # fmt: skip
        spec.cmdline = f"hostel.seed {spec.cmdline}".strip()
    given = spec.cmdline

    spec.rng = True
    if found.agent_port:  # commands go by virtio, fifteen times as fast as a serial port
        spec.console = spec.console or ConsoleSpec()
        spec.console.ports = [found.agent_port, *spec.console.ports]

    def write_seed(path: Path, name: str) -> bool:
        host = name.replace("_", "-")
        spec.cmdline = f"hostel.hostname={host} {given}".strip()
        if seeded:
            read_seed(host).write(path)
        return seeded

    wanted = parse_size(size) if isinstance(size, str) else size or 0
    from hostel.vm.disks import own

    return own(spec, found.disk, wanted, write_seed)


def _file(path: str, what: str) -> str:
    full = Path(path).absolute()
    if not full.exists():
        raise UsageError(f"there is no {what} {path}")
    if full.is_dir():
        raise UsageError(f"the {what} {path} is a folder")
    return str(full)
