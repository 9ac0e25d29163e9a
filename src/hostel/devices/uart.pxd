from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.base.lock cimport pthread_mutex_t
from hostel.bus.irq cimport IrqLine
from hostel.bus.space cimport Region

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)
    int eventfd_read(int fd, uint64_t* value)

cdef enum:
    RING = 131072             # bytes of each ring, a power of two
    FIFO = 16

cdef enum:                    # registers' bits (PC16550D, table II)
    IER_RX = 1
    IER_THRE = 2
    IER_LINE_STATUS = 4
    IER_MODEM_STATUS = 8
    IIR_NONE = 1
    IIR_MODEM_STATUS = 0
    IIR_THRE = 2
    IIR_RX = 4
    IIR_LINE_STATUS = 6
    IIR_RX_TIMEOUT = 12
    LCR_DLAB = 0x80
    MCR_DTR = 1
    MCR_RTS = 2
    MCR_OUT1 = 4
    MCR_OUT2 = 8
    MCR_LOOP = 16
    LSR_DATA_READY = 1
    LSR_OVERRUN = 2
    LSR_THRE = 0x20
    LSR_TEMT = 0x40
    MSR_CTS = 0x10
    MSR_DSR = 0x20
    MSR_RI = 0x40
    MSR_DCD = 0x80

cdef class Uart(Region):
    cdef IrqLine irq
    cdef pthread_mutex_t mutex
    # Rings: positions run freely, used = head - tail
    cdef uint8_t* rx
    cdef uint8_t* tx
    cdef uint32_t rx_head, rx_tail, tx_head, tx_tail
    cdef uint32_t received              # bytes at rx_tail that are in the receiver's FIFO: the guest sees these
    cdef bint rts_gate
    cdef bint rx_short                  # the host had more than fitted: tell it when there is room
    cdef uint8_t loop[FIFO]             # the receiver's FIFO in loopback mode
    cdef int loop_used
    cdef uint8_t ier, fcr, lcr, mcr, scratch, divisor_low, divisor_high
    cdef uint8_t line_errors            # LSR bits that a read clears
    cdef uint8_t modem_delta            # MSR bits 3:0
    cdef bint thr_empty
    cdef bint thre_pending              # the THRE interrupt is armed
    cdef readonly int tx_fd             # eventfd: readable when guest output waits
    cdef readonly int rx_fd             # eventfd: readable when write() may go on after it fell short
    cdef readonly uint64_t transmitted, delivered, overruns
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil
    cdef uint8_t read_register(self, int reg) noexcept nogil
    cdef void write_register(self, int reg, uint8_t value) noexcept nogil
    cdef void transmit(self, uint8_t value) noexcept nogil
    cdef uint8_t receive(self) noexcept nogil
    cdef void fill(self) noexcept nogil
    cdef void room(self) noexcept nogil
    cdef uint32_t waiting(self) noexcept nogil
    cdef int interrupt(self) noexcept nogil
    cdef uint8_t modem_lines(self) noexcept nogil
    cdef void write_mcr(self, uint8_t value) noexcept nogil
    cdef void write_fcr(self, uint8_t value) noexcept nogil
    cdef void update(self) noexcept nogil
