"""Switch VMs off at once, as if pulling the plug, and end containers; what doesn't answer is killed.

With --signal a container's first process gets that signal, and it goes on.
"""

import argparse

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "VMs and containers, by name")
    parser.add_argument("-s", "--signal", metavar="SIGNAL", help="send a container this instead: HUP, USR1, ...")


def run(args: argparse.Namespace) -> int:
    from hostel.client import machines

    if args.signal is None:
        return each(args.names, lambda name: machines.get(name).kill())
    from hostel.spec.container import parse_signal

    number = parse_signal(args.signal)
    return each(args.names, lambda name: machines.get_container(name).signal(number))
