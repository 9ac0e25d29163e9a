"""Debian's kernel and its own drivers on the virtio cards: entropy, ports, the balloon, a reset in between."""

import functools
import hashlib
import time

import pytest

from hostel.base.errors import HostelError
from hostel.base.loop import READ, Loop
from hostel.client.vm import VM, make_spec
from hostel.devices.virtio import pci
from hostel.spec.cards import ConsoleSpec
from hostel.vm import cards
from hostel.vm.machine import BootFiles, Machine

MIB = 1 << 20


class Guest:
    """The micro image in this process, with a shell on its serial console."""

    def __init__(self, **cards):
        try:
            self.spec = make_spec(
                "micro", name=None, cpus=1, memory="256M", kernel=None, initrd=None, append="", engine="bt"
            )
        except HostelError as error:
            pytest.skip(f"no micro image: {error}")
        for field, card in cards.items():
            setattr(self.spec, field, card)
        self.loop = Loop()
        self.files = BootFiles(self.spec)
        self.events = []
        self.boot()

    def boot(self):
        self.machine = Machine(self.spec, self.files, self.loop, self.happened)
        self.seen = b""
        self.loop.watch(self.machine.console.tx_fd, READ, lambda _: self.read())
        self.machine.start()
        self.wait(lambda: b"# " in self.seen, 120)

    def happened(self, machine, what):
        self.events.append(what)

    def read(self):
        self.seen += self.machine.console.take()

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.seen[-2000:]
            self.loop.call_later(0.005, self.loop.stop)
            self.loop.run()

    def sh(self, command):
        """What a command in the guest prints."""
        self.seen = b""
        self.machine.console.send(f"{command}; echo en''d $?\n".encode())
        self.wait(lambda: b"# " in self.seen.partition(b"end ")[2])
        text, _, status = self.seen.partition(b"end ")
        assert status.split()[0] == b"0", self.seen
        return text.decode().partition("\n")[2].replace("\r", "")

    def end(self):
        self.machine.stop()
        self.loop.unwatch(self.machine.console.tx_fd)
        self.machine.close()

    def close(self):
        self.end()
        self.files.close()
        self.loop.close()


def use_everything(guest):
    assert "rng" in guest.sh("cat /sys/class/misc/hw_random/rng_current")
    first, second = (guest.sh("head -c 2000 /dev/hwrng | md5sum") for _ in range(2))
    assert first != second and guest.machine.cards["rng"].statistics()["queues"][0]["requests"] > 10

    port = guest.machine.port("org.test.0")
    guest.sh("ls /dev/virtio-ports 2>/dev/null; P=/dev/vport$(grep -l org.test.0 /sys/class/virtio-ports/*/name "
             "| sed 's/.*vport//; s/.name//'); echo $P")
    port.send(b"hello from the host\n")
    assert "hello from the host" in guest.sh("head -n 1 $P")
    guest.sh("echo hello from the guest > $P")
    guest.wait(lambda: port.statistics()["tx_waiting"])
    assert port.take() == b"hello from the guest\n"
    megabyte = bytes(range(256)) * 4096
    guest.machine.console.send(b"head -c 1048576 $P | md5sum\n")
    sent = 0

    def pump():
        nonlocal sent
        sent += port.send(megabyte[sent : sent + 60000])
        return sent == len(megabyte) and b"-" in guest.seen.partition(b"md5sum")[2]

    guest.seen = b""
    guest.wait(pump)
    assert hashlib.md5(megabyte).hexdigest().encode() in guest.seen
    guest.sh("echo")
    guest.machine.console.send(b"head -c 1048576 /dev/zero > $P; echo $?\n")
    got = 0

    def drain():
        nonlocal got
        got += len(port.take())
        return got >= 1048576

    guest.wait(drain)
    guest.sh("echo")

    card = guest.machine.cards["balloon"]
    balloon = card.device
    reported = balloon.reported
    guest.sh("dd if=/dev/zero of=/tmp/ballast bs=1M count=100 2>/dev/null; rm /tmp/ballast")  # memory that was touched
    guest.wait(balloon.ask)
    guest.wait(lambda: balloon.guest.get("total"))
    before = guest.machine.statistics()["memory"]["guest_resident"] + balloon.reported - reported
    balloon.set_target(128 * MIB)
    guest.wait(lambda: balloon.actual() <= 128 * MIB)
    assert balloon.inflated + balloon.reported > 100 * MIB and balloon.refused == 0
    after = guest.machine.statistics()["memory"]["guest_resident"]
    assert after < before - 50 * MIB, (before, after)
    free = int(guest.sh("awk '/MemFree/ {print $2}' /proc/meminfo"))
    balloon.set_target(256 * MIB)
    guest.wait(lambda: balloon.actual() == 256 * MIB)
    assert int(guest.sh("awk '/MemFree/ {print $2}' /proc/meminfo")) > free + (100 << 10)
    for card in guest.machine.cards.values():
        assert card.statistics()["broken"] == {}
    return [card.statistics() for card in guest.machine.cards.values()]


def test_debian_s_drivers_use_rng_console_and_balloon_and_again_after_a_reset():
    guest = Guest(rng=True, balloon=True, console=ConsoleSpec(ports=["org.test.0"]))
    try:
        features = guest.sh("cat /sys/bus/virtio/devices/*/features").split()
        assert len(features) == 3 and all(row[34] == row[29] == "1" for row in features)  # packed
        use_everything(guest)
        guest.machine.console.send(b"reboot -f\n")
        guest.wait(lambda: guest.events)
        assert guest.events == ["reset"]
        guest.end()
        guest.boot()
        use_everything(guest)
    finally:
        guest.close()


def test_they_use_split_rings_too(monkeypatch):
    without = pci.FEATURES & ~(1 << pci.RING_PACKED)
    monkeypatch.setattr(cards, "VirtioPci", functools.partial(pci.VirtioPci, features=without))
    guest = Guest(rng=True, balloon=True, console=ConsoleSpec(ports=["org.test.0"]))
    try:
        features = guest.sh("cat /sys/bus/virtio/devices/*/features").split()
        assert all(row[34] == "0" and row[29] == "1" for row in features)
        use_everything(guest)
    finally:
        guest.close()


def test_commands_go_over_a_virtio_port_where_there_is_one():
    with VM.run(
        "micro", devices=["balloon", "port:org.hostel.agent.0"], networks=["none"], append="hostel.agent=vport1p0"
    ) as vm:
        data = bytes(range(256)) * 20000
        assert vm.exec(["cat"], input=data, text=False).stdout == data
        assert vm.exec(["sh", "-c", "echo no >&2; exit 3"]).status == 3
        cards = vm.inspect()["statistics"]["cards"]
        assert cards["console"]["ports"]["org.hostel.agent.0"]["delivered"] > len(data)
        assert vm.balloon("256M")["target"] == 256 << 20
        with pytest.raises(HostelError):
            vm.balloon("1T")
        vm.reset()
        assert vm.exec(["echo", "again"]).stdout == "again\n"
