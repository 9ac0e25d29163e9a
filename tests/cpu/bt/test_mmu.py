"""Page walks, the software TLB and linear memory (SDM vol. 3, chapter 4)."""

import random
import struct

import pytest

from hostel.cpu.bt.probe import Probe
from hostel.memory.ram import Ram

READ, WRITE, EXEC = 0, 1, 2
USER, KERNEL, KERNEL_AC = 0, 1, 2
P, W, U, A, D, PS, G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
NX = 1 << 63
GP, SS, PF = 13, 12, 14
# error code
E_P, E_W, E_U, E_RSVD, E_I = 1, 2, 4, 8, 16
CR0_PE, CR0_WP, CR0_PG = 1, 1 << 16, 1 << 31
CR4_PSE, CR4_PAE, CR4_PGE, CR4_PCIDE, CR4_SMEP, CR4_SMAP = 0x10, 0x20, 0x80, 0x20000, 0x100000, 0x200000
LME, LMA, NXE = 0x100, 0x400, 0x800

PML4, PDPT, PD, PT, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x10000
VA = 0x7F12_3456_7000


def put(ram, gpa, value, size=8):
    ram.write(gpa, value.to_bytes(size, "little"))


def get(ram, gpa, size=8):
    return int.from_bytes(ram.read(gpa, size), "little")


def index(va, level):
    return (va >> (12 + 9 * level)) & 511


class Space:
    """A long-mode address space; ``map`` links VA's tables with all rights and sets the last entry."""

    def __init__(self, megabytes=4):
        self.ram = Ram()
        self.ram.add(0, megabytes << 20)
        self.ram.add(0xFFFF0000, 0x10000, True)
        self.p = Probe(self.ram)
        self.p["cr0"] = CR0_PE | CR0_WP | CR0_PG
        self.p["cr3"] = PML4
        self.p["cr4"] = CR4_PAE | CR4_PGE
        self.p["efer"] = LME | LMA | NXE
        self.p.set_segment(1, 8, 0, 0xFFFFFFFF, 0xA09B)
        self.p.update_mode()
        self.free = 0x20000

    def entry(self, va, level):
        """The gpa of VA's entry at a level (0: the PTE), tables made on the way."""
        table = PML4
        for at in (3, 2, 1):
            where = table + 8 * index(va, at)
            if at == level:
                return where
            e = get(self.ram, where)
            if not e & P:
                e = self.free | P | W | U
                self.free += 0x1000
                put(self.ram, where, e)
            table = e & 0xFFFFFFFFFF000
        return table + 8 * index(va, 0)

    def map(self, va, value, level=0):
        where = self.entry(va, level)
        put(self.ram, where, value)
        return where


@pytest.fixture
def s():
    return Space()


# ---- long mode: what is allowed


@pytest.mark.parametrize("level, size", [(0, 12), (1, 21), (2, 30)])
def test_page_sizes(s, level, size):
    base = DATA if level == 0 else 0
    s.map(VA, base | P | W | U | (PS if level else 0), level)
    offset = VA & ((1 << size) - 1)
    assert s.p.walk(VA, READ, USER) == (base + offset, size, 0)


def test_not_present_at_each_level(s):
    for level in (3, 2, 1, 0):
        s.map(VA, 0, level)
        assert s.p.walk(VA, READ, USER) == (PF, E_U, VA)
        assert s.p.walk(VA, WRITE, KERNEL_AC) == (PF, E_W, VA)
        assert s.p.walk(VA, EXEC, USER) == (PF, E_U | E_I, VA)
        s.map(VA, 0 if level == 0 else s.free | P | W | U, level)
        s.free += 0x1000


def test_instruction_bit_needs_nx_or_smep(s):
    s.p["efer"] = LME | LMA
    assert s.p.walk(VA, EXEC, KERNEL) == (PF, 0, VA)
    s.p["cr4"] |= CR4_SMEP
    assert s.p.walk(VA, EXEC, KERNEL) == (PF, E_I, VA)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_rights_are_those_of_all_levels(s, level):
    s.map(VA, DATA | P | W | U)
    where = s.entry(VA, level)
    full = get(s.ram, where)
    put(s.ram, where, full & ~U)
    assert s.p.walk(VA, READ, USER) == (PF, E_P | E_U, VA)
    assert s.p.walk(VA, READ, KERNEL)[0] == DATA
    put(s.ram, where, full & ~W)
    assert s.p.walk(VA, WRITE, USER) == (PF, E_P | E_W | E_U, VA)
    assert s.p.walk(VA, WRITE, KERNEL_AC) == (PF, E_P | E_W, VA)
    assert s.p.walk(VA, 3, USER) == (PF, E_P | E_W | E_U, VA)  # read-modify-write is a write
    s.p["cr0"] &= ~CR0_WP
    assert s.p.walk(VA, WRITE, KERNEL_AC)[0] == DATA
    assert s.p.walk(VA, WRITE, USER) == (PF, E_P | E_W | E_U, VA)
    put(s.ram, where, full | NX)
    assert s.p.walk(VA, EXEC, USER) == (PF, E_P | E_U | E_I, VA)
    assert s.p.walk(VA, READ, USER)[0] == DATA


def test_smep_and_smap(s):
    s.map(VA, DATA | P | W | U)
    assert s.p.walk(VA, EXEC, KERNEL)[0] == DATA
    assert s.p.walk(VA, READ, KERNEL)[0] == DATA  # SMAP is off, whatever the table
    s.p["cr4"] |= CR4_SMEP | CR4_SMAP
    assert s.p.walk(VA, EXEC, KERNEL_AC) == (PF, E_P | E_I, VA)
    assert s.p.walk(VA, READ, KERNEL) == (PF, E_P, VA)
    assert s.p.walk(VA, WRITE, KERNEL) == (PF, E_P | E_W, VA)
    assert s.p.walk(VA, WRITE, KERNEL_AC)[0] == DATA
    assert s.p.walk(VA, EXEC, USER)[0] == DATA


@pytest.mark.parametrize("level, bit", [(0, 46), (0, 51), (1, 13), (1, 20), (2, 13), (2, 29), (3, 7), (3, 47), (0, 63)])
def test_reserved_bits(s, level, bit):
    base = DATA if level == 0 else 0
    if level == 3:
        s.map(VA, DATA | P | W | U)
        where = s.entry(VA, 3)
        value = get(s.ram, where)
    else:
        value = base | P | W | U | (PS if level else 0)
        where = s.map(VA, value, level)
    assert isinstance(s.p.walk(VA, READ, USER)[2], int) and s.p.walk(VA, READ, USER)[0] != PF
    if bit == 63:
        s.p["efer"] = LME | LMA  # XD is reserved without NXE
    put(s.ram, where, value | 1 << bit)
    assert s.p.walk(VA, READ, USER) == (PF, E_P | E_U | E_RSVD, VA)
    assert s.p.walk(VA, WRITE, KERNEL_AC) == (PF, E_P | E_W | E_RSVD, VA)


def test_non_canonical(s):
    s.p["access_seg"] = 3
    assert s.p.walk(0x8000_0000_0000, READ, USER) == (GP, 0)
    s.p["access_seg"] = 2
    assert s.p.walk(0xFFFF_7FFF_FFFF_FFFF, READ, USER) == (SS, 0)


def test_tables_outside_memory_read_as_ones(s):
    s.p["cr3"] = 0x30000000
    assert s.p.walk(VA, READ, KERNEL) == (PF, E_P | E_RSVD, VA)


def test_accessed_and_dirty(s):
    where = s.map(VA, DATA | P | W | U)
    s.map(VA + 0x1000, DATA | P | U)
    assert s.p.walk(VA + 0x1000, WRITE, USER)[0] == PF
    assert all(not get(s.ram, s.entry(VA, level)) & A for level in range(4))  # a fault sets nothing
    assert s.p.walk(VA, READ, USER) == (DATA, 12, 0)
    assert all(get(s.ram, s.entry(VA, level)) & A for level in range(4))
    assert not get(s.ram, where) & D
    assert s.p.walk(VA, WRITE, USER) == (DATA, 12, 1)
    assert get(s.ram, where) == DATA | P | W | U | A | D
    assert not any(get(s.ram, s.entry(VA, level)) & D for level in (1, 2, 3))
    assert s.p.walk(VA, READ, USER) == (DATA, 12, 1)
    assert s.p.dirty(where) == 1


def test_dirty_of_a_large_page_and_global(s):
    where = s.map(VA, P | W | U | PS | G, 1)
    assert s.p.walk(VA, WRITE, KERNEL_AC) == (VA & 0x1FFFFF, 21, 3)
    assert get(s.ram, where) & (A | D) == A | D


# ---- the other modes


def legacy(cr4=0):
    s = Space()
    s.p["efer"] = 0
    s.p["cr4"] = cr4
    s.p.set_segment(1, 8, 0, 0xFFFFFFFF, 0xC09B)
    s.p.update_mode()
    return s


def test_no_paging():
    s = legacy()
    s.p["cr0"] = CR0_PE
    assert s.p.walk(0x12345, WRITE, USER) == (0x12345, 12, 1)
    assert s.p.lookup(0x12345, WRITE, USER) == ("ram", 0x12345)


def test_two_levels():
    s = legacy()
    va = 0xC0801234
    put(s.ram, PML4 + 4 * (va >> 22), PDPT | P | W | U, 4)
    pte = PDPT + 4 * (va >> 12 & 1023)
    assert s.p.walk(va, WRITE, USER) == (PF, E_W | E_U, va)
    put(s.ram, pte, DATA | P | U, 4)
    assert s.p.walk(va, WRITE, USER) == (PF, E_P | E_W | E_U, va)
    assert s.p.walk(va, READ, USER) == (DATA + 0x234, 12, 0)
    assert s.p.walk(va, EXEC, USER) == (DATA + 0x234, 12, 0)
    put(s.ram, pte, DATA | P | W | U | G, 4)
    assert s.p.walk(va, WRITE, USER) == (DATA + 0x234, 12, 3)
    assert get(s.ram, pte, 4) == DATA | P | W | U | G | A | D
    assert get(s.ram, PML4 + 4 * (va >> 22), 4) & A
    assert not get(s.ram, pte + 4, 4)  # the neighbour is left alone


def test_four_megabyte_pages():
    s = legacy(CR4_PSE)
    va = 0x00523456
    pde = PML4 + 4 * (va >> 22)
    put(s.ram, pde, 0x400000 | P | W | U | PS, 4)
    assert s.p.walk(va, WRITE, USER) == (0x523456, 22, 1)
    put(s.ram, pde, 0x400000 | P | W | U | PS | 5 << 13, 4)  # PSE-36
    assert s.p.walk(va, READ, USER) == (0x5_0052_3456, 22, 0)
    put(s.ram, pde, 0x400000 | P | W | U | PS | 1 << 21, 4)
    assert s.p.walk(va, READ, USER) == (PF, E_P | E_U | E_RSVD, va)
    s.p["cr4"] = 0  # without PSE the bit is ignored: the entry points to a table
    put(s.ram, pde, PDPT | P | W | U | PS, 4)
    put(s.ram, PDPT + 4 * (va >> 12 & 1023), DATA | P, 4)
    assert s.p.walk(va, READ, KERNEL_AC) == (DATA + 0x456, 12, 0)


def test_pae():
    s = legacy(CR4_PAE)
    s.p["efer"] = NXE
    va = 0xC0801234
    s.p["pdpte3"] = PD | P
    assert s.p.walk(0x1234, READ, KERNEL_AC) == (PF, 0, 0x1234)
    put(s.ram, PD + 8 * (va >> 21 & 511), PT | P | W | U)
    put(s.ram, PT + 8 * (va >> 12 & 511), DATA | P | W | U | NX)
    assert s.p.walk(va, WRITE, USER) == (DATA + 0x234, 12, 1)
    assert s.p.walk(va, EXEC, USER) == (PF, E_P | E_U | E_I, va)
    put(s.ram, PT + 8 * (va >> 12 & 511), DATA | P | W | U | 1 << 52)  # ignored in long mode only
    assert s.p.walk(va, READ, USER) == (PF, E_P | E_U | E_RSVD, va)
    put(s.ram, PD + 8 * (va >> 21 & 511), 0x200000 | P | W | U | PS)
    assert s.p.walk(va, READ, USER) == (0x200000 + (va & 0x1FFFFF), 21, 0)


# ---- the TLB


def test_a_read_doesn_t_make_a_page_writable(s):
    s.map(VA, DATA | P | W | U)
    s.p.clear_dirty(DATA)
    assert s.p.lookup(VA + 5, READ, USER) == ("ram", DATA + 5)
    assert s.p.cached(VA, USER) == "r"
    assert s.p.dirty(DATA) == 0
    assert s.p.lookup(VA + 5, WRITE, USER) == ("ram", DATA + 5)
    assert s.p.cached(VA, USER) == "rw"
    assert s.p.dirty(DATA) == 1
    s.p.flush_tlb(False)
    assert s.p.cached(VA, USER) == ""
    assert s.p.lookup(VA, READ, USER) == ("ram", DATA)
    assert s.p.cached(VA, USER) == "rw"  # D and the slot's dirty byte are set already


def test_tables_are_apart(s):
    s.map(VA, DATA | P | W | U)
    s.p["cr4"] |= CR4_SMAP
    s.p.lookup(VA, WRITE, KERNEL_AC)
    assert [s.p.cached(VA, t) for t in (USER, KERNEL, KERNEL_AC)] == ["", "", "rw"]
    assert s.p.lookup(VA, READ, KERNEL) == (PF, E_P, VA)


def test_neither_rom_nor_devices_nor_nothing(s):
    s.map(VA, 0xFFFF0000 | P | W | U)
    assert s.p.lookup(VA + 1, READ, USER) == ("ram", 0xFFFF0001)
    assert s.p.lookup(VA + 1, WRITE, USER) == ("slow", 0xFFFF0001)
    assert s.p.cached(VA, USER) == "r"
    s.p.write(VA, b"abc")
    assert s.ram.read(0xFFFF0000, 3) == bytes(3)
    s.map(VA + 0x1000, 0xFEC00000 | P | W | U)
    assert s.p.lookup(VA + 0x1008, READ, USER) == ("slow", 0xFEC00008)
    assert s.p.cached(VA + 0x1000, USER) == ""
    assert s.p.read(VA + 0x1008, 4) == b"\xff" * 4
    assert s.p.write(VA + 0x1008, b"abcd") is None


def test_pages_with_translated_code(s):
    s.map(VA, DATA | P | W | U)
    s.p.lookup(VA, WRITE, USER)
    s.p.mark_code(DATA)
    assert s.p.cached(VA, USER) == "r"
    assert s.p.lookup(VA + 8, WRITE, USER) == ("slow", DATA + 8)
    assert s.p.lookup(VA + 8, READ, USER) == ("ram", DATA + 8)
    s.p.write(VA + 8, b"12345678")
    assert s.p.code_writes == [(DATA + 8, 8)]
    assert s.ram.read(DATA + 8, 8) == b"12345678"
    s.p.mark_code(DATA, 0)
    assert s.p.lookup(VA + 8, WRITE, USER) == ("ram", DATA + 8)


def test_flushes_and_global_pages(s):
    s.map(VA, DATA | P | W | U)
    s.map(VA + 0x1000, DATA + 0x1000 | P | W | U | G)
    for page in (VA, VA + 0x1000):
        s.p.lookup(page, WRITE, USER)
    s.p.flush_tlb(True)
    assert s.p.cached(VA, USER) == ""
    assert s.p.cached(VA + 0x1000, USER) == "rw"
    s.p.lookup(VA, WRITE, USER)
    s.p.flush_page(VA + 0x1FFF)
    assert s.p.cached(VA, USER) == "rw"
    assert s.p.cached(VA + 0x1000, USER) == ""
    s.p.lookup(VA + 0x1000, WRITE, USER)
    s.p.flush_tlb(False)
    assert s.p.cached(VA + 0x1000, USER) == ""


def test_an_entry_that_changed_kind(s):
    """A slot of the TLB that held a global page and then another one, and the reverse."""
    other = VA + (4096 << 12)  # the same index
    s.map(VA, DATA | P | W | U | G)
    s.map(other, DATA + 0x1000 | P | W | U)
    s.p.lookup(VA, WRITE, USER)
    s.p.lookup(other, WRITE, USER)
    s.p.flush_tlb(True)
    assert s.p.cached(other, USER) == ""
    s.p.lookup(other, WRITE, USER)
    s.p.lookup(VA, WRITE, USER)
    s.p.flush_tlb(True)
    assert s.p.cached(VA, USER) == "rw"
    s.p.flush_tlb(False)
    assert s.p.cached(VA, USER) == ""


@pytest.mark.parametrize("level", [1, 2])
def test_invlpg_drops_all_of_a_large_page(s, level):
    size = 1 << (12 + 9 * level)
    base = VA & ~(size - 1)
    s.map(VA, P | W | U | PS | G, level)
    s.map(VA - (1 << 39), DATA | P | W | U)
    pages = [base, base + 0x5000, base + 0x1FF000, base + size - 0x1000][: 4 if level == 1 else 3]
    for page in pages:
        s.p.lookup(page, READ, USER)
        s.p["access_seg"] = 3
        s.p.lookup_exec(page)
        assert s.p.cached(page, USER).startswith("r")
    s.p.lookup(VA - (1 << 39), READ, USER)
    s.map(VA, 0, level)
    s.p.flush_page(base + 0x3000)
    for page in pages:
        assert s.p.cached(page, USER) == ""
        assert s.p.lookup(page, READ, USER)[0] == PF
        assert s.p.lookup_exec(page)[0] == PF
    assert s.p.cached(VA - (1 << 39), USER) == "r"


def test_instruction_fetches(s):
    s.map(VA, DATA | P | U | NX)
    s.map(VA + 0x1000, DATA + 0x1000 | P | U)
    s.p["cpl"] = 3
    assert s.p.lookup_exec(VA) == (PF, E_P | E_U | E_I, VA)
    assert s.p.lookup_exec(VA + 0x1234) == DATA + 0x1234
    s.map(VA + 0x1000, 0)
    assert s.p.lookup_exec(VA + 0x1235) == DATA + 0x1235  # from the ITLB
    s.p.flush_tlb(True)
    assert s.p.lookup_exec(VA + 0x1235) == (PF, E_U | E_I, VA + 0x1235)


def test_jump_cache_goes_with_the_tlb(s):
    kernel = 0xFFFF_8000_1234_5000
    s.map(VA, DATA | P | U)
    s.map(VA + 0x5000, DATA | P | U | G)
    s.map(kernel, DATA | P | G)
    s.map(kernel + 0x1000, DATA | P)
    s.p["cpl"] = 0
    empty = s.p.jump(KERNEL_AC, VA)
    pads = {VA + 4: 0xAAAA, VA + 0x5004: 0xBBBB, kernel + 4: 0xCCCC, kernel + 0x1004: 0xDDDD}

    def enter():
        for pc, pad in pads.items():
            s.p.lookup_exec(pc)
            s.p.jump_insert(KERNEL_AC, pc, pad)

    def held():
        return [pc for pc, pad in pads.items() if s.p.jump(KERNEL_AC, pc) == pad]

    enter()
    assert held() == list(pads)
    assert s.p.jump(KERNEL, VA + 4) == empty
    s.p.flush_page(VA + 0x9000)  # no jump goes there, nor to the page before
    assert held() == list(pads)
    s.p.flush_page(VA + 0x6000)  # a block may run over from the page before
    assert VA + 0x5004 not in held() and kernel + 4 in held()
    enter()
    s.p.flush_tlb(True)
    assert held() == [kernel + 4]
    enter()
    s.p.flush_page(kernel + 0x1000)
    assert kernel + 0x1004 not in held() and kernel + 4 not in held()
    enter()
    s.p.flush_tlb(False)
    assert held() == []


# ---- linear memory


def test_a_write_over_two_pages_is_all_or_nothing(s):
    s.map(VA, DATA | P | W | U)
    s.map(VA + 0x1000, DATA + 0x1000 | P | U)
    assert s.p.write(VA + 0xFFC, b"12345678") == (PF, E_P | E_W, VA + 0x1000)
    assert s.ram.read(DATA + 0xFFC, 8) == bytes(8)
    s.map(VA + 0x1000, DATA + 0x3000 | P | W | U)
    s.p.flush_tlb(False)
    assert s.p.write(VA + 0xFFC, b"12345678") is None
    assert s.ram.read(DATA + 0xFFC, 4) + s.ram.read(DATA + 0x3000, 4) == b"12345678"
    assert s.p.read(VA + 0xFFC, 8) == b"12345678"


def test_linear_addresses_wrap_outside_long_mode():
    s = legacy()
    s.p["cr0"] = CR0_PE
    s.ram.write(0, b"wxyz")
    assert s.p.read(0xFFFFFFFC, 8) == bytes(4) + b"wxyz"


@pytest.mark.parametrize(
    "attr, limit, offset, size, write, want",
    [
        (0x4093, 0xFFF, 0xFFC, 4, True, 0x10FFC),
        (0x4093, 0xFFF, 0xFFD, 4, False, (GP, 0)),
        (0x4091, 0xFFF, 0, 4, True, (GP, 0)),  # read-only
        (0x4091, 0xFFF, 0, 4, False, 0x10000),
        (0x4099, 0xFFF, 0, 4, False, (GP, 0)),  # execute-only
        (0x409B, 0xFFF, 0, 4, True, (GP, 0)),  # code is never writable
        (0x4097, 0xFFF, 0xFFF, 1, True, (GP, 0)),  # expand-down: above the limit
        (0x4097, 0xFFF, 0x1000, 4, True, 0x11000),
        (0x0097, 0xFFF, 0xFFFE, 4, True, (GP, 0)),  # up to 64 KiB without B
        (0x0097, 0xFFF, 0xFFFC, 4, True, 0x1FFFC),
        (0, 0, 0, 1, False, (GP, 0)),  # null
        (0x4093, 0xFFFFFFFF, 0xFFFFFFFE, 4, False, (GP, 0)),
    ],
)
def test_segment_checks(attr, limit, offset, size, write, want):
    s = legacy()
    s.p.set_segment(3, 0x10, 0x10000, limit, attr)
    assert s.p.segment_linear(3, offset, size, write) == want
    s.p.set_segment(2, 0x10, 0x10000, limit, attr)
    assert s.p.segment_linear(2, offset, size, write) == ((SS, 0) if want == (GP, 0) else want)


def test_segments_in_64_bit_mode(s):
    s.p.set_segment(3, 0, 0x5000, 0, 0)  # ignored
    s.p.set_segment(4, 0, 0xFFFF_FFFF_8000_0000, 0, 0)
    assert s.p.segment_linear(3, 0x10, 8, True) == 0x10
    assert s.p.segment_linear(4, 0x10, 8, True) == 0xFFFF_FFFF_8000_0010
    assert s.p.segment_linear(3, 0x7FFF_FFFF_FFF8, 8, True) == 0x7FFF_FFFF_FFF8
    assert s.p.segment_linear(3, 0x7FFF_FFFF_FFF9, 8, True) == (GP, 0)
    assert s.p.segment_linear(2, 0x8000_0000_0000, 8, True) == (SS, 0)


def test_system_accesses_are_supervisor_accesses(s):
    s.map(VA, DATA | P | W)
    s.ram.write(DATA, struct.pack("<Q", 0x1122334455667788))
    s.p["cpl"] = 3
    assert s.p.read(VA, 8, True) == bytes.fromhex("8877665544332211")
    assert s.p.read(VA, 8, False) == (PF, E_P | E_U, VA)


# ---- random tables against a model of SDM vol. 3, 4.5 to 4.7


def model(s, va, access, table):
    """``(gpa, size, attr)`` or a page fault's tuple, from the manual's text rather than from our code."""
    p, ram = s.p, s.ram
    cr0, cr4, efer = p["cr0"], p["cr4"], p["efer"]
    nxe, write, fetch = bool(efer & NXE), access != READ and access != EXEC, access == EXEC
    error = (E_W if write else 0) | (E_U if table == USER else 0)
    error |= E_I if fetch and (nxe or cr4 & CR4_SMEP) else 0
    entries, base = [], p["cr3"] & ~0xFFF
    for level in (3, 2, 1, 0):
        e = get(ram, base + 8 * index(va, level))
        entries.append(e)
        if not e & P:
            return (PF, error, va)
        leaf = level == 0 or level < 3 and e & PS
        reserved = ((1 << 52) - (1 << 46)) | (0 if nxe else NX)
        if level == 3:
            reserved |= PS
        elif leaf and level:
            reserved |= (1 << (12 + 9 * level)) - (1 << 13)
        if e & reserved:
            return (PF, error | E_P | E_RSVD, va)
        base = e & 0xFFFFFFFFFF000
        if leaf:
            break
    user = all(e & U for e in entries)
    writable = all(e & W for e in entries)
    nx = nxe and any(e & NX for e in entries)
    if table == USER:
        good = user and (not write or writable) and not (fetch and nx)
    elif fetch:
        good = not nx and not (user and cr4 & CR4_SMEP)
    else:
        good = not (user and cr4 & CR4_SMAP and table == KERNEL) and (not write or writable or not cr0 & CR0_WP)
    if not good:
        return (PF, error | E_P, va)
    size = 12 + 9 * level
    dirty = write or entries[-1] & D
    may_write = writable or table != USER and not cr0 & CR0_WP
    attr = (1 if dirty and may_write else 0) | (2 if entries[-1] & G else 0)
    return ((base & ~((1 << size) - 1)) | va & ((1 << size) - 1), size, attr)


@pytest.mark.parametrize("seed", range(4))
def test_walks_agree_with_a_model(seed):
    rng = random.Random(seed)
    s = Space()
    tables = {3: PML4, 2: PDPT, 1: PD, 0: PT}
    outcomes = set()
    for n in range(2000):
        s.p["cr0"] = CR0_PE | CR0_PG | rng.choice((0, CR0_WP))
        s.p["cr4"] = CR4_PAE | CR4_PGE | rng.choice((0, CR4_SMEP)) | rng.choice((0, CR4_SMAP))
        s.p["efer"] = LME | LMA | rng.choice((0, NXE))
        last = rng.choice((0, 0, 0, 1, 2))  # the level of the page
        for level, table in tables.items():
            e = tables[level - 1] if level > last else DATA if last == 0 else PS
            odds = {P: 0.97, W: 0.8, U: 0.7, A: 0.5, D: 0.5, G: 0.3, NX: 0.1, 1 << 50: 0.01}
            odds[1 << 14] = 0.02 if last else 0
            for bit, chance in odds.items():
                e |= bit if rng.random() < chance else 0
            put(s.ram, table + 8 * index(VA, level), e)
        va = VA | rng.randrange(4096)
        access, table = rng.choice((READ, WRITE, EXEC, 3)), rng.choice((USER, KERNEL, KERNEL_AC))
        want = model(s, va, access, table)
        assert s.p.walk(va, access, table) == want, (n, hex(va), access, table)
        outcomes.add(want[1] if want[0] == PF else ("page", want[1]))
        if want[0] != PF:
            for level in range(last, 4):
                assert get(s.ram, tables[level] + 8 * index(VA, level)) & A
            assert access in (READ, EXEC) or get(s.ram, tables[last] + 8 * index(VA, last)) & D
    assert len(outcomes) > 12
