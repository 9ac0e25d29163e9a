"""Long sequences for a supervisor that changes its own mappings between accesses.

The host can't run those, so the translator's blocks are compared with its slow twin, which checks every access by
itself. Page table entries of DATA are written, and what may be stale is flushed right after, in each way there is:
INVLPG, CR3, CR4.PGE. CR0.WP and AC (with SMAP) come and go, too.
"""

import struct

from bare import P, U, W
from oracle import DATA
from sequences import Long

ENTRIES = 0x2100_0000  # where the page table of DATA is mapped
DATA_GPA = 0x40_0000


def _control(row: dict) -> bool:
    """MOV to and from control registers."""
    return row["name"] == "mov" and row["encoding"].startswith(("0F 20", "0F 22"))


class Remapping(Long):
    loops = 0.5

    def __init__(self, *args):
        super().__init__(*args)
        more = {row["number"] for row in self.of.rows[1:] if row["name"] in ("invlpg", "clac", "stac") or _control(row)}
        self.allowed = self.allowed | more

    def _step(self) -> None:
        if self.rng.random() < 0.22 and not self.inner:
            self._remap()
        else:
            super()._step()

    def _remap(self) -> None:
        rng, kind = self.rng, self.rng.random()
        page = rng.choice((0, 0, 1, 1, 2, 3, 4))
        if kind < 0.12:
            self._control(0, 16)  # WP
            return
        if kind < 0.18 and self.mode == 8:
            self.raw(rng.choice((b"\x0f\x01\xca", b"\x0f\x01\xcb")))
            return
        frame = rng.choice((0, 0x1000, 0x2000, 0x4000, min(page, 2) * 0x1000))
        flags = rng.choice((P | W | U, P | W | U, P | U, P | W, P, 0))
        entry = DATA_GPA + frame | flags
        form = b"\x04\x25" if self.mode == 8 else b"\x05"
        if self.mode == 2 or not self.raw(b"\xc7", form, struct.pack("<II", ENTRIES + 8 * page, entry)):
            return
        self._flush(DATA + page * 0x1000)

    def _flush(self, address: int) -> None:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.6:
            if rng.random() < 0.4:
                r = rng.choice([r for r in range(8) if r not in self.kept and r not in (4, 5)])
                if self._load(r, address + rng.getrandbits(12)) and self.raw(b"\x0f\x01", bytes([0x38 | r])):
                    return
            form = b"\x3c\x25" if self.mode == 8 else b"\x3d"
            if self.raw(b"\x0f\x01", form, struct.pack("<I", address | rng.getrandbits(12))):
                return
        if kind < 0.9:
            r = rng.choice([r for r in range(8) if r not in self.kept and r != 4])
            self.raw(b"\x0f\x20", bytes([0xD8 | r]))
            self.raw(b"\x0f\x22", bytes([0xD8 | r]))
        else:
            self._control(4, 7)  # PGE

    def _control(self, number: int, bit: int) -> None:
        """Turn a bit of a control register over: mov r, cr; btc r, bit; mov cr, r"""
        r = self.rng.choice([r for r in range(8) if r not in self.kept and r != 4])
        self.raw(b"\x0f\x20", bytes([0xC0 | number << 3 | r]))
        self.raw(b"\x0f\xba", bytes([0xF8 | r, bit]))
        self.raw(b"\x0f\x22", bytes([0xC0 | number << 3 | r]))

