"""Containers' networks: hostel's router and switch behind a tap, the kernel's bridge behind a veth pair, names,
forwarded ports; with VMs on the same networks. And the same image in a VM."""

import importlib.util
import os
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from hostel.base.errors import HostelError, UsageError
from hostel.client.container import Container
from hostel.client.network import Network
from hostel.client.vm import VM
from hostel.containers import engine

SERVER = ("sh", "-c", "echo from $(hostname) > /srv/index.html; exec httpd -f -p 80 -h /srv")


def run(image, *command, **options):
    return Container.run(image, command=command or ("sleep", "1000"), detach=True, **options)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def fetch(url):
    for _ in range(100):  # its server may not listen yet
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nothing at {url}")


def ask(machine, name):
    """What the web server of that name says, from inside of a container or VM."""
    script = f"for i in $(seq 100); do wget -q -O - http://{name}/ && exit; sleep 0.1; done"
    return machine.exec(["sh", "-c", script]).stdout


def gone(pid):
    return not engine.start_time(pid) or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_nat_has_an_address_a_way_out_and_forwarded_ports(box, tmp_path):
    port = free_port()
    container = run(box, *SERVER, name="web", ports=[f"{port}:80"])
    assert container.state.addresses == ["10.0.2.15"]
    assert fetch(f"http://127.0.0.1:{port}/") == "from web\n"
    told = container.exec(["sh", "-c", "ip -4 addr show eth0; ip route; cat /etc/resolv.conf /etc/hosts"]).stdout
    assert "inet 10.0.2.15/24" in told and "default via 10.0.2.2 dev eth0" in told
    assert "nameserver 10.0.2.3" in told and "10.0.2.15\tweb" in told
    assert container.exec(["ping", "-c", "1", "-W", "5", "10.0.2.2"]).status == 0
    assert container.spec.nics[0].mac in container.exec(["cat", "/sys/class/net/eth0/address"]).stdout
    with pytest.raises(HostelError, match=f"can't listen on tcp port {port}"):
        run(box, name="other", ports=[f"{port}:80"])
    assert [other.name for other in Container.list()] == ["web"]
    router = container.state.router
    assert router and not gone(router)
    container.stop(timeout=0)
    for _ in range(200):
        if gone(router):
            break
        time.sleep(0.02)
    assert gone(router)
    container.start()  # the port is free again
    assert fetch(f"http://127.0.0.1:{port}/") == "from web\n"


def test_the_host_s_own_services_are_out_of_reach_unless_they_are_given(box):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.sendall(b"the host's")
                connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        ask_host = ["sh", "-c", f"nc -w 3 10.0.2.2 {port} < /dev/null"]
        assert run(box).exec(ask_host).stdout == ""
        assert run(box, allow_host_loopback=True).exec(ask_host).stdout == "the host's"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_none_is_no_network(box):
    container = run(box, networks=["none"])
    assert container.exec(["ls", "/sys/class/net"]).stdout == "lo\n"
    assert container.exec(["ping", "-c", "1", "127.0.0.1"]).status == 0
    with pytest.raises(UsageError, match="-p needs a card"):
        run(box, networks=["none"], ports=["80:80"])


def test_containers_and_a_vm_on_one_network_find_each_other_by_name(box_and_micro):
    Network.create("lab")
    port = free_port()
    web = run(box_and_micro, *SERVER, name="web", networks=["lab"], ports=[f"{port}:80"])
    other = run(box_and_micro, name="other", networks=["lab"])
    outside = run(box_and_micro, name="outside")
    with VM.run(name="guest", networks=["lab"], detach=False) as vm:
        assert ask(other, "web") == "from web\n"
        assert fetch(f"http://127.0.0.1:{port}/") == "from web\n"
        assert ask(vm, "web") == ask(vm, "web.lab") == "from web\n"
        assert other.exec(["ping", "-c", "1", "-W", "5", "guest"]).status == 0
        assert outside.exec(["ping", "-c", "1", "-W", "1", web.state.addresses[0]]).status != 0
        assert {card["name"] for card in Network.get("lab").cards()} == {"web", "other", "guest"}
    web.stop(timeout=0)
    assert "web" not in {card["name"] for card in Network.get("lab").cards()}
    os.kill(other.state.pid, 9)
    for _ in range(200):
        if not Network.get("lab").cards():
            break
        time.sleep(0.02)
    assert not Network.get("lab").cards()


def test_an_internal_network_has_no_way_out(box):
    Network.create("inside", internal=True)
    one, two = run(box, *SERVER, name="one", networks=["inside"]), run(box, networks=["inside"])
    assert ask(two, "one") == "from one\n"
    assert "default" not in one.exec(["ip", "route"]).stdout
    with pytest.raises(HostelError, match="is internal"):
        run(box, networks=["inside"], ports=["8080:80"])


@pytest.mark.skipif(importlib.util.find_spec("pyroute2") is None, reason="bridges need pyroute2")
def test_a_bridge_of_the_kernel_s(box):
    before = set(os.listdir("/sys/class/net"))
    Network.create("br", driver="bridge")
    one = run(box, *SERVER, name="one", networks=["br"])
    two = run(box, name="two", networks=["br", "nat"])
    assert ask(two, "one") == "from one\n"
    assert fetch(f"http://{one.state.addresses[0]}/") == "from one\n"
    assert len(two.state.addresses) == 2 and "eth1" in two.exec(["ls", "/sys/class/net"]).stdout
    one.rm(force=True)
    two.rm(force=True)
    for _ in range(300):
        if set(os.listdir("/sys/class/net")) == before:
            break
        time.sleep(0.05)
    assert set(os.listdir("/sys/class/net")) == before
    assert "hostel" not in subprocess.run(["ip", "-br", "link"], capture_output=True, text=True).stdout


def test_an_oci_image_in_a_vm(box_and_micro, tmp_path):
    from hostel.client.oci_vm import OciImage

    (tmp_path / "file").write_text("shared")
    tmp_path.chmod(0o755)
    image = OciImage(box_and_micro, command=["sh", "-c", "id -u > /tmp/id; echo $IMAGE >> /tmp/id; sleep 1000"],
                     user="user", workdir="/srv", env=["A=b"], hostname="there")  # fmt: skip
    vm = VM.run(name="root", oci=image, command=image.command, detach=True, shares=[f"{tmp_path}:/srv/shared"])
    script = "until [ $(wc -l < /tmp/id) = 2 ]; do sleep 0.05; done; "
    script += "cat /tmp/id; pwd; hostname; echo $A; cat /srv/shared/file; uname -r; grep ' / ' /proc/mounts"
    told = vm.exec(["sh", "-c", script])
    lines = told.stdout.splitlines()
    assert lines[:4] == ["1000", "yes", "/srv", "there"] and lines[4] == "b"
    assert lines[5].startswith("shared") and os.uname().release not in told.stdout and "ext4" in lines[-1]
    vm.copy_in(str(tmp_path / "file"), "/tmp/in")
    told = vm.explain()
    assert told["vcpus"][0]["tlb"]["misses"] > 0 and told["translations"]["translated_blocks"] > 0
    assert told["memory"]["touched_and_resident"] > 1 << 20
    vm.stop()
    vm.start()
    assert vm.exec(["cat", "/tmp/in"]).stdout == "shared"
    vm.rm(force=True)


def test_a_fork_of_an_oci_image_s_vm_has_an_address_of_its_own(box_and_micro):
    from hostel.client.oci_vm import OciImage

    Network.create("lab")
    image = OciImage(box_and_micro, command=["sleep", "1000"])
    with VM.run(name="first", oci=image, networks=["lab"]) as vm:
        look = "until ip -4 addr show eth0 | grep 'inet '; do sleep 0.1; done"
        before = vm.exec(["sh", "-c", look]).stdout.split()[1]
        with vm.fork() as copies:
            script = f"until ip -4 addr show eth0 | grep 'inet ' | grep -v {before}; do sleep 0.1; done; hostname"
            after = copies[0].exec(["sh", "-c", script], timeout=60).stdout.split()
            assert after[1] != before and after[-1] == copies[0].name


def test_the_hosts_own_network(box, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        container = run(box, networks=["host"], name="near")
        assert os.stat(f"/proc/{container.state.init}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
        assert container.state.router == 0 and container.state.addresses == []
        heard = []

        def hear():
            with listener.accept()[0] as sock:
                heard.append(sock.recv(100))

        thread = threading.Thread(target=hear, daemon=True)
        thread.start()
        told = container.exec(["sh", "-c", f"echo hello | nc 127.0.0.1 {port}; ls /sys/class/net; hostname"])
        thread.join(20)
        assert heard == [b"hello\n"]
        assert told.stdout.split() == [*sorted(os.listdir("/sys/class/net")), "near"]
        assert container.exec(["touch", "/sys/x"]).status == 1
    resolvers = [line for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")]
    assert container.exec(["cat", "/etc/resolv.conf"]).stdout.splitlines() == resolvers[:3]
    told = {row["namespace"]: row for row in container.explain()["namespaces"]}
    assert not told["net"]["own"] and told["uts"]["own"]
    container.rm(force=True)


@pytest.mark.parametrize("more", [
    {"ports": ["8080:80"]}, {"networks": ["host", "nat"]}, {"mac": "02:00:00:00:00:09"},
    {"sysctls": ["net.core.somaxconn=9"]},
])  # fmt: skip
def test_what_doesn_t_go_with_the_hosts_network(box, more):
    with pytest.raises(UsageError, match="--network host"):
        run(box, **{"networks": ["host"], **more})
    with pytest.raises(UsageError, match="for containers alone"):
        VM.run("micro", networks=["host"])
