from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.cpu.bt.cache cimport Cache
from hostel.cpu.bt.emit cimport Code
from hostel.cpu.bt.translation cimport Offsets
from hostel.cpu.bt.vcpu cimport VCpu

cdef Offsets off
cdef void prepare(Cache* m, VCpu* c) noexcept nogil
cdef void second_jump(Code* e, Cache* m, int tlb) noexcept nogil
cdef void second_tlb(Code* e, Cache* m, int tlb, bint write, bint distance) noexcept nogil
cdef void fx(Code* e, int digit) noexcept nogil
cdef void vectors(Code* e, bint store, int first) noexcept nogil
cdef void align(Code* e, int n) noexcept nogil
