"""Change what a running VM has. --balloon SIZE leaves it that much of its memory; the rest goes back to the host.
--disk N=SIZE makes its disk N (0 is the first) that large; the guest sees it at once.
"""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="VM")
    parser.add_argument("--balloon", metavar="SIZE", help="what it may keep, for example 256M")
    parser.add_argument("--disk", metavar="N=SIZE", action="append", default=[], help="how large a disk is from now on")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.client.vm import VM

    disks = []
    for text in args.disk:
        number, equals, size = text.partition("=")
        if not (equals and number.isascii() and number.isdecimal()):
            raise UsageError(f"--disk takes N=SIZE, for example 0=20G; not '{text}'")
        disks.append((int(number), size))
    if args.balloon is None and not disks:
        raise UsageError("what is to change? --balloon SIZE or --disk N=SIZE")
    vm = VM.get(args.name)
    if args.balloon is not None:
        vm.balloon(args.balloon)
    for disk, size in disks:
        vm.grow_disk(disk, size)
    return 0
