"""Transfers that break, resume, stall on a full disk, or are watched."""

import errno
import hashlib
import io

import pytest

from hostel.base.atomic import StorageError
from hostel.base.errors import ImageError
from hostel.images import fetch
from hostel.images.fetch import Bar, Fetcher

DATA = bytes(range(256)) * 4000  # 1 MB
SUM = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def transfer(mirror, tmp_path):
    mirror.files["/file"] = DATA
    to = tmp_path / "folder" / "file"

    def run(size=1_024_000, sha256=SUM):
        return Fetcher({}, pauses=(0, 0)).fetch(mirror.url.replace("/debian", "/file"), to, "file", size, sha256)

    run.to, run.part = to, to.with_name("file.part")
    return run


def left(transfer):
    return sorted(path.name for path in transfer.to.parent.iterdir()) if transfer.to.parent.exists() else []


def test_a_broken_transfer_goes_on_where_it_broke(mirror, transfer):
    mirror.cut_after["/file"] = 600_000
    assert transfer().read_bytes() == DATA
    assert mirror.requests == [("/file", ""), ("/file", "bytes=600000-")]
    assert left(transfer) == ["file"]


def test_a_part_of_an_earlier_run_is_resumed(mirror, transfer):
    transfer.part.parent.mkdir()
    transfer.part.write_bytes(DATA[:123_456])
    assert transfer().read_bytes() == DATA
    assert mirror.requests == [("/file", "bytes=123456-")]


def test_a_whole_part_needs_no_network(mirror, transfer):
    transfer.part.parent.mkdir()
    transfer.part.write_bytes(DATA)
    assert transfer().read_bytes() == DATA
    assert mirror.requests == []


def test_a_server_that_ignores_range_is_taken_from_the_beginning(mirror, transfer):
    mirror.ignore_range = True
    mirror.cut_after["/file"] = 600_000
    assert transfer().read_bytes() == DATA


def test_a_part_that_isnt_a_beginning_is_fetched_anew(mirror, transfer):
    transfer.part.parent.mkdir()
    transfer.part.write_bytes(b"x" * 1000)
    assert transfer().read_bytes() == DATA
    transfer.to.unlink()
    transfer.part.write_bytes(DATA + b"more")
    assert transfer().read_bytes() == DATA


def test_a_wrong_hash_keeps_nothing(mirror, transfer):
    mirror.files["/file"] = DATA[::-1]
    with pytest.raises(ImageError, match="wrong SHA-256"):
        transfer()
    assert left(transfer) == []
    assert len(mirror.requests) == 1


def test_trouble_of_the_servers_is_retried_and_absence_is_not(mirror, transfer):
    mirror.statuses["/file"] = [503, 500]
    assert transfer().read_bytes() == DATA
    transfer.to.unlink()
    mirror.statuses["/file"] = [503] * 3
    with pytest.raises(ImageError, match="503"):
        transfer()
    mirror.statuses["/file"] = [403]
    mirror.requests.clear()
    with pytest.raises(ImageError, match="403"):
        transfer()
    assert len(mirror.requests) == 1


def test_what_never_ends_is_cut(mirror, transfer, monkeypatch):
    monkeypatch.setattr(fetch, "UNSIZED_LIMIT", 10_000)
    with pytest.raises(ImageError, match="longer"):
        transfer(size=0, sha256="")
    assert left(transfer) == []


def test_no_space_is_one_line_and_leaves_nothing(mirror, transfer, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path, mode="r"):
        if "b" in mode and "part" in str(path) and mode != "rb":
            path.write_bytes(b"")
            return Full()
        return open(path, mode)

    monkeypatch.setattr(fetch, "open", opened, raising=False)
    with pytest.raises(StorageError, match="no space left") as caught:
        transfer()
    assert "\n" not in str(caught.value)
    assert left(transfer) == []


def test_an_unresolvable_host_is_one_line(tmp_path):
    with pytest.raises(ImageError) as caught:
        Fetcher({}, pauses=()).fetch("http://host.invalid/x", tmp_path / "x", "x")
    assert "host.invalid" in str(caught.value) and "\n" not in str(caught.value)


def test_what_speaks_no_http_is_one_line(tmp_path):
    import socket
    import threading

    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        client, _ = server.accept()
        client.recv(1000)
        client.sendall(b"220 mail.example.org ESMTP\r\n" * 3)
        client.close()

    threading.Thread(target=serve, daemon=True).start()
    with server, pytest.raises(ImageError, match="doesn't speak HTTP"):
        Fetcher({}, pauses=()).fetch(f"http://127.0.0.1:{server.getsockname()[1]}/x", tmp_path / "x", "x")


def test_a_bar_on_a_terminal_and_a_line_elsewhere():
    stream = io.StringIO()
    bar = Bar(stream, terminal=True)
    bar.begin("a-file", 2_000_000)
    bar.advance(1_000_000)
    bar.end()
    assert "50%" in stream.getvalue() and "[####" in stream.getvalue() and stream.getvalue().endswith("\r\x1b[K")
    stream = io.StringIO()
    bar = Bar(stream, terminal=False)
    bar.begin("a-file", 2_000_000)
    bar.advance(1_000_000)
    bar.end()
    assert stream.getvalue() == "fetching a-file (2.0 MB)\n"
