"""Be in a running VM by SSH, or run a command there. Works without a network: its connection goes over the agent.

  hostel ssh box                 a shell as root
  hostel ssh -l ann box -- id    a command as another user
  hostel ssh box -o '-L 8080:localhost:80'

The key is $HOSTEL_HOME/ssh/id_ed25519, made and put into the VM by this command.
"""

import argparse

TAKES_COMMAND = True


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hostel ssh [-l USER] [-o OPTIONS] NAME [-- COMMAND...]"
    parser.add_argument("-l", "--user", default="root", metavar="USER", help="who to be there (default: root)")
    parser.add_argument("-o", "--options", default="", metavar="OPTIONS", help="for ssh itself, as one word: '-v -A'")
    parser.add_argument("--proxy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("name", metavar="NAME", help="the VM")


def run(args: argparse.Namespace) -> int:
    import os
    import shlex

    from hostel.client import ssh
    from hostel.client.vm import VM

    vm = VM.get(args.name)
    if args.proxy:
        return ssh.relay(vm)
    command = ssh.command(vm, args.user, args.command, shlex.split(args.options))
    os.execv(command[0], command)
