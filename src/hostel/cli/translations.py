"""Show, make or clear the translated code that is kept between runs.

By it VMs start and run faster from the second on that runs the same programs. It is made in the background, when VMs
end; HOSTEL_TRANSLATIONS=0 does without.
"""

import argparse
import json
import time

from hostel.base.units import format_size
from hostel.cli.table import print_table


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="list the files, and what is yet to be translated")
    ls.add_argument("--json", action="store_true", help="for programs: a list of objects")
    actions.add_parser("make", help="translate at once what VMs that have ended ran")
    actions.add_parser("clear", help="remove all of it")


def run(args: argparse.Namespace) -> int:
    from hostel.client import translations

    if args.action == "make":
        print(f"{translations.make()} blocks came new")
    elif args.action == "clear":
        print(f"{format_size(translations.clear())} removed")
    elif args.json:
        print(json.dumps(translations.ls(), indent=2))
    else:
        print_table([
            ["FILE", "SIZE", "MADE"],
            *(
                [row["path"].rpartition("/")[2][:16], format_size(row["size"]),
                 time.strftime("%Y-%m-%d %H:%M", time.localtime(row["made"])) if row["made"] else "not yet"]
                for row in translations.ls()
            ),
        ])  # fmt: skip
    return 0
