from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.cpu.bt.emit cimport Code
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.translation cimport Address, Operand, Translation

cdef void operand_address(Translation* t, Insn* insn, Address* a) noexcept nogil
cdef void stack_address(Translation* t, int64_t disp, Address* a) noexcept nogil
cdef void guest_reg(Code* e, int r) noexcept nogil
cdef void guest_reg_to(Code* e, int r, int host) noexcept nogil
cdef void guest_pc(Translation* t, int host, uint64_t pc) noexcept nogil
cdef void offset_to_s1(Translation* t, Address* a) noexcept nogil
cdef void address_to_s1(Translation* t, Address* a) noexcept nogil
cdef int atomic(Insn* insn) noexcept nogil
cdef void check_access(Translation* t, int i, Address* a, int size, int access) noexcept nogil
cdef void check_operand(Translation* t, int i, Address* a, int size, int access, Operand* o) noexcept nogil
cdef void check_windows(Translation* t, int i) noexcept nogil
cdef void load(Code* e, int size, int host, Operand* o) noexcept nogil
cdef void write_reg(Code* e, int size, int r, int host) noexcept nogil
