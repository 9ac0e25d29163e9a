"""What a run found: medians and ratios, as a table in markdown and as JSON."""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.row import Row, Values

BEGIN, END = "<!-- table: written by python -m bench --docs -->", "<!-- end of table -->"
LEGEND = """\
"hostel vs TCG" is how many times as fast, or as small; above 1 hostel is better. It is the median of the runs' own
ratios, with their least and greatest; "by CPU time" is the same for the processor time that the two processes took,
which other work on the host disturbs less.
"""


@dataclass
class Result:
    """A row and its values, one ``Values`` a round."""

    row: Row
    rounds: list[Values] = field(default_factory=list)

    def median(self, peer: str) -> float | None:
        values = [values[peer].value for values in self.rounds if peer in values]
        return statistics.median(values) if values else None

    def speeds(self, peer: str) -> list[float]:
        """How many times as fast (or as small) as ``peer`` hostel was, a round each."""
        pairs = [(values["hostel"], values[peer]) for values in self.rounds if {"hostel", peer} <= values.keys()]
        return [theirs.value / max(ours.value, 1e-9) for ours, theirs in pairs]

    def speeds_by_cpu(self, peer: str) -> list[float]:
        """The same by the processor time of the two processes; empty where that wasn't measured."""
        pairs = [(values["hostel"], values[peer]) for values in self.rounds if {"hostel", peer} <= values.keys()]
        return [theirs.cpu / ours.cpu for ours, theirs in pairs if ours.cpu and theirs.cpu]

    def reached(self) -> bool | None:
        ours, speeds = self.median("hostel"), self.speeds("qemu")
        if ours is None or not speeds:
            return None
        return self.row.goal.reached(ours, statistics.median(speeds))


@dataclass
class Report:
    host: dict[str, Any]
    versions: dict[str, str]
    guest: str
    quick: bool
    rounds: int
    warnings: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    diagnosis: dict[str, Any] = field(default_factory=dict)  # of a run that failed: what the peers say of themselves
    at: float = field(default_factory=time.time)

    def markdown(self) -> str:
        lines = [
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(self.at))} UTC, {self.host['cores']} cores of "
            f"{self.host['cpu']}, {self.host['memory_gib']} GiB, Linux {self.host['kernel']}, "
            f"load {self.host['load_average']} at the start.",
            f"hostel {self.versions['hostel']}, {self.versions['qemu']}. Guest: {self.guest}. "
            f"{f'Medians of {self.rounds} runs' if self.rounds > 1 else 'One run'}.",
            "",
        ]
        lines += [f"**{warning}**\n" for warning in self.warnings]
        rows = [["what", "hostel", "QEMU TCG", "hostel vs TCG", "from – to", "by CPU time", "goal", "host itself"]]
        rows += [_cells(result) for result in self.results]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        for first, *others in rows:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append(f"| {first.ljust(widths[0])} | {' | '.join(cells)} |")
        return "\n".join([*lines, "", LEGEND])

    def json(self) -> str:
        data = {
            "version": 1, "at": self.at, "host": self.host, "versions": self.versions, "guest": self.guest,
            "quick": self.quick, "rounds": self.rounds, "warnings": self.warnings, "diagnosis": self.diagnosis,
            "rows": {
                result.row.key: {
                    "title": result.row.title, "unit": result.row.unit, "goal": result.row.goal.text(result.row.unit),
                    "reached": result.reached(), "speeds_vs_qemu": result.speeds("qemu"),
                    "rounds": [{name: asdict(sample) for name, sample in v.items()} for v in result.rounds],
                }
                for result in self.results
            },
        }
        return json.dumps(data, indent=1) + "\n"

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime(self.at))
        path.write_text(self.json())
        return path

    def write_into(self, document: Path) -> None:
        """Replace the table that the document holds between its two marks."""
        text = document.read_text()
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{document} has no place for the table")
        document.write_text(f"{before}{begin}\n{self.markdown()}{end}{after}")


def _cells(result: Result) -> list[str]:
    unit = result.row.unit
    speeds = result.speeds("qemu")
    by_cpu = result.speeds_by_cpu("qemu")
    goal = result.row.goal.text(unit)
    reached = result.reached()
    return [
        result.row.title,
        *(_value(result.median(peer), unit) for peer in ("hostel", "qemu")),
        f"{_short(statistics.median(speeds))} ×" if speeds else "",
        f"{_short(min(speeds))} – {_short(max(speeds))}" if len(speeds) > 1 else "",
        f"{_short(statistics.median(by_cpu))} ×" if by_cpu else "",
        goal if reached is None else f"{goal} {'✓' if reached else '✗'}",
        _value(result.median("native"), unit),
    ]


def _value(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_short(value)} {unit}"


def _short(value: float) -> str:
    """Three digits, however large."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.01 else f"{value:.4f}"
