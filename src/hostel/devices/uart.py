"""A 16550A serial port (National PC16550D data sheet) between the guest and two byte rings.

Its line is infinitely fast: what the guest puts into THR is sent at once, and a receiver's FIFO with room
fills at once from the ring that the host writes to. So the character timeout, due four characters after
the last one came, is due as soon as the ring is empty. Nothing is lost or reordered: when the transmit
ring has no room for a FIFO's worth, THRE stays low and the guest waits as for a slow line; ``write`` takes
what fits and says how much.

With ``rts_gate`` (the default) the sender honours RTS: no byte is received while the guest holds RTS low,
and what it has not read yet when it drops RTS is received again later. So a driver that clears the FIFOs
when it starts or stops (Linux does) loses nothing. Off, bytes arrive from the beginning, for guests that
poll and never raise RTS.

Lock: ``mutex`` around everything; the interrupt line is set while it is held.
Limits: no break, parity or framing errors; the baud rate is kept and ignored.
"""

import os

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.hostel.base.lock import lock, mutex_init, unlock
from cython.cimports.hostel.bus.irq import IrqLine
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy

from hostel.base.linux import eventfd

_VERSION = 1


@cython.cclass
class Uart(Region):
    """``irq`` may be None for a port that is only polled."""

    def __cinit__(self):
        mutex_init(cython.address(self.mutex), cython.NULL)
        self.tx_fd = -1
        self.rx_fd = -1
        self.rx = cython.cast(cython.pointer(uint8_t), malloc(RING))
        self.tx = cython.cast(cython.pointer(uint8_t), malloc(RING))
        if self.rx == cython.NULL or self.tx == cython.NULL:
            raise MemoryError()

    def __init__(self, irq: IrqLine | None, rts_gate: bool = True, name: str = "uart"):
        self.name = name
        self.native = True
        self.irq = irq if irq is not None else IrqLine()
        self.rts_gate = rts_gate
        self.thr_empty = True
        self.divisor_low = 1
        self.renew_events()

    def __dealloc__(self):
        free(self.rx)
        free(self.tx)

    def renew_events(self):
        """Make the eventfds (again: a forked worker must not share its parent's)."""
        self.close()
        self.tx_fd = eventfd.make(self.tx_head != self.tx_tail)
        self.rx_fd = eventfd.make()

    def close(self):
        """Close the eventfds."""
        for fd in (self.tx_fd, self.rx_fd):
            if fd >= 0:
                os.close(fd)
        self.tx_fd = self.rx_fd = -1

    # -- the line

    def fill(self):
        """Let the receiver's FIFO take from the ring what it has room for."""
        size: uint32_t = FIFO if self.fcr & 1 else 1
        used: uint32_t = self.rx_head - self.rx_tail
        if self.mcr & MCR_LOOP:
            return
        if self.rts_gate and not self.mcr & MCR_RTS:
            self.received = 0
        else:
            self.received = used if used < size else size

    def waiting(self):
        return self.loop_used if self.mcr & MCR_LOOP else self.received

    def receive(self):
        value: uint8_t = 0
        i: cython.int
        if self.mcr & MCR_LOOP:
            if self.loop_used:
                value = self.loop[0]
                self.loop_used -= 1
                for i in range(self.loop_used):
                    self.loop[i] = self.loop[i + 1]
        elif self.received:
            value = self.rx[self.rx_tail & (RING - 1)]
            self.rx_tail += 1
            self.delivered += 1
            self.fill()
            if self.rx_short and self.rx_head - self.rx_tail <= RING // 2:
                self.rx_short = False
                eventfd_write(self.rx_fd, 1)
        return value

    def transmit(self, value):
        if self.mcr & MCR_LOOP:
            if self.loop_used < (FIFO if self.fcr & 1 else 1):
                self.loop[self.loop_used] = value
                self.loop_used += 1
            else:
                self.line_errors |= LSR_OVERRUN
            self.thre_pending = True
            return
        if self.tx_head - self.tx_tail == RING:  # only a guest that doesn't look at THRE gets here
            self.overruns += 1
            return
        self.tx[self.tx_head & (RING - 1)] = value
        self.tx_head += 1
        self.transmitted += 1
        if self.tx_head - self.tx_tail == 1:
            eventfd_write(self.tx_fd, 1)
        self.thr_empty = False
        self.thre_pending = False
        self.room()

    def room(self):
        """THR empties as soon as the ring has room for what a driver writes at one THRE."""
        if not self.thr_empty and RING - (self.tx_head - self.tx_tail) >= FIFO:
            self.thr_empty = True
            self.thre_pending = True

    # -- interrupts

    def interrupt(self):
        """The interrupt identification, bits 3:0 (table IV: by priority)."""
        trigger: uint32_t
        if self.ier & IER_LINE_STATUS and self.line_errors:
            return IIR_LINE_STATUS
        if self.ier & IER_RX and self.waiting():
            trigger = 1
            if self.fcr & 1:
                trigger = 0x0E080401 >> (8 * (self.fcr >> 6)) & 0xFF  # 1, 4, 8, 14
            return IIR_RX if self.waiting() >= trigger else IIR_RX_TIMEOUT
        if self.ier & IER_THRE and self.thre_pending:
            return IIR_THRE
        if self.ier & IER_MODEM_STATUS and self.modem_delta:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def update(self):
        # OUT2 gates the interrupt on a PC; loopback holds it inactive.
        level: cython.int = self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 and self.interrupt() != IIR_NONE
        if level != self.irq.level:
            self.irq.set(level)

    # -- registers

    def modem_lines(self):
        m: cython.int = self.mcr
        if not m & MCR_LOOP:
            return MSR_CTS | MSR_DSR | MSR_DCD
        # RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD
        return (m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4

    def write_mcr(self, value):
        before: uint8_t = self.modem_lines()
        after: uint8_t
        if (value ^ self.mcr) & MCR_LOOP:
            self.loop_used = 0
        self.mcr = value & 0x1F
        after = self.modem_lines()
        self.modem_delta |= ((before ^ after) & (MSR_CTS | MSR_DSR | MSR_DCD) | before & ~after & MSR_RI) >> 4
        self.fill()

    def write_fcr(self, value):
        if (value ^ self.fcr) & 1:  # a change of mode clears both FIFOs
            value |= 6
        if value & 2:
            self.rx_tail += self.received
            self.loop_used = 0
        self.fcr = value & 0xC9 if value & 1 else 0
        self.fill()
        if value & 4 and self.thr_empty:
            self.thre_pending = True

    def read_register(self, reg):
        value: uint8_t
        if reg == 0:
            return self.divisor_low if self.lcr & LCR_DLAB else self.receive()
        if reg == 1:
            return self.divisor_high if self.lcr & LCR_DLAB else self.ier
        if reg == 2:
            value = self.interrupt()
            if value == IIR_THRE:  # reading it takes it back, if it is what was read
                self.thre_pending = False
            return value | (0xC0 if self.fcr & 1 else 0)
        if reg == 3:
            return self.lcr
        if reg == 4:
            return self.mcr
        if reg == 5:
            value = self.line_errors
            self.line_errors = 0
            if self.waiting():
                value |= LSR_DATA_READY
            if self.thr_empty:
                value |= LSR_THRE | LSR_TEMT
            return value
        if reg == 6:
            value = self.modem_lines() | self.modem_delta
            self.modem_delta = 0
            return value
        return self.scratch

    def write_register(self, reg, value):
        if reg == 0:
            if self.lcr & LCR_DLAB:
                self.divisor_low = value
            else:
                self.transmit(value)
        elif reg == 1:
            if self.lcr & LCR_DLAB:
                self.divisor_high = value
            else:
                # Enabling the THRE interrupt while THR is empty raises it, each time: Linux tests for that.
                if value & ~self.ier & IER_THRE:
                    self.thre_pending = self.thr_empty
                self.ier = value & 15
        elif reg == 2:
            self.write_fcr(value)
        elif reg == 3:
            self.lcr = value
        elif reg == 4:
            self.write_mcr(value)
        elif reg == 7:
            self.scratch = value

    def read(self, offset, size):
        value: uint64_t
        lock(cython.address(self.mutex))
        value = self.read_register(offset & 7)
        self.update()
        unlock(cython.address(self.mutex))
        return value

    def write(self, offset, size, value):
        lock(cython.address(self.mutex))
        self.write_register(offset & 7, value & 0xFF)
        self.update()
        unlock(cython.address(self.mutex))

    # -- the host's end

    def send(self, data) -> int:
        """Offer bytes to the guest; returns how many were taken (0 when the ring is full).

        After a short count ``rx_fd`` becomes readable once at least half of the ring is free.
        """
        view: cython.const[cython.uchar][::1] = data
        size: uint32_t = min(len(data), RING)
        first: uint32_t
        clear: uint64_t = 0
        lock(cython.address(self.mutex))
        if self.rx_short:
            self.rx_short = False
        eventfd_read(self.rx_fd, cython.address(clear))
        free_bytes: uint32_t = RING - (self.rx_head - self.rx_tail)
        if size > free_bytes:
            size = free_bytes
        if size:
            at: uint32_t = self.rx_head & (RING - 1)
            first = RING - at if size > RING - at else size
            memcpy(self.rx + at, cython.address(view[0]), first)
            if size > first:
                memcpy(self.rx, cython.address(view[0]) + first, size - first)
            self.rx_head += size
        if size < cython.cast(uint32_t, view.shape[0]):
            self.rx_short = True
        self.fill()
        self.update()
        unlock(cython.address(self.mutex))
        return size

    def take(self, limit: cython.int = 65536) -> bytes:
        """Up to ``limit`` bytes of the guest's output; ``tx_fd`` stays readable while more waits."""
        clear: uint64_t = 0
        size: uint32_t
        first: uint32_t
        # Only this end removes bytes, so that what is counted here is still there below.
        lock(cython.address(self.mutex))
        eventfd_read(self.tx_fd, cython.address(clear))
        size = self.tx_head - self.tx_tail
        unlock(cython.address(self.mutex))
        if size > cython.cast(uint32_t, limit):
            size = limit
        out: bytes = PyBytes_FromStringAndSize(cython.NULL, size)
        if size:
            at: uint32_t = self.tx_tail & (RING - 1)
            first = RING - at if size > RING - at else size
            memcpy(PyBytes_AS_STRING(out), self.tx + at, first)
            if size > first:
                memcpy(PyBytes_AS_STRING(out) + first, self.tx, size - first)
        lock(cython.address(self.mutex))
        self.tx_tail += size
        self.room()
        self.update()
        if self.tx_head != self.tx_tail:
            eventfd_write(self.tx_fd, 1)
        unlock(cython.address(self.mutex))
        return out

    def free_space(self) -> int:
        """How many bytes ``send`` would take now."""
        return RING - (self.rx_head - self.rx_tail)

    def statistics(self) -> dict:
        """Bytes that went each way, bytes a guest lost by ignoring THRE, bytes that wait."""
        return {
            "transmitted": self.transmitted,
            "delivered": self.delivered,
            "overruns": self.overruns,
            "tx_waiting": self.tx_head - self.tx_tail,
            "rx_waiting": self.rx_head - self.rx_tail,
        }

    def save(self) -> dict:
        """Registers and what the rings hold."""
        rx = bytes([self.rx[i & (RING - 1)] for i in range(self.rx_tail, self.rx_tail + self.rx_used())])
        tx = bytes([self.tx[i & (RING - 1)] for i in range(self.tx_tail, self.tx_tail + self.tx_used())])
        return {
            "version": _VERSION,
            "rx": rx,
            "tx": tx,
            "received": self.received,
            "loop": bytes([self.loop[i] for i in range(self.loop_used)]),
            "ier": self.ier,
            "fcr": self.fcr,
            "lcr": self.lcr,
            "mcr": self.mcr,
            "scratch": self.scratch,
            "divisor": self.divisor_low | self.divisor_high << 8,
            "line_errors": self.line_errors,
            "modem_delta": self.modem_delta,
            "thr_empty": bool(self.thr_empty),
            "thre_pending": bool(self.thre_pending),
        }

    def rx_used(self) -> int:
        """Bytes that the guest has not read yet."""
        return self.rx_head - self.rx_tail

    def tx_used(self) -> int:
        """Bytes that the host has not taken yet."""
        return self.tx_head - self.tx_tail

    def load(self, state: dict):
        """Restore what ``save`` gave."""
        if state["version"] != _VERSION:
            raise ValueError(f"uart: state version {state['version']} is not {_VERSION}")
        i: cython.int
        self.rx_tail = self.tx_tail = 0
        self.rx_head = len(state["rx"])
        self.tx_head = len(state["tx"])
        for i in range(len(state["rx"])):
            self.rx[i] = state["rx"][i]
        for i in range(len(state["tx"])):
            self.tx[i] = state["tx"][i]
        self.received = state["received"]
        self.loop_used = len(state["loop"])
        for i in range(self.loop_used):
            self.loop[i] = state["loop"][i]
        self.ier = state["ier"]
        self.fcr = state["fcr"]
        self.lcr = state["lcr"]
        self.mcr = state["mcr"]
        self.scratch = state["scratch"]
        self.divisor_low = state["divisor"] & 0xFF
        self.divisor_high = state["divisor"] >> 8
        self.line_errors = state["line_errors"]
        self.modem_delta = state["modem_delta"]
        self.thr_empty = state["thr_empty"]
        self.thre_pending = state["thre_pending"]
        self.renew_events()
        self.update()
