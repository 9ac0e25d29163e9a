"""The two address spaces devices answer in: I/O ports and memory-mapped I/O.

A ``Space`` holds windows ``[base, base + size)``, each served by one ``Region``. An access that no
window claims reads as all ones and is dropped on write, as on a PC bus; it is counted.
Sizes are bytes (1, 2, 4 or 8); offsets are relative to the window.

``map`` and ``unmap`` hold the GIL, so that one thread changes windows at a time; accesses run without it and
look again where ``changes`` says that the windows moved under them.
"""

import sys
import traceback

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t

from hostel.base.errors import BusError


@cython.cclass
class Region:
    """One device's registers. Subclasses define ``read``/``write`` (compiled, no GIL)."""

    def __init__(self, name: str = "?"):
        self.name = name

    def read(self, offset, size):
        return cython.cast(uint64_t, -1)

    def write(self, offset, size, value):
        pass


@cython.cclass
class PyRegion(Region):
    """A region whose device is plain Python: ``read_py(offset, size) -> int``, ``write_py(offset, size, value)``.

    An exception in the device is a bug of ours, never the guest's: it is printed to the worker's log
    and the access reads as all ones, so that it can't take the VM down.
    """

    def read(self, offset, size):
        with cython.gil:
            try:
                return self.read_py(offset, size) & 0xFFFFFFFFFFFFFFFF
            except Exception:
                traceback.print_exc(file=sys.stderr)
                return cython.cast(uint64_t, -1)

    def write(self, offset, size, value):
        with cython.gil:
            try:
                self.write_py(offset, size, value)
            except Exception:
                traceback.print_exc(file=sys.stderr)

    def read_py(self, offset, size):
        return 0xFFFFFFFFFFFFFFFF

    def write_py(self, offset, size, value):
        pass


@cython.cclass
class Space:
    """A flat address space of windows that don't overlap."""

    def __cinit__(self, name: str = "io"):
        self.name = name
        self.regions = []
        self.count = 0
        self.unclaimed = 0

    def map(self, base: uint64_t, size: uint64_t, region: Region):
        """Let ``region`` answer ``[base, base + size)``; ``BusError`` where that is taken."""
        i: cython.int
        for i in range(self.count):
            if base < self.windows[i].base + self.windows[i].size and self.windows[i].base < base + size:
                raise BusError(f"{self.name}: {region.name} at {base:#x} overlaps another device")
        if self.count == 128:
            raise BusError(f"{self.name}: too many devices")
        if not any(region is known for known in self.regions):  # kept for ever: a vCPU may be in it
            self.regions.append(region)
        self.changes += 1
        fence(4)
        self.windows[self.count].base = base
        self.windows[self.count].size = size
        self.windows[self.count].region = cython.cast(cython.p_void, region)
        self.count += 1
        fence(4)
        self.changes += 1

    def unmap(self, base: uint64_t):
        """Remove the window that starts at ``base`` (PCI BARs move)."""
        i: cython.int
        for i in range(self.count):
            if self.windows[i].base == base:
                self.changes += 1
                fence(4)
                self.count -= 1
                self.windows[i] = self.windows[self.count]
                fence(4)
                self.changes += 1
                return

    def find(self, address, offset):
        """The Region behind an address, or NULL. A guest moves BARs while its other vCPUs use other devices."""
        i: cython.int
        seen: uint32_t
        region: cython.p_void
        while True:
            seen = self.changes
            region = cython.NULL
            fence(4)
            for i in range(self.count):
                if address - self.windows[i].base < self.windows[i].size:
                    region = self.windows[i].region
                    offset[0] = address - self.windows[i].base
                    break
            fence(4)
            if not seen & 1 and seen == self.changes:
                return region

    def find_native(self, address, offset):
        """As ``find``, but only a region that is ``native``."""
        region: cython.p_void = self.find(address, offset)
        if region != cython.NULL and cython.cast(Region, region).native:
            return region
        return cython.NULL

    def read(self, address, size):
        offset: uint64_t = 0
        region: cython.p_void = self.find(address, cython.address(offset))
        if region != cython.NULL:
            return cython.cast(Region, region).read(offset, size)
        self.unclaimed += 1
        return cython.cast(uint64_t, -1)

    def write(self, address, size, value):
        offset: uint64_t = 0
        region: cython.p_void = self.find(address, cython.address(offset))
        if region != cython.NULL:
            cython.cast(Region, region).write(offset, size, value)
        else:
            self.unclaimed += 1

    def read_from_python(self, address: uint64_t, size: cython.int) -> int:
        """One access, for tests and tools."""
        value: uint64_t = self.read(address, size)
        return value & cython.cast(uint64_t, -1) >> (64 - 8 * size)

    def write_from_python(self, address: uint64_t, size: cython.int, value: uint64_t):
        self.write(address, size, value)
