"""Containers' part of ``hostel run``: their options, and being at one's streams."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostel.client.container import Container

# Options of ``hostel run`` by their destination and what they are called: what only VMs have, and what only containers.
VM_ONLY = (
    "origin", "warm", "kernel", "initrd", "append", "net_rate", "vsock", "disk", "disk_size", "cloud_init", "ssh_key",
    "debug", "trace", "verify_code", "perf_map", "symbols", "engine",
)  # fmt: skip
_VM_FLAGS = {"origin": "--from"}
# destination: (flags, options of add_argument)
CONTAINER_ONLY: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "memory_swap": (("--memory-swap",), {"metavar": "SIZE", "help": "memory and swap together; -1: no limit"}),
    "memory_reservation": (("--memory-reservation",), {"metavar": "SIZE", "help": "kept when memory is short"}),
    "cpu_shares": (("--cpu-shares",), {"type": int, "metavar": "N", "help": "its share beside others' (1024)"}),
    "cpuset": (("--cpuset-cpus",), {"metavar": "LIST", "help": "the processors that it may use, as 0-3,6"}),
    "pids_limit": (("--pids-limit",), {"type": int, "metavar": "N", "help": "processes and threads at once"}),
    "oom_score_adj": (("--oom-score-adj",), {"type": int, "metavar": "N", "help": "-1000 to 1000: who goes first"}),
    "read_only": (("--read-only",), {"action": "store_true", "help": "its root can't be written"}),
    "tmpfs": (("--tmpfs",), {"action": "append", "metavar": "DIR[:OPTIONS]", "help": "a folder in memory (size=64M)"}),
    "cap_add": (("--cap-add",), {"action": "append", "metavar": "CAP", "help": "a capability more, or ALL"}),
    "cap_drop": (("--cap-drop",), {"action": "append", "metavar": "CAP", "help": "a capability less, or ALL"}),
    "security": (("--security-opt",), {"action": "append", "metavar": "OPTION", "help":
                 "no-new-privileges, seccomp=unconfined|FILE, apparmor=, label=, systempaths=unconfined"}),
    "ulimits": (("--ulimit",), {"action": "append", "metavar": "NAME=SOFT[:HARD]", "help": "a limit, as nofile=1024"}),
    "sysctls": (("--sysctl",), {"action": "append", "metavar": "NAME=VALUE", "help": "a setting of its namespaces"}),
    "restart": (("--restart",), {"metavar": "POLICY", "help": "no, on-failure[:N], always, unless-stopped"}),
    "health_command": (("--health-cmd",), {"metavar": "COMMAND", "help": "a shell command: is it well?"}),
    "health_interval": (("--health-interval",), {"metavar": "TIME", "help": "between two checks (30s)"}),
    "health_timeout": (("--health-timeout",), {"metavar": "TIME", "help": "for one check (30s)"}),
    "health_start_period": (("--health-start-period",), {"metavar": "TIME", "help": "when failures don't count yet"}),
    "health_retries": (("--health-retries",), {"type": int, "metavar": "N", "help": "failures until unhealthy (3)"}),
    "no_health": (("--no-healthcheck",), {"action": "store_true", "help": "leave the image's health check out"}),
    "stop_signal": (("--stop-signal",), {"metavar": "SIGNAL", "help": "what 'stop' sends (the image's, or TERM)"}),
    "stop_timeout": (("--stop-timeout",), {"type": float, "metavar": "S", "help": "how long 'stop' waits (10)"}),
    "labels": (("--label",), {"action": "append", "metavar": "KEY=VALUE", "help": "kept with it"}),
    "log_size": (("--log-size",), {"metavar": "SIZE", "help": "of a file of its log, of which two are kept (4M)"}),
    "init": (("--init",), {"action": "store_true", "help": "a first process that reaps, and passes signals on"}),
}  # fmt: skip
# What any OCI image takes, also in a VM.
IMAGE_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "env": (("-e", "--env"), {"action": "append", "metavar": "KEY=VALUE", "help": "a variable for its command"}),
    "user": (("-u", "--user"), {"metavar": "USER[:GROUP]", "help": "who runs the command"}),
    "workdir": (("-w", "--workdir"), {"metavar": "DIR", "help": "the folder that it begins in"}),
    "entrypoint": (("--entrypoint",), {"metavar": "PROGRAM", "help": "in place of the image's"}),
    "hostname": (("--hostname",), {"metavar": "NAME", "help": "its host name (default: its name)"}),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--isolation", choices=["vm", "container"],
                        help="how (default: OCI images as containers, micro and debian as VMs)")
    images = parser.add_argument_group("what an OCI image runs as, in a container or a VM")
    containers = parser.add_argument_group("containers only")
    for group, rows in ((images, IMAGE_OPTIONS), (containers, CONTAINER_ONLY)):
        for destination, (flags, options) in rows.items():
            group.add_argument(*flags, dest=destination, **options)


def given(args: argparse.Namespace, destinations: Any) -> str:
    """The first of these options that somebody gave, as it is called; else empty."""
    for destination in destinations:
        value = getattr(args, destination)
        if value not in (None, False, "", []) and (destination, value) != ("engine", "bt"):
            table = CONTAINER_ONLY | IMAGE_OPTIONS
            return table[destination][0][-1] if destination in table else _VM_FLAGS.get(
                destination, f"--{destination.replace('_', '-')}"
            )
    return ""


def run(args: argparse.Namespace) -> int:
    """``hostel run`` of a container."""
    from hostel.base.errors import UsageError
    from hostel.base.linux import tty
    from hostel.client.container import Container

    if wrong := given(args, VM_ONLY):
        raise UsageError(f"{wrong} is for VMs: a container has the host's kernel")
    options = {
        name: value
        for name in (*CONTAINER_ONLY, *IMAGE_OPTIONS)
        if (value := getattr(args, name)) not in (None, False)
    }
    for name in ("memory", "cpus", "disk_rate", "disk_iops"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    # With all three on a terminal nobody can tell stdout from stderr, and the command can have a terminal too.
    terminal = not args.detach and not args.no_tty and all(tty.is_tty(fd) for fd in (0, 1, 2))
    if args.tty and not args.detach and not terminal:
        raise UsageError("-t: there is no terminal here; leave it out, or give --detach")
    container = Container.run(
        args.image, name=args.name, command=args.command, detach=args.detach, attached=not args.detach,
        rm=args.rm or None, tty=terminal or args.tty, stdin=args.interactive or not args.detach,
        networks=args.network, ports=args.publish or (), mac=args.mac, allow_host_loopback=args.allow_host_loopback,
        shares=args.shares, devices=args.device, **options,
    )
    if args.detach:
        print(container.name)
        return 0
    with container:
        return be_at(container, terminal, begin=True)


def be_at(container: "Container", terminal: bool, begin: bool = False, replay: bool = False) -> int:
    """Be at the streams of the container's first process until it ends; its exit status."""
    import contextlib
    import os
    import signal

    from hostel.base.errors import HostelError
    from hostel.base.linux import tty
    from hostel.client.bridge import write_all

    with tty.raw(0) if terminal else contextlib.nullcontext():
        try:
            status = container.console(
                replay=replay, begin=begin, on_stdout=write_all(1), on_stderr=write_all(2),
                window=0 if terminal else None,
                forward=(signal.SIGTERM, signal.SIGHUP) if terminal else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
            )
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise
    if status is None:
        raise HostelError(f"'{container.name}' ended with its monitor; 'hostel ps' tells how")
    reason = container.state.reason if container.folder.exists() else ""
    if reason == "out of memory":
        print(f"hostel: '{container.name}' was out of memory, and killed", file=sys.stderr)
    return status


def is_oci(image: str | None) -> bool:
    """Whether an image without ``--isolation`` is a container's."""
    if image is None:
        return False
    from hostel.images import store

    base = image.partition(":")[0]
    if base in store.RECIPES or base in store.DISKS:
        return False
    return not (store.NAME.fullmatch(image) and store.folder(image).exists())
