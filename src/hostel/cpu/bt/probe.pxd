from hostel.cpu.bt.vcpu cimport Segment, VCpu
from hostel.memory.ram cimport Ram

cdef class Probe:
    cdef VCpu* c
    cdef void* memory
    cdef Ram ram
    cdef dict fields
    cdef Segment* _segment(self, int n) noexcept
