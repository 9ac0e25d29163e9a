"""What a VM is (``VmSpec``, kept as ``vm.toml``) and how it does (``VmState``, kept as ``state.json``)."""

import re

import msgspec

from hostel.base.errors import UsageError
from hostel.base.units import format_size, parse_size
from hostel.spec.cards import ConsoleSpec
from hostel.spec.disk import DiskSpec
from hostel.spec.net import NicSpec
from hostel.spec.share import ShareSpec

VERSION = 1
MAX_CPUS = 16                # the board's limit (issue 2); xAPIC IDs would carry 255
MIN_MEMORY = 16 << 20        # the smallest that a kernel and its page tables start in
MAX_MEMORY = 1 << 40         # 40 guest-physical address bits
TRACE_KINDS = ("blocks", "exits", "faults")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.ASCII)  # also a host name and a folder's name


class VmSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything needed to start a VM. Sizes are bytes, paths absolute."""

    version: int = VERSION
    name: str
    cpus: int = 1
    memory: int = 512 << 20
    engine: str = "bt"
    image: str | None = None      # where kernel, initrd and cmdline came from; None: they were given
    kernel: str = ""              # empty: the one that is in the first disk, at each reset anew
    initrd: str | None = None
    cmdline: str = ""
    balloon: bool = False         # one through which it gives memory back
    console: ConsoleSpec | None = None   # one with byte channels
    shares: list[ShareSpec] = []  # folders of the host's
    rng: bool = False             # a virtio card that gives the host's entropy
    disks: list[DiskSpec] = []
    agent: bool = True            # whether the guest answers the exec protocol on its second serial port
    remove: bool = False          # the VM's folder goes when the VM ends
    command: list[str] = []       # run in the guest once it is up; the VM ends with it
    oci: str = ""                 # the OCI image that its first disk is the root of, and ``image`` has the kernel
    environment: list[str] = []   # KEY=VALUE, of all commands in the guest, as the next three
    workdir: str = ""
    uid: int = 0
    gid: int = 0
    verify_code: bool = False     # prove a sample of the translated code harmless before it runs (cpu/bt/verify)
    perf_map: bool = False        # keep /tmp/perf-PID.map for perf(1)
    trace: str = ""               # KINDS:FILE, what to write down and where (vm/trace)
    debug: bool = False           # it stands still at its start, until a debugger lets it go on
    idle: int = 0                 # seconds without a fork after which it ends; 0: it doesn't (client/warm)
    nics: list[NicSpec] = []      # network cards
    vsock: str = ""               # the unix socket that leads to the guest's vsock ports; "": no such device
    symbols: str | None = None    # names for the guest's addresses: a System.map, or its /proc/kallsyms


class VmState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The worker's latest word about itself. ``died`` is never written: it is concluded (vm/store)."""

    # created, unborn (a fork that is being made: nobody's VM yet), starting, running, paused, stopped; concluded: died
    state: str = "created"
    pid: int = 0
    created: float = 0.0          # seconds since the epoch, as the others
    started: float = 0.0
    stopped: float = 0.0
    reason: str = ""              # why it stopped: poweroff, killed, triple fault, error: ...; or waits for room
    exit_status: int | None = None   # of ``VmSpec.command``


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a VM: use up to 63 of a-z 0-9 _ . - and begin with a letter or digit"
        )
    return name


def check_cpus(cpus: int) -> int:
    if not 1 <= cpus <= MAX_CPUS:
        raise UsageError(f"a VM has 1 to {MAX_CPUS} vCPUs, not {cpus}")
    return cpus


def parse_trace(text: str) -> tuple[list[str], str]:
    """The kinds and the file of ``KIND[,KIND...][:FILE]``."""
    names, _, path = text.partition(":")
    kinds = names.split(",")
    if not all(kind in TRACE_KINDS for kind in kinds):
        raise UsageError(f"--trace takes {', '.join(TRACE_KINDS)}, joined by commas, and perhaps :FILE; not '{text}'")
    return kinds, path or "hostel.trace"


def check_memory(memory: int | str) -> int:
    """Bytes, whole MiB. What the host can promise is checked where the VM starts (vm/launch)."""
    size = parse_size(memory) if isinstance(memory, str) else memory
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        raise UsageError(
            f"a VM has {format_size(MIN_MEMORY)} to {format_size(MAX_MEMORY)} of memory, not {memory}"
        )
    return size & ~0xFFFFF
