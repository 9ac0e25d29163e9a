from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# ---- prefix bits (Insn.prefixes)
cdef enum:
    P_LOCK = 1
    P_REP = 2        # F3
    P_REPNE = 4      # F2
    P_OPSIZE = 8     # 66
    P_ADDRSIZE = 16  # 67
    P_SEG = 32       # an explicit segment override
    P_REX = 64       # a REX byte is present (even 0x40: it turns ah..bh into spl..dil)
    P_VEX = 128

cdef enum:           # segment numbers, as in the instruction encoding
    ES = 0
    CS = 1
    SS = 2
    DS = 3
    FS = 4
    GS = 5

cdef enum:
    REG_NONE = 16
    REG_RIP = 17

# ---- Insn: one decoded instruction, filled by decode(). Everything translation needs; the bytes are not needed again.
cdef struct Insn:
    uint64_t pc          # offset in CS (RIP/EIP/IP) of the first byte
    int64_t disp         # displacement, sign-extended (also moffs)
    uint64_t imm         # immediate, sign-extended to 64 bits; relative branches: the sign-extended displacement.
                         # Zero-extended where it is no number to add: in/out port, int, ret n, enter, far offset, shuffle
                         # and shift control bytes. is4: the whole byte, the register is imm >> 4
    uint16_t imm2        # second immediate: ENTER's level, far pointer's selector
    uint16_t op          # row number in the instruction table; 0 = undefined opcode (#UD)
    uint8_t length       # bytes, 1..15
    uint8_t code         # 2, 4, 8: the code segment's mode (16, 32, 64 bit)
    uint8_t opsize       # 2, 4, 8: effective operand size for 'v' operands (8 only in 64-bit mode; rows with forced/default 64 already so)
    uint8_t addrsize     # 2, 4, 8
    uint8_t prefixes
    uint8_t seg          # effective segment of the memory operand (default or override; in 64-bit mode ES/CS/SS/DS overrides are ignored -> DS or SS)
    uint8_t rex          # low four bits WRXB (from REX or VEX); 0 without
    uint8_t opmap        # 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A
    uint8_t opcode
    uint8_t has_modrm
    uint8_t modrm
    uint8_t mod
    uint8_t reg          # with REX.R (0..15)
    uint8_t rm           # with REX.B (0..15) if mod == 3
    uint8_t base         # 0..15, REG_NONE or REG_RIP; memory operands only
    uint8_t index        # 0..15 or REG_NONE; for VSIB rows the vector register
    uint8_t scale        # 0..3 (log2)
    uint8_t vex_l
    uint8_t vex_pp       # mandatory prefix in VEX form: 0 none, 1 66, 2 F3, 3 F2
    uint8_t vvvv         # 0..15
    uint8_t imm_size     # bytes of immediate in the encoding (0,1,2,4,8)

# ---- arithmetic flag bits, as in FLAGS
cdef enum:
    F_CF = 1
    F_PF = 4
    F_AF = 0x10
    F_ZF = 0x40
    F_SF = 0x80
    F_OF = 0x800
    F_ALL = 0x8D5

# ---- how the translator treats a row (OpInfo.kind)
cdef enum Kind:
    K_UD = 0         # raises #UD
    K_NATIVE = 1     # runs as itself: operands in ModRM/VEX (and implicit registers named in `implicit`), at most one memory operand
    K_LEA = 2
    K_PUSH = 3       # push reg / imm / rm / (16,32-bit) segment is K_SYSTEM
    K_POP = 4
    K_MOV_MOFFS = 5  # A0..A3
    K_STRING = 6     # movs cmps stos lods scas, all sizes, with rep
    K_JCC = 7
    K_JMP = 8        # near, relative
    K_CALL = 9       # near, relative
    K_JMP_IND = 10   # FF /4
    K_CALL_IND = 11  # FF /2
    K_RET = 12       # C3, C2
    K_LOOP = 13      # loop/loope/loopne/jcxz
    K_LEAVE = 14
    K_XLAT = 15
    K_FLAGOP = 16    # cld std: change DF (cmc clc stc lahf sahf are K_NATIVE)
    K_NOP = 17       # nop, endbr64, prefetch, hint nops: nothing at all (a memory operand is not accessed)
    K_SYSTEM = 18    # run by cpu/bt/system.execute with all state in VCpu: privileged, segment, far, int, io, pushf/popf, bcd, fxsave, xsave ...
    K_FENCE = 19     # mfence lfence sfence: K_NATIVE without operands
    K_SHORT32 = 20   # 40..4F inc/dec in 16/32-bit code
    K_ENTER = 21
    K_GATHER = 22    # VSIB gathers, masked moves, maskmovdqu: K_SYSTEM-like emulation through memory helpers with vector state in VCpu
    K_PUSHPOPF = 23  # pushf / popf
    K_STICLI = 24    # sti / cli
    K_RDTSC = 25     # rdtsc / rdtscp
    K_BT = 26        # bt/bts/btr/btc Ev,Gv with a memory operand: the register's signed bit number moves the address
                     # (rows for the same opcode with mod == 3, or with an immediate, are K_NATIVE)

# ---- memory operand access (OpInfo.mem)
cdef enum:
    M_NONE = 0
    M_READ = 1
    M_WRITE = 2
    M_RW = 3
    M_ADDR = 4       # address only (lea, nop, invlpg, prefetch)

# ---- values of OpInfo.mem_size that aren't a number of bytes
cdef enum:
    MS_X = 0x80        # 16 or 32 by VEX.L
    MS_HALF = 0x81     # half of that
    MS_QUARTER = 0x82
    MS_EIGHTH = 0x83
    MS_TWICE = 0x84    # twice opsize: bound
    MS_FAR = 0x85      # opsize + 2: far pointers
    MS_ENV = 0x86      # fldenv, fnstenv: 28, or 14 with opsize 2
    MS_FSAVE = 0x87    # fnsave, frstor: 108, or 94 with opsize 2
    MS_TABLE = 0x88    # lgdt, sidt ...: 10 in 64-bit code, else 6
    MS_VARIES = 0x89   # xsave
    MS_512 = 0x8A      # fxsave

# ---- how an encoding field names a general register (OpInfo.reg_use, rm_use, vvvv_use)
cdef enum:
    U_NONE = 0       # not a GPR (opcode extension, vector, mmx, segment ...) or unused
    U_R = 1
    U_W = 2          # written whole (or zero-extended)
    U_RW = 3         # read and written, or written in part (8/16-bit destinations, cmov)
    U_BYTE = 4       # or'ed in: the field names a byte register (ah..bh without REX)

# ---- needed CPU feature bits (OpInfo.feature): what CPUID must announce or the row is #UD
cdef enum:
    FE_BASE = 0
    FE_X87 = 1
    FE_MMX = 2
    FE_SSE = 3       # SSE and SSE2
    FE_SSE3 = 4
    FE_SSSE3 = 5
    FE_SSE41 = 6
    FE_SSE42 = 7
    FE_AVX = 8
    FE_AVX2 = 9
    FE_FMA = 10
    FE_F16C = 11
    FE_BMI1 = 12
    FE_BMI2 = 13
    FE_AES = 14
    FE_PCLMUL = 15
    FE_SHA = 16
    FE_ADX = 17
    FE_MOVBE = 18
    FE_POPCNT = 19
    FE_LZCNT = 20
    FE_RDRAND = 21
    FE_RDSEED = 22
    FE_CX16 = 23
    FE_XSAVE = 24
    FE_FSGSBASE = 25
    FE_VAES = 26
    FE_VPCLMUL = 27
    FE_GFNI = 28
    FE_CLFLUSHOPT = 29
    FE_CLWB = 30
    FE_RDPID = 31
    FE_COUNT = 32

cdef enum:           # OpInfo.flags
    O_LOCKABLE = 1       # LOCK is legal (with a memory destination)
    O_VSIB = 2
    O_ALIGNED = 4        # #GP(0) when the memory operand is not aligned to its size (movaps, legacy SSE, ...)
    O_VECTOR = 8         # touches xmm/ymm state: #NM when CR0.TS, #UD when CR0.EM or CR4.OSFXSR=0; VEX also CR4.OSXSAVE/XCR0
    O_X87 = 16           # touches x87/mmx state: #NM when CR0.TS or EM
    O_NO64 = 32          # invalid in 64-bit mode (rows are already filtered by decode)
    O_ONLY64 = 64
    O_PREFIX66 = 128     # 66 is a mandatory prefix: keep it on re-encoding
    O_PREFIXF3 = 256
    O_PREFIXF2 = 512
    O_FLAGS_COUNT = 1024 # shifts/rotates: flags unchanged when the (masked) count is 0
    O_LEGACY66 = 2048    # 66 selects operand size: re-encode it when opsize == 2
    O_END = 4096         # ends a block even where kind would not (state that blocks are keyed by changes)
    O_DEFAULT64 = 8192   # operand size defaults to 64 in 64-bit mode (push, pop, near branches ...)
    O_BYTEOP = 16384     # operand size is 1 byte whatever opsize says
    O_OPREG = 65536      # the register is in the opcode's low bits (50+r): rm and rm_use describe it, mod = 3, has_modrm = 0
    O_UNDEF_DEST = 32768 # destination undefined in some cases (bsf/bsr of 0): the tests' generator avoids them

# ---- OpInfo.system: what cpu/bt/system.execute does by hand; 0 for rows that it never sees
cdef enum System:
    S_NONE = 0
    # port I/O (imm8 or dx forms by opcode: E4..E7, EC..EF), string I/O (6C..6F, rep by prefixes)
    S_IN = 1
    S_OUT = 2
    S_INS = 3
    S_OUTS = 4
    # software interrupts and returns
    S_INT3 = 5
    S_INT = 6
    S_INTO = 7
    S_INT1 = 8
    S_IRET = 9
    S_BOUND = 10
    # fast system calls
    S_SYSCALL = 11
    S_SYSRET = 12
    S_SYSENTER = 13
    S_SYSEXIT = 14
    # processor control
    S_HLT = 15
    S_CPUID = 16
    S_RDMSR = 17
    S_WRMSR = 18
    S_RDPMC = 19
    S_RDTSC = 20
    S_RDTSCP = 21
    S_RDPID = 22
    S_SWAPGS = 23
    S_CLTS = 24
    S_LMSW = 25
    S_SMSW = 26
    S_INVD = 27
    S_WBINVD = 28
    S_INVLPG = 29
    S_INVPCID = 30
    S_MONITOR = 31
    S_MWAIT = 32
    S_VMCALL = 33
    S_VMMCALL = 34
    S_CLAC = 35
    S_STAC = 36
    # control and debug registers (reg field: CRn/DRn; rm: general register; mod is ignored)
    S_MOV_FROM_CR = 37
    S_MOV_TO_CR = 38
    S_MOV_FROM_DR = 39
    S_MOV_TO_DR = 40
    # descriptor tables and segments
    S_LGDT = 41
    S_SGDT = 42
    S_LIDT = 43
    S_SIDT = 44
    S_LLDT = 45
    S_SLDT = 46
    S_LTR = 47
    S_STR = 48
    S_LAR = 49
    S_LSL = 50
    S_VERR = 51
    S_VERW = 52
    S_ARPL = 53
    # segment registers: 8C, 8E; push/pop (segment number in imm); far pointer loads (segment number in imm: lss 2, lds 3, les 0, lfs 4, lgs 5)
    S_MOV_FROM_SEG = 54
    S_MOV_TO_SEG = 55
    S_PUSH_SEG = 56
    S_POP_SEG = 57
    S_LOAD_FAR = 58
    # fsgsbase
    S_RDFSBASE = 59
    S_RDGSBASE = 60
    S_WRFSBASE = 61
    S_WRGSBASE = 62
    # far transfers: immediate ptr16:16/32 (offset in imm, selector in imm2), memory, RETF (imm bytes to drop)
    S_JMP_FAR = 63
    S_CALL_FAR = 64
    S_JMP_FAR_MEM = 65
    S_CALL_FAR_MEM = 66
    S_RETF = 67
    # flags, stack frames
    S_PUSHF = 68
    S_POPF = 69
    S_CLI = 70
    S_STI = 71
    S_ENTER = 72
    S_PUSHA = 73
    S_POPA = 74
    S_CLD = 75
    S_STD = 76
    # BCD and other 16/32-bit-only arithmetic (aam/aad: base in imm)
    S_AAA = 77
    S_AAS = 78
    S_AAM = 79
    S_AAD = 80
    S_DAA = 81
    S_DAS = 82
    S_SALC = 83
    # FPU and extended state; the 64 forms by REX.W
    S_FXSAVE = 84
    S_FXRSTOR = 85
    S_XSAVE = 86
    S_XSAVEOPT = 87
    S_XSAVEC = 88
    S_XSAVES = 89
    S_XRSTOR = 90
    S_FNSTENV = 91   # by hand, for the pointers that the host's would save are those of translated code
    S_FNSAVE = 92
    S_XRSTORS = 93
    S_XGETBV = 94
    S_XSETBV = 95
    # VSIB gathers: index size, element size (ps/pd are the same as d/q)
    S_VPGATHERDD = 96
    S_VPGATHERDQ = 97
    S_VPGATHERQD = 98
    S_VPGATHERQQ = 99
    # masked moves: loads and stores of ymm/xmm by VEX.L; ps and d are the same, pd and q too
    S_VMASKMOV_LOAD_D = 100
    S_VMASKMOV_LOAD_Q = 101
    S_VMASKMOV_STORE_D = 102
    S_VMASKMOV_STORE_Q = 103
    S_MASKMOVQ = 104
    S_MASKMOVDQU = 105
    S_COUNT = 106

# ---- OpInfo: one row of the instruction table in compiled form
cdef struct OpInfo:
    uint8_t kind
    uint8_t mem          # what happens to the ModRM memory operand when mod != 3
    uint8_t mem_size     # bytes; 0 = opsize; 0x80 and above: MS_*
    uint8_t reg_use
    uint8_t rm_use
    uint8_t vvvv_use
    uint8_t feature
    uint8_t imm          # immediate kind, decoder's own business
    uint16_t flags_read  # F_*: flags the result depends on
    uint16_t flags_kill  # F_*: surely overwritten with defined values, independent of the old ones
    uint16_t flags_mod   # F_*: may change (includes flags_kill and the undefined ones)
    uint16_t flags_undef # F_*: undefined afterwards by the manuals
    uint16_t implicit_r  # bit n: general register n is read implicitly (beyond fields)
    uint16_t implicit_w
    uint32_t flags       # O_*
    uint16_t system      # K_SYSTEM: number of the handler (S_* above), else 0
