"""The code cache: what has been translated, where it lies, and how it is found and dropped.

Blocks are keyed by guest-physical address, virtual address and mode, so that code stays valid as long as its bytes
do, whatever happens to mappings. Those of MODE_PIC, of programs' code above 4 GiB, don't even have a virtual address:
they know where they are by ``VCpu.pc_page``, which their pads set, so that a shared library or a position-independent
program is translated once, wherever each process has it. Code memory is filled from start to end; a block that its
page's writer invalidates is unlinked by overwriting its four entries with jumps to a stub that looks the address up
again, and its memory comes back when the whole cache is flushed (when it is full). No address is both writable and
executable: code memory is mapped twice. Everything here and in the modules that emit code uses the addresses where it
is written; ``text`` makes of one the address where it runs, for what is jumped to from outside. Processors may hold
what they fetched through the other address (SDM vol. 3, 12.6), so that each serializes before it enters code after
``n_written`` has changed.

Code memory is one shared object, so that it can be mapped twice, and a fork wouldn't copy it. Hence ``freeze`` before
one: it makes all of ``code`` read-only, and the first write to a chunk, by whatever process, gives that process one of
its own in place of it (``unshare``, from the signal handler), or fresh memory where nothing lies yet. Other vCPUs may
run in the chunk meanwhile: the kernel swaps either view in one step, and the bytes are the same.

Lock order: ``lock`` first, then the world is stopped; ``_swapping``, a spin lock, last. Readers of the hash take no
lock: a block is complete before its number is published (TSO), and numbers are reused only while every vCPU is out of
translated code.
"""

import cython
from cython.cimports.hostel.cpu.bt.vcpu import VCpu
from cython.cimports.hostel.memory.ram import Slot
from cython.cimports.libc import errno
from cython.cimports.libc.stdint import int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memchr, memcpy, memset
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    mprotect,
    munmap,
)

_MADV_COLLAPSE = cython.declare(cython.int, 25)     # Linux 6.1
_LARGE = cython.declare(cython.size_t, 2 << 20)
_swapping = cython.declare(cython.int, 0)           # a spin lock: for the list, and for chunks that are being swapped
_first_frozen = cython.declare(cython.pointer(Cache), cython.NULL)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _map(size: cython.size_t) -> cython.p_void:
    p: cython.p_void = mmap(
        cython.NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    return cython.NULL if p == MAP_FAILED else p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _room(size: cython.size_t) -> cython.p_void:
    """Address space that can lie in large pages."""
    room: cython.size_t = size + _LARGE
    p: cython.p_void = mmap(cython.NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if p == MAP_FAILED:
        return cython.NULL
    start: cython.size_t = cython.cast(cython.size_t, p)
    at: cython.size_t = (start + _LARGE - 1) & ~(_LARGE - 1)
    end: cython.size_t = (at + size + 4095) & ~cython.cast(cython.size_t, 4095)
    if at > start:
        munmap(p, at - start)
    if start + room > end:
        munmap(cython.cast(cython.p_void, end), start + room - end)
    return cython.cast(cython.p_void, at)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _map_twice(m: cython.pointer(Cache)) -> cython.int:
    flags: cython.int = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    code: cython.p_void = _room(m.code_size)
    run: cython.p_void = _room(m.code_size)
    if code == cython.NULL or run == cython.NULL:
        return -1
    m.code = cython.cast(cython.pointer(uint8_t), code)
    m.run = cython.cast(cython.pointer(uint8_t), run)
    if mmap(code, m.code_size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED:
        return -1
    # of a shared mapping, 0 bytes moved are a second one (mremap(2)); unlike a memfd it may run wherever shared
    # libraries may, and perf takes it for what it is
    if mremap(code, 0, m.code_size, MREMAP_MAYMOVE | MREMAP_FIXED, run) == MAP_FAILED:
        return -1
    if mprotect(run, m.code_size, PROT_READ | PROT_EXEC) != 0:
        return -1
    madvise(code, m.code_size, MADV_HUGEPAGE)
    madvise(run, m.code_size, MADV_HUGEPAGE)
    return 0


def setup(m):
    """Reserve everything (touched as used); 0, or -1 without memory."""
    i: cython.int
    m.blocks = cython.cast(cython.pointer(Block), _map(MAX_BLOCKS * cython.sizeof(Block)))
    m.sites = cython.cast(cython.pointer(Site), _map(MAX_SITES * cython.sizeof(Site)))
    m.behind = cython.cast(cython.pointer(uint32_t), _map(MAX_SITES * 4))
    m.faults = cython.cast(cython.pointer(Fault), _map(MAX_FAULTS * cython.sizeof(Fault)))
    m.pool = cython.cast(cython.pointer(Insn), _map(MAX_POOL * cython.sizeof(Insn)))
    m.hash_mask = 1023
    while m.hash_mask < m.code_size >> 8:  # a block has more bytes than that
        m.hash_mask = m.hash_mask * 2 + 1
    m.hash = cython.cast(cython.pointer(uint32_t), _map(_hash_bytes(m)))
    if _map_twice(m) != 0 or not (
        m.blocks and m.sites and m.behind and m.faults and m.pool and m.hash
    ):
        return -1
    for i in range(m.n_slots):
        m.pages[i] = cython.cast(cython.pointer(uint32_t), _map((m.slots[i].size >> 12) * 4))
        m.written[i] = cython.cast(cython.pointer(uint16_t), _map((m.slots[i].size >> 12) * 2))
        m.greed[i] = cython.cast(cython.pointer(uint8_t), _map(m.slots[i].size >> 12))
        if not m.pages[i] or not m.written[i] or not m.greed[i]:
            return -1
    m.free = m.code
    m.start = m.code
    m.cold = m.code + m.code_size // 16 * 11
    m.cold_free = m.cold
    m.large = m.code
    m.large_cold = m.code + (m.code_size // 16 * 11 & ~(_LARGE - 1))
    enlarge(m)
    m.n_blocks = 1
    m.n_sites = 1
    m.wishes_fd = -1
    m.fences = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0
    m.pic_from = cython.cast(uint64_t, 1) << 32  # below it programs are linked for the address that they are at
    _init_lock(m)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _init_lock(m: cython.pointer(Cache)) -> cython.void:
    attributes: pthread_mutexattr_t
    pthread_mutexattr_init(cython.address(attributes))
    pthread_mutexattr_settype(cython.address(attributes), PTHREAD_MUTEX_RECURSIVE)
    pthread_mutex_init(cython.address(m.lock), cython.address(attributes))


def lock(m):
    """It is held for a few microseconds mostly, as long as falling asleep and being woken takes: wait for it first."""
    i: cython.int
    for i in range(LOCK_TRIES):
        if pthread_mutex_trylock(cython.address(m.lock)) == 0:
            return
        pause()
    pthread_mutex_lock(cython.address(m.lock))


def unlock(m):
    pthread_mutex_unlock(cython.address(m.lock))


def teardown(m):
    i: cython.int
    _leave_list(m)
    munmap(m.code, m.code_size)
    munmap(m.run, m.code_size)
    munmap(m.blocks, MAX_BLOCKS * cython.sizeof(Block))
    munmap(m.sites, MAX_SITES * cython.sizeof(Site))
    munmap(m.behind, MAX_SITES * 4)
    munmap(m.faults, MAX_FAULTS * cython.sizeof(Fault))
    munmap(m.pool, MAX_POOL * cython.sizeof(Insn))
    munmap(m.hash, _hash_bytes(m))
    if m.wishes:
        munmap(m.wishes, WISHES_ROOM)
    for i in range(m.n_slots):
        munmap(m.pages[i], (m.slots[i].size >> 12) * 4)
        munmap(m.written[i], (m.slots[i].size >> 12) * 2)
        munmap(m.greed[i], m.slots[i].size >> 12)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _hash(m: cython.pointer(Cache), gpa: uint64_t, pc: uint64_t, mode: uint32_t) -> uint32_t:
    h: uint64_t = gpa ^ (gpa >> 12) ^ (pc >> 20) ^ (mode * 0x9E37)
    return cython.cast(uint32_t, h ^ (h >> 16)) & m.hash_mask


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _hash_bytes(m: cython.pointer(Cache)) -> cython.size_t:
    return (cython.cast(cython.size_t, m.hash_mask) + 1) * 4


def find(m, gpa, pc, mode):
    """The number of the live block at that place, or 0."""
    pc = block_pc(pc, mode)  # noqa: F821, ours, inline in the .pxd
    n: uint32_t = m.hash[_hash(m, gpa, pc, mode)]
    while n:
        b: cython.pointer(Block) = cython.address(m.blocks[n])
        if b.gpa == gpa and b.pc == pc and b.mode == mode and not b.dead:
            return n
        n = b.next_hash
    return 0


def add_site(m, kind, pc, block):
    s: cython.pointer(Site) = cython.address(m.sites[m.n_sites])
    s.kind = cython.cast(uint8_t, kind)
    s.pc = pc
    s.block = block
    s.host = 0
    s.extra = 0
    s.size = 0
    s.access = 0
    s.span = 0
    s.delta = 0
    s.window_access = 0
    s.check = 0
    m.n_sites += 1
    return m.n_sites - 1


def add_fault(m, host, site, flags_in_host):
    f: cython.pointer(Fault) = cython.address(m.faults[m.n_faults])
    f.host = cython.cast(uint32_t, host - m.code)
    f.site = site
    f.flags_in_host = flags_in_host
    m.n_faults += 1


def find_fault(m, host):
    low: uint32_t = 0
    high: uint32_t = m.n_faults
    mid: uint32_t
    while low < high:
        mid = (low + high) >> 1
        if m.faults[mid].host < host:
            low = mid + 1
        else:
            high = mid
    if low < m.n_faults and m.faults[low].host == host:
        return cython.address(m.faults[low])
    return cython.NULL


def is_break(m, linear):
    """Whether a debugger's breakpoint is there."""
    i: cython.int
    for i in range(m.n_breaks):
        if m.breaks[i] == linear:
            return True
    return False


def full(m):
    """Whether another block might not fit: one takes at most 32 KiB on either side and 512 entries of each table."""
    return (
        m.free + 32768 > m.cold
        or m.cold_free + 32768 > m.code + m.code_size
        or m.n_blocks + 1 >= MAX_BLOCKS
        or m.n_sites + 1024 >= MAX_SITES
        or m.n_faults + 512 >= MAX_FAULTS
        or m.n_pool + 512 >= MAX_POOL
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _enlarge(m: cython.pointer(Cache), p: cython.pointer(uint8_t)) -> cython.void:
    # Best effort. Both mappings want to be told: the first call finds the memory, the second has the page table follow.
    # A region without a page is refused; a frozen one would stay frozen.
    first: cython.pointer(cython.volatile[uint8_t]) = cython.cast(cython.pointer(cython.volatile[uint8_t]), p)
    first[0] = first[0]
    madvise(p, _LARGE, _MADV_COLLAPSE)
    madvise(m.run + (p - m.code), _LARGE, _MADV_COLLAPSE)


def enlarge(m):
    """Have what is filled next in large pages, if the host has some: a big program's translations span thousands of
    small ones. A file in memory gets them by default only where the host's administrator says so."""
    while m.large < m.free + 32768 and m.large + _LARGE <= m.code + m.code_size:
        _enlarge(m, m.large)
        m.large += _LARGE
    while m.large_cold < m.cold_free + 32768 and m.large_cold + _LARGE <= m.code + m.code_size:
        _enlarge(m, m.large_cold)
        m.large_cold += _LARGE


def flush(m):
    """Forget every translation. The world is stopped and the lock is held."""
    i: cython.int
    page: uint64_t
    slot: cython.pointer(Slot)
    memset(m.hash, 0, _hash_bytes(m))
    for i in range(m.n_slots):
        slot = cython.address(m.slots[i])
        for page in range(slot.size >> 12):
            if m.pages[i][page]:
                m.pages[i][page] = 0
                m.greed[i][page] = 0
                slot.code[page] = 0
    m.free = m.start
    m.cold_free = m.cold
    _refresh(m)
    m.n_blocks = 1
    m.n_sites = 1
    m.n_faults = 0
    m.n_pool = 0
    m.generation += 1
    m.n_flushes += 1  # jump caches: run.py, renew


# ---------------------------------------------------------------- code memory that a fork shares


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _extent(m: cython.pointer(Cache)) -> cython.size_t:
    return (m.code_size + 4095) & ~cython.cast(cython.size_t, 4095)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _swap(m: cython.pointer(Cache), start: cython.size_t, end: cython.size_t, keep: cython.size_t) -> cython.int:
    """Put fresh memory in place of the code memory between two offsets, with its first ``keep`` bytes; -1: there is
    none, and nothing has changed. Also for signal handlers."""
    whole: cython.bint = keep == end - start
    # `enlarge` wants addresses and offsets in the object alike in their lower bits. No MADV_HUGEPAGE: a child that
    # translates a little shouldn't take large pages for it.
    head: cython.size_t = 0 if whole else start & (_LARGE - 1)
    size: cython.size_t = end - start
    flags: cython.int = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE
    if whole:
        flags |= MAP_POPULATE
    code: cython.p_void = mmap(cython.NULL, head + size, PROT_READ | PROT_WRITE, flags, -1, 0)
    if code == MAP_FAILED:
        return -1
    memcpy(cython.cast(cython.pointer(uint8_t), code) + head, m.run + start, keep)
    run: cython.p_void = mremap(code, 0, head + size, MREMAP_MAYMOVE, cython.NULL)
    if run == MAP_FAILED:
        munmap(code, head + size)
        return -1
    if mprotect(run, head + size, PROT_READ | PROT_EXEC) != 0:
        munmap(run, head + size)
        munmap(code, head + size)
        return -1
    # Each is one step for whoever runs there; a process that has done one of the two can't go on.
    how: cython.int = MREMAP_MAYMOVE | MREMAP_FIXED
    if mremap(cython.cast(cython.pointer(uint8_t), run) + head, size, size, how, m.run + start) == MAP_FAILED:
        abort()
    if mremap(cython.cast(cython.pointer(uint8_t), code) + head, size, size, how, m.code + start) == MAP_FAILED:
        abort()
    if head:
        munmap(run, head)
        munmap(code, head)
    memset(m.frozen + start // CHUNK, 0, (end - start + CHUNK - 1) // CHUNK)
    m.thawed[0] = min(m.thawed[0], start)
    m.thawed[1] = max(m.thawed[1], end)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _refresh(m: cython.pointer(Cache)) -> cython.void:
    """Nothing lies in code memory but the stubs: don't have what is frozen copied. If that fails, copied it is."""
    if m.frozen and memchr(m.frozen, 1, (_extent(m) + CHUNK - 1) // CHUNK) != cython.NULL:
        if _swap(m, 0, _extent(m), m.start - m.code) == 0:
            memset(m.spare, 0, cython.sizeof(m.spare))
            m.large = m.code
            m.large_cold = m.code + (cython.cast(cython.size_t, m.cold - m.code) & ~(_LARGE - 1))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _lock_swapping() -> cython.void:
    while test_and_set(cython.address(_swapping), 1):
        sched_yield()


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _leave_list(m: cython.pointer(Cache)) -> cython.void:
    global _first_frozen
    link: cython.pointer(cython.pointer(Cache)) = cython.address(_first_frozen)
    if m.frozen == cython.NULL:
        return
    _lock_swapping()
    while link[0] != m:
        link = cython.address(link[0].next_frozen)
    link[0] = m.next_frozen
    clear(cython.address(_swapping))
    munmap(m.frozen, (_extent(m) + CHUNK - 1) // CHUNK)


def freeze(m):
    """Share the code memory with the processes that are forked until ``forked``; 0, or -1 without memory. Nobody
    writes to it meanwhile: the lock is held. Whoever was forked has a lock of its own then."""
    global _first_frozen
    marks: cython.size_t = (_extent(m) + CHUNK - 1) // CHUNK
    lock(m)
    if m.frozen == cython.NULL:
        m.frozen = cython.cast(cython.pointer(uint8_t), _map(marks))
        if m.frozen == cython.NULL:
            unlock(m)
            return -1
        m.thawed[0] = 0
        m.thawed[1] = _extent(m)
        _lock_swapping()
        m.next_frozen = _first_frozen
        _first_frozen = m
        clear(cython.address(_swapping))
    if m.thawed[0] < m.thawed[1]:
        # with the marks first, what is marked in vain is copied in vain, if this fails
        memset(m.frozen, 1, marks)
        if mprotect(m.code + m.thawed[0], m.thawed[1] - m.thawed[0], PROT_READ) != 0:
            unlock(m)
            return -1
        m.thawed[0] = _extent(m)
        m.thawed[1] = 0
    m.spare[0] = _up(m.free - m.code)
    m.spare[1] = max(m.spare[0], (m.cold - m.code) & ~cython.cast(cython.size_t, CHUNK - 1))
    m.spare[2] = min(_up(m.cold_free - m.code), _extent(m))
    m.spare[3] = _extent(m)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _up(offset: cython.size_t) -> cython.size_t:
    return (offset + CHUNK - 1) & ~cython.cast(cython.size_t, CHUNK - 1)


def forked(m, child):
    """After ``freeze`` and a fork, by the thread that froze, in either process."""
    global _swapping
    if child:
        _swapping = 0  # another machine's thread may have held it
        _init_lock(m)
    else:
        unlock(m)


def unshare(address):
    """For a signal handler: a write to code memory at that address was refused. True: it was frozen and isn't any
    more."""
    m: cython.pointer(Cache)
    at: cython.size_t = 0
    start: cython.size_t
    end: cython.size_t
    i: cython.int
    done: cython.bint = False
    before: cython.int = errno.errno
    _lock_swapping()
    m = _first_frozen
    while m != cython.NULL:
        at = cython.cast(cython.size_t, address) - cython.cast(cython.size_t, m.code)
        if at < _extent(m):
            break
        m = m.next_frozen
    if m != cython.NULL:
        start = at & ~cython.cast(cython.size_t, CHUNK - 1)
        end = min(start + CHUNK, _extent(m))
        if not m.frozen[at // CHUNK]:
            done = True  # another thread was faster
        else:
            for i in range(0, 4, 2):
                if m.spare[i] <= at < m.spare[i + 1] and _swap(m, m.spare[i], m.spare[i + 1], 0) == 0:
                    m.spare[i + 1] = m.spare[i]
                    done = True
                    break
            if not done:
                done = _swap(m, start, end, end - start) == 0
                m.n_copied += 1
    clear(cython.address(_swapping))
    errno.errno = before
    return done


def find_page(m, gpa, page):
    """The number of the slot in which that is, and of the page there; -1 where there is no memory."""
    i: cython.int
    for i in range(m.n_slots):
        if gpa - m.slots[i].gpa < m.slots[i].size:
            page[0] = (gpa - m.slots[i].gpa) >> 12
            return i
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _page_head(
    m: cython.pointer(Cache), gpa: uint64_t, slot: cython.pointer(cython.pointer(Slot))
) -> cython.pointer(uint32_t):
    page: uint64_t = 0
    i: cython.int = find_page(m, gpa, cython.address(page))
    if i < 0:
        return cython.NULL
    slot[0] = cython.address(m.slots[i])
    return cython.address(m.pages[i][page])


def enlist(m, number):
    """Publish a finished block and let its pages remember it; the caller has protected them."""
    b: cython.pointer(Block) = cython.address(m.blocks[number])
    slot: cython.pointer(Slot)
    m.n_written += 1
    head: cython.pointer(uint32_t) = _page_head(m, b.gpa, cython.address(slot))
    if head:
        b.next_page = head[0]
        head[0] = number
    if b.gpa2 != 1:
        head = _page_head(m, b.gpa2, cython.address(slot))
        if head:
            b.next_page2 = head[0]
            head[0] = number
    # jumps that are linked to a dead block of the same place come here from now on
    h: uint32_t = _hash(m, b.gpa, b.pc, b.mode)
    link: cython.pointer(uint32_t) = cython.address(m.hash[h])
    while link[0]:
        old: cython.pointer(Block) = cython.address(m.blocks[link[0]])
        if old.dead and b.gpa2 == 1 and old.gpa == b.gpa and old.pc == b.pc and old.mode == b.mode:
            _redirect(m, old.pad, m.code + b.pad)
            _redirect(m, old.entry_host, m.code + b.entry_host)
            _redirect(m, old.entry_mem, m.code + b.entry_mem)
            link[0] = old.next_hash
        else:
            link = cython.address(old.next_hash)
    b.next_hash = m.hash[h]
    m.hash[h] = number


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _redirect(m: cython.pointer(Cache), entry: uint32_t, target: cython.pointer(uint8_t)) -> cython.void:
    # An entry's first five bytes lie in an aligned word, so that a processor that fetches meanwhile sees the old or the
    # new jump.
    p: cython.pointer(uint8_t) = m.code + entry
    word: uint64_t
    rel: int32_t = cython.cast(int32_t, target - (p + 5))
    at: uint32_t = entry & 7
    memcpy(cython.address(word), p - at, 8)
    bytes_: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), cython.address(word)) + at
    bytes_[0] = 0xE9
    memcpy(bytes_ + 1, cython.address(rel), 4)
    cython.cast(cython.pointer(uint64_t), p - at)[0] = word


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _kill(m: cython.pointer(Cache), b: cython.pointer(Block)) -> cython.void:
    b.dead = 1
    m.n_written += 1
    _redirect(m, b.pad, m.look_up)
    _redirect(m, b.entry_host, m.code + b.cold_host)
    _redirect(m, b.entry_mem, m.code + b.cold_mem)
    m.n_invalidated += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _had_enough(m: cython.pointer(Cache), gpa: uint64_t) -> cython.bint:
    """Count a write to a page with code; whether all its blocks should go. Memory that held a program and holds data
    now is written word by word, each time by way of the monitor as long as a block is left. A page that is both, time
    and again, loses them ever more rarely."""
    page: uint64_t = 0
    i: cython.int = find_page(m, gpa, cython.address(page))
    if i < 0:
        return False
    w: cython.pointer(uint16_t) = cython.address(m.written[i][page])
    drops: cython.int = w[0] >> DROP_SHIFT
    w[0] += 1
    if (w[0] & ((1 << DROP_SHIFT) - 1)) < WRITES_BORNE << drops:
        return False
    w[0] = cython.cast(uint16_t, (drops + 1 if drops < MOST_DROPS - 1 else drops) << DROP_SHIFT)
    return True


def is_modest(m, gpa):
    """Whether blocks of the page ask for no writes that a branch may spare."""
    page: uint64_t = 0
    i: cython.int = find_page(m, gpa, cython.address(page))
    return i >= 0 and m.greed[i][page] >= GREED_BORNE


def bear_greed(m, me, block):
    """A window of a block asked to write where it may not, without need. What does so time and again is made anew."""
    page: uint64_t = 0
    i: cython.int = find_page(m, block.gpa, cython.address(page))
    if i < 0:
        return
    borne: cython.pointer(uint8_t) = cython.address(m.greed[i][page])
    if borne[0] < GREED_BORNE:
        borne[0] += 1
    else:
        invalidate(m, me, block.gpa, 1)


def invalidate(m, me, gpa, size):
    """Drop the blocks that hold any byte of [gpa, gpa+size), which lies in one page, and sometimes all of the page's;
    True if any was dropped.

    ``me`` is the calling vCPU, outside translated code, or NULL for a device.
    """
    slot: cython.pointer(Slot) = cython.NULL
    killed: cython.bint = False
    n: uint32_t
    b: cython.pointer(Block)
    link: cython.pointer(uint32_t)
    page: uint64_t = gpa >> 12
    lock(m)
    link = _page_head(m, gpa, cython.address(slot))
    if link == cython.NULL:
        unlock(m)
        return False
    head: cython.pointer(uint32_t) = link
    stopped: cython.bint = False
    if head[0] and _had_enough(m, gpa):
        gpa &= ~cython.cast(uint64_t, 0xFFF)
        size = 4096
    n = link[0]
    while n:
        b = cython.address(m.blocks[n])
        second: cython.bint = b.gpa >> 12 != page
        overlaps: cython.bint
        if b.gpa2 != 1:
            overlaps = True
        else:
            overlaps = b.low < gpa + size and gpa < b.low + b.size
        if not b.dead and overlaps:
            if not stopped and (m.n_vcpus > 1 or me == cython.NULL):
                stop_world(m, me)
                stopped = True
            _kill(m, b)
            killed = True
        if b.dead:
            link[0] = b.next_page2 if second else b.next_page
        else:
            link = cython.address(b.next_page2) if second else cython.address(b.next_page)
        n = link[0]
    if head[0] == 0:
        slot.code[(gpa - slot.gpa) >> 12] = 0
    if stopped:
        resume_world(m)
    unlock(m)
    return killed


def stop_world(m, me):
    """Wait until no other vCPU runs translated code; nests. The lock is held, so one at a time stops the world."""
    i: cython.int
    v: cython.pointer(VCpu)
    m.world_stop += 1
    fence()
    if me == cython.NULL and m.n_vcpus == 1 and not m.fences:
        # a device's thread: a vCPU that is alone has no fence between its in_guest and its look at world_stop
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0)
    for i in range(m.n_vcpus):
        v = m.vcpus[i]
        if v != me:
            v.poll = 0
            while cython.cast(cython.pointer(cython.volatile[cython.int]), cython.address(v.in_guest))[0]:
                sched_yield()


def resume_world(m):
    fence()
    m.world_stop -= 1
