from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.engine cimport Exit
from hostel.memory.ram cimport Slot
from hostel.cpu.bt.insn cimport Insn

cdef enum:
    TLB_BITS = 20             # of an address its lower 32 bits, shifted
    TLB_SIZE = 1 << 20        # entries a table,
    TLB_MOST = 65536          # of which so many are in use at a time: a flush, and protect_page, look at each
    ITLB_SIZE = 256
    SECOND_SIZE = 1024
    JUMP_SIZE = 65536         # entries of a jump cache: by the target's low 16 bits, which MOVZX takes without the flags
    JUMP_SECOND = 8192        # entries behind it

cdef enum:                    # TLB tables: what may be touched depends on who asks
    TLB_USER = 0              # CPL 3
    TLB_KERNEL = 1            # CPL < 3, supervisor pages only (SMAP on, AC = 0)
    TLB_KERNEL_AC = 2         # CPL < 3, all pages (SMAP off, or AC = 1)
    TLB_COUNT = 3
    SPACES = 8                # PCIDs of which something is kept while another is current; Linux uses 6 on a processor
    SPACE_SIZE = 16384        # targets kept of each
    SPACE_PAGES = 512         # pages kept of each
    SPACE_WRITE = 4

cdef enum:                    # kinds of access
    ACCESS_READ = 0
    ACCESS_WRITE = 1
    ACCESS_EXEC = 2
    ACCESS_RW = 3             # read-modify-write: checked as a write

# EFLAGS bits
cdef enum:
    FL_CF = 1
    FL_PF = 4
    FL_AF = 0x10
    FL_ZF = 0x40
    FL_SF = 0x80
    FL_TF = 0x100
    FL_IF = 0x200
    FL_DF = 0x400
    FL_OF = 0x800
    FL_IOPL = 0x3000
    FL_NT = 0x4000
    FL_RF = 0x10000
    FL_VM = 0x20000
    FL_AC = 0x40000
    FL_VIF = 0x80000
    FL_VIP = 0x100000
    FL_ID = 0x200000
    FL_ARITH = 0x8D5

cdef enum:                    # exception vectors
    X_DE = 0
    X_DB = 1
    X_NMI = 2
    X_BP = 3
    X_OF = 4
    X_BR = 5
    X_UD = 6
    X_NM = 7
    X_DF = 8
    X_TS = 10
    X_NP = 11
    X_SS = 12
    X_GP = 13
    X_PF = 14
    X_MF = 16
    X_AC = 17
    X_XM = 19

# The mode that translated code is keyed by (VCpu.mode); system.update_mode() computes it from the state.
cdef enum:
    MODE_USER = 1             # CPL 3
    MODE_AC = 2               # uses TLB_KERNEL_AC
    MODE_CODE64 = 4           # CS.L with EFER.LMA
    MODE_CODE32 = 8           # CS.D (neither: 16 bit)
    MODE_SS32 = 16            # SS.B (64-bit code implies a 64-bit stack)
    MODE_FLAT = 32            # ES CS SS DS all have base 0 and limit 4 GiB, or 64-bit code: no segment arithmetic but FS/GS
    MODE_NOFPU = 64           # CR0.TS or CR0.EM: x87/SSE raise #NM (or #UD)
    MODE_NOSSE = 128          # CR4.OSFXSR = 0: SSE raises #UD
    MODE_NOAVX = 256          # CR4.OSXSAVE = 0 or XCR0.AVX = 0: VEX raises #UD
    MODE_DF = 512             # EFLAGS.DF = 1
    MODE_TF = 1024            # EFLAGS.TF = 1: blocks of one instruction
    MODE_LONG = 2048          # EFER.LMA
    MODE_TSD = 4096           # CR4.TSD and CPL 3: rdtsc raises #GP
    MODE_PE = 8192            # CR0.PE
    MODE_DEBUG = 0x20000      # DR7 enables a breakpoint, or a debugger watches: one instruction a block, and every access is looked at
    MODE_PLAIN = 0x40000      # translated without windows: where one has failed
    MODE_PIC = 0x80000        # of a block only: it runs wherever its page is mapped (cache.py)
    MODE_COUNT = 0x1000000    # translated code counts the instructions that it runs
    MODE_RING12 = 0x10000     # CPL 1 or 2: neither a kernel's nor a program's fast paths

cdef struct Segment:
    uint64_t base
    uint32_t limit            # in bytes, scaled by G
    uint16_t selector
    uint16_t attr             # descriptor bits 40..47 in 0..7 (type, S, DPL, P), bits 52..55 in 12..15 (AVL, L, D/B, G); 0 = unusable

cdef struct Table:            # GDTR, IDTR
    uint64_t base
    uint16_t limit

cdef struct Space:               # of an address space that isn't current: user mode's jump cache, and pages of the TLBs
    uint32_t pcid
    uint32_t generation          # valid while it is the vCPU's space_generation
    uint32_t mode
    int32_t count
    uint64_t kept                # when, in switches: the oldest makes room
    uint64_t second              # its second_now
    int32_t page_count
    uint64_t page[SPACE_PAGES]   # an address, its table in bits 1:0, SPACE_WRITE
    uint64_t page_host[SPACE_PAGES]
    uint64_t pages[32]           # the lower half of jump_pages
    uint64_t pc[SPACE_SIZE]
    uint64_t host[SPACE_SIZE]

# All of one virtual CPU that compiled code touches; host GS points here while guest code runs.
# Rules: outside translated code everything architectural is here and exact. r[] holds the registers in
# encoding order, rip the offset in CS. Flags are split: `eflags` holds ALL bits (system.execute may read and
# write it whole), and the run loop moves the arithmetic ones between it and the host.
cdef struct VCpu:
    uint64_t self                       # gs:[0]
    uint64_t r[16]
    uint64_t rip
    uint64_t eflags                     # bit 1 always set
    uint64_t poll                       # address that translated code reads at back edges; 0 makes it fault: the kick
    uint64_t poll_word                  # what poll points to
    uint64_t pc_page                    # in blocks of MODE_PIC: the address at which the page of the block's start lies
    uint64_t flags_saved                # translated code: lahf/seto form, ax
    uint64_t scratch[8]                 # translated code: spilled registers
    uint64_t window[8]                  # translated code: of ranges that a block has checked: address._operand
    uint64_t host_rsp
    uint64_t site                       # translated code: what asked to leave
    uint64_t target                     # translated code: s1 at the exit (jump target, address ...)
    uint64_t host_pc                    # where translated code goes on, if it does
    uint32_t mode                       # MODE_*
    uint32_t pad2
    uint32_t exit_code
    uint32_t pad1
    # -- segments and system registers
    Segment seg[6]
    Segment ldtr
    Segment tr
    Table gdtr
    Table idtr
    uint64_t cr0, cr2, cr3, cr4
    uint64_t xcr0
    uint64_t efer
    uint64_t dr[8]
    uint8_t cpl
    uint8_t inhibit                     # 1: the next instruction runs before any interrupt (STI, MOV SS)
    uint8_t halted
    uint8_t wait_sipi
    uint8_t nmi_blocked
    uint8_t nmi_pending
    uint8_t exception_pending           # 1: exc_* below is to be delivered
    uint8_t exc_vector
    uint8_t exc_has_error
    uint8_t exc_soft                    # INT n / INT3 / INTO: DPL check, rip after the instruction
    uint8_t phys_bits
    uint8_t exc_length                  # exc_soft: bytes from the instruction to rip (a fault in delivery points back at it)
    uint8_t exc_trap                    # the #DB is a trap: RF is not set in the pushed image
    uint8_t access_seg                  # segment of the access under way: lookup's #SS or #GP for non-canonical addresses
    uint8_t io_kind                     # what finish_io has to do: 0 nothing, 1 IN, 2 INS
    uint8_t io_addrsize, io_rep, io_length
    uint32_t exc_error
    uint64_t exc_cr2                    # goes to cr2 when a #PF is delivered
    uint64_t pdpte[4]                   # PAE paging: loaded with CR3
    # -- MSRs
    uint64_t msr_star, msr_lstar, msr_cstar, msr_sfmask
    uint64_t msr_kernel_gs_base
    uint64_t msr_sysenter_cs, msr_sysenter_esp, msr_sysenter_eip
    uint64_t msr_tsc_aux
    uint64_t msr_pat
    uint64_t msr_misc_enable
    uint64_t msr_spec_ctrl
    uint64_t msr_debugctl
    uint64_t msr_mtrr[32]               # fixed, variable, deftype
    uint64_t msr_kvm_system_time, msr_kvm_wall_clock
    uint64_t msr_tsc_adjust
    uint64_t tsc_offset                 # guest TSC = host TSC + tsc_offset
    uint64_t clock_origin               # host TSC at which the paravirtual clock reads 0; the same for all vCPUs of a machine
    # -- vector and x87 state while guest code is not running (ymm always, x87/mxcsr only across run())
    uint8_t ymm[512]                    # 16 x 32 bytes
    uint8_t fx[512]                     # FXSAVE64 image, 16-byte aligned
    # -- accesses that go piecewise (MMIO, page crossings, writes to translated code)
    int32_t mmio_answers                # how many answers of this instruction are known
    int32_t mmio_next
    uint64_t mmio_answer[16]
    Exit io                             # the exit that run() is to return
    # -- the machine around
    Slot* slots
    int32_t slot_count
    int32_t index
    int32_t vcpus                       # of the whole machine (CPUID topology); 0 counts as 1
    void* apic                          # InterruptController (borrowed)
    void* machine                       # the BtEngine object (borrowed)
    # -- counters
    uint64_t n_exits[64]
    uint64_t n_tlb_miss, n_tlb_fill, n_tlb_flush, n_exceptions, n_interrupts, n_system
    uint64_t n_lookups, n_jump_flush, n_polls, n_twin, n_smc, n_syscalls
    uint64_t n_exception[32]
    uint64_t n_insns                    # instructions run while `counting`
    uint64_t count_spill                # translated code: a register that counting borrows
    uint64_t counting
    uint64_t pad3[6]                    # so that the tables begin at a line of the host's caches
    # -- translation caches. tag_* hold the page's address where the access may go straight to host memory, else one
    # of another index (mmu.empty_tag). Most of this is never touched.
    uint64_t tag_r[TLB_COUNT][TLB_SIZE]
    uint64_t tag_w[TLB_COUNT][TLB_SIZE]
    uint64_t distance[TLB_COUNT][TLB_SIZE]   # from the page to where the host has it
    uint8_t tlb_is_global[TLB_COUNT][TLB_SIZE]
    uint64_t itlb_va[TLB_COUNT][ITLB_SIZE]   # page address | 1 when empty
    uint64_t itlb_gpa[TLB_COUNT][ITLB_SIZE]
    uint8_t itlb_global[TLB_COUNT][ITLB_SIZE]
    uint64_t jump_cache[TLB_COUNT][JUMP_SIZE]     # host addresses of landing pads, hashed by target
    uint64_t jump_pc[JUMP_SIZE]              # of TLB_USER's: the targets, which the pads of MODE_PIC don't know
    uint64_t jump_miss[TLB_COUNT]            # what an empty jump_cache entry holds: the miss stub
    # -- which entries of these caches are in use, so that a flush costs what was filled (mmu.py)
    int32_t tlb_local_count[TLB_COUNT]
    int32_t tlb_global_count[TLB_COUNT]
    int32_t itlb_local_count[TLB_COUNT]
    int32_t itlb_global_count[TLB_COUNT]
    int32_t jump_local_count[TLB_COUNT]
    int32_t jump_global_count[TLB_COUNT]
    uint32_t tlb_local[TLB_COUNT][TLB_MOST]
    uint32_t tlb_global[TLB_COUNT][TLB_MOST]
    uint16_t itlb_local[TLB_COUNT][ITLB_SIZE]
    uint16_t itlb_global_list[TLB_COUNT][ITLB_SIZE]
    uint16_t jump_local[TLB_COUNT][JUMP_SIZE]
    uint16_t jump_global[TLB_COUNT][JUMP_SIZE]
    uint8_t tlb_listed[TLB_COUNT][TLB_SIZE]  # bit 0: in the local list, bit 1: in the global one
    uint8_t itlb_listed[TLB_COUNT][ITLB_SIZE]
    uint8_t jump_listed[TLB_COUNT][JUMP_SIZE]
    uint64_t jump_pages[64]                  # the jump cache may hold a target in that page (mmu._jump_bit)
    uint64_t large_pages[64]                 # bit (2 MiB region & 4095): TLBs may hold pieces of a large page there
    uint64_t giant_pages[64]                 # bit (1 GiB region & 4095): the same for pages of 1 GiB
    # -- behind the TLBs, for pages that share an entry there: one table for all, valid for reads or writes where the key
    # is tlb_key of who asks. A flush changes all keys.
    uint64_t tlb_key[TLB_COUNT]
    uint64_t second_va[SECOND_SIZE]
    uint64_t second_read[SECOND_SIZE]
    uint64_t second_write[SECOND_SIZE]
    uint64_t second_page[SECOND_SIZE]
    uint32_t* behind                         # where translated code goes on when it found its page there: Cache.behind
    uint64_t code_run                        # what that counts from: Cache.run
    # -- behind the jump cache, for targets that share an entry there: valid where the key is second_now of who asks.
    # Each address space has keys of its own for user mode, so that its entries outlive switches (mmu.py)
    uint64_t second_now[TLB_COUNT]
    uint64_t second_last                     # the last key that was given out
    uint64_t second_pc[JUMP_SECOND]
    uint64_t second_key[JUMP_SECOND]
    uint64_t second_host[JUMP_SECOND]
    Space spaces[SPACES]
    uint32_t space_generation
    uint64_t n_switches, n_spaces_found
    # -- what SYSCALL and SYSRET load into CS and SS (limit, selector, attributes as one word), for which STAR
    uint64_t fast_star[2]
    uint64_t fast_cs[2]
    uint64_t fast_ss[2]
    # -- run.py's own
    uint64_t n_monitor[128]                  # instructions that the monitor ran, by OpInfo.system; 0: strings
    uint64_t watch_address[16]               # a debugger's watchpoints: which bytes, and DEBUG_* what to do with them
    uint64_t watch_length[16]
    uint8_t watch_kind[16]
    int32_t watch_count
    int32_t watch_met                        # 1 + the number of the one that has just been met
    uint32_t debug_hits                      # data breakpoints that the present instruction has met, as in DR6
    uint32_t irq_wait                        # 1: an interrupt waits for IF, so that STI must come to the monitor
    uint32_t pauses                          # how many PAUSEs are left until one leaves
    volatile int in_guest                    # 1 while translated code runs: see cache.stop_world
    uint32_t table_mode[TLB_COUNT]           # the mode that each jump cache was filled under
    uint64_t table_base                      # and CS's base, which isn't 0 in 16- and 32-bit code only
    uint8_t stage[1280]                      # a whole access that must go piecewise, at the alignment of its address
    uint64_t stage_va
    uint32_t stage_size                      # bytes to be written back at the end of the instruction; 0: none
    uint64_t mmio_pending[16]                # writes to devices that wait for their exits: address, then value
    uint8_t mmio_pending_size[8]
    int32_t mmio_pending_count
