"""What a container has used, in the shape of the data of ``runc events --stats``, which engines read.

Nanoseconds of CPU time, bytes of memory; entries of block devices by operation. v1's numbers as they are, v2's under
the names that v1 has for the same.
"""

import os

from hostel.containers.cgroups.setting import UNLIMITED, Place, number, read, table

_TICK = 10_000_000      # ns: cpuacct.stat counts in USER_HZ, which is 100 on x86


Places = dict[str, Place]


def collect(places: Places, unified: str | None) -> dict:
    """``unified``: the cgroup in v2's hierarchy, which has pressures even where the controllers are v1's."""
    cpu, memory, blkio = _cpu(places), _memory(places), _blkio(places)
    if unified:
        for name, data in (("cpu", cpu), ("memory", memory), ("io", blkio)):
            if pressure := psi(unified, f"{name}.pressure"):
                data["psi"] = pressure
    return {
        "cpu": cpu, "cpuset": _cpuset(places), "memory": memory, "pids": _pids(places), "blkio": blkio,
        "hugetlb": _hugetlb(places), "intel_rdt": {}, "network_interfaces": None,
    }  # fmt: skip


def psi(folder: str, file: str) -> dict[str, dict[str, float]]:
    """Pressure stall information: shares of the time, in percent, and microseconds in all."""
    result = {}
    for line in (read(folder, file) or "").splitlines():
        kind, *fields = line.split()
        pairs = dict(field.split("=") for field in fields)
        result[kind] = {key: int(value) if key == "total" else float(value) for key, value in pairs.items()}
    return result


def _cpu(places: Places) -> dict:
    usage: dict = {"kernel": 0, "user": 0}
    throttling: dict[str, int] = {}
    place = places.get("cpu")
    if place and place.version == 2 or place is None and "cpuacct" not in places:
        rows = table(place.folder, "cpu.stat") if place else {}
        usage["total"] = rows.get("usage_usec", 0) * 1000
        usage["user"], usage["kernel"] = rows.get("user_usec", 0) * 1000, rows.get("system_usec", 0) * 1000
        names = (("periods", "nr_periods", 1), ("throttledPeriods", "nr_throttled", 1),
                 ("throttledTime", "throttled_usec", 1000))  # fmt: skip
    else:
        if acct := places.get("cpuacct"):
            usage["total"] = number(acct.folder, "cpuacct.usage") or 0
            usage["percpu"] = [int(word) for word in (read(acct.folder, "cpuacct.usage_percpu") or "").split()]
            rows = table(acct.folder, "cpuacct.stat")
            usage["user"], usage["kernel"] = rows.get("user", 0) * _TICK, rows.get("system", 0) * _TICK
            each = [line.split() for line in (read(acct.folder, "cpuacct.usage_all") or "").splitlines()[1:]]
            if each:
                usage["percpu_user"] = [int(row[1]) for row in each]
                usage["percpu_kernel"] = [int(row[2]) for row in each]
        rows = table(place.folder, "cpu.stat") if place else {}
        names = (("periods", "nr_periods", 1), ("throttledPeriods", "nr_throttled", 1),
                 ("throttledTime", "throttled_time", 1))  # fmt: skip
    for name, key, factor in names:
        if rows.get(key):
            throttling[name] = rows[key] * factor
    return {"usage": usage, "throttling": throttling}


def numbers(text: str) -> list[int]:
    """``0-2,5`` is 0, 1, 2, 5."""
    result: list[int] = []
    for part in text.replace(" ", ",").split(","):
        if part:
            first, _, last = part.partition("-")
            result += range(int(first), int(last or first) + 1)
    return result


def _cpuset(places: Places) -> dict:
    if not (place := places.get("cpuset")):
        return {}
    result: dict = {}
    for key in ("cpus", "mems"):
        file = f"cpuset.effective_{key}" if place.version == 1 else f"cpuset.{key}.effective"
        result[key] = numbers(read(place.folder, file) or "")
    if place.version == 1:
        for name in (
            "cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page",
            "memory_spread_slab", "memory_pressure", "sched_load_balance", "sched_relax_domain_level",
        ):  # fmt: skip
            result[name] = number(place.folder, f"cpuset.{name}") or 0
    return result


def _memory(places: Places) -> dict:
    if not (place := places.get("memory")):
        return {}
    folder = place.folder
    raw = table(folder, "memory.stat")
    if place.version == 1:
        result: dict = {"cache": raw.get("cache", 0), "raw": raw}
        for name, prefix in (("usage", ""), ("swap", "memsw."), ("kernel", "kmem."), ("kernelTCP", "kmem.tcp.")):
            result[name] = _without_none({
                key: number(folder, f"memory.{prefix}{file}") for key, file in (
                    ("limit", "limit_in_bytes"), ("usage", "usage_in_bytes"), ("max", "max_usage_in_bytes"),
                    ("failcnt", "failcnt"),
                )
            })  # fmt: skip
        return result
    usage = {"limit": number(folder, "memory.max"), "usage": number(folder, "memory.current"),
             "max": number(folder, "memory.peak"), "failcnt": table(folder, "memory.events").get("max", 0)}  # fmt: skip
    swap: dict[str, int | None] = {}
    if (current := number(folder, "memory.swap.current")) is not None:  # both together, as in v1
        limit, most = usage["limit"] or 0, number(folder, "memory.swap.max") or 0
        swap = {"limit": min(limit + most, UNLIMITED), "usage": (usage["usage"] or 0) + current}
    return {
        "cache": raw.get("file", 0), "usage": _without_none(usage), "swap": _without_none(swap), "kernel": {},
        "kernelTCP": {}, "raw": raw,
    }  # fmt: skip


def _without_none(values: dict[str, int | None]) -> dict[str, int]:
    return {key: value for key, value in values.items() if value is not None} | {"failcnt": values.get("failcnt") or 0}


def _pids(places: Places) -> dict[str, int]:
    if not (place := places.get("pids")):
        return {}
    result = {"current": number(place.folder, "pids.current") or 0}
    if (limit := number(place.folder, "pids.max")) not in (None, UNLIMITED):
        result["limit"] = limit or 0
    return result


def entries(text: str | None) -> list[dict]:
    """v1's block I/O files: ``8:0 Read 4096``, or ``8:0 4096``; totals at the end don't count."""
    result: list[dict] = []
    for line in (text or "").splitlines():
        words = line.split()
        major, colon, minor = words[0].partition(":")
        if colon:
            operation = {"op": words[1]} if len(words) == 3 else {}
            result.append({"major": int(major), "minor": int(minor), **operation, "value": int(words[-1])})
    return result


def _blkio(places: Places) -> dict:
    if not (place := places.get("blkio")):
        return {}
    if place.version == 2:
        size: list[dict] = []
        count: list[dict] = []
        for line in (read(place.folder, "io.stat") or "").splitlines():
            which, *fields = line.split()
            major, _, minor = which.partition(":")
            for field in fields:
                key, _, value = field.partition("=")
                operation = {"r": "Read", "w": "Write", "d": "Discard"}.get(key[0])
                if operation and key[1:] in ("bytes", "ios"):
                    rows = size if key[1:] == "bytes" else count
                    rows.append({"major": int(major), "minor": int(minor), "op": operation, "value": int(value)})
        return {"ioServiceBytesRecursive": size, "ioServicedRecursive": count}
    result = {}
    for name, file in (("ioServiceBytesRecursive", "io_service_bytes"), ("ioServicedRecursive", "io_serviced")):
        # BFQ counts on disks that it schedules; the throttling layer on those that it has had a rule for
        bfq = entries(read(place.folder, f"blkio.bfq.{file}_recursive"))
        throttle = entries(read(place.folder, f"blkio.throttle.{file}_recursive"))
        seen = {(row["major"], row["minor"]) for row in throttle if row["value"]}
        result[name] = throttle + [row for row in bfq if (row["major"], row["minor"]) not in seen]
    return result


def page_sizes(place: Place) -> list[str]:
    """Of huge pages that the cgroup counts: 2MB, 1GB."""
    ending = ".limit_in_bytes" if place.version == 1 else ".max"
    names = (name for name in os.listdir(place.folder) if name.startswith("hugetlb.") and name.endswith(ending))
    return sorted(name.split(".")[1] for name in names if ".rsvd." not in name)


def _hugetlb(places: Places) -> dict[str, dict[str, int]]:
    if not (place := places.get("hugetlb")):
        return {}
    result = {}
    for size in page_sizes(place):
        prefix = f"hugetlb.{size}"
        if place.version == 1:
            result[size] = {
                "usage": number(place.folder, f"{prefix}.usage_in_bytes") or 0,
                "max": number(place.folder, f"{prefix}.max_usage_in_bytes") or 0,
                "failcnt": number(place.folder, f"{prefix}.failcnt") or 0,
            }
        else:
            result[size] = {
                "usage": number(place.folder, f"{prefix}.current") or 0,
                "failcnt": table(place.folder, f"{prefix}.events").get("max", 0),
            }
    return result
