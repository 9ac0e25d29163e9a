"""Commands that a zygote runs are as those that run by themselves (client/quick)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hostel.client import quick
from hostel.client.vm import VM
from hostel.vm import launch, store, zygote

HOSTEL = [sys.executable, "-m", "hostel.cli.main"]


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.02)


def is_zygote(process):
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"hostel.vm.zygote" in words and os.fsencode(zygote.folder()) in words


@pytest.fixture(scope="module")
def one(micro, tmp_path_factory):
    """A zygote that runs commands, where there is a VM called 'box'."""
    home = tmp_path_factory.mktemp("home")
    (home / "images").symlink_to(micro.folder.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTEL_HOME", str(home))
        patch.setenv("HOSTEL_ZYGOTE_SECONDS", "60")
        command = [*HOSTEL, "run", "--detach", "--name", "box", "--memory", "128M"]
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        until(lambda: any(path.name[0] != "." for path in zygote.folder().glob("*.sock")))
        (process,) = filter(is_zygote, (path for path in Path("/proc").iterdir() if path.name.isdigit()))
        VM.get("box").wait_agent()
        yield int(process.name)
        for folder in store.folders():
            launch.kill(folder)
        os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture
def begin(one, monkeypatch):
    """``begin(*words)``: start a command; ``.child`` is the zygote's that runs it, if it is still there."""
    monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "60")

    def begin(*words, **more):
        before = children(one)
        process = subprocess.Popen(
            [*HOSTEL, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
        )
        until(lambda: children(one) - before or process.poll() is not None)
        process.child = next(iter(children(one) - before), None)
        return process

    return begin


def children(pid):
    found = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"hostel\0"):
                found.add(int(child))
        except OSError:
            continue
    return found


def test_words_files_and_status_are_the_asker_s(begin, tmp_path):
    (tmp_path / "file").write_text("from here\n")
    process = begin("exec", "box", "--", "sh", "-c", "cat; echo \"$1\" >&2; exit 7", "sh", "two words\n")
    assert process.child  # it waits for its input
    assert process.communicate(b"input\n") == (b"input\n", b"two words\n\n") and process.returncode == 7
    process = begin("cp", "file", "box:/tmp/file", cwd=tmp_path)
    assert process.communicate() == (b"", b"") and process.returncode == 0
    assert VM.get("box").exec(["cat", "/tmp/file"]).stdout == "from here\n"


_LOOK = """
import os, sys
from hostel.cli import main, served
from hostel.vm import zygote
zygote.load()
served.load()
before = set(sys.modules)
status = main.main(sys.argv[1:])
os.write(2, repr((status, sorted(set(sys.modules) - before))).encode())
"""


@pytest.mark.parametrize("words", [
    "run --rm --memory 128M micro -- true", "run --rm --memory 128M --warm micro -- true", "exec box -- true", "ps",
    "ps --json", "inspect box", "cp /etc/hostname box:/tmp/there", "snapshot create box one", "snapshot ls",
    "snapshot rm box@one", "snapshot create box two", "snapshot revert box two", "fork box --name other",
    "suspend other", "resume other",
])  # fmt: skip
def test_nothing_is_left_to_import(one, monkeypatch, words):
    monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "60")
    done = subprocess.run([sys.executable, "-c", _LOOK, *words.split()], capture_output=True, text=True, timeout=60)
    assert done.stderr == "(0, [])"


def test_environment_and_errors(begin, monkeypatch):
    monkeypatch.setenv("HOSTEL_DEBUG", "1")
    process = begin("exec", "none", "--", "true")
    out, said = process.communicate()
    assert not out and b"Traceback" in said and b"there is no VM or container named 'none'" in said
    assert process.returncode == 125


@pytest.mark.parametrize("command", sorted(quick.COMMANDS))
def test_help(begin, command):
    process = begin(command, "--help")
    out, said = process.communicate()
    assert out.startswith(b"usage: hostel %s" % command.encode()) and not said and process.returncode == 0


def test_signals_reach_it(begin):
    process = begin("exec", "box", "--", "sh", "-c", "echo begun; sleep 1000")
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    alone = subprocess.Popen(
        [*HOSTEL, "exec", "box", "--", "sh", "-c", "echo begun; sleep 1000"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "HOSTEL_ZYGOTE_SECONDS": "0"},
    )  # fmt: skip
    assert alone.stdout.readline() == b"begun\n"
    alone.send_signal(signal.SIGINT)
    assert process.communicate() == alone.communicate() and process.wait() == alone.wait()
    process = begin("exec", "box", "--", "sh", "-c", "echo begun; sleep 1000")
    assert process.stdout.readline() == b"begun\n"
    os.kill(process.child, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_one_in_the_background_is_served_too(begin):
    words = ["exec", "box", "--", "sh", "-c", "echo begun; sleep 1002"]
    process = begin(*words, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))  # as a script's '&' does
    assert process.child and process.stdout.readline() == b"begun\n"
    process.terminate()
    process.wait()


def test_it_ends_with_who_asked(begin):
    process = begin("exec", "box", "--", "sh", "-c", "echo begun; sleep 1001")
    assert process.stdout.readline() == b"begun\n"
    process.kill()
    process.wait()
    until(lambda: not os.path.exists(f"/proc/{process.child}"))
    until(lambda: VM.get("box").exec(["pidof", "sleep"]).status == 1)  # as with any that is killed


def test_one_that_is_stuck_keeps_nobody_waiting(one, monkeypatch, tmp_path):
    monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "60")
    os.kill(one, signal.SIGSTOP)
    try:
        with open(tmp_path / "out", "wb") as out:  # a pipe would be open as long as the request lies there
            done = subprocess.run([*HOSTEL, "exec", "box", "--", "echo", "here"], stdout=out, timeout=60)
    finally:
        os.kill(one, signal.SIGCONT)
    assert ((tmp_path / "out").read_text(), done.returncode) == ("here\n", 0)
