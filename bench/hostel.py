"""hostel as a peer: what a user types, ``hostel run --kernel ... --initrd ... --append ...``."""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.disks import FORMATS
from bench.guest import Guest
from bench.peer import Peer
from bench.profile import Profile

_numbers = itertools.count(1)


def program() -> list[str]:
    """The hostel of this Python's environment."""
    beside = Path(sys.executable).with_name("hostel")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "hostel.cli.main"]


class Hostel(Peer):
    name = "hostel"
    title = "hostel"
    profiles: Path | None = None  # a folder for them, if they are wanted
    _name = ""                # the VM's, once there is one

    def __init__(self, guest: Guest):
        super().__init__(guest)
        self._profile = Profile(self.profiles) if self.profiles else None

    def command(self) -> list[str]:
        self._name = f"bench-{os.getpid()}-{next(_numbers)}"
        return [
            *program(), "run", "--name", self._name, "--rm",
            "--cpus", str(self.guest.cpus), "--memory", f"{self.guest.memory_mib}M",
            "--kernel", str(self.guest.kernel), "--initrd", str(self.guest.initrd), "--append", self.guest.cmdline,
            *(
                f"--disk={path},format={kind}" for path, kind in zip(self.images(), FORMATS, strict=False)
            ),
            *(["-v", f"{self.share().path}:/share"] if self.guest.share else []),
            *(["--perf-map"] if self.profiles else []),
            *(
                ["--allow-host-loopback", "-p", f"127.0.0.1:{self.forwarded}:80"]
                if self.guest.network else ["--network", "none"]  # QEMU's has no card either
            ),
        ]

    @property
    def pid(self) -> int:
        """The worker's."""
        from hostel.client.vm import VM

        return VM.get(self._name).state.pid

    def pids(self) -> list[int]:
        pid = self.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def watched(self, command: str) -> contextlib.AbstractContextManager[None]:
        return self._profile.watch(self.pid, command) if self._profile else super().watched(command)

    def entry(self, first_message: float) -> float:
        """When the worker let the guest run: the first message comes by way of ``hostel run``'s connection, which is
        made only then."""
        from hostel.client.vm import VM

        return min(first_message, VM.get(self._name).state.started - time.time() + time.monotonic())

    def version(self) -> str:
        from hostel._version import __version__

        here = Path(__file__).resolve().parent.parent
        if shutil.which("git") and (here / ".git").exists():
            described = subprocess.run(
                ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True
            ).stdout.strip()
            return f"{__version__} ({described})" if described else __version__
        return __version__

    def diagnosis(self) -> dict[str, Any]:
        """Its counters, two seconds apart: where a guest hangs, they tell in what."""
        from hostel.base.errors import HostelError
        from hostel.client.vm import VM

        try:
            vm = VM.get(self._name)
            first = vm.inspect()
            time.sleep(2.0)
            return {"first": first, "then": vm.inspect(), "console": vm.logs().decode(errors="replace")[-4000:]}
        except HostelError as e:
            return {"error": str(e)}

    def close(self) -> None:
        from hostel.base.errors import HostelError
        from hostel.client.vm import VM
        from hostel.vm import translations

        with contextlib.suppress(HostelError):
            VM.get(self._name).kill()
        super().close()
        translations.make()
        if self._profile:
            self._profile.tell()
        with contextlib.suppress(HostelError):
            VM.get(self._name).rm(force=True)
