"""The machine that all of this runs on, and whether it is quiet enough to believe a number."""

import os
import platform
import time
from pathlib import Path

QUIET = 0.10              # share of the processors that others may use


def describe() -> dict[str, str | int | float]:
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(int(memory.split()[1]) / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def busy_share(seconds: float = 1.0) -> float:
    """The share of all processors' time that isn't idle during the next ``seconds``, stolen time included."""
    busy, total = _times()
    time.sleep(seconds)
    busy_after, total_after = _times()
    return (busy_after - busy) / max(1, total_after - total)


def _times() -> tuple[int, int]:
    """/proc/stat's first line (proc(5)): user nice system idle iowait irq softirq steal; guest time is in user."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def _cpu_model() -> str:
    """The name, and family/model/stepping: a virtual machine's host often hides the name."""
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    numbers = "/".join(found.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{found.get('model name', 'unknown')} (family/model/stepping {numbers})"
