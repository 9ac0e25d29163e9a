"""The slow twin: one instruction at a time comes to the same as blocks do.

For all rows but those whose results are never the same twice: what test_oracle.py can't compare with the host as well.
"""

import os
import random
import sys
import threading
import time

import generate
import oracle
import pytest
from bare import A, Guest, P, W
from remapping import ENTRIES, Remapping
from rows import same_for_supervisor
from sequences import Long

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
        case = generator.case(number * oracle.STATES)
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


def test_stops_change_nothing():
    """Another thread stops the vCPU all the time, so that it leaves translated code wherever it may, and goes on."""
    guest, generator = Guest(SEED), generate.Generator(SEED)
    expected = []
    for code in range(100):
        maker = Looping(generator, random.Random(code), code, *generator.order[code])
        maker.make()
        case = maker.case(code * oracle.STATES)
        began = time.perf_counter()
        outcome = guest.run(case)
        if outcome.vector >= 0 and 0.001 < time.perf_counter() - began < 0.2:  # those that a stop may hit
            expected.append((case, outcome))
    over = threading.Event()

    def stop() -> None:
        while not over.is_set():
            guest.vcpu.request_stop()

    thread = threading.Thread(target=stop)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        for case, outcome in expected:
            for fresh in (True, *[False] * 5):
                found = oracle.differences(case, outcome, guest.interrupted(case, fresh))
                assert not found, oracle.describe(case, outcome) + "\n" + "\n".join(found)
    finally:
        sys.setswitchinterval(interval)
        over.set()
        thread.join()
    assert guest.vcpu.statistics()["exits"]["poll"]


class Looping(Long):
    """Loops for a while, in which base registers and stack don't wander off."""

    loops = 1
    rounds = (10_000,)

    def _head(self) -> None:
        for r in (*self.anchors, 4):
            self._load(r, self.values.get(r, oracle.STACK + 0x1000))


class Supervisor(Guest):
    """A guest whose code has the page table of DATA before it, which is as it was before each run."""

    def __init__(self, seed: int):
        super().__init__(seed, supervisor=True)
        self.table = self.space.entry(oracle.DATA) & ~0xFFF
        self.space.map(ENTRIES, self.table, flags=P | W)
        self.readonly = oracle.readonly_page()
        self.entries = bytes(self.ram.view(self.table, 40))

    def _memory(self, case: oracle.Case) -> None:
        self.ram.view(self.table, 40)[:] = self.entries
        self.ram.view(self.DATA_GPA + 0x2000, 4096)[:] = self.readonly
        self.state.cr0, self.state.cr4 = 0x80050033, 0x50620 | (0x200080 if case.number & 16 else 0)
        self.state.cr3 = self.space.cr3
        at = case.base - oracle.CODE
        if self.code[at : at + oracle.SLOT] != case.page:  # with CR0.WP off it may have been written to
            self.ram.mark_written(self.CODE_GPA + at, oracle.SLOT)
            self.code[at : at + oracle.SLOT] = case.page
        super()._memory(case)

    def mappings(self) -> list[int]:
        """The entries, without what processors may set early (A)."""
        return [self.space.load(self.table + 8 * i) & ~A for i in range(5)]


def remapping_cases(seed: int, count: int) -> int:
    """Compare so many codes of Remapping, each from two states, with their steps; how many ran to their ends."""
    guest, generator = Supervisor(seed), generate.Generator(seed, same_for_supervisor)
    only = os.environ.get("TWIN_CODE")
    ended = 0
    for code in range(count) if only is None else [int(only)]:
        focus, mode = generator.order[code % len(generator.order)]
        maker = Remapping(generator, random.Random(f"{seed}/{code}"), code, focus, mode)
        maker.make()
        for state in range(2):
            case = maker.case(code * oracle.STATES + state)
            steps, tables = guest.step(case, 3000), guest.mappings()
            if steps is None or steps.vector < 0:
                continue
            ended += steps.vector == 3
            for how in (guest.run, guest.again):
                found = oracle.differences(case, steps, how(case))
                if guest.mappings() != tables:
                    found.append(f"mappings: steps {tables}, blocks {guest.mappings()}")
                said = f"TWIN_SEED={seed} TWIN_CODE={code} ({how.__name__})\n" + oracle.describe(case, steps)
                assert not found, said + "\n" + "\n".join(found)
    return ended


def test_blocks_agree_with_steps_while_mappings_change():
    assert remapping_cases(int(os.environ.get("TWIN_SEED", SEED)), 1500) > 300 or "TWIN_CODE" in os.environ


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_blocks_agree_with_steps_while_mappings_change_at_length():
    remapping_cases(int(os.environ.get("TWIN_SEED", time.time_ns() % 1_000_000)), 40_000)
