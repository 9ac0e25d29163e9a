from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.vcpu cimport VCpu

# Operands of instructions that the monitor runs itself.
cdef uint64_t effective_address(VCpu* c, const Insn* insn) noexcept nogil     # offset in its segment, truncated to the address size
cdef uint64_t address_mask(int size) noexcept nogil                          # 2, 4 or 8 bytes
cdef void set_register(VCpu* c, int n, uint64_t value, int size) noexcept nogil   # 2: the rest stays; 4: zero-extended
cdef int read_rm(VCpu* c, const Insn* insn, int size, uint64_t* value) noexcept nogil      # zero-extended; 0 or -1
cdef int write_rm(VCpu* c, const Insn* insn, int size, uint64_t value) noexcept nogil
cdef int read_operand(VCpu* c, const Insn* insn, void* buffer, int size) noexcept nogil    # the memory operand
cdef int write_operand(VCpu* c, const Insn* insn, const void* buffer, int size) noexcept nogil
