"""hostel on a terminal, with a real guest."""

import re
import signal
import sys
import time

import pytest
from terminal import Terminal

from hostel.client.vm import VM

HOSTEL = (sys.executable, "-m", "hostel.cli.main")


@pytest.fixture
def terminal(guests):
    made = []

    def terminal(*words, **more):
        made.append(Terminal(*HOSTEL, *words, **more))
        return made[-1]

    yield terminal
    for each in made:
        each.close()


def test_the_console_of_a_new_vm(terminal, home):
    t = terminal("run", rows=33, cols=97)
    t.expect(r"booting '[a-z]+-[a-z]+'; Ctrl-\] leaves")
    t.expect(r"# ")
    t.type("stty size\r")
    t.expect("33 97")
    t.expect("# ")
    t.resize(20, 77)
    t.process.send_signal(signal.SIGWINCH)
    # It goes on for a second: a shell that is back at once may have its terminal not echo before "^C" is
    t.type("sh -c 'trap \"sleep 1; exit 130\" INT; echo g\"\"o; sleep 100'\r")
    t.expect("\ngo")  # from what is in the foreground: the shell itself isn't where Ctrl-C goes to any more
    t.type("\x03")
    t.expect(r"\^C")
    t.expect("# ")
    t.type("echo status $?; stty size\r")
    t.expect("status 130")
    t.expect("20 77")
    t.expect("# ")
    t.type("poweroff\r")
    assert t.wait() == 0
    assert "ended: poweroff" in t.seen
    assert VM.list() == []


def test_leaving_and_coming_back(terminal):
    t = terminal("run")
    name = t.expect(r"booting '([a-z-]+)'")[1]
    t.expect(r"# ")
    t.type("A=hidden\r")
    t.expect("# ")
    t.type("\x1d")
    t.expect(f"'{name}' runs on; 'hostel console {name}' comes back")
    assert t.wait() == 0
    t = terminal("console", name)
    t.expect(r"# ")
    t.type("echo was-$A\r")
    t.expect("was-hidden")
    t.type("\x1d")
    assert t.wait() == 0
    VM.get(name).kill()
    assert VM.list() == []


def test_a_killed_vm_gives_the_terminal_back(terminal):
    t = terminal("run", "--name", "one")
    t.expect(r"# ")
    VM.get("one").kill()
    assert t.wait() == 0
    assert "ended: killed" in t.seen


def test_a_command_with_a_terminal(terminal):
    t = terminal("run", "--name", "one", "--", "sh")
    t.expect("# ")
    t.type("tty; stty size; echo $TERM; exit 9\r")
    t.expect("/dev/pts/0")
    t.expect("40 100")
    t.expect("xterm-256color")
    assert t.wait() == 9


def test_full_screen_programs(terminal):
    t = terminal("run", "--", "vi", "/tmp/x")
    t.expect(r"\x1b\[")
    t.expect(r"/tmp/x")
    t.type("ihello")
    t.expect("hello")
    t.type("\x1b")
    time.sleep(0.3)  # else vi takes it for the beginning of a function key
    t.type(":wq\r")
    assert t.wait() == 0


def test_without_a_terminal_for_the_command(terminal):
    t = terminal("run", "-T", "--", "sh", "-c", "tty; sleep 100")
    t.expect("not a tty")
    t.type("\x03")
    assert t.wait() == 130


def test_reboot_keeps_the_console(terminal):
    t = terminal("run", "--name", "one")
    t.expect(r"# ")
    t.type("reboot\r")
    t.expect(r"Restarting system")
    t.expect(r"# ")
    t.type("poweroff\r")
    assert t.wait() == 0
    assert re.search("poweroff", t.seen)
