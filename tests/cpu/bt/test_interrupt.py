# ruff: noqa: F403, F405  (the names of guest.py are the vocabulary of these tests)
"""Delivery of interrupts and exceptions, and the ways back (SDM vol. 3, chapter 6; vol. 2, IRET, SYSCALL ...)."""

import pytest
from guest import *

DE, DB, NMI, BP, UD, DFAULT, TS, NP, SS, GP, PF = 0, 1, 2, 3, 6, 8, 10, 11, 12, 13, 14


# ---- long mode


def test_fault_at_the_same_level():
    g = Long()
    g.gate(PF)
    g.p["eflags"] = IF | TF | NT | DF | 0x43
    g.p["r4"] = STACK - 8  # the frame is aligned down
    g.p.fault(PF, 2, 0x1234567)
    assert g.p.deliver() == NEXT
    assert g.p["cr2"] == 0x1234567
    assert (g.p["rip"], g.p["r4"], g.p["cpl"]) == (CODE, STACK - 16 - 48, 0)
    assert g.words(g.p["r4"], 6) == [2, 0x1000, CODE64, IF | TF | NT | DF | 0x43 | RF, STACK - 8, DATA]
    assert g.p["eflags"] == DF | 0x43
    assert g.p.segment(2)[0] == DATA


def test_trap_gate_keeps_if_and_interrupts_push_no_rf():
    g = Long()
    g.gate(0x80, kind=15)
    g.p["eflags"] = IF | 2
    assert g.p.interrupt(0x80) == NEXT
    assert g.p["eflags"] == IF | 2
    assert g.words(g.p["r4"], 3) == [0x1000, CODE64, IF | 2]


def test_from_user_mode_and_back():
    g = Long().user()
    g.gate(GP)
    g.p["eflags"] = IF | 2
    rip, rsp = g.p["rip"], g.p["r4"]
    g.p.fault(GP, 0x18)
    assert g.p.deliver() == NEXT
    assert g.p["cpl"] == 0
    assert g.p["r4"] == STACK1 - 48
    assert g.words(g.p["r4"], 6) == [0x18, rip, UCODE64, IF | 2 | RF, rsp, UDATA]
    assert g.p.segment(2)[0] == 0
    assert g.p.segment(1)[:3] == (CODE64, 0, FLAT)
    g.p["r4"] += 8
    assert g.run("48cf") == NEXT
    assert (g.p["cpl"], g.p["rip"], g.p["r4"], g.p["eflags"]) == (3, rip, rsp, IF | 2)
    assert g.p.segment(2)[0] == UDATA


def test_ist_is_used_at_any_level():
    g = Long()
    g.gate(NMI, ist=1)
    assert g.p.nmi() == NEXT
    assert g.p["r4"] == IST1 - 40
    assert g.p["nmi_blocked"] == 1
    assert g.words(g.p["r4"], 5) == [0x1000, CODE64, 2, STACK, DATA]
    assert g.run("48cf") == NEXT
    assert g.p["nmi_blocked"] == 0
    assert (g.p["rip"], g.p["r4"]) == (0x1000, STACK)


def test_software_interrupt():
    g = Long().user()
    g.gate(0x80, dpl=3)
    g.gate(0x81)
    g.gate(GP)
    rip = g.p["rip"]
    assert g.run("cd80") == EXCEPTION
    assert g.p.deliver() == NEXT
    assert g.words(g.p["r4"], 1) == [rip + 2]
    g.user()
    assert g.run("cd81") == EXCEPTION  # the gate isn't for everyone
    assert g.p.deliver() == NEXT
    assert g.words(g.p["r4"], 4) == [0x81 * 8 + 2, rip, UCODE64, 2 | RF]
    g.user()
    g.gate(BP, dpl=3)
    assert g.run("cc") == EXCEPTION
    assert g.p.deliver() == NEXT
    assert g.words(g.p["r4"], 1) == [rip + 1]
    g.user()
    g.gate(DB)
    assert g.run("f1") == EXCEPTION  # INT1 is hardware's: no check of DPL
    assert g.p.deliver() == NEXT
    assert g.words(g.p["r4"], 3) == [rip + 1, UCODE64, 2]


@pytest.mark.parametrize(
    "change, error",
    [
        (dict(present=False), (NP, 0x21 * 8 + 3)),
        (dict(kind=12), (GP, 0x21 * 8 + 3)),
        (dict(selector=0), (GP, 1)),
        (dict(selector=CODE32), (GP, CODE32 | 1)),
        (dict(selector=DATA), (GP, DATA | 1)),
        (dict(selector=UCODE64), (GP, UCODE64 & ~3 | 1)),
        (dict(selector=0x1008), (GP, 0x1008 | 1)),
        (dict(selector=0x14), (GP, 0x14 | 1)),  # there is no LDT
        (dict(offset=0x8000_0000_0000), (GP, 1)),
    ],
)
def test_faulty_gates(change, error):
    g = Long()
    for vector in (GP, NP):
        g.gate(vector, CODE + vector)
    g.gate(0x21, **change)
    assert g.p.interrupt(0x21) == NEXT
    assert g.p["rip"] == CODE + error[0]
    assert g.words(g.p["r4"], 3) == [error[1], 0x1000, CODE64]


def test_idt_limit():
    g = Long()
    g.gate(GP)
    g.p["idtr_limit"] = 0x21 * 16 + 14
    g.gate(0x21)
    assert g.p.interrupt(0x21) == NEXT
    assert g.words(g.p["r4"], 1) == [0x21 * 8 + 3]


def test_stack_that_is_not_canonical():
    g = Long()
    g.gate(UD, present=True)
    g.gate(SS, ist=1)
    g.p["r4"] = 0x8000_0000_1000
    g.p.fault(UD)
    assert g.p.deliver() == NEXT
    assert g.words(g.p["r4"], 5) == [1, 0x1000, CODE64, 2 | RF, 0x8000_0000_1000]


def test_double_fault():
    g = Long()
    g.gate(DFAULT, ist=1)
    for first, error in ((PF, 0), (GP, 0), (DE, None)):
        g.gate(first, present=False)
        g.p["rip"], g.p["r4"] = 0x1000, STACK
        g.p.fault(first, error)
        assert g.p.deliver() == NEXT
        assert g.words(g.p["r4"], 5) == [0, 0x1000, CODE64, 2, STACK]


def test_page_fault_on_the_stack_in_delivering_a_page_fault():
    g = Long()
    g.gate(DFAULT, ist=1)
    g.gate(PF)
    g.p["r4"] = 0x1_0000_0000
    g.p.fault(PF, 0, 0x1111)
    assert g.p.deliver() == NEXT
    assert g.p["cr2"] == 0x1_0000_0000 - 48
    assert g.words(g.p["r4"], 2) == [0, 0x1000]


def test_page_fault_in_delivering_a_contributory_one_comes_second():
    g = Long()
    g.gate(GP)
    g.gate(PF, ist=1)
    g.p["r4"] = 0x1_0000_0000
    g.p.fault(GP, 8)
    assert g.p.deliver() == NEXT
    assert g.words(g.p["r4"], 5) == [2, 0x1000, CODE64, 2 | RF, 0x1_0000_0000]


def test_triple_fault():
    g = Long()
    g.p.fault(GP, 0)
    assert g.p.deliver() == SHUTDOWN
    g = Long()
    g.p["idtr_limit"] = 0
    assert g.p.interrupt(0x30) == SHUTDOWN


def test_state_is_kept_when_delivery_faults():
    g = Long().user()
    g.gate(0x21)
    g.gate(PF, ist=1)
    g.put(TSS + 4, 0x1_0000_0000)
    g.p["eflags"] = IF | 2
    rip, rsp = g.p["rip"], g.p["r4"]
    assert g.p.interrupt(0x21) == NEXT
    assert g.words(g.p["r4"], 6) == [2, rip, UCODE64, IF | 2 | RF, rsp, UDATA]


def test_smap_applies_to_the_handler_s_stack():
    g = Long()
    g.p["cr4"] |= 1 << 21
    g.gate(UD)
    g.gate(PF, ist=1)
    g.p["r4"] = USER + 0x800
    g.p.fault(UD)
    assert g.p.deliver() == NEXT
    assert g.p["cr2"] == USER + 0x800 - 40
    assert g.words(g.p["r4"], 1) == [3]


def test_general_detect_flag_is_cleared():
    g = Long()
    g.gate(DB)
    g.p["dr7"] = 0x2400
    assert g.faults("0f21c0") == (DB, None)
    assert g.p["dr6"] & 0x2000
    g.p.fault(DB)
    assert g.p.deliver() == NEXT
    assert g.p["dr7"] == 0x400


# ---- IRET in long mode


def frame(g, rip=0x2000, cs=CODE64, flags=2, rsp=STACK - 0x100, ss=DATA, size=8):
    at = STACK - 0x800
    for i, value in enumerate((rip, cs, flags, rsp, ss)):
        g.put(at + size * i, value, size)
    g.p["r4"] = at


def test_iret_flags_by_level():
    g = Long()
    everything = 0x3F7FD5
    frame(g, flags=everything)
    assert g.run("48cf") == NEXT
    assert g.p["eflags"] == (everything & ~VM & ~RF) | 2
    g = Long().user()
    for i, value in enumerate((USER + 0x3000, UCODE64, everything, USER + 0x9000, UDATA)):
        g.ram.write(0x208000 + 8 * i, value.to_bytes(8, "little"))
    assert g.run("48cf") == NEXT
    assert g.p["eflags"] == (everything & ~(VM | RF | IF | IOPL3 | 0x180000)) | 2


def test_iret_to_compatibility_mode_and_to_user_32():
    g = Long()
    frame(g, cs=CODE32)
    assert g.run("48cf") == NEXT
    assert g.p["mode"] & 0xC == 8
    g = Long()
    frame(g, cs=UCODE32, ss=UDATA, rsp=0x12345678)
    g.p.set_segment(3, DATA, 0, FLAT, 0xC093)
    g.p.set_segment(5, UDATA, 0x55, FLAT, 0xC0F3)
    assert g.run("48cf") == NEXT
    assert (g.p["cpl"], g.p["r4"], g.p["mode"] & 0xC) == (3, 0x12345678, 8)
    assert g.p.segment(3) == (0, 0, 0, 0)  # the kernel's data segment is taken away
    assert g.p.segment(5) == (UDATA, 0x55, FLAT, 0xC0F3)


@pytest.mark.parametrize(
    "change, want",
    [
        (dict(cs=0), (GP, 0)),
        (dict(cs=DATA), (GP, DATA)),
        (dict(cs=0x1000), (GP, 0x1000)),
        (dict(cs=CODE64 | 3), (GP, CODE64)),
        (dict(cs=UCODE64, ss=DATA), (GP, DATA)),
        (dict(cs=UCODE64, ss=0), (GP, 0)),
        (dict(cs=CODE32, ss=0), (GP, 0)),
        (dict(ss=RDONLY), (GP, RDONLY)),
        (dict(ss=ABSENT), (SS, ABSENT)),
        (dict(rip=0x8000_0000_0000), (GP, 0)),
        (dict(cs=CODE32, rip=0x1_0000_0000), (GP, 0)),
    ],
)
def test_iret_faults(change, want):
    g = Long()
    g.p["nmi_blocked"] = 1
    frame(g, **change)
    assert g.faults("48cf") == want
    assert g.p["nmi_blocked"] == 0
    assert g.p.segment(1)[0] == CODE64


def test_iret_with_a_null_stack_segment():
    g = Long()
    frame(g, ss=0)
    assert g.run("48cf") == NEXT
    assert g.p.segment(2)[0] == 0


def test_iret_with_nt_in_long_mode():
    g = Long()
    frame(g)
    g.p["eflags"] = NT | 2
    assert g.faults("48cf") == (GP, 0)


def test_iretd_in_64_bit_mode():
    g = Long()
    frame(g, size=4)
    assert g.run("cf") == NEXT
    assert (g.p["rip"], g.p["r4"]) == (0x2000, STACK - 0x100)


# ---- protected mode


def test_protected_mode_same_level():
    g = Protected()
    g.gate(GP)
    g.p["eflags"] = IF | TF | 2
    g.p.fault(GP, 0x10)
    assert g.p.deliver() == NEXT
    assert g.words(g.p["r4"], 4, 4) == [0x10, 0x1000, CODE32, IF | TF | 2 | RF]
    assert (g.p["rip"], g.p["r4"], g.p["eflags"]) == (CODE, STACK - 16, 2)
    g.p["r4"] += 4
    assert g.run("cf") == NEXT
    assert (g.p["rip"], g.p["r4"], g.p["eflags"]) == (0x1000, STACK, IF | TF | 2)


def test_protected_mode_from_user_mode_and_back():
    g = Protected().user()
    g.gate(0x30, kind=15)
    g.p["eflags"] = IF | 2
    g.p.set_segment(3, UDATA, 0, FLAT, 0xC0F3)
    assert g.p.interrupt(0x30) == NEXT
    assert (g.p["cpl"], g.p["r4"]) == (0, STACK1 - 20)
    assert g.words(g.p["r4"], 5, 4) == [0x201000, UCODE32, IF | 2, 0x208000, UDATA]
    assert g.p.segment(2)[:3] == (DATA, 0, FLAT)
    assert g.p.segment(3)[0] == UDATA
    g.p.set_segment(3, DATA, 0, FLAT, 0xC093)
    assert g.run("cf") == NEXT
    assert (g.p["cpl"], g.p["rip"], g.p["r4"], g.p["eflags"]) == (3, 0x201000, 0x208000, IF | 2)
    assert g.p.segment(3)[0] == 0


def test_sixteen_bit_gate():
    g = Protected()
    g.gate(0x30, kind=6, offset=0x9999_1234)
    assert g.p.interrupt(0x30) == NEXT
    assert g.p["rip"] == 0x1234
    assert g.words(g.p["r4"], 3, 2) == [0x1000, CODE32, 2]


@pytest.mark.parametrize(
    "esp0, ss0, want",
    [
        (STACK1, 0, (TS, 1)),
        (STACK1, 3, (TS, 1)),
        (STACK1, UDATA, (TS, UDATA & ~3 | 1)),
        (STACK1, RDONLY, (TS, RDONLY | 1)),
        (STACK1, ABSENT, (SS, ABSENT | 1)),
        (STACK1, 0x1000, (TS, 0x1001)),
    ],
)
def test_bad_inner_stacks(esp0, ss0, want):
    g = Protected().user()
    g.gate(0x30)
    for vector in (TS, SS):
        g.gate(vector, CODE + vector, CONF)  # a conforming handler needs no inner stack
    g.put(TSS + 4, esp0, 4)
    g.put(TSS + 8, ss0, 4)
    assert g.p.interrupt(0x30) == NEXT
    assert (g.p["cpl"], g.p["rip"]) == (3, CODE + want[0])
    assert g.words(g.p["r4"], 2, 4) == [want[1], 0x201000]


def test_virtual_8086_mode():
    g = Protected()
    g.gate(GP)
    at = STACK - 0x100
    for i, value in enumerate((0x100, 0x3000, VM | IF | 2, 0x8000, 0x3100, 0x3200, 0x3300, 0x3400, 0x3500)):
        g.put(at + 4 * i, value, 4)
    g.p["r4"] = at
    assert g.run("cf") == NEXT
    assert (g.p["cpl"], g.p["rip"], g.p["r4"], g.p["eflags"]) == (3, 0x100, 0x8000, VM | IF | 2)
    assert [g.p.segment(i)[:3] for i in range(6)] == [
        (s, s << 4, 0xFFFF) for s in (0x3200, 0x3000, 0x3100, 0x3300, 0x3400, 0x3500)
    ]
    assert g.faults("cd21") == (GP, 0)  # IOPL is below 3
    assert g.faults("fa") == (GP, 0)
    g.p.fault(GP, 0)
    assert g.p.deliver() == NEXT
    assert (g.p["cpl"], g.p["r4"]) == (0, STACK1 - 40)
    assert g.words(g.p["r4"], 10, 4) == [
        0, 0x100, 0x3000, VM | IF | RF | 2, 0x8000, 0x3100, 0x3200, 0x3300, 0x3400, 0x3500,
    ]  # fmt: skip
    assert not g.p["eflags"] & VM
    assert g.p.segment(3) == (0, 0, 0, 0)


# ---- real mode


def test_real_mode():
    g = Real()
    g.put(0x21 * 4, 0x5000_1234, 4)
    g.p["eflags"] = IF | TF | AC | 2
    g.p["idtr_limit"] = 0x3FF
    assert g.run("cd21") == EXCEPTION
    assert g.p.deliver() == NEXT
    assert (g.p.segment(1)[:2], g.p["rip"], g.p["r4"]) == ((0x5000, 0x50000), 0x1234, 0x800 - 6)
    assert g.words(0x2000 + 0x800 - 6, 3, 2) == [2, 0x100, IF | TF | 2]
    assert g.p["eflags"] == 2
    assert g.run("cf") == NEXT
    assert (g.p.segment(1)[:2], g.p["rip"], g.p["r4"], g.p["eflags"]) == ((0x100, 0x1000), 2, 0x800, IF | TF | 2)
    g.p["idtr_limit"] = 0x21 * 4 + 2
    g.put(GP * 4, 0x6000_0000, 4)
    assert g.p.interrupt(0x21) == NEXT
    assert g.p.segment(1)[0] == 0x6000


# ---- fast system calls


def test_syscall_and_sysret():
    g = Long().user()
    g.p["star"] = 0x0023_0010 << 32
    g.p["lstar"] = 0xFFFF_8000_0000_1000
    g.p["sfmask"] = 0x47700
    g.p["eflags"] = IF | DF | AC | 0x41 | 2
    rip = g.p["rip"]
    assert g.run("0f05") == NEXT
    assert (g.p["rip"], g.p["r1"], g.p["r11"]) == (0xFFFF_8000_0000_1000, rip + 2, IF | DF | AC | 0x43)
    assert (g.p["eflags"], g.p["cpl"], g.p["r4"]) == (0x43, 0, USER + 0x8000)
    assert g.p.segment(1) == (0x10, 0, FLAT, 0xA09B)
    assert g.p.segment(2) == (0x18, 0, FLAT, 0xC093)
    assert g.run("480f07") == NEXT
    assert (g.p["rip"], g.p["eflags"], g.p["cpl"]) == (rip + 2, IF | DF | AC | 0x43, 3)
    assert g.p.segment(1) == (0x33, 0, FLAT, 0xA0FB)
    assert g.p.segment(2) == (0x2B, 0, FLAT, 0xC0F3)


def test_sysret_to_32_bit_code_and_its_faults():
    g = Long()
    g.p["star"] = 0x0023_0010 << 32
    g.p["r1"] = 0xFFFF_FFFF_0000_1234
    g.p["r11"] = IF | RF | VM
    assert g.run("0f07") == NEXT
    assert (g.p["rip"], g.p["eflags"], g.p["mode"] & 0xC) == (0x1234, IF | 2, 8)
    assert g.p.segment(1) == (0x23, 0, FLAT, 0xC0FB)
    g = Long()
    g.p["r1"] = 0x8000_0000_0000
    assert g.faults("480f07") == (GP, 0)
    assert g.user().faults("480f07") == (GP, 0)
    g.p["efer"] &= ~1
    assert g.faults("0f05") == (UD, None)
    assert Protected().faults("0f05") == (UD, None)


def test_sysenter_and_sysexit():
    g = Protected().user()
    assert g.faults("0f34") == (GP, 0)
    g.p["sysenter_cs"], g.p["sysenter_esp"], g.p["sysenter_eip"] = 8, 0x1_0000_5000, 0x1_0000_6000
    g.p["eflags"] = IF | 2
    assert g.run("0f34") == NEXT
    assert (g.p["rip"], g.p["r4"], g.p["cpl"], g.p["eflags"]) == (0x6000, 0x5000, 0, 2)
    assert (g.p.segment(1)[0], g.p.segment(2)[0]) == (8, 0x10)
    g.p["r1"], g.p["r2"] = 0x7000, 0x8000
    assert g.run("0f35") == NEXT
    assert (g.p["rip"], g.p["r4"], g.p["cpl"]) == (0x8000, 0x7000, 3)
    assert (g.p.segment(1)[0], g.p.segment(2)[0]) == (0x1B, 0x23)
    assert g.faults("0f35") == (GP, 0)
    g = Long()
    g.p["sysenter_cs"] = 8
    g.p["r1"], g.p["r2"] = USER, USER + 4
    assert g.run("480f35") == NEXT
    assert (g.p["rip"], g.p["r4"], g.p["mode"] & 0xC) == (USER + 4, USER, 4)
    assert (g.p.segment(1)[0], g.p.segment(2)[0]) == (0x2B, 0x33)
