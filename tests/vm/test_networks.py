"""Named networks without VMs: their folders, and their process with sockets for cards."""

import os
import signal
import socket
import time

import pytest

from hostel.base.errors import HostelError, MachineError, NetworkError, UsageError
from hostel.client.network import Network
from hostel.net import networks

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


@pytest.fixture
def lab(home):
    network = Network.create("lab")
    yield network
    if pid := networks.NetworkFolder(home / "networks/lab").inspect().get("pid"):
        os.kill(pid, signal.SIGKILL)


def card(name, mac):
    fd, address = networks.find("lab").join(name, mac, [], [])
    return socket.socket(fileno=fd), address


def frame(to, source, text=b"hello"):
    return bytes(12) + bytes.fromhex((to + source).replace(":", "")) + b"\x88\xb5" + text


def wait(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_cards_see_one_another(lab):
    one, first = card("one", A)
    two, second = card("two", B)
    assert first != second and first.rsplit(".", 1)[0] == lab.spec.subnet.rsplit(".", 1)[0]
    assert [(c["name"], c["mac"], c["address"]) for c in lab.cards()] == [("one", A, first), ("two", B, second)]
    one.settimeout(10), two.settimeout(10)
    one.send(frame(B, A))
    assert two.recv(100) == frame(B, A)
    two.send(frame(A, B, b"again"))
    assert one.recv(100) == frame(A, B, b"again")
    pid = lab.inspect()["pid"]
    with pytest.raises(NetworkError, match="another card has the MAC"):
        card("three", A)
    with pytest.raises(MachineError, match="used by one, two"):
        lab.rm()
    one.close(), two.close()
    wait(lambda: not lab.cards())
    assert lab.inspect()["pid"] == pid  # it waits a moment for who comes back
    lab.rm()
    assert Network.list() == []
    with pytest.raises(MachineError, match="there is no network named 'lab'"):
        Network.get("lab")


def test_a_killed_process_is_started_again(lab):
    one, address = card("one", A)
    one.settimeout(10)
    os.kill(lab.inspect()["pid"], signal.SIGKILL)
    assert one.recv(100) == b""
    assert not networks.find("lab").running() or time.sleep(0.2) is None
    again, same = card("one", A)
    assert same == address and [c["name"] for c in lab.cards()] == ["one"]


def test_it_ends_with_its_last_card(lab, monkeypatch):
    one, _ = card("one", A)
    pid = lab.inspect()["pid"]
    one.close()
    wait(lambda: not networks.find("lab").running())
    assert lab.inspect()["counters"] == {}
    os.waitpid(pid, 0)  # it was ours


def test_what_a_stranger_says_is_answered(lab):
    one, _ = card("one", A)
    folder = networks.find("lab")
    for message in ({}, {"name": "x"}, {"name": 5, "mac": B}, {"name": "x", "mac": "zz"}, [1]):
        sock, answer = folder._ask(message)
        assert "error" in answer, message
        sock.close()
    assert len(lab.cards()) == 1


def test_subnets_are_chosen_apart(home):
    names = ["a", "b", "c"]
    subnets = {Network.create(name).spec.subnet for name in names}
    assert len(subnets) == 3
    with pytest.raises(MachineError, match="overlaps"):
        Network.create("d", subnet=subnets.pop())
    with pytest.raises(MachineError, match="exists already"):
        Network.create("a")
    with pytest.raises(UsageError):
        Network.create("nat")
    assert Network.create("e", ipv6="").spec.subnet6 == ""
    assert Network.create("f", ipv6="fd00:1::/64").spec.subnet6 == "fd00:1::/64"
    assert [network.name for network in Network.list()] == [*names, "e", "f"]


def test_a_damaged_network_is_told(home):
    network = Network.create("lab")
    (home / "networks/lab/network.toml").write_text("subnet = [")
    with pytest.raises(HostelError, match="damaged"):
        print(network.spec)
