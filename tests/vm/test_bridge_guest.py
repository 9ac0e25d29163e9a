"""Networks of the kernel's, by root: bridges, taps, nftables; and that nothing of them stays."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

from hostel import VM
from hostel.base.errors import HostelError
from hostel.client.network import Network
from hostel.net import bridge, networks

pytest.importorskip("pyroute2")
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="bridges and taps take root and /dev/net/tun"
)


def shell(vm, text):
    return vm.exec(["sh", "-ec", text], timeout=120, check=True).stdout


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tables():
    from pyroute2.nftables.main import NFTables

    with NFTables(nfgen_family=1) as all_:
        return {table.get_attr("NFTA_TABLE_NAME") for table in all_.get_tables()}


@pytest.fixture
def lab(guests):
    network = Network.create("lab", driver="bridge")
    name = bridge.name_of(networks.find("lab").path)
    yield network, name
    bridge.remove(name)


@pytest.fixture
def outside():
    """A network namespace that the host reaches by 198.51.100.2 and that knows no way to guests; its server's port."""
    space, link = f"hostel-{uuid.uuid4().hex[:6]}", f"ht{uuid.uuid4().hex[:6]}"
    with contextlib.ExitStack() as stack:
        ip("netns", "add", space)
        stack.callback(ip, "netns", "del", space)
        ip("link", "add", link, "type", "veth", "peer", "name", "out", "netns", space)
        ip("addr", "add", "198.51.100.1/30", "dev", link)
        ip("link", "set", link, "up")
        for words in (["addr", "add", "198.51.100.2/30", "dev", "out"], ["link", "set", "out", "up"]):
            ip("-n", space, *words)
        server = subprocess.Popen(
            ["ip", "netns", "exec", space, sys.executable, "-m", "http.server", "8000", "--bind", "198.51.100.2",
             "-d", "/etc"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(server.wait)
        stack.callback(server.kill)
        yield 8000


def test_a_bridge_and_its_end(lab, outside):
    network, name = lab
    with VM.run("micro", name="one", networks=["lab"], rm=True) as one, \
            VM.run("micro", name="two", networks=["lab,queues=2"], cpus=2, rm=True) as two:
        for vm in (one, two):
            shell(vm, "wait-network 60")
        assert bridge.exists(name) and name in tables()
        assert {card["name"] for card in network.cards()} == {"one", "two"}
        shell(one, "ping -c 1 -W 20 two && ping -c 1 -W 20 two.lab")
        shell(one, "dd if=/dev/urandom of=/tmp/d bs=1M count=8 2>/dev/null")
        shell(two, "tail -f /dev/null | nc -l -p 7000 | sha256sum > /tmp/sum &")
        shell(one, "until nc two 7000 < /tmp/d; do usleep 100000; done")
        wait(lambda: shell(two, "cat /tmp/sum").split()[:1] == shell(one, "sha256sum < /tmp/d").split()[:1])
        # Outwards by the kernel's NAT, the way that nobody outside knows back.
        # (no -T: busybox's wget crashes of it)
        fetch = ["timeout", "10", "wget", "-qO", "-", f"http://198.51.100.2:{outside}/passwd"]
        wait(lambda: two.exec(fetch).stdout.startswith("root"))
        # The host itself doesn't answer.
        gateway = shell(one, "ip route").split("via ")[1].split()[0]
        assert one.exec(["ping", "-c", "1", "-W", "1", gateway], timeout=60).status != 0
        assert two.inspect()["statistics"]["cards"]["net0"]["spoofed"] == 0
        taps = os.listdir(f"/sys/class/net/{name}/brif")
        assert len(taps) == 3
    wait(lambda: not networks.find("lab").running())
    assert not bridge.exists(name) and name not in tables()
    assert not any(os.path.exists(f"/sys/class/net/{tap}") for tap in taps)


def test_what_a_killed_process_leaves_is_swept(lab):
    network, name = lab
    with VM.run("micro", networks=["lab"]) as vm:
        shell(vm, "wait-network 60")
        pid = network.inspect()["pid"]
        keeper = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
        os.kill(vm.state.pid, signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
        wait(lambda: not networks.find("lab").running())
        assert bridge.exists(name) and name in tables()
        Network.list()
        assert not bridge.exists(name) and name not in tables()


def test_a_bridge_and_a_tap_of_ones_own(guests):
    name, tap = f"hb{uuid.uuid4().hex[:6]}", f"ht{uuid.uuid4().hex[:6]}"
    with contextlib.ExitStack() as stack:
        ip("link", "add", name, "type", "bridge")
        stack.callback(ip, "link", "del", name)
        ip("addr", "add", "198.18.5.1/28", "dev", name)
        ip("link", "set", name, "up")
        ip("tuntap", "add", tap, "mode", "tap")
        stack.callback(ip, "link", "del", tap)
        ip("link", "set", tap, "master", name)
        address = "ip link set eth0 up; ip addr add 198.18.5.1{}/28 dev eth0; ping -c 1 -W 20 198.18.5.1"
        load = "until ip link show eth0 2>/dev/null; do usleep 50000; done;"
        own = {"append": "hostel.dhcp=no"}
        with VM.run("micro", networks=[f"bridge:{name}"], **own) as one, \
                VM.run("micro", networks=[f"tap:{tap}"], **own) as two:
            for number, vm in enumerate((one, two)):
                shell(vm, load + address.format(number))
            shell(one, "ping -c 1 -W 20 198.18.5.11")
            with pytest.raises(HostelError, match="another program has it"):
                VM.run("micro", networks=[f"tap:{tap}"])
        assert os.listdir(f"/sys/class/net/{name}/brif") == [tap]
