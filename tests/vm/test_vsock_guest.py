"""vsock in a real guest, with both sides' programs."""

import base64
import hashlib
import os
import socket
import threading

import pytest
import vsock_program

from hostel import VM
from hostel.images import tiny


@pytest.fixture
def vm(guests):
    with VM.run("micro", networks=["none"], vsock="") as vm:
        program = base64.b64encode(tiny.compiled(vsock_program))
        vm.exec(["sh", "-c", "base64 -d > /tmp/v && chmod +x /tmp/v"], input=program, timeout=60, check=True)
        yield vm


def call(vm, port):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(os.path.relpath(vm.folder / "vsock.sock"))
    sock.sendall(b"CONNECT %d\n" % port)
    reader = sock.makefile("rb")
    return sock, reader, reader.readline()


def echo(vm, port, data):
    sock, reader, line = call(vm, port)
    assert line.startswith(b"OK ")
    threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR))).start()
    back = reader.read()
    reader.close(), sock.close()
    return back


def test_the_host_calls(vm):
    assert call(vm, 1024)[2] == b""  # nobody listens
    vm.exec(["sh", "-c", "/tmp/v echo 1024 > /tmp/listens & while [ ! -s /tmp/listens ]; do usleep 1000; done"],
            timeout=60, check=True)  # fmt: skip
    for size in (1, 100_000, 4 << 20):
        data = os.urandom(size)
        assert echo(vm, 1024, data) == data
    counters = vm.inspect()["statistics"]["cards"]["vsock"]
    assert counters["opened"] == 3 and counters["overruns"] == 0
    vm.reset()
    vm.wait_agent(60)
    assert call(vm, 1024)[2] == b""


def test_the_guest_calls(vm):
    assert vm.exec(["/tmp/v", "call", "99"], timeout=60).status == 11  # nobody there
    data = os.urandom(2 << 20)
    got = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(vm.folder / "vsock.sock_99"))
        listener.listen()

        def serve():
            sock, _ = listener.accept()
            with sock, sock.makefile("rb") as reader:
                got.append(reader.read())
                sock.sendall(hashlib.sha256(got[0]).hexdigest().encode())

        thread = threading.Thread(target=serve)
        thread.start()
        done = vm.exec(["/tmp/v", "call", "99"], input=data, timeout=60)
        thread.join(60)
    assert done.status == 0 and done.stdout == hashlib.sha256(data).hexdigest() and got == [data]


def test_its_socket_goes_with_it(guests, tmp_path):
    path = tmp_path / "v.sock"
    with VM.run("micro", networks=["none"], vsock=str(path)) as vm:
        vm.wait_agent(60)
        assert oct(path.stat().st_mode & 0o777) == "0o600"
        with pytest.raises(Exception, match="it exists already"):
            VM.run("micro", networks=["none"], vsock=str(path))
