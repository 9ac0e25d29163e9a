"""Code that changes itself, for the oracle test: the instruction itself, the one before, the next, far ones.

Among ordinary instructions lie some that may be changed (an immediate, a displacement, a condition, all of it) and
some that change them: by plain and locked stores, string instructions, pushes and vector stores, through an absolute
address or a register. Which changes which is decided at the end, when all have their places. Only rows whose flags
are all defined take part: whatever runs, nothing that isn't defined is read.
"""

import struct
from dataclasses import dataclass

from oracle import OWN, SLOT, STACK
from rows import K
from sequences import Long

from hostel.cpu.bt.table import C

_READS = -2  # a victim that must go on reading the flags


@dataclass(slots=True)
class Modifier:
    """A store to the case's own code; ``how`` says what to write at ``where`` once its target is known."""

    at: int  # behind it
    where: int  # in the code: 32 bits of its address
    how: str  # absolute, relative to rip, to self.pointer, or the address above (of a push)
    end: int  # of the instruction, for rip
    size: int  # bytes that it stores
    contents: int  # where in the code they are, or -1
    source: int  # where the address of ``contents`` is wanted, or -1
    delta: bool  # it changes a byte by XOR
    repeats: bool
    target: int = 0
    new: bytes = b""
    tail: int = 0  # how many bytes of ``new`` are new; those behind are what is there


class Modifying(Long):
    writable = True
    memory_share = 0.4
    loops = 0.6
    reserved = (0, 4)

    def __init__(self, *args):
        super().__init__(*args)
        self.victims: list[tuple[int, int, int]] = []  # where it begins and ends; a byte that may be any, or < 0
        self.modifiers: list[Modifier] = []
        self.pointer = 0
        self.strings = False  # whether string instructions may be emitted

    def _begin(self) -> None:
        super()._begin()
        self.pointer = self.rng.choice([r for r in range(self.count) if r not in self.kept and r not in self.reserved])
        self.decide(self.pointer, OWN + 0x1000 - self.data)
        self.kept.add(self.pointer)

    def _append(self, code: bytes, number: int) -> bool:
        row = self.of.rows[number]
        if row["flags_undef"] or row["flags"] & C["O_FLAGS_COUNT"]:
            return False
        if row["kind"] == K["STRING"] and not self.strings:
            return False  # it would store anywhere, also over its own instruction: that is the processor's own affair
        return super()._append(code, number)

    def _step(self) -> None:
        kind = self.rng.random()
        if kind < 0.3:
            self._victim()
        elif kind < 0.55 and not self.inner and len(self.modifiers) < 8:
            self._modifier()
        else:
            super()._step()

    # ---- what is changed

    def _victim(self) -> None:
        rng, mode, kind = self.rng, self.mode, self.rng.randrange(7)
        start, r = len(self.code), self.register(True)
        if r in self.kept or r == 4:
            return
        special = -1
        if kind < 2:
            done = self._load(r, rng.getrandbits(32))
            special = len(self.code) - rng.randrange(1, 5)
        elif kind == 2:
            done = self._ri(0, r, rng.randrange(-128, 128))
            special = len(self.code) - 1
        elif kind == 3:
            done = self.raw(b"\x0f\x1f\x44\x00\x00") if mode != 2 else self.raw(b"\x0f\x1f\x40\x00")
        elif kind == 4:
            done = self._lea(r, rng.choice(self.anchors), rng.randrange(-128, 128))
            special = len(self.code) - 1
        elif kind == 5:  # its condition may turn
            jumps = [n for n in self.flag_rows if self.of.rows[n]["kind"] == K["JCC"]]
            done = bool(jumps) and self.emit(rng.choice(jumps))
            if done:
                at = start + (self.code[start] in (0x2E, 0x3E))
                self.victims.append((start, start, at + (self.code[at] == 0x0F)))
            return
        else:
            done = self.raw(b"\x90")
        if done:
            self.victims.append((start, len(self.code), special))

    # ---- what changes it

    def _modifier(self) -> None:
        """Any way to store; the address, and mostly the contents, are filled in later."""
        rng, mode, kind = self.rng, self.mode, self.rng.randrange(10)
        self._settle(True)  # no jump leads into the middle of it
        free = [r for r in range(8) if r not in self.kept and r != 4]
        p32 = b"\x66" if mode == 2 else b""
        if kind < 3:
            size = rng.choice((1, 2, 4))
            p66 = b"\x66" if (size == 2) != (mode == 2) and size > 1 else b""
            self._store(p66, b"\xc6" if size == 1 else b"\xc7", 0, size, bytes(size))
        elif kind == 3:
            self._store(rng.choice((b"", b"\xf0")), b"\x80", 6, 1, b"\0", delta=True)
        elif kind < 6 and free:
            r = rng.choice(free)
            wide = mode == 8 and rng.random() < 0.5
            at = len(self.code)
            if not self.raw(b"\x48" if wide else p32, bytes([0xB8 | r]), bytes(8 if wide else 4)):
                return
            self.guess.pop(r, None)
            opcode, lock = rng.choice(((0x89, b""), (0x87, b""), (0x87, b"\xf0")))
            head = lock + (b"\x48" if wide else p32)
            self._store(head, bytes([opcode]), r, 8 if wide else 4, b"", at + 1 + (wide or mode == 2))
        elif kind == 6 and not {0, 7} & self.kept:
            size = rng.choice((1, 4))
            head = b"\x66" if mode == 2 and size == 4 else b""
            contents = len(self.code) + (mode == 2) + 1
            if not self._load(0, 0):
                return
            where = len(self.code) + (mode == 2) + 1
            if self._load(7, OWN - self.data):
                if self._string(b"\x67" if mode == 2 else b"", head, b"\xaa" if size == 1 else b"\xab"):
                    self._later(where, "absolute", 0, size, contents=contents)
        elif kind == 7 and not {1, 6, 7} & self.kept:
            n = rng.randrange(1, 9)
            source = len(self.code) + (mode == 2) + 1
            self._load(6, 0)
            where = len(self.code) + (mode == 2) + 1
            done = self._load(7, OWN - self.data) and self._load(1, n)
            if done and self.raw(b"\xfc") and self._string(b"\x67" if mode == 2 else b"", b"\xf3\xa4"):
                self._later(where, "absolute", 0, n, source=source, repeats=True)
        elif kind == 8:
            xmm = rng.randrange(8)
            form = {8: bytes([0x04 | xmm << 3, 0x25]), 4: bytes([0x05 | xmm << 3]), 2: bytes([0x05 | xmm << 3])}[mode]
            if self.raw(b"\x67" if mode == 2 else b"", b"\xf3\x0f\x7e", form, bytes(4)):
                self._store(b"\x66", b"\x0f\xd6", xmm, 8, b"", source=len(self.code) - 4)
        elif kind == 9 and mode != 2:
            where = len(self.code) + 1
            if self._load(4, OWN):
                self.raw(b"\x68", bytes(4))
                # in 64-bit mode the upper half is the sign of the lower: only what has none
                self._later(where, "above", 0, mode, contents=len(self.code) - 4)
                self._load(4, STACK + 0x1000 + rng.randrange(-4, 5) * 8)

    def _string(self, *code: bytes) -> bool:
        self.strings = True
        done = self.raw(*code)
        self.strings = False
        return done

    def _store(self, head: bytes, opcode: bytes, reg: int, size: int, imm: bytes, contents: int = -1, source: int = -1,
               delta: bool = False) -> None:  # fmt: skip
        """An instruction with a memory operand that is to be decided."""
        rng, mode = self.rng, self.mode
        if mode == 2:
            head = b"\x67" + head
        how = rng.choice(("absolute", "pointer", "rip" if mode == 8 else "absolute"))
        if how == "pointer":
            b = self.pointer
            if b > 7:
                if head[-1:] == b"\x48":
                    head = head[:-1] + b"\x49"
                else:
                    head += b"\x41"
            tail = bytes([0x80 | reg << 3 | b & 7]) + (b"\x24" if b & 7 == 4 else b"")
            if mode == 2 and b == 5:
                head = b"\x3e" + head
        elif how == "rip" or mode != 8:
            tail = bytes([0x05 | reg << 3])
        else:
            tail = bytes([0x04 | reg << 3, 0x25])
        if self.raw(head, opcode, tail, bytes(4), imm):
            where = len(self.code) - 4 - len(imm)
            self._later(where, how, len(self.code), size, len(self.code) - len(imm) if imm else contents, source, delta)

    def _watch_flags(self) -> None:
        """Make old code read all flags next: where it doesn't, the translator may have dropped them (decisions.md)."""
        start = len(self.code)
        if self.raw(b"\x9f"):  # lahf
            self.victims.append((start, start + 1, _READS))
        if self.raw(b"\x0f\x90\xc0"):  # seto al, or setno
            self.victims.append((start + 1, start + 1, start + 2))

    def _later(self, where: int, how: str, end: int, size: int, contents: int = -1, source: int = -1,
               delta: bool = False, repeats: bool = False) -> None:  # fmt: skip
        at = len(self.code)
        self.modifiers.append(Modifier(at, where, how, end, size, contents, source, delta, repeats))
        self._watch_flags()

    # ---- who changes whom

    def _finish(self) -> None:
        super()._finish()
        self.code += b"\xcc"
        for m in self.modifiers:
            if m.source >= 0:  # what string and vector instructions store lies behind the code
                address = OWN + self.offset + len(self.code) - self.data
                self.code[m.source : m.source + 4] = struct.pack("<I", address & 0xFFFFFFFF)
                m.contents = len(self.code)
                self.code += bytes(8)
        for m in self.modifiers:
            m.target, m.new = self._decide(m)
            self._fill(m)
        # contents that lie where others write from the victim on: until all of them fit
        for _ in range(6):
            stale = [m for m in self.modifiers if m.tail < m.size and m.new[m.tail :] != self._tail(m)]
            for m in stale:
                m.new = m.new[: m.tail] + self._tail(m)
                self._fill(m)
        for m in self.modifiers:
            if m.tail < m.size and m.new[m.tail :] != self._tail(m):
                m.target = SLOT - 64 - self.offset
                self._fill(m)

    def _tail(self, m: Modifier) -> bytes:
        """What lies behind the victim, which a longer store leaves as it is."""
        at, n = m.target + m.tail, m.size - m.tail
        return bytes(self.code[at : at + n]).ljust(n, b"\xcc")

    def _decide(self, m: Modifier) -> tuple[int, bytes]:
        """Where to store, and what."""
        rng, size = self.rng, m.size
        after = [v for v in self.victims if v[0] >= m.at]
        before = [v for v in self.victims if v[0] < m.at]
        pick = rng.random()
        m.tail = size
        beside = SLOT - rng.randrange(64, 200) - self.offset
        if m.delta:  # one byte: an immediate, or the lowest bit of a condition
            own = [v for v in self.victims if v[2] >= 0]
            if not own:
                return beside, b"\1"
            start, end, special = rng.choice(own)
            return special, b"\1" if start == end else rng.randbytes(1)
        if pick < 0.1 or not self.victims:  # data beside the code
            return beside, rng.randbytes(size)
        if pick < 0.18 and m.contents >= 0 and size <= 4:  # itself
            return m.contents, rng.randbytes(size)
        start, end, special = after[0] if after and pick < 0.55 else before[-1] if before and pick < 0.7 \
            else rng.choice(self.victims)  # fmt: skip
        if start == end:
            start, end = special, special + 1
            new = bytes([self.code[special] ^ 1])
        elif special >= 0 and size == 1:
            return special, rng.randbytes(1)
        elif end - start > size:  # in part it would be something else
            return beside, rng.randbytes(size)
        else:
            new = self._other(start, end, special)
        # what goes beyond it must not cut through another, which may have changed
        cuts = any(a < start + size < max(b, a + 1) for a, b, _ in self.victims)
        own_instruction = m.repeats and start < m.at and start + size > m.at - 16
        if cuts or own_instruction:
            return beside, rng.randbytes(size)
        m.tail = len(new)
        m.target = start
        return start, new + self._tail(m)

    def _other(self, start: int, end: int, special: int) -> bytes:
        """What a victim may become: as long as it was."""
        rng, n = self.rng, end - start
        if special >= 0:
            old, at = bytes(self.code[start:end]), special - start
            return old[:at] + rng.randbytes(1) + old[at + 1 :]
        if special == _READS:
            return b"\xcc"  # int3
        kind = rng.randrange(4)
        if kind == 0:
            return b"\xcc" + b"\x90" * (n - 1)
        if n >= 2 and kind == 1:
            return b"\xeb" + bytes([n - 2]) + rng.randbytes(n - 2)
        free = [r for r in range(4) if r not in self.kept]
        if n >= 2 and kind == 2 and free:
            return bytes([0xB0 | rng.choice(free), rng.getrandbits(8)]) + b"\x90" * (n - 2)
        return b"\x90" * n

    def _fill(self, m: Modifier) -> None:
        """Write address and contents into the instructions that were left open."""
        new, size = m.new, m.size
        if m.how == "above" and size == 8 and new[4:] != struct.pack("<i", -(new[3] >> 7)):
            m.target = SLOT - 64 - self.offset  # a push stores four bytes and their sign
        target = m.target
        address = OWN + self.offset + target - self.data
        if m.how == "rip":
            value = target - m.end
        elif m.how == "pointer":
            value = address - self.values[self.pointer]
        elif m.how == "above":
            value = address + size
        else:
            value = address
        self.code[m.where : m.where + 4] = struct.pack("<I", value & 0xFFFFFFFF)
        if m.contents >= 0:
            n = min(size, 4) if m.how == "above" else size
            self.code[m.contents : m.contents + n] = new[:n]
