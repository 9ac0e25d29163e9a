"""What a process costs the host, as /proc tells it (proc(5))."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Mapping:
    """A row of smaps; sizes in bytes."""

    size: int
    rss: int
    permissions: str
    shared: str = ""    # the file's device and inode, "" for a private mapping


def cpu_seconds(pid: int) -> float:
    """Processor time, user's and kernel's, of all threads; in nanoseconds where the kernel keeps schedstat."""
    try:
        return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    except (OSError, ValueError, IndexError):
        pass
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def mappings(pid: int) -> Iterator[Mapping]:
    size, permissions, shared = 0, "", ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ (\S+ \d+)", line):
            size, permissions = int(head[2], 16) - int(head[1], 16), head[3]
            shared = head[4] if permissions.endswith("s") else ""
        elif line.startswith("Rss:"):
            yield Mapping(size, int(line.split()[1]) << 10, permissions, shared)


def memory_beyond(pid: int, guest_size: int) -> int:
    """Bytes resident besides the guest's RAM, which is the private, writable mapping that fits it best.

    The host merges neighbouring mappings of one kind. What the guest's has beyond the guest's size is held against
    the process, as if all of it were resident, so that nothing can hide there. A file that is mapped twice (translated
    code) counts once.
    """
    found = list(mappings(pid))
    guests = [m for m in found if m.permissions.startswith("rw-") and m.size >= guest_size]
    files: dict[str, int] = {}
    for m in found:
        if m.shared:
            files[m.shared] = max(files.get(m.shared, 0), m.rss)
    total = sum(m.rss for m in found if not m.shared) + sum(files.values())
    if not guests:
        return total
    guest = min(guests, key=lambda m: m.size)
    return total - max(0, guest.rss - (guest.size - guest_size))
