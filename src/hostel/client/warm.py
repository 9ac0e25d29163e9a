"""VMs that have booted already, of which new ones are forks: ``run --warm``.

For each image, number of processors and size of memory there is one, made on first use, in a folder whose name begins
with a dot, so that it is among nobody's VMs. It stands still, costs no processor time, and ends by itself when nobody
has wanted a copy for a while; the next one then starts from the snapshot that was taken when it had booted.
"""

import hashlib
import time
from typing import TYPE_CHECKING

from hostel._version import __version__
from hostel.base import paths
from hostel.base.errors import MachineError
from hostel.client import snapshots
from hostel.client.connection import Connection
from hostel.vm import launch, store
from hostel.vm.snapshot import Snapshot

if TYPE_CHECKING:
    from hostel.client.vm import VM

IDLE = 600                # seconds without a copy after which it ends
BOOTED = "booted"         # its snapshot
REHEARSALS = 3            # at most


def ensure(image: str, cpus: int, memory: int) -> store.Folder:
    """The folder of the warm VM, which is there, stands still, and can be forked."""
    from hostel.images import store as images

    found = images.ensure(image)
    key = hashlib.sha256(f"{found.recipe} {found.created} {__version__}".encode()).hexdigest()[:12]
    prefix = f".warm-{image.replace(':', '-')}-{cpus}x{memory >> 20}-"
    folder = store.Folder(paths.vms() / f"{prefix}{key}")
    if _is_ready(folder):
        return folder
    with snapshots.at_work(f"{folder.name}.start"):
        if _is_ready(folder):
            return folder
        for path in paths.vms().glob(f"{prefix}*"):
            if path != folder.path and not store.Folder(path).owned():
                _discard(store.Folder(path))  # of an earlier image or hostel
        try:
            snapshots.revert(folder, Snapshot.read(paths.snapshots() / f"{folder.name}@{BOOTED}"))
            _warm_up(folder)
        except (MachineError, TimeoutError):  # there is none, or it isn't whole
            _discard(folder)
            _boot(folder, image, cpus, memory)
    return folder


def _is_ready(folder: store.Folder) -> bool:
    return folder.owned() and folder.state().state == "paused"


def _boot(folder: store.Folder, image: str, cpus: int, memory: int) -> None:
    from hostel.client.vm import VM, make_nics, make_spec, own_disk

    spec = make_spec(image, name=None, cpus=cpus, memory=memory, kernel=None, initrd=None, append="", engine="bt")
    spec.name, spec.idle = folder.name, IDLE
    fill = own_disk(spec, None, None, None)
    spec.nics = make_nics(None, (), None, None, False)
    store.create(spec, fill)
    try:
        launch.start(folder, held=False)
        _rehearse(VM(folder))
        with Connection(folder.path) as connection:
            connection.call("pause")
        snapshots.create(folder, BOOTED)
    except BaseException:
        _discard(folder)
        raise


def _warm_up(folder: store.Folder) -> None:
    """Have a guest that has just been restored run a command, so that not each copy has to adopt the translations that
    this takes. A rehearsal would be worth more, but somebody waits."""
    from hostel.client.vm import VM

    with Connection(folder.path) as connection:
        connection.call("resume")
        VM(folder).exec(["true"], timeout=60)
        connection.call("pause")


def _rehearse(vm: "VM") -> None:
    """Have the guest do what each copy does first, so that its code is translated before there are any: go on as
    another, and run a command; and once more, to be itself again. Where all translations were dropped meanwhile, as
    there was no more room for them, it does it again."""
    for _ in range(REHEARSALS):
        dropped = _dropped(vm)
        for _ in range(2):
            with Connection(vm.folder) as connection:
                connection.call("pause")
                time.sleep(0.1)  # so that its clock is behind
                connection.call("resume")
                connection.call("rehearse")
            vm.exec(["true"])
            vm.exec(["sh", "-c", "wait-network; sleep 1"])  # until that has settled, whatever the image
        for _ in range(3):
            vm.exec(["true"])
        if _dropped(vm) == dropped:
            return


def _dropped(vm: "VM") -> int:
    return int(vm.inspect()["statistics"]["engine"].get("flushes", 0))


def _discard(folder: store.Folder) -> None:
    launch.kill(folder)
    if folder.path.exists():
        folder.remove()
    snapshots.remove_all(folder.name)
