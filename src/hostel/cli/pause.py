"""Have VMs and containers stand still: no vCPU, no process runs until 'hostel resume'. Their clocks go on."""

import argparse

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    add_names(parser)


def run(args: argparse.Namespace) -> int:
    from hostel.client import machines

    return each(args.names, lambda name: machines.get(name).pause())
