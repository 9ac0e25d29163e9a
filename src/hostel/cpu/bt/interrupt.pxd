from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.vcpu cimport VCpu

cdef int deliver_exception(VCpu* c) noexcept nogil
cdef int deliver_interrupt(VCpu* c, int vector) noexcept nogil
cdef int deliver_nmi(VCpu* c) noexcept nogil
cdef void raise_debug(VCpu* c, uint64_t dr6, bint trap) noexcept nogil     # #DB; dr6: the bits to set (BS 0x4000, BD 0x2000 ...)
cdef void raise_soft(VCpu* c, int vector, int length) noexcept nogil       # INT n ...: rip is after the instruction of `length` bytes

# One try at delivery. soft: INT n, INT3, INTO (gate DPL counts, no EXT). 0, or -1 with the fault in delivering it pending.
cdef int interrupt(VCpu* c, int vector, bint soft, bint has_error, uint32_t error, bint resume) noexcept nogil

cdef int iret(VCpu* c, int opsize) noexcept nogil
cdef void set_flags(VCpu* c, uint64_t value, uint64_t mask) noexcept nogil   # in EFLAGS; keeps bit 1, drops RF; update_mode is the caller's
cdef int syscall(VCpu* c, uint64_t next) noexcept nogil
cdef int sysret(VCpu* c, int opsize) noexcept nogil
cdef int sysenter(VCpu* c) noexcept nogil
cdef int sysexit(VCpu* c, int opsize) noexcept nogil
