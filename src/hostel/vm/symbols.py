"""Names for a guest's addresses, from a System.map or what its /proc/kallsyms shows."""

import bisect
from pathlib import Path

from hostel.base.errors import UsageError


class Symbols:
    """The text symbols of a file of lines ``address type name [module]``."""

    def __init__(self, addresses: list[int], names: list[str]):
        self._addresses = addresses
        self._names = names

    @classmethod
    def read(cls, path: str) -> "Symbols":
        """``UsageError`` where the file can't be read or names nothing."""
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError as e:
            raise UsageError(f"can't read {path}: {e.strerror}") from e
        found: dict[int, str] = {}
        for line in lines:
            parts = line.split()
            if len(parts) in (3, 4) and parts[1] in "tTwW":
                try:
                    found.setdefault(int(parts[0], 16), parts[2])
                except ValueError:
                    continue
        if not any(found):
            raise UsageError(
                f"{path} names no addresses: it takes a System.map, or the guest's /proc/kallsyms as root reads it"
            )
        pairs = sorted(found.items())
        return cls([address for address, _ in pairs], [name for _, name in pairs])

    def name(self, address: int) -> str | None:
        """``function+0x12``; None below the first symbol and beyond a megabyte of the nearest."""
        i = bisect.bisect_right(self._addresses, address) - 1
        if i < 0 or address - self._addresses[i] > 1 << 20:
            return None
        offset = address - self._addresses[i]
        return f"{self._names[i]}+{offset:#x}" if offset else self._names[i]
