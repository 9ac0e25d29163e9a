"""The commands with containers: words, streams, exit statuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from answers import fails
from terminal import Terminal

from hostel.client.container import Container


@pytest.fixture
def hostel(box, typed):
    return typed


def program(*words, **options):
    return subprocess.run([sys.executable, "-m", "hostel.cli.main", *words], capture_output=True, text=True, timeout=60,
                          **options)  # fmt: skip


NONE = ("--network", "none")


def test_run_is_its_command(box, home):
    done = program("run", box, *NONE, "--", "sh", "-c", "cat; echo error >&2; exit 7", input="input\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "input\n", "error\n")
    assert os.listdir(home / "containers") == [".runtime"]
    done = program("run", box, *NONE, "--entrypoint", "/bin/echo", "--", "words", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, "words\n")
    done = program("run", box, *NONE, input="echo by its shell; exit 3")
    assert (done.returncode, done.stdout) == (3, "by its shell\n")
    done = program("run", box, *NONE, "--", "nosuch", stdin=subprocess.DEVNULL)
    assert done.returncode == 127 and done.stderr.startswith("hostel: ") and done.stderr.count("\n") == 1


def test_a_day_with_one(hostel):
    options = ["-d", "--name", "one", *NONE, "--memory", "64M", "--cpus", "1.5", "--label", "a=b"]
    script = "echo out; echo err >&2; sleep 1000"
    assert hostel("run", "box", *options, "--", "sh", "-c", script) == (0, "one\n", "")
    out = hostel("ps")[1]
    assert re.fullmatch(r"NAME +ISOLATION +STATE +IMAGE +CPUS +MEMORY +UPTIME +PID\n"
                        r"one +container +running +box +1.5 +64M +\ds +\d+\n", out)  # fmt: skip
    row = json.loads(hostel("ps", "--json")[1])[0]
    assert (row["isolation"], row["cpus"], row["memory"]) == ("container", 1.5, 64 << 20)
    assert hostel("exec", "-T", "one", "--", "sh", "-c", "echo $IMAGE; exit 4") == (4, "yes\n", "")
    assert hostel("exec", "-T", "-u", "user", "-w", "/tmp", "-e", "A=b", "one", "sh", "-c", "id -u; pwd; echo $A") == (
        0, "1000\n/tmp\nb\n", ""
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while b"err" not in Container.get("one").logs():
        assert time.monotonic() < deadline
    assert hostel("logs", "one") == (0, "out\n", "err\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z err\n", hostel("logs", "-t", "-n", "1", "one")[2])
    assert hostel("logs", "--since", "1h", "one")[1] == "out\n"
    assert json.loads(hostel("inspect", "one")[1])["statistics"]["pids"]["current"] >= 1
    assert json.loads(hostel("explain", "container", "one", "--json")[1])["name"] == "one"
    page = hostel("explain", "container", "one")[1]
    assert "pid (its own: " in page and "memory.limit_in_bytes" in page or "memory.max" in page
    assert "t  " in hostel("top", "--once", "-i", "0.1", "one")[1] or "one" in hostel("top", "--once", "-i", "0.1")[1]
    assert hostel("set", "one", "--memory", "32M", "--cpus", "0.5")[0] == 0
    assert json.loads(hostel("ps", "--json")[1])[0]["memory"] == 32 << 20
    assert hostel("pause", "one")[0] == 0 and "paused" in hostel("ps")[1]
    assert hostel("resume", "one")[0] == 0
    assert hostel("kill", "-s", "CONT", "one")[0] == 0
    assert hostel("rm", "one")[2].startswith("hostel: 'one' is running")
    assert hostel("stop", "-t", "0", "one")[0] == 0 and "stopped (stopped)" in hostel("ps")[1]
    assert hostel("start", "one")[0] == 0 and "running" in hostel("ps")[1]
    before = Container.get("one").state.init
    assert hostel("restart", "-t", "0", "one") == (0, "", "")
    assert Container.get("one").state.init not in (0, before)
    assert hostel("stop", "-t", "0", "one")[0] == 0 and hostel("restart", "one")[0] == 0
    assert Container.get("one").state.state == "running"
    assert hostel("rm", "-f", "one") == (0, "", "") and hostel("ps", "-q")[1] == ""


def test_files(hostel, tmp_path):
    hostel("run", "box", "-d", "--name", "one", *NONE, "--", "sleep", "1000")
    (tmp_path / "file").write_text("content")
    assert hostel("cp", tmp_path / "file", "one:/srv") == (0, "", "")
    assert hostel("cp", "one:/srv/file", tmp_path / "back") == (0, "", "")
    assert (tmp_path / "back").read_text() == "content"
    archive = program("cp", "one:/srv", "-", encoding="latin-1").stdout.encode("latin-1")
    listed = subprocess.run(["tar", "t"], input=archive, capture_output=True).stdout
    assert listed == b"srv\nsrv/file\n" or listed == b"srv/\nsrv/file\n"
    packed = subprocess.run(["tar", "c", "-C", str(tmp_path), "back"], capture_output=True).stdout
    done = subprocess.run([sys.executable, "-m", "hostel.cli.main", "cp", "-", "one:/srv"], input=packed)
    assert done.returncode == 0 and hostel("exec", "-T", "one", "cat", "/srv/back")[1] == "content"


def test_logs_follow_to_the_end(box):
    program("run", box, "-d", "--name", "one", *NONE, "--", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done")
    assert program("logs", "-f", "one").stdout == "1\n2\n3\n"


def test_on_a_terminal(box):
    terminal = Terminal(sys.executable, "-m", "hostel.cli.main", "run", box, "--name", "one", *NONE, rows=33, cols=77)
    try:
        terminal.expect("/ # ")
        terminal.type("tty; stty size; echo a-$((40 + 2))\n")
        terminal.expect(r"/dev/(pts/0|console)\r\n33 77\r\na-42")
        terminal.resize(20, 60)
        terminal.process.send_signal(signal.SIGWINCH)
        time.sleep(0.2)
        terminal.type("stty size\n")
        terminal.expect("20 60")
        terminal.type("exit 5\n")
        assert terminal.wait() == 5
    finally:
        terminal.close()
    Container.get("one").start()
    command = ["sh", "-c", "tty; read x; exit $x"]
    terminal = Terminal(sys.executable, "-m", "hostel.cli.main", "exec", "one", "--", *command)
    try:
        terminal.expect("/dev/pts/")
        terminal.type("6\n")
        assert terminal.wait() == 6
    finally:
        terminal.close()


def test_a_terminal_for_one_in_the_background(hostel):
    script = "tty; stty size; read x; echo got $x; exec sleep 1000"
    assert hostel("run", "box", "-dit", "--name", "one", *NONE, "--", "sh", "-c", script)[:2] == (0, "one\n")
    assert hostel("exec", "-it", "one", "--", "echo", "yes")[:2] == (0, "yes\n")
    terminal = Terminal(sys.executable, "-m", "hostel.cli.main", "console", "one", rows=20, cols=70)
    try:
        terminal.type("typed\n")
        terminal.expect("got typed")
    finally:
        terminal.close()
    assert re.search(r"/dev/pts/0\r?\n24 80", hostel("logs", "one")[1])
    fails(hostel("run", "box", "-t", *NONE, "--", "true"), "-t: there is no terminal here")


def test_those_that_should_run(hostel):
    for name, policy in zip("abcdef", ("always", "unless-stopped", "on-failure", "no", "unless-stopped", "always"),
                            strict=True):  # fmt: skip
        hostel("run", "box", "-d", "--name", name, "--restart", policy, *NONE, "--", "sleep", "1000")
    hostel("stop", "-t", "0", "e", "f")
    for name in "abcd":  # as when the host has gone down: nobody had a word
        os.kill(Container.get(name).state.pid, signal.SIGKILL)
        Container.get(name)._folder.wait_free(20)
    assert hostel("start", "--missing") == (0, "", "")
    running = {container.name for container in Container.list() if container.state.state == "running"}
    assert running == {"a", "b", "c", "f"}
    assert hostel("start", "--missing") == (0, "", "")
    fails(hostel("start"), "start: name VMs and containers, or say --missing")
    fails(hostel("start", "--missing", "a"), "start: name VMs and containers, or say --missing")


def test_volumes(hostel, tmp_path):
    assert hostel("volume", "create", "data", "--label", "a=b") == (0, "data\n", "")
    assert hostel("run", "box", "-d", "--name", "one", *NONE, "-v", "data:/srv", "--", "sleep", "1000")[0] == 0
    assert hostel("exec", "-T", "one", "sh", "-c", "echo kept > /srv/file")[0] == 0
    assert re.fullmatch(r"NAME +CREATED +CONTAINERS\ndata +[\d: -]+ +one\n", hostel("volume", "ls")[1])
    fails(hostel("volume", "rm", "data"), "the volume 'data' is used by one")
    assert hostel("volume", "prune") == (0, "", "")
    hostel("rm", "-f", "one")
    found = json.loads(hostel("volume", "inspect", "data")[1])
    assert (Path(found["path"]) / "file").read_text() == "kept\n"
    assert (found["labels"], found["used_by"]) == ({"a": "b"}, [])
    assert json.loads(hostel("volume", "ls", "--json")[1]) == [found]
    assert hostel("volume", "ls", "-q")[1] == "data\n"
    assert hostel("volume", "prune") == (0, "data\n", "")
    fails(hostel("volume", "rm", "data"), "there is no volume named 'data'")
    fails(hostel("volume", "create", "a/b"), "is no name for a volume")


MISTAKES = [
    (["run", "box", "--kernel", "/x", "--isolation", "container"], "--kernel is for VMs"),
    (["run", "box", "--disk", "/x"], "--disk is for VMs"), (["run", "box", "--warm"], "--warm is for VMs"),
    (["run", "micro", "--cap-add", "ALL"], "--cap-add is for OCI images"),
    (["run", "--isolation", "container"], "a container needs an image"),
    (["run", "box", "--isolation", "vm", "--restart", "always"], "--restart doesn't go with an OCI image in a VM"),
    (["run", "box", "--isolation", "vm", "--user", "no-one"], "the image has no user 'no-one'"),
    (["run", "box", "--memory", "1K"], "at least 4M"), (["run", "box", "--pids-limit", "x"], "invalid int"),
    (["explain", "vm", "one"], "'one' is a container: hostel explain container one"),
    (["explain", "what", "one"], "invalid choice"), (["explain", "container", "none"], "no VM or container named"),
    (["snapshot", "create", "one"], "there is no VM named 'one'"), (["kill", "-s", "WHAT", "one"], "is no signal"),
    (["set", "one", "--balloon", "1G"], "no VM named 'one'"), (["set", "one", "--cpus", "x"], "--cpus takes"),
    (["logs", "-n", "-1", "one"], "--tail takes a number"), (["exec", "one", "--"], "what shall 'one' run"),
    (["run", "box", "-d", "--name", "one"], "a container named 'one' exists already"),
]  # fmt: skip


def test_one_line_for_each_mistake(hostel):
    hostel("run", "box", "-d", "--name", "one", *NONE, "--", "sleep", "1000")
    for words, why in MISTAKES:
        status, out, err = hostel(*words, *([] if "--" in words or words[0] != "run" else ["--", "true"]))
        assert status == 125 and out == "" and err.startswith("hostel: ") and err.count("\n") == 1, (words, err)
        assert re.search(why, err), err
