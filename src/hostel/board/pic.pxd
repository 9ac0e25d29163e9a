from libc.stdint cimport int64_t, uint8_t, uint64_t
from hostel.base.lock cimport pthread_mutex_t
from hostel.bus.irq cimport IrqSink
from hostel.bus.space cimport Region
from hostel.cpu.engine cimport Vcpu

# One 8259A. Bit n of irr, isr, imr, lines and elcr belongs to input n.
cdef struct Chip:
    uint8_t irr
    uint8_t isr
    uint8_t imr
    uint8_t lines             # the inputs' levels
    uint8_t elcr              # 1: level triggered
    uint8_t elcr_mask         # which ELCR bits can be set
    uint8_t vector_base       # ICW2
    uint8_t expects           # the ICW that the data port takes next: 0 (none: OCW1), 2, 3, 4
    uint8_t needs_icw4
    uint8_t single
    uint8_t auto_eoi
    uint8_t rotate_on_auto_eoi
    uint8_t special_mask
    uint8_t special_fully_nested
    uint8_t poll
    uint8_t read_isr
    uint8_t lowest            # first input of the rotation: input (lowest + n) & 7 has priority n

cdef class Pic(IrqSink):
    cdef Chip chips[2]
    cdef volatile int output          # INTR
    cdef Vcpu vcpu                    # who sees INTR
    cdef pthread_mutex_t mutex
    cdef void set_level(self, int pin, int level) noexcept nogil
    cdef int peek(self) noexcept nogil                # the vector that acknowledge() would return now; -1 without INTR
    cdef int acknowledge(self) noexcept nogil         # the INTA cycle
    cdef uint8_t read_port(self, int chip, int offset) noexcept nogil
    cdef void write_port(self, int chip, int offset, uint8_t value) noexcept nogil
    cdef void update(self) noexcept nogil
    cdef void take(self, int chip, int pin) noexcept nogil
    cdef void command(self, int chip, uint8_t value) noexcept nogil

# Ports of chip 0 (0x20, 0x21) or 1 (0xA0, 0xA1)
cdef class PicPorts(Region):
    cdef Pic pic
    cdef int chip
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil

# Ports 0x4D0, 0x4D1
cdef class ElcrPorts(Region):
    cdef Pic pic
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil
