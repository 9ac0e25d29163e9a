"""Limits in cgroup v1's files (the kernel's Documentation/admin-guide/cgroup-v1), a function for each controller.

0 in a number of the specification is as if it weren't there, where 0 is no value that makes sense; this is how other
runtimes read it, and how engines write it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from hostel.containers.cgroups.resources import Resources, ThrottleDevice
from hostel.containers.cgroups.setting import Setting, refuse

Settings = Callable[[Resources, Path], Iterator[Setting]]


def cpu(resources: Resources, _folder: Path) -> Iterator[Setting]:
    if not (cpu := resources.cpu):
        return
    for name, file, value in (
        ("realtimePeriod", "cpu.rt_period_us", cpu.realtime_period),
        ("realtimeRuntime", "cpu.rt_runtime_us", cpu.realtime_runtime),
        ("shares", "cpu.shares", cpu.shares),
        ("period", "cpu.cfs_period_us", cpu.period),
        ("quota", "cpu.cfs_quota_us", cpu.quota and max(cpu.quota, -1)),
    ):
        if value:
            yield Setting("cpu", f"cpu.{name}", file, str(value))
    if cpu.burst is not None:
        yield Setting("cpu", "cpu.burst", "cpu.cfs_burst_us", str(cpu.burst), optional=not cpu.burst)
    if cpu.idle is not None:
        yield Setting("cpu", "cpu.idle", "cpu.idle", str(cpu.idle), optional=not cpu.idle)


def cpuset(resources: Resources, _folder: Path) -> Iterator[Setting]:
    if cpu := resources.cpu:
        if cpu.cpus:
            yield Setting("cpuset", "cpu.cpus", "cpuset.cpus", cpu.cpus)
        if cpu.mems:
            yield Setting("cpuset", "cpu.mems", "cpuset.mems", cpu.mems)


def memory(resources: Resources, _folder: Path) -> Iterator[Setting]:
    if not (memory := resources.memory):
        return
    swap = memory.swap
    if memory.limit == -1 and not swap:
        swap = -1  # the limit may not be above that of memory and swap
    if memory.limit:
        yield Setting("memory", "memory.limit", "memory.limit_in_bytes", str(memory.limit))
    if swap:
        yield Setting("memory", "memory.swap", "memory.memsw.limit_in_bytes", str(swap), optional=swap == -1)
    if memory.reservation:
        yield Setting("memory", "memory.reservation", "memory.soft_limit_in_bytes", str(memory.reservation))
    if memory.kernel_tcp:
        yield Setting("memory", "memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", str(memory.kernel_tcp))
    if memory.swappiness is not None:
        yield Setting("memory", "memory.swappiness", "memory.swappiness", str(memory.swappiness))
    if memory.disable_oom_killer is not None:
        value = str(int(memory.disable_oom_killer))
        yield Setting("memory", "memory.disableOOMKiller", "memory.oom_control", value)


def throttles(resources: Resources) -> Iterator[tuple[str, str, str, list[ThrottleDevice]]]:
    """The specification's name, v1's file, v2's key, and what is asked."""
    if io := resources.block_io:
        for name, file, key, devices in (
            ("throttleReadBpsDevice", "read_bps_device", "rbps", io.throttle_read_bps_device),
            ("throttleWriteBpsDevice", "write_bps_device", "wbps", io.throttle_write_bps_device),
            ("throttleReadIOPSDevice", "read_iops_device", "riops", io.throttle_read_iops_device),
            ("throttleWriteIOPSDevice", "write_iops_device", "wiops", io.throttle_write_iops_device),
        ):
            yield f"blockIO.{name}", f"blkio.throttle.{file}", key, devices or []


def blkio(resources: Resources, _folder: Path) -> Iterator[Setting]:
    """Weights are the I/O scheduler's: BFQ's today, CFQ's before Linux 5.0."""
    if not (io := resources.block_io):
        return
    if io.weight:
        old = Setting("blkio", "blockIO.weight", "blkio.weight", str(io.weight))
        yield old._replace(file="blkio.bfq.weight", otherwise=old)
    if io.leaf_weight:
        yield Setting("blkio", "blockIO.leafWeight", "blkio.leaf_weight", str(io.leaf_weight))
    for device in io.weight_device or []:
        which = f"{device.major}:{device.minor}"
        if device.weight:
            old = Setting("blkio", "blockIO.weightDevice", "blkio.weight_device", f"{which} {device.weight}")
            yield old._replace(file="blkio.bfq.weight_device", otherwise=old)
        if device.leaf_weight:
            value = f"{which} {device.leaf_weight}"
            yield Setting("blkio", "blockIO.weightDevice.leafWeight", "blkio.leaf_weight_device", value)
    for name, file, _, throttled in throttles(resources):
        for one in throttled:
            yield Setting("blkio", name, file, f"{one.major}:{one.minor} {one.rate}")


def pids(resources: Resources, _folder: Path) -> Iterator[Setting]:
    if resources.pids and resources.pids.limit:
        limit = resources.pids.limit
        yield Setting("pids", "pids.limit", "pids.max", str(limit) if limit > 0 else "max")


def hugetlb(resources: Resources, _folder: Path) -> Iterator[Setting]:
    """Reserved pages (``rsvd``) too: who maps more gets an error then, and no SIGBUS at the first use."""
    for limit in resources.hugepage_limits or []:
        file, value = f"hugetlb.{limit.page_size}", str(limit.limit)
        yield Setting("hugetlb", "hugepageLimits", f"{file}.limit_in_bytes", value)
        yield Setting("hugetlb", "hugepageLimits", f"{file}.rsvd.limit_in_bytes", value, optional=True)


def net_cls(resources: Resources, _folder: Path) -> Iterator[Setting]:
    if resources.network and resources.network.class_id:
        yield Setting("net_cls", "network.classID", "net_cls.classid", str(resources.network.class_id))


def net_prio(resources: Resources, _folder: Path) -> Iterator[Setting]:
    for one in (resources.network and resources.network.priorities) or []:
        yield Setting("net_prio", "network.priorities", "net_prio.ifpriomap", f"{one.name} {one.priority}")


def rdma(resources: Resources, _folder: Path) -> Iterator[Setting]:
    """The same in v2."""
    for device, limits in (resources.rdma or {}).items():
        values = {"hca_handle": limits.hca_handles, "hca_object": limits.hca_objects}
        value = " ".join(f"{key}={number}" for key, number in values.items() if number is not None)
        if value:
            yield Setting("rdma", "rdma", "rdma.max", f"{device} {value}")


CONTROLLERS: dict[str, Settings] = {
    "cpuset": cpuset, "cpu": cpu, "memory": memory, "blkio": blkio, "pids": pids, "hugetlb": hugetlb,
    "net_cls": net_cls, "net_prio": net_prio, "rdma": rdma,
}


def check(resources: Resources) -> None:
    """Raises ContainerError for what no kernel takes, by name."""
    if cpu := resources.cpu:
        _within("cpu.shares", cpu.shares or None, 2, 262144)
        _within("cpu.period", cpu.period or None, 1000, 1_000_000)
        if cpu.quota and 0 < cpu.quota < 1000:
            raise refuse("cpu.quota", f"{cpu.quota} is under the kernel's least, 1000 µs")
        _within("cpu.idle", cpu.idle, 0, 1)
        if cpu.burst and cpu.quota and cpu.quota > 0 and cpu.burst > cpu.quota:
            raise refuse("cpu.burst", f"{cpu.burst} is above the quota, {cpu.quota}")
        for name, value in (("cpu.cpus", cpu.cpus), ("cpu.mems", cpu.mems)):
            if value and not all(part in "0123456789-, " for part in value):
                raise refuse(name, f"'{value}' is no list such as 0-3,8")
    if memory := resources.memory:
        limit, swap = memory.limit or 0, memory.swap or 0
        if memory.kernel:
            raise refuse("memory.kernel", "Linux has no such limit since 5.16; use memory.limit, which covers it")
        if memory.use_hierarchy is False:
            raise refuse("memory.useHierarchy", "Linux counts cgroups below always since 5.11")
        for name in ("limit", "swap", "reservation", "kernel_tcp"):
            if (getattr(memory, name) or 0) < -1:
                raise refuse(f"memory.{name}", f"{getattr(memory, name)} is no number of bytes; -1 is no limit")
        if limit > 0 and 0 < swap < limit:
            raise refuse("memory.swap", f"{swap} (memory and swap together) is under memory.limit, {limit}")
        if limit == -1 and swap > 0:
            raise refuse("memory.swap", "takes a memory.limit")
        _within("memory.swappiness", memory.swappiness, 0, 100)
    if io := resources.block_io:
        _within("blockIO.weight", io.weight or None, 10, 1000)
        for device in io.weight_device or []:
            _block(f"{device.major}:{device.minor}", "blockIO.weightDevice")
            _within("blockIO.weightDevice", device.weight or None, 10, 1000)
    for name, file, _, devices in throttles(resources):
        for one in devices:
            _block(f"{one.major}:{one.minor}", name)
            _within(name, one.rate, 0, (1 << 32) - 1 if "iops" in file else (1 << 64) - 1)
    seen = set()
    for huge in resources.hugepage_limits or []:
        if "/" in huge.page_size or huge.limit < 0:
            raise refuse("hugepageLimits", f"{huge.page_size}={huge.limit} is no limit")
        if huge.page_size in seen:
            raise refuse("hugepageLimits", f"{huge.page_size} is there twice")
        seen.add(huge.page_size)
    if network := resources.network:
        _within("network.classID", network.class_id, 0, (1 << 32) - 1)
    for file, value in (resources.unified or {}).items():
        if not file or "/" in file or "." not in file or not value:
            raise refuse("unified", f"'{file}' is no name of a file of cgroup v2's, with a value")


def _within(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise refuse(name, f"{value} isn't from {least} to {most}")


def _block(which: str, name: str) -> None:
    if not Path("/sys/dev/block", which).exists():
        raise refuse(name, f"the host has no block device {which}")
