"""The micro image from the (fake) mirror to the disk, and what may go wrong between."""

import errno
import os
import re
import subprocess
import sys
import textwrap
import tomllib

import pytest
from mirror import BUSYBOX, VERSION, deb, kernel_files

from hostel.base import atomic
from hostel.base.errors import HostelError, ImageError
from hostel.images import micro, store
from hostel.images.fetch import Silence


@pytest.fixture
def images(home, archive, monkeypatch):
    """The store, whose archives are the test mirror's."""
    monkeypatch.setattr(store, "archives", lambda progress: archive(cache=home / "cache"))
    return store


def ensure(store, name="micro"):
    return store.ensure(name, Silence(), lambda text: None)


def unpack(data):
    """A newc archive's path → (mode, content)."""
    result, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + 110 + fields[11] + -(110 + fields[11]) % 4
        if name == "TRAILER!!!":
            return result
        result[name] = (fields[1], data[start : start + fields[6]])
        at = start + fields[6] + -fields[6] % 4


def left_over(home):
    return [path.name for path in (home / "images").iterdir() if path.name not in ("micro", ".micro.lock")]


def test_the_image_is_made_once(images, home, mirror):
    image = ensure(images)
    assert image.kernel.read_bytes() == b"MZ a kernel"
    assert (image.kernel_version, image.name) == (VERSION, "micro")
    mirror.requests.clear()
    assert ensure(images) == image
    assert mirror.requests == []
    assert [found.name for found in images.images()] == ["micro"]
    assert left_over(home) == []
    values = tomllib.loads((image.folder / "image.toml").read_text())
    assert values["files"]["initrd"]["size"] == image.initrd.stat().st_size
    assert [package["name"] for package in values["packages"]] == [f"linux-image-{VERSION}", "busybox-static"]


def test_the_initramfs_holds_what_a_guest_needs(images):
    files = unpack(ensure(images).initrd.read_bytes())
    assert files["bin/busybox"] == (0o100755, BUSYBOX)
    assert files["bin/sh"] == (0o120777, b"busybox") and files["bin/["] == (0o120777, b"busybox")
    assert files["init"][0] == 0o100755 and files["init"][1].startswith(b"\x7fELF")
    assert files["dev/console"][0] == 0o020600
    assert files["sbin"] == (0o120777, b"bin")
    base = f"lib/modules/{VERSION}"
    assert files[f"{base}/kernel/overlay.ko"][1].startswith(b"\x7fELF")  # it was compressed in the package
    dep = files[f"{base}/modules.dep"][1].decode()
    assert "kernel/virtio-net.ko: kernel/virtio.ko kernel/virtio-ring.ko kernel/net-failover.ko\n" in dep
    assert "alias virtio:virtio_net virtio_net\n" in files[f"{base}/modules.alias"][1].decode()
    # What the agent loads: needs first, and everything that a device's module needs is wanted by the device too.
    seen = {}
    for line in files["lib/modules/boot"][1].decode().splitlines():
        path, *functions = line.split(" ")
        name = path.rpartition("/")[2].removesuffix(".ko")
        for need in re.findall(rf"kernel/{name}.ko:(.*)", dep)[0].split():
            assert set(functions) <= set(seen[f"/{base}/{need}"])
        seen[path] = functions
    assert "1af41041" in seen[f"/{base}/kernel/virtio-net.ko"]


def test_a_small_guest_gets_the_small_initramfs(images):
    import zstandard

    image = ensure(images)
    assert image.start(512 << 20) == (image.kernel, image.initrd, image.cmdline)
    kernel, initrd, cmdline = image.start(64 << 20)
    assert kernel == image.kernel and cmdline.startswith(image.cmdline)
    assert zstandard.ZstdDecompressor().decompress(initrd.read_bytes()) == image.initrd.read_bytes()


def test_a_newer_recipe_rebuilds_without_a_network(images, mirror, monkeypatch):
    old = ensure(images)
    monkeypatch.setattr(micro, "recipe", lambda: "another")
    mirror.close()
    new = ensure(images)
    assert (new.recipe, new.packages) == ("another", old.packages)


def test_pull_takes_newer_packages_and_only_those(images, mirror):
    old = images.pull("micro", Silence(), lambda text: None)
    assert images.pull("micro", Silence(), lambda text: None) == old
    mirror.packages.clear()
    mirror.add_image_packages("6.1.0-2-cloud-amd64", b"MZ newer")
    mirror.publish()
    assert ensure(images) == old
    assert images.pull("micro", Silence(), lambda text: None).kernel.read_bytes() == b"MZ newer"


def test_names(images):
    with pytest.raises(ImageError, match="no image 'nonesuch'; there is debian, micro"):
        ensure(images, "nonesuch")
    for name in ("../micro", "", ".hidden", "A", "a/b", "a" * 64):
        with pytest.raises(ImageError, match="can't be an image's name"):
            images.find(name)
    with pytest.raises(ImageError, match="no image 'micro'; there is none yet"):
        images.remove("micro")
    ensure(images)
    images.remove("micro")
    assert images.find("micro") is None and images.images() == []


@pytest.mark.parametrize("damage", ["image.toml", "kernel", "initrd"])
def test_a_damaged_image_is_made_again(images, damage):
    image = ensure(images)
    path = image.folder / damage
    path.write_bytes(path.read_bytes()[:-10])
    if damage == "image.toml":
        path.write_text("nonsense")
    assert images.find("micro") is None
    assert ensure(images).kernel.read_bytes() == b"MZ a kernel"
    path.unlink()
    assert ensure(images).initrd.stat().st_size > 1000


def test_no_space_is_one_line_and_leaves_nothing(images, home, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "sync_file", full)
    with pytest.raises(HostelError, match="no space left") as caught:
        ensure(images)
    assert "\n" not in str(caught.value)
    assert left_over(home) == [] and images.images() == []
    assert not list((home / "cache").rglob("*.deb"))


def test_no_space_while_making_keeps_the_old_image(images, home, monkeypatch):
    old = ensure(images)
    monkeypatch.setattr(micro, "recipe", lambda: "another")
    monkeypatch.setattr(atomic.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(HostelError, match="no space left"):
        ensure(images)
    assert left_over(home) == [] and images.find("micro") == old


def test_what_a_killed_hostel_left_is_cleared(images, home):
    left = home / "images" / ".micro.abc123"
    left.mkdir(parents=True)
    (left / "kernel").write_bytes(b"half")
    ensure(images)
    assert left_over(home) == []


def test_two_at_once_make_one_image(home, mirror, tmp_path):
    """Real processes: the second waits for the first and finds its image."""
    (tmp_path / "keyring.gpg").write_bytes(mirror.keyring)
    script = f"""
        from pathlib import Path
        from hostel.images import store, debian, fetch
        from hostel.images.sources import Source
        sources = (Source({mirror.url!r}, "bookworm"),)
        keyring = Path({str(tmp_path / "keyring.gpg")!r})
        store.archives = lambda progress: debian.Archive(sources, keyring, fetcher=fetch.Fetcher({{}}))
        print(store.ensure("micro").created)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert sum("busybox" in path for path, _ in mirror.requests) == 1


@pytest.mark.parametrize(
    ("package", "files", "words"),
    [
        ("kernel", {"./usr/share/doc/x": b""}, "holds no kernel"),
        ("kernel", {**kernel_files(), "./lib/modules/../../../etc/evil": b"x"}, "refused"),
        ("kernel", {**kernel_files(), "/etc/evil": b"x"}, "refused"),
        ("kernel", {**kernel_files(), f"./lib/modules/{VERSION}/kernel/virtio.ko": b"junk"}, "damaged"),
        ("busybox", {"./bin/dash": b"x"}, "holds no busybox"),
        ("busybox", {"./bin/busybox": b"\x7fELF without a table"}, "applets"),
        ("busybox", None, "no Debian package"),
    ],
)
def test_packages_that_arent_what_they_should_be(images, home, mirror, package, files, words):
    data = b"garbage" if files is None else deb(files)
    if package == "kernel":
        mirror.add(f"linux-image-{VERSION}", "6.1.1-1", data)
    else:
        mirror.add("busybox-static", "1:1.35-4", data)
    mirror.publish()
    with pytest.raises(ImageError, match=words) as caught:
        ensure(images)
    assert "\n" not in str(caught.value)
    assert left_over(home) == [] and images.images() == []


@pytest.mark.parametrize("kind", ["xz", "gz", "zst", "tar"])
def test_every_compression_of_a_package(tmp_path, kind):
    from hostel.images.deb import Member, members

    path = tmp_path / "x.deb"
    path.write_bytes(deb({"./bin/a": b"A" * 1001, "./bin/b": ("a",), "./etc/c": b"C"}, kind))
    found = list(members(path, lambda name: name.startswith("bin/")))
    assert found == [Member("bin/a", 0o755, b"A" * 1001), Member("bin/b", 0o777, b"", "a")]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError):
        list(members(path, lambda name: True))


def test_the_images_folder_can_be_forbidden(images, home):
    if os.geteuid() == 0:
        home.parent.joinpath("home").write_text("a file where the folder should be")
    else:
        home.mkdir(mode=0o500)
    with pytest.raises(HostelError, match="can't write"):
        ensure(images)
