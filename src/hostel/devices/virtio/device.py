"""What a virtio device is, to whoever writes one.

A device is a class in a file of its own, derived from ``Device``, made from its spec (``spec/cards``) and its back end
(what ``open`` returned), and a row in ``vm/cards``. It knows queues (``queue.py``) and neither bus nor board; the
transport (``pci.py``) does the registers, feature negotiation and status. The shortest one is ``rng.py``:

    class Rng(Device):
        name, id, class_code = "rng", 4, 0x00FF00
        queue_sizes = (256,)

        def notified(self, queue):              # the driver made buffers available, or the queue is to be looked at
            for request in queue:               # ends when it is empty, or when others must have their turn
                request.write(os.getrandom(min(request.writable_bytes, 65536)))
                request.push()
            queue.signal_py()

Life: made; ``attach``ed to a transport; ``activate`` when the driver is ready (DRIVER_OK) and features are negotiated;
``notified`` for each notification, on the loop's thread; ``reset`` whenever the driver says so, and ``activate`` again;
``close``. A machine's reset makes a new device from the same spec and back end.

- **Lock.** ``self.lock`` (the transport's) is held around every method here. What comes from elsewhere (a back end's
  descriptor on ``self.loop``, another thread) takes it before it touches queues. A guest's register write waits for the
  lock, so nothing may keep it long, and who holds it may not wait for the guest.
- **Back ends** are opened by ``open`` before the worker confines itself, once for all of a VM's life.
- **Waiting for room or data.** A device that has nothing for the driver's buffers (a network card that receives) leaves
  them in the queue and pops when there is something; it needs no notification for that. ``queue.pop`` and iterating end
  early where ``budget`` is used up: the transport then notifies again, after others.
- **reset** must return with no access to guest memory under way: chains are void from then on.
- **The guest's fault** (a request without room for its status, say) is ``queue.fail_py()``: the device needs a reset.
- **Configuration** is ``self.config``; after changing it call ``self.config_changed()``.
- **Compiled devices** keep their hot part in a cdef class that gets the ``Queue``s and calls ``pop``, ``push``,
  ``unpop``, ``signal`` without the GIL; chains are iovec arrays in guest memory. ``push`` marks what was written (dirty
  pages, translated code), so that a device needs only to be right about how much it wrote, from the first byte on.
- **No room on the host.** A device whose back end is full (a disk's file system) doesn't answer, is ``full``, and calls
  ``on_full`` with a line for people, on the loop's thread. The machine stands still then, and calls ``retry`` until the
  device isn't full any more.
- **Forks.** ``hold`` is called with the vCPUs stopped, before the process forks: no thread of the device's may be left.
  ``go_on(copy)`` follows in the parent, and with ``copy`` in the child: its back end's descriptors lead elsewhere by
  then, where it is to have its own.
- **save/load**: whole state. Chains in the device's hands are the queue's to save; after ``load`` they come out of
  ``pop`` again. ``drain`` is called before ``save``: finish what can't be done twice.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from hostel.base.loop import Loop
from hostel.devices.virtio.queue import Queue
from hostel.memory.ram import Ram


class Carrier(Protocol):
    """What a device needs of its transport."""

    lock: threading.RLock
    loop: Loop
    queues: list[Queue]
    negotiated: int
    ram: Ram

    def config_changed(self) -> None: ...


class Device:
    """Derive from it; everything has a default but the class's attributes."""

    name: ClassVar[str]
    id: ClassVar[int]                    # virtio 1.2, chapter 5
    class_code: ClassVar[int] = 0x00FF00  # PCI's
    queue_sizes: Sequence[int] = ()      # the largest size of each queue, powers of two up to 1024
    own_thread: ClassVar[bool] = False   # it waits for its queues' notify_fd itself; ``notified`` is never called
    features: int = 0                    # offered, as a mask; the transport adds its own

    def __init__(self, spec: Any = None, backend: Any = None):
        self.spec = spec
        self.backend = backend
        self.config = bytearray()
        self.on_full: Callable[[str], object] = lambda text: None

    @classmethod
    def open(cls, spec: Any) -> Any:
        """Open what the device needs of the host; an object with ``close()``, or None."""
        return None

    def attach(self, carrier: Carrier) -> None:
        """Called once, before anything else."""
        self.carrier = carrier
        self.lock = carrier.lock
        self.loop = carrier.loop
        self.queues = carrier.queues

    def has(self, bit: int) -> bool:
        """Whether that feature was negotiated."""
        return bool(self.carrier.negotiated >> bit & 1)

    # -- what the driver does

    def activate(self) -> None:
        """The driver is ready: the queues that it uses are enabled. Notifications of all of them follow."""

    def notified(self, queue: Queue) -> None:
        """There may be chains in ``queue``."""

    def reset(self) -> None:
        """Back to how it was made, but for the back end."""

    def queue_reset(self, queue: Queue) -> None:
        """This queue alone is going to be reset (VIRTIO_F_RING_RESET)."""

    def read_config(self, offset: int, size: int) -> int:
        """A read of the device's configuration."""
        return int.from_bytes(self.config[offset : offset + size].ljust(size, b"\0"), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """A write to it; by default nothing is writable."""

    def config_changed(self) -> None:
        """The driver should look at the configuration again."""
        self.carrier.config_changed()

    # -- what the machine does

    @property
    def full(self) -> bool:
        """Whether it waits for room on the host."""
        return False

    def retry(self) -> None:
        """There may be room now."""

    def drain(self) -> None:
        """Finish what is under way in the back end and couldn't be done a second time."""

    def hold(self) -> None:
        """The process is going to fork: end threads, finish what is under way."""

    def go_on(self, copy: bool) -> None:
        """It has: go on, as the machine that was, or (``copy``) as another one."""

    def close(self) -> None:
        """The machine ends; the back end stays open."""

    def statistics(self) -> dict[str, Any]:
        return {}

    def save(self) -> dict[str, Any]:
        return {"version": 1}

    def load(self, state: dict[str, Any]) -> None:
        if state["version"] != 1:
            raise ValueError(f"{self.name}: state version {state['version']} is not 1")
