"""QEMU's TCG as a peer, without a device that the guest doesn't need: that would only slow its start."""

import shutil
import subprocess

from bench.errors import Missing
from bench.peer import Peer

PROGRAM = "qemu-system-x86_64"


class Qemu(Peer):
    name = "qemu"
    title = "QEMU TCG"

    def command(self) -> list[str]:
        return [
            PROGRAM, "-accel", "tcg,thread=multi" if self.guest.cpus > 1 else "tcg", "-cpu", "max", "-M", "q35",
            "-smp", str(self.guest.cpus), "-m", str(self.guest.memory_mib),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-kernel", str(self.guest.kernel), "-initrd", str(self.guest.initrd), "-append", self.guest.cmdline,
        ]

    def version(self) -> str:
        return subprocess.run([PROGRAM, "--version"], capture_output=True, text=True).stdout.split("\n")[0]


def check_installed() -> None:
    if not shutil.which(PROGRAM):
        raise Missing(f"there is no {PROGRAM} to compare with; on Debian: apt-get install qemu-system-x86")
