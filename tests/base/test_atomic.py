import errno
import os
import threading

import pytest

from hostel.base import atomic, paths


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_with_its_mode(tmp_path):
    path = tmp_path / "deep" / "file"
    atomic.write(path, "one")
    atomic.write(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two" and path.stat().st_mode & 0o777 == 0o600
    assert names(path.parent) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic.write(path, "old")
    with pytest.raises(ValueError), atomic.replacing(path) as file:
        file.write(b"new")
        raise ValueError
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(atomic.StorageError, match=f"can't write {path}: no space left on the device"):
        atomic.write(path, "new")
    assert names(tmp_path) == ["file"] and path.read_text() == "old"


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "folder"
    for text in ("one", "two"):
        with atomic.replacing_folder(path) as new:
            (new / text).write_text(text)
            assert not (path / text).exists()
    assert names(path) == ["two"] and names(tmp_path) == ["folder"]
    with pytest.raises(ValueError), atomic.replacing_folder(path) as new:
        (new / "three").write_text("x")
        raise ValueError
    assert names(path) == ["two"] and names(tmp_path) == ["folder"]


def test_a_lock_excludes_and_tells_who_waits(tmp_path):
    waits, order = threading.Event(), []

    def second():
        with atomic.locked(tmp_path / "lock", waits.set):
            order.append("second")

    with atomic.locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_home(monkeypatch):
    monkeypatch.setenv("HOSTEL_HOME", "/chosen")
    assert str(paths.home()) == "/chosen"
    monkeypatch.delenv("HOSTEL_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(paths.images()) == "/var/lib/hostel/images"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert str(paths.home()) == "/data/hostel"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(paths.home()) == "/home/someone/.local/share/hostel"
