"""Show how running VMs and containers do, live: all, or those named. Of one VM, every vCPU and why it leaves translated
code; of containers, what their cgroups count.

  CPU, STEAL   host processors that its vCPUs took, and waited for though they could have run, in percent
  MIPS         million guest instructions a second. They are counted only while you look, by other translations
               of the same code, which makes the VM slower for so long; --no-mips leaves it alone
  TLB/s, /1000 misses in the translator's TLBs, and that for 1000 instructions
  XLAT/s       instructions translated        CACHE  translated code
  IRQ/s        interrupts delivered           EXC/s  exceptions, page faults among them
  THROTTLED    of the time, held back by the quota of a container

What was started while you look comes along. 'q' or Ctrl-C ends it.
"""

import argparse
import json
import sys
from typing import Any

from hostel.cli.table import aligned


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="VMs and containers, by name (default: all that run)")
    parser.add_argument("-i", "--interval", type=float, default=1.0, metavar="S", help="seconds a look (default: 1)")
    parser.add_argument("--once", action="store_true", help="look once, over one interval, and end")
    parser.add_argument("--json", action="store_true", help="for programs: a list of objects a look, one a line")
    parser.add_argument("--no-mips", action="store_true", help="don't count instructions")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import MachineError, UsageError
    from hostel.base.linux import tty
    from hostel.client import machines
    from hostel.client.meter import Meters

    if not 0.05 <= args.interval <= 3600:
        raise UsageError(f"top: an interval is 0.05 to 3600 seconds, not {args.interval:g}")
    names = set(args.names)
    for name in names:
        if machines.get(name).state.state not in ("running", "paused"):
            raise MachineError(f"'{name}' is not running")

    def find() -> list[Any]:
        found = [machine for machine in machines.every() if machine.name in names or not names]
        return [machine for machine in found if machine.state.state in ("running", "paused")]

    meters = Meters(find, not args.no_mips)
    screen = tty.is_tty(1) and not args.json and not args.once
    try:
        if screen:
            _live(meters, args.interval)
            return 0
        while True:
            _wait(args.interval)
            rows = meters.read()
            if args.json:
                print(json.dumps(rows), flush=True)
            else:
                print("\n".join(_page(rows)), flush=True)
            if args.once or (names and not rows):
                return 0
    except KeyboardInterrupt:
        return 130
    finally:
        meters.close()


def _wait(seconds: float) -> None:
    import time

    time.sleep(seconds)


def _live(meters: Any, interval: float) -> None:
    """Draw over the last page until 'q'."""
    import os
    import select

    from hostel.base.linux import tty

    keys = tty.is_tty(0)
    sys.stdout.write("\x1b[?1049h\x1b[?25l")  # another screen, no cursor
    try:
        with tty.raw(0) if keys else _Nothing():
            lines = ["hostel top: looking ..."]
            while True:
                rows, columns = tty.size(1)
                shown = [line[: columns or 80] for line in lines[: (rows or 24) - 1]]
                sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in shown) + "\x1b[J")
                sys.stdout.flush()
                ready, _, _ = select.select([0] if keys else [], [], [], interval)
                if ready and os.read(0, 64).lower()[:1] in (b"q", b"\x03", b"\x04", b""):
                    return
                lines = _page(meters.read())
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


_COLUMNS = ("CPU", "STEAL", "MIPS", "EXITS/s", "TLB/s", "/1000", "IRQ/s", "EXC/s")


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['cpu'] * 100:.0f}%", f"{row['steal'] * 100:.0f}%", "-" if row["mips"] is None else f"{row['mips']:.1f}",
        _short(row["exits_total"]), _short(row["tlb_misses"]),
        "-" if row["tlb_misses_per_1000"] is None else f"{row['tlb_misses_per_1000']:.2f}",
        _short(row["interrupts"]), _short(row["exceptions"]),
    ]  # fmt: skip


def _page(rows: list[dict[str, Any]]) -> list[str]:
    from hostel.base.units import format_rough

    if not rows:
        return ["no VM or container is running"]
    containers = [row for row in rows if row.get("isolation") == "container"]
    rows = [row for row in rows if row.get("isolation") != "container"]
    if not rows:
        return _containers(containers)
    table = [["NAME", *_COLUMNS, "XLAT/s", "CACHE"]]
    for row in rows:
        cache = f"{format_rough(row['cache_bytes'])} of {format_rough(row['cache_capacity'])}"
        table.append([row["name"], *_cells(row), _short(row["translated"]), cache])
    lines = _numbers(table)
    if len(rows) == 1:
        row = rows[0]
        lines += ["", *_numbers([["VCPU", *_COLUMNS], *([str(v["vcpu"]), *_cells(v)] for v in row["vcpus"])])]
        exits = [["EXITS/s", *(str(v["vcpu"]) for v in row["vcpus"]), "ALL"]]
        for reason, total in row["exits"].items():
            exits.append([reason, *(_short(v["exits"][reason]) for v in row["vcpus"]), _short(total)])
        lines += ["", *_numbers(exits)]
        lines += ["", f"{row['blocks']} blocks, {_short(row['invalidated'])} dropped a second, "
                      f"the cache was emptied {row['cache_flushes']} times"]  # fmt: skip
    return lines + (["", *_containers(containers)] if containers else [])


def _containers(rows: list[dict[str, Any]]) -> list[str]:
    from hostel.base.units import format_rough

    table = [["CONTAINER", "CPU", "THROTTLED", "MEMORY", "OF", "PIDS", "OF", "READ/s", "WRITTEN/s"]]
    for row in rows:
        table.append([
            row["name"], f"{row['cpu'] * 100:.0f}%", f"{row['throttled'] * 100:.0f}%", format_rough(row["memory"]),
            format_rough(row["memory_limit"]) if row["memory_limit"] else "-", str(row["pids"]),
            str(row["pids_limit"] or "-"), format_rough(int(row["read"])), format_rough(int(row["written"])),
        ])
    return _numbers(table)


def _numbers(table: list[list[str]]) -> list[str]:
    return aligned(table, range(1, len(table[0])))


def _short(number: float) -> str:
    """Three digits or so: 12, 3.4k, 120M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 999.5 * size else f"{number / size:.0f}{unit}"
    return f"{number:.0f}"
