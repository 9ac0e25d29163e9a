"""An image as a VM's disk: what e2fsprogs finds in it."""

import os
import shutil
import subprocess
import tarfile

import pytest
from oci_layouts import layer, member

from hostel.base.errors import ImageError
from hostel.images.oci import archive, vmdisk

TOOLS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
pytestmark = pytest.mark.skipif(not shutil.which("debugfs", path=TOOLS), reason="there is no debugfs (e2fsprogs)")


def debugfs(disk, command):
    return subprocess.run(
        ["debugfs", "-R", command, disk], capture_output=True, text=True, check=True, env={**os.environ, "PATH": TOOLS}
    ).stdout


@pytest.mark.parametrize("layers", [1, 2])
def test_a_disk_with_owners_links_and_without_what_is_hidden(store, layout, tmp_path, layers):
    info = member("d/su", tarfile.REGTYPE, uid=1000, gid=50, mode=0o4755)
    tars = [layer("d/", (info, b"x" * 5000), ("d/gone", b""), (member("l", tarfile.SYMTYPE, linkname="d/su"), b""))]
    if layers == 2:
        tars.append(layer(("d/.wh.gone", b""), ("new", b"new")))
    layout.image(*tars)
    [image] = archive.source(store, str(layout.folder), None)
    folder = tmp_path / "vm"
    folder.mkdir()
    made = vmdisk.root_for_vm(image, folder, size=64 << 20)
    assert (made.kind, made.format, made.filesystem) == ("disk", "qcow2", "ext4")
    base = vmdisk.disk_of(image)
    found = debugfs(base, "stat /d/su")
    if os.geteuid() == 0:
        assert "User:  1000   Group:    50" in found and "Mode:  04755" in found
    assert 'Fast link dest: "d/su"' in debugfs(base, "stat /l")
    assert ("gone" in debugfs(base, "ls /d")) == (layers == 1)
    assert ("new" in debugfs(base, "ls /")) == (layers == 2)
    subprocess.run(["e2fsck", "-fn", base], check=True, capture_output=True, env={**os.environ, "PATH": TOOLS})
    assert base.stat().st_blocks * 512 < 32 << 20
    inode = base.stat().st_ino
    made.path.write_bytes(made.path.read_bytes())
    vmdisk.root_for_vm(image, folder, size=64 << 20)
    assert base.stat().st_ino == inode
    with pytest.raises(ImageError, match="stand on the image"):
        store.remove("layout")
    assert not list(store.folder.glob(".shown-*"))
    shutil.rmtree(folder)
    store.remove("layout")
    assert not base.exists()


def test_an_image_that_has_no_room_on_the_disk(store, layout, tmp_path):
    layout.image(layer(*((f"f{number}", b"x") for number in range(9000))), pack=bytes, suffix="")
    [image] = archive.source(store, str(layout.folder), None)
    with pytest.raises(ImageError, match="mkfs.ext4 can't make a disk of 8.0M"):
        vmdisk.root_for_vm(image, tmp_path, size=8 << 20)
    assert not list(store.disks.glob("*")) and not (tmp_path / vmdisk.NAME).exists()
