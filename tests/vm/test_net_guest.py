"""Real guests on networks: their own router, named networks, forwarded ports, resets under load."""

import contextlib
import functools
import hashlib
import http.server
import os
import socket
import threading
import time
import urllib.request

import pytest

from hostel import VM
from hostel.base.errors import MachineError, NetworkError, UsageError
from hostel.client.network import Network
from hostel.net import networks

MB = 1 << 20


@pytest.fixture
def server(tmp_path):
    """Serves a folder on the host's loopback: (port, folder)."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd.server_address[1], folder
        httpd.shutdown()


def shell(vm, text, **more):
    return vm.exec(["sh", "-ec", text], timeout=120, check=True, **more).stdout


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def processes_of(vm):
    """The worker's children: routers, brokers."""
    return {int(pid) for pid in open(f"/proc/{vm.state.pid}/task/{vm.state.pid}/children").read().split()}


def wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_guest_reaches_the_host_and_is_reached(guests, server):
    port, folder = server
    data = os.urandom(8 * MB)
    (folder / "file").write_bytes(data)
    forward = free_port()
    with VM.run("micro", ports=[f"{forward}:80"], allow_host_loopback=True) as vm:
        shell(vm, "wait-network 60")
        text = shell(vm, f"wget -qO /tmp/file http://10.0.2.2:{port}/file; sha256sum < /tmp/file")
        assert text.split()[0] == hashlib.sha256(data).hexdigest()
        assert "10.0.2.15/24" in shell(vm, "ip addr show eth0")
        assert shell(vm, "cat /etc/resolv.conf; ip route").split()[:2] == ["nameserver", "10.0.2.3"]
        shell(vm, "mkdir /tmp/www; mv /tmp/file /tmp/www/; httpd -h /tmp/www")
        with urllib.request.urlopen(f"http://127.0.0.1:{forward}/file", timeout=60) as answer:
            assert answer.read() == data
        assert shell(vm, "cat /sys/class/net/eth0/address").strip() == vm.spec.nics[0].mac
        assert vm.exec(["ip", "link", "set", "eth0", "address", "02:11:22:33:44:55"], timeout=60).status != 0
        shell(vm, "ping -c 1 -W 20 10.0.2.2")
        card = vm.inspect()["statistics"]["cards"]["net0"]
        assert card["tx_frames"] > 50 and card["rx_bytes"] > 8 * MB and not card["broken"] and card["link"]
        wait(lambda: vm.inspect()["statistics"]["cards"]["net0"]["router"]["tcp_opened"] >= 2)
        children = processes_of(vm)
        assert children
        # Its router still serves it after a reset.
        vm.reset()
        shell(vm, "wait-network 60")
        assert len(shell(vm, f"wget -qO - http://10.0.2.2:{port}/file | wc -c").strip()) == len(str(8 * MB))
    wait(lambda: all(gone(pid) for pid in children))


def test_without_a_network(guests):
    with VM.run("micro", networks=["none"]) as vm:
        assert shell(vm, "ls /sys/class/net").split() == ["lo"]


def test_the_host_s_loopback_is_out_of_reach(guests, server):
    port, folder = server
    (folder / "file").write_text("secret")
    with VM.run("micro") as vm:
        shell(vm, "wait-network 60")
        done = vm.exec(["timeout", "20", "wget", "-O", "-", f"http://10.0.2.2:{port}/file"], timeout=60)
        assert done.status == 1 and "refused" in done.stderr


def test_two_on_a_named_network(guests):
    Network.create("lab")
    Network.create("other")
    data = os.urandom(4 * MB)
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(VM.run("micro", name=n, networks=["lab"], rm=True)) for n in ("one", "two"))
        far = stack.enter_context(VM.run("micro", name="far", networks=["other"], rm=True))
        for vm in (one, two, far):
            shell(vm, "wait-network 60")
        assert {card["name"] for card in Network.get("lab").cards()} == {"one", "two"}
        address = {card["name"]: card["address"] for card in Network.get("lab").cards()}
        shell(one, "ping -c 1 -W 20 two && ping -c 1 -W 20 two.lab")
        assert vm.exec(["ping", "-c", "1", "-W", "1", "two"], timeout=60).status != 0
        assert far.exec(["ping", "-c", "1", "-W", "1", address["two"]], timeout=60).status != 0
        far_address = Network.get("other").cards()[0]["address"]
        assert one.exec(["ping", "-c", "1", "-W", "1", far_address], timeout=60).status != 0
        shell(one, "cat > /tmp/data", input=data)
        # IPv6, by the address that the other has made itself
        six = "ip -6 addr show dev eth0 scope global | sed -n 's/.*inet6 \\(fd[^/]*\\).*/\\1/p' | head -1"
        wait(lambda: shell(one, six).strip() and shell(two, six).strip())
        wait(lambda: "tentative" not in shell(two, "ip -6 addr show dev eth0 scope global"))
        for number, to in enumerate(("two", shell(two, six).strip())):
            shell(two, f"tail -f /dev/null | nc -l -p 700{number} > /tmp/got{number} & sleep 0.2")
            shell(one, f"until nc {to} 700{number} < /tmp/data; do usleep 100000; done")
            digest = hashlib.sha256(data).hexdigest()
            wait(lambda number=number, digest=digest: shell(two, f"sha256sum < /tmp/got{number}").split()[0] == digest)
        with pytest.raises(MachineError, match="is used by one, two"):
            Network.get("lab").rm()
        for vm in (one, two, far):
            assert not vm.inspect()["statistics"]["cards"]["net0"]["broken"]
    for name in ("lab", "other"):
        wait(lambda name=name: not networks.find(name).running())
        Network.get(name).rm()


def test_resets_under_load(guests, server):
    port, folder = server
    (folder / "file").write_bytes(bytes(40 * MB))
    with VM.run("micro", cpus=2, allow_host_loopback=True) as vm:
        for _ in range(2):
            shell(vm, "wait-network 60")
            # 'exec' goes with the machine; the load is in the background
            shell(vm, f"(while :; do wget -qO /dev/null http://10.0.2.2:{port}/file; done) >/dev/null 2>&1 & "
                      "until [ $(cat /sys/class/net/eth0/statistics/rx_bytes) -gt 3000000 ]; do usleep 20000; done")
            vm.reset()
        shell(vm, "wait-network 60")
        assert shell(vm, f"wget -qO - http://10.0.2.2:{port}/file | wc -c").strip() == str(40 * MB)
        assert vm.inspect()["statistics"]["resets"] == 2
        log = shell(vm, "dmesg")
        assert "virtio_net" not in log or "error" not in log.lower()


def test_what_cannot_be_had(guests):
    for more, kind, text in (
        ({"networks": ["lab"]}, MachineError, "there is no network named 'lab'; 'hostel network create lab'"),
        ({"networks": ["tap:nosuch0", "none"]}, UsageError, "stands alone"),
        ({"networks": ["none"], "ports": ["80:80"]}, UsageError, "-p needs a card"),
        ({"networks": ["nat"] * 9}, UsageError, "up to 8"),
        ({"ports": ["1.2.3.4:8080:80"]}, (MachineError, NetworkError), "isn't this host's"),
        ({"networks": ["bridge:nosuch0"]}, MachineError, "no bridge nosuch0|permission denied"),
    ):
        with pytest.raises(kind, match=text):
            VM.run("micro", **more)
    assert VM.list() == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises((MachineError, NetworkError), match="another program has it"):
            VM.run("micro", ports=[f"{taken.getsockname()[1]}:80"])
    assert VM.list() == []


@pytest.mark.slow
def test_a_gigabyte_between_two_guests(guests):
    Network.create("lab")
    with VM.run("micro", name="one", networks=["lab"], rm=True) as one, \
            VM.run("micro", name="two", networks=["lab"], rm=True) as two:
        for vm in (one, two):
            shell(vm, "wait-network 60")
        shell(two, "tail -f /dev/null | nc -l -p 7000 | sha256sum > /tmp/sum &")
        shell(one, "dd if=/dev/urandom of=/tmp/block bs=1M count=32 2>/dev/null; "
                   "all() { for i in $(seq 32); do cat /tmp/block; done; }; "
                   "until all | nc two 7000; do usleep 100000; done")
        mine = one.exec(["sh", "-c", "for i in $(seq 32); do cat /tmp/block; done | sha256sum"], timeout=600).stdout
        wait(lambda: shell(two, "cat /tmp/sum").split() == mine.split(), 600)
