"""The control socket's messages: JSON-RPC 2.0, one object a line, no batches.

A line holds at most ``MAX_LINE`` bytes. Methods and their parameters are the structs in ``PARAMS``; what the
worker says unasked is a notification named ``event``. After the reply to ``exec`` or ``console`` the
connection is no longer JSON: both sides speak frames (spec/stream).
"""

from typing import Any

import msgspec

MAX_LINE = 1 << 20

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
VM_ERROR = 1                   # ``message`` is a HostelError's line, for people


class Request(msgspec.Struct):
    method: str
    params: dict[str, Any] = {}
    id: int | str | None = None
    jsonrpc: str = "2.0"


class Error(msgspec.Struct):
    code: int
    message: str


class Reply(msgspec.Struct):
    """Holds a result (which may be null) or an error."""

    id: int | str | None
    result: Any = msgspec.UNSET
    error: Error | msgspec.UnsetType = msgspec.UNSET
    jsonrpc: str = "2.0"


class Event(msgspec.Struct):
    """``params["event"]``: state, stopped, reset, agent; further keys depend on it."""

    params: dict[str, Any]
    method: str = "event"
    jsonrpc: str = "2.0"


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    """Ask the guest to power off; after ``grace`` seconds the machine is switched off."""

    grace: float = 10.0


class Quit(msgspec.Struct, forbid_unknown_fields=True):
    """Switch the machine off now."""

    reason: str = "killed"


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


class Resize(msgspec.Struct, forbid_unknown_fields=True):
    """The console's window size, for the guest's ttyS0."""

    rows: int
    cols: int


PARAMS: dict[str, type[msgspec.Struct]] = {
    "status": Nothing,         # -> VmState
    "inspect": Nothing,        # -> spec, state, statistics
    "subscribe": Nothing,      # events follow on this connection
    "wait": Nothing,           # -> VmState, once the VM has stopped
    "wait_agent": Nothing,     # -> true, once the guest takes commands
    "pause": Nothing,
    "resume": Nothing,
    "reset": Nothing,
    "stop": Stop,
    "quit": Quit,
    "console": Console,        # -> upgrades the connection
    "exec": Exec,              # -> upgrades the connection
    "resize": Resize,
}
