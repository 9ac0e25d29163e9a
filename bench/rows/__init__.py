"""All rows, in the order in which a run measures them."""

from bench.row import Row
from bench.rows import boot, compute, footprint, processes

GROUPS: dict[str, list[Row]] = {
    "boot": boot.ROWS,
    "memory-boot": footprint.AFTER_BOOT,
    "compute": compute.ROWS,
    "processes": processes.ROWS,
    "idle": footprint.IDLE_ROWS,
    "memory": footprint.AFTER_WORK,
}


def select(names: list[str]) -> list[Row]:
    """The rows called so, or in groups called so, in their order; all where ``names`` is empty. ``KeyError`` for an
    unknown name."""
    rows = [(group, row) for group, members in GROUPS.items() for row in members]
    known = {group for group, _ in rows} | {row.key for _, row in rows}
    for name in names:
        if name not in known:
            raise KeyError(name)
    return [row for group, row in rows if not names or group in names or row.key in names]
