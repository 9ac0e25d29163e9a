from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.base.lock cimport pthread_mutex_t
from hostel.bus.irq cimport IrqLine
from hostel.bus.space cimport Region

cdef struct Channel:
    uint32_t count            # the initial count as a number of ticks, 1..65536
    uint8_t mode              # 0..5
    uint8_t bcd
    uint8_t access            # 1 low byte, 2 high byte, 3 low then high
    uint8_t gate
    uint8_t write_high        # access 3: the next write is the high byte
    uint8_t write_low_byte    # ... and this was the low one
    uint8_t read_high
    uint8_t null_count        # a control word came, its count did not
    uint8_t latched           # how many bytes of latch are to be read
    uint8_t status_latched
    uint8_t status
    uint32_t latch
    int64_t start_ns          # when the count was loaded; 0: it was not
    int64_t stopped_ns        # when the gate went low in the modes that pause; 0: it counts

cdef class Pit(Region):
    cdef Channel channels[3]
    cdef IrqLine irq
    cdef object schedule
    cdef uint8_t speaker
    cdef uint32_t generation            # tells an expiry that was asked for from one that is overtaken
    cdef int64_t due_ns                 # of the expiry that is planned
    cdef int64_t frozen_ns
    cdef pthread_mutex_t mutex
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil
    cdef int64_t now(self) noexcept nogil
    cdef int64_t elapsed(self, Channel* c) noexcept nogil
    cdef uint32_t counter(self, Channel* c) noexcept nogil
    cdef bint output(self, Channel* c) noexcept nogil
    cdef void set_gate(self, Channel* c, bint gate) noexcept nogil
    cdef bint control(self, uint8_t value) noexcept nogil
    cdef void latch_count(self, Channel* c) noexcept nogil
    cdef bint write_count(self, int index, uint8_t value) noexcept nogil
    cdef uint8_t read_count(self, Channel* c) noexcept nogil
    cdef int64_t next_rise(self) noexcept nogil
    cdef void plan(self) noexcept nogil

# Port 0x61: the gate of channel 2, the speaker, the refresh toggle
cdef class SystemControlPort(Region):
    cdef Pit pit
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil
