"""Guest-physical memory: host mappings behind guest-physical addresses.

RAM is private anonymous memory, so that a worker's fork shares it copy-on-write and KSM can merge it;
pages exist only once touched. A restored snapshot's files are mapped over it, privately (memory/image). A slot also
carries two bytes of bookkeeping a page: whether translated code came from it (writes to it must then be seen by the
translator) and whether it was written; a third, whether a file is mapped there, once there are any.

Who writes to guest memory other than a vCPU says so when it is done, and before the guest is told (``written``): the
pages are marked, and an engine that translates drops what it made of them. Who reads or writes by host address
must be gone when the Ram goes.

Limits: at most 16 slots; slots never overlap and never move while a vCPU exists. Discards of mapped pages make
``MAX_REMAPPED`` mappings at most.
"""

import mmap

import cython
from cython.cimports.cpython.bytes import PyBytes_FromStringAndSize
from cython.cimports.libc.stdint import uint8_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    mprotect,
)

from hostel.base.errors import MemoryError_

PAGE = 4096
GUARD = 2 << 20         # bytes of nothing before and behind a slot: what should miss its checks by a little faults
# Of mapped pages a discard replaces what is as long as this by fresh memory, and overwrites what is shorter: a process
# has 65,530 mappings (vm.max_map_count), and each that is made may cut another in two.
LEAST_REMAPPED = cython.declare(uint64_t, 16)   # pages
MAX_REMAPPED = cython.declare(cython.int, 8192)


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
        self.backings = []
        self.remapped = 0
        self.code_written = cython.NULL
        self.code_owner = cython.NULL

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
            flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
            guarded = mmap.mmap(-1, size + 2 * GUARD, flags=flags)
            code = _bookkeeping(size)
            dirty = _bookkeeping(size)
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
        slot.backed = cython.NULL
        slot.readonly = readonly
        # Guests fill memory densely: they take little more of it so, and a process forks ten times as fast.
        madvise(slot.host, size, MADV_HUGEPAGE)
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

    def find_host(self, host):
        i: cython.int
        address: uint64_t = cython.cast(uint64_t, host)
        for i in range(self.count):
            if address - cython.cast(uint64_t, self.slots[i].host) < self.slots[i].size:
                return cython.address(self.slots[i])
        return cython.NULL

    def written(self, host, length):
        slot: cython.pointer(Slot) = self.find_host(host)
        if slot == cython.NULL or length == 0:
            return
        offset: uint64_t = cython.cast(uint64_t, host) - cython.cast(uint64_t, slot.host)
        end: uint64_t = offset + min(length, slot.size - offset)
        page: uint64_t
        for page in range(offset >> 12, ((end - 1) >> 12) + 1):
            slot.dirty[page] = 1
        if self.code_written == cython.NULL:
            return
        # A translation that doesn't see the bytes has marked the page before it looked at them.
        full_fence()
        at: uint64_t = offset
        n: uint64_t
        while at < end:
            n = min(4096 - (at & 4095), end - at)
            if slot.code[at >> 12]:
                self.code_written(self.code_owner, slot.gpa + at, n)
            at += n

    def discard(self, gpa: uint64_t, length: uint64_t) -> bool:
        """Give whole pages back to the host: they are zero from now on. False where they aren't all memory."""
        host: cython.pointer(uint8_t) = self.host(gpa, length)
        if host == cython.NULL or gpa % PAGE or length % PAGE:
            return False
        slot: cython.pointer(Slot) = self.find(gpa)
        with cython.nogil:
            done: cython.bint = self.empty(slot, gpa - slot.gpa, length)
            self.written(host, length)
        return done

    def empty(self, slot, offset, length):
        if slot.backed == cython.NULL:
            return madvise(slot.host + offset, length, MADV_DONTNEED) == 0
        # MADV_DONTNEED would bring a file's pages back, instead of zeros.
        done: cython.bint = True
        page: uint64_t = offset >> 12
        end: uint64_t = (offset + length) >> 12
        n: uint64_t
        while page < end:
            host: cython.pointer(uint8_t) = slot.host + (page << 12)
            n = 1
            while page + n < end and slot.backed[page + n] == slot.backed[page]:
                n += 1
            if not slot.backed[page]:
                done &= madvise(host, n << 12, MADV_DONTNEED) == 0
            elif n >= LEAST_REMAPPED and self.remapped < MAX_REMAPPED and _map_zeros(host, n << 12):
                self.remapped += 1
                memset(slot.backed + page, 0, n)
            else:
                memset(host, 0, n << 12)
            page += n
        return done

    def expect_files(self, slot):
        if slot.backed != cython.NULL:
            return
        backed = _bookkeeping(slot.size)
        slot.backed = cython.cast(cython.pointer(uint8_t), cython.cast(cython.size_t, _address(backed)))
        self.backings.append(backed)

    def reset(self):
        i: cython.int
        done: cython.bint = True
        for i in range(self.count):
            slot: cython.pointer(Slot) = cython.address(self.slots[i])
            if not slot.readonly:
                if slot.backed == cython.NULL:
                    done &= madvise(slot.host, slot.size, MADV_DONTNEED) == 0
                else:
                    done &= _map_zeros(slot.host, slot.size)
                    madvise(slot.backed, slot.size >> 12, MADV_DONTNEED)
                if self.code_written != cython.NULL:
                    self.written(slot.host, slot.size)
            madvise(slot.dirty, slot.size >> 12, MADV_DONTNEED)
        self.remapped = 0
        return done

    def slot_views(self) -> list:
        """A writable view of each slot, in the order of ``regions``."""
        return [memoryview(ram) for ram, _, _ in self.mappings]

    def regions(self):
        """``[(gpa, size, readonly), ...]`` in the order they were added."""
        i: cython.int
        out = []
        for i in range(self.count):
            out.append((self.slots[i].gpa, self.slots[i].size, bool(self.slots[i].readonly)))
        return out

    def view(self, gpa: uint64_t, length: uint64_t) -> memoryview:
        """A writable window on ``length`` bytes of guest memory; ``mark_written`` is the writer's to call."""
        i: cython.int
        for i in range(self.count):
            s: cython.pointer(Slot) = cython.address(self.slots[i])
            if gpa - s.gpa < s.size and length <= s.size - (gpa - s.gpa):
                start = gpa - s.gpa
                return memoryview(self.mappings[i][0])[start : start + length]
        raise MemoryError_(f"no memory at {gpa:#x}+{length:#x}")

    def read(self, gpa, length) -> bytes:
        return bytes(self.view(gpa, length))

    def write(self, gpa: uint64_t, data):
        """Store ``data`` and tell of it."""
        self.view(gpa, len(data))[:] = data
        self.mark_written(gpa, len(data))

    def mark_written(self, gpa: uint64_t, length: uint64_t):
        """``written`` for Python; the range must be inside one slot."""
        host: cython.pointer(uint8_t) = self.host(gpa, length)
        if host == cython.NULL:
            raise MemoryError_(f"no memory at {gpa:#x}+{length:#x}")
        with cython.nogil:
            self.written(host, length)

    def dirty_pages(self, gpa: uint64_t, length: uint64_t) -> list:
        """The pages in that range which were written, by guest-physical address."""
        slot: cython.pointer(Slot) = self.find(gpa)
        page: uint64_t
        if slot == cython.NULL or length > slot.size - (gpa - slot.gpa):
            raise MemoryError_(f"no memory at {gpa:#x}+{length:#x}")
        out = []
        for page in range((gpa - slot.gpa) >> 12, (gpa - slot.gpa + length + PAGE - 1) >> 12):
            if slot.dirty[page]:
                out.append(slot.gpa + (page << 12))
        return out

    def take_dirty(self) -> list:
        """What is dirty: for each slot, in the order of ``regions``, its byte for each page. Nothing is, afterwards.

        No vCPU and no device may run, and engines must be told to forget which pages they may write to without
        marking them."""
        i: cython.int
        out = []
        for i in range(self.count):
            slot: cython.pointer(Slot) = cython.address(self.slots[i])
            out.append(PyBytes_FromStringAndSize(cython.cast(cython.p_char, slot.dirty), slot.size >> 12))
        for i in range(self.count):
            madvise(self.slots[i].dirty, self.slots[i].size >> 12, MADV_DONTNEED)
        return out

    def put_back_dirty(self, copies: list):
        """What ``take_dirty`` gave is dirty again, besides what has become so since."""
        i: cython.int
        page: uint64_t
        if [len(copy) for copy in copies] != [size // PAGE for _, size, _ in self.regions()]:
            raise MemoryError_("these aren't the dirty pages of this memory")
        for i in range(self.count):
            copy: bytes = copies[i]
            was: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), cython.cast(cython.p_char, copy))
            slot: cython.pointer(Slot) = cython.address(self.slots[i])
            with cython.nogil:
                for page in range(slot.size >> 12):
                    if was[page]:
                        slot.dirty[page] = 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _map_zeros(host: cython.pointer(uint8_t), length: uint64_t) -> cython.bint:
    """Put fresh memory where there is some."""
    flags: cython.int = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    return map(host, length, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED


def _bookkeeping(size: int) -> mmap.mmap:
    """A byte for each page of ``size`` bytes of memory."""
    return mmap.mmap(-1, size // PAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)


def _address(m) -> int:
    view: cython.uchar[::1] = m
    return cython.cast(cython.size_t, cython.address(view[0]))
