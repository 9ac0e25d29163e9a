"""Snapshots and forks from the command line, around a fake guest: one line for each mistake, and a status."""


import pytest
from answers import fails

from hostel.client.vm import VM
from hostel.spec.net import NicSpec


@pytest.fixture
def hostel(fake, typed):
    return typed


WORDS = [
    (("snapshot",), "snapshot: .*ACTION"), (("snapshot", "make", "one"), "invalid choice: 'make'"),
    (("snapshot", "create"), "VM"), (("snapshot", "revert", "one"), "NAME"), (("snapshot", "rm"), "VM@NAME|NAME"),
    (("fork",), "VM"), (("fork", "one", "--count", "two"), "invalid int value: 'two'"),
    (("suspend",), "NAME"), (("resume",), "NAME"), (("snapshot", "export", "one@x"), "FILE"),
]


@pytest.mark.parametrize("words, pattern", WORDS)
def test_words_that_are_missing_or_unknown(hostel, words, pattern):
    fails(hostel(*words), pattern)


@pytest.mark.parametrize("words", [
    ("snapshot", "create", "nobody"), ("snapshot", "ls", "nobody"), ("snapshot", "revert", "nobody", "x"),
    ("fork", "nobody"), ("suspend", "nobody"), ("resume", "nobody"), ("suspend", ".."), ("fork", "../x"),
    ("snapshot", "create", ""), ("snapshot", "create", ".hidden"), ("snapshot", "ls", "../vms"),
])  # fmt: skip
def test_a_vm_that_is_not_there(hostel, words):
    fails(hostel(*words), "there is no VM")


def test_what_cannot_be(hostel, start, home, tmp_path):
    start()
    start("other")
    for name in ("", "../x", "a/b", ".x", "x" * 64, "a b", "-x", "é", "x\n"):
        if name.startswith("-"):
            continue
        fails(hostel("snapshot", "create", "one", name), "is no name for a snapshot") if name else None
        fails(hostel("snapshot", "revert", "one", name), "is no name for a snapshot|no snapshot's name")
    for word in ("one", "one@", "@x", "one@../x", "../one@x", "one@x@y", ".one@x", "one@.suspended"):
        for action in ("inspect", "rm"):
            fails(hostel("snapshot", action, word), "is no (name for a snapshot|snapshot's name)|there is no snapshot")
        fails(hostel("run", "--from", word), "is no (name for a snapshot|snapshot's name)|there is no snapshot")
    fails(hostel("snapshot", "revert", "one", "gone"), "there is no snapshot one@gone; 'hostel snapshot ls one'")
    fails(hostel("snapshot", "rm", "one@gone"), "there is no snapshot one@gone")
    fails(hostel("snapshot", "export", "one@gone", tmp_path / "x"), "there is no snapshot one@gone")
    fails(hostel("snapshot", "import", tmp_path / "nothing"), "nothing")
    for count in (0, -3, 1001, 2000):
        fails(hostel("fork", "one", f"--count={count}"), f"1 to 1000 copies, not {count}")
    for name in ("A", "a b", "../x", "", "x" * 64, "%d" * 70, "é"):
        fails(hostel("fork", "one", "--name", name), "is no name for a VM")
    fails(hostel("fork", "one", "--name", "other"), "a VM named 'other' exists already")
    for forward in ("x", "80", "1:2:3:4", "99999:80", "80:99999"):
        fails(hostel("fork", "one", "-p", forward), f"{forward}|-p needs a card")
    fails(hostel("fork", "one", "-n", "2", "-p", "8080:80"), "ports can be given to one copy")
    fails(hostel("fork", "one", "-p", "8080:80"), "-p needs a card")
    assert sorted(vm.name for vm in VM.list()) == ["one", "other"]
    assert not list((home / "snapshots").glob("*@*"))
    VM.get("one").kill()
    for words in (("fork", "one"), ("suspend", "one")):
        fails(hostel(*words), "'one' is not running")
    fails(hostel("resume", "one"), "'one' isn't suspended")


@pytest.mark.parametrize("network", ["tap:hostel-none0", "bridge:hostel-none0"])
def test_a_card_that_is_one_vm_s(hostel, start, network):
    vm = start()
    spec = vm.spec
    spec.nics = [NicSpec(network=network, mac="02:00:00:00:00:01")]
    vm._folder.write_spec(spec)
    fails(hostel("fork", "one"), f"'one' can't be forked: its card on {network} is one VM's")


def test_snapshots_of_one_that_has_stopped(hostel, start):
    for name in ("one", "other"):
        start(name).kill()
    assert hostel("snapshot", "create", "one") == (0, "one@snap1\n", "")
    assert hostel("snapshot", "create", "one", "second", "--description", "some text") == (0, "one@second\n", "")
    fails(hostel("snapshot", "create", "one", "second"), "'one' has a snapshot 'second' already")
    assert hostel("snapshot", "create", "other", "theirs")[0] == 0
    fails(hostel("snapshot", "revert", "one", "other@theirs"), "other@theirs isn't of 'one'|is no name for a snapshot")
    lines = hostel("snapshot", "ls", "one")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["SNAPSHOT", "one@snap1", "one@second"]
    assert lines[2].startswith("  one@second *") and lines[2].endswith("some text")
    assert hostel("snapshot", "ls", "-q")[1].split() == ["one@snap1", "one@second", "other@theirs"]
    assert hostel("snapshot", "revert", "one", "snap1") == (0, "", "")
    assert hostel("snapshot", "rm", "one@snap1", "one@gone")[0] == 125
    assert hostel("snapshot", "ls", "-q", "one")[1] == "one@second\n"
    assert hostel("rm", "one") == (0, "", "")
    assert hostel("snapshot", "ls", "-q")[1] == "other@theirs\n"
    fails(hostel("snapshot", "ls", "one"), "there is no VM named 'one'")


def test_damaged_ones_are_told_of_and_can_go(hostel, start, home):
    start().kill()
    for name in ("a", "b"):
        hostel("snapshot", "create", "one", name)
    (home / "snapshots/one@a/manifest").write_bytes(b"x")
    status, out, err = hostel("snapshot", "ls", "-q")
    assert (status, out) == (0, "one@b\n") and err.count("\n") == 1 and "the snapshot one@a is damaged" in err
    fails(hostel("snapshot", "revert", "one", "a"), "the snapshot one@a is damaged")
    fails(hostel("snapshot", "create", "one", "a"), "'one' has a snapshot 'a' already")
    assert hostel("snapshot", "create", "one", "c")[0] == 0
    assert hostel("snapshot", "rm", "one@a") == (0, "", "")
    (home / "snapshots/one@b/manifest").unlink()
    assert hostel("rm", "one") == (0, "", "")
    assert not list((home / "snapshots").glob("[!.]*"))


def test_what_was_left_half_made_goes_with_the_next_command(hostel, start, home):
    start().kill()
    for path in ("snapshots/.new-abc", "snapshots/.old-abc/it", "disks/nobody"):
        (home / path).mkdir(parents=True)
        (home / path / "file").write_text("x")
    assert hostel("snapshot", "create", "one")[0] == 0
    assert not list((home / "snapshots").glob(".[no]*")) and not (home / "disks/nobody").exists()
