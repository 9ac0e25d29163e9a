"""What a command in a VM or container gave."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hostel.base.errors import MachineError


class Result(NamedTuple):
    """How a command in the guest ended: ``status`` as in a shell (128+n for signals)."""

    status: int
    stdout: Any  # str, or bytes with text=False
    stderr: Any


class CommandFailed(MachineError):
    """``exec(check=True)``: the command's exit status wasn't 0."""

    def __init__(self, argv: Sequence[str], result: Result):
        super().__init__(f"'{argv[0]}' ended with status {result.status}")
        self.result = result
