from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.cpu.bt.emit cimport Code
from hostel.cpu.bt.translation cimport Translation

cdef void string_access(Translation* t, int i, int reg, int seg, int size, int access) noexcept nogil
cdef void string_room(Translation* t, int shift, uint32_t site) noexcept nogil
cdef void gen_string(Translation* t, int i) noexcept nogil
cdef void flags_image(Translation* t) noexcept nogil
cdef void to_ring(Translation* t, int which, uint32_t mode) noexcept nogil
cdef void gen_syscall(Translation* t, int i) noexcept nogil
cdef void gen_sysret(Translation* t, int i) noexcept nogil
cdef void gen_pushf(Translation* t, int i) noexcept nogil
cdef void gen_base(Translation* t, int i, int what) noexcept nogil
cdef void gs_imm(Code* e, int opcode, int digit, uint32_t offset, uint32_t imm) noexcept nogil
cdef bint gen_kernel(Translation* t, int i) noexcept nogil
