"""Remove VMs and containers, and all of their files."""

import argparse

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    add_names(parser)
    parser.add_argument("-f", "--force", action="store_true", help="also those that run: switch them off first")


def run(args: argparse.Namespace) -> int:
    from hostel.client import machines

    return each(args.names, lambda name: machines.get(name).rm(force=args.force))
