"""The I/O APIC: 24 pins that become messages to local APICs.

Intel 82093AA data sheet (290566), with the EOI register of version 0x20. A pin's level here means
"asserted"; the polarity bits are kept and otherwise ignored, as the wires have no voltage.

Lock: ``mutex`` around every register; messages are delivered while it is held, local APICs take no lock.
"""

import cython
from cython.cimports.hostel.base.lock import lock, mutex_init, unlock
from cython.cimports.hostel.board.apic import ApicBus, EoiSink
from cython.cimports.hostel.bus.irq import IrqLine, IrqSink
from cython.cimports.libc.stdint import uint32_t, uint64_t

_VERSION = 1


@cython.cclass
class IoApic(EoiSink):
    """Sends through ``bus``, and hears of EOIs from it."""

    def __init__(self, bus: ApicBus, ioapic_id: uint32_t = 0):
        i: cython.int
        mutex_init(cython.address(self.mutex), cython.NULL)
        self.bus = bus
        self.id = ioapic_id
        for i in range(PINS):
            self.entries[i] = ENTRY_MASKED
        bus.connect(self)

    def window(self) -> IoApicWindow:
        """The MMIO region, 4 KiB."""
        return IoApicWindow("ioapic", self)

    def send(self, pin):
        entry: uint64_t = self.entries[pin]
        self.bus.deliver(
            cython.cast(uint32_t, entry >> 56), entry & ENTRY_LOGICAL != 0, False,
            cython.cast(cython.int, entry >> 8) & 7, cython.cast(cython.int, entry) & 0xFF, entry & ENTRY_LEVEL != 0,
        )

    def service(self, pin):
        """A level-triggered pin: one message, then none until its EOI."""
        if self.entries[pin] & (ENTRY_LEVEL | ENTRY_MASKED | ENTRY_REMOTE_IRR) != ENTRY_LEVEL:
            return
        if self.lines & (cython.cast(uint32_t, 1) << pin):
            # Before the message is sent: the other CPU's EOI may come before this returns.
            self.entries[pin] |= ENTRY_REMOTE_IRR
            self.send(pin)

    def set_level(self, pin, level):
        bit: uint32_t
        if pin < 0 or pin >= PINS:
            return
        bit = cython.cast(uint32_t, 1) << pin
        lock(cython.address(self.mutex))
        if not level:
            self.lines &= ~bit
        else:
            # An edge on a masked pin is neither delivered nor held (3.2.4).
            if not self.lines & bit and not self.entries[pin] & (ENTRY_LEVEL | ENTRY_MASKED):
                self.send(pin)
            self.lines |= bit
            self.service(pin)
        unlock(cython.address(self.mutex))

    def eoi(self, vector):
        i: cython.int
        lock(cython.address(self.mutex))
        for i in range(PINS):
            if self.entries[i] & ENTRY_LEVEL and cython.cast(cython.int, self.entries[i] & 0xFF) == vector:
                self.entries[i] &= ~cython.cast(uint64_t, ENTRY_REMOTE_IRR)
                self.service(i)
        unlock(cython.address(self.mutex))

    def read_register(self, index):
        value: uint32_t = 0
        lock(cython.address(self.mutex))
        if index == 0 or index == 2:
            value = self.id << 24
        elif index == 1:
            value = (PINS - 1) << 16 | 0x20
        elif 0x10 <= index < 0x10 + 2 * PINS:
            value = cython.cast(uint32_t, self.entries[(index - 0x10) >> 1] >> (32 if index & 1 else 0))
        unlock(cython.address(self.mutex))
        return value

    def write_register(self, index, value):
        pin: cython.int
        entry: uint64_t
        lock(cython.address(self.mutex))
        if index == 0:
            self.id = (value >> 24) & 15
        elif 0x10 <= index < 0x10 + 2 * PINS:
            pin = (index - 0x10) >> 1
            entry = self.entries[pin]
            if index & 1:
                entry = entry << 32 >> 32 | cython.cast(uint64_t, value) << 32
            else:
                entry = entry >> 32 << 32 | value & 0x1AFFF | entry & ENTRY_REMOTE_IRR
                if not entry & ENTRY_LEVEL:  # how Linux clears a stuck remote IRR
                    entry &= ~cython.cast(uint64_t, ENTRY_REMOTE_IRR)
            self.entries[pin] = entry
            self.service(pin)
        unlock(cython.address(self.mutex))

    # -- for tests, tools and saved state

    def set_level_py(self, pin: cython.int, level: cython.int):
        """``set_level`` for tests."""
        self.set_level(pin, level)

    def register(self, index: uint32_t, value=None) -> int:
        """Write the register unless ``value`` is None, and read it."""
        if value is not None:
            self.write_register(index, value)
        return self.read_register(index)

    def save(self) -> dict:
        """Every register and the pins' levels."""
        return {
            "version": _VERSION,
            "id": self.id,
            "select": self.select,
            "lines": self.lines,
            "entries": [self.entries[i] for i in range(PINS)],
        }

    def load(self, state: dict):
        """Restore what ``save`` gave."""
        if state["version"] != _VERSION:
            raise ValueError(f"ioapic: state version {state['version']} is not {_VERSION}")
        i: cython.int
        self.id = state["id"]
        self.select = state["select"]
        self.lines = state["lines"]
        for i in range(PINS):
            self.entries[i] = state["entries"][i]


@cython.cclass
class IoApicWindow(Region):
    """IOREGSEL, IOWIN and EOI."""

    def __init__(self, name: str, ioapic: IoApic):
        self.name = name
        self.ioapic = ioapic

    def read(self, offset, size):
        if offset & 0xFF == 0:
            return self.ioapic.select
        if offset & 0xFF == 0x10:
            return self.ioapic.read_register(self.ioapic.select)
        return 0

    def write(self, offset, size, value):
        if offset & 0xFF == 0:
            self.ioapic.select = value & 0xFF
        elif offset & 0xFF == 0x10:
            self.ioapic.write_register(self.ioapic.select, cython.cast(uint32_t, value))
        elif offset & 0xFF == 0x40:
            self.ioapic.eoi(value & 0xFF)


@cython.cclass
class WiredOr(IrqSink):
    """PCI slots that share an interrupt (PCI 3.0, 2.2.6); the lock keeps two sources' changes in order."""

    def __init__(self, line: IrqLine):
        mutex_init(cython.address(self.mutex), cython.NULL)
        self.line = line
        self.asserted = 0

    def set_level(self, pin, level):
        bit: uint32_t = cython.cast(uint32_t, 1) << (pin & 31)
        lock(cython.address(self.mutex))
        was: uint32_t = self.asserted
        self.asserted = was | bit if level else was & ~bit
        if (was != 0) != (self.asserted != 0):
            self.line.set(self.asserted != 0)
        unlock(cython.address(self.mutex))
