"""hostel disk beside qemu-img: what they say of the same images, and what becomes of them."""

import json
import os
import re

import pytest
import qemu

from hostel.cli.main import main


@pytest.fixture
def disk(capfd, tmp_path, monkeypatch):
    """``disk(words...)``: what ``hostel disk`` gives in a folder of its own: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def disk(*words):
        capfd.readouterr()
        status = main(["disk", *map(str, words)])
        out, err = capfd.readouterr()
        return status, out, err

    return disk


def fails(result, pattern, status=125):
    got, out, err = result
    assert (got, out) == (status, ""), result
    assert err.startswith("hostel: ") and err.count("\n") == 1, err
    assert re.search(pattern, err), err


def same_json(ours, theirs, only=None):
    """What qemu-img says, we say; its newer keys are its own business."""
    theirs = {key: value for key, value in theirs.items() if key != "children"}
    ours = {key: value for key, value in ours.items() if key in theirs or key not in ("compressed",)}
    assert ours == theirs


def chain(folder):
    """base (raw) <- mid (qcow2) <- top (qcow2, larger): data, zeros and holes in each."""
    qemu.img("create", "-f", "raw", folder / "base", "4M")
    qemu.io(folder / "base", "write -P 1 0 1M", "write -P 2 3M 64k", format="raw")
    os.chdir(folder)
    qemu.img("create", "-f", "qcow2", "-b", "base", "-F", "raw", "mid")
    qemu.io("mid", "write -P 3 512k 256k", "write -z 1M 128k", "write -z -u 3M 64k")
    qemu.img("create", "-f", "qcow2", "-b", "mid", "-F", "qcow2", "-o", "cluster_size=4k", "top", "6M")
    qemu.io("top", "write -P 4 600k 4k", "write -P 5 4M 8k", "write -z 5M 12k")


@qemu.needed
def test_info_map_and_check_say_what_qemu_img_says(disk, tmp_path):
    chain(tmp_path)
    qemu.img("snapshot", "-c", "before", "top")
    qemu.img("convert", "-c", "-O", "qcow2", "top", "packed")
    qemu.img("create", "-f", "qcow2", "-o", "compat=0.10", "old", "1G")
    qemu.img("create", "-f", "qcow2", "-o", "extended_l2=on,lazy_refcounts=on,refcount_bits=1", "new", "1G")
    qemu.io("new", "write -P 1 0 4k", "write -P 1 1M 100k", "write -z 1100k 8k")
    qemu.img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,compression_type=zstd", "outside", "1M")
    for name in ("base", "mid", "top", "packed", "old", "new", "outside"):
        ours = json.loads(disk("info", "--json", name)[1])
        same_json(ours, json.loads(qemu.img("info", "--output=json", name)))
        assert disk("info", name)[1].splitlines()[:3] == qemu.img("info", name).splitlines()[:3]
        trust = ["--allow-backing"] if name == "outside" else []
        status, out, err = disk("map", *trust, "--json", name)
        assert status == 0, err
        ours = json.loads(out)
        theirs = json.loads(qemu.img("map", "--output=json", name))
        for one in ours + theirs:
            one.pop("compressed", None)
        assert ours == theirs, name
        if name != "packed":                   # where they are, qemu-img can't say and complains
            assert disk("map", *trust, name)[1].split() == qemu.img("map", name).split()
        if name == "base":
            fails(disk("check", name), "does not support checks", 63)
            continue
        status, out, _ = disk("check", "--json", name)
        assert (status, json.loads(out)) == (0, json.loads(qemu.img("check", "--output=json", name))), name
        assert disk("check", name)[1] == qemu.img("check", name), name
    whole = json.loads(disk("info", "--json", "--backing-chain", "top")[1])
    assert [os.path.basename(image["filename"]) for image in whole] == ["top", "mid", "base"]


@qemu.needed
def test_check_counts_damage_as_qemu_img_does_and_mends_it(disk, tmp_path):
    for number, (offset, data) in enumerate([
        (0x40000 + 8, bytes(8)),               # a cluster that nobody uses counts: a leak
        (0x20000 + 2 * 5, b"\0\0"),            # one that is used doesn't
        (0x20000 + 2 * 5, b"\0\2"),            # one counts twice
        (0x30000, b"\0"),                      # an L1 entry without its flag
        (0x40000, b"\0"),                      # an L2 entry without its flag
        (0x40000 + 8, b"\x80\0\0\0\0\7\2\0"),  # an L2 entry that isn't aligned
        (0x40000 + 8, b"\x80\0\0\1\0\7\0\0"),  # one past the end
    ]):  # fmt: skip
        name = f"image{number}"
        qemu.img("create", "-f", "qcow2", name, "1M")
        qemu.io(name, "write -P 1 0 256k")
        with open(name, "r+b") as file:
            file.seek(offset)
            file.write(data)
        theirs = qemu.run("sh", "-c", f"qemu-img check --output=json {name} 2>/dev/null; echo $?").rsplit("\n", 2)
        status, out, err = disk("check", "--json", name)
        ours, theirs, status_ = json.loads(out), json.loads(theirs[0]), int(theirs[1])
        assert (status, ours) == (status_, theirs), number
        text = disk("check", name)
        assert text[2].startswith(("ERROR", "Leaked")), (number, text)
        status, out, _ = disk("check", "--repair", "all", name)
        if number < 5:
            assert status == 0, out
            assert "repaired" in out
            qemu.check(name)
            qemu.io(name, "read -P 1 128k 128k")
        else:
            assert status == 2
    fails(disk("check", "none"), "no such file", 1)


@qemu.needed
def test_create(disk, tmp_path):
    assert disk("create", "one.qcow2", "1G") == (0, "", "")
    qemu.img("create", "-f", "qcow2", "peer.qcow2", "1G")
    ours, theirs = (json.loads(qemu.img("info", "--output=json", name)) for name in ("one.qcow2", "peer.qcow2"))
    assert ours["virtual-size"] == 1 << 30 and ours["format-specific"] == theirs["format-specific"]
    fails(disk("create", "one.qcow2", "1G"), "one.qcow2 exists already; --force replaces it")
    assert disk("create", "--force", "one.qcow2", "2G")[0] == 0
    assert json.loads(disk("info", "--json", "one.qcow2")[1])["virtual-size"] == 2 << 30
    for options, key, value in [
        ("cluster_size=2M,compat=v3", "cluster-size", 2 << 20), ("compat=0.10", "cluster-size", 65536),
        ("cluster_size=512,refcount_bits=64", "cluster-size", 512), ("preallocation=full", "format", "qcow2"),
        ("extended_l2=on,compression_type=zstd", "format", "qcow2"), ("preallocation=falloc", "format", "qcow2"),
        ("lazy_refcounts=on,refcount_bits=1", "format", "qcow2"), ("preallocation=metadata", "format", "qcow2"),
        (f"data_file={tmp_path}/data1", "format", "qcow2"),
        (f"data_file={tmp_path}/data2,data_file_raw=on", "format", "qcow2"),
    ]:  # fmt: skip
        status, _, err = disk("create", "--force", "-o", options, "two", "8M")
        assert status == 0, err
        assert json.loads(qemu.img("info", "--output=json", "two"))[key] == value
        assert qemu.check("two").get("leaks", 0) == 0
        qemu.io("two", "read -P 0 0 8M", "write -P 7 1M 100k", "read -P 7 1M 100k")
        assert qemu.check("two").get("leaks", 0) == 0
    assert disk("create", "-f", "raw", "-o", "preallocation=falloc", "flat", "3M")[0] == 0
    assert os.stat("flat").st_blocks * 512 >= 3 << 20
    assert disk("create", "-b", "one.qcow2", "-F", "qcow2", "above")[0] == 0
    assert json.loads(qemu.img("info", "--output=json", "above"))["backing-filename"] == "one.qcow2"
    assert sorted(os.listdir()) == sorted(["one.qcow2", "peer.qcow2", "two", "data1", "data2", "flat", "above"])


@pytest.mark.parametrize(
    "words, pattern",
    [
        (["create", "x"], "how large"), (["create", "x", "big"], "'big' is no size"),
        (["create", "x", "1G", "-f", "vhd"], "'vhd' is no format"),
        (["create", "x", "1G", "-o", "colour=red"], "no option"),
        (["create", "x", "1G", "-o", "cluster_size=3k"], "power of two"),
        (["create", "x", "1G", "-o", "colour"], "NAME=VALUE"),
        (["create", "x", "1G", "-o", "cluster_size=4M"], "512 to 2M"),
        (["create", "x", "1G", "-o", "compat=2"], "compat is"),
        (["create", "x", "1T", "-o", "cluster_size=512"], "too small for a disk"),
        (["create", "x", "1G", "-o", "compat=v2,extended_l2=on"], "only version 3"),
        (["create", "x", "1G", "-o", "refcount_bits=3"], "refcount_bits is"),
        (["create", "x", "-b", "none"], "-F FORMAT"), (["create", "x", "-b", "none", "-F", "raw"], "no such file"),
        (["create", "x", "1G", "-f", "raw", "-o", "cluster_size=1k"], "raw has no option"),
        (["create", "x", "1G", "-f", "raw", "-o", "preallocation=metadata"], "no metadata"),
        (["info", "none"], "no such file"), (["info", "."], "neither a file"),
        (["convert", "none", "x"], "no such file"),
        (["resize", "none", "1G"], "no such file"), (["commit", "none"], "no such file"), (["melt"], "invalid choice"),
    ],
)  # fmt: skip
def test_mistakes(disk, words, pattern):
    fails(disk(*words), pattern)
    assert os.listdir() == []


def content(path):
    from hostel.block.disk import open_disk

    disk = open_disk(path, readonly=True)
    data = disk.read(0, disk.size)
    disk.close()
    return data


@qemu.needed
def test_convert(disk, tmp_path):
    chain(tmp_path)
    qemu.img("convert", "-O", "raw", "top", "expected")
    for words in (["-O", "raw"], [], ["-c"], ["-c", "-o", "compression_type=zstd"], ["-o", "cluster_size=512"],
                  ["-o", "extended_l2=on"], ["-c", "-o", "cluster_size=2M"], ["-c", "-o", "refcount_bits=1"],
                  ["-o", "preallocation=metadata"], ["-c", "-o", "compat=0.10,cluster_size=4k"]):  # fmt: skip
        status, out, err = disk("convert", *words, "top", "new")
        assert (status, out, err) == (0, "", ""), words
        assert qemu.img("compare", "new", "expected") == "Images are identical.\n"
        if "raw" not in words:
            assert qemu.check("new").get("leaks", 0) == 0, words
        assert content("new") == content("expected"), words
        os.unlink("new")
    assert disk("convert", "-O", "raw", "top", "new")[0] == 0
    assert os.stat("new").st_blocks * 512 < 2 << 20, "what is zero takes no space"
    fails(disk("convert", "top", "new"), "new exists already")
    fails(disk("convert", "-c", "-O", "raw", "top", "other"), "only qcow2")
    fails(disk("convert", "-o", "data_file=x", "top", "other"), "data_file: a conversion makes one image")
    for options in ("-c", "-c -o compression_type=zstd"):
        qemu.img("convert", *options.split(), "-O", "qcow2", "top", "theirs")
        assert content("theirs") == content("expected")
    assert sorted(os.listdir()) == ["base", "expected", "mid", "new", "theirs", "top"]


@qemu.needed
def test_nothing_is_left_of_a_conversion_that_fails(disk, tmp_path):
    chain(tmp_path)
    qemu.img("convert", "-c", "-O", "qcow2", "top", "packed")
    size = os.stat("packed").st_size
    with open("packed", "r+b") as file:        # its clusters can't be unpacked
        file.seek(size - 4096)
        file.write(b"\xff" * 4096)
        file.seek(0x50000)
        file.write(b"\xff" * (size - 0x50000))
    fails(disk("convert", "packed", "out"), "packed: a compressed cluster")
    assert sorted(os.listdir()) == ["base", "mid", "packed", "top"]


@qemu.needed
def test_resize(disk, tmp_path):
    for name, size in (("a", "1M"), ("b", "128M")):
        disk("create", "-o", "cluster_size=512,refcount_bits=64" if name == "b" else "cluster_size=64k", name, size)
        qemu.io(name, "write -P 1 900k 100k")
        fails(disk("resize", name, "512K"), "--shrink makes it smaller")
        assert disk("resize", name, "+3M") == (0, "", "")
        assert disk("resize", name, "1G" if name == "a" else "300M") == (0, "", "")
        assert qemu.check(name).get("leaks", 0) == 0
        qemu.io(name, "read -P 1 900k 100k", "read -P 0 0 900k", "write -P 2 100M 1M", "read -P 2 100M 1M")
        assert disk("resize", "--shrink", name, "950K") == (0, "", "")
        assert qemu.check(name).get("leaks", 0) == 0
        assert disk("resize", name, "2M") == (0, "", "")
        qemu.io(name, "read -P 1 900k 50k", "read -P 0 950k 1000k")
    with open("flat", "wb") as file:
        file.truncate(1 << 20)
    assert disk("resize", "-f", "raw", "flat", "2M")[0] == 0
    assert os.stat("flat").st_size == 2 << 20
    disk("create", "-b", "flat", "-F", "raw", "above", "1M")
    with open("flat", "r+b") as file:
        file.write(b"\1" * (2 << 20))
    assert disk("resize", "above", "3M")[0] == 0, "what is behind the old end is zeros, whatever is below"
    qemu.io("above", "read -P 1 0 1M", "read -P 0 1M 2M")


@qemu.needed
@pytest.mark.parametrize("base", [None, "mid", "base"])
def test_commit(disk, tmp_path, base):
    chain(tmp_path)
    expected = qemu.content("top", tmp_path)
    assert disk("commit", *(["-b", base] if base else []), "top") == (0, "", "")
    below = base or "mid"
    assert content(below) == expected and qemu.content(below, tmp_path) == expected
    if base != "base":
        assert content("top") == expected
        assert all(extent["depth"] for extent in json.loads(disk("map", "--json", "top")[1]) if extent["present"])
        assert qemu.check("top").get("leaks", 0) == 0 and qemu.check("mid").get("leaks", 0) == 0
    fails(disk("commit", "-b", "none", "top"), "doesn't stand on none")


@qemu.needed
def test_rebase(disk, tmp_path):
    chain(tmp_path)
    expected = qemu.content("top", tmp_path)
    assert disk("rebase", "-b", "base", "-F", "raw", "top") == (0, "", "")
    assert qemu.content("top", tmp_path) == expected
    info = json.loads(qemu.img("info", "--output=json", "top"))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("base", "raw")
    assert disk("rebase", "-b", "", "top") == (0, "", "")
    assert qemu.content("top", tmp_path) == expected
    assert "backing-filename" not in json.loads(qemu.img("info", "--output=json", "top"))
    assert qemu.check("top").get("leaks", 0) == 0
    os.rename("base", "moved")
    fails(disk("map", "mid"), "base: there is no such file")
    assert disk("rebase", "-u", "-b", "moved", "-F", "raw", "mid") == (0, "", "")
    qemu.io("mid", "read -P 1 0 512k")
    fails(disk("rebase", "-b", "top", "mid"), "-F FORMAT")
    disk("rebase", "-u", "-b", "mid", "-F", "qcow2", "top")
    fails(disk("rebase", "-b", "top", "-F", "qcow2", "mid"), "is in use|stands on")


@qemu.needed
def test_images_that_others_have_open(disk, tmp_path):
    disk("create", "one", "1M")
    from hostel.block.disk import open_disk

    opened = open_disk("one")
    for words in (["info", "one"], ["check", "one"], ["resize", "one", "2M"], ["convert", "one", "two"],
                  ["create", "--force", "one", "3M"]):  # fmt: skip
        fails(disk(*words), "one is in use", 1 if words[0] == "check" else 125)
    assert disk("info", "-U", "one")[0] == 0
    assert 'Failed to get "write" lock' in qemu.run("sh", "-c", "qemu-io -c 'write 0 512' one 2>&1; true")
    assert "Failed to get shared" in qemu.run("sh", "-c", "qemu-img info one 2>&1; true")
    opened.close()
    qemu.img("info", "one")
    opened = open_disk("one", readonly=True)
    qemu.img("info", "one")
    assert 'Failed to get "write" lock' in qemu.run("sh", "-c", "qemu-io -c 'write 0 512' one 2>&1; true")
    opened.close()
