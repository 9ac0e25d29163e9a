"""The code cache: what happens when it is full, and when one page's code changes under another vCPU."""

import threading
from pathlib import Path

import pytest
from machine import assemble
from test_breakpoints import CODE, DATA, P, Space, W, machine_of

from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

BLOCKS = 4000
# three times through code that doesn't fit
PROGRAM = f"""
    mov     ecx, 3
    xor     eax, eax
again:
    .set    n, 0
    .rept   {BLOCKS}
    .set    n, n + 1
    add     rax, n
    mov     [rdi], rax
    jmp     1f
1:
    .endr
    dec     ecx
    jnz     again
    int3
"""


def test_a_full_cache_starts_anew():
    ram, vcpu, engine = machine_of(assemble(PROGRAM, CODE, runtime=False), code_size=1 << 17, pages=32)
    vcpu.run_py()
    assert vcpu.take_exception()[0] == 3
    total = 3 * BLOCKS * (BLOCKS + 1) // 2
    assert vcpu.save_state().registers[0] == total
    assert int.from_bytes(ram.read(0x300000, 8), "little") == total
    counters = engine.statistics()
    assert counters["flushes"] >= 3
    assert counters["code_bytes"] <= counters["code_capacity"] == 1 << 17


def test_a_device_that_writes_to_code_is_seen():
    body = assemble("mov eax, 1\nint3\nnop", CODE, runtime=False)
    ram, vcpu, engine = machine_of(body)
    for value in (1, 7, 9):
        ram.write(0x200001, bytes([value]))
        state = vcpu.save_state()
        state.rip = CODE
        vcpu.load_state(state)
        vcpu.run_py()
        assert vcpu.take_exception()[0] == 3
        assert vcpu.save_state().registers[0] == value


def test_addresses_that_share_table_entries():
    # the same index in the TLB and in the jump cache, far apart: 4096 pages and 16384 bytes' worth of targets
    far = DATA + (4096 << 12)
    body = assemble(
        f"""
        mov     ecx, 1000
        mov     rsi, {far:#x}
    1:  add     qword ptr [rdi], 1
        add     qword ptr [rsi], 2
        dec     ecx
        jnz     1b
        int3
        """, CODE, runtime=False)  # fmt: skip
    ram, vcpu, _ = machine_of(body)
    space = Space(ram, free=0x80000)
    space.cr3 = vcpu.save_state().cr3
    space.map(far, 0x310000, 0x1000, P | W)
    vcpu.run_py()
    assert vcpu.take_exception()[0] == 3
    assert ram.read(0x300000, 8)[:2] == (1000).to_bytes(2, "little")
    assert ram.read(0x310000, 8)[:2] == (2000).to_bytes(2, "little")
    assert vcpu.statistics()["exits"]["memory"] < 10  # the second TLB serves them


def test_no_address_is_writable_and_executable():
    def mappings():
        rows = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        return [(row[1], row[-1] if len(row) < 6 else row[5]) for row in rows]

    other = sum("w" in how and "x" in how for how, _ in mappings())
    ram, vcpu, engine = machine_of(assemble("mov eax, 1\nint3", CODE, runtime=False))
    vcpu.run_py()
    code = [how for how, what in mappings() if what == "/dev/zero"]
    assert code.count("r-xs") == code.count("rw-s") > 0 and set(code) == {"r-xs", "rw-s"}
    assert sum("w" in how and "x" in how for how, _ in mappings()) == other


# `ecx` times: a routine that is new, at the next of 512 places, is written and called
CHURN = """
    mov     r8, 0xC30000000000
1:  mov     eax, ecx
    and     eax, 511
    lea     rdx, [rdi + rax*8]
    mov     eax, ecx
    shl     rax, 8
    or      rax, r8
    or      rax, 0xB8
    mov     [rdx], rax
    call    rdx
    add     rbx, rax
    dec     ecx
    jnz     1b
    int3
"""


def _resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096


def test_fresh_code_for_ever_neither_leaks_nor_slows_down():
    rounds = 10_000
    _, vcpu, engine = machine_of(assemble(CHURN, CODE, runtime=False), code_size=1 << 20)
    state = vcpu.save_state()
    state.registers[4] = DATA + 0x2000
    work, memory = [], []
    for _ in range(8):
        before = _work(vcpu, engine)
        state.rip, state.registers[1], state.registers[3] = CODE, rounds, 0
        vcpu.load_state(state)
        vcpu.run_py()
        assert vcpu.take_exception()[0] == 3
        assert vcpu.save_state().registers[3] == rounds * (rounds + 1) // 2
        work.append([after - was for after, was in zip(_work(vcpu, engine), before, strict=True)])
        memory.append(_resident())
    counters = engine.statistics()
    assert counters["flushes"] >= 10
    assert counters["code_bytes"] <= counters["code_capacity"] == 1 << 20
    assert memory[-1] - memory[2] < 1 << 20
    for first, last in zip(work[1], work[-1], strict=True):  # a round costs as many translations, exits and look-ups
        assert last <= 1.2 * first + 100


def _work(vcpu, engine) -> list[int]:
    counters, own = engine.statistics(), vcpu.statistics()
    return [
        counters["translated_instructions"], counters["invalidated_blocks"], sum(own["exits"].values()), own["lookups"],
        own["tlb_fills"], own["jump_flushes"],
    ]  # fmt: skip


def test_two_machines_translate_at_once():
    # each round a fresh translation; what one machine makes must not get into the other's
    programs = {
        step: assemble(
            f"""
            mov     ecx, 20000
            xor     eax, eax
        1:  mov     byte ptr [rip + 2f - 1], {step}
            add     rax, {step + 0x1000}       // whose highest byte is written each time
        2:  .rept   {step}
            add     rax, 1
            .endr
            dec     ecx
            jnz     1b
            int3
            """, CODE, runtime=False)
        for step in (3, 17)
    }  # fmt: skip
    machines = {step: machine_of(body) for step, body in programs.items()}
    threads = [threading.Thread(target=vcpu.run_py) for _, vcpu, _ in machines.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step, (_, vcpu, _) in machines.items():
        assert vcpu.take_exception()[0] == 3
        assert vcpu.save_state().registers[0] == 20000 * ((step << 24) + 0x1000 + 2 * step)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("op", ["add rax, [rsi]", "mov [rsi], rax", "add [rsi], rax", "xchg [rsi], rax"])
def test_accesses_across_pages(op: str, apart: bool):
    """They need the monitor where the pages aren't neighbours in the host's memory."""
    body = assemble(
        f"""
        mov     ecx, 100
        mov     eax, 3
        lea     rsi, [rdi + 0xffc]
    1:  {op}
        dec     ecx
        jnz     1b
        int3
        """, CODE, runtime=False)  # fmt: skip
    ram, vcpu, _ = machine_of(body)
    space = Space(ram, free=0x80000)
    space.cr3 = vcpu.save_state().cr3
    second = 0x310000 if apart else 0x301000
    space.map(DATA + 0x1000, second, 0x1000, P | W)
    before = 0x1_0000_0005
    ram.write(0x300FFC, before.to_bytes(8, "little")[:4])
    ram.write(second, before.to_bytes(8, "little")[4:])
    vcpu.run_py()
    assert vcpu.take_exception()[0] == 3
    after = int.from_bytes(ram.read(0x300FFC, 4) + ram.read(second, 4), "little")
    rax = vcpu.save_state().registers[0]
    assert (rax, after) == {
        "add rax, [rsi]": (3 + 100 * before, before), "mov [rsi], rax": (3, 3),
        "add [rsi], rax": (3, before + 300), "xchg [rsi], rax": (3, before),
    }[op]  # fmt: skip
    exits = vcpu.statistics()["exits"]["memory"]
    assert exits >= 100 if apart else exits < 10


@pytest.mark.parametrize(("mib", "want"), [(16, 64), (1024, 64), (1040, 65), (4096, 128)])
def test_code_memory_grows_with_the_guest(mib: int, want: int):
    ram = Ram()
    ram.add(0, mib << 20)
    assert BtEngine(ram, 1).statistics()["code_capacity"] == want << 20
