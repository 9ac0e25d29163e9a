"""A VM's cards: which there are, what they need of the host, and how they come into a machine.

``Backends`` is made once, before the worker confines itself, and holds what cards opened; ``plug`` puts cards on a new
machine's board, at power-on and after every reset.
"""

import contextlib
import importlib
from typing import Any

from hostel.base.loop import Loop
from hostel.board.board import Board
from hostel.devices.virtio.pci import VirtioPci
from hostel.memory.ram import Ram
from hostel.spec.vm import VmSpec

# One row a device: the field of VmSpec that asks for it, and its class. A list has a card for each of its members, in
# order; what is None or False has none. Slots are given in the order of this table.
CARDS = {
    "disks": "hostel.devices.virtio.blk:Blk",
    "rng": "hostel.devices.virtio.rng:Rng",
    "nics": "hostel.devices.virtio.net:Net",
    "vsock": "hostel.devices.virtio.vsock:Vsock",
    "balloon": "hostel.devices.virtio.balloon:Balloon",
    "console": "hostel.devices.virtio.console:Console",
    "shares": "hostel.devices.virtio.fs:Fs",
}

# Where a device doesn't open its back end itself, since that takes more than its floor sees: who makes a list of back
# ends from the VM's spec, one for each card.
OPENERS = {
    "nics": "hostel.vm.nics:open_nics",
    "vsock": "hostel.vm.vsock:open_vsock",
}


class Backends:
    """What the cards of ``spec`` opened; ``close`` lets go of it."""

    def __init__(self, spec: VmSpec):
        self._stack = contextlib.ExitStack()
        self.cards: list[tuple[str, type, Any, Any]] = []  # name, class, spec, back end
        with contextlib.ExitStack() as undo:
            for field, row in CARDS.items():
                wanted = getattr(spec, field)
                several = isinstance(wanted, list)
                cards = wanted if several else [wanted] if wanted else []
                kind: Any = _named(row) if cards else None
                opened = _named(OPENERS[field])(spec) if cards and field in OPENERS else None
                for number, card in enumerate(cards):
                    backend = opened[number] if opened else kind.open(card)
                    if backend is not None:
                        undo.callback(backend.close)
                    self.cards.append((f"{kind.name}{number}" if several else kind.name, kind, card, backend))
            self._stack = undo.pop_all()

    def become(self, spec: VmSpec) -> None:
        """The same cards are another VM's now: what a reset makes is as ``spec`` says."""
        wanted = iter([
            card for field in CARDS
            for card in (getattr(spec, field) if isinstance(getattr(spec, field), list) else [getattr(spec, field)])
            if card
        ])  # fmt: skip
        self.cards = [(name, kind, next(wanted), backend) for name, kind, _, backend in self.cards]

    def first_disk(self) -> Any:
        """The block/disk ``Disk`` of the first card that has one."""
        disks = (getattr(backend, "disk", None) for _, _, _, backend in self.cards)
        return next((disk for disk in disks if disk is not None), None)

    def rings(self) -> list[int]:
        """The io_uring descriptors among what is open."""
        rings = (getattr(backend, "ring", -1) for _, _, _, backend in self.cards)
        return [ring for ring in rings if ring >= 0]

    def shares(self) -> list[tuple[int, bool]]:
        """The folders that cards need, by descriptor, and whether they are only read."""
        folders = [backend for name, _, _, backend in self.cards if name.startswith("fs")]
        return [(folder.root, folder.readonly) for folder in folders]

    def forget(self) -> None:
        """The cards' other ends are told that what they have to do with the guest is over."""
        for _, _, _, backend in self.cards:
            if hasattr(backend, "forget"):
                backend.forget()

    def close(self) -> None:
        """The VM has ended."""
        self._stack.close()


def _named(text: str) -> Any:
    """What ``module:attribute`` names."""
    module, attribute = text.split(":")
    return getattr(importlib.import_module(module), attribute)


def plug(backends: Backends, board: Board, ram: Ram, loop: Loop) -> dict[str, VirtioPci]:
    """New cards in the board's free slots, by name."""
    plugged: dict[str, VirtioPci] = {}
    for name, kind, spec, backend in backends.cards:
        card = VirtioPci(kind(spec, backend), ram, board.apic_bus, board.mmio, loop)
        board.pci.attach(card)
        plugged[name] = card
    return plugged
