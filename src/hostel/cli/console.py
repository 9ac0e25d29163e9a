"""Be on a running VM's console, as if on its serial port, or at a container's streams; Ctrl-] leaves."""

import argparse
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the VM or container")


def run(args: argparse.Namespace) -> int:
    from hostel.base.linux import tty
    from hostel.client import machines

    vm = machines.get(args.name)
    if tty.is_tty(0):
        print(f"hostel: on the console of '{vm.name}'; Ctrl-] leaves", file=sys.stderr)
    if be_on(vm):
        return 0
    in_order, message = vm.end()
    print(f"hostel: {message}", file=sys.stderr)
    return 0 if in_order else 125


def be_on(vm, replay: bool = False) -> bool:
    """Bridge the console and our streams until the user leaves (True) or the VM ends (False)."""
    import contextlib

    from hostel.base.linux import tty
    from hostel.client.bridge import Left, write_all

    terminal = tty.is_tty(0)
    out = write_all(1)
    try:
        with tty.raw(0) if terminal else contextlib.nullcontext():
            vm.console(
                replay=replay, on_stdout=out, on_stderr=out, window=0 if terminal else None, leave=terminal
            )
    except Left:
        sys.stderr.write("\n")
        return True
    return False
