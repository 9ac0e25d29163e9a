"""Translations from a file: adopted only where each byte that they depend on is as it was, and whole (kept.py).

That they do what the host does is test_oracle's to show.
"""

import os
import random
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from machine import assemble
from test_breakpoints import CODE, DATA, machine_of

from hostel.cpu.bt import keeper

KEY = bytes(range(32))
HEAD, RECORD, WISH, PART = 72, 80, 24, 8  # bytes of what kept.pxd describes

PROGRAM = """
    mov     ebp, 3
again:
    mov     rax, [rdi]
    add     [rdi + 16], rax
    push    rax
    pop     rdx
    lea     r8, [rip + target]
    call    near_by
    dec     ebp
    jnz     again
    jmp     r8
near_by:
    mov     ecx, 5
    rep     movsb
    mov     ecx, 1
    xor     eax, eax
    cpuid
    mov     ecx, 2
    xor     [rsi], ecx
    cmp     qword ptr [rdi], 5
    je      1f
    ret
1:  ret
    .org    0x100
target:
    xor     edx, edx
    div     rcx
    int3
"""


def run(file=None, program=PROGRAM, patch=None, told=-1, verify=1):
    """(registers, data, counters) after the program, on a thread as a vCPU has one, and the engine."""

    def work():
        ram, vcpu, engine = machine_of(assemble(program, CODE, runtime=False), verify=verify)
        keeper.collect(engine, told)
        if file is not None:
            keeper.use(engine, file)
        if patch:
            ram.write(0x200000 + patch[0], patch[1])
        state = vcpu.save_state()
        state.registers[4] = DATA + 0x1000
        ram.write(0x300000, bytes(range(256)) * 2)
        vcpu.load_state(state)
        vcpu.run_py()
        vector = vcpu.take_exception()[0]
        return [vector, vcpu.save_state().registers, ram.read(0x300000, 0x1100)], engine

    with ThreadPoolExecutor(1) as thread:
        outcome, engine = thread.submit(work).result()
    assert engine.refusal == ""
    return outcome, engine.statistics(), engine


def wishes(**given) -> bytes:
    fd = os.memfd_create("wishes")
    _, _, engine = run(told=fd, **given)
    assert keeper.tell(engine, 1 << 30) == b""
    keeper.tell(engine, 0)
    return os.pread(fd, 1 << 20, 0)


@pytest.fixture(scope="module")
def records():
    return keeper.Keeper(False).records(wishes(), set())


@pytest.fixture(scope="module")
def file(records):
    return keeper.make(KEY, 7, [(0, record) for record in records])


def test_a_machine_adopts_what_another_translated(file):
    expected, before, _ = run()
    outcome, counters, engine = run(file)
    assert outcome == expected and expected[0] == 3
    assert before["adopted_blocks"] == 0 and before["translated_blocks"] > 5
    assert counters["adopted_blocks"] == before["translated_blocks"] and counters["translated_blocks"] == 0
    assert counters["verified_blocks"] == counters["adopted_blocks"]  # by the verifier, in place
    marks = keeper.tell(engine, 0)
    assert marks == b""  # it was told to tell nothing


def test_what_was_adopted_is_told():
    fd = os.memfd_create("wishes")
    records = keeper.Keeper(False).records(wishes(), set())
    file = keeper.make(KEY, 7, [(0, record) for record in records])
    _, counters, engine = run(file, told=fd)
    part = keeper.tell(engine, 0)
    ((start, end),) = keeper.parts(part)
    assert sum(byte.bit_count() for byte in part[start:end]) == len(records) == counters["adopted_blocks"]
    assert keeper.Keeper(False).records(os.pread(fd, 4096, 0), set()) == []


def test_translations_are_the_same_wherever_they_are_made(records):
    """Nothing of a run is in them: no address of ours, no leftovers."""
    given = wishes()
    other = keeper.Keeper(False)
    other.records(wishes(program="mov rax, [rsi + 8]\n" * 30 + PROGRAM), set())
    assert other.records(given, set()) == records
    assert other.records(given + given, set()) == records  # and each is made once


@pytest.mark.parametrize("at", [0x1, 0x104])
def test_one_other_byte_and_it_is_translated(file, at):
    body = assemble(PROGRAM, CODE, runtime=False)
    patch = (at, bytes([body[at] ^ (1 if at < 0x100 else 8)]))
    expected, _, _ = run(patch=patch)
    outcome, counters, _ = run(file, patch=patch)
    assert outcome == expected
    assert counters["translated_blocks"] >= 1 and counters["adopted_blocks"] >= 1


def test_at_another_address_it_is_another(file):
    outcome, counters, _ = run(file, program="nop\n" + PROGRAM)
    assert outcome == run(program="nop\n" + PROGRAM)[0]
    assert counters["adopted_blocks"] <= 1  # `target` is where it was


def test_code_that_changes_after_it_was_adopted(file):
    program = """
        mov     byte ptr [rip + code + 1], 9
    code:
        mov     al, 1
        cmp     byte ptr [rdi + 7], 0
        int3
    """
    kept = keeper.make(KEY, 1, [(0, r) for r in keeper.Keeper(False).records(wishes(program=program), set())])
    outcome, counters, _ = run(kept, program=program)
    assert outcome == run(program=program)[0] and outcome[1][0] & 0xFF == 9
    assert counters["adopted_blocks"] and counters["invalidated_blocks"]


def test_damaged_records_are_not_adopted(records):
    """Whatever byte of one is another."""
    rng = random.Random(1)
    expected, before, _ = run()
    for _ in range(40):
        bad = [bytearray(record) for record in records]
        victim = rng.choice(bad)
        at = rng.choice([i for i in range(len(victim)) if not 12 <= i < 24])  # its age and its key aren't the block's
        victim[at] ^= 1 << rng.randrange(8)
        try:
            file = keeper.make(KEY, 7, [(0, bytes(record)) for record in bad])
        except ValueError:
            continue
        outcome, counters, _ = run(file)
        assert outcome == expected, at
        assert counters["translated_blocks"] + counters["adopted_blocks"] == before["translated_blocks"]
        assert counters["translated_blocks"] >= 1, at


def test_a_file_is_for_one_key_and_whole(file):
    assert keeper.check(file, KEY) == 7
    assert keeper.check(file, bytes(32)) == -1
    for cut in (0, 1, HEAD - 1, HEAD, len(file) - 1):
        assert keeper.check(file[:cut], KEY) == -1 if cut else True
    slots = struct.unpack_from("<I", file, 12)[0]
    for at in (0, 8, 12, 20, 50, 60, 66, HEAD, HEAD + 8 * slots - 1):
        damaged = bytearray(file)
        damaged[at] ^= 0x40
        assert keeper.check(damaged, KEY) == -1, at


def test_a_file_is_read_as_it_was_written(records):
    file = keeper.make(KEY, 7, [(number, record) for number, record in enumerate(records)])
    rows = keeper.read(file)
    assert [age for _, age, _ in rows] == list(range(len(records)))
    assert [keeper.content(record) for _, _, record in rows] == [keeper.content(record) for record in records]
    assert keeper.read(keeper.make(KEY, 1, [])) == []


def test_wishes_that_lie_give_nothing_that_was_not_there(records):
    """They come from a worker that a guest may have taken over."""
    rng = random.Random(2)
    honest = wishes()
    good = {keeper.content(record) for record in records}
    expected, _, _ = run()
    maker = keeper.Keeper(False)
    for _ in range(300):
        told = bytearray(honest)
        for _ in range(rng.choice((1, 1, 2, 8, 200))):
            told[rng.randrange(len(told))] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
        if rng.random() < 0.2:
            told = told[: rng.randrange(len(told))]
        made = maker.records(bytes(told), set())
        if any(keeper.content(record) not in good for record in made):
            outcome, _, _ = run(keeper.make(KEY, 7, [(0, record) for record in made]), verify=0)
            assert outcome == expected
    assert maker.records(rng.randbytes(5000), set()) == []
    junk = b"".join(rng.randbytes(WISH) + bytes(40) for _ in range(2000))
    maker.records(struct.pack("<II", 1, len(junk)) + junk, set())


def test_no_debugger_meets_adopted_blocks(file):
    def work():
        _, vcpu, engine = machine_of(assemble(PROGRAM, CODE, runtime=False))
        keeper.use(engine, file)
        engine.set_points([CODE + 0x102], [])
        state = vcpu.save_state()
        state.registers[4] = DATA + 0x1000
        vcpu.load_state(state)
        vcpu.run_py()
        return engine.statistics()["adopted_blocks"]

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(work).result() == 0


def test_another_number_of_vcpus_is_another_translator():
    assert keeper.Keeper(False).identity() != keeper.Keeper(True).identity()
    assert keeper.Keeper(False).identity() == keeper.Keeper(False).identity()
