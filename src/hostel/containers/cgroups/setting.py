"""One value for one of a cgroup's files, and the reading of such files."""

from pathlib import Path
from typing import NamedTuple

from hostel.base.errors import ContainerError

UNLIMITED = (1 << 64) - 1   # as other runtimes' statistics have v2's "max"


class Setting(NamedTuple):
    controller: str     # as v1 names it: blkio, also for v2's io
    name: str           # the specification's, after linux.resources: memory.limit
    file: str
    value: str
    optional: bool = False  # older kernels lack the file, and nothing is lost by that
    otherwise: "Setting | None" = None  # where there is no such file


def refuse(name: str, why: str) -> ContainerError:
    return ContainerError(f"linux.resources.{name}: {why}")


def read(folder: Path, file: str) -> str | None:
    """Without its newline; ``None`` where there is no such file, or no device or memory that it is about."""
    try:
        return (folder / file).read_text().rstrip("\n")
    except OSError:
        return None


def number(folder: Path, file: str) -> int | None:
    """``max`` is ``UNLIMITED``."""
    text = read(folder, file)
    if not text:
        return None
    return UNLIMITED if text == "max" else int(text)


def limited(value: int | None) -> bool:
    """v1's memory files say 2**63 less a page where there is no limit."""
    return value is not None and 0 <= value < 1 << 62


def table(folder: Path, file: str) -> dict[str, int]:
    """A flat keyed file: a name and a number a line."""
    rows = (line.rsplit(None, 1) for line in (read(folder, file) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].lstrip("-").isdigit()}
