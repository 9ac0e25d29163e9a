"""Commands in a guest, over the control socket of its VM.

Beside client/vm, and of few imports, so that ``hostel exec`` costs little more than Python's own start.
"""

from collections.abc import Sequence
from pathlib import Path

from hostel.base.errors import UsageError
from hostel.client.bridge import Bridge
from hostel.client.connection import Connection, Gone

TYPE_CHECKING = False  # as typing's, which takes longer to import than all else here
if TYPE_CHECKING:
    from typing import Any


def attach(
    folder: Path,
    argv: Sequence[str],
    *,
    env: dict[str, str] | None = None,
    cwd: str = "",
    tty: tuple[int, int] | None = None,
    timeout: float | None = None,
    itself: bool = False,
    more: "dict[str, Any] | None" = None,
    **bridge: "Any",
) -> int:
    """What ``VM.attach`` does, for the VM or container in ``folder``. ``more``: what only containers' exec has."""
    if isinstance(argv, str) or not argv:
        raise UsageError("a command is a list of strings: its name and its arguments")
    with Connection(folder) as connection:
        connection.call("wait_agent", timeout=timeout)
        rows, cols = tty or (0, 0)
        sock, early = connection.upgrade(
            "exec", argv=[*argv], env=env or {}, cwd=cwd, tty=tty is not None, rows=rows, cols=cols, itself=itself,
            **(more or {}),
        )
        status = Bridge(sock, early, **bridge).run(timeout)
    if status is None:
        from hostel.client import machines

        raise Gone(f"{machines.get(folder.name).end()[1]} (while the command ran)")
    return status
