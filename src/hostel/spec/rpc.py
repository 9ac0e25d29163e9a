"""The control socket's messages: JSON-RPC 2.0, one object a line, no batches.

A line holds at most ``MAX_LINE`` bytes. Methods and their parameters are the structs in ``PARAMS``; what the
worker says unasked is a notification named ``event``. After the reply to ``exec`` or ``console`` the
connection is no longer JSON: both sides speak frames (spec/stream).
"""

from typing import Any, Literal

import msgspec

from hostel.spec.jsonrpc import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, Refused
from hostel.spec.vm import VmSpec


class Request(msgspec.Struct):
    method: str
    params: dict[str, Any] = {}
    id: int | str | None = None
    jsonrpc: str = "2.0"


class Words:
    """How a worker reads and writes messages (spec/control)."""

    def request(self, line: bytes) -> tuple[str, Any, int | str | None]:
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            code = INVALID_REQUEST if isinstance(e, msgspec.ValidationError) else PARSE_ERROR
            raise Refused(code, f"not a request: {e}") from e
        return request.method, request.params, request.id

    def params(self, method: str, params: Any) -> Any:
        try:
            return msgspec.convert(params, PARAMS[method])
        except msgspec.ValidationError as e:
            raise Refused(INVALID_PARAMS, str(e)) from e

    def encode(self, message: dict[str, Any]) -> bytes:
        return msgspec.json.encode(message)


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    """Ask the guest to power off; after ``grace`` seconds the machine is switched off."""

    grace: float = 10.0


class Quit(msgspec.Struct, forbid_unknown_fields=True):
    """Switch the machine off now."""

    reason: str = "killed"


class Balloon(msgspec.Struct, forbid_unknown_fields=True):
    """Leave the guest ``size`` bytes of its memory; without it, only say how it is."""

    size: int | None = None


class GrowDisk(msgspec.Struct, forbid_unknown_fields=True):
    """Make disk ``number`` (0 is the first) ``size`` bytes large, and tell the guest."""

    number: int
    size: int


class Delta(msgspec.Struct, forbid_unknown_fields=True):
    """An empty qcow2 image, whose descriptors come with the request (two with ``direct``: the other has O_DIRECT), is
    to take the writes of disk ``number`` from now on; ``path`` is where it is."""

    number: int
    path: str
    direct: bool = False


class Snapshot(msgspec.Struct, forbid_unknown_fields=True):
    """Save the machine and have its ``disks`` go on in deltas. Descriptors, in this order: with ``memory`` the files
    for state and memory, which is called ``id`` and may stand on that of the snapshot ``base``; then the disks'."""

    id: str
    base: str = ""
    memory: bool = True
    stop: bool = False        # it ends then, as suspended
    disks: list[Delta] = []


class Layer(msgspec.Struct, forbid_unknown_fields=True):
    """Which of a disk's images: its device and inode."""

    device: int
    inode: int


class Revert(msgspec.Struct, forbid_unknown_fields=True):
    """Be as in the snapshot ``id``; ``spec`` is its VM. Descriptors, in this order: its manifest, which is locked, its
    state, the memory files of the snapshots ``files``; then the ``disks``', whose deltas are to stand on ``layers``.
    False: it can't, a worker that is started from the snapshot can. The guest stands still then until ``reverted``,
    and the VM ends if who asked goes before. Where it isn't its holder (``leash``) that asks, it is nobody's then."""

    id: str
    spec: VmSpec
    files: list[str]
    held: bool = False
    paused: bool = False
    disks: list[Delta] = []
    layers: list[Layer] = []


class Hand(msgspec.Struct, forbid_unknown_fields=True):
    """A VM that the next ``fork`` of this connection is to make. Descriptors, in this order: its lock, which is taken;
    state.json; console.log, console.log.1, worker.log and worker.log.1; the control socket, which listens; with
    ``leash`` that; for each network card as many as ``nics`` says; with ``vsock`` the listening socket and the
    broker's; the disks'."""

    spec: VmSpec
    leash: bool = False
    nics: list[int] = []
    vsock: bool = False
    disks: list[Delta] = []


class Fork(msgspec.Struct, forbid_unknown_fields=True):
    """Go on as this VM and as those that were handed. Descriptors: for the ``disks``, which go on in deltas too, but
    for those whose tops are ``blank`` (``blank_disks``): the copies' deltas take their places. The copies stand still
    if it does, unless they are to ``run``."""

    run: bool = False

    disks: list[Delta] = []
    blank: list[int] = []


class Console(msgspec.Struct, forbid_unknown_fields=True):
    """Become a console client. ``replay``: first send what the console showed so far (the last 64 KiB)."""

    replay: bool = False


class Exec(msgspec.Struct, forbid_unknown_fields=True):
    """Run ``argv`` in the guest. With ``tty`` its three streams are one terminal of ``rows`` x ``cols``."""

    argv: list[str]
    env: dict[str, str] = {}
    cwd: str = ""
    tty: bool = False
    rows: int = 0
    cols: int = 0
    itself: bool = False  # the program is the guest's agent's own (images/agent_copy, agent_forward)


class Resize(msgspec.Struct, forbid_unknown_fields=True):
    """The console's window size, for the guest's ttyS0."""

    rows: int
    cols: int


class Count(msgspec.Struct, forbid_unknown_fields=True):
    on: bool


class Debug(msgspec.Struct, forbid_unknown_fields=True):
    """Become the VM's debugger: it stops, and this connection is told what it meets. Ends with the connection."""


class DebugVcpu(msgspec.Struct, forbid_unknown_fields=True):
    vcpu: int


class DebugSetState(msgspec.Struct, forbid_unknown_fields=True):
    """``state``: a VcpuState (hostel.cpu.state). Its clocks are ignored."""

    vcpu: int
    state: dict[str, Any]


class DebugTranslate(msgspec.Struct, forbid_unknown_fields=True):
    vcpu: int
    address: int


class DebugRead(msgspec.Struct, forbid_unknown_fields=True):
    """Memory as ``vcpu`` sees it, or by physical address. Less than ``size`` bytes: the next can't be read."""

    vcpu: int
    address: int
    size: int
    physical: bool = False


class DebugWrite(msgspec.Struct, forbid_unknown_fields=True):
    vcpu: int
    address: int
    data: bytes
    physical: bool = False


class Watch(msgspec.Struct, forbid_unknown_fields=True):
    address: int
    length: int
    kind: Literal["write", "read", "access"]


class DebugPoints(msgspec.Struct, forbid_unknown_fields=True):
    """Where to stop: before instructions at linear addresses, behind those that touch watched bytes."""

    breaks: list[int] = []
    watches: list[Watch] = []


class DebugGo(msgspec.Struct, forbid_unknown_fields=True):
    """Let vCPUs run: all, or ``only`` those. ``step``: these do one instruction, before which interrupts may come or
    not."""

    only: list[int] | None = None
    step: list[int] = []
    interrupts: bool = False


PARAMS: dict[str, type[msgspec.Struct]] = {
    "status": Nothing,         # -> VmState
    "inspect": Nothing,        # -> spec, state, statistics
    "counters": Nothing,       # -> as inspect's statistics of vCPUs and engine, at little cost
    "count": Count,            # instructions are counted while any connection wants it
    "subscribe": Nothing,      # events follow on this connection
    "wait": Nothing,           # -> VmState, once the VM has stopped
    "wait_agent": Nothing,     # -> true, once the guest takes commands
    "snapshot": Snapshot,      # -> {"pause_ns", "files"}: how long it stood still, whose memory it stands on
    "blank_disks": Nothing,    # -> numbers of those whose tops nothing was written to; none while it runs
    "hand": Hand,
    "fork": Fork,              # -> {"pause_ns"}
    "balloon": Balloon,        # -> target and actual bytes, what the guest says of its memory
    "grow_disk": GrowDisk,
    "rehearse": Nothing,       # a template's: its guest is to do what copies do first; twice, to be itself again
    "pause": Nothing,
    "resume": Nothing,
    "reset": Nothing,
    "revert": Revert,          # -> whether it has been done
    "reverted": Nothing,       # all else is as the snapshot has it, too: go on
    "stop": Stop,
    "quit": Quit,
    "console": Console,        # -> upgrades the connection
    "exec": Exec,              # -> upgrades the connection
    "resize": Resize,
    "debug": Debug,            # -> {"vcpus": N}; "debug" events follow, and the methods below may be called
    "debug_state": DebugVcpu,  # -> VcpuState
    "debug_set_state": DebugSetState,
    "debug_translate": DebugTranslate,  # -> physical address or null
    "debug_read": DebugRead,   # -> base64
    "debug_write": DebugWrite,  # -> bytes written
    "debug_points": DebugPoints,
    "debug_go": DebugGo,
    "debug_interrupt": Nothing,
}
