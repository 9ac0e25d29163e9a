"""argparse with hostel's manners: one line for a mistake, status 125, help as it is written."""

import argparse
from typing import Any, NoReturn

from hostel.base.errors import UsageError


class Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.removeprefix('hostel ')}: {message}; see '{self.prog} --help'")


def add_names(parser: argparse.ArgumentParser, what: str = "VMs, by name") -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help=what)


def each(names: list[str], action: Any) -> int:
    """Do ``action(name)`` for all of them; a failure is told and doesn't keep the others from their turn."""
    import sys

    from hostel.base.errors import HostelError

    status = 0
    for name in names:
        try:
            action(name)
        except HostelError as error:
            print(f"hostel: {error}", file=sys.stderr)
            status = error.status
    return status
