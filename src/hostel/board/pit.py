"""The 8254 interval timer at ports 0x40..0x43, and port 0x61.

Intel 8254 data sheet (231164). Counters aren't counted: their value and output are computed from the time
since the count was loaded. Only channel 0's interrupts need events: each asks ``schedule(deadline_ns,
callback)`` for the next one (CLOCK_MONOTONIC; callable from any thread, the callback runs on any thread).
Periods that nobody could serve in time are one interrupt; the phase is kept.

Lock: ``mutex`` around the channels; ``schedule`` takes the GIL and is called without it.
Limits: a new count in modes 2 and 3 acts at once, not at the end of the running period.
"""

import functools

import cython
from cython.cimports.hostel.base.clock import now_ns
from cython.cimports.hostel.base.lock import lock, mutex_init, unlock
from cython.cimports.hostel.bus.irq import IrqLine
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t

_VERSION = 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _ticks(ns: int64_t) -> int64_t:
    return (ns // 1000000000) * 1193182 + (ns % 1000000000) * 1193182 // 1000000000


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _ns(ticks: int64_t) -> int64_t:
    """The first nanosecond at which ``_ticks`` says ``ticks``."""
    return (ticks // 1193182) * 1000000000 + ((ticks % 1193182) * 1000000000 + 1193181) // 1193182


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _to_bcd(n: uint32_t) -> uint32_t:
    n %= 10000
    return n // 1000 << 12 | n // 100 % 10 << 8 | n // 10 % 10 << 4 | n % 10


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _from_bcd(n: uint32_t) -> uint32_t:
    return (n >> 12) * 1000 + (n >> 8 & 15) * 100 + (n >> 4 & 15) * 10 + (n & 15)


@cython.cclass
class Pit(Region):
    """``irq`` is channel 0's output."""

    def __init__(self, irq: IrqLine, schedule):
        i: cython.int
        self.name = "pit"
        self.irq = irq
        self.schedule = schedule
        mutex_init(cython.address(self.mutex), cython.NULL)
        for i in range(3):
            self.channels[i].access = 3
            self.channels[i].count = 65536
            self.channels[i].gate = i != 2

    def control_port(self) -> SystemControlPort:
        """The region for port 0x61."""
        return SystemControlPort("port61", self)

    def now(self):
        return self.frozen_ns if self.frozen_ns else now_ns()

    # -- what a channel's counter and output are now

    def elapsed(self, c):
        if c.start_ns == 0:
            return 0
        return _ticks((c.stopped_ns if c.stopped_ns else self.now()) - c.start_ns)

    def counter(self, c):
        d: int64_t = self.elapsed(c)
        n: int64_t = c.count
        left: int64_t
        if c.mode == 2:
            left = n - d % n
        elif c.mode == 3:
            left = n - (2 * d) % n
        else:
            left = (n - d) % (10000 if c.bcd else 65536)
            if left < 0:
                left += 10000 if c.bcd else 65536
        return _to_bcd(left) if c.bcd else left & 0xFFFF

    def output(self, c):
        if c.start_ns == 0:
            return c.mode != 0
        d: int64_t = self.elapsed(c)
        if c.mode == 0 or c.mode == 1:
            return d >= c.count
        if c.mode == 2:
            return d % c.count != c.count - 1
        if c.mode == 3:
            return d % c.count < (c.count + 1) >> 1
        return d != c.count

    def set_gate(self, c, gate):
        if gate and not c.gate:
            if c.mode == 0 or c.mode == 4:
                if c.stopped_ns:
                    c.start_ns += self.now() - c.stopped_ns
            elif not c.null_count:
                c.start_ns = self.now()  # a rising edge reloads the count
            c.stopped_ns = 0
        elif not gate and c.gate and c.start_ns and c.mode != 1 and c.mode != 5:
            c.stopped_ns = self.now()
        c.gate = gate

    # -- ports

    def latch_count(self, c):
        if not c.latched:
            c.latch = self.counter(c)
            c.latched = 2 if c.access == 3 else 1

    def control(self, value):
        i: cython.int
        c: cython.pointer(Channel)
        if value >> 6 == 3:  # read back
            for i in range(3):
                c = cython.address(self.channels[i])
                if value & (2 << i):
                    if not value & 0x20:
                        self.latch_count(c)
                    if not value & 0x10 and not c.status_latched:
                        c.status_latched = 1
                        c.status = (
                            self.output(c) << 7 | c.null_count << 6 | c.access << 4 | c.mode << 1 | c.bcd
                        )
            return False
        c = cython.address(self.channels[value >> 6])
        if value & 0x30 == 0:
            self.latch_count(c)
            return False
        c.access = value >> 4 & 3
        c.mode = value >> 1 & 7
        if c.mode > 5:
            c.mode -= 4
        c.bcd = value & 1
        c.write_high = 0
        c.read_high = 0
        c.latched = 0
        c.status_latched = 0
        c.null_count = 1
        c.start_ns = 0
        c.stopped_ns = 0
        return value >> 6 == 0

    def write_count(self, index, value):
        c: cython.pointer(Channel) = cython.address(self.channels[index])
        count: uint32_t
        if c.access == 3 and not c.write_high:
            c.write_low_byte = value
            c.write_high = 1
            if c.mode == 0:  # the first byte stops the count
                c.start_ns = 0
            return index == 0 and c.mode == 0
        if c.access == 3:
            count = cython.cast(uint32_t, value) << 8 | c.write_low_byte
        else:
            count = cython.cast(uint32_t, value) << 8 if c.access == 2 else value
        c.write_high = 0
        if c.bcd:
            count = _from_bcd(count)
        if count == 0:
            count = 10000 if c.bcd else 65536
        if count == 1 and (c.mode == 2 or c.mode == 3):  # not allowed; taken as the least that is
            count = 2
        c.count = count
        c.null_count = 0
        c.stopped_ns = 0
        if c.mode == 1 or c.mode == 5:  # waits for the gate
            c.start_ns = 0
        else:
            c.start_ns = self.now()
            if not c.gate:
                c.stopped_ns = c.start_ns
        return index == 0

    def read_count(self, c):
        word: uint32_t
        if c.status_latched:
            c.status_latched = 0
            return c.status
        word = c.latch if c.latched else self.counter(c)
        if c.latched:
            c.latched -= 1
        if c.access == 3:
            c.read_high ^= 1
            return word & 0xFF if c.read_high else word >> 8
        return word >> 8 if c.access == 2 else word & 0xFF

    def read(self, offset, size):
        value: uint8_t = 0
        if offset & 3 == 3:
            return 0xFF
        lock(cython.address(self.mutex))
        value = self.read_count(cython.address(self.channels[offset & 3]))
        unlock(cython.address(self.mutex))
        return value

    def write(self, offset, size, value):
        changed: cython.bint
        lock(cython.address(self.mutex))
        if offset & 3 == 3:
            changed = self.control(value & 0xFF)
        else:
            changed = self.write_count(offset & 3, value & 0xFF)
        unlock(cython.address(self.mutex))
        if changed:
            if self.channels[0].mode == 0:
                self.irq.set(0)
            self.plan()

    # -- channel 0's interrupts

    def next_rise(self):
        """When channel 0's output rises next; 0 for never."""
        c: cython.pointer(Channel) = cython.address(self.channels[0])
        d: int64_t
        if c.start_ns == 0 or c.mode == 1 or c.mode == 5:
            return 0
        if c.mode == 2 or c.mode == 3:
            d = self.elapsed(c)
            return c.start_ns + _ns((d // c.count + 1) * c.count)
        d = c.count + (1 if c.mode == 4 else 0)
        return c.start_ns + _ns(d) if self.elapsed(c) < d else 0

    def plan(self):
        lock(cython.address(self.mutex))
        self.generation += 1
        deadline: int64_t = self.next_rise()
        generation: uint32_t = self.generation
        unlock(cython.address(self.mutex))
        if deadline:
            # A period shorter than the event loop can serve would keep it from everything else.
            if deadline < self.now() + 50000 and self.channels[0].count < 60:
                deadline = self.now() + 50000
            self.due_ns = deadline
            with cython.gil:
                self.schedule(deadline, functools.partial(self.expire, generation))

    def expire(self, generation: uint32_t):
        """Channel 0's output rises: the callback that was scheduled."""
        if generation != self.generation:
            return
        if self.now() < self.due_ns:  # a timer that counts in coarser units may ring early
            self.schedule(self.due_ns, functools.partial(self.expire, generation))
            return
        # Modes 2 and 3 are low for a moment each period; a terminal count stays high.
        self.irq.set(1)
        if self.channels[0].mode != 0:
            self.irq.set(0)
        self.plan()

    # -- for tests and saved state

    def freeze(self, ns: int64_t):
        """Let the clock say ``ns`` (0: the real one); for tests."""
        self.frozen_ns = ns

    def output_py(self, index: cython.int) -> bool:
        """The output pin of a channel."""
        return bool(self.output(cython.address(self.channels[index])))

    def skip(self, ns: int64_t):
        """Time has stood still for ``ns``: the channels go on as if they had not passed."""
        lock(cython.address(self.mutex))
        for i in range(3):
            if self.channels[i].start_ns:
                self.channels[i].start_ns += ns
            if self.channels[i].stopped_ns:
                self.channels[i].stopped_ns += ns
        unlock(cython.address(self.mutex))
        self.plan()

    def save(self) -> dict:
        """The channels, with times relative to now."""
        now: int64_t = self.now()
        channels = []
        for i in range(3):
            c = dict(self.channels[i])
            for key in ("start_ns", "stopped_ns"):
                c[key] = c[key] - now if c[key] else None
            channels.append(c)
        return {"version": _VERSION, "channels": channels, "speaker": self.speaker}

    def load(self, state: dict):
        """Restore what ``save`` gave."""
        if state["version"] != _VERSION:
            raise ValueError(f"pit: state version {state['version']} is not {_VERSION}")
        now: int64_t = self.now()
        for i, saved in enumerate(state["channels"]):
            c = dict(saved)
            for key in ("start_ns", "stopped_ns"):
                c[key] = 0 if c[key] is None else c[key] + now
            self.channels[i] = c
        self.speaker = state["speaker"]
        self.plan()


@cython.cclass
class SystemControlPort(Region):
    """Port 0x61 (82371FB, 3.1.5.1)."""

    def __init__(self, name: str, pit: Pit):
        self.name = name
        self.pit = pit

    def read(self, offset, size):
        c: cython.pointer(Channel) = cython.address(self.pit.channels[2])
        lock(cython.address(self.pit.mutex))
        value: uint64_t = c.gate | self.pit.speaker << 1 | self.pit.output(c) << 5
        if (self.pit.now() // 15085) & 1:  # refresh requests
            value |= 0x10
        unlock(cython.address(self.pit.mutex))
        return value

    def write(self, offset, size, value):
        lock(cython.address(self.pit.mutex))
        self.pit.set_gate(cython.address(self.pit.channels[2]), value & 1)
        self.pit.speaker = (value >> 1) & 1
        unlock(cython.address(self.pit.mutex))
