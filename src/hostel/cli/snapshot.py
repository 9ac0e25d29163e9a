"""Take snapshots of a VM, look at them, go back to them, remove them.

A snapshot is all of a VM at one moment: memory, devices and disks. The VM goes on meanwhile. 'revert' goes
back to it, and what was since is gone; 'hostel run --from VM@NAME' starts other VMs from it.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hostel.cli.parser import add_names, each
from hostel.cli.table import print_table

if TYPE_CHECKING:
    from hostel.client.snapshots import Snapshot


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    create = actions.add_parser("create", help="take a snapshot of a VM, which goes on")
    create.add_argument("vm", metavar="VM")
    create.add_argument("name", metavar="NAME", nargs="?", help="default: snap1, snap2, ...")
    create.add_argument("--no-memory", action="store_true", help="of its disks only")
    create.add_argument("--description", default="", metavar="TEXT", help="for people")

    ls = actions.add_parser("ls", help="show the snapshots of a VM (default: of all), as a tree")
    ls.add_argument("vm", metavar="VM", nargs="?")
    ls.add_argument("-q", "--quiet", action="store_true", help="names only")
    ls.add_argument("--json", action="store_true", help="for programs: a list of objects")

    inspect = actions.add_parser("inspect", help="show everything about a snapshot")
    inspect.add_argument("snapshot", metavar="VM@NAME")

    revert = actions.add_parser("revert", help="go back to a snapshot: what was since is discarded")
    revert.add_argument("vm", metavar="VM")
    revert.add_argument("name", metavar="NAME")

    export = actions.add_parser("export", help="write a snapshot to one file, with all that it needs")
    export.add_argument("snapshot", metavar="VM@NAME")
    export.add_argument("file", metavar="FILE")
    export.add_argument("-f", "--force", action="store_true", help="replace FILE")

    import_ = actions.add_parser("import", help="take a snapshot from such a file; 'hostel run --from' starts it")
    import_.add_argument("file", metavar="FILE")
    import_.add_argument("snapshot", metavar="VM@NAME", nargs="?", help="its name here (default: as it was)")

    rm = actions.add_parser("rm", help="remove snapshots; the others stay whole")
    add_names(rm, "snapshots: VM@NAME")


def run(args: argparse.Namespace) -> int:
    from hostel.client import snapshots
    from hostel.client.vm import VM

    if args.action == "create":
        vm = VM.get(args.vm)
        print(vm.snapshot(args.name, memory=not args.no_memory, description=args.description).full_name)
    elif args.action == "revert":
        VM.get(args.vm).revert(args.name)
    elif args.action == "rm":
        return each(args.names, snapshots.remove)
    elif args.action == "export":
        from hostel.client.export import export

        export(snapshots.find(args.snapshot), Path(args.file), args.force)
    elif args.action == "import":
        from hostel.client.export import import_

        print(import_(Path(args.file), args.snapshot).full_name)
    elif args.action == "inspect":
        print(json.dumps(_describe(snapshots.find(args.snapshot)), indent=2))
    else:
        _list(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    from hostel.client import snapshots
    from hostel.client.vm import VM

    vms = [args.vm] if args.vm else snapshots.vms()
    if args.vm and not snapshots.of_vm(args.vm):
        VM.get(args.vm)
    found = [(vm, snapshot) for vm in vms for snapshot in snapshots.of_vm(vm)]
    for vm in vms:
        for wrong in snapshots.damaged(vm):
            print(f"hostel: {wrong}", file=sys.stderr)
    if args.quiet:
        print("".join(f"{snapshot.full_name}\n" for _, snapshot in found), end="")
    elif args.json:
        print(json.dumps([_describe(snapshot) for _, snapshot in found], indent=2))
    else:
        from hostel.base.units import format_duration

        table = [["SNAPSHOT", "TAKEN", "MEMORY", "SIZE", "DESCRIPTION"]]
        for vm in vms:
            own = [snapshot for owner, snapshot in found if owner == vm]
            here = snapshots.current(vm)
            for depth, snapshot in _tree(own):
                manifest = snapshot.manifest
                mark = " *" if here and here.full_name == snapshot.full_name else ""
                age = format_duration(time.time() - manifest.created)
                table.append([
                    "  " * depth + snapshot.full_name + mark, f"{age} ago", "yes" if manifest.state else "no",
                    f"{snapshot.size() / 1e6:.1f} MB", manifest.description,
                ])  # fmt: skip
        print_table(table)


def _tree(found: "list[Snapshot]") -> "list[tuple[int, Snapshot]]":
    """Each with its depth: those that were taken after another, or after one that is gone, below it."""
    names = {snapshot.full_name for snapshot in found}
    out: list[tuple[int, Snapshot]] = []

    def add(parent: str, depth: int) -> None:
        for snapshot in found:
            above = snapshot.manifest.parent
            if above not in names:
                above = ""
            if above == parent:
                out.append((depth, snapshot))
                add(snapshot.full_name, depth + 1)

    add("", 0)
    return out


def _describe(snapshot: "Snapshot") -> dict:
    import msgspec

    manifest = snapshot.manifest
    data = msgspec.to_builtins(manifest)
    data["memory"] = [{"id": file.id, "bytes": file.pages << 12} for file in manifest.memory]
    data["state"] = manifest.state.hex()
    return {"folder": str(snapshot.path), "bytes": snapshot.size(), **data}
