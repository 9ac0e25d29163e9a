from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.cpu.bt.emit cimport Code
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.translation cimport Translation

cdef void emit_save_flags(Code* e) noexcept nogil
cdef void emit_restore_flags(Code* e) noexcept nogil
cdef void clobber(Translation* t, int live) noexcept nogil
cdef void before_op(Translation* t, int i) noexcept nogil
cdef void after_op(Translation* t, int i) noexcept nogil
cdef void flag_effect(Insn* insn, int* kill, int* mod) noexcept nogil
cdef int looked_at(Translation* t, uint8_t* page, uint64_t pc, int* low, int* high) noexcept nogil
cdef void liveness(Translation* t) noexcept nogil
cdef bint keeps_flags(Translation* t, Insn* insn) noexcept nogil
cdef bint compares(int opcode) noexcept nogil
cdef bint inline_string(Translation* t, Insn* insn) noexcept nogil
cdef bint clobbers_first(Translation* t) noexcept nogil
