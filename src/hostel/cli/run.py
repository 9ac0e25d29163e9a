"""Start a VM from an image (default: micro), or from a kernel of yours.

Without a command you are on the VM's console: Ctrl-] leaves it running, 'poweroff' ends it.
With one, it runs in the guest and hostel ends as it does; where input is no terminal, a shell in
the guest reads it. A VM without a name is removed when it ends.
"""

import argparse
import sys

TAKES_COMMAND = True


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hostel run [IMAGE] [OPTION...] [-- COMMAND...]"
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="what to boot (default: micro)")
    parser.add_argument("--name", help="a name of your choice; the VM then stays when it ends")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="virtual CPUs, 1 to 16 (default: 1)")
    parser.add_argument("--memory", default="512M", metavar="SIZE", help="for example 512M or 4G (default: 512M)")
    parser.add_argument("--kernel", metavar="FILE", help="a kernel to boot: bzImage or ELF vmlinux")
    parser.add_argument("--initrd", metavar="FILE", help="its initramfs")
    parser.add_argument("--append", default="", metavar="TEXT", help="added to the kernel's command line")
    parser.add_argument("--engine", default="bt", choices=["bt"], help="what runs guest code (default: bt)")
    parser.add_argument("-d", "--detach", action="store_true", help="in the background; prints the VM's name")
    parser.add_argument("--rm", action="store_true", help="remove the VM when it ends, though it has a name")
    parser.add_argument("--debug", action="store_true", help="wait for 'hostel debug' at the first instruction")
    parser.add_argument("--trace", metavar="WHAT", help="write down blocks, exits or faults[:FILE] (hostel.trace)")
    parser.add_argument("--verify-code", action="store_true", help="prove a sample of the translated code harmless")
    parser.add_argument("--perf-map", action="store_true", help="keep /tmp/perf-PID.map: perf then names guest code")
    parser.add_argument("--symbols", metavar="FILE", help="names for it: a System.map, or the guest's /proc/kallsyms")
    parser.add_argument("-T", "--no-tty", action="store_true", help="no terminal for COMMAND, even on a terminal")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.base.linux import tty
    from hostel.cli.exec import run_in
    from hostel.client.vm import VM

    command = args.command
    on_terminal = tty.is_tty(0) and tty.is_tty(1)
    has_agent = args.image is not None or args.kernel is None
    if not command and not on_terminal and has_agent and not args.detach:
        command = ["/bin/sh"]
    if command and not has_agent:
        raise UsageError("a command needs hostel's agent in the guest: name an image beside the kernel")
    vm = VM.run(
        args.image, name=args.name, cpus=args.cpus, memory=args.memory, kernel=args.kernel, initrd=args.initrd,
        append=args.append, engine=args.engine, detach=args.detach, rm=args.rm or None,
        command=command if args.detach else (), debug=args.debug, verify_code=args.verify_code, trace=args.trace,
        perf_map=args.perf_map, symbols=args.symbols,
    )
    if args.detach:
        print(vm.name)
        return 0
    with vm:
        if args.debug:
            print(f"hostel: '{vm.name}' waits for a debugger: hostel debug {vm.name}", file=sys.stderr)
        if command:
            return run_in(vm, command, no_tty=args.no_tty)
        if on_terminal and not args.debug:
            print(f"hostel: booting '{vm.name}'; Ctrl-] leaves it, 'poweroff' ends it", file=sys.stderr)
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
