"""Where hostel keeps what it keeps, as text: for who hasn't the time to import pathlib (base/paths)."""

import os


def home() -> str:
    """``$HOSTEL_HOME``, else ``/var/lib/hostel`` for root, else ``$XDG_DATA_HOME/hostel`` (XDG Base Directory
    Specification: ``~/.local/share`` when unset; a relative value is to be ignored). It need not exist yet."""
    if chosen := os.environ.get("HOSTEL_HOME"):
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return "/var/lib/hostel"
    data = os.environ.get("XDG_DATA_HOME", "")
    return os.path.join(data if data.startswith("/") else os.path.expanduser("~/.local/share"), "hostel")
