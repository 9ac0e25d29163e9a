"""Guest-physical memory: host mappings behind guest-physical addresses.

RAM is private anonymous memory, so that a worker's fork shares it copy-on-write and KSM can merge it;
pages exist only once touched. A slot also carries two bytes of bookkeeping a page: whether translated
code came from it (writes to it must then be seen by the translator) and whether it was written.

Limits: at most 16 slots; slots never overlap and never move while a vCPU exists.
"""

import mmap

import cython
from cython.cimports.libc.stdint import uint8_t, uint64_t
from cython.cimports.posix.mman import mprotect

from hostel.base.errors import MemoryError_

PAGE = 4096
GUARD = 2 << 20         # bytes of nothing before and behind a slot: what should miss its checks by a little faults
PROT_NONE = 0
MAP_NORESERVE = 0x4000  # missing from the mmap module; asm-generic/mman.h


@cython.cclass
class Ram:
    """The memory of one machine.

    Addresses and lengths are bytes. ``read``/``write`` are for loaders, devices and tests and raise
    ``MemoryError_`` where the range is not wholly inside one slot.
    """

    def __cinit__(self):
        self.count = 0
        self.size = 0
        self.mappings = []

    def add(self, gpa: uint64_t, size: uint64_t, readonly: cython.bint = False):
        """Back ``size`` bytes from guest-physical ``gpa`` with zeroed host memory."""
        if gpa % PAGE or size % PAGE or not size:
            raise MemoryError_(f"slot {gpa:#x}+{size:#x} is not page aligned")
        if self.count == 16:
            raise MemoryError_("too many memory slots")
        i: cython.int
        for i in range(self.count):
            if gpa < self.slots[i].gpa + self.slots[i].size and self.slots[i].gpa < gpa + size:
                raise MemoryError_(f"slot {gpa:#x}+{size:#x} overlaps another")
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
            guarded = mmap.mmap(-1, size + 2 * GUARD, flags=flags)
            code = mmap.mmap(-1, size // PAGE, flags=flags)
            dirty = mmap.mmap(-1, size // PAGE, flags=flags)
        except (OSError, OverflowError) as e:
            raise MemoryError_(f"the host cannot give {size >> 20} MiB of memory: {e}") from e
        whole = _address(guarded)
        for guard in (whole, whole + GUARD + size):
            if mprotect(cython.cast(cython.p_void, cython.cast(cython.size_t, guard)), GUARD, PROT_NONE) != 0:
                raise MemoryError_("the host cannot guard the memory")
        ram = memoryview(guarded)[GUARD : GUARD + size]
        views = []
        for m in (ram, code, dirty):
            views.append(_address(m))
        slot: cython.pointer(Slot) = cython.address(self.slots[self.count])
        slot.gpa = gpa
        slot.size = size
        slot.host = cython.cast(cython.pointer(uint8_t), cython.cast(cython.size_t, views[0]))
        slot.code = cython.cast(cython.pointer(uint8_t), cython.cast(cython.size_t, views[1]))
        slot.dirty = cython.cast(cython.pointer(uint8_t), cython.cast(cython.size_t, views[2]))
        slot.readonly = readonly
        self.mappings.append((ram, code, dirty))
        self.count += 1
        if not readonly:
            self.size += size

    def find(self, gpa):
        i: cython.int
        for i in range(self.count):
            if gpa - self.slots[i].gpa < self.slots[i].size:
                return cython.address(self.slots[i])
        return cython.NULL

    def host(self, gpa, length):
        slot: cython.pointer(Slot) = self.find(gpa)
        if slot == cython.NULL or length > slot.size - (gpa - slot.gpa):
            return cython.NULL
        return slot.host + (gpa - slot.gpa)

    def regions(self):
        """``[(gpa, size, readonly), ...]`` in the order they were added."""
        i: cython.int
        out = []
        for i in range(self.count):
            out.append((self.slots[i].gpa, self.slots[i].size, bool(self.slots[i].readonly)))
        return out

    def view(self, gpa: uint64_t, length: uint64_t) -> memoryview:
        """A writable window on ``length`` bytes of guest memory; writes through it are not marked dirty."""
        i: cython.int
        for i in range(self.count):
            s: cython.pointer(Slot) = cython.address(self.slots[i])
            if gpa - s.gpa < s.size and length <= s.size - (gpa - s.gpa):
                start = gpa - s.gpa
                return memoryview(self.mappings[i][0])[start : start + length]
        raise MemoryError_(f"no memory at {gpa:#x}+{length:#x}")

    def read(self, gpa, length) -> bytes:
        return bytes(self.view(gpa, length))

    def write(self, gpa, data):
        """Store ``data`` for a loader, before the vCPUs run."""
        self.view(gpa, len(data))[:] = data
        slot: cython.pointer(Slot) = self.find(gpa)
        first: uint64_t = (cython.cast(uint64_t, gpa) - slot.gpa) >> 12
        last: uint64_t = (cython.cast(uint64_t, gpa) - slot.gpa + max(len(data), 1) - 1) >> 12
        page: uint64_t
        for page in range(first, last + 1):
            slot.dirty[page] = 1


def _address(m) -> int:
    view: cython.uchar[::1] = m
    return cython.cast(cython.size_t, cython.address(view[0]))
