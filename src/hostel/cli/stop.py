"""Have VMs power off, and send containers their stop signal; those that don't end within the timeout are ended."""

import argparse

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    add_names(parser)
    parser.add_argument(
        "-t", "--timeout", type=float, metavar="SECONDS", help="how long to wait (default: 10, or --stop-timeout)"
    )


def run(args: argparse.Namespace) -> int:
    return each(args.names, lambda name: stop(name, args))


def stop(name: str, args: argparse.Namespace) -> None:
    from hostel.client import machines

    machines.get(name).stop(**({} if args.timeout is None else {"timeout": max(0.0, args.timeout)}))
