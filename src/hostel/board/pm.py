"""ACPI power management: PM1 event and control blocks, the PM timer, general-purpose events, and the ports that reset
a PC.

ACPI 6.4, 4.8.3 and 4.8.4.1. SCI_EN is always set (there is no SMI_CMD), so the machine is in ACPI mode from the start.
Lock: ``lock``, for vCPUs' threads and the event loop's; ``power_off`` is called with it.
Limits: the timer's overflow status, sleep states other than S5 and the RTC wake bit are not there.
"""

import threading
import time
from collections.abc import Callable

from hostel.bus.irq import IrqLine
from hostel.bus.space import PyRegion

PM_BASE = 0x600
PM_SIZE = 16
EVENT, CONTROL, TIMER, GPE = 0, 4, 8, 12  # offsets of the blocks
GPE_SIZE = 4  # bytes: status of 16 events, then their enable bits
PM_TIMER_HZ = 3579545
SLP_TYP_S5 = 5
POWER_BUTTON = 0x100
SCI_EN = 1
SLP_EN = 0x2000


class PowerManagement(PyRegion):
    """Ports 0x600..0x60F. ``sci`` is a level-triggered line; ``power_off`` is called once S5 is entered."""

    VERSION = 2  # 1 had no general-purpose events

    def __init__(self, sci: IrqLine, power_off: Callable[[], None], now_ns: Callable[[], int] = time.monotonic_ns):
        super().__init__("acpi-pm")
        self.sci = sci
        self.power_off = power_off
        self.now_ns = now_ns
        self.started = now_ns()
        self.status = 0
        self.enable = 0
        self.gpe_status = 0
        self.gpe_enable = 0
        self.control = SCI_EN
        self.lock = threading.Lock()

    def timer(self) -> int:
        """The 32-bit count at 3.579545 MHz."""
        return (self.now_ns() - self.started) * PM_TIMER_HZ // 1_000_000_000 & 0xFFFFFFFF

    def press_power_button(self) -> bool:
        """Ask the guest to shut down; whether it listens."""
        with self.lock:
            self.status |= POWER_BUTTON
            self._update()
        return bool(self.enable & POWER_BUTTON)

    def raise_event(self, number: int) -> None:
        """A general-purpose event has happened: its status bit stays until the guest clears it."""
        with self.lock:
            self.gpe_status |= 1 << number
            self._update()

    def _update(self) -> None:
        self.sci.set_py(1 if self.status & self.enable or self.gpe_status & self.gpe_enable else 0)

    def read_py(self, offset: int, size: int) -> int:
        if TIMER <= offset < TIMER + 4:
            return self.timer() >> 8 * (offset - TIMER)
        registers = self.status | self.enable << 16 | (self.control | SCI_EN) << 32
        registers |= self.gpe_status << 8 * GPE | self.gpe_enable << 8 * GPE + 16
        return registers >> 8 * offset & (1 << 8 * size) - 1

    def write_py(self, offset: int, size: int, value: int) -> None:
        with self.lock:
            for i in range(size):
                self._write_byte(offset + i, value >> 8 * i & 0xFF)
            self._update()

    def _write_byte(self, offset: int, byte: int) -> None:
        if offset < 2:
            self.status &= ~(byte << 8 * offset)
        elif offset < 4:
            shift = 8 * (offset - 2)
            self.enable = self.enable & ~(0xFF << shift) | byte << shift
        elif offset < 6:
            shift = 8 * (offset - CONTROL)
            self.control = (self.control & ~(0xFF << shift) | byte << shift) & ~SLP_EN
            # SLP_EN is write-only and acts on the SLP_TYP that is written with it.
            if shift == 8 and byte & SLP_EN >> 8 and byte >> 2 & 7 == SLP_TYP_S5:
                self.power_off()
        elif GPE <= offset < GPE + 2:
            self.gpe_status &= ~(byte << 8 * (offset - GPE))
        elif GPE + 2 <= offset < GPE + 4:
            shift = 8 * (offset - GPE - 2)
            self.gpe_enable = self.gpe_enable & ~(0xFF << shift) | byte << shift

    def skip(self, ns: int) -> None:
        """Time has stood still for ``ns``: the timer goes on as if they had not passed."""
        self.started += ns

    def save(self) -> dict:
        """Registers; the timer as its count."""
        return {
            "version": self.VERSION,
            "status": self.status,
            "enable": self.enable,
            "control": self.control,
            "gpe_status": self.gpe_status,
            "gpe_enable": self.gpe_enable,
            "timer": self.timer(),
        }

    def load(self, state: dict) -> None:
        """Restore what ``save`` gave."""
        if state["version"] not in (1, self.VERSION):
            raise ValueError(f"acpi-pm: state version {state['version']} is neither 1 nor {self.VERSION}")
        self.status, self.enable, self.control = state["status"], state["enable"], state["control"]
        self.gpe_status, self.gpe_enable = state.get("gpe_status", 0), state.get("gpe_enable", 0)
        # Rounded up, so that the count is not one less than what was saved.
        self.started = self.now_ns() - -(-state["timer"] * 1_000_000_000 // PM_TIMER_HZ)


class FastA20(PyRegion):
    """Port 0x92: bit 1 is the A20 gate, which is always open here; a rising bit 0 resets the machine."""

    def __init__(self, reset: Callable[[], None]):
        super().__init__("port92")
        self.reset = reset
        self.value = 2

    def read_py(self, offset: int, size: int) -> int:
        return self.value

    def write_py(self, offset: int, size: int, value: int) -> None:
        rising = value & ~self.value & 1
        self.value = value & 0xFD | 2
        if rising:
            self.reset()


class Quiet(PyRegion):
    """A port that takes writes and does nothing: 0x80 (POST codes, delays), 0xED (delays)."""

    def read_py(self, offset: int, size: int) -> int:
        return 0xFF
