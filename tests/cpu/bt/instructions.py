"""Random valid encodings of a row of the instruction table."""

import random
from dataclasses import dataclass

from hostel.cpu.bt.decode import ROWS
from hostel.cpu.bt.table import PREFIXES, C, Row


@dataclass(slots=True)
class Sample:
    """One encoding, and how its memory operand is addressed: ``base + index << scale + displacement``."""

    row: Row
    code: bytes
    memory: bool = False
    base: int = -1
    index: int = -1
    scale: int = 0
    displacement: int = 0


_IMMEDIATE = {"Ib": 1, "Jb": 1, "Kb": 1, "Lx": 1, "Kw": 2, "Kwb": 3}


def effective_size(row: Row, wide: bool, opsize66: bool, mode: int) -> int:
    """The operand size that decode() must arrive at."""
    if row.size_rule == "y":
        return 8 if wide and mode == 8 else 4
    if row.size_rule == "n":
        return 8 if mode == 8 else 4
    if row.size_rule == "f64" and mode == 8:
        return 8
    if wide and row.size_rule in ("v", "d64"):
        return 8
    if opsize66:
        return 2
    return 8 if row.size_rule == "d64" and mode == 8 else 4


def encode(number: int, rng: random.Random, mode: int = 8, memory: bool | None = None, avoid: int = 0,
           immediate: int | None = None) -> Sample:  # fmt: skip
    """A random encoding of row ``number`` for code of ``mode`` (8 or 4).

    ``memory`` chooses between the memory and the register form where the row has both; ``avoid`` is a mask of
    registers that must not form the address. No LOCK, no segment override, no 67. A gather gets any index register
    and may come out undefined (two operands in one register).
    """
    row = ROWS[number]
    narrow = ROWS[number - 1].narrow
    pp = 0 if row.prefix in ("", "NFx") else rng.choice(PREFIXES[row.prefix])
    opsize66 = narrow
    if row.fields["flags"] & C["O_LEGACY66"] and not narrow and not row.narrow:
        opsize66 = rng.random() < 0.3
    wide = row.w == 1 or (
        row.w < 0 and mode == 8 and not opsize66 and row.size_rule in ("v", "y", "d64") and rng.random() < 0.4
    )
    if row.vex and row.w < 0 and mode == 8:
        wide = rng.random() < 0.5
    sample = Sample(row, b"")
    modrm = sib = b""
    r = x = b = 0
    size = effective_size(row, wide, opsize66, mode)
    if row.modrm:
        reg = rng.choice(row.digits) if row.digits else rng.randrange(8)
        free_reg = any(o.letter in "GVP" and o.letter for o in row.operands)
        if free_reg:
            r = rng.randrange(2) if mode == 8 else 0
        has_memory = row.mod == "m" or (row.mod != "r" and any(o.letter in "EMWQ" and o.letter for o in row.operands))
        sample.memory = has_memory and (row.mod == "m" or (rng.random() < 0.5 if memory is None else memory))
        if not sample.memory:
            rm = row.rm if row.rm >= 0 else rng.randrange(8)
            if row.rm < 0:
                b = rng.randrange(2) if mode == 8 else 0
            modrm = bytes([0xC0 | reg << 3 | rm])
        else:
            bad = avoid | 1 << 4 | row.fields["implicit_r"] | row.fields["implicit_w"]
            if any(o.letter == "G" for o in row.operands):
                bad |= 1 << (reg | r << 3)
                if row.fields["reg_use"] & C["U_BYTE"]:
                    bad |= 1 << (reg & 3)
            free = [n for n in range(16 if mode == 8 else 8) if not bad >> n & 1]
            sample.base = rng.choice(free)
            sample.displacement = rng.choice((0, rng.randrange(-128, 128), rng.randrange(-100000, 100000)))
            with_index = rng.random() < 0.5
            if with_index:
                sample.index = rng.choice([n for n in free if n != sample.base])
                sample.scale = rng.randrange(4)
                x = sample.index >> 3
            b = sample.base >> 3
            if sample.displacement == 0 and sample.base & 7 != 5:
                mod, tail = 0, b""
            elif -128 <= sample.displacement < 128:
                mod, tail = 1, sample.displacement.to_bytes(1, "little", signed=True)
            else:
                mod, tail = 2, sample.displacement.to_bytes(4, "little", signed=True)
            if with_index or sample.base & 7 == 4:
                index = sample.index & 7 if with_index else 4
                sib = bytes([sample.scale << 6 | index << 3 | sample.base & 7])
                modrm = bytes([mod << 6 | reg << 3 | 4])
            else:
                modrm = bytes([mod << 6 | reg << 3 | sample.base & 7])
            sib += tail
    opcode = row.opcode
    if row.in_opcode:
        opcode += rng.randrange(8)
        b = row.rex_b if row.rex_b >= 0 else rng.randrange(2) if mode == 8 else 0
        if row.name == "xchg" and opcode == 0x90 and not b:
            opcode += 1  # 90 is nop
    elif row.rex_b >= 0:
        b = row.rex_b
    tail = b""
    if row.imm:
        width = _IMMEDIATE.get(row.imm)
        if width is None:
            z = min(size, 4)
            width = {"Iz": z, "Jz": z, "Iv": size, "Ob": mode, "Ov": mode, "Ap": size + 2}[row.imm]
        tail = rng.randbytes(width) if immediate is None else immediate.to_bytes(width, "little")
    if row.vex:
        vvvv = rng.randrange(16 if mode == 8 else 8) if row.has_vvvv else 0
        length = row.length if row.length >= 0 else rng.randrange(2)
        last = (~vvvv & 15) << 3 | length << 2 | pp
        if row.opmap == 1 and not x and not b and not wide and rng.random() < 0.5:
            head = bytes([0xC5, (1 - r) << 7 | last])
        else:
            head = bytes([0xC4, (1 - r) << 7 | (1 - x) << 6 | (1 - b) << 5 | row.opmap, wide << 7 | last])
        sample.code = head + bytes([opcode]) + modrm + sib + tail
        return sample
    legacy = [bytes([(0, 0x66, 0xF3, 0xF2)[pp]])] if pp else []
    if opsize66 and pp != 1:
        legacy.append(b"\x66")
    rng.shuffle(legacy)
    rex = wide << 3 | r << 2 | x << 1 | b
    if rex or (mode == 8 and rng.random() < 0.1):
        legacy.append(bytes([0x40 | rex]))
    escape = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")[row.opmap]
    sample.code = b"".join(legacy) + escape + bytes([opcode]) + modrm + sib + tail
    return sample
