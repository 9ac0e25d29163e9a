"""QEMU's TCG as a peer, without a device that the guest doesn't need: that would only slow its start."""

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.disks import FORMATS
from bench.errors import BenchError, Missing
from bench.guest import Guest
from bench.network import Passt, has_passt
from bench.peer import Peer
from bench.shares import TAG, Virtiofsd, find_virtiofsd
from hostel.block.qcow2 import create

PROGRAM = "qemu-system-x86_64"


class Qemu(Peer):
    name = "qemu"
    title = "QEMU TCG"

    def __init__(self, guest: Guest):
        super().__init__(guest)
        self._passt: Passt | None = None
        self._virtiofsd: Virtiofsd | None = None
        self._folder: Any = None  # of the monitor

    def command(self) -> list[str]:
        return [
            PROGRAM, "-accel", "tcg,thread=multi" if self.guest.cpus > 1 else "tcg", "-cpu", "max", "-M", "q35",
            "-smp", str(self.guest.cpus), "-m", str(self.guest.memory_mib),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-kernel", str(self.guest.kernel), "-initrd", str(self.guest.initrd), "-append", self.guest.cmdline,
            *(self._cards() if self.guest.network else []),
            *self._disks(),
            *(self._shared() if self.guest.share else []),
            *(self._monitored() if self.guest.snapshots else []),
        ]

    def _monitored(self) -> list[str]:
        """What savevm needs: a qcow2 image, here in memory's file system as hostel's home is in these rows."""
        self._folder = tempfile.TemporaryDirectory(prefix="bench-qemu-")
        image, socket_ = Path(self._folder.name, "snapshots.qcow2"), Path(self._folder.name, "monitor")
        create.create(image, self.guest.memory_mib << 21)
        return ["-drive", f"file={image},format=qcow2,if=none", "-monitor", f"unix:{socket_},server=on,wait=off"]

    def monitor(self, command: str) -> float:
        """Have the monitor do it; seconds that it took."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(Path(self._folder.name, "monitor")))
            _prompt(monitor)
            begun = time.monotonic()
            monitor.sendall(f"{command}\n".encode())
            answer = _prompt(monitor)
            took = time.monotonic() - begun
        if b"Error" in answer:
            raise BenchError(f"QEMU's {command}: {answer.decode(errors='replace')[-200:]}")
        return took

    def _cards(self) -> list[str]:
        """Two, on slirp and, if there is one, on passt."""
        cards = [
            "-netdev", f"user,id=slirp,hostfwd=tcp:127.0.0.1:{self.forwarded}-:80",
            "-device", "virtio-net-pci,netdev=slirp,romfile=",
        ]
        self.has_second_card = has_passt()
        if self.has_second_card:
            self._passt = Passt()
            path = self._passt.socket
            cards += [
                "-netdev", f"stream,id=passt,server=off,addr.type=unix,addr.path={path}",
                "-device", "virtio-net-pci,netdev=passt,romfile=",
            ]
        return cards

    def _disks(self) -> list[str]:
        """With io_uring, as hostel, if this QEMU has it, and its cache mode's default."""
        words = []
        for number, (path, kind) in enumerate(zip(self.images(), FORMATS, strict=False)):
            words += [
                "-drive",
                f"file={path},format={kind},if=none,id=disk{number},cache=writeback,discard=unmap,aio=io_uring",
                "-device", f"virtio-blk-pci,drive=disk{number}",
            ]
        return words

    def _shared(self) -> list[str]:
        """None where there is no virtiofsd: then the rows have no value of QEMU's."""
        self.has_share = find_virtiofsd() is not None
        if not self.has_share:
            return []
        self._virtiofsd = Virtiofsd(self.share().path)
        return [
            "-object", f"memory-backend-memfd,id=memory,size={self.guest.memory_mib}M,share=on",
            "-numa", "node,memdev=memory",
            "-chardev", f"socket,id=share,path={self._virtiofsd.socket}",
            "-device", f"vhost-user-fs-pci,chardev=share,tag={TAG}",
        ]

    def pids(self) -> list[int]:
        return [self.pid, *(pid for beside in (self._passt, self._virtiofsd) if beside for pid in beside.pids())]

    def close(self) -> None:
        super().close()
        if self._passt:
            self._passt.close()
            self._passt = None
        if self._virtiofsd:
            self._virtiofsd.close()
            self._virtiofsd = None

        if self._folder:
            self._folder.cleanup()

    def version(self) -> str:
        return subprocess.run([PROGRAM, "--version"], capture_output=True, text=True).stdout.split("\n")[0]


def _prompt(monitor: socket.socket) -> bytes:
    """What it says until it asks for the next command."""
    said = b""
    while not said.endswith(b"(qemu) "):
        part = monitor.recv(65536)
        if not part:
            raise BenchError("QEMU ended")
        said += part
    return said


def check_installed() -> None:
    if not shutil.which(PROGRAM):
        raise Missing(f"there is no {PROGRAM} to compare with; on Debian: apt-get install qemu-system-x86")
