"""The translated code that this home keeps between runs (vm/translations), for people."""

from typing import Any

from hostel.base import paths
from hostel.vm import translations


def ls() -> list[dict[str, Any]]:
    """What is kept, the newest first: path, bytes, when it was made (seconds since 1970), and the bytes of what VMs
    that have ended told and nobody has translated yet, as a row without a time."""
    rows: list[dict[str, Any]] = []
    for path in paths.translations().glob("*.code"):
        status = path.stat()
        rows.append({"path": str(path), "size": status.st_size, "made": status.st_mtime})
    rows.sort(key=lambda row: -row["made"])
    rows += [{"path": str(path), "size": path.stat().st_size, "made": None} for path in translations.waiting()]
    return rows


def make() -> int:
    """Translate what VMs that have ended told, now; how many blocks came new."""
    return translations.make()


def clear() -> int:
    """Forget all; how many bytes that were. VMs that run go on with what they have."""
    size = sum(row["size"] for row in ls())
    translations.clear()
    return size
