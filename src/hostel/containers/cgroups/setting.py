"""One value for one of a cgroup's files; where such files are; and the reading of them."""

import os

UNLIMITED = (1 << 64) - 1   # as other runtimes' statistics have v2's "max"


class Setting:
    """``controller`` is as v1 names it (blkio, also for v2's io), ``name`` the specification's, after
    linux.resources. ``optional``: older kernels lack the file, and nothing is lost by that. ``otherwise``: where there
    is no such file."""

    __slots__ = ("controller", "name", "file", "value", "optional", "otherwise")

    def __init__(
        self, controller: str, name: str, file: str, value: object, optional: bool = False,
        otherwise: "Setting | None" = None,
    ):  # fmt: skip
        self.controller, self.name, self.file, self.value = controller, name, file, str(value)
        self.optional, self.otherwise = optional, otherwise

    def __repr__(self) -> str:
        return f"{self.name}: {self.value} > {self.file}"


class Place:
    """Where a controller has the cgroup: in which version of cgroups, and in which folder."""

    __slots__ = ("version", "folder")

    def __init__(self, version: int, folder: str):
        self.version, self.folder = version, folder

    def __repr__(self) -> str:
        return f"v{self.version} {self.folder}"


def put(folder: str, file: str, value: str) -> None:
    """One write, to a file that is there: the kernel's are never made."""
    fd = os.open(f"{folder}/{file}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read(folder: str, file: str) -> str | None:
    """Without its newline; ``None`` where there is no such file."""
    try:
        with open(f"{folder}/{file}") as text:
            return text.read().rstrip("\n")
    except OSError:
        return None


def number(folder: str, file: str) -> int | None:
    """``max`` is ``UNLIMITED``."""
    text = read(folder, file)
    if not text:
        return None
    return UNLIMITED if text == "max" else int(text)


def limited(value: int | None) -> bool:
    """v1's memory files say 2**63 less a page where there is no limit."""
    return value is not None and 0 <= value < 1 << 62


def table(folder: str, file: str) -> dict[str, int]:
    """A flat keyed file: a name and a number a line."""
    rows = (line.rsplit(None, 1) for line in (read(folder, file) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].lstrip("-").isdigit()}
