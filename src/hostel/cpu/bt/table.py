"""The instruction table: one row per instruction form, for decoder, translator, disassembler and test generator.

A row is a line of text, its columns separated by two or more spaces::

    name    encoding           operands      attributes
    adc     11 /r              +Ev,Gv        carry lock

**Encoding**, after the SDM: a mandatory prefix, the opcode map, the opcode, the ModRM byte. ``NP``: none of
66 F3 F2; ``NFx``: neither F3 nor F2; ``REP``: F3 or F2; nothing: all of them are allowed and select no other row.
``50+r``: the register is in the opcode. ``/r``, ``/3``, ``/0245`` (any of these), each with ``m`` or ``r`` behind it
where only memory or only registers are allowed and the operands don't say so; a byte after the opcode is a whole
ModRM byte. ``VEX.256.66.0F38.W0 16 /r`` as in the SDM; what is left out is ignored (LIG, WIG).

**Operands** have the SDM's letters (appendix A.2) and are marked ``=`` written, ``+`` read and written, ``&`` address
only, nothing: read. Letters: E G general register or memory, M memory only, R register only (of rm), B in VEX.vvvv,
Z in the opcode; P Q N: MMX; V W U H L: xmm/ymm; S C D: segment, control, debug; T: x87; I: sign-extended, K:
zero-extended immediate; J relative, O moffs, A far pointer, X [rsi], Y [rdi]. Sizes: b w d q 1 2 4 8 bytes, o 16, t 10,
v 2/4/8 by operand size, z 2/4, y 4/8 by W, x 16/32 by VEX.L, h f e a half, quarter, eighth of x, a twice v, p far
pointer, s descriptor table register. ``Rd/Mb`` gives register and memory forms of one operand different sizes.
Lower-case names are fixed registers (``rax`` is ax, eax or rax by operand size).

**Attributes**: a feature; a class of flags (``FLAGS``); a kind (``KINDS``) or ``sys:NAME``; ``r:`` and ``w:`` further
registers that are read and written; ``+avx`` ``+avx2`` ``+avx128`` ``+avxs``: the row has a VEX twin with an added
first source where the destination was read (both widths; 256 bits by AVX2; 128 bits only; scalar); the rest below.
"""

import re
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path


def _constants() -> dict[str, int]:
    """The enums of insn.pxd, which is their only source."""
    found: dict[str, int] = {}
    for line in (Path(__file__).parent / "insn.pxd").read_text().splitlines():
        if m := re.match(r"\s+([A-Z][A-Z0-9_]*) = (0x[0-9A-Fa-f]+|\d+)\b", line):
            found[m[1]] = int(m[2], 0)
    return found


C = _constants()
AMD = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()

# flags: (read, surely overwritten, undefined); may change: the last two, and the fourth
_BITS = {"C": C["F_CF"], "P": C["F_PF"], "A": C["F_AF"], "Z": C["F_ZF"], "S": C["F_SF"], "O": C["F_OF"]}
FLAGS = {
    "arith": ("", "OSZAPC", "", ""),
    "carry": ("C", "OSZAPC", "", ""),
    "logic": ("", "OSZPC", "A", ""),
    "inc": ("", "OSZAP", "", ""),
    "shift": ("", "", "OA", "SZPC"),  # by CL or a constant: unchanged when the count is 0 (O_FLAGS_COUNT)
    "shift1": ("", "OSZPC", "A", ""),
    "rotate": ("", "", "O", "C"),
    "rotate1": ("", "OC", "", ""),
    "rotatec": ("C", "", "O", "C"),
    "rotatec1": ("C", "OC", "", ""),
    "bittest": ("", "C", "OSAP", ""),
    "bitscan": ("", "Z", "OSAPC", ""),
    "zerocount": ("", "ZC", "OSAP", ""),
    "bextr": ("", "ZCO", "SAP", ""),
    "bmi": ("", "SZCO", "AP", ""),
    "mul": ("", "CO", "SZAP", ""),
    "div": ("", "", "OSZAPC", ""),
    "compare": ("", "OSZAPC", "", ""),  # comiss, ptest, pcmpistri: all six, some always 0
    "fcomi": ("", "ZPC", "", "OSA"),
    "repeated": ("", "", "", "OSZAPC"),  # rep cmps, scas: unchanged when the count is 0
    "zf": ("", "Z", "", ""),
    "cf": ("", "C", "", ""),
    "cmc": ("C", "C", "", ""),
    "adox": ("O", "O", "", ""),
    "lahf": ("SZAPC", "", "", ""),
    "sahf": ("", "SZAPC", "", ""),
    "daa": ("AC", "SZAPC", "O", ""),
    "aaa": ("A", "AC", "OSZP", ""),
    "aam": ("", "SZP", "OAC", ""),
    "pushf": ("OSZAPC", "", "", ""),
    "popf": ("", "OSZAPC", "", ""),
    "if_c": ("C", "", "", ""),
    "if_z": ("Z", "", "", ""),
    "if_cz": ("CZ", "", "", ""),
    "if_p": ("P", "", "", ""),
    "if_o": ("O", "", "", ""),
    "if_s": ("S", "", "", ""),
    "if_so": ("SO", "", "", ""),
    "if_zso": ("ZSO", "", "", ""),
}
CONDITIONS = "o no b ae e ne be a s ns p np l ge le g".split()
_CONDITION_FLAGS = "if_o if_c if_z if_cz if_s if_p if_so if_zso".split()

KINDS = {
    "lea": "K_LEA", "push": "K_PUSH", "pop": "K_POP", "moffs": "K_MOV_MOFFS", "string": "K_STRING", "jcc": "K_JCC",
    "jmp": "K_JMP", "call": "K_CALL", "jmpi": "K_JMP_IND", "calli": "K_CALL_IND", "ret": "K_RET", "loop": "K_LOOP",
    "leave": "K_LEAVE", "xlat": "K_XLAT", "flagop": "K_FLAGOP", "nop": "K_NOP", "sys": "K_SYSTEM", "fence": "K_FENCE",
    "short32": "K_SHORT32", "enter": "K_ENTER", "gather": "K_GATHER", "pushpopf": "K_PUSHPOPF",
    "sticli": "K_STICLI", "rdtsc": "K_RDTSC", "bt": "K_BT", "ud": "K_UD",
}  # fmt: skip
_OTHER = {
    "lock": "O_LOCKABLE", "end": "O_END", "osz": "O_LEGACY66", "byteop": "O_BYTEOP", "aligned": "O_ALIGNED",
    "undef": "O_UNDEF_DEST", "vector": "O_VECTOR", "vsib": "O_VSIB",
}  # fmt: skip
FEATURES = {name[3:].lower(): value for name, value in C.items() if name.startswith("FE_") and name != "FE_COUNT"}
_VECTOR = {"sse", "sse3", "ssse3", "sse41", "sse42", "avx", "avx2", "fma", "f16c", "aes", "pclmul", "sha", "vaes",
           "vpclmul", "gfni"}  # fmt: skip
GPR = "rax rcx rdx rbx rsp rbp rsi rdi".split()
_FIXED = {  # fixed operands: register, and whether writing them leaves part of it
    "al": (0, True), "ah": (0, True), "cl": (1, True), "ax": (0, True), "dx": (2, True),
    "eax": (0, False), "edx": (2, False), "ecx": (1, False), "rax": (0, False), "rdx": (2, False), "zax": (0, False),
}  # fmt: skip
_SIZES = {"b": 1, "w": 2, "d": 4, "q": 8, "o": 16, "t": 10, "v": 0, "y": 0, "z": 4, "x": C["MS_X"], "h": C["MS_HALF"],
          "f": C["MS_QUARTER"], "e": C["MS_EIGHTH"], "a": C["MS_TWICE"], "p": C["MS_FAR"], "s": C["MS_TABLE"],
          "n": C["MS_ENV"], "m": C["MS_FSAVE"], "i": C["MS_512"], "?": C["MS_VARIES"]}  # fmt: skip
PREFIXES = {"": (0, 1, 2, 3), "NP": (0,), "66": (1,), "F3": (2,), "F2": (3,), "NFx": (0, 1), "REP": (2, 3)}
MAPS = {"": 0, "0F": 1, "0F38": 2, "0F3A": 3}


@dataclass(slots=True)
class Operand:
    """One operand of a row. ``letter`` and ``size`` as above; ``memory`` is the size of the memory form."""

    text: str
    letter: str  # "" for a fixed register or a constant
    size: str
    memory: str
    read: bool
    written: bool
    address: bool


@dataclass(slots=True)
class Row:
    """One instruction form: how it is encoded, and what it does (the fields of OpInfo in insn.pxd)."""

    name: str
    encoding: str
    operands: list[Operand]
    vex: bool = False
    prefix: str = ""  # a key of PREFIXES
    opmap: int = 0
    opcode: int = 0
    in_opcode: bool = False  # the register is in the low three bits of the opcode
    modrm: bool = False
    digits: tuple[int, ...] = ()  # values of modrm.reg that select this row; empty: any
    mod: str = ""  # "m", "r" or both
    rm: int = -1  # modrm.rm selects this row; -1: any
    w: int = -1
    length: int = -1  # VEX.L
    rex_b: int = -1
    modes: str = ""  # "64", "32" (16 and 32), "" all
    size_rule: str = "v"  # v: 66 and W; y: W; z: 66; d64: 64 or 16; f64: 64; n: by mode
    imm: str = ""  # letter and size of the immediate: Ib Iw Iz Iv Kb Kw Jb Jz Ov Ap Kwb Lx
    constant: int = 0  # value of Insn.imm in rows without an immediate
    has_vvvv: bool = False
    narrow: bool = False  # the next row is this one at operand size 2
    fields: dict[str, int] = field(default_factory=dict)  # OpInfo

    def opcodes(self) -> range:
        return range(self.opcode, self.opcode + (8 if self.in_opcode else 1))


def _mask(letters: str) -> int:
    return sum(_BITS[letter] for letter in letters)


def _operand(text: str) -> Operand:
    mark = text[0] if text[0] in "=+&" else ""
    body = text[1:] if mark else text
    letter, size, memory = "", "", ""
    if body[0].isupper():
        letter, size = body[0], body[1:2]
        memory = size
        if "/" in body:
            memory = body.partition("/")[2][1:]
            letter = {"R": "E", "U": "W"}[letter]
    return Operand(body, letter, size, memory, mark in ("", "+"), mark in ("=", "+"), mark == "&")


def _parse(line: str) -> Row:
    parts = re.split(r"\s{2,}", line.strip())
    name, encoding = parts[0], parts[1]
    texts = [] if len(parts) < 3 or parts[2] == "-" else parts[2].split(",")
    row = Row(name, encoding, [_operand(t) for t in texts])
    words = encoding.split()
    if words[0].startswith("VEX"):
        row.vex = True
        for word in words.pop(0).split(".")[1:]:
            if word in ("128", "256"):
                row.length = int(word == "256")
            elif word in ("W0", "W1"):
                row.w = int(word[1])
            elif word in PREFIXES:
                row.prefix = word
            else:
                row.opmap = MAPS[word]
    else:
        if words[0] in ("NP", "NFx", "REP") or (words[0] in ("66", "F3", "F2") and len(words) > 1):
            row.prefix = words.pop(0)
        if words[0] == "0F":
            row.opmap = 1
            words.pop(0)
            if words[0] in ("38", "3A") and len(words) > 1 and words[1][0] != "/":
                row.opmap = 2 if words.pop(0) == "38" else 3
    opcode = words.pop(0)
    row.in_opcode = opcode.endswith("+r")
    row.opcode = int(opcode[:2], 16)
    if words:
        row.modrm = True
        if words[0][0] == "/":
            which = words[0][1:]
            if which[-1] in "mr" and which != "r":
                row.mod = which[-1]
                which = which[:-1]
            if which not in ("r", ""):
                row.digits = tuple(int(d) for d in which)
        else:
            byte = int(words[0], 16)
            row.mod, row.digits, row.rm = "r", (byte >> 3 & 7,), byte & 7
    letters = {o.letter for o in row.operands}
    if letters & {"M"}:
        row.mod = "m"
    if letters & {"R", "U", "N", "T"} and row.modrm and not letters & {"C", "D"}:
        row.mod = "r"
    _fill(row, " ".join(parts[3:]).split())
    return row


def _fill(row: Row, attributes: list[str]) -> None:
    """Compute the fields of OpInfo from operands and attributes."""
    f = dict.fromkeys(
        "kind mem mem_size reg_use rm_use vvvv_use feature imm flags_read flags_kill flags_mod flags_undef "
        "implicit_r implicit_w flags system".split(), 0,
    )  # fmt: skip
    f["kind"] = C["K_NATIVE"]
    row.fields = f
    unaligned = False
    for word in attributes:
        head, _, tail = word.partition(":")
        if word in FEATURES:
            f["feature"] = FEATURES[word]
            if word in ("x87", "mmx"):
                f["flags"] |= C["O_X87"]
        elif word in FLAGS:
            read, kill, undefined, other = (_mask(x) for x in FLAGS[word])
            f["flags_read"] |= read
            f["flags_kill"] |= kill
            f["flags_undef"] |= undefined
            f["flags_mod"] |= kill | undefined | other
            if word in ("shift", "rotate", "rotatec", "repeated"):
                f["flags"] |= C["O_FLAGS_COUNT"]
        elif head in KINDS:
            f["kind"] = C[KINDS[head]]
            f["system"] = C["S_" + tail] if tail else 0
        elif head == "r":
            f["implicit_r"] |= sum(1 << GPR.index(r) for r in tail.split(","))
        elif head == "w":
            f["implicit_w"] |= sum(1 << GPR.index(r) for r in tail.split(","))
        elif head == "imm":
            row.constant = int(tail)
        elif word in ("no64", "only64"):
            row.modes = "32" if word == "no64" else "64"
            f["flags"] |= C["O_NO64" if word == "no64" else "O_ONLY64"]
        elif word in ("d64", "f64", "n", "y", "z"):
            row.size_rule = word
            if word in ("d64", "f64"):
                f["flags"] |= C["O_DEFAULT64"]
        elif word == "unaligned":
            unaligned = True
        elif word in _OTHER:
            f["flags"] |= C[_OTHER[word]]
        elif word in ("W0", "W1"):
            row.w = int(word[1])
        elif word in ("B0", "B1"):
            row.rex_b = int(word[1])
        elif word[0] not in "+-" and word not in ("count128", "vw0", "vw1"):
            raise ValueError(f"{row.name} {row.encoding}: attribute {word}")
    by_size = False  # the narrow form differs
    sizes = {o.size for o in row.operands} | {o.memory for o in row.operands}
    if "y" in sizes and "v" not in sizes:
        row.size_rule = "y"
    for o in row.operands:
        if o.letter == "":
            if o.text in _FIXED:
                number, partial = _FIXED[o.text]
                if o.read or partial:
                    f["implicit_r"] |= 1 << number
                if o.written:
                    f["implicit_w"] |= 1 << number
                if o.text in ("rax", "rdx"):
                    f["flags"] |= C["O_LEGACY66"]
                    by_size |= o.written
                elif o.text in ("al", "ah") and o is row.operands[0] and len(row.operands) > 1:
                    f["flags"] |= C["O_BYTEOP"]
            continue
        if o.letter in "EGRBZ":
            use = C["U_R"] if o.read else 0
            if o.written:
                use |= C["U_RW"] if o.size in "bw" else C["U_W"]
                by_size |= o.size in "vz"
            if o.size == "b":
                use |= C["U_BYTE"]
                if o is row.operands[0]:
                    f["flags"] |= C["O_BYTEOP"]
            where = {"E": "rm_use", "R": "rm_use", "Z": "rm_use", "G": "reg_use", "B": "vvvv_use"}[o.letter]
            f[where] = 0 if o.address else use
        if o.letter in "EMWQ":
            f["mem"] = C["M_ADDR"] if o.address else o.read * C["M_READ"] | o.written * C["M_WRITE"]
            f["mem_size"] = _SIZES[o.memory] if o.memory else 0
            by_size |= o.memory == "z"
        if o.letter in "IKJOAL":
            row.imm = o.text
        if o.letter == "O":
            f["mem"] = o.read * C["M_READ"] | o.written * C["M_WRITE"]
            f["mem_size"] = _SIZES[o.size]
        row.has_vvvv |= o.letter in "HB"
        if o.letter in "VWUHL":
            f["flags"] |= C["O_VECTOR"]
        if o.letter in "PQNT":
            f["flags"] |= C["O_X87"]
        if o.size in tuple("vzap") and o.letter not in "JA":
            f["flags"] |= C["O_LEGACY66"]
        if o.letter == "M" and o.memory in ("n", "m"):
            f["flags"] |= C["O_LEGACY66"]
    if row.mod == "r":
        f["mem"] = f["mem_size"] = 0
    if f["feature"] == C["FE_SHA"] and AMD:
        unaligned = True  # these processors take any address (seen on Zen 5), and the instruction runs as itself
    if f["flags"] & C["O_VECTOR"] and f["mem_size"] == 16 and not row.vex and not unaligned:
        f["flags"] |= C["O_ALIGNED"]
    if f["kind"] == C["K_NATIVE"] and f["flags"] & C["O_LEGACY66"] and f["implicit_w"]:
        by_size = True  # mul, cwde
    if row.vex or row.prefix == "66" or row.size_rule in ("y", "f64", "n"):
        f["flags"] &= ~C["O_LEGACY66"]
    row.narrow = by_size and bool(f["flags"] & C["O_LEGACY66"])
    if not row.vex and row.prefix in ("66", "F3", "F2"):
        f["flags"] |= C["O_PREFIX" + row.prefix]
    if row.in_opcode:
        f["flags"] |= C["O_OPREG"]


def narrowed(row: Row) -> Row:
    """The row at operand size 2: what it writes to registers leaves their upper parts."""
    twin = replace(row, narrow=False, fields=dict(row.fields))
    f = twin.fields
    for use in ("reg_use", "rm_use"):
        if f[use] & C["U_W"]:
            f[use] |= C["U_R"]
    f["implicit_r"] |= f["implicit_w"]
    if any(o.memory == "z" for o in row.operands):
        f["mem_size"] = 2
    if row.name == "bswap":
        f["flags"] |= C["O_UNDEF_DEST"]  # SDM: undefined for 16-bit registers
    return twin


_VEX_SIZE = {"o": "x", "q": "h", "d": "f", "w": "e"}  # 256-bit growth of the memory operand of widening moves
_VEX_FEATURE = {"aes": "aes", "pclmul": "pclmul", "gfni": "gfni"}
_VEX_FEATURE_256 = {"aes": "vaes", "pclmul": "vpclmul", "gfni": "gfni"}


def _vex_lines(line: str) -> list[str]:
    """The VEX twins of an SSE row that says ``+avx...``."""
    parts = re.split(r"\s{2,}", line.strip())
    words = " ".join(parts[3:]).split()
    grow = next((w for w in words if w.startswith("+")), None)
    if grow is None:
        return []
    name, encoding, operands = parts[0], parts[1].split(), parts[2].split(",")
    prefix = encoding.pop(0) if encoding[0] in ("NP", "66", "F3", "F2") else "NP"
    which = encoding.pop(0)
    if which == "0F" and encoding[0] in ("38", "3A") and len(encoding) > 1 and encoding[1][0] != "/":
        which += encoding.pop(0)
    feature = next((w for w in words if w in _VECTOR), "sse")
    wide = grow in ("+avx", "+avx2")
    first = operands[0]
    if wide:
        # A memory operand narrower than 16 bytes keeps its proportion to the vector (pmovzx, cvtps2pd).
        operands = [re.sub(r"^([=+&]?[VWUHM])([oqdw])", lambda m: m[1] + _VEX_SIZE[m[2]], o) for o in operands]
    if "count128" in words:
        operands[1] = "Wo"
    if first[0] == "+" and first[1] in "VU":
        operands[0] = "=" + operands[0][1:]
        source = "H" + operands[0][2:]
        if first[1] == "U" and operands[1][0] in "IK":  # psrlw U,I: the destination is in vvvv
            operands[0], source = "=H" + operands[0][2:], "U" + operands[0][2:]
        operands.insert(1, source)
    keep = [w for w in words if w not in FEATURES and w[0] != "+" and w not in ("unaligned", "count128", "vw0", "vw1")]
    w = "".join("." + x[1:].upper() for x in words if x in ("vw0", "vw1"))

    def form(length: str, feature: str) -> str:
        return "  ".join((f"v{name}", f"VEX{length}.{prefix}.{which}{w} {' '.join(encoding)}", ",".join(operands),
                          " ".join([feature, *keep])))  # fmt: skip

    narrow = _VEX_FEATURE.get(feature, "avx")
    if grow == "+avx" and narrow == "avx":
        return [form("", "avx")]
    if wide:
        return [form(".128", narrow), form(".256", _VEX_FEATURE_256.get(feature, "avx2"))]
    return [form(".128" if grow == "+avx128" else "", narrow)]


def rows() -> list[Row]:
    """Every row in order, the narrow twins behind theirs; row 0 stands for undefined opcodes."""
    from hostel.cpu.bt import table_integer, table_vector, table_x87

    found = [Row("(undefined)", "", [], fields=dict.fromkeys(_parse("ud2  0F 0B  -  ud").fields, 0))]
    for text in (table_integer.TEXT, table_x87.TEXT, table_vector.TEXT):
        for raw in text.splitlines():
            line = raw.partition("#")[0]
            if not line.strip():
                continue
            for each in _expand(line):
                for form in (each, *_vex_lines(each)):
                    row = _parse(form)
                    found.append(row)
                    if row.narrow:
                        found.append(narrowed(row))
    return found


def _expand(line: str) -> list[str]:
    """``jCC  70+cc``: sixteen rows, each with the flags that its condition reads."""
    if "+cc" not in line:
        return [line]
    base = int(re.search(r"(\w\w)\+cc", line)[1], 16)  # type: ignore[index]
    return [
        re.sub(r"\w\w\+cc", f"{base + i:02X}", line.replace("CC", name, 1)) + " " + _CONDITION_FLAGS[i // 2]
        for i, name in enumerate(CONDITIONS)
    ]


# ---- the lookup: which bits besides map and opcode select the row, as decode() assembles them
SELECT = {"prefix": 1, "reg": 2, "mod": 4, "rm": 8, "w": 16, "l": 32, "mode": 64, "rex_b": 128}
_WIDTH = {"prefix": 4, "reg": 8, "mod": 2, "rm": 8, "w": 2, "l": 2, "mode": 2, "rex_b": 2}


def _conditions(row: Row) -> dict[str, tuple[int, ...]]:
    """The values of each selector that this row is for; a selector that is missing has any."""
    wanted: dict[str, tuple[int, ...]] = {}
    if row.prefix or row.vex:
        wanted["prefix"] = PREFIXES[row.prefix]
    if row.digits:
        wanted["reg"] = row.digits
    if row.mod and row.modrm:
        wanted["mod"] = (int(row.mod == "r"),)
    if row.rm >= 0:
        wanted["rm"] = (row.rm,)
    if row.w >= 0:
        wanted["w"] = (row.w,)
    if row.length >= 0:
        wanted["l"] = (row.length,)
    if row.modes:
        wanted["mode"] = (int(row.modes == "64"),)
    if row.rex_b >= 0:
        wanted["rex_b"] = (row.rex_b,)
    return wanted


def lookup(table: list[Row]) -> tuple[dict[tuple[bool, int, int], tuple[int, int, bool]], list[int]]:
    """Per (VEX, map, opcode): the selectors in use, where its block of row numbers starts, whether ModRM follows.

    In a block, the selectors are the digits of a mixed-radix number, in the order of ``SELECT``. The row with the
    most conditions wins; ``ValueError`` when two have as many.
    """
    groups: dict[tuple[bool, int, int], list[tuple[int, Row]]] = {}
    for number, row in enumerate(table):
        if number and not (number > 1 and table[number - 1].narrow):
            for opcode in row.opcodes():
                groups.setdefault((row.vex, row.opmap, opcode), []).append((number, row))
    slots: dict[tuple[bool, int, int], tuple[int, int, bool]] = {}
    leaves: list[int] = []
    for key, members in groups.items():
        conditions = [(number, row, _conditions(row)) for number, row in members]
        used = [s for s in SELECT if any(s in c for _, _, c in conditions)]
        block = [0] * prod(_WIDTH[s] for s in used)
        rank = [-1] * len(block)
        for number, row, wanted in conditions:
            for at in _positions(used, wanted):
                if len(wanted) == rank[at]:
                    raise ValueError(f"{row.name} {row.encoding} and {table[block[at]].name} meet")
                if len(wanted) > rank[at]:
                    block[at], rank[at] = number, len(wanted)
        slots[key] = (sum(SELECT[s] for s in used), len(leaves), any(row.modrm for _, row in members))
        leaves += block
    return slots, leaves


def _positions(used: list[str], wanted: dict[str, tuple[int, ...]]) -> list[int]:
    positions = [0]
    for selector in used:
        width = _WIDTH[selector]
        values = wanted.get(selector, range(width))
        positions = [p * width + v for p in positions for v in values]
    return positions
