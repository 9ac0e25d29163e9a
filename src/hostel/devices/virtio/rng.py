"""Entropy (virtio 1.2, 5.4): what the host's getrandom(2) gives."""

import os

from hostel.devices.virtio.device import Device
from hostel.devices.virtio.queue import Queue

# So much of a buffer is filled at most: the rest of a large one costs the host time that others need.
LARGEST = 65536


class Rng(Device):
    name = "rng"
    id = 4
    queue_sizes = (256,)

    def notified(self, queue: Queue) -> None:
        for request in queue:
            if not request.writable_bytes:  # 5.4.6.1: at least one byte must be given
                queue.fail_py()
                return
            request.write(os.getrandom(min(request.writable_bytes, LARGEST)))
            request.push()
        queue.signal_py()
