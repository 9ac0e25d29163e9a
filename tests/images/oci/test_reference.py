"""Images' names, and the JSON of images."""

import json

import pytest

from hostel.base.errors import ImageError
from hostel.images.oci import config
from hostel.images.oci.reference import parse

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "text, whole",
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("me/app", "docker.io/me/app:latest"),
        ("index.docker.io/me/app", "docker.io/me/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/a/b/c:t", "localhost:5000/a/b/c:t"),
        ("[::1]:5000/a:t", "[::1]:5000/a:t"),
        ("quay.io/a__b/c-d.e@" + DIGEST, "quay.io/a__b/c-d.e@" + DIGEST),
        ("a:b@" + DIGEST, "docker.io/library/a:b@" + DIGEST),
    ],
)
def test_names_are_read_as_docker_does(text, whole):
    assert str(parse(text)) == whole
    assert parse(parse(text).familiar) == parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "A", "a:", "a b", "a//b", "/a", "a/", "../a", "a@sha256:12", "a@md5:" + "a" * 32, "x.io/../a", "a:../b",
     "a" * 300, "http://x.io/a", "a:b:c", "x.io:port/a", "a\n"],
)  # fmt: skip
def test_what_is_no_name_is_refused_in_one_line(text):
    with pytest.raises(ImageError) as error:
        parse(text)
    assert "\n" not in str(error.value)


def entry(architecture, variant=None, digest="sha256:" + "b" * 64):
    platform = {"architecture": architecture, "os": "linux", **({"variant": variant} if variant else {})}
    return {"mediaType": config.OCI_MANIFEST, "digest": digest, "size": 1, "platform": platform}


def test_the_platform_is_chosen_and_what_there_is_is_named():
    index = config.decode(
        json.dumps({"schemaVersion": 2, "manifests": [entry("arm64"), entry("arm", "v7"), entry("amd64")]}).encode(),
        config.Index, "it",
    )  # fmt: skip
    assert config.choose(index, config.platform("linux/amd64"), "it").platform.architecture == "amd64"
    assert config.choose(index, config.platform("linux/arm/v7"), "it").platform.variant == "v7"
    with pytest.raises(ImageError, match=r"it isn't there for linux/s390x; it is for linux/amd64, linux/arm/v7"):
        config.choose(index, config.platform("linux/s390x"), "it")
    for wrong in ("linux", "a/b/c/d", "linux/"):
        with pytest.raises(ImageError):
            config.platform(wrong)


def manifest(**changes):
    blob = {"digest": DIGEST, "size": 1}
    values = {
        "schemaVersion": 2,
        "config": {"mediaType": config.OCI_CONFIG, **blob},
        "layers": [{"mediaType": config.OCI_LAYER, **blob}],
    }
    return json.dumps(values | changes).encode()


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"schemaVersion": 1}, "schema version 1"),
        ({"config": {"mediaType": "application/vnd.cncf.helm.config", "digest": DIGEST, "size": 1}}, "artifact"),
        ({"layers": [{"mediaType": "text/plain", "digest": DIGEST, "size": 1}]}, "unknown kind"),
        ({"layers": [{"mediaType": config.OCI_LAYER, "digest": "sha256:../../etc/passwd", "size": 1}]}, "no digest"),
        ({"layers": [{"mediaType": config.OCI_LAYER, "digest": DIGEST, "size": -1}]}, "negative"),
        ({"layers": "x"}, "damaged"),
        ({"layers": [{"mediaType": config.OCI_LAYER, "digest": DIGEST, "size": 1}] * 501}, "501 layers"),
    ],
)
def test_manifests_that_make_no_sense_are_refused(changes, why):
    config.manifest(manifest(), "it")
    with pytest.raises(ImageError, match=why):
        config.manifest(manifest(**changes), "it")


def test_what_a_container_needs_is_at_hand():
    about = {
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Entrypoint": ["/e"], "Cmd": None, "Env": ["A=b"], "User": "1:2", "WorkingDir": "/w",
                   "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "StopSignal": "SIGINT", "Labels": {"a": "b"},
                   "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5, "Retries": 2}, "Unknown": 1},
    }  # fmt: skip
    found = config.decode(json.dumps(about).encode(), config.ImageConfig, "it")
    assert (found.entrypoint, found.cmd, found.env, found.user) == (["/e"], [], ["A=b"], "1:2")
    assert (found.working_dir, found.exposed_ports, found.volumes) == ("/w", ["80/tcp"], ["/v"])
    assert (found.stop_signal, found.labels, found.healthcheck.retries) == ("SIGINT", {"a": "b"}, 2)
    del about["config"]
    bare = config.decode(json.dumps(about).encode(), config.ImageConfig, "it")
    assert (bare.entrypoint, bare.working_dir, bare.stop_signal, bare.healthcheck) == ([], "/", "SIGTERM", None)


def test_chain_ids_are_image_specs():
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert config.chain_ids([one, two]) == [one, config.digest_of(f"{one} {two}".encode())]
