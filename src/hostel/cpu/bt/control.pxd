from libc.stdint cimport uint64_t
from hostel.cpu.bt.vcpu cimport VCpu

# Control and debug registers, and what resets them. 0, or -1 with an exception pending.
cdef int write_cr0(VCpu* c, uint64_t value) noexcept nogil
cdef int write_cr3(VCpu* c, uint64_t value) noexcept nogil
cdef int write_cr4(VCpu* c, uint64_t value) noexcept nogil
cdef int load_pdptes(VCpu* c, uint64_t cr3) noexcept nogil
cdef int read_cr(VCpu* c, int n, uint64_t* value) noexcept nogil
cdef int write_cr(VCpu* c, int n, uint64_t value) noexcept nogil
cdef int read_dr(VCpu* c, int n, uint64_t* value) noexcept nogil
cdef int write_dr(VCpu* c, int n, uint64_t value) noexcept nogil
cdef int invpcid(VCpu* c, uint64_t kind, const uint64_t* descriptor) noexcept nogil
cdef void reset(VCpu* c) noexcept nogil
cdef void init(VCpu* c) noexcept nogil
cdef void sipi(VCpu* c, int vector) noexcept nogil
