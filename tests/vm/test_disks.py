"""Disks in real guests: what was written and synced is there after reboots and kills; formats, locks, no room."""

import random
import re
import resource
import shutil
import subprocess
import time

import pytest

from hostel import VM
from hostel.base.errors import BlockError, MachineError, UsageError
from hostel.block.qcow2.create import Options
from hostel.block.qcow2.create import create as create_qcow2

MB = 1 << 20


def sh(vm, script, timeout=120):
    return vm.exec(["sh", "-ec", script], check=True, timeout=timeout).stdout


def image(path, kind="raw", size=256 * MB):
    if kind == "raw":
        with open(path, "wb") as file:
            file.truncate(size)
    else:
        create_qcow2(path, size, Options())
    return f"{path},format={kind}"


def again(vm):
    """After a reset, once it takes commands."""
    greetings = vm.inspect()["statistics"]["exec"]["greetings"]
    vm.reset()
    deadline = time.monotonic() + 60
    while vm.inspect()["statistics"]["exec"]["greetings"] == greetings:
        assert time.monotonic() < deadline
        time.sleep(0.05)


FILL = """
mkdir -p /a; mke2fs -F /dev/vd{0} 2>/dev/null >&2; mount -t ext4 /dev/vd{0} /a
dd if=/dev/urandom of=/a/data bs=64k count=320 2>/dev/null; sync; md5sum < /a/data
"""
CHECK = "mkdir -p /a; mount -t ext4 -o ro /dev/vd{0} /a; md5sum < /a/data; umount /a"


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_what_was_synced_is_there_after_a_reset_and_a_kill(guests, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("HOSTEL_AIO", engine)
    disks = [image(tmp_path / "raw", "raw") + ",serial=first", image(tmp_path / "qcow2", "qcow2")]
    with VM.run("micro", name="one", cpus=2, disks=disks) as vm:
        assert sh(vm, "cat /sys/block/vda/serial; ls /sys/block/vda/mq | wc -l").split() == ["first2"]
        sums = [sh(vm, FILL.format(letter) + "umount /a") for letter in "ab"]
        again(vm)
        assert [sh(vm, CHECK.format(letter)) for letter in "ab"] == sums
        assert "error" not in sh(vm, "dmesg").lower().replace("errors=", "")
        cards = vm.inspect()["statistics"]["cards"]
        assert {cards[name]["engine"] for name in ("disk0", "disk1")} == {engine}
        assert cards["disk0"]["in_python"] == 0 and cards["disk1"]["in_python"] > 0
        vm.kill()
        vm.start()
        assert [sh(vm, CHECK.format(letter)) for letter in "ab"] == sums


def test_no_room_pauses_and_nothing_is_lost(guests, tmp_path):
    path = tmp_path / "raw"
    with VM.run("micro", disks=[image(path)]) as vm:
        pid = vm.state.pid
        vm.wait_agent(60)
        old = resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 * MB, -1))
        sh(vm, "yes 0123456789abcde | head -c 100000000 > /tmp/data; (dd if=/tmp/data of=/dev/vda bs=64k; sync) 2>&1 &")
        deadline = time.monotonic() + 60
        while vm.state.state != "paused":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert f"no room for disk {path}" in vm.state.reason
        with pytest.raises(Exception, match="no room"):
            vm.resume()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, old)
        vm.resume()
        assert vm.state.state == "running" and vm.state.reason == ""
        sh(vm, "wait; while pidof dd; do sleep 0.1; done; sync; cmp -n 100000000 /tmp/data /dev/vda")
        assert "I/O error" not in sh(vm, "dmesg")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_grows_under_its_guest(guests, tmp_path, kind):
    with VM.run("micro", disks=[image(tmp_path / "disk", kind)]) as vm:
        vm.wait_agent(60)
        for number, size, word in ((1, "1G", "no disk 1"), (0, "1M", "grows"), (0, 1 << 30 | 1, "whole sectors")):
            with pytest.raises(MachineError, match=word):
                vm.grow_disk(number, size)
        vm.grow_disk(0, "300M")
        sh(vm, "until [ $(cat /sys/block/vda/size) = 614400 ]; do sleep 0.1; done")
        sh(vm, "echo there | dd of=/dev/vda bs=1M seek=299 2>/dev/null; sync")
        again(vm)
        assert sh(vm, "dd if=/dev/vda bs=1M skip=299 2>/dev/null | head -n 1") == "there\n"


def test_an_image_is_open_once(guests, tmp_path):
    disk = image(tmp_path / "raw")
    with VM.run("micro", disks=[disk]):
        with pytest.raises(BlockError, match="in use"):
            VM.run("micro", disks=[disk])
        assert len(VM.list()) == 1


def test_the_format_is_found_once_and_never_again(guests, tmp_path):
    image(tmp_path / "disk")
    with VM.run("micro", name="one", disks=[str(tmp_path / "disk")]) as vm:
        assert vm.spec.disks[0].format == "raw"
        vm.kill()
        with open(tmp_path / "disk", "r+b") as file:  # as its guest may have done
            file.write(b"QFI\xfb\0\0\0\3" + bytes(496))
        vm.start()
        assert sh(vm, "head -c 4 /dev/vda") == "QFI\ufffd"
        vm.kill()


@pytest.mark.parametrize("text, word", [
    ("/nowhere/disk", "no such file"), ("/dev/null", "neither a file"), (",x", "no path"),
    ("{}/bad,format=qcow2", "qcow2"),
])  # fmt: skip
def test_what_is_no_disk_is_said(guests, tmp_path, text, word):
    (tmp_path / "bad").write_bytes(bytes(1000))
    with pytest.raises((BlockError, UsageError), match=word):
        VM.run("micro", disks=[text.format(tmp_path)])
    assert VM.list() == []


WRITER = """
mkdir -p /a; mount -t ext4 /dev/vda /a; n=$(cat /a/n 2>/dev/null || echo 0)
while true; do
  n=$((n + 1)); dd if=/dev/urandom of=/a/f$((n % 40)) bs=37k count=$((n % 50 + 1)) 2>/dev/null
  (cd /a; md5sum f$((n % 40)) > s$((n % 40)); echo $n > n); sync; echo synced $n
  [ $((n % 7)) = 0 ] && rm -f /a/f$(((n + 20) % 40)) /a/s$(((n + 20) % 40)) && fstrim /a 2>/dev/null
done
"""


SYNCED = re.compile(rb"synced (\d+)\r?\n")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not shutil.which("qemu-img") or not shutil.which("e2fsck"), reason="needs qemu-img and e2fsck")
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_killed_at_any_moment_of_writing(guests, tmp_path, cache):
    """25 times each: SIGKILL the worker, then the image is clean or leaks at most, ext4's journal makes the file
    system whole, and what the guest had synced is there."""
    rng = random.Random(1)
    path, raw = tmp_path / "disk", tmp_path / "plain"
    with open(raw, "wb") as file:
        file.truncate(512 * MB)
    subprocess.run(["mkfs.ext4", "-q", raw], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    last = 0
    for _ in range(25):
        vm = VM.run("micro", name="one", detach=True, disks=[f"{path},format=qcow2,cache={cache}"])
        vm.wait_agent(60)
        vm.exec(["sh", "-c", f"({WRITER}) > /dev/console 2>&1 &"])
        begun = time.monotonic()
        while not SYNCED.search(vm.logs()):
            assert time.monotonic() - begun < 60
            time.sleep(0.02)
        time.sleep(rng.random() * 3)
        subprocess.run(["kill", "-9", str(vm.state.pid)], check=True)
        while vm.state.state != "died":
            time.sleep(0.01)
        synced = int(SYNCED.findall(vm.logs())[-1])
        vm.rm()
        check = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True)
        assert check.returncode in (0, 3), check.stdout + check.stderr   # 3: leaked clusters
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
        fsck = subprocess.run(["e2fsck", "-fy", raw], capture_output=True, text=True)
        assert fsck.returncode <= 1, fsck.stdout
        dump = subprocess.run(["debugfs", "-R", "cat n", raw], capture_output=True, text=True)
        assert int(dump.stdout) >= synced >= last
        last = synced
        with VM.run("micro", disks=[f"{path},format=qcow2"]) as reader:
            sh(reader, "mkdir /a; mount -t ext4 /dev/vda /a; cd /a; for s in s*; do f=f${s#s}; "
                       f"[ $f = f{(last + 1) % 40} ] || [ $f = f{(last + 2) % 40} ] || [ ! -e $f ] || "
                       "md5sum -c $s || exit 1; done")  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_gigabyte_across_reboots(guests, tmp_path, kind):
    script = """mkdir -p /a; mke2fs -F /dev/vda 2>/dev/null >&2; mount -t ext4 /dev/vda /a
        n=0; while [ $n -lt 64 ]; do dd if=/dev/urandom of=/a/f$n bs=1M count=16 2>/dev/null; n=$((n + 1)); done
        cat /a/f* | md5sum; sync; umount /a"""
    with VM.run("micro", cpus=2, memory="256M", disks=[image(tmp_path / "disk", kind, 1400 * MB)]) as vm:
        expected = sh(vm, script, 600)
        for _ in range(2):
            again(vm)
            assert sh(vm, "mkdir /a; mount -t ext4 /dev/vda /a; cat /a/f* | md5sum; umount /a", 600) == expected
    if kind == "qcow2" and shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", tmp_path / "disk"], check=True)
