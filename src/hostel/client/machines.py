"""VMs and containers by name: they share one space of names and most words."""

from hostel.base import paths
from hostel.base.errors import MachineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hostel.client.container import Container
    from hostel.client.vm import VM


def get(name: str) -> "VM | Container":
    """What has that name, running or not."""
    if is_container(name):
        from hostel.client.container import Container

        return Container.get(name)
    from hostel.client.vm import VM

    try:
        return VM.get(name)
    except MachineError:
        if (paths.vms() / name).exists():
            raise
        raise MachineError(f"there is no VM or container named '{name}'; 'hostel ps' lists what there is") from None


def get_container(name: str) -> "Container":
    """A container; ``MachineError`` says what a VM's name is."""
    found = get(name)
    if found.isolation != "container":
        raise MachineError(f"'{name}' is a VM, and this is for containers")
    return found  # type: ignore[return-value]


def every() -> "list[VM | Container]":
    """All of them, by name."""
    vms: list[Any] = []
    containers: list[Any] = []
    if paths.vms().is_dir():
        from hostel.client.vm import VM

        vms = VM.list()
    if paths.containers().is_dir():
        from hostel.client.container import Container

        containers = Container.list()
    return sorted(vms + containers, key=lambda machine: str(machine.name))


def is_container(name: str) -> bool:
    return paths.machine_kind(name) == "container"


def check_free(name: str) -> None:
    """``MachineError`` where the name is taken."""
    from hostel.vm import store as vms

    vms.Folder(paths.vms() / name).check_free()
    if is_container(name):
        from hostel.containers import store as containers

        containers.Folder(paths.containers() / name).check_free()
