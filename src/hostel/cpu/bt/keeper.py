"""Files of kept translations (kept.py), from Python: for the worker that adopts from one, and for who makes it."""

import struct

import cython
from cython.cimports.hostel.cpu.bt import cpuid as _cpuid
from cython.cimports.hostel.cpu.bt.cache import WISHES_ROOM, Cache, flush
from cython.cimports.hostel.cpu.bt.emit import MAX_NOTES, Note
from cython.cimports.hostel.cpu.bt.insn import FE_COUNT
from cython.cimports.hostel.cpu.bt.kept import (
    KEY_SIZE,
    MAX_PROBES,
    PART_MARKS,
    PART_WISHES,
    UNSUMMED,
    VERSION,
    Head,
    Part,
    Record,
    Wish,
    can_keep,
    keep,
    sum_up,
    tell_wishes,
)
from cython.cimports.hostel.cpu.bt.run import BtEngine, BtVcpu
from cython.cimports.hostel.cpu.bt.system import feature_present
from cython.cimports.hostel.cpu.bt.translate import translate
from cython.cimports.hostel.memory.ram import Ram
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
)

from hostel.cpu.bt.table import AMD

MAGIC = b"hostelTC"
_PART = struct.Struct("=II")
_RECORD_ROOM = cython.declare(cython.size_t, 1 << 18)


def identity(engine: BtEngine) -> bytes:
    """What translations depend on beside the guest's bytes, and beside the translator's own files."""
    m: cython.pointer(Cache) = cython.address(engine.cache)
    features = bytes(feature_present(i) for i in range(FE_COUNT))
    stubs = cython.cast(cython.p_char, m.code)[: m.start - m.code]
    sizes = bytes([cython.sizeof(Record), cython.sizeof(Wish), m.n_vcpus > 1, _cpuid.rdseed_by_rdrand, AMD, VERSION])
    return stubs + features + sizes


# ---------------------------------------------------------------- the worker's side


def check(file, key: bytes) -> int:
    """The stamp of a file for ``key`` (32 bytes), a buffer; -1: it is none, or damaged."""
    view: cython.const[cython.uchar][::1] = file
    head: cython.pointer(cython.const[Head])
    copy: Head
    size: cython.size_t = len(view)
    if size < cython.sizeof(Head):
        return -1
    head = cython.cast(cython.pointer(cython.const[Head]), cython.address(view[0]))
    if head.magic[:8] != MAGIC or head.version != VERSION or head.size != size:
        return -1
    if cython.cast(cython.p_char, head.key)[:KEY_SIZE] != key or head.slots == 0 or head.slots & (head.slots - 1):
        return -1
    if cython.sizeof(Head) + 8 * cython.cast(uint64_t, head.slots) > size:
        return -1
    copy = head[0]
    copy.sum = 0
    return head.stamp if _sum(cython.address(copy), cython.address(view[0])) == head.sum else -1


@cython.cfunc
def _sum(head: cython.pointer(cython.const[Head]), file: cython.pointer(cython.const[uint8_t])) -> uint64_t:
    table: uint64_t = sum_up(file + cython.sizeof(Head), 8 * cython.cast(cython.size_t, head.slots))
    return table ^ sum_up(cython.cast(cython.pointer(cython.const[uint8_t]), head), cython.sizeof(Head))


def use(engine: BtEngine, file) -> None:
    """Have the engine adopt from a file that ``check`` was content with, a buffer; no vCPU is running."""
    view: cython.const[cython.uchar][::1] = file
    head: cython.pointer(cython.const[Head]) = cython.cast(
        cython.pointer(cython.const[Head]), cython.address(view[0])
    )
    used = bytearray((head.slots + 7) // 8)
    marks: cython.uchar[::1] = used
    engine.kept = (file, view, used, marks)
    engine.cache.kept_used = cython.cast(cython.pointer(uint8_t), cython.address(marks[0]))
    engine.cache.kept = cython.cast(cython.pointer(uint8_t), cython.address(view[0]))


def collect(engine: BtEngine, fd: cython.int) -> None:
    """Note what is translated from now on, and write it to ``fd`` when it is much; -1: note nothing."""
    m: cython.pointer(Cache) = cython.address(engine.cache)
    m.wishes_size = cython.sizeof(Part)
    m.wishes_fd = fd
    if fd >= 0 and m.wishes == cython.NULL:
        p: cython.p_void = mmap(
            cython.NULL, WISHES_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if p == MAP_FAILED:
            m.wishes_fd = -1
        else:
            m.wishes = cython.cast(cython.pointer(uint8_t), p)


def tell(engine: BtEngine, worth: cython.size_t) -> bytes:
    """Write what is still noted, and return the part of what was adopted, if all that was noted has ``worth`` bytes;
    else b"". No vCPU is running."""
    m: cython.pointer(Cache) = cython.address(engine.cache)
    part: Part
    if m.wishes_fd < 0 or m.wishes_told + m.wishes_size < worth:
        return b""
    tell_wishes(m)
    marks = bytes(engine.kept[2]) if engine.kept else b""
    part.kind = PART_MARKS
    part.size = len(marks)
    return cython.cast(cython.p_char, cython.address(part))[: cython.sizeof(Part)] + marks


# ---------------------------------------------------------------- the maker's side


@cython.cclass
class Keeper:
    """Translates what others wish for, on a machine of its own; ``smp``: for machines of several vCPUs."""

    engine: BtEngine
    ram: Ram
    notes: cython.pointer(Note)
    room: cython.pointer(uint8_t)

    def __cinit__(self, smp: cython.bint):
        self.ram = Ram()
        self.ram.add(0, 4096)
        self.engine = BtEngine(self.ram, 2 if smp else 1, 1 << 20)
        self.notes = cython.cast(cython.pointer(Note), malloc(MAX_NOTES * cython.sizeof(Note)))
        self.room = cython.cast(cython.pointer(uint8_t), malloc(_RECORD_ROOM))
        if self.notes == cython.NULL or self.room == cython.NULL:
            raise MemoryError
        self.engine.translation.e.notes = self.notes

    def __dealloc__(self):
        free(self.notes)
        free(self.room)

    def identity(self) -> bytes:
        return identity(self.engine)

    def records(self, told: bytes, seen: set) -> list:
        """``Record``s for the parts of a file of wishes, which may hold anything; what can't be kept, and what has been
        ``seen``, is left out."""
        found = []
        p: cython.pointer(cython.const[uint8_t]) = told
        for start, end in parts(told, PART_WISHES):
            at: cython.size_t = start
            while at + cython.sizeof(Wish) <= cython.cast(cython.size_t, end):
                w: cython.pointer(cython.const[Wish]) = cython.cast(cython.pointer(cython.const[Wish]), p + at)
                size: cython.size_t = cython.sizeof(Wish) + ((w.bytes + 7) & ~7)
                if at + size > cython.cast(cython.size_t, end):
                    break
                wanted = told[at : at + size]
                at += size
                if wanted not in seen:
                    seen.add(wanted)
                    record: cython.size_t = self.record(w)
                    if record:
                        found.append(cython.cast(cython.p_char, self.room)[:record])
        return found

    @cython.cfunc
    def record(self, w: cython.pointer(cython.const[Wish])) -> cython.size_t:
        m: cython.pointer(Cache) = cython.address(self.engine.cache)
        vcpu: BtVcpu = self.engine.vcpus[0]
        page: cython.pointer(uint8_t) = m.slots[0].host
        at: uint32_t = cython.cast(uint32_t, w.pc & 4095)
        if w.low + w.bytes > 4096 or w.guest > w.bytes or not w.low <= at < w.low + w.guest or not can_keep(m, w.mode):
            return 0
        memset(page, 0xCC, 4096)
        memcpy(page + w.low, w + 1, w.bytes)
        flush(m)
        vcpu.c.rip = w.pc
        vcpu.c.exception_pending = 0
        n: uint32_t = translate(m, vcpu.c, at, w.mode)
        # it must depend on these bytes and no others
        if n == 0 or m.blocks[n].size != w.guest or m.blocks[n].low != w.low:
            return 0
        return keep(cython.address(self.engine.translation), n, page, self.room, _RECORD_ROOM)


def parts(told: bytes, kind: int = PART_MARKS) -> list:
    """(start, end) of each part of a kind; by default of those that hold marks."""
    found = []
    at = 0
    while at + cython.sizeof(Part) <= len(told):
        number, size = _PART.unpack_from(told, at)
        at += cython.sizeof(Part)
        if at + size > len(told):
            break
        if number == kind:
            found.append((at, at + size))
        at += size
    return found


def content(record: bytes) -> bytes:
    """What makes a record the same as another: all but its checksum and its age."""
    return record[UNSUMMED:]


def read(file) -> list:
    """(place in the table, age, record) of all that is in a file that ``check`` was content with, a buffer, in the
    order in which they lie there."""
    view: cython.const[cython.uchar][::1] = file
    base: cython.pointer(cython.const[uint8_t]) = cython.address(view[0])
    head: cython.pointer(cython.const[Head]) = cython.cast(cython.pointer(cython.const[Head]), base)
    table: cython.pointer(cython.const[uint64_t]) = cython.cast(
        cython.pointer(cython.const[uint64_t]), base + cython.sizeof(Head)
    )
    found = []
    i: uint32_t
    for i in range(head.slots):
        offset: uint64_t = cython.cast(uint64_t, cython.cast(uint32_t, table[i])) << 3
        if offset and offset + cython.sizeof(Record) <= head.size:
            r: cython.pointer(cython.const[Record]) = cython.cast(cython.pointer(cython.const[Record]), base + offset)
            if cython.sizeof(Record) <= r.size <= head.size - offset:
                found.append((offset, i, r.used, cython.cast(cython.p_char, r)[: r.size]))
    found.sort()
    return [row[1:] for row in found]


def make(key: bytes, stamp: cython.ulonglong, records: list) -> bytearray:
    """A file for ``key`` (32 bytes) of (age, record)s, all different."""
    magic: bytes = MAGIC
    slots: uint32_t = 64
    size: uint64_t
    offset: uint64_t
    place: uint64_t
    i: uint32_t
    while slots < 2 * len(records):
        slots *= 2
    offset = cython.sizeof(Head) + 8 * cython.cast(uint64_t, slots)
    size = offset + sum(map(len, [record for _, record in records]))
    out = bytearray(size)
    view: cython.uchar[::1] = out
    base: cython.pointer(uint8_t) = cython.address(view[0])
    head: cython.pointer(Head) = cython.cast(cython.pointer(Head), base)
    table: cython.pointer(uint64_t) = cython.cast(cython.pointer(uint64_t), base + cython.sizeof(Head))
    memcpy(head.magic, cython.cast(cython.p_char, magic), 8)
    memcpy(head.key, cython.cast(cython.p_char, key), KEY_SIZE)
    head.version = VERSION
    head.slots = slots
    head.stamp = stamp
    head.size = size
    for age, record in records:
        r: cython.pointer(Record) = cython.cast(cython.pointer(Record), base + offset)
        memcpy(r, cython.cast(cython.p_char, record), len(record))
        r.used = age
        for i in range(MAX_PROBES):  # where it isn't found in so many it isn't looked for
            place = (r.key + i) & (slots - 1)
            if table[place] == 0:
                table[place] = (r.key >> 32) << 32 | offset >> 3
                break
        offset += len(record)
    head.sum = _sum(head, base)
    return out
