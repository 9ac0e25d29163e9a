# ruff: noqa: F403, F405  (the names of guest.py are the vocabulary of these tests)
"""The instructions that the monitor runs itself, one at a time."""

import random
import struct
import time

import msgspec
import pytest
from guest import *

from hostel.base.errors import MachineError
from hostel.cpu import state as form

DB, UD, NM, TS, NP, SS, GP, PF, BR = 1, 6, 7, 10, 11, 12, 13, 14, 5
CF, PFL, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = (f"r{i}" for i in range(8))
M_USER, M_AC, M_CODE64, M_CODE32, M_FLAT, M_NOFPU, M_NOAVX, M_LONG, M_PE = 1, 2, 4, 8, 32, 64, 256, 2048, 8192


# ---- from reset to long mode, as an operating system goes


def test_reset_state():
    p = Guest().p
    assert (p["rip"], p["eflags"], p["cr0"], p["cpl"]) == (0xFFF0, 2, 0x60000010, 0)
    assert p.segment(1) == (0xF000, 0xFFFF0000, 0xFFFF, 0x9B)
    assert p.segment(3) == (0, 0, 0xFFFF, 0x93)
    assert (p["dr6"], p["dr7"], p["r2"], p["xcr0"]) == (0xFFFF0FF0, 0x400, 0x606A6, 1)
    assert p["mxcsr"] == 0x1F80
    assert p["mode"] & (M_CODE64 | M_CODE32 | M_PE | M_LONG | M_USER) == 0


def test_the_way_to_long_mode():
    g = Real()
    p = g.p
    g.ram.write(0x2100, struct.pack("<HI", 0xFFF, GDT))
    assert g.run("0f011e0001") == NEXT  # lidt [0x100], with a 24-bit base
    g.ram.write(0x2100, struct.pack("<HI", 0xFFF, 0x12005000))
    assert g.run("0f01160001") == NEXT  # lgdt [0x100]
    assert (p["gdtr_base"], p["gdtr_limit"]) == (GDT, 0xFFF)
    p[RAX] = 0x11
    assert g.run("0f22c0") == NEXT  # mov cr0, eax
    assert p["mode"] & M_PE
    assert g.run("66ea0000030008 00".replace(" ", "")) == NEXT  # jmp 8:0x30000
    assert (p["rip"], p.segment(1)) == (0x30000, (8, 0, FLAT, 0xC09B))
    assert p["mode"] & M_CODE32
    p[RAX] = DATA
    for sreg in ("8ec0", "8ed0", "8ed8"):
        assert g.run(sreg) == NEXT
    assert p["mode"] & M_FLAT
    put_tables(g)
    p[RAX] = 0x20
    assert g.run("0f22e0") == NEXT  # cr4.PAE
    p[RAX] = TABLES
    assert g.run("0f22d8") == NEXT
    p[RCX], p[RAX], p[RDX] = 0xC0000080, 0x901, 0
    assert g.run("0f30") == NEXT
    assert p["efer"] == 0x901
    p[RAX] = 0x80010011
    assert g.run("0f22c0") == NEXT
    assert p["efer"] == 0xD01
    assert p["mode"] & (M_LONG | M_CODE64) == M_LONG
    assert g.run("ea000003001000") == NEXT
    assert p["mode"] & (M_LONG | M_CODE64) == M_LONG | M_CODE64
    # and back: paging can't end in 64-bit code
    p[RAX] = 0x11
    assert g.faults("0f22c0") == (GP, 0)


def put_tables(g):
    g.put(TABLES, TABLES + 0x1000 | 7)
    g.put(TABLES + 0x1000, 0x83)


def test_init_and_sipi():
    g = Long(index=1, vcpus=2)
    g.p["tsc_aux"] = 5
    g.p.init()
    assert (g.p["wait_sipi"], g.p["cr0"], g.p["efer"], g.p["tsc_aux"]) == (1, 0x10, 0, 5)
    g.p.sipi(0x9A)
    assert (g.p["wait_sipi"], g.p["rip"]) == (0, 0)
    assert g.p.segment(1)[:2] == (0x9A00, 0x9A000)
    g.p.sipi(0x11)  # nobody waits for it
    assert g.p.segment(1)[0] == 0x9A00
    boot = Long()
    boot.p.init()
    assert (boot.p["wait_sipi"], boot.p["rip"]) == (0, 0xFFF0)


# ---- control registers


@pytest.mark.parametrize(
    "code, value",
    [
        ("0f22c0", 0x80000010),  # PG without PE
        ("0f22c0", 0x20000011),  # NW without CD
        ("0f22c0", 1 << 32 | 0x80010033),
        ("0f22c0", 0x10033),  # PG off in 64-bit code
        ("0f22e0", 0x620),  # (allowed; see below)
        ("0f22e0", 0x600),  # PAE off in long mode
        ("0f22e0", 0x1620),  # LA57
        ("0f22e0", 1 << 63 | 0x620),
        ("0f22d8", 1 << 63 | TABLES),  # no PCIDs yet
        ("0f22d8", 1 << 46 | TABLES),
        ("440f22c0", 16),
    ],
)
def test_bad_control_register_values(code, value):
    g = Long()
    g.p[RAX] = value
    if value == 0x620:
        assert g.run(code) == NEXT
    else:
        assert g.faults(code) == (GP, 0)


def test_pcids():
    g = Long()
    g.p["cr3"] |= 8
    g.p[RAX] = g.p["cr4"] | 1 << 17
    assert g.faults("0f22e0") == (GP, 0)  # CR3's low bits are set
    g.p["cr3"] &= ~8
    assert g.run("0f22e0") == NEXT
    g.p.lookup(0x1234, 0, 2)
    g.p[RAX] = 1 << 63 | TABLES
    assert g.run("0f22d8") == NEXT  # nothing changes and nothing is dropped
    assert g.p["cr3"] == TABLES
    assert g.p.cached(0x1234, 2)
    g.p[RAX] = 1 << 63 | TABLES | 5
    assert g.run("0f22d8") == NEXT
    assert g.p["cr3"] == TABLES | 5
    assert not g.p.cached(0x1234, 2)
    g.p[RAX] = g.p["cr0"] & ~(1 << 31)
    assert g.faults("0f22c0") == (GP, 0)


def test_privilege():
    g = Long().user()
    for code in (
        "0f20c0 0f22c0 0f21c0 0f23c0 f4 0f06 0f08 0f09 0f30 0f32 0f01f8 0f0138 0f0110 0f0118 0f00d0 0f00d8 0f01f0"
        " 0f33 0f35 480f07 0f0130 660f388200 0f0138"
    ).split():
        assert g.faults(code) == (GP, 0), code
    assert g.faults("0f01cb") == (UD, None)


def test_clts_lmsw_smsw():
    g = Long()
    g.p["cr0"] |= 8
    g.p.update_mode()
    assert g.p["mode"] & M_NOFPU
    assert g.run("0f06") == NEXT
    assert not g.p["mode"] & M_NOFPU
    g.p[RAX] = 0xFFFF_FFF0
    assert g.run("0f01f0") == NEXT  # lmsw ax: PE stays
    assert g.p["cr0"] & 0xF == 1
    g.p[RBX] = 0xFFFF_FFFF_FFFF_FFFF
    assert g.run("0f01e3") == NEXT
    assert g.p[RBX] == g.p["cr0"]
    g.p[RBX] = 0xFFFF_FFFF_FFFF_FFFF
    assert g.run("660f01e3") == NEXT
    assert g.p[RBX] == 0xFFFF_FFFF_FFFF_0000 | g.p["cr0"] & 0xFFFF


def test_wp_smap_and_pge_flush():
    g = Long()
    for code, register, bit in (("0f22c0", "cr0", 16), ("0f22e0", "cr4", 21), ("0f22e0", "cr4", 7)):
        g.p.lookup(0x1234, 1, 2)
        assert g.p.cached(0x1234, 2) == "rw"
        g.p[RAX] = g.p[register] ^ 1 << bit
        assert g.run(code) == NEXT
        assert g.p.cached(0x1234, 2) == ""


def test_stac_clac():
    g = Long()
    g.p["cr4"] |= 1 << 21
    assert not g.p.update_mode() & M_AC
    assert g.run("0f01cb") == NEXT
    assert g.p["mode"] & M_AC and g.p["eflags"] & AC
    assert g.run("0f01ca") == NEXT
    assert not g.p["mode"] & M_AC


def test_pdptes_are_loaded_and_checked():
    g = Protected()
    g.put(0x9000, 0x123001)
    g.put(0x9018, 0x456001)
    g.p["cr3"], g.p["cr4"] = 0x9000, 0x20
    g.p[RAX] = 0x80000011
    assert g.run("0f22c0") == NEXT
    assert (g.p["pdpte0"], g.p["pdpte1"], g.p["pdpte3"]) == (0x123001, 0, 0x456001)
    g = Protected()
    g.put(0x9008, 0x123003)
    g.p["cr3"], g.p["cr4"] = 0x9000, 0x20
    g.p[RAX] = 0x80000011
    assert g.faults("0f22c0") == (GP, 0)


def test_debug_registers():
    g = Long()
    g.p[RAX] = 0xFFFFFFFF
    assert g.run("0f23f0") == NEXT
    assert g.p["dr6"] == 0xFFFF0FF0 | 0xE00F
    assert g.run("0f23f8") == NEXT
    assert g.p["dr7"] == 0xFFFF27FF
    g.p["dr7"] = 0x400
    g.p[RAX] = 1 << 32
    assert g.faults("0f23f8") == (GP, 0)
    assert g.run("0f23c0") == NEXT
    assert g.run("0f21e3") == NEXT  # dr4 is dr6
    assert g.p[RBX] == 0xFFFF0FF0 | 0xE00F
    g.p["cr4"] |= 8
    assert g.faults("0f21e3") == (UD, None)


def test_invpcid():
    g = Long()
    g.p[RBX] = 0x9000
    for kind, want in ((0, ""), (1, ""), (2, ""), (3, "")):
        g.p.lookup(0x1234, 0, 2)
        g.put(0x9000, 0)
        g.put(0x9008, 0x1000)
        g.p[RAX] = kind
        assert g.run("660f388203") == NEXT
        assert g.p.cached(0x1234, 2) == want
    g.p[RAX] = 4
    assert g.faults("660f388203") == (GP, 0)
    g.p[RAX] = 0
    g.put(0x9008, 1 << 47)
    assert g.faults("660f388203") == (GP, 0)
    g.put(0x9000, 7)
    g.put(0x9008, 0)
    assert g.faults("660f388203") == (GP, 0)  # no PCIDs


# ---- segments


def test_loads_of_data_segments():
    g = Protected()
    g.p[RAX] = DATA
    assert g.run("8ed8") == NEXT
    assert g.p.segment(3) == (DATA, 0, FLAT, 0xC093)
    assert g.get(GDT + DATA) >> 40 & 1  # accessed
    g.put(GDT + 0xA0, descriptor(0x12345678, 0x1234, 0x4092))
    g.p[RAX] = 0xA0
    assert g.run("8ee0") == NEXT  # fs
    assert g.p.segment(4) == (0xA0, 0x12345678, 0x1234, 0x4093)
    g.p[RAX] = 2
    assert g.run("8ee8") == NEXT  # gs: null
    assert g.p.segment(5) == (2, 0, 0, 0)
    assert not g.p["inhibit"]


@pytest.mark.parametrize(
    "code, selector, want",
    [
        ("8ed8", EXEC_ONLY, (GP, EXEC_ONLY)),
        ("8ed8", ABSENT, (NP, ABSENT)),
        ("8ed8", TASK, (GP, TASK)),
        ("8ed8", 0x1000, (GP, 0x1000)),
        ("8ed8", 0x1C, (GP, 0x1C)),  # no LDT
        ("8ed8", DATA | 3, (GP, DATA)),
        ("8ed0", 0, (GP, 0)),
        ("8ed0", UDATA, (GP, UDATA & ~3)),
        ("8ed0", DATA | 1, (GP, DATA)),
        ("8ed0", RDONLY, (GP, RDONLY)),
        ("8ed0", CODE32, (GP, CODE32)),
        ("8ed0", ABSENT, (SS, ABSENT)),
    ],
)
def test_bad_segment_loads(code, selector, want):
    g = Protected()
    g.p[RAX] = selector
    assert g.faults(code) == want
    assert g.p.segment(3)[0] == DATA


def test_ss_loads():
    g = Protected()
    g.p[RAX] = DATA
    assert g.run("8ed0") == NEXT
    assert g.p["inhibit"] == 1
    g = Long()
    g.p[RAX] = 0
    assert g.run("8ed0") == NEXT  # null is fine in 64-bit code below CPL 3
    g.user()
    g.p[RAX] = 3
    assert g.faults("8ed0") == (GP, 0)


def test_push_and_pop_of_segments():
    g = Protected()
    assert g.run("0fa0") == NEXT
    assert (g.p["r4"], g.get(STACK - 4, 4)) == (STACK - 4, DATA)
    g.put(STACK - 4, 0, 4)
    assert g.run("1f") == NEXT
    assert (g.p["r4"], g.p.segment(3)[0]) == (STACK, 0)
    g.put(STACK, 0x1000, 4)
    assert g.faults("07") == (GP, 0x1000)
    g.put(STACK, DATA, 4)
    assert g.run("17") == NEXT
    assert g.p["inhibit"] == 1
    g = Long()
    assert g.run("0fa8") == NEXT
    assert g.p["r4"] == STACK - 8


def test_far_pointers():
    g = Protected()
    g.ram.write(0x9000, struct.pack("<IH", 0x11223344, DATA))
    assert g.run("c51d00900000") == NEXT
    assert (g.p[RBX], g.p.segment(3)[0]) == (0x11223344, DATA)
    g.ram.write(0x9000, struct.pack("<IH", 0x55667788, 0x1000))
    assert g.faults("0fb41d00900000") == (GP, 0x1000)


def test_mov_from_segment():
    g = Long()
    g.p[RBX] = 0xFFFF_FFFF_FFFF_FFFF
    assert g.run("8ccb") == NEXT
    assert g.p[RBX] == CODE64
    g.p[RBX] = 0xFFFF_FFFF_FFFF_FFFF
    assert g.run("668ccb") == NEXT
    assert g.p[RBX] == 0xFFFF_FFFF_FFFF_0000 | CODE64
    g.put(0x9000, 0xFFFFFFFF)
    g.p[RBX] = 0x9000
    assert g.run("8c0b") == NEXT
    assert g.get(0x9000) == 0xFFFF0000 | CODE64


def test_real_mode_segments_and_unreal_mode():
    g = Real()
    g.p.set_segment(3, 0, 0, FLAT, 0xC093)
    g.p[RAX] = 0x1234
    assert g.run("8ed8") == NEXT
    assert g.p.segment(3) == (0x1234, 0x12340, FLAT, 0xC093)  # the limit stays
    assert g.run("ea34125000") == NEXT
    assert (g.p["rip"], g.p.segment(1)[:2]) == (0x1234, (0x50, 0x500))


def test_the_instruction_pointer_of_16_bit_code_goes_past_64_k():
    g = Real()
    g.p["rip"] = 0xFFFF
    assert g.run("cc") == EXCEPTION  # INT3 pushes what lies behind it
    assert g.p["rip"] == 0x10000


def test_ldt_and_task_register():
    g = Long()
    g.put(GDT + LDTS + 8, 0xFFFF8000)
    g.p[RAX] = LDTS
    assert g.run("0f00d0") == NEXT
    assert g.p.segment(6) == (LDTS, 0xFFFF_8000_0000_8000, 0xFF, 0x82)
    g.put(GDT + LDTS + 8, 0)
    assert g.run("0f00d0") == NEXT
    g.put(LDT + 8, descriptor(0x1000, 0xFFFF, 0x0092))
    g.p[RAX] = 0xC
    assert g.run("8ed8") == NEXT
    assert g.p.segment(3) == (0xC, 0x1000, 0xFFFF, 0x93)
    g.p[RAX] = TASK
    assert g.run("0f00d8") == NEXT
    assert g.get(GDT + TASK) >> 40 & 0xF == 11  # busy
    assert g.p.segment(7) == (TASK, TSS, 0x67, 0x8B)
    assert g.faults("0f00d8") == (GP, TASK)
    g.p[RAX] = 0
    assert g.faults("0f00d8") == (GP, 0)
    assert g.run("0f00d0") == NEXT
    assert g.p.segment(6) == (0, 0, 0, 0)
    assert g.run("0f00cb") == NEXT
    assert g.p[RBX] == TASK
    assert Real().faults("0f00cb") == (UD, None)


def test_swapgs_and_fsgsbase():
    g = Long()
    g.p.set_segment(5, 0, 0x1111, 0, 0)
    g.p["kernel_gs_base"] = 0xFFFF_8000_0000_0000
    assert g.run("0f01f8") == NEXT
    assert (g.p.segment(5)[1], g.p["kernel_gs_base"]) == (0xFFFF_8000_0000_0000, 0x1111)
    assert g.faults("f3480faec0") == (UD, None)
    g.p["cr4"] |= 1 << 16
    g.p[RBX] = 0xFFFF_9000_1234_5678
    assert g.run("f3480faed3") == NEXT  # wrfsbase
    assert g.run("f3480faec0") == NEXT  # rdfsbase
    assert g.p[RAX] == 0xFFFF_9000_1234_5678
    assert g.run("f30faedb") == NEXT  # wrgsbase ebx
    assert g.p.segment(5)[1] == 0x12345678
    g.p[RBX] = 1 << 47
    assert g.faults("f3480faed3") == (GP, 0)
    assert Protected().faults("0f01f8") in ((UD, None),)


def test_descriptor_table_registers_and_umip():
    g = Long()
    g.p[RBX] = 0x9000
    assert g.run("0f0103") == NEXT
    assert g.ram.read(0x9000, 10) == struct.pack("<HQ", 0xFFF, GDT)
    g.ram.write(0x9000, struct.pack("<HQ", 0x123, 1 << 47))
    assert g.faults("0f0113") == (GP, 0)
    g.ram.write(0x9000, struct.pack("<HQ", 0x123, 0xFFFF_8000_0000_0000))
    assert g.run("0f011b") == NEXT
    assert (g.p["idtr_base"], g.p["idtr_limit"]) == (0xFFFF_8000_0000_0000, 0x123)
    g.user()
    g.p[RBX] = USER
    assert g.run("0f0103") == NEXT
    g.p["cr4"] |= 1 << 11
    for code in ("0f0103", "0f010b", "0f00c3", "0f00cb", "0f01e3"):
        assert g.faults(code) == (GP, 0)


@pytest.mark.parametrize(
    "code, selector, zf, value",
    [
        ("0f02d8", DATA, 1, 0xCF9200),
        ("0f02d8", TASK, 1, 0x008900),
        ("0f02d8", 0x1000, 0, None),
        ("0f02d8", 0, 0, None),
        ("0f03d8", DATA, 1, FLAT),
        ("0f03d8", CODE16, 1, 0xFFFF),
        ("0f03d8", GATE, 0, None),
        ("0f00e0", DATA, 1, None),
        ("0f00e0", EXEC_ONLY, 0, None),
        ("0f00e0", CODE32, 1, None),
        ("0f00e8", DATA, 1, None),
        ("0f00e8", RDONLY, 0, None),
        ("0f00e8", CODE32, 0, None),
        ("0f00e8", TASK, 0, None),
        ("0f00e8", DATA | 3, 0, None),
    ],
)
def test_looks_at_descriptors(code, selector, zf, value):
    g = Protected()
    g.put(GDT + GATE, CODE32 << 16 | 0x8C << 40)
    g.p[RAX], g.p[RBX] = selector, 0x55
    g.p["eflags"] = 2 if zf else 2 | ZF
    assert g.run(code) == NEXT
    assert (g.p["eflags"] & ZF) // ZF == zf
    assert g.p[RBX] == (0x55 if value is None else value)


def test_arpl():
    g = Protected()
    g.p[RAX], g.p[RBX] = 0x10, 3
    assert g.run("63d8") == NEXT
    assert (g.p[RAX], g.p["eflags"] & ZF) == (0x13, ZF)
    assert g.run("63d8") == NEXT
    assert (g.p[RAX], g.p["eflags"] & ZF) == (0x13, 0)


# ---- far transfers


def test_far_call_and_return():
    g = Protected()
    assert g.run("9a785634120800") == NEXT
    assert (g.p["rip"], g.p["r4"]) == (0x12345678, STACK - 8)
    assert g.words(STACK - 8, 2, 4) == [0x1007, CODE32]
    assert g.run("ca1000") == NEXT
    assert (g.p["rip"], g.p["r4"]) == (0x1007, STACK + 16)


def test_far_return_to_user_mode():
    g = Protected()
    for i, value in enumerate((0x201000, UCODE32, 0, 0x208000, UDATA)):
        g.put(STACK + 4 * i, value, 4)
    assert g.run("ca0400") == NEXT
    assert (g.p["cpl"], g.p["rip"], g.p["r4"]) == (3, 0x201000, 0x208004)
    assert g.p.segment(2)[0] == UDATA
    assert g.p.segment(3)[0] == 0


@pytest.mark.parametrize(
    "selector, want",
    [(0, (GP, 0)), (DATA, (GP, DATA)), (UCODE32, (GP, UCODE32 & ~3)), (ABSENT, (GP, ABSENT)), (TASK, (GP, TASK)),
     (0x2000, (GP, 0x2000))],
)  # fmt: skip
def test_bad_far_jumps(selector, want):
    g = Protected()
    code = "ea00100000" + selector.to_bytes(2, "little").hex()
    assert g.faults(code) == want
    assert g.faults("9a" + code[2:]) == want


def test_far_jump_beyond_the_limit():
    g = Protected()
    assert g.faults("ea000001006000") == (GP, 0)
    g.put(GDT + CODE16, descriptor(0, 0xFFFF, 0x1A))
    assert g.faults("ea000000006000") == (NP, CODE16)


def test_call_gate_to_inner_level_with_parameters():
    g = Protected().user()
    g.put(GDT + GATE, CODE & 0xFFFF | CODE32 << 16 | 2 << 32 | 0xEC << 40 | CODE >> 16 << 48)
    g.put(0x208000, 0x11111111, 4)
    g.put(0x208004, 0x22222222, 4)
    assert g.run("9a00000000" + (GATE | 3).to_bytes(2, "little").hex()) == NEXT
    assert (g.p["cpl"], g.p["rip"], g.p["r4"]) == (0, CODE, STACK1 - 24)
    assert g.words(STACK1 - 24, 6, 4) == [0x201007, UCODE32, 0x11111111, 0x22222222, 0x208000, UDATA]
    assert g.run("ca0800") == NEXT
    assert (g.p["cpl"], g.p["rip"], g.p["r4"]) == (3, 0x201007, 0x208008)


def test_call_gate_in_long_mode():
    g = Long().user()
    g.put(GDT + GATE, CODE & 0xFFFF | CODE64 << 16 | 0xEC << 40 | CODE >> 16 << 48)
    g.put(GDT + GATE + 8, 0)
    g.ram.write(0x200000, struct.pack("<IH", 0, GATE | 3))
    g.p[RBX] = USER
    rip = g.p["rip"]
    assert g.run("ff1b") == NEXT
    assert (g.p["cpl"], g.p["rip"], g.p["r4"]) == (0, CODE, STACK1 - 32)
    assert g.words(STACK1 - 32, 4) == [rip + 2, UCODE64, USER + 0x8000, UDATA]
    assert g.p.segment(2)[0] == 0
    assert g.run("48cb") == NEXT
    assert (g.p["cpl"], g.p["rip"], g.p["r4"]) == (3, rip + 2, USER + 0x8000)


# ---- flags and stack


def test_pushf_and_popf():
    g = Long()
    g.p["eflags"] = RF | IF | 0x43
    assert g.run("9c") == NEXT
    assert g.get(STACK - 8) == IF | 0x43
    g.p["eflags"] = 2
    everything = 0xFFFF_FFFF_FFFF_FFFF
    for flags, level, size, want in (
        (2, 0, "9d", 0x244FD5 | 2 | IF | IOPL3),
        (2, 3, "9d", 0x244DD5 | 2),
        (2 | IOPL3, 3, "9d", 0x244DD5 | 2 | IOPL3 | IF),
        (2, 0, "669d", 0x7FD7),
    ):
        g = Long()
        at = g.p["r4"]
        if level:
            g.user()
            at = 0x208000
        g.put(at, everything)
        g.p["eflags"] = flags
        assert g.run(size) == NEXT
        assert g.p["eflags"] == want, hex(g.p["eflags"])


def test_cli_and_sti():
    g = Long()
    assert g.run("fb") == NEXT
    assert (g.p["eflags"], g.p["inhibit"]) == (IF | 2, 1)
    g.p["inhibit"] = 0
    assert g.run("fb") == NEXT
    assert g.p["inhibit"] == 0  # it was set already
    assert g.run("fa") == NEXT
    assert g.p["eflags"] == 2
    g.user()
    assert g.faults("fa") == (GP, 0)
    assert g.faults("fb") == (GP, 0)
    g.p["eflags"] |= IOPL3
    assert g.run("fb") == NEXT


def test_pusha_popa_enter_bound():
    g = Protected()
    for i in range(8):
        g.p[f"r{i}"] = 0x100 + i
    g.p["r4"] = STACK
    assert g.run("60") == NEXT
    assert g.words(STACK - 32, 8, 4) == [0x107, 0x106, 0x105, STACK, 0x103, 0x102, 0x101, 0x100]
    for i in range(8):
        if i != 4:
            g.p[f"r{i}"] = 0
    assert g.run("61") == NEXT
    assert [g.p[f"r{i}"] for i in range(8)] == [0x100, 0x101, 0x102, 0x103, STACK, 0x105, 0x106, 0x107]
    g.put(0x9000, 0xFFFFFFFE, 4)
    g.put(0x9004, 5, 4)
    g.p[RBX] = 0x9000
    g.p[RAX] = 5
    assert g.run("6203") == NEXT
    g.p[RAX] = 0xFFFFFFFD
    assert g.faults("6203") == (BR, None)


def test_enter():
    g = Long()
    g.p[RBP] = 0x9020
    g.put(0x9018, 0xAAAA)
    g.put(0x9010, 0xBBBB)
    assert g.run("c8200000") == NEXT
    assert (g.p[RBP], g.p["r4"], g.get(STACK - 8)) == (STACK - 8, STACK - 8 - 0x20, 0x9020)
    g.p[RBP], g.p["r4"] = 0x9020, STACK
    assert g.run("c8200003") == NEXT
    assert g.words(STACK - 32, 4) == [STACK - 8, 0xBBBB, 0xAAAA, 0x9020]
    assert (g.p[RBP], g.p["r4"]) == (STACK - 8, STACK - 32 - 0x20)


def test_faulting_pushes_leave_the_stack_pointer():
    g = Long()
    g.p["r4"] = 0x5_0000_0000
    assert g.faults("9c") == (PF, 2, 0x4_FFFF_FFF8)
    g.p["r4"] = 0x8000_0000_0010
    assert g.faults("9c") == (SS, 0)


@pytest.mark.parametrize(
    "code, ax, flags, want_ax, want_flags",
    [
        ("37", 0x000F, 0, 0x0105, AF | CF),
        ("37", 0x00F9, AF, 0x010F, AF | CF),
        ("3f", 0x0105, AF, 0xFF0F, AF | CF),
        ("27", 0x009C, 0, 0x0002, AF | CF),
        ("27", 0x0099, CF, 0x00F9, CF),
        ("2f", 0x009A, 0, 0x0034, AF | CF),
        ("2f", 0x0005, AF, 0x00FF, AF | CF),
        ("d40a", 0x00FF, 0, 0x1905, 0),
        ("d50a", 0x0203, CF, 0x0017, 0),
        ("d6", 0x1234, CF, 0x12FF, CF),
        ("d6", 0x1234, 0, 0x1200, 0),
    ],
)
def test_decimal(code, ax, flags, want_ax, want_flags):
    g = Protected()
    g.p[RAX], g.p["eflags"] = ax, flags | 2
    assert g.run(code) == NEXT
    assert g.p[RAX] == want_ax
    assert g.p["eflags"] & (AF | CF) == want_flags
    if code != "d6":
        al = want_ax & 0xFF
        assert bool(g.p["eflags"] & ZF) == (al == 0)
        assert bool(g.p["eflags"] & SF) == (al > 127)
        assert bool(g.p["eflags"] & PFL) == (al.bit_count() % 2 == 0)


def test_aam_by_zero():
    assert Protected().faults("d400") == (0, None)


# ---- ports


def test_in_and_out():
    g = Long()
    g.p[RAX], g.p[RDX] = 0x1122334455667788, 0x3F8
    assert g.run("ee") == EXIT
    assert g.p.io() == (0x3F8, 1, True, 0x88)
    assert g.p["rip"] == 0x1001
    assert g.run("66ef") == EXIT
    assert g.p.io() == (0x3F8, 2, True, 0x7788)
    assert g.run("e7fe") == EXIT
    assert g.p.io() == (0xFE, 4, True, 0x55667788)
    assert g.run("e4fe") == EXIT
    assert g.p.io()[:3] == (0xFE, 1, False)
    assert g.p.finish_io(0xFFFFFFAA) == NEXT
    assert g.p[RAX] == 0x11223344556677AA
    assert g.run("66ed") == EXIT
    g.p.finish_io(0xBBCC)
    assert g.p[RAX] == 0x112233445566BBCC
    assert g.run("ed") == EXIT
    g.p.finish_io(0xDEADBEEF)
    assert g.p[RAX] == 0xDEADBEEF


def test_port_permissions():
    g = Long().user()
    g.put(TSS + 0x66, 0x68, 2)
    assert g.faults("e4fe") == (GP, 0)  # beyond the TSS's limit
    g.p.set_segment(7, TASK, TSS, 0x68 + 0x40, 0x8B)
    g.ram.write(TSS + 0x68, b"\xff" * 0x40)
    assert g.faults("e4fe") == (GP, 0)
    g.put(TSS + 0x68 + 0xFE // 8, 0xBF, 1)
    assert g.run("e4fe") == EXIT
    assert g.faults("66e5fe") == (GP, 0)  # the next port isn't allowed
    g.p["eflags"] |= IOPL3
    assert g.run("e5fe") == EXIT


def test_string_io():
    g = Long()
    g.ram.write(0x9000, b"abcd")
    g.p[RSI], g.p[RDX], g.p[RCX] = 0x9000, 0x3F8, 3
    for i, want in enumerate(b"abc"):
        assert g.run("f36e") == EXIT
        assert g.p.io() == (0x3F8, 1, True, want)
        assert g.p["rip"] == (0x1000 if i < 2 else 0x1002)
    assert (g.p[RSI], g.p[RCX]) == (0x9003, 0)
    assert g.run("f36e") == NEXT
    assert g.p["rip"] == 0x1004
    g.p[RDI], g.p[RCX], g.p["eflags"], g.p["rip"] = 0x9010, 2, DF | 2, 0x1000
    for i, value in enumerate((0x1111, 0x2222)):
        assert g.run("f3666d") == EXIT
        assert (g.p["rip"], g.p[RDI]) == (0x1000, 0x9010 - 2 * i)
        assert g.p.finish_io(value) == NEXT
    assert (g.p["rip"], g.p[RDI], g.p[RCX]) == (0x1003, 0x900C, 0)
    assert g.words(0x900E, 2, 2) == [0x2222, 0x1111]


def test_ins_faults_before_the_port_is_read():
    g = Long()
    g.p[RDI] = 0x5_0000_0000
    assert g.faults("6c") == (PF, 2, 0x5_0000_0000)
    g.p[RDI] = 0x4000_1FFF  # USER, the last byte of a page, and the next one taken away
    g.put(TABLES + 0x3000 + 16, 0)
    assert g.faults("6d") == (PF, 2, 0x4000_2000)


# ---- MSRs, CPUID, time


def test_msrs():
    g = Long()
    p = g.p
    for index in (0xC0000081, 0xC0000082, 0xC0000102, 0xC0000100, 0x174, 0x175, 0x176, 0x277, 0xC0000103, 0x48):
        value = 0x0007_0406 if index == 0x277 else 3 if index == 0x48 else 0x1230
        assert p.wrmsr(index, value)
        assert p.rdmsr(index) == value
    for index, bad in (
        (0xC0000082, 1 << 47),
        (0xC0000100, 1 << 47),
        (0xC0000102, 1 << 47),
        (0xC0000084, 1 << 32),
        (0xC0000080, 0x1000),
        (0xC0000080, 0x801),  # LME can't change under paging
        (0x277, 2),
        (0x48, 8),
        (0xC0000103, 1 << 32),
        (0x200, 1 << 46),
        (0x2FF, 1 << 12),
    ):
        assert not p.wrmsr(index, bad), hex(index)
    for index in (0x186, 0x345, 0x12345, 0xC0010015, 0x4B564D02, 0x6E0, 0x802):
        assert p.rdmsr(index) is None
        assert not p.wrmsr(index, 0)
    p["r1"] = 0x12345
    assert g.faults("0f32") == (GP, 0)
    assert g.faults("0f30") == (GP, 0)
    p["r1"], p["r0"], p["r2"] = 0xC0000102, 0x55667788, 0x1122
    assert g.run("0f30") == NEXT
    assert p["kernel_gs_base"] == 0x1122_5566_7788
    p["r0"] = p["r2"] = 0xFFFF_FFFF_FFFF_FFFF
    assert g.run("0f32") == NEXT
    assert (p["r0"], p["r2"]) == (0x55667788, 0x1122)


def test_arch_capabilities_say_that_nothing_leaks():
    value = Guest().p.rdmsr(0x10A)
    for bit in (0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62):
        assert value >> bit & 1, bit
    assert not value >> 7 & 1  # no TSX_CTRL


def test_nxe_flushes():
    g = Long()
    g.p.lookup(0x1234, 0, 2)
    assert g.p.wrmsr(0xC0000080, 0x501)
    assert not g.p.cached(0x1234, 2)


def test_tsc():
    g = Long()
    a = g.p.rdmsr(0x10)
    assert a < g.p.rdmsr(0x10)
    assert g.run("0f31") == NEXT
    b = g.p["r2"] << 32 | g.p["r0"]
    assert a < b < g.p.rdmsr(0x10)
    assert g.p.wrmsr(0x10, 5_000_000_000_000)
    assert 0 < g.p.rdmsr(0x10) - 5_000_000_000_000 < 1e10
    adjust = g.p.rdmsr(0x3B)
    assert abs(adjust - (5_000_000_000_000 - b)) < 1e10
    assert g.p.wrmsr(0x3B, 0)
    assert 0 < g.p.rdmsr(0x10) - b < 1e11
    assert g.p.wrmsr(0xC0000103, 7)
    assert g.run("0f01f9") == NEXT
    assert g.p["r1"] == 7
    assert g.run("f30fc7fb") == NEXT
    assert g.p[RBX] == 7
    g.user()
    assert g.run("0f31") == NEXT
    g.p["cr4"] |= 4
    assert g.faults("0f31") == (GP, 0)


def pvclock(g, at):
    version, _, stamp, system_time, mul, shift, flags = struct.unpack("<IIQQIbB2x", g.ram.read(at, 32))
    assert version and not version & 1 and flags & 1
    ticks = (g.p.rdmsr(0x10) - stamp) & (1 << 64) - 1
    ticks = ticks << shift if shift >= 0 else ticks >> -shift
    return (ticks * mul >> 32) + system_time


@pytest.mark.parametrize("msr", [0x12, 0x4B564D01])
def test_kvm_clock(msr):
    g = Long()
    assert g.p.wrmsr(msr, 0x9000 | 1)
    t0, a = time.monotonic_ns(), pvclock(g, 0x9000)
    time.sleep(0.05)
    t1, b = time.monotonic_ns(), pvclock(g, 0x9000)
    assert abs((b - a) - (t1 - t0)) < 0.01 * (t1 - t0) + 5_000_000
    assert g.p.wrmsr(0x10, 0)  # a changed TSC doesn't change the clock
    c = pvclock(g, 0x9000)
    assert 0 <= c - b < 1_000_000_000
    assert g.p.wrmsr(msr - 1, 0xA000)
    version, sec, nsec = struct.unpack("<III", g.ram.read(0xA000, 12))
    assert version == 2
    assert abs(sec * 10**9 + nsec + pvclock(g, 0x9000) - time.time_ns()) < 2_000_000_000
    g.ram.write(0x9000, bytes(32))
    assert g.p.wrmsr(msr, 0)
    assert g.p.wrmsr(0x10, 0)
    assert g.ram.read(0x9000, 32) == bytes(32)
    assert g.p.wrmsr(msr, 0x7FFFFFFF0001)  # no memory there
    assert g.p.wrmsr(msr, 0x9FFD)


def test_cpuid():
    g = Long(index=2, vcpus=4)
    p = g.p
    assert b"".join(struct.pack("<I", p.cpuid(0)[i]) for i in (1, 3, 2)) == b"GenuineIntel"
    a, b, c, d = p.cpuid(1)
    assert a == 0x606A6
    assert (b >> 24, b >> 16 & 0xFF, b >> 8 & 0xFF) == (2, 4, 8)
    assert c >> 31 & 1 and c >> 26 & 1 and c >> 21 & 1 and not c >> 27 & 1 and not c >> 3 & 1
    assert d >> 28 & 1 and d >> 25 & 1 and d >> 9 & 1
    p["cr4"] |= 1 << 18
    assert p.cpuid(1)[2] >> 27 & 1
    _, b, c, d = p.cpuid(7)
    for bit in (4, 11, 14, 16, 17, 22, 25, 30, 31):  # HLE RTM MPX AVX-512 PT
        assert not b >> bit & 1
    assert not c & (1 << 3 | 1 << 16 | 1 << 7) and d >> 29 & 1
    assert p.cpuid(7)[0] == 2 and p.cpuid(7, 2)[3] >> 4 & 1
    assert p.wrmsr(0x48, 0x401)  # BHI_DIS_S
    text = b"".join(struct.pack("<4I", *p.cpuid(0x80000002 + i)) for i in range(3))
    assert text.rstrip(b"\0") == b"hostel virtual CPU (bt)"
    assert struct.pack("<3I", *p.cpuid(0x40000000)[1:]) == b"KVMKVMKVM\0\0\0"
    assert p.cpuid(0x40000001)[0] & 0x1000009 == 0x1000009
    assert p.cpuid(0xB, 0) == (0, 1, 0x100, 2)
    assert p.cpuid(0xB, 1) == (2, 4, 0x201, 2)
    assert p.cpuid(0xB, 2) == (0, 0, 2, 2)
    assert p.cpuid(4, 0)[0] >> 26 == 3
    assert p.cpuid(4, 3)[0] >> 14 & 0xFFF == 3
    assert p.cpuid(4, 4)[0] & 31 == 0
    assert p.cpuid(0x80000008)[0] == 46 | 48 << 8
    assert p.cpuid(0x80000007)[3] == 0x100
    assert p.cpuid(0x12345) == p.cpuid(0x1F)
    khz = p.cpuid(0x40000010)[0]
    assert p.cpuid(0x15)[2] == khz * 1000
    p["r0"], p["r1"] = 0xFFFF_FFFF_0000_0000, 0xFFFF_FFFF_0000_0000
    assert g.run("0fa2") == NEXT
    assert (p["r0"], p["r3"]) == (0x1F, 0x756E6547)


def test_announced_features_are_the_host_s():
    """A guest's instruction runs as itself: no bit that the host lacks."""
    flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split()
    p = Guest().p
    ecx1, ebx7, ecx7 = p.cpuid(1)[2], p.cpuid(7)[1], p.cpuid(7)[2]
    names = {
        (ecx1, 0): "pni", (ecx1, 9): "ssse3", (ecx1, 12): "fma", (ecx1, 19): "sse4_1", (ecx1, 20): "sse4_2",
        (ecx1, 23): "popcnt", (ecx1, 25): "aes", (ecx1, 28): "avx", (ecx1, 29): "f16c", (ebx7, 3): "bmi1",
        (ebx7, 5): "avx2", (ebx7, 8): "bmi2", (ebx7, 19): "adx", (ebx7, 29): "sha_ni", (ecx7, 8): "gfni",
        (ecx7, 9): "vaes", (ecx7, 10): "vpclmulqdq",
    }  # fmt: skip
    for (word, bit), name in names.items():
        assert bool(word >> bit & 1) == (name in flags), name


def test_xsave_leaf():
    g = Long()
    p = g.p
    assert p.cpuid(0xD, 0)[1] == 576
    if p.cpuid(0xD, 0)[0] == 7:
        p["xcr0"] = 7
        assert p.cpuid(0xD, 0) == (7, 832, 832, 0)
        assert p.cpuid(0xD, 2) == (256, 576, 0, 0)
    assert p.cpuid(0xD, 1)[0] == 7
    assert p.cpuid(0xD, 3) == (0, 0, 0, 0)


def test_hypercalls_and_halt():
    g = Long()
    g.p[RAX] = 9
    assert g.run("0f01c1") == NEXT
    assert g.p[RAX] == (1 << 64) - 1000
    assert g.run("f4") == HALT
    assert (g.p["halted"], g.p["rip"]) == (1, 0x1004)
    g.user()
    assert g.run("0f01d9") == NEXT
    assert g.p[RAX] == (1 << 64) - 1
    assert g.faults("0f0b") == (UD, None)


# ---- FXSAVE, XSAVE


def fill(g):
    for i in range(16):
        g.p.set_vector(i, bytes((i * 32 + j) & 0xFF for j in range(32)))
    image = bytearray(range(160))
    image[0:6] = struct.pack("<HHBB", 0x27F, 0x3800, 0xC0, 0)
    image[24:32] = struct.pack("<II", 0x1FA0, 0xFFFF)
    g.p.set_fx(bytes(image))


def with_xsave(xcr0=7):
    g = Long()
    if g.p.cpuid(0xD, 0)[0] & xcr0 != xcr0:
        pytest.skip("the host has no AVX")
    g.p["cr4"] |= 1 << 18
    g.p["xcr0"] = xcr0
    g.p.update_mode()
    g.p[RBX] = 0x9000
    g.p[RAX] = g.p[RDX] = 0xFFFFFFFF
    fill(g)
    return g


def test_fxsave_and_fxrstor():
    g = Long()
    fill(g)
    g.p[RBX] = 0x9000
    g.ram.write(0x9000, b"\xcc" * 512)
    assert g.run("0fae03") == NEXT
    out = g.ram.read(0x9000, 512)
    assert out[:5] == struct.pack("<HHB", 0x27F, 0x3800, 0xC0)
    assert out[5:24] == bytes(19)  # no host addresses
    assert out[24:32] == struct.pack("<II", 0x1FA0, 0xFFFF)
    assert out[32:42] == bytes(range(32, 42)) and out[42:48] == bytes(6)
    assert out[160 + 16 * 15 :][:16] == g.p.vector(15)[:16]
    assert out[416:] == b"\xcc" * 96
    for i in range(16):
        g.p.set_vector(i, b"\xee" * 32)
    g.p.set_fx(bytes(160))
    assert g.run("0fae0b") == NEXT
    assert g.p.vector(3) == bytes(range(96, 112)) + b"\xee" * 16
    assert g.p["mxcsr"] == 0x1FA0
    g.put(0x9000 + 24, 0x10000, 4)
    assert g.faults("0fae0b") == (GP, 0)
    g.p[RBX] = 0x9008
    assert g.faults("0fae03") == (GP, 0)
    g.p["cr0"] |= 8
    assert g.faults("0fae03") == (NM, None)


@pytest.mark.parametrize(("code", "size"), [("0fae03", 512), ("0fae23", 832), ("0fc723", 832)])  # FXSAVE XSAVE XSAVEC
def test_areas_that_end_in_a_page_that_may_not_be_written(code, size):
    g = with_xsave()
    g.p[RBX] = USER + 0x3000 - size
    g.put(TABLES + 0x3000 + 8 * 3, 0x203000 | 5)
    g.ram.write(0x202000, b"\xcc" * 0x2000)
    assert g.run(code) == NEXT
    g.ram.write(0x202000, b"\xcc" * 0x1000)
    g.p[RBX] += 64
    assert g.faults(code) == (PF, 3, USER + 0x3000)
    assert g.ram.read(0x202000, 0x2000) == b"\xcc" * 0x2000  # nothing of it was stored


def test_fxsave_in_32_bit_code_leaves_the_upper_registers():
    g = Protected()
    fill(g)
    g.ram.write(0x9000, b"\xcc" * 512)
    assert g.run("0fae0500900000") == NEXT
    assert g.ram.read(0x9000 + 288, 224) == b"\xcc" * 224


def stack(g):
    """The x87 part of the FXSAVE image without its reserved bytes and pointers."""
    fx = g.p.fx()
    return [fx[:5], fx[24:28], *(fx[32 + 16 * i : 42 + 16 * i] for i in range(8))]


@pytest.mark.parametrize("code", ["0fae23", "0fae33", "0fc723"])
def test_xsave_forms(code):
    g = with_xsave()
    g.ram.write(0x9000, b"\xcc" * 512 + bytes(64) + b"\xcc" * 256)
    assert g.run(code) == NEXT
    header = struct.unpack("<QQ", g.ram.read(0x9200, 16))
    assert header == (7, 7 | 1 << 63 if code == "0fc723" else 0)
    vectors = [g.p.vector(i) for i in range(16)]
    fx = stack(g)
    for i in range(16):
        g.p.set_vector(i, bytes(32))
    g.p.set_fx(bytes(160))
    assert g.run("0fae2b") == NEXT
    assert [g.p.vector(i) for i in range(16)] == vectors
    assert stack(g) == fx


def test_xsave_of_some_components():
    g = with_xsave()
    g.ram.write(0x9000, b"\xcc" * 512 + b"\x02" + bytes(63) + b"\xcc" * 256)
    g.p[RAX], g.p[RDX] = 4, 0
    assert g.run("0fae23") == NEXT
    out = g.ram.read(0x9000, 832)
    assert out[:24] == b"\xcc" * 24 and out[32:512] == b"\xcc" * 480
    assert out[24:28] == struct.pack("<I", 0x1FA0)  # MXCSR goes with AVX too
    assert out[512:520] == struct.pack("<Q", 6)
    assert out[576:592] == g.p.vector(0)[16:]


def test_unused_components():
    g = with_xsave()
    for i in range(16):
        g.p.set_vector(i, bytes(range(1, 17)) + bytes(16))
    g.ram.write(0x9000, bytes(832))
    for code, written in (("0fae33", False), ("0fae23", True)):
        g.ram.write(0x9000 + 576, b"\xcc" * 256)
        assert g.run(code) == NEXT
        assert g.get(0x9200) == 3
        assert (g.ram.read(0x9000 + 576, 256) == bytes(256)) == written
    g.p.set_vector(0, b"\xaa" * 32)
    assert g.run("0fae2b") == NEXT  # what the map lacks is initialized
    assert g.p.vector(0) == bytes(range(1, 17)) + bytes(16)
    g.p[RCX] = 1
    assert g.run("0f01d0") == NEXT
    assert g.p[RAX] == 3


def test_fnstenv_and_fnsave():
    g = Long()
    image = bytearray(160)
    image[0:5] = struct.pack("<HHB", 0x340, 5 << 11 | 0x8081, 0b11100010)  # TOP 5; registers 1, 5, 6, 7 are in use
    values = ["0000000000000080ff3f", "00" * 10, "000000000000008001c0", "aa" * 10, "0100000000000000ff7f"]
    for i, value in enumerate(values):
        image[32 + 16 * i : 42 + 16 * i] = bytes.fromhex(value)
    image[6:24] = b"\xdd" * 18  # a host's pointers
    g.p.set_fx(bytes(image))
    g.p[RBX] = 0x9000
    tags = 0b00_01_00_11_11_11_10_11  # register 7: -2; 6: zero; 5: 1.0; 1: a special value
    env = struct.pack("<HHHHHH", 0x340, 0xFFFF, 5 << 11 | 0x8081, 0xFFFF, tags, 0xFFFF)
    assert g.run("d933") == NEXT
    out = g.ram.read(0x9000, 28)
    assert out == env + bytes(14) + b"\xff\xff"
    assert g.p.fx()[:5] == struct.pack("<HHB", 0x37F, 5 << 11 | 1, 0b11100010)
    g.p.set_fx(bytes(image))
    assert g.run("66dd33") == NEXT
    out = g.ram.read(0x9000, 94)
    assert out[:4] == struct.pack("<HH", 0x340, 5 << 11 | 0x8081) and out[6:14] == bytes(8)
    assert out[14:64].hex() == "".join(values)
    fx = g.p.fx()
    assert fx[:5] == struct.pack("<HHB", 0x37F, 0, 0)
    assert fx[32 + 16 * 5 : 42 + 16 * 5].hex() == values[0]  # the registers keep what they hold
    g.p["cr0"] |= 8
    assert g.faults("d933") == (NM, None)


@pytest.mark.parametrize(
    "at, value",
    [(512, 8), (520, 1), (528, 1), (24, 0x10000), (520, 8 | 1 << 63), (512, 1 << 63)],
)
def test_bad_xsave_headers(at, value):
    g = with_xsave()
    g.ram.write(0x9000, bytes(832))
    g.put(0x9000 + at, value)
    assert g.faults("0fae2b") == (GP, 0)


def test_compacted_header_must_name_what_it_holds():
    g = with_xsave()
    g.ram.write(0x9000, bytes(832))
    g.put(0x9200, 4)
    g.put(0x9208, 3 | 1 << 63)
    assert g.faults("0fae2b") == (GP, 0)
    g.put(0x9200, 0)
    g.put(0x9238, 1)
    assert g.faults("0fae2b") == (GP, 0)
    g.put(0x9238, 0)
    assert g.run("0fae2b") == NEXT
    assert g.p["mxcsr"] == 0x1F80


def test_xsave_faults():
    g = with_xsave()
    g.p[RBX] = 0x9020
    assert g.faults("0fae23") == (GP, 0)
    g.p[RBX] = 0x5_0000_0000
    assert g.faults("0fae23")[0] == PF
    g.p["cr0"] |= 8
    assert g.faults("0fae23") == (NM, None)
    g.p["cr4"] &= ~(1 << 18)
    assert g.faults("0fae23") == (UD, None)
    assert g.faults("0f01d0") == (UD, None)


def test_xsetbv():
    g = with_xsave()
    g.p[RCX], g.p[RDX] = 0, 0
    for value in (0, 2, 5, 0xF, 0xE7):
        g.p[RAX] = value
        assert g.faults("0f01d1") == (GP, 0)
    g.p[RAX] = 3
    assert g.run("0f01d1") == NEXT
    assert g.p["mode"] & M_NOAVX
    g.p[RAX] = 7
    assert g.run("0f01d1") == NEXT
    assert not g.p["mode"] & M_NOAVX
    g.user()
    assert g.faults("0f01d1") == (GP, 0)


# ---- gathers and masked moves


def lanes(values, size):
    return b"".join((v & (1 << 8 * size) - 1).to_bytes(size, "little") for v in values).ljust(32, b"\0")


def test_gather_of_dwords():
    g = with_xsave()
    for i in range(64):
        g.put(0x9000 + 4 * i, 0x1000 + i, 4)
    g.p.set_vector(1, lanes([0, 2, -1, 7, 8, 9, 10, 11], 4))
    g.p.set_vector(2, b"\x55" * 32)
    g.p.set_vector(3, lanes([1 << 31, 0, 1 << 31, 1 << 31, 0, 0, 1 << 31, 0], 4))
    g.p[RBX] = 0x9010
    assert g.run("c4e265 90 14 8b".replace(" ", "")) == NEXT  # vpgatherdd ymm2, [rbx+ymm1*4], ymm3
    assert g.p.vector(2) == lanes([0x1004, 0x55555555, 0x1003, 0x100B, 0x55555555, 0x55555555, 0x100E, 0x55555555], 4)
    assert g.p.vector(3) == bytes(32)


def test_gather_that_faults_half_way():
    g = with_xsave()
    g.put(0x9000, 0xABCD)
    g.p.set_vector(1, lanes([0, 0x5_0000_0000, 8, 16], 8))
    g.p.set_vector(2, bytes(32))
    g.p.set_vector(3, lanes([-1, 1 << 63, 0, -1], 8))
    assert g.run("c4e2e591140b") == EXCEPTION  # vpgatherqq ymm2, [rbx+ymm1], ymm3
    assert g.p.pending() == (PF, 0, 0x5_0000_9000)
    assert g.p["rip"] == 0x1000
    assert g.p.vector(2) == lanes([0xABCD, 0, 0, 0], 8)
    assert g.p.vector(3) == lanes([0, -1, 0, -1], 8)


def test_gather_of_mixed_sizes():
    g = with_xsave()
    for i in range(8):
        g.put(0x9000 + 8 * i, 0x1111_0000_0000 * (i + 1) + i)
    g.p.set_vector(1, lanes([3, 1, 0, 2], 4))
    g.p.set_vector(3, b"\xff" * 32)
    assert g.run("c4e2e59014cb") == NEXT  # vpgatherdq ymm2, [rbx+xmm1*8], ymm3
    assert g.p.vector(2) == lanes([g.get(0x9000 + 8 * i) for i in (3, 1, 0, 2)], 8)
    g.p.set_vector(1, lanes([3, 1, 0, 2], 8))
    g.p.set_vector(2, b"\xee" * 32)
    g.p.set_vector(3, b"\xff" * 32)
    assert g.run("c4e2659114cb") == NEXT  # vpgatherqd xmm2, [rbx+ymm1*8], xmm3
    assert g.p.vector(2) == lanes([3, 1, 0, 2], 4)
    assert g.faults("c4e26d9114cb") == (UD, None)  # destination = mask


def test_masked_moves():
    g = with_xsave()
    at = USER + 0xFF8
    g.put(TABLES + 0x3000 + 8, 0)  # the page after is missing
    g.ram.write(0x200FF8, struct.pack("<II", 0x11, 0x22))
    g.p[RBX] = at
    g.p.set_vector(3, lanes([1 << 31, 1 << 31, 0, 0], 4))
    assert g.run("c4e2612c13") == NEXT  # vmaskmovps xmm2, xmm3, [rbx]
    assert g.p.vector(2) == lanes([0x11, 0x22], 4)
    g.p.set_vector(2, lanes([0x33, 0x44, 0x55, 0x66], 4))
    g.p.set_vector(3, lanes([0, 1 << 31, 0, 0], 4))
    assert g.run("c4e2612e13") == NEXT
    assert struct.unpack("<II", g.ram.read(0x200FF8, 8)) == (0x11, 0x44)
    g.p.set_vector(3, lanes([1 << 31, 0, 1 << 31, 0], 4))
    assert g.faults("c4e2612e13") == (PF, 2, USER + 0x1000)
    assert struct.unpack("<II", g.ram.read(0x200FF8, 8)) == (0x11, 0x44)  # nothing is stored in part
    assert g.faults("c4e2612c13") == (PF, 0, USER + 0x1000)


def test_maskmovdqu():
    g = with_xsave()
    g.ram.write(0x9000, b"\xcc" * 16)
    g.p[RDI] = 0x9000
    g.p.set_vector(1, bytes(range(16)) * 2)
    g.p.set_vector(2, (b"\x80\x7f" * 8).ljust(32, b"\0"))
    assert g.run("660ff7ca") == NEXT
    assert g.ram.read(0x9000, 16) == b"".join(bytes([i, 0xCC]) for i in range(0, 16, 2))


def test_maskmovq_turns_the_register_stack():
    g = Long()
    image = bytearray(160)
    image[2:4] = struct.pack("<H", 3 << 11)  # TOP is 3: ST(0) is register 3
    for i in range(8):
        image[32 + 16 * i : 40 + 16 * i] = bytes([i + 3 & 7]) * 8  # each register holds its own number
    image[32 + 16 * 6 : 40 + 16 * 6] = b"\x80" * 8  # register 1: the mask
    g.p.set_fx(bytes(image))
    g.p[RDI] = 0x9000
    assert g.run("0ff7d1") == NEXT  # maskmovq mm2, mm1
    assert g.ram.read(0x9000, 8) == b"\x02" * 8
    fx = g.p.fx()
    assert struct.unpack("<H", fx[2:4])[0] & 0x3800 == 0 and fx[4] == 0xFF
    assert [fx[32 + 16 * i] for i in range(8)] == [0, 0x80, 2, 3, 4, 5, 6, 7]


# ---- the state as a whole


def test_state_round_trip():
    g = with_xsave()
    p = g.p
    for i in range(16):
        p[f"r{i}"] = 0x1111111111111111 * i
    p["rip"], p["eflags"], p["cr2"], p["dr0"], p["inhibit"] = 0x1234, IF | DF | 2, 0x99, 0x77, 1
    p["star"], p["tsc_aux"], p["kernel_gs_base"], p["sysenter_esp"] = 1, 2, 3, 4
    p.set_segment(4, 0x2B, 0xFFFF_8000_0000_0000, 5, 0xC0F3)
    assert p.wrmsr(0x4B564D01, 0x9001)
    assert p.wrmsr(0x200, 0x80000000)
    p.update_mode()
    p.fault(PF, 5, 0x4444)
    before = p.save()
    data = form.encode(before)
    other = Long()
    other.ram.write(0, bytes(g.ram.read(0, 4 << 20)))
    other.p.lookup(0x1234, 0, 2)
    other.p.load(form.decode(data))
    after = other.p.save()
    assert 0 < after.tsc - before.tsc < 1e11
    assert 0 < after.clock_ns - before.clock_ns < 1e11
    assert abs((after.tsc - before.tsc) / other.p.cpuid(0x40000010)[0] * 1e6 - (after.clock_ns - before.clock_ns)) < 1e6
    after.tsc, after.clock_ns = before.tsc, before.clock_ns
    assert after == before
    assert after.exception == form.Exception_(PF, 5, 0x4444)
    assert (other.p["cpl"], other.p["mode"]) == (p["cpl"], p["mode"])
    assert not other.p.cached(0x1234, 2)
    assert abs(pvclock(other, 0x9000) - other.p.save().clock_ns) < 50_000_000
    assert len(data) < 4096


def test_state_of_user_and_real_mode():
    for g, cpl in ((Long().user(), 3), (Protected().user(), 3), (Real(), 0)):
        saved = g.p.save()
        other = Guest()
        other.p.load(saved)
        assert (other.p["cpl"], other.p["mode"]) == (cpl, g.p["mode"])


@pytest.mark.parametrize(
    "change",
    [
        dict(version=2),
        dict(cr0=0x80000010),
        dict(cr4=1 << 12),
        dict(efer=0x100),
        dict(registers=[0] * 15),
        dict(rip=1 << 64),
        dict(rflags=0),
        dict(rflags=2 | 1 << 22),
        dict(xcr0=4),
        dict(xcr0=0xE7),
        dict(xsave=bytes(100)),
        dict(xsave=bytes(24) + b"\xff\xff\xff\xff" + bytes(804)),
        dict(segments=[]),
        dict(ldtr=form.Segment(0, 0, 0, 0x100)),
        dict(msrs={0x12345: 1}),
        dict(msrs={0x277: 2}),
        dict(exception=form.Exception_(256)),
    ],
)
def test_states_that_no_processor_can_be_in(change):
    g = Long()
    good = g.p.save()
    bad = msgspec.structs.replace(good, **change)
    with pytest.raises(MachineError) as e:
        g.p.load(bad)
    assert "\n" not in str(e.value)


def test_no_state_while_a_device_answers():
    g = Long()
    assert g.run("e4fe") == EXIT
    with pytest.raises(MachineError):
        g.p.save()
    g.p.finish_io(1)
    g.p.save()


# ---- whatever a guest executes


OPCODES = """
06 07 0e 16 17 1e 1f 0fa0 0fa1 0fa8 0fa9 27 2f 37 3f 60 61 62 63 6c 6d 6e 6f 8c 8e 9a 9c 9d c4 c5 c8 ca cb cc cd ce cf
d4 d5 d6 e4 e5 e6 e7 ea ec ed ee ef f1 f4 fa fb fc fd ff 0f00 0f01 0f02 0f03 0f05 0f06 0f07 0f08 0f09 0f20 0f21 0f22
0f23 0f30 0f31 0f32 0f33 0f34 0f35 0fa2 0fae 0fb2 0fb4 0fb5 0fc7 660f3882 660ff7 0ff7 f30fae f30fc7 c4e265 c4e2e5
c4e26590 c4e26d2e f36c f36f 48cf 48cb 480f07 66cf 0f01c8 0f01d0 0f01d1 0f01f9 0f01ca
""".split()
MSR_NUMBERS = [0x10, 0x1B, 0x3B, 0x48, 0x174, 0x200, 0x277, 0x2FF, 0x4B564D00, 0x4B564D01, 0x6E0, 0x800, 0xC0000080,
               0xC0000081, 0xC0000082, 0xC0000100, 0xC0000102, 0x12]  # fmt: skip
ADDRESSES = [0, 0x1000, GDT, IDT, TSS, TABLES, STACK, 0x9000, USER, USER + 0xFFE, 0x3FFFFA, 0x400000, FLAT, FLAT << 32,
             0x7FFF_FFFF_FFFC, 0x8000_0000_0000, (1 << 64) - 4, 0xFEE00000]  # fmt: skip


@pytest.mark.parametrize(
    "kind, user", [(Long, False), (Long, True), (Protected, False), (Protected, True), (Real, False)]
)
@pytest.mark.parametrize("seed", range(2))
def test_anything_goes(kind, user, seed):
    """No instruction brings the monitor down; faults leave the registers alone; the mode is always the state's."""
    rng = random.Random(f"{kind.__name__} {user} {seed}")
    g = kind()
    memory = g.ram.read(0, 4 << 20)
    ran = 0
    for n in range(700):
        if n % 7 == 0:
            if n % 49 == 0:
                g = kind()
                g.ram.write(0, memory)
                for vector in range(48):
                    g.gate(vector, dpl=rng.choice((0, 3)), kind=rng.choice((14, 15)))
                g.p["cr4"] |= rng.choice((0, 1 << 18, 1 << 16, 1 << 21, 1 << 11))
            if user:
                g.user()
        p = g.p
        for i in range(16):
            pools = (rng.choice(ADDRESSES), rng.choice(MSR_NUMBERS), rng.randrange(1 << 64), rng.randrange(256))
            p[f"r{i}"] = rng.choice(pools)
        p["r4"] = rng.choice((STACK, STACK, STACK, USER + 0x8000, p["r4"]))
        p["eflags"] = p["eflags"] & ~0x3F4DD5 | rng.randrange(1 << 22) & 0x347DD5 | 2
        p.update_mode()
        code = bytes.fromhex(rng.choice(OPCODES)) + rng.randbytes(14)
        before = [p[f"r{i}"] for i in range(16)] + [p["cr0"], p["cr3"], p["cr4"], p["efer"], p["cpl"]]
        rip, flags = p["rip"], p["eflags"]
        done = p.try_execute(code[:15])
        if done is None:
            continue
        ran += 1
        status, length = done
        assert p["mode"] == p.update_mode(), code.hex()
        assert p["eflags"] & 2
        if status == EXCEPTION:
            after = [p[f"r{i}"] for i in range(16)] + [p["cr0"], p["cr3"], p["cr4"], p["efer"], p["cpl"]]
            assert after == before and p["eflags"] == flags, code.hex()
            assert (p["rip"] - rip) & 0xFFFFFFFF in (0, length) or p["rip"] < 0x10000
            status = p.deliver()
            assert p["mode"] == p.update_mode(), code.hex()
        elif status == EXIT:
            p.finish_io(rng.randrange(1 << 64))
            p.pending()
        if status == SHUTDOWN:
            g = kind()
            g.ram.write(0, memory)
    assert ran > 300
