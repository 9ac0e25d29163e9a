"""The door and the commands around a fake guest: words, exit statuses, one line for each mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from answers import fails

from hostel.cli.main import COMMANDS
from hostel.client import machines
from hostel.client.vm import VM


@pytest.fixture
def images(monkeypatch, tmp_path):
    """An image store with micro in it: two files that the fake machine doesn't read."""
    from hostel.images import store

    folder = tmp_path / "image"
    folder.mkdir()
    for name in ("kernel", "initrd"):
        (folder / name).write_text("x")
    image = store.Image("micro", folder, "console=ttyS0", "6.1", "r", "now")

    def ensure(name="micro"):
        if name != "micro":
            raise store.unknown(name)
        return image

    monkeypatch.setattr(store, "ensure", ensure)


@pytest.fixture
def hostel(fake, images, typed):
    return typed


def test_help_and_version(hostel):
    status, out, _ = hostel("--version")
    assert (status, out) == (0, f"hostel {client_version()}\n")
    for words in ((), ("--help",), ("-h",), ("help",)):
        status, out, _ = hostel(*words)
        assert status == 0
        assert all(re.search(rf"^  {command} ", out, re.M) for command in COMMANDS)
    for command in COMMANDS:
        status, out, _ = hostel(command, "--help")
        assert status == 0 and out.startswith(f"usage: hostel {command}")


def client_version():
    from hostel import __version__

    return __version__


def test_version_and_help_load_nothing_heavy():
    code = (
        "import sys; from hostel.cli.main import main; main(['--version']); main(['--help']);"
        "print(sorted(m for m in sys.modules if m in ('msgspec', 'argparse', 'subprocess', 'hostel.client.vm')))"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.splitlines()[-1] == "[]"


def test_what_is_no_command(hostel):
    fails(hostel("rune"), "no command 'rune'; did you mean 'run'")
    fails(hostel("zzzzz"), "'hostel --help' lists")
    fails(hostel("ps", "--wide"), "ps: unrecognized arguments: --wide; see 'hostel ps --help'")
    fails(hostel("run", "--cpus"), "run: .*--cpus")
    fails(hostel("stop"), "stop: .*NAME")
    fails(hostel("ps", "--", "x"), "nothing to follow '--'")


@pytest.mark.parametrize(
    "words, pattern",
    [
        (["--cpus", "0"], "1 to 16 vCPUs, not 0"), (["--cpus", "1000"], "1 to 16 vCPUs, not 1000"),
        (["--cpus", "-1"], "1 to 16 vCPUs"), (["--cpus", "two"], "1 to 16, not 'two'"),
        (["--memory", "x"], "'x' is no size"), (["--memory", "15M"], "16M to 1T of memory, not 15M"),
        (["--memory", "0"], "16M to 1T"), (["--memory", "2T"], "16M to 1T"),
        (["--memory", "1000G"], "this host can't give 1000G of memory: it has "),
        (["--name", "A B"], "is no name for a VM"), (["--name", "../x"], "is no name"), (["--name", ""], "is no name"),
        (["--name", "x" * 64], "is no name"), (["micro", "--kernel", "/no/kernel"], "there is no kernel /no/kernel"),
        (["micro", "--kernel", "/"], "the kernel / is a folder"),
        (["--initrd", "/no/i"], "there is no initramfs /no/i"),
        (["x.invalid/nix"], "can't reach x.invalid"), (["--engine", "warp"], "invalid choice: 'warp'"),
        (["micro", "uname"], "unrecognized arguments: uname"), (["--append", "\udcff"], "must be UTF-8"),
        (["--kernel", "/etc/hostname"], "name an image beside the kernel"),
        (["--detach", "--kernel", "/etc/hostname"], "name an image beside the kernel"),
    ],
)
def test_run_with_bad_arguments(hostel, home, words, pattern):
    fails(hostel("run", *words, "--", "true"), pattern)
    assert not (home / "vms").exists() or os.listdir(home / "vms") == []


@pytest.mark.parametrize("command", ["stop", "kill", "rm", "start", "console", "logs", "inspect", "exec"])
def test_a_vm_that_is_not_there(hostel, command):
    words = ["true"] if command == "exec" else []
    fails(hostel(command, "nobody", *words), "there is no VM or container named 'nobody'")


def test_a_command_in_a_new_vm(hostel, home, monkeypatch, tmp_path):
    (tmp_path / "in").write_text("input\n")
    stdin = os.open(tmp_path / "in", os.O_RDONLY)
    saved = os.dup(0)
    os.dup2(stdin, 0)
    try:
        result = hostel("run", "--", "sh", "-c", "cat; echo error >&2; exit 7")
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert result == (7, "input\n", "error\n")
    assert os.listdir(home / "vms") == []


def without_input(call):
    saved, null = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    try:
        return call()
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(null)


def test_statuses_of_commands(hostel, home):
    for script, status in [("exit 0", 0), ("exit 255", 255), ("kill -TERM $$", 143)]:
        assert without_input(lambda s=script: hostel("run", "--", "sh", "-c", s))[0] == status
    status, out, err = without_input(lambda: hostel("run", "--", "/no/such"))
    assert (status, out) == (127, "") and "can't run it" in err and err.count("\n") == 1
    assert without_input(lambda: hostel("run", "--", "/etc/passwd"))[0] == 126
    assert os.listdir(home / "vms") == []


def test_without_a_command_or_terminal_a_shell_reads_the_input(hostel, tmp_path):
    (tmp_path / "in").write_text("echo $((6 * 7))\nexit 4\n")
    saved, stdin = os.dup(0), os.open(tmp_path / "in", os.O_RDONLY)
    os.dup2(stdin, 0)
    try:
        assert hostel("run") == (4, "42\n", "")
    finally:
        os.dup2(saved, 0)


def test_detached(hostel, home):
    assert hostel("run", "-d", "--name", "one", "--cpus", "2", "--memory", "64M") == (0, "one\n", "")
    fails(hostel("run", "-d", "--name", "one"), "'one' exists already .running.; .*'hostel stop one' ends it")
    status, out, _ = hostel("ps")
    header, row = out.splitlines()
    assert header.split() == ["NAME", "ISOLATION", "STATE", "IMAGE", "CPUS", "MEMORY", "UPTIME", "PID"]
    assert re.fullmatch(r"one +vm +running +micro +2 +64M +\ds +\d+", row)
    rows = json.loads(hostel("ps", "--json")[1])
    assert [(row["name"], row["cpus"], row["memory"]) for row in rows] == [("one", 2, 64 << 20)]
    assert hostel("ps", "-q")[1] == "one\n"
    assert json.loads(hostel("inspect", "one")[1])["spec"]["cpus"] == 2
    assert without_input(lambda: hostel("exec", "one", "--", "echo", "--x", "--"))[:2] == (0, "--x --\n")
    assert without_input(lambda: hostel("exec", "-e", "A=1", "-w", "/tmp", "one", "sh", "-c", "echo $A; pwd")) == (
        0, "1\n/tmp\n", "")
    fails(hostel("exec", "one"), "what shall 'one' run")
    fails(hostel("exec", "-e", "A", "one", "true"), "'A' is not KEY=VALUE")
    assert "fake guest" in hostel("logs", "one")[1]
    fails(hostel("rm", "one"), "'one' is running")
    assert hostel("stop", "one", "-t", "0") == (0, "", "")
    assert hostel("stop", "one")[0] == 0  # as it was wished
    assert "stopped" in hostel("ps")[1]
    fails(hostel("exec", "one", "true"), "'one' is not running")
    fails(hostel("console", "one"), "'one' is not running")
    assert hostel("start", "one")[0] == 0
    assert hostel("kill", "one")[0] == 0
    assert "stopped (killed)" in hostel("ps")[1]
    assert hostel("rm", "one") == (0, "", "")
    assert hostel("ps")[1].count("\n") == 1
    assert os.listdir(home / "vms") == []


def test_a_killed_worker(hostel, home):
    hostel("run", "-d", "--name", "one")
    os.kill(VM.get("one").state.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while "died" not in hostel("ps")[1]:
        assert time.monotonic() < deadline
    assert json.loads(hostel("ps", "--json")[1])[0]["state"] == "died"
    fails(hostel("run", "-d", "--name", "one"), "exists already .died.; .*'hostel rm one'")
    assert hostel("rm", "one") == (0, "", "")
    assert hostel("run", "-d", "--name", "one")[0] == 0
    hostel("rm", "-f", "one")
    assert os.listdir(home / "vms") == []


def test_the_worker_dies_under_a_command(hostel, home):
    def run():
        return hostel("run", "--", "sh", "-c", "kill -9 $(ps -o ppid= -p $PPID)")  # the agent's parent is the worker

    fails(without_input(run), "ended: .*while the command ran")
    assert os.listdir(home / "vms") == []


def test_a_detached_command(hostel):
    hostel("run", "-d", "--name", "one", "--", "sh", "-c", "echo out; exit 3")
    state = VM.get("one").wait(10)
    assert state.exit_status == 3
    assert "out" in hostel("logs", "one")[1]


def test_following_logs(hostel):
    hostel("run", "-d", "--name", "one")
    threading.Timer(0.5, lambda: VM.get("one").kill()).start()
    status, out, err = hostel("logs", "-f", "one")
    assert (status, err) == (0, "") and "fake guest" in out
    assert hostel("logs", "--worker", "one") == (0, "", "")


def test_one_failure_does_not_keep_others_from_their_turn(hostel):
    hostel("run", "-d", "--name", "two")
    status, _, err = hostel("rm", "-f", "one", "two")
    assert status == 125 and "no VM or container named 'one'" in err
    assert VM.list() == []


def test_what_nobody_expected_is_one_line(hostel, monkeypatch):
    monkeypatch.setattr(machines, "every", lambda: 1 / 0)
    fails(hostel("ps"), "internal error: ZeroDivisionError")
    monkeypatch.setenv("HOSTEL_DEBUG", "1")
    assert "Traceback" in hostel("ps")[2]


def test_a_reader_that_goes(fake):
    process = subprocess.Popen(
        [sys.executable, "-m", "hostel.cli.main", "completion", "bash"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(10) == 141


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(hostel, shell):
    status, out, _ = hostel("completion", shell)
    assert status == 0 and "--memory" in out.replace("-l memory", "--memory") and "console" in out


def test_bash_completes(hostel):
    script = hostel("completion", "bash")[1]

    def complete(*words):
        line = (
            f"{script}\nhostel() {{ {sys.executable} -m hostel.cli.main \"$@\"; }}\n"
            f"COMP_WORDS=({' '.join(w or chr(39) * 2 for w in words)}); COMP_CWORD={len(words) - 1}; _hostel; "
            "echo ${COMPREPLY[@]}"
        )
        return subprocess.check_output(["bash", "-c", line], text=True).split()

    hostel("run", "-d", "--name", "mine")
    assert complete("hostel", "st") == ["start", "stop"]
    assert complete("hostel", "run", "--symb") == ["--symbols"]
    assert complete("hostel", "stop", "mi") == ["mine"]
    assert set(complete("hostel", "image", "")) >= {"ls", "rm", "inspect"}
    assert complete("hostel", "disk", "create", "--backing-f") == ["--backing-format"]
