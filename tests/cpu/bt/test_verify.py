"""The verifier of translated code: it takes what the translator emits, and nothing that was tampered with."""

import re

import generate
import oracle
import pytest
from bare import Guest
from machine import assemble
from test_breakpoints import CODE, DATA, machine_of

from hostel.cpu.bt import verify
from hostel.cpu.bt.disasm import disassemble
from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

EXIT_ERROR = 6

# A check of its own, a window, the stack, an indirect jump, a string: two blocks
PROGRAM = """
    mov     rax, [rdi]
    mov     [rdi + 16], rax
    cmp     rax, rcx
    adc     qword ptr [rsi + rcx * 8], 5
    push    rax
    pop     rdx
    mov     r10, [rdi + 32]
    mov     [rdi + 40], r11
    mov     rbx, [0x500040]
    mov     ecx, 4
    rep     stosb
    mov     r8, 0x400080
    jmp     r8
    .org    0x80
    frstor  [rsi]
    movaps  xmm1, [rsi]
    int3
"""


@pytest.fixture(scope="module")
def engine():
    _, vcpu, engine = machine_of(assemble(PROGRAM, CODE, runtime=False))
    state = vcpu.save_state()
    state.registers[1], state.registers[4] = 2, DATA + 0x1000
    vcpu.load_state(state)
    vcpu.run_py()
    vector, _, _ = vcpu.take_exception()
    assert vector in (3, 13, 16)  # FRSTOR of zeros unmasks everything
    return engine


def told_of(engine, pc=CODE):
    for number in range(1, engine.statistics()["blocks"] + 1):
        told = engine.dissect(number)
        if told["pc"] == pc:
            return told
    raise AssertionError("no such block")


def find(told, pattern, count=0):
    """(key, offset, length) of an instruction of a block by the disassembler's words."""
    for key in ("code", "cold_code"):
        at = 0
        while at < len(told[key]):
            length, text = disassemble(told[key][at:])
            if length > 0 and re.search(pattern, text):
                if count == 0:
                    return key, at, length
                count -= 1
            at += max(length, 1)
    raise AssertionError(f"no {pattern} in it")


def patched(told, place, code):
    key, at, length = place
    assert len(code) <= length
    code = code + b"\x90" * (length - len(code))
    return {**told, key: told[key][:at] + code + told[key][at + length :]}


def test_what_is_emitted_is_proved(engine):
    assert engine.audit() >= 2
    for pc in (CODE, CODE + 0x80):
        verify.verify(engine.verifier_layout(), told_of(engine, pc))


REFUSED = {
    "room for more than the access": (r"^cmp r10, 0xf", lambda c: c[:-4] + (4090).to_bytes(4, "little"), "checked"),
    "no compare": (r"^ja ", lambda c: b"", "no jump of the block"),
    "a compare that isn't looked at": (r"^ja ", lambda c: b"\x0f\x82" + c[2:], "no check"),
    "too large an index": (r"^shr r11d, 0xc", lambda c: b"\x45\x89\xdb", "none of the tables"),
    "another entry's distance": (r"^shr r11d, 0xc", lambda c: c[:-1] + b"\x0d", "no check"),
    "a page that isn't the entry's own": (
        r"^cmp qword ptr gs:", lambda c: c[:-4] + (0x501000).to_bytes(4, "little"), "no check",
    ),
    "a page's middle": (r"^cmp qword ptr gs:", lambda c: c[:-4] + (0x500040).to_bytes(4, "little"), "no check"),
    "the entry beside its own": (
        r"^cmp qword ptr gs:",
        lambda c: c[:-8] + (int.from_bytes(c[-8:-4], "little") + 8).to_bytes(4, "little") + c[-4:], "no check",
    ),
    "an access beyond the page": (
        r"^mov rbx, qword ptr \[r10", lambda c: c[:-4] + (0x500FF9).to_bytes(4, "little"), "were checked",
    ),
    "a system call": (r"^mov rax, qword ptr \[rdi", lambda c: b"\x0f\x05", "no use for"),
    "an access past the check": (r"^mov rax, qword ptr \[rdi", lambda c: b"\x48\x8b\x00", "no check"),
    "another base than what was checked": (r"^mov rax, qword ptr \[rdi", lambda c: b"\x4a\x8b\x04\x16", "no check"),
    "a distance for an address": (r"^mov rax, qword ptr \[rdi", lambda c: b"\x49\x8b\x02", "no check"),
    "a distance beside its base": (r"^mov rax, qword ptr \[rdi", lambda c: b"\x4a\x8b\x04\x57", "scaled"),
    "one at a fixed address": (r"^adc qword", lambda c: b"\x48\x8b\x05", "|"),
    "a write by the stack pointer": (r"^mov rax, qword ptr \[rdi", lambda c: b"\x50", "no use for"),
    "RET": (r"^mov rax, qword ptr \[rdi", lambda c: b"\xc3", "no use for"),
    "HLT": (r"^mov rax, qword ptr \[rdi", lambda c: b"\xf4", "no use for"),
    "STD": (r"^mov rax, qword ptr \[rdi", lambda c: b"\xfd", "no use for"),
    "an indirect jump by a register": (r"^jmp qword", lambda c: b"\xff\xe0", "jump cache"),
    "an indirect jump by guest memory": (r"^jmp qword", lambda c: b"\xff\x20", "jump cache"),
    "a jump into the blue": (r"^jmp 0x", lambda c: b"\xe9\x00\x00\x00\x40", "nothing of this block"),
    "a string without its room": (r"^jb ", lambda c: b"", "end in its page"),
    "a store into the monitor's own": (
        r"^mov qword ptr gs:\[0x[0-9a-f]+\], r10", lambda c: c[:-4] + (0).to_bytes(4, "little"), "isn't for translated",
    ),
    "another base of GS": (r"^mov rax, qword ptr \[rdi", lambda c: b"\x0f\x01\xf8", "no use for"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_was_tampered_with_is_refused(engine, what):
    pattern, change, why = REFUSED[what]
    told = told_of(engine)
    place = find(told, pattern)
    key, at, length = place
    bad = patched(told, place, change(told[key][at : at + length])[:length])
    with pytest.raises(verify.Refused, match=why):
        verify.verify(engine.verifier_layout(), bad)


def test_a_kernels_table_is_not_a_programs(engine):
    told = told_of(engine)
    with pytest.raises(verify.Refused):
        verify.verify(engine.verifier_layout(), {**told, "table": (told["table"] + 1) % 3})


def test_a_write_needs_a_check_for_writing(engine):
    """Every look-up for writing made one for reading: the stores are refused."""
    told = told_of(engine)
    layout = engine.verifier_layout()
    reads = {number: start for start, _, name, number in layout.tables if name == "tag_r"}
    writes = {number: start for start, _, name, number in layout.tables if name == "tag_w"}
    old, new = (t[told["table"]].to_bytes(4, "little") for t in (writes, reads))
    assert old in told["code"]
    with pytest.raises(verify.Refused, match="only reading"):
        verify.verify(layout, {**told, "code": told["code"].replace(old, new)})


def test_sites_of_others_are_refused(engine):
    told = told_of(engine)
    with pytest.raises(verify.Refused, match="no site"):
        verify.verify(engine.verifier_layout(), {**told, "sites": {}})


def test_a_refused_block_does_not_run(monkeypatch, capfd):
    def refuse(layout, told, links=None):
        raise verify.Refused("as the test wants it")

    monkeypatch.setattr(verify, "verify", refuse)
    ram, vcpu, engine = machine_of(assemble("mov qword ptr [rdi], 1\nint3", CODE, runtime=False), verify=1)
    assert vcpu.run_py()[0] == EXIT_ERROR
    assert engine.refusal == "as the test wants it"
    assert ram.read(0x300000, 8) == bytes(8)
    assert vcpu.run_py()[0] == EXIT_ERROR
    assert "as the test wants it" in capfd.readouterr().err


def test_a_window_at_an_address_of_32_bits():
    """Wider than what the second TLB's look-up leaves of a page: only that no page ends in it lets it go on."""
    body = "add edi, 128\nmov eax, [rdi]\nmov [rdi + 8], al\nmov eax, [rdi + 64]\nint3"
    _, vcpu, engine = machine_of(assemble(body, CODE, runtime=False), verify=1)
    vcpu.run_py()
    assert vcpu.take_exception()[0] == 3 and engine.refusal == ""


def test_a_sample_is_verified():
    ram = Ram()
    ram.add(0, 1 << 20)
    assert BtEngine(ram, 1, verify=0).verify == 0
    body = "\n".join(f".org {32 * i}\nmov rax, [rdi + {i}]\njmp {32 * (i + 1)} + 0x400000" for i in range(40))
    _, vcpu, engine = machine_of(assemble(body + "\nint3\n", CODE, runtime=False), verify=8)
    vcpu.run_py()
    blocks = engine.statistics()["translated_blocks"]
    assert engine.statistics()["verified_blocks"] == blocks // 8


def test_the_oracles_blocks_are_proved(monkeypatch):
    """What random code is translated to, and what is left of it in the end, linked."""
    monkeypatch.setenv("HOSTEL_VERIFY_CODE", "1")
    for supervisor in (False, True):
        guest = Guest(1, 1, supervisor)
        wanted = generate.same_for_supervisor if supervisor else lambda row: not generate.skipped(row)
        generator = generate.Generator(1, wanted)
        for number in range(0, 400 * oracle.STATES, oracle.STATES):
            guest.run(generator.case(number))
        assert guest.engine.refusal == ""
        assert guest.engine.verified > 300
        assert guest.engine.audit() > 50
