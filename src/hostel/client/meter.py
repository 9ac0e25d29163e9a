"""How a running VM does, between two looks at its counters: what ``hostel top`` shows.

What the translator counts comes over the control socket. The host's processor time, and the time that vCPUs were ready
to run and had to wait for a processor (steal), come from the host's scheduler, /proc/PID/task/TID/schedstat.

MIPS are guest instructions, counted by translations that are used only while somebody asks (``mips=True``): counting
slows the VM down somewhat, and costs nothing when nobody looks. An instruction counts when its block gets to it: one
which faults and is run again counts twice, and a string instruction once, however long it is.
"""

from pathlib import Path
from typing import Any

from hostel.base.errors import HostelError
from hostel.client.connection import Connection
from hostel.client.container_meter import ContainerMeter

# Why vCPUs leave translated code, in top's words: the engine's counters, then the runner's.
_ENGINE_EXITS = {
    "memory": ("memory", "plain"), "monitor": ("monitor",), "lookup": ("miss", "link"),
    "kick": ("poll", "poll_indirect"), "fault": ("raise", "fault"), "single": ("step", "step_indirect"),
}  # fmt: skip
EXITS = (*_ENGINE_EXITS, "port", "device", "halt")


class Meter:
    """``read()`` compares with the call before it. ``HostelError`` when the VM has ended."""

    def __init__(self, vm: Any, mips: bool = True):
        self.vm = vm
        self._connection = Connection(vm.folder)
        self._pid = vm.state.pid
        if mips:
            self._connection.call("count", on=True)
        self._mips = mips
        self._last = self._look()

    def read(self) -> dict[str, Any]:
        """Per second since the last call, but for what is so now."""
        before, now = self._last, self._look()
        self._last = now
        seconds = max(now["time"] - before["time"], 1e-6)
        vcpus = []
        for index, (old, new) in enumerate(zip(before["vcpus"], now["vcpus"], strict=True)):
            vcpus.append({"vcpu": index, **self._rates(old, new, seconds)})
        total = {key: sum(vcpu[key] or 0 for vcpu in vcpus) for key in vcpus[0] if key not in ("vcpu", "exits")}
        total["exits"] = {reason: sum(vcpu["exits"][reason] for vcpu in vcpus) for reason in EXITS}
        if not self._mips:
            total["mips"] = None
        total["tlb_misses_per_1000"] = _per_thousand(total)
        engine = now["engine"]
        return {
            "name": self.vm.name, "isolation": "vm", "pid": self._pid, "seconds": seconds, **total,
            "translated": _change(before, now, seconds, "translated_instructions"),
            "invalidated": _change(before, now, seconds, "invalidated_blocks"),
            "cache_bytes": engine["code_bytes"], "cache_capacity": engine["code_capacity"],
            "cache_flushes": engine["flushes"], "blocks": engine["blocks"], "vcpus": vcpus,
        }  # fmt: skip

    def close(self) -> None:
        """Nothing is counted any more, unless others ask for it."""
        self._connection.close()

    def _look(self) -> dict[str, Any]:
        counters: dict[str, Any] = self._connection.call("counters")
        times = _scheduled(self._pid)
        for index, vcpu in enumerate(counters["vcpus"]):
            vcpu["ran"], vcpu["waited"] = times.get(f"vcpu{index}", (0, 0))
        return counters

    def _rates(self, old: dict, new: dict, seconds: float) -> dict[str, Any]:
        def rate(*path: str) -> float:
            a, b = old, new
            for key in path[:-1]:
                a, b = a.get(key, {}), b.get(key, {})
            return max(0, b.get(path[-1], 0) - a.get(path[-1], 0)) / seconds

        exits = {
            reason: sum(rate("engine", "exits", name) for name in names) for reason, names in _ENGINE_EXITS.items()
        }
        exits.update(port=rate("exits", "pio"), device=rate("exits", "mmio"), halt=rate("exits", "hlt"))
        exceptions = sum(new["engine"]["exceptions"].values()) - sum(old["engine"]["exceptions"].values())
        out = {
            "cpu": rate("ran") / 1e9, "steal": rate("waited") / 1e9,
            "mips": rate("engine", "instructions") / 1e6 if self._mips else None,
            "exits_total": sum(exits.values()), "exits": exits,
            "tlb_misses": rate("engine", "tlb_misses"), "interrupts": rate("engine", "interrupts"),
            "exceptions": max(0, exceptions) / seconds,
        }  # fmt: skip
        out["tlb_misses_per_1000"] = _per_thousand(out)
        return out


def _per_thousand(rates: dict[str, Any]) -> float | None:
    return rates["tlb_misses"] / (rates["mips"] * 1000) if rates["mips"] else None


def _change(before: dict, now: dict, seconds: float, name: str) -> float:
    return max(0, now["engine"][name] - before["engine"][name]) / seconds


def _scheduled(pid: int) -> dict[str, tuple[int, int]]:
    """For each vCPU's thread: nanoseconds that it ran, and that it was ready and waited."""
    out = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            name = (task / "comm").read_text().strip()
            ran, waited, _ = (task / "schedstat").read_text().split()
        except (OSError, ValueError):  # it has just ended; or the host's kernel keeps no such statistics
            continue
        out[name] = int(ran), int(waited)
    return out


class Meters:
    """All running VMs and containers, or those named: who comes and goes is followed."""

    def __init__(self, find: Any, mips: bool = True):
        self._find = find
        self._mips = mips
        self._meters: dict[str, Meter | ContainerMeter] = {}
        self.look()

    def look(self) -> None:
        for vm in self._find():
            if vm.name not in self._meters:
                try:
                    container = vm.isolation == "container"
                    self._meters[vm.name] = ContainerMeter(vm) if container else Meter(vm, self._mips)
                except HostelError:
                    continue

    def read(self) -> list[dict[str, Any]]:
        out = []
        for name, meter in sorted(self._meters.items()):
            try:
                out.append(meter.read())
            except HostelError:
                meter.close()
                del self._meters[name]
        self.look()
        return out

    def close(self) -> None:
        for meter in self._meters.values():
            meter.close()

