"""A whole Debian from its disk to root's prompt: the same image, kernel, initramfs and virtio cards for both."""

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.peer import Peer
from bench.process import cpu_seconds
from bench.qemu import PROGRAM
from bench.row import Context, Goal, Row, Sample, Values
from hostel.base.errors import HostelError
from hostel.block.disk import open_disk
from hostel.block.qcow2 import create
from hostel.board.boot import disk as boot
from hostel.client.vm import VM
from hostel.images import store

LIMIT = 600.0
PROMPT = b"root@bench:~#"


def measure(peers: Sequence[Peer], context: Context) -> Values:
    """From the start of the process to the prompt, of a disk that has never booted."""
    try:
        image = store.ensure("debian")
    except HostelError as error:
        raise BenchError(f"no Debian disk: {error}") from error
    assert image.disk
    return {"hostel": hostel(), "qemu": qemu(image.disk)}


def hostel() -> Sample:
    begun = time.monotonic()
    with VM.run("debian", name="bench", rm=True, memory="1G") as vm:
        while PROMPT not in vm.logs():
            wait(begun, "hostel")
        return Sample(time.monotonic() - begun, cpu_seconds(vm.state.pid))


def qemu(base: Path) -> Sample:
    disk = open_disk(base, "qcow2", readonly=True)
    found = boot.find(disk.read, disk.size)
    with tempfile.TemporaryDirectory() as folder:
        own, kernel, initrd = (Path(folder, name) for name in ("disk.qcow2", "kernel", "initrd"))
        create.create(own, disk.size, create.Options(backing_file=str(base), backing_fmt="qcow2"))
        disk.close()
        kernel.write_bytes(found.kernel.data)
        assert found.initrd
        initrd.write_bytes(found.initrd.data)
        command = [
            PROGRAM, "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "1024", "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd),
            "-append", f"{found.cmdline} panic=-1 hostel.hostname=bench",
            "-drive", f"file={own},if=none,id=d,format=qcow2", "-device", "virtio-blk-pci,drive=d",
            "-device", "virtio-rng-pci", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n",
        ]  # fmt: skip
        begun = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            assert process.stdout
            said = b""
            while PROMPT not in said:
                if select.select([process.stdout], [], [], 0.05)[0]:
                    said += os.read(process.stdout.fileno(), 65536)
                wait(begun, "QEMU")
            return Sample(time.monotonic() - begun, cpu_seconds(process.pid))
        finally:
            process.kill()
            process.wait()


def wait(begun: float, who: str) -> None:
    if time.monotonic() - begun > LIMIT:
        raise BenchError(f"{who}: no prompt of the Debian within {LIMIT:.0f} s")
    time.sleep(0.02)


ROWS = [Row("debian-boot", "a whole Debian from its disk to root's prompt", "s", measure, Goal(speed=1 / 0.7))]
