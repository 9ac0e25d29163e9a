"""A guest's disk (programs/disk.c): virtio-blk on both, images in the host's page cache, O_DIRECT in the guest."""

import dataclasses
from collections.abc import Sequence

from bench import programs
from bench.guest import Guest
from bench.peer import Peer
from bench.row import Context, Goal, Group, Row, Scaling, Values, program


def guest() -> Guest:
    return dataclasses.replace(programs.guest(), disks=True, memory_mib=512)


def row(key: str, title: str, mode: str, disk: str, count: int, goal: Goal) -> Row:
    measure = program(f"$PROGRAMS/disk %d {mode} /dev/{disk} {count}")

    def on_machines(peers: Sequence[Peer], context: Context) -> Values:
        """Never on the host, whose /dev/vda is its own."""
        return measure([peer for peer in peers if peer.is_machine], context)

    return Row(key, title, "s", on_machines, goal)


DISKS = Group((
    row("disk-read", "sequential read of 1 GiB, 1 MiB at a time", "read", "vda", 1024, Goal(speed=1.5)),
    row("disk-write", "sequential write of 1 GiB, 1 MiB at a time", "write", "vda", 1024, Goal(speed=1.5)),
    row("disk-randread", "100,000 × 4 KiB read anywhere, 32 at a time", "randread", "vda", 100_000, Goal(speed=1)),
    row("disk-raw", "20,000 × 4 KiB written anywhere, 32 at once, fresh raw image", "randwrite", "vdb", 20_000, Goal()),
    row("disk-qcow2", "the same, fresh qcow2 image", "randwrite", "vdc", 20_000, Goal()),
), guest, scalings=(
    Scaling("**qcow2 against raw**, 4 KiB writes on a fresh image", "disk-raw", "disk-qcow2", Goal(least=0.7)),
))  # fmt: skip
