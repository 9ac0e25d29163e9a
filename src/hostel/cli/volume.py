"""Make, list, inspect and remove volumes: folders that containers have in common, and that outlive them.

'hostel run -v NAME:/path IMAGE' uses one, and makes it where there is none; it is first filled with what the image has
in that place.
"""

import argparse
import json

from hostel.cli.parser import add_names, each
from hostel.cli.table import print_table


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    create = actions.add_parser("create", help="make a volume")
    create.add_argument("name", metavar="NAME", nargs="?", help="(default: one that is made up)")
    create.add_argument("--label", metavar="KEY=VALUE", action="append", default=[], help="kept with it; repeatable")

    ls = actions.add_parser("ls", help="list the volumes, and which containers have them")
    ls.add_argument("-q", "--quiet", action="store_true", help="names only")
    ls.add_argument("--json", action="store_true", help="for programs: a list of objects")

    inspect = actions.add_parser("inspect", help="show everything about a volume: where its files are")
    inspect.add_argument("name", metavar="NAME")

    rm = actions.add_parser("rm", help="remove volumes that no container has, with what is in them")
    add_names(rm, "volumes, by name")

    actions.add_parser("prune", help="remove all volumes that no container has, and print their names")


def run(args: argparse.Namespace) -> int:
    from hostel.client.volume import Volume

    if args.action == "create":
        from hostel.client.container import labels_of

        print(Volume.create(args.name, labels=labels_of(args.label)).name)
    elif args.action == "rm":
        return each(args.names, lambda name: Volume.get(name).rm())
    elif args.action == "inspect":
        print(json.dumps(Volume.get(args.name).inspect(), indent=2))
    elif args.action == "prune":
        print("".join(f"{name}\n" for name in Volume.prune()), end="")
    elif args.quiet:
        print("".join(f"{volume.name}\n" for volume in Volume.list()), end="")
    elif args.json:
        print(json.dumps(Volume.inspect_all(), indent=2))
    else:
        import time

        print_table([
            ["NAME", "CREATED", "CONTAINERS"],
            *(
                [row["name"], time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"])),
                 ", ".join(row["used_by"]) or "-"]
                for row in Volume.inspect_all()
            ),
        ])  # fmt: skip
    return 0
