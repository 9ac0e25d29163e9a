"""Processes: forks, execs, exits, and the page tables they change."""

from bench.row import Goal, Row, timed

LOOP = "i=0; while [ $i -lt %d ]; do $BUSYBOX true; i=$((i + 1)); done"

ROWS = [Row("fork", "300 × fork and exec of `busybox true`", "s", timed(LOOP, 300), Goal(speed=0.7))]
