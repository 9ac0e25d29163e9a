"""Make, list, inspect and remove named networks.

VMs on one ('hostel run --network NAME') see one another by name and nobody else's; it needs no root
and nothing to start: the network runs while a VM is on it.
"""

import argparse
import json

from hostel.cli.parser import add_names, each
from hostel.cli.table import print_table


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    create = actions.add_parser("create", help="make a network")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--subnet", default="", metavar="CIDR", help="its IPv4 addresses (default: a free 10.x.y.0/24)")
    create.add_argument("--ipv6", default="auto", metavar="CIDR|none", help="its IPv6 /64 (default: a local one)")
    create.add_argument("--internal", action="store_true", help="no way out, and none in by forwarded ports")

    create.add_argument("--driver", default="user", choices=["user", "bridge"],
                        help="user (default), or bridge: the kernel's bridge and NAT, by root")

    ls = actions.add_parser("ls", help="list the networks, and who is on them")
    ls.add_argument("-q", "--quiet", action="store_true", help="names only")
    ls.add_argument("--json", action="store_true", help="for programs: a list of objects")

    inspect = actions.add_parser("inspect", help="show everything about a network: its cards and counters")
    inspect.add_argument("name", metavar="NAME")

    rm = actions.add_parser("rm", help="remove networks that no VM is on")
    add_names(rm, "networks, by name")


def run(args: argparse.Namespace) -> int:
    from hostel.client.network import Network

    if args.action == "create":
        ipv6 = "" if args.ipv6 == "none" else args.ipv6
        print(Network.create(args.name, subnet=args.subnet, ipv6=ipv6, internal=args.internal, driver=args.driver).name)
    elif args.action == "rm":
        return each(args.names, lambda name: Network.get(name).rm())
    elif args.action == "inspect":
        print(json.dumps(Network.get(args.name).inspect(), indent=2))
    elif args.quiet:
        print("".join(f"{network.name}\n" for network in Network.list()), end="")
    elif args.json:
        print(json.dumps([network.inspect() for network in Network.list()], indent=2))
    else:
        table = [["NAME", "SUBNET", "IPV6", "WAY OUT", "VMS"]]
        for network in Network.list():
            spec = network.spec
            vms = ", ".join(f"{card['name']} ({card['address']})" for card in network.cards())
            table.append([spec.name, spec.subnet, spec.subnet6 or "-", "no" if spec.internal else "yes", vms or "-"])
        print_table(table)
    return 0
