"""Console (virtio 1.2, 5.3): byte channels between guest and host, with names, and perhaps a terminal.

A ``Port`` offers what a serial port does (devices/uart): ``take``, ``send`` and two eventfds. Its two buffers are
bounded: what the guest writes stays in its queue while nobody takes, and ``send`` takes what fits. Nothing is given to
a guest that doesn't hold the port open; what it has not read when it closes it is lost, as its driver throws it away.
"""

import os
import struct
from typing import Any

from hostel.base.linux import eventfd
from hostel.devices.virtio.device import Carrier, Device
from hostel.devices.virtio.queue import Queue, Request
from hostel.spec.cards import ConsoleSpec

SIZE, MULTIPORT, EMERG_WRITE = 0, 1, 2  # features
EMERGENCY = 8                # where emerg_wr is in the configuration
LIMIT = 131072               # bytes of each of a port's buffers
CHUNK = 65536                # of a chain at once
CONTROL_LIMIT = 256          # messages that wait for the driver's buffers

DEVICE_READY, DEVICE_ADD, DEVICE_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)


class Port:
    """One channel. All methods are for the loop's thread."""

    def __init__(self, device: "Console", number: int, name: str, is_console: bool):
        self.device, self.number, self.name, self.is_console = device, number, name, is_console
        self.open = False                # the guest holds it open
        self.transmitted = self.delivered = 0
        self._out = bytearray()          # from the guest
        self._in = bytearray()           # to it
        self._short = False
        self._request: Request | None = None  # half taken
        self._taken = 0                  # bytes of it
        self.tx_fd = eventfd.make()
        self.rx_fd = eventfd.make()

    # -- the host's end

    def take(self, limit: int = 65536) -> bytes:
        """Up to ``limit`` bytes of the guest's output; ``tx_fd`` stays readable while more waits."""
        with self.device.lock:
            _clear(self.tx_fd)
            data = bytes(self._out[:limit])
            del self._out[:limit]
            self.fetch()
            if self._out:
                os.eventfd_write(self.tx_fd, 1)
        return data

    def send(self, data: bytes) -> int:
        """Offer bytes to the guest; returns how many were taken. After a short count ``rx_fd`` becomes readable once at
        least half of the buffer is free."""
        with self.device.lock:
            _clear(self.rx_fd)
            room = LIMIT - len(self._in)
            self._in += data[:room]
            self._short = len(data) > room
            self.deliver()
        return min(len(data), room)

    def free_space(self) -> int:
        return LIMIT - len(self._in)

    def close(self) -> None:
        """Close the eventfds."""
        for fd in (self.tx_fd, self.rx_fd):
            if fd >= 0:
                os.close(fd)
        self.tx_fd = self.rx_fd = -1

    # -- the guest's, with the lock

    def reset(self) -> None:
        self.open = False
        self._request, self._taken = None, 0

    def put(self, data: bytes) -> None:
        """Output of the guest's."""
        if not self._out and data:
            os.eventfd_write(self.tx_fd, 1)
        self._out += data
        self.transmitted += len(data)

    def fetch(self) -> None:
        """Take what the guest has written, as far as there is room."""
        queue = self.device.queue_of(self, to_guest=False)
        if queue is None:
            return
        used = False
        while (room := min(LIMIT - len(self._out), CHUNK)) > 0:
            if self._request is None:
                self._request = next(queue, None)
                if self._request is None:
                    break
            data = self._request.read(room, self._taken)
            self.put(data)
            self._taken += len(data)
            if self._taken >= self._request.readable_bytes:
                self._request.push()
                self._request, self._taken = None, 0
                used = True
        if used:
            queue.signal_py()

    def deliver(self) -> None:
        """Give the guest what waits for it, as far as it has buffers."""
        queue = self.device.queue_of(self, to_guest=True)
        if queue is None or not self.open:
            return
        used = False
        while self._in:
            request = next(queue, None)
            if request is None:
                break
            if not request.writable_bytes:
                queue.fail_py()
                return
            size = request.write(bytes(self._in[:CHUNK]))
            request.push()
            del self._in[:size]
            self.delivered += size
            used = True
        if used:
            queue.signal_py()
        if self._short and len(self._in) <= LIMIT // 2:
            self._short = False
            os.eventfd_write(self.rx_fd, 1)

    def statistics(self) -> dict[str, Any]:
        return {
            "open": self.open,
            "transmitted": self.transmitted,
            "delivered": self.delivered,
            "tx_waiting": len(self._out),
            "rx_waiting": len(self._in),
        }

    def save(self) -> dict[str, Any]:
        return {"open": self.open, "out": bytes(self._out), "in": bytes(self._in), "taken": self._taken}

    def load(self, state: dict[str, Any]) -> None:
        self.open, self._taken = state["open"], state["taken"]
        self._out, self._in = bytearray(state["out"]), bytearray(state["in"])
        if self._out:
            os.eventfd_write(self.tx_fd, 1)


class Console(Device):
    """``ports`` by number; ``port(name)`` finds one."""

    name = "console"
    id = 3
    class_code = 0x078000
    features = 1 << SIZE | 1 << MULTIPORT | 1 << EMERG_WRITE

    def __init__(self, spec: ConsoleSpec, backend: None = None):
        super().__init__(spec, backend)
        names = ["hvc0"] * spec.hvc + spec.ports
        self.ports = [Port(self, i, name, spec.hvc and i == 0) for i, name in enumerate(names)]
        self.queue_sizes = [128, 128, 64, 64] + [128] * (2 * len(names) - 2)
        self.config = bytearray(struct.pack("<HHII", 80, 25, len(names), 0))
        self._control: list[bytes] = []  # messages for the driver

    def port(self, name: str) -> Port | None:
        return next((port for port in self.ports if port.name == name), None)

    def attach(self, carrier: Carrier) -> None:
        super().attach(carrier)
        self._receive, self._transmit = self.queues[2], self.queues[3]

    def queue_of(self, port: Port, to_guest: bool) -> Queue | None:
        """A port's receive or transmit queue, where the driver uses it."""
        if port.number and not self.has(MULTIPORT):
            return None
        queue = self.queues[(2 * port.number + 2 if port.number else 0) + (not to_guest)]
        return queue if queue.enabled else None

    def resize(self, rows: int, cols: int) -> None:
        """The terminal's size is another."""
        with self.lock:
            struct.pack_into("<HH", self.config, 0, cols & 0xFFFF, rows & 0xFFFF)
            if self.has(MULTIPORT):
                self._tell_size()
                self._answer()
            elif self.has(SIZE):
                self.config_changed()

    # -- the driver

    def activate(self) -> None:
        if not self.has(MULTIPORT):
            self.ports[0].open = True

    def reset(self) -> None:
        self._control = []
        for port in self.ports:
            port.reset()

    def notified(self, queue: Queue) -> None:
        if queue is self._receive and self.has(MULTIPORT):
            self._answer()
        elif queue is self._transmit and self.has(MULTIPORT):
            self._listen()
        else:
            port = self.ports[queue.index // 2 - 1 if queue.index > 3 else 0]
            if queue.index & 1:
                port.fetch()
            else:
                port.deliver()

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == EMERGENCY and self.has(EMERG_WRITE):
            port = self.ports[0]
            if len(port._out) < LIMIT:  # 5.3.4: an early console, which can't wait
                port.put(bytes([value & 0xFF]))

    # -- control messages (5.3.6.2)

    def _listen(self) -> None:
        while len(self._control) < CONTROL_LIMIT:
            request = next(self._transmit, None)
            if request is None:
                break
            message = request.read(8)
            request.push()
            if len(message) == 8:
                self._message(*struct.unpack("<IHH", message))
        self._transmit.signal_py()
        self._answer()

    def _message(self, number: int, event: int, value: int) -> None:
        if event == DEVICE_READY and value == 1:
            for port in self.ports:
                self._tell(port, DEVICE_ADD, 1)
        elif number < len(self.ports):
            port = self.ports[number]
            if event == PORT_READY and value == 1:
                if port.is_console:
                    self._tell(port, CONSOLE_PORT, 1)
                    self._tell_size()
                else:
                    self._tell(port, PORT_NAME, 1, port.name.encode())
                self._tell(port, PORT_OPEN, 1)
            elif event == PORT_OPEN:
                port.open = value == 1
                port.deliver()

    def _tell(self, port: Port, event: int, value: int, more: bytes = b"") -> None:
        self._control.append(struct.pack("<IHH", port.number, event, value) + more)

    def _tell_size(self) -> None:
        # Linux reads rows first, whatever 5.3.6.2 says, and it is what others do.
        cols, rows = struct.unpack_from("<HH", self.config)
        for port in self.ports:
            if port.is_console and len(self._control) < CONTROL_LIMIT:
                self._tell(port, RESIZE, 0, struct.pack("<HH", rows, cols))

    def _answer(self) -> None:
        """Give the driver the messages that wait for it."""
        while self._control:
            request = next(self._receive, None)
            if request is None:
                break
            request.write(self._control.pop(0))
            request.push()
        self._receive.signal_py()

    # -- the machine

    def close(self) -> None:
        for port in self.ports:
            port.close()

    def statistics(self) -> dict[str, Any]:
        return {"ports": {port.name: port.statistics() for port in self.ports}}

    def save(self) -> dict[str, Any]:
        return {
            "version": 1,
            "config": bytes(self.config),
            "control": list(self._control),
            "ports": [port.save() for port in self.ports],
        }

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.config[:] = state["config"]
        self._control = list(state["control"])
        for port, saved in zip(self.ports, state["ports"], strict=True):
            port.load(saved)


def _clear(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        pass
