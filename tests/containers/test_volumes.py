"""Volumes that have a name, and images' own, in real containers."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from boxes import archive
from test_container_engine import NONE, run, wait_until

from hostel import Container, Volume
from hostel.base.errors import HostelError, MachineError, UsageError
from hostel.client.images import Images
from hostel.containers import volumes


@pytest.fixture
def image(box, home, tmp_path):
    """Has a VOLUME /data, with a file and a link in it, and a link /linked to it."""
    path = tmp_path / "image.tar"
    archive(path, {"Volumes": {"/data": {}}}, "kept:latest", [("data/file", b"of the image\n"), ("data/below/x", b"x")])
    Images().load(path)
    return "kept"


def sh(container, script):
    done = container.exec(["sh", "-ec", script])
    assert done.status == 0, done.stderr
    return done.stdout


def test_a_volume_is_filled_shared_and_outlives_its_containers(image, home):
    first = run(image, "sleep", "1000", shares=["common:/data"])
    assert sh(first, "cat /data/file; cat /data/below/x") == "of the image\nx"
    sh(first, "echo mine > /data/mine; rm /data/file")
    second = run(image, "sleep", "1000", shares=["common:/data:ro", "other:/other"])
    assert sh(second, "ls /data; ls /other") == "below\nmine\n"
    # what root in a container makes set-user-ID is out of reach for the host's other users
    assert not (home / "volumes").stat().st_mode & 0o077
    assert second.exec(["touch", "/data/x"]).status != 0
    volume = Volume.get("common")
    assert sorted(volume.used_by()) == sorted([first.name, second.name])
    with pytest.raises(MachineError, match=f"'common' is used by .*{first.name}"):
        volume.rm()
    first.rm(force=True)
    second.rm(force=True)
    assert (volume.path / "mine").read_text() == "mine\n" and not volume.used_by()
    third = run(image, "sleep", "1000", shares=["common:/elsewhere"])
    assert sh(third, "ls /elsewhere; cat /data/file") == "below\nmine\nof the image\n"
    third.rm(force=True)
    assert [volume.name for volume in Volume.list()] == ["common", "other"]
    volume.rm()
    assert volumes.prune() == ["other"] and not Volume.list()
    assert os.listdir(home / "volumes") == ["lock"]


def test_an_images_own_goes_with_its_container(image, home):
    container = run(image, "sleep", "1000", rm=False, read_only=True)
    sh(container, "echo kept > /data/new")
    container.stop(timeout=0)
    container.start()
    wait_until(lambda: container.state.state == "running")
    assert sh(container, "cat /data/file /data/new") == "of the image\nkept\n"
    assert not Volume.list()
    folder = container.folder
    container.rm(force=True)
    assert not folder.exists()
    over = run(image, "sleep", "1000", tmpfs=["/data"])
    assert sh(over, "ls /data; grep ' /data ' /proc/mounts").startswith("tmpfs")
    over.rm(force=True)


def test_one_without_a_name_by_hand(image):
    container = run(image, "sleep", "1000", shares=["/etc"])
    assert sh(container, "head -n 1 /etc/passwd; ls /data") == "root:x:0:0:root:/root:/bin/sh\nbelow\nfile\n"
    container.rm(force=True)


def test_a_volume_that_was_made_is_filled_at_its_first_use_only(image):
    Volume.create("made", labels={"a": "b"})
    with pytest.raises(MachineError, match="exists already"):
        Volume.create("made")
    container = run(image, "sleep", "1000", shares=["made:/data"])
    assert sh(container, "cat /data/file; rm -r /data/*") == "of the image\n"
    other = run(image, "sleep", "1000", shares=["made:/data"])  # empty, but in use
    assert sh(other, "ls /data") == ""
    sh(container, "touch /data/seen")
    assert sh(other, "ls /data") == "seen\n"
    for each in (container, other):
        each.rm(force=True)
    assert Volume.get("made").inspect()["labels"] == {"a": "b"}


def test_several_at_once_on_a_new_one(image):
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: run(image, "sleep", "1000", shares=["fresh:/data"]), range(6)))
    for container in made:
        assert sh(container, "cat /data/file") == "of the image\n"
        container.rm(force=True)


def test_an_image_leads_nowhere(box, home, tmp_path):
    """Its VOLUME is a link out of it, or below one; what is in it are links and devices."""
    (tmp_path / "secret").write_text("secret")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "found").write_text("secret")
    rootfs = tmp_path / "rootfs"
    (rootfs / "in").mkdir(parents=True)
    (rootfs / "in/link").symlink_to(tmp_path / "secret")
    os.mkfifo(rootfs / "in/fifo")
    os.mknod(rootfs / "in/device", 0o20666, os.makedev(1, 3))
    (rootfs / "away").symlink_to(outside)
    (rootfs / "up").symlink_to("../../../../.." + str(outside))
    for target in ("in", "away", "up", "nothing"):
        place = tmp_path / "container" / target
        place.parent.mkdir(exist_ok=True)
        volumes._fill(rootfs, f"/{target}", place)
        found = sorted(os.listdir(place))
        assert found == (["link"] if target == "in" else []), target
    assert os.readlink(tmp_path / "container/in/link") == str(tmp_path / "secret")
    deep = rootfs / "deep"
    deep.mkdir()
    subprocess.run(["sh", "-c", "for i in $(seq 300); do mkdir d && cd -P d; done"], cwd=deep, check=True)
    with pytest.raises(HostelError, match="folders 200 deep"):
        volumes._fill(rootfs, "/deep", tmp_path / "container/deep")
    assert not (tmp_path / "container/deep").exists()
    assert not [name for name in os.listdir(tmp_path / "container") if name.startswith(".")]


@pytest.mark.parametrize("name", ["", ".a", "a/b", "-a", "a" * 65, "ä"])
def test_names_that_are_none(name, home):
    with pytest.raises(UsageError, match="is no name for a volume"):
        volumes.create(name, {})


def test_a_volume_of_an_image_that_can_t_be_one(box, home, tmp_path):
    archive(tmp_path / "bad.tar", {"Volumes": {"/": {}}}, "bad:latest")
    Images().load(tmp_path / "bad.tar")
    with pytest.raises(UsageError, match="can't be a place in the container"):
        Container.run("bad", command=["true"], detach=True, **NONE)
