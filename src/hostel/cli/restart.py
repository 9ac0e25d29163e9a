"""Stop VMs and containers, if they run, as 'stop' does, and start them, as 'start' does."""

import argparse

from hostel.cli.parser import each
from hostel.cli.stop import configure as configure
from hostel.cli.stop import stop


def run(args: argparse.Namespace) -> int:
    from hostel.client import machines

    def restart(name: str) -> None:
        stop(name, args)
        machines.get(name).start()

    return each(args.names, restart)
