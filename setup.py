"""Compiles the hot core. The list of compiled modules is explicit (docs/STYLE, habit 7): a module
is compiled when it is named here, and a failed compile fails the install."""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILED = [
    "base.clock",
    "base.token_bucket",
    "base.aio",
    "base.linux.uring",
    "block.io",
    "memory.ram",
    "memory.digest",
    "memory.image",
    "bus.space",
    "bus.irq",
    "cpu.engine",
    "cpu.bt.decode",
    "cpu.bt.emit",
    "cpu.bt.cache",
    "cpu.bt.mmu",
    "cpu.bt.segment",
    "cpu.bt.interrupt",
    "cpu.bt.cpuid",
    "cpu.bt.msr",
    "cpu.bt.operand",
    "cpu.bt.bcd",
    "cpu.bt.fpu",
    "cpu.bt.control",
    "cpu.bt.system",
    "cpu.bt.transfer",
    "cpu.bt.probe",
    "cpu.bt.stubs",
    "cpu.bt.flags",
    "cpu.bt.address",
    "cpu.bt.windows",
    "cpu.bt.leave",
    "cpu.bt.stack",
    "cpu.bt.inline",
    "cpu.bt.translate",
    "cpu.bt.kept",
    "cpu.bt.piecewise",
    "cpu.bt.strings",
    "cpu.bt.run",
    "cpu.bt.keeper",
    "board.pic",
    "board.pit",
    "board.ioapic",
    "board.apic",
    "board.msix",
    "devices.uart",
    "devices.fuse.inodes",
    "devices.fuse.handles",
    "devices.fuse.tree",
    "devices.fuse.session",
    "devices.fuse.names",
    "devices.fuse.xattrs",
    "devices.fuse.server",
    "devices.virtio.queue",
    "devices.virtio.wires",
    "devices.virtio.offload",
    "devices.virtio.frames",
    "devices.virtio.blk",
    "devices.virtio.fs",
    "vm.vcpu",
]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "legacy_implicit_noexcept": False,
}

only = os.environ.get("HOSTEL_BUILD_ONLY")  # a comma-separated subset, for development
names = only.split(",") if only else COMPILED
extensions = [
    Extension(
        f"hostel.{name}",
        [f"src/hostel/{name.replace('.', '/')}.py"],
        extra_compile_args=["-O2", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"],
    )
    for name in names
    if os.path.exists(f"src/hostel/{name.replace('.', '/')}.py") or not only
]
jobs = os.cpu_count() or 1
setup(
    ext_modules=cythonize(
        extensions, include_path=["src"], compiler_directives=DIRECTIVES, nthreads=jobs,
        quiet="-q" in sys.argv,
    ),
    options={"build_ext": {"parallel": jobs}},
)
