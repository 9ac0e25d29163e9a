"""Where hostel keeps what it keeps: one folder, readable by a person.

``$HOSTEL_HOME``, else ``/var/lib/hostel`` for root, else ``$XDG_DATA_HOME/hostel`` (XDG Base Directory
Specification: ``~/.local/share`` when unset; a relative value is to be ignored).
"""

import os
from pathlib import Path

from hostel.base.errors import MachineError


def home() -> Path:
    """The folder with ``vms/``, ``networks/``, ``images/`` and ``cache/``. It need not exist yet."""
    if chosen := os.environ.get("HOSTEL_HOME"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/hostel")
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data.startswith("/") else Path.home() / ".local/share") / "hostel"


def images() -> Path:
    return home() / "images"


def vms() -> Path:
    return home() / "vms"


def vm(name: str) -> Path:
    """The folder of an existing VM."""
    folder = vms() / name
    if "/" in name or name.startswith(".") or not name or not (folder / "vm.toml").exists():
        raise MachineError(f"there is no VM named '{name}'; 'hostel ps' lists what there is")
    return folder


def disks() -> Path:
    """A folder a VM: the layers that its own disks are made of since snapshots were taken."""
    return home() / "disks"


def snapshots() -> Path:
    return home() / "snapshots"


def networks() -> Path:
    return home() / "networks"


def cache() -> Path:
    return home() / "cache"
