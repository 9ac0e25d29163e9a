"""Debian's programs: compilers, compressors, Python, OpenSSL."""

import re
from collections.abc import Sequence
from functools import partial

from bench.debian import guest
from bench.errors import BenchError
from bench.peer import Peer
from bench.row import Context, Goal, Group, Mean, Measurement, Row, Sample, Scaling, Values, program
from bench.rows.programs import FLOATING, POINTERS, SMP

MB = 1_000_000
TOOLS = Goal(speed=2.5)

# Machine code: the compiler itself, as often as it takes.
FILL = "n=0; while [ $n -lt %d ]; do cat $(gcc -print-prog-name=cc1); n=$((n + 25000000)); done | head -c %d > data"
MAKE = "cp -r $PROGRAMS/make ."


def command(text: str, amount: int = 100, prepare: str = ":", clean: str = ":") -> Measurement:
    """A command for the shell; its output must be the same everywhere."""
    return program(f"$PINNED $PROGRAMS/run '{text}'", amount, prepare, clean)


def speed(algorithm: str) -> Measurement:
    """openssl speed for a second: seconds for a gigabyte."""

    def measure_all(peers: Sequence[Peer], context: Context) -> Values:
        values: Values = {}
        for peer in peers:
            ran = peer.run(f"openssl speed -elapsed -mr -seconds 1 -bytes 16384 -evp {algorithm} 2>/dev/null")
            match = re.search(r"^\+F:\d+:[^:]+:([0-9.]+)$", ran.output, re.MULTILINE)
            if not match:
                raise BenchError(f"{peer.title}: openssl speed says {ran.output[-200:]!r}")
            values[peer.name] = Sample(1e9 / float(match[1]))
        return values

    return measure_all


def python(name: str, title: str) -> Row:
    return Row(f"py-{name}", f"python3: {title}", "s", program(f"python3 $PROGRAMS/kernels.py {name} %d"))


_PYTHON = (
    python("nbody", "nbody (floats)"),
    python("fannkuch", "fannkuch (lists)"),
    python("richards", "a scheduler (classes)"),
    python("json", "json"),
    python("regex", "regular expressions"),
    python("strings", "words (dict, str)"),
    python("queens", "queens (generators, sets)"),
    python("spectral", "spectral norm (calls)"),
    python("pidigits", "digits of pi (large integers)"),
    Row("py-start", "python3: start and end, 10 times", "s", command(
        "for i in 1 2 3 4 5 6 7 8 9 10; do python3 -c \"print($i)\"; done"
    )),
)
PYTHON = Group(
    _PYTHON, guest, (Mean("**geometric mean of python3**", tuple(row.key for row in _PYTHON), POINTERS),)
)
TOOLS_ROWS = Group((
    Row("gcc", "gcc -O2 of 2,000 lines of C", "s", command("gcc -O2 -S -o - $PROGRAMS/unit.c"), TOOLS),
    Row("gzip", "gzip of 50 MB", "s", command("gzip -n < data", 50 * MB, FILL, "rm data"), TOOLS),
    Row("xz", "xz of 5 MB", "s", command("xz < data", 5 * MB, FILL, "rm data"), TOOLS),
), guest)
OPENSSL = Group((
    Row("aes-ctr", "AES-128-CTR of 1 GB (openssl speed)", "s", speed("aes-128-ctr"), FLOATING),
    Row("aes-gcm", "AES-128-GCM of 1 GB (openssl speed)", "s", speed("aes-128-gcm"), FLOATING),
    Row("openssl-sha256", "SHA-256 of 1 GB (openssl speed)", "s", speed("sha256"), FLOATING),
), guest)


def make(cpus: int, goal: Goal) -> Row:
    title = f"make -j4 of eight files, on {cpus} vCPU{'s' if cpus > 1 else ''}"
    return Row(
        f"make-{cpus}", title, "s", command("cd make && make -s -j4 && cat *.o", 100, MAKE, "rm -r make"), goal
    )


MAKE_1 = Group((make(1, Goal()),), guest)
MAKE_2 = Group(
    (make(2, Goal()),), partial(guest, 2),
    scalings=(Scaling("**make -j4: from 1 to 2 vCPUs**", "make-1", "make-2", Goal(least=1.7)),),
)
MAKE_4 = Group((make(4, SMP),), partial(guest, 4))
