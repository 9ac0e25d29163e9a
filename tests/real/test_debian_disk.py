"""A whole Debian with a disk and a network, as people use it: packages, a web server, reboots, cloud-init, SSH, stress.

The image is the one of this machine's home, made with mmdebstrap where there is none (minutes).
"""

import contextlib
import hashlib
import http.client
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from kernel_log import complaints

from hostel import VM
from hostel.base.errors import HostelError
from hostel.images import store as images
from hostel.vm import launch, store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
HOSTEL = [sys.executable, "-P", "-m", "hostel.cli.main"]
STRESS = int(os.environ.get("DEBIAN_STRESS", "120"))  # seconds of each


@pytest.fixture(scope="session")
def image():
    try:
        return images.ensure("debian")
    except HostelError as error:
        pytest.skip(f"no Debian disk: {error}")


@pytest.fixture
def debian(image, home):
    """``debian(name, …)``: a running Debian in a home of its own."""
    home.mkdir()
    (home / "images").symlink_to(image.folder.parent)

    def run(name, **options):
        vm = VM.run("debian", name=name, detach=True, memory="1G", **options)
        vm.wait_agent(600)
        return vm

    yield run
    for folder in store.folders():
        launch.kill(folder)


def sh(vm, text, timeout=1800):
    result = vm.exec(["sh", "-c", text], timeout=timeout)
    assert result.status == 0, f"{text}: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result.stdout


def settled(vm):
    """Return once its start jobs are done; nothing may have failed."""
    vm.exec(["systemctl", "is-system-running", "--wait"], timeout=900)
    assert "0 loaded units" in sh(vm, "systemctl --failed")


def rebooted(vm):
    """Reboot from within, and return when it takes commands again."""
    before = vm.inspect()["statistics"]["resets"]
    with contextlib.suppress(HostelError):
        vm.exec(["systemctl", "reboot"], timeout=120)
    limit = time.monotonic() + 900
    while vm.inspect()["statistics"]["resets"] == before:
        assert time.monotonic() < limit, "it doesn't reboot"
        time.sleep(0.2)
    vm.wait_agent(600)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def page(port, patience=300):
    limit = time.monotonic() + patience
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < limit, "nobody serves the page"
            time.sleep(1)
        finally:
            connection.close()


def test_install_packages_serve_a_page_reboot_and_everything_is_still_there(debian):
    port = free_port()
    vm = debian("web", ports=[f"127.0.0.1:{port}:80"])
    settled(vm)
    sh(vm, "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install nginx-light")
    sh(vm, "echo 'a page of ours' > /var/www/html/index.html; sync")
    assert page(port) == "a page of ours\n"
    machine = sh(vm, "cat /etc/machine-id")
    assert complaints(vm) == []
    rebooted(vm)
    assert page(port) == "a page of ours\n"
    assert sh(vm, "cat /etc/machine-id") == machine and sh(vm, "hostname").strip() == "web"
    settled(vm)
    assert complaints(vm) == []
    vm.stop(timeout=120)
    assert vm.state.reason == "poweroff"
    vm.start()
    assert page(port) == "a page of ours\n"
    assert complaints(vm) == []


def test_what_a_machine_is(debian, image):
    one, two = debian("one"), debian("two", disk_size="12G")
    ids = {sh(vm, "cat /etc/machine-id") for vm in (one, two)}
    keys = {vm.exec(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout for vm in (one, two) if settled(vm) is None}
    assert len(ids) == len(keys) == 2 and "" not in keys
    assert int(sh(two, "df --output=size -BG / | tail -1").strip().rstrip("G")) >= 11
    assert abs(float(sh(one, "date +%s.%N")) - time.time()) < 60  # the clock is the host's
    assert sh(one, "uname -r").strip() == image.kernel_version
    assert "org.hostel.agent.0" in sh(one, "ls /dev/virtio-ports")


def test_the_kernel_that_boots_is_the_disks(debian):
    vm = debian("kernel")
    sh(vm, "cp /boot/vmlinuz-$(uname -r) /boot/vmlinuz-other && ln -sf boot/vmlinuz-other /vmlinuz"
           " && sed -i 's/$/ chosen=yes/' /etc/kernel/cmdline && rm /boot/vmlinuz-$(uname -r)")  # fmt: skip
    rebooted(vm)
    assert "chosen=yes" in sh(vm, "cat /proc/cmdline")


def test_cloud_init(debian, tmp_path):
    (tmp_path / "user-data").write_text(
        "#cloud-config\nhostname: cloudy\ntimezone: Asia/Seoul\n"
        "users: [default, {name: ann, groups: [adm], sudo: 'ALL=(ALL) NOPASSWD:ALL',"
        " ssh_authorized_keys: [ssh-rsa A]}]\n"
        "write_files: [{path: /etc/x, content: 'it''s', permissions: '0600'}]\n"
        "packages: [tree]\nruncmd: ['tree --version > /root/ran', [touch, '/root/a b']]\n"
    )
    vm = debian("cloud", cloud_init=str(tmp_path / "user-data"))
    settled(vm)
    assert sh(vm, "hostname; cat /etc/x; stat -c %a /etc/x; date +%Z").split() == ["cloudy", "it's600", "KST"]
    assert sh(vm, "id -nG ann; cat ~ann/.ssh/authorized_keys").split() == ["ann", "adm", "ssh-rsa", "A"]
    assert "tree v" in sh(vm, "cat /root/ran") and sh(vm, "ls '/root/a b'")
    assert sh(vm, "sudo -u ann sudo id -u").strip() == "0"
    log = sh(vm, "cat /var/log/hostel-late.log")
    rebooted(vm)
    settled(vm)
    assert sh(vm, "cat /var/log/hostel-late.log") == log  # once


def test_files_both_ways(debian, tmp_path):
    vm = debian("files")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "big").write_bytes(random.Random(1).randbytes(100_000_000))
    with open(tree / "sparse", "wb") as file:
        file.truncate(10 << 30)
        file.seek(5 << 30)
        file.write(b"middle")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o4755)
    os.symlink("run", tree / "link")
    os.utime(tree / "run", ns=(10**18 + 7, 10**18 + 7))
    begun = time.monotonic()
    vm.copy_in(str(tree), "/root")
    took_in = time.monotonic() - begun
    assert sh(vm, "sha256sum /root/tree/big").split()[0] == hashlib.sha256((tree / "big").read_bytes()).hexdigest()
    assert sh(vm, "stat -c '%a %Y %N' /root/tree/run /root/tree/link; du -m /root/tree/sparse").split() == [
        "4755", str(10**9), "'/root/tree/run'", "777", str(int(os.lstat(tree / "link").st_mtime)),
        "'/root/tree/link'", "->", "'run'", "1", "/root/tree/sparse",
    ]  # fmt: skip
    begun = time.monotonic()
    vm.copy_out("/root/tree", str(tmp_path / "back"))
    print(f"100 MB: {took_in:.1f} s in, {time.monotonic() - begun:.1f} s out")
    subprocess.run(["diff", "-r", tree, tmp_path / "back"], check=True)
    assert (tmp_path / "back/sparse").stat().st_blocks < 1000
    vm.exec(["rm", "-rf", "/root/tree"], check=True)


@pytest.mark.skipif(not shutil.which("ssh"), reason="no ssh here")
def test_ssh_with_and_without_a_network(debian):
    for name, options in (("with", {}), ("without", {"networks": ["none"]})):
        debian(name, **options)
        done = subprocess.run([*HOSTEL, "ssh", name, "--", "sh", "-c", "cat; id -un; exit 7"], input="x y\n", text=True,
                              capture_output=True, timeout=600)  # fmt: skip
        assert (done.returncode, done.stdout) == (7, "x y\nroot\n"), done.stderr


def test_exec_passes_statuses_and_signals(debian):
    vm = debian("exec")
    assert vm.exec(["sh", "-c", "exit 5"]).status == 5
    assert vm.exec(["sh", "-c", "kill -9 $$"]).status == 137
    data = random.Random(2).randbytes(50_000_000)
    assert vm.exec(["cat"], input=data, text=False, timeout=600).stdout == data


def test_stress_without_a_word_in_the_log(debian):
    """stress-ng, fio with verification and iperf3, each for STRESS seconds."""
    port = free_port()
    vm = debian("stress", cpus=2, ports=[f"127.0.0.1:{port}:5201"])
    sh(vm, "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install stress-ng fio iperf3")
    sh(vm, f"stress-ng --cpu 2 --vm 1 --vm-bytes 200M --hdd 1 --hdd-bytes 100M --fork 2 --verify -t {STRESS}", 3600)
    said = sh(vm, "fio --name=v --filename=/root/fio --size=300M --rw=randrw --bs=4k --ioengine=libaio --iodepth=16"
                  f" --direct=1 --verify=crc32c --verify_fatal=1 --time_based --runtime={STRESS}", 3600)  # fmt: skip
    print(*re.findall(r"(?:read|write): IOPS=.*", said), sep="\n")
    if shutil.which("iperf3"):
        vm.exec(["iperf3", "-s", "-D"], check=True)
        for direction in ([], ["-R"]):
            command = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-t", str(STRESS // 2), *direction]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=STRESS + 300)
            print(*re.findall(r".*(?:sender|receiver)", done.stdout), sep="\n")
    assert complaints(vm) == []
    vm.stop(timeout=120)
    assert vm.state.reason == "poweroff"
    disk = store.find("stress").path / "disk.qcow2"
    subprocess.run([*HOSTEL, "disk", "check", disk], check=True, capture_output=True)


def test_a_copys_identity(debian):
    """``agent identity`` where systemd has the network: it asks for a lease when the link comes up."""
    vm = debian("first", networks=["nat,spoof=on"])
    settled(vm)
    sh(vm, "until ip -4 addr show scope global | grep -q 10.0.2.15; do sleep 0.1; done")
    said, statuses = [], []
    nothing = {"stdin": None, "on_stdout": lambda data: None, "on_stderr": said.append}
    waiting = threading.Thread(target=lambda: statuses.append(vm.attach(["sleep", "1000"], **nothing)))
    waiting.start()
    sh(vm, "until pidof sleep; do sleep 0.1; done")
    identity = [
        "stop=all", "hostname=second", f"entropy={os.urandom(64).hex()}", f"time={time.time() + 100000:.9f}",
        f"machine-id={'0123' * 8}", f"mac={vm.spec.nics[0].mac}:02:00:5e:00:00:0a",
    ]  # fmt: skip
    assert vm.attach(["agent", "identity", *identity], itself=True, timeout=60, **nothing) == 0 and not said
    waiting.join(60)
    assert statuses == [137]
    assert sh(vm, "hostname; cat /etc/hostname; hostname -i; cat /etc/machine-id").split() == [
        "second", "second", "127.0.1.1", "0123" * 8
    ]  # fmt: skip
    assert int(sh(vm, "date +%s")) > time.time() + 90000
    # 10.0.2.254: the router's for a MAC that isn't the card's own
    sh(vm, "until ip -4 addr show scope global | grep -q 10.0.2.254; do sleep 0.1; done; ping -c 1 -W 20 10.0.2.2")
    assert "10.0.2.15" not in sh(vm, "ip -4 addr")
    sh(vm, "until ip -6 addr show scope link | grep -q fe80::5eff:fe00:a; do sleep 0.1; done")
    assert complaints(vm) == []
