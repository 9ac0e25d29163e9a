"""A machine: memory, engine, board and serial ports, put together as a ``VmSpec`` says. It sees every part.

A machine lives from power-on to power-off or reset; a reset is another machine in its place (vm/worker), so
that nothing of the old one can be left. Its vCPU threads exist while it runs, not while it stands still:
``stop`` ends them all, ``start`` makes new ones.

``on_event(machine, what)`` is called from vCPU threads: ``poweroff``, ``reset``, ``triple fault``,
``debug`` (look at ``debug_met``), ``full: ...`` (a card waits for room on the host) or ``error: ...``. The methods
are for the loop's thread.
"""

import ctypes
import importlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hostel.base import clock
from hostel.base.errors import BootError, MachineError
from hostel.base.linux import heap, prctl
from hostel.base.loop import Loop, Timer
from hostel.board import memmap
from hostel.board.board import Board
from hostel.board.boot import decompress, elf, linux, pvh
from hostel.board.boot import disk as boot_disk
from hostel.board.boot.state import BootState, HeldFile, InMemory, SegmentValue
from hostel.bus.space import Space
from hostel.cpu.state import SEGMENTS, Segment, Table, VcpuState
from hostel.devices.uart import Uart
from hostel.memory.ram import Ram
from hostel.spec.cards import AGENT_PORT
from hostel.spec.vm import VmSpec
from hostel.vm.cards import Backends, plug
from hostel.vm.vcpu import Runner

VERSION = 1          # of what ``save`` gives
VERIFY_SAMPLE = 64   # of so many blocks one is verified with --verify-code: a tenth of a boot's time
# One row an engine: what makes it, with a machine's Ram and its number of vCPUs.
ENGINES = {"bt": "hostel.cpu.bt.run:BtEngine"}


class BootFiles:
    """Kernel, initramfs and the cards' back ends, held open: a reset must boot what the first start did, though the
    files may be gone by then, and out of a confined worker's reach. Where no kernel is given, the first disk has it,
    and each boot looks there anew."""

    def __init__(self, spec: VmSpec, resumed: bool = False):
        self.kernel = HeldFile(spec.kernel, "kernel") if spec.kernel else None
        self.initrd = HeldFile(spec.initrd, "initramfs") if spec.initrd else None
        self.backends = Backends(spec)
        if resumed or not spec.kernel:
            decompress.load_all()  # it hasn't booted here, or the next kernel may be packed otherwise

    def boot(self, cmdline: str) -> tuple[HeldFile | InMemory, HeldFile | InMemory | None, str]:
        """Kernel, initramfs and command line. ``BootError``: there is no kernel."""
        if self.kernel:
            return self.kernel, self.initrd, cmdline
        disk = self.backends.first_disk()
        if disk is None:
            raise BootError("there is neither a kernel nor a disk to boot from")
        found = boot_disk.find(disk.read, disk.size)
        return found.kernel, found.initrd, f"{found.cmdline} {cmdline}".strip()

    def become(self, spec: VmSpec) -> None:
        """They are another VM's, a fork's, now."""
        self.backends.become(spec)

    def rings(self) -> list[int]:
        """io_uring's descriptors, which a confined worker may go on using."""
        return self.backends.rings()

    def shares(self) -> list[tuple[int, bool]]:
        """What the worker must still get at when it is confined (vm/confine)."""
        return self.backends.shares()

    def forget(self) -> None:
        """The next machine goes on from an earlier state, of which those outside know nothing."""
        self.backends.forget()

    def close(self) -> None:
        """The VM has ended."""
        self.backends.close()


class Machine:
    """Built ready to run, or ``blank``, to be ``load``ed; ``on`` memory and engine of another that is closed, so that
    what that has translated holds as far as memory stays as it is. ``console`` is its first serial port (devices/uart),
    ``agent`` the second, or a virtio console's port of the agent's name, which the guest's agent prefers as well."""

    _still: tuple[int, int] | None = None  # since when its clocks have stood still: the host's TSC, and its clock in ns

    def __init__(
        self, spec: VmSpec, files: BootFiles, loop: Loop, on_event: Callable[["Machine", str], None],
        blank: bool = False, on: "Machine | None" = None,
    ):
        self._loop = loop
        self._on_event = on_event
        self._timers: set[Timer] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self.debug_met: deque[tuple[int, str, int]] = deque()  # (vCPU, why, address): Vcpu.debug_exit
        layout = memmap.build(spec.memory)
        self.ram: Ram = on.ram if on else make_ram(layout)
        self.engine: Any = on.engine if on else make_engine(
            spec.engine, self.ram, spec.cpus, VERIFY_SAMPLE if spec.verify_code else -1
        )
        self._pio, self._mmio = Space("pio"), Space("mmio")
        vcpus = self.engine.vcpus
        self._board = Board(
            self.ram, layout, self._pio, self._mmio, vcpus, self._schedule,
            power_off=lambda: self._tell("poweroff"), reset=lambda: self._tell("reset"),
        )
        # Commands' frames must not be lost to a driver's opening and closing of the port: RTS gates them. A
        # console's user may type before anything listens, as on a real one.
        self.console = Uart(self._board.serial_irq(0), name="ttyS0")
        self._second = Uart(self._board.serial_irq(1), name="ttyS1")
        self._board.attach_serial(0, self.console)
        self._board.attach_serial(1, self._second)
        self.cards = plug(files.backends, self._board, self.ram, loop)
        for card in self.cards.values():
            card.device.on_full = lambda text: self._tell(f"full: {text}")
        self.agent: Any = self.port(AGENT_PORT) or self._second
        self._runners = []
        for vcpu, apic in zip(vcpus, self._board.apics, strict=True):
            vcpu.set_apic(apic)
            if on:
                vcpu.reset()
            self._runners.append(Runner(vcpu, apic, self._pio, self._mmio))
        if not blank:
            rsdp = self._board.write_tables()
            enter(vcpus[0], load_kernel(self.ram, layout, files, spec.cmdline, rsdp))
            heap.trim()  # the kernel was here three times over

    def start(self, only: list[int] | None = None) -> None:
        """Let the vCPUs run, or some of them."""
        self._catch_up()
        self._still = None
        self._stopping = False
        for runner in self._runners:
            runner.stop(False)
        self._threads = [
            threading.Thread(target=self._run, args=(index, runner), name=f"vcpu{index}")
            for index, runner in enumerate(self._runners)
            if only is None or index in only
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return once no vCPU runs; what they did by then has happened."""
        self._stopping = True
        for runner in self._runners:
            runner.stop()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def stand_still(self) -> None:
        """Where it is stopped: its clocks are, too, until it starts."""
        if not self._threads:
            self._still = self._still or _host_time()

    def _catch_up(self) -> None:
        """As if the clocks had been stopped only now: the time since then is none of the guest's."""
        if self._still:
            (tsc, ns), self._still = self._still, _host_time()
            for vcpu in self.engine.vcpus:
                vcpu.skip(self._still[0] - tsc)
            self._board.skip(self._still[1] - ns)

    def close(self) -> None:
        """Let go of everything; it must be stopped."""
        for card in self.cards.values():
            card.close()
        for timer in list(self._timers):
            timer.cancel()
        self._timers.clear()
        self.console.close()
        self._second.close()

    # -- snapshots and forks; the vCPUs stand still

    def save(self) -> dict[str, Any]:
        """Everything but memory. Nothing is under way then in the cards' back ends, and what was written to disks is
        there."""
        self._catch_up()
        now = clock.rdtsc_py()
        vcpus = self.engine.vcpus
        return {
            "version": VERSION,
            "board": self._board.save(),
            "serial": [port.save() for port in (self.console, self._second)],
            "vcpus": [msgspec.to_builtins(vcpu.save_state(now), builtin_types=(bytes,)) for vcpu in vcpus],
            "requests": [vcpu.requests() for vcpu in vcpus],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what ``save`` gave, into a blank machine of the same cards; memory is as it was then."""
        if state.get("version") != VERSION:
            raise MachineError(f"the saved machine has version {state.get('version')}; this hostel reads {VERSION}")
        self._board.load(state["board"])
        for port, saved in zip((self.console, self._second), state["serial"], strict=True):
            port.load(saved)
        now = clock.rdtsc_py()
        for vcpu, given, requests in zip(self.engine.vcpus, state["vcpus"], state["requests"], strict=True):
            vcpu.load_state(msgspec.convert(given, VcpuState, strict=False), now)
            vcpu.ask(requests)

    def hold(self) -> None:
        """No thread but the caller's is left, and nothing is under way: the process can fork."""
        for card in self.cards.values():
            card.device.hold()
        self.engine.freeze()

    def go_on(self, copy: bool) -> None:
        """After ``hold``: as the same machine, or as a ``copy`` of it (devices/virtio/device)."""
        self.engine.forked(copy)
        for card in self.cards.values():
            card.device.go_on(copy)

    def new_generation(self, guid: bytes) -> None:
        """Tell the guest that it is a copy, or goes on from an earlier state (board)."""
        self._board.new_generation(guid)

    def mac(self, number: int) -> str:
        """What the driver of a network card takes for its address now."""
        device: Any = self.cards[f"net{number}"].device
        return str(device.filter.get_mac().hex(":"))

    def announce(self) -> None:
        """Have the guest tell its networks where it is."""
        for name, card in self.cards.items():
            if name.startswith("net"):
                card.device.announce()  # type: ignore[attr-defined]

    def disks(self) -> list[Any]:
        """The disks' devices (devices/virtio/blk), in order."""
        return [card.device for name, card in self.cards.items() if name.startswith("disk")]

    def port(self, name: str) -> Any:
        """The virtio console's port of that name (devices/virtio/console), or None."""
        console = self.cards.get("console")
        return console.device.port(name) if console else None  # type: ignore[attr-defined]

    @property
    def agent_port(self) -> Any:
        """Where commands' frames go: a virtio console's port, where there is one for them, else the second serial
        port."""
        return self.port(AGENT_PORT) or self.agent

    def press_power_button(self) -> bool:
        """Whether the guest listens to it."""
        return self._board.press_power_button()

    @property
    def full(self) -> bool:
        """Whether a card waits for room on the host."""
        return any(card.device.full for card in self.cards.values())

    def retry(self) -> None:
        """Have cards that wait for room try again."""
        for card in self.cards.values():
            card.device.retry()

    def counters(self) -> dict[str, Any]:
        """Of vCPUs and engine, at little cost."""
        return {
            "vcpus": [
                {"exits": runner.statistics(), "engine": runner.vcpu.statistics()} for runner in self._runners
            ],
            "engine": self.engine.statistics(),
        }

    def statistics(self) -> dict[str, Any]:
        return {
            **self.counters(),
            "unclaimed": {"pio": self._pio.unclaimed, "mmio": self._mmio.unclaimed},
            "serial": {"ttyS0": self.console.statistics(), "ttyS1": self._second.statistics()},
            "cards": {name: card.statistics() for name, card in self.cards.items()},
            "memory": {"guest_bytes": self.ram.size, **self._memory()},
        }

    def _memory(self) -> dict[str, int]:
        """Bytes of host memory: what the worker has, and how much of it is guest memory that was touched."""
        starts = {_address(self.ram, gpa): size for gpa, size, _ in self.ram.regions()}
        resident = guest = 0
        inside = False
        try:
            lines = Path("/proc/self/smaps").read_text().splitlines()
        except OSError:  # a fork's confinement knows its parent's only
            return {}
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                first, last = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
                inside = any(start < last and first < start + size for start, size in starts.items())
            elif line.startswith("Pss:"):  # translated code is mapped twice
                size = int(line.split()[1]) << 10
                resident += size
                guest += size if inside else 0
        return {"worker_resident": resident, "guest_resident": guest}

    def _run(self, index: int, runner: Runner) -> None:
        """A vCPU's thread."""
        prctl.set_name(f"vcpu{index}")
        reason = runner.run()
        if reason == "shutdown":
            self._tell("triple fault")
        elif reason == "debug":
            self.debug_met.append((index, *runner.vcpu.debug_exit()))
            self._tell("debug")
        elif reason == "error":
            registers = runner.vcpu.registers()
            print(f"worker: vCPU {index} can't go on: {registers}", file=sys.stderr)
            if self.engine.refusal:
                self._tell(f"error: {self.engine.refusal}")
                return
            self._tell(f"error: vCPU {index} can't go on at {registers.get('rip', 0):#x}; see worker.log")

    def _tell(self, what: str) -> None:
        self._on_event(self, what)

    def _schedule(self, deadline_ns: int, callback: Callable[[], None]) -> Timer:
        """The board's timers: on the loop's thread, and never after ``close``."""

        def expired() -> None:
            self._timers.discard(timer)
            callback()

        timer = self._loop.call_at_threadsafe(deadline_ns / 1e9, expired)
        self._timers.add(timer)
        return timer


def _host_time() -> tuple[int, int]:
    return clock.rdtsc_py(), time.monotonic_ns()


def make_ram(layout: memmap.Layout) -> Ram:
    ram = Ram()
    for start, size in layout.slots:
        ram.add(start, size)
    return ram


def make_engine(name: str, ram: Ram, cpus: int, verify: int = -1) -> Any:
    """The engine called ``name``; it is loaded now, so that others cost nothing."""
    if name not in ENGINES:
        raise MachineError(f"there is no engine '{name}'; there is {', '.join(ENGINES)}")
    module, attribute = ENGINES[name].split(":")
    return getattr(importlib.import_module(module), attribute)(ram, cpus, verify=verify)


def load_kernel(ram: Ram, layout: memmap.Layout, files: BootFiles, cmdline: str, rsdp: int) -> BootState:
    """Put the kernel into memory; how the first vCPU enters it. Linux goes by its own protocol, other ELF files
    with a PVH entry by that."""
    seed = os.urandom(32)
    kernel, initrd, cmdline = files.boot(cmdline)
    if kernel.read_bytes(4) == b"\x7fELF":
        image = elf.parse(linux.read_file(kernel, "kernel"), str(kernel))
        if pvh.entry_point(image) is not None and not _is_linux(image):
            return pvh.load(ram, layout, kernel, initrd, cmdline, rsdp)
    return linux.load(ram, layout, kernel, initrd, cmdline, rsdp, seed=seed)


def enter(vcpu: Any, boot: BootState) -> None:
    """Set the first vCPU's registers as the boot loader left them; the rest is as at power-on."""
    state: VcpuState = vcpu.save_state()
    names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))
    state.registers = [boot.registers.get(name, 0) for name in names]
    state.rip, state.rflags = boot.rip, boot.rflags
    state.cr0, state.cr3, state.cr4, state.efer = boot.cr0, boot.cr3, boot.cr4, boot.efer
    state.segments = [_segment(boot.cs if name == "cs" else boot.data) for name in SEGMENTS]
    state.tr = _segment(boot.tr)
    state.gdtr, state.idtr = Table(*boot.gdt), Table(*boot.idt)
    vcpu.load_state(state)


def _segment(value: SegmentValue) -> Segment:
    return Segment(value.selector, value.base, value.limit, value.attr)


def _address(ram: Ram, gpa: int) -> int:
    """Where guest memory is in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(ram.view(gpa, 1)))


def _is_linux(image: elf.Elf) -> bool:
    return any(owner == b"Linux" for owner, *_ in image.notes())
