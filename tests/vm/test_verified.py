"""What was found whole is believed while nobody can have changed it."""

import json
import os
import time

import pytest

from hostel.vm import verified
from hostel.vm.verified import Verified


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a manifest and two files, changed long enough ago."""
    for name in ("manifest", "state", "memory-1"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(verified, "_RACY", 0)
    time.sleep(0.02)
    return tmp_path


def known(folder, keep=True):
    """Which of the files needn't be looked at; all are whole then."""
    fds = {name: os.open(folder / name, os.O_RDONLY) for name in ("manifest", "state", "memory-1")}
    try:
        seen = Verified(folder, fds["manifest"])
        found = [name for name in ("state", "memory-1") if seen.has(name, fds[name])]
        if keep:
            seen.keep()
        return found
    finally:
        for fd in fds.values():
            os.close(fd)


def test_once_is_enough(folder):
    assert known(folder, keep=False) == known(folder) == []
    assert known(folder) == known(folder) == ["state", "memory-1"]
    assert sorted(os.listdir(folder)) == ["manifest", "memory-1", "state", "verified"]
    assert os.stat(folder / "verified").st_mode & 0o777 == 0o600


def test_what_has_changed_is_looked_at(folder):
    known(folder)
    before = os.stat(folder / "memory-1")
    with open(folder / "memory-1", "r+b") as file:
        file.write(b"M")
    os.utime(folder / "memory-1", ns=(before.st_atime_ns, before.st_mtime_ns))
    time.sleep(0.02)
    assert known(folder) == ["state"]
    assert known(folder) == ["state", "memory-1"]
    (folder / "other").write_bytes(b"memory-1")
    time.sleep(0.02)
    os.rename(folder / "other", folder / "memory-1")
    assert known(folder) == ["state"]


def test_another_manifest_speaks_of_others(folder):
    known(folder)
    (folder / "manifest").write_bytes(b"another")
    assert known(folder) == []


def test_who_has_written_it_knows(folder, monkeypatch):
    monkeypatch.setattr(verified, "_RACY", 60_000_000_000)
    fds = {name: os.open(folder / name, os.O_RDONLY) for name in ("manifest", "state", "memory-1")}
    mine = Verified(folder, fds["manifest"])
    assert not mine.knows("state", fds["state"])
    mine.vouch("state", fds["state"])
    mine.keep()
    assert known(folder) == ["state"]
    mine = Verified(folder, fds["manifest"])
    assert mine.knows("state", fds["state"]) and not mine.knows("memory-1", fds["memory-1"])
    mine.keep()  # of what it hasn't been told, nothing
    assert known(folder) == ["state"]
    os.link(folder / "state", folder / "other")
    assert known(folder) == []
    for fd in fds.values():
        os.close(fd)


@pytest.mark.parametrize("fine", [True, False])
def test_what_has_just_been_written_may_change_unseen(folder, monkeypatch, fine):
    if fine:
        monkeypatch.setattr(verified, "_RACY", 60_000_000_000)
    else:  # a file system whose times are whole seconds
        identity = verified._identity
        monkeypatch.setattr(verified, "_identity", lambda fd: [*identity(fd)[:-1], int(time.time()) * 1_000_000_000])
    assert known(folder) == known(folder) == []
    assert not (folder / "verified").exists()


@pytest.mark.parametrize("spoil", ["mode", "link", "symlink", "boot", "garbage", "shape", "owner"])
def test_who_could_have_written_it_is_asked(folder, spoil):
    known(folder)
    file = folder / "verified"
    if spoil == "mode":
        file.chmod(0o620)
    elif spoil == "link":
        os.link(file, folder / "another")
    elif spoil == "symlink":
        os.rename(file, folder / "another")
        file.symlink_to("another")
    elif spoil == "boot":
        file.write_text(json.dumps({**json.loads(file.read_text()), "boot": "before"}))
    elif spoil == "garbage":
        file.write_text("garbage")
    elif spoil == "shape":
        file.write_text(json.dumps({**json.loads(file.read_text()), "files": 5}))
    elif os.geteuid() == 0:
        os.chown(file, 12345, 12345)
    else:
        pytest.skip("only root can give files away")
    assert known(folder, keep=False) == []
