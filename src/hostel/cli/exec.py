"""Run a command in a running VM or container; hostel ends with its exit status.

On a terminal the command gets one of its own (colours, Ctrl-C, full-screen programs).
"""

import argparse
import signal

TAKES_COMMAND = True


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hostel exec [OPTION...] NAME [--] COMMAND..."
    parser.add_argument("-T", "--no-tty", action="store_true", help="no terminal for COMMAND, even on a terminal")
    parser.add_argument("-i", "-t", action="store_true", dest="habit",
                        help="as it is anyway: input is open, and on a terminal the command has one")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="KEY=VALUE", help="set a variable for it")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="the folder it starts in")
    parser.add_argument("-u", "--user", default="", metavar="USER", help="who runs it, in a container")
    parser.add_argument("--privileged", action="store_true", help="with every capability, in a container")
    parser.add_argument("name", metavar="NAME", help="the VM or container")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="what to run, with its arguments")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.base.paths import machine, machine_kind

    if not args.command:
        raise UsageError(f"exec: what shall '{args.name}' run? For example: hostel exec {args.name} -- sh")
    env = {}
    for pair in args.env:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"exec: '{pair}' is not KEY=VALUE")
        env[key] = value
    more = {}
    if args.user or args.privileged:
        if machine_kind(args.name) != "container":
            raise UsageError("exec: --user and --privileged are for containers")
        more = {"user": args.user, "privileged": args.privileged}
    return run_in(machine(args.name), args.command, env=env, cwd=args.workdir, no_tty=args.no_tty, more=more)


def run_in(folder, command, *, env=None, cwd="", no_tty=False, more=None) -> int:
    """Run ``command`` in the VM or container in ``folder`` on our standard streams; its status."""
    import contextlib
    import os

    from hostel.base.linux import tty
    from hostel.client.attach import attach
    from hostel.client.bridge import write_all

    # With all three on a terminal nobody can tell stdout from stderr, and the command can have a terminal too.
    terminal = not no_tty and all(tty.is_tty(fd) for fd in (0, 1, 2))
    env = dict(env or {})
    if terminal and "TERM" in os.environ:
        env.setdefault("TERM", os.environ["TERM"])
    with tty.raw(0) if terminal else contextlib.nullcontext():
        return attach(
            folder, command, env=env, cwd=cwd, tty=tty.size(0) if terminal else None, window=0 if terminal else None,
            more=more,
            on_stdout=write_all(1), on_stderr=write_all(2),
            forward=(signal.SIGTERM, signal.SIGHUP) if terminal else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        )
