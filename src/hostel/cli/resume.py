"""Let VMs go on that were paused or suspended."""

import argparse

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    add_names(parser)


def run(args: argparse.Namespace) -> int:
    from hostel.client.vm import VM

    return each(args.names, lambda name: VM.get(name).resume())
