"""The rate of a container's card: TCP through a veth pair whose other end is in a network namespace of its own."""

import os
import shutil
import subprocess
import sys

import pytest

from hostel.base.errors import NetworkError
from hostel.base.linux import netlink
from hostel.containers import netlimit

MIB = 1 << 20
NAME = f"hl{os.getpid()}"
HERE, THERE = "10.254.77.1", "10.254.77.2"
SERVER = f"""
import socket, sys, time
server = socket.create_server(('{THERE}', 7))
print('ready', flush=True)
for _ in sys.stdin:
    peer = server.accept()[0]
    way, begin, count = peer.recv(1), time.monotonic(), 0
    data = bytes(65536)
    if way == b'r':                     # the host reads
        peer.settimeout(5)
        try:
            while True:
                peer.sendall(data)
        except OSError:
            pass
    else:
        while time.monotonic() < begin + 1 and (got := peer.recv(65536)):
            count += len(got)
        print(count / (time.monotonic() - begin), flush=True)
    peer.close()
"""


@pytest.fixture
def card():
    """``card(way)``: the bytes a second that the far end had from us ('w'), or we from it ('r')."""
    import socket
    import time

    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces take root and iproute2")
    commands = (
        f"netns add {NAME}", f"link add {NAME}v type veth peer name c0 netns {NAME}", f"addr add {HERE}/30 dev {NAME}v",
        f"link set {NAME}v up", f"-n {NAME} addr add {THERE}/30 dev c0", f"-n {NAME} link set c0 up",
    )  # fmt: skip
    server = None
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)
        server = subprocess.Popen(
            ["ip", "netns", "exec", NAME, sys.executable, "-S", "-c", SERVER], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout.readline() == "ready\n"

        def measure(way):
            server.stdin.write("\n")
            server.stdin.flush()
            with socket.create_connection((THERE, 7)) as peer:
                peer.settimeout(30)
                peer.send(way.encode())
                begin, count = time.monotonic(), 0
                try:
                    while time.monotonic() < begin + 1.2:
                        count += len(peer.recv(65536)) if way == "r" else peer.send(bytes(65536))
                except ConnectionError:  # the far end has had its second
                    assert way == "w"
                elapsed = time.monotonic() - begin
            return count / elapsed if way == "r" else float(server.stdout.readline())

        yield measure
    finally:
        if server:
            server.stdin.close()
            server.kill()
            server.wait()
        subprocess.run(["ip", "link", "del", f"{NAME}v"])
        subprocess.run(["ip", "netns", "del", NAME])
        netlimit.remove(f"{NAME}v")


def test_what_leaves_and_what_comes_is_limited(card):
    name = f"{NAME}v"
    free = {way: card(way) for way in "wr"}
    netlimit.shape(name, 2 * MIB)
    netlimit.police(name, MIB)
    assert card("w") < 4 * MIB < free["w"]
    assert card("r") < 6 * MIB < free["r"]  # with the second's worth that may come at once
    sent, received = netlimit.limits(name)
    assert (sent.what, sent.limit) == (f"sent by {name}", 2 * MIB) and sent.use > MIB / 2
    assert (received.what, received.limit) == (f"received by {name}", MIB) and received.use > MIB / 2
    netlimit.shape(name, 50 * MIB)  # a running one's change
    netlimit.police(name, 60 * MIB)
    assert [limit.limit for limit in netlimit.limits(name)] == [50 * MIB, 60 * MIB]
    assert card("w") > 4 * MIB
    netlimit.remove(name)
    assert netlimit.limits(name) == []
    netlimit.remove(name)


def test_what_an_interface_left_is_replaced_and_removed(card):
    name = f"{NAME}v"
    netlimit.police(name, MIB)
    subprocess.run(["ip", "link", "del", name], check=True)
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}2"], check=True)
    netlimit.police(name, 2 * MIB)
    assert [limit.limit for limit in netlimit.limits(name)] == [2 * MIB]
    subprocess.run(["ip", "link", "del", name], check=True)
    netlimit.remove(name)
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}2"], check=True)
    assert netlimit.limits(name) == []


def test_what_cant_be_limited_is_told():
    for act in (netlimit.shape, netlimit.police):
        with pytest.raises(NetworkError, match="no network interface 'none0' here"):
            act("none0", MIB)
        with pytest.raises(NetworkError, match="a rate is from 1024"):
            act("lo", 5)
    with pytest.raises(NetworkError, match="no network interface 'none0' here"):
        netlimit.limits("none0")


def test_who_may_not_is_told():
    if os.geteuid() != 0:
        pytest.skip("it takes root to give rights up")
    code = (
        "from hostel.containers import netlimit\nfrom hostel.base.linux.namespace import drop_capabilities\n"
        "from hostel.base.errors import NetworkError\ndrop_capabilities()\n"
        "for act in (netlimit.shape, netlimit.police):\n"
        "    try:\n        act('lo', 1 << 20)\n    except NetworkError as error:\n        print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stderr == ""
    assert told.stdout.splitlines() == ["can't limit the network interface 'lo': it takes CAP_NET_ADMIN"] * 2


def test_attributes_are_read_as_they_are_written():
    written = netlink.attribute(1, "name") + netlink.nested(2, netlink.attribute(3, 7), netlink.attribute(4, b"abc"))
    (one, name), (two, inner) = netlink.attributes(written)
    assert (one, name, two) == (1, b"name\0", 2)
    assert list(netlink.attributes(inner)) == [(3, b"\7\0\0\0"), (4, b"abc")]
    assert list(netlink.attributes(b"\1\0\1\0junk")) == []
