"""Debian's disks: what is asked of mmdebstrap, what may go wrong, and what VMs stand on. The real thing is slow
(tests/real/test_debian_disk.py)."""

import os
import shutil
import tarfile
import tomllib

import pytest

from hostel.base import paths
from hostel.base.errors import HostelError, ImageError
from hostel.block import disk as disks
from hostel.block.qcow2 import create
from hostel.board.boot import disk as boot
from hostel.images import bootstrap, store
from hostel.images.bootstrap import Options

no_mkfs = pytest.mark.skipif(not bootstrap._which("mkfs.ext4"), reason="no mkfs.ext4 here")


def quiet(text):
    pass


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin(tmp_path, monkeypatch):
    """The first folder of PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


@pytest.fixture
def debootstrapped(bin, tmp_path):
    """A mmdebstrap that makes a very small Debian of what it is given, and notes how it was called."""
    root = tmp_path / "fake-root"
    (root / "boot").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "boot/vmlinuz-6.1.0-1-fake").write_bytes(b"kernel" * 1000)
    (root / "boot/initrd.img-6.1.0-1-fake").write_bytes(b"initrd" * 1000)
    (root / "vmlinuz").symlink_to("boot/vmlinuz-6.1.0-1-fake")
    (root / "initrd.img").symlink_to("boot/initrd.img-6.1.0-1-fake")
    program(bin, "mmdebstrap", f"""
for word in "$@"; do echo "$word"; done > {tmp_path}/called
cp -a {root} {tmp_path}/made
for word in "$@"; do case $word in
    --*hook=tar-in*) set -- $word; tar -C {tmp_path}/made -xf $2 ;;
    */root.tar) target=$word ;;
esac; done
tar -C {tmp_path}/made -cf "$target" . && rm -r {tmp_path}/made""")
    return tmp_path


@no_mkfs
def test_a_disk_is_made_and_boots_the_kernel_in_it(debootstrapped, home):
    options = Options(include=("nginx", "vim"), size=2 << 30, ssh_key="ssh-rsa AAAA x")
    image = store.build("debian:trixie", options, quiet)
    called = (debootstrapped / "called").read_text().splitlines()
    include = next(word for word in called if word.startswith("--include=")).split("=")[1].split(",")
    assert {"nginx", "vim", "linux-image-cloud-amd64", "openssh-server"} <= set(include) and "trixie" in called
    assert all(" trixie" in word for word in called if word.startswith("deb "))
    assert (image.kernel_version, image.disk_size) == ("6.1.0-1-fake", 2 << 30)
    assert os.listdir(image.folder) and not [name for name in os.listdir(image.folder) if name.startswith(".")]
    assert image.size < 64 << 20  # holes are left out
    disk = disks.open_disk(image.disk, "qcow2", readonly=True)
    found = boot.find(disk.read, disk.size)
    assert (found.kernel.data, found.initrd.data) == (b"kernel" * 1000, b"initrd" * 1000)
    assert found.cmdline.startswith("root=UUID=") and "console=ttyS0" in found.cmdline
    fs = boot.Ext4(disk.read)
    assert b"AAAA" in fs.file("/root/.ssh/authorized_keys", 1000)
    assert fs.file("/usr/local/lib/hostel/agent", 1 << 20)[:4] == b"\x7fELF"
    assert fs.file("/etc/machine-id", 100) == b""
    assert b"%" not in fs.file("/etc/fstab", 1000) and b"{" not in fs.file("/etc/fstab", 1000)
    disk.close()


@no_mkfs
def test_vms_go_on_standing_on_what_they_were_made_from(debootstrapped, home):
    first = store.build("debian", Options(size=2 << 30), quiet)
    folder = paths.vms() / "box"
    folder.mkdir(parents=True)
    below = os.path.relpath(first.disk, folder)
    create.create(folder / "disk.qcow2", 2 << 30, create.Options(backing_file=below, backing_fmt="qcow2"))
    with pytest.raises(ImageError, match="box"):
        store.remove("debian")
    second = store.pull("debian", say=quiet)
    assert second.disk != first.disk and first.disk.exists() and second.disk_size == 2 << 30
    third = store.pull("debian", say=quiet)
    assert first.disk.exists() and not second.disk.exists()
    shutil.rmtree(folder)
    assert [image.name for image in store.images()] == ["debian"]
    store.remove("debian")
    assert not third.folder.exists()


def test_missing_tools_are_named(home, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "_path", lambda: str(tmp_path))
    with pytest.raises(ImageError, match="apt install mmdebstrap"):
        store.build("debian", Options(), quiet)
    assert not (paths.images() / "debian").exists()
    assert not [path for path in paths.images().iterdir() if path.is_dir()]


@no_mkfs
@pytest.mark.parametrize(("said", "why"), [
    ("E: Unable to locate package nosuch", "nosuch"),
    ("I: x\nErr:1 http://x Temporary failure resolving 'deb'\nE: apt-get update failed", "resolving"),
    ("cp: error writing 'x': No space left on device\nE: tar failed", "no space left"),
    ("", "status 3"),
])  # fmt: skip
def test_mmdebstraps_failures_are_one_line_and_leave_nothing(bin, home, said, why):
    program(bin, "mmdebstrap", f'printf "%s\\n" "{said}" >&2; exit 3')
    with pytest.raises(ImageError, match=why) as error:
        store.build("debian", Options(), quiet)
    assert "\n" not in str(error.value)
    assert not [path for path in paths.images().iterdir() if path.is_dir()]


@pytest.mark.parametrize("options", [
    Options(include=("a b",)), Options(include=("--hook=x",)), Options(size=1 << 20), Options(suite="../x"),
    Options(include=("x,y",)),
])  # fmt: skip
def test_options_that_make_no_sense(options):
    with pytest.raises(ImageError):
        options.check()


@pytest.mark.parametrize("name", ["micro", "fedora", "debian:", "debian:/x", "debian:a:b"])
def test_names_that_arent_debians(home, name):
    with pytest.raises(HostelError):
        store.build(name, Options(), quiet)


def test_another_suite_is_looked_for_where_the_hosts_own_is(monkeypatch):
    from hostel.images.sources import Source

    own = (Source("http://m/debian", "bookworm"), Source("http://m/debian", "bookworm-updates"),
           Source("http://s/debian-security", "bookworm-security"), Source("file:///x", "trixie"))  # fmt: skip
    monkeypatch.setattr(bootstrap.sources, "configured", lambda: own)
    assert [s.suite for s in bootstrap.mirrors("forky")] == ["forky", "forky-updates", "forky-security"]
    assert bootstrap.mirrors("trixie") == [own[3]] and bootstrap.mirrors("sid") == [Source("http://m/debian", "sid")]
    assert bootstrap._reachable(own[3]) == "http://deb.debian.org/debian"
    assert bootstrap._reachable(Source("http://127.0.0.1:3142/debian", "x")) == "http://deb.debian.org/debian"


def test_what_is_put_in_is_roots(tmp_path):
    bootstrap.write_tar(tmp_path / "t", {"root/.ssh/authorized_keys": b"k"}, {"usr/x": b"#!"}, {"etc/l": "../y"})
    with tarfile.open(tmp_path / "t") as archive:
        modes = {m.name: (m.mode, m.uid, m.linkname) for m in archive}
    assert modes == {"root/.ssh/authorized_keys": (0o600, 0, ""), "usr/x": (0o755, 0, ""), "etc/l": (0o777, 0, "../y")}


@no_mkfs
def test_image_toml_is_read_back(debootstrapped, home):
    image = store.build("debian", Options(size=3 << 30, include=("less",)), quiet)
    values = tomllib.loads((image.folder / "image.toml").read_text())
    assert values["include"] == "less" and values["disk_size"] == 3 << 30
    assert store.find("debian") == image and store.ensure("debian") == image
