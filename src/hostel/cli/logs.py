"""Show what a VM wrote to its console, or a container to its streams, as far as it is kept (the last 8 MiB)."""

import argparse
import sys
import time


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the VM or container")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it writes, until it ends")
    parser.add_argument("--worker", action="store_true", help="hostel's own log of it instead")
    parser.add_argument("-n", "--tail", type=int, metavar="N", help="only the last N lines, of a container")
    parser.add_argument("-t", "--timestamps", action="store_true", help="with the time of each line, of a container")
    parser.add_argument("--since", metavar="TIME", help="what is younger than, for example, 10m, of a container")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.client import machines
    from hostel.client.vm import VM

    vm = machines.get(args.name)
    out = sys.stdout.buffer
    if not isinstance(vm, VM):
        from hostel.cli import container_logs

        return container_logs.run(vm, args)
    if args.tail is not None or args.timestamps or args.since:
        raise UsageError("logs: --tail, --timestamps and --since are for containers: a console has no times")
    if args.worker:
        path = vm.folder / "worker.log"
        out.write(path.read_bytes() if path.exists() else b"")
        return 0
    if not args.follow:
        out.write(vm.logs())
        return 0
    older = vm.folder / "console.log.1"
    out.write(older.read_bytes() if older.exists() else b"")
    try:
        _follow(vm, out)
    except KeyboardInterrupt:
        return 130
    return 0


def _follow(vm, out) -> None:
    path = vm.folder / "console.log"
    file = None
    while True:
        live = vm.state.state in ("starting", "running", "paused")
        if file is None and path.exists():
            file = path.open("rb")
        data = file.read() if file else b""
        if data:
            out.write(data)
            out.flush()
        elif not live:
            return
        elif file and path.exists() and path.stat().st_ino != _inode(file):  # turned over
            file.close()
            file = None
        else:
            time.sleep(0.1)


def _inode(file) -> int:
    import os

    return os.fstat(file.fileno()).st_ino
