"""Compute in the guest's user space, on data in its memory; only busybox is needed."""

from bench.row import Goal, Row, timed

MB = 1_000_000
FASTER = Goal(speed=1.5)

# Machine code is neither random nor easy: gzip makes half of it.
FILL_CODE = 'n=0; while [ $n -lt %d ]; do cat $BUSYBOX; n=$((n + $(wc -c < $BUSYBOX))); done | head -c %d > data'
FILL_TEXT = "yes 'The quick brown fox jumps over the lazy dog' | head -c %d > data"
AWK = "BEGIN { for (i = 0; i < %d; i++) { s += i % 7; if (s % 3 == 0) t += s } print s, t }"

ROWS = [
    Row("sha256", "sha256sum of 200 MB", "s", timed("sha256sum < data", 200 * MB, FILL_CODE, "rm data"), FASTER),
    Row("gzip-code", "gzip of 50 MB, machine code", "s",
        timed("gzip < data | wc -c", 50 * MB, FILL_CODE, "rm data"), FASTER),
    Row("gzip-text", "gzip of 50 MB, a repeated line", "s",
        timed("gzip < data | wc -c", 50 * MB, FILL_TEXT, "rm data"), FASTER),
    Row("awk", "awk: a loop of 1,000,000 with arithmetic", "s", timed(f"awk '{AWK}'", 1_000_000), FASTER),
]
