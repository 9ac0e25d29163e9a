"""What a machine costs the host: memory that isn't its guest's, and processor time when nothing happens."""

import time
from collections.abc import Sequence

from bench.peer import Peer
from bench.process import cpu_seconds, memory_beyond
from bench.row import Context, Goal, Row, Sample, Values, each, idle_percent

SETTLE = 2.0      # seconds for what the last command left behind in the guest
IDLE = 10.0


def measure_memory(peer: Peer, context: Context) -> Sample:
    return Sample(memory_beyond(peer.pid, peer.guest.memory_mib << 20) / 1e6)


def measure_idle(peers: Sequence[Peer], context: Context) -> Values:
    time.sleep(SETTLE)
    return idle_percent(peers, 1.0 if context.quick else IDLE, cpu_seconds)


AFTER_BOOT = [
    Row("memory-booted", "memory beyond the guest's, after boot", "MB", each(measure_memory), Goal(most=100)),
]
AFTER_WORK = [
    Row("memory-worked", "memory beyond the guest's, after all of this", "MB", each(measure_memory), Goal(most=100)),
]
IDLE_ROWS = [Row("idle", "idle guest at a prompt", "% of a core", measure_idle, Goal(most=2))]
