"""``hostel image`` of OCI images."""

import json
import re
import subprocess
import sys

import pytest
from oci_layouts import layer

from hostel.cli.main import main
from hostel.images.oci import credentials


@pytest.fixture
def hostel(store, capsys):
    def run(*arguments, status=0):
        assert main(["image", *arguments]) == status, capsys.readouterr()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return err if status else out

    return run


@pytest.fixture
def loaded(hostel, layout):
    layout.image(layer(("a", b"1")), tag="t", config={"Cmd": ["/bin/sh"], "Env": ["A=b"]})
    assert hostel("load", "--no-unpack", "-i", str(layout.folder)) == "loaded layout:t\n"
    return layout


def test_the_life_of_an_image(hostel, loaded, tmp_path):
    hostel("tag", "layout:t", "example.org/x:1")
    listed = hostel("ls")
    assert listed.splitlines()[0].split() == ["NAME", "KIND", "IS", "SIZE", "CREATED"]
    assert "example.org/x:1" in listed and "layout:t" in listed
    assert set(hostel("ls", "-q").split()) == {"example.org/x:1", "layout:t"}
    [entry] = json.loads(hostel("ls", "--json"))
    assert entry["kind"] == "oci" and entry["platform"] == "linux/amd64"
    about = json.loads(hostel("inspect", "layout:t"))
    assert about["config"]["Env"] == ["A=b"] and about["layers"][0]["unpacked"] is False
    assert hostel("history", "layout:t").startswith("LAYER")
    assert json.loads(hostel("history", "--json", "layout:t"))[0]["layer"] == about["layers"][0]["digest"]
    for form in ("oci-archive", "docker-archive", "oci"):
        out = tmp_path / f"out-{form}"
        hostel("save", "example.org/x:1", "-o", str(out), "--format", form)
        hostel("rm", "example.org/x:1")
        assert hostel("load", "-q", "-i", str(out)) == "example.org/x:1\n"
    hostel("rm", "layout:t", "example.org/x:1")
    assert hostel("ls", "-q") == ""
    assert hostel("prune").startswith("freed")


def test_streams(hostel, loaded, store):
    code = "import sys; from hostel.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "image"]
    saved = subprocess.run([*command, "save", "layout:t"], capture_output=True, check=True).stdout
    hostel("rm", "layout:t")
    done = subprocess.run([*command, "load"], input=saved, capture_output=True, check=True)
    assert done.stdout == b"loaded layout:t\n"
    cut = subprocess.run([*command, "load"], input=saved[:3000], capture_output=True)
    assert cut.returncode == 125 and cut.stderr.count(b"\n") == 1


def test_quotas(hostel, layout):
    layout.image(layer(*((f"f{number}", b"12345") for number in range(20))), tag="t")
    for option, value, why in (("--max-size", "1K", "more than 1.0K"), ("--max-entries", "10", "more than 10 entries")):
        said = hostel("load", "-i", str(layout.folder), option, value, status=125)
        assert why in said and option in said
    assert hostel("load", "-i", str(layout.folder), "--max-entries", "20") == "loaded layout:t\n"
    assert json.loads(hostel("inspect", "layout:t"))["layers"][0]["unpacked"] is True


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["pull", "A b"], "names no image"),
        (["pull", "x", "--platform", "nonsense"], "no platform"),
        (["pull", "x", "--max-size", "nonsense"], "no size"),
        (["load", "-i", "/nonexistent"], "can't read /nonexistent: No such file"),
        (["load", "-i", "/etc/passwd"], "number that is none|checksum|ends in the middle"),
        (["save", "none", "-o", "/nonexistent/x"], "there is no image 'none'"),
        (["save", "layout:t", "-o", "/proc/x"], "can't write /proc/x"),
        (["save", "layout:t", "--format", "oci"], "name a file or folder"),
        (["tag", "none", "x"], "there is no image"),
        (["tag", "layout:t", "x@sha256:" + "0" * 64], "has a digest"),
        (["history", "none"], "there is no image"),
        (["inspect", "none"], "there is no image"),
        (["rm", "none"], "there is no image"),
        (["push", "none"], "there is no image"),
        (["push", "layout:t", "127.0.0.1:1/x@sha256:" + "0" * 64], "can't be pushed as"),
        (["logout", "example.org"], "nothing is kept"),
        (["login", "example.org", "--password-stdin"], "needs --username"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(loaded, hostel, arguments, why):
    said = hostel(*arguments, status=125)
    assert re.search(why, said) and said.count("\n") == 1


def test_credentials_of_other_tools(store, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker-credential-some").write_text(
        '#!/bin/sh\nread -r server; echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"for $server\\"}"\n'
    )
    (tmp_path / "docker-credential-some").chmod(0o755)
    (tmp_path / "docker/config.json").write_text(json.dumps({
        "auths": {"https://index.docker.io/v1/": {"auth": "bWU6cGFzcw=="}, "broken.org": {"auth": "?"}},
        "credHelpers": {"helped.org": "some", "lost.org": "none-such"},
    }))  # fmt: skip
    assert credentials.find("docker.io") == credentials.Login("me", "pass")
    assert credentials.find("helped.org") == credentials.Login("", "", "for helped.org")
    assert credentials.find("example.org") is None
    for registry, why in (("lost.org", "can't be asked"), ("broken.org", "damaged")):
        with pytest.raises(credentials.ImageError, match=why):
            credentials.find(registry)
    credentials.keep("docker.io", "you", "word:with:colons")
    assert credentials.find("docker.io") == credentials.Login("you", "word:with:colons")
