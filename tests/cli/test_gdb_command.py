"""``hostel debug``: its words, its sockets, and the real gdb on a real guest's kernel."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from hostel import VM
from hostel.base.errors import HostelError
from hostel.cli.main import main
from hostel.client.symbols import elf


def hostel(*args, **more):
    return subprocess.Popen([sys.executable, "-m", "hostel.cli.main", *args], stderr=subprocess.PIPE, text=True, **more)


def answer(gdb):
    data = b""
    while data[-3:-2] != b"#":
        part = gdb.recv(100)
        assert part, data
        data += part
    return data


def test_it_listens_where_it_says(bare):
    vm = bare()
    serving = hostel("debug", "bare")
    try:
        path = re.fullmatch(r"hostel: in gdb, type: target remote (\S+)\n", serving.stderr.readline())[1]
        assert path == f"{vm.folder}/gdb.sock" and os.stat(path).st_mode & 0o777 == 0o600
        for _ in range(2):  # one gdb after the other
            with socket.socket(socket.AF_UNIX) as gdb:
                gdb.connect(path)
                gdb.sendall(b"$qAttached#8f")
                assert answer(gdb) == b"+$1#31"
        vm.kill()
        assert serving.wait(10) == 0
        assert serving.stderr.read() == "hostel: 'bare' ended: killed\n"
        assert not os.path.exists(path)
    finally:
        serving.kill()
        serving.wait()


def test_a_port_and_standard_streams(bare):
    vm = bare()
    serving = hostel("debug", "bare", "--port", "0")
    try:
        port = re.search(r"target remote :(\d+)", serving.stderr.readline())[1]
        with socket.create_connection(("127.0.0.1", int(port))) as gdb:
            gdb.sendall(b"$qC#b4")
            assert answer(gdb) == b"+$QC1#c5"
    finally:
        serving.terminate()
        serving.wait()
    talk = hostel("debug", "bare", "--stdio", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, err = talk.communicate("$qC#b4", timeout=20)
    assert (out, err, talk.returncode) == ("+$QC1#c5", "", 0)
    assert vm.state.state == "running"


def test_what_it_refuses(bare, capsys, tmp_path):
    vm = bare()
    for args, words in (
        (["debug"], "NAME"), (["debug", "nobody"], "nobody"), (["debug", "bare", "--port", "70000"], "no port 70000"),
        (["debug", "bare", "--socket", "/nonexistent/x"], "can't listen on /nonexistent/x"),
        (["debug", "bare", "--socket", str(tmp_path / ("x" * 120))], "can't listen"),
        (["debug", "bare", "--symbols", "/tmp/x"], "takes no commands"),
    ):  # fmt: skip
        assert main(args) == 125
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    (tmp_path / "file").write_text("precious")
    assert main(["debug", "bare", "--socket", str(tmp_path / "file")]) == 125
    assert (tmp_path / "file").read_text() == "precious"
    vm.kill()
    assert main(["debug", "bare"]) == 125
    assert "not running" in capsys.readouterr().err


def test_symbols_for_gdb(tmp_path):
    text = "0000000000001000 D per_cpu\nffffffff81000000 T _text\nffffffff81000040 t inner\nffffffff82000000 D data\n"
    image = elf(text)
    assert image[:4] == b"\x7fELF" and b"data\0" in image and b"per_cpu" not in image
    if shutil.which("nm"):
        (tmp_path / "kernel.elf").write_bytes(image)
        names = subprocess.run(["nm", "-S", str(tmp_path / "kernel.elf")], capture_output=True, text=True).stdout
        assert "ffffffff81000000 0000000000000040 T _text" in names, names
    with pytest.raises(HostelError, match="no kernel symbols"):
        elf(text.replace("ffffffff8", "000000000"))


_SCRIPT = """
set pagination off
set confirm off
target remote {socket}
info threads
hbreak __x64_sys_getppid
continue
backtrace 2
info registers rip cs cr3 fs_base gs_base
stepi
x/i $pc
delete
watch *(unsigned long *)&jiffies
continue
delete
break __x64_sys_getppid
continue
p/x *(unsigned char *)$pc
set $there = $pc
monitor xp/1bx 0x{physical:x}
continue
p $pc == $there
info threads
set $rax = 0x1234567890
p/x $rax
p $ymm0
delete
detach
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gdb"), reason="no gdb on this machine (apt install gdb)")
def test_gdb_on_a_guest_kernel(guests, tmp_path):
    with VM.run("micro", cpus=2, name="gdb") as vm:
        vm.wait_agent(60)
        assert main(["debug", "gdb", "--symbols", str(tmp_path / "kernel.elf")]) == 0
        kallsyms = vm.exec(["cat", "/proc/kallsyms"], timeout=60).stdout
        where = {name: int(address, 16) for address, _, name, *_ in map(str.split, kallsyms.splitlines())}
        with vm.debug() as debugger:
            physical = debugger.translate(where["__x64_sys_getppid"])
            first = debugger.read(0, where["__x64_sys_getppid"], 1)[0]
        quitting = threading.Event()

        def load():  # a shell asks for its parent when it starts
            while not quitting.is_set():
                VM.get("gdb").exec(["sh", "-c", "exit 0"], timeout=60)

        thread = threading.Thread(target=load)
        thread.start()
        path = str(tmp_path / "gdb.sock")
        serving = hostel("debug", "gdb", "--socket", path)
        try:
            assert "target remote" in serving.stderr.readline()
            (tmp_path / "script").write_text(_SCRIPT.format(socket=path, physical=physical))
            done = subprocess.run(
                ["gdb", "-q", "-nx", "-batch", "-x", str(tmp_path / "script"), str(tmp_path / "kernel.elf")],
                capture_output=True, text=True, timeout=240,
            )
            said = done.stdout
            print(said, done.stderr)
            address = f"{where['__x64_sys_getppid']:016x}"
            assert re.search(r"\* 1 +Thread 1 \(vCPU 0.*\n +2 +Thread 2 \(vCPU 1", said)
            assert re.search(rf"Breakpoint 1, 0x{address} in __x64_sys_getppid \(\)", said)
            assert re.search(r"#0 .* in __x64_sys_getppid \(\)\n#1 .* in do_syscall_64 \(\)", said)
            assert re.search(rf"rip +0x{address}", said) and re.search(r"cs +0x10 ", said)
            assert re.search(r"fs_base +0x[0-9a-f]+", said) and re.search(r"gs_base +0xffff[0-9a-f]+", said)
            assert re.search(r"=> 0x[0-9a-f]+ <__x64_sys_getppid\+[1-9]", said)
            assert re.search(r"watchpoint 2.*\n\nOld value = (\d+)\nNew value = (?!\1)\d+\n.* in tick", said)
            assert re.search(rf"Breakpoint 3, 0x{address} in __x64_sys_getppid \(\)", said)
            assert f"= {first:#x}\n" in said and f"0x{first:02x}\n" in done.stdout + done.stderr  # no int3 in memory
            assert re.search(r"\$\d = 1\n", said) and "= 0x1234567890\n" in said and "v8_float" in said
            assert "detached" in said
        finally:
            quitting.set()
            serving.kill()
            serving.wait()
        thread.join(60)
        deadline = time.monotonic() + 20
        while vm.inspect()["debugger"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert vm.exec(["echo", "on"], timeout=60).stdout == "on\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gdb"), reason="no gdb on this machine (apt install gdb)")
def test_gdb_from_the_first_instruction(guests, tmp_path):
    with VM.run("micro", name="gdb") as vm:
        vm.wait_agent(60)
        assert main(["debug", "gdb", "--symbols", str(tmp_path / "kernel.elf")]) == 0
    with VM.run("micro", cpus=2, name="early", debug=True) as vm:
        assert vm.state.state == "paused"
        pipe = f"| {sys.executable} -m hostel.cli.main debug early --stdio"
        script = f"""
set pagination off
set confirm off
target remote {pipe}
info threads
x/i $pc
hbreak start_kernel
continue
info registers rip cr0
delete
watch *(unsigned char *)&early_boot_irqs_disabled
continue
delete
detach
"""
        (tmp_path / "script").write_text(script)
        done = subprocess.run(
            ["gdb", "-q", "-nx", "-batch", "-x", str(tmp_path / "script"), str(tmp_path / "kernel.elf")],
            capture_output=True, text=True, timeout=240,
        )
        print(done.stdout, done.stderr)
        assert re.search(r"\* 1 .*\n +2 +Thread 2 \(vCPU 1 \(waits for SIPI\)\)", done.stdout)
        assert re.search(r"Breakpoint 1, 0x[0-9a-f]+ in start_kernel \(\)", done.stdout)
        assert re.search(r"cr0 +0x80050033", done.stdout)
        assert re.search(r"Old value = .*\nNew value = .*\n.* in start_kernel", done.stdout)
        assert vm.exec(["nproc"], timeout=60).stdout == "2\n"


def test_run_says_that_it_waits(guests):
    run = hostel("run", "--debug", "--name", "waiting", "--", "true", stdin=subprocess.DEVNULL)
    try:
        assert run.stderr.readline() == "hostel: 'waiting' waits for a debugger: hostel debug waiting\n"
        with VM.get("waiting").debug() as debugger:
            assert debugger.state().cr0 & 1 and not debugger.state(0).halted
            debugger.go()
        assert run.wait(120) == 0
    finally:
        run.kill()
        run.wait()
