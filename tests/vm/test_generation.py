"""A real guest is told that it is a copy: the VM generation ID's event reaches its kernel.

Debian's cloud kernel has no driver for it, so here the event is counted; tests/real/test_kernels has kernels with one.
"""

import os

import pytest

from hostel import VM
from hostel.client.connection import Connection
from hostel.vm import launch

COUNT = "/sys/firmware/acpi/interrupts/gpe05"


@pytest.fixture
def copyable(guests, monkeypatch):
    """VMs have the method ``new_generation``."""
    monkeypatch.setattr(launch, "WORKER", "generation_worker")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def test_the_guest_sees_the_event_and_the_new_id(copyable):
    with VM.run("micro") as vm:
        until = f"until read n word rest < {COUNT} && [ $n -ge 1 ]; do usleep 10000; done; echo $n $word"
        assert vm.exec(["sh", "-c", until], timeout=60).stdout.split() == ["1", "EN"]  # when its agent was there
        seen = set()
        for count in range(2, 5):
            with Connection(vm.folder) as connection:
                connection.call("new_generation")
            script = f"until read n rest < {COUNT} && [ $n -ge {count} ]; do usleep 10000; done; echo $n; dd bs=16 " \
                     f"skip=$((0xff000 / 16)) count=1 if=/dev/mem 2>/dev/null | od -An -tx1"
            said = vm.exec(["sh", "-c", script], timeout=60).stdout.split()
            assert said[0] == str(count) and len(said) == 17
            seen.add(" ".join(said[1:]))
        assert len(seen) == 3
