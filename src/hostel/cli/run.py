"""Start a VM from an image (default: micro), or from a kernel of yours; or a container, or a VM, of an OCI image.

Without a command you are on the VM's console: Ctrl-] leaves it running, 'poweroff' ends it.
With one, it runs in the guest and hostel ends as it does; where input is no terminal, a shell in
the guest reads it. One without a name is removed when it ends. In a container the command is its first process.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from hostel.cli.container import add_options
from hostel.cli.parser import Parser

if TYPE_CHECKING:
    from hostel.client.oci_vm import OciImage
    from hostel.client.vm import VM
    from hostel.spec.disk import DiskSpec

TAKES_COMMAND = True
MEMORY = "512M"                # of a VM


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hostel run [IMAGE] [OPTION...] [-- COMMAND...]"
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="what to boot (default: micro)")
    parser.add_argument("--from", dest="origin", metavar="VM@NAME", help="start another VM where a snapshot was taken "
                        "(with --name, -p, --rm and --detach only)")
    parser.add_argument("--warm", action="store_true",
                        help="be a copy of a VM that has booted already, in milliseconds (the first time it boots)")
    parser.add_argument("--name", help="a name of your choice; the VM then stays when it ends")
    parser.add_argument("--cpus", metavar="N", help="virtual CPUs, 1 to 16 (default: 1); a container's quota, as 1.5")
    parser.add_argument("--memory", metavar="SIZE", help="for example 512M or 4G (default: 512M; a container: all)")
    parser.add_argument("--kernel", metavar="FILE", help="a kernel to boot: bzImage or ELF vmlinux")
    parser.add_argument("--initrd", metavar="FILE", help="its initramfs")
    parser.add_argument("--append", default="", metavar="TEXT", help="added to the kernel's command line")
    parser.add_argument("--network", action="append", metavar="NET", help="a network card on nat (default), none, a "
                        "named network, tap:IF or bridge:BR (a container: also host); then ,mac= ,mtu= ,queues= ,rate= "
                        ",spoof=on; repeatable")
    parser.add_argument("-p", "--publish", action="append", metavar="FORWARD",
                        help="[ADDRESS:]HOST:GUEST[/udp]: a port of the host's that leads to the guest; repeatable")
    parser.add_argument("--mac", help="the first card's MAC address (default: one of its own, kept)")
    parser.add_argument("--net-rate", metavar="RATE", help="bytes a second of each card, either way: 10M or 10M:BURST")
    parser.add_argument("--allow-host-loopback", action="store_true",
                        help="the guest reaches the host's loopback as its gateway's address")
    parser.add_argument("--vsock", nargs="?", const="", metavar="PATH",
                        help="vsock over unix sockets: PATH (default: vsock.sock in the VM's folder), PATH_PORT")
    parser.add_argument("--engine", default="bt", choices=["bt"], help="what runs guest code (default: bt)")
    parser.add_argument(
        "--device", action="append", default=[], metavar="KIND",
        help="a virtio card: rng, balloon, hvc (/dev/hvc0), port:NAME (/dev/virtio-ports/NAME); may be repeated",
    )
    parser.add_argument(
        "--disk", action="append", default=[], metavar="PATH[,OPTION...]",
        help="a disk: its image, format=raw|qcow2, readonly, cache=writeback|none, serial=TEXT, iops=N, rate=SIZE",
    )
    parser.add_argument("--disk-size", metavar="SIZE", help="of the VM's own disk, where the image is one (debian)")
    parser.add_argument("--cloud-init", metavar="FILE", help="NoCloud user data, or a folder with it and meta-data")
    parser.add_argument("--ssh-key", metavar="FILE", help="a public key that may log in as root")
    parser.add_argument("--disk-iops", metavar="N[:BURST]", help="requests a second, of disks without an iops=")
    parser.add_argument("--disk-rate", metavar="SIZE[:BURST]", help="bytes a second, of disks without a rate=")
    parser.add_argument(
        "-v", "--volume", metavar="HOSTDIR:GUESTDIR[:ro]", action="append", default=[], dest="shares",
        help="share a folder (a VM: owners=host, cache=none|always; a container: also VOLUME:DIR, hostel volume)",
    )
    parser.add_argument("-d", "--detach", action="store_true", help="in the background; prints the VM's name")
    parser.add_argument("--rm", action="store_true", help="remove the VM when it ends, though it has a name")
    parser.add_argument("--debug", action="store_true", help="wait for 'hostel debug' at the first instruction")
    parser.add_argument("--trace", metavar="WHAT", help="write down blocks, exits or faults[:FILE] (hostel.trace)")
    parser.add_argument("--verify-code", action="store_true", help="prove a sample of the translated code harmless")
    parser.add_argument("--perf-map", action="store_true", help="keep /tmp/perf-PID.map: perf then names guest code")
    parser.add_argument("--symbols", metavar="FILE", help="names for it: a System.map, or the guest's /proc/kallsyms")
    parser.add_argument("-t", "--tty", action="store_true",
                        help="a terminal for a detached container; else COMMAND has one where we are on one")
    parser.add_argument("-i", "--interactive", action="store_true",
                        help="an open standard input for a detached container; else it is ours")
    parser.add_argument("-T", "--no-tty", action="store_true", help="no terminal for COMMAND, even on a terminal")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.base.linux import tty
    from hostel.cli.container import CONTAINER_ONLY, IMAGE_OPTIONS, given, is_oci
    from hostel.cli.container import run as run_container
    from hostel.cli.exec import run_in

    if args.isolation == "container" or (args.isolation is None and not args.kernel and is_oci(args.image)):
        if args.image is None:
            raise UsageError("a container needs an image: hostel run --isolation container IMAGE")
        return run_container(args)
    oci = None
    if args.isolation == "vm" and not args.kernel and is_oci(args.image):
        from hostel.client.oci_vm import OciImage

        if wrong := given(args, CONTAINER_ONLY) or given(args, ("warm", "origin", "cloud_init", "ssh_key", "initrd")):
            raise UsageError(f"{wrong} doesn't go with an OCI image in a VM")
        own = {name: getattr(args, name) for name in IMAGE_OPTIONS if getattr(args, name) is not None}
        oci = OciImage(args.image, command=args.command, **own)
        args.command, args.image = oci.command, None
    elif wrong := given(args, (*CONTAINER_ONLY, *IMAGE_OPTIONS)):
        raise UsageError(f"{wrong} is for OCI images, and what runs them")
    command = args.command
    on_terminal = tty.is_tty(0) and tty.is_tty(1)
    has_agent = args.image is not None or args.kernel is None
    if not command and not on_terminal and has_agent and not args.detach:
        command = ["/bin/sh"]
    if command and not has_agent:
        raise UsageError("a command needs hostel's agent in the guest: name an image beside the kernel")
    if args.origin or args.warm:
        vm = _copy(args)
    else:
        vm = _boot(args, command, oci)
    if args.detach:
        print(vm.name)
        return 0
    with vm:
        if args.debug:
            print(f"hostel: '{vm.name}' waits for a debugger: hostel debug {vm.name}", file=sys.stderr)
        if command:
            return run_in(vm.folder, command, no_tty=args.no_tty)
        if on_terminal and not args.debug:
            begun = "here is" if args.origin or args.warm else "booting"
            print(f"hostel: {begun} '{vm.name}'; Ctrl-] leaves it, 'poweroff' ends it", file=sys.stderr)
        from hostel.cli.console import be_on

        if be_on(vm, replay=True):
            vm.detach()
            print(
                f"hostel: '{vm.name}' runs on; 'hostel console {vm.name}' comes back, 'hostel kill {vm.name}' ends it",
                file=sys.stderr,
            )
            return 0
        in_order, message = vm.end()
        if on_terminal or not in_order:
            print(f"hostel: {message}", file=sys.stderr)
    return 0 if in_order else 125


def _copy(args: argparse.Namespace) -> "VM":
    """Of a snapshot, or of an image's warm VM."""
    from hostel.base.errors import UsageError
    from hostel.client.vm import VM

    parser = Parser()
    configure(parser)
    own = {"origin", "warm", "name", "publish", "detach", "rm", "no_tty", "command"}
    if args.warm:
        own |= {"image", "cpus", "memory"}
    given = [name for name in vars(args) if name not in own and getattr(args, name) != parser.get_default(name)]
    if given:
        option = "--warm" if args.warm else "--from"
        raise UsageError(f"{option} doesn't go with --{given[0].replace('_', '-')}: a copy has what its original has")
    if args.detach and args.command:
        raise UsageError("a copy that is detached runs no command: 'hostel exec' does")
    if args.warm:
        if args.origin:
            raise UsageError("--warm and --from don't go together")
        vm = VM.run_warm(
            args.image, cpus=_cpus(args), memory=args.memory or MEMORY, name=args.name, ports=args.publish or (),
            detach=args.detach, rm=args.rm or None,
        )
    else:
        vm = VM.run_from(
            args.origin, name=args.name, ports=args.publish or (), detach=args.detach, rm=args.rm or None
        )
    return vm


def _boot(args: argparse.Namespace, command: list[str], oci: "OciImage | None" = None) -> "VM":
    from hostel.client.vm import VM

    disks = _disks(args)
    vm = VM.run(
        args.image, name=args.name, cpus=_cpus(args), memory=args.memory or MEMORY, kernel=args.kernel,
        initrd=args.initrd, append=args.append, engine=args.engine, detach=args.detach, rm=args.rm or None,
        command=command if args.detach else (), debug=args.debug, verify_code=args.verify_code, trace=args.trace,
        perf_map=args.perf_map, symbols=args.symbols, networks=args.network, ports=args.publish or (), mac=args.mac,
        net_rate=args.net_rate, allow_host_loopback=args.allow_host_loopback, vsock=args.vsock, disks=disks,
        devices=args.device, shares=args.shares,
        oci=oci, disk_size=args.disk_size, cloud_init=args.cloud_init, ssh_key=args.ssh_key,
    )
    for given, found in zip(disks, vm.spec.disks[0 if vm.spec.kernel else 1 :], strict=False):
        if not given.format:
            print(f"hostel: {found.path} is {found.format}; ',format={found.format}' makes sure", file=sys.stderr)
    return vm


def _cpus(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError

    try:
        return int(args.cpus or 1)
    except ValueError:
        raise UsageError(f"--cpus is a number of virtual CPUs, 1 to 16, not '{args.cpus}'") from None


def _disks(args: argparse.Namespace) -> "list[DiskSpec]":
    from hostel.spec.disk import parse_disk
    from hostel.spec.rate import parse_rate

    disks = [parse_disk(text) for text in args.disk]
    iops = parse_rate(args.disk_iops, "--disk-iops") if args.disk_iops else None
    rate = parse_rate(args.disk_rate, "--disk-rate") if args.disk_rate else None
    for disk in disks:
        disk.iops, disk.rate = disk.iops or iops, disk.rate or rate
    return disks
