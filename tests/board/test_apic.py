"""Local APIC behaviour by the SDM: priorities, EOI, IPIs, destinations, timer modes, x2APIC, errors."""

import threading
import time

import pytest

from hostel.board.apic import ApicBus, LocalApic
from hostel.board.pic import Pic
from hostel.cpu.engine import Vcpu

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x320, 0x350, 0x360, 0x370
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
T0 = 1_000_000_000_000


class Machine:
    def __init__(self, count=4, enable=True):
        self.bus, self.pic = ApicBus(), Pic()
        self.vcpus = [Vcpu() for _ in range(count)]
        self.apics = [LocalApic(self.bus, v, i, self.pic if i == 0 else None) for i, v in enumerate(self.vcpus)]
        if enable:
            for apic in self.apics:
                apic.write(SVR, 0x1FF)

    def x2apic(self):
        for apic in self.apics:
            assert apic.wrmsr(0x1B, apic.rdmsr(0x1B) | 0x400)
        return self

    def pending(self):
        return [apic.pending_py() for apic in self.apics]


def fixed(apic, vector):
    apic.write(ICR, 1 << 18 | vector)  # to itself


def test_reset_state():
    apic = Machine(2, enable=False).apics[1]
    assert apic.read(ID) == 1 << 24
    assert apic.read(VERSION) == 0x50014
    assert apic.read(SVR) == 0xFF
    assert apic.read(DFR) == 0xFFFFFFFF
    assert all(apic.read(0x320 + 16 * i) == 0x10000 for i in range(6))
    assert apic.rdmsr(0x1B) == 0xFEE00800
    assert Machine(1).apics[0].rdmsr(0x1B) == 0xFEE00900  # BSP


def test_priority_classes_nest_and_eoi_ends_the_highest():
    apic = Machine(1).apics[0]
    fixed(apic, 0x51)
    assert apic.acknowledge_py() == 0x51
    fixed(apic, 0x5F)
    assert apic.pending_py() == -1  # the same class
    fixed(apic, 0x61)
    assert apic.pending_py() == 0x61
    assert apic.acknowledge_py() == 0x61
    assert apic.read(PPR) == 0x60
    assert apic.read(ISR + 0x20) == 1 << 17 and apic.read(ISR + 0x30) == 1 << 1
    apic.write(EOI, 0)
    assert apic.read(PPR) == 0x50 and apic.pending_py() == -1
    apic.write(EOI, 0)
    assert apic.acknowledge_py() == 0x5F


def test_tpr_and_cr8_hold_back():
    apic = Machine(1).apics[0]
    fixed(apic, 0x45)
    apic.write(TPR, 0x4F)
    assert apic.cr8() == 4 and apic.read(PPR) == 0x4F
    assert apic.pending_py() == -1 and apic.acknowledge_py() == -1
    assert apic.cr8(3) == 3 and apic.read(TPR) == 0x30
    assert apic.pending_py() == 0x45


def test_the_same_vector_queues_once_behind_itself():
    apic = Machine(1).apics[0]
    for _ in range(3):
        fixed(apic, 0x80)
    assert apic.acknowledge_py() == 0x80
    fixed(apic, 0x80)
    fixed(apic, 0x80)
    apic.write(EOI, 0)
    assert apic.acknowledge_py() == 0x80
    apic.write(EOI, 0)
    assert apic.pending_py() == -1


def test_software_disabled_apic_takes_no_messages_and_masks_its_lvt():
    m = Machine(1)
    apic = m.apics[0]
    apic.write(LVT_TIMER, 0x40)
    apic.write(SVR, 0xFF)
    assert apic.read(LVT_TIMER) == 0x10040
    apic.write(LVT_TIMER, 0x41)
    assert apic.read(LVT_TIMER) == 0x10041  # can't be unmasked
    m.bus.msi_py(0xFEE00000, 0x55)
    assert apic.pending_py() == -1


@pytest.mark.parametrize(
    ("icr", "dest", "got"),
    [
        (0x4055, 2, [2]),  # physical
        (0x4055, 0xFF, [0, 1, 2, 3]),  # physical broadcast
        (0x4055, 9, []),
        (0x44055, 0, [1]),  # self, from 1
        (0x84055, 0, [0, 1, 2, 3]),
        (0xC4055, 0, [0, 2, 3]),
        (0x4855, 0b0101, [0, 2]),  # logical, flat
        (0x4855, 0xFF, [0, 1, 2, 3]),
    ],
)
def test_ipi_destinations(icr, dest, got):
    m = Machine()
    for i, apic in enumerate(m.apics):
        apic.write(LDR, 1 << (24 + i))
    m.apics[1].write(ICR_HIGH, dest << 24)
    m.apics[1].write(ICR, icr)
    assert [i for i, v in enumerate(m.pending()) if v == 0x55] == got
    assert [i for i, vcpu in enumerate(m.vcpus) if vcpu.wakeups()] == got


def test_cluster_model():
    m = Machine()
    for i, apic in enumerate(m.apics):
        apic.write(DFR, 0x0FFFFFFF)
        apic.write(LDR, ((i >> 1) << 4 | 1 << (i & 1)) << 24)
    for dest, got in ((0x01, [0]), (0x13, [2, 3]), (0xF2, [1, 3]), (0x24, [])):
        m.apics[0].write(ICR_HIGH, dest << 24)
        m.apics[0].write(ICR, 0x4855)
        assert [i for i, v in enumerate(m.pending()) if v == 0x55] == got
        for i in got:
            m.apics[i].acknowledge_py()
            m.apics[i].write(EOI, 0)


def test_lowest_priority_goes_to_one_and_prefers_the_idle():
    m = Machine()
    for i, apic in enumerate(m.apics):
        apic.write(LDR, 1 << (24 + i))
        apic.write(TPR, 0 if i == 2 else 0x80)
    m.apics[0].write(ICR_HIGH, 0xF << 24)
    m.apics[0].write(ICR, 0x4955)
    assert m.pending() == [-1, -1, 0x55, -1]
    equal = Machine()
    for i, apic in enumerate(equal.apics):
        apic.write(LDR, 1 << (24 + i))
    for vector in range(0x60, 0x64):
        equal.bus.msi_py(0xFEE00000 | 0xFF << 12 | 4, 0x100 | vector)
    assert sorted(equal.pending()) == [0x60, 0x61, 0x62, 0x63]  # turns


def test_nmi_init_and_startup_become_requests():
    m = Machine()
    m.apics[0].write(ICR_HIGH, 3 << 24)
    m.apics[0].write(ICR, 0x4400)
    assert m.vcpus[3].requests()["nmi"] == 1
    m.apics[0].write(ICR, 0xC500)
    assert m.vcpus[3].requests()["init"] == 1
    m.apics[0].write(ICR, 0x8500)  # INIT level de-assert
    m.apics[0].write(ICR, 0x469A)
    assert m.vcpus[3].requests()["sipi"] == 0x19A
    assert m.vcpus[3].wakeups() == 3
    assert m.vcpus[2].requests() == {"stop": 0, "nmi": 0, "init": 0, "sipi": 0}
    assert m.apics[0].read(ICR) == 0x469A


def test_init_resets_all_but_the_id():
    apic = Machine(2).apics[1]
    fixed(apic, 0x50)
    apic.write(TPR, 0x20)
    apic.init_py()
    assert apic.read(ID) == 1 << 24 and apic.read(TPR) == 0 and apic.read(SVR) == 0xFF
    assert all(apic.read(IRR + 16 * i) == 0 for i in range(8))


def test_illegal_vectors_and_registers_set_esr_and_raise_the_error_interrupt():
    apic = Machine(1).apics[0]
    apic.write(LVT_ERROR, 0xFE)
    fixed(apic, 0x0F)
    assert apic.read(ESR) == 0  # latched by a write only
    apic.write(ESR, 0)
    assert apic.read(ESR) == 0x20
    assert apic.acknowledge_py() == 0xFE
    apic.write(EOI, 0)
    apic.read(0x3F0)
    apic.write(ESR, 0)
    assert apic.read(ESR) == 0x80
    apic.write(ESR, 0)
    assert apic.read(ESR) == 0


# -- timer


def timer(mode, count, divide=0xB, vector=0x40, masked=False):
    m = Machine(1)
    apic = m.apics[0]
    apic.freeze(T0)
    apic.write(DIVIDE, divide)
    apic.write(LVT_TIMER, vector | mode << 17 | masked << 16)
    apic.write(INITIAL, count)
    return m, apic


@pytest.mark.parametrize(("divide", "by"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_divider_and_current_count(divide, by):
    m, apic = timer(0, 1_000_000, divide)
    assert apic.read(CURRENT) == 1_000_000
    assert m.vcpus[0].alarm() == T0 + 1_000_000 * by
    apic.freeze(T0 + 250_000 * by)
    assert apic.read(CURRENT) == 750_000


def test_one_shot_fires_once():
    m, apic = timer(0, 5000)
    apic.freeze(T0 + 4999)
    assert apic.pending_py() == -1
    apic.freeze(T0 + 5000)
    assert apic.acknowledge_py() == -1  # only pending() looks at the clock
    assert apic.pending_py() == 0x40 and apic.acknowledge_py() == 0x40
    apic.write(EOI, 0)
    apic.freeze(T0 + 50000)
    assert apic.pending_py() == -1 and apic.read(CURRENT) == 0
    assert apic.read(INITIAL) == 5000


def test_periodic_keeps_its_phase_and_coalesces():
    m, apic = timer(1, 1_000_000)
    apic.freeze(T0 + 1_000_100)
    assert apic.pending_py() == 0x40
    assert m.vcpus[0].alarm() == T0 + 2_000_000
    apic.acknowledge_py()
    apic.write(EOI, 0)
    assert apic.pending_py() == -1
    apic.freeze(T0 + 7_300_000)  # five ticks late
    assert apic.pending_py() == 0x40
    apic.acknowledge_py()
    apic.write(EOI, 0)
    assert apic.pending_py() == -1
    assert m.vcpus[0].alarm() == T0 + 8_000_000
    assert apic.read(CURRENT) == 700_000


def test_masked_timer_counts_silently():
    m, apic = timer(1, 1000, masked=True)
    apic.freeze(T0 + 2500)
    assert apic.pending_py() == -1 and apic.read(CURRENT) == 500


def test_zero_stops_and_nothing_armed_never_fires():
    m, apic = timer(0, 1000)
    apic.write(INITIAL, 0)
    assert m.vcpus[0].alarm() == 0
    apic.freeze(T0 + 5000)
    assert apic.pending_py() == -1 and apic.read(CURRENT) == 0
    assert apic.read(IRR + 0x20) == 0 and apic.pending_py() == -1


def test_change_of_divider_keeps_the_count():
    m, apic = timer(0, 1000, 11)
    apic.freeze(T0 + 400)
    apic.write(DIVIDE, 0)
    assert apic.read(CURRENT) == 600
    assert m.vcpus[0].alarm() == T0 + 400 + 1200


def test_a_tiny_period_leaves_the_guest_some_time():
    m, apic = timer(1, 1)
    assert m.vcpus[0].alarm() >= T0 + 10000


def tsc_now():
    """The guest TSC that fires now: found by asking, as Python can't read it."""
    apic = Machine(1).apics[0]
    apic.write(LVT_TIMER, 0x40 | 2 << 17)
    low, high = 1, 1 << 63
    while high - low > 1000:
        middle = (low + high) // 2
        apic.wrmsr(0x6E0, middle)
        if apic.pending_py() == 0x40:
            low = middle
            apic.acknowledge_py()
            apic.write(EOI, 0)
        else:
            high = middle
        apic.wrmsr(0x6E0, 0)
    return low


def test_a_timer_that_rings_much_too_late_tells_of_a_stop():
    m = Machine(1)
    apic, vcpu = m.apics[0], m.vcpus[0]
    apic.freeze(T0)
    apic.write(DIVIDE, 11)
    apic.write(LVT_TIMER, 0x40)
    for late, stops in [(0, 0), (999_999_999, 0), (1_000_000_000, 1), (60_000_000_000, 2)]:
        apic.freeze(T0)
        apic.write(INITIAL, 5000)
        apic.freeze(T0 + 5000 + late)
        assert apic.pending_py() == 0x40 and vcpu.stops == stops
        apic.acknowledge_py()
        apic.write(EOI, 0)


def test_tsc_deadline():
    now = tsc_now()
    m = Machine(1)
    apic = m.apics[0]
    assert apic.wrmsr(0x6E0, now + (1 << 50))  # not in this mode: ignored
    assert apic.rdmsr(0x6E0) == 0
    apic.write(LVT_TIMER, 0x40 | 2 << 17)
    apic.wrmsr(0x6E0, now + (1 << 50))
    assert apic.rdmsr(0x6E0) == now + (1 << 50)
    assert 0 < m.vcpus[0].alarm() - time.monotonic_ns() <= 3600 * 10**9 + 1  # at most an hour ahead
    assert apic.pending_py() == -1
    apic.write(INITIAL, 1)  # ignored in this mode
    assert apic.read(CURRENT) == 0
    apic.wrmsr(0x6E0, now)
    assert apic.pending_py() == 0x40
    assert apic.rdmsr(0x6E0) == 0
    apic.acknowledge_py()
    apic.write(EOI, 0)
    assert apic.pending_py() == -1
    apic.wrmsr(0x6E0, now + (1 << 50))
    apic.write(LVT_TIMER, 0x40)  # leaving the mode disarms
    assert apic.rdmsr(0x6E0) == 0 and m.vcpus[0].alarm() == 0


@pytest.mark.parametrize("mode", [0, 1])
def test_time_that_is_skipped_is_none_of_the_timers(mode):
    m, apic = timer(mode, 5000)
    apic.freeze(T0 + 2000)
    assert apic.read(CURRENT) == 3000
    apic.freeze(T0 + 2000 + 60 * 10**9)
    apic.skip(60 * 10**9)
    assert m.vcpus[0].alarm() >= T0 + 5000 + 60 * 10**9
    assert apic.pending_py() == -1 and apic.read(CURRENT) == 3000 and m.vcpus[0].stops == 0
    apic.freeze(T0 + 5000 + 60 * 10**9)
    assert apic.pending_py() == 0x40
    apic.write(INITIAL, 0)
    apic.skip(60 * 10**9)
    assert m.vcpus[0].alarm() == 0


def test_the_alarm_wakes_a_sleeping_vcpu_and_the_interrupt_is_there():
    m = Machine(1)
    apic = m.apics[0]
    apic.write(DIVIDE, 11)
    apic.write(LVT_TIMER, 0x40)
    apic.write(INITIAL, 3_000_000)
    m.vcpus[0].sleep(m.vcpus[0].alarm())
    assert apic.pending_py() == 0x40


# -- x2APIC


def test_mode_transitions():
    apic = Machine(1).apics[0]
    base = apic.rdmsr(0x1B)
    assert apic.rdmsr(0x802) is None  # not in x2APIC mode
    assert not apic.wrmsr(0x1B, base & ~0x800 | 0x400)  # invalid state
    assert not apic.wrmsr(0x1B, base | 1)
    assert apic.wrmsr(0x1B, base | 0x400)
    assert not apic.wrmsr(0x1B, base)  # x2APIC to xAPIC
    assert apic.wrmsr(0x1B, base & ~0x800)  # off
    assert not apic.wrmsr(0x1B, base | 0x400)  # off to x2APIC
    assert apic.wrmsr(0x1B, base)
    assert apic.read(SVR) == 0xFF


def test_claims_its_page_only_in_xapic_mode():
    apic = Machine(1).apics[0]
    assert apic.claims_py(0xFEE00000) and apic.claims_py(0xFEE00FFF)
    assert not apic.claims_py(0xFEE01000) and not apic.claims_py(0x1FEE00000)
    apic.wrmsr(0x1B, 0xFED00900)  # moved
    assert apic.claims_py(0xFED00300) and not apic.claims_py(0xFEE00300)
    apic.wrmsr(0x1B, 0xFED00D00)
    assert not apic.claims_py(0xFED00300)


def test_x2apic_registers():
    m = Machine(20).x2apic()
    apic = m.apics[18]
    assert apic.rdmsr(0x802) == 18
    assert apic.rdmsr(0x80D) == 1 << 16 | 1 << 2
    assert apic.wrmsr(0x808, 0x30) and apic.rdmsr(0x808) == 0x30 and not apic.wrmsr(0x808, 0x100)
    for read_only in (0x802, 0x803, 0x80A, 0x80D, 0x810, 0x827, 0x839):
        assert not apic.wrmsr(read_only, 0)
    assert apic.rdmsr(0x80B) is None and apic.rdmsr(0x83F) is None  # write only
    assert apic.rdmsr(0x80E) is None and not apic.wrmsr(0x831, 0)  # not there
    assert not apic.wrmsr(0x80B, 1) and not apic.wrmsr(0x828, 1)
    assert not apic.wrmsr(0x80F, 1 << 32)
    assert apic.rdmsr(0x8FF) is None and apic.rdmsr(0x900) is None


def test_x2apic_ipis():
    m = Machine(20).x2apic()
    m.apics[0].wrmsr(0x830, 17 << 32 | 0x4055)
    assert [i for i, v in enumerate(m.pending()) if v == 0x55] == [17]
    m.apics[0].wrmsr(0x830, (1 << 16 | 0b0101) << 32 | 0x4856)  # logical: cluster 1, members 0 and 2
    assert [i for i, v in enumerate(m.pending()) if v == 0x56] == [16, 18]
    m.apics[0].wrmsr(0x830, 0xFFFFFFFF << 32 | 0x4057)
    assert m.pending() == [0x57] * 20
    assert m.apics[0].rdmsr(0x830) == 0xFFFFFFFF << 32 | 0x4057
    assert m.apics[3].wrmsr(0x83F, 0x99)
    assert m.pending()[3] == 0x99


# -- 8259 and messages


def test_extint_through_lint0():
    m = Machine(2, enable=False)
    apic = m.apics[0]
    apic.set_up_virtual_wire()
    assert apic.read(LVT_LINT0) == 0x700 and m.apics[1].read(LVT_LINT0) == 0x10000
    m.pic.set_level_py(4, 1)  # an 8259 that was never initialised: vector base 0
    assert m.vcpus[0].wakeups() == 1
    assert apic.pending_py() == 4
    apic.write(LVT_LINT0, 0x10700)
    assert apic.pending_py() == -1
    apic.write(LVT_LINT0, 0x700)
    apic.write(TPR, 0xFF)  # ExtINT doesn't ask the TPR
    assert apic.acknowledge_py() == 4
    assert apic.read(ISR) == 0  # nor is it in service here
    assert m.apics[1].pending_py() == -1


def test_disabled_apic_passes_intr_through():
    m = Machine(1)
    m.apics[0].wrmsr(0x1B, 0xFEE00100)
    m.pic.set_level_py(1, 1)
    assert m.apics[0].pending_py() == 1


def test_msi():
    m = Machine()
    m.bus.msi_py(0xFEE00000 | 3 << 12, 0x71)
    assert m.pending() == [-1, -1, -1, 0x71]
    m.bus.msi_py(0xFEE00000 | 2 << 12, 0x400)
    assert m.vcpus[2].requests()["nmi"] == 1


def test_nmi_button_through_lint1():
    m = Machine(1)
    m.apics[0].nmi()
    assert m.vcpus[0].requests()["nmi"] == 0  # masked
    m.apics[0].write(LVT_LINT1, 0x400)
    m.apics[0].nmi()
    assert m.vcpus[0].requests()["nmi"] == 1


def test_concurrent_senders_lose_nothing():
    m = Machine(5)
    vectors = [range(0x20 + 40 * i, 0x20 + 40 * i + 40) for i in range(4)]

    def send(i):
        for vector in vectors[i]:
            m.apics[i].write(ICR_HIGH, 4 << 24)
            m.apics[i].write(ICR, 0x4000 | vector)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    target = m.apics[4]
    got = []
    while (v := target.acknowledge_py()) >= 0:
        got.append(v)
        target.write(EOI, 0)
    assert got == sorted((v for r in vectors for v in r), reverse=True)


def test_save_and_load():
    m, apic = timer(1, 1_000_000)
    fixed(apic, 0x77)
    apic.freeze(T0 + 400_000)
    state = apic.save()
    other = Machine(1).apics[0]
    other.freeze(9 * T0)
    other.load(state)
    assert other.save() == state
    assert other.read(CURRENT) == 600_000
    assert other.pending_py() == 0x77
    with pytest.raises(ValueError):
        other.load(state | {"version": 7})
