"""The host itself as a peer: the same busybox in a folder in memory, without any machine around it."""

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.errors import BenchError
from bench.peer import Peer

# The root's /tmp is in memory, as a guest's is. A user namespace lets anybody have a root of his own.
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
CHANGE_ROOT = """\
mount -t tmpfs none {root}/tmp && mount --rbind /dev {root}/dev && mount --rbind /proc {root}/proc &&
exec chroot {root} /bin/sh"""


class Native(Peer):
    name = "native"
    title = "host"
    is_machine = False

    _folder: Path | None = None

    def start(self) -> None:
        if self.guest.root:
            assert self.guest.programs
            if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
                raise BenchError("a root of its own on the host needs user namespaces; or --peers hostel,qemu")
            shutil.copytree(self.guest.programs, self.guest.root / "bench", dirs_exist_ok=True)
        else:
            in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            self._folder = Path(tempfile.mkdtemp(prefix="hostel-bench-", dir=in_memory))
            busybox = self._folder / "bin" / "busybox"
            busybox.parent.mkdir()
            busybox.write_bytes(self.guest.busybox())
            busybox.chmod(0o755)
        super().start()

    def command(self) -> list[str]:
        if self.guest.root:
            script = CHANGE_ROOT.format(root=shlex.quote(str(self.guest.root)))
            return [*UNSHARE, "/bin/sh", "-c", script]
        return [f"{self._folder}/bin/busybox", "sh"]

    def environment(self) -> dict[str, str]:
        if self.guest.root:
            return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        return {"PATH": f"{self._folder}/bin"}

    def preparation(self) -> str:
        if self.guest.root:
            return f"export PROGRAMS=/bench PINNED='{self.pinned()}'; cd /tmp"
        folder = shlex.quote(str(self._folder))
        programs = f" PROGRAMS={shlex.quote(str(self.guest.programs))}" if self.guest.programs else ""
        return (
            f"export BUSYBOX={folder}/bin/busybox PINNED='{self.pinned()}'{programs};"
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
