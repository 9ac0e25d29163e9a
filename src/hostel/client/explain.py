"""What ``hostel explain vm`` shows: a running VM's isolation in numbers, from its worker's counters and the host's
kernel."""

import re
from typing import Any

from hostel.base.errors import MachineError

_KEYS = ("Rss", "Private_Dirty", "Private_Clean", "Shared_Clean", "Shared_Dirty", "AnonHugePages", "Swap")  # of smaps
# Intel SDM volume 3, 6.3.1
EXCEPTIONS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 21: "#CP",
}  # fmt: skip


def explain(inspected: dict[str, Any]) -> dict[str, Any]:
    """Of ``VM.inspect``'s answer. ``MachineError`` where the VM doesn't run."""
    statistics = inspected.get("statistics")
    if not statistics or "vcpus" not in statistics:
        raise MachineError(f"'{inspected['name']}' is not running: there is no live state to explain")
    spec, pid = inspected["spec"], inspected["state"]["pid"]
    vcpus = []
    for number, vcpu in enumerate(statistics["vcpus"]):
        engine = vcpu["engine"]
        vcpus.append({
            "vcpu": number,
            "exits": {
                "the device model": vcpu["exits"], "the engine": engine["exits"], "emulation of": engine["monitor"],
            },
            "tlb": {
                "misses": engine["tlb_misses"], "fills": engine["tlb_fills"], "flushes": engine["tlb_flushes"],
                "switches": engine["switches"], "spaces_found": engine["spaces_found"],
            },
            "interrupts": engine["interrupts"],
            "exceptions": {
                EXCEPTIONS.get(int(vector), f"vector {vector}"): count
                for vector, count in engine["exceptions"].items()
            },
        })
    return {
        "name": inspected["name"], "isolation": "vm", "pid": pid, "engine": {"name": spec.get("engine", "bt")},
        "vcpus": vcpus, "translations": statistics["engine"],
        "interrupts": {name: card["interrupts"] for name, card in statistics.get("cards", {}).items()},
        "memory": memory(pid, spec.get("memory", 512 << 20), statistics), "confinement": inspected["confinement"],
    }


def memory(pid: int, size: int, statistics: dict[str, Any]) -> dict[str, int]:
    """Guest memory by state, in bytes: its largest mapping in the worker, as the host's kernel accounts for it."""
    known = statistics.get("memory", {})
    found = {"promised_to_the_guest": size}
    if "worker_resident" in known:
        found["all_of_the_worker"] = known["worker_resident"]
    try:
        with open(f"/proc/{pid}/smaps") as file:
            mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", file.read())
    except OSError:  # the worker is another user than we are
        if "guest_resident" in known:
            found["touched_and_resident"] = known["guest_resident"]
        return found
    total: dict[str, int] = {}
    for mapping in mappings:
        rows = dict(re.findall(r"(?m)^(\w+): +(\d+) kB$", mapping))
        if rows.get("Size") and int(rows["Size"]) << 10 >= size // 2:
            for key in _KEYS:
                total[key] = total.get(key, 0) + (int(rows.get(key, 0)) << 10)
    if total:
        found |= {
            "touched_and_resident": total["Rss"], "its_own": total["Private_Dirty"] + total["Private_Clean"],
            "shared_with_others": total["Shared_Clean"] + total["Shared_Dirty"],
            "in_large_pages": total["AnonHugePages"], "swapped_out": total["Swap"],
            "never_touched": max(0, size - total["Rss"] - total["Swap"]),
        }
    balloon = statistics.get("cards", {}).get("balloon", {})
    if "actual" in balloon:
        found["given_back_by_the_balloon"] = balloon["actual"]
    return found
