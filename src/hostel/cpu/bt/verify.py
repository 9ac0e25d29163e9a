"""Proves of translated code that the guest can't reach beyond its memory through it.

A block is decoded again from the host's bytes, from each place where it can be entered, and interpreted over abstract
values: what a host register holds is told by where it came from (an expression over what the block found), not by which
register it is or in what order instructions stand. So generators may move, merge and keep checks as they like; what
must come out is that

- a memory operand lies in ``VCpu`` (by GS, in a field that is for translated code, an index bounded by the table's
  size), or is a host address that a check has given, for no more bytes and no other access than the check was for;
- a host address is given by the sum of a guest's address and the distance in its TLB entry, of the table of the block's
  mode, after a compare of (address XOR tag) of the same entry that leaves room for the access; or by the monitor, where
  it, or the distance, goes on behind a check of a site of this block;
- jumps lead to instructions of this block, to stubs, or to other blocks' entries (``links``); indirect ones only
  through the jump caches;
- nothing privileged or sensitive, no CALL, RET, PUSH, POP or change of DF is there: only instructions that the table
  says run as themselves;
- host addresses don't get into the guest's registers or memory as they are.

Trusted, not proved: the stubs, the monitor, the TLBs' contents. Expressions are values (core, constant): the core a
tuple, None for a constant alone. An unknown is named for the instruction that brought it up; where ways join, what
differs becomes a new unknown, so that an expression always means what it meant. First the states before each place are
found, then every instruction and every way between them is held against them: the second half is the proof.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from hostel.base.errors import MachineError
from hostel.cpu.bt import decode
from hostel.cpu.bt.table import C

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
RAX, RCX, RDX, RSI, RDI = 0, 1, 2, 6, 7
S1, S2 = 10, 11
GUEST = set(range(16)) - {S1, S2}  # host registers that are the guest's own
PAGE = 4096
SECOND_ROOM = 64               # what the second TLB's look-up leaves of the page (stubs.second_tlb)
MAX_VISITS = 64                # of a place; a few are usual
SK_MEM, SK_SYS, SK_LINK, SK_PLAIN = 2, 3, 1, 10
SITE_STRING, SITE_DISTANCE = 2, 64
READ, WRITE = 1, 2

# Fields of VCpu that translated code may touch, by their names in translation.Offsets: bytes of each, and how.
FIELDS = {
    "r": (8, READ | WRITE), "flags_saved": (8, READ | WRITE), "target": (8, READ | WRITE),
    "scratch": (64, READ | WRITE), "window": (64, READ | WRITE), "poll": (8, READ),
    "seg_base": (16, READ | WRITE),            # base; limit, selector and attributes in the next 8 bytes
    "selector": (2, READ), "ymm": (512, READ | WRITE), "tsc_offset": (8, READ), "tsc_aux": (4, READ),
    "eflags": (8, READ | WRITE), "mode": (4, READ | WRITE), "cpl": (1, READ | WRITE), "irq_wait": (4, READ),
    "pauses": (4, READ | WRITE),
    "cr": (8, READ), "cr4": (8, READ), "table_mode": (4, READ), "kernel_gs_base": (8, READ | WRITE),
    "efer": (8, READ), "star": (8, READ), "lstar": (8, READ), "sfmask": (8, READ),
    "fast_star": (8, READ), "fast_cs": (8, READ), "fast_ss": (8, READ),
    "n_insns": (8, READ | WRITE), "count_spill": (8, READ | WRITE), "pc_page": (8, READ | WRITE),
}  # fmt: skip

STUBS = ("leave_mem", "leave_host", "look_up")

Value = tuple[Any, int]        # (core, constant)


class Refused(MachineError):
    """What is wrong with a block."""


class Endless(MachineError):
    """A block of which not enough can be found out."""


class Layout:
    """Where things are in VCpu and in the code memory, told by the engine."""

    def __init__(self, offsets: dict[str, Any], stubs: dict[str, Any], sizes: dict[str, int]):
        self.fields: list[tuple[int, int, int, str]] = []
        for name, (size, how) in FIELDS.items():
            starts = offsets[name]
            for start in starts if isinstance(starts, list) else [starts]:
                if start:
                    self.fields.append((start, start + size, how, name))
        self.tables: list[tuple[int, int, str, int]] = []
        for name, entries in (("tag_r", "tlb"), ("tag_w", "tlb"), ("distance", "tlb"), ("jump_cache", "jump")):
            for number, start in enumerate(offsets[name]):
                self.tables.append((start, start + 8 * sizes[entries], name, number))
        self.tables.append((offsets["jump_pc"], offsets["jump_pc"] + 8 * sizes["jump"], "jump_pc", 0))
        self.tlb_mask = sizes["tlb"] - 1
        self.poll = offsets["poll"]
        self.stubs = {stubs[name]: name for name in STUBS}
        self.misses: list[int] = stubs["miss"]
        self.second = {place: number for number, place in enumerate(stubs["second_tlb"])}


class Block:
    """A block as the engine tells it (``BtEngine.dissect``); addresses are offsets in the code memory."""

    def __init__(self, told: dict[str, Any]):
        self.number: int = told["number"]
        self.pc: int = told["pc"]
        self.table: int = told["table"]
        self.hot: tuple[int, bytes] = (told["start"], told["code"])
        self.cold: tuple[int, bytes] = (told["cold"], told["cold_code"])
        entries = ("pad", "entry_host", "entry_mem", "cold_host", "cold_mem")
        self.entries: list[int] = [told[name] for name in entries]
        self.sites: dict[int, dict[str, int]] = told["sites"]

    def at(self, offset: int) -> bytes:
        """The bytes from there on; none where the block isn't."""
        for start, code in (self.hot, self.cold):
            if start <= offset < start + len(code):
                return code[offset - start : offset - start + 15]
        return b""


class State:
    """What is known before an instruction. ``memory``: of 8-byte fields of VCpu; ``latest``: the facts that the last
    conditional jump has told."""

    __slots__ = ("registers", "memory", "facts", "flags", "latest")

    def __init__(
        self, registers: list[Value], memory: dict[int, Value], facts: frozenset, flags: Any, latest: frozenset
    ):
        self.registers = registers
        self.memory = memory
        self.facts = facts
        self.flags = flags
        self.latest = latest

    def copy(self) -> "State":
        return State(list(self.registers), dict(self.memory), self.facts, self.flags, self.latest)


def unknown(at: int, what: object) -> Value:
    return (("unknown", at, what), 0)


def _is_low(v: Value) -> bool:
    """Whether bits 63:32 are surely 0."""
    core, k = v
    if core is None:
        return k <= M32
    if k:
        return False
    what = core[0]
    if what == "and":
        return bool(core[2] <= M32)
    if what == "neg":
        return core[1] == _page_start(core[1])  # 1 to 4096
    return what == "low" or (what == "shr" and _is_low(core[1])) or (what == "xor" and all(map(_is_low, core[1:])))


def _page_start(v: Value) -> Value | None:
    """v, if it is something OR -4096."""
    return v if v[0] is not None and v[0][0] == "or" and v[0][2] == -PAGE & M64 and not v[1] else None


def _low(v: Value) -> Value:
    """Bits 31:0, zero-extended."""
    if v[0] is None:
        return (None, v[1] & M32)
    return v if _is_low(v) else (("low", v), 0)


def _most(v: Value) -> int:
    """An upper bound."""
    core, k = v
    if core is None:
        return k
    if core[0] == "and" and k == 0:
        return int(core[2])
    if core[0] == "shr" and k == 0 and _is_low(core[1]):
        return M32 >> core[2]
    return M64


def is_host(v: Value) -> bool:
    """("host", may it be written, bytes from there on, does its page end no sooner, where it came from)"""
    return v[0] is not None and v[0][0] == "host"


def is_near(v: Value) -> bool:
    """The distance of a host address from the value that is its last item: ("near", as host's..., value)"""
    return v[0] is not None and v[0][0] == "near"


def _near(given: Sequence[Any], address: Value, k: int = 0) -> Value:
    """That distance and k: a host address, once nothing but a constant is left to be added."""
    if address[0] is None:
        return (("host", *given), (k - address[1]) & M64)
    return (("near", *given, address), k)


def _terms(v: Value) -> dict[Any, int]:
    core = v[0]
    if core is None:
        return {}
    return dict(core[1]) if core[0] == "sum" else {core: 1}


def _added(a: Value, b: Value, times: int = 1) -> Value:
    """a and so many times b."""
    terms = _terms(a)
    for core, count in _terms(b).items():
        terms[core] = (terms.get(core, 0) + times * count) & M64
    terms = {core: count for core, count in terms.items() if count}
    k = (a[1] + times * b[1]) & M64
    if not terms:
        return (None, k)
    if len(terms) == 1 and 1 in terms.values():
        return (next(iter(terms)), k)
    return (("sum", frozenset(terms.items())), k)


def secret(v: Value) -> bool:
    """Whether it tells where something is in this process."""
    core = v[0]
    if core is None:
        return False
    return core[0] in ("host", "near", "distance", "code", "poll", "jump_cache")


def join_values(a: Value, b: Value, at: int, where: object) -> Value:
    if a == b:
        return a
    if (is_host(a) and is_host(b)) or (is_near(a) and is_near(b) and a[1] == b[1] and a[0][5] == b[0][5]):
        kind, writable, size, paged, _, *address = a[0]
        _, writable2, size2, paged2, *_ = b[0]
        # the bytes that both may be used for, from the value on
        first, first2 = -_signed(a[1]), -_signed(b[1])
        least, most = max(first, first2), min(first + size, first2 + size2)
        if least < most:
            core = (kind, writable and writable2, most - least, paged and paged2, (at, where), *address)
            return (core, -least & M64)
    return unknown(at, ("join", where))


def join(a: State, b: State, at: int) -> State:
    registers = [join_values(x, y, at, r) for r, (x, y) in enumerate(zip(a.registers, b.registers, strict=True))]
    memory = {}
    for place, value in a.memory.items():
        if place in b.memory:
            both = join_values(value, b.memory[place], at, ("memory", place))
            if both == value or is_host(both) or is_near(both):
                memory[place] = both
    flags = a.flags if a.flags == b.flags else None
    return State(registers, memory, a.facts & b.facts, flags, a.latest & b.latest)


def same(a: State, b: State) -> bool:
    return (
        a.registers == b.registers and a.memory == b.memory and a.facts == b.facts and a.flags == b.flags
        and a.latest == b.latest
    )  # fmt: skip


class Verifier:
    """One block's proof. ``links(offset)`` tells whether other blocks may be entered there."""

    def __init__(self, layout: Layout, block: Block, links: Callable[[int], bool]):
        self.layout = layout
        self.block = block
        self.links = links
        self.instructions: dict[int, dict[str, Any]] = {}
        self.leaders: set[int] = set()
        self.holes: set[int] = set()           # where direct jumps have their rel32
        self.states: dict[int, State] = {}
        self.ways: dict[int, dict[object, State]] = {}  # what came to a place last, by where it came from
        self.visits: dict[int, int] = {}
        self.work: list[int] = []
        self.proof = False                     # the states are final: hold every instruction and every way against them
        self.at = 0

    def fail(self, why: str) -> Refused:
        code = self.block.at(self.at)
        text = code.hex()
        if self.at in self.instructions:
            i = self.instructions[self.at]
            text = f"{code[: i['length']].hex()} ({i['name']})"
        return Refused(
            f"translated code refused: block {self.block.number}, guest {self.block.pc:#x}, host offset "
            f"{self.at:#x}, {text}: {why}"
        )

    # ---- the code's shape

    def run(self) -> None:
        roots = set(self.block.entries)
        for site in self.block.sites.values():
            if site["kind"] == SK_SYS and site["host"]:
                roots.add(site["host"])
        resumed = {s["host"] for s in self.block.sites.values() if s["kind"] == SK_MEM}
        resumed |= {s["host"] + s["check"] for s in self.block.sites.values() if s["kind"] == SK_MEM}
        for place in (*roots, *resumed):
            self._walk(place)
        self._no_overlap()
        self._check_holes()
        for place in roots:
            self._enter(place, self._anything(place), "outside")
        while self.work:
            at = min(self.work)
            self.work.remove(at)
            with contextlib.suppress(Refused):  # it may be for ways that don't fit together yet
                self._flow(at, self.states[at].copy())
        self.proof = True
        for at, state in list(self.states.items()):
            self._flow(at, state.copy())

    def _walk(self, at: int) -> None:
        """Decode from a place on, and find out where jumps lead."""
        todo = [at]
        while todo:
            at = todo.pop()
            self.leaders.add(at)
            while at not in self.instructions:
                self.at = at
                code = self.block.at(at)
                if not code:
                    raise self.fail("control gets there, but the block isn't there")
                i = decode.decode_py(code)
                if i["result"] <= 0 or i["op"] == 0:
                    raise self.fail("no instruction")
                i["row"] = ROWS[i["op"]]
                i["target"] = -1
                self.instructions[at] = i
                kind = i["row"]["kind"]
                if kind in (C["K_JCC"], C["K_JMP"], C["K_LOOP"]):
                    target = at + i["length"] + _signed(i["imm"])
                    i["target"] = target
                    if i["imm_size"] == 4:
                        self.holes.add(at + i["length"] - 4)
                    if self.block.at(target):
                        todo.append(target)
                    elif kind == C["K_LOOP"] or not self._leads_out(target):
                        raise self.fail(f"a jump to {target:#x}, where nothing of this block is")
                if kind in (C["K_JMP"], C["K_JMP_IND"]):
                    break
                if kind in (C["K_JCC"], C["K_LOOP"]):
                    self.leaders.add(at + i["length"])
                at += i["length"]

    def _leads_out(self, target: int) -> bool:
        layout = self.layout
        missed = target == layout.misses[self.block.table]
        return missed or target in layout.stubs or target in layout.second or self.links(target)

    def _no_overlap(self) -> None:
        end = -1
        for at in sorted(self.instructions):
            self.at = at
            if at < end:
                raise self.fail("an instruction within another")
            end = at + self.instructions[at]["length"]

    def _check_holes(self) -> None:
        for number, site in self.block.sites.items():
            if site["kind"] in (SK_LINK, SK_PLAIN) and site["host"] not in self.holes:
                self.at = site["host"]
                raise self.fail(f"site {number} would have this patched, which is no jump of the block")

    # ---- states

    def _anything(self, at: int) -> State:
        return State([unknown(at, ("root", r)) for r in range(16)], {}, frozenset(), None, frozenset())

    def _enter(self, at: int, state: State, way: object) -> None:
        """Control comes to a leader. What is known there is what all ways to it have in common."""
        if self.proof:
            known = self.states.get(at)
            if known is None or not same(known, join(known, state, at)):
                raise self.fail("more may come of it than was found out")
            return
        ways = self.ways.setdefault(at, {})
        ways[way] = state
        for other in ways.values():
            if other is not state:
                state = join(other, state, at)
        known = self.states.get(at)
        if known is not None and same(known, state):
            return
        self.visits[at] = self.visits.get(at, 0) + 1
        if self.visits[at] > MAX_VISITS:
            raise Endless(f"translated code refused: block {self.block.number}: no end is found of {at:#x}")
        self.states[at] = state
        if at not in self.work:
            self.work.append(at)

    def _flow(self, at: int, s: State) -> None:
        """From a leader to the end of its run of instructions."""
        while True:
            self.at = at
            i = self.instructions[at]
            kind = i["row"]["kind"]
            following = at + i["length"]
            if kind == C["K_JMP"]:
                self._go(i["target"], s)
                return
            if kind == C["K_JMP_IND"]:
                self._indirect(i, s)
                return
            if kind == C["K_JCC"]:
                yes, no = _decided(s.flags, i["opcode"] & 15)
                if yes is not None:
                    taken = s.copy()
                    taken.facts |= yes
                    self._go(i["target"], taken)
                if no is None:
                    return
                s.facts |= no
                s.latest = no
            elif kind == C["K_LOOP"]:
                if i["opcode"] != 0xE3:
                    raise self.fail("a loop instruction")
                self._go(i["target"], s.copy())
            else:
                self._run(i, s)
            if following in self.leaders:
                self._enter(following, s, self.at)
                return
            at = following

    def _go(self, target: int, s: State) -> None:
        if self.block.at(target):
            self._enter(target, s, (self.at, "jump"))
            return
        self._no_secrets(s)
        if target in self.layout.second:
            self._second(target, s)
        elif self.layout.stubs.get(target, "") in ("leave_mem", "leave_host"):
            self._leave(s)

    def _no_secrets(self, s: State) -> None:
        for r in GUEST:
            if secret(s.registers[r]):
                raise self.fail(f"register {r} goes out with an address of the host's in it")

    def _site(self, s: State) -> dict[str, int]:
        core, number = s.registers[S2]
        if core is not None or number not in self.block.sites:
            raise self.fail("leaves at no site of this block")
        return self.block.sites[number]

    def _leave(self, s: State) -> None:
        """To the monitor, which goes on at a memory site: before its check, or behind it with the host's address."""
        site = self._site(s)
        if site["kind"] != SK_MEM:
            return
        again = s.copy()
        again.registers[S2] = unknown(self.at, "monitor")
        again.flags = None
        self._enter(site["host"], again, (self.at, "again"))
        if not site["span"]:
            self._behind(site, s, site["size"], site["access"] != 0, bool(site["extra"] & SITE_STRING))

    def _behind(self, site: dict[str, int], s: State, size: int, writable: bool, paged: bool) -> None:
        """Behind a check, s1 holding the host's address, or how far it is from the guest's."""
        found = s.copy()
        found.flags = None
        given = (writable, size, paged, (self.at, "given"))
        if site["extra"] & SITE_DISTANCE:
            found.registers[S1] = _near(given, s.registers[S1])
        else:
            found.registers[S1] = (("host", *given), 0)
        found.registers[S2] = unknown(self.at, "monitor")
        self._enter(site["host"] + site["check"], found, (self.at, paged, size))

    def _second(self, target: int, s: State) -> None:
        """To the look-up in the second TLB, which goes on behind the check."""
        number = self.layout.second[target]
        if number % 6 >> 1 != self.block.table:
            raise self.fail("looks the address up in a table that isn't this mode's")
        site = self._site(s)
        if site["kind"] != SK_MEM:
            raise self.fail("a look-up for a site that isn't one of memory")
        if (number >= 6) != bool(site["extra"] & SITE_DISTANCE):
            raise self.fail("looks up the other of address and distance")
        if site["behind"] != site["host"] + site["check"]:
            raise self.fail("goes on elsewhere than behind the site's check")
        size = SECOND_ROOM
        if s.registers[S1][0] is None:
            size = max(size, PAGE - s.registers[S1][1] % PAGE)
        for what, value, span in s.facts:
            if what == "one page" and value == s.registers[S1]:
                size = max(size, span)
        self._behind(site, s, size, bool(number & 1), True)
        self._leave(s)

    def _indirect(self, i: dict[str, Any], s: State) -> None:
        self._no_secrets(s)
        if i["mod"] == 3:
            core, k = s.registers[i["rm"]]
            if core is None or core[0] != "jump_cache" or k:
                raise self.fail("an indirect jump that isn't through a jump cache")
            return
        if i["seg"] != C["GS"]:
            raise self.fail("an indirect jump that isn't through a jump cache")
        if i["base"] != C["REG_NONE"]:
            raise self.fail("a jump through VCpu with a base")
        name, _ = self._table(i, s)
        if name != "jump_cache":
            raise self.fail(f"a jump through {name}")

    # ---- memory operands

    def _displacement(self, i: dict[str, Any]) -> int:
        return _signed(i["disp"])

    def _table(self, i: dict[str, Any], s: State) -> tuple[str, int]:
        """The table that gs:[index*8 + disp] stays in: name, number."""
        low = self._displacement(i)
        high = low + 8
        if i["index"] != C["REG_NONE"]:
            if i["scale"] != 3:
                raise self.fail("an index of other than eight bytes into VCpu")
            high += 8 * _most(s.registers[i["index"]])
        for start, end, name, number in self.layout.tables:
            if start <= low and high <= end:
                return name, number
        raise self.fail("VCpu, but none of the tables that are for translated code")

    def _field(self, offset: int, size: int, how: int) -> str:
        for start, end, allowed, name in self.layout.fields:
            if start <= offset and offset + size <= end:
                if how & ~allowed:
                    raise self.fail(f"writes VCpu's {name}" if how & WRITE & ~allowed else f"reads VCpu's {name}")
                return name
        raise self.fail(f"VCpu at {offset:#x}, which isn't for translated code")

    def _address(self, i: dict[str, Any], s: State) -> Value:
        """Of an operand that isn't by GS."""
        if i["prefixes"] & C["P_SEG"] and i["seg"] in (C["FS"], C["GS"]):
            raise self.fail("an operand by FS or GS")
        if i["base"] in (C["REG_NONE"], C["REG_RIP"]) or i["addrsize"] != 8:
            raise self.fail("an operand at a fixed address")
        v = s.registers[i["base"]]
        if i["index"] != C["REG_NONE"]:
            if i["scale"]:
                raise self.fail("a scaled index")
            v = self._sum(v, s.registers[i["index"]], i["base"])
        return self._sum(v, (None, self._displacement(i) & M64), i["base"])

    def _access(self, i: dict[str, Any], s: State) -> None:
        """The instruction's memory operand."""
        row = i["row"]
        mem = row["mem"]
        if row["flags"] & C["O_VSIB"]:
            raise self.fail("a gather")
        if mem == C["M_NONE"] or mem == C["M_ADDR"]:
            return
        how = READ if mem == C["M_READ"] else WRITE if mem == C["M_WRITE"] else READ | WRITE
        size = _memory_size(i)
        if i["prefixes"] & C["P_SEG"] and i["seg"] == C["GS"]:
            self._state_access(i, s, how, size)
            return
        core, offset = self._address(i, s)
        if core == ("poll",) and offset == 0 and how == READ and size <= 8:
            return
        if core is None or core[0] != "host":
            raise self.fail("an operand that no check has given")
        _, writable, room, _, _ = core
        if how & WRITE and not writable:
            raise self.fail("a write where only reading was checked")
        if offset + size > room:
            raise self.fail(f"{size} bytes at {offset}, where {room} were checked")
        if how & WRITE and self._stores_secret(i, s):
            raise self.fail("stores an address of the host's in the guest's memory")

    def _stores_secret(self, i: dict[str, Any], s: State) -> bool:
        use = i["row"]["reg_use"]
        return bool(use) and any(secret(s.registers[r]) for r in self._names(i, i["reg"], use))

    def _state_access(self, i: dict[str, Any], s: State, how: int, size: int) -> None:
        if i["base"] != C["REG_NONE"]:
            raise self.fail("VCpu with a base")
        if i["index"] != C["REG_NONE"]:
            if how & WRITE:
                raise self.fail("a write into a table")
            self._table(i, s)
            return
        offset = self._displacement(i)
        if how == READ and size == 8 and any(low <= offset < high for low, high, _, _ in self.layout.tables):
            self._table(i, s)
            return
        name = self._field(offset, size, how)
        if how & WRITE:
            if name == "r" and self._stores_secret(i, s):
                raise self.fail("stores an address of the host's in a guest's register")
            for place in [p for p in s.memory if p < offset + size and offset < p + 8]:
                del s.memory[place]

    # ---- instructions

    def _run(self, i: dict[str, Any], s: State) -> None:
        kind = i["row"]["kind"]
        if kind == C["K_NOP"]:
            return
        if kind == C["K_STRING"]:
            self._string(i, s)
            return
        if kind == C["K_RDTSC"]:
            for r in (RAX, RCX, RDX):
                s.registers[r] = unknown(self.at, r)
            return
        if kind not in (C["K_NATIVE"], C["K_LEA"], C["K_FENCE"], C["K_BT"]):
            raise self.fail("an instruction that translated code has no use for")
        memory = i["has_modrm"] and i["mod"] != 3
        if kind == C["K_BT"] and memory and _most(_low(s.registers[i["reg"]])) >= 8 * i["opsize"]:
            raise self.fail("a bit number that may be beyond the operand")
        if memory and kind != C["K_LEA"]:
            self._access(i, s)
        if not self._known(i, s):
            self._forget(i, s)

    def _forget(self, i: dict[str, Any], s: State) -> None:
        """Any instruction: what it writes is unknown."""
        row = i["row"]
        written = set()
        if row["reg_use"] & C["U_W"]:
            written |= self._names(i, i["reg"], row["reg_use"])
        if row["rm_use"] & C["U_W"] and (i["mod"] == 3 or not i["has_modrm"]):
            written |= self._names(i, i["rm"], row["rm_use"])
        if row["vvvv_use"] & C["U_W"]:
            written.add(i["vvvv"])
        written |= {r for r in range(16) if row["implicit_w"] >> r & 1}
        if i["row"]["kind"] == C["K_LEA"]:
            written.add(i["reg"])
        for r in written:
            s.registers[r] = unknown(self.at, r)
        if row["flags_mod"]:
            s.flags = None

    def _names(self, i: dict[str, Any], r: int, use: int) -> set[int]:
        """Byte registers 4 to 7 without REX are parts of 0 to 3."""
        if use & C["U_BYTE"] and 4 <= r <= 7 and not i["prefixes"] & (C["P_REX"] | C["P_VEX"]):
            return {r - 4}
        return {r}

    def _sum(self, a: Value, b: Value, where: object) -> Value:
        if is_near(b):
            a, b = b, a
        if is_near(a) and not secret(b):
            kind, *given, address = a[0]
            return _near(given, _added(address, b, -1), a[1])
        if a[0] is None or b[0] is None:
            return (a[0] or b[0], (a[1] + b[1]) & M64)
        return unknown(self.at, where) if secret(a) or secret(b) else _added(a, b)

    def _distance(self, number: int, index: Value, s: State) -> Value:
        """What an entry holds: of use where an address was checked against the tag of the same; just before, as another
        may have been before that."""
        for fact in s.latest if number == self.block.table else ():
            if fact[0] == "equal" and fact[1] in [(("tag", w, number, index), 0) for w in (False, True)]:
                page = fact[2]
                if index == (None, page >> 12 & self.layout.tlb_mask) and not page % PAGE:
                    return _near((fact[1][0][1], PAGE, True, ("translated", fact[1])), (None, page))
            if fact[0] != "at most" or not isinstance(fact[2], int) or fact[2] >= PAGE:
                continue
            _, (core, k), most = fact
            if k or core is None or core[0] != "xor" or core[2][0] is None or core[2][1]:
                continue
            address, (tag, _) = core[1:]
            if tag[0] == "tag" and tag[2:] == (number, index):
                own: list[Value] = [(("shr", _low(address), 12), 0)]
                if address[0] is None:  # the entry may be told by its place
                    own.append((None, address[1] >> 12 & self.layout.tlb_mask))
                if index in own:
                    return _near((tag[1], PAGE - most, True, ("translated", fact[1])), address)
        return (("distance", number, index), 0)

    def _known(self, i: dict[str, Any], s: State) -> bool:
        """Instructions whose result has an expression; False: any other."""
        if i["opmap"] == 1 and i["opcode"] == 0xB7 and i["mod"] == 3 and i["opsize"] == 4:  # movzx r32, r16
            v = s.registers[i["rm"]]
            if v[0] is not None and v[0][0] == "ror" and v[0][2] <= 16 and not v[1]:  # they didn't go round
                v = (("shr", v[0][1], v[0][2]), 0)
            s.registers[i["reg"]] = (("and", _low(v), 0xFFFF), 0)
            return True
        if i["op"] == RORX and i["mod"] == 3 and i["opsize"] == 4:
            s.registers[i["reg"]] = (("ror", _low(s.registers[i["rm"]]), i["imm"] & 31), 0)
            return True
        if i["opmap"] or i["prefixes"] & (C["P_VEX"] | C["P_LOCK"]) or i["opsize"] < 4 or i["row"]["kind"] == C["K_BT"]:
            return False
        if i["row"]["flags"] & C["O_BYTEOP"]:
            return False
        op, size = i["opcode"], i["opsize"]
        registers = s.registers
        memory = i["has_modrm"] and i["mod"] != 3

        def get(r: int) -> Value:
            return registers[r] if size == 8 else _low(registers[r])

        def put(r: int, v: Value) -> bool:
            registers[r] = v if size == 8 else _low(v)
            return True

        if op == 0x8D:
            return self._lea(i, s)
        if op & 0xF8 == 0xB8:
            return put(i["rm"], (None, i["imm"] & (M64 if size == 8 else M32)))
        if memory:
            return self._load_store(i, s)
        if op in (0x89, 0x8B):
            to, source = (i["rm"], i["reg"]) if op == 0x89 else (i["reg"], i["rm"])
            return put(to, get(source))
        if op == 0xC7:
            return put(i["rm"], (None, i["imm"] & (M64 if size == 8 else M32)))
        if op in (0x81, 0x83):
            return self._constant(i, s, get, put)
        if op in (0x01, 0x03, 0x31, 0x33, 0x39, 0x3B):
            to, source = (i["rm"], i["reg"]) if op & 2 == 0 else (i["reg"], i["rm"])
            a, b = get(to), get(source)
            s.flags = None
            if op < 0x30:
                return put(to, self._sum(a, b, to) if size == 8 else unknown(self.at, to))
            if op < 0x38:
                if a[0] is None and b[0] is None:
                    return put(to, (None, a[1] ^ b[1]))
                return put(to, (None, 0) if to == source else (("xor", a, b), 0))
            s.flags = ("compared", a, b)
            return True
        if op == 0xFF and i["reg"] & 7 <= 1:  # inc, dec
            s.flags = None
            return put(i["rm"], self._sum(get(i["rm"]), (None, 1 if i["reg"] & 7 == 0 else M64), i["rm"]))
        if op == 0xC1 and i["reg"] & 7 == 5:
            count = i["imm"] & (63 if size == 8 else 31)
            s.flags = None
            return put(i["rm"], (("shr", get(i["rm"]), count), 0))
        if op == 0xF7 and i["reg"] & 7 == 3 and size == 8:
            s.flags = None
            return put(i["rm"], (("neg", get(i["rm"])), 0))
        return False

    def _constant(self, i: dict[str, Any], s: State, get: Callable, put: Callable) -> bool:
        """81 and 83: add or adc sbb and sub xor cmp."""
        what, r = i["reg"] & 7, i["rm"]
        v: Value = get(r)
        imm = i["imm"] & (M64 if i["opsize"] == 8 else M32)
        s.flags = None
        if what == 7:
            s.flags = ("compared", v, (None, imm))
            return True
        if what == 4:
            result: Value = (("and", v, imm), 0) if v[0] is not None else (None, v[1] & imm)
            s.flags = ("result", result)
            return bool(put(r, result))
        if i["opsize"] == 8:
            if what in (0, 5):
                return bool(put(r, (v[0], (v[1] + (imm if what == 0 else -imm)) & M64)))
            if what == 1:
                return bool(put(r, (("or", v, imm), 0)))
        return bool(put(r, unknown(self.at, r)))

    def _lea(self, i: dict[str, Any], s: State) -> bool:
        if i["addrsize"] != 8:
            return False
        disp = self._displacement(i)
        v: Value
        if i["base"] == C["REG_RIP"]:
            v = (("code",), self.at + i["length"] + disp)
        else:
            v = s.registers[i["base"]] if i["base"] < 16 else (None, 0)
            if i["index"] < 16:
                index = s.registers[i["index"]]
                if i["scale"]:
                    index = unknown(self.at, i["reg"]) if secret(index) else _added((None, 0), index, 1 << i["scale"])
                v = self._sum(v, index, i["reg"])
            v = self._sum(v, (None, disp & M64), i["reg"])
        s.registers[i["reg"]] = v if i["opsize"] == 8 else _low(v)
        return True

    def _load_store(self, i: dict[str, Any], s: State) -> bool:
        """By GS: fields that keep values, the TLBs' tables."""
        op, r = i["opcode"], i["reg"]
        if not (i["prefixes"] & C["P_SEG"] and i["seg"] == C["GS"]):
            return False
        offset = self._displacement(i)
        compares = op == 0x81 and r & 7 == 7
        if i["opsize"] != 8 or not compares and op not in (0x8B, 0x89, 0x33, 0x03):
            return False
        if i["index"] != C["REG_NONE"] or any(low <= offset < high for low, high, _, _ in self.layout.tables):
            name, number = self._table(i, s)
            index = s.registers[i["index"]] if i["index"] != C["REG_NONE"] else (None, 0)
            first = next(low for low, _, n, k in self.layout.tables if (n, k) == (name, number))
            if (offset - first) % 8:
                raise self.fail("a piece of an entry")
            index = (index[0], (index[1] + (offset - first) // 8) & M64)
            v: Value = ((name, number, index), 0)
            if name in ("tag_r", "tag_w"):
                v = (("tag", name == "tag_w", number, index), 0)
            elif name == "distance":
                v = self._distance(number, index, s)
            if compares:
                s.flags = ("compared", v, (None, i["imm"] & M64))
            elif op == 0x33:
                s.flags = None
                core, k = s.registers[r]
                twice = core is not None and core[0] == "xor" and core[2] == v and not k
                s.registers[r] = core[1] if twice else (("xor", s.registers[r], v), 0)
            elif op == 0x03:
                s.flags = None
                s.registers[r] = self._sum(s.registers[r], v, r)
            else:
                s.registers[r] = v
            return True
        if op == 0x89:
            s.memory[offset] = s.registers[r]
            return True
        if op == 0x8B and offset == self.layout.poll:
            s.registers[r] = (("poll",), 0)
            return True
        if op == 0x33 or compares:
            return False
        v = s.memory.setdefault(offset, unknown(self.at, ("field", offset)))
        if op == 0x03:
            s.flags = None
            v = self._sum(s.registers[r], v, r)
        s.registers[r] = v
        return True

    def _string(self, i: dict[str, Any], s: State) -> None:
        """REP MOVS and STOS from a checked address to no further than its page's end."""
        which = i["opcode"] & 0xFE
        if which not in (0xA4, 0xAA) or not i["prefixes"] & C["P_REP"] or i["addrsize"] != 8:
            raise self.fail("a string instruction other than REP MOVS and STOS")
        size = i["opsize"] if i["opcode"] & 1 else 1
        shift = size.bit_length() - 1
        for r, write in ((RDI, True), (RSI, False)) if which == 0xA4 else ((RDI, True),):
            v = s.registers[r]
            if not is_host(v) or v[1] or not v[0][3] or (write and not v[0][1]):
                raise self.fail("a string at an address that no check has given")
            left: Value = (("neg", (("or", v, -PAGE & M64), 0)), 0)
            if shift:
                left = (("shr", left, shift), 0)
            if ("at most", s.registers[RCX], left) not in s.facts:
                raise self.fail("a string that may not end in its page")
        if which == 0xAA and secret(s.registers[RAX]):
            raise self.fail("stores an address of the host's in the guest's memory")
        for r in (RDI, RSI, RCX):
            s.registers[r] = unknown(self.at, r)


def _signed(value: int) -> int:
    value &= M64
    return value - (1 << 64) if value >> 63 else value


def _memory_size(i: dict[str, Any]) -> int:
    """Bytes of the operand, as translate.memory_size has it."""
    n: int = i["row"]["mem_size"]
    vector = 32 if i["vex_l"] else 16
    if n == 0:
        return 1 if i["row"]["flags"] & C["O_BYTEOP"] else int(i["opsize"])
    if n < 0x80:
        return n
    sizes = {
        C["MS_X"]: vector, C["MS_HALF"]: vector // 2, C["MS_QUARTER"]: vector // 4, C["MS_EIGHTH"]: vector // 8,
        C["MS_TWICE"]: 2 * i["opsize"], C["MS_FAR"]: i["opsize"] + 2, C["MS_ENV"]: 14 if i["opsize"] == 2 else 28,
        C["MS_FSAVE"]: 94 if i["opsize"] == 2 else 108,
    }  # fmt: skip
    return int(sizes.get(n, PAGE))


def _decided(flags: Any, condition: int) -> tuple[frozenset | None, frozenset | None]:
    """What is known where a conditional jump is taken, and where not; None: that never happens."""
    nothing: frozenset = frozenset()
    if flags is None:
        return nothing, nothing
    if flags[0] == "compared":
        _, a, b = flags
        # "at most" with a number is told by the number, so that it can be compared
        up = frozenset([("at most", a, b[1] if b[0] is None else b)])
        down = frozenset([("at most", b, a)])
        equal = frozenset([("equal", a, b[1])]) if b[0] is None else nothing
        told = {2: (nothing, down), 3: (down, nothing), 6: (up, nothing), 7: (nothing, up)}
        return (told | {4: (equal, nothing), 5: (nothing, equal)}).get(
            condition, (nothing, nothing)
        )
    if flags[1][0] is None and condition in (4, 5):
        return (nothing, None) if (flags[1][1] == 0) == (condition == 4) else (None, nothing)
    zero = _one_page(flags[1])
    return {4: (zero, nothing), 5: (nothing, zero)}.get(condition, (nothing, nothing))


def _one_page(v: Value) -> frozenset:
    """What (a XOR b) AND 4096 = 0 says: that from one to the other no page ends, given that they are near."""
    core = v[0]
    if core is None or core[0] != "and" or core[2] != PAGE or core[1][0] is None or core[1][0][0] != "xor":
        return frozenset()
    facts = set()
    for a, b in itertools.product(*map(_forms, core[1][0][1:])):
        if a[0] != b[0] or a[0] is None:
            continue
        if (b[1] - a[1]) & M64 >= PAGE:
            a, b = b, a
        span = (b[1] - a[1]) & M64
        if span < PAGE:
            facts.add(("one page", a, span + 1))
    return frozenset(facts)


def _forms(v: Value) -> list[Value]:
    """The value, and what it is the lower half of: bit 12 is the same."""
    return [v, v[0][1]] if v[0] is not None and v[0][0] == "low" and v[1] == 0 else [v]


ROWS: list[dict[str, Any]] = decode.rows()
RORX = next(n for n, row in enumerate(ROWS) if row["name"] == "rorx")


def verify(layout: Layout, told: dict[str, Any], links: Callable[[int], bool] = lambda offset: False) -> None:
    """Prove the block that ``BtEngine.dissect`` told of, or raise ``Refused``."""
    Verifier(layout, Block(told), links).run()
