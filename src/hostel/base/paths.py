"""Where hostel keeps what it keeps: one folder (base/home), readable by a person."""

from pathlib import Path

from hostel.base import home as _home
from hostel.base.errors import MachineError


def home() -> Path:
    """The folder with ``vms/``, ``containers/``, ``networks/``, ``images/`` and ``cache/``. It need not exist yet."""
    return Path(_home.home())


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


def containers() -> Path:
    return home() / "containers"


def container(name: str) -> Path:
    """The folder of an existing container."""
    folder = containers() / name
    if "/" in name or name.startswith(".") or not name or not (folder / "container.json").exists():
        raise MachineError(f"there is no container named '{name}'; 'hostel ps' lists what there is")
    return folder


def machine(name: str) -> Path:
    """The folder of an existing VM or container: both have a control socket that takes commands."""
    if machine_kind(name) == "container":
        return container(name)
    try:
        return vm(name)
    except MachineError:
        raise MachineError(f"there is no VM or container named '{name}'; 'hostel ps' lists what there is") from None


def machine_kind(name: str) -> str:
    """``container``, or ``vm`` for all else."""
    is_name = name and "/" not in name and not name.startswith(".")
    return "container" if is_name and (containers() / name / "container.json").exists() else "vm"


def disks() -> Path:
    """A folder a VM: the layers that its own disks are made of since snapshots were taken."""
    return home() / "disks"


def snapshots() -> Path:
    return home() / "snapshots"


def networks() -> Path:
    return home() / "networks"


def cache() -> Path:
    return home() / "cache"


def translations() -> Path:
    """What the translator keeps between runs (vm/translations)."""
    return home() / "translations"
