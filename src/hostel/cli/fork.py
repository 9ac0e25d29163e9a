"""Make copies of a running VM: each goes on where it is, as a VM of its own, in milliseconds.

Memory is shared until somebody writes. A copy has its own disks (layers on the VM's), name, host name,
machine ID, MAC address, entropy, and free ports of the host's for those that lead to the VM.
"""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vm", metavar="VM")
    parser.add_argument("-n", "--count", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--name", metavar="PATTERN", help="their names, with a number for %%d (default: VM-%%d)")
    parser.add_argument("-p", "--publish", action="append", default=[], metavar="FORWARD",
                        help="[ADDRESS:]HOST:GUEST[/udp], of one copy; else a free port for each of the VM's")


def run(args: argparse.Namespace) -> int:
    from hostel.client.vm import VM

    for vm in VM.get(args.vm).fork(args.count, name=args.name, ports=args.publish, detach=True):
        print(vm.name)
    return 0
