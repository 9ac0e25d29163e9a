"""The guest with Debian's programs: its initramfs is a Debian root, behind an archive with what is to be worked on.
The host runs the same programs: the archive's files in a folder that is its root."""

import dataclasses
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path

import zstandard

from bench import debian_root, source
from bench.guest import Guest, entries, micro
from bench.programs import BUILT, build, packed
from hostel.base import atomic
from hostel.images.cpio import Tree

PACKAGES = ["python3", "gcc", "libc6-dev", "make", "openssl", "xz-utils"]
MEMORY_MIB = 2048             # half of which files may take: the root is 300 MiB
UNITS = 8                     # of what `make -j4` makes
MAKEFILE = "all: " + " ".join(f"u{i}.o" for i in range(UNITS)) + "\n%.o: %.c\n\tgcc -O2 -c -o $@ $<\n"


@functools.cache
def guest(cpus: int = 1) -> Guest:
    """Debian with the programs and the sources in /bench."""
    plain, programs, root = micro(), build(), debian_root.initramfs(PACKAGES, name="bench")
    initrd = BUILT / f"{root.name.removesuffix('.zst')}.initrd"
    with atomic.replacing(initrd) as file:
        file.write(packed(programs) + sources().pack() + root.read_bytes())
    return dataclasses.replace(
        plain, initrd=initrd, memory_mib=MEMORY_MIB, cpus=cpus, programs=programs, root=unpacked(root)
    )


def sources() -> Tree:
    """What is compiled: a file of 2,000 lines, and eight of 250 with a Makefile."""
    tree = Tree()
    tree.file("bench/unit.c", source.unit(2000, 0).encode())
    for number in range(UNITS):
        tree.file(f"bench/make/u{number}.c", source.unit(250, number + 1).encode())
    tree.file("bench/make/Makefile", MAKEFILE.encode())
    return tree


def unpacked(root: Path) -> Path:
    """The archive as a folder, made anew unless it is there; with the sources, which may have changed since."""
    folder = BUILT / root.name.removesuffix(".cpio.zst")
    if not folder.is_dir():
        for old in BUILT.glob("bench-*"):
            if old.is_dir():
                shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=BUILT, prefix="bench-") as temporary, root.open("rb") as file:
            new = Path(temporary, "root")
            new.mkdir(mode=0o755)
            unpack(zstandard.ZstdDecompressor().stream_reader(file).read(), new)
            for name in ("dev", "proc", "tmp"):
                (new / name).mkdir(exist_ok=True)
            new.rename(folder)
    shutil.rmtree(folder / "bench", ignore_errors=True)
    unpack(sources().pack(), folder)
    return folder


def unpack(archive: bytes, folder: Path) -> None:
    """Folders, files and symbolic links of an archive."""
    for name, mode, data in entries(archive):
        path = folder / name
        if stat.S_ISDIR(mode):
            path.mkdir(exist_ok=True)
        elif stat.S_ISLNK(mode):
            os.symlink(data, path)
        elif stat.S_ISREG(mode):
            path.write_bytes(data)
            path.chmod(mode & 0o777 | 0o600)
