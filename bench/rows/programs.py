"""Programs in C that measure themselves: ``bench/programs``."""

from functools import partial

from bench.programs import guest
from bench.row import Goal, Group, Mean, Row, Scaling, program

INTEGER = Goal(speed=1.5, slower=1.8)
POINTERS = Goal(speed=3.5, slower=3.5)
FLOATING = Goal(speed=10, slower=2.5)
SYSTEM = Goal(speed=1.5)
SMP = Goal(speed=2)


def row(key: str, title: str, goal: Goal, prefix: str = "") -> Row:
    """The program is called as the row; one for several rows has a number behind that."""
    return Row(key, title, "s", program(f"{prefix}$PROGRAMS/{key.partition('-')[0]} %d"), goal)


_EIGHT = (
    row("sha256", "SHA-256 of 100 MB", INTEGER),
    row("qsort", "quicksort of 5 × 1 M numbers", INTEGER),
    row("hash256k", "hash table of 256 K entries, 30 M accesses", POINTERS),
    row("hash10m", "hash table of 10 M entries, 20 M accesses", POINTERS),
    row("lz", "LZ decompression of 400 MB", INTEGER),
    row("interp", "bytecode interpreter, 250 M steps", POINTERS),
    row("calls", "small calls, 240 M", POINTERS),
    row("matmul", "matrix multiplication, doubles, 20 × 300³", FLOATING),
)
EIGHT = Group(
    _EIGHT, guest,
    (Mean("**geometric mean of the eight programs**", tuple(row.key for row in _EIGHT), Goal(speed=4, slower=2.2)),),
)
SIMD = Group((
    row("avxcopy", "AVX2 memcpy and memset, 256 B to 1 MB", FLOATING),
    row("fma", "matrix multiplication by AVX2 and FMA, 5 × 256³", FLOATING),
), guest)
SYSTEM_CALLS = Group((
    row("forkexec", "300 × fork, exec of `busybox true`, exit", SYSTEM),
    row("pingpong", "pipe ping-pong, 100,000 times", SYSTEM),
    row("getppid", "getppid, 1,000,000 times", SYSTEM),
    row("faults", "page faults: 2 × mmap, touch, munmap of 256 MB", SYSTEM),
    row("churn", "400,000 routines written anew and called", Goal()),
), guest)

_JOBS = "40 jobs, 4 at once, on {} vCPU"
SMP_1 = Group((row("jobs-1", _JOBS.format(1), Goal(), "$PINNED "),), guest)
SMP_2 = Group(
    (row("jobs-2", _JOBS.format(2) + "s", Goal(), "$PINNED "),), partial(guest, 2),
    scalings=(Scaling("**jobs: from 1 to 2 vCPUs**", "jobs-1", "jobs-2", Goal(least=1.7)),),
)
SMP_4 = Group((
    row("jobs-4", _JOBS.format(4) + "s", SMP, "$PINNED "),
    row("locks-4", "4 threads fight for locks, on 4 vCPUs", SMP, "$PINNED "),
), partial(guest, 4))
