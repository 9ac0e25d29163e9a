"""The process that connects to unix sockets for a worker."""

import os
import select
import socket
import time

import pytest

from hostel.vm.broker import Broker


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path / "v.sock")
    yield broker
    broker.close()
    os.waitpid(broker.pid, 0)


def answer(broker):
    assert select.select([broker.fd], [], [], 20)[0]
    return broker.take()


def test_it_connects_by_number(broker, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "v.sock_1234"))
        listener.listen()
        assert broker.take() is None
        for number in (7, 8):
            assert broker.ask(number, 1234)
            got, sock = answer(broker)
            assert got == number
            there, _ = listener.accept()
            there.sendall(b"hello")
            sock.setblocking(True)
            assert sock.recv(10) == b"hello"
            sock.close(), there.close()


def test_nobody_there(broker):
    assert broker.ask(1, 99)
    assert answer(broker) == (1, None)
    for port in (0, 0xFFFFFFFF):
        assert broker.ask(2, port)
        assert answer(broker) == (2, None)


def test_a_full_backlog_does_not_hold_it(broker, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "v.sock_1"))
        listener.listen(0)
        results = []
        for number in range(3):
            broker.ask(number, 1)
            results.append(answer(broker)[1])
        assert results[0] is not None and results[-1] is None


def test_it_ends_with_its_asker(tmp_path):
    broker = Broker(tmp_path / "v.sock")
    broker.close()
    assert os.waitpid(broker.pid, 0)[1] == 0


def test_its_end_is_told(tmp_path):
    broker = Broker(tmp_path / "v.sock")
    os.kill(broker.pid, 9)
    os.waitpid(broker.pid, 0)
    time.sleep(0)
    with pytest.raises(EOFError):
        broker.take()
    assert not broker.ask(1, 1)
