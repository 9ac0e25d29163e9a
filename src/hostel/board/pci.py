"""The PCI bus: configuration space by mechanism #1 and by ECAM, functions with BARs and capabilities.

PCI Local Bus 3.0, 3.2.2.3.2 (mechanism #1) and chapter 6 (configuration space); PCI Express 3.0, 7.2.2
(ECAM). There is one bus; a function's BARs are windows of the address spaces, mapped while the command
register lets them decode. A BAR that the guest puts where another device is decodes nothing: that is
counted, never an error.

Lock: ``PciBus.lock`` around configuration accesses.
"""

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from hostel.base.errors import BusError
from hostel.bus.irq import IrqLine
from hostel.bus.space import PyRegion, Region, Space

VENDOR_ID, DEVICE_ID, COMMAND, STATUS = 0x00, 0x02, 0x04, 0x06
REVISION, CLASS, HEADER_TYPE, BAR0 = 0x08, 0x09, 0x0E, 0x10
SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID, CAPABILITIES = 0x2C, 0x2E, 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_OFF = 1, 2, 4, 0x400
STATUS_INTERRUPT, STATUS_CAPABILITIES = 8, 0x10
SLOTS = 32
CONFIG_SIZE = 4096

# Vendor and device of the host bridge: QEMU's PCIe host bridge without a chip set behind it
HOST_BRIDGE = (0x1B36, 0x0008)


@dataclass
class Bar:
    """A window of ``size`` bytes (a power of two) that ``region`` answers, in I/O or memory space."""

    index: int
    size: int
    region: Region
    space: Space
    is_io: bool = False
    is_64bit: bool = False
    prefetchable: bool = False
    mapped_at: int | None = None

    @property
    def flags(self) -> int:
        """The BAR's read-only low bits."""
        return 1 if self.is_io else (4 if self.is_64bit else 0) | (8 if self.prefetchable else 0)

    @property
    def address_mask(self) -> int:
        """Bits of the address that can be set."""
        return ~(self.size - 1) & ((1 << 64) - 1 if self.is_64bit else 0xFFFFFFFF)


class PciFunction:
    """A function's configuration space. Cards derive from it and add BARs and capabilities before they are attached.

    ``config`` is what a read returns, ``writable`` has a 1 for each bit that a write changes, and ``clears`` for
    each that writing 1 clears. ``written(offset, size)`` is called after a write, for registers that act.
    """

    def __init__(
        self, vendor: int, device: int, class_code: int, revision: int = 0, subsystem: tuple[int, int] = (0, 0)
    ):
        self.config = bytearray(CONFIG_SIZE)
        self.writable = bytearray(CONFIG_SIZE)
        self.clears = bytearray(CONFIG_SIZE)
        self.bars: dict[int, Bar] = {}
        self.irq: IrqLine | None = None
        self.misplaced = 0  # BARs that found their place taken
        self._next_capability = 0x40
        self._last_capability = CAPABILITIES
        struct.pack_into("<HH", self.config, VENDOR_ID, vendor, device)
        struct.pack_into("<I", self.config, REVISION, class_code << 8 | revision)
        struct.pack_into("<HH", self.config, SUBSYSTEM_VENDOR_ID, *subsystem)
        struct.pack_into("<H", self.writable, COMMAND, COMMAND_MASTER | COMMAND_INTX_OFF)
        struct.pack_into("<H", self.clears, STATUS, 0xF900)
        self.writable[0x0C] = 0xFF  # cache line size: kept, without meaning
        self.writable[INTERRUPT_LINE] = 0xFF

    # -- what a card is made of

    def add_bar(
        self, index: int, size: int, region: Region, space: Space,
        is_io: bool = False, is_64bit: bool = False, prefetchable: bool = False,
    ) -> Bar:
        """BAR ``index``; a 64-bit one takes the next index as well."""
        if size & (size - 1) or size < (4 if is_io else 16) or index + is_64bit > 5:
            raise ValueError(f"a BAR {index} of {size} bytes can't be")
        bar = Bar(index, size, region, space, is_io, is_64bit, prefetchable)
        self.bars[index] = bar
        at = BAR0 + 4 * index
        struct.pack_into("<I", self.config, at, bar.flags)
        struct.pack_into("<I", self.writable, at, bar.address_mask & 0xFFFFFFFF)
        if is_64bit:
            struct.pack_into("<I", self.writable, at + 4, bar.address_mask >> 32)
        command = struct.unpack_from("<H", self.writable, COMMAND)[0]
        struct.pack_into("<H", self.writable, COMMAND, command | (COMMAND_IO if is_io else COMMAND_MEMORY))
        return bar

    def add_capability(self, kind: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; ``body`` and ``writable`` start behind its two-byte header. Returns its offset."""
        at = self._next_capability
        if at + 2 + len(body) > 256:
            raise ValueError("no room for another capability")
        self.config[self._last_capability] = at
        self.config[at] = kind
        self.config[at + 2 : at + 2 + len(body)] = body
        self.writable[at + 2 : at + 2 + len(writable)] = writable
        self._last_capability = at + 1
        self._next_capability = (at + 2 + len(body) + 3) & ~3
        self.config[STATUS] |= STATUS_CAPABILITIES
        return at

    def use_pin(self, pin: int = 1) -> None:
        """Interrupt by INTA (1) to INTD (4); ``irq`` is the line once the function is attached."""
        self.config[INTERRUPT_PIN] = pin

    def set_intx(self, level: int) -> None:
        """Drive the interrupt pin, unless the command register says no."""
        status = struct.unpack_from("<H", self.config, STATUS)[0]
        struct.pack_into("<H", self.config, STATUS, status & ~STATUS_INTERRUPT | (STATUS_INTERRUPT if level else 0))
        self._drive_pin()

    def _drive_pin(self) -> None:
        if self.irq is not None:
            asserted = self.config[STATUS] & STATUS_INTERRUPT and not self.command & COMMAND_INTX_OFF
            self.irq.set_py(1 if asserted else 0)

    def written(self, offset: int, size: int) -> None:
        """After a write to configuration space."""

    # -- configuration space

    @property
    def command(self) -> int:
        """The command register."""
        return struct.unpack_from("<H", self.config, COMMAND)[0]

    @property
    def is_bus_master(self) -> bool:
        """Whether the function may do DMA and send MSIs."""
        return bool(self.command & COMMAND_MASTER)

    def read(self, offset: int, size: int) -> int:
        """A configuration read within the 4 KiB."""
        return int.from_bytes(self.config[offset : offset + size].ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A configuration write within the 4 KiB."""
        for i in range(offset, min(offset + size, CONFIG_SIZE)):
            byte = value & 0xFF
            value >>= 8
            kept = self.config[i] & ~(self.clears[i] & byte)
            self.config[i] = kept & ~self.writable[i] | byte & self.writable[i]
        if offset < 0x28 and offset + size > COMMAND:
            self.decode()
            self._drive_pin()
        self.written(offset, size)

    def bar_address(self, index: int) -> int:
        """Where a BAR points, mapped or not."""
        bar = self.bars[index]
        at = BAR0 + 4 * index
        raw = struct.unpack_from("<Q" if bar.is_64bit else "<I", self.config, at)[0]
        return raw & bar.address_mask

    def set_bar(self, index: int, address: int) -> None:
        """Place a BAR, as firmware does."""
        bar = self.bars[index]
        at = BAR0 + 4 * index
        struct.pack_into("<Q" if bar.is_64bit else "<I", self.config, at, address & bar.address_mask | bar.flags)
        self.decode()

    def decode(self) -> None:
        """Map the BARs as the command register and their addresses say."""
        for index, bar in self.bars.items():
            wanted: int | None = self.bar_address(index)
            enabled = self.command & (COMMAND_IO if bar.is_io else COMMAND_MEMORY)
            # All ones is how a guest asks for the size; nothing is ever mapped at 0.
            if not enabled or not wanted or wanted == bar.address_mask:
                wanted = None
            if wanted == bar.mapped_at:
                continue
            if bar.mapped_at is not None:
                bar.space.unmap(bar.mapped_at)
                bar.mapped_at = None
            if wanted is not None:
                try:
                    bar.space.map(wanted, bar.size, bar.region)
                    bar.mapped_at = wanted
                except BusError:
                    self.misplaced += 1

    def save(self) -> dict:
        """Configuration space."""
        return {"version": 1, "config": bytes(self.config)}

    def load(self, state: dict) -> None:
        """Restore what ``save`` gave, and map the BARs."""
        if state["version"] != 1:
            raise ValueError(f"pci function: state version {state['version']} is not 1")
        self.config[:] = state["config"]
        self.decode()
        self._drive_pin()


class PciBus:
    """Bus 0 with its host bridge in slot 0. ``line(slot, pin)`` gives the wire behind a slot's interrupt pin."""

    def __init__(self, pio: Space, mmio: Space, line: Callable[[int, int], tuple[IrqLine, int]]):
        self.pio, self.mmio = pio, mmio
        self.line = line
        self.functions: dict[int, PciFunction] = {}  # by devfn
        self.lock = threading.RLock()
        self.address = 0  # CONFIG_ADDRESS
        self.reset_control = 0  # port 0xCF9
        self.attach(PciFunction(*HOST_BRIDGE, class_code=0x060000), 0)

    def attach(self, function: PciFunction, slot: int | None = None) -> int:
        """Put a function into ``slot`` (default: the first free one) and wire its pin; returns the slot."""
        if slot is None:
            slot = next((n for n in range(SLOTS) if n << 3 not in self.functions), SLOTS)
        if not 0 <= slot < SLOTS or slot << 3 in self.functions:
            raise BusError(f"PCI slot {slot} is taken or doesn't exist")
        self.functions[slot << 3] = function
        if pin := function.config[INTERRUPT_PIN]:
            function.irq, function.config[INTERRUPT_LINE] = self.line(slot, pin)
        return slot

    def assign(self, io: tuple[int, int], memory: tuple[int, int], memory64: tuple[int, int]) -> None:
        """Give every BAR an address, largest first so that all are aligned, as firmware does."""
        at = {"io": io[0], "memory": memory[0], "memory64": memory64[0]}
        end = {"io": sum(io), "memory": sum(memory), "memory64": sum(memory64)}
        every = [(f, bar) for f in self.functions.values() for bar in f.bars.values()]
        for function, bar in sorted(every, key=lambda pair: -pair[1].size):
            kind = "io" if bar.is_io else "memory64" if bar.is_64bit and bar.prefetchable else "memory"
            start = (at[kind] + bar.size - 1) & ~(bar.size - 1)
            if start + bar.size > end[kind]:
                raise BusError(f"no room for a PCI BAR of {bar.size >> 10} KiB")
            at[kind] = start + bar.size
            function.set_bar(bar.index, start)

    def read(self, devfn: int, offset: int, size: int) -> int:
        """A configuration read on bus 0; where nothing is, all ones."""
        with self.lock:
            function = self.functions.get(devfn)
            return function.read(offset, size) if function else (1 << 8 * size) - 1

    def write(self, devfn: int, offset: int, size: int, value: int) -> None:
        """A configuration write on bus 0."""
        with self.lock:
            if function := self.functions.get(devfn):
                function.write(offset, size, value)

    def save(self) -> dict:
        """The address latch and every function's configuration space."""
        return {
            "version": 1,
            "address": self.address,
            "reset_control": self.reset_control,
            "functions": {devfn: f.save() for devfn, f in self.functions.items()},
        }

    def load(self, state: dict) -> None:
        """Restore what ``save`` gave; the same cards must be attached."""
        if state["version"] != 1 or set(state["functions"]) != set(self.functions):
            raise ValueError("pci: the saved cards are not those that are attached")
        self.address, self.reset_control = state["address"], state["reset_control"]
        for devfn, function in self.functions.items():
            function.load(state["functions"][devfn])


class ConfigPorts(PyRegion):
    """Ports 0xCF8..0xCFF: CONFIG_ADDRESS, CONFIG_DATA, and the reset register at 0xCF9 among them."""

    def __init__(self, bus: PciBus, reset: Callable[[], None]):
        super().__init__("pci-config")
        self.bus = bus
        self.reset = reset

    def read_py(self, offset: int, size: int) -> int:
        if offset == 0 and size == 4:
            return self.bus.address
        if offset == 1 and size == 1:
            return self.bus.reset_control
        if offset >= 4 and self.bus.address & 0x80000000:
            address = self.bus.address
            if address >> 16 & 0xFF == 0:
                return self.bus.read(address >> 8 & 0xFF, (address & 0xFC) + offset - 4, size)
        return (1 << 8 * size) - 1

    def write_py(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:
            self.bus.address = value & 0x80FFFFFC
        elif offset == 1 and size == 1:
            # RST_CPU (bit 2) resets as it rises (82371SB, 4.2.11).
            rising = value & ~self.bus.reset_control & 4
            self.bus.reset_control = value & 0x0A
            if rising:
                self.reset()
        elif offset >= 4 and self.bus.address & 0x80000000:
            address = self.bus.address
            if address >> 16 & 0xFF == 0:
                self.bus.write(address >> 8 & 0xFF, (address & 0xFC) + offset - 4, size, value)


class Ecam(PyRegion):
    """The memory-mapped configuration window: bus, device, function and offset are the address."""

    def __init__(self, bus: PciBus):
        super().__init__("pci-ecam")
        self.bus = bus

    def read_py(self, offset: int, size: int) -> int:
        if offset >> 20:
            return (1 << 8 * size) - 1
        return self.bus.read(offset >> 12 & 0xFF, offset & 0xFFF, size)

    def write_py(self, offset: int, size: int, value: int) -> None:
        if not offset >> 20:
            self.bus.write(offset >> 12 & 0xFF, offset & 0xFFF, size, value)
