"""Local APICs (xAPIC and x2APIC) and the bus that carries messages between them.

Intel SDM vol. 3, chapter 11 (APIC); clause numbers below are of that chapter. The timer counts at 1 GHz
before its divider, so that a count is a nanosecond.

Threads: a vCPU's thread owns its APIC's registers. Other threads touch ``irr``, ``tmr`` and ``errors``
with atomic operations only, and then kick the vCPU; there are no locks. Lowest-priority arbitration reads
other APICs' TPR and ISR as they happen to be, as hardware's does.

Limits: no SMI; LINT0 takes ExtINT only; focus processors, remote read and CMCI are not there.
"""

import cython
from cython.cimports.hostel.base.clock import now_ns, rdtsc, tsc_khz
from cython.cimports.hostel.cpu.engine import STOOD_STILL_NS
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t

_VERSION = 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _highest(words: cython.pointer(cython.volatile[uint32_t])) -> cython.int:
    """The highest bit that is set of eight words, or -1."""
    i: cython.int
    word: uint32_t
    for i in range(7, -1, -1):
        word = words[i]
        if word:
            return 32 * i + 31 - clz(word)
    return -1


@cython.cclass
class EoiSink(IrqSink):
    """The I/O APIC, as local APICs see it."""

    def eoi(self, vector):
        pass


@cython.cclass
class LocalApic(InterruptController):
    """The local APIC of ``vcpu``; ``pic`` is given to the first processor's only."""

    def __init__(self, bus: ApicBus, vcpu: Vcpu, apic_id: int, pic: Pic = None):
        self.bus = bus
        self.vcpu = vcpu
        self.id = apic_id
        self.pic = pic
        self.intr = cython.NULL
        self.base_msr = 0xFEE00000 | BASE_ENABLED
        if pic is not None:
            self.intr = cython.cast(cython.p_void, pic)
            self.base_msr |= BASE_BSP
            pic.connect(vcpu)
        self.reset()
        bus.join(self)
        vcpu.apic = self

    def set_up_virtual_wire(self):
        """What firmware leaves behind: the APIC on, LINT0 = ExtINT from the 8259 (MPS 1.4, 3.6.2.2), LINT1 = NMI."""
        self.svr = SVR_ENABLED | 0xFF
        self.lvt[3] = (0x700 if self.intr != cython.NULL else LVT_MASKED | 0x700)
        self.lvt[4] = 0x400

    def reset(self):
        i: cython.int
        for i in range(8):
            atomic_and(cython.address(self.irr[i]), 0)
            atomic_and(cython.address(self.tmr[i]), 0)
            self.isr[i] = 0
        for i in range(6):
            self.lvt[i] = LVT_MASKED
        atomic_and(cython.address(self.errors), 0)
        self.tpr = 0
        self.ldr = 0
        self.dfr = 0xFFFFFFFF
        self.svr = 0xFF
        self.esr = 0
        self.icr = 0
        self.icr_high = 0
        self.initial_count = 0
        self.divide_register = 0
        self.deadline_ns = 0
        self.tsc_deadline = 0
        self.vcpu.set_alarm(0)

    # -- what the vCPU asks

    def takes_extint(self):
        # A disabled APIC's LINT0 is the processor's INTR pin (11.4.3).
        if self.intr == cython.NULL or not cython.cast(Pic, self.intr).output:
            return False
        return not self.base_msr & BASE_ENABLED or self.lvt[3] & 0x10700 == 0x700

    def processor_priority(self):
        v: cython.int = _highest(self.isr)
        if v < 0 or (v & 0xF0) <= cython.cast(cython.int, self.tpr & 0xF0):
            return self.tpr & 0xFF
        return v & 0xF0

    def pending(self):
        v: cython.int
        self.tick()
        if self.takes_extint():
            v = cython.cast(Pic, self.intr).peek()
            if v >= 0:
                return v
        v = _highest(self.irr)
        if v >= 0 and self.base_msr & BASE_ENABLED and (v & 0xF0) > (self.processor_priority() & 0xF0):
            return v
        return -1

    def acknowledge(self):
        if self.takes_extint():
            return cython.cast(Pic, self.intr).acknowledge()
        v: cython.int = _highest(self.irr)
        if v < 0 or not self.base_msr & BASE_ENABLED or (v & 0xF0) <= (self.processor_priority() & 0xF0):
            return -1
        bit: uint32_t = cython.cast(uint32_t, 1) << (v & 31)
        atomic_and(cython.address(self.irr[v >> 5]), ~bit)
        self.isr[v >> 5] |= bit
        return v

    def read_cr8(self):
        return (self.tpr >> 4) & 15

    def write_cr8(self, value):
        self.tpr = (value & 15) << 4

    def set_tsc_offset(self, offset):
        self.tsc_offset = offset
        if self.tsc_deadline:
            self.arm_tsc_deadline()

    # -- messages

    def matches(self, dest, logical, wide):
        if not self.base_msr & BASE_ENABLED:
            return False
        if dest == (cython.cast(uint32_t, 0xFFFFFFFF) if wide else 0xFF):
            return True
        if not logical:
            return dest == self.id
        if self.base_msr & BASE_X2APIC:  # 11.12.10.2: cluster in bits 31:16
            return dest >> 16 == self.id >> 4 and (dest >> (self.id & 15)) & 1 != 0
        mine: uint32_t = self.ldr >> 24
        if dest > 0xFF:
            return False
        if self.dfr >> 28 == 15:  # flat
            return dest & mine != 0
        # Cluster model; cluster 15 is everyone's.
        return (dest >> 4 == 15 or dest >> 4 == mine >> 4) and dest & mine & 15 != 0

    def accept(self, mode, vector, level):
        bit: uint32_t = cython.cast(uint32_t, 1) << (vector & 31)
        if mode == DELIVER_FIXED or mode == DELIVER_LOWEST:
            if not self.svr & SVR_ENABLED:
                return
            if vector < 16:
                self.error(ESR_RECEIVE_ILLEGAL_VECTOR)
                return
            if level:
                atomic_or(cython.address(self.tmr[vector >> 5]), bit)
            else:
                atomic_and(cython.address(self.tmr[vector >> 5]), ~bit)
            # Where it was set already, whoever set it kicks.
            if atomic_or(cython.address(self.irr[vector >> 5]), bit) & bit:
                return
        elif mode == DELIVER_NMI:
            self.vcpu.nmi_request = 1
        elif mode == DELIVER_INIT:
            self.vcpu.init_request = 1
        elif mode == DELIVER_STARTUP:
            self.vcpu.sipi_request = 0x100 | (vector & 0xFF)
        else:
            return
        self.vcpu.kick()

    def raise_local(self, source):
        entry: uint32_t = self.lvt[source]
        if not entry & LVT_MASKED:
            self.accept((entry >> 8) & 7, entry & 0xFF, False)

    def error(self, bits):
        atomic_or(cython.address(self.errors), bits)
        entry: uint32_t = self.lvt[5]
        if not entry & LVT_MASKED and entry & 0xFF >= 16:
            self.accept(DELIVER_FIXED, entry & 0xFF, False)

    def end_of_interrupt(self):
        v: cython.int = _highest(self.isr)
        if v < 0:
            return
        bit: uint32_t = cython.cast(uint32_t, 1) << (v & 31)
        self.isr[v >> 5] &= ~bit
        if self.tmr[v >> 5] & bit:
            self.bus.broadcast_eoi(v)

    def send(self, icr, dest, wide):
        mode: cython.int = (icr >> 8) & 7
        vector: cython.int = icr & 0xFF
        shorthand: cython.int = (icr >> 18) & 3
        if (mode == DELIVER_FIXED or mode == DELIVER_LOWEST) and vector < 16:
            self.error(ESR_SEND_ILLEGAL_VECTOR)
            return
        # INIT level de-assert only sets arbitration IDs, which nothing has had since the Pentium 4 (11.7.1).
        if mode == DELIVER_INIT and icr & 0xC000 == 0x8000:
            return
        if shorthand == 0:
            self.bus.deliver(dest, (icr >> 11) & 1, wide, mode, vector, False)
        elif shorthand == 1:
            self.accept(mode, vector, False)
        else:
            self.bus.deliver_all(cython.cast(cython.p_void, self) if shorthand == 3 else cython.NULL, mode, vector)

    # -- the timer

    def now(self):
        return self.frozen_ns if self.frozen_ns else now_ns()

    def tick_ns(self):
        # 11.5.4: bits 3, 1, 0 of the divide configuration; 111 is 1.
        shift: cython.int = ((self.divide_register >> 1) & 4 | self.divide_register & 3) + 1
        return cython.cast(int64_t, 1) << (shift & 7)

    def tick(self):
        entry: uint32_t = self.lvt[0]
        now: int64_t
        late: uint64_t
        period: int64_t
        if not self.deadline_ns and not self.tsc_deadline:
            return
        if self.tsc_deadline:
            if rdtsc() + cython.cast(uint64_t, self.tsc_offset) < self.tsc_deadline:
                # The alarm rang a little early, or the deadline was beyond what one alarm covers.
                if self.vcpu.alarm_ns and self.now() >= self.vcpu.alarm_ns:
                    self.arm_tsc_deadline()
                return
            late = (rdtsc() + cython.cast(uint64_t, self.tsc_offset) - self.tsc_deadline) // tsc_khz * 1000000
            self.tsc_deadline = 0
        else:
            now = self.now()
            if now < self.deadline_ns:
                return
            late = now - self.deadline_ns
            if (entry >> 17) & 3 == TIMER_PERIODIC and self.initial_count:
                period = self.initial_count * self.tick_ns()
                # Ticks that nobody could take are one interrupt, and the phase is kept.
                self.deadline_ns += period * ((now - self.deadline_ns) // period + 1)
                self.arm()
            else:
                self.deadline_ns = 0
        if late >= STOOD_STILL_NS:
            self.vcpu.stood_still()
        if not entry & LVT_MASKED:
            self.accept(DELIVER_FIXED, entry & 0xFF, False)

    def arm(self):
        # A period shorter than an alarm takes to ring would leave no time for the guest.
        soonest: int64_t = self.now() + 20000
        if not self.deadline_ns:
            self.vcpu.set_alarm(0)
        elif (self.lvt[0] >> 17) & 3 == TIMER_PERIODIC and self.deadline_ns < soonest:
            self.vcpu.set_alarm(soonest)
        else:
            self.vcpu.set_alarm(self.deadline_ns)

    def arm_tsc_deadline(self):
        # Relative to this moment, so that the error of tsc_khz doesn't grow with the host's uptime.
        guest: uint64_t = rdtsc() + cython.cast(uint64_t, self.tsc_offset)
        ahead: uint64_t = 0
        hour: uint64_t = cython.cast(uint64_t, tsc_khz) * 3600000
        if not self.tsc_deadline:
            self.vcpu.set_alarm(0)
            return
        if self.tsc_deadline > guest:
            ahead = self.tsc_deadline - guest
            if ahead > hour:
                ahead = hour
        self.vcpu.set_alarm(self.now() + cython.cast(int64_t, ahead * 1000000 // tsc_khz) + 1)

    def write_lvt(self, index, value):
        mask: uint32_t = 0x1A7FF  # LINT0, LINT1: vector, mode, polarity, trigger, mask
        if index == 0:
            mask = 0x700FF
        elif index == 5:
            mask = 0x100FF
        elif index < 3:
            mask = 0x107FF
        old_mode: cython.int = (self.lvt[index] >> 17) & 3
        value &= mask
        if not self.svr & SVR_ENABLED:
            value |= LVT_MASKED
        self.lvt[index] = value
        # 11.5.4.1: a change from or to TSC-deadline mode disarms the timer.
        if index == 0 and (old_mode == TIMER_TSC_DEADLINE) != ((value >> 17) & 3 == TIMER_TSC_DEADLINE):
            self.initial_count = 0
            self.deadline_ns = 0
            self.tsc_deadline = 0
            self.vcpu.set_alarm(0)

    # -- registers

    def read_register(self, reg, x2apic, value):
        left: int64_t
        v: uint64_t = 0
        if reg == REG_ID:
            v = self.id if x2apic else self.id << 24
        elif reg == REG_VERSION:
            v = 0x50014  # six LVT entries
        elif reg == REG_TPR:
            v = self.tpr
        elif reg == REG_PPR:
            v = self.processor_priority()
        elif reg == REG_LDR:
            if x2apic:
                v = (self.id >> 4) << 16 | cython.cast(uint32_t, 1) << (self.id & 15)
            else:
                v = self.ldr
        elif reg == REG_SVR:
            v = self.svr
        elif REG_ISR <= reg < REG_ISR + 8:
            v = self.isr[reg - REG_ISR]
        elif REG_TMR <= reg < REG_TMR + 8:
            v = self.tmr[reg - REG_TMR]
        elif REG_IRR <= reg < REG_IRR + 8:
            self.tick()
            v = self.irr[reg - REG_IRR]
        elif reg == REG_ESR:
            v = self.esr
        elif reg == REG_ICR:
            v = self.icr
            if x2apic:
                v |= cython.cast(uint64_t, self.icr_high) << 32
        elif REG_LVT_TIMER <= reg <= REG_LVT_ERROR:
            v = self.lvt[reg - REG_LVT_TIMER]
        elif reg == REG_INITIAL_COUNT:
            v = self.initial_count
        elif reg == REG_CURRENT_COUNT:
            self.tick()
            if self.deadline_ns:
                left = self.deadline_ns - self.now()
                v = (left + self.tick_ns() - 1) // self.tick_ns() if left > 0 else 0
        elif reg == REG_DIVIDE:
            v = self.divide_register
        elif x2apic:
            return 1
        elif reg == REG_DFR:
            v = self.dfr
        elif reg == REG_ICR_HIGH:
            v = self.icr_high
        elif reg != REG_APR and reg != REG_EOI and reg != REG_RRD:
            return 1
        value[0] = v
        return 0

    def write_register(self, reg, x2apic, value):
        v: uint32_t = cython.cast(uint32_t, value)
        i: cython.int
        ticks: int64_t
        if x2apic and value >> 32 and reg != REG_ICR:
            return 1
        if reg == REG_TPR:
            if x2apic and v > 0xFF:
                return 1
            self.tpr = v & 0xFF
        elif reg == REG_EOI:
            if x2apic and v:
                return 1
            self.end_of_interrupt()
        elif reg == REG_SVR:
            self.svr = v & 0x1FF
            if not v & SVR_ENABLED:  # 11.4.7.2: all mask bits are set
                for i in range(6):
                    self.lvt[i] |= LVT_MASKED
        elif reg == REG_ESR:
            if x2apic and v:
                return 1
            self.esr = atomic_and(cython.address(self.errors), 0)
        elif reg == REG_ICR:
            self.icr = v & 0xCCFFF  # the delivery status is always idle
            if x2apic:
                self.icr_high = cython.cast(uint32_t, value >> 32)
                self.send(v, self.icr_high, True)
            else:
                self.send(v, self.icr_high >> 24, False)
        elif REG_LVT_TIMER <= reg <= REG_LVT_ERROR:
            self.write_lvt(reg - REG_LVT_TIMER, v)
        elif reg == REG_INITIAL_COUNT:
            if (self.lvt[0] >> 17) & 3 != TIMER_TSC_DEADLINE:
                self.initial_count = v
                self.deadline_ns = self.now() + v * self.tick_ns() if v else 0
                self.arm()
        elif reg == REG_DIVIDE:
            ticks = 0
            if self.deadline_ns:
                self.tick()
                ticks = (self.deadline_ns - self.now()) // self.tick_ns()
            self.divide_register = v & 11
            if self.deadline_ns:
                self.deadline_ns = self.now() + ticks * self.tick_ns()
                self.arm()
        elif reg == REG_SELF_IPI and x2apic:
            if v > 0xFF:
                return 1
            self.send(1 << 18 | v, 0, False)
        elif x2apic:
            return 1
        elif reg == REG_LDR:
            self.ldr = v >> 24 << 24
        elif reg == REG_DFR:
            self.dfr = v | 0x0FFFFFFF
        elif reg == REG_ICR_HIGH:
            self.icr_high = v >> 24 << 24
        elif not (
            reg == REG_ID or reg == REG_VERSION or reg == REG_APR or reg == REG_PPR or reg == REG_RRD
            or REG_ISR <= reg < REG_ESR or reg == REG_CURRENT_COUNT
        ):  # those are read only
            return 1
        return 0

    def claims(self, gpa):
        return (gpa ^ self.base_msr) >> 12 == 0 and self.base_msr & (BASE_ENABLED | BASE_X2APIC) == BASE_ENABLED

    def mmio_read(self, offset, size):
        value: uint64_t = 0
        # 11.4.1: registers are 32 bits wide at 16-byte steps; what else is undefined and reads as 0 here.
        if offset & 15 < 4:
            if self.read_register((offset >> 4) & 0xFF, False, cython.address(value)) != 0:
                self.error(ESR_ILLEGAL_REGISTER)
            value >>= 8 * (offset & 3)
        return value

    def mmio_write(self, offset, size, value):
        if offset & 15 == 0 and self.write_register((offset >> 4) & 0xFF, False, cython.cast(uint32_t, value)) != 0:
            self.error(ESR_ILLEGAL_REGISTER)

    def read_msr(self, index, value):
        if index == 0x1B:
            value[0] = self.base_msr
            return 0
        if index == 0x6E0:
            self.tick()
            value[0] = self.tsc_deadline
            return 0
        if index < 0x800 or index > 0x8FF or not self.base_msr & BASE_X2APIC or index == 0x80B:
            return 1
        return self.read_register(index - 0x800, True, value)

    def write_msr(self, index, value):
        if index == 0x1B:
            return self.write_base(value)
        if index == 0x6E0:
            if (self.lvt[0] >> 17) & 3 == TIMER_TSC_DEADLINE:
                self.tsc_deadline = value
                self.arm_tsc_deadline()
            return 0
        if index < 0x800 or index > 0x8FF or not self.base_msr & BASE_X2APIC:
            return 1
        if REG_ISR + 0x800 <= index < REG_ESR + 0x800:
            return 1
        reg: cython.int = index - 0x800
        if reg == REG_ID or reg == REG_VERSION or reg == REG_PPR or reg == REG_LDR or reg == REG_CURRENT_COUNT:
            return 1
        return self.write_register(reg, True, value)

    def write_base(self, value):
        new: uint64_t = value & (BASE_ENABLED | BASE_X2APIC)
        old: uint64_t = self.base_msr & (BASE_ENABLED | BASE_X2APIC)
        # 11.12.1, 11.12.5: the transitions that exist
        if value & 0x2FF or value >> 52 or new == BASE_X2APIC:
            return 1
        if old == BASE_ENABLED | BASE_X2APIC and new == BASE_ENABLED:
            return 1
        if old == 0 and new == BASE_ENABLED | BASE_X2APIC:
            return 1
        self.base_msr = value & ~cython.cast(uint64_t, BASE_BSP) | self.base_msr & BASE_BSP
        if not new and old:
            self.reset()
        return 0

    # -- for tests, tools and saved state

    def freeze(self, ns: int64_t):
        """Let the clock say ``ns`` (0: the real one) for the counting timer; for tests."""
        self.frozen_ns = ns

    def skip(self, ns: int64_t):
        """Time has stood still for ``ns``, the vCPU too: the timer goes on as if they had not passed."""
        if self.deadline_ns:
            self.deadline_ns += ns
        if self.tsc_deadline:
            self.arm_tsc_deadline()
        else:
            self.arm()

    def pending_py(self) -> int:
        """``pending`` for tests."""
        return self.pending()

    def acknowledge_py(self) -> int:
        """``acknowledge`` for tests."""
        return self.acknowledge()

    def read(self, offset: uint64_t) -> int:
        """A 32-bit MMIO read."""
        return self.mmio_read(offset, 4) & 0xFFFFFFFF

    def write(self, offset: uint64_t, value: uint32_t):
        """A 32-bit MMIO write."""
        self.mmio_write(offset, 4, value)

    def rdmsr(self, index: uint32_t):
        """The MSR's value, or None for #GP."""
        value: uint64_t = 0
        return None if self.read_msr(index, cython.address(value)) else value

    def wrmsr(self, index: uint32_t, value: uint64_t) -> bool:
        """Whether the write was allowed."""
        return self.write_msr(index, value) == 0

    def cr8(self, value: cython.int = -1) -> int:
        """Write CR8 unless ``value`` is -1, and read it."""
        if value >= 0:
            self.write_cr8(value)
        return self.read_cr8()

    def init_py(self):
        """``reset`` for tests."""
        self.reset()

    def nmi(self):
        """The NMI button, on LINT1."""
        self.raise_local(4)

    def claims_py(self, gpa: uint64_t) -> bool:
        """``claims`` for tests."""
        return bool(self.claims(gpa))

    def save(self) -> dict:
        """Every register; the timer as nanoseconds that are left."""
        left: int64_t = max(self.deadline_ns - self.now(), 1) if self.deadline_ns else 0
        return {
            "version": _VERSION,
            "id": self.id,
            "base_msr": self.base_msr,
            "irr": [self.irr[i] for i in range(8)],
            "tmr": [self.tmr[i] for i in range(8)],
            "isr": [self.isr[i] for i in range(8)],
            "lvt": [self.lvt[i] for i in range(6)],
            "errors": self.errors,
            "tpr": self.tpr,
            "ldr": self.ldr,
            "dfr": self.dfr,
            "svr": self.svr,
            "esr": self.esr,
            "icr": self.icr,
            "icr_high": self.icr_high,
            "initial_count": self.initial_count,
            "divide_register": self.divide_register,
            "timer_left_ns": left,
            "tsc_deadline": self.tsc_deadline,
            "tsc_offset": self.tsc_offset,
        }

    def load(self, state: dict):
        """Restore what ``save`` gave; the TSC offset is the engine's to set."""
        if state["version"] != _VERSION:
            raise ValueError(f"apic: state version {state['version']} is not {_VERSION}")
        i: cython.int
        for i in range(8):
            self.irr[i] = state["irr"][i]
            self.tmr[i] = state["tmr"][i]
            self.isr[i] = state["isr"][i]
        for i in range(6):
            self.lvt[i] = state["lvt"][i]
        self.id = state["id"]
        self.base_msr = state["base_msr"]
        self.errors = state["errors"]
        self.tpr = state["tpr"]
        self.ldr = state["ldr"]
        self.dfr = state["dfr"]
        self.svr = state["svr"]
        self.esr = state["esr"]
        self.icr = state["icr"]
        self.icr_high = state["icr_high"]
        self.initial_count = state["initial_count"]
        self.divide_register = state["divide_register"]
        left: int64_t = state["timer_left_ns"]
        self.deadline_ns = self.now() + left if left else 0
        self.tsc_deadline = state["tsc_deadline"]
        self.tsc_offset = state["tsc_offset"]
        if self.tsc_deadline:
            self.arm_tsc_deadline()
        else:
            self.arm()


@cython.cclass
class ApicBus:
    """Carries interrupt messages to the local APICs that joined."""

    def __cinit__(self):
        self.members = []
        self.count = 0
        self.eoi_sink = cython.NULL

    def join(self, apic: LocalApic):
        """Add a local APIC; before any vCPU runs."""
        if self.count == MAX_APICS:
            raise ValueError("too many local APICs")
        self.members.append(apic)
        self.apics[self.count] = cython.cast(cython.p_void, apic)
        self.count += 1

    def connect(self, ioapic: EoiSink):
        """Let ``ioapic`` hear of the ends of level-triggered interrupts."""
        self.ioapic = ioapic
        self.eoi_sink = cython.cast(cython.p_void, ioapic)

    def deliver(self, dest, logical, wide, mode, vector, level):
        i: cython.int
        k: cython.int
        best: cython.int = -1
        priority: cython.int
        best_priority: cython.int = 0x100
        if mode == DELIVER_LOWEST:
            self.turn += 1
            for i in range(self.count):
                k = (i + self.turn) % self.count
                if cython.cast(LocalApic, self.apics[k]).matches(dest, logical, wide):
                    priority = cython.cast(LocalApic, self.apics[k]).processor_priority()
                    if cython.cast(LocalApic, self.apics[k]).svr & SVR_ENABLED and priority < best_priority:
                        best = k
                        best_priority = priority
            if best >= 0:
                cython.cast(LocalApic, self.apics[best]).accept(mode, vector, level)
            return
        for i in range(self.count):
            if cython.cast(LocalApic, self.apics[i]).matches(dest, logical, wide):
                cython.cast(LocalApic, self.apics[i]).accept(mode, vector, level)

    def deliver_all(self, but, mode, vector):
        i: cython.int
        for i in range(self.count):
            if self.apics[i] != but:
                cython.cast(LocalApic, self.apics[i]).accept(mode, vector, False)

    def msi(self, address, data):
        # 11.11.1, 11.11.2. Bits 11:5 of the address extend the destination to 15 bits for guests that were told so.
        dest: uint32_t = (address >> 12) & 0xFF | (address >> 5 & 0x7F) << 8
        mode: cython.int = (data >> 8) & 7
        if address & 8 and mode == DELIVER_FIXED:  # redirection hint: one of them
            mode = DELIVER_LOWEST
        self.deliver(dest, (address >> 2) & 1, False, mode, data & 0xFF, (data >> 15) & 1)

    def broadcast_eoi(self, vector):
        if self.eoi_sink != cython.NULL:
            cython.cast(EoiSink, self.eoi_sink).eoi(vector)

    def msi_py(self, address: uint64_t, data: uint32_t):
        """A message-signalled interrupt, for devices in plain Python."""
        self.msi(address, data)


@cython.cclass
class MsiWindow(Region):
    """0xFEE00000..0xFEEFFFFF as devices see it: writes are messages."""

    def __init__(self, name: str, bus: ApicBus):
        self.name = name
        self.bus = bus

    def write(self, offset, size, value):
        self.bus.msi(offset & 0xFFFFF, cython.cast(uint32_t, value))  # bits 31:20 select the window

    def read(self, offset, size):
        return cython.cast(uint64_t, -1)
