from libc.stdint cimport uint8_t, uint64_t
from hostel.cpu.bt.vcpu cimport VCpu

cdef int device_read(VCpu* c, uint64_t gpa, uint8_t* to, int size) noexcept nogil
cdef void device_write(VCpu* c, uint64_t gpa, uint8_t* source, int size) noexcept nogil
cdef int read_pieces(VCpu* c, uint64_t va, uint8_t* to, int size, int tlb) noexcept nogil
cdef int writable(VCpu* c, uint64_t va, int size, int tlb) noexcept nogil
cdef int write_pieces(VCpu* c, uint64_t va, uint8_t* source, int size, int tlb) noexcept nogil
cdef void peek(VCpu* c, uint64_t va, uint8_t* to, int size, int tlb) noexcept nogil
cdef uint8_t* stage(VCpu* c, uint64_t va) noexcept nogil
