"""Counting instructions, and traces: what was run is what is told, and the guest sees nothing of it."""

import threading

import pytest
from bare import KERNEL_CODE32, KERNEL_DATA, segment
from test_breakpoints import CODE, DATA, machine_of

HLT, EXCEPTION = 3, 5

# 0: mov ecx, 10   5: xor eax, eax   7: add rax, rcx   10: test cl, 1   13: jnz 18   15: add eax, 100   18: loop 7
# 20: mov [rdi], rax   23: call 32   28: pushf   29: pop rbx   30: hlt   32: stc   33: ret
PROGRAM = bytes.fromhex(
    "b90a000000" "31c0" "4801c8" "f6c101" "7503" "83c064" "e2f3" "488907" "e804000000" "9c" "5b" "f4" "90" "f9" "c3"
)
RUN = 2 + 10 * 4 + 5 + 2 + 5  # the addition at 15 every other time


def machine(body=PROGRAM):
    ram, vcpu, engine = machine_of(body)
    state = vcpu.save_state()
    state.registers[4] = DATA + 0x1000
    vcpu.load_state(state)
    return ram, vcpu, engine


def outcome(ram, vcpu):
    state = vcpu.save_state()
    return state.registers, state.rip, state.rflags, ram.read(0x300000, 0x1000)


def test_what_is_run_is_counted():
    ram, vcpu, _ = machine()
    assert vcpu.run_py()[0] == HLT
    plain = outcome(ram, vcpu)
    assert vcpu.statistics()["instructions"] == 0
    ram, vcpu, engine = machine()
    engine.count_instructions(True)
    assert vcpu.run_py()[0] == HLT
    assert vcpu.statistics()["instructions"] == RUN
    assert outcome(ram, vcpu) == plain
    engine.count_instructions(False)
    state = vcpu.save_state()
    state.rip, state.halted = CODE, False
    vcpu.load_state(state)
    assert vcpu.run_py()[0] == HLT
    assert vcpu.statistics()["instructions"] == RUN


def test_instructions_alone_are_counted():
    _, vcpu, engine = machine()
    engine.count_instructions(True)
    for _ in range(7):
        vcpu.step_py()
    assert vcpu.statistics()["instructions"] == 7


def test_code_of_32_bits_is_counted():
    ram, vcpu, engine = machine_of(bytes.fromhex("40" "75fd" "90" "f4"))  # inc eax; jnz 0; nop; hlt
    state = vcpu.save_state()
    state.segments[1], state.segments[2] = segment(KERNEL_CODE32), segment(KERNEL_DATA)
    state.registers[0] = 0xFFFFFFF0
    vcpu.load_state(state)
    engine.count_instructions(True)
    assert vcpu.run_py()[0] == HLT
    assert vcpu.statistics()["instructions"] == 2 * 16 + 2


def test_a_trace_of_blocks_and_exits():
    _, vcpu, engine = machine()
    vcpu.trace(1 | 2 | 4)
    assert vcpu.run_py()[0] == HLT
    records = vcpu.trace_take()
    assert [r[0] for r in records] == sorted(r[0] for r in records)
    blocks = {r[2] - CODE: r for r in records if r[1] == 1}
    assert {0, 32} <= set(blocks)
    _, _, _, cpl, gpa, sizes, c = blocks[32]
    assert (cpl, gpa, sizes & 0xFFFFFFFF, c >> 32) == (0, 0x200020, 2, 2) and sizes >> 32 > 8
    assert engine.mode_name(c & 0xFFFFFFFF) == "kernel64"
    writes = [r for r in records if r[1] == 2 and r[6] & 0xFF == 2 and r[6] >> 8 & 1]
    assert (CODE + 20, DATA) in [(r[2], r[4]) for r in writes]
    assert records[-1][1] == 4 and records[-1][6] & 0xFF == HLT
    assert vcpu.trace_take() == []
    vcpu.trace(0)
    vcpu.run_py()
    assert vcpu.trace_take() == []


def test_a_trace_of_faults():
    _, vcpu, _ = machine(bytes.fromhex("48c7c300100000" "8b03"))  # mov rbx, 4096; mov eax, [rbx]
    vcpu.catch_exceptions = False
    vcpu.trace(8)
    assert vcpu.run_py()[0] == 4  # no IDT: shutdown
    first, *rest = vcpu.trace_take()
    assert (first[1], first[2] - CODE, first[4], first[5], first[6]) == (8, 7, 4096, 0, 14 | 1 << 8)
    assert rest == []


@pytest.mark.parametrize("stop", [False, True])
def test_a_full_ring(stop):
    """Nobody takes: the vCPU waits, but never when it is to stop."""
    _, vcpu, _ = machine(bytes.fromhex("0fa2" "ebfc"))  # cpuid for ever
    vcpu.trace(2)
    thread = threading.Thread(target=vcpu.run_py)
    thread.start()
    taken = 0
    if not stop:
        while taken < 200_000:
            records = vcpu.trace_take()
            assert all(r[1] == 2 for r in records)
            taken += len(records)
    else:
        while vcpu.statistics()["exits"]["monitor"] < 32000:
            pass
    vcpu.request_stop()
    thread.join(10)
    assert not thread.is_alive()
    records = vcpu.trace_take()
    assert len(records) <= (1 << 15) + 1
    missing = [r[4] for r in records if r[1] == 0]
    total = taken + len(records) - len(missing) + sum(missing)
    assert total == sum(vcpu.statistics()["exits"].values())
