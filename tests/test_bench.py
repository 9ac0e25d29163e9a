"""The harness of ``make bench``: that it counts right. No time is asserted; the machine may be busy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from bench import debian, guest, process, profile, programs, shares, source
from bench.__main__ import DOCUMENTS, main, parse, run_round
from bench.console import Console
from bench.errors import BenchError
from bench.hostel import Hostel
from bench.native import Native
from bench.programs import kernels
from bench.report import BEGIN, END, Report, Result
from bench.row import Context, Goal, Mean, Row, Sample, Scaling, each, program, timed
from bench.rows import SUITES, images, oci_images, select
from bench.rows import debian as debian_rows
from bench.rows import shares as shares_rows

from hostel.images import cpio

ROOT = Path(__file__).resolve().parents[1]


class FakePeer:
    """A shell of the host in a machine's place."""

    is_machine = True

    def __init__(self, name="hostel", answer="1"):
        self.name = self.title = name
        self.answer = answer
        self.scripts = []

    def run(self, script):
        from bench.peer import Ran

        self.scripts.append(script)
        return Ran(2.0, self.answer, 1.5)


def report(**changes):
    row = Row("fork", "forks", "s", each(lambda peer, context: Sample(1.0)), Goal(speed=0.7))
    rounds = [
        {"hostel": Sample(1.0, 1.0), "qemu": Sample(2.0, 3.0), "native": Sample(0.1)},
        {"hostel": Sample(3.0), "qemu": Sample(3.0)},
        {"hostel": Sample(2.0, 2.0), "qemu": Sample(8.0, 10.0)},
    ]
    host = {"cpu": "a CPU", "cores": 2, "memory_gib": 4.0, "kernel": "6.1", "load_average": 0.1}
    versions = {"hostel": "0.1.0", "qemu": "QEMU 7"}
    return Report(host, versions, "Linux", False, 3, [], [Result(row, rounds)], **changes)


def rows_of(groups):
    return [row for group in groups.values() for row in group.rows]


@pytest.mark.parametrize("suite", SUITES)
def test_rows_have_distinct_names(suite):
    groups = SUITES[suite]
    rows = rows_of(groups)
    names = [row.key for row in rows] + list(groups)
    assert len({row.key for row in rows}) == len(rows)
    assert rows_of(select(suite, [])) == rows
    assert len({row.title for row in rows}) == len(rows)
    assert all(name == name.strip() and "," not in name for name in names)
    named = {key for group in groups.values() for mean in group.means for key in mean.rows}
    named |= {key for group in groups.values() for both in group.scalings for key in (both.before, both.after)}
    assert named <= {row.key for row in rows}


def test_select_by_row_and_group():
    chosen = select("whole", ["fork", "boot"])
    assert [row.key for row in rows_of(chosen)] == ["boot-kernel", "boot-start", "boot-command", "fork"]
    assert list(chosen) == ["boot", "processes"]
    with pytest.raises(KeyError):
        select("whole", ["frok"])


@pytest.mark.parametrize("argv", [
    ["--rows", "frok"], ["--runs", "0"], ["--nonsense"], ["cpu", "--rows", "fork"], ["gpu"], ["--peers", "hostle"],
    ["--peers", ","], ["--docs", "--peers", "hostel"],
])
def test_a_wrong_command_line_has_status_2(argv):
    with pytest.raises(SystemExit) as e:
        parse(argv)
    assert e.value.code == 2


def test_the_ratio_is_taken_within_a_run():
    result = report().results[0]
    assert result.ratios("qemu") == [2.0, 1.0, 4.0]
    assert (result.median("hostel"), result.median("qemu"), result.median("native")) == (2.0, 3.0, 0.1)
    assert result.ratios("qemu", cpu=True) == [3.0, 5.0]
    assert result.reached() is True
    slow = Result(Row("a", "a", "s", each(lambda peer, context: Sample(1.0)), Goal(speed=2.1)), result.rounds)
    assert slow.reached() is False
    assert "✗" in Report({**report().host}, report().versions, "", False, 1, [], [slow]).markdown()


def test_a_goal_for_hostels_own_value():
    assert Goal(most=2).reached(1.9, 0.1) is True
    assert Goal(most=2).reached(2.1, 9.0) is False
    assert Goal(least=1.7).reached(1.8) is True
    assert Goal(least=1.7).reached(1.6) is False
    assert Goal().reached(1.0, 1.0) is None


def test_a_goal_against_both_peers_needs_both():
    goal = Goal(speed=4, slower=2.2)
    assert goal.text("s") == "≥ 4 × TCG, ≤ 2.2 × host"
    assert goal.reached(1.0, 4.1, 2.1) is True
    assert goal.reached(1.0, 4.1, 2.3) is False
    assert goal.reached(1.0, 3.9, 2.1) is False
    assert goal.reached(1.0, 4.1, None) is None  # not measured
    assert goal.reached(1.0, 3.9, None) is False


def test_a_mean_is_of_each_rounds_ratios():
    one = report()
    rounds = [{"hostel": Sample(1.0), "qemu": Sample(8.0), "native": Sample(0.4)}] + one.results[0].rounds[1:]
    other = Row("other", "other", "s", each(lambda peer, context: Sample(1.0)))
    one.results.append(Result(other, rounds))
    one.means = [Mean("both", ("fork", "other"), Goal(speed=3)), Mean("partly", ("fork", "missing"))]
    (mean,) = one.mean_results()
    assert mean.ratios("qemu") == pytest.approx([4.0, 1.0, 4.0])
    assert mean.ratios("native") == pytest.approx([0.2])
    assert mean.reached() is True
    table = [line for line in one.markdown().splitlines() if line.startswith("|")]
    assert table[-1].startswith("| both ") and "partly" not in one.markdown()
    one.results[1].rounds.pop()  # a round broke off
    assert mean.ratios("qemu") == [] and mean.reached() is None


def test_scaling_is_of_each_peer_within_a_round():
    one = report()
    after = [{"hostel": Sample(0.5, 1.25), "qemu": Sample(4.0)}, {"hostel": Sample(2.0), "qemu": Sample(1.0)}]
    one.results.append(Result(Row("two", "two", "s", each(lambda peer, context: Sample(1.0))), after))
    one.scalings = [Scaling("gain", "fork", "two", Goal(least=1.7)), Scaling("none", "fork", "missing")]
    (scaling,) = one.scaling_results()
    assert scaling.median("hostel") == 1.75 and scaling.median("qemu") == 1.75 and scaling.median("native") is None
    assert scaling.reached() is True and scaling.by_cpu() == 1.6  # of one round: another has no processor time
    table = [line for line in one.markdown().splitlines() if line.startswith("|")]
    assert table[-1].startswith("| gain ") and "1.75 ×" in table[-1] and "≥ 1.7 ×" in table[-1]
    assert json.loads(one.json())["scalings"]["gain"]["hostel"] == 1.75


def test_the_table_goes_between_the_documents_marks(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(f"above\n{BEGIN}\nOLD\n{END}\nbelow\n")
    report().write_into(document)
    text = document.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "OLD" not in text
    assert "| forks |" in text and "2 ×" in text and "1 – 4" in text and "≥ 0.7 × TCG | ✓" in text
    report().write_into(document)
    assert document.read_text().count("| forks |") == 1


def test_the_projects_documents_have_a_place_for_the_table():
    for document in DOCUMENTS.values():
        text = document.read_text()
        assert text.count(BEGIN) == 1 and text.count(END) == 1


def test_json_holds_every_value(tmp_path):
    data = json.loads(report().save(tmp_path).read_text())
    assert data["rows"]["fork"]["rounds"][2] == {
        "hostel": {"value": 2.0, "cpu": 2.0}, "qemu": {"value": 8.0, "cpu": 10.0},
    }
    assert data["rows"]["fork"]["reached"] is True


def test_a_quick_row_does_a_tenth_and_cleans_up():
    peer = FakePeer()
    assert timed("work %d", 50, "make %d", "rm data")([peer], Context(quick=True)) == {"hostel": Sample(2.0, 1.5)}
    assert peer.scripts == ["make 5", "work 5", "rm data"]


def test_peers_must_agree():
    with pytest.raises(BenchError, match="different results"):
        timed("work", 1)([FakePeer("hostel", "1"), FakePeer("qemu", "2")], Context())


def test_a_wrong_answer_costs_its_row_only(monkeypatch):
    class Steady(FakePeer):
        def __init__(self, boot):
            super().__init__(boot, {"hostel": "1", "qemu": "2"}[boot])

        def start(self):
            pass

        def close(self):
            pass

    answers = Result(Row("a", "answers", "s", timed("work", 1)))
    other = Result(Row("b", "other", "s", each(lambda peer, context: Sample(1.0))))
    one = report()
    one.results = [answers, other]
    kinds = [lambda boot: Steady("hostel"), lambda boot: Steady("qemu")]
    run_round(one, kinds, None, one.results, Context(), 0)
    assert not answers.rounds and answers.reached() is False and other.rounds
    assert "**Wrong: answers: different results: hostel: '1'; qemu: '2'**" in one.markdown()
    assert json.loads(one.json())["rows"]["a"]["wrong"]


def test_programs_must_agree():
    from bench.peer import Worked

    class Worker(FakePeer):
        def work(self, command):
            self.scripts.append(command)
            return Worked(0.5, self.answer, 0.4)

    same = [Worker("hostel"), Worker("qemu")]
    assert program("p %d")(same, Context(quick=True)) == {"hostel": Sample(0.5, 0.4), "qemu": Sample(0.5, 0.4)}
    assert same[0].scripts == [":", "p 10", ":"]
    with pytest.raises(BenchError, match="different results: hostel: '1'; qemu: '2'"):
        program("p")([Worker("hostel"), Worker("qemu", "2")], Context())


def test_a_file_of_the_initramfs():
    tree = cpio.Tree()
    tree.file("bin/odd", b"12345")
    tree.file("bin/busybox", b"the busybox")
    assert guest.find_file(tree.pack(), "bin/busybox") == b"the busybox"
    with pytest.raises(BenchError):
        guest.find_file(tree.pack(), "bin/none")


def test_memory_beyond_leaves_the_guests_out(monkeypatch):
    mib = 1 << 20
    rows = [
        process.Mapping(512 * mib, 80 * mib, "rw-p"),
        process.Mapping(1024 * mib, 30 * mib, "rwxp"),   # QEMU's code cache is larger than the guest
        process.Mapping(4096 * mib, 5 * mib, "rw-p"),
        process.Mapping(4 * mib, 4 * mib, "r-xp"),
    ]
    monkeypatch.setattr(process, "mappings", lambda pid: rows)
    assert process.memory_beyond(1, 512 * mib) == 39 * mib
    rows += [process.Mapping(64 * mib, n * mib, p, "00:01 7") for n, p in ((9, "rw-s"), (10, "r-xs"))]  # hostel's
    assert process.memory_beyond(1, 512 * mib) == 49 * mib
    del rows[-2:]
    # Merged with a neighbour of 3 MiB: the surplus counts as used.
    rows[0] = process.Mapping(515 * mib, 80 * mib, "rw-p")
    assert process.memory_beyond(1, 512 * mib) == 42 * mib
    # Less of it resident than could hide: the whole of it counts.
    rows[0] = process.Mapping(515 * mib, 2 * mib, "rw-p")
    assert process.memory_beyond(1, 512 * mib) == 41 * mib


def test_this_process_in_proc():
    import os

    before = process.cpu_seconds(os.getpid())
    sum(range(3_000_000))
    assert process.cpu_seconds(os.getpid()) > before
    assert sum(m.rss for m in process.mappings(os.getpid())) > 1 << 20


class Shell:
    """``with Shell(script) as console``: a shell of the host behind a ``Console``."""

    def __init__(self, script):
        self.process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def __enter__(self):
        return Console(self.process, "the shell")

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()


def test_console_keeps_what_follows_a_match():
    with Shell("printf 'one two'; exec cat") as console:
        first, match, before = console.expect(rb"t(w)", 30)
        assert (before, match[1]) == (b"one ", b"w")
        console.type(" three\n")
        second, _, before = console.expect(rb"three\n", 30)
        assert before == b"o " and second >= first


def test_console_says_what_it_waited_for():
    with Shell("echo hello; exec cat") as console:
        _, _, before = console.expect(rb"\n", 30)
        assert before == b"hello"
        console.type("again, again\n")
        console.expect(rb"again", 30)
        with pytest.raises(BenchError, match="'never' within 0 s.*again"):
            console.expect(rb"never", 0.01)
    with Shell("echo oops") as console, pytest.raises(BenchError, match="ended too early.*oops"):
        console.expect(rb"never", 30)


@pytest.fixture
def native(monkeypatch, tmp_path):
    """The host as a peer, with its own busybox where it has one, else a shell that can do as much."""
    shell = shutil.which("busybox") or shutil.which("sh")
    monkeypatch.setattr(Native, "command", lambda self: [shell, *(["sh"] if shell.endswith("busybox") else [])])
    monkeypatch.setattr(Native, "preparation", lambda self: "PATH=/bin:/usr/bin")
    monkeypatch.setattr(guest.Guest, "busybox", lambda self: b"")
    peer = Native(guest.Guest(tmp_path, tmp_path, "", ""))
    peer.start()
    yield peer
    peer.close()
    peer.close()  # harmless


def test_run_returns_output_and_time(native):
    ran = native.run("echo one; echo two")
    assert ran.output == "one\ntwo" and ran.seconds >= 0
    with pytest.raises(BenchError, match="status 3: why"):
        native.run("echo why; (exit 3)")
    assert native.run("cat; echo after").output == "after"  # a script has no input of the next ones


def test_a_program_is_timed_between_its_marks(native):
    done = native.work("echo @WORK; echo noise; echo @DONE 0af1 1500000000 1200000000; true")
    assert (done.seconds, done.checksum, done.cpu) == (1.5, "0af1", 1.2)
    with pytest.raises(BenchError, match="ended early: why"):
        native.work("echo why; false")


def test_a_program_that_dies_at_its_work(native):
    with pytest.raises(BenchError, match="ended early"):
        native.work("echo @WORK; sh -c 'kill -9 $$'")


def test_a_program_that_fails_after_its_work(native):
    with pytest.raises(BenchError, match="status 3"):
        native.work("echo @WORK; echo @DONE 1 1 1; (exit 3)")


def test_openssls_speed_is_seconds_for_a_gigabyte():
    said = "+DT:AES-128-CTR:1:16384\n+R:61036:AES-128-CTR:1.000000\n+F:22:AES-128-CTR:500000000.00"
    measure = debian_rows.speed("aes-128-ctr")
    assert measure([FakePeer(answer=said)], Context()) == {"hostel": Sample(2.0)}
    with pytest.raises(BenchError, match="openssl speed says"):
        measure([FakePeer(answer="+R:1")], Context())


def test_a_roots_archive_becomes_a_folder(tmp_path):
    tree = cpio.Tree()
    tree.file("usr/bin/tool", b"the tool", 0o755)
    tree.link("bin", "usr/bin")
    tree.device("dev/console", "c", 5, 1)
    debian.unpack(tree.pack(), tmp_path)
    tool = tmp_path / "bin" / "tool"
    assert tool.read_bytes() == b"the tool" and tool.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin").is_symlink() and not list((tmp_path / "dev").iterdir())


def test_the_hosts_folder_has_todays_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "BUILT", tmp_path)
    tree = cpio.Tree()
    tree.file("usr/bin/tool", b"the tool", 0o755)
    root = tmp_path / "bench-0123.cpio.zst"
    root.write_bytes(zstandard.ZstdCompressor().compress(tree.pack()))
    folder = debian.unpacked(root)
    (folder / "bench" / "unit.c").write_text("old")
    assert debian.unpacked(root) == folder and (folder / "usr/bin/tool").exists() and (folder / "tmp").is_dir()
    assert (folder / "bench" / "unit.c").read_text() == source.unit(2000, 0)
    assert (folder / "bench" / "make" / "Makefile").read_text().startswith("all: u0.o u1.o")


@pytest.mark.parametrize("lines", [500, 2000])
def test_the_source_is_always_the_same(lines, tmp_path):
    text = source.unit(lines, 7)
    assert text == source.unit(lines, 7) != source.unit(lines, 8)
    assert lines <= text.count("\n") + 1 < lines + 40


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc isn't installed")
def test_the_source_compiles(tmp_path):
    (tmp_path / "unit.c").write_text(source.unit(300, 3))
    command = ["gcc", "-Wall", "-Werror", "-c", "-o", tmp_path / "unit.o", tmp_path / "unit.c"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_a_python_kernel(name, capsys):
    kernels.main(name, 1)
    first = capsys.readouterr().out
    kernels.main(name, 1)
    pattern = r"@WORK\n@DONE ([0-9a-f]{16}) \d+ \d+\n"
    assert re.fullmatch(pattern, first)[1] == re.fullmatch(pattern, capsys.readouterr().out)[1]
    if name not in kernels.WHOLE:
        kernels.main(name, 5)
        assert re.fullmatch(pattern, capsys.readouterr().out)[1] != re.fullmatch(pattern, first)[1]


def test_the_python_kernels_are_right():
    assert kernels.fannkuch(7)[0] == 16
    assert kernels.queens(6) == 4
    assert kernels.pidigits(20) == "31415926535897932384"
    assert kernels.spectral(100).startswith("1.274")


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc isn't installed")
def test_the_programs_are_built_once_and_run(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "BUILT", tmp_path / "built")
    sources = tmp_path / "sources"
    shutil.copytree(programs.SOURCES, sources)
    for path in sources.glob("*.c"):
        if path.name != "calls.c":
            path.unlink()
    monkeypatch.setattr(programs, "SOURCES", sources)
    folder = programs.build()
    assert {path.name for path in folder.iterdir()} == {"calls", "kernels.py"} and programs.build() == folder
    assert guest.find_file(programs.packed(folder), "bench/calls") == (folder / "calls").read_bytes()
    printed = [subprocess.run([folder / "calls", share], capture_output=True, text=True).stdout for share in ("1", "5")]
    marks = [re.fullmatch(r"@WORK\n@DONE ([0-9a-f]{16}) \d+ \d+\n", text) for text in printed]
    assert marks[0][1] != marks[1][1]
    (sources / "calls.c").write_text("int main(void) { return 0 }")
    with pytest.raises(BenchError, match="gcc can't compile calls.c"):
        programs.build()
    assert not [path for path in programs.BUILT.iterdir() if path.is_dir()]


def test_without_qemu_there_is_one_line_of_advice(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["--quick"]) == 2
    printed = capsys.readouterr()
    assert "apt-get install qemu-system-x86" in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU isn't installed")
def test_one_quick_row_runs():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--rows", "boot-kernel,fork"], cwd=ROOT, capture_output=True,
        text=True, timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "kernel entry to" in done.stdout and "fork and exec" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc isn't installed")
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU isn't installed")
def test_the_eight_programs_agree_everywhere():
    """A differing checksum is status 1."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "cpu", "--runs", "1", "--rows", "eight"], cwd=ROOT, capture_output=True,
        text=True, timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("× host") == 9


@pytest.mark.skipif(not shutil.which("git"), reason="git isn't installed")
def test_a_shared_folder_has_what_a_guest_unpacks(tmp_path):
    folder = shares.Folder()
    try:
        repository = folder.path / "repository"
        git = ["git", "-C", repository, "status", "--porcelain"]
        assert subprocess.run(git, capture_output=True, check=True).stdout == b""
        (tmp_path / "tree.tar").write_bytes(shares.archive())
        tree = folder.path / "tree"
        tree.mkdir()
        subprocess.run(["tar", "xf", tmp_path / "tree.tar", "-C", tree], check=True)
        assert shares.digest(tree) == folder.digest and folder.digest.startswith("5000 files, ")
        (tree / "d7" / "f3").chmod(0o600)
        assert shares.digest(tree) != folder.digest
    finally:
        folder.close()
    assert not folder.path.exists()


def test_a_share_that_is_wrong_has_no_speed():
    peers = [FakePeer("hostel", ""), FakePeer("qemu", " M d3/f1")]
    for peer in peers:
        peer.has_share, peer.cpu_seconds = True, lambda: 1.0
    with pytest.raises(BenchError, match="qemu: .*status.* went wrong:  M d3/f1"):
        shares_rows.GIT(peers, Context())
    peers[1].has_share = False  # no virtiofsd
    assert shares_rows.GIT(peers, Context()) == {"hostel": Sample(2.0, 0.0)}


REPORT = """\
# To display the perf.data header info, please use --header/--header-only options.
#
    50.00%  [.] guest_401668 user64 116B                         -      -
    20.00%  [.] do_syscall_64+0x12 kernel64 48B cold             -      -
    10.00%  [.] __pyx_f_6hostel_3cpu_2bt_5cache_find             -      -
     5.00%  [.] __pyx_f_6hostel_3cpu_2bt_3run_6BtVcpu_loop       -      -
     4.00%  [.] __pyx_pw_6hostel_5board_4apic_9LocalApic_3read   -      -
     6.00%  [k] finish_task_switch.isra.0                        -      -
     3.00%  [.] hostel_stubs                                     -      -
     2.00%  [.] _PyObject_Malloc                                 -      -

"""


def test_a_profile_is_told_by_places():
    lines = list(profile.symbols(REPORT))
    assert lines[0] == (50.0, "guest_401668 user64 116B", False) and lines[5][2] and len(lines) == 8
    assert profile.places(lines) == {
        "translated code of the guest's programs": 50.0, "translated code of the guest's kernel cold": 20.0,
        "hostel's module cache": 10.0, "hostel's module run": 5.0, "hostel's module apic": 4.0,
        "the host's kernel": 6.0, "stubs": 3.0, "Python, libraries": 2.0,
    }


def test_a_profile_needs_perf(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit) as e:
        parse(["cpu", "--profile"])
    assert e.value.code == 2
    assert Hostel.profiles is None


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="no qemu-img; on Debian: apt-get install qemu-utils")
def test_conversions_are_compared(monkeypatch):
    monkeypatch.setattr(images, "SIZE", 320 << 20)
    values = images.converting()([FakePeer("hostel"), FakePeer("qemu"), FakePeer("native")], Context(quick=True))
    assert set(values) == {"hostel", "qemu"} and all(value.value > 0 and value.cpu > 0 for value in values.values())


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, oci_images.PROGRAMS)),
    reason="needs root, docker-registry, skopeo and umoci; on Debian: apt-get install docker-registry skopeo umoci",
)
def test_pulls_are_compared(monkeypatch):
    monkeypatch.setattr(oci_images, "SIZE", 10_000_000)
    values = oci_images.pulling(2)([FakePeer("hostel"), FakePeer("qemu"), FakePeer("native")], Context(quick=True))
    assert set(values) == {"hostel", "native"} and all(value.value > 0 and value.cpu > 0 for value in values.values())
