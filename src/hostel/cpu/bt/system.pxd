from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.vcpu cimport VCpu

# The modules that this one stands on; their names may be cimported from here as well.
# Deliver the pending exception through the IDT (or the real-mode IVT), with contributory/double/triple-fault rules:
# SYS_NEXT or SYS_SHUTDOWN. deliver_interrupt, deliver_nmi: an external interrupt (its vector), an NMI.
# raise_debug: #DB with bits for DR6 (single step: 0x4000, as a trap); raise_soft: INT n and relatives, rip after it.
from hostel.cpu.bt.interrupt cimport deliver_exception, deliver_interrupt, deliver_nmi, raise_debug, raise_soft
# update_mode recomputes c.mode, after anything that it depends on changed; cheap.
from hostel.cpu.bt.segment cimport update_mode
# out[4] = eax ebx ecx edx; feature_present: FE_*, announced to guests on this host
from hostel.cpu.bt.cpuid cimport cpuid, feature_present
# update_kvmclock: write the pvclock structure again (at MSR write, migration)
from hostel.cpu.bt.msr cimport read_msr, update_kvmclock, write_msr
from hostel.cpu.bt.operand cimport effective_address
# reset: power-on state, counters kept; set clock_origin (one value for all vCPUs of the machine) and jump_miss before.
# init: INIT; waits for SIPI unless it is vCPU 0.
from hostel.cpu.bt.control cimport init, reset, sipi

cdef enum:                 # what execute() asks of the run loop
    SYS_NEXT = 0           # done, rip is advanced
    SYS_EXCEPTION = 1      # an exception is pending; rip is still at the instruction (or after, for traps: exc_soft)
    SYS_EXIT = 2           # c.io holds an exit for run() to return (PIO, HLT); rip is advanced, see io_answer
    SYS_HALT = 3           # HLT: c.halted = 1, rip advanced
    SYS_SHUTDOWN = 4       # triple fault

# Run one K_SYSTEM (K_GATHER, K_PUSHPOPF, K_STICLI, K_ENTER) instruction with all state in *c; vector registers are in
# c.ymm, x87 in c.fx (K_SYSTEM rows that touch x87 are run with c.fx current, and c.fx is loaded again afterwards).
# MXCSR is the word at c.fx + 24, nowhere else.
cdef int execute(VCpu* c, const Insn* insn) noexcept nogil
# IN/INS answer: called when run() resumes after a port read exit, with the answer in c.io.data; finishes the
# instruction. SYS_NEXT, or SYS_EXCEPTION (the page that INS stores to has gone).
cdef int finish_io(VCpu* c) noexcept nogil

cdef enum:                 # what the handlers return
    FAULT = -1
    DONE = 0
    JUMPED = 1
    EXITED = 2
    HALTED = 3
