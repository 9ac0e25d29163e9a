"""The SDK's networks: ``Network.create("lab")``, then ``VM.run(networks=["lab"])``; the CLI's words."""

from collections.abc import Sequence
from typing import Any

import msgspec

from hostel.net import networks
from hostel.spec.net import NetworkSpec


class Network:
    """A named network of this host. Made by ``create``, ``get`` and ``list``, not by calling it."""

    def __init__(self, folder: networks.NetworkFolder):
        self._folder = folder

    @classmethod
    def create(
        cls, name: str, *, subnet: str = "", ipv6: str = "auto", internal: bool = False, driver: str = "user"
    ) -> "Network":
        """Make a network. ``subnet`` and ``ipv6`` (a /64) are chosen where they aren't given; ``ipv6=""`` is none.
        An ``internal`` one has no way out. ``driver``: ``user``, or ``bridge`` for one of the kernel's, by root. Raises
        HostelError."""
        spec = NetworkSpec(name=name, subnet=subnet, subnet6=ipv6, internal=internal, driver=driver)
        return cls(networks.create(spec))

    @classmethod
    def get(cls, name: str) -> "Network":
        return cls(networks.find(name))

    @classmethod
    def list(cls) -> "list[Network]":
        """All networks of this home, by name."""
        networks.sweep()
        return [cls(folder) for folder in networks.folders()]

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def spec(self) -> NetworkSpec:
        return self._folder.spec()

    def cards(self) -> Sequence[dict[str, str]]:
        """Who is on it: name, mac and address of each card."""
        return self._folder.inspect().get("cards", ())

    def inspect(self) -> dict[str, Any]:
        """Everything known: spec and, while a VM is on it, cards and counters."""
        found = {"cards": [], "counters": {}, **self._folder.inspect()}
        return {"name": self.name, "folder": str(self._folder.path), "spec": msgspec.to_builtins(self.spec), **found}

    def rm(self) -> None:
        """Remove it; no VM may be on it."""
        networks.remove(self.name)

    def __repr__(self) -> str:
        return f"<Network {self.name}>"
