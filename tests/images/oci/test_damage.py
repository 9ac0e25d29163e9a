"""Layers damaged at random, and pulls killed at random: errors are of one kind and nothing comes out of the layer."""

import gzip
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from oci_layouts import Layout, layer, member, skopeo, tree

from hostel.base.atomic import StorageError
from hostel.base.errors import ImageError
from hostel.images.oci import compression, rootfs
from hostel.images.oci.limits import Limits
from hostel.images.oci.store import Store
from hostel.images.oci.unpack import Unpacker

NAMES = (b"../../sentinel", b"/etc/passwd", b"d/../..", b".wh..wh..opq", b".wh...", b"l/../x", b"d", b"l", b"h")
BYTES = (0x2E, 0x2F, 0x80, 0xFF, 0x30, 0x31, 0x32, 0x35, 0x37, 0x53, 0x78, 0)


def bases(folder):
    attributes = member("x", tarfile.REGTYPE)
    attributes.pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "123.456"}
    holes = member("hole", tarfile.REGTYPE)
    holes.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "hole",
                         "GNU.sparse.size": "50000", "GNU.sparse.map": "100,3,40000,3"}  # fmt: skip
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        yield layer(
            "d/", ("d/a", b"1" * 700), ("d/.wh.b", b""), (member("l", tarfile.SYMTYPE, linkname="d"), b""),
            ("l/c", b"2"), (member("h", tarfile.LNKTYPE, linkname="d/a"), b""), (attributes, b"q"), (holes, b"abcdef"),
            ("n" * 150, b""), form=form,
        )  # fmt: skip
    with open(folder / "sparse", "wb") as file:
        for place in range(0, 1 << 20, 40_000):
            file.seek(place)
            file.write(b"x" * 100)
    for options in (["--format=gnu"], ["--format=pax", "--sparse-version=1.0"]):
        yield subprocess.run(
            ["tar", "-c", "-S", *options, "-C", folder, "sparse"], capture_output=True, check=True
        ).stdout


def damaged(chance, tar):
    """Some bytes of it are others, most of them in headers, whose checksums are right again."""
    data = bytearray(tar)
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(chance.choice((1, 1, 2, 4, 9))):
        kind, header = chance.random(), chance.choice(headers)
        if kind < 0.6:
            place = chance.choice((chance.randrange(512), 156, chance.randrange(100, 136), chance.randrange(386, 500)))
            data[header + place] = chance.choice((chance.randrange(256), *BYTES))
        elif kind < 0.75:
            name, place = chance.choice(NAMES), header + chance.choice((0, 157))
            data[place : place + len(name) + 1] = name + b"\0"
        elif kind < 0.9:
            data[chance.randrange(len(data))] = chance.randrange(256)
        else:
            other = chance.choice(headers)
            data[header : header + 512] = data[other : other + 512]
    for at in headers:
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data if chance.random() < 0.9 else data[: chance.randrange(len(data))])


def test_layers_damaged_at_random(tmp_path):
    chance = random.Random(7)
    tars = list(bases(tmp_path))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "sentinel").write_bytes(b"here")
    descriptors = len(os.listdir("/proc/self/fd"))
    whole = 0
    for _ in range(600):
        tar = damaged(chance, chance.choice(tars))
        pieces = iter([tar[:999], tar[999:]])
        if chance.random() < 0.3:
            packed = bytearray(gzip.compress(tar, 1))
            packed[chance.randrange(len(packed))] ^= chance.choice((0, 1, 64))
            pieces = compression.pieces(io.BytesIO(bytes(packed)))
        root = outside / "root"
        root.mkdir()
        number = os.open(root, os.O_RDONLY)
        try:
            Unpacker(number, Limits(size=1 << 26, entries=500)).unpack(pieces)
            whole += 1
        except ImageError as error:
            assert "\n" not in str(error)
        finally:
            os.close(number)
        shutil.rmtree(root)
        assert tree(outside) == {"sentinel": b"here"}
    assert 50 < whole < 550
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_pulls_killed_at_random(registry, store, tmp_path):
    """SIGKILL at any moment: the next pull makes it whole, and 'prune' finds nothing that is left."""
    chance = random.Random(3)
    made = Layout(tmp_path / "made")
    contents = {f"f{number}": chance.randbytes(1 << 20) for number in range(8)}
    made.image(*(layer((name, content)) for name, content in contents.items()), tag="t")
    skopeo("copy", "--dest-tls-verify=false", f"oci:{made.folder}:t", f"docker://{registry}/killed/it:t")
    code = "import sys; from hostel.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "image", "pull", "-q", f"{registry}/killed/it:t"]
    begun = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    took = time.monotonic() - begun
    store.remove(f"{registry}/killed/it:t")
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=chance.uniform(0.2, 1.1) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        for image in store.images():
            assert image.names
    image = store.pull(f"{registry}/killed/it:t")
    target = tmp_path / "flat"
    target.mkdir()
    rootfs.flatten(image.unpack(), target)
    assert tree(target) == contents
    store.prune()
    assert not list(store.blobs.ingest.iterdir()) and not list((store.folder / "layers").glob(".*"))
    store.remove(f"{registry}/killed/it:t")
    assert list(store.blobs.all()) == [] and list(store.layers.all()) == []


@pytest.mark.parametrize("moment", ["place", "keep"])
def test_failures_at_each_step_leave_what_was(registry, store, tmp_path, monkeypatch, moment):
    """A full disk, say, as a blob or a layer gets its place."""
    made = Layout(tmp_path / "made")
    made.image(layer(("a", b"1")), layer(("b", os.urandom(1000))), tag="t")
    skopeo("copy", "--dest-tls-verify=false", f"oci:{made.folder}:t", f"docker://{registry}/steps/it:t")
    where = {"place": store.blobs, "keep": store.layers}[moment]

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, moment, fail)
        with pytest.raises(StorageError, match="no space left on the device; free some"):
            store.pull(f"{registry}/steps/it:t")
    assert store.images() == [] and not list((store.folder / "layers").glob(".*"))
    assert store.pull(f"{registry}/steps/it:t").unpack()
    assert Store().get(f"{registry}/steps/it:t")
