from libc.stdint cimport uint32_t
from hostel.cpu.bt.vcpu cimport VCpu

cdef extern from "cpuid.h" nogil:
    int __get_cpuid_count(uint32_t leaf, uint32_t subleaf, uint32_t* a, uint32_t* b, uint32_t* c, uint32_t* d)

cdef int cpuid(VCpu* c, uint32_t leaf, uint32_t subleaf, uint32_t* out) noexcept nogil   # out: eax ebx ecx edx; 0
cdef bint feature_present(int feature) noexcept nogil
cdef uint32_t xcr0_allowed         # XCR0 bits that XSETBV accepts
cdef bint rdseed_by_rdrand         # the host has no RDSEED: a guest's is to be emitted as RDRAND
