"""The slow twin: one instruction at a time comes to the same as blocks do.

For all rows but those whose results are never the same twice: what test_oracle.py can't compare with the host as well.
"""

import generate
import oracle
from bare import Guest

VARYING = {"rdtsc", "rdtscp", "rdrand", "rdseed", "rdpmc"}
SEED = 7


def test_steps_and_blocks_agree():
    guest = Guest(SEED)
    generator = generate.Generator(SEED, wanted=lambda row: True)
    rows = generator.rows
    wanted = [n for n in range(len(generator.order)) if generate.skipped(rows[generator.order[n][0]])]
    wanted += range(0, len(generator.order), 7)
    seen = set()
    for number in wanted:
        case = generator.case(number)
        if any(rows[n]["name"] in VARYING for n in case.rows):
            continue
        blocks, steps = guest.run(case), guest.step(case)
        if steps is None or blocks.vector < 0:  # endless; or an exit
            continue
        found = oracle.differences(case, blocks, steps)
        assert not found, oracle.describe(case, blocks) + "\n" + "\n".join(found)
        seen.update(case.rows)
    names = {rows[n]["name"] for n in seen if generate.skipped(rows[n])}
    assert {"cpuid", "xsave", "xrstor", "sgdt", "lar", "verr", "xgetbv"} <= names


def test_a_step_is_one_instruction():
    guest = Guest(SEED)
    case = oracle.Case(0, b"\xff\xc0" * 5, 16, 8, [0] * 16, 0x202, 0, 0, oracle.default_xsave(), 0)
    guest._prepare(case)
    for expected in range(1, 6):
        guest.vcpu.step_py()
        assert guest.vcpu.take_exception() is None
        assert guest.vcpu.registers()["rax"] == expected
    guest.vcpu.step_py()
    assert guest.vcpu.take_exception()[0] == 3
