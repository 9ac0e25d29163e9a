"""Have VMs power off; those that don't within the timeout are switched off."""

import argparse

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    add_names(parser)
    parser.add_argument(
        "-t", "--timeout", type=float, default=10.0, metavar="SECONDS", help="how long to wait (default: 10)"
    )


def run(args: argparse.Namespace) -> int:
    from hostel.client.vm import VM

    return each(args.names, lambda name: VM.get(name).stop(timeout=max(0.0, args.timeout)))
