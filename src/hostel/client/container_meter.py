"""How a running container does, between two looks at its cgroup: what ``hostel top`` shows beside VMs."""

import time
from typing import Any


class ContainerMeter:
    """``read()`` compares with the call before it. ``HostelError`` when the container has ended."""

    def __init__(self, container: Any):
        self._container = container
        self._last = self._look()

    def read(self) -> dict[str, Any]:
        before, now = self._last, self._look()
        self._last = now
        seconds = max(now["time"] - before["time"], 1e-6)

        def rate(*path: str) -> float:
            return max(0.0, _at(now, *path) - _at(before, *path)) / seconds

        limit = _at(now, "memory", "usage", "limit")
        return {
            "name": self._container.name, "isolation": "container", "seconds": seconds,
            "cpu": rate("cpu", "usage", "total") / 1e9,
            "throttled": rate("cpu", "throttling", "throttledTime") / 1e9,
            "memory": int(_at(now, "memory", "usage", "usage")),
            "memory_limit": int(limit) if 0 < limit < 1 << 62 else None,
            "pids": int(_at(now, "pids", "current")), "pids_limit": int(_at(now, "pids", "limit")) or None,
            "read": _blocks(before, now, "read") / seconds, "written": _blocks(before, now, "write") / seconds,
        }

    def close(self) -> None:
        """There is nothing to let go of."""

    def _look(self) -> dict[str, Any]:
        return {"time": time.monotonic(), **self._container.stats()}


def _at(stats: dict[str, Any], *path: str) -> float:
    value: Any = stats
    for key in path:
        value = value.get(key) or {} if isinstance(value, dict) else {}
    return value if isinstance(value, int | float) else 0.0


def _blocks(before: dict[str, Any], now: dict[str, Any], what: str) -> float:
    def total(stats: dict[str, Any]) -> int:
        rows = (stats.get("blkio") or {}).get("ioServiceBytesRecursive") or []
        return sum(row.get("value", 0) for row in rows if str(row.get("op", "")).lower() == what)

    return max(0, total(now) - total(before))
