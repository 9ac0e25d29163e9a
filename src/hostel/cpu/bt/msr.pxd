from libc.stdint cimport uint32_t, uint64_t
from hostel.cpu.bt.vcpu cimport VCpu

cdef int read_msr(VCpu* c, uint32_t index, uint64_t* value) noexcept nogil      # 0, or 1 for #GP(0)
cdef int write_msr(VCpu* c, uint32_t index, uint64_t value) noexcept nogil
cdef uint64_t* mtrr(VCpu* c, uint32_t index) noexcept nogil
cdef void update_kvmclock(VCpu* c) noexcept nogil
cdef void tell_of_stop(VCpu* c) noexcept nogil
cdef void write_wall_clock(VCpu* c, uint64_t gpa) noexcept nogil
cdef uint64_t guest_tsc(VCpu* c) noexcept nogil
cdef uint64_t clock_ns(uint64_t ticks) noexcept nogil           # host TSC ticks as the paravirtual clock counts them
cdef uint64_t clock_ticks(uint64_t ns) noexcept nogil
