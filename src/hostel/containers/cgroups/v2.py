"""Limits in cgroup v2's files (the kernel's Documentation/admin-guide/cgroup-v2.rst), a function for each controller.

The specification counts as v1 does. What becomes of it:

- **shares** (2 to 262144, usually 1024) are a weight (1 to 10000, usually 100): a curve through the three of these, so
  that a container with the usual shares has as much as a neighbour with the usual weight. (A straight line between the
  ends would make it 39.)
- **swap** is memory and swap together in v1, swap alone in v2.
- **blkio weight** (10 to 1000) is BFQ's own where it is there; else io.weight (1 to 10000), in a straight line.
- **reservation** is memory.low.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from hostel.containers.cgroups import v1
from hostel.containers.cgroups.resources import Resources
from hostel.containers.cgroups.setting import UNLIMITED, Setting, number, read, refuse


def weight_of_shares(shares: int) -> int:
    """2 is 1, 1024 is 100, 262144 is 10000, and between them log10 of the weight is a parabola over log2 of shares."""
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    bits = math.log2(shares)
    # a·bits² + b·bits + c through (1, 0), (10, 2), (18, 4)
    return math.ceil(10 ** ((bits * bits + 125 * bits) / 612 - 7 / 34) - 1e-9)


def weight_of_blkio(weight: int) -> int:
    return 1 + (weight - 10) * 9999 // 990


def cpu(resources: Resources, folder: Path) -> Iterator[Setting]:
    if not (cpu := resources.cpu):
        return
    if cpu.realtime_runtime or cpu.realtime_period:
        raise refuse("cpu.realtimeRuntime", "cgroup v2 has no limits for real-time scheduling")
    if cpu.shares:
        yield Setting("cpu", "cpu.shares", "cpu.weight", str(weight_of_shares(cpu.shares)))
    if cpu.quota or cpu.period:
        quota = str(cpu.quota) if cpu.quota and cpu.quota > 0 else "max"
        if not cpu.quota:
            quota = (read(folder, "cpu.max") or "max").split()[0]  # a period alone leaves the quota as it is
        yield Setting("cpu", "cpu.quota", "cpu.max", f"{quota} {cpu.period}" if cpu.period else quota)
    if cpu.burst is not None:
        yield Setting("cpu", "cpu.burst", "cpu.max.burst", str(cpu.burst), optional=not cpu.burst)
    if cpu.idle is not None:
        yield Setting("cpu", "cpu.idle", "cpu.idle", str(cpu.idle), optional=not cpu.idle)


def memory(resources: Resources, folder: Path) -> Iterator[Setting]:
    if not (memory := resources.memory):
        return
    if memory.kernel_tcp:
        raise refuse("memory.kernelTCP", "cgroup v2 has no such limit; memory.limit covers it")
    if memory.swappiness is not None:
        raise refuse("memory.swappiness", "cgroup v2 has none for a cgroup")
    if memory.disable_oom_killer:
        raise refuse("memory.disableOOMKiller", "cgroup v2 always kills")
    swap = memory.swap or (-1 if memory.limit == -1 else 0)
    if swap == -1:
        yield Setting("memory", "memory.swap", "memory.swap.max", "max", optional=True)
    elif swap:
        limit = memory.limit or number(folder, "memory.max") or 0
        if limit <= 0 or limit == UNLIMITED:
            raise refuse("memory.swap", "takes a memory.limit")
        if swap < limit:
            raise refuse("memory.swap", f"{swap} (memory and swap together) is under memory.limit, {limit}")
        # without swap in the kernel there is no file, and none is what was asked
        yield Setting("memory", "memory.swap", "memory.swap.max", str(swap - limit), optional=swap == limit)
    if memory.limit:
        yield Setting("memory", "memory.limit", "memory.max", _max(memory.limit))
    if memory.reservation:
        yield Setting("memory", "memory.reservation", "memory.low", _max(memory.reservation))


def blkio(resources: Resources, _folder: Path) -> Iterator[Setting]:
    if not (io := resources.block_io):
        return
    if io.leaf_weight or any(device.leaf_weight for device in io.weight_device or []):
        raise refuse("blockIO.leafWeight", "cgroup v2 has none")
    if io.weight:
        cost = Setting("blkio", "blockIO.weight", "io.weight", f"default {weight_of_blkio(io.weight)}")
        yield Setting("blkio", "blockIO.weight", "io.bfq.weight", str(io.weight), otherwise=cost)
    for device in io.weight_device or []:
        if device.weight:
            which = f"{device.major}:{device.minor}"
            value = f"{which} {weight_of_blkio(device.weight)}"
            cost = Setting("blkio", "blockIO.weightDevice", "io.weight", value)
            yield cost._replace(file="io.bfq.weight", value=f"{which} {device.weight}", otherwise=cost)
    for name, _, key, devices in v1.throttles(resources):
        for one in devices:
            value = f"{one.major}:{one.minor} {key}={one.rate or 'max'}"
            yield Setting("blkio", name, "io.max", value)




def hugetlb(resources: Resources, _folder: Path) -> Iterator[Setting]:
    for limit in resources.hugepage_limits or []:
        file, value = f"hugetlb.{limit.page_size}", str(limit.limit)
        yield Setting("hugetlb", "hugepageLimits", f"{file}.max", value)
        yield Setting("hugetlb", "hugepageLimits", f"{file}.rsvd.max", value, optional=True)


CONTROLLERS: dict[str, v1.Settings] = {
    "cpuset": v1.cpuset, "cpu": cpu, "memory": memory, "blkio": blkio, "pids": v1.pids, "hugetlb": hugetlb,
    "rdma": v1.rdma,
}


def unified(resources: Resources) -> Iterator[Setting]:
    """The specification's own door to v2's files; it comes last, so it wins."""
    for file, value in (resources.unified or {}).items():
        controller = file.partition(".")[0]
        for line in value.splitlines():  # the kernel takes a line a write
            yield Setting("blkio" if controller == "io" else controller, f"unified[{file}]", file, line)


def _max(value: int) -> str:
    return "max" if value == -1 else str(value)
