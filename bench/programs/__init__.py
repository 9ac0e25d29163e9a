"""The programs of this folder, C because their compiler is part of the question: built by the host's gcc when their
sources change, and put into the guest by a second archive behind the micro image's initramfs, which the kernel
unpacks over it. The host runs the very same files."""

import dataclasses
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

from bench.errors import BenchError, Missing
from bench.guest import Guest, micro
from hostel.base import atomic
from hostel.images.cpio import Tree

SOURCES = Path(__file__).resolve().parent
BUILT = SOURCES.parents[1] / "build" / "bench"
FLAGS = ["-O2", "-static"]
MEMORY_MIB = 1024             # hash10m has 256 MiB of data


@functools.cache
def guest(cpus: int = 1) -> Guest:
    """The micro image with the programs in /bench."""
    plain, folder = micro(), build()
    initrd = folder.with_name(f"{folder.name}.initrd")
    with atomic.replacing(initrd) as file:
        file.write(plain.initrd.read_bytes() + packed(folder))
    return dataclasses.replace(plain, initrd=initrd, memory_mib=MEMORY_MIB, cpus=cpus, programs=folder)


def packed(folder: Path) -> bytes:
    """A folder's files as an archive that puts them into /bench."""
    tree = Tree()
    for path in sorted(folder.iterdir()):
        tree.file(f"bench/{path.name}", path.read_bytes(), 0o755)
    return tree.pack()


def build() -> Path:
    """The folder with the programs, compiled unless it is there already. Its name says of what."""
    compiler = shutil.which("gcc")
    if not compiler:
        raise Missing("the programs in bench/programs need gcc; on Debian: apt-get install gcc libc6-dev")
    total = hashlib.sha256(subprocess.run([compiler, "--version"], capture_output=True).stdout)
    total.update(" ".join(FLAGS).encode())
    for path in sorted(SOURCES.glob("[a-z]*.*")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = BUILT / f"programs-{total.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    for old in BUILT.glob("programs-*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    BUILT.mkdir(parents=True, exist_ok=True)
    with atomic.replacing_folder(folder) as new:
        for path in sorted(SOURCES.glob("*.c")):
            command = [compiler, *FLAGS, "-o", str(new / path.stem), str(path)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise BenchError(f"gcc can't compile {path.name}: {done.stderr.strip()[-300:]}")
        for path in SOURCES.glob("[a-z]*.py"):
            shutil.copy(path, new)
    return folder
