from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.insn cimport Insn, OpInfo

# Host registers that translated code keeps for itself: those that compilers use least. The guest's own r10 and r11
# live in VCpu.r (`away`).
cdef enum:
    S1 = 10
    S2 = 11

cdef inline bint away(int r) noexcept nogil:
    return r == S1 or r == S2

cdef enum:
    MAX_NOTES = 2048     # a block's jumps and sites

cdef struct Note:
    uint8_t* at          # 4 bytes
    bint site            # they are a site's number; else a distance

cdef struct Code:
    uint8_t* p           # where the next byte goes
    Note* notes          # room for what depends on where the code lies (kept.py), or NULL
    int n_notes

cdef enum:               # conditions, as encoded
    CC_O = 0
    CC_B = 2
    CC_AE = 3
    CC_E = 4
    CC_NE = 5
    CC_BE = 6
    CC_A = 7

cdef void e1(Code* e, int byte) noexcept nogil
cdef void e4(Code* e, uint32_t value) noexcept nogil
cdef void e8(Code* e, uint64_t value) noexcept nogil
cdef void gs_op(Code* e, int w, int opcode, int reg, uint32_t offset) noexcept nogil
cdef void gs_op_index(Code* e, int opcode, int reg, int index, uint32_t offset) noexcept nogil
cdef void gs_load(Code* e, int reg, uint32_t offset) noexcept nogil
cdef void gs_store(Code* e, uint32_t offset, int reg) noexcept nogil
cdef void gs_store_imm32(Code* e, uint32_t offset, uint32_t value) noexcept nogil
cdef void mov_rr(Code* e, int dst, int src) noexcept nogil
cdef void mov_rr32(Code* e, int dst, int src) noexcept nogil
cdef void mov_ri(Code* e, int dst, uint64_t value) noexcept nogil
cdef void mov_site(Code* e, int dst, uint32_t site) noexcept nogil
cdef void lea(Code* e, int size, int dst, int base, int index, int scale, int64_t disp) noexcept nogil
cdef void memory_field(Code* e, int reg, int base, int index, int scale, int64_t disp) noexcept nogil
cdef void op_mem(Code* e, int w, int opcode, int reg, int base, int index, int disp) noexcept nogil
cdef void op_rr(Code* e, int w, int opcode, int reg, int rm) noexcept nogil
cdef void op_ri(Code* e, int w, int digit, int rm, int32_t imm) noexcept nogil
cdef void shift_ri(Code* e, int w, int digit, int rm, int count) noexcept nogil
cdef void lea_rip(Code* e, int dst, uint8_t* target) noexcept nogil
cdef void jmp_to(Code* e, uint8_t* target) noexcept nogil
cdef uint8_t* jmp_hole(Code* e) noexcept nogil
cdef uint8_t* jcc_hole(Code* e, int cc) noexcept nogil
cdef void fill_hole(uint8_t* hole, uint8_t* target) noexcept nogil
cdef void align_link(Code* e, int opcode_bytes) noexcept nogil
cdef void nops(Code* e, int count) noexcept nogil
cdef void native(Code* e, const Insn* insn, const OpInfo* info, int reg, int rm, int vvvv, bint memory, int index, int disp) noexcept nogil
