from libc.stdint cimport uint32_t, uint64_t
from hostel.base.lock cimport pthread_mutex_t
from hostel.board.apic cimport ApicBus
from hostel.bus.space cimport Region

cdef enum:
    MAX_VECTORS = 256             # 32 a word of `waiting`
    PBA = 0x1000                  # where the pending bits are in the region

cdef class Msix(Region):
    cdef readonly int count
    cdef ApicBus bus
    cdef pthread_mutex_t mutex
    cdef uint32_t table[4 * MAX_VECTORS]
    cdef uint32_t waiting[8]      # the pending bit array
    cdef readonly bint enabled            # message control's bit 15
    cdef bint masked                      # message control's bit 14
    cdef bint master                      # the function may write to memory, which a message is
    cdef readonly uint64_t sent, misdirected
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil
    cdef void fire(self, int vector) noexcept nogil              # any thread
    cdef void send(self, int vector) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef uint32_t dword(self, uint64_t offset) noexcept nogil
