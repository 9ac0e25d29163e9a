from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.insn cimport Insn
from hostel.cpu.bt.vcpu cimport MODE_PIC, VCpu
from hostel.memory.ram cimport Slot

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    enum: PTHREAD_MUTEX_RECURSIVE
    int pthread_mutexattr_init(pthread_mutexattr_t* a)
    int pthread_mutexattr_settype(pthread_mutexattr_t* a, int kind)
    int pthread_mutex_init(pthread_mutex_t* m, pthread_mutexattr_t* a)
    int pthread_mutex_lock(pthread_mutex_t* m)
    int pthread_mutex_trylock(pthread_mutex_t* m)
    int pthread_mutex_unlock(pthread_mutex_t* m)

cdef extern from "immintrin.h" nogil:
    void pause "_mm_pause"()

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef extern from "<sys/mman.h>" nogil:
    enum: MADV_HUGEPAGE, MAP_POPULATE, MREMAP_MAYMOVE, MREMAP_FIXED
    int madvise(void* address, size_t length, int advice)
    void* mremap(void* old, size_t old_size, size_t new_size, int flags, void* at)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_membarrier

cdef extern from "<linux/membarrier.h>" nogil:
    enum: MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED

cdef extern from * nogil:
    void fence "__sync_synchronize"()
    int test_and_set "__sync_lock_test_and_set"(int* word, int value)
    void clear "__sync_lock_release"(int* word)

cdef extern from "<stdlib.h>" nogil:
    void abort()

cdef enum:
    MODE_SINGLE = 0x8000         # key of blocks of one instruction that return to the monitor (the slow twin)

cdef enum:                       # Site.kind: why translated code left
    SK_MISS = 0                  # jump cache miss; the target is in s1
    SK_LINK = 1                  # direct jump to pc that isn't linked yet; host = its rel32
    SK_MEM = 2                   # TLB miss at the access of pc; s1 = linear address; host = where to check again
    SK_SYS = 3                   # instruction number `extra` of the pool is to be run by the monitor; host = what follows
    SK_RAISE = 4                 # exception `extra` at pc
    SK_POLL = 5                  # somebody kicked: go on at pc
    SK_POLL_S1 = 6               # the same, at the address in s1
    SK_FAULT = 7                 # the host's processor refused the instruction at pc
    SK_STEP = 8                  # the one instruction is done; next is pc
    SK_STEP_S1 = 9
    SK_PLAIN = 10                # a window at pc that crosses a page: on without windows; host = the rel32 that led here

cdef enum:                       # Site.extra of SK_MEM
    SITE_ATOMIC = 1              # the access is locked
    SITE_STRING = 2              # what follows may write up to the page's end
    SITE_ALIGNED = 4             # #GP when the address isn't a multiple of the size, before anything else
    SITE_STACK = 8               # relative to SS: #SS, where others get #GP
    SITE_EARLY = 16              # a window's check before the instruction that needs it: no reason for an exception
    SITE_GREEDY = 32             # a window's that asks to write what a branch may spare
    SITE_DISTANCE = 64           # behind the check s1 is the host's address less the guest's

cdef enum:                       # Site.extra of SK_POLL
    POLL_PAUSE = 1               # nobody kicked: PAUSE

cdef struct Site:
    uint64_t pc
    uint32_t host                # offset in the code memory
    uint32_t block
    uint32_t extra
    uint16_t size                # SK_MEM: bytes of the access
    uint8_t kind
    uint8_t access               # SK_MEM: ACCESS_*; SK_LINK: 1 = flags in memory form there
    uint16_t span                # SK_MEM of a window: its bytes, else 0
    uint16_t delta               # from its start (s1) to the access
    uint8_t window_access
    uint8_t check                # SK_MEM: bytes from `host` to behind the check

cdef struct Fault:               # host instructions that may fault, in order of address
    uint32_t host
    uint32_t site
    uint32_t flags_in_host

cdef struct Block:
    uint64_t gpa                 # what is looked at to find and enter it comes first, in one of the host's cache lines
    uint64_t pc                  # with MODE_PIC: as if the page were at PIC_PAGE
    uint32_t mode
    uint32_t next_hash
    uint64_t gpa2                # second page (its address) when the only instruction crosses into it, else 1
    uint32_t pad                 # offsets in the code memory
    uint32_t entry_host
    uint32_t entry_mem
    uint32_t start
    uint8_t dead
    uint16_t insns
    uint32_t size                # guest bytes, from `low` on
    uint64_t low                 # its lowest byte: jumps are followed within the page
    uint64_t first_pc            # where it was when it was translated
    uint32_t next_page
    uint32_t next_page2
    uint32_t cold                # its rarely run part
    uint32_t cold_host
    uint32_t cold_mem
    uint32_t end
    uint64_t unused[4]           # 128 bytes

cdef enum:
    MAX_BLOCKS = 1 << 19
    MAX_SITES = 1 << 22
    MAX_FAULTS = 1 << 20
    MAX_POOL = 1 << 18
    MAX_VCPUS = 16
    JUMP_BYTES = 5               # of each entry of a block, for the jump that it is when the block is dead
    WRITES_BORNE = 16            # so many writes to a page with code drop the blocks that they meet, one more drops all
    DROP_SHIFT = 12              # Cache.written: writes below, drops above, each of which doubles what is borne
    MOST_DROPS = 8
    WISHES_ROOM = 1 << 20        # bytes of wishes (kept.py) that are told at once
    GREED_BORNE = 32             # so many such that weren't writable, and the page's blocks are made without
    MAX_BREAKS = 256             # a debugger's breakpoints
    LOCK_TRIES = 1000            # with a PAUSE between them: some 20 microseconds
    CHUNK = 1 << 14              # is copied at the first write to code memory that is shared with other processes: twice
                                 # as much takes 1.5 times as long, and children's writes are few and far between

# The translations of one machine, shared by its vCPUs. Written under `lock`; read without.
cdef struct Cache:
    uint8_t* code                # code memory as it is written; all pointers to code but those given out by `text` are to here
    uint8_t* run                 # the same memory as it runs
    uint64_t code_size
    uint8_t* large               # up to here, resp. large_cold, it has been asked to lie in large pages
    uint8_t* large_cold
    uint8_t* start               # first byte after the stubs
    uint8_t* free                # the next block goes here
    uint8_t* cold                # from here on: what blocks rarely run, kept apart so that the rest lies dense
    uint8_t* cold_free
    Block* blocks                # number 0 is unused
    uint32_t n_blocks
    Site* sites
    uint32_t n_sites
    uint32_t* behind             # by site of kind SK_MEM: what follows its check, as an offset in the code memory
    Fault* faults
    uint32_t n_faults
    Insn* pool
    uint32_t n_pool
    uint32_t* hash
    uint32_t hash_mask           # its entries, a power of 2, less one
    uint32_t* pages[16]          # per slot, per page: first block
    uint16_t* written[16]        # per slot, per page: writes since it last had no blocks, and how often all were dropped
    uint8_t* greed[16]           # per slot, per page: SITE_GREEDY's that weren't writable, up to GREED_BORNE
    Slot* slots
    int n_slots
    uint8_t* enter
    uint8_t* serialize           # a serializing instruction
    uint8_t* leave_mem
    uint8_t* leave_host
    uint8_t* leave_site_mem      # the same for blocks: the site is in s2
    uint8_t* leave_site_host
    uint8_t* miss[3]             # by table: the pad isn't the one of the target in s1; the flags are put away
    uint8_t* second_tlb[12]      # a miss in a TLB, site in s2: look in the second one; 2 * table + (1 for writes), 6 more
                                 # for SITE_DISTANCE
    uint8_t* look_up             # leave to find the block of the address in s1
    uint8_t* fx_save
    uint8_t* fx_read             # the same, but the registers stay the guest's
    uint8_t* fx_restore
    pthread_mutex_t lock
    VCpu* vcpus[MAX_VCPUS]
    int n_vcpus
    volatile int world_stop
    bint fences                  # the host has no membarrier(2): a vCPU that is alone fences, as others do
    void* translation            # a Translation: the block in the making; `lock` is held
    uint32_t generation
    uint64_t pic_from            # programs' 64-bit code from this address on has blocks of MODE_PIC
    volatile uint32_t n_written  # how often code was written that some processor may have fetched before
    uint64_t n_flushes
    uint64_t n_invalidated
    uint64_t total_blocks
    uint64_t total_insns
    const uint8_t* kept          # translations of earlier runs, or NULL: kept.py
    uint8_t* kept_used           # a bit for each place of its table: it was adopted
    uint64_t n_adopted
    uint8_t* wishes              # what was translated, for who keeps it, or NULL
    size_t wishes_size
    uint64_t wishes_told         # bytes that were written to the file
    int wishes_fd                # -1: no more
    uint64_t breaks[MAX_BREAKS]  # linear addresses at which no block goes on and none begins: a debugger waits there
    int n_breaks
    uint8_t* frozen              # by CHUNK: 1: shared with other processes, `code` is read-only there. NULL: never was any
    size_t spare[4]              # from, to, from, to: of that, the two stretches that nothing lies in; offsets
    size_t thawed[2]             # all that isn't frozen lies between these offsets
    uint64_t n_copied            # chunks of its own that a process made of shared ones
    Cache* next_frozen

# Where a place in the code memory runs
cdef inline uint64_t text(const Cache* m, const uint8_t* p) noexcept nogil:
    return <uint64_t>(m.run + (p - m.code))

cdef enum:
    PIC_PAGE = 0x400000000000    # far from 0, so that targets before the page compare as they should (not 1 << 46: C's int)

# The address by which a block knows itself
cdef inline uint64_t block_pc(uint64_t pc, uint32_t mode) noexcept nogil:
    return <uint64_t>PIC_PAGE | (pc & 0xFFF) if mode & MODE_PIC else pc

cdef int setup(Cache* m) noexcept nogil
cdef void teardown(Cache* m) noexcept nogil
cdef uint32_t find(Cache* m, uint64_t gpa, uint64_t pc, uint32_t mode) noexcept nogil
cdef uint32_t add_site(Cache* m, int kind, uint64_t pc, uint32_t block) noexcept nogil
cdef void add_fault(Cache* m, uint8_t* host, uint32_t site, bint flags_in_host) noexcept nogil
cdef Fault* find_fault(Cache* m, uint32_t host) noexcept nogil
cdef bint is_break(Cache* m, uint64_t linear) noexcept nogil
cdef bint full(Cache* m) noexcept nogil
cdef void enlarge(Cache* m) noexcept nogil
cdef void flush(Cache* m) noexcept nogil
cdef int freeze(Cache* m) noexcept nogil
cdef void forked(Cache* m, bint child) noexcept nogil
cdef bint unshare(const void* address) noexcept nogil
# The slot of that address, and the number of its page there; -1: there is no memory
cdef int find_page(Cache* m, uint64_t gpa, uint64_t* page) noexcept nogil
cdef void enlist(Cache* m, uint32_t number) noexcept nogil
cdef bint is_modest(Cache* m, uint64_t gpa) noexcept nogil
cdef void bear_greed(Cache* m, VCpu* me, const Block* block) noexcept nogil
cdef bint invalidate(Cache* m, VCpu* me, uint64_t gpa, uint64_t size) noexcept nogil
cdef void lock(Cache* m) noexcept nogil
cdef void unlock(Cache* m) noexcept nogil
cdef void stop_world(Cache* m, VCpu* me) noexcept nogil
cdef void resume_world(Cache* m) noexcept nogil
