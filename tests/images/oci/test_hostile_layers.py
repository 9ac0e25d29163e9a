"""Layers, archives and manifests of somebody who means harm: docs/security.md, "Container images", has the list."""

import gzip
import io
import json
import os
import struct
import tarfile
import zlib

import pytest
import zstandard
from oci_layouts import Layout, layer, member, sha256, tree

from hostel.base.errors import ImageError
from hostel.images.oci import archive, limits
from hostel.images.oci.limits import LimitError, Limits

SECRET = b"the host's"


@pytest.fixture
def host(tmp_path):
    """What must stay as it is: a folder beside the store."""
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    yield folder
    assert tree(folder) == {"secret": SECRET}


@pytest.fixture
def load(store, layout, host):
    def load(*tars, quota=None, tag="latest", **options):
        layout.image(*tars, tag=tag, **options)
        [image] = archive.source(store, f"{layout.folder}:{tag}", None)
        return image.unpack(quota)

    yield load
    assert not [path for path in (store.folder / "layers").glob(".*")], "something half made was left"
    assert not list((store.folder / "ingest").glob("*"))


def refused(load, *tars, match, **options):
    with pytest.raises(ImageError, match=match) as error:
        load(*tars, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../host/secret", "a/../../x", "..", "/../x", "a/.."])
def test_names_with_dots(load, name):
    refused(load, layer((name, b"x")), match="leads out of it")


def test_absolute_names_are_of_the_layers_root(load, host):
    [lower] = load(layer((str(host / "secret"), b"x")))
    assert (lower / str(host / "secret").lstrip("/")).read_bytes() == b"x"


def test_a_file_through_a_symbolic_link_to_the_host(load, host):
    [lower] = load(layer((member("out", tarfile.SYMTYPE, linkname=str(host)), b""), ("out/secret", b"x")))
    assert (lower / str(host).lstrip("/") / "secret").read_bytes() == b"x"


def test_a_file_through_a_relative_symbolic_link(load, host):
    up = "../" * 30 + str(host).lstrip("/")
    load(layer((member("out", tarfile.SYMTYPE, linkname=up), b""), ("out/secret", b"x"), "out/", ("out/more", b"")))


def test_a_file_over_a_symbolic_link(load, host):
    [lower] = load(layer((member("out", tarfile.SYMTYPE, linkname=str(host / "secret")), b""), ("out", b"x")))
    assert not (lower / "out").is_symlink() and (lower / "out").read_bytes() == b"x"


def test_links_of_folders_that_lead_in_circles(load):
    refused(
        load, layer((member("a", tarfile.SYMTYPE, linkname="b"), b""), (member("b", tarfile.SYMTYPE, linkname="a"),
                    b""), ("a/x", b"")), match="circles|Too many levels",
    )  # fmt: skip


def test_a_whiteout_through_a_symbolic_link(load, host):
    load(layer((member("out", tarfile.SYMTYPE, linkname=str(host)), b""), ("out/.wh.secret", b""),
               ("out/.wh..wh..opq", b"")))  # fmt: skip
    assert (host / "secret").exists()


@pytest.mark.parametrize("target", ["/host/secret", "../host/secret"])
def test_hard_links_out(load, host, target):
    target = target.replace("/host", str(host)) if target.startswith("/") else target
    refused(load, layer((member("x", tarfile.LNKTYPE, linkname=target), b"")), match="no such file|leads out")


def test_a_hard_link_through_a_symbolic_link_out(load, host):
    refused(
        load, layer((member("out", tarfile.SYMTYPE, linkname=str(host)), b""),
                    (member("x", tarfile.LNKTYPE, linkname="out/secret"), b"")), match="no such file",
    )  # fmt: skip


def test_a_hard_link_to_a_symbolic_link_is_another_name_of_the_link(load, host):
    [lower] = load(layer((member("out", tarfile.SYMTYPE, linkname=str(host / "secret")), b""),
                         (member("x", tarfile.LNKTYPE, linkname="out"), b""), ("x", b"new")))  # fmt: skip
    assert (lower / "x").read_bytes() == b"new" and (lower / "out").is_symlink()


def test_a_hard_link_to_a_lower_layers_link_out(load, host):
    uppermost = load(
        layer((member("out", tarfile.SYMTYPE, linkname=str(host)), b"")),
        layer((member("x", tarfile.LNKTYPE, linkname="out"), b"")),
    )[0]
    assert (uppermost / "x").is_symlink()


def test_a_folder_that_is_a_link_out_in_a_lower_layer(load, host):
    load(layer((member("out", tarfile.SYMTYPE, linkname=str(host)), b"")), layer(("out/secret", b"x")))


def test_hard_links_to_itself_and_to_folders(load):
    refused(load, layer((member("x", tarfile.LNKTYPE, linkname="x"), b"")), match="itself")
    refused(load, layer("d/", (member("x", tarfile.LNKTYPE, linkname="d"), b"")), match="can't unpack 'x'", tag="2")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_device_nodes_are_left_out(load, kind):
    [lower] = load(layer((member("dev/mem", kind, devmajor=1, devminor=1), b""), (member("wh", kind), b"")))
    assert tree(lower) == {"dev": "/"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh..."])
def test_whiteouts_of_the_root_and_of_what_is_above(load, name):
    refused(load, layer("d/", (name, b"")), match="can't be")


def test_a_root_that_is_no_folder(load):
    refused(load, layer((member("./", tarfile.SYMTYPE, linkname="/"), b"")), match="root is no folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="overlayfs's attributes and set-user-ID need root")
def test_overlayfs_attributes_of_the_layers(load):
    info = member("d", tarfile.DIRTYPE, mode=0o755)
    info.pax_headers = {f"SCHILY.xattr.{space}.overlay.redirect": "/etc" for space in ("trusted", "user")}
    [lower] = load(layer((info, b"")))
    assert os.listxattr(lower / "d") == []


def test_huge_sparse_files(load):
    records = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "x", "GNU.sparse.map": "0,1"}
    for size, error in ((1 << 61, "unpacks to more than 128G"), (1 << 63, "no file is so")):
        info = member("x", tarfile.REGTYPE)
        info.pax_headers = {**records, "GNU.sparse.size": str(size)}
        refused(load, layer((info, b"x")), match=error, tag=str(size))


@pytest.mark.parametrize(
    "pieces", ["0,5", "0,1,0,1", "9,1", "0", "0,1,1", "-1,2", "0,99999999999999999999999", "x"]
)
def test_maps_of_sparse_files_that_lie(load, pieces):
    info = member("x", tarfile.REGTYPE)
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "x",
                        "GNU.sparse.size": "5", "GNU.sparse.map": pieces}  # fmt: skip
    refused(load, layer((info, b"x")), match="sparse|where a number belongs")


def test_more_than_the_quotas(load):
    tars = layer(*((f"f{number}", b"12345") for number in range(20)))
    refused(load, tars, match="more than 50B", quota=Limits(size=50))
    refused(load, tars, match="more than 10 entries", quota=Limits(entries=10), tag="2")
    load(tars, quota=Limits(size=100_000, entries=20), tag="3")


@pytest.mark.parametrize("pack, suffix", [(gzip.compress, "+gzip"), (zstandard.ZstdCompressor().compress, "+zstd")])
def test_decompression_bombs(load, store, pack, suffix, monkeypatch):
    monkeypatch.setattr(limits, "RATIO_FROM", 16 << 20)
    tar = layer(("zeros", bytes(20 << 20)))
    with pytest.raises(LimitError, match="250 times"):
        load(tar, pack=pack, suffix=suffix)
    assert not list((store.folder / "layers").glob("*"))


def test_a_bomb_that_never_ends_needs_no_memory(load, monkeypatch):
    """Zeros without a header: the reader stops at the first block, and the rest is counted, not kept."""
    monkeypatch.setattr(limits, "RATIO_FROM", 16 << 20)
    machine = zlib.compressobj(wbits=31)
    packed = b"".join(machine.compress(bytes(1 << 20)) for _ in range(40)) + machine.flush()
    refused(load, b"", match="250 times", pack=lambda tar: packed)


def header(name=b"x", size=b"00000000000\0", kind=b"0", **fields):
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = size, b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


@pytest.mark.parametrize(
    "tar, match",
    [
        (b"\xff" * 512 + END, "checksum"),
        (header()[:100], "ends in the middle"),
        (header() + END[:100], "ends in the middle"),
        (header(kind=b"L", size=b"00000000004\0") + b"name".ljust(512, b"\0"), "ends in the middle"),
        (header(size=b"00000001000\0") + b"x", "ends in the middle"),
        (header(size=b"\xff" * 12) + END, "negative"),
        (header(size=b"\x80" + b"\x7f" * 11) + END, "no file is so"),
        (header(size=b"not octal!!\0") + END, "number that is none"),
        (header(name=b"") + END, "empty"),
        (header(kind=b"Z") + END, "unknown kind"),
        (header(kind=b"x", size=b"00010000001\0") + END, "1048576 are more"),
        (header(kind=b"x", size=b"77777777777\0") + END, "are more than any needs"),
        (header(kind=b"L", size=b"00000040000\0") + END, "4097 are more"),
        (header(kind=b"x", size=b"00000000012\0") + b"99 path=aa\n".ljust(512, b"\0") + END, "damaged"),
        (header(kind=b"x", size=b"00000000013\0") + b"11 path=aaa".ljust(512, b"\0") + END, "damaged"),
        (header(kind=b"x", size=b"00000000013\0") + b"11 path=a\0\n".ljust(512, b"\0") + header() + END, "zero byte"),
        (header(kind=b"x", size=b"00000000013\0") + b"11 size=-1\n".ljust(512, b"\0") + header() + END, "number"),
        (header(kind=b"x", size=b"00000000013\0") + b"11 path=aa\n".ljust(512, b"\0") + END, "after an extended"),
        (header(name=b"a/" * 49, kind=b"5") + header(name=b"\xff" * 100) + END, None),
        (header(kind=b"L", size=b"00000000621\0") + (b"d/" * 200 + b"x").ljust(512, b"\0") + header() + END, "folders"),
        (header(kind=b"L", size=b"00000000455\0") + (b"n" * 300).ljust(512, b"\0") + header() + END, "too long"),
    ],
)  # fmt: skip
def test_damaged_and_dishonest_tars(load, tar, match):
    if match:
        refused(load, tar, match=match)
    else:
        load(tar)


def test_a_file_as_a_folder(load):
    refused(load, layer(("a", b""), ("a/b", b"")), match="no folder")


def test_numbers_of_owners_that_nobody_has(load):
    if os.geteuid():
        pytest.skip("owners need root")
    info = member("x", tarfile.REGTYPE)
    info.pax_headers = {"uid": str(1 << 32)}
    refused(load, layer((info, b"")), match="belongs to the user or group 4294967296")


def test_a_layer_whose_content_has_another_hash(load):
    refused(load, layer(("a", b"")), match="isn't what the image says", diff_ids=["sha256:" + "0" * 64])


def test_damaged_packings(load):
    tar = layer(("a", os.urandom(1 << 20)))
    refused(load, tar, match="ends too early", pack=lambda data: gzip.compress(data)[:-20])
    refused(load, tar, match="gzip stream", pack=lambda data: gzip.compress(data)[:9000] + b"!" * 9000, tag="2")
    refused(load, tar, match="follows", pack=lambda data: gzip.compress(data) + b"tail", tag="3")
    refused(load, tar, match="ends in the middle|damaged", tag="4", suffix="+zstd",
            pack=lambda data: zstandard.ZstdCompressor().compress(data)[:-9000])  # fmt: skip


def test_blobs_whose_digest_or_size_is_wrong(load, layout, store):
    entry = layout.image(layer(("a", b"1")), tag="x")
    manifest = json.loads((layout.folder / "blobs/sha256" / entry["digest"][7:]).read_bytes())
    for blob in (manifest["layers"][0], manifest["config"], entry):
        path = layout.folder / "blobs/sha256" / blob["digest"][7:]
        whole = path.read_bytes()
        for wrong in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], whole + b" ", b""):
            path.write_bytes(wrong)
            with pytest.raises(ImageError, match="hash|bytes"):
                archive.source(store, f"{layout.folder}:x", None)
            assert store.images() == []
        path.unlink()
        with pytest.raises(ImageError, match="isn't here"):
            archive.source(store, f"{layout.folder}:x", None)
        path.write_bytes(whole)
    archive.source(store, f"{layout.folder}:x", None)


def archived(*entries):
    return io.BytesIO(layer(*entries))


def test_archives_that_make_no_sense(store):
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()

    def saved(**values):
        return json.dumps([{"Config": "c.json", "Layers": [], **values}]).encode()

    def linked(target):
        return member("c.json", tarfile.SYMTYPE, linkname=target), b""

    for stream, why in (
        (io.BytesIO(b"no tar at all" * 99), "number that is none"),
        (archived(("x", b"")), "no image in it"),
        (archived(("manifest.json", b"{")), "damaged"),
        (archived(("manifest.json", saved()),), "lacks 'c.json'"),
        (archived(("manifest.json", saved(Layers=["../../etc/passwd"])), ("c.json", config)), "lacks"),
        (archived(("manifest.json", saved(RepoTags=["../x"])), ("c.json", config)), "names no image"),
        (archived(("manifest.json", saved(Layers=["l"])), ("c.json", config), ("l", b"")), "contradicts itself"),
        (archived(("manifest.json", saved()), linked("/etc/passwd")), "link to"),
        (archived(("manifest.json", saved()), linked("c.json")), "link to"),
        (archived(("oci-layout", b"{}"), ("index.json", b"[]")), "damaged"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=why) as error:
            archive.load(store, stream, "it")
        assert "\n" not in str(error.value)
        assert store.images() == [] and list(store.blobs.all()) == []
        assert not list(store.blobs.ingest.glob("*"))


def test_an_index_that_is_its_own_entry(store, tmp_path):
    layout = Layout(tmp_path / "loop")
    inner = layout.blob(b'{"schemaVersion":2,"manifests":[]}', "application/vnd.oci.image.index.v1+json")
    for _ in range(8):
        data = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
        inner = layout.blob(data, "application/vnd.oci.image.index.v1+json")
    layout.manifests.append(inner)
    layout.write()
    with pytest.raises(ImageError):
        archive.source(store, str(layout.folder), None)


def test_names_in_a_layout_that_lead_elsewhere(store, layout):
    for name in ("../../x", "a b", "-", "x" * 400):
        layout.image(layer(("a", name.encode())), tag=name)
    for image in archive.source(store, str(layout.folder), None):
        assert image.names == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="a capability needs root")
def test_attributes_that_are_no_attributes(load):
    info = member("x", tarfile.REGTYPE)
    info.pax_headers = {"SCHILY.xattr.security.capability": "no capability"}
    refused(load, layer((info, b"")), match="can't unpack 'x'")


def test_nothing_is_left_when_the_second_layer_is_bad(load, store):
    refused(load, layer(("a", b"1")), layer(("../b", b"1")), match="leads out")
    for path in (store.folder / "layers").glob("*"):
        assert (path / "layer.json").exists()


def test_long_chains_of_folders_keep_few_descriptors(load):
    before = len(os.listdir("/proc/self/fd"))
    load(layer(*(("/".join(f"{n}-{m}" for m in range(60)) + "/f", b"") for n in range(30))))
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_magic_of_sha_is_checked_by_us():
    assert sha256(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert struct.calcsize("=QQQ") == 24
