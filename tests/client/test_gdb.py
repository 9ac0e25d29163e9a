"""GDB's remote protocol, spoken by a client of a few lines, in front of a guest of a few instructions."""

import socket
import threading
import xml.etree.ElementTree as ElementTree

import pytest
from bare_worker import CELL, OTHER, WORK

from hostel.client.gdb import Server
from hostel.client.gdb_registers import REGISTERS, get_register, set_register

NUMBER = {name: i for i, (name, *_) in enumerate(REGISTERS)}


class Gdb:
    """The client: ``ask`` sends a packet and returns the next."""

    def __init__(self, vm):
        ours, theirs = socket.socketpair()
        self.sock, self.data = ours, b""
        ours.settimeout(20)

        def serve():
            with theirs, vm.debug() as debugger:
                Server(debugger, theirs.fileno(), theirs.fileno()).run()

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def send(self, body):
        body = body.encode() if isinstance(body, str) else body
        self.sock.sendall(b"$" + body + b"#%02x" % (sum(body) & 255))

    def receive(self):
        while b"#" not in self.data or len(self.data) < self.data.index(b"#") + 3:
            part = self.sock.recv(65536)
            assert part, "it hung up"
            self.data += part
        packet, self.data = self.data[: self.data.index(b"#") + 3], self.data[self.data.index(b"#") + 3 :]
        packet = packet.lstrip(b"+")
        assert packet[:1] == b"$" and int(packet[-2:], 16) == sum(packet[1:-3]) & 255, packet
        return packet[1:-3].decode()

    def ask(self, body):
        self.send(body)
        return self.receive()

    def close(self):
        self.sock.close()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def register(self, name):
        return int.from_bytes(bytes.fromhex(self.ask(f"p{NUMBER[name]:x}")), "little")


@pytest.fixture
def gdb(bare):
    client = Gdb(bare(cpus=2))
    assert "swbreak+" in client.ask("qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386")
    assert client.ask("QStartNoAckMode") == "OK"
    yield client
    client.close()


def test_what_gdb_asks_first(gdb):
    assert gdb.ask("?").startswith("T02thread:1;")
    assert gdb.ask("qfThreadInfo") == "m1,2" and gdb.ask("qsThreadInfo") == "l"
    assert gdb.ask("qAttached") == "1" and gdb.ask("qC") == "QC1"
    assert gdb.ask("T2") == "OK" and gdb.ask("T3") == "E22"
    assert bytes.fromhex(gdb.ask("qThreadExtraInfo,2")).startswith(b"vCPU 1")
    assert gdb.ask("vMustReplyEmpty") == "" and gdb.ask("qTStatus") == "" and gdb.ask("!") == ""


def test_the_target_description(gdb):
    text, part = "", "m"
    while part[0] == "m":
        part = gdb.ask(f"qXfer:features:read:target.xml:{len(text):x},200")
        text += part[1:]
    tree = ElementTree.fromstring(text)
    names = [register.get("name") for register in tree.iter("reg")]
    assert names == [name for name, *_ in REGISTERS]
    assert names[:3] == ["rax", "rbx", "rcx"] and {"fs_base", "gs_base", "cr3", "ymm15h", "mxcsr"} < set(names)
    whole = gdb.ask("g")
    assert len(whole) == sum(int(register.get("bitsize")) for register in tree.iter("reg")) // 4
    assert whole.startswith(gdb.ask("p0"))


def test_breakpoints_registers_and_steps(gdb):
    assert gdb.ask(f"Z0,{WORK:x},1") == "OK"
    assert gdb.ask("vCont;c") == "T05thread:1;swbreak:;"
    assert gdb.register("rip") == WORK
    assert gdb.register("r8") == gdb.register("r14") == 0x8877665544332211
    assert gdb.register("xmm1") == gdb.register("ymm1h") == 0x8877665544332211
    assert gdb.register("cr0") == 0x80050033 and gdb.register("eflags") & 2
    assert gdb.ask(f"m{WORK:x},8") == f"488b0425{CELL:08x}"[:8] + CELL.to_bytes(4, "little").hex()
    assert gdb.ask(f"P{NUMBER['r9']:x}=2a00000000000000") == "OK"
    assert gdb.register("r9") == 42
    everything = gdb.ask("g")
    assert gdb.ask("G" + everything) == "OK" and gdb.ask("g") == everything
    assert gdb.ask("vCont;s:1") == "T05thread:1;"
    assert gdb.register("rip") == WORK + 8
    assert gdb.ask("vCont;s:1;c") == "T05thread:1;"  # the other goes on meanwhile
    assert gdb.register("rip") == WORK + 11
    assert gdb.ask("s") == "T05thread:1;"
    assert gdb.register("rip") == WORK + 19
    assert gdb.ask(f"z0,{WORK:x},1") == "OK"
    assert gdb.ask(f"Z1,{WORK + 20:x},1") == "OK"
    assert gdb.ask("c") == "T05thread:1;hwbreak:;"


def test_threads(gdb):
    assert gdb.ask(f"Z1,{OTHER:x},1") == "OK"
    assert gdb.ask("vCont;c") == "T05thread:2;hwbreak:;"
    assert gdb.register("rip") == OTHER and gdb.register("rdi") == 1
    assert gdb.ask("Hg1") == "OK" and gdb.register("rip") != OTHER
    assert gdb.ask("Hg2") == "OK" and gdb.register("rip") == OTHER
    assert gdb.ask("Hg9") == "E22" and gdb.ask("Hc-1") == "OK"
    assert gdb.ask("vCont;s:2") == "T05thread:2;"


def test_watchpoints(gdb):
    for kind, name, behind in ((2, "watch", 19), (3, "rwatch", 8), (4, "awatch", 19)):
        assert gdb.ask(f"Z{kind},{CELL:x},8") == "OK"
        assert gdb.ask("c") == f"T05thread:1;{name}:{CELL:x};"
        assert gdb.register("rip") == WORK + behind
        assert gdb.ask(f"z{kind},{CELL:x},8") == "OK"
    assert gdb.ask(f"Z5,{CELL:x},8") == ""


def test_memory(gdb):
    assert gdb.ask("m104ff8,8") == "8877665544332211"
    assert gdb.ask("M104ff8,2:abcd") == "OK" and gdb.ask("m104ff8,3") == "abcd66"
    assert gdb.ask(b"X104ff8,3:" + b"}\x03}\x04*") == "OK" and gdb.ask("m104ff8,3") == "23242a"  # # $ *, escaped
    assert gdb.ask("m7fffffffffff,1") == "E14" and gdb.ask("m40000000,2000") != "E14"
    assert len(gdb.ask("m4003f000,2000")) == 2 * 4096  # the page after it isn't mapped
    assert gdb.ask("M7fffffffffff,1:00") == "E14" and gdb.ask("M104ff8,3:00") == "E22"
    # by physical address: the window at 0x40000000 is at 0x400000
    assert gdb.ask("M40000010,4:01020304") == "OK"
    assert gdb.ask("qqemu.PhyMemMode") == "0" and gdb.ask("Qqemu.PhyMemMode:1") == "OK"
    assert gdb.ask("qqemu.PhyMemMode") == "1" and gdb.ask("m400010,4") == "01020304"
    assert gdb.ask("m40000010,4") == "E14"


def test_monitor_commands(gdb):
    def monitor(line):
        return bytes.fromhex(gdb.ask("qRcmd," + line.encode().hex())).decode()

    assert "xp[/COUNT" in monitor("help")
    assert monitor("xp/2gx 0x104ff0").startswith("0000000000104ff0: 0x0000000000000000 0x1122334455667788\n")
    assert monitor("xp /4bx 0x104ff8") == "0000000000104ff8: 0x88 0x77 0x66 0x55\n"
    assert monitor("xp 0xfffff000") == "no memory at 0xfffff000\n"
    assert monitor("gva2gpa 0x40000123") == "0x400123\n"
    assert monitor("gva2gpa 0x80000000") == "not mapped\n"
    assert "help" in monitor("xp x")
    assert gdb.ask("qqemu.sstep") == "0x7" and gdb.ask("Qqemu.sstep=1") == "OK" and gdb.ask("qqemu.sstep") == "0x1"


def test_an_interrupt(gdb):
    gdb.send("vCont;c")
    gdb.send("g")  # not now: gdb has to wait or to interrupt
    gdb.sock.sendall(b"\x03")
    assert gdb.receive().startswith("T02thread:1;")
    gdb.sock.sendall(b"\x03")  # again, though it stands still: nothing
    assert gdb.ask("qC") == "QC1"


@pytest.mark.parametrize(
    "noise", [b"$m1#00", b"\x00\xff#", b"$#00", b"$m,#99", b"$Gzz#1b", b"$qRcmd,zz#8b", b"$" + b"a" * 200000, b"+-+"]
)
def test_noise_is_survived(bare, noise):
    gdb = Gdb(bare())
    gdb.sock.sendall(noise)
    gdb.send("QStartNoAckMode")
    while (answer := b"OK" in gdb.data) is False:
        part = gdb.sock.recv(65536)
        gdb.data += part
        assert part
    assert answer
    gdb.close()


def test_detaching_and_killing(bare):
    vm = bare()
    gdb = Gdb(vm)
    assert gdb.ask("D") == "OK"
    gdb.thread.join(20)
    assert vm.state.state == "running"
    gdb = Gdb(vm)
    gdb.send("k")
    assert vm.wait(20).reason == "killed"
    gdb.close()


def test_the_end_of_the_vm(bare):
    vm = bare()
    gdb = Gdb(vm)
    gdb.ask("?")
    gdb.send("c")
    vm.kill()
    assert gdb.receive() == "W00"
    gdb.close()


def test_every_register_is_written_where_it_is_read(bare):
    with bare().debug() as debugger:
        state = debugger.state()
    for number, (name, bits, _) in enumerate(REGISTERS):
        if name in ("fiseg", "fioff", "foseg", "fooff", "fop"):
            continue
        value = bytes(range(number, number + bits // 8))
        if name in ("cs", "ss", "ds", "es", "fs", "gs", "fctrl", "fstat"):
            value = value[:2] + bytes(2)
        elif name == "ftag":
            value = b"\xff\xff\0\0"
        elif name == "eflags":
            value = b"\x46\2\0\0"
        set_register(state, number, value)
        assert get_register(state, number) == value, name
