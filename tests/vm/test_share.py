"""Folders of the host's in real guests."""

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import time

import pytest

from hostel import VM
from hostel.base.errors import HostelError


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "shared"
    path.mkdir()
    return path


def sh(vm, script, **options):
    return vm.exec(["sh", "-c", script], check=True, timeout=120, **options).stdout


def test_both_sides_see_the_same(guests, folder, tmp_path):
    data = os.urandom(3_000_000)
    (folder / "data").write_bytes(data)
    (folder / "sub").mkdir()
    (folder / "sub" / "tool").write_text("#!/bin/sh\necho ran\n")
    (folder / "sub" / "tool").chmod(0o755)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "kept").write_text("kept")
    shares = [f"{folder}:/work/in", f"{tmp_path / 'second'}:/second:ro"]
    with VM.run("micro", shares=shares) as vm:
        assert sh(vm, "sha256sum /work/in/data").split()[0] == hashlib.sha256(data).hexdigest()
        assert sh(vm, "/work/in/sub/tool") == "ran\n"
        sh(vm, """
            cd /work/in && mkdir new && cp data new/copy && ln new/copy hard && ln -s data soft && chmod 600 hard
            tar cf all.tar sub data && mkdir out && tar xf all.tar -C out && cmp data out/data && mv out moved
            echo more >> sub/tool && rm data && truncate -s 1000000 hole && chown 5:6 hard
        """)
        assert (folder / "new" / "copy").read_bytes() == (folder / "moved" / "data").read_bytes() == data
        assert os.readlink(folder / "soft") == "data" and not (folder / "data").exists()
        assert (folder / "hard").stat().st_nlink == 2 and stat.S_IMODE((folder / "hard").stat().st_mode) == 0o600
        assert (folder / "hard").stat().st_uid == os.geteuid()
        assert sh(vm, "stat -c '%u %g %a' /work/in/hard") == "5 6 600\n"
        assert (folder / "sub" / "tool").read_text().endswith("more\n")
        (folder / "sub" / "tool").write_text("#!/bin/sh\necho again\n")
        (folder / "later").write_text("later")
        time.sleep(1.1)
        assert sh(vm, "/work/in/sub/tool; cat /work/in/later") == "again\nlater"
        assert sh(vm, "cat /second/kept; ! touch /second/x && ! rm /second/kept") == "kept"
        sh(vm, "mount -o remount,rw /second")
        assert vm.exec(["sh", "-c", "echo x > /second/kept"]).status == 1  # the server refuses, not only the mount
        assert (tmp_path / "second" / "kept").read_text() == "kept"
        statistics = vm.inspect()["statistics"]["cards"]["fs0"]
        assert statistics["requests"]["create"] > 3 and statistics["malformed"] == 0


def test_a_guest_s_root_stays_in(guests, folder, tmp_path):
    (tmp_path / "secret").write_text("the host's secret")
    os.symlink(tmp_path / "secret", folder / "absolute")
    os.symlink("../secret", folder / "relative")
    os.symlink("/proc/self/root", folder / "magic")
    os.mkfifo(folder / "fifo")
    with VM.run("micro", shares=[f"{folder}:/work"]) as vm:
        assert vm.exec(["cat", "/work/absolute"]).status == 1
        assert vm.exec(["cat", "/work/relative"]).status == 1
        assert sh(vm, "cat /work/magic/etc/hostname; cd /work/.. && ls").startswith(f"{vm.name}\n")
        assert vm.exec(["mknod", "/work/disk", "b", "8", "0"]).status == 1
        sh(vm, "echo through > /work/fifo & cat /work/fifo")
        sh(vm, "cp /bin/busybox /work/su && chmod 4755 /work/su && test -u /work/su")
        assert stat.S_IMODE((folder / "su").stat().st_mode) == 0o755
        holds = vm.inspect()["confinement"]
        assert holds["seccomp"] and not holds["capabilities"]


def test_a_reset_with_files_open(guests, folder):
    with VM.run("micro", shares=[f"{folder}:/work"]) as vm:
        for turn in range(2):
            sh(vm, f"(exec 3>>/work/log; echo {turn} >&3; sleep 1000) & ls -R /work; sync")
            boots = vm.inspect()["statistics"]["exec"]["greetings"]
            vm.exec(["sh", "-c", "echo b > /proc/sysrq-trigger"], timeout=60)
            while vm.inspect()["statistics"]["exec"]["greetings"] == boots:
                time.sleep(0.05)
            vm.wait_agent(60)
            assert sh(vm, "cat /work/log").split() == [str(n) for n in range(turn + 1)]
            assert vm.inspect()["statistics"]["cards"]["fs0"]["open"] <= 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's worker becomes another user")
def test_root_s_worker_is_the_folder_s_owner(guests, folder, micro, monkeypatch):
    os.chown(folder, 12345, 12346)
    (folder / "ours").write_text("x")  # root's, as anybody may read it
    with pytest.raises(HostelError, match="user 12345's: that user can't get to"):
        VM.run("micro", shares=[f"{folder}:/work"])  # pytest's own folders are closed to others
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        os.chmod(home, 0o755)
        os.symlink(micro.folder.parent, os.path.join(home, "images"))
        monkeypatch.setenv("HOSTEL_HOME", home)
        with VM.run("micro", shares=[f"{folder}:/work"]) as vm:
            assert vm.exec(["sh", "-c", "echo new > /work/file; mkdir /work/sub; echo x > /work/ours"]).status == 1
            assert sh(vm, "stat -c '%u %g' /work /work/file /work/ours") == "0 0\n0 0\n65534 65534\n"
            assert vm.inspect()["confinement"]["user"] == 12345
        (folder.parent / "other").mkdir()
        with pytest.raises(HostelError, match="folders of one owner"):
            VM.run("micro", shares=[f"{folder}:/work", f"{folder.parent / 'other'}:/other"])
    for path in (folder / "file", folder / "sub"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)
    assert (folder / "ours").read_text() == "x"


def test_what_cannot_be_shared_is_said_in_a_line(guests, tmp_path):
    for share, why in (
        (f"{tmp_path / 'none'}:/x", "can't share"), ("/tmp:x", "can't be a share's place"), ("/tmp", "is no share"),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "hostel.cli.main", "run", "-v", share, "--", "true"], capture_output=True, text=True
        )
        assert done.returncode == 125 and why in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert VM.list() == []


def test_a_place_that_cannot_be_mounted_ends_the_vm(guests, folder):
    with pytest.raises(HostelError, match="can't mount .* at /proc/x"):
        with VM.run("micro", shares=[f"{folder}:/proc/x"]) as vm:
            vm.wait_agent(60)
