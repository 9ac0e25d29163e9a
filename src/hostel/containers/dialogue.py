"""What a starting container and its runtime tell each other, over one socket pair.

The container's side writes 16 bytes: a code and a value; a code from ``stage.OPS`` on is the address of an operation
that failed. The runtime's side answers with one byte where it is waited for. Whoever of the two ends, the other reads
the end of the stream.
"""

import os
import struct

from hostel.base.errors import ContainerError
from hostel.containers.stage import OPS, Label, Script, Slot

# FIRST is who takes the first process's place; OUTSIDE: it couldn't be cloned into its cgroup.
READY, MAP, PID, HOOKS, COPY, LISTENER, OUTSIDE, FIRST = range(1, 9)


def tell(script: Script, fd: int, code: int, value: Slot | int = 0) -> None:
    message = script.place(struct.pack("<qq", code, value if isinstance(value, int) else 0))
    if isinstance(value, Slot):
        script.copy(message + 8, value)
    script.call("write", fd, message, 16, what="telling the runtime")


def wait(script: Script, fd: int) -> None:
    """Until the runtime says to go on; the end where it has ended."""
    on, over = Label(), Label()
    script.call("read", fd, script.place(bytes(8)), 1, zero=over, what="hearing from the runtime")
    script.jump(on)
    script.bind(over)
    script.call("exit_group", 1)
    script.bind(on)


def hear(fd: int, script: Script) -> tuple[int, int] | None:
    """The next message; None at the end. Raises what the other side failed with."""
    message = b""
    while len(message) < 16:
        part = os.read(fd, 16 - len(message))
        if not part:
            return None
        message += part
    code, value = struct.unpack("<qq", message)
    if code >= OPS:
        raise ContainerError(script.explain(code, value))
    return code, value


def go(fd: int) -> None:
    os.write(fd, b"+")
