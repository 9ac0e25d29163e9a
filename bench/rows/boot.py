"""From nothing to a shell."""

import subprocess
import time
from collections.abc import Sequence

from bench.errors import BenchError
from bench.hostel import program
from bench.peer import Peer
from bench.row import Context, Goal, Row, Sample, Values, each


def measure_kernel(peer: Peer, context: Context) -> Sample:
    return Sample(peer.prompt - peer.entered, peer.prompt_cpu - peer.entered_cpu)


def measure_start(peer: Peer, context: Context) -> Sample:
    return Sample(peer.prompt - peer.spawned)


def measure_command(peers: Sequence[Peer], context: Context) -> Values:
    """``hostel run -- true`` as a user types it, start to end, beside the peers' start to a prompt: they have no
    such command, and their end isn't counted."""
    values = {peer.name: Sample(peer.prompt - peer.spawned) for peer in peers if peer.is_machine}
    begun = time.monotonic()
    done = subprocess.run([*program(), "run", "--", "true"], capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BenchError(f"'hostel run -- true' ended with status {done.returncode}: {done.stderr.decode()[-300:]}")
    values["hostel"] = Sample(time.monotonic() - begun)
    return values


def kernel(goal: Goal) -> Row:
    return Row("boot-kernel", "boot: kernel entry to a shell prompt", "s", each(measure_kernel), goal)


ROWS = [
    kernel(Goal(speed=1 / 1.5)),
    Row(
        "boot-start", "boot: start of the process to a shell prompt", "s",
        each(measure_start),
    ),
    Row("boot-command", "`hostel run -- true`, whole; QEMU's start to a prompt", "s", measure_command),
]
KERNEL = [kernel(Goal(speed=1 / 0.7))]
