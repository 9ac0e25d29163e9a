"""List VMs and containers: what runs, what has stopped, and what died without being asked to."""

import argparse
import json
import time
from typing import Any

from hostel.cli.table import print_table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.add_argument("--json", action="store_true", help="for programs: a list of objects")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import HostelError
    from hostel.base.units import format_duration, format_size
    from hostel.client import machines

    rows: list[dict[str, Any]] = []
    for machine in machines.every():
        state = machine.state
        row: dict[str, Any] = {
            "name": machine.name, "isolation": machine.isolation, "state": state.state, "reason": state.reason,
            "pid": None,
        }
        try:
            spec = machine.spec
            row.update(image=getattr(spec, "oci", "") or spec.image, cpus=spec.cpus or None, memory=spec.memory or None)
        except HostelError as error:  # a vm.toml or container.json that someone damaged
            row.update(image=None, cpus=None, memory=None, state="damaged", reason=str(error))
        if health := getattr(state, "health", ""):
            row["health"] = health
        if state.state in ("starting", "running", "paused", "restarting"):
            row.update(pid=state.pid, uptime=time.time() - (state.started or state.created))
        rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    if args.quiet:
        print("".join(f"{row['name']}\n" for row in rows), end="")
        return 0
    table = [["NAME", "ISOLATION", "STATE", "IMAGE", "CPUS", "MEMORY", "UPTIME", "PID"]]
    for row in rows:
        how = row["state"]
        more = row.get("health") if how == "running" else row["reason"] if how != "starting" else ""
        table.append([
            row["name"], row["isolation"], f"{how} ({more})" if more else how, row["image"] or "-",
            f"{row['cpus']:g}" if row["cpus"] else "-", format_size(row["memory"]) if row["memory"] else "-",
            format_duration(row["uptime"]) if "uptime" in row else "-", str(row["pid"] or "-"),
        ])
    print_table(table)
    return 0
