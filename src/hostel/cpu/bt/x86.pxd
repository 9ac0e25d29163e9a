# Constants of the architecture (Intel SDM vol. 3 and 4) that the monitor uses; names as the manuals have them.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "stdint.h":
    uint64_t M32 "((uint64_t)UINT32_MAX)"    # a 32-bit register's or address's bits
    uint64_t PTE_ADDRESS "0xFFFFFFFFFF000ULL"
    uint64_t BIT63 "(1ULL << 63)"
cdef extern from * nogil:
    bint compare_and_swap "__sync_bool_compare_and_swap"(uint64_t* p, uint64_t old, uint64_t new)
    bint compare_and_swap32 "__sync_bool_compare_and_swap"(uint32_t* p, uint32_t old, uint32_t new)
    void full_fence "__sync_synchronize"()

cdef enum:
    CR0_PE = 1
    CR0_MP = 2
    CR0_EM = 4
    CR0_TS = 8
    CR0_ET = 0x10
    CR0_NE = 0x20
    CR0_WP = 0x10000
    CR0_AM = 0x40000
    CR0_NW = 0x20000000
    CR0_CD = 0x40000000

cdef enum:
    CR4_VME = 1
    CR4_PVI = 2
    CR4_TSD = 4
    CR4_DE = 8
    CR4_PSE = 0x10
    CR4_PAE = 0x20
    CR4_MCE = 0x40
    CR4_PGE = 0x80
    CR4_PCE = 0x100
    CR4_OSFXSR = 0x200
    CR4_OSXMMEXCPT = 0x400
    CR4_UMIP = 0x800
    CR4_FSGSBASE = 0x10000
    CR4_PCIDE = 0x20000
    CR4_OSXSAVE = 0x40000
    CR4_SMEP = 0x100000
    CR4_SMAP = 0x200000

cdef enum:
    EFER_SCE = 1
    EFER_LME = 0x100
    EFER_LMA = 0x400
    EFER_NXE = 0x800

cdef enum:              # paging-structure entries
    PTE_P = 1
    PTE_W = 2
    PTE_U = 4
    PTE_A = 0x20
    PTE_D = 0x40
    PTE_PS = 0x80
    PTE_G = 0x100

cdef enum:              # page-fault error code
    PF_P = 1
    PF_W = 2
    PF_U = 4
    PF_RSVD = 8
    PF_I = 16

cdef enum:              # Segment.attr
    SEG_ACCESSED = 1
    SEG_WRITE = 2       # data: writable; code: readable
    SEG_DOWN = 4        # data: expand-down; code: conforming
    SEG_CODE = 8
    SEG_S = 0x10
    SEG_DPL = 0x60
    SEG_P = 0x80
    SEG_AVL = 0x1000
    SEG_L = 0x2000
    SEG_DB = 0x4000
    SEG_G = 0x8000

cdef enum:              # system descriptor types
    DESC_TSS16 = 1
    DESC_LDT = 2
    DESC_TSS16_BUSY = 3
    DESC_CALL16 = 4
    DESC_TASK = 5
    DESC_INT16 = 6
    DESC_TRAP16 = 7
    DESC_TSS = 9
    DESC_TSS_BUSY = 11
    DESC_CALL = 12
    DESC_INT = 14
    DESC_TRAP = 15

cdef enum:
    XCR0_X87 = 1
    XCR0_SSE = 2
    XCR0_AVX = 4
    MXCSR_MASK = 0xFFFF
    MXCSR_DEFAULT = 0x1F80

cdef enum:              # values above 31 bits make the whole enum unsigned
    CR0_PG = 0x80000000

cdef enum:              # MSRs (SDM vol. 4)
    MSR_TSC = 0x10
    MSR_PLATFORM_ID = 0x17
    MSR_APIC_BASE = 0x1B
    MSR_TSC_ADJUST = 0x3B
    MSR_SPEC_CTRL = 0x48
    MSR_PRED_CMD = 0x49
    MSR_BIOS_UPDT_TRIG = 0x79
    MSR_BIOS_SIGN_ID = 0x8B
    MSR_PLATFORM_INFO = 0xCE
    MSR_MTRR_CAP = 0xFE
    MSR_ARCH_CAPABILITIES = 0x10A
    MSR_FLUSH_CMD = 0x10B
    MSR_MISC_FEATURES_ENABLES = 0x140
    MSR_SYSENTER_CS = 0x174
    MSR_SYSENTER_ESP = 0x175
    MSR_SYSENTER_EIP = 0x176
    MSR_MCG_CAP = 0x179
    MSR_MCG_STATUS = 0x17A
    MSR_MISC_ENABLE = 0x1A0
    MSR_DEBUGCTL = 0x1D9
    MSR_LASTBRANCH_FROM = 0x1DB
    MSR_LASTINT_TO = 0x1DE
    MSR_MTRR_PHYSBASE0 = 0x200
    MSR_MTRR_PHYSMASK7 = 0x20F
    MSR_MTRR_FIX64K = 0x250
    MSR_MTRR_FIX16K_80000 = 0x258
    MSR_MTRR_FIX16K_A0000 = 0x259
    MSR_MTRR_FIX4K_C0000 = 0x268
    MSR_MTRR_FIX4K_F8000 = 0x26F
    MSR_PAT = 0x277
    MSR_MTRR_DEF_TYPE = 0x2FF
    MSR_TSC_DEADLINE = 0x6E0
    MSR_X2APIC_FIRST = 0x800
    MSR_X2APIC_LAST = 0x8FF

cdef enum:
    MSR_EFER = 0xC0000080
    MSR_STAR = 0xC0000081
    MSR_LSTAR = 0xC0000082
    MSR_CSTAR = 0xC0000083
    MSR_SFMASK = 0xC0000084
    MSR_FS_BASE = 0xC0000100
    MSR_GS_BASE = 0xC0000101
    MSR_KERNEL_GS_BASE = 0xC0000102
    MSR_TSC_AUX = 0xC0000103

cdef enum:              # Documentation/virt/kvm/x86/msr.rst
    MSR_KVM_WALL_CLOCK = 0x11
    MSR_KVM_SYSTEM_TIME = 0x12
    MSR_KVM_WALL_CLOCK_NEW = 0x4B564D00
    MSR_KVM_SYSTEM_TIME_NEW = 0x4B564D01
    MSR_KVM_POLL_CONTROL = 0x4B564D05

# Whether x is an address that a processor with 48-bit linear addresses accepts.
cdef inline bint canonical(uint64_t x) noexcept nogil:
    return ((x + (<uint64_t>1 << 47)) >> 48) == 0
