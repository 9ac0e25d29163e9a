"""Devices that a container may open: the kernel's answers in v1 and v2, and every case of the program against the
specification's rule, read one bit at a time."""

import os
import random
import struct
import subprocess
import sys

import pytest

from hostel.base.errors import ContainerError
from hostel.base.linux import bpf
from hostel.containers.cgroups import devices
from hostel.containers.cgroups.hierarchy import find

KMSG = {"type": "c", "major": 1, "minor": 11}   # /dev/kmsg: every host has it, and no container may open it
TRY = """
import errno, os
for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
    try:
        os.close(os.open('/dev/kmsg', flags | os.O_NONBLOCK))
        print('yes', end=' ')
    except PermissionError as error:
        assert error.errno == errno.EPERM
        print('no', end=' ')
os.close(os.open('/dev/null', os.O_RDWR))
print(len(os.urandom(5)))
"""


def test_only_what_is_allowed_can_be_opened(cgroup, inside):
    one = cgroup({}, "devices")
    assert inside(one, TRY).result() == "no no no 5"
    one.apply({"devices": [KMSG | {"allow": True, "access": "r"}]})
    assert inside(one, TRY).result() == "yes no no 5"
    one.apply({"devices": [KMSG | {"allow": True, "access": "rw"}]})
    assert inside(one, TRY).result() == "yes yes yes 5"
    one.apply({"devices": [{"allow": True}, KMSG | {"allow": False, "access": "w"}]})  # as --privileged, but one
    assert inside(one, TRY).result() == "yes no no 5"
    one.apply({"memory": {}})  # an update says nothing about devices
    assert inside(one, TRY).result() == "yes no no 5"
    one.apply({"devices": []})
    assert inside(one, TRY).result() == "no no no 5"


def test_any_node_can_be_made_and_not_opened(cgroup, inside, tmp_path):
    one = cgroup({}, "devices")
    node = str(tmp_path / "node")
    code = f"os.mknod({node!r}, 0o20600, os.makedev(1, 11))\nprint('made')\nos.open({node!r}, 0)"
    made = inside(one, code, stderr=subprocess.PIPE)
    out, told = made.process.communicate()
    assert out == "made\n" and "Operation not permitted" in told
    one.apply({"devices": [{"allow": False}]})  # the standard ones come after
    assert inside(one, "os.open('/dev/zero', 0); print('open')").result() == "open"


@pytest.fixture
def unified():
    """A cgroup of v2 alone, where the host has v2 at all."""
    found = find()
    if not found.v2 or os.geteuid() != 0:
        pytest.skip("the host has no cgroup v2, or we aren't root")
    folder = f"{found.v2.point}/hostel-test-devices-{os.getpid()}"
    os.mkdir(folder)
    yield folder
    os.rmdir(folder)


def opened(folder, code=TRY):
    program = f"open({folder + '/cgroup.procs'!r}, 'w').write('0')\n" + code
    result = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True)
    return result.stdout.strip() or result.stderr


def test_ebpf_in_the_order_of_the_rules(unified):
    null = {"allow": True, "type": "c", "major": 1, "access": "rw"}  # and the rest of major 1
    try:
        devices.attach(unified, [null])
    except ContainerError as error:
        pytest.skip(f"no eBPF for devices here: {error}")
    assert opened(unified) == "yes yes yes 5"
    devices.attach(unified, [null, KMSG | {"allow": False, "access": "w"}])  # which v1 can't say
    assert opened(unified) == "yes no no 5"
    devices.attach(unified, [KMSG | {"allow": False, "access": "w"}, null])
    assert opened(unified) == "yes yes yes 5"
    devices.attach(unified, [null | {"access": "r"}, null | {"access": "w"}, KMSG | {"allow": False}])
    assert opened(unified) == "no no no 5"
    devices.attach(unified, [{"allow": False}, null | {"access": "r"}, null | {"access": "w"}])
    assert opened(unified) == "yes yes yes 5"
    devices.attach(unified, [])
    assert opened(unified) == "no no no"  # and then /dev/null neither
    fd = os.open(unified, os.O_RDONLY)
    try:
        programs = bpf.attached(fd, bpf.CGROUP_DEVICE)
        for one in programs:
            os.close(one)
        assert len(programs) == 1  # each in the place of the one before
    finally:
        os.close(fd)


def test_what_others_attached_is_replaced(unified):
    """As an older runtime, or systemd, may have."""
    code = devices.program([{"allow": False}])
    fd = os.open(unified, os.O_RDONLY)
    try:
        programs = [bpf.load(bpf.CGROUP_DEVICE_PROGRAM, code, f"other{number}") for number in range(2)]
        for one in programs:
            bpf.attach(fd, one, bpf.CGROUP_DEVICE)
            os.close(one)
        devices.attach(unified, [{"allow": True}])
        assert opened(unified) == "yes yes yes 5"
    except PermissionError:
        pytest.skip("no eBPF here")
    finally:
        os.close(fd)


def test_the_verifiers_words_are_told():
    asm = bpf.Assembler()
    asm.load(0, 9, 0)
    asm.exit(1)
    with pytest.raises(OSError, match="R9 !read_ok|Permission|not permitted"):
        os.close(bpf.load(bpf.CGROUP_DEVICE_PROGRAM, asm.program(), "bad"))


def run(code, access, kind, major, minor):
    """What the program answers: an interpreter of the instructions that it is of."""
    registers, at = {1: 0}, 0
    context = struct.pack("<III", access << 16 | kind, major, minor)
    while True:
        operation, names, offset, immediate = struct.unpack_from("<BBhi", code, at * 8)
        to, source, at = names & 15, names >> 4, at + 1
        match operation:
            case 0x61:
                registers[to] = struct.unpack_from("<I", context, registers[source] + offset)[0]
            case 0xB4:
                registers[to] = immediate
            case 0xBC:
                registers[to] = registers[source]
            case 0x54:
                registers[to] &= immediate & 0xFFFFFFFF
            case 0x74:
                registers[to] >>= immediate
            case 0x05:
                at += offset
            case 0x45:
                at += offset if registers[to] & immediate else 0
            case 0x55:
                at += offset if registers[to] != immediate else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(hex(operation))


def rule(random):
    one = {"allow": random.random() < 0.6, "access": "".join(random.sample("rwm", random.randint(1, 3)))}
    one["type"] = random.choice(["a", "b", "c", "c", None])
    for name in ("major", "minor"):
        one[name] = random.choice([None, -1, 1, 2, 3])
    return one


def may(rules, letter, kind, major, minor):
    """One bit of access: the last rule about it decides."""
    answer = False
    for one in rules:
        numbers = (("major", major), ("minor", minor))
        if one["type"] in (None, "a", kind) and all(one[name] in (None, -1, number) for name, number in numbers):
            if letter in one["access"]:
                answer = one["allow"]
    return answer


def test_programs_decide_each_bit_by_the_last_rule():
    source = random.Random(1)
    bits = {"m": 1, "r": 2, "w": 4}
    for _ in range(300):
        rules = [rule(source) for _ in range(source.randint(0, 7))]
        code = devices.program(rules)
        for _ in range(20):
            letters = source.sample("rwm", source.randint(1, 3))
            which = (source.choice("bc"), source.randint(1, 3), source.randint(1, 3))
            wanted = all(may(rules, letter, *which) for letter in letters)
            number = {"b": 1, "c": 2}[which[0]]
            assert run(code, sum(bits[letter] for letter in letters), number, *which[1:]) == wanted, (rules, which)


def test_v1s_lists_decide_the_same_or_are_refused():
    source = random.Random(2)
    said = 0
    for _ in range(1500):
        rules = [rule(source) for _ in range(source.randint(0, 5))]
        try:
            allowed, exceptions = devices.lists(rules)
        except ContainerError:
            continue
        said += 1
        for kind, major, minor in ((kind, a, b) for kind in "bc" for a in (1, 2, 3) for b in (1, 2, 3)):
            for letter, bit in (("m", 1), ("r", 2), ("w", 4)):
                excepted = any(
                    bits & bit for (k, a, b), bits in exceptions.items()
                    if k == kind and a in (None, major) and b in (None, minor)
                )  # fmt: skip
                assert (allowed != excepted) == may(rules, letter, kind, major, minor), rules
    assert said > 300


def test_what_v1_cant_say_is_refused_by_name():
    rules = [{"allow": True, "type": "c", "major": 1, "access": "rw"}, KMSG | {"allow": False, "access": "w"}]
    with pytest.raises(ContainerError, match=r"denies c 1:11 w, which is a part of c 1:\* rw before it"):
        devices.lists(rules)


def test_too_many_rules():
    with pytest.raises(ContainerError, match="401 rules"):
        devices.rows([{"allow": True}] * 401)
