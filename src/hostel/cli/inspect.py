"""Show everything about a VM or container: what it is, how it does and, while it runs, its counters. Prints JSON."""

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="VMs and containers, by name")
    parser.add_argument("--json", action="store_true", help="a list, also of one")


def run(args: argparse.Namespace) -> int:
    from hostel.client import machines

    found = [machines.get(name).inspect() for name in args.names]
    print(json.dumps(found if args.json or len(found) > 1 else found[0], indent=2))
    return 0
