"""Programs in C that measure themselves: ``bench/programs``."""

from bench.programs import guest
from bench.row import Goal, Group, Mean, Row, program

INTEGER = Goal(speed=1.5, slower=1.8)
POINTERS = Goal(speed=3.5, slower=3.5)
FLOATING = Goal(speed=10, slower=2.5)


def row(key: str, title: str, goal: Goal) -> Row:
    return Row(key, title, "s", program(f"$PROGRAMS/{key}"), goal)


_EIGHT = (
    row("sha256", "SHA-256 of 100 MB", INTEGER),
    row("qsort", "quicksort of 5 × 1 M numbers", INTEGER),
    row("hash256k", "hash table of 256 K entries, 40 M accesses", POINTERS),
    row("hash10m", "hash table of 10 M entries, 20 M accesses", POINTERS),
    row("lz", "LZ decompression of 400 MB", INTEGER),
    row("interp", "bytecode interpreter, 250 M steps", POINTERS),
    row("calls", "small calls, 240 M", POINTERS),
    row("matmul", "matrix multiplication, doubles, 30 × 300³", FLOATING),
)
EIGHT = Group(
    _EIGHT, guest,
    (Mean("**geometric mean of the eight programs**", tuple(row.key for row in _EIGHT), Goal(speed=4, slower=2.2)),),
)
