"""Commands in a process that a zygote has forked for who typed them (client/quick)."""

import importlib

from hostel.cli import main as door
from hostel.client import quick


def load() -> None:
    """Import what they need."""
    for name in quick.COMMANDS:
        importlib.import_module(door.COMMANDS[name][0])
    for name in (
        "cli.parser", "client.vm", "client.warm", "client.fork", "client.snapshots", "client.attach", "client.copy",
        "images.store", "images.micro",
    ):  # fmt: skip
        importlib.import_module(f"hostel.{name}")


def main(argv: list[str]) -> int:
    """Run one; its exit status."""
    return door.main(argv)
