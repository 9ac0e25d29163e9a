"""Where hostel keeps what it keeps: one folder, readable by a person.

``$HOSTEL_HOME``, else ``/var/lib/hostel`` for root, else ``$XDG_DATA_HOME/hostel`` (XDG Base Directory
Specification: ``~/.local/share`` when unset; a relative value is to be ignored).
"""

import os
from pathlib import Path


def home() -> Path:
    """The folder with ``vms/``, ``images/`` and ``cache/``. It need not exist yet."""
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


def cache() -> Path:
    return home() / "cache"
