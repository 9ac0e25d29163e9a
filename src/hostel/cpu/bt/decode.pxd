from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.insn cimport Insn, OpInfo

cdef OpInfo* table          # table[insn.op]
cdef int table_rows

# Decode one instruction. `code` holds `available` bytes (up to 15 are read), `pc` is its offset in CS and
# `mode` is 2, 4 or 8. Returns its length; 0: more bytes are needed than available (crosses into memory not
# given); -1: #GP by length (> 15 bytes). An undefined opcode (or an illegal LOCK) returns its length with op = 0.
cdef int decode(Insn* insn, const uint8_t* code, int available, uint64_t pc, int mode) noexcept nogil
