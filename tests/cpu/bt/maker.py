"""One case of the oracle test in the making: an instruction, alone or among others.

Registers are given their first values as they come to be used: one that nothing has written yet may still become the
base of an address that hits what it should.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import oracle
from oracle import DATA, IMAGES, STACK, Case, interesting
from rows import (
    ALONE,
    ALONE_NAMES,
    AMD,
    BRANCHES,
    ENVIRONMENT,
    FAR,
    M64,
    PP,
    SEGMENT_PREFIX,
    SELECTORS,
    USER_DATA,
    K,
    S,
)  # fmt: skip

from hostel.cpu.bt import decode
from hostel.cpu.bt.table import C

if TYPE_CHECKING:
    from generate import Generator


class Maker:
    """One case in the making."""

    writable = False  # whether the code may change itself
    memory_share = 0.55  # of the operands that may be in memory
    masked = False  # whether vector and x87 instructions mostly raise no exceptions
    reach = 4  # below how many instructions a jump goes over

    def __init__(self, of: Generator, rng, number: int, focus: int, mode: int):
        self.of, self.rng, self.focus, self.mode = of, rng, focus, mode
        self.mask = M64 if mode == 8 else 0xFFFFFFFF
        self.data = DATA if mode == 2 else 0  # what DS and ES are relative to
        self.count = 16 if mode == 8 else 8
        self.values: dict[int, int] = {}
        self.modified: set[int] = set()
        self.kept: set[int] = set()
        self.patches: list[tuple[int, int]] = []
        self.ignore: list[tuple[int, int]] = []
        self.rows: list[int] = []
        self.code = bytearray()
        self.fixups: list[list] = []  # [instructions until the target, kind, where, flags undefined there]
        self.undefined = 0  # flags that no instruction may read now
        self.subroutines: list = []
        self.fs_base, self.gs_base = (rng.choice((0, 0, 0x10, 0x1000, M64 - 0xFFF, 0x40)) for _ in "fg")
        self.offset = 0x1000 - rng.randrange(1, 40) if rng.random() < 0.15 else rng.randrange(0, 0x700)
        self.start = oracle.place_of(number * oracle.STATES, mode, self.writable) + self.offset
        self.alone = False
        self.end = 0
        self.wild = rng.random() < 0.12  # addresses that fault

    # ---- registers

    def free(self, r: int) -> bool:
        return r not in self.values and r not in self.modified

    def decide(self, r: int, value: int) -> bool:
        """Make r start with value (if it may still be chosen)."""
        if not self.free(r):
            return False
        self.values[r] = value & self.mask
        return True

    def known(self, r: int) -> int | None:
        return self.values.get(r) if r not in self.modified else None

    def register(self, write: bool = False) -> int:
        rng = self.rng
        for _ in range(8):
            r = rng.randrange(self.count)
            if self.count == 16 and rng.random() < 0.25:
                r = rng.choice((14, 15))
            if write and (r in self.kept or (r == 4 and rng.random() < 0.97)):
                continue
            return r
        return 0

    # ---- addresses

    def place(self, size: int, align: bool, valid: bool = False) -> int:
        """A linear address for an operand of ``size`` bytes."""
        rng = self.rng
        if not valid and self.wild and rng.random() < 0.7:
            return rng.choice((
                DATA + 0x3000 - rng.randrange(0, max(size, 2)), DATA + 0x3000 + rng.randrange(0, 0x1000),
                DATA + 0x4000 - rng.randrange(1, max(size, 2)), DATA + 0x2000 - rng.randrange(0, max(size, 2)),
                DATA + 0x2000 + rng.randrange(0, 0x1000), DATA - rng.randrange(1, max(size, 2)),
                DATA + 0x5000 - rng.randrange(0, max(size, 2)), 1 << 47, (1 << 47) - rng.randrange(1, max(size, 2)),
                rng.getrandbits(64), 0xFFFF_8000_0000_0000, M64 - rng.randrange(0, 40), rng.getrandbits(16),
                STACK - rng.randrange(1, max(size, 2)), STACK + 0x2000 - rng.randrange(0, max(size, 2)),
            )) & self.mask  # fmt: skip
        kind = rng.random()
        if align:
            unit = size if size & (size - 1) == 0 else 16
            at = rng.randrange(0, 0x2000 - size + 1) // unit * unit
            if kind < 0.03 and not valid:
                at += 1
        elif kind < 0.25:
            at = 0x1000 - rng.randrange(0, size + 1)
        elif kind < 0.5:
            at = rng.randrange(0, 0x2000 - size + 1)
        else:
            at = rng.randrange(0, (0x2000 - size) // 8 + 1) * 8
        if rng.random() < 0.1 and size <= 0x1000:
            return DATA + 0x4000 + at % (0x1001 - size)
        return DATA + at

    def offset_of(self, size: int, align: bool = False, valid: bool = False) -> int:
        """``place`` relative to DS."""
        return self.place(size, align, valid) - self.data

    def memory(self, size: int, align: bool, vsib: int = 0, valid: bool = False) -> dict:
        """An addressing form: the fields of ModRM, SIB, the prefixes that it needs, and the address."""
        rng = self.rng
        target = self.place(size, align, valid)
        f = {"target": target, "x": 0, "b": 0, "segment": None, "a67": False, "sib": None, "disp": b"", "rip": False}
        width = self.mode
        if self.mode == 2:
            if vsib or rng.random() < 0.3:
                f["a67"] = True
                width = 4
        elif not vsib and rng.random() < 0.08 and (self.mode == 8 or not valid):
            f["a67"] = True
            width = 4 if self.mode == 8 else 2
        offset = target - self.data
        if rng.random() < 0.1:
            # not FS and GS in 32-bit code: they are null, and the translator doesn't check that
            f["segment"] = rng.choice((4, 5)) if self.mode == 8 else rng.choice((0, 2, 3))
            if self.mode == 8:
                offset = target - (self.fs_base if f["segment"] == 4 else self.gs_base) & M64
                if offset + (1 << 47) & M64 >= 1 << 48 > target + (1 << 47) & M64:  # only the sum is canonical
                    f["segment"], offset = None, target  # a Zen 5 refuses it, others don't
        elif rng.random() < 0.04:
            f["segment"] = rng.choice((0, 1, 2, 3))
            if self.mode != 8 and f["segment"] == 1:  # code can't be written
                f["segment"] = 3
        if self.mode == 2 and f["segment"] != 0:  # SS begins elsewhere
            f["segment"] = 3
        if width == 2:
            return self._memory16(f, offset)
        mask = M64 if width == 8 else 0xFFFFFFFF
        if offset > mask:
            f["a67"], width, mask = False, 8, M64
        form = rng.random()
        if vsib:
            form = 0.6
        if form < 0.1 and not vsib and (offset < 1 << 31 or width == 4):
            disp = struct.pack("<I", offset & 0xFFFFFFFF)
            if self.mode == 8:  # without base and index
                f.update(mod=0, rm=4, sib=0x25, disp=disp)
            else:
                f.update(mod=0, rm=5, disp=disp)
            return f
        if form < 0.2 and self.mode == 8 and not vsib and abs(offset - self.start) < 1 << 30:
            f.update(mod=0, rm=5, rip=True, disp=bytes(4), offset=offset, width=width)
            return f
        displacement, dsize = 0, 0
        pick = rng.random()
        if pick < 0.35:
            displacement, dsize = rng.randrange(-128, 128), 1
        elif pick < 0.6:
            displacement, dsize = rng.randrange(-1 << 31, 1 << 31), 4
            if rng.random() < 0.5:
                displacement >>= rng.randrange(31)
        index, scale, scaled = None, 0, 0
        if vsib:
            index, scale = vsib - 1, rng.randrange(4)
        elif form < 0.6:
            index = rng.choice([r for r in range(self.count) if r != 4])
            scale = rng.randrange(4)
            if self.free(index):
                self.decide(index, rng.randrange(-200, 200) if rng.random() < 0.7 else rng.getrandbits(64))
            if self.known(index) is None:
                index = None
            else:
                scaled = self.values[index] << scale
        want = offset - displacement - scaled & mask
        bases = [r for r in range(self.count) if self.free(r) and r != 4]
        base = rng.choice(bases) if bases and rng.random() < 0.8 else None
        if base is not None:
            high = rng.getrandbits(32) << 32 if width == 4 and self.mode == 8 else 0
            self.decide(base, want | high)
        else:  # one that happens to be near
            near = []
            for r, value in self.values.items():
                away = (offset - scaled - value & mask) if r not in self.modified else None
                if away is not None:
                    away -= mask + 1 if away > mask >> 1 else 0
                    if -1 << 31 <= away < 1 << 31:
                        near.append((r, away))
            if near:
                base, displacement = rng.choice(near)
                dsize = 1 if -128 <= displacement < 128 and rng.random() < 0.8 else 4
            elif bases:
                base = rng.choice(bases)
                self.decide(base, want)
            elif self.mode == 8 and abs(offset - self.start) < 1 << 30 and not vsib:
                f.update(mod=0, rm=5, rip=True, disp=bytes(4), offset=offset, width=width)
                return f
            else:
                base = rng.randrange(self.count)  # somewhere
        if index is None and base & 7 != 4 and rng.random() < 0.9:
            f["rm"] = base & 7
        else:
            f["rm"] = 4
            f["sib"] = scale << 6 | (4 if index is None else index & 7) << 3 | base & 7
            f["x"] = 0 if index is None else index >> 3
        f["b"] = base >> 3
        if dsize == 0 and base & 7 == 5:
            dsize = 1
        f["mod"] = {0: 0, 1: 1, 4: 2}[dsize]
        f["disp"] = displacement.to_bytes(dsize, "little", signed=True)
        return f

    def _memory16(self, f: dict, offset: int) -> dict:
        rng = self.rng
        rm, mod = rng.randrange(8), rng.randrange(3)
        size = (2 if rm == 6 else 0, 1, 2)[mod]
        registers = ((3, 6), (3, 7), (5, 6), (5, 7), (6,), (7,), (5,), (3,))[rm]
        disp = rng.randbytes(size)
        f.update(mod=mod, rm=rm, disp=disp)
        if mod == 0 and rm == 6:
            f["disp"] = struct.pack("<H", offset & 0xFFFF)
            return f
        left = offset - int.from_bytes(disp, "little", signed=True)
        for r in registers:
            if r is registers[-1]:
                self.decide(r, left & 0xFFFF | rng.getrandbits(16) << 16)
            else:
                self.decide(r, rng.getrandbits(rng.choice((4, 16))))
            left -= self.known(r) or 0
        if left & 0xFFFF or any(self.known(r) is None for r in registers):
            f["target"] = None  # somewhere
        return f

    # ---- instructions

    def emit(self, number: int) -> bool:
        """Append an instruction of the row; False if its encoding turned out to be another row's."""
        rng, row = self.rng, self.of.rows[number]
        kind, system = row["kind"], row["system"]
        if kind in (K["JCC"], K["JMP"], K["LOOP"], K["CALL"]):
            return self._branch(row)
        if kind in (K["JMP_IND"], K["CALL_IND"]):
            return self._indirect(row)
        self._wishes(row)
        form = self._form(row)
        code = self._assemble(row, form)
        if code is None:
            return False
        memory = form["memory"]
        if memory is not None and memory.get("target") is not None:
            self._patch(row, form, memory["target"])
            if row["name"] in ENVIRONMENT:
                narrow = form["opsize"] == 2
                self.ignore.append((memory["target"] + (6 if narrow else 12), 8 if narrow else 16))
            elif system == S["FXSAVE"]:
                self.ignore.append((memory["target"] + 6, 18))
                self.ignore.append((memory["target"] + 28, 4))
        if system == S["PUSH_SEG"]:  # the upper part of the slot is written, or it isn't (SDM, PUSH)
            self.ignore.append((self.values[4] - form["opsize"] + 2, form["opsize"] - 2))
        if system == S["POP_SEG"] and rng.random() < 0.8:
            self._poke(self.values[4], self._selector())
        if kind == K["RET"]:
            self._return(form)
        elif system in FAR:
            return self._far(row, form)
        return self._append(code, number)

    def _append(self, code: bytes, number: int) -> bool:
        insn = decode.decode_py(code + bytes(15), self.start + len(self.code), self.mode)
        if insn["result"] != len(code) or insn["op"] != number:
            return False
        row = self.of.rows[number]
        if row["flags_read"] & self.undefined:
            return False
        self.undefined = self.undefined & ~row["flags_kill"] | row["flags_undef"]
        self.modified |= self.written(row, insn)
        self.code += code
        self.rows.append(number)
        for fixup in self.fixups:
            fixup[0] -= 1
        self._settle(False)
        return True

    def written(self, row: dict, insn: dict) -> set[int]:
        """The general registers that the instruction changes."""
        rex = insn["prefixes"] & (C["P_REX"] | C["P_VEX"])
        changed = {r for r in range(16) if row["implicit_w"] >> r & 1}
        for use, field in ((row["reg_use"], "reg"), (row["rm_use"], "rm"), (row["vvvv_use"], "vvvv")):
            if use & C["U_W"] and (field != "rm" or insn["mod"] == 3):
                r = insn[field]
                changed.add(r - 4 if use & C["U_BYTE"] and not rex and 4 <= r <= 7 else r)
        return changed

    def _form(self, row: dict) -> dict:
        """Choose operands, prefixes and immediates."""
        rng, mode = self.rng, self.mode
        rule = row["size_rule"]
        narrow = row["narrow_of"] is not None
        long = mode == 8
        w = row["w"]
        p66 = narrow
        if w < 0:
            w = 0
            if long and not narrow and rng.random() < (0.5 if rule in ("v", "y") else 0.1):
                w = 1
        if not row["narrow"] and not narrow and row["prefix"] == "" and not row["vex"]:
            branch = row["kind"] in (K["RET"], K["JCC"], K["JMP"], K["CALL"], K["JMP_IND"], K["CALL_IND"])
            p66 = rng.random() < 0.12 and not branch
        opsize = 8 if long and w else 2 if p66 else 4
        if mode == 2:
            p66 = bool(row["narrow"] or (not narrow and not p66 and row["prefix"] == "" and not row["vex"]))
            opsize = 4 if p66 else 2
        if rule == "y" and not w:
            opsize = 4
        if rule in ("d64", "f64") and long:
            opsize = 2 if p66 and rule == "d64" else 8
        if rule == "n":
            opsize = 8 if long else 4
        if rule == "z" and opsize == 8:
            opsize = 4
        form = {"w": w, "p66": p66, "opsize": opsize, "memory": None, "rex": False, "reg": 0, "rm": 0, "vvvv": 0}
        length = row["length"]
        if row["vex"]:
            form["l"] = length if length >= 0 else rng.getrandbits(1)
        limit = self.count
        if row["modrm"]:
            if row["digits"]:
                form["reg"] = rng.choice(row["digits"])
            elif row["reg_use"]:
                form["reg"] = self.register(bool(row["reg_use"] & C["U_W"]))
            else:
                form["reg"] = rng.randrange(limit)
            vsib = row["flags"] & C["O_VSIB"]
            if row["rm"] >= 0:
                form["rm"] = row["rm"]
            elif row["mod"] == "m" or (row["mod"] == "" and rng.random() < self.memory_share):
                size = self._size(row, form)
                valid = row["kind"] == K["NOP"]  # what may fault for CLFLUSH doesn't for the others
                index = 0
                if vsib:
                    index = 1 + rng.choice([r for r in range(limit)])
                    while form["reg"] == index - 1:
                        form["reg"] = rng.randrange(limit)
                align = bool(row["flags"] & C["O_ALIGNED"]) or rng.random() < 0.3
                form["memory"] = self.memory(size, align or row["system"] == S["FXSAVE"], index, valid)
                self._bit_offset(row, form)
            elif row["rm_use"]:
                form["rm"] = self.register(bool(row["rm_use"] & C["U_W"]))
            else:
                form["rm"] = rng.randrange(limit)
            if any(o.lstrip("=+&")[0] in "T" for o in row["operands"]):
                form["rm"] &= 7
        elif row["in_opcode"]:
            form["rm"] = self.register(bool(row["rm_use"] & C["U_W"]))
        if row["rex_b"] == 0:
            form["rm"] &= 7
        elif row["rex_b"] == 1:
            form["rm"] = 8
        if row["has_vvvv"]:
            form["vvvv"] = self.register(True) if row["vvvv_use"] else rng.randrange(limit)
            if row["flags"] & C["O_VSIB"]:
                while form["vvvv"] in (form["reg"], index - 1):
                    form["vvvv"] = rng.randrange(limit)
        # any REX turns ah..bh into spl..dil
        form["rex"] = long and not row["vex"] and rng.random() < 0.15
        form["imm"] = self._immediate(row, form)
        return form

    def _size(self, row: dict, form: dict) -> int:
        n = row["mem_size"]
        vector = 32 if form.get("l") else 16
        if n == 0:
            return 1 if row["flags"] & C["O_BYTEOP"] else form["opsize"]
        if n < 0x80:
            return n
        return {
            C["MS_X"]: vector, C["MS_HALF"]: vector // 2, C["MS_QUARTER"]: vector // 4, C["MS_EIGHTH"]: vector // 8,
            C["MS_TWICE"]: 2 * form["opsize"], C["MS_FAR"]: form["opsize"] + 2, C["MS_ENV"]: 28, C["MS_FSAVE"]: 108,
            C["MS_512"]: 512,
        }.get(n, 16)  # fmt: skip

    def _bit_offset(self, row: dict, form: dict) -> None:
        """bt m,r: mostly a bit that isn't far away."""
        if row["kind"] == K["BT"] and self.rng.random() < 0.8:
            self.decide(form["reg"], self.rng.randrange(-200, 200))

    def _immediate(self, row: dict, form: dict) -> bytes:
        rng, kind = self.rng, row["imm"]
        if not kind:
            return b""
        if kind in ("Ib", "Kb", "Lx", "Jb"):
            edges = (0, 1, 7, 8, 31, 32, 63, 0x7F, 0x80, 0xFF, rng.getrandbits(8), rng.getrandbits(5))
            return bytes([rng.choice(edges)])
        if kind in ("Iz", "Jz"):
            size = min(form["opsize"], 4)
        elif kind == "Iv":
            size = form["opsize"]
        elif kind == "Kw":
            return struct.pack("<H", rng.randrange(0, 64))
        elif kind == "Kwb":
            return struct.pack("<HB", rng.randrange(0, 256), rng.choice((0, 0, 1, 2, 3, 31)))
        elif kind in ("Ob", "Ov"):
            size = 1 if kind == "Ob" else form["opsize"]
            return struct.pack("<Q", self.offset_of(size) & M64)[: self.mode]
        elif kind == "Ap":
            return b"\0" * (form["opsize"] + 2)
        return (interesting(rng) & (1 << 8 * size) - 1).to_bytes(size, "little")

    def _assemble(self, row: dict, form: dict) -> bytes | None:
        rng, memory, long = self.rng, form["memory"], self.mode == 8
        prefixes = []
        if form["p66"] and not row["vex"]:
            prefixes.append(0x66)
        a67 = memory["a67"] if memory else False
        segment = memory["segment"] if memory else None
        if row["kind"] in (K["STRING"], K["XLAT"], K["MOV_MOFFS"], K["LOOP"], K["GATHER"]) and not memory:
            if rng.random() < 0.1 and row["kind"] != K["GATHER"]:
                segment = rng.choice((4, 5, 3)) if long else 3
            if row["kind"] != K["MOV_MOFFS"] and rng.random() < 0.1 and long:
                # the processor may or may not cut the registers of string instructions to 32 bits
                a67 = row["kind"] != K["STRING"] or all((self.known(r) or 1 << 32) < 1 << 32 for r in (1, 6, 7))
        if a67:
            prefixes.append(0x67)
        if segment is not None:
            prefixes.append(SEGMENT_PREFIX[segment])
        lockable = row["flags"] & C["O_LOCKABLE"]
        if lockable and memory and rng.random() < 0.35:
            prefixes.append(0xF0)
        if row["prefix"] == "REP":
            prefixes.append(rng.choice((0xF2, 0xF3)))
        reg, rm = form["reg"], form["rm"]
        r, x, b = reg >> 3, 0, rm >> 3
        if memory:
            x, b = memory["x"], memory["b"]
        if row["vex"]:
            head = self._vex(row, form, r, x, b)
            opcode = bytes([row["opcode"]])
        else:
            mandatory = row["prefix"]
            if mandatory in ("66", "F3", "F2"):
                prefixes.append(int(mandatory, 16))
            rng.shuffle(prefixes)
            if rng.random() < 0.12:
                prefixes = self._redundant(row, prefixes, segment is not None, form["rex"])
            head = bytes(prefixes)
            prefixes = []
            if long and (form["w"] or r or x or b or form["rex"]):
                head += bytes([0x40 | form["w"] << 3 | r << 2 | x << 1 | b])
            head += (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")[row["opmap"]]
            opcode = bytes([row["opcode"] | (rm & 7 if row["in_opcode"] else 0)])
            if row["opcode"] == 0x90 and row["rex_b"] == 1:
                opcode = b"\x90"
        rng.shuffle(prefixes)
        code = bytes(prefixes) + head + opcode
        if row["modrm"]:
            if memory:
                code += bytes([memory["mod"] << 6 | (reg & 7) << 3 | memory["rm"]])
                if memory["sib"] is not None:
                    code += bytes([memory["sib"]])
                disp = memory["disp"]
                if memory["rip"]:
                    after = self.start + len(self.code) + len(code) + 4 + len(form["imm"])
                    disp = struct.pack("<i", memory["offset"] - after)
                code += disp
            else:
                code += bytes([0xC0 | (reg & 7) << 3 | rm & 7])
        if row["kind"] == K["MOV_MOFFS"] and a67:
            return None
        code += form["imm"]
        return code if len(code) <= 15 else None

    def _redundant(self, row: dict, prefixes: list[int], segment: bool, rex: bool) -> list[int]:
        """More prefixes than are needed, in any order: repeated ones, such as do nothing, a REX that isn't the last."""
        rng, long = self.rng, self.mode == 8
        more = [p for p in prefixes if p not in (0x26, 0x2E, 0x36, 0x3E) or long]
        if long:
            more += [0x26, 0x2E, 0x36, 0x3E]
        elif not segment and row["kind"] not in BRANCHES:
            more += [0x3E]
        if row["prefix"] == "" and not row["flags"] & C["O_LOCKABLE"]:
            more += [0xF2, 0xF3]
        if not row["modrm"] and row["kind"] == K["NATIVE"]:
            more += [0x67]
        if long and row["w"] == 1:
            more += [0x66]
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            if more:
                prefixes.insert(rng.randrange(len(prefixes) + 1), rng.choice(more))
        if long and prefixes and rng.random() < 0.4:  # a REX counts only right before the opcode
            prefixes.insert(rng.randrange(len(prefixes)), 0x40 | rng.getrandbits(4))
        return prefixes

    def _refused(self) -> None:
        """Perhaps, as the last thing, an encoding that isn't one: a prefix that it can't have, or too long."""
        rng = self.rng
        row = self.of.rows[rng.choice(self.of.fillers[self.mode])]
        if row["kind"] in BRANCHES or (AMD and row["system"] in (S["MOV_FROM_CR"], S["MOV_TO_CR"])):
            return  # LOCK MOV CR0 is MOV CR8 on AMD's processors
        code = self._assemble(row, self._form(row))
        if code is None:
            return
        if row["vex"]:
            head = bytes([rng.choice((0x66, 0xF2, 0xF3, 0xF0) + ((0x48, 0x40) if self.mode == 8 else ()))])
        elif rng.random() < 0.7:
            head = b"\xf0"
        else:
            head = bytes([rng.choice((0x2E, 0x3E))]) * (16 - len(code))
        code = head + code
        if decode.decode_py(code + bytes(15), self.start + len(self.code), self.mode)["op"] == 0:
            self.code += code

    def _vex(self, row: dict, form: dict, r: int, x: int, b: int) -> bytes:
        vvvv = ~form["vvvv"] & 15
        tail = vvvv << 3 | form["l"] << 2 | PP[row["prefix"]]
        if row["opmap"] == 1 and not form["w"] and not x and not b and self.rng.random() < 0.7:
            return bytes([0xC5, (r ^ 1) << 7 | tail])
        return bytes([0xC4, (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | row["opmap"], form["w"] << 7 | tail])

    # ---- what makes particular rows worth running

    def _wishes(self, row: dict) -> None:
        rng, kind, name = self.rng, row["kind"], row["name"].removeprefix("v")
        if kind == K["STRING"] or row["system"] in (S["INS"], S["OUTS"]):
            size = 8
            self.decide(6, self.offset_of(size * 4))
            self.decide(7, self.offset_of(size * 4))
            self.decide(1, rng.randrange(0, 20) if rng.random() < 0.9 else rng.randrange(300))
        elif name == "xlat":
            self.decide(3, self.offset_of(256))
        elif name in ("maskmovq", "maskmovdqu"):
            self.decide(7, self.offset_of(16, valid=True))  # masked bytes may fault, or not
        elif name in ("div", "idiv"):
            if rng.random() < 0.7:
                value = interesting(rng)
                self.decide(2, rng.choice((0, rng.getrandbits(8), (M64 if value >> 63 else 0))))
                self.decide(0, value)
        elif name in ("pcmpestrm", "pcmpestri"):
            self.decide(0, rng.randrange(-20, 20))
            self.decide(2, rng.randrange(-20, 20))
        elif "cl" in row["operands"]:
            count = rng.choice((0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, rng.getrandbits(8)))
            self.decide(1, rng.getrandbits(64) << 8 | count)
        elif name == "leave" or name == "enter":
            self.decide(5, STACK + rng.randrange(0, 0x1F0) * 8)
        elif kind == K["LOOP"]:
            self.decide(1, rng.choice((0, 1, 2, 3, rng.getrandbits(64))))
        elif row["system"] in (S["MOV_TO_SEG"],):
            for r in range(16):
                self.decide(r, rng.choice(SELECTORS)) if rng.random() < 0.3 else None

    def _patch(self, row: dict, form: dict, target: int) -> None:
        """Put something useful at a memory operand."""
        rng, name, system = self.rng, row["name"].removeprefix("v"), row["system"]
        value = None
        if name == "ldmxcsr":
            value = rng.getrandbits(16) | 0x1F80 if rng.random() < 0.8 else rng.getrandbits(16)
        elif name == "fldcw":
            value = 0x37F ^ (rng.getrandbits(12) if rng.random() < 0.5 else rng.getrandbits(4) << 8)
        elif name == "cmpxchg" and rng.random() < 0.5:
            value = interesting(rng)
            self.decide(0, value)
        elif name in ("cmpxchg8b", "cmpxchg16b") and rng.random() < 0.5:
            value = interesting(rng)
            if name == "cmpxchg8b":
                self.decide(0, value & 0xFFFFFFFF)
                self.decide(2, value >> 32)
            else:
                self.decide(0, value)
                high = interesting(rng)
                self.decide(2, high)
                self._poke(target + 8, high)
        elif name in ("div", "idiv") and rng.random() < 0.3:
            value = rng.getrandbits(64)
        elif system in (S["MOV_TO_SEG"],):
            value = self._selector()
        elif system == S["LOAD_FAR"]:
            value = self._selector() << 8 * form["opsize"] | rng.getrandbits(16)
            if form["opsize"] == 8:
                self._poke(target + 8, value >> 64)
        elif system == S["FXRSTOR"]:
            self._poke(target + 24, 0xFFFF_0000_1F80 | rng.getrandbits(15))
        elif name == "bound":
            value = rng.getrandbits(15) << 8 * form["opsize"]
            self.decide(form["reg"], rng.getrandbits(14))
        if value is not None:
            self._poke(target, value & M64)

    def _selector(self) -> int:
        return USER_DATA if self.rng.random() < 0.6 else self.rng.choice(SELECTORS)

    def _poke(self, address: int, value: int) -> bool:
        if len(self.patches) >= 4:
            return False
        for base, size in oracle.WRITABLE:
            if base <= address <= base + size - 8:
                self.patches.append((address, value))
                return True
        return False

    # ---- control flow

    def _here(self) -> int:
        return self.start + len(self.code)

    def _branch(self, row: dict) -> bool:
        """A relative jump over a few instructions, or a call of a subroutine behind the end."""
        rng, number = self.rng, row["number"]
        self._wishes(row)
        size = 1 if row["imm"] == "Jb" else 2 if self.mode == 2 else 4
        head = b""
        if row["kind"] == K["LOOP"] and rng.random() < 0.2:
            head = b"\x67"
        if row["kind"] in (K["JCC"],) and rng.random() < 0.1:
            head += rng.choice((b"\x2e", b"\x3e"))  # hints
        head += (b"", b"\x0f")[row["opmap"]] + bytes([row["opcode"]])
        if self.mode != 8 and head[:1] == b"\x67":
            head = head[1:]
        call = row["kind"] == K["CALL"]
        over = 1 if call else rng.randrange(0, self.reach)
        where = len(self.code) + len(head)
        self.modified.update(r for r in range(16) if row["implicit_w"] >> r & 1)
        if call:
            self.subroutines.append((where, size))
        elif row["flags_read"] & self.undefined:
            return False
        else:
            self.fixups.append([over + 1, size, where, self.undefined])
        done = self._append(head + bytes(size), number)
        if call:
            self.undefined = oracle.ARITHMETIC  # whatever the subroutine does
        return done

    def _settle(self, everything: bool) -> None:
        """Fill in the targets that have been reached."""
        left = []
        for fixup in self.fixups:
            remaining, size, where, undefined = fixup
            if remaining > 0 and not everything:
                left.append(fixup)
                continue
            self.undefined |= undefined
            if size < 0:  # the initial value of a register
                self.values[-size - 1] = self._here()
            elif size == 0:  # a value in memory
                self.patches[where] = (self.patches[where][0], self._here() | self.patches[where][1])
            else:
                away = len(self.code) - (where + size)
                self.code[where : where + size] = away.to_bytes(size, "little", signed=True)
        self.fixups = left

    def _indirect(self, row: dict) -> bool:
        rng, number = self.rng, row["number"]
        head, opcode = b"", 0xFF
        digit = row["digits"][0]
        over = rng.randrange(1, 3)
        rex = 0
        if self.mode == 8 and rng.random() < 0.15:
            rex = 0x40 | rng.choice((0, 8))
        if rng.random() < 0.5:
            choices = [r for r in range(self.count) if self.free(r) and r != 4]
            if not choices:
                return False
            r = rng.choice(choices)
            self.values[r] = 0
            self.kept.add(r)
            self.fixups.append([over, -r - 1, 0, self.undefined])
            rex |= 0x41 if r >> 3 else 0
            head += bytes([rex]) if rex else b""
            return self._append(head + bytes([opcode, 0xC0 | digit << 3 | r & 7]), number)
        size = self.mode
        memory = self.memory(size, False, valid=not self.wild)
        form = {"memory": memory, "imm": b"", "reg": digit, "rm": 0, "vvvv": 0, "w": rex >> 3 & 1, "rex": bool(rex),
                "p66": False, "opsize": size}  # fmt: skip
        target = memory.get("target")
        if target is not None and self._poke(target, 0):
            self.fixups.append([over, 0, len(self.patches) - 1, self.undefined])
        code = self._assemble(row, form)
        return code is not None and self._append(code, number)

    def _return(self, form: dict) -> None:
        rsp = self.values.get(4)
        if 4 in self.modified or rsp is None:
            return
        if self._poke(rsp, 0):
            self.fixups.append([1, 0, len(self.patches) - 1, self.undefined])

    def _far(self, row: dict, form: dict) -> bool:
        """Far transfers that are given something sensible (mostly) to go to: what follows, in either mode."""
        rng, system = self.rng, row["system"]
        size = form["opsize"]
        selector = rng.choice((0x33, 0x23, 0x33, 0x23, 0x32, 0x2B, 0, 0x1234, 0x10))
        code = self._assemble(row, form)
        if code is None:
            return False
        after = self._here() + len(code)
        if size == 2:
            after &= 0xFFFF
        rsp = self.values[4]
        if system in (S["JMP_FAR"], S["CALL_FAR"]):
            code = code[: -size - 2] + after.to_bytes(size, "little") + struct.pack("<H", selector)
        elif system in (S["JMP_FAR_MEM"], S["CALL_FAR_MEM"]):
            if form["memory"].get("target") is not None:
                if size == 8:
                    self._poke(form["memory"]["target"] + 8, selector)
                    self._poke(form["memory"]["target"], after)
                else:
                    self._poke(form["memory"]["target"], selector << 8 * size | after)
        else:
            frame = [after, selector]
            if system == S["IRET"]:
                flags = 0x202 | rng.getrandbits(12) & 0xCD5
                frame += [flags, STACK + 0x800, 0x2B]
            data = b"".join((value & (1 << 8 * size) - 1).to_bytes(size, "little") for value in frame)
            data += bytes(-len(data) % 8)
            for i in range(0, min(len(data), 32), 8):
                self._poke(rsp + i, struct.unpack_from("<Q", data, i)[0])
            if len(data) > 32:
                return False
        return self._append(code, row["number"])

    def make(self, single: bool) -> None:
        rng, of, mode = self.rng, self.of, self.mode
        row = of.rows[self.focus]
        self.wild = self.wild and not single
        rsp = STACK + 0x800 + rng.randrange(0, 0x1F0) * 8
        if not single and rng.random() < 0.1:
            rsp = STACK + rng.choice((0, 4, 0x1000, 0x1004, 0xFFA, 0x1FF8, 0x2000, 0x1FFC, 1, 8))
        if row["system"] in FAR:
            rsp = STACK + 0x800
        self.decide(4, rsp)
        if rng.random() < 0.01 and mode == 8 and row["system"] not in FAR:
            self.values[4] = 1 << 63
        self.alone = row["system"] in ALONE or row["name"] in ALONE_NAMES or single or rng.random() < 0.3
        if self.alone:
            for _ in range(20):
                if self.emit(self.focus):
                    break
                self._forget()
        else:
            self._block()
        self._settle(True)
        undefined = self.undefined
        self.end = len(self.code)
        if not self.alone and rng.random() < 0.03:
            self._refused()
        self._subroutines()
        self.undefined = undefined

    def _forget(self) -> None:
        """After an encoding that failed: begin again."""
        rsp = self.values[4]
        self.values, self.modified, self.patches, self.fixups, self.ignore = {4: rsp}, set(), [], [], []
        self.undefined = 0
        self.kept, self.subroutines = set(), []

    def _block(self) -> None:
        rng, of, mode = self.rng, self.of, self.mode
        n = rng.choice((2, 2, 3, 3, 4, 5, 6, 8, 10, 12))
        at = rng.randrange(n)
        loop = rng.random() < 0.15
        counter = rng.choice([r for r in range(self.count) if r != 4]) if loop else -1
        if loop:
            counter = 1 if rng.random() < 0.3 else counter
            self.decide(counter, rng.randrange(1, 6))
            self.kept.add(counter)
        begin = len(self.code)
        for i in range(n):
            number = self.focus if i == at else rng.choice(of.common[mode] if rng.random() < 0.6 else of.fillers[mode])
            for _ in range(6):
                if self.emit(number):
                    break
        self._settle(True)
        if loop:
            self._back(counter, begin)

    def _back(self, counter: int, begin: int) -> None:
        """Jump back to begin while the counter isn't 0."""
        rng, mode = self.rng, self.mode
        if self.undefined:
            self.code += b"\x39\xc0"  # cmp eax, eax
            self.undefined = 0
        if counter == 1 and len(self.code) - begin < 120 and rng.random() < 0.7:
            tail = b"\xe2"
        else:
            if mode == 8:
                tail = bytes([0x48 | counter >> 3, 0xFF, 0xC8 | counter & 7])
            else:
                tail = bytes([0x83, 0xE8 | counter, 1])
            tail += b"\x75" if len(self.code) - begin < 110 else b"\x0f\x85"
        size = (2 if mode == 2 else 4) if tail[-2:] == b"\x0f\x85" else 1
        away = begin - (len(self.code) + len(tail) + size)
        self.code += tail + away.to_bytes(size, "little", signed=True)

    def _subroutines(self) -> None:
        rng = self.rng
        for where, size in self.subroutines:
            self.code += b"\xcc"
            away = len(self.code) - (where + size)
            self.code[where : where + size] = away.to_bytes(size, "little", signed=True)
            self.undefined = oracle.ARITHMETIC
            for _ in range(rng.randrange(3)):
                self.emit(rng.choice(self.of.common[self.mode]))
            self._settle(True)
            if rng.random() < 0.8:
                self.code += b"\xc3"
            else:
                self.code += b"\xc2" + struct.pack("<H", rng.randrange(4) * 8)
            del self.subroutines[:]
            break

    def case(self, number: int) -> Case:
        """The code from one of its states."""
        rng = self.rng = random.Random(self.of.seed * 0x1_0000_0003 + number)
        registers = [0] * 16
        for r in range(self.count):
            registers[r] = self.values[r] if r in self.values else interesting(rng) & self.mask
        flags = 0x202 | (rng.getrandbits(12) & 0x8D5) | (0x400 if rng.random() < 0.1 else 0)
        if rng.random() < 0.05:
            flags |= 0x200000
        if rng.random() < 0.02:
            flags |= 0x100  # a trap after the first instruction
        return Case(
            number, bytes(self.code), self.offset, self.mode, registers, flags,
            self.fs_base, self.gs_base, rng.choice(self.of.vectors[self.masked]), rng.randrange(IMAGES), self.patches,
            self.rows, self.focus,
            self.ignore, self.undefined, self.writable, self.end,
        )  # fmt: skip
