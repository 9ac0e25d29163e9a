"""Snapshots, restores and forks. hostel's are of a VM of its own, booted as 'hostel run' does and asked by the SDK;
QEMU's savevm and loadvm, by its monitor, are of the guest that all peers run."""

import concurrent.futures
import contextlib
import functools
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from bench.errors import BenchError
from bench.guest import Guest, micro
from bench.hostel import program
from bench.peer import Peer
from bench.qemu import Qemu
from bench.row import Context, Goal, Group, Measurement, Row, Sample, Scaling, Values
from hostel.base.errors import HostelError
from hostel.images import store

TIMES = 5            # of what takes milliseconds, whose median is a round's value
SETTLE = 2.0         # seconds until forks are idle


@contextlib.contextmanager
def booted(memory: str = "512M") -> Iterator:
    """A VM that takes commands."""
    from hostel.client.vm import VM

    with VM.run("micro", memory=memory, networks=["none"]) as vm:
        vm.exec(["true"])
        yield vm


def ours(measure: Callable[..., float], **kind: str) -> Callable[[Sequence[Peer], Context], Values]:
    """A row of hostel's own."""

    def measure_all(peers: Sequence[Peer], context: Context) -> Values:
        if not any(peer.name == "hostel" for peer in peers):
            return {}
        with booted(**kind) as vm:
            return {"hostel": Sample(measure(vm))}

    return measure_all


def beside_qemu(
    measure: Callable[..., float], theirs: Callable[[Qemu], float]
) -> Callable[[Sequence[Peer], Context], Values]:
    def measure_all(peers: Sequence[Peer], context: Context) -> Values:
        values = ours(measure)(peers, context)
        for peer in peers:
            if isinstance(peer, Qemu):
                values["qemu"] = Sample(theirs(peer))
        return values

    return measure_all


def seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


# -- snapshots


def take(vm) -> float:
    """The first one: nothing that could be taken over."""
    return seconds(vm.snapshot)


def restore(vm) -> float:
    vm.snapshot("here")
    return statistics.median(seconds(lambda: vm.revert("here")) for _ in range(TIMES))


def pause(vm) -> float:
    """Milliseconds of the longest."""
    return max(vm.snapshot().pause_ns for _ in range(TIMES)) / 1e6


def size(vm) -> float:
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(vm.snapshot().path)) / 1e6


# -- forks


def fork_one(vm) -> float:
    times = []
    for _ in range(TIMES):
        begun = time.monotonic()
        with vm.fork() as copies:
            copies[0].exec(["true"])
            times.append(time.monotonic() - begun)
    return 1e3 * statistics.median(times)


def fork_pause(vm) -> float:
    times = []
    for _ in range(TIMES):
        with vm.fork() as copies:
            times.append(copies.pause_ns / 1e6)
    return statistics.median(times)


def fork_many(vm) -> float:
    """All of them have answered."""
    begun = time.monotonic()
    with vm.fork(100) as copies:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for result in pool.map(lambda copy: copy.exec(["true"]), copies):
                assert result.status == 0
        return time.monotonic() - begun


def fork_memory(vm) -> float:
    """What an idle one has that nobody shares, as /proc/PID/smaps_rollup tells; the median."""
    with vm.fork(20) as copies:
        for copy in copies:
            copy.exec(["true"])
        time.sleep(SETTLE)
        return statistics.median(unshared(copy.state.pid) for copy in copies) / 1e6


def unshared(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private_"))


# -- run --warm, by the command line


def command(*words: str) -> float:
    """Seconds until ``hostel run`` says something."""
    begun = time.monotonic()
    words = (*program(), "run", *words, "--", "echo", "here")
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        first = running.stdout.read(1)
        took = time.monotonic() - begun
    if not first or running.returncode:
        raise BenchError("hostel run said nothing")
    return took


def run(image: str, *options: str) -> Measurement:
    """``hostel run`` of an image, of ``TIMES``; one before them makes what is warm. The Debian is built by others."""

    def measure(peers: Sequence[Peer], context: Context) -> Values:
        if not any(peer.name == "hostel" for peer in peers):
            return {}
        try:
            store.ensure(image)
        except HostelError as error:
            raise BenchError(f"no {image} image: {error}") from error
        command(*options, image)
        return {"hostel": Sample(1e3 * statistics.median(command(*options, image) for _ in range(TIMES)))}

    return measure


@functools.cache
def guest() -> Guest:
    import dataclasses

    return dataclasses.replace(micro(), snapshots=True)


SNAPSHOTS = Group(
    (
        Row("snapshot", "snapshot with memory: savevm", "s",
            beside_qemu(take, lambda peer: peer.monitor("savevm one")), Goal(speed=10)),
        Row("still", "the same, how long the guest stands still (all of savevm)", "s",
            beside_qemu(lambda vm: vm.snapshot().pause_ns / 1e9, lambda peer: peer.monitor("savevm two")),
            Goal(speed=10)),
        Row("restore", "restore until it runs: loadvm", "s",
            beside_qemu(restore, lambda peer: peer.monitor("loadvm one")), Goal(speed=10, most=0.1)),
        Row("restore-4g", "the same, of a guest with 4 GB", "s", ours(restore, memory="4G"), Goal(most=0.1)),
        Row("pause", "pause of a running guest for a snapshot, longest of 5", "ms", ours(pause), Goal(most=20)),
        Row("size", "a snapshot of an idle guest, on disk", "MB", ours(size), Goal(most=60)),
    ),
    guest,
)  # fmt: skip
FORKS = Group(
    (
        Row("fork", "one fork, until it answers 'exec true'", "ms", ours(fork_one), Goal(most=30)),
        Row("fork-pause", "the parent's pause", "ms", ours(fork_pause), Goal(most=10)),
        Row("fork-100", "100 forks, all have answered", "s", ours(fork_many), Goal(most=1.5)),
        Row("fork-memory", "an idle fork's unshared memory", "MB", ours(fork_memory), Goal(most=2)),
    ),
    guest,
)
WARM = Group(
    (
        Row("cold", "run micro, until the first command's output", "ms", run("micro")),
        Row("warm", "run --warm micro, the same", "ms", run("micro", "--warm"), Goal(most=150)),
        Row("cold-debian", "run debian, the same", "ms", run("debian")),
        Row("warm-debian", "run --warm debian, the same", "ms", run("debian", "--warm"), Goal(most=150)),
    ),
    guest,
    scalings=(
        Scaling("**micro: warm against a boot**", "cold", "warm", Goal(least=20), more=1),
        Scaling("**debian: warm against a boot**", "cold-debian", "warm-debian", Goal(least=20), more=1),
    ),
)
