"""base/linux/unix: sockets that are their owner's only."""

import os
import socket
import stat
import threading

import pytest

from hostel.base.linux import unix


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_mode_is_600_whatever_the_umask_lets_through(tmp_path, umask):
    path = tmp_path / "sock"
    old = os.umask(umask)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            unix.bind(sock, path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 & ~umask


def test_what_other_threads_make_meanwhile_has_their_mode(tmp_path):
    ended = threading.Event()

    def bind():
        for number in range(2000):
            with socket.socket(socket.AF_UNIX) as sock:
                unix.bind(sock, f"{tmp_path}/{number}")
        ended.set()

    thread = threading.Thread(target=bind)
    thread.start()
    modes, count = set(), 0
    while not ended.is_set():
        os.mkdir(f"{tmp_path}/folder{count}", 0o700)
        modes.add(stat.S_IMODE(os.stat(f"{tmp_path}/folder{count}").st_mode))
        count += 1
    thread.join()
    assert modes == {0o700}
