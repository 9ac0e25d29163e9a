"""All rows, in the order in which a run measures them, in suites: what was promised of the whole, the translator's
speed, devices, and snapshots."""

import dataclasses

from bench.row import Group
from bench.rows import (
    boot,
    compute,
    container_engine,
    container_life,
    debian,
    debian_disk,
    disks,
    footprint,
    images,
    network,
    oci_images,
    processes,
    programs,
    shares,
    snapshots,
)

SUITES: dict[str, dict[str, Group]] = {
    "whole": {
        "boot": Group(tuple(boot.ROWS)),
        "memory-boot": Group(tuple(footprint.AFTER_BOOT)),
        "compute": Group(tuple(compute.ROWS)),
        "processes": Group(tuple(processes.ROWS)),
        "idle": Group(tuple(footprint.IDLE_ROWS)),
        "memory": Group(tuple(footprint.AFTER_WORK)),
    },
    "cpu": {
        "kernel": Group(tuple(boot.KERNEL)),
        "eight": programs.EIGHT,
        "simd": programs.SIMD,
        "system": programs.SYSTEM_CALLS,
        "smp1": programs.SMP_1,
        "smp2": programs.SMP_2,
        "smp4": programs.SMP_4,
        "python": debian.PYTHON,
        "tools": debian.TOOLS_ROWS,
        "openssl": debian.OPENSSL,
        "make1": debian.MAKE_1,
        "make2": debian.MAKE_2,
        "make4": debian.MAKE_4,
    },
    "io": {
        "debian-boot": Group(tuple(debian_disk.ROWS)),
        "disks": disks.DISKS,
        "network": network.NETWORK,
        "shares": shares.SHARES,
        "images": Group(tuple(images.ROWS)),
    },
    "snapshots": {
        "snapshots": snapshots.SNAPSHOTS,
        "forks": snapshots.FORKS,
        "warm": snapshots.WARM,
    },
    "containers": {
        "oci-images": Group(tuple(oci_images.ROWS)),
        "container-life": Group(tuple(container_life.ROWS)),
        "container-engine": Group(tuple(container_engine.ROWS)),
    },
}


def select(suite: str, names: list[str]) -> dict[str, Group]:
    """What a suite has of the rows called so, or in groups called so, in their order; all where ``names`` is empty.
    ``KeyError`` for an unknown name."""
    groups = SUITES[suite]
    known = set(groups) | {row.key for group in groups.values() for row in group.rows}
    for name in names:
        if name not in known:
            raise KeyError(name)
    chosen = {
        key: dataclasses.replace(
            group, rows=tuple(row for row in group.rows if not names or key in names or row.key in names)
        )
        for key, group in groups.items()
    }
    return {key: group for key, group in chosen.items() if group.rows}
