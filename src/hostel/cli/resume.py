"""Let VMs and containers go on that were paused, and VMs that were suspended."""

import argparse

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    add_names(parser)


def run(args: argparse.Namespace) -> int:
    from hostel.client import machines

    return each(args.names, lambda name: machines.get(name).resume())
