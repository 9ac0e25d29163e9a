"""Let gdb debug what runs in a VM: its kernel, its programs, its boot. Serves GDB's remote protocol.

  hostel debug NAME                  on a socket in the VM's folder, for you alone; prints what to type in gdb
  hostel debug NAME --port 1234      on 127.0.0.1, where every user of this host can come
  (gdb) target remote | hostel debug NAME --stdio

While gdb is there, the VM stops and goes as it says; when gdb leaves, the VM goes on. Each vCPU is a
thread. Breakpoints and watchpoints are invisible to the guest. 'hostel run --debug' starts a VM that
waits for gdb at its first instruction. --symbols makes a file for gdb of what the guest's kernel
says of itself:

  hostel debug NAME --symbols kernel.elf; gdb kernel.elf
"""

import argparse
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the VM")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", help="a unix socket to listen on (default: gdb.sock in its folder)")
    where.add_argument("--port", type=int, metavar="N", help="a TCP port of 127.0.0.1 to listen on")
    where.add_argument("--stdio", action="store_true", help="speak on stdin and stdout, for gdb's 'target remote |'")
    where.add_argument("--symbols", metavar="FILE", help="write the guest kernel's symbols there, as ELF, and end")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.client.vm import VM

    vm = VM.get(args.name)
    if args.symbols:
        return _write_symbols(vm, args.symbols)
    if args.port is not None and not 0 <= args.port < 65536:
        raise UsageError(f"there is no port {args.port}")
    if args.stdio:
        from hostel.client.gdb import Server

        with vm.debug() as debugger:
            Server(debugger, 0, 1).run()
        return 0
    return _listen(vm, args)


def _listen(vm, args: argparse.Namespace) -> int:
    """Serve one gdb after the other, until the VM ends."""
    import os
    import select
    import socket

    from hostel.base.errors import MachineError
    from hostel.client.connection import Connection
    from hostel.client.gdb import Server

    path = None
    try:
        if args.port is not None:
            listener = socket.create_server(("127.0.0.1", args.port))
            target = f":{listener.getsockname()[1]}"
        else:
            path = os.path.abspath(args.socket) if args.socket else str(vm.folder / "gdb.sock")
            listener = _unix_listener(path)
            target = path
    except OSError as e:
        raise MachineError(f"can't listen on {path or args.port}: {e.strerror or e}") from e
    try:
        with listener, Connection(vm.folder) as watcher:
            watcher.call("subscribe")
            print(f"hostel: in gdb, type: target remote {target}", file=sys.stderr, flush=True)
            while True:
                ready, _, _ = select.select([listener, watcher.sock], [], [])
                if watcher.sock in ready and any(event["event"] == "stopped" for event in watcher.arrived()):
                    break
                if listener in ready:
                    gdb, _ = listener.accept()
                    with gdb, vm.debug() as debugger:
                        Server(debugger, gdb.fileno(), gdb.fileno()).run()
    finally:
        if path:
            os.unlink(path)
    print(f"hostel: {vm.end()[1]}", file=sys.stderr)
    return 0


def _unix_listener(path: str):
    """For the caller's own user; a socket that nobody listens on any more is replaced."""
    import contextlib
    import os
    import socket
    import stat

    from hostel.base.linux import unix

    listener = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            try:
                socket.socket(socket.AF_UNIX).connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
    try:
        unix.bind(listener, path)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _write_symbols(vm, path: str) -> int:
    from pathlib import Path

    from hostel.base.errors import MachineError
    from hostel.client.symbols import elf

    text = vm.exec(["cat", "/proc/kallsyms"], timeout=60, check=True).stdout
    try:
        Path(path).write_bytes(elf(text))
    except OSError as e:
        raise MachineError(f"can't write {path}: {e.strerror}") from e
    return 0
