"""The guest agent, run as the ordinary Linux program that it is, against its host side."""

import hashlib
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import termios
import time

import pytest

from hostel.images import agent, tiny
from hostel.vm.agent import (
    AgentChannel,
    Exited,
    Failed,
    Lost,
    Output,
    Ready,
    Started,
    StdinClosed,
)

PATIENCE = 60  # seconds until a test that waits for the agent gives up


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("agent") / "agent"
    path.write_bytes(tiny.compiled(agent))
    path.chmod(0o755)
    return str(path)


class Guest:
    """An agent process and the channel to it; ``turn`` moves bytes as the worker would."""

    def __init__(self, program, fd, argument, pass_fds=(), blocks=False):
        self.process = subprocess.Popen([program, argument], pass_fds=pass_fds, stdin=subprocess.DEVNULL)
        self.fd = fd
        self.channel = AgentChannel()
        self.unsent = b""
        self.out: dict[tuple[int, bool], bytearray] = {}
        self.events = []
        self.withheld: set[tuple[int, bool]] = set()  # outputs that nobody reads
        self.feeding: dict[int, bytes] = {}
        os.set_blocking(fd, False)
        self.until(lambda: self.channel.ready)

    def turn(self, wait=0.05):
        for stream, data in list(self.feeding.items()):
            data = data[self.channel.stdin(stream, data) :]
            self.feeding[stream] = data
            if not data:
                self.channel.end_stdin(stream)
                del self.feeding[stream]
        self.unsent = self.unsent or self.channel.outgoing(65536)
        readable, writable, _ = select.select([self.fd], [self.fd] if self.unsent else [], [], wait)
        if writable:
            try:
                self.unsent = self.unsent[os.write(self.fd, self.unsent) :]
            except BlockingIOError:
                pass
        if readable:
            data = os.read(self.fd, 65536)
            assert data, "the agent is gone"
            for event in self.channel.feed(data):
                if isinstance(event, Output):
                    key = (event.stream, event.error)
                    self.out.setdefault(key, bytearray()).extend(event.data)
                    if key not in self.withheld:
                        self.channel.consumed(event.stream, event.error, len(event.data))
                else:
                    self.events.append(event)

    def until(self, condition):
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < limit, "the agent didn't answer in time"
            self.turn()

    def ended(self, stream):
        return next((e for e in self.events if isinstance(e, Exited | Failed | Lost) and e.stream == stream), None)

    def started(self, stream):
        return next((e for e in self.events if isinstance(e, Started) and e.stream == stream), None)

    def run(self, argv, stdin=b"", **options):
        stream = self.channel.start(argv, **options)
        self.feeding[stream] = stdin
        self.until(lambda: self.ended(stream))
        return self.ended(stream), bytes(self.out.get((stream, False), b"")), bytes(self.out.get((stream, True), b""))

    def close(self):
        os.close(self.fd)
        try:
            self.process.wait(10)
        finally:
            self.process.kill()


@pytest.fixture(params=["socket", "terminal"])
def guest(request, program):
    """The agent on a socket, and on a terminal as in a VM (whose buffers are as small as a serial port's)."""
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        made = Guest(program, ours.detach(), str(theirs.fileno()), (theirs.fileno(),))
        theirs.close()
    else:
        ours, theirs = pty.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[3] = 0  # no echo before the agent has set the terminal up
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        made = Guest(program, ours, os.ttyname(theirs))
        os.close(theirs)
    yield made
    made.close()


def test_output_error_output_and_status_come_apart(guest):
    result = guest.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert result[0].status == 7
    assert result[1:] == (b"out\n", b"err\n")


def test_arguments_environment_and_folder_arrive_exactly(guest, tmp_path):
    argv = ["sh", "-c", 'printf "%s|" "$@"; printf "%s|" "$A" "$B"; pwd', "x", "", "a b", "ü\n'\"", "$(id)"]
    _, out, _ = guest.run(argv, env={"A": "1=2", "B": "", "PATH": "/usr/bin:/bin"}, cwd=str(tmp_path))
    assert out.decode() == f"|a b|ü\n'\"|$(id)|1=2||{tmp_path}\n"


def test_input_ends_where_it_ends(guest):
    assert guest.run(["cat"], b"hello")[1] == b"hello"
    assert guest.run(["cat"])[1] == b""
    assert guest.run(["cat"], stdin=b"ignored"[:0])[0].status == 0


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["/no/such/program"], 127),
        (["no-such-program"], 127),
        ([""], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
        (["/etc/passwd/x"], 127),
    ],
)
def test_what_cant_run_says_so_like_a_shell(guest, argv, status):
    result, out, error = guest.run(argv)
    assert isinstance(result, Failed)
    assert result.status == status
    assert (out, error) == (b"", b"")
    assert "can't run it: " in result.reason


def test_a_missing_folder_is_not_the_programs_fault(guest):
    result, _, _ = guest.run(["true"], cwd="/no/such/folder")
    assert isinstance(result, Failed) and result.status == 125


def test_path_is_searched_in_the_commands_own_environment(guest, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho found\n")
    search = {"PATH": f"/no/such:{tmp_path}:/bin"}
    assert guest.run(["tool"], env=search)[0].status == 126
    tool.chmod(0o755)
    assert guest.run(["tool"], env=search)[1] == b"found\n"


def test_a_signal_reaches_the_whole_group_and_is_told(guest):
    stream = guest.channel.start(["sh", "-c", "sleep 1000 & echo $!; wait"])
    guest.until(lambda: guest.out.get((stream, False)))
    child = int(guest.out[stream, False])
    guest.channel.signal(stream, signal.SIGKILL)
    guest.until(lambda: guest.ended(stream))
    assert guest.ended(stream) == Exited(stream, 0, signal.SIGKILL)
    assert guest.ended(stream).status == 137
    limit = time.monotonic() + PATIENCE
    while os.path.exists(f"/proc/{child}") and " Z " not in open(f"/proc/{child}/stat").read():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_signals_are_as_a_program_expects_them(guest):
    _, out, _ = guest.run(["sh", "-c", "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status"])
    # 32 and up are left out: on the host, where the agent runs here, they may come ignored from who started the tests
    assert [int(line.split()[1], 16) & 0x7FFFFFFF for line in out.splitlines()][:2] == [0, 0]
    assert guest.run(["sh", "-c", "yes | head -n 1"])[1] == b"y\n"


def test_nothing_of_the_agents_is_open_in_a_command(guest):
    _, out, _ = guest.run(["sh", "-c", "ls /proc/self/fd"])
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3: the folder that ls reads


def test_a_background_process_doesnt_hold_the_command(guest):
    result, out, _ = guest.run(["sh", "-c", "sleep 1000 & echo $!"])
    assert result.status == 0
    os.kill(int(out), signal.SIGKILL)


def test_a_command_that_closes_its_input_stops_the_sender(guest):
    stream = guest.channel.start(["sh", "-c", "exec <&-; sleep 1000"])
    guest.until(lambda: guest.started(stream))
    guest.feeding[stream] = bytes(1 << 20)
    guest.until(lambda: StdinClosed(stream) in guest.events and stream not in guest.feeding)
    guest.channel.signal(stream, signal.SIGTERM)
    guest.until(lambda: guest.ended(stream))
    assert guest.ended(stream).status == 128 + signal.SIGTERM


def test_a_terminal_has_its_size_echo_and_control_characters(guest):
    stream = guest.channel.start(["sh", "-c", "stty size; cat; stty size; tty"], tty=True, rows=33, columns=101)
    guest.until(lambda: b"33 101\r\n" in guest.out.get((stream, False), b""))
    guest.channel.resize(stream, 40, 120)
    guest.channel.stdin(stream, b"line\n")
    guest.until(lambda: b"line\r\nline\r\n" in guest.out[stream, False])
    guest.channel.end_stdin(stream)
    guest.until(lambda: guest.ended(stream))
    assert b"40 120\r\n/dev/pts/" in guest.out[stream, False]
    assert (stream, True) not in guest.out


def test_control_c_interrupts_a_terminals_command(guest):
    stream = guest.channel.start(["cat"], tty=True)
    guest.channel.stdin(stream, b"ready\n")
    guest.until(lambda: b"ready\r\nready\r\n" in guest.out.get((stream, False), b""))
    guest.channel.stdin(stream, b"\x03")
    guest.until(lambda: guest.ended(stream))
    assert guest.ended(stream).status == 130


def test_every_byte_of_20_mb_both_ways(guest):
    data = random.Random(1).randbytes(20_000_000)
    result, out, _ = guest.run(["cat"], data)
    assert result.status == 0
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_ten_at_once_each_with_its_own_bytes(guest):
    streams = {}
    for n in range(10):
        data = random.Random(n).randbytes(300_000 + n)
        script = f"cat | tee /dev/stderr; exit {n}"
        streams[guest.channel.start(["sh", "-c", script])] = (n, data)
    guest.feeding |= {stream: data for stream, (_, data) in streams.items()}
    guest.until(lambda: all(map(guest.ended, streams)))
    for stream, (n, data) in streams.items():
        assert guest.ended(stream).status == n
        assert guest.out[stream, False] == data
        assert guest.out[stream, True] == data


def test_an_output_that_nobody_reads_stops_alone(guest):
    script = "head -c 3000000 /dev/zero & head -c 3000000 /dev/zero | tr '\\0' e >&2; wait"
    stream = guest.channel.start(["sh", "-c", script])
    guest.withheld.add((stream, False))
    guest.until(lambda: len(guest.out.get((stream, True), b"")) == 3_000_000)
    assert guest.run(["echo", "others go on"])[1] == b"others go on\n"
    held = len(guest.out[stream, False])
    assert held == 256 * 1024 and not guest.ended(stream)
    guest.withheld.clear()
    guest.channel.consumed(stream, False, held)
    guest.until(lambda: guest.ended(stream))
    assert guest.out[stream, False] == bytes(3_000_000)
    assert guest.out[stream, True] == b"e" * 3_000_000


def test_input_that_nobody_reads_stops_alone(guest):
    blocked = guest.channel.start(["sleep", "1000"])
    guest.feeding[blocked] = bytes(1 << 20)
    assert guest.run(["wc", "-c"], bytes(1_000_000))[1].strip() == b"1000000"
    assert blocked in guest.feeding
    guest.channel.signal(blocked, signal.SIGTERM)
    guest.until(lambda: guest.ended(blocked))


def test_output_before_the_exit_is_never_lost(guest):
    for n in range(30):
        size = 1000 * n
        result, out, _ = guest.run(["sh", "-c", f"head -c {size} /dev/zero; exit 3"])
        assert (result.status, len(out)) == (3, size)


def test_more_commands_than_slots_are_refused_and_slots_return(guest):
    streams = [guest.channel.start(["cat"]) for _ in range(66)]
    guest.until(lambda: all(guest.started(s) or guest.ended(s) for s in streams))
    refused = [s for s in streams if guest.ended(s)]
    assert refused == streams[64:] and all(guest.ended(s).status == 125 for s in refused)
    for stream in streams[:64]:
        guest.channel.end_stdin(stream)
    guest.until(lambda: all(map(guest.ended, streams)))
    assert guest.run(["echo", "again"])[1] == b"again\n"


def test_long_arguments(guest):
    words = ["x" * 60_000, "y" * 60_000, *(str(n) for n in range(5000))]
    _, out, _ = guest.run(["sh", "-c", 'printf %s "$*" | cksum; echo $#', "sh", *words])
    text = " ".join(words)
    expected = subprocess.run(["cksum"], input=text.encode(), capture_output=True).stdout
    assert out == expected + b"5002\n"


def test_abandoned_commands_die_and_the_agent_goes_on(guest):
    stream = guest.channel.start(["sleep", "1000"])
    guest.until(lambda: guest.started(stream))
    pid = guest.started(stream).pid
    guest.events = []
    assert guest.channel.abandon() == [Lost(stream)]
    guest.until(lambda: Ready(agent.VERSION) in guest.events)
    assert guest.run(["cat"], bytes(200_000))[1] == bytes(200_000)
    guest.until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_state_can_be_saved_and_loaded_in_the_middle(guest):
    data = random.Random(2).randbytes(2_000_000)
    stream = guest.channel.start(["cat"])
    guest.feeding[stream] = data
    while not guest.ended(stream):
        guest.turn()
        state = guest.channel.save()
        guest.channel = AgentChannel()
        guest.channel.load(state)
    assert guest.out[stream, False] == data


def test_identity_with_stop_ends_all_commands_and_forgets_what_they_wrote(guest):
    plain = guest.channel.start(["sh", "-c", "sleep 1000 & exec sleep 1000"])
    flood = guest.channel.start(["yes"])
    guest.withheld.add((flood, False))
    # job control: a process group of its own, in the terminal's session, that ignores its hangup
    script = "set -m; (trap '' HUP; exec sleep 1000) & echo pid $!; sleep 1000"
    shell = guest.channel.start(["sh", "-c", script], tty=True)
    done = guest.channel.start(["head", "-c", "1000000", "/dev/zero"])
    guest.withheld.add((done, False))
    guest.until(lambda: re.search(rb"pid \d+\r", guest.out.get((shell, False), b"")))
    guest.until(lambda: all(len(guest.out.get((stream, False), b"")) == 256 * 1024 for stream in (flood, done)))
    job = int(re.search(rb"pid (\d+)", guest.out[shell, False])[1])
    pids = [guest.started(stream).pid for stream in (plain, flood, shell)]
    more = [guest.channel.start(["cat"]) for _ in range(61)]
    guest.until(lambda: any(map(guest.ended, more)))  # all slots are taken
    assert guest.run(["true"])[0].status == 125
    assert not guest.ended(plain)
    result, out, err = guest.run(["agent", "identity", "stop=all"], itself=True)
    assert (result.status, out, err) == (0, b"", b"")
    assert all(guest.ended(stream) == Exited(stream, 0, signal.SIGKILL) for stream in (plain, flood, shell, more[0]))
    for pid in (*pids, job):
        guest.until(lambda pid=pid: not alive(pid))
    assert [e for e in guest.events if isinstance(e, Lost)] == []
    assert guest.channel.statistics()["open"] == 0
    assert guest.run(["cat"], bytes(300_000))[1] == bytes(300_000)


def test_identity_without_stop_leaves_commands_alone(guest):
    stream = guest.channel.start(["cat"])
    for arguments in (["stop=none"], ["hostel=stop=all"]):
        guest.run(["agent", "identity", *arguments], itself=True)
    guest.run(["sh", "-c", ":", "identity", "stop=all"])
    guest.channel.stdin(stream, b"there\n")
    guest.until(lambda: guest.out.get((stream, False)) == b"there\n")
    guest.channel.end_stdin(stream)
    guest.until(lambda: guest.ended(stream))
    assert guest.ended(stream).status == 0


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def elsewhere(program):
    """``elsewhere(script)``: runs it where host name, /etc and network are its own; $1 is the agent."""
    enter = ["unshare", "--user", "--map-root-user", "--mount", "--uts", "--net"]
    setup = """
mount -t tmpfs none /etc && cd /etc && ip tuntap add card0 mode tap && ip link set card0 address 02:00:00:00:00:01
echo old > hostname; echo 0123 > machine-id
printf '127.0.0.1 localhost\\n127.0.1.1\\told.lan old\\n::1 ip6' > hosts
"""
    if not shutil.which("unshare") or subprocess.run([*enter, "sh", "-ec", setup], capture_output=True).returncode:
        pytest.skip("no namespaces with taps on this host")

    def run(script):
        command = [*enter, "sh", "-ec", setup + script, "sh", program]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    return run


def test_identity_sets_the_names(elsewhere):
    done = elsewhere(
        f"$1 identity machine-id={'ab' * 16} hostname=new; cat /proc/sys/kernel/hostname hostname machine-id hosts"
    )
    assert done.stderr == ""
    assert done.stdout == f"new\nnew\n{'ab' * 16}\n127.0.0.1 localhost\n127.0.1.1 new\n::1 ip6\n"
    done = elsewhere(f"rm *; $1 identity machine-id={'ab' * 16} hostname=new; cat /proc/sys/kernel/hostname; ls")
    assert (done.stdout, done.stderr) == ("new\n", "")  # what isn't there isn't made


@pytest.mark.parametrize("card", ["card0", "02:00:00:00:00:01", "$(ip -o link show card0 | cut -d: -f1)"])
@pytest.mark.parametrize("state", ["up", "down"])
def test_identity_sets_a_cards_mac(elsewhere, card, state):
    done = elsewhere(f"""
ip link set lo up; ip link set card0 {state}
$1 identity mac={card}:02:00:5e:AB:cd:0f
ip -o link show card0; ip -o link show lo
""")
    assert done.stderr == ""
    one, lo = done.stdout.splitlines()
    assert "02:00:5e:ab:cd:0f" in one and (",UP" in one) == (state == "up")
    assert "00:00:00:00:00:00" in lo and "LOOPBACK,UP" in lo


def test_identity_says_what_went_wrong_and_does_the_rest(elsewhere):
    done = elsewhere(f"""
$1 identity time={int(time.time())}.5 renew=nosuch0 colour=red hostname=new entropy=0g mac=card0:02:00:00:00:00 \
    machine-id=xyz mac=ff:ff:ff:ff:ff:ff:02:00:00:00:00:02 mac=card0:03:00:00:00:00:00 time=1000000000 || echo $?
cat hostname machine-id
""")
    # ENODEV 19, EINVAL 22, EPERM 1, EADDRNOTAVAIL 99; the keys' own order
    assert done.stdout == "1\nnew\n0123\n"
    lines = [line for line in done.stderr.splitlines() if "time=1" not in line or "time=1000000000" in line]
    assert lines == [
        "identity: time=1000000000: error 01",
        "identity: entropy=0g: error 22",
        "identity: machine-id=xyz: error 22",
        "identity: mac=card0:02:00:00:00:00: error 22",
        "identity: mac=ff:ff:ff:ff:ff:ff:02:00:00:00:00:02: error 19",
        "identity: mac=card0:03:00:00:00:00:00: error 99",
        "identity: renew=nosuch0: error 19",
        "identity: colour=red: error 22",
    ]
    now = "$(date +%s.%N)"
    assert elsewhere(f"$1 identity time={now}").returncode == 0  # near enough to leave the clock alone
    assert elsewhere("$1 identity time=$(($(date +%s) + 1)).999").returncode == 1
    done = elsewhere(f"$1 identity set-time={now}")  # even so
    assert done.returncode == 1 and done.stderr.startswith("identity: set-time=") and done.stderr.endswith("error 01\n")
