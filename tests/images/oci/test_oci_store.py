"""The store: names, removal, what is in use, and several at a time."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from oci_layouts import Layout, layer, need, skopeo

from hostel.base.errors import ImageError
from hostel.images.oci import archive, layers, layout, reference, rootfs
from hostel.images.oci.store import Store


@pytest.fixture
def image(store, layout):
    layout.image(layer(("a", b"1")), layer(("b", b"2")), tag="t")
    [made] = archive.source(store, str(layout.folder), None)
    return made


def blobs(store):
    return set(store.blobs.all())


def test_names_are_given_and_taken(store, image):
    store.tag("layout:t", "other:1")
    assert store.get("other:1").digest == image.digest
    assert store.get(image.id).digest == store.get(image.digest[7:20]).digest == image.digest
    [found] = store.images()
    assert found.names == ("docker.io/library/other:1", "docker.io/library/layout:t")
    store.remove("layout:t")
    assert store.get("other:1") and blobs(store)
    with pytest.raises(ImageError, match="there is no image 'layout:t'"):
        store.get("layout:t")
    store.remove("other:1")
    assert store.images() == [] and blobs(store) == set() and list(store.layers.all()) == []
    for wrong in ("", "a b", "sha256:zz"):
        with pytest.raises(ImageError):
            store.get(wrong)


def test_a_name_that_moves_leaves_an_image_without_one(store, image, layout):
    image.unpack()
    layout.manifests.clear()
    layout.image(layer(("a", b"1")), layer(("c", b"3")), tag="t")
    [new] = archive.source(store, str(layout.folder), None)
    assert store.get("layout:t").digest == new.digest != image.digest
    assert store.get(image.digest).names == ()
    new.unpack()
    assert len(list(store.layers.all())) == 3
    assert store.prune() > 0
    assert [found.digest for found in store.images()] == [new.digest]
    assert len(list(store.layers.all())) == 2
    assert store.get("layout:t").unpack()
    store.prune(all_=True)
    assert store.images() == [] and blobs(store) == set() and list(store.layers.all()) == []


def test_what_containers_stand_on_stays(store, image, tmp_path):
    container = tmp_path / "web"
    container.mkdir()
    rootfs.prepare(image, container, ["copy"])
    with pytest.raises(ImageError, match="stand on the image layout:t: web"):
        store.remove("layout:t")
    store.prune(all_=True)
    assert store.get("layout:t")
    store.remove("layout:t", force=True)
    assert store.get(image.digest).names == () and store.find("layout:t") is None
    rootfs.release(container)
    rootfs.prepare(store.get(image.digest), container)  # it starts again
    store.prune(all_=True)
    assert store.get(image.digest) and len(list(store.layers.all())) == 2
    rootfs.remove(container)
    store.prune()
    assert blobs(store) == set() and list(store.layers.all()) == [] and list(container.iterdir()) == []


def test_nothing_is_swept_while_somebody_works(store, image):
    with store.using():
        store.remove("layout:t")
        assert blobs(store)
    store.sweep()
    assert not blobs(store)


def test_others_can_read_the_store(store, image):
    need("skopeo")
    told = json.loads(skopeo("inspect", f"oci:{store.folder}:docker.io/library/layout:t"))
    assert told["Digest"] == image.digest


def test_layouts_are_written_for_others(store, image, tmp_path):
    need("skopeo")
    store.tag("layout:t", "example.org/x:2")
    layout.save(store.named(["layout:t", "example.org/x:2"]), tmp_path / "out")
    for tag in ("t", "2"):
        assert json.loads(skopeo("inspect", f"oci:{tmp_path}/out:{tag}"))["Digest"] == image.digest
    other = Store(tmp_path / "other")
    names = {name for found in archive.source(other, str(tmp_path / "out"), None) for name in found.names}
    assert names == {"docker.io/library/layout:t", "example.org/x:2"}
    with pytest.raises(ImageError, match="not empty"):
        layout.save([image], tmp_path / "out")


def test_other_users_can_neither_read_nor_run_what_is_in_images(store, image):
    image.unpack()
    for name in ("blobs", "ingest", "layers"):
        assert (store.folder / name).stat().st_mode & 0o7777 == 0o700


def test_a_lost_blob_is_told(store, image):
    store.blobs.path(image.manifest.layers[0].digest).unlink()
    with pytest.raises(ImageError, match="lacks a layer; 'hostel image pull"):
        store.get("layout:t")
    assert store.images() == []


def test_layers_of_another_boot_are_unpacked_again_unless_flushed(store, image, monkeypatch):
    image.unpack()
    paths = [store.layers.path(each) for each in image.layers]
    inodes = [path.stat().st_ino for path in paths]
    image.unpack()
    assert [path.stat().st_ino for path in paths] == inodes
    monkeypatch.setattr(layers, "boot_id", lambda: "another")
    image.unpack()
    again = [path.stat().st_ino for path in paths]
    assert set(again).isdisjoint(inodes)
    monkeypatch.setattr(layers, "_SETTLED", -1.0)
    store.layers.flush(image.layers)
    for _ in range(500):  # it isn't waited for
        if all((path / "flushed").exists() for path in paths):
            break
        time.sleep(0.02)
    monkeypatch.setattr(layers, "boot_id", lambda: "a third")
    image.unpack()
    assert [path.stat().st_ino for path in paths] == again


def test_many_at_a_time(store, layout):
    """Several processes unpack the same layers while names come and go; each gets all of them."""
    layout.image(*(layer((f"f{number}", os.urandom(100_000))) for number in range(12)), tag="t")
    program = (
        "import sys\nfrom hostel.images.oci.store import Store\nfrom hostel.images.oci import archive\n"
        "[image] = archive.source(Store(), sys.argv[1], None)\n"
        "Store().tag('layout:t', 'x:' + sys.argv[2])\n"
        "print(len(image.unpack()), sum(1 for path in image.unpack() for _ in path.iterdir()))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(layout.folder), str(number)], stdout=subprocess.PIPE)
        for number in range(4)
    ]
    assert {process.communicate()[0] for process in running} == {b"12 12\n"}
    assert len(store.get("layout:t").names) == 5
    assert not list(store.blobs.ingest.iterdir()) and not list((store.folder / "layers").glob(".*"))


def test_names_of_several_threads(store, image):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.name(image.entry, reference.parse(f"n{number}")), range(40)))
    assert len(store.get("layout:t").names) == 41
    assert threading.active_count() < 20


def test_a_killed_load_leaves_nothing_after_the_next(store, layout):
    layout.image(layer(("a", b"1")), tag="t")
    store.blobs.ingest.mkdir(parents=True)
    (store.blobs.ingest / "stream-dead").write_bytes(b"x")
    (store.folder / "layers").mkdir()
    (store.folder / "layers/.sha256-half").mkdir()
    store.blobs.add(b"nobody's")
    archive.source(store, str(layout.folder), None)
    store.sweep()
    assert not list(store.blobs.ingest.iterdir()) and not list((store.folder / "layers").iterdir())
    assert len(blobs(store)) == 3


def test_a_damaged_index_is_told(store, image):
    (store.folder / "index.json").write_text("{")
    with pytest.raises(ImageError, match="index.json is damaged"):
        store.images()


def test_scratch(store, tmp_path):
    made = Layout(tmp_path / "scratch")
    made.image()
    [image] = archive.source(store, str(made.folder), None)
    assert image.unpack() == [] and image.layers == []
