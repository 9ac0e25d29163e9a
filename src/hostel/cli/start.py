"""Start VMs and containers that have stopped, in the background."""

import argparse

from hostel.cli.parser import each


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="VMs and containers, by name")
    parser.add_argument("--missing", action="store_true", help="all containers that don't run and should, as their "
                        "restart policy says: for when the host has booted")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.client import machines

    if args.missing == bool(args.names):
        raise UsageError("start: name VMs and containers, or say --missing")
    if args.missing:
        from hostel.client.container import Container

        args.names = [container.name for container in Container.list() if container.is_missing()]
    return each(args.names, lambda name: machines.get(name).start())
