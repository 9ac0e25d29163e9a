from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.cache cimport Cache
from hostel.cpu.bt.emit cimport Code
from hostel.cpu.bt.insn cimport Insn, OpInfo
from hostel.cpu.bt.vcpu cimport VCpu

cdef enum:
    SECOND_ROOM = 64             # bytes that the second TLB's look-up is sure to leave of the page
    MAX_INSNS = 48               # guest instructions a block
    MAX_COLD = 256               # pieces of cold code: up to four an instruction, and the windows'
    MAX_FOLLOW = 32              # no jump is followed behind so many instructions
    MAX_LOOP = 12                # instructions of a loop that is unrolled where it isn't the block's start
    AHEAD = 6                    # so many instructions behind an exit are looked at for what they do to the flags
    AHEAD_SPAN = 1024            # bytes that a block and what it has looked at may lie apart
    FLAGS_HOST = 0               # the guest's arithmetic flags are in the host's
    FLAGS_MEM = 1                # in VCpu.flags_saved (or dead)
    EA_PLAIN = 0
    EA_BT = 1                    # a bit number in a register moves the address
    EA_XLAT = 2

cdef enum:
    MAX_WINDOWS = 24             # checked ranges a block
    WINDOW_SLOTS = 8             # of which so many are in use at a time: VCpu.window
    WINDOW_SPAN = 512            # bytes that a window covers at most

# How to compute a linear address.
cdef struct Address:
    int64_t disp
    uint64_t rip                 # pc of the next instruction, for RIP-relative
    uint8_t kind
    uint8_t base
    uint8_t index
    uint8_t scale
    uint8_t seg
    uint8_t size                 # address size: 2, 4, 8
    uint8_t bit_reg
    uint8_t opsize

# An operand in the host's memory: [base + index + disp].
cdef struct Operand:
    int base
    int index                    # REG_NONE: none
    int disp

# What a register holds, for windows: a value that the block found or computed, plus a constant.
cdef struct Value:
    uint32_t number              # 0: none (no register)
    int64_t offset

# The linear address of an operand: the sum of two values and a constant. Equal but for the offset: a known distance apart.
cdef struct Place:
    uint32_t base
    uint32_t index
    uint8_t scale
    uint8_t seg                  # FS, GS, or 0 for a segment whose base is 0
    uint16_t epoch               # counts instructions that may change anything
    int64_t offset

# A range of memory that is checked once and then accessed by several instructions, see windows.py
cdef struct Window:
    Place place                  # of its first byte
    Address address              # the same, as registers give it before instruction `point`
    int point                    # checked before that instruction
    int first                    # first and last instruction that use it
    int last
    int slot                     # number in VCpu.window, where what s1 had is kept (address._operand)
    int span                     # bytes
    int access
    int delta                    # the first access: from the window's start, its bytes, its kind
    int size
    int first_access
    bint second                  # it is its instruction's second: what the first raises comes first
    bint greedy                  # a write in it may be spared by a branch
    bint stack
    bint kept                    # that is so, as s1 is used for other things in between

cdef enum:
    COLD_WINDOW = 5              # a window's check that failed
    COLD_MEM = 1                 # an access that missed
    COLD_EXIT = 2                # a direct jump that isn't linked
    COLD_SITE = 4                # anything that leaves at `site`
    COLD_CROSS = 3               # a direct jump to another page, from a conditional branch

cdef struct Cold:                # code to be emitted behind the block
    int kind
    uint8_t* hole
    Address address
    uint32_t site
    int flags
    uint64_t target
    bint backward

cdef struct Offsets:             # of VCpu's fields from GS
    uint32_t r[16]
    uint32_t poll
    uint32_t pc_page
    uint32_t flags_saved
    uint32_t scratch
    uint32_t n_insns
    uint32_t count_spill
    uint32_t site
    uint32_t target
    uint32_t host_pc
    uint32_t host_rsp
    uint32_t ymm
    uint32_t fx
    uint32_t seg_base[6]
    uint32_t window
    uint32_t tag_r[3]
    uint32_t tag_w[3]
    uint32_t distance[3]
    uint32_t jump_cache[3]
    uint32_t jump_pc
    uint32_t tsc_offset
    uint32_t tsc_aux
    uint32_t eflags
    uint32_t mode
    uint32_t cr4
    uint32_t cr[5]               # CR1: unused
    uint32_t table_mode[3]
    uint32_t irq_wait
    uint32_t pauses
    uint32_t tlb_key[3]
    uint32_t second_va
    uint32_t second_access[2]    # second_read, second_write
    uint32_t second_page
    uint32_t behind, code_run
    uint32_t second_pc
    uint32_t second_key
    uint32_t second_now[3]
    uint32_t second_host
    uint32_t selector[6]
    uint32_t kernel_gs_base
    uint32_t efer
    uint32_t star
    uint32_t lstar
    uint32_t sfmask
    uint32_t cpl
    uint32_t fast_star[2]
    uint32_t fast_cs[2]
    uint32_t fast_ss[2]

cdef struct Translation:         # one block in the making
    Code e
    Cache* m
    uint32_t block
    uint32_t mode
    int table
    bint single
    bint code64
    bint pic                     # it must run at any address of its page
    bint modest                  # its windows ask for no writes that a branch may spare
    int stack_size
    uint64_t first_pc
    uint64_t page_offset
    int flags
    int n
    Insn insns[MAX_INSNS]
    uint32_t starts[MAX_INSNS]   # where the translation of each begins, in the code memory
    uint16_t live[MAX_INSNS + 1] # flags live before each instruction
    uint16_t exits[MAX_INSNS]    # flags that may be looked at where this conditional branch leaves the block
    bint follows[MAX_INSNS]      # the block goes on at the target of this jump, taken
    uint64_t next_pc             # what comes behind the last instruction
    int head                     # where it last came to its own start
    bint next_crosses            # what follows the last instruction crosses into the next page
    Value values[MAX_INSNS + 1][16]  # what the registers hold before each instruction
    uint16_t epochs[MAX_INSNS + 1]
    uint32_t n_values
    Window windows[MAX_WINDOWS]
    int n_windows
    bint polled                  # what has been translated so far polls
    int64_t moved                # what the guest's rsp is to be moved by before anything looks at it
    int in_s1                    # the window that s1 is ready for, or -1
    Cold cold[MAX_COLD]
    int n_cold
    bint done                    # control does not flow past the last instruction
