"""A peer: a shell in a machine (or on the host), driven over a console, whose costs can be read from /proc."""

import contextlib
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.console import Console
from bench.disks import Images
from bench.errors import BenchError, Wrong
from bench.guest import Guest
from bench.network import SETUP, free_port
from bench.process import cpu_seconds
from bench.shares import SETUP as MOUNT
from bench.shares import Folder

BOOT_TIMEOUT = 120.0      # seconds; a busy machine may need many times what a quiet one does
COMMAND_TIMEOUT = 600.0
PROMPT = rb"# (?:\x1b\[6n)?"
_END = rb"@END (\d+)\r?\n"


@dataclass(frozen=True)
class Ran:
    """A script's time in seconds, what it printed, and the processor time of a machine's process meanwhile."""

    seconds: float
    output: str
    cpu: float | None


@dataclass(frozen=True)
class Worked:
    """What a program of ``programs/`` says of itself (bench.h): the time of its work, in seconds of the peer's own
    clock, and the checksum of what came out; and the processor time that it took on the host."""

    seconds: float
    checksum: str
    cpu: float


class Peer:
    """``start`` it, ``run`` scripts in its shell, ``close`` it. A subclass says how it is started.

    ``spawned``, ``entered`` (the kernel) and ``prompt`` are instants of the start, in seconds of ``time.monotonic()``;
    those with ``_cpu`` are the processor time that ``pid`` has used by then.
    """

    name = ""                 # in results
    title = ""                # in the table
    is_machine = True         # boots a kernel, and has a guest's memory
    has_second_card = False   # on passt, where the first is on slirp
    has_share = True          # if the guest wants one

    def __init__(self, guest: Guest):
        self.guest = guest
        self.spawned = self.entered = self.prompt = 0.0
        self.entered_cpu = self.prompt_cpu = 0.0
        self._process: subprocess.Popen | None = None
        self._console: Console | None = None
        self._images: Images | None = None
        self._share: Folder | None = None
        self.forwarded = free_port() if guest.network else 0  # the host's port that leads to the guest's 80

    # -- what a subclass says

    def command(self) -> list[str]:
        """What starts it, with its console on stdin and stdout."""
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError

    def environment(self) -> dict[str, str] | None:
        """The environment of ``command``; None: ours."""
        return None

    def preparation(self) -> str:
        """The first line that its shell is given: it goes where files may be made, sets BUSYBOX and PROGRAMS.
        PINNED stands before what may use all processors of a guest, and no more on the host."""
        return "export BUSYBOX=/bin/busybox PROGRAMS=/bench PINNED=; cd /tmp"

    def entry(self, first_message: float) -> float:
        """When the kernel was entered: milliseconds before its first message, which is as much as one can see of it."""
        return first_message

    def watched(self, command: str) -> contextlib.AbstractContextManager[None]:
        """Around the time in which a program works."""
        return contextlib.nullcontext()

    def diagnosis(self) -> dict[str, Any]:
        """What it knows about itself, for a run that failed."""
        return {}

    @property
    def pid(self) -> int:
        """The process that runs the guest."""
        assert self._process
        return self._process.pid

    def pids(self) -> list[int]:
        """All processes that make the machine, its network and its share."""
        return [self.pid]

    def cpu_seconds(self) -> float:
        """The processor time that all of them have used."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    # -- the rest

    def images(self) -> list[Path]:
        """Its disks' files, made when they are asked for first; none if the guest wants none."""
        if self.guest.disks and self._images is None:
            self._images = Images()
        return self._images.paths if self._images else []

    def share(self) -> Folder:
        """The folder that it shares with the host, made when it is asked for first."""
        self._share = self._share or Folder()
        return self._share

    def start(self) -> None:
        """Return once its shell has said its prompt."""
        self.spawned = time.monotonic()
        try:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=self.environment(), bufsize=0,
            )
        except OSError as e:
            raise BenchError(f"can't start {self.title}: {e}") from e
        self._console = Console(self._process, self.title)
        if self.is_machine:
            first_message, _, _ = self._console.expect(rb"Linux version", BOOT_TIMEOUT)
            self.entered, self.entered_cpu = self.entry(first_message), cpu_seconds(self.pid)
            self.prompt, _, _ = self._console.expect(PROMPT, BOOT_TIMEOUT)
            self.prompt_cpu = cpu_seconds(self.pid)
        self.run(self.preparation())
        if self.is_machine and self.guest.network:
            self.run(SETUP)
        if self.is_machine and self.guest.share and self.has_share:
            self.run(MOUNT)

    def run(self, script: str) -> Ran:
        """Run one line of shell; its time is that between two marks that the shell itself prints.

        The quotes in the middle of the marks keep the echo of what was typed from looking like them.
        """
        begun = self._begin(script)
        used = cpu_seconds(self.pid) if self.is_machine else None
        ended, end, output = self._console.expect(_END, COMMAND_TIMEOUT)
        if used is not None:
            used = cpu_seconds(self.pid) - used
        text = self._check(script, end, output)
        return Ran(ended - begun, text, used)

    def work(self, command: str) -> Worked:
        """Run a program that measures itself (programs/bench.h)."""
        self._begin(command)
        _, mark, output = self._console.expect(rb"@WORK\r?\n|" + _END, COMMAND_TIMEOUT)
        if mark[1] is None:
            used = cpu_seconds(self.pid) if self.is_machine else 0.0
            done = rb"@DONE (?P<sum>[0-9a-f]+) (?P<wall>\d+) (?P<cpu>\d+)\r?\n|" + _END
            with self.watched(command):
                _, mark, output = self._console.expect(done, COMMAND_TIMEOUT)
        if mark.groupdict().get("sum") is None:
            raise Wrong(f"{self.title}: '{command}' ended early: {output.decode(errors='replace')[-300:]}")
        cpu = cpu_seconds(self.pid) - used if self.is_machine else int(mark["cpu"]) / 1e9
        _, end, output = self._console.expect(_END, COMMAND_TIMEOUT)
        self._check(command, end, output)
        return Worked(int(mark["wall"]) / 1e9, mark["sum"].decode(), cpu)

    def _begin(self, script: str) -> float:
        """Type it and wait for its begin: when that was."""
        self._console.type(f"echo @''BEGIN; {{ {script}; }} </dev/null; echo @''END $?\n")
        return self._console.expect(rb"@BEGIN\r?\n", COMMAND_TIMEOUT)[0]

    def _check(self, script: str, end: re.Match[bytes], output: bytes) -> str:
        """Its output, if it ended well."""
        text = output.decode(errors="replace").replace("\r", "").strip()
        if end[1] != b"0":
            raise Wrong(f"{self.title}: '{script}' ended with status {end[1].decode()}: {text[-300:]}")
        return text

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            self._process = None
        if self._images:
            self._images.close()
            self._images = None
        if self._share:
            self._share.close()
            self._share = None
