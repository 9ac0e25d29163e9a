"""The router against a real Linux stack as the guest (namespaces.py), confined as in production."""

import re
import shutil
import sys
import textwrap

import pytest
from namespaces import OUTSIDE4, OUTSIDE6, Lab

needs_ping = pytest.mark.skipif(not shutil.which("ping"), reason="needs ping (iputils-ping)")

SERVER = """
import asyncio, hashlib, sys
async def serve(reader, writer):
    # a line "get N", "put" or "who"; then that many bytes, a digest of what came, or the client's address
    word = (await reader.readline()).split()
    if word[0] == b"get":
        block = bytes(range(251)) * 4096
        left = int(word[1])
        while left:
            part = block[:left]; writer.write(part); left -= len(part)
            await writer.drain()
        writer.write_eof()
        await reader.read()
    elif word[0] == b"put":
        digest = hashlib.sha256(); size = 0
        while data := await reader.read(1 << 20):
            digest.update(data); size += len(data)
        writer.write(b"%d %s" % (size, digest.hexdigest().encode()))
    elif word[0] == b"who":
        writer.write(writer.get_extra_info("peername")[0].encode())
    writer.close()
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]), backlog=512)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
CLIENT = """
import hashlib, socket, sys
def connect(address, port, timeout=30):
    return socket.create_connection((address, int(port)), timeout)
def pattern(size):
    block = bytes(range(251)) * 4096
    while size:
        part = block[:size]; size -= len(part); yield part
def digest(size):
    digest = hashlib.sha256()
    for part in pattern(size): digest.update(part)
    return digest.hexdigest()
def get(sock, size):
    sock.sendall(b"get %d\\n" % size); got = hashlib.sha256(); count = 0
    while data := sock.recv(1 << 20): got.update(data); count += len(data)
    assert count == size and got.hexdigest() == digest(size), (count, size)
def put(sock, size):
    sock.sendall(b"put\\n")
    for part in pattern(size): sock.sendall(part)
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while data := sock.recv(1024): answer += data
    assert answer == b"%d %s" % (size, digest(size).encode()), answer
"""


@pytest.fixture(scope="module")
def lab():
    yield from make()


def make(**options):
    if not shutil.which("unshare") or not shutil.which("nsenter") or not shutil.which("ip"):
        pytest.skip("this host has no util-linux or iproute2")
    try:
        lab = Lab(**options)
    except (OSError, AssertionError) as error:
        if re.search("tun|nshare|ermitted|ermission", str(error)):
            pytest.skip(f"no namespaces with taps on this host: {error}")
        raise
    with lab:
        yield lab


def python(code):
    return [sys.executable, "-c", textwrap.dedent(code)]


def client(lab, code, *args, index=0, **options):
    return lab.guest(*python(CLIENT + textwrap.dedent(code)), *map(str, args), index=index, **options)


@pytest.fixture(scope="module")
def servers(lab):
    for address in (OUTSIDE4, OUTSIDE6):
        server = lab.start_outside(*python(SERVER), address, "7000")
        assert server.stdout.readline() == "ready\n"


def test_bulk_both_ways(lab, servers):
    client(lab, f"get(connect('{OUTSIDE4}', 7000), 200_000_003)")
    client(lab, f"put(connect('{OUTSIDE4}', 7000), 200_000_003)")


def test_bulk_by_ipv6(lab, servers):
    lab.wait_ipv6()
    client(lab, f"get(connect('{OUTSIDE6}', 7000), 50_000_003); put(connect('{OUTSIDE6}', 7000), 50_000_003)")


@needs_ping
def test_gateway_answers_echoes(lab):
    lab.guest("ping", "-c", "1", "10.0.2.2")
    lab.wait_ipv6()
    lab.guest("ping", "-c", "1", "fd68:6f73:7465:6c::2")


def test_counters(lab, servers):
    client(lab, f"get(connect('{OUTSIDE4}', 7000), 1)")
    counters = lab.counters()
    assert counters["tcp_opened"] and counters["rx_frames"] and not counters["errors"] and not counters["malformed"]


def test_host_is_out_of_reach(lab):
    """The router is a process of its own, of nobody's where root started it, with sockets and nothing else."""
    status = open(f"/proc/{lab.pid}/status").read()
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert re.search(r"^Seccomp:\s+2$", status, re.M)
    assert re.search(r"^CapEff:\s+0+$", status, re.M)


def test_refused_and_unreachable(lab):
    lab.wait_ipv6()
    client(lab, f"""
        import errno
        for address, port, errors in [
            ("{OUTSIDE4}", 7999, [errno.ECONNREFUSED]), ("{OUTSIDE6}", 7999, [errno.ECONNREFUSED]),
            ("203.0.113.9", 80, [errno.ENETUNREACH, errno.EHOSTUNREACH]), ("2001:db8:9::9", 80, [errno.ENETUNREACH]),
            ("10.0.2.2", 22, [errno.ECONNREFUSED]), ("10.0.2.77", 22, [errno.EHOSTUNREACH]),
            ("fd68:6f73:7465:6c::2", 22, [errno.ECONNREFUSED]), ("169.254.169.254", 80, [errno.EHOSTUNREACH]),
        ]:
            try:
                connect(address, port, 20)
            except OSError as e:
                assert e.errno in errors, (address, e)
            else:
                raise AssertionError(address)
    """)


def test_resets_go_both_ways(lab):
    server = lab.start_outside(*python(f"""
        import socket, struct, time
        listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("{OUTSIDE4}", 7001)); listener.listen(); print("ready", flush=True)
        sock, _ = listener.accept(); sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); sock.close()
        sock, _ = listener.accept(); print(sock.recv(9).decode(), flush=True)
        try: sock.recv(1); print("no reset", flush=True)
        except ConnectionResetError: print("reset", flush=True)
    """))
    assert server.stdout.readline() == "ready\n"
    client(lab, f"""
        import struct
        sock = connect("{OUTSIDE4}", 7001); sock.send(b"x")
        try: data = sock.recv(1)
        except ConnectionResetError: pass
        else: raise AssertionError(data)
        sock = connect("{OUTSIDE4}", 7001); sock.send(b"x")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); sock.close()
    """)
    assert server.stdout.readline() == "x\n" and server.stdout.readline() == "reset\n"


def test_a_slow_reader_holds_the_other_end_back(lab):
    """Neither way is more than windows and sockets kept: the router's memory stays as it is."""
    size = 100_000_000
    server = lab.start_outside(*python(CLIENT + f"""
import time
listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("{OUTSIDE4}", 7002)); listener.listen(); print("ready", flush=True)
sock, _ = listener.accept()
time.sleep(2); print("now", flush=True)
got = hashlib.sha256()
while data := sock.recv(1 << 16): got.update(data)
assert got.hexdigest() == digest({size}); print("all", flush=True)
for part in pattern({size}): sock.sendall(part)
sock.close(); print("sent", flush=True)
"""))
    assert server.stdout.readline() == "ready\n"
    guest = lab.start_guest(*python(CLIENT + f"""
import time
sock = connect("{OUTSIDE4}", 7002, 60)
for part in pattern({size}): sock.sendall(part)
sock.shutdown(socket.SHUT_WR); time.sleep(2)
got = hashlib.sha256()
while data := sock.recv(1 << 16): got.update(data)
assert got.hexdigest() == digest({size}); print("all", flush=True)
"""))
    assert server.stdout.readline() == "now\n"
    assert lab.counters()["tcp_held"] <= 3 << 20
    assert [server.stdout.readline() for _ in range(2)] == ["all\n", "sent\n"]
    assert guest.stdout.readline() == "all\n"
    assert lab.counters()["tcp_held"] == 0


def test_many_connections_at_once(lab, servers):
    client(lab, f"""
        import select
        socks = [connect("{OUTSIDE4}", 7000) for _ in range(900)]
        for sock in socks: sock.sendall(b"get 1000\\n")
        for sock in socks:
            data = b""
            while part := sock.recv(4096): data += part
            assert len(data) == 1000
    """)
    assert lab.counters()["tcp_open"] == 0


ECHO = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM); sock.bind((sys.argv[1], int(sys.argv[2]))); print("ready", flush=True)
while True:
    data, client = sock.recvfrom(65536); sock.sendto(data[::-1], client)
"""


def test_udp(lab):
    lab.wait_ipv6()
    for address in (OUTSIDE4, OUTSIDE6):
        assert lab.start_outside(*python(ECHO), address, "7003").stdout.readline() == "ready\n"
    client(lab, f"""
        for address in ("{OUTSIDE4}", "{OUTSIDE6}"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM); sock.settimeout(20)
            for size in (0, 1, 1400, 1472, 1473, 9000, 65000):
                data = bytes(i % 250 for i in range(size))
                sock.sendto(data, (address, 7003))
                assert sock.recv(65536) == data[::-1], (address, size)
            sock.connect((address, 7998)); sock.send(b"x")
            try: sock.recv(1)
            except ConnectionRefusedError: pass
            else: raise AssertionError(address)
    """)


@needs_ping
def test_echoes_outside(lab):
    refused = lab.guest("ping", "-c", "1", "-W", "5", OUTSIDE4, check=False)
    assert "filtered" in refused or "1 received" in refused, refused
    lab.allow_ping()
    lab.wait_ipv6()
    lab.guest("ping", "-c", "2", "-i", "0.2", "-s", "3000", OUTSIDE4)
    lab.guest("ping", "-c", "2", "-i", "0.2", OUTSIDE6)
    assert "Time to live exceeded" in lab.guest("ping", "-c", "1", "-t", "1", OUTSIDE4, check=False)


DNS = """
import socket, struct, sys, threading
address, name, answer = sys.argv[1], sys.argv[2].encode(), socket.inet_aton(sys.argv[3])
def reply(query):
    end = query.index(b"\\0", 12) + 5
    asked = bytes([len(name)]) + name + b"\\0"
    known = query[12:end - 4].lower() == asked and query[end - 4:end] == b"\\0\\1\\0\\1"
    head = query[:2] + struct.pack("!HHHHH", 0x8180 | (0 if known else 3), 1, known, 0, 0) + query[12:end]
    return head + (struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + answer if known else b"")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind((address, 53))
tcp = socket.socket(); tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); tcp.bind((address, 53)); tcp.listen()
def serve():
    while True:
        sock, _ = tcp.accept()
        size = struct.unpack("!H", sock.recv(2))[0]
        data = reply(sock.recv(size)); sock.sendall(struct.pack("!H", len(data)) + data)
        sock.recv(1); sock.close()
threading.Thread(target=serve, daemon=True).start()
print("ready", flush=True)
while True:
    query, client = udp.recvfrom(4096); udp.sendto(reply(query), client)
"""
ASK = """
import struct
def ask(name, kind=1, server="10.0.2.3", tcp=False):
    query = b"\\x12\\x34" + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0)
    query += b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + struct.pack("!BHH", 0, kind, 1)
    if tcp:
        sock = connect(server, 53); sock.sendall(struct.pack("!H", len(query)) + query)
        size = struct.unpack("!H", sock.recv(2))[0]; answer = sock.recv(size)
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(20); sock.sendto(query, (server, 53)); answer = sock.recv(4096)
    ident, flags, _, answers, _, _ = struct.unpack("!HHHHHH", answer[:12])
    assert ident == 0x1234 and flags & 0x8000, (ident, flags)
    size = struct.unpack("!H", answer[len(query) + 10:len(query) + 12])[0] if answers else 0
    return flags & 15, answer[len(query) + 12:len(query) + 12 + size]
"""


def test_names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("etc")
    for shown in (folder, folder.parent, folder.parent.parent):  # pytest's own: a router of root's is nobody
        shown.chmod(shown.stat().st_mode | 0o555)
    conf = folder / "resolv.conf"
    conf.write_text("search example.org\nnameserver 127.0.0.53\n")
    for lab in make(guests=2, domain="lab", resolv_conf=str(conf)):
        for address, name, answer in (("127.0.0.53", "one", "192.0.2.1"), ("127.0.0.54", "two", "192.0.2.2")):
            assert lab.start_outside(*python(DNS), address, name, answer).stdout.readline() == "ready\n"
        assert lab.wait_ipv6(1)
        client(lab, ASK + """
assert ask("one") == (0, socket.inet_aton("192.0.2.1"))
assert ask("one", tcp=True) == (0, socket.inet_aton("192.0.2.1"))
assert ask("one", server="fd68:6f73:7465:6c::3") == (0, socket.inet_aton("192.0.2.1"))
assert ask("two")[0] == 3
assert ask("vm1") == ask("VM1.lab") == ask("vm1.lab", tcp=True) == (0, socket.inet_aton("10.0.2.16"))
code, address = ask("vm1.lab", 28)
assert code == 0 and address[:8] == bytes.fromhex("fd686f737465006c") and len(address) == 16
assert ask("nobody.lab")[0] == 3
assert ask("16.2.0.10.in-addr.arpa", 12) == (0, b"\\3vm1\\3lab\\0")
""")
        new = folder / "new"  # replaced, as resolvconf does
        new.write_text("nameserver 127.0.0.99\nnameserver 127.0.0.54\n")
        new.rename(conf)
        client(lab, ASK + """
import time; time.sleep(1.1)
assert ask("two") == (0, socket.inet_aton("192.0.2.2"))
""")


@needs_ping
def test_two_guests_see_each_other(tmp_path):
    for lab in make(guests=2):
        lab.guest("ping", "-c", "1", "10.0.2.16")
        address = lab.wait_ipv6(1)
        lab.wait_ipv6(0)
        assert lab.start_guest(*python(SERVER), "10.0.2.16", "7000", index=1).stdout.readline() == "ready\n"
        assert lab.start_guest(*python(SERVER), address, "7000", index=1).stdout.readline() == "ready\n"
        client(lab, f"put(connect('10.0.2.16', 7000), 30_000_000); get(connect('{address}', 7000), 30_000_000)")


def test_forwards():
    for lab in make(forwards=("127.0.0.1:8080:7000", f"{OUTSIDE4}:8080:7000", "[::]:8081:7000", "8053:7003/udp")):
        assert lab.start_guest(*python(SERVER), "0.0.0.0", "7000").stdout.readline() == "ready\n"
        assert lab.start_guest(*python(ECHO), "0.0.0.0", "7003").stdout.readline() == "ready\n"
        code = CLIENT + textwrap.dedent(f"""
            def who(address, port):
                sock = connect(address, port); sock.sendall(b"who\\n"); return sock.recv(99).decode()
            assert who("127.0.0.1", 8080) == "10.0.2.2"
            assert who("{OUTSIDE4}", 8080) == "{OUTSIDE4}"
            assert who("{OUTSIDE6}", 8081) == "10.0.2.2"
            put(connect("127.0.0.1", 8080), 30_000_000); get(connect("127.0.0.1", 8080), 30_000_000)
            for _ in range(300): get(connect("127.0.0.1", 8080), 100)
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.settimeout(20)
            for data in (b"abc", bytes(range(250)) * 100):
                sock.sendto(data, ("127.0.0.1", 8053)); assert sock.recv(65536) == data[::-1]
        """)
        lab.outside(*python(code))


def test_forward_to_nobody_is_reset():
    for lab in make(forwards=("8080:7999",)):
        lab.outside(*python(CLIENT + """
try: assert connect("127.0.0.1", 8080).recv(1) == b"never"
except ConnectionResetError: pass
"""))


def test_host_loopback_when_allowed():
    for lab in make(allow_host_loopback=True):
        assert lab.start_outside(*python(SERVER), "127.0.0.1", "7000").stdout.readline() == "ready\n"
        assert lab.start_outside(*python(SERVER), "::1", "7000").stdout.readline() == "ready\n"
        lab.wait_ipv6()
        client(lab, "get(connect('10.0.2.2', 7000), 1000); get(connect('fd68:6f73:7465:6c::2', 7000), 1000)")


def test_a_guest_that_takes_no_large_frames():
    """What a card's own offloads would do is left out by the namespace's kernel: checksums are whole, frames small."""
    for lab in make(offload=0):
        assert lab.start_outside(*python(SERVER), OUTSIDE4, "7000").stdout.readline() == "ready\n"
        client(lab, f"put(connect('{OUTSIDE4}', 7000), 10_000_000); get(connect('{OUTSIDE4}', 7000), 10_000_000)")


def test_dhcp(tmp_path):
    if not shutil.which("busybox"):
        pytest.skip("this host has no busybox, whose udhcpc is the client")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nset > $OUT.$1\n")
    script.chmod(0o755)
    for lab in make(configure=False, mtu=1400, domain="lab"):
        out = str(tmp_path / "out")
        lab.guest("env", f"OUT={out}", "busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", str(script),
                  "-O", "mtu", "-O", "hostname")
        told = dict(re.findall(r"^(\w+)='(.*)'$", (tmp_path / "out.bound").read_text(), re.M))
        assert told["ip"] == "10.0.2.15" and told["router"] == "10.0.2.2" and told["dns"] == "10.0.2.3"
        assert told["subnet"] == "255.255.255.0" and told["mtu"] == "1400" and told["lease"] == "86400"
        assert told["hostname"] == "vm0" and told["domain"] == "lab" and told["serverid"] == "10.0.2.2"


def test_large_datagrams_that_a_card_would_cut():
    """USO: one frame, several datagrams (UDP_SEGMENT in the guest)."""
    for lab in make(offload=0x6F):
        assert lab.start_outside(*python(ECHO), OUTSIDE4, "7003").stdout.readline() == "ready\n"
        client(lab, f"""
            import struct
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.settimeout(20)
            sock.setsockopt(17, 103, 1000)
            data = bytes(i % 250 for i in range(30500))
            sock.sendto(data, ("{OUTSIDE4}", 7003))
            for start in range(0, len(data), 1000):
                assert sock.recv(65536) == data[start:start + 1000][::-1], start
        """)
        assert lab.counters()["rx_frames"] < 25
