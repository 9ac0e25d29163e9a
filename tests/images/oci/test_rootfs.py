"""Root folders on layers: overlayfs, fuse-overlayfs and copies, each the same to look at."""

import os
import shutil
import subprocess
import tarfile

import pytest
from oci_layouts import layer, member, tree

from hostel.base.errors import ImageError
from hostel.base.linux import mount
from hostel.images.oci import archive, rootfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
SEEN = {"d": "/", "d/b": b"2", "o": "/", "o/new": b"2", "keep": b"1", "link": "-> keep"}


@pytest.fixture
def image(store, layout):
    layout.image(
        layer((member(".", tarfile.DIRTYPE, mode=0o711), b""), "d/", ("d/a", b"1"), ("d/b", b"1"), "o/", ("o/x", b"1"),
              ("keep", b"1")),
        layer("d/", ("d/.wh.a", b""), ("d/b", b"2"), "o/", ("o/.wh..wh..opq", b""), ("o/new", b"2"),
              (member("link", tarfile.SYMTYPE, linkname="keep"), b"")),
    )  # fmt: skip
    return archive.source(store, str(layout.folder), None)[0]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "container, with: odd name"
    made.mkdir()
    yield made
    rootfs.release(made)
    rootfs.remove(made)
    assert list(made.iterdir()) == []


@pytest.mark.parametrize("kind", rootfs.KINDS)
def test_each_kind(image, folder, tmp_path, kind):
    if kind == "fuse-overlayfs":
        if not shutil.which(kind):
            pytest.skip(f"there is no {kind}; on Debian: apt-get install {kind}")
        with pytest.raises(ImageError, match="comma or a colon"):
            rootfs.prepare(image, folder, [kind])
        folder = tmp_path / "plain"
        folder.mkdir()
    made = rootfs.prepare(image, folder, [kind])
    try:
        assert made.kind == kind and made.path == folder / "rootfs"
        assert tree(made.path) == SEEN
        assert made.path.stat().st_mode & 0o7777 == 0o711
        assert mount.is_mounted(made.path) == (kind != "copy")
        (made.path / "keep").write_bytes(b"changed")
        (made.path / "d/b").unlink()
        rootfs.release(folder)
        rootfs.release(folder)
        assert not mount.is_mounted(made.path)
        again = rootfs.prepare(image, folder)
        assert again.kind == kind
        assert tree(again.path) == {**{key: value for key, value in SEEN.items() if key != "d/b"}, "keep": b"changed"}
        assert rootfs.prepare(image, folder) == again
    finally:
        rootfs.remove(folder)
    assert "layers" not in subprocess.run(["findmnt", "-n", folder], capture_output=True, text=True).stdout
    assert [path.read_bytes() for path in image.store.layers.lower(image.layers)[-1].glob("keep")] == [b"1"]


def test_many_layers(store, layout, folder):
    """More than a page of options has room for, at their full paths."""
    layout.image(*(layer((f"f{number}", b"%d" % number)) for number in range(60)), pack=bytes, suffix="")
    [image] = archive.source(store, str(layout.folder), None)
    made = rootfs.prepare(image, folder, ["overlay"])
    assert len(made.lower) == 60 and len(list(made.path.iterdir())) == 60
    assert (made.path / "f59").read_bytes() == b"59"


def test_long_paths(store, layout, tmp_path):
    """Longer than an option's value may be."""
    layout.image(layer(("a", b"1")), layer(("b", b"2")))
    from hostel.images.oci.store import Store

    deep = tmp_path / ("x" * 120) / ("y" * 120)
    folder = tmp_path / ("z" * 200) / ("c" * 100)
    folder.mkdir(parents=True)
    [image] = archive.source(Store(deep), str(layout.folder), None)
    try:
        assert tree(rootfs.prepare(image, folder, ["overlay"]).path) == {"a": b"1", "b": b"2"}
    finally:
        rootfs.remove(folder)


def test_what_is_refused_leaves_nothing(image, folder, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(mount, "mount", refuse)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ImageError, match="overlayfs: Operation not permitted; fuse-overlayfs isn't installed"):
        rootfs.prepare(image, folder, ["overlay", "fuse-overlayfs"])
    assert list(folder.iterdir()) == [] and image.store.users.all() == []
    assert rootfs.prepare(image, folder).kind == "copy"


def test_another_image_in_the_same_folder_is_refused(image, store, layout, folder):
    rootfs.prepare(image, folder, ["copy"])
    layout.manifests.clear()
    layout.image(layer(("z", b"")))
    [other] = archive.source(store, str(layout.folder), None)
    with pytest.raises(ImageError, match="stands on another image"):
        rootfs.prepare(other, folder)


def test_scratch_has_an_empty_root(store, layout, folder):
    layout.image()
    [image] = archive.source(store, str(layout.folder), None)
    for kind in ("overlay", "copy"):
        assert tree(rootfs.prepare(image, folder, [kind]).path) == {}
        rootfs.remove(folder)


def test_copies_keep_holes_links_owners_and_attributes(store, layout, folder):
    info = member("x", tarfile.REGTYPE, uid=5, gid=6, mode=0o4711)
    info.pax_headers = {"SCHILY.xattr.user.a": "b"}
    hole = member("hole", tarfile.REGTYPE)
    hole.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "hole",
                        "GNU.sparse.size": str(64 << 20), "GNU.sparse.map": f"{32 << 20},3"}  # fmt: skip
    layout.image(layer((info, b"x"), (member("y", tarfile.LNKTYPE, linkname="x"), b""), (hole, b"abc")))
    [image] = archive.source(store, str(layout.folder), None)
    path = rootfs.prepare(image, folder, ["copy"]).path
    status = (path / "x").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777, status.st_nlink) == (5, 6, 0o4711, 2)
    assert os.getxattr(path / "x", "user.a") == b"b"
    assert (path / "hole").stat().st_size == 64 << 20 and (path / "hole").stat().st_blocks < 100
    with open(path / "hole", "rb") as file:
        file.seek(32 << 20)
        assert file.read(5) == b"abc\0\0"
