"""Copy files and folders between the host and a running VM or a container. One of the two paths is NAME:PATH.

  hostel cp web box:/srv          into the folder /srv; or as /srv, where there is no such folder
  hostel cp web/. box:/srv        what is in web, into /srv
  hostel cp box:/etc/hosts .
  hostel cp box:/srv - | tar t    as a tar archive, and the other way: tar c web | hostel cp - box:/srv

Modes, times, symbolic links and holes of sparse files are kept, owners for root; devices and set-user-ID bits aren't
made on the host. A host's file with a colon in its name begins with / or ./
"""

import argparse
import re


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hostel cp SOURCE VM:PATH | VM:SOURCE PATH"
    parser.add_argument("source", metavar="SOURCE", help="a file or folder, VM:PATH, or - for standard input")
    parser.add_argument("destination", metavar="DESTINATION", help="where to; - for standard output")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.base.linux import tty
    from hostel.client import machines

    source, destination = _split(args.source), _split(args.destination)
    if (source is None) == (destination is None):
        raise UsageError("cp: one of the two is a VM's path, VM:PATH; the other is the host's")
    if destination is not None:
        if args.source == "-" and tty.is_tty(0):
            raise UsageError("cp: standard input is a terminal, and - wants a tar archive there")
        machines.get(destination[0]).copy_in(args.source, destination[1])
    elif source is not None:
        if args.destination == "-" and tty.is_tty(1):
            raise UsageError("cp: standard output is a terminal, and a tar archive would go there")
        machines.get(source[0]).copy_out(source[1], args.destination)
    return 0


def _split(path: str) -> tuple[str, str] | None:
    """The VM and the path in it; None for a path of the host's."""
    match = re.match(r"([a-z0-9][a-z0-9_.-]*):(.*)", path, re.ASCII | re.DOTALL)
    return (match[1], match[2] or ".") if match else None
