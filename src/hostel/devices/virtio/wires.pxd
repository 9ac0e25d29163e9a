from libc.stdint cimport uint32_t, uint64_t
from hostel.board.msix cimport Msix
from hostel.bus.space cimport Region
from hostel.devices.virtio.queue cimport Queue, Transport, atomic_and, atomic_or

cdef enum:
    MAX_QUEUES = 1024
    NO_VECTOR = 0xFFFF
    NOTIFY_MULTIPLIER = 4

cdef enum:                        # the BAR
    COMMON = 0x0000
    ISR = 0x1000
    CONFIG = 0x2000
    NOTIFY = 0x3000
    MSIX = 0x4000
    BAR_SIZE = 0x8000

cdef enum:                        # ISR status (virtio 1.2, 4.1.4.5)
    ISR_QUEUE = 1
    ISR_CONFIG = 2

# How queues interrupt: by MSI-X without the GIL, else by the card's pin.
cdef class PciInterrupts(Transport):
    cdef Msix msix
    cdef object card              # pin_changed() is called with the GIL
    cdef volatile uint32_t isr
    cdef int vectors[MAX_QUEUES]
    cdef int config_vector
    cdef void interrupt(self, int queue) noexcept nogil
    cdef void config_interrupt(self) noexcept nogil
    cdef void by_pin(self, uint32_t bit) noexcept nogil

# The card's BAR: notifications and MSI-X without the GIL, the rest by its Python methods.
cdef class Registers(Region):
    cdef object card              # read_register(offset, size), write_register(offset, size, value)
    cdef Msix msix
    cdef list queues
    cdef void* doorbells[MAX_QUEUES]
    cdef int count
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil
