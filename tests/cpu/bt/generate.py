"""Cases for the oracle test, made from the rows of the instruction table.

Case ``number`` of a seed is always the same. STATES in a row have the same code and start from other registers (those
that the code doesn't count on), flags, memory and vectors. A code's focus is one row (all rows take turns), alone or in
a block with others (maker.py), in a long sequence on few base registers (sequences.py), or in code that changes itself
(modify.py).
"""

import random
import struct
from collections.abc import Callable, Sequence

from maker import Maker
from modify import Modifying
from oracle import STATES, Case, interesting
from rows import ALONE, ALONE_NAMES, FAR, M64, K, about_flags, refused, same_for_supervisor, skipped, straight
from sequences import Long

from hostel.cpu.bt import decode
from hostel.cpu.bt.table import C

__all__ = ["Generator", "refused", "same_for_supervisor", "skipped", "straight"]


class Generator:
    """Cases of one seed, in any order, of the rows that ``wanted`` says (those that can be compared with the host)."""

    def __init__(
        self, seed: int, wanted: Callable[[dict], bool] = lambda row: not skipped(row), modes: Sequence[int] = (8, 4, 2)
    ):
        self.seed = seed
        self.rows = decode.rows()
        rng = random.Random(f"{seed}/rows")
        self.usable = [
            (r["number"], mode)
            for r in self.rows[1:] if wanted(r)
            for mode in modes if r["modes"] != ("32" if mode == 8 else "64") and not (mode == 2 and r["system"] in FAR)
        ]  # fmt: skip
        # of 8 cases, 5 are 64-bit code (or rows that only 32-bit code has), 2 32-bit code, 1 16-bit code
        first = [(n, m) for n, m in self.usable if m == 8 or (m == 4 and self.rows[n]["modes"] == "32")]
        second = [(n, m) for n, m in self.usable if m == 4 and self.rows[n]["modes"] != "32"]
        third = [(n, m) for n, m in self.usable if m == 2]
        self.singles = len(first)  # the first time round each is alone
        self.order = []
        for some in (first, second, first, third, first, first, second, first):
            rng.shuffle(some)
            self.order += some
        self.fillers: dict[int, list[int]] = {8: [], 4: [], 2: []}
        self.common: dict[int, list[int]] = {8: [], 4: [], 2: []}
        self.memory: dict[int, list[int]] = {8: [], 4: [], 2: []}  # operands in memory: integers
        self.memory_vectors: dict[int, list[int]] = {8: [], 4: [], 2: []}
        for n, mode in self.usable:
            row = self.rows[n]
            if row["system"] in ALONE or row["kind"] == K["UD"] or row["name"] in ALONE_NAMES:
                continue
            if row["kind"] in (K["JMP_IND"], K["CALL_IND"], K["RET"]):
                continue
            self.fillers[mode].append(n)
            common = row["feature"] == 0 and row["kind"] != K["SYSTEM"] and row["kind"] != K["STICLI"]
            if common:
                self.common[mode].append(n)
            if row["modrm"] and row["mod"] != "r" and row["mem"] not in (C["M_NONE"], C["M_ADDR"]):
                (self.memory if common else self.memory_vectors)[mode].append(n)
        self.flags = {m: [n for n in some if about_flags(self.rows[n])] for m, some in self.fillers.items()}
        self.allowed = {m: {n for n, mode in self.usable if mode == m} for m in (8, 4, 2)}
        self.made = -1
        self.maker: Maker | None = None
        pool = random.Random(f"{seed}/vectors")
        ymm = [self._vector(pool) for _ in range(400)]
        st = [self._extended(pool) for _ in range(200)]
        self.vectors = [[_xsave(pool, ymm, st, masked) for _ in range(600)] for masked in (False, True)]

    def _vector(self, rng) -> bytes:
        kind = rng.random()
        if kind < 0.15:
            return struct.pack("<8I", *(rng.getrandbits(rng.randrange(1, 9)) for _ in range(8)))
        if kind < 0.3:
            return struct.pack("<4Q", *(rng.getrandbits(rng.randrange(1, 9)) for _ in range(4)))
        if kind < 0.45:
            return struct.pack("<8f", *(rng.uniform(-1000, 1000) for _ in range(8)))
        if kind < 0.6:
            return struct.pack("<4d", *(rng.uniform(-1e6, 1e6) for _ in range(4)))
        if kind < 0.63:  # denormals, and what is next to them
            return struct.pack("<8I", *(rng.getrandbits(rng.choice((1, 12, 23, 24))) | rng.getrandbits(1) << 31
                                        for _ in range(8)))  # fmt: skip
        if kind < 0.66:
            return struct.pack("<4Q", *(rng.getrandbits(rng.choice((1, 30, 52, 53))) | rng.getrandbits(1) << 63
                                        for _ in range(4)))  # fmt: skip
        if kind < 0.7:
            return bytes(rng.choice(b"\x00abcz") for _ in range(32))
        return struct.pack("<4Q", *(interesting(rng) for _ in range(4)))

    def _extended(self, rng) -> bytes:
        kind = rng.random()
        sign = rng.getrandbits(1) << 15
        if kind < 0.4:  # something ordinary
            return struct.pack("<QH", 1 << 63 | rng.getrandbits(63), sign | rng.randrange(0x3FFF - 40, 0x3FFF + 66))
        if kind < 0.5:
            return struct.pack("<QH", 1 << 63, sign | rng.randrange(0x3FFF - 4, 0x3FFF + 20))
        special = [
            (0, 0), (1 << 63, 0x7FFF), (3 << 62, 0x7FFF), (1 << 63 | 1, 0x7FFF), (1, 0), (1 << 63, 0), (1 << 63, 1),
            (rng.getrandbits(63), 0x3FFF), (M64, 0x7FFE), (rng.getrandbits(64), rng.getrandbits(15)),
            (rng.getrandbits(63), 0), (0, 0x7FFF),
        ]  # fmt: skip
        mantissa, exponent = rng.choice(special)
        return struct.pack("<QH", mantissa, sign | exponent)

    def case(self, number: int) -> Case:
        """Code ``number // STATES``, from one of its states."""
        code = number // STATES
        if self.made != code:
            rng = random.Random(self.seed * 0x1_0000_0001 + code)
            focus, mode = self.order[code % len(self.order)]
            row, kind = self.rows[focus], rng.random()
            single = code % len(self.order) < self.singles
            maker = Maker if single or kind < 0.45 else Long if kind < 0.85 else Modifying
            if row["system"] in ALONE or row["kind"] == K["UD"] or row["name"] in ALONE_NAMES:
                maker = Maker
            self.maker = maker(self, rng, code, focus, mode)
            self.maker.make(single)
            self.made = code
        return self.maker.case(number)


def _xsave(rng, vectors: list[bytes], stack: list[bytes], masked: bool) -> bytes:
    """An XSAVE image; ``masked``: mostly one with which no instruction raises an exception."""
    masked = masked and rng.random() < 0.8
    control = 0x37F
    if rng.random() < 0.5 and not masked:
        control = 0x40 | rng.getrandbits(4) << 8 | (0x3F if rng.random() < 0.7 else rng.getrandbits(6))
    status = rng.getrandbits(16) & 0x4700 | rng.randrange(8) << 11
    if rng.random() < 0.2:
        status |= rng.getrandbits(7)
    if status & ~control & 0x3F:
        status |= 0x8080
    tags = 0 if rng.random() < 0.2 else rng.getrandbits(8) | (rng.getrandbits(8) if rng.random() < 0.5 else 0)
    mxcsr = 0x1F80
    if rng.random() < 0.6:
        mxcsr = rng.getrandbits(16) & 0xE07F if rng.random() < 0.6 else 0
        mxcsr |= 0x1F80 if masked or rng.random() < 0.7 else rng.getrandbits(6) << 7
    st = b"".join(rng.choice(stack) + bytes(6) for _ in range(8))
    ymm = [rng.choice(vectors) for _ in range(16)]
    present = 7 if rng.random() < 0.9 else rng.choice((3, 3, 3, 5, 6, 1))  # what isn't is as after INIT
    return (
        struct.pack("<HHBBHQQII", control, status, tags, 0, 0, 0, 0, mxcsr, 0) + st
        + b"".join(y[:16] for y in ymm) + bytes(96) + struct.pack("<Q", present) + bytes(56)
        + b"".join(y[16:] for y in ymm)
    )  # fmt: skip
