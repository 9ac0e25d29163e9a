"""Each limit of a container's beside its use, from the live kernel: what ``hostel explain`` shows."""

from collections.abc import Iterator

import msgspec

from hostel.containers.cgroups.setting import UNLIMITED, Place, limited, number, read, table
from hostel.containers.cgroups.stats import Places, entries, numbers, page_sizes


class Limit(msgspec.Struct, frozen=True):
    """``limit`` is ``None`` where there is none; ``use`` is in the same unit, and ``None`` where nobody counts."""

    controller: str
    what: str
    limit: float | str | None
    use: float | str | None
    unit: str
    file: str               # where the kernel has the limit


def collect(places: Places) -> list[Limit]:
    return [limit for name, row in _ROWS.items() if name in places for limit in row(places[name], places)]


def _size(value: int | None) -> int | None:
    return value if limited(value) else None


def _cpu(place: Place, places: Places) -> Iterator[Limit]:
    rows = table(place.folder, "cpu.stat")
    if place.version == 1:
        quota = number(place.folder, "cpu.cfs_quota_us") or -1
        period = number(place.folder, "cpu.cfs_period_us") or 100000
        used = (number(places["cpuacct"].folder, "cpuacct.usage") or 0) / 1e9 if "cpuacct" in places else None
        throttled, file = rows.get("throttled_time", 0) / 1e9, "cpu.cfs_quota_us"
        weight, weight_file = number(place.folder, "cpu.shares"), "cpu.shares"
    else:
        words = (read(place.folder, "cpu.max") or "max 100000").split()
        quota, period = -1 if words[0] == "max" else int(words[0]), int(words[1])
        used, throttled, file = rows.get("usage_usec", 0) / 1e6, rows.get("throttled_usec", 0) / 1e6, "cpu.max"
        weight, weight_file = number(place.folder, "cpu.weight"), "cpu.weight"
    yield Limit("cpu", "CPUs at once", quota / period if quota > 0 else None, None, "CPUs", file)
    yield Limit("cpu", "CPU time", None, used, "s", file)
    yield Limit("cpu", "throttled by the quota", None, throttled, "s", file)
    yield Limit("cpu", "weight among neighbours", weight, None, "", weight_file)


def _cpuset(place: Place, _places: Places) -> Iterator[Limit]:
    for what, key in (("CPUs it may run on", "cpus"), ("memory nodes it may use", "mems")):
        file = f"cpuset.effective_{key}" if place.version == 1 else f"cpuset.{key}.effective"
        text = read(place.folder, file)
        yield Limit("cpuset", what, text, len(numbers(text or "")), "", f"cpuset.{key}")


def _memory(place: Place, _places: Places) -> Iterator[Limit]:
    def row(what: str, limit: str, use: str) -> Limit:
        return Limit("memory", what, _size(number(place.folder, limit)), number(place.folder, use), "bytes", limit)

    if place.version == 1:
        yield row("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        if read(place.folder, "memory.memsw.limit_in_bytes") is not None:
            yield row("memory and swap", "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes")
        yield row("reservation", "memory.soft_limit_in_bytes", "memory.usage_in_bytes")
    else:
        yield row("memory", "memory.max", "memory.current")
        if read(place.folder, "memory.swap.max") is not None:
            yield row("swap", "memory.swap.max", "memory.swap.current")
        yield row("reservation", "memory.low", "memory.current")


def _pids(place: Place, _places: Places) -> Iterator[Limit]:
    limit = number(place.folder, "pids.max")
    use = number(place.folder, "pids.current")
    yield Limit("pids", "processes and threads", None if limit == UNLIMITED else limit, use, "", "pids.max")


def _blkio(place: Place, places: Places) -> Iterator[Limit]:
    if place.version == 2:
        used: dict[str, dict[str, int]] = {}
        for line in (read(place.folder, "io.stat") or "").splitlines():
            which, *fields = line.split()
            used[which] = {key: int(value) for key, _, value in (field.partition("=") for field in fields)}
        for line in (read(place.folder, "io.max") or "").splitlines():
            which, *fields = line.split()
            for field in fields:
                key, _, value = field.partition("=")
                if value != "max":
                    total = used.get(which, {}).get({"rbps": "rbytes", "wbps": "wbytes"}.get(key, key[0] + "ios"))
                    yield _throttle(which, key[0] == "r", key.endswith("bps"), int(value), total, "io.max")
        return
    for kind, size, counter in (("bps", True, "io_service_bytes"), ("iops", False, "io_serviced")):
        for operation in ("read", "write"):
            file = f"blkio.throttle.{operation}_{kind}_device"
            rows = entries(read(place.folder, f"blkio.throttle.{counter}"))
            for limit in entries(read(place.folder, file)):
                which = f"{limit['major']}:{limit['minor']}"
                total = sum(
                    row["value"] for row in rows
                    if (row["major"], row["minor"]) == (limit["major"], limit["minor"])
                    and row.get("op") == operation.capitalize()
                )  # fmt: skip
                yield _throttle(which, operation == "read", size, limit["value"], total, file)


def _throttle(which: str, reading: bool, size: bool, limit: int, total: int | None, file: str) -> Limit:
    """The use is what there was in all, as the kernel counts no rate."""
    unit = "bytes/s" if size else "requests/s"
    return Limit("blkio", f"{'read from' if reading else 'written to'} {which}", limit, total, unit, file)


def _hugetlb(place: Place, _places: Places) -> Iterator[Limit]:
    for size in page_sizes(place):
        limit, use = (".limit_in_bytes", ".usage_in_bytes") if place.version == 1 else (".max", ".current")
        file = f"hugetlb.{size}{limit}"
        value = _size(number(place.folder, file))
        yield Limit("hugetlb", f"pages of {size}", value, number(place.folder, f"hugetlb.{size}{use}"), "bytes", file)


def _net_cls(place: Place, _places: Places) -> Iterator[Limit]:
    yield Limit("net_cls", "class of its packets", number(place.folder, "net_cls.classid"), None, "", "net_cls.classid")


_ROWS = {
    "cpu": _cpu, "cpuset": _cpuset, "memory": _memory, "blkio": _blkio, "pids": _pids, "hugetlb": _hugetlb,
    "net_cls": _net_cls,
}
