from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.vcpu cimport Segment, VCpu

# Every int function: 0, or -1 with an exception pending.

cdef void update_mode(VCpu* c) noexcept nogil

cdef int raise_selector(VCpu* c, int vector, uint32_t selector) noexcept nogil        # error code = index | TI; returns -1
# The 8 bytes of selector's descriptor; #vector(selector) beyond the table's limit. ext is or'ed into the error code.
cdef int read_descriptor(VCpu* c, uint16_t selector, int vector, int ext, uint64_t* out) noexcept nogil
cdef int read_descriptor_high(VCpu* c, uint16_t selector, uint64_t* out) noexcept nogil   # the upper half of a 16-byte one
cdef void segment_from(Segment* s, uint16_t selector, uint64_t descriptor) noexcept nogil
cdef void set_real_segment(VCpu* c, int seg, uint16_t selector) noexcept nogil
cdef int set_accessed(VCpu* c, uint16_t selector, uint64_t descriptor) noexcept nogil
cdef int load_segment(VCpu* c, int seg, uint16_t selector) noexcept nogil             # MOV sreg, POP sreg, LxS
cdef int load_ldt(VCpu* c, uint16_t selector) noexcept nogil
cdef int load_task(VCpu* c, uint16_t selector) noexcept nogil
# Load CS for a transfer to privilege `cpl` (the selector's RPL is replaced), and rip, after the check of rip
# against the segment. The descriptor has been checked, but for L with D. update_mode is the caller's.
cdef int enter_code(VCpu* c, uint16_t selector, uint64_t descriptor, int cpl, uint64_t rip) noexcept nogil
cdef int check_rip(VCpu* c, uint64_t descriptor, uint64_t rip) noexcept nogil
# SS for an inner stack, from the TSS (legacy): vector #TS
cdef int inner_stack(VCpu* c, int cpl, int ext, Segment* ss, uint64_t* sp) noexcept nogil
cdef int inner_stack64(VCpu* c, int offset, int ext, uint64_t* sp) noexcept nogil
# Store `count` values of `size` bytes below sp of stack segment ss (values[0] lowest) with the rights of `cpl`;
# sp is moved. ss_code64: a flat 64-bit stack. Faults are #SS(error).
cdef int push_frame(VCpu* c, Segment* ss, bint flat64, int cpl, uint64_t* sp, const uint64_t* values, int count, int size, uint32_t error) noexcept nogil
cdef uint64_t stack_mask(VCpu* c) noexcept nogil
cdef void set_sp(VCpu* c, uint64_t sp) noexcept nogil
cdef int pop_values(VCpu* c, uint64_t offset, uint64_t* values, int count, int size) noexcept nogil   # from ss:sp+offset, sp stays
cdef int return_code(VCpu* c, uint16_t selector, uint64_t* descriptor) noexcept nogil    # RETF/IRET: checks of the new CS
cdef int return_stack(VCpu* c, uint16_t selector, int cpl, bint to64, Segment* ss) noexcept nogil
cdef void drop_inner_segments(VCpu* c) noexcept nogil
cdef int jump_far(VCpu* c, uint16_t selector, uint64_t offset, int opsize) noexcept nogil
cdef int call_far(VCpu* c, uint16_t selector, uint64_t offset, int opsize, uint64_t next) noexcept nogil
cdef int return_far(VCpu* c, int opsize, uint32_t drop) noexcept nogil
# LAR, LSL, VERR, VERW: whether the descriptor may be seen; no exceptions but page faults (-1)
cdef int visible(VCpu* c, uint16_t selector, uint64_t* descriptor) noexcept nogil       # 1, 0 or -1
cdef int lar(VCpu* c, uint16_t selector, uint64_t* value) noexcept nogil
cdef int lsl(VCpu* c, uint16_t selector, uint64_t* value) noexcept nogil
cdef int verify(VCpu* c, uint16_t selector, bint write) noexcept nogil
