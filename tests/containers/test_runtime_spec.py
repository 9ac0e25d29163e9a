"""Configurations that are wrong or ask for what can't be had: refused by name, before anything is made."""

import copy
import json
import os

import pytest

from hostel.base.errors import ContainerError
from hostel.containers import fastjson, mount_options, process, spec, stage
from hostel.containers.oci import main


def changed(*path, to):
    config = copy.deepcopy(spec.default())
    place = config
    for name in path[:-1]:
        place = place.setdefault(name, {}) if isinstance(place, dict) else place[name]
    place[path[-1]] = to
    return config


@pytest.mark.parametrize("config, named", [
    (changed("ociVersion", to="2.0.0"), "ociVersion"), (changed("ociVersion", to=1), "ociVersion"),
    (changed("process", "args", to=[]), "process.args"),
    (changed("process", "args", to=["a\0b"]), r"process.args\[0\]"),
    (changed("process", "cwd", to="tmp"), "process.cwd"), (changed("process", "env", to=["=x"]), "process.env"),
    (changed("process", "user", "uid", to=-1), "process.user.uid"),
    (changed("process", "user", "uid", to="0"), "process.user.uid"),
    (changed("process", "rlimits", to=[{"type": "RLIMIT_FUN", "soft": 1, "hard": 1}]), "RLIMIT_FUN"),
    (changed("root", "path", to=""), "root.path"), (changed("linux", "namespaces", to=[{"type": "warp"}]), "warp"),
    (changed("linux", "namespaces", to=[{"type": "mount"}, {"type": "mount"}]), "twice"),
    (changed("linux", "namespaces", to=[{"type": "pid"}]), "hostname needs a uts"),
    (changed("linux", "sysctl", to={"kernel.panic": "1"}), "kernel.panic"),
    (changed("linux", "sysctl", to={"vm.swappiness": "1"}), "vm.swappiness"),
    (changed("linux", "intelRdt", to={"closID": "x"}), "linux.intelRdt"), (changed("windows", to={"x": 1}), "windows"),
    (changed("linux", "timeOffsets", to={"boottime": {"secs": 1}}), "timeOffsets"),
    (changed("linux", "uidMappings", to=[{"containerID": 0, "hostID": 0, "size": 1}]), "uidMappings"),
    (changed("hooks", to={"prestart": [{"path": "relative"}]}), "hooks.prestart"),
    (changed("hooks", to={"poststop": [{"path": "/x", "timeout": 0}]}), "hooks.poststop"),
    (changed("mounts", to=[{"type": "tmpfs"}]), "destination"), (changed("annotations", to={"a": 1}), "annotations"),
])  # fmt: skip
def test_what_is_refused_by_name(config, named):
    with pytest.raises(ContainerError, match=named):
        spec.check(config)


@pytest.mark.parametrize("mount, named", [
    ({"destination": "/", "type": "tmpfs"}, "root"), ({"destination": "/a"}, "no file system"),
    ({"destination": "/a", "type": "bind", "source": "/", "options": ["size=1"]}, "size=1"),
    ({"destination": "/a", "type": "tmpfs", "options": ["idmap"]}, "bind"),
    ({"destination": "/a", "type": "bind", "source": "/", "options": ["tmpcopyup"]}, "tmpfs"),
])  # fmt: skip
def test_mounts_that_are_refused(mount, named):
    with pytest.raises(ContainerError, match=named):
        mount_options.Mount(mount, "/")


@pytest.mark.parametrize("asked, named", [
    ({"capabilities": {"bounding": ["CAP_FLY"]}}, "CAP_FLY"),
    ({"ioPriority": {"class": "x", "priority": 1}}, "ioPriority"),
    ({"scheduler": {"policy": "SCHED_NEVER"}}, "SCHED_NEVER"), ({"oomScoreAdj": 2000}, "oomScoreAdj"),
    ({"execCPUAffinity": {"initial": "x"}}, "execCPUAffinity"),
])  # fmt: skip
def test_processes_that_are_refused(asked, named):
    with pytest.raises(ContainerError, match=named):
        process.check(asked)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"a": NaN}', b'{"a": 1} x', b"\xff", b'{"a":' * 100000, b"null"])
def test_what_isnt_json(raw):
    with pytest.raises(ContainerError, match="config"):
        fastjson.loads(raw, "config")


def test_json_both_ways():
    value = {"a": [1, 2.5, None, True, '\u00e4"\\\n'], "b": {"c": {}}, "d": -(1 << 62)}
    assert fastjson.loads(fastjson.dumps(value).encode(), "x") == value == json.loads(fastjson.dumps(value))


@pytest.mark.parametrize("words", [
    ["fly"], ["start"], ["--fly", "list"], ["state", "../x"], ["kill", "x", "NOSUCH"], ["list", "--format", "xml"],
    ["create", "--bundle", "/nonexistent", "x"], ["run", "--preserve-fds", "x", "y"], ["update", "x", "--memory"],
])  # fmt: skip
def test_words_that_make_no_sense(words, tmp_path, capfd):
    log = tmp_path / "log"
    assert main(["--root", str(tmp_path / "root"), "--log", str(log), "--log-format", "json", *words]) == 1
    told = capfd.readouterr().err
    assert told.startswith("hostel-oci: ") and told.count("\n") == 1
    if words[0] != "--fly":
        assert json.loads(log.read_text())["msg"] in told
    assert not os.path.exists(tmp_path / "root")


def test_the_machine_code_is_what_it_says():
    """Each row of stage.CODE, disassembled; and branches that lead to their labels."""
    capstone = pytest.importorskip("capstone")
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    whole = list(engine.disasm(stage._machine_code(), stage.TEXT))
    assert len(whole) == len(stage.CODE)
    starts = [one.address for one in whole]
    for one, (row, text) in zip(whole, stage.CODE, strict=True):
        if row[0] == "{":
            assert one.mnemonic == text and int(one.op_str, 16) == starts[stage._LABELS[row[1:-1].split()[1]]]
        else:
            assert f"{one.mnemonic} {one.op_str}".strip() == text


def test_a_script_of_system_calls():
    """Slots, tests, handlers, forks; and what a failure is reported as."""
    reader, writer = os.pipe()
    script = stage.Script(writer, status=9)
    fd, child, missing, pid = script.slot(), stage.Label(), stage.Label(), script.slot()
    script.call("openat", -100, "/nonexistent", 0, on={2: missing})
    script.call("exit_group", 1)
    script.bind(missing)
    script.call("openat", -100, "/dev/null", 1, to=fd)
    script.call("write", fd, "abc", 3)
    script.call("clone", 17, 0, 0, 0, 0, to=pid, zero=child)
    status = script.place(bytes(8))
    script.call("wait4", pid, status, 0, 0)
    script.test(status, 0xFF00, 5 << 8, what="the child's status")
    script.call("close", 999, what="closing what isn't open")
    script.bind(child)
    script.call("exit_group", 5)
    started = stage.launch(script, [writer])
    os.close(writer)
    report = os.read(reader, 16)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(started, 0)[1]) == 9
    number, result = int.from_bytes(report[:8], "little"), int.from_bytes(report[8:], "little", signed=True)
    assert script.explain(number, result) == "closing what isn't open: Bad file descriptor"
