"""Translated code that outlives a VM: what one ran, the next needn't translate."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hostel.base import paths
from hostel.client.vm import VM
from hostel.cpu.bt import keeper
from hostel.vm import launch, store, translations, zygote


@pytest.fixture
def kept(guests, monkeypatch):
    """The guests' home keeps translations; none are there at first and at last."""
    monkeypatch.setenv("HOSTEL_TRANSLATIONS", "1")
    translations.clear()
    yield paths.translations()
    translations.clear()


def blocks(vm):
    counters = vm.inspect()["statistics"]["engine"]
    return counters["translated_blocks"], counters["adopted_blocks"]


def boot(**options):
    """(translated, adopted) until a command has run."""
    with VM.run("micro", **options) as vm:
        assert vm.exec(["sh", "-c", "md5sum < /bin/busybox; echo $((6*7))"], timeout=60).stdout.endswith("42\n")
        return blocks(vm)


def files(kept):
    return sorted(kept.glob("*.code"))


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_second_vm_translates_little(kept, cpus):
    translated, adopted = boot(cpus=cpus)
    assert translated > 10_000 and adopted == 0
    (wishes,) = translations.waiting()
    assert wishes.stat().st_mode & 0o777 == 0o600 and wishes.parent.stat().st_mode & 0o777 == 0o700
    assert translations.make() > 10_000
    (file,) = files(kept)
    assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_uid == os.geteuid()
    assert translations.waiting() == [] and translations.make() == 0
    again, adopted = boot(cpus=cpus, verify_code=True)  # each block of a sample is proved harmless where it lies
    assert adopted > 0.8 * translated and again < 0.2 * translated


def test_what_is_restored_and_what_is_reset_adopts(kept):
    boot()
    translations.make()
    with VM.run("micro") as vm:
        vm.wait_agent(60)
        snapshot = vm.snapshot()
        with VM.run_from(snapshot) as copy:
            assert copy.exec(["echo", "here"], timeout=60).stdout == "here\n"
            translated, adopted = blocks(copy)
            assert adopted > 3 * translated
        boots = vm.inspect()["statistics"]["exec"]["greetings"]
        vm.exec(["reboot"], timeout=60)
        while vm.inspect()["statistics"]["exec"]["greetings"] == boots:
            time.sleep(0.05)
        translated, adopted = blocks(vm)
        assert adopted > 3 * translated


def test_a_fork_tells_nothing(kept):
    with VM.run("micro") as vm:
        vm.wait_agent(60)
        with vm.fork(1) as children:
            assert children[0].exec(["seq", "3"], timeout=60).stdout == "1\n2\n3\n"
        assert translations.waiting() == []
    assert len(translations.waiting()) == 1


def test_nothing_is_kept_where_nobody_wants_it(kept, monkeypatch):
    monkeypatch.setenv("HOSTEL_TRANSLATIONS", "0")
    boot()
    assert not (kept / "wishes").exists() or translations.waiting() == []
    assert files(kept) == []


def test_a_killed_worker_leaves_nothing_that_stays(kept):
    with VM.run("micro") as vm:
        vm.wait_agent(60)
        os.kill(vm.state.pid, signal.SIGKILL)
    for _ in range(2):
        translations.make()
        assert os.listdir(kept / "wishes") == []


@pytest.mark.parametrize("how", ["others may write", "a link", "short", "damaged", "empty", "a folder"])
def test_a_file_that_is_not_to_be_trusted_is_not_used(kept, how, tmp_path):
    boot()
    translations.make()
    (file,) = files(kept)
    if how == "others may write":
        file.chmod(0o620)
    elif how == "a link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif how == "short":
        os.truncate(file, file.stat().st_size - 4096)
    elif how == "damaged":  # one entry of its table
        with open(file, "r+b") as f:
            f.seek(72 + 8 * 1000)
            f.write(b"\xa5" * 8)
    elif how == "empty":
        os.truncate(file, 0)
    else:
        file.unlink()
        file.mkdir()
    translated, adopted = boot()
    assert translated > 10_000 and adopted == 0
    if how == "a folder":
        file.rmdir()


def test_wishes_of_others_do_no_harm(kept):
    """Whatever a worker left, and of a translator that is gone: it is read once, and removed."""
    boot()
    (honest,) = translations.waiting()
    data = honest.read_bytes()
    whole = (b"x", data[:47], b"\0" * 5000, data[:8] + os.urandom(5000), data[:48] + os.urandom(9000))
    for number, junk in enumerate((*whole, data[:-1000], data[:60000] + os.urandom(60000))):
        (honest.parent / f"junk{number}").write_bytes(junk)
    assert translations.make() > 10_000
    assert os.listdir(kept / "wishes") == []
    _, adopted = boot()
    assert adopted > 10_000


def test_a_maker_that_is_killed_leaves_all_as_it_was(kept):
    boot()
    code = "from hostel.vm import translations; print(translations.make())"
    for delay in (0.1, 0.2, 0.3, 0.4):
        maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        time.sleep(delay)
        maker.kill()
        maker.communicate()
    assert all(keeper.check(file.read_bytes(), bytes.fromhex(file.stem)) >= 0 for file in files(kept))
    assert boot()[0] > 0
    translations.make()
    assert {path.name for path in kept.iterdir()} == {"lock", "wishes", *(path.name for path in files(kept))}


def test_the_old_goes_when_there_is_no_room(kept, monkeypatch):
    boot()
    translations.make()
    (file,) = files(kept)
    size = file.stat().st_size
    monkeypatch.setattr(translations, "ROOM", size // 4)
    monkeypatch.setattr(translations, "_WORTH_MAKING", 1 << 30)
    with VM.run("micro") as vm:  # what it runs beside is new
        vm.exec(["sh", "-c", "gzip -c /bin/busybox | gunzip | sha256sum; awk 1 /etc/passwd"], timeout=60)
    monkeypatch.setattr(translations, "WORTH", 0)
    translations.make()
    assert file.stat().st_size <= size // 4 + (1 << 20)


def test_a_zygote_makes_them_in_the_background(kept, monkeypatch):
    monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "60")
    try:
        boot()  # as a program; the zygote comes after it
        deadline = time.monotonic() + 60
        while not files(kept):
            boot()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        while boot()[1] < 10_000:
            assert time.monotonic() < deadline
    finally:
        for folder in store.folders():
            launch.kill(folder)
        for path in zygote.folder().glob("*.sock"):
            path.unlink()  # which ends it


def test_commands(kept):
    boot()
    command = [sys.executable, "-m", "hostel.cli.main", "translations"]

    def say(*words):
        return subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout

    assert "not yet" in say("ls")
    assert int(say("make").split()[0]) > 10_000
    assert "not yet" not in say("ls") and len(say("ls").splitlines()) == 2
    assert say("clear").endswith("removed\n")
    assert len(say("ls").splitlines()) == 1 and say("ls", "--json") == "[]\n"
