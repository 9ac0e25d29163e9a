from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.vcpu cimport VCpu

cdef enum:                 # what execute() asks of the run loop
    SYS_NEXT = 0           # done, rip is advanced
    SYS_EXCEPTION = 1      # an exception is pending; rip is still at the instruction (or after, for traps: exc_soft)
    SYS_EXIT = 2           # c.io holds an exit for run() to return (PIO, HLT); rip is advanced, see io_answer
    SYS_HALT = 3           # HLT: c.halted = 1, rip advanced
    SYS_SHUTDOWN = 4       # triple fault

# Run one K_SYSTEM (K_GATHER, K_PUSHPOPF, K_STICLI, K_ENTER) instruction with all state in *c; vector registers are in
# c.ymm, x87 in c.fx (K_SYSTEM rows that touch x87 are run with c.fx current, and c.fx is loaded again afterwards).
cdef int execute(VCpu* c, const Insn* insn) noexcept nogil
# IN/INS answer: called when run() resumes after a port read exit; finishes the instruction.
cdef int finish_io(VCpu* c) noexcept nogil
# Deliver the pending exception through the IDT (or the real-mode IVT), with contributory/double/triple-fault rules.
cdef int deliver_exception(VCpu* c) noexcept nogil      # SYS_NEXT or SYS_SHUTDOWN
# Deliver an external interrupt or NMI.
cdef int deliver_interrupt(VCpu* c, int vector) noexcept nogil
cdef int deliver_nmi(VCpu* c) noexcept nogil
cdef void reset(VCpu* c) noexcept nogil                 # power-on state (SDM vol. 3, table 10-1), counters kept
cdef void init(VCpu* c) noexcept nogil                  # INIT: reset, then wait_sipi unless BSP
cdef void sipi(VCpu* c, int vector) noexcept nogil
# Recompute c.mode, after anything that it depends on changed. Must be cheap.
cdef void update_mode(VCpu* c) noexcept nogil
cdef int cpuid(VCpu* c, uint32_t leaf, uint32_t subleaf, uint32_t* out) noexcept nogil   # out[4]
cdef bint feature_present(int feature) noexcept nogil   # FE_*: announced to guests on this host
# kvmclock: write the pvclock structure again (at MSR write, migration)
cdef void update_kvmclock(VCpu* c) noexcept nogil
