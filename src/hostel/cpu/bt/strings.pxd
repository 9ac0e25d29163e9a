from libc.stdint cimport uint64_t
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.vcpu cimport VCpu

cdef enum:
    STRING_DONE = 0
    STRING_MORE = 1
    STRING_ASK = 2
    STRING_FAULT = 3

cdef uint64_t mask_of(int size) noexcept nogil
cdef void set_reg(VCpu* c, int r, int size, uint64_t value) noexcept nogil
cdef void compare(VCpu* c, uint64_t a, uint64_t b, int size) noexcept nogil
cdef int run_string(VCpu* c, const Insn* insn) noexcept nogil
