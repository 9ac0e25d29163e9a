"""The console card: the handshake, named ports, data both ways at any size, sizes of the window, a closed port."""

import select
import struct

import pytest
from tests.devices.virtio.driver import Bench

from hostel.base.errors import UsageError
from hostel.devices.virtio import console
from hostel.devices.virtio.console import LIMIT, Console
from hostel.spec.cards import ConsoleSpec, check_console

SPEC = ConsoleSpec(hvc=True, ports=["org.hostel.agent.0", "other"])


class Guest:
    """What Linux's driver does: it answers control messages and keeps every receive queue filled."""

    def __init__(self, bench, **ways):
        self.bench = bench
        self.driver = bench.driver(**ways)
        self.ports, self.names, self.sizes, self.consoles, self.host_open = set(), {}, [], set(), set()
        self.received = {}
        self.lost = b""
        for _ in range(16):
            self.driver.queues[2].add([], [128])
        self.tell(0xFFFFFFFF, console.DEVICE_READY, 1)

    def tell(self, port, event, value):
        self.driver.request(3, [struct.pack("<IHH", port, event, value)])
        self.run()

    def run(self):
        self.bench.settle()
        while answers := self.driver.queues[2].collect():
            for data, _ in answers.values():
                self.message(*struct.unpack_from("<IHH", data), data[8:])
                self.driver.queues[2].add([], [128])
            self.driver.queues[2].kick()
            self.bench.settle()

    def message(self, port, event, value, more):
        if event == console.DEVICE_ADD:
            self.ports.add(port)
            for _ in range(4):
                self.driver.queues[self.queue(port)].add([], [4096])
            self.driver.request(3, [struct.pack("<IHH", port, console.PORT_READY, 1)])
        elif event == console.PORT_NAME:
            self.names[port] = more.decode()
        elif event == console.CONSOLE_PORT:
            self.consoles.add(port)
        elif event == console.RESIZE:
            self.sizes.append(struct.unpack("<HH", more))
        elif event == console.PORT_OPEN and value:
            self.host_open.add(port)

    @staticmethod
    def queue(port):
        return 2 * port + 2 if port else 0

    def read(self, port):
        queue = self.driver.queues[self.queue(port)]
        out = b""
        self.bench.settle()
        while answers := queue.collect():
            for data, _ in answers.values():
                out += data
                queue.add([], [4096])
            queue.kick()
            self.bench.settle()
        return out


def ready(fd):
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("packed", [False, True])
def test_ports_have_names_and_carry_bytes_both_ways(packed):
    with Bench(Console(SPEC)) as bench:
        guest = Guest(bench, packed=packed)
        assert guest.ports == {0, 1, 2} == guest.host_open
        assert guest.names == {1: "org.hostel.agent.0", 2: "other"} and guest.consoles == {0}
        assert guest.sizes == [(25, 80)]
        port = bench.device.port("org.hostel.agent.0")
        assert port.send(b"early") == 5 and guest.read(1) == b""  # the guest hasn't opened it
        guest.tell(1, console.PORT_OPEN, 1)
        assert guest.read(1) == b"early"
        assert not ready(port.tx_fd)
        guest.driver.request(5, [b"to ", b"the host"])
        assert ready(port.tx_fd) and port.take(3) == b"to " and ready(port.tx_fd)
        assert port.take() == b"the host" and not ready(port.tx_fd)
        bench.device.resize(50, 132)
        guest.run()
        assert guest.sizes[-1] == (50, 132)
        assert (bench.device_config(0, 2), bench.device_config(2, 2), bench.device_config(4, 4)) == (132, 50, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_a_megabyte_each_way_with_bounded_memory(packed):
    data = bytes(range(256)) * 4096
    with Bench(Console(SPEC)) as bench:
        guest = Guest(bench, packed=packed)
        port = bench.device.ports[2]
        guest.tell(2, console.PORT_OPEN, 1)
        sent = 0
        got = b""
        while len(got) < len(data):
            sent += port.send(data[sent : sent + 50000])
            assert port.free_space() >= 0 and len(port._in) <= LIMIT
            got += guest.read(2)
        assert got == data
        queue = guest.driver.queues[7]
        tokens = 0
        for at in range(0, len(data), 100_000):  # larger than what is taken at once
            queue.add([data[at : at + 100_000]], [])
            tokens += 1
        queue.kick()
        bench.settle()
        taken = b""
        done = 0
        while ready(port.tx_fd):
            assert len(port._out) <= LIMIT
            taken += port.take()
            done += len(queue.collect())
            bench.settle()
        assert taken == data and done == tokens


def test_a_sender_who_fell_short_is_told_of_room():
    with Bench(Console(SPEC)) as bench:
        guest = Guest(bench)
        port = bench.device.ports[1]
        assert port.send(bytes(LIMIT + 5)) == LIMIT and port.send(b"x") == 0
        assert not ready(port.rx_fd)
        guest.tell(1, console.PORT_OPEN, 1)
        while not ready(port.rx_fd):
            assert guest.read(1)
        assert port.send(b"x" * 1000) == 1000 and not ready(port.rx_fd)


def test_a_driver_that_knows_one_port_only_and_one_that_writes_in_an_emergency():
    with Bench(Console(SPEC)) as bench:
        driver = bench.driver(features=1 << console.SIZE | 1 << console.EMERG_WRITE, queues=[0, 1])
        port = bench.device.ports[0]
        driver.queues[0].add([], [100])
        driver.queues[0].kick()
        bench.settle()
        port.send(b"hello")
        assert [data for data, _ in driver.queues[0].collect().values()] == [b"hello"]
        driver.request(1, [b"answer"])
        bench.write(0x2000 + 8, 4, ord("!"))
        assert port.take() == b"answer!"
        bench.device.resize(1, 2)
        assert bench.get("config_generation") == 1


def test_a_reset_closes_the_ports_and_loses_nothing_that_the_guest_didn_t_get():
    with Bench(Console(SPEC)) as bench:
        guest = Guest(bench)
        port = bench.device.ports[1]
        guest.tell(1, console.PORT_OPEN, 1)
        guest.driver.request(5, [b"before"])
        bench.set("device_status", 0)
        port.send(b"for the next one")
        guest = Guest(bench, packed=True)
        assert guest.read(1) == b""
        guest.tell(1, console.PORT_OPEN, 1)
        assert guest.read(1) == b"for the next one" and port.take() == b"before"


def test_saved_in_the_middle_of_a_large_write():
    with Bench(Console(SPEC)) as bench:
        guest = Guest(bench)
        guest.tell(1, console.PORT_OPEN, 1)
        data = bytes(range(256)) * 1000
        queue = guest.driver.queues[5]
        queue.add([data], [])
        queue.kick()
        bench.settle()
        bench.device.ports[1].send(b"q" * 100000)
        state = bench.card.save()
        with Bench(Console(SPEC)) as other:
            size = 64 << 20
            other.ram.view(0, size)[:] = bench.ram.view(0, size)
            other.card.load(state)
            other.settle()
            port = other.device.ports[1]
            taken = b""
            while chunk := port.take():
                taken += chunk
            assert taken == data and len(port._in) == 100000 - 4 * 4096


def test_names_that_can_t_be():
    for ports in ([], ["a", "a"], ["a/b"], [f"p{n}" for n in range(32)]):
        with pytest.raises(UsageError):
            check_console(ConsoleSpec(ports=ports))
