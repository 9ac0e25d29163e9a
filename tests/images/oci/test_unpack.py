"""Layers become folders: what is in them, whiteouts, and what they leave to those below."""

import os
import subprocess
import tarfile

import pytest
import zstandard
from oci_layouts import layer, member, need, tree

from hostel.images.oci import archive, rootfs
from hostel.images.oci.compression import Unpacking

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="owners and overlay mounts need root")


@pytest.fixture
def unpacked(store, layout):
    """``unpacked(tar, ...)``: what the layers' folders show together, copied; and the image."""

    def unpack(*tars, **options):
        layout.image(*tars, **options)
        [image] = archive.source(store, str(layout.folder), None)
        target = layout.folder.parent / "flat"
        target.mkdir()
        rootfs.flatten(image.unpack(), target)
        unpack.image = image
        return target

    return unpack


def test_kinds_modes_times_and_names(unpacked):
    long = "d/" * 60 + "n" * 90
    folder = unpacked(
        layer(
            "d/", ("./d/file", b"content"), (member("d/link", tarfile.SYMTYPE, linkname="/etc/x"), b""),
            (member("d/hard", tarfile.LNKTYPE, linkname="d/file"), b""),
            (member("d/pipe", tarfile.FIFOTYPE, mode=0o622), b""),
            (member("d/script", tarfile.REGTYPE, mode=0o755, mtime=1234.5), b"#!"), (long, b"deep"),
            ("/absolute", b"is of the root"), ("na\u00efve \n", b"bytes"), ("empty", b""),
        )  # fmt: skip
    )
    found = tree(folder)
    assert found["d/file"] == b"content" and found["d/link"] == "-> /etc/x" and found[long] == b"deep"
    assert found["absolute"] == b"is of the root" and found["na\u00efve \n"] == b"bytes" and found["empty"] == b""
    assert (folder / "d/hard").samefile(folder / "d/file")
    assert (folder / "d/pipe").is_fifo() and (folder / "d/pipe").stat().st_mode & 0o777 == 0o622
    script = (folder / "d/script").stat()
    assert script.st_mode & 0o7777 == 0o755 and script.st_mtime_ns == 1_234_500_000_000
    assert (folder / "d").stat().st_mtime == 1_000_000_000


def test_a_layer_without_the_zeros_of_an_end(unpacked):
    """umoci's are so, and its peers take them."""
    assert tree(unpacked(layer(("a", b"1"), ("b", b"2")).rstrip(b"\0").ljust(2048, b"\0"))) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_form_of_tar(unpacked, form):
    name = "folder/" * 12 + "x" * 60
    assert tree(unpacked(layer((name, b"1"), ("b", b"2"), form=form)))[name] == b"1"


@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], ["--format=pax", "--sparse-version=0.0"], ["--format=pax", "--sparse-version=0.1"],
     ["--format=pax", "--sparse-version=1.0"]],
)  # fmt: skip
def test_sparse_files_of_gnu_tar(unpacked, tmp_path, options):
    need("tar")
    with open(tmp_path / "holes", "wb") as file:
        for place in range(0, 60 << 20, 2 << 20):  # more pieces than a header has room for
            file.seek(place)
            file.write(b"data %d" % place)
        file.truncate(100 << 20)
    (tmp_path / "after").write_bytes(b"after")
    tar = subprocess.run(
        ["tar", "-c", "-S", *options, "-C", tmp_path, "holes", "after"], capture_output=True, check=True
    ).stdout
    assert len(tar) < 1 << 20
    folder = unpacked(tar)
    with open(folder / "holes", "rb") as ours, open(tmp_path / "holes", "rb") as theirs:
        while data := theirs.read(1 << 20):
            assert ours.read(1 << 20) == data
        assert ours.read() == b""
    assert (folder / "holes").stat().st_blocks * 512 < 4 << 20
    assert (folder / "after").read_bytes() == b"after"


@pytest.mark.parametrize(
    "pack, suffix",
    [(bytes, ""), (zstandard.ZstdCompressor().compress, "+zstd"),
     (lambda data: zstandard.ZstdCompressor().compress(data[:700]) + zstandard.ZstdCompressor().compress(data[700:]),
      "+zstd")],
    ids=["plain", "zstd", "zstd-frames"],
)  # fmt: skip
def test_packings(unpacked, pack, suffix):
    content = os.urandom(3 << 20)
    assert tree(unpacked(layer(("a", content)), pack=pack, suffix=suffix))["a"] == content


def test_gzip_members_and_padding(unpacked):
    import gzip

    content = os.urandom(2 << 20)
    found = unpacked(
        layer(("a", content)), pack=lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]) + bytes(99)
    )
    assert tree(found)["a"] == content


def test_whiteouts_hide_what_lower_layers_have(unpacked):
    folder = unpacked(
        layer("d/", ("d/a", b"1"), ("d/b", b"1"), "whole/", ("whole/x", b"1"), "o/", ("o/x", b"1"), ("f", b"1")),
        layer("d/", ("d/.wh.a", b""), (".wh.whole", b""), "o/", ("o/.wh..wh..opq", b""), ("o/new", b"2"),
              (".wh.f", b"")),
        layer("whole/", ("whole/again", b"3"), ("f/g", b"3")),
    )  # fmt: skip
    assert tree(folder) == {
        "d": "/", "d/b": b"1", "whole": "/", "whole/again": b"3", "o": "/", "o/new": b"2", "f": "/", "f/g": b"3",
    }  # fmt: skip


def test_whiteouts_are_of_lower_layers_things_in_any_order(unpacked):
    folder = unpacked(
        layer("d/", ("d/old", b"1"), "e/", ("e/old", b"1"), ("f", b"1"), ("g", b"1")),
        layer(
            ("d/new", b"2"), (".wh.d", b""),  # the layer's own folder stays, without what is below it
            (".wh.e", b""), ("e/new", b"2"), "e/",
            ("f", b"2"), (".wh.f", b""), (".wh.g", b""), ("g", b"2"),
        ),
    )  # fmt: skip
    found = tree(folder)
    assert "d/old" not in found and found["d/new"] == b"2"
    assert "e/old" not in found and found["e/new"] == b"2"
    assert found["f"] == found["g"] == b"2"


def test_a_root_that_hides_all_below_it(unpacked):
    folder = unpacked(layer(("a", b"1")), layer((".wh..wh..opq", b""), ("b", b"2")), layer(("c", b"3")))
    assert tree(folder) == {"b": b"2", "c": b"3"}
    assert len(unpacked.image.store.layers.lower(unpacked.image.layers)) == 2


def test_aufs_leftovers_are_skipped(unpacked):
    folder = unpacked(layer((".wh..wh.aufs", b""), ".wh..wh.plnk/", (".wh..wh.plnk/1.2", b""), ("a", b"")))
    assert tree(folder)["a"] == b""


def test_later_entries_replace_earlier_ones(unpacked):
    folder = unpacked(
        layer(
            ("a", b"1"), ("a", b"2"), "b/", ("b/c", b"1"), ("b", b"a file now"),
            (member("l", tarfile.SYMTYPE, linkname="a"), b""), ("l", b"no link now"),
            (member("k", tarfile.SYMTYPE, linkname="m"), b""), "m/", "k/", ("k/x", b"in k"),
        )
    )  # fmt: skip
    assert tree(folder) == {
        "a": b"2", "b": b"a file now", "l": b"no link now", "k": "/", "k/x": b"in k", "m": "/",
    }  # fmt: skip


def test_links_among_a_layers_folders_lead_as_in_a_root(unpacked):
    folder = unpacked(
        layer(
            "usr/bin/", (member("bin", tarfile.SYMTYPE, linkname="/usr/bin"), b""), ("bin/tool", b"1"),
            (member("usr/lib", tarfile.SYMTYPE, linkname="../../../opt/lib"), b""), ("usr/lib/x.so", b"2"),
        )
    )  # fmt: skip
    found = tree(folder)
    assert found["usr/bin/tool"] == b"1" and found["bin"] == "-> /usr/bin" and found["opt/lib/x.so"] == b"2"


@as_root
def test_folders_without_an_entry_are_as_below(unpacked):
    folder = unpacked(
        layer((member(".", tarfile.DIRTYPE, mode=0o711), b""),
              (member("srv", tarfile.DIRTYPE, mode=0o2750, uid=7, gid=8), b""),
              (member("bin", tarfile.SYMTYPE, linkname="usr/bin"), b""), "usr/bin/"),
        layer(("srv/x", b""), ("bin/tool", b"t")),
    )  # fmt: skip
    status = (folder / "srv").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o2750, 7, 8)
    assert folder.stat().st_mode & 0o7777 == 0o711
    assert tree(folder)["usr/bin/tool"] == b"t" and (folder / "bin").is_symlink()


def test_hard_links_to_files_of_lower_layers(unpacked):
    folder = unpacked(
        layer("d/", ("d/file", b"content"), (member("by", tarfile.SYMTYPE, linkname="d"), b"")),
        layer((member("name", tarfile.LNKTYPE, linkname="d/file"), b""),
              (member("other", tarfile.LNKTYPE, linkname="by/file"), b"")),
    )  # fmt: skip
    found = tree(folder)
    assert found["name"] == found["other"] == found["d/file"] == b"content"
    assert (folder / "name").samefile(folder / "d/file")


@as_root
def test_owners_capabilities_and_attributes(unpacked):
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    info = member("ping", tarfile.REGTYPE, mode=0o4755, uid=1000, gid=2000)
    info.pax_headers = {
        "SCHILY.xattr.security.capability": capability.decode("latin-1"),
        "SCHILY.xattr.user.mine": "yes",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "x",
    }
    folder = unpacked(layer((info, b"x")))
    status = (folder / "ping").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o4755, 1000, 2000)
    assert set(os.listxattr(folder / "ping")) == {"security.capability", "user.mine"}
    assert os.getxattr(folder / "ping", "security.capability") == capability


def test_the_unpacking_thread_ends_with_its_reader(tmp_path):
    (tmp_path / "a").write_bytes(bytes(64 << 20))
    with open(tmp_path / "a", "rb") as file:
        stream = Unpacking(file, None)
        assert next(iter(stream))
        stream.close()
        assert not stream._thread.is_alive()
