from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.cpu.bt.translation cimport Translation

cdef enum:                       # push_value's source, where it is a constant
    PUSH_IMM = -1
    PUSH_PC = -2

cdef void push_value(Translation* t, int i, int size, int source, uint64_t imm) noexcept nogil
cdef bint fits32(uint64_t imm) noexcept nogil
cdef void gen_push(Translation* t, int i) noexcept nogil
cdef void gen_pop(Translation* t, int i) noexcept nogil
cdef void gen_indirect(Translation* t, int i, bint call) noexcept nogil
cdef void gen_ret(Translation* t, int i) noexcept nogil
cdef void move_stack(Translation* t, int64_t amount) noexcept nogil
cdef void settle_stack(Translation* t) noexcept nogil
