from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.insn cimport Insn, OpInfo

cdef OpInfo* table          # table[insn.op]
cdef int table_rows

# Decode one instruction. `code` holds `available` bytes (up to 15 are read), `pc` is its offset in CS and
# `mode` is 2, 4 or 8. Returns its length; 0: more bytes are needed than available (crosses into memory not
# given); -1: #GP by length (> 15 bytes). An undefined opcode (or an illegal LOCK) returns its length with op = 0.
cdef int decode(Insn* insn, const uint8_t* code, int available, uint64_t pc, int mode) noexcept nogil

# ---- private to decode.py
cdef enum:               # Form.rule: how the operand size comes about (Row.size_rule in table.py)
    RULE_V = 0           # 66 and REX.W
    RULE_Y = 1           # REX.W or VEX.W
    RULE_Z = 2           # 66
    RULE_D64 = 3         # 64 in 64-bit mode, 16 with 66
    RULE_F64 = 4         # 64 in 64-bit mode
    RULE_N = 5           # 64 in 64-bit mode, else 32

cdef enum:               # Form.imm
    IMM_NONE = 0
    IMM_IB = 1           # sign-extended
    IMM_IZ = 2
    IMM_IV = 3
    IMM_KB = 4           # zero-extended
    IMM_KW = 5
    IMM_KWB = 6
    IMM_OFFSET = 7
    IMM_FAR = 8
    IMM_IS4 = 9          # a register in the upper four bits; its upper half doesn't exist outside 64-bit mode

cdef enum:               # Form.flags
    FORM_NARROW = 1      # the next row is this one at operand size 2
    FORM_NO_VVVV = 2     # VEX.vvvv must be 1111
    FORM_REGISTER = 4    # ModRM.mod counts as 3 (mov cr, dr)
    FORM_LOCKABLE = 8
    FORM_VSIB = 16
    FORM_OPREG = 32

cdef struct Form:        # what decode() itself needs to know of a row
    uint8_t rule
    uint8_t imm
    uint8_t flags
    uint8_t constant     # imm of rows without an immediate

cdef enum:               # Slot.select: SELECT in table.py
    SELECT_PREFIX = 1
    SELECT_REG = 2
    SELECT_MOD = 4
    SELECT_RM = 8
    SELECT_W = 16
    SELECT_L = 32
    SELECT_MODE = 64
    SELECT_REX_B = 128

cdef struct Slot:        # one opcode: rows[base + selectors]
    uint32_t base        # 0: undefined
    uint8_t select
    uint8_t modrm

cdef enum:               # byte_class
    B_OPCODE = 0
    B_REX = 1
    B_OPSIZE = 2
    B_ADDRSIZE = 3
    B_LOCK = 4
    B_REPNE = 5
    B_REP = 6
    B_SEGMENT = 8        # + segment number
