"""The main board: interrupt controllers, timers, clock, power and the PCI bus, wired as in a PC.

The board knows no card and no engine. Whoever builds a machine makes it, plugs serial ports and PCI cards
in, calls ``write_tables()`` and then starts the vCPUs.
"""

import os
import time
from collections.abc import Callable, Sequence

from hostel.board import acpi, memmap
from hostel.board.apic import ApicBus, LocalApic, MsiWindow
from hostel.board.i8042 import I8042
from hostel.board.ioapic import IoApic, WiredOr
from hostel.board.pci import ConfigPorts, Ecam, PciBus
from hostel.board.pic import Pic
from hostel.board.pit import Pit
from hostel.board.pm import PM_BASE, PM_SIZE, FastA20, PowerManagement, Quiet
from hostel.board.rtc import Rtc
from hostel.bus.irq import IrqLine
from hostel.bus.space import Region, Space
from hostel.memory.ram import Ram

# (port, IRQ) of COM1 and COM2. Their interrupts are level triggered, unlike a PC's: a line that is infinitely fast may
# keep Linux's handler busy for longer than it likes (512 passes, serial8250_interrupt), whereupon it returns with the
# interrupt still raised, and never hears of an edge again.
SERIAL_PORTS = ((0x3F8, 4), (0x2F8, 3))
VERSION = 1
GENERATION_SIZE = 16  # bytes

Schedule = Callable[[int, Callable[[], None]], object]


class Board:
    """One machine's board.

    ``vcpus`` are engine.Vcpu objects, the first being the boot processor; each gets its local APIC.
    ``schedule(deadline_ns, callback)``, callable from any thread, calls back at that CLOCK_MONOTONIC time.
    ``power_off`` and ``reset`` are called on a vCPU's thread (with the GIL) when the guest asks for it: they
    should tell the event loop and return.
    """

    def __init__(
        self,
        ram: Ram,
        layout: memmap.Layout,
        pio: Space,
        mmio: Space,
        vcpus: Sequence,
        schedule: Schedule,
        power_off: Callable[[], None],
        reset: Callable[[], None],
    ):
        self.ram, self.layout, self.pio, self.mmio = ram, layout, pio, mmio
        self.pic = Pic(level=[irq for _, irq in SERIAL_PORTS])
        self.apic_bus = ApicBus()
        self.apics = [
            LocalApic(self.apic_bus, vcpu, index, self.pic if index == 0 else None)
            for index, vcpu in enumerate(vcpus)
        ]
        self.apics[0].set_up_virtual_wire()
        self.ioapic = IoApic(self.apic_bus)
        self._lines: dict[int, IrqLine] = {}
        self._shared: dict[int, WiredOr] = {}  # PCI's interrupt wires, by GSI
        self._serial: dict[int, Region] = {}
        self.pit = Pit(self.irq(0), schedule)
        high = layout.ram_bytes - layout.low_end
        self.rtc = Rtc(self.irq(8), schedule, layout.low_end, max(high, 0))
        self.pm = PowerManagement(self.irq(acpi.SCI), power_off)
        self.i8042 = I8042(reset)
        self.pci = PciBus(pio, mmio, self._pci_line)
        for port, size, region in self.pic.ports():
            pio.map(port, size, region)
        pio.map(0x40, 4, self.pit)
        pio.map(0x60, 1, self.i8042.data)
        pio.map(0x61, 1, self.pit.control_port())
        pio.map(0x64, 1, self.i8042.command)
        pio.map(0x70, 2, self.rtc)
        pio.map(0x80, 1, Quiet("port80"))
        pio.map(0x92, 1, FastA20(reset))
        pio.map(0xED, 1, Quiet("port-ed"))
        pio.map(PM_BASE, PM_SIZE, self.pm)
        pio.map(0xCF8, 8, ConfigPorts(self.pci, reset))
        mmio.map(memmap.ECAM, memmap.ECAM_SIZE, Ecam(self.pci))
        mmio.map(memmap.IOAPIC, memmap.PAGE, self.ioapic.window())
        mmio.map(memmap.LAPIC, 1 << 20, MsiWindow("msi", self.apic_bus))

    # -- slots

    def irq(self, number: int) -> IrqLine:
        """The wire of a global system interrupt: 0..15 are the ISA IRQs (IRQ 0 at I/O APIC pin 2), up to 23."""
        if number not in self._lines:
            if number >= 16:
                ends = [(self.ioapic, number)]
            else:
                ends = [(self.pic, number), (self.ioapic, 2 if number == 0 else number)]
            self._lines[number] = IrqLine(*ends)
        return self._lines[number]

    def serial_irq(self, index: int) -> IrqLine:
        """The interrupt line for COM1 (0) or COM2 (1)."""
        return self.irq(SERIAL_PORTS[index][1])

    def attach_serial(self, index: int, uart: Region) -> None:
        """Plug a serial port in as COM1 (0) or COM2 (1); ACPI announces those that are there."""
        self.pio.map(SERIAL_PORTS[index][0], 8, uart)
        self._serial[index] = uart

    def _pci_line(self, slot: int, pin: int) -> tuple[IrqLine, int]:
        gsi = acpi.pci_gsi(slot, pin)
        if gsi not in self._shared:
            self._shared[gsi] = WiredOr(self.irq(gsi))
        return IrqLine((self._shared[gsi], slot)), gsi

    # -- firmware's work

    def write_tables(self) -> int:
        """Place PCI BARs and store the ACPI tables; returns the RSDP's address."""
        first, last = acpi.PCI_IO_WINDOW
        self.pci.assign((first, last - first + 1), self.layout.pci32, self.layout.pci64)
        serial = [SERIAL_PORTS[i] for i in sorted(self._serial)]
        address, image = acpi.build(self.layout, [apic.id for apic in self.apics], serial=serial)
        self.ram.write(address, image)
        self.ram.write(memmap.GENERATION_ID, os.urandom(GENERATION_SIZE))
        return address

    def new_generation(self, guid: bytes) -> None:
        """Tell the guest that it is another than it was, a copy: it gathers fresh entropy (VM generation ID).

        ``guid``: 16 bytes that no other machine has. The vCPUs must stand still; in a restored machine, memory and
        board were loaded before.
        """
        if len(guid) != GENERATION_SIZE:
            raise ValueError(f"a generation ID has {GENERATION_SIZE} bytes, not {len(guid)}")
        self.ram.write(memmap.GENERATION_ID, guid)
        self.pm.raise_event(acpi.GENERATION_EVENT)

    def press_power_button(self) -> bool:
        """Ask the guest to shut down; whether it listens to the button."""
        return self.pm.press_power_button()

    def skip(self, ns: int) -> None:
        """The vCPUs have stood still for ``ns``, and so did time for them: timers go on as if they had not passed. The
        CMOS clock doesn't: it tells the host's time."""
        self.pit.skip(ns)
        self.pm.skip(ns)
        for apic in self.apics:
            apic.skip(ns)

    # -- saved state; the vCPUs must stand still

    def save(self) -> dict:
        """Everything but serial ports and cards' own state."""
        parts = {"pic": self.pic, "ioapic": self.ioapic, "pit": self.pit, "rtc": self.rtc, "pm": self.pm}
        parts |= {"i8042": self.i8042, "pci": self.pci}
        # The cards first: what they have under way ends then, and interrupts.
        pci = parts.pop("pci").save()
        return {
            "version": VERSION,
            "pci": pci,
            "apics": [apic.save() for apic in self.apics],
            "lines": {number: line.level for number, line in self._lines.items()},
            "time": time.time(),
            **{name: part.save() for name, part in parts.items()},
        }

    def load(self, state: dict) -> None:
        """Restore what ``save`` gave into a board with the same cards."""
        if state["version"] != VERSION or len(state["apics"]) != len(self.apics):
            raise ValueError("board: the saved state is of another version or another number of processors")
        # Lines first: what they do to the controllers is overwritten by the controllers' own state.
        for number, level in state["lines"].items():
            self.irq(number).set_py(level)
        for name in ("pic", "ioapic", "pit", "rtc", "pm", "i8042"):
            getattr(self, name).load(state[name])
        for apic, saved in zip(self.apics, state["apics"], strict=True):
            apic.load(saved)
        # The cards last: they go on at once, and interrupt.
        self.pci.load(state["pci"])
