"""Limits in cgroup v2's files (the kernel's Documentation/admin-guide/cgroup-v2.rst), a function for each controller.

The specification counts as v1 does. What becomes of it:

- **shares** (2 to 262144, usually 1024) are a weight (1 to 10000, usually 100): a curve through the three of these, so
  that a container with the usual shares has as much as a neighbour with the usual weight. (A straight line between the
  ends would make it 39.)
- **swap** is memory and swap together in v1, swap alone in v2.
- **blkio weight** (10 to 1000) is BFQ's own where it is there; else io.weight (1 to 10000), in a straight line.
- **reservation** is memory.low.
"""

from hostel.containers.cgroups import v1
from hostel.containers.cgroups.resources import THROTTLES, refuse
from hostel.containers.cgroups.setting import UNLIMITED, Setting, number, read


def weight_of_shares(shares: int) -> int:
    """2 is 1, 1024 is 100, 262144 is 10000; log10 of the weight is a parabola over log2 of the shares."""
    from math import ceil, log2

    bits = log2(min(max(shares, 2), 262144))
    exponent = (bits * bits + 125 * bits) / 612 - 7 / 34  # through (1, 0), (10, 2) and (18, 4)
    return ceil(10**exponent - 1e-9)


def weight_of_blkio(weight: int) -> int:
    return 1 + (weight - 10) * 9999 // 990


def cpu(resources: dict, folder: str) -> list[Setting]:
    cpu = resources.get("cpu") or {}
    result = []
    if cpu.get("realtimeRuntime") or cpu.get("realtimePeriod"):
        raise refuse("cpu.realtimeRuntime", "cgroup v2 has no limits for real-time scheduling")
    if cpu.get("shares"):
        result.append(Setting("cpu", "cpu.shares", "cpu.weight", weight_of_shares(cpu["shares"])))
    quota, period = cpu.get("quota"), cpu.get("period")
    if quota or period:
        word = str(quota) if quota and quota > 0 else "max"
        if not quota:
            word = (read(folder, "cpu.max") or "max").split()[0]  # a period alone leaves the quota as it is
        result.append(Setting("cpu", "cpu.quota", "cpu.max", f"{word} {period}" if period else word))
    for name, file in (("burst", "cpu.max.burst"), ("idle", "cpu.idle")):
        if cpu.get(name) is not None:
            result.append(Setting("cpu", f"cpu.{name}", file, cpu[name], optional=not cpu[name]))
    return result


def memory(resources: dict, folder: str) -> list[Setting]:
    memory = resources.get("memory") or {}
    for name, why in (
        ("kernelTCP", "cgroup v2 has no such limit; memory.limit covers it"),
        ("disableOOMKiller", "cgroup v2 always kills"),
    ):
        if memory.get(name):
            raise refuse(f"memory.{name}", why)
    if memory.get("swappiness") is not None:
        raise refuse("memory.swappiness", "cgroup v2 has none for a cgroup")
    limit, result = memory.get("limit"), []
    swap = memory.get("swap") or (-1 if limit == -1 else 0)
    if swap == -1:
        result.append(Setting("memory", "memory.swap", "memory.swap.max", "max", optional=True))
    elif swap:
        most = limit or number(folder, "memory.max") or 0
        if most <= 0 or most == UNLIMITED:
            raise refuse("memory.swap", "takes a memory.limit")
        if swap < most:
            raise refuse("memory.swap", f"{swap} (memory and swap together) is under memory.limit, {most}")
        # without swap in the kernel there is no file, and none is what was asked
        result.append(Setting("memory", "memory.swap", "memory.swap.max", swap - most, optional=swap == most))
    for name, file in (("limit", "memory.max"), ("reservation", "memory.low")):
        if memory.get(name):
            value = "max" if memory[name] == -1 else memory[name]
            result.append(Setting("memory", f"memory.{name}", file, value))
    return result


def blkio(resources: dict, _folder: str) -> list[Setting]:
    io = resources.get("blockIO") or {}
    rows = io.get("weightDevice") or []
    if io.get("leafWeight") or any(row.get("leafWeight") for row in rows):
        raise refuse("blockIO.leafWeight", "cgroup v2 has none")
    result = []
    named = [(f"{row['major']}:{row['minor']} ", "blockIO.weightDevice", row.get("weight")) for row in rows]
    for which, name, weight in [("", "blockIO.weight", io.get("weight")), *named]:
        if weight:
            value = f"{which or 'default '}{weight_of_blkio(weight)}"
            cost = Setting("blkio", name, "io.weight", value)
            result.append(Setting("blkio", name, "io.bfq.weight", f"{which}{weight}", otherwise=cost))
    for name, _, key in THROTTLES:
        for row in io.get(name) or []:
            value = f"{row['major']}:{row['minor']} {key}={row['rate'] or 'max'}"
            result.append(Setting("blkio", f"blockIO.{name}", "io.max", value))
    return result


def hugetlb(resources: dict, _folder: str) -> list[Setting]:
    return [
        Setting("hugetlb", "hugepageLimits", f"hugetlb.{row['pageSize']}{file}", row["limit"], optional=bool(optional))
        for row in resources.get("hugepageLimits") or []
        for optional, file in enumerate((".max", ".rsvd.max"))
    ]


CONTROLLERS = v1.CONTROLLERS | {"cpu": cpu, "memory": memory, "blkio": blkio, "hugetlb": hugetlb}


def unified(resources: dict) -> list[Setting]:
    """The specification's own door to v2's files; it comes last, so it wins."""
    result = []
    for file, value in (resources.get("unified") or {}).items():
        controller = file.partition(".")[0]
        for line in value.splitlines():  # the kernel takes a line a write
            result.append(Setting("blkio" if controller == "io" else controller, f"unified.{file}", file, line))
    return result
