"""Disk images on the host: hostel's own code beside qemu-img, on the same files. The machines just stand there."""

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.errors import Missing, Wrong
from bench.hostel import program
from bench.peer import Peer
from bench.row import Context, Goal, Row, Sample, Values

SIZE = 1 << 30            # bytes of disk; three quarters are data, half of that packs well
PIECE = 1 << 20
QEMU_IMG = "qemu-img"


def make_source(path: Path, size: int) -> None:
    """A raw image: random bytes, text and holes, a MiB of each in turn."""
    chance = random.Random(1)
    noise = chance.randbytes(PIECE)
    text = (b"The quick brown fox jumps over the lazy dog. " * (PIECE // 45 + 1))[:PIECE]
    with open(path, "wb") as file:
        file.truncate(size)
        for at in range(0, size, 4 * PIECE):
            file.seek(at)
            file.write(noise + text + noise[::-1])
            noise = noise[1:] + noise[:1]


def converting(*options: str) -> Callable[[Sequence[Peer], Context], Values]:
    """``convert`` of a raw image by both; both end when the result is on the disk, and both results must be equal."""

    def measure(peers: Sequence[Peer], context: Context) -> Values:
        if not shutil.which(QEMU_IMG):
            raise Missing(f"there is no {QEMU_IMG} to compare with; on Debian: apt-get install qemu-utils")
        values: Values = {}
        with tempfile.TemporaryDirectory(prefix="hostel-bench-", dir="/var/tmp") as name:
            folder = Path(name)
            make_source(folder / "source", context.scaled(SIZE) & -4 * PIECE)
            commands = {
                "hostel": [*program(), "disk", "convert", *options, "source", "hostel.qcow2"],
                "qemu": [QEMU_IMG, "convert", "-t", "writeback", "-O", "qcow2", *options, "source", "qemu.qcow2"],
            }
            for peer in peers:
                if peer.name in commands:
                    values[peer.name] = timed(commands[peer.name], folder)
            results = sorted(str(path.name) for path in folder.glob("*.qcow2"))
            compare = [QEMU_IMG, "compare", "-q", *results]
            if len(results) == 2 and subprocess.run(compare, cwd=folder).returncode:
                raise Wrong("hostel disk convert and qemu-img convert made different disks")
        return values

    return measure


def timed(command: list[str], folder: Path) -> Sample:
    os.sync()
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Wrong(f"{' '.join(command)} ended with status {process.returncode}")
    return Sample(time.monotonic() - started, used.ru_utime + used.ru_stime)


ROWS = [
    Row("convert", "disk convert: raw to qcow2, 1 GiB", "s", converting(), Goal(speed=0.7)),
    Row("convert-c", "the same, compressed", "s", converting("-c"), Goal(speed=0.7)),
]
