"""The SDK's OCI images."""

import io
import tarfile

import pytest

from hostel import Images
from hostel.base.errors import ImageError


def archive(name):
    """A docker-archive with an image of no layers."""
    config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{"Env":["A=b"]}}'
    manifest = b'[{"Config":"c.json","Layers":[],"RepoTags":["%s"]}]' % name.encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, data in (("c.json", config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


def test_images(home, tmp_path):
    [image] = Images.load(archive("a:1"))
    assert (image.name, image.config.env) == ("a:1", ["A=b"])
    Images.tag("a:1", "b:2")
    Images.save(["b:2"], tmp_path / "b.tar")
    out = io.BytesIO()
    Images.save(["a:1"], out, "docker-archive")
    Images.save(["a:1"], tmp_path / "folder", "oci")
    assert [found.names for found in Images.all()] == [("docker.io/library/a:1", "docker.io/library/b:2")]
    Images.rm("a:1")
    Images.rm("b:2")
    assert Images.all() == []
    [again] = Images.load(tmp_path / "b.tar")
    assert (again.name, again.id) == ("b:2", image.id) and Images.get(again.id[7:20]).name == "b:2"
    assert Images.load(f"{tmp_path}/folder:1")[0].name == "a:1"
    with pytest.raises(ImageError, match="has no image 'x'; it has 1"):
        Images.load(f"{tmp_path}/folder:x")
    assert Images.prune(all_=True) > 0 and Images.all() == []
    with pytest.raises(ImageError, match="there is no image 'a:1' here"):
        Images.get("a:1")
