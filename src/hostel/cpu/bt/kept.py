"""Translations that outlive the machine that needed them: a block's code as a record that any other machine can adopt.

Translating takes some 25 µs a block, adopting one less than one. A block depends on its guest bytes (all that the
translator looked at), its mode, its virtual address unless it is of MODE_PIC, the translator itself and the host's
processor; the latter two are the same for all of a file (``Head.key``). So a record is found by the first of the bytes,
and holds if all of them are in the page now, whatever else is.

Code depends on where it lies in few places: jumps to stubs and between its two parts, and the numbers of its sites.
The translator notes them as it emits (``Code.notes``); adopting is to copy and to put those right. What is adopted is
a block like any other from then on: linked, invalidated, forgotten.

Nothing that a guest could have reached is ever run by another: a worker only says what it translated (``wish``: the
guest's bytes, no code), and a process that runs no guest translates it again for the file (vm/translations).
"""

import cython
from cython.cimports.hostel.cpu.bt.cache import (
    MODE_SINGLE,
    SK_LINK,
    SK_MEM,
    SK_PLAIN,
    SK_SYS,
    WISHES_ROOM,
    Block,
    Cache,
    Fault,
    Site,
    block_pc,
    enlist,
    is_modest,
)
from cython.cimports.hostel.cpu.bt.emit import MAX_NOTES, Note, fill_hole
from cython.cimports.hostel.cpu.bt.insn import Insn
from cython.cimports.hostel.cpu.bt.translate import find_slot, protect
from cython.cimports.hostel.cpu.bt.translation import Translation
from cython.cimports.hostel.cpu.bt.vcpu import MODE_CODE64, MODE_COUNT, MODE_DEBUG, MODE_TF, VCpu
from cython.cimports.hostel.memory.ram import Slot
from cython.cimports.libc.stdint import int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcmp, memcpy, memset

_PRIME_1 = cython.declare(uint64_t, 0x9E3779B185EBCA87)
_PRIME_2 = cython.declare(uint64_t, 0xC2B2AE3D27D4EB4F)


def can_keep(m, mode):
    """Whether blocks of the mode are kept and adopted: not where each instruction is looked at, and 64-bit code only,
    which doesn't depend on segments."""
    alone: cython.bint = (mode & (MODE_SINGLE | MODE_TF | MODE_DEBUG | MODE_COUNT)) != 0
    return (mode & MODE_CODE64) != 0 and not alone and not m.n_breaks


def sum_up(p, size):
    """A checksum of whole words of 8 bytes; it finds accidents."""
    word: cython.pointer(cython.const[uint64_t]) = cython.cast(cython.pointer(cython.const[uint64_t]), p)
    n: cython.size_t = size >> 3
    i: cython.size_t = 0
    a: uint64_t = _PRIME_1 ^ size
    b: uint64_t = _PRIME_2
    while i + 1 < n:
        a = (a ^ word[i]) * _PRIME_1
        a ^= a >> 29
        b = (b ^ word[i + 1]) * _PRIME_2
        b ^= b >> 31
        i += 2
    if i < n:
        a = (a ^ word[i]) * _PRIME_1
        a ^= a >> 29
    a = (a ^ (b << 23 | b >> 41)) * _PRIME_2
    return a ^ (a >> 32)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _key(bytes_: cython.pointer(cython.const[uint8_t]), at: uint32_t, pc: uint64_t, mode: uint32_t) -> uint64_t:
    """Of a block that begins with ``bytes_``, at ``at`` in its page."""
    word: uint64_t[2]
    word[0] = 0
    word[1] = 0
    memcpy(word, bytes_, min(cython.cast(uint32_t, KEY_BYTES), 4096 - at))
    h: uint64_t = (pc ^ cython.cast(uint64_t, mode) << 40) * _PRIME_1
    h = (h ^ (h >> 29) ^ word[0]) * _PRIME_2
    h = (h ^ (h >> 31) ^ word[1]) * _PRIME_1
    return h ^ (h >> 32)


# ---------------------------------------------------------------- from the file


def adopt(m, c, gpa, mode):
    """The number of a block for c.rip, whose first byte is at gpa, if one was kept, else 0; the lock is held and there
    is room."""
    slot: cython.pointer(Slot) = find_slot(m, gpa)
    if m.kept == cython.NULL or slot == cython.NULL or not can_keep(m, mode) or is_modest(m, gpa):
        return 0
    protect(m, c, gpa)
    at: uint32_t = cython.cast(uint32_t, gpa & 4095)
    pc: uint64_t = block_pc(c.rip, mode)
    page: cython.pointer(cython.const[uint8_t]) = slot.host + (gpa - slot.gpa - at)
    head: cython.pointer(cython.const[Head]) = cython.cast(cython.pointer(cython.const[Head]), m.kept)
    table: cython.pointer(cython.const[uint64_t]) = cython.cast(
        cython.pointer(cython.const[uint64_t]), m.kept + cython.sizeof(Head)
    )
    k: uint64_t = _key(page + at, at, pc, mode)
    i: uint32_t
    for i in range(MAX_PROBES):
        place: uint32_t = cython.cast(uint32_t, k + i) & (head.slots - 1)
        entry: uint64_t = table[place]
        if entry == 0:
            return 0
        if entry >> 32 != k >> 32:
            continue
        offset: uint64_t = cython.cast(uint64_t, cython.cast(uint32_t, entry)) << 3
        if offset + cython.sizeof(Record) > head.size:
            continue
        r: cython.pointer(cython.const[Record]) = cython.cast(cython.pointer(cython.const[Record]), m.kept + offset)
        if r.pc != pc or r.mode != mode or r.size > head.size - offset or not _is_sound(r):
            continue
        if memcmp(page + r.low, _guest_bytes(r), r.guest) == 0:
            m.kept_used[place >> 3] |= cython.cast(uint8_t, 1 << (place & 7))
            m.n_adopted += 1
            return _place(m, c, gpa, r)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _before_guest(r: cython.pointer(cython.const[Record])) -> cython.size_t:
    """Bytes from a record's start to its guest bytes."""
    places: cython.size_t = cython.cast(cython.size_t, r.n_site_places) + r.n_stub_places + r.n_part_places
    return (
        cython.sizeof(Record) + r.n_pool * cython.sizeof(Insn) + r.n_sites * cython.sizeof(KeptSite)
        + r.n_faults * cython.sizeof(KeptFault) + places * cython.sizeof(Place)
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _guest_bytes(r: cython.pointer(cython.const[Record])) -> cython.pointer(cython.const[uint8_t]):
    return cython.cast(cython.pointer(cython.const[uint8_t]), r) + _before_guest(r)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _is_sound(r: cython.pointer(cython.const[Record])) -> cython.bint:
    """Whether a record is what was written: a file on a disk."""
    rest: cython.size_t = cython.cast(cython.size_t, r.guest) + r.hot + r.cold
    if (_before_guest(r) + rest + 7) & ~cython.cast(cython.size_t, 7) != r.size or r.low + r.guest > 4096:
        return False
    first: cython.pointer(cython.const[uint8_t]) = cython.cast(cython.pointer(cython.const[uint8_t]), r) + UNSUMMED
    return sum_up(first, r.size - UNSUMMED) == r.sum


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _patched(s: cython.pointer(cython.const[KeptSite])) -> cython.bint:
    """Whether the site is of a jump whose distance is overwritten while others may run it."""
    return s.host != NOWHERE and (s.kind == SK_LINK or s.kind == SK_PLAIN)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _straddles(
    sites: cython.pointer(cython.const[KeptSite]), n: cython.int, start: cython.size_t, part: uint16_t
) -> cython.bint:
    """Whether such a distance in one part would lie in two cache lines if that began at ``start`` (emit.align_link)."""
    i: cython.int
    for i in range(n):
        s: cython.pointer(cython.const[KeptSite]) = sites + i
        if _patched(s) and (s.host & IN_COLD) == part and (start + (s.host & ~IN_COLD) & 63) > 60:
            return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _place(m: cython.pointer(Cache), c: cython.pointer(VCpu), gpa: uint64_t,
           r: cython.pointer(cython.const[Record])) -> uint32_t:
    """Have the block of a record."""
    pool: cython.pointer(cython.const[Insn]) = cython.cast(cython.pointer(cython.const[Insn]), r + 1)
    sites: cython.pointer(cython.const[KeptSite]) = cython.cast(
        cython.pointer(cython.const[KeptSite]), pool + r.n_pool
    )
    faults: cython.pointer(cython.const[KeptFault]) = cython.cast(
        cython.pointer(cython.const[KeptFault]), sites + r.n_sites
    )
    places: cython.pointer(cython.const[Place]) = cython.cast(cython.pointer(cython.const[Place]), faults + r.n_faults)
    guest: cython.pointer(cython.const[uint8_t]) = _guest_bytes(r)
    i: cython.int
    start: uint32_t = cython.cast(uint32_t, m.free - m.code)
    start += (r.shift - start) & 7
    while _straddles(sites, r.n_sites, start, 0):
        start += 8
    cold: uint32_t = cython.cast(uint32_t, m.cold_free - m.code)
    while _straddles(sites, r.n_sites, cold, IN_COLD):
        cold += 1
    first_site: uint32_t = m.n_sites
    number: uint32_t = m.n_blocks
    p: cython.pointer(uint8_t)
    memcpy(m.code + start, guest + r.guest, r.hot)
    memcpy(m.code + cold, guest + r.guest + r.hot, r.cold)
    for i in range(r.n_site_places):
        p = _at(m, start, cold, places.at)
        site: uint32_t = first_site + places.value
        memcpy(p, cython.address(site), 4)
        places += 1
    for i in range(r.n_stub_places):
        p = _at(m, start, cold, places.at)
        fill_hole(p, m.code + places.value)
        places += 1
    for i in range(r.n_part_places):
        p = _at(m, start, cold, places.at)
        fill_hole(p, _at(m, start, cold, places.value))
        places += 1
    for i in range(r.n_sites):
        s: cython.pointer(cython.const[KeptSite]) = sites + i
        to: cython.pointer(Site) = m.sites + m.n_sites
        to.pc = s.pc
        to.host = 0 if s.host == NOWHERE else cython.cast(uint32_t, _at(m, start, cold, s.host) - m.code)
        to.block = number
        to.extra = s.extra + (m.n_pool if s.kind == SK_SYS else 0)
        to.size = s.size
        to.kind = s.kind
        to.access = s.access
        to.span = s.span
        to.delta = s.delta
        to.window_access = s.window_access
        to.check = s.check
        if s.kind == SK_MEM:
            m.behind[m.n_sites] = to.host + s.check
        m.n_sites += 1
    for i in range(r.n_faults):
        f: cython.pointer(Fault) = m.faults + m.n_faults
        f.host = start + faults[i].host
        f.site = first_site + faults[i].site
        f.flags_in_host = faults[i].flags_in_host
        m.n_faults += 1
    memcpy(m.pool + m.n_pool, pool, r.n_pool * cython.sizeof(Insn))
    m.n_pool += r.n_pool
    b: cython.pointer(Block) = cython.address(m.blocks[number])
    m.n_blocks += 1
    memset(b, 0, cython.sizeof(Block))
    b.gpa = gpa
    b.gpa2 = 1
    b.low = (gpa & ~cython.cast(uint64_t, 4095)) + r.low
    b.size = r.guest
    b.pc = r.pc
    b.first_pc = c.rip
    b.mode = r.mode
    b.insns = r.insns
    b.start = start
    b.pad = start + r.pad
    b.entry_host = start + r.entry_host
    b.entry_mem = start + r.entry_mem
    b.end = start + r.hot
    b.cold = cold
    b.cold_host = cold + r.cold_host
    b.cold_mem = cold + r.cold_mem
    m.free = m.code + b.end
    m.cold_free = m.code + cold + r.cold
    enlist(m, number)
    return number


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _at(m: cython.pointer(Cache), start: uint32_t, cold: uint32_t, offset: uint16_t) -> cython.pointer(uint8_t):
    return m.code + ((cold if offset & IN_COLD else start) + (offset & ~IN_COLD))


# ---------------------------------------------------------------- to the file


def wish(m, number):
    """Note a block that has just been translated. The lock is held."""
    b: cython.pointer(Block) = cython.address(m.blocks[number])
    if m.wishes_fd < 0 or b.gpa2 != 1 or not can_keep(m, b.mode):
        return
    slot: cython.pointer(Slot) = find_slot(m, b.gpa)
    low: uint32_t = cython.cast(uint32_t, b.low & 4095)
    size: uint32_t = min(max(b.size, cython.cast(uint32_t, b.gpa - b.low) + KEY_BYTES), 4096 - low)
    room: cython.size_t = cython.sizeof(Wish) + ((size + 7) & ~cython.cast(cython.size_t, 7))
    if slot == cython.NULL:
        return
    if m.wishes_size + room > WISHES_ROOM:
        tell_wishes(m)
    w: cython.pointer(Wish) = cython.cast(cython.pointer(Wish), m.wishes + m.wishes_size)
    memset(w, 0, room)
    w.pc = b.pc
    w.mode = b.mode
    w.low = cython.cast(uint16_t, low)
    w.guest = cython.cast(uint16_t, b.size)
    w.bytes = cython.cast(uint16_t, size)
    memcpy(w + 1, slot.host + (b.low - slot.gpa), size)
    m.wishes_size += room


def tell_wishes(m):
    """Write what has been noted to the file; where that has no room for it, nothing is told any more."""
    part: cython.pointer(Part) = cython.cast(cython.pointer(Part), m.wishes)
    part.kind = PART_WISHES
    part.size = cython.cast(uint32_t, m.wishes_size - cython.sizeof(Part))
    m.wishes_told += part.size
    if write(m.wishes_fd, m.wishes, m.wishes_size) != m.wishes_size or m.wishes_told > MOST_WISHES:
        m.wishes_fd = -1
    m.wishes_size = cython.sizeof(Part)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _offset(b: cython.pointer(Block), host: uint32_t, end: uint32_t) -> cython.int:
    """A place in code memory as a record has it; -1: it isn't in the block."""
    if b.start <= host < b.end:
        return host - b.start
    if b.cold <= host < end:
        return host - b.cold | IN_COLD
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _keep_places(
    t: cython.pointer(Translation), b: cython.pointer(Block), end: uint32_t, kind: cython.int, first_site: uint32_t,
    to: cython.pointer(Place),
) -> cython.int:
    """The noted places of one kind: 0 sites, 1 stubs, 2 parts; their number, or -1: there is one that can't be kept."""
    m: cython.pointer(Cache) = t.m
    n: cython.int = 0
    i: cython.int
    for i in range(t.e.n_notes):
        note: cython.pointer(Note) = cython.address(t.e.notes[i])
        value: int32_t
        target: uint32_t = 0
        memcpy(cython.address(value), note.at, 4)
        at: cython.int = _offset(b, cython.cast(uint32_t, note.at - m.code), end)
        if at < 0:
            return -1
        what: cython.int = 0
        of: cython.int = cython.cast(cython.int, value - first_site)
        if not note.site:
            target = cython.cast(uint32_t, note.at + 4 + value - m.code)
            what = 1
            of = target
            if note.at + 4 + value >= m.start:
                what = 2
                of = _offset(b, target, end)
                if of >= 0 and (of & IN_COLD) == (at & IN_COLD):
                    continue  # as far away wherever they lie
        if of < 0 or of > 0xFFFF:
            return -1
        if what == kind:
            to[n].at = cython.cast(uint16_t, at)
            to[n].value = cython.cast(uint16_t, of)
            n += 1
    return n


def keep(t, number, page, out, room):
    """Write the record of a block that has just been translated, with notes, as the cache's first and only one, from
    ``page``; its bytes, or 0: it can't be kept."""
    m: cython.pointer(Cache) = t.m
    b: cython.pointer(Block) = cython.address(m.blocks[number])
    r: cython.pointer(Record) = cython.cast(cython.pointer(Record), out)
    end: uint32_t = cython.cast(uint32_t, m.cold_free - m.code)
    hot: uint32_t = b.end - b.start
    cold: uint32_t = end - b.cold
    i: uint32_t
    n: cython.int
    if b.gpa2 != 1 or hot >= IN_COLD or cold >= IN_COLD or t.e.n_notes >= MAX_NOTES:
        return 0
    most: cython.size_t = (
        cython.sizeof(Record) + m.n_pool * cython.sizeof(Insn) + m.n_sites * cython.sizeof(KeptSite)
        + m.n_faults * cython.sizeof(KeptFault) + t.e.n_notes * cython.sizeof(Place) + b.size + hot + cold + 8
    )
    if most > room:
        return 0
    memset(out, 0, most)
    r.pc = b.pc
    r.key = _key(page + (b.gpa & 4095), cython.cast(uint32_t, b.gpa & 4095), b.pc, b.mode)
    r.mode = b.mode
    r.low = cython.cast(uint16_t, b.low & 4095)
    r.guest = cython.cast(uint16_t, b.size)
    r.insns = b.insns
    r.hot = cython.cast(uint16_t, hot)
    r.cold = cython.cast(uint16_t, cold)
    r.pad = cython.cast(uint16_t, b.pad - b.start)
    r.entry_host = cython.cast(uint16_t, b.entry_host - b.start)
    r.entry_mem = cython.cast(uint16_t, b.entry_mem - b.start)
    r.cold_host = cython.cast(uint16_t, b.cold_host - b.cold)
    r.cold_mem = cython.cast(uint16_t, b.cold_mem - b.cold)
    r.shift = cython.cast(uint16_t, b.start & 7)
    r.n_pool = cython.cast(uint16_t, m.n_pool)
    r.n_sites = cython.cast(uint16_t, m.n_sites - 1)
    r.n_faults = cython.cast(uint16_t, m.n_faults)
    p: cython.pointer(uint8_t) = out + cython.sizeof(Record)
    memcpy(p, m.pool, m.n_pool * cython.sizeof(Insn))
    p += m.n_pool * cython.sizeof(Insn)
    for i in range(1, m.n_sites):
        s: cython.pointer(Site) = cython.address(m.sites[i])
        to: cython.pointer(KeptSite) = cython.cast(cython.pointer(KeptSite), p)
        n = NOWHERE
        if s.host:
            n = _offset(b, s.host, end)
        if n < 0 or s.extra > 0xFFFF:
            return 0
        to.pc = s.pc
        to.host = cython.cast(uint16_t, n)
        to.extra = cython.cast(uint16_t, s.extra)
        to.size = s.size
        to.span = s.span
        to.delta = s.delta
        to.kind = s.kind
        to.access = s.access
        to.window_access = s.window_access
        to.check = s.check
        p += cython.sizeof(KeptSite)
    for i in range(m.n_faults):
        n = _offset(b, m.faults[i].host, end)
        if n < 0 or n & IN_COLD:
            return 0
        fault: cython.pointer(KeptFault) = cython.cast(cython.pointer(KeptFault), p)
        fault.host = cython.cast(uint16_t, n)
        fault.site = cython.cast(uint16_t, m.faults[i].site - 1)
        fault.flags_in_host = cython.cast(uint16_t, m.faults[i].flags_in_host)
        p += cython.sizeof(KeptFault)
    counts: cython.int[3]
    for i in range(3):
        counts[i] = _keep_places(t, b, end, i, 1, cython.cast(cython.pointer(Place), p))
        if counts[i] < 0:
            return 0
        p += counts[i] * cython.sizeof(Place)
    r.n_site_places = cython.cast(uint16_t, counts[0])
    r.n_stub_places = cython.cast(uint16_t, counts[1])
    r.n_part_places = cython.cast(uint16_t, counts[2])
    memcpy(p, page + r.low, b.size)
    memcpy(p + b.size, m.code + b.start, hot)
    memcpy(p + b.size + hot, m.code + b.cold, cold)
    p += b.size + hot + cold
    r.size = cython.cast(uint32_t, (p - out + 7) & ~cython.cast(cython.size_t, 7))
    r.sum = sum_up(out + UNSUMMED, r.size - UNSUMMED)
    return r.size
