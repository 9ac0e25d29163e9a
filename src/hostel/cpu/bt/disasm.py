"""A disassembler over the instruction table, in Intel syntax, for debugging and for tests.

It prints what the decoder understood, operand by operand, so that comparing its text with another disassembler's
compares table and decoder.
"""

from hostel.cpu.bt import decode
from hostel.cpu.bt.table import C, Operand, Row

_R64 = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
_R32 = "eax ecx edx ebx esp ebp esi edi".split() + [f"r{n}d" for n in range(8, 16)]
_R16 = "ax cx dx bx sp bp si di".split() + [f"r{n}w" for n in range(8, 16)]
_R8 = "al cl dl bl spl bpl sil dil".split() + [f"r{n}b" for n in range(8, 16)]
_R8_LEGACY = "al cl dl bl ah ch dh bh".split()
_SEGMENTS = "es cs ss ds fs gs".split()
_POINTERS = {1: "byte", 2: "word", 4: "dword", 6: "fword", 8: "qword", 10: "xword", 16: "xmmword", 32: "ymmword"}

# Names that depend on the operand size: {opsize: name}
_BY_SIZE = {
    "cwde": {2: "cbw", 4: "cwde", 8: "cdqe"},
    "cdq": {2: "cwd", 4: "cdq", 8: "cqo"},
    "pushf": {2: "pushf", 4: "pushfd", 8: "pushfq"},
    "popf": {2: "popf", 4: "popfd", 8: "popfq"},
    "iret": {2: "iret", 4: "iretd", 8: "iretq"},
    "pusha": {2: "pushaw", 4: "pushal"},
    "popa": {2: "popaw", 4: "popal"},
    "sysret": {2: "sysret", 4: "sysret", 8: "sysretq"},
    "sysexit": {2: "sysexit", 4: "sysexit", 8: "sysexitq"},
    "movd": {4: "movd", 8: "movq"},
    "vmovd": {4: "vmovd", 8: "vmovq"},
    "pinsrd": {4: "pinsrd", 8: "pinsrq"},
    "vpinsrd": {4: "vpinsrd", 8: "vpinsrq"},
    "pextrd": {4: "pextrd", 8: "pextrq"},
    "vpextrd": {4: "vpextrd", 8: "vpextrq"},
}
_STRINGS = ("movs", "cmps", "stos", "lods", "scas", "ins", "outs")
_SAVES = ("fxsave", "fxrstor", "xsave", "xrstor", "xsaveopt", "xsavec", "xsaves", "xrstors")


def _general(number: int, size: int, rex: bool = True) -> str:
    if size == 1:
        return (_R8 if rex or number > 7 else _R8_LEGACY)[number]
    return {2: _R16, 4: _R32, 8: _R64}[size][number]


def _vector(number: int, size: int) -> str:
    return f"{'ymm' if size == 32 else 'xmm'}{number}"


def _bytes(letter: str, i: dict) -> int:
    """An operand's size in bytes from the letter of its size."""
    wide = 32 if i["vex_l"] else 16
    sizes = {"b": 1, "w": 2, "d": 4, "q": 8, "o": 16, "t": 10, "v": i["opsize"], "y": max(i["opsize"], 4),
             "z": min(i["opsize"], 4), "n": i["opsize"], "x": wide, "h": wide // 2, "f": wide // 4, "e": wide // 8,
             "a": 2 * i["opsize"], "p": i["opsize"] + 2}  # fmt: skip
    return sizes.get(letter, 0)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _address(i: dict, size: int, vector: str = "") -> str:
    """``dword ptr fs:[rax + rcx*4 + 0x10]``"""
    width = i["addrsize"]
    parts = []
    if i["base"] == C["REG_RIP"]:
        parts.append({8: "rip", 4: "eip"}[width])
    elif i["base"] != C["REG_NONE"]:
        parts.append(_general(i["base"], width))
    if vector:
        parts.append(f"{vector}{i['index']}*{1 << i['scale']}")
    elif i["index"] != C["REG_NONE"]:
        scale = f"*{1 << i['scale']}" if i["scale"] else ""
        parts.append(_general(i["index"], width) + scale)
    text = " + ".join(parts)
    displacement = i["disp"]
    if not parts:
        text = f"{displacement & ((1 << 8 * width) - 1):#x}"
    elif displacement:
        text += f" {'-' if displacement < 0 else '+'} {abs(displacement):#x}"
    prefix = f"{_SEGMENTS[i['seg']]}:" if i["prefixes"] & C["P_SEG"] else ""
    pointer = f"{_POINTERS[size]} ptr " if size in _POINTERS else ""
    return f"{pointer}{prefix}[{text}]"


def _string(register: str, segment: int, size: int, i: dict) -> str:
    name = {8: "r", 4: "e", 2: ""}[i["addrsize"]] + register
    shown = segment if segment == 0 and i["code"] != 8 else i["seg"] if segment and i["prefixes"] & C["P_SEG"] else -1
    return f"{_POINTERS[size]} ptr {_SEGMENTS[shown] + ':' if shown >= 0 else ''}[{name}]"


def _operand(o: Operand, row: Row, i: dict) -> str:
    letter, register = o.letter, i["mod"] == 3
    size = _bytes(o.size, i)
    rex = bool(i["prefixes"] & (C["P_REX"] | C["P_VEX"]))
    if letter == "":
        if o.text in ("rax", "rdx"):
            return _general({"rax": 0, "rdx": 2}[o.text], i["opsize"])
        if o.text == "zax":
            return _general(0, min(i["opsize"], 4))
        return {"st0": "st(0)"}.get(o.text, o.text)
    if letter in "EMWQ" and not register:
        memory = 0 if o.memory == "n" else _bytes(o.memory, i)
        vector = ""
        if row.fields["flags"] & C["O_VSIB"]:
            wide = i["vex_l"] and row.fields["system"] != C["S_VPGATHERDQ"]
            vector = "ymm" if wide else "xmm"
        return _address(i, memory, vector)
    if letter in "ER":
        return _general(i["rm"], size, rex)
    if letter == "G":
        return _general(i["reg"], size, rex)
    if letter == "B":
        return _general(i["vvvv"], size, rex)
    if letter == "Z":
        return _general(i["rm"], size, rex)
    if letter in "QN":
        return f"mm{i['rm'] & 7}"
    if letter == "P":
        return f"mm{i['reg'] & 7}"
    if letter in "WU":
        return _vector(i["rm"], size)
    if letter == "V":
        return _vector(i["reg"], size)
    if letter == "H":
        return _vector(i["vvvv"], size)
    if letter == "L":
        return _vector(i["imm"] >> 4 & (15 if i["code"] == 8 else 7), size)
    if letter == "S":
        return _SEGMENTS[i["reg"] & 7]
    if letter in "CD":
        return f"{'cr' if letter == 'C' else 'dr'}{i['reg']}"
    if letter == "T":
        return f"st({i['rm'] & 7})"
    if letter == "X":
        return _string("si", 3, size, i)
    if letter == "Y":
        return _string("di", 0, size, i)
    if letter == "O":
        return _address(i, size)
    if letter == "J":
        width = i["opsize"]
        return f"{(i['pc'] + i['length'] + _signed(i['imm'])) & ((1 << 8 * width) - 1):#x}"
    if letter == "A":
        return f"{i['imm2']:#x}:{i['imm']:#x}"
    if letter == "K":
        return f"{i['imm']:#x}" + (f", {i['imm2']:#x}" if o.text == "Kwb" else "")
    return f"{i['imm'] & ((1 << 8 * max(1, _immediate_width(row, i))) - 1):#x}"


def _immediate_width(row: Row, i: dict) -> int:
    """Bytes in which a sign-extended immediate is shown: those of the operation."""
    if row.fields["flags"] & C["O_BYTEOP"]:
        return 1
    return i["opsize"]


def disassemble(code: bytes, pc: int = 0, mode: int = 8) -> tuple[int, str]:
    """Length and text of the first instruction of ``code``.

    An undefined opcode reads ``(bad)``; one that isn't finished or too long has decode()'s result and no text.
    """
    i = decode.decode_py(code, pc, mode)
    if i["result"] <= 0:
        return i["result"], ""
    if i["op"] == 0:
        return i["result"], "(bad)"
    row = decode.ROWS[i["op"]]
    name = _BY_SIZE.get(row.name, {}).get(i["opsize"], row.name)
    if name == "jcxz":
        name = {2: "jcxz", 4: "jecxz", 8: "jrcxz"}[i["addrsize"]]
    elif name in _STRINGS:
        name += {1: "b", 2: "w", 4: "d", 8: "q"}[next(_bytes(o.size, i) for o in row.operands if o.size)]
    elif name in _SAVES and i["rex"] & 8:
        name += "64"
    if i["prefixes"] & C["P_LOCK"]:
        name = "lock " + name
    if row.prefix == "REP":
        rep = "rep " if row.name in ("movs", "stos", "lods", "ins", "outs") else "repe "
        name = ("repne " if i["prefixes"] & C["P_REPNE"] else rep) + name
    operands = [_operand(o, row, i) for o in row.operands]
    return i["result"], f"{name} {', '.join(operands)}".strip()
