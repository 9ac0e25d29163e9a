"""What a run found: medians and ratios, as a table in markdown and as JSON."""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.row import Mean, Row, Scaling, Values

BEGIN, END = "<!-- table: written by python -m bench --docs -->", "<!-- end of table -->"
LEGEND = """\
"vs TCG" is how many times as fast as QEMU hostel is, or as small; above 1 hostel is better. It is the median of the
runs' own ratios, with their least and greatest. "vs host" is how many times as slow as the host itself it is, in the
same way. "By CPU time" is either for the processor time that the processes took, which other work on the host disturbs
less; where it is told what more vCPUs gain, what hostel would if the work were shared evenly and the host had nothing
else to do.
"""


@dataclass
class Result:
    """A row and its values, one ``Values`` a round."""

    row: Row
    rounds: list[Values] = field(default_factory=list)
    wrong: str = ""           # what went wrong, which no speed makes up for

    def median(self, peer: str) -> float | None:
        values = [values[peer].value for values in self.rounds if peer in values]
        return statistics.median(values) if values else None

    def ratios(self, peer: str, cpu: bool = False) -> list[float]:
        """How many times hostel's value ``peer``'s was, by rounds; or the processor times', where they were taken."""
        pairs = [(values["hostel"], values[peer]) for values in self.rounds if {"hostel", peer} <= values.keys()]
        if cpu:
            return [theirs.cpu / ours.cpu for ours, theirs in pairs if ours.cpu and theirs.cpu]
        return [theirs.value / max(ours.value, 1e-9) for ours, theirs in pairs]

    def reached(self) -> bool | None:
        return False if self.wrong else self.row.goal.reached(self.median("hostel"), *_speed_and_slowdown(self))


@dataclass
class MeanResult:
    """The geometric means over ``results`` of each round's ratios."""

    mean: Mean
    results: list[Result]

    def ratios(self, peer: str, cpu: bool = False) -> list[float]:
        columns = [result.ratios(peer, cpu) for result in self.results]
        if len({len(column) for column in columns}) > 1:
            return []  # a round broke off
        return [statistics.geometric_mean(ratios) for ratios in zip(*columns, strict=True)]

    def reached(self) -> bool | None:
        return self.mean.goal.reached(None, *_speed_and_slowdown(self))


@dataclass
class ScalingResult:
    """What each peer gains from more processors; above 1 it does."""

    scaling: Scaling
    before: Result
    after: Result

    def median(self, peer: str) -> float | None:
        rounds = zip(self.before.rounds, self.after.rounds, strict=False)  # where a round broke off, after is shorter
        gains = [one[peer].value / two[peer].value for one, two in rounds if peer in one and peer in two]
        return statistics.median(gains) if gains else None

    def by_cpu(self) -> float | None:
        """What hostel would gain if the work were shared evenly and nobody else used the processors."""
        rounds = zip(self.before.rounds, self.after.rounds, strict=False)
        pairs = [(one["hostel"].cpu, two["hostel"].cpu) for one, two in rounds if "hostel" in one and "hostel" in two]
        gains = [self.scaling.more * one / two for one, two in pairs if one and two]
        return statistics.median(gains) if gains else None

    def reached(self) -> bool | None:
        return self.scaling.goal.reached(self.median("hostel"))


def _speed_and_slowdown(result: Result | MeanResult) -> tuple[float | None, float | None]:
    """How many times as fast as TCG, and how many times as slow as the host."""
    speeds, natives = result.ratios("qemu"), result.ratios("native")
    return (statistics.median(speeds) if speeds else None, 1 / statistics.median(natives) if natives else None)


@dataclass
class Report:
    host: dict[str, Any]
    versions: dict[str, str]
    guest: str
    quick: bool
    rounds: int
    warnings: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    means: list[Mean] = field(default_factory=list)
    scalings: list[Scaling] = field(default_factory=list)
    diagnosis: dict[str, Any] = field(default_factory=dict)  # of a run that failed: what the peers say of themselves
    at: float = field(default_factory=time.time)

    def markdown(self) -> str:
        lines = [
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(self.at))} UTC, {self.host['cores']} cores of "
            f"{self.host['cpu']}, {self.host['memory_gib']} GiB, Linux {self.host['kernel']}, "
            f"load {self.host['load_average']} at the start.",
            f"hostel {self.versions['hostel']}, {self.versions.get('qemu', 'QEMU left out')}. Guest: {self.guest}. "
            f"{f'Medians of {self.rounds} runs' if self.rounds > 1 else 'One run'}.",
            "",
        ]
        lines += [f"**{warning}**\n" for warning in self.warnings]
        lines += [f"**Wrong: {result.row.title}: {result.wrong}**\n" for result in self.results if result.wrong]
        rows = [[
            "what", "hostel", "QEMU TCG", "host itself", "vs TCG", "from – to", "by CPU time", "vs host", "by CPU time",
            "goal", "",
        ]]
        for result in self.results:
            rows.append(_cells(result))
            rows += [_mean_cells(mean) for mean in self.mean_results() if mean.results[-1] is result]
            rows += [_scaling_cells(scaling) for scaling in self.scaling_results() if scaling.after is result]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        for first, *others in rows:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append(f"| {first.ljust(widths[0])} | {' | '.join(cells)} |")
        return "\n".join([*lines, "", LEGEND])

    def mean_results(self) -> list[MeanResult]:
        """Those means of whose rows all were measured."""
        results = {result.row.key: result for result in self.results if not result.wrong}
        whole = [mean for mean in self.means if set(mean.rows) <= set(results)]
        return [MeanResult(mean, [results[key] for key in mean.rows]) for mean in whole]

    def scaling_results(self) -> list[ScalingResult]:
        results = {result.row.key: result for result in self.results if not result.wrong}
        return [
            ScalingResult(scaling, results[scaling.before], results[scaling.after])
            for scaling in self.scalings
            if {scaling.before, scaling.after} <= set(results)
        ]

    def json(self) -> str:
        data = {
            "version": 2, "at": self.at, "host": self.host, "versions": self.versions, "guest": self.guest,
            "quick": self.quick, "rounds": self.rounds, "warnings": self.warnings, "diagnosis": self.diagnosis,
            "rows": {
                result.row.key: {
                    "title": result.row.title, "unit": result.row.unit, "goal": result.row.goal.text(result.row.unit),
                    "reached": result.reached(), "wrong": result.wrong,
                    "vs_qemu": result.ratios("qemu"), "vs_native": result.ratios("native"),
                    "rounds": [{name: asdict(sample) for name, sample in v.items()} for v in result.rounds],
                }
                for result in self.results
            },
            "means": {
                mean.mean.title: {
                    "reached": mean.reached(), "vs_qemu": mean.ratios("qemu"), "vs_native": mean.ratios("native"),
                }
                for mean in self.mean_results()
            },
            "scalings": {
                scaling.scaling.title: {
                    "reached": scaling.reached(), **{peer: scaling.median(peer) for peer in self.versions},
                }
                for scaling in self.scaling_results()
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
    return [
        result.row.title, *(_value(result.median(peer), unit) for peer in ("hostel", "qemu", "native")),
        *_compared(result), *_judged(result.row.goal.text(unit), result.reached()),
    ]


def _mean_cells(mean: MeanResult) -> list[str]:
    return [mean.mean.title, "", "", "", *_compared(mean), *_judged(mean.mean.goal.text(""), mean.reached())]


def _scaling_cells(scaling: ScalingResult) -> list[str]:
    return [
        scaling.scaling.title, *(_value(scaling.median(peer), "×") for peer in ("hostel", "qemu", "native")),
        "", "", _value(scaling.by_cpu(), "×"), "", "", *_judged(scaling.scaling.goal.text("×"), scaling.reached()),
    ]


def _compared(result: Result | MeanResult) -> list[str]:
    speeds = result.ratios("qemu")
    return [
        _times(speeds),
        f"{_short(min(speeds))} – {_short(max(speeds))}" if len(speeds) > 1 else "",
        _times(result.ratios("qemu", cpu=True)),
        _times([1 / ratio for ratio in result.ratios("native") if ratio]),
        _times([1 / ratio for ratio in result.ratios("native", cpu=True) if ratio]),
    ]


def _judged(goal: str, reached: bool | None) -> list[str]:
    return [goal, "" if reached is None else "✓" if reached else "✗"]


def _times(ratios: list[float]) -> str:
    return f"{_short(statistics.median(ratios))} ×" if ratios else ""


def _value(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_short(value)} {unit}"


def _short(value: float) -> str:
    """Three digits, however large."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.01 else f"{value:.4f}"
