"""The host itself as a peer: the same busybox in a folder in memory, without any machine around it."""

import os
import platform
import shlex
import shutil
import tempfile
from pathlib import Path

from bench.peer import Peer


class Native(Peer):
    name = "native"
    title = "host"
    is_machine = False

    _folder: Path | None = None

    def start(self) -> None:
        in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = Path(tempfile.mkdtemp(prefix="hostel-bench-", dir=in_memory))
        busybox = self._folder / "bin" / "busybox"
        busybox.parent.mkdir()
        busybox.write_bytes(self.guest.busybox())
        busybox.chmod(0o755)
        super().start()

    def command(self) -> list[str]:
        return [f"{self._folder}/bin/busybox", "sh"]

    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self._folder}/bin"}

    def preparation(self) -> str:
        folder = shlex.quote(str(self._folder))
        programs = f" PROGRAMS={shlex.quote(str(self.guest.programs))}" if self.guest.programs else ""
        return (
            f"BUSYBOX={folder}/bin/busybox PINNED='{self.pinned()}'{programs};"
            f" $BUSYBOX --install -s {folder}/bin; cd {folder}"
        )

    def pinned(self) -> str:
        """A command's prefix that leaves it as many processors as the guest has."""
        processors = sorted(os.sched_getaffinity(0))[: self.guest.cpus]
        return f"taskset {sum(1 << number for number in processors):x}"

    def version(self) -> str:
        return f"Linux {platform.release()}"

    def close(self) -> None:
        super().close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
