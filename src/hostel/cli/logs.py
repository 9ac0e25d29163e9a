"""Show what a VM wrote to its console, as far as it is kept (the last 8 MiB)."""

import argparse
import sys
import time


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the VM")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it writes, until it ends")
    parser.add_argument("--worker", action="store_true", help="hostel's own log of the VM instead")


def run(args: argparse.Namespace) -> int:
    from hostel.client.vm import VM

    vm = VM.get(args.name)
    out = sys.stdout.buffer
    if args.worker:
        path = vm.folder / "worker.log"
        out.write(path.read_bytes() if path.exists() else b"")
        return 0
    out.write(vm.logs())
    out.flush()
    if args.follow:
        try:
            _follow(vm, out)
        except KeyboardInterrupt:
            return 130
    return 0


def _follow(vm, out) -> None:
    path = vm.folder / "console.log"
    file = None
    at = path.stat().st_size if path.exists() else 0
    while True:
        live = vm.state.state in ("starting", "running", "paused")
        if file is None and path.exists():
            file = path.open("rb")
            file.seek(at)
        data = file.read() if file else b""
        if data:
            out.write(data)
            out.flush()
        elif not live:
            return
        elif file and path.exists() and path.stat().st_ino != _inode(file):  # turned over
            file.close()
            file, at = None, 0
        else:
            time.sleep(0.1)


def _inode(file) -> int:
    import os

    return os.fstat(file.fileno()).st_ino
