"""Kernel modules for an initramfs: what each needs, and which device wants which.

A Debian kernel package ships no ``modules.dep`` (depmod makes it at installation), so names,
dependencies and aliases are read from each module's own ``.modinfo`` section, and the files that busybox's
modprobe reads are written from them.
"""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from hostel.base.errors import ImageError

ELF64_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True)
class Module:
    """A module's path below /lib/modules/VERSION, and its uncompressed file."""

    path: str
    data: bytes

    @property
    def name(self) -> str:
        return module_name(self.path)

    @cached_property
    def info(self) -> list[tuple[str, str]]:
        pairs = section(self.path, self.data, b".modinfo").split(b"\0")
        return [(key, value) for key, _, value in (pair.decode("latin-1").partition("=") for pair in pairs) if key]

    def values(self, key: str) -> list[str]:
        return [value for found, value in self.info if found == key]

    @property
    def depends(self) -> list[str]:
        return [plain(name) for value in self.values("depends") for name in value.split(",") if name]


def plain(name: str) -> str:
    """The kernel takes - and _ in a module's name for the same."""
    return name.replace("-", "_")


def module_name(path: str) -> str:
    return plain(path.rpartition("/")[2].partition(".ko")[0])


def section(path: str, data: bytes, name: bytes) -> bytes:
    """A section of an ELF64 file. Raises ImageError: no such file or section."""
    try:
        header = ELF64_HEADER.unpack_from(data)
        if header[0][:5] != b"\x7fELF\x02":
            raise ValueError("not ELF64")
        offset, size, count, names = header[6], header[11], header[12], header[13]
        headers = [SECTION_HEADER.unpack_from(data, offset + n * size) for n in range(count)]
        start = headers[names][4]
        for entry in headers:
            at = start + entry[0]
            if data[at : data.index(b"\0", at)] == name:
                return data[entry[4] : entry[4] + entry[5]]
    except (struct.error, ValueError, IndexError) as error:
        raise ImageError(f"the kernel module {path} is damaged: {error}") from error
    raise ImageError(f"the kernel module {path} has no {name.decode()}")


class ModuleSet:
    """Modules in which dependencies can be resolved."""

    def __init__(self, modules: Iterable[Module], builtin: str = "") -> None:
        self.modules = {module.name: module for module in modules}
        self.builtin = {module_name(path) for path in builtin.split()}

    def order(self, names: Iterable[str]) -> list[Module]:
        """The modules ``names`` and all that they need, each after its needs; builtin ones left out."""
        result: dict[str, Module] = {}

        def add(name: str, way: tuple[str, ...]) -> None:
            name = plain(name)
            if name in result or name in self.builtin or name in way:
                return
            if name not in self.modules:
                raise ImageError(f"the kernel has no module {name}" + (f", which {way[-1]} needs" if way else ""))
            for need in self.modules[name].depends:
                add(need, (*way, name))
            result[name] = self.modules[name]

        for name in names:
            add(name, ())
        return list(result.values())

    def dep_file(self, chosen: Iterable[Module]) -> str:
        """``modules.dep``: each module's path and those of all its needs, nearest first."""
        return "".join(
            f"{module.path}: {' '.join(need.path for need in reversed(self.order([module.name])[:-1]))}".rstrip() + "\n"
            for module in chosen
        )

    @staticmethod
    def alias_file(chosen: Iterable[Module]) -> str:
        """``modules.alias``, by which a device's modalias finds its module."""
        return "".join(f"alias {alias} {module.name}\n" for module in chosen for alias in module.values("alias"))


def builtin_file(text: str) -> str:
    """``modules.builtin`` as the kernel's build wrote it, checked to be one path a line."""
    return "".join(line + "\n" for line in text.splitlines() if re.fullmatch(r"[\w/.+-]+\.ko", line))
