cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.cache cimport Block, Cache, Site
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.translation cimport Translation
from hostel.cpu.bt.vcpu cimport VCpu
from hostel.cpu.engine cimport Vcpu
from hostel.memory.ram cimport Ram

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)
    long syscall(long number, ...)

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_arch_prctl

cdef extern from "<asm/prctl.h>" nogil:
    enum: ARCH_SET_GS, ARCH_GET_GS

cdef extern from "<signal.h>" nogil:
    enum: SA_SIGINFO, SA_ONSTACK, SEGV_ACCERR, SIGSEGV, SIGFPE, SIGILL, SIGBUS, SIGTRAP, SS_DISABLE, SIG_SETMASK
    ctypedef struct siginfo_t:
        int si_code
        void* si_addr
    ctypedef struct sigset_t:
        pass
    ctypedef struct stack_t:
        void* ss_sp
        int ss_flags
        size_t ss_size
    ctypedef void (*handler_t)(int, siginfo_t*, void*) noexcept nogil
    struct sigaction_t "sigaction":
        handler_t sa_sigaction
        int sa_flags
        sigset_t sa_mask
    int sigaction(int signum, const sigaction_t* act, sigaction_t* old)
    int sigemptyset(sigset_t* set)
    int sigfillset(sigset_t* set)
    int sigaltstack(const stack_t* ss, stack_t* old)

cdef extern from "<ucontext.h>" nogil:
    enum: REG_RIP, REG_R14, REG_R15, REG_EFL, REG_TRAPNO
    ctypedef struct mcontext_t:
        long long gregs[23]
    ctypedef struct ucontext_t:
        mcontext_t uc_mcontext

ctypedef void (*stub_t)() noexcept nogil

cdef enum:
    ALT_STACK = 1 << 16
    PAUSES = 64                  # so many PAUSEs and the processor is given to another thread, if one waits for it

cdef enum:                       # what a trace holds; also bits of `tracing`
    TRACE_BLOCK = 1              # translated: rip, gpa, guest | host << 32 bytes, instructions << 32 | mode
    TRACE_EXIT = 2               # left translated code: rip, address, size or instruction << 32, SK_*
    TRACE_RUN = 4                # left run(): rip, address, data, reason | is_write << 8 | size << 16
    TRACE_FAULT = 8              # an exception: rip, cr2, error, vector | has an error << 8 | soft << 9
    TRACE_IRQ = 16               # an interrupt: rip, 0, 0, vector
    RING = 1 << 15               # entries between two readings

cdef struct Record:
    uint64_t tsc
    uint64_t rip
    uint64_t a
    uint64_t b
    uint64_t c
    uint32_t kind
    uint32_t cpl

cdef enum:
    STEP_KICK = 1                # with EXIT_KICK, for the slow twin
    STEP_DEBUG = 2               # with EXIT_DEBUG, for a debugger

cdef enum:                       # what the run loop does next
    GO_LOOKUP = 0                # find the block of c.rip
    GO_RESUME = 1                # c.host_pc is set
    GO_EXIT = 2                  # return c.io.reason

@cython.no_gc_clear              # __dealloc__ needs ram
cdef class BtEngine:
    cdef Cache cache
    cdef Translation translation # cache.translation
    cdef object kept             # what cache.kept and cache.kept_used point into
    cdef readonly int verify     # every so many blocks one is verified; 0: none
    cdef int unverified          # blocks since the last one that was
    cdef object layout           # verify.Layout
    cdef readonly int verified
    cdef bint broken             # a block was refused: nothing runs any more
    cdef readonly str refusal    # what the verifier found wrong, else ""
    cdef bint due(self) noexcept nogil
    cdef bint proved(self, uint32_t number) noexcept
    cdef readonly list vcpus
    cdef readonly Ram ram

cdef class BtVcpu(Vcpu):
    cdef VCpu* c
    cdef Cache* m
    cdef BtEngine engine
    cdef void* memory
    cdef size_t memory_size
    cdef void* alt_stack
    cdef bint owned              # GS and the signal stack of the calling thread are set
    cdef bint irq_check          # look at the interrupt controller before going on
    cdef bint io_wait            # an exit of the current instruction waits for its answer
    cdef bint mmio_wait
    cdef bint single             # the next block is one instruction long
    cdef Site site               # where translated code left: its own copy, as are the block and a monitor's instruction
    cdef Block block
    cdef Insn insn
    cdef uint32_t generation     # of the cache, when host_pc was found
    cdef uint32_t n_written      # of the cache, when this vCPU's thread last serialized
    cdef bint was_single         # what translated code runs is a block of one instruction
    cdef bint plain              # the next block is to be one without windows
    cdef bint held               # the world is stopped for a split atomic access
    cdef int tracing             # TRACE_*; 0: nothing is written down
    cdef Record* ring            # written by the vCPU's thread, read by another
    cdef volatile uint32_t ring_head   # entries written so far, resp. read
    cdef volatile uint32_t ring_tail
    cdef volatile uint64_t trace_lost
    cdef int one_step            # return after a single instruction: STEP_*
    cdef bint step_irq           # and let interrupts come before it
    cdef public bint catch_exceptions   # run() returns EXIT_KICK instead of delivering an exception
    cdef int run(self) noexcept nogil
    cdef void kick(self) noexcept nogil
    cdef bint runnable(self) noexcept nogil
    cdef void stood_still(self) noexcept nogil
    cdef int attach(self) noexcept nogil
    cdef void detach(self) noexcept nogil
    cdef int loop(self) noexcept nogil
    cdef bint events(self) noexcept nogil
    cdef void relocate(self) noexcept nogil
    cdef void pop_mmio(self) noexcept nogil
    cdef void hold(self) noexcept nogil
    cdef void release(self) noexcept nogil
    cdef int find_block(self) noexcept nogil
    cdef void renew(self) noexcept nogil
    cdef int resume(self, uint32_t host) noexcept nogil
    cdef int follow(self) noexcept nogil
    cdef int handle(self) noexcept nogil
    cdef int memory_access(self) noexcept nogil
    cdef int behind(self, uint8_t* host) noexcept nogil
    cdef int window_access(self) noexcept nogil
    cdef int plainly(self) noexcept nogil
    cdef int staged(self) noexcept nogil
    cdef bint breakpoint(self, uint64_t linear) noexcept nogil
    cdef void watch(self, uint64_t va, uint64_t size, int access) noexcept nogil
    cdef void note(self, int kind, uint64_t a, uint64_t b, uint64_t c) noexcept nogil
    cdef int watch_exit(self) noexcept nogil
    cdef int debug_exit_for(self, int why, uint64_t address) noexcept nogil
    cdef void watch_run(self, uint64_t before, uint64_t after, int access) noexcept nogil
    cdef int refuse(self) noexcept nogil
    cdef int alone(self) noexcept nogil
    cdef int ask(self) noexcept nogil
    cdef int step_done(self) noexcept nogil
    cdef void trap(self) noexcept nogil
    cdef int monitor(self) noexcept nogil
    cdef bint ask_port(self) noexcept nogil
    cdef int string(self) noexcept nogil
