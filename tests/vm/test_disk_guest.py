"""VMs whose disk stands on an image's and holds their kernel: micro's kernel and initramfs on a small ext4 disk."""

import os
import shutil
import subprocess

import pytest

from hostel import VM
from hostel.base.errors import HostelError, UsageError
from hostel.block import disk as disks
from hostel.images import bootstrap, store
from hostel.vm import launch
from hostel.vm import store as vms

pytestmark = pytest.mark.skipif(not bootstrap._which("mkfs.ext4"), reason="no mkfs.ext4 here")
SIZE = 64 << 20


@pytest.fixture(scope="module")
def disk(micro, tmp_path_factory):
    """The image's disk."""
    top = tmp_path_factory.mktemp("disk")
    tree = top / "tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "etc/kernel").mkdir(parents=True)
    shutil.copy(micro.kernel, tree / "boot/vmlinuz-1")
    shutil.copy(micro.initrd, tree / "boot/initrd.img-1")
    os.symlink("boot/vmlinuz-1", tree / "vmlinuz")
    os.symlink("boot/initrd.img-1", tree / "initrd.img")
    (tree / "etc/kernel/cmdline").write_text("root=/dev/vda console=ttyS0,115200 quiet word=one\n")
    command = ["mkfs.ext4", "-q", "-F", "-d", tree, top / "raw", str(SIZE >> 10)]
    subprocess.run(command, check=True, env={**os.environ, "PATH": bootstrap._path()}, capture_output=True)
    bootstrap.to_qcow2(top / "raw", top / "disk-1.qcow2")
    return top / "disk-1.qcow2"


@pytest.fixture
def little(disk, home):
    """A home with the image debian:little."""
    folder = store.folder("debian:little")
    folder.mkdir(parents=True)
    shutil.copy(disk, folder)
    notes: dict = {"kernel_version": "1", "suite": "little", "disk": disk.name, "disk_size": SIZE}
    notes |= {"include": "", "ssh_key": ""}
    (folder / "image.toml").write_text(store.described("debian:little", "x", notes, [], folder))
    yield folder / disk.name
    for each in vms.folders():
        launch.kill(each)


def sh(vm, text):
    return vm.exec(["sh", "-c", text], check=True, timeout=60).stdout


def test_it_boots_what_is_in_its_disk_now_and_after_a_change(little):
    before = little.read_bytes()
    with VM.run("debian:little", name="box", append="more") as vm:
        words = sh(vm, "cat /proc/cmdline").split()
        assert {"word=one", "hostel.hostname=box", "more"} <= set(words)
        sh(vm, "mount -t ext4 /dev/vda /mnt && cp /mnt/boot/vmlinuz-1 /mnt/boot/vmlinuz-2"
               " && ln -sf boot/vmlinuz-2 /mnt/vmlinuz && rm /mnt/boot/vmlinuz-1"
               " && echo 'root=/dev/vda console=ttyS0 word=two' > /mnt/etc/kernel/cmdline"
               " && echo stays > /mnt/file && sync -f /mnt/file")  # fmt: skip
        vm.reset()  # without unmounting: the journal has what isn't in its place
        assert "word=two" in sh(vm, "cat /proc/cmdline") and "stays" in sh(vm, "mount /dev/vda /mnt; cat /mnt/file")
        assert vm.inspect()["statistics"]["resets"] == 1
    vm.start()
    assert "word=two" in sh(vm, "cat /proc/cmdline")
    vm.kill()
    assert little.read_bytes() == before
    with pytest.raises(HostelError, match="box"):
        store.remove("debian:little")
    with VM.run("debian:little") as other:  # another VM's disk is its own
        assert "word=one" in sh(other, "cat /proc/cmdline")


def test_a_guest_that_broke_its_disk_ends_with_one_line(little):
    with VM.run("debian:little", name="box") as vm:
        sh(vm, "dd if=/dev/urandom of=/dev/vda bs=1M count=60 conv=fsync 2>/dev/null")
        vm.reset()
        state = vm.wait(60)
        assert state.state == "stopped" and "no kernel to boot" in state.reason and "\n" not in state.reason
    with pytest.raises(HostelError, match="no kernel to boot"):
        vm.start()
    vm.rm()


def test_a_larger_disk_and_a_seed(little, tmp_path):
    (tmp_path / "user-data").write_text("#cloud-config\nhostname: other\nmounts: []\n")
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAAC3 me\n")
    with VM.run("debian:little", disk_size="1G", cloud_init=str(tmp_path / "user-data"), ssh_key=str(key)) as vm:
        assert [disk.readonly for disk in vm.spec.disks] == [False, True]
        out = sh(vm, "blockdev --getsize64 /dev/vda; dd if=/dev/vdb bs=8 skip=4101 count=1; cat /proc/cmdline")
        assert out.startswith(f"{1 << 30}\n") and "CIDATA" in out and "hostel.seed" in out
        assert disks.open_disk(vm.spec.disks[0].path, locked=False, readonly=True, allow_backing=True).size == 1 << 30
        assert sh(vm, "strings /dev/vdb | grep -c AAAAC3") != "0\n"


@pytest.mark.parametrize("options", [
    {"disk_size": "1M"}, {"disk_size": "x"}, {"cloud_init": "/no/such"}, {"ssh_key": "/etc/hostname"},
])  # fmt: skip
def test_what_cant_be_leaves_nothing(little, options):
    with pytest.raises(UsageError):
        VM.run("debian:little", name="box", **options)
    assert not list(vms.paths.vms().glob("*")) if vms.paths.vms().exists() else True


def test_images_without_a_disk_take_none_of_it(guests):
    with pytest.raises(UsageError, match="images with a disk"):
        VM.run("micro", cloud_init="/etc/hostname")
