from libc.stdint cimport int64_t, uint32_t, uint64_t
from hostel.base.lock cimport pthread_mutex_t
from hostel.board.apic cimport ApicBus, EoiSink
from hostel.bus.irq cimport IrqLine, IrqSink
from hostel.bus.space cimport Region

cdef enum:
    PINS = 24

cdef enum:                    # bits of a redirection entry's low word
    ENTRY_LOGICAL = 0x800
    ENTRY_STATUS = 0x1000
    ENTRY_REMOTE_IRR = 0x4000
    ENTRY_LEVEL = 0x8000
    ENTRY_MASKED = 0x10000

cdef class IoApic(EoiSink):
    cdef ApicBus bus
    cdef uint64_t entries[PINS]
    cdef uint32_t lines                 # the pins' levels
    cdef uint32_t select
    cdef uint32_t id
    cdef pthread_mutex_t mutex
    cdef void set_level(self, int pin, int level) noexcept nogil
    cdef void eoi(self, int vector) noexcept nogil
    cdef void send(self, int pin) noexcept nogil
    cdef void service(self, int pin) noexcept nogil
    cdef uint32_t read_register(self, uint32_t index) noexcept nogil
    cdef void write_register(self, uint32_t index, uint32_t value) noexcept nogil

cdef class IoApicWindow(Region):
    cdef IoApic ioapic
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil

# A wire that several sources pull: asserted while any of them asserts. Pin n is source n, 0..31
cdef class WiredOr(IrqSink):
    cdef IrqLine line
    cdef uint32_t asserted
    cdef pthread_mutex_t mutex
    cdef void set_level(self, int pin, int level) noexcept nogil
