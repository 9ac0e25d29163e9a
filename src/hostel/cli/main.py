"""The door: finds the command's module, runs it, and prints what went wrong as one line.

Only the module of the command that was typed is imported, so that ``hostel --version`` takes a few
milliseconds more than Python itself. A command's module has ``configure(parser)`` and ``run(args)``, whose
result is the exit status; what follows ``--`` on its command line is ``args.command``.
"""

import os
import sys

# One row a command: its module, and what ``hostel --help`` says.
COMMANDS = {
    "run": ("hostel.cli.run", "start a VM or container, and be on its console or run a command in it"),
    "ps": ("hostel.cli.ps", "list VMs and containers, and how they are"),
    "exec": ("hostel.cli.exec", "run a command in a running VM or container"),
    "cp": ("hostel.cli.cp", "copy files between the host and a VM or container"),
    "ssh": ("hostel.cli.ssh", "be in a running VM by SSH, without a network"),
    "console": ("hostel.cli.console", "be on a running VM's console, or at a container's streams"),
    "logs": ("hostel.cli.logs", "show what a VM or container wrote"),
    "debug": ("hostel.cli.debug", "let gdb debug what runs in a VM"),
    "top": ("hostel.cli.top", "show how running VMs and containers do, live"),
    "explain": ("hostel.cli.explain", "show how a container or VM is isolated, from the live kernel"),
    "inspect": ("hostel.cli.inspect", "show everything about a VM or container, its counters too"),
    "start": ("hostel.cli.start", "start VMs and containers that have stopped"),
    "restart": ("hostel.cli.restart", "stop VMs and containers, and start them again"),
    "set": ("hostel.cli.set", "change what a running VM or container has"),
    "pause": ("hostel.cli.pause", "have VMs and containers stand still"),
    "suspend": ("hostel.cli.suspend", "save VMs to disk and end them, until 'resume'"),
    "resume": ("hostel.cli.resume", "let paused or suspended ones go on"),
    "snapshot": ("hostel.cli.snapshot", "take snapshots of VMs, and go back to them"),
    "stop": ("hostel.cli.stop", "have VMs power off, and containers end"),
    "kill": ("hostel.cli.kill", "switch VMs off, and end containers, at once"),
    "rm": ("hostel.cli.rm", "remove VMs and containers, and their files"),
    "disk": ("hostel.cli.disk", "make, check, convert and change disk images"),
    "image": ("hostel.cli.image", "list, inspect and remove images"),
    "network": ("hostel.cli.network", "make, list and remove named networks"),
    "volume": ("hostel.cli.volume", "make, list and remove containers' volumes"),
    "fork": ("hostel.cli.fork", "make running copies of a running VM"),
    "translations": ("hostel.cli.translations", "show or clear the translated code that is kept between runs"),
    "completion": ("hostel.cli.completion", "print the completion script for bash, zsh or fish"),
}

_INTRODUCTION = """\
usage: hostel COMMAND [ARGUMENT...]

Whole computers as ordinary processes: virtual machines on any Linux machine, with or without
hardware virtualization, and containers.

  hostel run                     boot a small Linux and be on its console
  hostel run -- uname -a         run one command in a new VM; its exit status is ours
  hostel run --detach --name a   start a VM called 'a' in the background
  hostel run alpine -- ps        a container of an OCI image (--isolation vm: a VM)
  hostel exec a -- sh            a shell in it
  hostel rm --force a            end and remove it

commands:
"""

_END = """
'hostel COMMAND --help' tells more about one. VMs and images live in $HOSTEL_HOME, else
/var/lib/hostel for root, else ~/.local/share/hostel.
"""


def main(argv: list[str] | None = None) -> int:
    try:
        status = _by_zygote(sys.argv[1:]) if argv is None else None
        if status is None:
            status = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # 'hostel ps | head': nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        return _report(error)


def _by_zygote(argv: list[str]) -> int | None:
    """What it ended with; None where none does it."""
    from hostel.client import quick

    return quick.ask(argv) if argv and argv[0] in quick.COMMANDS else None


def _dispatch(argv: list[str]) -> int:
    if argv[:1] in (["--version"], ["-V"]):
        from hostel._version import __version__

        print(f"hostel {__version__}")
        return 0
    if not argv or argv[0] in ("--help", "-h", "help"):
        if len(argv) > 1 and argv[1] in COMMANDS:
            return _dispatch([argv[1], "--help"])
        width = max(map(len, COMMANDS)) + 2
        lines = "".join(f"  {name:{width}}{text}\n" for name, (_, text) in COMMANDS.items())
        print(_INTRODUCTION + lines + _END, end="")
        return 0
    if argv[0] not in COMMANDS:
        from difflib import get_close_matches

        from hostel.base.errors import UsageError

        close = get_close_matches(argv[0], COMMANDS, 1)
        hint = f"did you mean '{close[0]}'?" if close else "'hostel --help' lists the commands"
        raise UsageError(f"there is no command '{argv[0]}'; {hint}")
    import importlib

    from hostel.cli.parser import Parser

    name, rest = argv[0], argv[1:]
    module_name, description = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = Parser(prog=f"hostel {name}", description=module.__doc__ or description)
    module.configure(parser)
    command: list[str] = []
    if "--" in rest:
        at = rest.index("--")
        rest, command = rest[:at], rest[at + 1 :]
    try:
        args = parser.parse_args(rest)
    except SystemExit as done:  # of --help; in a zygote's child the rest of us is still to come
        return int(done.code or 0)
    if command and not getattr(module, "TAKES_COMMAND", False):
        parser.error("there is nothing to follow '--'")
    if getattr(module, "TAKES_COMMAND", False):
        args.command = [*(getattr(args, "command", None) or []), *command]
    return int(module.run(args) or 0)


def _report(error: Exception) -> int:
    if os.environ.get("HOSTEL_DEBUG"):
        import traceback

        traceback.print_exception(error)
    from hostel.base.errors import HostelError

    if isinstance(error, HostelError):
        message, status = str(error), error.status
    else:
        message, status = f"internal error: {type(error).__name__}: {error} (HOSTEL_DEBUG=1 shows where)", 125
    # An image's or a registry's words in it may not steer the terminal.
    text = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    print(f"hostel: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
