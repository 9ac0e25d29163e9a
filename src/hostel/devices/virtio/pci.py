"""A virtio device as a PCI card (virtio 1.2, 4.1): capabilities, registers, feature negotiation, status.

One BAR (``wires``): common configuration, ISR, the device's configuration, notifications and MSI-X. The driver's
notifications come through an eventfd a queue, which the event loop watches; the vCPU that writes them never waits.
Interrupts go by MSI-X, a vector a queue if the driver wants it, else by the pin.

Lock: ``lock``, around registers that change something and all that the device does. Order: the bus's lock, then this.
"""

import functools
import struct
import threading
from typing import Any

from hostel.base.loop import READ, Loop
from hostel.board import msix
from hostel.board.apic import ApicBus
from hostel.board.msix import Msix
from hostel.board.pci import COMMAND, PciFunction
from hostel.bus.space import Space
from hostel.devices.virtio.device import Device
from hostel.devices.virtio.queue import Queue
from hostel.devices.virtio.wires import LAYOUT, MULTIPLIER, SIZE, PciInterrupts, Registers
from hostel.memory.ram import Ram

VENDOR = 0x1AF4
FIRST_DEVICE = 0x1040
REVISION = 1
VENDOR_CAPABILITY = 9
CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI = 1, 2, 3, 4, 5  # 4.1.4
BAR = 0
MAX_VECTORS = 65                 # 64 queues and the configuration; other queues share

# Device status (2.1)
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128

# Feature bits of the transport and its queues (chapter 6)
RING_INDIRECT_DESC, RING_EVENT_IDX, VERSION_1, RING_PACKED, RING_RESET = 28, 29, 32, 34, 40
FEATURES = 1 << RING_INDIRECT_DESC | 1 << RING_EVENT_IDX | 1 << VERSION_1 | 1 << RING_PACKED | 1 << RING_RESET

# Common configuration (4.1.4.3): name, size
COMMON = (
    ("device_feature_select", 4), ("device_feature", 4), ("driver_feature_select", 4), ("driver_feature", 4),
    ("config_msix_vector", 2), ("num_queues", 2), ("device_status", 1), ("config_generation", 1),
    ("queue_select", 2), ("queue_size", 2), ("queue_msix_vector", 2), ("queue_enable", 2), ("queue_notify_off", 2),
    ("queue_desc", 4), ("queue_desc_high", 4), ("queue_driver", 4), ("queue_driver_high", 4),
    ("queue_device", 4), ("queue_device_high", 4), ("queue_notify_data", 2), ("queue_reset", 2),
)  # fmt: skip
_AT: dict[int, tuple[str, int]] = {}
_offset = 0
for _name, _size in COMMON:
    _AT[_offset] = (_name, _size)
    _offset += _size
_AREAS = ("queue_desc", "queue_driver", "queue_device")
_VERSION = 1


class VirtioPci(PciFunction):
    """The card of one ``device``. ``features`` masks what the transport offers."""

    def __init__(self, device: Device, ram: Ram, bus: ApicBus, mmio: Space, loop: Loop, features: int = FEATURES):
        super().__init__(
            VENDOR, FIRST_DEVICE + device.id, device.class_code, REVISION, (VENDOR, FIRST_DEVICE + device.id)
        )
        self.name = device.name
        self.device = device
        self.loop = loop
        self.ram = ram
        self.lock = threading.RLock()
        self._pin_lock = threading.Lock()
        self.offered = features | device.features | 1 << VERSION_1
        self.negotiated = 0              # what the driver chose, so far
        self.resets = 0
        self.msix = Msix(bus, min(len(device.queue_sizes) + 1, MAX_VECTORS))
        self.wires = PciInterrupts(self.msix, self)
        self.queues = [Queue(self.wires, ram, index, size) for index, size in enumerate(device.queue_sizes)]
        self._sizes = list(device.queue_sizes)             # as the driver set them
        self._areas = [[0, 0, 0] for _ in self.queues]
        self._device_select = self._driver_select = self._queue_select = 0
        self._generation = 0
        self.registers = Registers(self, self.msix, self.queues)
        self.add_bar(BAR, SIZE, self.registers, mmio, is_64bit=True)
        self.use_pin()
        self._add_virtio_capability(CAP_COMMON, LAYOUT["common"], 64)
        self._add_virtio_capability(CAP_ISR, LAYOUT["isr"], 1)
        self._add_virtio_capability(CAP_DEVICE, LAYOUT["config"], 4096)
        notify_size = max(len(self.queues), 1) * MULTIPLIER
        self._add_virtio_capability(CAP_NOTIFY, LAYOUT["notify"], notify_size, struct.pack("<I", MULTIPLIER))
        self._window = self._add_virtio_capability(CAP_PCI, 0, 0, bytes(4))
        self.writable[self._window + 4] = 0xFF             # bar, offset, length (4.1.4.9)
        self.writable[self._window + 8 : self._window + 20] = b"\xff" * 12
        body, writable = self.msix.capability(BAR, LAYOUT["msix"])
        self._control = self.add_capability(msix.CAPABILITY, body, writable) + 2
        device.attach(self)
        for queue in self.queues if not device.own_thread else ():
            loop.watch(queue.notify_fd, READ, functools.partial(self._notified, queue))

    def _add_virtio_capability(self, kind: int, offset: int, length: int, more: bytes = b"") -> int:
        body = struct.pack("<BBBBxxII", 16 + len(more), kind, BAR, 0, offset, length) + more
        return self.add_capability(VENDOR_CAPABILITY, body)

    # -- queues

    def _notified(self, queue: Queue, events: int) -> None:
        """The loop's: a queue's eventfd is readable."""
        queue.acknowledge_py()
        with self.lock:
            if self.wires.is_running() and queue.enabled:
                queue.budget = 2 * queue.size
                try:
                    self.device.notified(queue)
                finally:
                    queue.budget = -1

    def _look_again(self) -> None:
        """Queues may hold what nobody was notified of."""
        for queue in self.queues:
            if queue.enabled:
                queue.ring_py()

    def _update_running(self) -> None:
        """Whether the device may use its queues."""
        was = self.wires.is_running()
        status = self.wires.get_status()
        running = bool(status & DRIVER_OK and not status & NEEDS_RESET and self.is_bus_master)
        self.wires.set_running(running)
        if running and not was:
            self._look_again()

    # -- the pin

    def pin_changed(self) -> None:
        """ISR status has changed (wires)."""
        with self._pin_lock:
            self.set_intx(1 if self.wires.get_isr() and not self.msix.enabled else 0)

    # -- configuration space

    def read(self, offset: int, size: int) -> int:
        if self._in_window(offset, size):
            self._through_window(None)
        return super().read(offset, size)

    def written(self, offset: int, size: int) -> None:
        if offset <= self._control + 1 and offset + size > self._control or offset <= COMMAND < offset + size:
            self.msix.control(struct.unpack_from("<H", self.config, self._control)[0], self.is_bus_master)
            with self.lock:
                self._update_running()
            self.pin_changed()
        if self._in_window(offset, size):
            self._through_window(size)

    def _in_window(self, offset: int, size: int) -> bool:
        return offset == self._window + 16 and size in (1, 2, 4)

    def _through_window(self, written: int | None) -> None:
        """An access to the BAR by way of pci_cfg_data (4.1.4.9), for drivers that can't map it."""
        bar, at, size = struct.unpack_from("<4xBxxxII", self.config, self._window)
        if bar != BAR or size not in (1, 2, 4) or at % size or at + size > SIZE:
            return
        data = self._window + 16
        if written is not None:
            self.registers.write_py(at, size, int.from_bytes(self.config[data : data + size], "little"))
        else:
            self.config[data : data + size] = self.registers.read_py(at, size).to_bytes(size, "little")

    # -- registers (wires.Registers)

    def read_register(self, offset: int, size: int) -> int:
        if offset >= LAYOUT["config"]:
            with self.lock:
                return self.device.read_config(offset - LAYOUT["config"], size)
        if offset >= LAYOUT["isr"]:
            if offset != LAYOUT["isr"]:
                return 0
            value = self.wires.take_isr()
            self.pin_changed()
            return value
        if size == 8 and offset + 4 in _AT:
            return self.read_register(offset, 4) | self.read_register(offset + 4, 4) << 32
        name, width = _AT.get(offset, ("", 0))
        return self._read(name) if width == size else 0

    def write_register(self, offset: int, size: int, value: int) -> None:
        with self.lock:
            if offset >= LAYOUT["config"]:
                self.device.write_config(offset - LAYOUT["config"], size, value & (1 << 8 * size) - 1)
            elif offset < LAYOUT["isr"]:
                if size == 8 and offset + 4 in _AT:
                    self.write_register(offset, 4, value)
                    self.write_register(offset + 4, 4, value >> 32)
                else:
                    name, width = _AT.get(offset, ("", 0))
                    if width == size:
                        self._write(name, value & (1 << 8 * size) - 1)

    def _selected(self) -> Queue | None:
        return self.queues[self._queue_select] if self._queue_select < len(self.queues) else None

    def _read(self, name: str) -> int:
        queue = self._selected()
        index = self._queue_select
        match name:
            case "device_feature_select":
                return self._device_select
            case "device_feature":
                return self.offered >> 32 * self._device_select & 0xFFFFFFFF if self._device_select < 2 else 0
            case "driver_feature_select":
                return self._driver_select
            case "driver_feature":
                return self.negotiated >> 32 * self._driver_select & 0xFFFFFFFF if self._driver_select < 2 else 0
            case "config_msix_vector":
                return self.wires.get_vector(-1)
            case "num_queues":
                return len(self.queues)
            case "device_status":
                return self.wires.get_status()
            case "config_generation":
                return self._generation
            case "queue_select":
                return index
        if queue is None:
            return 0xFFFF if name == "queue_msix_vector" else 0
        match name:
            case "queue_size":
                return self._sizes[index]
            case "queue_msix_vector":
                return self.wires.get_vector(index)
            case "queue_enable":
                return int(queue.enabled)
            case "queue_notify_off" | "queue_notify_data":
                return index
        if name.startswith(_AREAS):
            area = self._areas[index][_AREAS.index(name.removesuffix("_high"))]
            return area >> 32 if name.endswith("_high") else area & 0xFFFFFFFF
        return 0

    def _write(self, name: str, value: int) -> None:
        status = self.wires.get_status()
        match name:
            case "device_feature_select":
                self._device_select = value
            case "driver_feature_select":
                self._driver_select = value
            case "driver_feature":
                if self._driver_select < 2 and not status & FEATURES_OK:
                    shift = 32 * self._driver_select
                    self.negotiated = self.negotiated & ~(0xFFFFFFFF << shift) | value << shift
            case "config_msix_vector":
                self.wires.set_vector(-1, value)
            case "device_status":
                self._write_status(value)
            case "queue_select":
                self._queue_select = value
            case _:
                if queue := self._selected():
                    self._write_queue(queue, name, value)

    def _write_queue(self, queue: Queue, name: str, value: int) -> None:
        index = queue.index
        if name == "queue_msix_vector":
            self.wires.set_vector(index, value)
        elif name == "queue_reset":
            if value == 1 and queue.enabled and self.negotiated >> RING_RESET & 1:
                self.device.queue_reset(queue)
                self._reset_queue(queue)
        elif queue.enabled:
            pass  # 4.1.4.3.2: the driver may not touch it now
        elif name == "queue_size":
            self._sizes[index] = value
        elif name == "queue_enable":
            if value == 1 and self.wires.get_status() & (FEATURES_OK | NEEDS_RESET) == FEATURES_OK:
                enabled = queue.enable(
                    self._sizes[index], *self._areas[index],
                    packed=self._has(RING_PACKED), event_idx=self._has(RING_EVENT_IDX),
                    indirect=self._has(RING_INDIRECT_DESC),
                )
                if enabled and self.wires.is_running():
                    queue.ring_py()
        elif name.startswith(_AREAS):
            area = _AREAS.index(name.removesuffix("_high"))
            old = self._areas[index][area]
            high = name.endswith("_high")
            self._areas[index][area] = old & 0xFFFFFFFF | value << 32 if high else old & ~0xFFFFFFFF | value

    def _reset_queue(self, queue: Queue) -> None:
        queue.reset()
        self._sizes[queue.index] = queue.max_size
        self._areas[queue.index] = [0, 0, 0]
        self.wires.set_vector(queue.index, 0xFFFF)

    def _has(self, bit: int) -> bool:
        return bool(self.negotiated >> bit & 1)

    # -- status (3.1.1)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        status = self.wires.get_status()
        new = value & ~status & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED)
        if new & FEATURES_OK and (self.negotiated & ~self.offered or not self._has(VERSION_1)):
            new &= ~FEATURES_OK  # 2.2.2: not with these; the driver reads it back
        if new & DRIVER_OK and not (status | new) & FEATURES_OK:
            new &= ~DRIVER_OK
        self.wires.set_status(status | new)
        if new & DRIVER_OK:
            self.device.activate()
            self._update_running()

    def reset(self) -> None:
        """As after power-on, but for what PCI's configuration space and MSI-X hold."""
        with self.lock:
            self.resets += 1
            self.wires.set_running(False)
            self.device.reset()
            for queue in self.queues:
                self._reset_queue(queue)
            self.wires.set_status(0)
            self.wires.reset()
            self.negotiated = 0
            self._device_select = self._driver_select = self._queue_select = 0
            self.pin_changed()

    def config_changed(self) -> None:
        """The device's configuration is another one now."""
        self._generation = self._generation + 1 & 0xFF
        if self.wires.get_status() & DRIVER_OK:
            self.wires.config_changed()

    # -- the machine's

    def close(self) -> None:
        """No more notifications; the device is done."""
        with self.lock:
            self.wires.set_running(False)
            self.device.close()
            for queue in self.queues:
                self.loop.unwatch(queue.notify_fd)
                queue.close()

    def statistics(self) -> dict[str, Any]:
        """For inspect."""
        return {
            "status": self.wires.get_status(),
            "features": f"{self.negotiated:#x}",
            "resets": self.resets,
            "broken": self.wires.broken_by(),
            "interrupts": self.msix.sent,
            "queues": [queue.statistics() for queue in self.queues if queue.enabled],
            **self.device.statistics(),
        }

    def save(self) -> dict[str, Any]:
        """Everything: configuration space, MSI-X, registers, queues, the device."""
        with self.lock:
            self.device.drain()
            return {
                **super().save(),
                "virtio": {
                    "version": _VERSION,
                    "offered": self.offered,
                    "negotiated": self.negotiated,
                    "status": self.wires.get_status(),
                    "isr": self.wires.get_isr(),
                    "selects": [self._device_select, self._driver_select, self._queue_select],
                    "generation": self._generation,
                    "sizes": list(self._sizes),
                    "areas": [list(areas) for areas in self._areas],
                    "vectors": [self.wires.get_vector(index) for index in range(-1, len(self.queues))],
                    "queues": [queue.save() for queue in self.queues],
                    "msix": self.msix.save(),
                    "device": self.device.save(),
                },
            }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what ``save`` gave; guest memory is as it was then."""
        virtio = state["virtio"]
        if virtio["version"] != _VERSION:
            raise ValueError(f"{self.name}: state version {virtio['version']} is not {_VERSION}")
        if virtio["offered"] & ~self.offered or len(virtio["queues"]) != len(self.queues):
            raise ValueError(f"{self.name}: the saved card offers other features or queues")
        with self.lock:
            self.offered = virtio["offered"]
            self.negotiated = virtio["negotiated"]
            self.wires.set_status(virtio["status"])
            self._device_select, self._driver_select, self._queue_select = virtio["selects"]
            self._generation = virtio["generation"]
            self._sizes = list(virtio["sizes"])
            self._areas = [list(areas) for areas in virtio["areas"]]
            for index, vector in enumerate(virtio["vectors"]):
                self.wires.set_vector(index - 1, vector)
            for queue, saved in zip(self.queues, virtio["queues"], strict=True):
                queue.load(saved)
            self.msix.load(virtio["msix"])
            self.device.load(virtio["device"])
            super().load(state)
            self.wires.set_isr(virtio["isr"])
            if virtio["status"] & DRIVER_OK:
                self.device.activate()
            self.written(COMMAND, 2)
