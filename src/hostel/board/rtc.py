"""The CMOS clock (Motorola MC146818 with a century byte at 0x32) and 128 bytes of CMOS memory.

The time is the host's, in UTC, plus an offset once the guest has set it. While SET is on, the time
registers are what the guest writes; the offset is taken when SET goes off. Interrupts (periodic, alarm,
update ended) ask ``schedule(deadline_ns, callback)`` for events only while they are enabled.

Lock: ``lock``, for vCPUs' threads and the event loop's.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from hostel.bus.irq import IrqLine
from hostel.bus.space import PyRegion

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR, REG_A, REG_B, REG_C, REG_D = range(6, 14)
CENTURY = 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
UIP = 0x80  # A
SET, PIE, AIE, UIE, BINARY, HOURS_24 = 0x80, 0x40, 0x20, 0x10, 4, 2  # B
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10  # C
VALID = 0x80  # D
SECOND = 1_000_000_000
UPDATE_NS = 244_000  # UIP precedes an update by this much


class Rtc(PyRegion):
    """Ports 0x70 (index) and 0x71 (data)."""

    VERSION = 1

    def __init__(
        self,
        irq: IrqLine,
        schedule: Callable[[int, Callable[[], None]], object],
        low_ram: int = 0,
        high_ram: int = 0,
        time_ns: Callable[[], int] = time.time_ns,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ):
        super().__init__("rtc")
        self.irq = irq
        self.schedule = schedule
        self.time_ns, self.now_ns = time_ns, now_ns
        self.index = 0
        self.offset_ns = 0
        self.memory = bytearray(128)
        self.memory[REG_A] = 0x26  # 32768 Hz, 1024 Hz periodic
        self.memory[REG_B] = HOURS_24
        self.lock = threading.RLock()
        self.generation = 0
        self.next_period = 0  # the periodic interrupt's next time, 0 while it is off
        self.next_second = 0
        self._write_sizes(low_ram, high_ram)

    def _write_sizes(self, low: int, high: int) -> None:
        # Where firmware leaves the sizes of memory: KiB below 1 MiB, KiB from 1 to 64 MiB, 64 KiB units from
        # 16 MiB to 4 GiB, 64 KiB units above 4 GiB.
        extended = max(0, min(low - (1 << 20), 63 << 20)) >> 10
        above_16 = max(0, low - (16 << 20)) >> 16
        m = self.memory
        m[0x15:0x17] = (640).to_bytes(2, "little")
        m[0x17:0x19] = m[0x30:0x32] = extended.to_bytes(2, "little")
        m[0x34:0x36] = min(above_16, 0xFFFF).to_bytes(2, "little")
        m[0x5B:0x5E] = min(high >> 16, 0xFFFFFF).to_bytes(3, "little")

    # -- the time

    def _guest_ns(self) -> int:
        return self.time_ns() + self.offset_ns

    def _encode(self, n: int) -> int:
        return n if self.memory[REG_B] & BINARY else n // 10 << 4 | n % 10

    def _decode(self, n: int) -> int:
        return n if self.memory[REG_B] & BINARY else (n >> 4) * 10 + (n & 15)

    def _encode_hour(self, hour: int) -> int:
        if self.memory[REG_B] & HOURS_24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self.memory[REG_B] & HOURS_24:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _time_to_registers(self) -> None:
        t = datetime.fromtimestamp(self._guest_ns() // SECOND, UTC)
        m = self.memory
        m[SECONDS], m[MINUTES], m[HOURS] = self._encode(t.second), self._encode(t.minute), self._encode_hour(t.hour)
        m[WEEKDAY] = t.isoweekday() % 7 + 1  # 1 is Sunday
        m[DAY], m[MONTH] = self._encode(t.day), self._encode(t.month)
        m[YEAR], m[CENTURY] = self._encode(t.year % 100), self._encode(t.year // 100)

    def _registers_to_time(self) -> None:
        m = self.memory
        try:
            t = datetime(
                self._decode(m[CENTURY]) * 100 + self._decode(m[YEAR]),
                self._decode(m[MONTH]),
                self._decode(m[DAY]),
                self._decode_hour(m[HOURS]),
                self._decode(m[MINUTES]),
                self._decode(m[SECONDS]),
                tzinfo=UTC,
            )
        except ValueError:  # no such date: the guest's affair, the clock goes on as it was
            return
        self.offset_ns = int(t.timestamp()) * SECOND - self.time_ns()

    # -- ports

    def read_py(self, offset: int, size: int) -> int:
        with self.lock:
            return 0xFF if offset == 0 else self._read()

    def write_py(self, offset: int, size: int, value: int) -> None:
        with self.lock:
            if offset == 0:
                self.index = value & 0x7F  # bit 7 masks NMI, which nothing raises
                value >>= 8
            if offset == 1 or size > 1:
                self._write(value & 0xFF)

    def _read(self) -> int:
        register = self.index
        if register in TIME_REGISTERS and not self.memory[REG_B] & SET:
            self._time_to_registers()
        if register == REG_A:
            updating = not self.memory[REG_B] & SET and self._guest_ns() % SECOND >= SECOND - UPDATE_NS
            return self.memory[REG_A] | (UIP if updating else 0)
        if register == REG_C:
            value, self.memory[REG_C] = self.memory[REG_C], 0
            self.irq.set_py(0)
            return value
        if register == REG_D:
            return VALID
        return self.memory[register]

    def _write(self, value: int) -> None:
        register = self.index
        if register in TIME_REGISTERS:
            if not self.memory[REG_B] & SET:
                self._time_to_registers()
            self.memory[register] = value
            if not self.memory[REG_B] & SET:
                self._registers_to_time()
                self._plan()
        elif register == REG_A:
            self.memory[REG_A] = value & 0x7F
            self.next_period = 0
            self._plan()
        elif register == REG_B:
            self._write_b(value)
        elif register not in (REG_C, REG_D):
            self.memory[register] = value

    def _write_b(self, value: int) -> None:
        was = self.memory[REG_B]
        if value & SET and not was & SET:
            self._time_to_registers()
        if value & SET:
            value &= ~UIE  # data sheet, register B: SET clears UIE
        self.memory[REG_B] = value
        if was & SET and not value & SET:
            self._registers_to_time()
        self._raise(0)
        self._plan()

    # -- interrupts

    def _raise(self, flags: int) -> None:
        c = (self.memory[REG_C] | flags) & (PF | AF | UF)
        on = c & self.memory[REG_B] & (PIE | AIE | UIE)
        self.memory[REG_C] = c | (IRQF if on else 0)
        self.irq.set_py(1 if on else 0)

    def _period_ns(self) -> int:
        rate = self.memory[REG_A] & 15
        if rate == 0:
            return 0
        return SECOND * (1 << (rate + 6 if rate < 3 else rate - 1)) // 32768

    def _plan(self) -> None:
        self.generation += 1
        b, now = self.memory[REG_B], self.now_ns()
        period = self._period_ns() if b & PIE else 0
        if not period:
            self.next_period = 0
        elif self.next_period <= now:
            base = self.next_period or now
            self.next_period = base + period * ((now - base) // period + 1)
        self.next_second = 0
        if b & (AIE | UIE) and not b & SET:
            self.next_second = now + SECOND - self._guest_ns() % SECOND
        due = [t for t in (self.next_period, self.next_second) if t]
        if due:
            generation = self.generation
            self.schedule(min(due), lambda: self._expire(generation))

    def _expire(self, generation: int) -> None:
        with self.lock:
            if generation != self.generation:
                return
            now = self.now_ns()
            flags = 0
            if self.next_period and now >= self.next_period:
                flags |= PF
            if self.next_second and now >= self.next_second:
                flags |= UF | (AF if self._alarm_matches() else 0)
            if flags:
                self._raise(flags)
            self._plan()

    def _alarm_matches(self) -> bool:
        self._time_to_registers()
        m = self.memory
        pairs = ((SECONDS, SECONDS_ALARM), (MINUTES, MINUTES_ALARM), (HOURS, HOURS_ALARM))
        # The two top bits set: any value
        return all(m[alarm] >= 0xC0 or m[alarm] == m[now] for now, alarm in pairs)

    def save(self) -> dict:
        """CMOS memory and how far the guest's clock is from the host's."""
        return {
            "version": self.VERSION,
            "index": self.index,
            "offset_ns": self.offset_ns,
            "memory": bytes(self.memory),
        }

    def load(self, state: dict) -> None:
        """Restore what ``save`` gave. The time goes on as the host's did meanwhile."""
        if state["version"] != self.VERSION:
            raise ValueError(f"rtc: state version {state['version']} is not {self.VERSION}")
        self.index = state["index"]
        self.offset_ns = state["offset_ns"]
        self.memory[:] = state["memory"]
        self.next_period = 0
        self._raise(0)
        self._plan()
