"""Save VMs to disk and end them; 'hostel resume' has them go on, after a restart of the host too."""

import argparse

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    add_names(parser)


def run(args: argparse.Namespace) -> int:
    from hostel.client.vm import VM

    return each(args.names, lambda name: VM.get(name).suspend())
