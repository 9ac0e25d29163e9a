"""Long sequences for the oracle test: what compiled code looks like, with everything at an edge.

Up to 30 instructions work on a few base registers that move, with operands of all sizes near one another and near the
ends of pages (writable, read-only, absent), on a stack whose pointer crosses pages too; jumps, loops and routines lie
in between. This is for what a translator keeps over more than one instruction: flags, checked addresses, the stack.
"""

import struct

import oracle
from maker import Maker
from oracle import DATA, STACK
from rows import K

from hostel.cpu.bt import decode

EDGES = (DATA + 0x1000, DATA + 0x1000, DATA + 0x1000, DATA + 0x2000, DATA + 0x2000, DATA + 0x3000, DATA + 0x4000,
         DATA + 0x5000, DATA)  # fmt: skip


class Long(Maker):
    """A case of up to 30 instructions. ``guess`` holds what base registers are likely to contain by now."""

    memory_share = 0.85
    reach = 7
    masked = True
    loops = 0.35
    rounds = (2, 3, 4, 5)  # how often a loop goes around
    reserved = (4,)  # neither base nor counter

    def __init__(self, *args):
        super().__init__(*args)
        rng = self.rng
        self.wild = False
        self.edgy = rng.choice((0.0, 0.0, 0.02, 0.1))  # how often an operand may lie where it faults
        self.guess: dict[int, int] = {}
        self.anchors: list[int] = []
        self.on_stack: set[int] = {4}
        self.routines: list[tuple[int, int]] = []
        self.inner = False  # in a routine, whose stack must come out even
        self.allowed = self.of.allowed[self.mode]
        self.flag_rows = self.of.flags[self.mode]

    def make(self, single: bool = False) -> None:
        self._begin()
        self._body(self.rng.choice((6, 10, 14, 20, 30)))
        self._finish()

    def _begin(self) -> None:
        rng = self.rng
        self.decide(4, self._stack_pointer())
        self.guess[4] = self.values[4]
        for r in rng.sample([r for r in range(self.count) if r not in self.reserved], rng.choice((1, 1, 2, 2, 3))):
            if r == 5 and rng.random() < 0.6:
                value = self.values[4] + rng.randrange(0, 8) * 8
                self.on_stack.add(5)
            else:
                value = rng.choice(EDGES) + rng.randrange(-64, 65)
                value -= value % rng.choice((1, 1, 4, 8, 16, 32))
                value -= self.data
            self.decide(r, value)
            self.guess[r] = value
            self.anchors.append(r)
            self.kept.add(r)

    def _stack_pointer(self) -> int:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.5:
            value = STACK + 0x1000 + rng.randrange(-6, 7) * 8
        elif kind < 0.6:
            value = STACK + rng.randrange(0, 6) * 8
        elif kind < 0.7:
            value = STACK + 0x2000 - rng.randrange(0, 6) * 8
        else:
            value = STACK + rng.randrange(0x40, 0x3C0) * 8
        return value + (rng.randrange(8) if rng.random() < 0.25 else 0)

    def _body(self, n: int) -> None:
        rng = self.rng
        begin, end, counter = -1, -1, -1
        if rng.random() < self.loops:
            begin, end = sorted(rng.sample(range(n + 1), 2))
        at = rng.randrange(n)
        loop = 0
        for i in range(n):
            if i == begin:
                free = [r for r in range(self.count) if r not in self.kept and r not in self.reserved]
                counter = 1 if 1 in free and rng.random() < 0.4 else rng.choice(free)
                if self._load(counter, rng.choice(self.rounds)):
                    self.kept.add(counter)
                    loop = len(self.code)
                    self._head()
                else:
                    counter = -1
            if i == at:
                self._try(self.focus)
            self._step()
            if i == end - 1 and counter >= 0:
                self._settle(True)
                self._back(counter, loop)
                self.kept.discard(counter)
        self._settle(True)

    def _head(self) -> None:
        """What a loop begins with."""

    def _finish(self) -> None:
        self.end = len(self.code)
        if self.rng.random() < 0.03:
            self._refused()

    # ---- one step

    def _try(self, number: int) -> bool:
        return any(self.emit(number) for _ in range(4))

    def _step(self) -> None:
        rng, of, mode, kind = self.rng, self.of, self.mode, self.rng.random()
        if kind < 0.4:
            pool = of.memory if rng.random() < 0.75 or not of.memory_vectors[mode] else of.memory_vectors
            self._try(rng.choice(pool[mode]))
        elif kind < 0.52:
            self._try(rng.choice(of.common[mode] if rng.random() < 0.7 else of.fillers[mode]))
        elif kind < 0.68:
            self._move_anchor()
        elif kind < 0.82:
            self._stack()
        elif kind < 0.93:
            self._flags()
        elif not self.inner and (not self.routines or rng.random() < 0.6):
            self._routine()
        elif not self.inner:
            self._call(*rng.choice(self.routines))

    def emit(self, number: int) -> bool:
        if self.of.rows[number]["kind"] == K["CALL"]:
            if self.routines and not self.inner:
                self._call(*self.rng.choice(self.routines))
                return True
            undefined = self.undefined
            done = super().emit(number)  # of what follows
            self.undefined = undefined
            return done
        return super().emit(number)

    def raw(self, *parts: bytes) -> bool:
        """Append an instruction as it stands; False if it isn't one that this test compares."""
        code = b"".join(parts)
        insn = decode.decode_py(code + bytes(15), self.start + len(self.code), self.mode)
        return insn["op"] in self.allowed and self._append(code, insn["op"])

    def _append(self, code: bytes, number: int) -> bool:
        before = set(self.modified)
        self.modified = set()
        done = super()._append(code, number)
        changed, self.modified = self.modified, self.modified | before
        if done:
            row = self.of.rows[number]
            if row["kind"] != K["STRING"]:
                for r in changed:
                    if r == 4:
                        self._stack_moved(row, code)
                    else:
                        self.guess.pop(r, None)
        return done

    def _stack_moved(self, row: dict, code: bytes) -> None:
        insn = decode.decode_py(code + bytes(15), 0, self.mode)
        size = insn["opsize"]
        by = {"push": -size, "call": -size, "pushf": -size, "pop": size, "popf": size, "ret": size, "pusha": -8 * size,
              "popa": 8 * size}.get(row["name"], 0)  # fmt: skip
        self.guess[4] = self.guess.get(4, STACK + 0x1000) + by

    # ---- encodings

    def _wide(self, r: int = 0, x: int = 0, b: int = 0) -> bytes:
        """What makes an instruction one on whole registers (32 bits where there are no more)."""
        if self.mode == 8:
            return bytes([0x48 | r >> 3 << 2 | x >> 3 << 1 | b >> 3])
        return b"\x66" if self.mode == 2 else b""

    def _rr(self, opcode: int, reg: int, rm: int) -> bool:
        return self.raw(self._wide(reg, 0, rm), bytes([opcode, 0xC0 | (reg & 7) << 3 | rm & 7]))

    def _ri(self, digit: int, rm: int, value: int) -> bool:
        """add 0, or 1, adc 2, sbb 3, and 4, sub 5, xor 6, cmp 7"""
        head = self._wide(0, 0, rm)
        if -128 <= value < 128 and self.rng.random() < 0.9:
            return self.raw(head, bytes([0x83, 0xC0 | digit << 3 | rm & 7]), struct.pack("<b", value))
        return self.raw(head, bytes([0x81, 0xC0 | digit << 3 | rm & 7]), struct.pack("<i", value))

    def _load(self, r: int, value: int) -> bool:
        """mov r, imm32"""
        rex = b"\x41" if r > 7 else b"\x66" if self.mode == 2 else b""
        done = self.raw(rex, bytes([0xB8 | r & 7]), struct.pack("<I", value & 0xFFFFFFFF))
        if done:
            self.guess[r] = value
        return done

    def _lea(self, r: int, base: int, by: int) -> bool:
        head = self._wide(r, 0, base) + (b"\x67" if self.mode == 2 else b"")
        if self.mode == 2:
            head = b"\x67\x66"
        return self.raw(head, b"\x8d", self._base_form(r, base, by, -128 <= by < 128))

    @staticmethod
    def _base_form(reg: int, base: int, by: int, short: bool) -> bytes:
        sib = b"\x24" if base & 7 == 4 else b""
        tail = struct.pack("<b" if short else "<i", by)
        return bytes([(0x40 if short else 0x80) | (reg & 7) << 3 | base & 7]) + sib + tail

    # ---- operands

    def memory(self, size: int, align: bool, vsib: int = 0, valid: bool = False) -> dict:
        if not vsib and self.rng.random() < 0.85:
            form = self._anchored(size, align)
            if form:
                return form
        return super().memory(size, align, vsib, valid)

    def _reachable(self, at: int, size: int) -> bool:
        if self.rng.random() < self.edgy:
            return True
        regions = oracle.WRITABLE if self.rng.random() < 0.97 else ((DATA, 0x3000),)
        return any(start <= at and at + size <= start + n for start, n in regions)

    def _anchored(self, size: int, align: bool) -> dict | None:
        """[base + displacement], or with a small index, near what the base register is thought to hold."""
        rng, mode = self.rng, self.mode
        bases = [r for r in self.anchors if r in self.guess] + ([4] if rng.random() < 0.4 and not self.inner else [])
        if not bases:
            return None
        base = rng.choice(bases)
        value = self.guess[base]
        on_stack = base in self.on_stack
        origin = 0 if on_stack else self.data
        f: dict = {"x": 0, "b": base >> 3, "segment": None, "a67": mode == 2, "sib": None, "rip": False}
        if mode == 8 and rng.random() < 0.05:
            f["a67"] = True
        shift = 0
        if mode == 8 and rng.random() < 0.06:
            f["segment"] = rng.choice((4, 5))
            shift = self.fs_base if f["segment"] == 4 else self.gs_base
        elif mode == 4 and rng.random() < 0.04:
            f["segment"] = rng.choice((0, 2, 3))
        elif mode == 2:
            natural = base in (4, 5)
            if on_stack != natural or rng.random() < 0.1:
                f["segment"] = 2 if on_stack else 3
        index, scale = None, 0
        small = [r for r, v in self.guess.items() if -64 <= v < 64 and r != 4]
        if small and rng.random() < 0.3:
            index, scale = rng.choice(small), rng.randrange(4)
            shift += self.guess[index] << scale
        for _ in range(6):
            kind = rng.random()
            if kind < 0.45:
                by = rng.randrange(-64, 64)
            elif kind < 0.65:
                by = rng.randrange(-12, 12) * 8
            elif kind < 0.93:
                by = (value + 0x800 & ~0xFFF) - value - rng.randrange(0, size + 1)
            else:
                by = rng.randrange(-0x1000, 0x1000)
            if align:
                by -= (value + by) % (size if size & size - 1 == 0 else 16)
            if self._reachable(value + origin + by, size):
                break
        else:
            return None
        f["target"] = value + origin + by
        by -= shift
        if by >> 31 not in (0, -1):
            return None
        short = -128 <= by < 128 and rng.random() < 0.9
        if by == 0 and base & 7 != 5 and rng.random() < 0.8:
            f["mod"], f["disp"] = 0, b""
        else:
            f["mod"], f["disp"] = (1, struct.pack("<b", by)) if short else (2, struct.pack("<i", by))
        if index is None and base & 7 != 4:
            f["rm"] = base & 7
        else:
            f["rm"] = 4
            f["sib"] = scale << 6 | (4 if index is None else index & 7) << 3 | base & 7
            f["x"] = 0 if index is None else index >> 3
        return f

    # ---- what moves

    def _move_anchor(self) -> None:
        rng = self.rng
        r = rng.choice(self.anchors)
        old = self.guess.get(r)
        kind = rng.randrange(12)
        if old is None or kind == 0:
            value = rng.choice(EDGES) + rng.randrange(-64, 65) - (0 if r in self.on_stack else self.data)
            self._load(r, value)
            return
        near = rng.randrange(-64, 65), rng.randrange(-8, 9) * 8, rng.randrange(-0x400, 0x400)
        by = rng.choice((*near, 0x1000, -0x1000))
        if not self._reachable(old + by + (0 if r in self.on_stack else self.data), 1):
            by = -by
        new = old + by
        if kind < 3:
            done = self._ri(0, r, by)
        elif kind == 3:
            done = self._ri(5, r, -by)
        elif kind < 6:
            done = self._lea(r, r, by)
        elif kind == 6:
            done, new = self._rr(0xFF, rng.choice((0, 1)), r), old
        elif kind == 7:  # a mask
            mask = rng.choice((-16, -32, -4096))
            done, new = self._ri(4, r, mask), old & mask
        elif kind == 8:  # from or to another register
            other = rng.choice(self.anchors)
            if (other in self.on_stack) != (r in self.on_stack) or other not in self.guess:
                return
            if rng.random() < 0.5:
                new = self.guess[other]
                done = self._rr(0x8B, r, other)
            else:
                new, back = self.guess[other], old
                done = self._rr(0x87, r, other)
                if done:
                    self.guess[other] = back
        elif kind == 9:  # an index
            free = [n for n in range(self.count) if n not in self.kept and n != 4]
            self._load(rng.choice(free), rng.randrange(-20, 20))
            return
        elif kind == 10:  # through memory
            if self.inner:
                return
            done = self.raw(b"\x41" if r > 7 else b"", bytes([0x50 | r & 7]))
            if rng.random() < 0.7:
                self._step()
            done = done and self.raw(b"\x41" if r > 7 else b"", bytes([0x58 | r & 7]))
            new = old
        else:
            small = [n for n, v in self.guess.items() if -64 <= v < 64 and n != 4]
            if not small:
                return
            index = rng.choice(small)
            new = old + self.guess[index]
            done = self._rr(0x03, r, index)
        if done:
            self.guess[r] = new

    def _stack(self) -> None:
        """The stack pointer, moved in any way and used as any register."""
        rng, mode, kind = self.rng, self.mode, self.rng.randrange(16)
        if self.inner:
            if kind < 5:  # in a routine: what comes out even
                r, s = self.register(), self.register(True)
                if r != 4 and self.raw(b"\x41" if r > 7 else b"", bytes([0x50 | r & 7])):
                    self._try(rng.choice(self.of.memory[mode]))
                    self.raw(b"\x41" if s > 7 else b"", bytes([0x58 | s & 7]))
            return
        rsp = self.guess[4]
        if kind < 3:
            r = self.register()
            for _ in range(rng.randrange(1, 5)):
                self.raw(b"\x41" if r > 7 else b"", bytes([0x50 | r & 7]))
                r = self.register()
        elif kind < 6:
            for _ in range(rng.randrange(1, 5)):
                r = self.register(True)
                self.raw(b"\x41" if r > 7 else b"", bytes([0x58 | r & 7]))
        elif kind == 6:
            self.raw(b"\x6a", bytes([rng.getrandbits(8)]))
        elif kind == 7:
            size = 2 if mode == 2 else 4
            self.raw(b"\x68", rng.randbytes(size))
        elif kind < 10:
            by = rng.choice((8, 16, 24, 0x20, 0x80, 0x400, 0x1000, rng.randrange(64)))
            if not STACK <= rsp - by or (rng.random() < 0.5 and rsp + by <= STACK + 0x2000):
                by = -by
            done = self._ri(5, 4, by) if rng.random() < 0.5 else self._ri(0, 4, -by) if rng.random() < 0.5 \
                else self._lea(4, 4, -by)  # fmt: skip
            if done:
                self.guess[4] = rsp - by
        elif kind == 10:
            mask = rng.choice((-16, -64))
            if self._ri(4, 4, mask):
                self.guess[4] = rsp & mask
        elif kind == 11:  # a frame
            value = rsp
            if 5 in self.kept and 5 not in self.on_stack:
                return
            if self._rr(0x8B, 5, 4):
                self.guess[5] = value
                self.on_stack.add(5)
                if 5 not in self.anchors:
                    self.anchors.append(5)
        elif kind == 12 and 5 in self.on_stack and 5 in self.guess:
            rbp = self.guess[5]
            if self.raw(b"\xc9"):
                self.guess[4] = rbp + (8 if mode == 8 else 4)
                self.guess.pop(5, None)
            elif self._rr(0x8B, 4, 5):
                self.guess[4] = rbp
        elif kind == 13:
            size, level = rng.choice((0, 8, 16, 0x100)), rng.choice((0, 0, 0, 1, 2, 5))
            if 5 not in self.kept and self.raw(b"\xc8", struct.pack("<HB", size, level)):
                self.guess[4] = rsp - (8 if mode == 8 else 4) * (1 + level) - size
        elif kind == 14:  # elsewhere, the data pages too
            value = self._stack_pointer() if rng.random() < 0.6 else rng.choice(EDGES) + rng.randrange(-8, 9) * 8
            if self._load(4, value):
                self.guess[4] = value
        else:
            self._inside_stack(rsp)

    def _inside_stack(self, rsp: int) -> None:
        """Operands relative to rsp: mov, add, xchg, push, pop."""
        rng, mode = self.rng, self.mode
        by = rng.choice((0, 8, 16, -8, -16, 4, 1, 0x1000 - rsp % 0x1000, -(rsp % 0x1000) - 4))
        r = self.register(True)
        size = b"\x67" if mode == 2 else b""
        forms = (0x89, r), (0x8B, r), (0x01, r), (0x87, r), (0xFF, 6), (0x8F, 0), (0xFF, 0), (0x8D, 4)
        opcode, reg = rng.choice(forms)
        if mode == 2:
            head = size + b"\x66"
        elif mode == 8:
            head = bytes([0x48 | reg >> 3 << 2])
        else:
            head = b""
        if self.raw(head, bytes([opcode]), self._base_form(reg, 4, by, -128 <= by < 128)) and opcode == 0x8D:
            self.guess[4] = rsp + by

    def _flags(self) -> None:
        """Instructions that read or write flags; the whole register through the stack, all of its bits."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.12 and not self.inner:
            value = rng.getrandbits(12) & 0x8D5 | 0x202
            value |= rng.choice((0, 0, 0x400, 0x4000, 0x200000, 0x3000, 0x100 if rng.random() < 0.3 else 0))
            if self.mode == 2:
                self.raw(b"\x68", struct.pack("<H", value & 0xFFFF)) and self.raw(b"\x9d")
            else:
                self.raw(b"\x68", struct.pack("<I", value)) and self.raw(b"\x9d")
        elif kind < 0.2 and not self.inner:
            if self.raw(b"\x9c") and rng.random() < 0.7:
                r = self.register(True)
                self.raw(b"\x41" if r > 7 else b"", bytes([0x58 | r & 7]))
        elif kind < 0.3:
            if 0 not in self.kept and self.raw(b"\xb4", bytes([rng.getrandbits(8)])):
                self.raw(b"\x9e")
        elif kind < 0.36:
            if 0 not in self.kept:
                self.raw(b"\x9f")
        elif self.flag_rows:
            self._try(rng.choice(self.flag_rows))

    # ---- routines

    def _routine(self) -> None:
        """jmp over; a routine, at times on the next page; over: call it."""
        rng, mode = self.rng, self.mode
        if self.undefined and not self.raw(b"\x39\xc0"):
            return
        self._settle(True)
        size = 2 if mode == 2 else 4
        hole = len(self.code) + 1
        if not self.raw(b"\xe9", bytes(size)):
            return
        here = self.offset + len(self.code)
        if rng.random() < 0.15 and here < 0xF00:
            self.code += b"\xcc" * (0x1000 - here + rng.randrange(-4, 40))
        start = len(self.code)
        rsp = self.guess[4]
        self.inner = True
        self.guess[4] -= mode if mode != 2 else 2
        if rng.random() < 0.3 and 5 not in self.kept:
            self.raw(b"\x55")
            self._rr(0x8B, 5, 4)
            self._ri(5, 4, rng.choice((8, 16, 0x40)))
            self._steps(rng.randrange(1, 5))
            self.raw(b"\xc9")
        else:
            self._steps(rng.randrange(0, 5))
        self._settle(True)
        out = rng.random()
        scratch = [r for r in range(self.count) if r not in self.kept and r != 4]
        if out < 0.7:
            self.code += b"\xc3"
        elif out < 0.85:
            self.code += b"\xc2" + struct.pack("<H", rng.randrange(4) * 8)
        else:
            r = rng.choice(scratch)
            rex = b"\x41" if r > 7 else b""
            self.code += rex + bytes([0x58 | r & 7]) + rex + bytes([0xFF, 0xE0 | r & 7])
            self.modified.add(r)
        self.inner = False
        self.guess[4] = rsp
        self._settle_to(hole, size, len(self.code))
        self.routines.append((start, self.undefined))
        self.undefined = 0
        self._call(start, self.routines[-1][1])

    def _steps(self, n: int) -> None:
        for _ in range(n):
            self._step()

    def _settle_to(self, where: int, size: int, target: int) -> None:
        self.code[where : where + size] = (target - where - size).to_bytes(size, "little", signed=True)

    def _call(self, start: int, undefined: int) -> None:
        """A call of a routine, by its address or through a register; the flags that it leaves undefined."""
        rng, mode = self.rng, self.mode
        if self.undefined and not self.raw(b"\x39\xc0"):
            return
        self._settle(True)
        rsp = self.guess[4]
        # not where string instructions begin: what lies around the case's code isn't the same on both sides
        free = [r for r in range(self.count) if r not in self.kept and r not in (4, 6, 7)]
        if rng.random() < 0.7 or not free:
            size = 2 if mode == 2 else 4
            where = len(self.code) + 1
            if self.raw(b"\xe8", bytes(size)):
                self._settle_to(where, size, start)
        else:
            r = rng.choice(free)
            if self._load(r, self.start + start):
                self.raw(b"\x41" if r > 7 else b"", bytes([0xFF, 0xD0 | r & 7]))
        self.guess[4] = rsp
        self.undefined = undefined

    def _wishes(self, row: dict) -> None:
        rng = self.rng
        if row["kind"] == K["STRING"] and rng.random() < 0.5:  # into the middle of a fault, upwards or downwards
            size, count = 8, rng.randrange(1, 12)
            for r in (6, 7):
                edge = rng.choice((DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000, DATA + 0x5000, DATA + 0x4000))
                self.decide(r, edge - self.data + rng.randrange(-size * count, size * count))
            self.decide(1, count)
        super()._wishes(row)
