from libc.stdint cimport uint64_t

from hostel.board.apic cimport LocalApic
from hostel.bus.space cimport Space
from hostel.cpu.engine cimport Vcpu

cdef enum:
    REASONS = 8

cdef extern from "<string.h>" nogil:
    void* memset(void*, int, size_t)

# Runs one vCPU on the thread that calls run().
cdef class Runner:
    cdef readonly Vcpu vcpu
    cdef LocalApic apic
    cdef Space pio
    cdef Space mmio
    cdef uint64_t exits[REASONS]
    cdef uint64_t lapic_accesses
    cdef int loop(self) noexcept nogil
    cdef void answer(self) noexcept nogil
