from hostel.cpu.bt.vcpu cimport VCpu

# AAA, AAS, AAM, AAD, DAA, DAS, SALC (S_*); base is AAM's and AAD's immediate. 0, or -1: #DE is pending.
cdef int bcd(VCpu* c, int what, int base) noexcept nogil
