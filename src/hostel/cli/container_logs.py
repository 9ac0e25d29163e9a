"""``hostel logs`` of a container: its two streams to ours, as they were written."""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from hostel.client.container import Container, log_bytes, parse_log


def run(container: Container, args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.spec.container import parse_seconds

    if args.worker:
        path = container.folder / "monitor.log"
        sys.stdout.buffer.write(path.read_bytes() if path.exists() else b"")
        return 0
    if args.tail is not None and args.tail < 0:
        raise UsageError(f"logs: --tail takes a number of lines, not {args.tail}")
    path = container.folder / "container.log"
    at = path.stat().st_size if path.exists() else 0
    since = time.time() - parse_seconds(args.since) if args.since else 0.0
    entries: Iterable[dict[str, Any]] = container.log_entries(since, at if args.follow else None)
    if args.tail is not None:
        entries = deque((line for entry in entries for line in _lines(entry)), maxlen=args.tail)
    for entry in entries:
        _show(entry, args.timestamps)
    if args.follow:
        try:
            _follow(container, at, args.timestamps)
        except KeyboardInterrupt:
            return 130
    return 0


def _lines(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An entry for each line of one; what has no end yet is one, too."""
    *lines, rest = entry["log"].split("\n")
    for text in [*(f"{line}\n" for line in lines), *([rest] if rest else [])]:
        yield {**entry, "log": text}


def _show(entry: dict[str, Any], timestamps: bool) -> None:
    out = sys.stderr.buffer if entry["stream"] == "stderr" else sys.stdout.buffer
    if timestamps:
        whole, part = divmod(entry["time"], 1)
        head = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int(part * 1e6):06}Z ".encode()
        out.writelines(head + log_bytes(line) for line in _lines(entry))
    else:
        out.write(log_bytes(entry))
    out.flush()


def _follow(container: Container, at: int, timestamps: bool) -> None:
    import os

    path = container.folder / "container.log"
    file = None
    rest = b""
    while True:
        live = container.folder.exists() and container.state.state not in ("stopped", "died", "created")
        if file is None and path.exists():
            file = path.open("rb")
            file.seek(at)
        data = file.read() if file else b""
        if data:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if entry := parse_log(line):
                    _show(entry, timestamps)
        elif not live:
            return
        elif file and path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:  # turned over
            file.close()
            file, at = None, 0
        else:
            time.sleep(0.1)
