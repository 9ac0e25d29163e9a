"""A machine's saved state, as it is in a file, and the files that it stands on.

The **state** file is one MessagePack map, ``State``. It is the worker's word: who opens it has checked that it is whole
(vm/snapshot), and the process that loads it is confined as that which wrote it.
"""

import os
from typing import Any

import msgspec

from hostel.base.errors import MachineError

VERSION = 1


class Memory(msgspec.Struct, forbid_unknown_fields=True):
    """``files`` are the ids of the snapshots whose memory files ``runs`` (memory/image) is about, the own one the
    last; ``pages`` and ``digests`` are of that."""

    files: list[str]
    runs: bytes
    pages: int
    digests: bytes


class State(msgspec.Struct, forbid_unknown_fields=True):
    """A machine at one moment, all of it but its disks."""

    machine: dict[str, Any]    # vm/machine
    exec: dict[str, Any]       # vm/exec
    console: bytes             # the last of what it showed
    memory: Memory
    version: int = VERSION


class Base:
    """The snapshot that memory's ``dirty`` marks count from: its state file, the memory files that it needs, and what
    keeps it from being removed."""

    def __init__(self, id: str, state_fd: int, fds: dict[str, int], lock_fd: int = -1):
        self.id = id
        self._state_fd = state_fd
        self._lock_fd = lock_fd
        self.fds = fds

    def state(self) -> State:
        return read_state(self._state_fd)

    def all_fds(self) -> list[int]:
        """The lock, the state, and memory's files in order."""
        return [self._lock_fd, self._state_fd, *self.fds.values()]

    def close(self) -> None:
        for fd in self.all_fds():
            if fd >= 0:
                os.close(fd)


def read_state(fd: int) -> State:
    """``MachineError`` where the file holds none that this hostel knows."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    try:
        state = msgspec.msgpack.decode(data, type=State)
    except msgspec.MsgspecError as e:
        raise MachineError(f"the snapshot's state makes no sense: {e}") from e
    if state.version != VERSION:
        raise MachineError(f"the snapshot's state has version {state.version}; this hostel reads {VERSION}")
    return state
