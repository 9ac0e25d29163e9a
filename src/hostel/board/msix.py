"""MSI-X (PCI Local Bus 3.0, 6.8.2): a function's table of messages and its pending bits, in one of its BARs.

A vector that may not be sent now (its entry is masked, or the whole function, or the function may not write to memory)
becomes pending and is sent when it may. The region is 8 KiB: the table, and from 4 KiB on the pending bits.

Lock: ``mutex`` around everything; messages are delivered while it is held, so that none comes after a mask was set.
"""

import cython
from cython.cimports.hostel.base.lock import lock, mutex_init, unlock
from cython.cimports.hostel.board.apic import ApicBus
from cython.cimports.libc.stdint import uint32_t, uint64_t

CAPABILITY = 0x11
CONTROL_ENABLE, CONTROL_MASK = 0x8000, 0x4000
REGION_SIZE = 0x2000
PBA_OFFSET = PBA
_VERSION = 1


@cython.cclass
class Msix(Region):
    """``count`` vectors whose messages go to ``bus``."""

    def __init__(self, bus: ApicBus, count: cython.int):
        i: cython.int
        if not 1 <= count <= MAX_VECTORS:
            raise ValueError(f"{count} vectors: a function has 1 to {MAX_VECTORS} here")
        mutex_init(cython.address(self.mutex), cython.NULL)
        self.name = "msix"
        self.bus = bus
        self.count = count
        for i in range(count):
            self.table[4 * i + 3] = 1  # masked

    def capability(self, bar: int, offset: int) -> tuple[bytes, bytes]:
        """The capability's body behind its header, and what of it is writable; the region is at ``offset``."""
        body = (self.count - 1).to_bytes(2, "little")
        body += (offset | bar).to_bytes(4, "little") + (offset + PBA | bar).to_bytes(4, "little")
        return body, (CONTROL_ENABLE | CONTROL_MASK).to_bytes(2, "little")

    def control(self, value: cython.int, master: cython.bint):
        """Message control, and whether the function is a bus master, are now so."""
        lock(cython.address(self.mutex))
        self.enabled = (value & CONTROL_ENABLE) != 0
        self.masked = (value & CONTROL_MASK) != 0
        self.master = master
        self.settle()
        unlock(cython.address(self.mutex))

    def settle(self):
        i: cython.int
        for i in range(self.count):
            if self.waiting[i >> 5] >> (i & 31) & 1:
                self.waiting[i >> 5] &= ~(cython.cast(uint32_t, 1) << (i & 31))
                self.send(i)

    def fire(self, vector):
        if vector < 0 or vector >= self.count:
            return
        lock(cython.address(self.mutex))
        if self.enabled:
            self.send(vector)
        unlock(cython.address(self.mutex))

    def send(self, vector):
        entry: cython.pointer(uint32_t) = cython.address(self.table[4 * vector])
        address: uint64_t
        if not self.enabled or self.masked or not self.master or entry[3] & 1:
            self.waiting[vector >> 5] |= cython.cast(uint32_t, 1) << (vector & 31)
            return
        address = entry[0] | cython.cast(uint64_t, entry[1]) << 32
        if address >> 20 != 0xFEE:  # a write to memory, or to nothing: no driver wants that
            self.misdirected += 1
            return
        self.sent += 1
        self.bus.msi(address, entry[2])

    def fire_py(self, vector: cython.int):
        """Interrupt by this vector."""
        with cython.nogil:
            self.fire(vector)

    def pending(self, vector: cython.int) -> bool:
        """Whether it waits to be sent."""
        return bool(self.waiting[vector >> 5] >> (vector & 31) & 1)

    def dword(self, offset):
        if offset < 16 * cython.cast(uint64_t, self.count):
            return self.table[offset >> 2]
        if offset >= PBA and offset < PBA + MAX_VECTORS // 8:
            return self.waiting[(offset - PBA) >> 2]
        return 0

    def read(self, offset, size):
        value: uint64_t
        lock(cython.address(self.mutex))
        value = self.dword(offset) | cython.cast(uint64_t, self.dword(offset + 4)) << 32
        unlock(cython.address(self.mutex))
        return value >> (8 * (offset & 3)) if size < 8 else value

    def write(self, offset, size, value):
        # 6.8.2: dwords and quadwords, aligned; others have no meaning
        i: cython.int
        if size < 4 or offset & (size - 1) or offset + size > 16 * cython.cast(uint64_t, self.count):
            return
        lock(cython.address(self.mutex))
        for i in range(size >> 2):
            self.table[(offset >> 2) + i] = cython.cast(uint32_t, value >> (32 * i))
        i = cython.cast(cython.int, offset >> 4)
        self.table[4 * i] &= ~cython.cast(uint32_t, 3)
        self.table[4 * i + 3] &= 1
        if self.waiting[i >> 5] >> (i & 31) & 1:
            self.waiting[i >> 5] &= ~(cython.cast(uint32_t, 1) << (i & 31))
            self.send(i)
        unlock(cython.address(self.mutex))

    def save(self) -> dict:
        """Table and pending bits; message control is configuration space's."""
        return {
            "version": _VERSION,
            "table": [self.table[i] for i in range(4 * self.count)],
            "pending": [i for i in range(self.count) if self.pending(i)],
        }

    def load(self, state: dict):
        """Restore what ``save`` gave."""
        i: cython.int
        if state["version"] != _VERSION or len(state["table"]) != 4 * self.count:
            raise ValueError("msix: the saved table is of another version or size")
        for i in range(4 * self.count):
            self.table[i] = state["table"][i]
        for i in state["pending"]:
            self.waiting[i >> 5] |= cython.cast(uint32_t, 1) << (i & 31)
