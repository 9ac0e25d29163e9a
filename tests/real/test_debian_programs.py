"""Debian's programs in a Debian guest: their own tests, and answers that must be the host's own."""

import hashlib
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PYTHON = """test_array test_bz2 test_cmath test_complex test_ctypes test_decimal test_float test_fractions
test_hashlib test_hmac test_long test_lzma test_math test_mmap test_os test_posix test_queue test_random test_re
test_select test_signal test_statistics test_strtod test_struct test_subprocess test_thread test_threading
test_time test_unicodedata test_zlib""".split()
# A NaN's payload, and what is printed of it, is the compiler's business, not the processor's: programs print neither.
SOURCES = Path(__file__).parent / "programs"
PROGRAMS = ["integers", "floats", "vectors", "control"]
OPTIONS = ["-O0", "-O1", "-O2", "-O3", "-O3 -march=haswell", "-m32 -O0", "-m32 -O2", "-m32 -O3 -march=haswell"]


def sh(vm, command, **options):
    """What a shell command prints; it must end well."""
    result = vm.exec(["sh", "-c", command], **{"timeout": 900} | options)
    assert result.status == 0, f"{command}: {result.status}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def test_python(vm):
    """CPython's own tests, two at once on two processors."""
    out = sh(vm, f"cd /tmp && LC_ALL=C.UTF-8 python3 -m test -j2 --timeout 900 {' '.join(PYTHON)} 2>&1")
    assert re.search(rf"All {len(PYTHON)} tests OK|Tests result: SUCCESS", out), out[-4000:]
    assert f"/{len(PYTHON)}" in out


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_of_gcc(vm, compiled, program, tmp_path):
    """Built in the guest at every level; then the same bytes run there and on the host's own processor."""
    host = set(re.findall(r"^flags.*$", open("/proc/cpuinfo").read(), re.MULTILINE)[0].split())
    for options in OPTIONS:
        if "haswell" in options and not {"avx2", "bmi2", "fma", "movbe"} <= host:
            continue
        path = compiled(vm, program, *options.split())
        there = vm.exec([path], timeout=300)
        local = tmp_path / "program"
        local.write_bytes(vm.exec(["cat", path], text=False, timeout=60).stdout)
        local.chmod(0o755)
        here = subprocess.run([local], capture_output=True, text=True, timeout=120)
        assert here.returncode == 0 and here.stdout, (options, here)
        assert (there.status, there.stdout) == (0, here.stdout), options


def test_gcc_says_the_same_each_time(vm):
    """The same source gives the same assembly from four compilers at once on two processors, three times over."""
    vm.exec(["tee", "/tmp/a.c"], input=(SOURCES / "vectors.c").read_text(), check=True)
    out = sh(vm, """cd /tmp && for i in 1 2 3; do for n in 1 2 3 4; do
        (gcc -w -O2 -S -o $n.s a.c && sha256sum < $n.s) & done; wait; done | sort | uniq -c""")
    assert re.fullmatch(r" *12 [0-9a-f]{64}  -\n", out), out


# FIPS 180-4, FIPS 202, RFC 7693 and RFC 1321: "abc"
DIGESTS = {
    "md5": "900150983cd24fb0d6963f7d28e17f72",
    "sha1": "a9993e364706816aba3e25717850c26c9cd0d89d",
    "sha224": "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
    "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "sha512": "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
    "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    "sha3-256": "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532",
    "blake2s256": "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982",
}
# NIST SP 800-38A, F.1 to F.5 (the first two blocks); RFC 8439, 2.4.2 (its first 32 bytes)
IV, COUNTER = "000102030405060708090a0b0c0d0e0f", "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
K128 = "2b7e151628aed2a6abf7158809cf4f3c"
K192 = "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b"
K256 = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
PLAIN = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
CIPHERS = [
    ("aes-128-ecb", K128, "", PLAIN, "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"),
    ("aes-192-ecb", K192, "", PLAIN, "bd334f1d6e45f25ff712a214571fa5cc974104846d0ad3ad7734ecb3ecee4eef"),
    ("aes-256-ecb", K256, "", PLAIN, "f3eed1bdb5d2a03c064b5a7e3db181f8591ccb10d410ed26dc5ba74a31362870"),
    ("aes-128-cbc", K128, IV, PLAIN, "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"),
    ("aes-256-cbc", K256, IV, PLAIN, "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"),
    ("aes-128-cfb", K128, IV, PLAIN, "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b"),
    ("aes-128-ofb", K128, IV, PLAIN, "3b3fd92eb72dad20333449f8e83cfb4a7789508d16918f03f53c52dac54ed825"),
    ("aes-128-ctr", K128, COUNTER, PLAIN, "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"),
    ("aes-256-ctr", K256, COUNTER, PLAIN, "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"),
    ("chacha20", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
     "01000000000000000000004a00000000", b"Ladies and Gentlemen of the clas".hex(),
     "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"),
]  # fmt: skip
# OpenSSL chooses its code by CPUID: all of it, then without AVX2 and newer, without AVX, AES-NI and SHA, with none.
CAPABILITIES = ["", "~0x0:~0x20010120", "~0x1200000200000000:~0x20010128", "0x0:0x0"]


@pytest.mark.parametrize("capabilities", CAPABILITIES)
def test_openssl_vectors(vm, capabilities):
    def openssl(*arguments, data=b""):
        environment = {"OPENSSL_ia32cap": capabilities} if capabilities else {}
        return vm.exec(
            ["openssl", *arguments], input=data, text=False, env=environment, check=True, timeout=120
        ).stdout

    for name, digest in DIGESTS.items():
        assert openssl("dgst", f"-{name}", "-r", data=b"abc").split()[0].decode() == digest, name
    data = hashlib.shake_128(b"hostel").digest(3 << 20)
    for name in ("md5", "sha1", "sha256", "sha384", "sha512", "sha3-512", "blake2b512"):
        mine = hashlib.new({"blake2b512": "blake2b"}.get(name, name.replace("sha3-", "sha3_")), data)
        assert openssl("dgst", f"-{name}", "-r", data=data).split()[0].decode() == mine.hexdigest(), name
    for name, key, iv, plain, wanted in CIPHERS:
        command = ["enc", f"-{name}", "-K", key, "-nopad", *(["-iv", iv] if iv else [])]
        assert openssl(*command, "-e", data=bytes.fromhex(plain)).hex() == wanted, name
        assert openssl(*command, "-d", data=bytes.fromhex(wanted)).hex() == plain, name
        assert openssl(*command, "-d", data=openssl(*command, "-e", data=data)) == data, name


SIGNATURES = """set -e; cd /tmp; head -c 100000 /dev/urandom > data
ec="EC -pkeyopt ec_paramgen_curve"
for key in "RSA -pkeyopt rsa_keygen_bits:2048" "$ec:P-256" "$ec:P-521" "ED25519" "ED448"; do
    openssl genpkey -algorithm $key -out key 2> /dev/null
    openssl pkey -in key -pubout -out public
    case $key in ED*) raw=-rawin; sign="openssl pkeyutl -sign -rawin -inkey key -in data";
        verify="openssl pkeyutl -verify -rawin -pubin -inkey public";;
    *) sign="openssl dgst -sha256 -sign key data"; verify="openssl dgst -sha256 -verify public";; esac
    for i in 1 2 3; do
        $sign > signature
        case $key in ED*) $verify -in data -sigfile signature;; *) $verify -signature signature data;; esac
        (cat data; echo) > other
        case $key in ED*) ! $verify -in other -sigfile signature;; *) ! $verify -signature signature other;; esac
    done
done"""


def test_openssl_signatures_and_speed(vm):
    out = sh(vm, SIGNATURES)
    assert len(re.findall(r"verified (ok|successfully)", out, re.IGNORECASE)) == 15, out
    ciphers = "-evp aes-256-gcm", "-evp chacha20-poly1305", "sha256", "sha512", "rsa2048", "ecdsap256", "ecdhx25519"
    for which in ciphers:
        out = sh(vm, f"openssl speed -seconds 1 {which} 2>&1")
        assert "version: 3." in out and ":error:" not in out, out


PERL = r"""use strict; use warnings; use bigint ();
my %words; my $x = 12345;
for my $i (1 .. 200000) { $x = ($x * 1103515245 + 12345) & 0x7fffffff; $words{sprintf "%x", $x % 5000} += $i; }
print join(",", map { "$_=$words{$_}" } (sort { $words{$b} <=> $words{$a} || $a cmp $b } keys %words)[0 .. 9]), "\n";
my $text = join " ", map { chr(97 + $_ % 26) x ($_ % 7) } 1 .. 20000;
my $n = () = $text =~ /(\w)\1{2,}\s+(\w+)/g; (my $other = $text) =~ tr/a-m/A-M/; $other =~ s/([A-Z]+)/lc(reverse $1)/ge;
print "$n ", length $other, " ", unpack("%32C*", $other), "\n";
my ($a, $b) = (Math::BigInt->new(0), Math::BigInt->new(1)); ($a, $b) = ($b, $a + $b) for 1 .. 1000; print "$a\n";
print join(" ", map { sprintf "%.15g", sin($_) ** 2 + log($_) / sqrt($_) } 1 .. 20), "\n";
print unpack("H*", pack "d>f>q>n", -1.5, 0.1, -7, 65535), "\n";
my $total = 0;
for my $i (1 .. 100) { my $pid = open(my $in, "-|") // die; if (!$pid) { print $i ** 2; exit 0 } $total += <$in>; }
print "$total\n"; eval { die { code => 7 } }; print $@->{code}, "\n";"""


def test_perl(vm):
    """Hashes, sorting, regular expressions, big integers, formats, forks; the answers are Perl's on a bare machine."""
    answers = {vm.exec(["perl", "-MMath::BigInt", "-e", PERL], timeout=300, check=True).stdout for _ in range(3)}
    assert len(answers) == 1
    lines = answers.pop().splitlines()
    assert lines[2].startswith("43466557686937456435688527675040625802564660517371780402481729089536555417949051")
    assert lines[4:] == ["bff80000000000003dcccccdfffffffffffffff9ffff", "338350", "7"]


SQL = """
CREATE TABLE item (id INTEGER PRIMARY KEY, kind TEXT, size INTEGER, price REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
INSERT INTO item SELECT i, 'k' || (i * 7919 % 97), i * 104729 % 10007, (i * 31 % 1000) / 8.0 FROM n;
CREATE INDEX by_kind ON item (kind, size); CREATE INDEX by_size ON item (size);
CREATE TABLE part AS SELECT id, id * 3 % 60000 + 1 AS whole, substr(hex(id * 2654435761), 1, 12) AS tag FROM item;
CREATE INDEX by_whole ON part (whole);
UPDATE item SET price = price * 1.25 WHERE size % 3 = 0; DELETE FROM item WHERE size % 11 = 5;
SELECT kind, count(*), sum(size), sum(price), min(size), max(price) FROM item GROUP BY kind
ORDER BY sum(size), kind LIMIT 20;
SELECT count(*), sum(item.size), max(tag) FROM item JOIN part ON part.whole = item.id WHERE item.kind LIKE 'k1%';
SELECT count(DISTINCT tag), sum(length(tag)), group_concat(tag) FROM (SELECT tag FROM part ORDER BY tag DESC LIMIT 10);
SELECT size, count(*) AS n FROM item GROUP BY size HAVING n > 5 ORDER BY n DESC, size LIMIT 5;
"""


def test_sqlite(vm):
    """The same statements in the guest's SQLite and in the host's Python; then a file that two processes write to."""
    connection = sqlite3.connect(":memory:")
    rows = []
    for statement in SQL.split(";"):
        if statement.strip():
            rows += connection.execute(statement).fetchall()
    wanted = "".join("|".join(str(value) for value in row) + "\n" for row in rows)
    assert vm.exec(["sqlite3", ":memory:"], input=SQL, timeout=300, check=True).stdout == wanted
    sh(vm, "cd /tmp && sqlite3 a.db 'PRAGMA journal_mode=WAL; CREATE TABLE t (x)'")
    sh(vm, """cd /tmp && for who in 1 2; do (for i in $(seq 200); do
        sqlite3 -cmd '.timeout 60000' a.db "INSERT INTO t VALUES ($i)" || echo $who failed; done) & done; wait""")
    assert sh(vm, "sqlite3 /tmp/a.db 'PRAGMA integrity_check; SELECT count(*), sum(x) FROM t'") == "ok\n400|40200\n"


def test_stress_ng(vm):
    """Every method of its processor stressor, each checking its own results."""
    out = sh(vm, "stress-ng --cpu 2 --cpu-method all --cpu-ops 800 --verify --metrics-brief 2>&1")
    assert "successful run completed" in out and "fail" not in out.replace("failed: 0", ""), out


def test_programs_of_32_bits(vm):
    """i386 busybox and the 64-bit programs agree."""
    assert sh(vm, "head -c 5 /bin/busybox | od -An -tx1") == " 7f 45 4c 46 01\n"
    sh(vm, "cat /usr/lib/python3.11/*.py > /tmp/text; tr -d '\\0' < /dev/urandom | head -c 3000000 > /tmp/noise")
    for ours, theirs in [
        ("sha256sum < {}", "sha256sum < {}"), ("sha512sum < {}", "sha512sum < {}"), ("md5sum < {}", "md5sum < {}"),
        ("gzip -9 < {} | busybox zcat | sha1sum", "sha1sum < {}"), ("gzip < {} | gunzip | sha1sum", "sha1sum < {}"),
        ("od -v -tx1 {} | sha1sum", "od -v -tx1 {} | sha1sum"),
        ("sort {} | sha1sum", "LC_ALL=C sort {} | sha1sum"), ("wc -l < {}", "wc -l < {}"),
        ("bzip2 < {} | busybox bzcat | sha1sum", "sha1sum < {}"),
        ("tr a-m n-z < {} | sha1sum", "tr a-m n-z < {} | sha1sum"),
    ]:  # fmt: skip
        for path in ("/tmp/text", "/tmp/noise"):
            assert sh(vm, "busybox " + ours.format(path)) == sh(vm, theirs.format(path)), (ours, path)
    program = "BEGIN { for (i = 1; i <= 300000; i++) x += i / (i % 13 + 1) * (i % 7); print x }"
    python = "x = sum(i / (i % 13 + 1) * (i % 7) for i in range(1, 300001)); print('%.6g' % x)"
    assert sh(vm, f"busybox awk '{program}'").strip() == sh(vm, f'python3 -c "{python}"').strip()
    script = "i=0; while [ $i -lt 300 ]; do busybox true; i=$((i + 1)); done; echo $i"
    assert sh(vm, f"busybox sh -c '{script}'") == "300\n"
