"""Between a virtio card's registers and its queues, without the GIL: notifications in, interrupts out.

One BAR holds it all (virtio 1.2, 4.1.4): common configuration, ISR status, the device's configuration, notifications
(a dword a queue), the MSI-X table and its pending bits.
"""

import sys
import traceback

import cython
from cython.cimports.hostel.board.msix import Msix
from cython.cimports.hostel.devices.virtio.queue import Queue
from cython.cimports.libc.stdint import uint32_t, uint64_t

LAYOUT = {"common": COMMON, "isr": ISR, "config": CONFIG, "notify": NOTIFY, "msix": MSIX}
SIZE = BAR_SIZE
MULTIPLIER = NOTIFY_MULTIPLIER


@cython.cclass
class PciInterrupts(Transport):
    """Per-queue vectors, or the pin with its ISR status."""

    def __init__(self, msix: Msix, card: object):
        self.msix = msix
        self.card = card
        self.reset()

    def reset(self):
        """No vectors, nothing pending at the pin."""
        i: cython.int
        for i in range(MAX_QUEUES):
            self.vectors[i] = NO_VECTOR
        self.config_vector = NO_VECTOR
        self.isr = 0

    def get_vector(self, queue: cython.int) -> int:
        """The vector of a queue, or (-1) of configuration changes."""
        return self.config_vector if queue < 0 else self.vectors[queue]

    def set_vector(self, queue: cython.int, vector: cython.int):
        """A vector that doesn't exist is none (4.1.5.1.2.1)."""
        if vector >= self.msix.count:
            vector = NO_VECTOR
        if queue < 0:
            self.config_vector = vector
        else:
            self.vectors[queue] = vector

    def interrupt(self, queue):
        if self.msix.enabled:
            self.msix.fire(self.vectors[queue])
        else:
            self.by_pin(ISR_QUEUE)

    def config_interrupt(self):
        if self.msix.enabled:
            atomic_or(cython.address(self.isr), ISR_CONFIG)
            self.msix.fire(self.config_vector)
        else:
            self.by_pin(ISR_CONFIG)

    def by_pin(self, bit):
        if atomic_or(cython.address(self.isr), bit) == 0:
            with cython.gil:
                self.card.pin_changed()

    def get_isr(self) -> int:
        return self.isr

    def set_isr(self, value: uint32_t):
        """For saved state."""
        self.isr = value

    def take_isr(self) -> int:
        """ISR status, which reading clears."""
        return atomic_and(cython.address(self.isr), 0)

    def config_changed(self):
        """Tell the driver that the device's configuration is another."""
        with cython.nogil:
            self.config_interrupt()


@cython.cclass
class Registers(Region):
    """The BAR of ``card``, whose ``read_register`` and ``write_register`` answer what isn't handled here."""

    def __init__(self, card: object, msix: Msix, queues: list):
        i: cython.int
        self.name = card.name
        self.card = card
        self.msix = msix
        self.queues = queues
        self.count = len(queues)
        for i in range(self.count):
            queue: Queue = queues[i]
            self.doorbells[i] = cython.cast(cython.p_void, queue)

    def read(self, offset, size):
        if offset >= MSIX:
            return self.msix.read(offset - MSIX, size)
        if offset >= NOTIFY:
            return 0
        with cython.gil:
            try:
                return self.card.read_register(offset, size)
            except Exception:
                traceback.print_exc(file=sys.stderr)
                return cython.cast(uint64_t, -1)

    def write(self, offset, size, value):
        queue: uint64_t
        if offset >= MSIX:
            self.msix.write(offset - MSIX, size, value)
        elif offset >= NOTIFY:
            queue = (offset - NOTIFY) // NOTIFY_MULTIPLIER
            if queue < cython.cast(uint64_t, self.count):
                cython.cast(Queue, self.doorbells[queue]).ring()
        else:
            with cython.gil:
                try:
                    self.card.write_register(offset, size, value)
                except Exception:
                    traceback.print_exc(file=sys.stderr)

    def read_py(self, offset: uint64_t, size: cython.int) -> int:
        """An access through configuration space."""
        with cython.nogil:
            value: uint64_t = self.read(offset, size)
        return value & (cython.cast(uint64_t, -1) >> (64 - 8 * size))

    def write_py(self, offset: uint64_t, size: cython.int, value: uint64_t):
        with cython.nogil:
            self.write(offset, size, value)
