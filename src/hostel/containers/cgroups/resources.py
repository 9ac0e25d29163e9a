"""What a container may use: ``linux.resources`` of a config.json (runtime-spec 1.2, config-linux.md, "Control groups").

It stays the ``dict`` that it is in JSON, as all of a configuration (``containers/spec``). Numbers are in the
specification's units: bytes, microseconds of CPU periods, and cgroup v1's scales for shares (2 to 262144) and weights
(10 to 1000). Here are the types, and the values that no kernel takes; whether this host can limit what is asked is
``Cgroup.check``'s to say.

0 is as if it weren't there, where it makes no sense as a limit: other runtimes read it so, and engines write it.
"""

import os

from hostel.base.errors import ContainerError
from hostel.containers.spec import fits

_RATE = ({"major": int, "minor": int, "rate": int},)
SHAPE: dict = {
    "devices": ({"allow": bool, "type": str, "major": int, "minor": int, "access": str},),
    "memory": {
        "limit": int, "reservation": int, "swap": int, "kernel": int, "kernelTCP": int, "swappiness": int,
        "disableOOMKiller": bool, "useHierarchy": bool, "checkBeforeUpdate": bool,
    },
    "cpu": {
        "shares": int, "quota": int, "burst": int, "period": int, "realtimeRuntime": int, "realtimePeriod": int,
        "cpus": str, "mems": str, "idle": int,
    },
    "pids": {"limit": int},
    "blockIO": {
        "weight": int, "leafWeight": int,
        "weightDevice": ({"major": int, "minor": int, "weight": int, "leafWeight": int},),
        "throttleReadBpsDevice": _RATE, "throttleWriteBpsDevice": _RATE, "throttleReadIOPSDevice": _RATE,
        "throttleWriteIOPSDevice": _RATE,
    },
    "hugepageLimits": ({"pageSize": str, "limit": int},),
    "network": {"classID": int, "priorities": ({"name": str, "priority": int},)},
    "rdma": {}, "unified": {},
}  # fmt: skip

THROTTLES = (  # the specification's name; v1's file; v2's key in io.max
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)


def refuse(name: str, why: str) -> ContainerError:
    return ContainerError(f"linux.resources.{name}: {why}")


def check(resources: dict) -> None:
    """Raises ContainerError, by the setting's name."""
    fits(resources, SHAPE, "linux.resources")
    _check_cpu(resources.get("cpu") or {})
    _check_memory(resources.get("memory") or {})
    _check_block_io(resources.get("blockIO") or {})
    seen = set()
    for limit in resources.get("hugepageLimits") or []:
        size, value = limit.get("pageSize") or "", limit.get("limit", -1)
        if not size.isalnum() or value < 0:
            raise refuse("hugepageLimits", f"pageSize '{size}', limit {value}: a size is such as 2MB, a limit bytes")
        if size in seen:
            raise refuse("hugepageLimits", f"{size} is there twice")
        seen.add(size)
    network = resources.get("network") or {}
    _within("network.classID", network.get("classID"), 0, (1 << 32) - 1)
    for one in network.get("priorities") or []:
        name = one.get("name") or ""
        if not name or "/" in name or " " in name:
            raise refuse("network.priorities", f"'{name}' is no interface's name")
        _within("network.priorities", one.get("priority"), 0, (1 << 32) - 1)
    for device, limits in (resources.get("rdma") or {}).items():
        fits(limits, {"hcaHandles": int, "hcaObjects": int}, f"linux.resources.rdma.{device}")
    for file, value in (resources.get("unified") or {}).items():
        fits(value, str, f"linux.resources.unified.{file}")
        if "/" in file or not file.partition(".")[2] or not value:
            raise refuse("unified", f"'{file}': '{value}' is no file of cgroup v2's with a value")


def _check_cpu(cpu: dict) -> None:
    quota, burst = cpu.get("quota") or 0, cpu.get("burst") or 0
    _within("cpu.shares", cpu.get("shares") or None, 2, 262144)
    _within("cpu.period", cpu.get("period") or None, 1000, 1_000_000)
    if 0 < quota < 1000:
        raise refuse("cpu.quota", f"{quota} is under the kernel's least, 1000 µs")
    if burst < 0 or 0 < quota < burst:
        raise refuse("cpu.burst", f"{burst} isn't from 0 to the quota, {quota}")
    _within("cpu.idle", cpu.get("idle"), 0, 1)
    for name in ("cpus", "mems"):
        if set(cpu.get(name) or "") - set("0123456789-, "):
            raise refuse(f"cpu.{name}", f"'{cpu[name]}' is no list such as 0-3,8")


def _check_memory(memory: dict) -> None:
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if memory.get("kernel"):
        raise refuse("memory.kernel", "Linux has no such limit since 5.16; memory.limit covers it")
    if memory.get("useHierarchy") is False:
        raise refuse("memory.useHierarchy", "Linux counts cgroups below always since 5.11")
    for name in ("limit", "swap", "reservation", "kernelTCP"):
        if (memory.get(name) or 0) < -1:
            raise refuse(f"memory.{name}", f"{memory[name]} is no number of bytes; -1 is no limit")
    if 0 < swap < limit:
        raise refuse("memory.swap", f"{swap} (memory and swap together) is under memory.limit, {limit}")
    if limit == -1 and swap > 0:
        raise refuse("memory.swap", "takes a memory.limit")
    _within("memory.swappiness", memory.get("swappiness"), 0, 100)


def _check_block_io(io: dict) -> None:
    _within("blockIO.weight", io.get("weight") or None, 10, 1000)
    _within("blockIO.leafWeight", io.get("leafWeight") or None, 10, 1000)
    for device in io.get("weightDevice") or []:
        device_of(device, "blockIO.weightDevice")
        _within("blockIO.weightDevice", device.get("weight") or None, 10, 1000)
    for name, file, _ in THROTTLES:
        for one in io.get(name) or []:
            device_of(one, f"blockIO.{name}")
            _within(f"blockIO.{name}", one.get("rate", -1), 0, (1 << (32 if "iops" in file else 64)) - 1)


def device_of(row: dict, name: str) -> str:
    """``major:minor``, as the kernel's files have it; ContainerError if the host has no such block device."""
    which = f"{row.get('major', -1)}:{row.get('minor', -1)}"
    if not os.path.exists(f"/sys/dev/block/{which}"):
        raise refuse(name, f"the host has no block device {which}")
    return which


def _within(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise refuse(name, f"{value} isn't from {least} to {most}")
