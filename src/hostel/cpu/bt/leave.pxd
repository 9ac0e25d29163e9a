from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.cpu.bt.translation cimport Translation

cdef void leave(Translation* t, uint32_t site) noexcept nogil
cdef void poll(Translation* t, int kind, uint64_t pc) noexcept nogil
cdef uint64_t cut(Translation* t, uint64_t pc, int opsize) noexcept nogil
cdef bint same_page(Translation* t, uint64_t target) noexcept nogil
cdef void exit_to(Translation* t, uint64_t target, bint backward, bint far) noexcept nogil
cdef void jump_s1(Translation* t, int tlb) noexcept nogil
cdef void jump_far(Translation* t, int tlb, uint64_t target) noexcept nogil
cdef void exit_s1(Translation* t) noexcept nogil
cdef void side_exit(Translation* t, uint8_t* hole, uint64_t target) noexcept nogil
cdef void cold_site(Translation* t, int cc, uint32_t site) noexcept nogil
cdef uint32_t monitor_site(Translation* t, int i) noexcept nogil
cdef void cold_code(Translation* t) noexcept nogil
