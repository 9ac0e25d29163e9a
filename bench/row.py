"""A row of the table: what is measured, on whom, and what is wanted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.errors import BenchError
from bench.peer import Peer


@dataclass(frozen=True)
class Sample:
    """What was measured on a peer once; ``cpu``: the processor time that its process took for it, in seconds, which
    other work on the host disturbs less."""

    value: float
    cpu: float | None = None


Values = dict[str, Sample]  # by peers' names


@dataclass(frozen=True)
class Context:
    """What a measurement may depend on: ``quick`` does a tenth of the work, for trying out."""

    quick: bool = False

    def scaled(self, amount: int) -> int:
        return amount // 10 if self.quick else amount


@dataclass(frozen=True)
class Goal:
    """``speed``: how many times as fast as the peer; ``most``: hostel's own value. Either may be None."""

    speed: float | None = None
    most: float | None = None

    def text(self, unit: str) -> str:
        if self.speed is not None:
            return f"≥ {self.speed:.2g} ×"
        return f"≤ {self.most:g} {unit}" if self.most is not None else ""

    def reached(self, ours: float, speed: float) -> bool | None:
        """None where there is nothing to reach."""
        if self.speed is not None:
            return speed >= self.speed
        return ours <= self.most if self.most is not None else None


@dataclass(frozen=True)
class Row:
    """One thing to measure; less is better. ``measure(peers, context)`` gives a value for each peer that has one."""

    key: str
    title: str
    unit: str
    measure: Callable[[Sequence[Peer], Context], Values]
    goal: Goal = field(default_factory=Goal)


Measurement = Callable[[Sequence[Peer], Context], Values]


def each(measure: Callable[[Peer, Context], Sample]) -> Measurement:
    """A measurement that is made on one machine after the other."""

    def measure_all(peers: Sequence[Peer], context: Context) -> Values:
        return {peer.name: measure(peer, context) for peer in peers if peer.is_machine}

    return measure_all


def timed(script: str, amount: int, prepare: str = ":", clean: str = ":") -> Measurement:
    """A line of shell, timed; in it and in ``prepare`` %d stands for ``amount``. Every peer must print the same."""

    def fill(text: str, context: Context) -> str:
        return text.replace("%d", str(context.scaled(amount)))

    def measure_all(peers: Sequence[Peer], context: Context) -> Values:
        values: Values = {}
        outputs: dict[str, str] = {}
        for peer in peers:
            peer.run(fill(prepare, context))
            ran = peer.run(fill(script, context))
            peer.run(fill(clean, context))
            values[peer.name], outputs[peer.title] = Sample(ran.seconds, ran.cpu), ran.output
        if len(set(outputs.values())) > 1:
            raise BenchError("different results: " + "; ".join(f"{k}: {v[-100:]!r}" for k, v in outputs.items()))
        return values

    return measure_all


def idle_percent(peers: Sequence[Peer], seconds: float, cpu_seconds: Callable[[int], float]) -> Values:
    """Percent of a core that each machine uses in the same ``seconds``, when its shell waits."""
    pids = {peer.name: peer.pid for peer in peers if peer.is_machine}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    begun = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begun
    return {name: Sample(100 * (cpu_seconds(pid) - before[name]) / elapsed) for name, pid in pids.items()}
