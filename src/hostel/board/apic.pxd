from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from hostel.bus.irq cimport IrqSink
from hostel.bus.space cimport Region
from hostel.board.pic cimport Pic
from hostel.cpu.engine cimport InterruptController, Vcpu

cdef extern from * nogil:
    uint32_t atomic_or "__sync_fetch_and_or"(volatile uint32_t* word, uint32_t bits)
    uint32_t atomic_and "__sync_fetch_and_and"(volatile uint32_t* word, uint32_t bits)
    int clz "__builtin_clz"(unsigned int word)

cdef enum:
    MAX_APICS = 1024

cdef enum:                    # delivery modes (SDM vol. 3, 11.5.1)
    DELIVER_FIXED = 0
    DELIVER_LOWEST = 1
    DELIVER_SMI = 2
    DELIVER_NMI = 4
    DELIVER_INIT = 5
    DELIVER_STARTUP = 6
    DELIVER_EXTINT = 7

cdef enum:                    # registers: MMIO offset >> 4, and MSR - 0x800
    REG_ID = 0x02
    REG_VERSION = 0x03
    REG_TPR = 0x08
    REG_APR = 0x09
    REG_PPR = 0x0A
    REG_EOI = 0x0B
    REG_RRD = 0x0C
    REG_LDR = 0x0D
    REG_DFR = 0x0E
    REG_SVR = 0x0F
    REG_ISR = 0x10
    REG_TMR = 0x18
    REG_IRR = 0x20
    REG_ESR = 0x28
    REG_ICR = 0x30
    REG_ICR_HIGH = 0x31
    REG_LVT_TIMER = 0x32
    REG_LVT_THERMAL = 0x33
    REG_LVT_PERF = 0x34
    REG_LVT_LINT0 = 0x35
    REG_LVT_LINT1 = 0x36
    REG_LVT_ERROR = 0x37
    REG_INITIAL_COUNT = 0x38
    REG_CURRENT_COUNT = 0x39
    REG_DIVIDE = 0x3E
    REG_SELF_IPI = 0x3F

cdef enum:                    # ESR bits
    ESR_SEND_ILLEGAL_VECTOR = 0x20
    ESR_RECEIVE_ILLEGAL_VECTOR = 0x40
    ESR_ILLEGAL_REGISTER = 0x80

cdef enum:
    LVT_MASKED = 0x10000
    SVR_ENABLED = 0x100
    BASE_BSP = 0x100
    BASE_X2APIC = 0x400
    BASE_ENABLED = 0x800
    TIMER_ONE_SHOT = 0
    TIMER_PERIODIC = 1
    TIMER_TSC_DEADLINE = 2

# A controller that wants to know when a level-triggered vector was serviced: an I/O APIC.
cdef class EoiSink(IrqSink):
    cdef void eoi(self, int vector) noexcept nogil

cdef class LocalApic(InterruptController):
    cdef Vcpu vcpu
    cdef ApicBus bus
    cdef Pic pic                        # whose INTR is wired to LINT0; None on all but the first processor
    cdef void* intr                     # the same, NULL where there is none
    cdef readonly uint32_t id
    cdef uint64_t base_msr
    # Any thread sets bits of irr, tmr and errors; the rest is the owner's
    cdef volatile uint32_t irr[8]
    cdef volatile uint32_t tmr[8]
    cdef uint32_t isr[8]
    cdef volatile uint32_t errors       # what the next write to ESR makes visible
    cdef uint32_t tpr, ldr, dfr, svr, esr, icr, icr_high
    cdef uint32_t lvt[6]                # timer, thermal, perf, LINT0, LINT1, error
    cdef uint32_t initial_count
    cdef uint32_t divide_register
    cdef int64_t deadline_ns            # of the counting timer; 0: it stands still
    cdef uint64_t tsc_deadline          # guest TSC; 0: disarmed
    cdef int64_t frozen_ns              # tests: what the clock says, if not 0
    cdef int pending(self) noexcept nogil
    cdef int acknowledge(self) noexcept nogil
    cdef int read_msr(self, uint32_t index, uint64_t* value) noexcept nogil
    cdef int write_msr(self, uint32_t index, uint64_t value) noexcept nogil
    cdef int read_cr8(self) noexcept nogil
    cdef void write_cr8(self, int value) noexcept nogil
    cdef void reset(self) noexcept nogil
    cdef void set_tsc_offset(self, int64_t offset) noexcept nogil
    # The MMIO window of the accessing vCPU: offset 0..0xFFF. Whoever runs vCPUs asks claims() before the MMIO space
    cdef bint claims(self, uint64_t gpa) noexcept nogil
    cdef uint64_t mmio_read(self, uint64_t offset, int size) noexcept nogil
    cdef void mmio_write(self, uint64_t offset, int size, uint64_t value) noexcept nogil
    # From any thread: a message arrives
    cdef void accept(self, int mode, int vector, bint level) noexcept nogil
    cdef bint matches(self, uint32_t dest, bint logical, bint wide) noexcept nogil
    # An interrupt from a local source, an index of lvt: 1 thermal, 2 perf, 4 LINT1 (NMI button)
    cdef void raise_local(self, int source) noexcept nogil
    cdef int processor_priority(self) noexcept nogil
    cdef bint takes_extint(self) noexcept nogil
    cdef void end_of_interrupt(self) noexcept nogil
    cdef void error(self, uint32_t bits) noexcept nogil
    cdef void send(self, uint32_t icr, uint32_t dest, bint wide) noexcept nogil
    cdef int64_t now(self) noexcept nogil
    cdef int64_t tick_ns(self) noexcept nogil
    cdef void tick(self) noexcept nogil
    cdef void arm(self) noexcept nogil
    cdef void arm_tsc_deadline(self) noexcept nogil
    cdef void write_lvt(self, int index, uint32_t value) noexcept nogil
    cdef int read_register(self, int reg, bint x2apic, uint64_t* value) noexcept nogil
    cdef int write_register(self, int reg, bint x2apic, uint64_t value) noexcept nogil
    cdef int write_base(self, uint64_t value) noexcept nogil

# Where messages travel: from I/O APICs, MSI writers and local APICs to local APICs
cdef class ApicBus:
    cdef list members
    cdef void* apics[MAX_APICS]
    cdef int count
    cdef EoiSink ioapic
    cdef void* eoi_sink
    cdef uint32_t turn                  # rotates lowest-priority delivery among equals
    cdef void deliver(self, uint32_t dest, bint logical, bint wide, int mode, int vector, bint level) noexcept nogil
    cdef void deliver_all(self, void* but, int mode, int vector) noexcept nogil
    cdef void msi(self, uint64_t address, uint32_t data) noexcept nogil
    cdef void broadcast_eoi(self, int vector) noexcept nogil

# MSI writes of devices that do DMA to 0xFEE00000, when they come from the MMIO space
cdef class MsiWindow(Region):
    cdef ApicBus bus
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil
