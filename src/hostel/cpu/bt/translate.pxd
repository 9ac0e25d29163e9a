from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from hostel.cpu.bt.cache cimport Cache
from hostel.cpu.bt.insn cimport Insn, OpInfo
from hostel.cpu.bt.translation cimport Translation
from hostel.cpu.bt.vcpu cimport VCpu
from hostel.memory.ram cimport Slot

cdef uint32_t translate(Cache* m, VCpu* c, uint64_t gpa, uint32_t mode) noexcept nogil
cdef int memory_size(Insn* insn, OpInfo* info) noexcept nogil
cdef bint may_fault(Insn* insn, OpInfo* info) noexcept nogil
cdef void note_fault(Translation* t, Insn* insn, OpInfo* info) noexcept nogil
cdef bint reads(const OpInfo* info, int reg, int rm, int vvvv, int r) noexcept nogil
cdef bint writes(const OpInfo* info, int reg, int rm, int vvvv, int r) noexcept nogil
cdef void gen_native(Translation* t, int i) noexcept nogil
cdef void gen_lea(Translation* t, Insn* insn) noexcept nogil
cdef uint64_t branch(Translation* t, Insn* insn) noexcept nogil
cdef void gen_loop(Translation* t, int i) noexcept nogil
cdef void gen_bt(Translation* t, int i) noexcept nogil
cdef void gen_monitor(Translation* t, int i) noexcept nogil
cdef void gen_pause(Translation* t, int i) noexcept nogil
cdef void gen_raise(Translation* t, int i, int vector) noexcept nogil
cdef int refused(Translation* t, Insn* insn, OpInfo* info) noexcept nogil
cdef void generate(Translation* t, int i) noexcept nogil
cdef bint ends_block(OpInfo* info) noexcept nogil
cdef bint ends_flow(Insn* insn) noexcept nogil
cdef void landing_pad(Translation* t, uint64_t pc) noexcept nogil
cdef bint may_leave(Insn* insn) noexcept nogil
cdef void count(Translation* t, int i) noexcept nogil
cdef void keep_page(Translation* t, uint64_t pc) noexcept nogil
cdef bint follow(Translation* t, Insn* insn) noexcept nogil
cdef void exits(Translation* t, uint8_t* page, bint one_page, int* low, int* high) noexcept nogil
cdef Slot* find_slot(Cache* m, uint64_t gpa) noexcept nogil
cdef void fetch(Cache* m, uint64_t gpa, uint8_t* buffer, int size) noexcept nogil
cdef void protect(Cache* m, VCpu* me, uint64_t gpa) noexcept nogil
