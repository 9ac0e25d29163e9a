"""Limits in cgroup v1's files (the kernel's Documentation/admin-guide/cgroup-v1), a function for each controller."""

from hostel.containers.cgroups.resources import THROTTLES
from hostel.containers.cgroups.setting import Setting


def cpu(resources: dict, _folder: str) -> list[Setting]:
    cpu = resources.get("cpu") or {}
    return [
        Setting("cpu", f"cpu.{name}", file, max(cpu[name], -1)) for name, file in (
            ("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us"), ("shares", "cpu.shares"),
            ("period", "cpu.cfs_period_us"), ("quota", "cpu.cfs_quota_us"),
        ) if cpu.get(name)
    ] + [
        Setting("cpu", f"cpu.{name}", file, cpu[name], optional=not cpu[name])
        for name, file in (("burst", "cpu.cfs_burst_us"), ("idle", "cpu.idle")) if cpu.get(name) is not None
    ]  # fmt: skip


def cpuset(resources: dict, _folder: str) -> list[Setting]:
    cpu = resources.get("cpu") or {}
    return [Setting("cpuset", f"cpu.{name}", f"cpuset.{name}", cpu[name]) for name in ("cpus", "mems") if cpu.get(name)]


def memory(resources: dict, _folder: str) -> list[Setting]:
    memory = dict(resources.get("memory") or {})
    if memory.get("limit") == -1 and not memory.get("swap"):
        memory["swap"] = -1  # the limit may not be above that of memory and swap
    result = []
    for name, file in (
        ("limit", "limit_in_bytes"), ("swap", "memsw.limit_in_bytes"), ("reservation", "soft_limit_in_bytes"),
        ("kernelTCP", "kmem.tcp.limit_in_bytes"),
    ):  # fmt: skip
        if memory.get(name):
            nothing = (name, memory[name]) == ("swap", -1)  # without swap in the kernel there is no file
            result.append(Setting("memory", f"memory.{name}", f"memory.{file}", memory[name], optional=nothing))
    if memory.get("swappiness") is not None:
        result.append(Setting("memory", "memory.swappiness", "memory.swappiness", memory["swappiness"]))
    if memory.get("disableOOMKiller") is not None:
        value = int(memory["disableOOMKiller"])
        result.append(Setting("memory", "memory.disableOOMKiller", "memory.oom_control", value))
    return result


def blkio(resources: dict, _folder: str) -> list[Setting]:
    """Weights are the I/O scheduler's: BFQ's today, CFQ's before Linux 5.0."""
    io = resources.get("blockIO") or {}
    result = []

    def weight(name: str, file: str, value: object) -> None:
        old = Setting("blkio", name, f"blkio.{file}", value)
        result.append(Setting("blkio", name, f"blkio.bfq.{file}", value, otherwise=old))

    if io.get("weight"):
        weight("blockIO.weight", "weight", io["weight"])
    if io.get("leafWeight"):
        result.append(Setting("blkio", "blockIO.leafWeight", "blkio.leaf_weight", io["leafWeight"]))
    for row in io.get("weightDevice") or []:
        which = f"{row['major']}:{row['minor']}"
        if row.get("weight"):
            weight("blockIO.weightDevice", "weight_device", f"{which} {row['weight']}")
        if row.get("leafWeight"):
            value = f"{which} {row['leafWeight']}"
            result.append(Setting("blkio", "blockIO.weightDevice.leafWeight", "blkio.leaf_weight_device", value))
    for name, file, _ in THROTTLES:
        for row in io.get(name) or []:
            result.append(Setting("blkio", f"blockIO.{name}", file, f"{row['major']}:{row['minor']} {row['rate']}"))
    return result


def pids(resources: dict, _folder: str) -> list[Setting]:
    limit = (resources.get("pids") or {}).get("limit")
    return [Setting("pids", "pids.limit", "pids.max", limit if limit > 0 else "max")] if limit else []


def hugetlb(resources: dict, _folder: str) -> list[Setting]:
    """Reserved pages (``rsvd``) too: who maps more gets an error then, and no SIGBUS at the first use."""
    return [
        Setting("hugetlb", "hugepageLimits", f"hugetlb.{row['pageSize']}{file}", row["limit"], optional=bool(optional))
        for row in resources.get("hugepageLimits") or []
        for optional, file in enumerate((".limit_in_bytes", ".rsvd.limit_in_bytes"))
    ]


def net_cls(resources: dict, _folder: str) -> list[Setting]:
    number = (resources.get("network") or {}).get("classID")
    return [Setting("net_cls", "network.classID", "net_cls.classid", number)] if number else []


def net_prio(resources: dict, _folder: str) -> list[Setting]:
    return [
        Setting("net_prio", "network.priorities", "net_prio.ifpriomap", f"{row['name']} {row.get('priority', 0)}")
        for row in (resources.get("network") or {}).get("priorities") or []
    ]


def rdma(resources: dict, _folder: str) -> list[Setting]:
    """The same in v2."""
    result = []
    for device, limits in (resources.get("rdma") or {}).items():
        keys = (("hca_handle", "hcaHandles"), ("hca_object", "hcaObjects"))
        words = [f"{key}={limits[name]}" for key, name in keys if limits.get(name) is not None]
        if words:
            result.append(Setting("rdma", "rdma", "rdma.max", " ".join([device, *words])))
    return result


CONTROLLERS = {
    "cpuset": cpuset, "cpu": cpu, "memory": memory, "blkio": blkio, "pids": pids, "hugetlb": hugetlb,
    "net_cls": net_cls, "net_prio": net_prio, "rdma": rdma,
}  # fmt: skip
