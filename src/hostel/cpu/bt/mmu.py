"""Guest address translation: page walks, the software TLB, and linear memory for the monitor.

A TLB entry stands for one 4 KiB page as one kind of requester sees it (``TLB_*``). ``tag_r``/``tag_w`` hold
the page's address where translated code may go straight to memory, ``distance`` away; another page's matches nothing.
So everything that needs attention shows as a missing tag: a page not yet dirty, ROM, a page that holds
translated code, memory-mapped I/O (never entered).

Each cache keeps lists of the indices in use, apart for global and other entries, so that a flush costs what
was filled since the last one and a CR3 write doesn't even look at the kernel's global entries. Large pages
are entered in 4 KiB pieces; ``large_pages`` and ``giant_pages`` remember, by hash, where such pieces may be,
so that INVLPG can drop all pieces of a page and yet costs nothing for ordinary pages.

PCIDs: the tables hold one address space. A CR3 write drops all that is not global, which the SDM allows
(vol. 3, 4.10.4.1), but puts away what costs a look-up through the monitor to find again, user mode's jump cache and the
pages that came last. They come back when the guest says by bit 63 of CR3 that they are still good.

Threads: only the owner touches a VCpu's caches, but for ``protect_page``, which clears tags from any thread.
"""

import cython
from cython.cimports.hostel.cpu.bt.insn import FS, SS
from cython.cimports.hostel.cpu.bt.vcpu import (
    ACCESS_EXEC,
    ACCESS_READ,
    ACCESS_WRITE,
    FL_AC,
    ITLB_SIZE,
    JUMP_SIZE,
    MODE_CODE64,
    SECOND_SIZE,
    SPACE_PAGES,
    SPACE_SIZE,
    SPACE_WRITE,
    SPACES,
    TLB_BITS,
    TLB_COUNT,
    TLB_KERNEL,
    TLB_KERNEL_AC,
    TLB_MOST,
    TLB_SIZE,
    TLB_USER,
    X_GP,
    X_PF,
    X_SS,
    Segment,
    Space,
    VCpu,
)
from cython.cimports.hostel.cpu.bt.x86 import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    M32,
    PF_I,
    PF_P,
    PF_RSVD,
    PF_U,
    PF_W,
    PTE_A,
    PTE_ADDRESS,
    PTE_D,
    PTE_G,
    PTE_P,
    PTE_PS,
    PTE_U,
    PTE_W,
    SEG_CODE,
    SEG_DB,
    SEG_DOWN,
    SEG_P,
    SEG_WRITE,
    canonical,
    compare_and_swap,
    compare_and_swap32,
    full_fence,
)
from cython.cimports.hostel.cpu.engine import DEBUG_READ, DEBUG_WRITE
from cython.cimports.hostel.memory.ram import Slot
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset

on_code_write = cython.NULL


def raise_exception(c, vector):
    c.exception_pending = 1
    c.exc_vector = vector
    c.exc_has_error = 0
    c.exc_error = 0
    c.exc_soft = 0
    c.exc_trap = 0


def raise_error(c, vector, error):
    raise_exception(c, vector)
    c.exc_has_error = 1
    c.exc_error = error


def raise_page_fault(c, va, error):
    raise_error(c, X_PF, error)
    c.exc_cr2 = va


def raise_segment(c, seg):
    raise_error(c, X_SS if seg == SS else X_GP, 0)
    return -1


def table_for(c, cpl):
    if cpl == 3:
        return TLB_USER
    if c.cr4 & CR4_SMAP and not c.eflags & FL_AC:
        return TLB_KERNEL
    return TLB_KERNEL_AC


def system_table(c):
    return TLB_KERNEL if c.cr4 & CR4_SMAP else TLB_KERNEL_AC


def current_table(c):
    return table_for(c, c.cpl)


def find_slot(c, gpa):
    i: cython.int
    for i in range(c.slot_count):
        if gpa - c.slots[i].gpa < c.slots[i].size:
            return cython.address(c.slots[i])
    return cython.NULL


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _host(c: cython.pointer(VCpu), gpa: uint64_t) -> cython.pointer(uint8_t):
    """Host address of guest-physical memory, NULL where there is none; the first slot is nearly always it."""
    offset: uint64_t = gpa - c.slots[0].gpa
    if offset < c.slots[0].size:
        return c.slots[0].host + offset
    slot: cython.pointer(Slot) = find_slot(c, gpa)
    if slot == cython.NULL:
        return cython.NULL
    return slot.host + (gpa - slot.gpa)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _set_bits(
    c: cython.pointer(VCpu), gpa: uint64_t, old: uint64_t, bits: uint64_t, size: cython.int
) -> cython.bint:
    """Set A/D in the paging-structure entry at ``gpa`` if it is still ``old``; in ROM they stay."""
    slot: cython.pointer(Slot) = find_slot(c, gpa)
    if slot == cython.NULL or slot.readonly:
        return True
    offset: uint64_t = gpa - slot.gpa
    page: uint64_t = offset >> 12
    if slot.code[page] and on_code_write != cython.NULL:
        on_code_write(c, gpa, size)
    slot.dirty[page] = 1
    if size == 8:
        return compare_and_swap(cython.cast(cython.pointer(uint64_t), slot.host + offset), old, old | bits)
    return compare_and_swap32(
        cython.cast(cython.pointer(uint32_t), slot.host + offset),
        cython.cast(uint32_t, old),
        cython.cast(uint32_t, old | bits),
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fault(
    c: cython.pointer(VCpu), va: uint64_t, access: cython.int, table: cython.int, error: uint32_t
) -> cython.int:
    if access & ACCESS_WRITE:
        error |= PF_W
    if table == TLB_USER:
        error |= PF_U
    if access == ACCESS_EXEC and (c.cr4 & CR4_SMEP or (c.cr4 & CR4_PAE and c.efer & EFER_NXE)):
        error |= PF_I
    raise_page_fault(c, va, error)
    return -1


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _permitted(
    c: cython.pointer(VCpu), rights: uint64_t, nx: cython.bint, access: cython.int, table: cython.int
) -> cython.bint:
    """SDM vol. 3, 4.6.1; ``rights`` is the AND of all entries, ``nx`` the OR of their XD bits."""
    if access == ACCESS_EXEC:
        if nx:
            return False
        if table == TLB_USER:
            return (rights & PTE_U) != 0
        return not (rights & PTE_U and c.cr4 & CR4_SMEP)
    if table == TLB_USER:
        if not rights & PTE_U:
            return False
        return not (access & ACCESS_WRITE) or (rights & PTE_W) != 0
    if table == TLB_KERNEL and rights & PTE_U and c.cr4 & CR4_SMAP:
        return False
    return not (access & ACCESS_WRITE) or (rights & PTE_W) != 0 or not c.cr0 & CR0_WP


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _writable(c: cython.pointer(VCpu), rights: uint64_t, leaf: uint64_t, table: cython.int) -> cython.int:
    if not leaf & PTE_D:
        return 0
    if rights & PTE_W:
        return 1
    return 1 if table != TLB_USER and not c.cr0 & CR0_WP else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _walk32(
    c: cython.pointer(VCpu),
    va: uint64_t,
    access: cython.int,
    table: cython.int,
    gpa: cython.pointer(uint64_t),
    size_log2: cython.pointer(cython.int),
    attr: cython.pointer(cython.int),
) -> cython.int:
    """32-bit paging (SDM vol. 3, 4.3), with 4 MiB pages and PSE-36."""
    pde: uint64_t
    pte: uint64_t = 0
    rights: uint64_t
    pte_gpa: uint64_t = 0
    host: cython.pointer(uint8_t)
    want: uint64_t = PTE_A | (PTE_D if access & ACCESS_WRITE else 0)
    reserved: uint64_t
    pde_gpa: uint64_t = (c.cr3 & M32 & ~0xFFF) + ((va >> 22) & 1023) * 4
    while True:
        host = _host(c, pde_gpa)
        pde = cython.cast(cython.pointer(uint32_t), host)[0] if host else M32
        if not pde & PTE_P:
            return _fault(c, va, access, table, 0)
        if pde & PTE_PS and c.cr4 & CR4_PSE:
            # address bits 39:32 are in 20:13; those that the processor doesn't have, and 21, are reserved
            reserved = 0x200000
            if c.phys_bits < 40:
                reserved |= (0x1FE000 << (c.phys_bits - 32)) & 0x1FE000
            if pde & reserved:
                return _fault(c, va, access, table, PF_P | PF_RSVD)
            if not _permitted(c, pde, False, access, table):
                return _fault(c, va, access, table, PF_P)
            if (pde & want) != want and not _set_bits(c, pde_gpa, pde, want, 4):
                continue
            gpa[0] = (pde & PTE_ADDRESS & ~0x3FFFFF) | ((pde & 0x1FE000) << 19) | (va & 0x3FFFFF)
            size_log2[0] = 22
            pte = pde
            rights = pde
            break
        pte_gpa = (pde & PTE_ADDRESS) + ((va >> 12) & 1023) * 4
        host = _host(c, pte_gpa)
        pte = cython.cast(cython.pointer(uint32_t), host)[0] if host else M32
        if not pte & PTE_P:
            return _fault(c, va, access, table, 0)
        rights = pde & pte
        if not _permitted(c, rights, False, access, table):
            return _fault(c, va, access, table, PF_P)
        if not pde & PTE_A and not _set_bits(c, pde_gpa, pde, PTE_A, 4):
            continue
        if (pte & want) != want and not _set_bits(c, pte_gpa, pte, want, 4):
            continue
        gpa[0] = (pte & PTE_ADDRESS) | (va & 0xFFF)
        size_log2[0] = 12
        break
    attr[0] = _writable(c, rights, pte | want, table) | (2 if pte & PTE_G else 0)
    return 0


def walk(c, va, access, table, gpa, size_log2, attr):
    # 4-level and PAE paging (SDM vol. 3, 4.4 and 4.5)
    entry = cython.declare(uint64_t[4])
    where = cython.declare(uint64_t[4])
    e: uint64_t
    at: uint64_t
    base: uint64_t
    rights: uint64_t
    nx: uint64_t
    reserved: uint64_t  # in every entry
    bits: uint64_t
    want: uint64_t
    host: cython.pointer(uint8_t)
    shift: cython.int
    level: cython.int
    i: cython.int
    if not c.cr0 & CR0_PG:
        gpa[0] = va
        size_log2[0] = 12
        attr[0] = 1
        return 0
    if not c.cr4 & CR4_PAE:
        return _walk32(c, va, access, table, gpa, size_log2, attr)
    long_mode: cython.bint = (c.efer & EFER_LMA) != 0
    if long_mode and not canonical(va):
        return raise_segment(c, c.access_seg)
    if long_mode:
        reserved = (cython.cast(uint64_t, 1) << 52) - (cython.cast(uint64_t, 1) << c.phys_bits)
    else:
        reserved = (cython.cast(uint64_t, 1) << 63) - (cython.cast(uint64_t, 1) << c.phys_bits)
    if not c.efer & EFER_NXE:
        reserved |= cython.cast(uint64_t, 1) << 63
    while True:
        level = 0
        rights = PTE_W | PTE_U
        nx = 0
        if long_mode:
            base = c.cr3 & PTE_ADDRESS
            shift = 39
        else:
            base = c.pdpte[(va >> 30) & 3]
            if not base & PTE_P:
                return _fault(c, va, access, table, 0)
            base &= PTE_ADDRESS
            shift = 21
        while True:
            at = base + ((va >> shift) & 511) * 8
            host = _host(c, at)
            e = cython.cast(cython.pointer(uint64_t), host)[0] if host else cython.cast(uint64_t, -1)
            if not e & PTE_P:
                return _fault(c, va, access, table, 0)
            if e & reserved:
                return _fault(c, va, access, table, PF_P | PF_RSVD)
            entry[level] = e
            where[level] = at
            rights &= e
            nx |= e
            if shift == 12:
                break
            if e & PTE_PS:
                # a PML4 entry's PS bit is reserved, and a large page's address bits below its size
                if shift == 39 or e & ((cython.cast(uint64_t, 1) << shift) - 0x2000):
                    return _fault(c, va, access, table, PF_P | PF_RSVD)
                break
            base = e & PTE_ADDRESS
            shift -= 9
            level += 1
        if not _permitted(c, rights, (nx >> 63) != 0, access, table):
            return _fault(c, va, access, table, PF_P)
        want = PTE_A | PTE_D if access & ACCESS_WRITE else PTE_A
        for i in range(level):
            if not entry[i] & PTE_A and not _set_bits(c, where[i], entry[i], PTE_A, 8):
                break
        else:
            if (e & want) == want or _set_bits(c, at, e, want, 8):
                break
        # someone changed an entry under our hands: walk again
    bits = (cython.cast(uint64_t, 1) << shift) - 1
    gpa[0] = (e & PTE_ADDRESS & ~bits) | (va & bits)
    size_log2[0] = shift
    attr[0] = _writable(c, rights, e | want, table) | (2 if e & PTE_G else 0)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _note_large(c: cython.pointer(VCpu), va: uint64_t, size_log2: cython.int) -> cython.void:
    bit: uint64_t
    if size_log2 == 30:
        bit = (va >> 30) & 4095
        c.giant_pages[bit >> 6] |= cython.cast(uint64_t, 1) << (bit & 63)
        return
    bit = (va >> 21) & 4095
    c.large_pages[bit >> 6] |= cython.cast(uint64_t, 1) << (bit & 63)
    if size_log2 == 22:
        bit ^= 1
        c.large_pages[bit >> 6] |= cython.cast(uint64_t, 1) << (bit & 63)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _empty_table(c: cython.pointer(VCpu), table: cython.int) -> cython.void:
    """Make room: what is still wanted comes again, from the second TLB or by a walk."""
    i: cython.int
    k: cython.int
    for i in range(c.tlb_local_count[table] + c.tlb_global_count[table]):
        if i < c.tlb_local_count[table]:
            k = c.tlb_local[table][i]
        else:
            k = c.tlb_global[table][i - c.tlb_local_count[table]]
        c.tlb_listed[table][k] = 0
        c.tag_r[table][k] = empty_tag(k)
        c.tag_w[table][k] = empty_tag(k)
    c.tlb_local_count[table] = 0
    c.tlb_global_count[table] = 0


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _list(c: cython.pointer(VCpu), table: cython.int, index: cython.int, is_global: cython.bint) -> cython.void:
    """Note an entry that is about to be filled, for flushes."""
    if c.tlb_local_count[table] + c.tlb_global_count[table] == TLB_MOST:
        _empty_table(c, table)
    listed: cython.int = c.tlb_listed[table][index]
    if is_global:
        if not listed & 2:
            c.tlb_global[table][c.tlb_global_count[table]] = index
            c.tlb_global_count[table] += 1
            c.tlb_listed[table][index] = cython.cast(uint8_t, listed | 2)
    elif not listed & 1:
        c.tlb_local[table][c.tlb_local_count[table]] = index
        c.tlb_local_count[table] += 1
        c.tlb_listed[table][index] = cython.cast(uint8_t, listed | 1)
    c.tlb_is_global[table][index] = is_global


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _enter(
    c: cython.pointer(VCpu), table: cython.int, va: uint64_t, slot: cython.pointer(Slot), gpa: uint64_t,
    write: cython.bint, writable: cython.bint, is_global: cython.bint, size_log2: cython.int,
) -> cython.bint:  # fmt: skip
    """Fill the entry of page ``va``; whether a write may go straight to memory."""
    index: cython.int = cython.cast(cython.int, (va >> 12) & (TLB_SIZE - 1))
    page: uint64_t = (gpa - slot.gpa) >> 12
    direct: cython.bint = writable and not slot.readonly and slot.code[page] == 0
    if direct and not write and not slot.dirty[page]:
        direct = False  # the first write must come here, to mark the page
    if direct:
        slot.dirty[page] = 1
    _list(c, table, index, is_global)
    host: uint64_t = cython.cast(uint64_t, slot.host) + (page << 12)
    c.distance[table][index] = host - va
    c.tag_r[table][index] = va
    c.tag_w[table][index] = va if direct else empty_tag(index)
    k: cython.int = second_index(va)  # noqa: F821, ours, inline in the .pxd
    c.second_va[k] = va
    c.second_page[k] = host
    c.second_read[k] = c.tlb_key[table]
    c.second_write[k] = c.tlb_key[table] if direct else 0
    if direct:
        # protect_page on another thread sets code[] and then looks for our entry: one of us sees the other
        full_fence()
        if slot.code[page]:
            c.tag_w[table][index] = empty_tag(index)
            c.second_write[k] = 0
            direct = False
    if size_log2 > 12:
        _note_large(c, va, size_log2)
    c.n_tlb_fill += 1
    return direct


def lookup(c, va, access, table, host, gpa):
    size_log2: cython.int = 12
    attr: cython.int = 0
    write: cython.bint = (access & ACCESS_WRITE) != 0
    index: cython.int = cython.cast(cython.int, (va >> 12) & (TLB_SIZE - 1))
    base: uint64_t = va & ~0xFFF
    if (c.tag_w[table][index] if write else c.tag_r[table][index]) == base:
        host[0] = cython.cast(cython.pointer(uint8_t), c.distance[table][index] + va)
        return 0
    c.n_tlb_miss += 1
    if walk(c, va, access, table, gpa, cython.address(size_log2), cython.address(attr)) != 0:
        return -1
    slot: cython.pointer(Slot) = find_slot(c, gpa[0])
    if slot == cython.NULL:
        host[0] = cython.NULL
        return 0
    direct: cython.bint = _enter(c, table, base, slot, gpa[0], write, attr & 1, (attr & 2) != 0, size_log2)
    if write and not direct:
        host[0] = cython.NULL
        return 0
    host[0] = slot.host + (gpa[0] - slot.gpa)
    return 0


def may_write(c, va, table):
    """Whether a write may go straight to memory at ``va``, whose entry is there, or may be made to: where the guest's
    page is dirty anyway."""
    size_log2: cython.int = 12
    attr: cython.int = 0
    gpa: uint64_t = 0
    if is_writable(c, va, table):  # noqa: F821, ours, inline in the .pxd
        return True
    if walk(c, va, ACCESS_READ, table, cython.address(gpa), cython.address(size_log2), cython.address(attr)) != 0:
        c.exception_pending = 0
        return False
    slot: cython.pointer(Slot) = find_slot(c, gpa)
    if slot == cython.NULL or not attr & 1:
        return False
    return _enter(c, table, va & ~0xFFF, slot, gpa, True, True, (attr & 2) != 0, size_log2)


def lookup_exec(c, va, gpa):
    size_log2: cython.int = 12
    attr: cython.int = 0
    table: cython.int = current_table(c)
    index: cython.int = cython.cast(cython.int, (va >> 12) & (ITLB_SIZE - 1))
    base: uint64_t = va & ~0xFFF
    if c.itlb_va[table][index] == base:
        gpa[0] = c.itlb_gpa[table][index] | (va & 0xFFF)
        return 0
    c.access_seg = 1
    if walk(c, va, ACCESS_EXEC, table, gpa, cython.address(size_log2), cython.address(attr)) != 0:
        return -1
    listed: cython.int = c.itlb_listed[table][index]
    if attr & 2:
        if not listed & 2:
            c.itlb_global_list[table][c.itlb_global_count[table]] = cython.cast(uint16_t, index)
            c.itlb_global_count[table] += 1
            c.itlb_listed[table][index] = cython.cast(uint8_t, listed | 2)
    elif not listed & 1:
        c.itlb_local[table][c.itlb_local_count[table]] = cython.cast(uint16_t, index)
        c.itlb_local_count[table] += 1
        c.itlb_listed[table][index] = cython.cast(uint8_t, listed | 1)
    c.itlb_va[table][index] = base
    c.itlb_gpa[table][index] = gpa[0] & ~0xFFF
    c.itlb_global[table][index] = (attr & 2) != 0
    if size_log2 > 12:
        _note_large(c, va, size_log2)
    return 0


# ---- linear memory


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _copy(to: cython.p_void, source: cython.p_const_void, size: cython.int) -> cython.void:
    """Sizes that an instruction moves at once are moved at once."""
    if size == 8:
        cython.cast(cython.pointer(uint64_t), to)[0] = cython.cast(cython.pointer(uint64_t), source)[0]
    elif size == 4:
        cython.cast(cython.pointer(uint32_t), to)[0] = cython.cast(cython.pointer(uint32_t), source)[0]
    elif size == 2:
        cython.cast(cython.pointer(uint16_t), to)[0] = cython.cast(cython.pointer(uint16_t), source)[0]
    else:
        memcpy(to, source, size)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _next(c: cython.pointer(VCpu), va: uint64_t, n: cython.int) -> uint64_t:
    """Linear addresses outside long mode have 32 bits and wrap."""
    return va + n if c.efer & EFER_LMA else (va + n) & M32


def note_watched(c, va, size, wanted):
    """A debugger's watchpoints that an access meets (``wanted``: DEBUG_READ, DEBUG_WRITE or both)."""
    i: cython.int
    for i in range(c.watch_count):
        if c.watch_kind[i] & wanted and c.watch_address[i] < va + size and va < c.watch_address[i] + c.watch_length[i]:
            c.watch_met = i + 1


def read_table(c, va, buffer, size, table):
    host: cython.pointer(uint8_t) = cython.NULL
    gpa: uint64_t = 0
    n: cython.int
    to: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), buffer)
    index: cython.int
    if c.watch_count:
        note_watched(c, va, size, DEBUG_READ)
    while size > 0:
        n = 4096 - cython.cast(cython.int, va & 0xFFF)
        if n > size:
            n = size
        index = cython.cast(cython.int, (va >> 12) & (TLB_SIZE - 1))
        if c.tag_r[table][index] == va & ~0xFFF:
            host = cython.cast(cython.pointer(uint8_t), c.distance[table][index] + va)
        elif lookup(c, va, ACCESS_READ, table, cython.address(host), cython.address(gpa)) != 0:
            return -1
        if host == cython.NULL:
            memset(to, 0xFF, n)
        else:
            _copy(to, host, n)
        to += n
        va = _next(c, va, n)
        size -= n
    return 0


def write_table(c, va, buffer, size, table):
    # the monitor writes no more than 8 KiB at a time: three pages at most
    host = cython.declare(cython.pointer(uint8_t)[4])
    gpa = cython.declare(uint64_t[4])
    length = cython.declare(cython.int[4])
    count: cython.int = 0
    i: cython.int
    n: cython.int
    slot: cython.pointer(Slot)
    offset: uint64_t
    source: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), buffer)
    if c.watch_count:
        note_watched(c, va, size, DEBUG_WRITE)
    while size > 0 and count < 4:
        n = 4096 - cython.cast(cython.int, va & 0xFFF)
        if n > size:
            n = size
        gpa[count] = 0
        if lookup(c, va, ACCESS_WRITE, table, cython.address(host[count]), cython.address(gpa[count])) != 0:
            return -1
        length[count] = n
        count += 1
        va = _next(c, va, n)
        size -= n
    for i in range(count):
        if host[i] != cython.NULL:
            _copy(host[i], source, length[i])
        else:
            slot = find_slot(c, gpa[i])
            if slot != cython.NULL and not slot.readonly:
                offset = gpa[i] - slot.gpa
                slot.dirty[offset >> 12] = 1
                _copy(slot.host + offset, source, length[i])
                code_written(c, slot, gpa[i], length[i])
        source += length[i]
    return 0


def code_written(c, slot, gpa, size):
    full_fence()  # a translation that doesn't see the bytes has marked the page before (protect_page)
    if slot.code[(gpa - slot.gpa) >> 12] and on_code_write != cython.NULL:
        on_code_write(c, gpa, size)


def read_linear(c, va, buffer, size, system):
    c.access_seg = 0  # an address that isn't canonical: #GP
    return read_table(c, va, buffer, size, system_table(c) if system else current_table(c))


def write_linear(c, va, buffer, size, system):
    c.access_seg = 0
    return write_table(c, va, buffer, size, system_table(c) if system else current_table(c))


def read_physical(c, gpa, buffer, size):
    slot: cython.pointer(Slot) = find_slot(c, gpa)
    if slot == cython.NULL:
        return -1
    memcpy(buffer, slot.host + (gpa - slot.gpa), size)
    return 0


def write_physical(c, gpa, buffer, size):
    slot: cython.pointer(Slot) = find_slot(c, gpa)
    if slot == cython.NULL or slot.readonly:
        return -1
    slot.dirty[(gpa - slot.gpa) >> 12] = 1
    memcpy(slot.host + (gpa - slot.gpa), buffer, size)
    code_written(c, slot, gpa, size)
    return 0


def segment_linear(c, seg, offset, size, write, linear):
    s: cython.pointer(Segment) = cython.address(c.seg[seg])
    last: uint64_t
    if c.mode & MODE_CODE64:
        linear[0] = offset + (s.base if seg >= FS else 0)
        if not canonical(linear[0]) or not canonical(linear[0] + size - 1):
            return raise_segment(c, seg)
        return 0
    offset &= M32
    last = offset + size - 1
    if c.cr0 & CR0_PE:
        if not s.attr & SEG_P:
            return raise_segment(c, seg)
        if s.attr & SEG_CODE:
            if write or not s.attr & SEG_WRITE:
                return raise_segment(c, seg)
        elif write and not s.attr & SEG_WRITE:
            return raise_segment(c, seg)
    if (s.attr & (SEG_CODE | SEG_DOWN)) == SEG_DOWN:
        if offset <= s.limit or last > (M32 if s.attr & SEG_DB else 0xFFFF):
            return raise_segment(c, seg)
    elif last > s.limit:
        return raise_segment(c, seg)
    linear[0] = (s.base + offset) & M32
    return 0


def read_segment(c, seg, offset, buffer, size):
    linear: uint64_t = 0
    if segment_linear(c, seg, offset, size, False, cython.address(linear)) != 0:
        return -1
    return read_table(c, linear, buffer, size, current_table(c))


def write_segment(c, seg, offset, buffer, size):
    linear: uint64_t = 0
    if segment_linear(c, seg, offset, size, True, cython.address(linear)) != 0:
        return -1
    return write_table(c, linear, buffer, size, current_table(c))


# ---- flushes


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _flush_jump_table(c: cython.pointer(VCpu), table: cython.int, keep_global: cython.bint) -> cython.void:
    i: cython.int
    k: cython.int
    for i in range(c.jump_local_count[table]):
        k = c.jump_local[table][i]
        c.jump_cache[table][k] = c.jump_miss[table]
        c.jump_listed[table][k] &= 2
    c.jump_local_count[table] = 0
    if not keep_global:
        for i in range(c.jump_global_count[table]):
            k = c.jump_global[table][i]
            c.jump_cache[table][k] = c.jump_miss[table]
            c.jump_listed[table][k] = 0
        c.jump_global_count[table] = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _new_key(c: cython.pointer(VCpu), table: cython.int) -> cython.void:
    """Nothing in the second jump cache is this table's from now on."""
    c.second_last += 0x5851F42D  # odd: none comes again
    c.second_now[table] = c.second_last


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _flush_second_jumps(c: cython.pointer(VCpu), keep_global: cython.bint) -> cython.void:
    t: cython.int
    _new_key(c, TLB_USER)
    if keep_global:  # the kernel has no others there
        return
    c.n_jump_flush += 1
    for t in range(TLB_COUNT):
        _new_key(c, t)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _flush_jumps(c: cython.pointer(VCpu), keep_global: cython.bint) -> cython.void:
    t: cython.int
    for t in range(TLB_COUNT):
        _flush_jump_table(c, t, keep_global)
    _flush_second_jumps(c, keep_global)
    memset(c.jump_pages, 0, cython.sizeof(c.jump_pages) // (2 if keep_global else 1))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _drop_jumps(c: cython.pointer(VCpu), va: uint64_t, shift: cython.int) -> cython.void:
    """Forget the targets in the 2**shift bytes that hold ``va`` and on the page before, where a block may begin that
    goes on there. User mode's others stay: to find a big program's thousands again would take milliseconds."""
    i: cython.int
    k: cython.int
    start: uint64_t = (va >> shift << shift) - 4096
    size: uint64_t = (cython.cast(uint64_t, 1) << shift) + 4096
    keep_global: cython.bint = va >> 63 == 0
    _flush_jump_table(c, TLB_KERNEL, keep_global)
    _flush_jump_table(c, TLB_KERNEL_AC, keep_global)
    for i in range(c.jump_local_count[TLB_USER]):
        k = c.jump_local[TLB_USER][i]
        if c.jump_pc[k] - start < size:
            c.jump_cache[TLB_USER][k] = c.jump_miss[TLB_USER]
    if not keep_global:
        for i in range(c.jump_global_count[TLB_USER]):
            k = c.jump_global[TLB_USER][i]
            c.jump_cache[TLB_USER][k] = c.jump_miss[TLB_USER]
    _flush_second_jumps(c, keep_global)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _change_keys(c: cython.pointer(VCpu)) -> cython.void:
    """Empty the second TLB."""
    t: cython.int
    for t in range(TLB_COUNT):
        c.tlb_key[t] += 4


def flush_tlb(c, keep_global):
    t: cython.int
    i: cython.int
    k: cython.int
    _change_keys(c)
    c.n_tlb_flush += 1
    for t in range(TLB_COUNT):
        for i in range(c.tlb_local_count[t]):
            k = c.tlb_local[t][i]
            c.tlb_listed[t][k] &= 2
            if not c.tlb_is_global[t][k]:
                c.tag_r[t][k] = empty_tag(k)
                c.tag_w[t][k] = empty_tag(k)
        c.tlb_local_count[t] = 0
        for i in range(c.itlb_local_count[t]):
            k = c.itlb_local[t][i]
            c.itlb_listed[t][k] &= 2
            if not c.itlb_global[t][k]:
                c.itlb_va[t][k] = 1
        c.itlb_local_count[t] = 0
        if keep_global:
            continue
        for i in range(c.tlb_global_count[t]):
            k = c.tlb_global[t][i]
            c.tlb_listed[t][k] = 0
            c.tag_r[t][k] = empty_tag(k)
            c.tag_w[t][k] = empty_tag(k)
        c.tlb_global_count[t] = 0
        for i in range(c.itlb_global_count[t]):
            k = c.itlb_global_list[t][i]
            c.itlb_listed[t][k] = 0
            c.itlb_va[t][k] = 1
        c.itlb_global_count[t] = 0
    if not keep_global:
        forget_spaces(c)
        memset(c.large_pages, 0, cython.sizeof(c.large_pages))
        memset(c.giant_pages, 0, cython.sizeof(c.giant_pages))
    _flush_jumps(c, keep_global)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _space(c: cython.pointer(VCpu), pcid: uint32_t) -> cython.pointer(Space):
    i: cython.int
    for i in range(SPACES):
        if c.spaces[i].pcid == pcid and c.spaces[i].generation == c.space_generation:
            return cython.address(c.spaces[i])
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _keep_pages(c: cython.pointer(VCpu), space: cython.pointer(Space)) -> cython.void:
    """Those that came last, of each table."""
    t: cython.int
    i: cython.int
    k: cython.int
    count: cython.int = 0
    for t in range(TLB_COUNT):
        i = c.tlb_local_count[t]
        while i and count < SPACE_PAGES:
            i -= 1
            k = c.tlb_local[t][i]
            if c.tag_r[t][k] != empty_tag(k) and not c.tlb_is_global[t][k]:
                space.page[count] = c.tag_r[t][k] | t | (SPACE_WRITE if c.tag_w[t][k] == c.tag_r[t][k] else 0)
                space.page_host[count] = c.tag_r[t][k] + c.distance[t][k]
                count += 1
    space.page_count = count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _is_direct(c: cython.pointer(VCpu), host: uint64_t) -> cython.bint:
    """Whether a page that could be written straight still can."""
    i: cython.int
    page: uint64_t
    for i in range(c.slot_count):
        page = host - cython.cast(uint64_t, c.slots[i].host)
        if page < c.slots[i].size:
            page >>= 12
            return c.slots[i].code[page] == 0 and c.slots[i].dirty[page] != 0
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _restore_pages(c: cython.pointer(VCpu), space: cython.pointer(Space)) -> cython.void:
    i: cython.int
    t: cython.int
    k: cython.int
    va: uint64_t
    for i in range(space.page_count):
        t = space.page[i] & 3
        va = space.page[i] & ~0xFFF
        k = cython.cast(cython.int, (va >> 12) & (TLB_SIZE - 1))
        if c.tag_r[t][k] == empty_tag(k):
            _list(c, t, k, False)
            c.distance[t][k] = space.page_host[i] - va
            c.tag_r[t][k] = va
            if space.page[i] & SPACE_WRITE and _is_direct(c, space.page_host[i]):
                c.tag_w[t][k] = va
    full_fence()  # as in _enter
    for i in range(space.page_count):
        t = space.page[i] & 3
        va = space.page[i] & ~0xFFF
        k = cython.cast(cython.int, (va >> 12) & (TLB_SIZE - 1))
        if c.tag_w[t][k] == va and not _is_direct(c, space.page_host[i]):
            c.tag_w[t][k] = empty_tag(k)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _keep_space(c: cython.pointer(VCpu), pcid: uint32_t) -> cython.void:
    i: cython.int
    k: cython.int
    count: cython.int = 0
    space: cython.pointer(Space) = _space(c, pcid)
    if space == cython.NULL:
        space = cython.address(c.spaces[0])
        for i in range(SPACES):
            if c.spaces[i].generation != c.space_generation:
                space = cython.address(c.spaces[i])
                break
            if c.spaces[i].kept < space.kept:
                space = cython.address(c.spaces[i])
    space.generation = c.space_generation
    space.pcid = pcid
    space.mode = c.table_mode[TLB_USER]
    space.kept = c.n_switches
    space.second = c.second_now[TLB_USER]
    _keep_pages(c, space)
    for i in range(c.jump_local_count[TLB_USER]):
        k = c.jump_local[TLB_USER][i]
        if c.jump_cache[TLB_USER][k] != c.jump_miss[TLB_USER] and count < SPACE_SIZE:
            space.pc[count] = c.jump_pc[k]
            space.host[count] = c.jump_cache[TLB_USER][k]
            count += 1
    space.count = count
    memcpy(space.pages, c.jump_pages, cython.sizeof(space.pages))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _restore_space(c: cython.pointer(VCpu), pcid: uint32_t) -> cython.void:
    i: cython.int
    k: cython.int
    space: cython.pointer(Space) = _space(c, pcid)
    if space == cython.NULL:
        return
    _restore_pages(c, space)
    if space.mode != c.table_mode[TLB_USER]:
        return
    c.n_spaces_found += 1
    c.second_now[TLB_USER] = space.second
    memcpy(c.jump_pages, space.pages, cython.sizeof(space.pages))
    for i in range(space.count):
        k = jump_hash(space.pc[i])  # noqa: F821, ours, inline in the .pxd
        if c.jump_listed[TLB_USER][k] & 1:
            continue
        c.jump_listed[TLB_USER][k] |= 1
        c.jump_local[TLB_USER][c.jump_local_count[TLB_USER]] = cython.cast(uint16_t, k)
        c.jump_local_count[TLB_USER] += 1
        c.jump_pc[k] = space.pc[i]
        c.jump_cache[TLB_USER][k] = space.host[i]


def switch_space(c, old, new, keep):
    c.n_switches += 1
    _keep_space(c, old)
    flush_tlb(c, True)
    if keep:
        _restore_space(c, new)
    else:
        forget_space(c, new)


def forget_space(c, pcid):
    space: cython.pointer(Space) = _space(c, pcid)
    if space != cython.NULL:
        space.generation = c.space_generation - 1


def forget_spaces(c):
    c.space_generation += 1


def init_tlb(c):
    c.space_generation = 1
    t: cython.int
    i: cython.int
    memset(c.itlb_va, 0xFF, cython.sizeof(c.itlb_va))
    for t in range(TLB_COUNT):
        _new_key(c, t)
        c.tlb_key[t] = t + 1
        c.tag_r[t][0] = empty_tag(0)
        c.tag_w[t][0] = empty_tag(0)
        for i in range(JUMP_SIZE):
            c.jump_cache[t][i] = c.jump_miss[t]


def empty_tlb(c):
    flush_tlb(c, False)
    memset(c.second_read, 0, cython.sizeof(c.second_read))
    memset(c.second_write, 0, cython.sizeof(c.second_write))


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _drop_second(c: cython.pointer(VCpu), k: cython.int) -> cython.void:
    c.second_read[k] = 0
    c.second_write[k] = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _drop_region(c: cython.pointer(VCpu), va: uint64_t, shift: cython.int) -> cython.void:
    """Drop all entries of the 2**shift bytes that hold ``va``."""
    t: cython.int
    i: cython.int
    k: cython.int
    region: uint64_t = va >> shift
    first: cython.int = 0
    count: cython.int = TLB_SIZE
    if shift < 12 + TLB_BITS:
        count = 1 << (shift - 12)
        first = cython.cast(cython.int, (region << (shift - 12)) & (TLB_SIZE - 1))
    for t in range(TLB_COUNT):
        for i in range(count):
            k = first + i
            if c.tag_r[t][k] >> shift == region:
                c.tag_r[t][k] = empty_tag(k)
                c.tag_w[t][k] = empty_tag(k)
        for i in range(ITLB_SIZE):
            if c.itlb_va[t][i] >> shift == region:
                c.itlb_va[t][i] = 1
    for i in range(SECOND_SIZE):
        if c.second_va[i] >> shift == region:
            _drop_second(c, i)
    _drop_jumps(c, va, shift)


def flush_jumps(c):
    _flush_jumps(c, False)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _jump_bit(va: uint64_t) -> uint64_t:
    """The bit of a page in ``jump_pages``: the lower half of it for the lower half of the addresses."""
    return ((va >> 12) & 2047) | ((va >> 63) << 11)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _may_jump_to(c: cython.pointer(VCpu), va: uint64_t) -> cython.bint:
    bit: uint64_t = _jump_bit(va)
    return (c.jump_pages[bit >> 6] >> (bit & 63)) & 1


def flush_page(c, va):
    t: cython.int
    k: cython.int = cython.cast(cython.int, (va >> 12) & (TLB_SIZE - 1))
    base: uint64_t = va & ~0xFFF
    bit: uint64_t = (va >> 30) & 4095
    if c.giant_pages[bit >> 6] >> (bit & 63) & 1:
        _drop_region(c, va, 30)
        return
    bit = (va >> 21) & 4095
    if c.large_pages[bit >> 6] >> (bit & 63) & 1:
        _drop_region(c, va, 21 if c.cr4 & CR4_PAE else 22)
        return
    for t in range(TLB_COUNT):
        if c.tag_r[t][k] == base:
            c.tag_r[t][k] = empty_tag(k)
            c.tag_w[t][k] = empty_tag(k)
        if c.itlb_va[t][k & (ITLB_SIZE - 1)] == base:
            c.itlb_va[t][k & (ITLB_SIZE - 1)] = 1
    k = second_index(va)  # noqa: F821, ours, inline in the .pxd
    if c.second_va[k] == base:
        _drop_second(c, k)
    # a block may begin on the page before
    if _may_jump_to(c, va) or _may_jump_to(c, va - 4096):
        _drop_jumps(c, va, 12)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _is_global_target(c: cython.pointer(VCpu), table: cython.int, pc: uint64_t) -> cython.bint:
    """Only targets in the upper half count as global, so that flush_page need not look at the kernel's jumps, which
    are many, for an address in the lower half."""
    i: cython.int = cython.cast(cython.int, (pc >> 12) & (ITLB_SIZE - 1))
    return pc >> 63 != 0 and c.itlb_va[table][i] == pc & ~0xFFF and c.itlb_global[table][i] != 0


def jump_cache_insert(c, table, pc, host, entry):
    k: cython.int = jump_hash(pc)  # noqa: F821, ours, inline in the .pxd
    second: cython.int
    bit: uint64_t = _jump_bit(pc)
    listed: cython.int = c.jump_listed[table][k]
    is_global: cython.bint = _is_global_target(c, table, pc)
    if c.jump_cache[table][k] != c.jump_miss[table] and (pc >> 63 == 0 if table == TLB_USER else is_global):
        second = second_hash(pc, c.second_now[table])  # noqa: F821
        c.second_pc[second] = pc
        c.second_key[second] = c.second_now[table]
        c.second_host[second] = entry
    if is_global and not listed & 1:
        if not listed & 2:
            c.jump_global[table][c.jump_global_count[table]] = cython.cast(uint16_t, k)
            c.jump_global_count[table] += 1
            c.jump_listed[table][k] = 2
    elif not listed & 1:
        c.jump_local[table][c.jump_local_count[table]] = cython.cast(uint16_t, k)
        c.jump_local_count[table] += 1
        c.jump_listed[table][k] = cython.cast(uint8_t, listed | 1)
    c.jump_cache[table][k] = host
    if table == TLB_USER:
        c.jump_pc[k] = pc
    c.jump_pages[bit >> 6] |= cython.cast(uint64_t, 1) << (bit & 63)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _protect_listed(
    c: cython.pointer(VCpu), table: cython.int, page: uint64_t, listed: cython.pointer(uint32_t), count: cython.int
) -> cython.bint:
    i: cython.int
    k: cython.int
    found: cython.bint = False
    for i in range(count):
        k = listed[i]
        if c.tag_w[table][k] + c.distance[table][k] == page and c.tag_w[table][k] != empty_tag(k):
            c.tag_w[table][k] = empty_tag(k)
            found = True
    return found


def protect_page(c, host_page):
    # The owner may be filling entries meanwhile. It lists an entry and fills it, and after a fence looks at the page's
    # code[] (_enter): what this loop doesn't see, the owner does. What it flushes meanwhile is empty already.
    t: cython.int
    i: cython.int
    page: uint64_t = cython.cast(uint64_t, host_page) & ~0xFFF
    found: cython.bint = False
    full_fence()
    for t in range(TLB_COUNT):
        found |= _protect_listed(c, t, page, c.tlb_local[t], c.tlb_local_count[t])
        found |= _protect_listed(c, t, page, c.tlb_global[t], c.tlb_global_count[t])
    for i in range(SECOND_SIZE):
        if c.second_page[i] == page and c.second_write[i]:
            c.second_write[i] = 0
            found = True
    return found
