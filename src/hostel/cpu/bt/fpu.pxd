from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.vcpu cimport VCpu

# 0, or -1 with an exception pending
cdef int fxsave(VCpu* c, const Insn* insn) noexcept nogil
cdef int fxrstor(VCpu* c, const Insn* insn) noexcept nogil
cdef int xsave(VCpu* c, const Insn* insn, int form) noexcept nogil         # S_XSAVE, S_XSAVEOPT, S_XSAVEC
cdef int xrstor(VCpu* c, const Insn* insn) noexcept nogil
cdef int fnstenv(VCpu* c, const Insn* insn, bint registers) noexcept nogil     # FNSTENV, or FNSAVE
cdef uint64_t xinuse(VCpu* c) noexcept nogil
cdef int xgetbv(VCpu* c) noexcept nogil
cdef int xsetbv(VCpu* c) noexcept nogil
cdef int gather(VCpu* c, const Insn* insn, int index_size, int size) noexcept nogil
cdef int maskmov_load(VCpu* c, const Insn* insn, int size) noexcept nogil
cdef int maskmov_store(VCpu* c, const Insn* insn, int size) noexcept nogil
cdef int maskmov_bytes(VCpu* c, const Insn* insn, bint mmx) noexcept nogil
cdef void reset_fpu(VCpu* c) noexcept nogil                                # power-on
cdef void init_x87(VCpu* c) noexcept nogil                                 # FNINIT's state
