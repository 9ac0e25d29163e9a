"""The instruction decoder: bytes to ``Insn``, by the rows of table.py.

At import the rows become C arrays: ``table`` (OpInfo, what an instruction does), ``forms`` (how it is decoded) and
a two-step lookup: ``slots[VEX][map][opcode]`` says which further bits select the row (mandatory prefix, ModRM fields,
W, L, mode) and where the row numbers for their combinations start in ``leaves``. Decoding touches nothing else and
needs neither lock nor GIL.

Where processors differ it does as Intel's: near branches ignore 66 in 64-bit mode.
"""

import cython
from cython.cimports.hostel.cpu.bt.insn import (
    DS,
    FS,
    O_LOCKABLE,
    O_VSIB,
    P_ADDRSIZE,
    P_LOCK,
    P_OPSIZE,
    P_REP,
    P_REPNE,
    P_REX,
    P_SEG,
    P_VEX,
    REG_NONE,
    REG_RIP,
    SS,
    Insn,
    OpInfo,
)
from cython.cimports.libc.stdint import int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t
from cython.cimports.libc.stdlib import calloc
from cython.cimports.libc.string import memcpy, memset

from hostel.cpu.bt import table as _source

slots = cython.declare(Slot[2048])  # VEX * 1024 + map * 256 + opcode
leaves = cython.declare(cython.pointer(uint16_t))
forms = cython.declare(cython.pointer(Form))
byte_class = cython.declare(uint8_t[256])

base16 = cython.declare(uint8_t[8], [3, 3, 5, 5, 6, 7, 5, 3])  # [bx+si] [bx+di] [bp+si] [bp+di] [si] [di] [bp] [bx]
index16 = cython.declare(uint8_t[8], [6, 7, 6, 7, 16, 16, 16, 16])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _short(available: cython.int) -> cython.int:
    # Fifteen bytes were there and the instruction goes on: too long. Else the caller has to bring more.
    return -1 if available >= 15 else 0


def decode(insn, code, available, pc, mode):
    i: cython.int = 0
    limit: cython.int = available if available < 15 else 15
    b: cython.int
    kind: cython.int
    rex: cython.int = 0
    prefixes: cython.int = 0
    pp: cython.int = 0
    segment: cython.int = -1
    opmap: cython.int = 0
    vex: cython.int = 0
    modrm: cython.int = 0
    mod: cython.int = 3
    op: cython.int
    opsize: cython.int
    addrsize: cython.int
    n: cython.uint
    width: cython.int
    f: cython.int
    slot: cython.pointer(Slot)
    form: cython.pointer(Form)
    value16: int16_t
    value32: int32_t
    value64: int64_t

    memset(insn, 0, cython.sizeof(Insn))
    insn.pc = pc
    insn.code = mode
    insn.base = REG_NONE
    insn.index = REG_NONE

    # ---- legacy prefixes and REX (which counts only right before the opcode)
    while True:
        if i >= limit:
            return _short(available)
        b = code[i]
        i += 1
        kind = byte_class[b]
        if kind == B_OPCODE:
            break
        if kind == B_REX:
            if mode != 8:
                break
            rex = b
            continue
        rex = 0
        if kind == B_OPSIZE:
            prefixes |= P_OPSIZE
        elif kind == B_ADDRSIZE:
            prefixes |= P_ADDRSIZE
        elif kind == B_REP:
            prefixes = (prefixes & ~P_REPNE) | P_REP
        elif kind == B_REPNE:
            prefixes = (prefixes & ~P_REP) | P_REPNE
        elif kind == B_LOCK:
            prefixes |= P_LOCK
        elif mode != 8 or kind >= B_SEGMENT + FS:
            prefixes |= P_SEG
            segment = kind - B_SEGMENT
    if rex:
        prefixes |= P_REX
        rex &= 15
    if prefixes & P_REP:
        pp = 2
    elif prefixes & P_REPNE:
        pp = 3
    elif prefixes & P_OPSIZE:
        pp = 1

    # ---- opcode map
    if b == 0x0F:
        if i >= limit:
            return _short(available)
        b = code[i]
        i += 1
        opmap = 1
        if b == 0x38 or b == 0x3A:
            opmap = 2 if b == 0x38 else 3
            if i >= limit:
                return _short(available)
            b = code[i]
            i += 1
    elif b == 0xC4 or b == 0xC5 or b == 0x62:
        if i >= limit:
            return _short(available)
        if mode == 8 or code[i] >= 0xC0:  # else les, lds, bound
            insn.prefixes = prefixes | P_VEX
            insn.length = i
            if b == 0x62 or prefixes & (P_OPSIZE | P_REP | P_REPNE | P_LOCK | P_REX):
                return i
            vex = 1
            prefixes |= P_VEX
            n = code[i]
            i += 1
            opmap = 1
            rex = 0 if n & 0x80 else 4
            if b == 0xC4:
                rex |= (0 if n & 0x40 else 2) | (0 if n & 0x20 else 1)
                opmap = n & 31
                if i >= limit:
                    return _short(available)
                n = code[i]
                i += 1
                rex |= n >> 4 & 8
            if i >= limit:
                return _short(available)
            b = code[i]
            i += 1
            insn.vvvv = ~n >> 3 & 15
            insn.vex_l = n >> 2 & 1
            pp = n & 3
            if mode != 8:
                rex &= 8
            if opmap > 3:
                insn.length = i
                return i
    insn.prefixes = prefixes
    insn.opmap = opmap
    insn.opcode = b
    insn.vex_pp = pp if vex else 0

    # ---- ModRM, as far as it selects the row
    slot = cython.address(slots[vex * 1024 + opmap * 256 + b])
    if slot.modrm:
        if i >= limit:
            return _short(available)
        modrm = code[i]
        i += 1
        mod = modrm >> 6
        insn.has_modrm = 1
        insn.modrm = modrm
    n = 0
    f = slot.select
    if f:
        if f & SELECT_PREFIX:
            n = pp
        if f & SELECT_REG:
            n = n * 8 + (modrm >> 3 & 7)
        if f & SELECT_MOD:
            n = n * 2 + (mod == 3)
        if f & SELECT_RM:
            n = n * 8 + (modrm & 7)
        if f & SELECT_W:
            n = n * 2 + (rex >> 3)
        if f & SELECT_L:
            n = n * 2 + insn.vex_l
        if f & SELECT_MODE:
            n = n * 2 + (mode == 8)
        if f & SELECT_REX_B:
            n = n * 2 + (rex & 1)
    op = leaves[slot.base + n]
    insn.length = i
    if op == 0:
        return i
    form = cython.address(forms[op])
    f = form.flags

    # ---- sizes
    addrsize = mode
    if prefixes & P_ADDRSIZE:
        addrsize = 2 if mode == 4 else 4
    opsize = mode if mode < 8 else 4
    if form.rule == RULE_V:
        if rex & 8:
            opsize = 8
        elif prefixes & P_OPSIZE:
            opsize = 6 - opsize
    elif form.rule == RULE_Y:
        opsize = 4
        if mode != 8:
            rex &= 7  # W is ignored outside 64-bit mode
        elif rex & 8:
            opsize = 8
    elif form.rule == RULE_D64:
        if prefixes & P_OPSIZE and not rex & 8:
            opsize = 6 - opsize
        elif mode == 8:
            opsize = 8
    elif form.rule == RULE_F64:
        if mode == 8:
            opsize = 8
        elif prefixes & P_OPSIZE:
            opsize = 6 - opsize
    elif form.rule == RULE_N:
        opsize = 8 if mode == 8 else 4
    elif prefixes & P_OPSIZE:
        opsize = 6 - opsize
    insn.opsize = opsize
    insn.addrsize = addrsize
    insn.rex = rex
    if opsize == 2 and f & FORM_NARROW:
        op += 1
    insn.seg = DS

    # ---- operands in ModRM, SIB, opcode
    if slot.modrm:
        insn.reg = (modrm >> 3 & 7) | (rex << 1 & 8)
        if f & FORM_REGISTER:
            mod = 3
            if insn.reg > 8 or (insn.reg == 8 and insn.opcode & 1):
                op = 0  # CR8 is the only one that REX.R adds
        if mod == 3:
            insn.rm = (modrm & 7) | (rex << 3 & 8)
        else:
            width = 0  # of the displacement
            b = modrm & 7
            if addrsize == 2:
                if mod == 0 and b == 6:
                    width = 2
                else:
                    insn.base = base16[b]
                    insn.index = index16[b]
                    width = mod
                if f & FORM_VSIB:
                    op = 0
            else:
                if b == 4:
                    if i >= limit:
                        return _short(available)
                    n = code[i]
                    i += 1
                    kind = (n >> 3 & 7) | (rex << 2 & 8)
                    if kind != 4 or f & FORM_VSIB:
                        insn.index = kind
                        insn.scale = n >> 6
                    b = n & 7
                elif f & FORM_VSIB:
                    op = 0
                if b == 5 and mod == 0:
                    # No base but a displacement; in 64-bit mode, without a SIB byte, it is relative to RIP.
                    if mode == 8 and modrm & 7 == 5:
                        insn.base = REG_RIP
                    width = 4
                else:
                    insn.base = b | (rex << 3 & 8)
                    width = mod if mod < 2 else 4
            if insn.base == 4 or insn.base == 5:
                insn.seg = SS
            if i + width > limit:
                return _short(available)
            if width == 1:
                insn.disp = cython.cast(int8_t, code[i])
            elif width == 2:
                memcpy(cython.address(value16), code + i, 2)
                insn.disp = value16
            elif width == 4:
                memcpy(cython.address(value32), code + i, 4)
                insn.disp = value32
            i += width
    elif f & FORM_OPREG:
        insn.rm = (b & 7) | (rex << 3 & 8)
    insn.mod = mod
    if segment >= 0:
        insn.seg = segment

    # ---- immediates
    insn.imm = form.constant
    n = form.imm
    if n:
        if n == IMM_IB:
            if i >= limit:
                return _short(available)
            insn.imm = cython.cast(uint64_t, cython.cast(int64_t, cython.cast(int8_t, code[i])))
            insn.imm_size = 1
            i += 1
        elif n == IMM_KB or n == IMM_IS4:
            if i >= limit:
                return _short(available)
            insn.imm = code[i] & 0x7F if n == IMM_IS4 and mode != 8 else code[i]
            insn.imm_size = 1
            i += 1
        elif n == IMM_IZ or n == IMM_IV:
            b = opsize if n == IMM_IV or opsize < 8 else 4
            if i + b > limit:
                return _short(available)
            insn.imm_size = b
            if b == 4:
                memcpy(cython.address(value32), code + i, 4)
                value64 = value32
            elif b == 2:
                memcpy(cython.address(value16), code + i, 2)
                value64 = value16
            else:
                memcpy(cython.address(value64), code + i, 8)
            insn.imm = cython.cast(uint64_t, value64)
            i += b
        elif n == IMM_OFFSET:
            if i + addrsize > limit:
                return _short(available)
            memcpy(cython.address(insn.disp), code + i, addrsize)
            i += addrsize
        else:  # 16 bits (ret), and 8 more (enter); far pointers
            b = opsize if n == IMM_FAR else 2
            if i + b > limit:
                return _short(available)
            memcpy(cython.address(insn.imm), code + i, b)
            insn.imm_size = b
            i += b
            if n == IMM_KWB:
                if i >= limit:
                    return _short(available)
                insn.imm2 = code[i]
                i += 1
            elif n == IMM_FAR:
                if i + 2 > limit:
                    return _short(available)
                memcpy(cython.address(insn.imm2), code + i, 2)
                i += 2

    # ---- what makes a well-formed instruction undefined
    if prefixes & P_LOCK and (mod == 3 or not f & FORM_LOCKABLE):
        op = 0
    if vex:
        if f & FORM_NO_VVVV and insn.vvvv:
            op = 0
        if mode != 8:
            insn.vvvv &= 7
        if f & FORM_VSIB and (insn.reg == insn.index or insn.vvvv == insn.index or insn.reg == insn.vvvv):
            op = 0
    insn.op = op
    insn.length = i
    return i


# ---- the arrays, filled at import
_RULES = {"v": RULE_V, "y": RULE_Y, "z": RULE_Z, "d64": RULE_D64, "f64": RULE_F64, "n": RULE_N}
_IMM = {"": IMM_NONE, "Ib": IMM_IB, "Jb": IMM_IB, "Iz": IMM_IZ, "Jz": IMM_IZ, "Iv": IMM_IV, "Kb": IMM_KB, "Kw": IMM_KW,
        "Kwb": IMM_KWB, "Lx": IMM_IS4, "Ob": IMM_OFFSET, "Ov": IMM_OFFSET, "Ap": IMM_FAR}  # fmt: skip


@cython.cfunc
def _compile(rows: list):
    global table, table_rows, forms, leaves
    i: cython.int
    info: cython.pointer(OpInfo)
    table_rows = len(rows)
    table = cython.cast(cython.pointer(OpInfo), calloc(table_rows, cython.sizeof(OpInfo)))
    forms = cython.cast(cython.pointer(Form), calloc(table_rows, cython.sizeof(Form)))
    for i in range(table_rows):
        row = rows[i]
        v = row.fields
        info = cython.address(table[i])
        info.kind = v["kind"]
        info.mem = v["mem"]
        info.mem_size = v["mem_size"]
        info.reg_use = v["reg_use"]
        info.rm_use = v["rm_use"]
        info.vvvv_use = v["vvvv_use"]
        info.feature = v["feature"]
        info.flags_read = v["flags_read"]
        info.flags_kill = v["flags_kill"]
        info.flags_mod = v["flags_mod"]
        info.flags_undef = v["flags_undef"]
        info.implicit_r = v["implicit_r"]
        info.implicit_w = v["implicit_w"]
        info.flags = v["flags"]
        info.system = v["system"]
        info.imm = _IMM[row.imm]
        forms[i].rule = _RULES[row.size_rule]
        forms[i].imm = info.imm
        forms[i].constant = row.constant
        forms[i].flags = (
            (FORM_NARROW if row.narrow else 0)
            | (0 if row.has_vvvv else FORM_NO_VVVV)
            | (FORM_REGISTER if row.modrm and any(o.letter in "CD" and o.letter for o in row.operands) else 0)
            | (FORM_LOCKABLE if info.flags & O_LOCKABLE else 0)
            | (FORM_VSIB if info.flags & O_VSIB else 0)
            | (FORM_OPREG if row.in_opcode else 0)
        )
    opcodes, numbers = _source.lookup(rows)
    leaves = cython.cast(cython.pointer(uint16_t), calloc(len(numbers) + 1, cython.sizeof(uint16_t)))
    for i in range(len(numbers)):
        leaves[i + 1] = numbers[i]  # leaves[0] stays 0: slots without rows
    for (vex, opmap, opcode), (select, base, modrm) in opcodes.items():
        i = vex * 1024 + opmap * 256 + opcode
        slots[i].base = base + 1
        slots[i].select = select
        slots[i].modrm = modrm
    for i in range(0x40, 0x50):
        byte_class[i] = B_REX
    byte_class[0x66] = B_OPSIZE
    byte_class[0x67] = B_ADDRSIZE
    byte_class[0xF0] = B_LOCK
    byte_class[0xF2] = B_REPNE
    byte_class[0xF3] = B_REP
    for i in range(4):
        byte_class[0x26 + 8 * i] = B_SEGMENT + i
    byte_class[0x64] = B_SEGMENT + 4
    byte_class[0x65] = B_SEGMENT + 5


ROWS: list = _source.rows()
_compile(ROWS)


# ---- for tests and tools
def decode_py(code: bytes, pc: uint64_t = 0, mode: cython.int = 8) -> dict:
    """One instruction as a dict of Insn's fields, with ``name`` and ``result`` (what decode() returned)."""
    insn: Insn
    n: cython.int = decode(cython.address(insn), cython.cast(cython.pointer(uint8_t), code), len(code), pc, mode)
    found: dict = insn
    found["result"] = n
    found["name"] = ROWS[insn.op].name if n > 0 else ""
    return found


def rows() -> list[dict]:
    """Every row of the table: ``number``, how it is encoded (Row's fields in table.py) and OpInfo's fields."""
    found = []
    for i in range(table_rows):
        row = ROWS[i]
        info: dict = table[i]
        found.append({
            **info, "number": i, "name": row.name, "encoding": row.encoding,
            "operands": [o.text for o in row.operands], "vex": row.vex, "prefix": row.prefix, "opmap": row.opmap,
            "opcode": row.opcode, "in_opcode": row.in_opcode, "modrm": row.modrm, "digits": row.digits,
            "mod": row.mod, "rm": row.rm, "w": row.w, "length": row.length, "rex_b": row.rex_b, "modes": row.modes,
            "size_rule": row.size_rule, "imm": row.imm, "has_vvvv": row.has_vvvv, "narrow": row.narrow,
            "narrow_of": i - 1 if i and ROWS[i - 1].narrow else None,
        })  # fmt: skip
    return found


def measure(code: bytes, mode: cython.int = 8, rounds: cython.int = 1) -> int:
    """Decode ``code`` from end to end ``rounds`` times; how many instructions. Bytes that don't decode are skipped."""
    insn: Insn
    p: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), code)
    size: cython.int = len(code)
    at: cython.int
    n: cython.int
    count: cython.long = 0
    r: cython.int
    repeat: cython.int = rounds
    with cython.nogil:
        for r in range(repeat):
            at = 0
            while at < size:
                n = decode(cython.address(insn), p + at, size - at, at, mode)
                at += n if n > 0 else 1
                count += 1
    return count
