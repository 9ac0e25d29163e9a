"""A row of the table: what is measured, on whom, and what is wanted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.errors import Wrong
from bench.guest import Guest, micro
from bench.peer import Peer, Worked


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
    """``speed``: how many times as fast as TCG at least; ``slower``: how many times as slow as the host at most;
    ``most``: hostel's own value at most; ``least``: at least. What is None isn't asked for."""

    speed: float | None = None
    slower: float | None = None
    most: float | None = None
    least: float | None = None

    def text(self, unit: str) -> str:
        parts = [
            "" if self.speed is None else f"≥ {self.speed:.2g} × TCG",
            "" if self.slower is None else f"≤ {self.slower:.2g} × host",
            "" if self.most is None else f"≤ {self.most:g} {unit}",
            "" if self.least is None else f"≥ {self.least:g} {unit}",
        ]
        return ", ".join(part for part in parts if part)

    def reached(self, ours: float | None, speed: float | None = None, slower: float | None = None) -> bool | None:
        """None where nothing is asked for, or what was measured doesn't tell."""
        asked = [
            None if value is None else value >= limit if at_least else value <= limit
            for value, limit, at_least in (
                (speed, self.speed, True), (slower, self.slower, False), (ours, self.most, False),
                (ours, self.least, True),
            )
            if limit is not None
        ]
        return False if False in asked else None if None in asked or not asked else True


@dataclass(frozen=True)
class Row:
    """One thing to measure; less is better. ``measure(peers, context)`` gives a value for each peer that has one."""

    key: str
    title: str
    unit: str
    measure: Callable[[Sequence[Peer], Context], Values]
    goal: Goal = field(default_factory=Goal)


@dataclass(frozen=True)
class Mean:
    """The geometric mean of some rows' ratios, of which there may be a goal."""

    title: str
    rows: tuple[str, ...]
    goal: Goal = field(default_factory=Goal)


@dataclass(frozen=True)
class Scaling:
    """How many times as fast as ``before`` the row ``after`` is, on ``more`` times as many processors, each peer for
    itself."""

    title: str
    before: str
    after: str
    goal: Goal = field(default_factory=Goal)
    more: int = 2


@dataclass(frozen=True)
class Group:
    """Rows that are measured on one guest, one after the other, and what is to be told of them together."""

    rows: tuple[Row, ...]
    guest: Callable[[], Guest] = micro
    means: tuple[Mean, ...] = ()
    scalings: tuple[Scaling, ...] = ()  # of rows here and above


Measurement = Callable[[Sequence[Peer], Context], Values]


def each(measure: Callable[[Peer, Context], Sample]) -> Measurement:
    """A measurement that is made on one machine after the other."""

    def measure_all(peers: Sequence[Peer], context: Context) -> Values:
        return {peer.name: measure(peer, context) for peer in peers if peer.is_machine}

    return measure_all


def timed(script: str, amount: int, prepare: str = ":", clean: str = ":") -> Measurement:
    """A line of shell, timed; in it and in ``prepare`` %d stands for ``amount``. Every peer must print the same."""

    def measure_all(peers: Sequence[Peer], context: Context) -> Values:
        values: Values = {}
        outputs: dict[str, str] = {}
        for peer in peers:
            peer.run(filled(prepare, context, amount))
            ran = peer.run(filled(script, context, amount))
            peer.run(filled(clean, context, amount))
            values[peer.name], outputs[peer.title] = Sample(ran.seconds, ran.cpu), ran.output
        must_agree(outputs)
        return values

    return measure_all


def program(command: str, amount: int = 100, prepare: str = ":", clean: str = ":") -> Measurement:
    """A program that measures itself (programs/bench.h); %d as in ``timed``. Its checksum must be the same for all."""

    def measure_all(peers: Sequence[Peer], context: Context) -> Values:
        worked: dict[Peer, Worked] = {}
        for peer in peers:
            peer.run(filled(prepare, context, amount))
            worked[peer] = peer.work(filled(command, context, amount))
            peer.run(filled(clean, context, amount))
        must_agree({peer.title: done.checksum for peer, done in worked.items()})
        return {peer.name: Sample(done.seconds, done.cpu) for peer, done in worked.items()}

    return measure_all


def filled(text: str, context: Context, amount: int) -> str:
    return text.replace("%d", str(context.scaled(amount)))


def must_agree(outputs: dict[str, str]) -> None:
    """A wrong answer has no speed."""
    if len(set(outputs.values())) > 1:
        raise Wrong("different results: " + "; ".join(f"{k}: {v[-100:]!r}" for k, v in outputs.items()))


def idle_percent(peers: Sequence[Peer], seconds: float, cpu_seconds: Callable[[int], float]) -> Values:
    """Percent of a core that each machine uses in the same ``seconds``, when its shell waits."""
    pids = {peer.name: peer.pid for peer in peers if peer.is_machine}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    begun = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begun
    return {name: Sample(100 * (cpu_seconds(pid) - before[name]) / elapsed) for name, pid in pids.items()}
