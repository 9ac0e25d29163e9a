"""The decoder: every row both ways, lengths and prefixes against the SDM and against the processor itself."""

import random
import re
from pathlib import Path

import pytest
from instructions import encode
from native import Native

from hostel.cpu.bt import decode, table
from hostel.cpu.bt.decode import ROWS, decode_py
from hostel.cpu.bt.disasm import disassemble
from hostel.cpu.bt.table import C

UNDEFINED = 0


def modes_of(row: table.Row) -> tuple[int, ...]:
    if row.modes == "64" or (row.w == 1 and not row.vex):
        return (8,)
    return (4,) if row.modes == "32" else (8, 4)


def test_every_row_decodes_to_itself() -> None:
    rng = random.Random(1)
    for number, row in enumerate(ROWS[1:], 1):
        for mode in modes_of(row):
            for _ in range(4):
                sample = encode(number, rng, mode)
                found = decode_py(sample.code + bytes(3), 0x1000, mode)
                gather = row.fields["flags"] & C["O_VSIB"]
                if gather and found["op"] == UNDEFINED:
                    continue
                where = f"{row.name} {row.encoding} in mode {mode}: {sample.code.hex(' ')}"
                assert found["result"] == len(sample.code) == found["length"], where
                assert found["op"] == number, f"{where} is {found['name']}"
                if sample.memory and not gather:
                    assert found["base"] == sample.base, where
                    assert found["disp"] == sample.displacement, where
                    if sample.index >= 0:
                        assert (found["index"], found["scale"]) == (sample.index, sample.scale), where


def test_fewer_bytes_ask_for_more() -> None:
    rng = random.Random(2)
    for number in range(1, len(ROWS), 3):
        code = encode(number, rng, modes_of(ROWS[number])[0]).code
        for n in range(len(code)):
            result = decode_py(code[:n], 0, modes_of(ROWS[number])[0])["result"]
            # An undefined opcode may be known before its last byte.
            assert result == 0, f"{ROWS[number].name}: {code.hex(' ')} cut to {n}"


def test_fifteen_bytes_are_the_limit() -> None:
    assert decode_py(b"\x66" * 14 + b"\x90", 0, 8)["result"] == 15
    assert decode_py(b"\x66" * 15 + b"\x90", 0, 8)["result"] == -1
    assert decode_py(b"\x66" * 15, 0, 8)["result"] == -1
    assert decode_py(b"\x66" * 14, 0, 8)["result"] == 0
    # 11 bytes of instruction behind five prefixes
    assert decode_py(b"\x2e" * 5 + bytes.fromhex("81848011223344aabbccdd"), 0, 8)["result"] == -1
    assert decode_py(b"\x2e" * 4 + bytes.fromhex("81848011223344aabbccdd"), 0, 8)["result"] == 15


TEXTS = """
8 4801d8                   add rax, rbx
8 00e0                     add al, ah
8 4000e0                   add al, spl
8 48 66 01d8               add ax, bx
8 66 48 01d8               add rax, rbx
8 f0 4801 18               lock add qword ptr [rax], rbx
8 f0 4801 d8               (bad)
8 f0 39 18                 (bad)
8 f0 8b 18                 (bad)
8 8b 05 10000000           mov eax, dword ptr [rip + 0x10]
8 67 8b 05 10000000        mov eax, dword ptr [eip + 0x10]
4 8b 05 10000000           mov eax, dword ptr [0x10]
8 8b 04 25 00000080        mov eax, dword ptr [0xffffffff80000000]
8 8b 04 24                 mov eax, dword ptr [rsp]
8 42 8b 04 24              mov eax, dword ptr [rsp + r12]
8 43 8b 44 a5 fc           mov eax, dword ptr [r13 + r12*4 - 0x4]
8 64 3e 8b 03              mov eax, dword ptr fs:[rbx]
8 2e 65 8b 03              mov eax, dword ptr gs:[rbx]
8 3e 8b 03                 mov eax, dword ptr [rbx]
4 3e 8b 03                 mov eax, dword ptr ds:[ebx]
2 8b 00                    mov ax, word ptr [bx + si]
2 8b 46 fe                 mov ax, word ptr [bp - 0x2]
2 8b 0e 34 12              mov cx, word ptr [0x1234]
2 67 66 8b 04 8b           mov eax, dword ptr [ebx + ecx*4]
2 b8 34 12                 mov ax, 0x1234
2 ea 00 7c 34 12           jmpf 0x1234:0x7c00
2 e8 fd ff                 call 0x1000
4 67 8b 40 01              mov eax, dword ptr [bx + si + 0x1]
4 9a 785634122300          callf 0x23:0x12345678
8 9a 785634122300          (bad)
8 48 b8 8877665544332211   mov rax, 0x1122334455667788
8 48 c7 c0 ffffffff        mov rax, 0xffffffffffffffff
8 a1 8877665544332211      mov eax, dword ptr [0x1122334455667788]
8 67 a0 88776655           mov al, byte ptr [0x55667788]
8 c8 1000 01               enter 0x10, 0x1
8 6a fe                    push 0xfffffffffffffffe
8 66 6a fe                 push 0xfffe
8 41 54                    push r12
8 66 54                    push sp
8 90                       nop
8 41 90                    xchg r8d, eax
8 66 90                    nop
8 f3 90                    pause
8 f3 41 90                 pause
8 66 e9 00000000           jmp 0x1006
4 66 e9 0000               jmp 0x1004
8 40                       (more)
4 40                       inc eax
4 63 d8                    arpl ax, bx
8 63 d8                    movsxd ebx, eax
8 48 63 18                 movsxd rbx, dword ptr [rax]
8 66 63 18                 movsxd bx, word ptr [rax]
8 f3 0f b8 c3              popcnt eax, ebx
8 66 f3 0f b8 c3           popcnt ax, bx
8 0f b8 c3                 (bad)
8 f3 0f bc c3              tzcnt eax, ebx
8 f2 0f bc c3              bsf eax, ebx
8 f2 66 0f 38 f1 c3        crc32 eax, bx
8 f2 48 0f 38 f1 c3        crc32 rax, rbx
8 0f 38 f0 c3              (bad)
8 66 0f 38 f0 03           movbe ax, word ptr [rbx]
8 66 f2 0f 58 c1           addsd xmm0, xmm1
8 f2 f3 0f 58 c1           addss xmm0, xmm1
8 66 48 0f 6e c0           movq xmm0, rax
4 66 0f 6e c0              movd xmm0, eax
8 0f 20 18                 mov rax, cr3
8 44 0f 20 c0              mov rax, cr8
8 0f 20 c8                 (bad)
8 8e c8                    (bad)
8 8e f0                    (bad)
8 f3 a4                    rep movsb byte ptr [rdi], byte ptr [rsi]
8 f3 a6                    repe cmpsb byte ptr [rsi], byte ptr [rdi]
8 f2 48 af                 repne scasq rax, qword ptr [rdi]
8 0f 01 f8                 swapgs
4 0f 01 f8                 (bad)
8 0f 01 c8                 monitor
8 0f 05                    syscall
8 62 f1 7c 48 10 00        (bad)
4 62 08                    bound ecx, qword ptr [eax]
4 c5 08                    lds ecx, fword ptr [eax]
4 c5 f8 77                 vzeroupper
8 c5 fc 77                 vzeroall
8 66 c5 f8 77              (bad)
8 48 c5 f8 77              (bad)
8 c5 f0 77                 (bad)
8 c4 e2 f1 90 04 11        vpgatherdq xmm0, qword ptr [rcx + xmm2*1], xmm1
8 c4 e2 f5 90 04 11        vpgatherdq ymm0, qword ptr [rcx + xmm2*1], ymm1
8 c4 e2 f1 90 04 01        (bad)
8 c4 e2 f1 90 00           (bad)
8 c4 e3 71 4a c2 30        vblendvps xmm0, xmm1, xmm2, xmm3
8 c4 c1 79 7e c0           vmovd r8d, xmm0
8 c4 e1 f9 7e c0           vmovq rax, xmm0
4 c4 e1 f9 7e c0           vmovd eax, xmm0
4 c4 e3 f9 22 10 a1        vpinsrd xmm2, xmm0, dword ptr [eax], 0xa1
4 c4 e3 71 4a c2 d0        vblendvps xmm0, xmm1, xmm2, xmm5
2 66 0f ef c1              pxor xmm0, xmm1
2 66 98                    cwde
2 98                       cbw
8 8f e8 78 c2 ec 0e        (bad)
8 0f 0b                    ud2
8 d9 74 24 80              fnstenv [rsp - 0x80]
8 9b                       fwait
8 0f ae e8                 lfence
8 0f ae 38                 clflush byte ptr [rax]
8 f3 0f ae c0              rdfsbase eax
8 f3 48 0f ae c0           rdfsbase rax
8 48 0f c7 08              cmpxchg16b xmmword ptr [rax]
8 0f c7 08                 cmpxchg8b qword ptr [rax]
"""


@pytest.mark.parametrize("line", [line for line in TEXTS.splitlines() if line])
def test_text(line: str) -> None:
    mode, code, text = re.match(r"(\d) ([0-9a-f ]+?)  +(.*)", line).groups()  # type: ignore[union-attr]
    data = bytes.fromhex(code.replace(" ", ""))
    length, found = disassemble(data, 0x1000, int(mode))
    if text == "(more)":
        assert (length, found) == (0, "")
        return
    assert found == text
    if text != "(bad)":
        assert length == len(data)


def test_segments() -> None:
    def segment(code: str, mode: int) -> int:
        return decode_py(bytes.fromhex(code), 0, mode)["seg"]

    assert segment("8b00", 8) == C["DS"]
    assert segment("8b0424", 8) == segment("8b4500", 8) == C["SS"]
    assert segment("418b0424", 8) == segment("418b4500", 8) == C["DS"]  # r12, r13
    assert segment("268b4500", 8) == C["SS"]  # ES means nothing in 64-bit mode
    assert segment("268b4500", 4) == C["ES"]
    assert segment("658b4500", 8) == C["GS"]
    assert decode_py(bytes.fromhex("c4e3714ac2d0"), 0, 4)["imm"] == 0x50  # is4: no register above 7
    assert segment("8b4600", 2) == segment("8b02", 2) == C["SS"]  # [bp], [bp+si]
    assert segment("8b0600", 2) == C["DS"]


def test_lock() -> None:
    """LOCK is legal in front of these, with a memory destination, and nowhere else (SDM, LOCK)."""
    lockable = {row.name for row in ROWS if row.fields["flags"] & C["O_LOCKABLE"]}
    assert lockable == set(
        "add adc and btc btr bts cmpxchg cmpxchg8b cmpxchg16b dec inc neg not or sbb sub xor xadd xchg".split()
    )
    rng = random.Random(3)
    for number, row in enumerate(ROWS[1:], 1):
        sample = encode(number, rng, modes_of(row)[0])
        found = decode_py(b"\xf0" + sample.code, 0, modes_of(row)[0])
        legal = row.fields["flags"] & C["O_LOCKABLE"] and sample.memory
        assert found["op"] == (number if legal else UNDEFINED), f"{row.name} {sample.code.hex(' ')}"


def test_constants_come_from_insn_pxd() -> None:
    assert C["K_GATHER"] == 22
    assert C["O_UNDEF_DEST"] == 32768
    assert len({v for k, v in C.items() if k.startswith("S_")}) == C["S_COUNT"] + 1
    handled = {row.fields["system"] for row in ROWS}
    assert handled >= set(range(C["S_COUNT"])), "a system number that no row has"


def test_rows_tell_how_they_are_encoded() -> None:
    rows = decode.rows()
    assert len(rows) == len(ROWS)
    adc = next(r for r in rows if r["name"] == "adc" and r["encoding"] == "11 /r")
    assert adc["flags_read"] == C["F_CF"] and adc["flags_kill"] == C["F_ALL"] and adc["opcode"] == 0x11
    assert rows[adc["number"] + 1]["narrow_of"] is None or rows[adc["number"] + 1]["rm_use"] & C["U_R"]


def _random_bytes(rng: random.Random, mode: int) -> bytes:
    prefixes = b"\x66\x66\xf2\xf3\x67\x2e\x64\x65\x36\x26\x3e\xf0"
    out = bytes(rng.choice(prefixes) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))))
    if mode == 8 and rng.random() < 0.4:
        out += bytes([0x40 + rng.randrange(16)])
    kind = rng.random()
    if kind < 0.3:
        out += rng.randbytes(1)
    elif kind < 0.8:
        out += rng.choice((b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a")) + rng.randbytes(1)
    else:
        out = b"" if rng.random() < 0.9 else out
        real = 0xC0 if mode != 8 else 0  # else it is lds, les
        no_vvvv = 0x78 if rng.random() < 0.5 else 0
        if kind < 0.9:
            out += bytes([0xC5, rng.randrange(256) | real | no_vvvv])
        else:
            out += bytes([0xC4, rng.randrange(256) & 0xE0 | rng.randrange(1, 4) | real, rng.randrange(256) | no_vvvv])
        out += rng.randbytes(1)
    return (out + rng.randbytes(14))[:15]


# (map, opcode) where a processor may have what hostel doesn't announce: such bytes are undefined to a guest.
# EVEX; TSX; MPK, SERIALIZE ...; WAITPKG; UINTR; SSE4a; ENQCMD, MOVDIR; opmasks; AVX-VNNI; AMX.
_BEYOND = (
    {(0, 0x62), (0, 0), (0, 0xC6), (0, 0xC7), (1, 0x01), (1, 0xAE), (1, 0xC7), (1, 0x2B), (1, 0x78), (1, 0x79)}
    | {(2, n) for n in (0x49, 0x4B, 0x5C, 0x5E, *range(0x50, 0x54), *range(0xF8, 0x100))}
    | {(1, n) for n in (*range(0x41, 0x4C), *range(0x90, 0x94), 0x98, 0x99)}
    | {(3, n) for n in range(0x30, 0x34)}
)
# Ring 3 gets #UD, or the kernel answers in the processor's place; INVPCID isn't there before Zen 3.
_NOT_FOR_USERS = set(
    "clac stac monitor mwait sldt str smsw sidt sgdt vmcall vmmcall syscall sysret sysenter sysexit invpcid".split()
)


@pytest.mark.parametrize("mode", [8, 4, 2])
def test_lengths_and_validity_against_the_processor(mode: int) -> None:
    """What the processor says is undefined, and how many bytes it reads, for bytes at random."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    checked = 0
    with Native() as native:
        if mode == 2 and not native.cs16:
            pytest.skip("modify_ldt is missing here")
        for _ in range(3000):
            code = _random_bytes(rng, mode)
            found = decode_py(code, 0x1000, mode)
            row = ROWS[found["op"]]
            if row.name in _NOT_FOR_USERS:
                continue
            if not intel and row.size_rule == "f64" and found["prefixes"] & C["P_OPSIZE"]:
                continue  # AMD's near branches obey 66
            if not intel and (row.name in ("prefetchw", "serialize") or found["prefixes"] & C["P_LOCK"]):
                continue  # PREFETCHW of a register is undefined there, LOCK MOV CR0 is MOV CR8 (APM vol. 3)
            if not intel and row.fields["kind"] == C["K_UD"] and found["prefixes"] & C["P_VEX"]:
                continue  # VPERMPD with W = 0 runs
            length, outcome = native.length(code, mode)
            where = f"{code.hex()} {row.name}: {outcome.signal} after {length} bytes; seed {seed}"
            if outcome.signal == 4:
                # Undefined here; but the processor needn't have every extension that the table has.
                assert row.fields["kind"] == C["K_UD"] or row.fields["feature"] > C["FE_SSE"] or row.vex, where
            elif row.fields["kind"] == C["K_UD"]:
                assert (found["opmap"], found["opcode"]) in _BEYOND or found["result"] == -1, where
            else:
                assert found["result"] == length, where
                checked += 1
    assert checked > 500
