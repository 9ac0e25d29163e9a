"""The network's process from outside: how it starts, what it may, when it ends."""

import os
import select
import socket
import subprocess
import sys
import time

import pytest
from card import GATEWAY, GUEST, MAC, check

from hostel.base.errors import NetworkError
from hostel.net import ethernet, icmp, ipv4, process
from hostel.net.settings import ROUTER_MAC, Guest, Settings
from hostel.spec.net import Forward


def end_of(pid):
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_it_serves_its_cards_and_ends_with_the_last():
    network = process.start(Settings(), [Guest(MAC, "one"), Guest(MAC[:5] + b"\1", "two")])
    first, second = (socket.socket(fileno=fd) for fd in network.fds)
    echo = ipv4.packet(ipv4.ICMP, GUEST, GATEWAY, icmp.message(icmp.ECHO, 0, 7, b"abc"))[0]
    first.setblocking(True)
    first.settimeout(20)
    first.send(ethernet.header(ROUTER_MAC, MAC, ethernet.IPV4) + echo)
    frame = first.recv(2000)
    check(frame)
    assert frame[46] == icmp.ECHO_REPLY and frame.endswith(b"abc")
    deadline = time.monotonic() + 20
    while not network.counters().get("rx_frames"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert network.counters()["ports"] == 2
    assert network.describe() == {"pid": network.pid, "forwards": [], **network.counters()}
    first.close()
    assert os.waitpid(network.pid, os.WNOHANG) == (0, 0)
    second.close()
    assert end_of(network.pid) == 0


def test_its_end_is_seen_at_the_card():
    network = process.start(Settings(), [Guest(MAC)])
    os.kill(network.pid, 9)
    assert select.select(network.fds, [], [], 20)[0]
    with socket.socket(fileno=network.fds[0]) as sock:
        assert sock.recv(1) == b""
    end_of(network.pid)


@pytest.mark.parametrize("kind, protocol", [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
def test_a_port_that_is_taken(kind, protocol):
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            taken.listen()
        port = taken.getsockname()[1]
        before = sorted(os.listdir("/proc/self/fd"))
        forwards = (Forward(protocol, "127.0.0.1", 0, 22), Forward(protocol, "127.0.0.1", port, 80))
        with pytest.raises(NetworkError, match=f"{protocol} port {port} of 127.0.0.1: another program has it"):
            process.start(Settings(), [Guest(MAC, forwards=forwards)])
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_address_of_somebody_else():
    with pytest.raises(NetworkError, match="isn't this host's"):
        process.start(Settings(), [Guest(MAC, forwards=(Forward("tcp", "192.0.2.250", 0, 80),))])


CONFINED = """
import os, socket, sys
sys.path.insert(0, "src")
from hostel.net import process
from hostel.net.settings import Settings
listener = socket.create_server(("127.0.0.1", 0))
process.confine(Settings(resolv_conf=sys.argv[1] + "/resolv.conf"))
def refused(what, *args):
    try: what(*args)
    except OSError: return
    raise AssertionError((what, args))
assert open(sys.argv[1] + "/resolv.conf").read() == "nameserver 127.0.0.1"
refused(open, "/proc/self/status"); refused(open, "src/hostel/__init__.py"); refused(open, sys.argv[1] + "/new", "w")
refused(os.listdir, sys.argv[1]); refused(os.fork); refused(os.unlink, sys.argv[1] + "/resolv.conf")
refused(socket.socket, socket.AF_UNIX); refused(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW); refused(os.kill, os.getppid(), 0)
with socket.socket() as sock:
    sock.connect(listener.getsockname())
    other = listener.accept()[0]
    sock.send(b"x"); assert other.recv(1) == b"x"
refused(socket.create_server, ("127.0.0.1", 0))
print("confined", flush=True)
os.execv("/bin/true", ["true"])
"""


def test_what_it_may(tmp_path):
    """Files of a folder, sockets of the internet; a breach ends it."""
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own are private: a router of root's is nobody
        if folder.stat().st_mode & 0o555 != 0o555:
            folder.chmod(folder.stat().st_mode | 0o555)
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1")
    done = subprocess.run([sys.executable, "-c", CONFINED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "confined\n", done.stderr
    assert done.returncode == -31  # SIGSYS
