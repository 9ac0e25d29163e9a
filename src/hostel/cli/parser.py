"""argparse with hostel's manners: one line for a mistake, status 125, help as it is written."""

import argparse
import os

from hostel.base.errors import UsageError

TYPE_CHECKING = False  # as typing's, which takes longer to import than a command takes to run
if TYPE_CHECKING:
    from typing import Any, NoReturn

argparse._ = lambda text: text  # type: ignore[attr-defined]  # it looks for translations, at each word and for nothing


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Made for each argument that is added: it mustn't import shutil to know how wide the terminal is."""

    def __init__(self, prog: str):
        try:
            columns = int(os.environ.get("COLUMNS", 0)) or os.get_terminal_size().columns or 80
        except (ValueError, OSError):
            columns = 80
        super().__init__(prog, width=max(columns, 40) - 2)


class Parser(argparse.ArgumentParser):
    def __init__(self, **options: "Any"):
        options.setdefault("formatter_class", Formatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> "NoReturn":
        raise UsageError(f"{self.prog.removeprefix('hostel ')}: {message}; see '{self.prog} --help'")


def add_names(parser: argparse.ArgumentParser, what: str = "VMs and containers, by name") -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help=what)


def each(names: list[str], action: "Any") -> int:
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
