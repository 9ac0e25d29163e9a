"""What a VM's simple virtio cards are, in ``vm.toml``."""

import re

import msgspec

from hostel.base.errors import UsageError

MAX_PORTS = 31               # virtio-console's ports have two queues each, and two more are for control
AGENT_PORT = "org.hostel.agent.0"
_PORT = re.compile(r"[A-Za-z0-9_.-]{1,63}", re.ASCII)  # a name in the guest's /dev/virtio-ports


class ConsoleSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A virtio console card. ``ports`` are channels by name; ``hvc``: the guest's /dev/hvc0 comes before them."""

    ports: list[str] = []
    hvc: bool = False


def parse_devices(words: list[str]) -> dict[str, bool | ConsoleSpec]:
    """VmSpec's fields for what ``--device`` says: rng, balloon, hvc or port:NAME."""
    out: dict[str, bool | ConsoleSpec] = {}
    console = ConsoleSpec()
    for word in words:
        kind, _, name = word.partition(":")
        if word in ("rng", "balloon"):
            out[word] = True
        elif word == "hvc":
            console.hvc = True
        elif kind == "port":
            console.ports.append(name)
        else:
            raise UsageError(f"--device takes rng, balloon, hvc or port:NAME, not '{word}'")
    if console.ports or console.hvc:
        out["console"] = check_console(console)
    return out


def check_console(spec: ConsoleSpec) -> ConsoleSpec:
    if not 1 <= len(spec.ports) + spec.hvc <= MAX_PORTS or len(set(spec.ports)) != len(spec.ports):
        raise UsageError(f"a console card has 1 to {MAX_PORTS} ports with names of their own")
    for name in spec.ports:
        if not _PORT.fullmatch(name):
            raise UsageError(f"'{name}' is no name for a port: use up to 63 of A-Z a-z 0-9 _ . -")
    return spec
