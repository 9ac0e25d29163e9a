"""Change what a running VM or container has.

Of a VM: --balloon SIZE leaves it that much of its memory; the rest goes back to the host. --disk N=SIZE makes
its disk N (0 is the first) that large; the guest sees it at once.
Of a container: --memory, --memory-swap, --memory-reservation, --cpus, --cpu-shares, --cpuset-cpus, --pids-limit.
"""

import argparse

CONTAINER = {
    "memory": "SIZE", "memory-swap": "SIZE", "memory-reservation": "SIZE", "cpus": "N", "cpu-shares": "N",
    "cpuset-cpus": "LIST", "pids-limit": "N",
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    for option, metavar in CONTAINER.items():
        parser.add_argument(f"--{option}", metavar=metavar, help="of a container, from now on")
    parser.add_argument("--balloon", metavar="SIZE", help="what it may keep, for example 256M")
    parser.add_argument("--disk", metavar="N=SIZE", action="append", default=[], help="how large a disk is from now on")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.client.vm import VM

    limits = {
        "cpuset" if key == "cpuset-cpus" else key.replace("-", "_"): value
        for key in CONTAINER
        if (value := getattr(args, key.replace("-", "_"))) is not None
    }
    if limits:
        from hostel.client import machines
        from hostel.spec.container import parse_limits

        if args.balloon is not None or args.disk:
            raise UsageError("--balloon and --disk are for VMs, the others for containers")
        machines.get_container(args.name).update(**parse_limits(limits))
        return 0
    disks = []
    for text in args.disk:
        number, equals, size = text.partition("=")
        if not (equals and number.isascii() and number.isdecimal()):
            raise UsageError(f"--disk takes N=SIZE, for example 0=20G; not '{text}'")
        disks.append((int(number), size))
    if args.balloon is None and not disks:
        raise UsageError("what is to change? --balloon SIZE, --disk N=SIZE, or a container's limit")
    vm = VM.get(args.name)
    if args.balloon is not None:
        vm.balloon(args.balloon)
    for disk, size in disks:
        vm.grow_disk(disk, size)
    return 0
