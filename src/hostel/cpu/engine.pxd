from hostel.bus.space cimport Space
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.time cimport clockid_t, itimerspec

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_futex, SYS_gettid

cdef extern from "<linux/futex.h>" nogil:
    enum: FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE

cdef extern from * nogil:
    int32_t atomic_add "__sync_add_and_fetch"(volatile int32_t* word, int32_t n)

# glibc's layouts. posix.signal's sigevent has no thread id, its sigaction no three-argument handler
cdef extern from "<signal.h>" nogil:
    enum: SIGRTMIN, SIGEV_THREAD_ID, SA_SIGINFO, SA_ONSTACK, SA_RESTART
    ctypedef void* timer_t
    ctypedef struct siginfo_t:
        void* value "si_value.sival_ptr"
    ctypedef struct sigset_t:
        pass
    struct sigevent:
        int sigev_notify
        int sigev_signo
        void* value "sigev_value.sival_ptr"
        int thread "_sigev_un._tid"
    ctypedef void (*sigaction_handler)(int, siginfo_t*, void*) noexcept nogil
    struct sigaction_t "sigaction":
        sigaction_handler sa_sigaction
        int sa_flags
        sigset_t sa_mask
    int sigaction(int signum, const sigaction_t* act, sigaction_t* old)
    int sigfillset(sigset_t* set)

cdef extern from "<time.h>" nogil:
    enum: TIMER_ABSTIME
    int timer_create(clockid_t clock, sigevent* event, timer_t* timer)
    int timer_settime(timer_t timer, int flags, const itimerspec* value, itimerspec* old)
    int timer_delete(timer_t timer)

# What counts as having been stopped: longer than a busy host lets a thread wait, shorter than guests' watchdogs do.
cdef enum:
    STOOD_STILL_NS = 1000000000

# Why run() returned. An exit is data: whoever runs the vCPU answers it and calls run() again.
cdef enum ExitReason:
    EXIT_NONE = 0
    EXIT_PIO = 1          # port I/O: exit.address = port, size 1/2/4, is_write, data
    EXIT_MMIO = 2         # memory-mapped I/O: exit.address = guest-physical, size 1..8, is_write, data
    EXIT_HLT = 3          # halted, or waiting for SIPI: wait() until runnable()
    EXIT_SHUTDOWN = 4     # triple fault
    EXIT_KICK = 5         # kick() was called with stop_request set
    EXIT_ERROR = 6        # the engine cannot go on (its bug): see error()
    EXIT_DEBUG = 7        # the debugger's: exit.data is a DEBUG_*, exit.address the breakpoint's or watchpoint's

cdef enum:                # why EXIT_DEBUG; also what a watchpoint looks for, as bits
    DEBUG_WRITE = 1
    DEBUG_READ = 2
    DEBUG_ACCESS = 3      # both
    DEBUG_BREAK = 4       # before the instruction at a breakpoint
    DEBUG_STEP = 5        # one instruction is done

cdef struct Exit:
    int reason
    int size
    bint is_write
    uint64_t address
    uint64_t data         # what is written; the answer to a read goes here before run() is called again

# What a vCPU asks of its local APIC; board/apic implements it. Every method may run without the GIL.
cdef class InterruptController:
    # the highest-priority vector that may be delivered now (above TPR/PPR; ExtINT from the 8259 too), or -1
    cdef int pending(self) noexcept nogil
    # the INTA cycle: takes what pending() told, moves IRR to ISR, returns the vector, or -1
    cdef int acknowledge(self) noexcept nogil
    # MSRs 0x1B, 0x6E0 and 0x800..0x8FF; 0, or 1 for #GP
    cdef int read_msr(self, uint32_t index, uint64_t* value) noexcept nogil
    cdef int write_msr(self, uint32_t index, uint64_t value) noexcept nogil
    # TPR bits 7:4, as CR8 holds them
    cdef int read_cr8(self) noexcept nogil
    cdef void write_cr8(self, int value) noexcept nogil
    # INIT resets the APIC's registers but for its ID
    cdef void reset(self) noexcept nogil
    # guest TSC = host TSC + tsc_offset, for the TSC-deadline timer; the engine calls it when the guest moves its TSC
    cdef readonly int64_t tsc_offset
    cdef void set_tsc_offset(self, int64_t offset) noexcept nogil

# One virtual CPU, whatever the engine. The thread that calls run() first owns the vCPU.
cdef class Vcpu:
    cdef Exit exit
    cdef readonly int index
    cdef InterruptController apic
    cdef public Space ports           # whose native regions the engine may ask without an exit; None: it exits always
    cdef volatile int32_t wake_word   # futex: counts wake-ups
    cdef int32_t seen                 # wake_word when the last wait() returned; owner's thread
    cdef volatile int32_t sleeping    # whether kick() must call the kernel
    cdef int64_t alarm_ns             # the alarm as it was last set; kept across detach() and attach()
    cdef volatile int stop_request    # set it and kick(): run() returns EXIT_KICK
    cdef volatile int nmi_request
    cdef volatile int init_request
    cdef volatile int sipi_request    # 0x100 | vector
    cdef void* timer                  # POSIX timer that interrupts the owner's thread
    cdef bint timer_made
    cdef readonly uint64_t stops      # how often stood_still() was called
    cdef int run(self) noexcept nogil               # an ExitReason; details in self.exit
    cdef void kick(self) noexcept nogil             # any thread, async-signal-safe: look at requests and interrupts soon
    cdef bint runnable(self) noexcept nogil         # whether an event would end EXIT_HLT
    cdef void wait(self) noexcept nogil             # sleep until kick(); returns at once if one came since run()
    # its timer rang late by STOOD_STILL_NS or more: the host had stopped it; the owner's thread, before the interrupt
    cdef void stood_still(self) noexcept nogil
    cdef int attach(self) noexcept nogil            # the calling thread becomes the owner
    cdef void detach(self) noexcept nogil
    cdef void set_alarm(self, int64_t deadline_ns) noexcept nogil   # CLOCK_MONOTONIC; kick() then; 0 disarms; owner's thread or any
