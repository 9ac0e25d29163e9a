"""Small guests whose code is patched while it runs: breakpoints, ftrace's protocol, pages that come and go."""

import pytest
from machine import FRAMES, WINDOW, Machine, run
from test_guests_smp import HEAD

# mov ecx, 5; xor eax, eax; 1: add eax, ecx; lea rax, [rax+rax*2]; dec ecx; jnz 1b; ret
BODY = "b905000000 31c0 01c8 488d0440 ffc9 75f6 c3"
PLACES = {0: 1, 5: 1, 7: 5, 9: 5, 13: 5, 15: 5, 17: 1}  # where its instructions are, and how often each runs


def _result() -> int:
    eax = 0
    for ecx in range(5, 0, -1):
        eax = 3 * (eax + ecx)
    return eax


@pytest.mark.parametrize("patch", [WINDOW + 0x2000, FRAMES + 0x2000], ids=["in place", "through another mapping"])
def test_breakpoints_by_int3(patch):
    """At each instruction: hit, put back, stepped over by TF, armed again; then taken out for good."""
    code = ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(BODY))
    said = run(f"""
main:   lea     rax, [rip + hit]
        mov     [handlers + 8*3], rax
        lea     rax, [rip + stepped]
        mov     [handlers + 8*1], rax
        lea     rsi, [rip + body]
        mov     edi, {patch}
        mov     ecx, 18
        rep     movsb
        lea     r12, [rip + places]
1:      movzx   r13d, byte ptr [r12]            // where
        cmp     r13d, 0xff
        je      9f
        mov     r14b, [r13 + {patch}]
        xor     ebp, ebp                        // hits
        call    body_
        SAY     rax
        mov     byte ptr [r13 + {patch}], 0xCC
        call    body_
        SAY     rax
        SAY     rbp
        call    body_                           // it is armed again
        SAY     rax
        mov     [r13 + {patch}], r14b
        call    body_
        SAY     rax
        SAY     rbp
        inc     r12
        jmp     1b
9:      QUIT
body_:  mov     eax, {WINDOW + 0x2000}
        jmp     rax
hit:    mov     rax, [rsp + OF_RIP]
        lea     rdx, [r13 + {WINDOW + 0x2001}]
        cmp     rax, rdx
        jne     8f
        dec     qword ptr [rsp + OF_RIP]
        mov     [r13 + {patch}], r14b
        or      dword ptr [rsp + OF_FLAGS], 0x100
        inc     qword ptr [rsp + 10*8]          // rbp in the frame
        ret
stepped: mov    byte ptr [r13 + {patch}], 0xCC
        and     dword ptr [rsp + OF_FLAGS], ~0x100
        ret
8:      SAY     0xBAD
        QUIT
body:   .byte   {code}
places: .byte   {", ".join(map(str, PLACES))}, 0xff
""")
    expected = []
    for count in PLACES.values():
        expected += [_result(), _result(), count, _result(), _result(), 2 * count]
    assert said == expected


def test_ftrace_patches_what_four_vcpus_run():
    """A nop of five bytes becomes a call and back: int3 first, then its tail, then its head, all told in between."""
    said = run(HEAD + """
        .set    ALIAS, FRAMES + 0x3000
        .set    CODE, WINDOW + 0x3000
main:   lea     rax, [rip + trap]
        mov     [handlers + 8*3], rax
        lea     rax, [rip + sync]
        mov     [handlers + 8*0x40], rax
        lea     rsi, [rip + blob]
        mov     edi, ALIAS
        mov     ecx, tracer - blob
        rep     movsb
        lea     rsi, [rip + tracer]
        mov     edi, ALIAS + 0x1000
        mov     ecx, end - tracer
        rep     movsb
        START_OTHERS
1:      pause
        cmp     dword ptr [ready], VCPUS - 1
        jne     1b
        mov     ebx, ROUNDS
2:      mov     r8d, 0x1000 - 5                 // call tracer
        mov     r9d, 0xE8
        call    patch
        mov     r10d, 1
        call    watch
        mov     r8d, 0x0000441F                 // nop
        mov     r9d, 0x0F
        call    patch
        xor     r10d, r10d
        call    watch
        dec     ebx
        jnz     2b
        mov     eax, [wrong]
        SAY     rax
        mov     eax, [torn]
        SAY     rax
        QUIT
patch:  mov     byte ptr [ALIAS], 0xCC
        call    everyone
        mov     [ALIAS + 1], r8d
        call    everyone
        mov     [ALIAS], r9b
everyone:
        mov     eax, [acks]
        add     eax, VCPUS - 1
        mov     dword ptr [r15 + 0x300], 0xC4040
3:      pause
        cmp     [acks], eax
        jne     3b
        ret
watch:  mov     ecx, VCPUS - 1                  // while each worker goes on: as many calls as there should be?
4:      mov     eax, ecx
        shl     eax, 6
        mov     rdx, [counters + rax + 8]       // traced
        mov     rsi, [counters + rax]           // run
5:      pause
        mov     rdi, [counters + rax]
        sub     rdi, rsi
        cmp     rdi, 50
        jb      5b
        mov     rsi, [counters + rax + 8]
        sub     rsi, rdx
        test    r10d, r10d
        jz      6f
        inc     rsi                             // the first may have been counted before
        cmp     rsi, rdi
        jae     7f
        inc     dword ptr [wrong]
        jmp     7f
6:      cmp     rsi, 1                          // one may have been on its way
        jbe     7f
        inc     dword ptr [wrong]
7:      dec     ecx
        jnz     4b
        ret
other:  shl     edi, 6
        lea     r12, [counters + rdi]
        sti
        lock inc dword ptr [ready]
        test    edi, 64
        mov     eax, CODE + spin - blob
        jz      8f
        jmp     rax                             // calls by a direct jump, on its page
8:      mov     r13d, CODE                      // the other ones through a register
9:      call    r13
        jmp     9b
trap:   mov     rax, [rsp + OF_RIP]
        cmp     rax, CODE + 1
        je      1f
        lock inc dword ptr [torn]
1:      add     qword ptr [rsp + OF_RIP], 4
        ret
sync:   mov     dword ptr [r15 + 0xB0], 0
        lock inc dword ptr [acks]
        ret
blob:   .byte   0x0F, 0x1F, 0x44, 0, 0
        inc     qword ptr [r12]
        ret
spin:   call    blob
        jmp     spin
tracer: inc     qword ptr [r12 + 8]
        ret
end:
        .balign 64
ready:  .long   0
wrong:  .long   0
torn:   .long   0
        .balign 64
acks:   .long   0
        .balign 64
counters: .skip 64 * VCPUS
""", cpus=4, timeout=120, VCPUS=4, ROUNDS=10)
    assert said == [0, 0]


def test_a_code_page_comes_and_goes_under_four_vcpus():
    """Three vCPUs run code on a page that is given other frames, with other code, and taken away for a while."""
    said = run(HEAD + """
        .set    CODE, WINDOW + 0x1000
main:   lea     rax, [rip + flush]
        mov     [handlers + 8*0x40], rax
        lea     rax, [rip + absent]
        mov     [handlers + 8*14], rax
        mov     edi, FRAMES
        xor     ecx, ecx
0:      mov     byte ptr [rdi], 0xB8            // frame n: mov eax, n; jmp 1f; ...; 1: ret
        mov     [rdi + 1], ecx
        mov     word ptr [rdi + 5], 0x10EB
        mov     byte ptr [rdi + 23], 0xC3
        add     edi, 4096
        inc     ecx
        cmp     ecx, 8
        jne     0b
        START_OTHERS
1:      pause
        cmp     dword ptr [ready], VCPUS - 1
        jne     1b
        mov     ebx, ROUNDS
2:      mov     qword ptr [PTE + 8], 0
        call    tell
        mov     ecx, 200
3:      pause
        dec     ecx
        jnz     3b
        mov     ecx, ebx
        and     ecx, 7
        mov     eax, ecx
        shl     eax, 12
        add     eax, FRAMES + 3
        mov     [PTE + 8], rax
        call    tell
        mov     [expected], ecx                 // until the next turn they get this one, and nothing else
        inc     dword ptr [epoch]
        mov     eax, [calls]
        add     eax, 20
4:      pause
        cmp     [calls], eax
        jl      4b
        inc     dword ptr [epoch]
        dec     ebx
        jnz     2b
        mov     eax, [wrong]
        SAY     rax
        mov     eax, [faults]
        test    eax, eax
        setnz   al
        movzx   eax, al
        SAY     rax
        QUIT
tell:   invlpg  [CODE]
        mov     eax, [acks]
        add     eax, VCPUS - 1
        mov     dword ptr [r15 + 0x300], 0xC4040
5:      pause
        cmp     [acks], eax
        jne     5b
        ret
other:  sti
        lock inc dword ptr [ready]
6:      mov     esi, [epoch]
        mov     eax, CODE
        call    rax
        lock inc dword ptr [calls]
        test    esi, 1
        jz      6b                              // it was changing
        mov     edx, [expected]
        cmp     esi, [epoch]
        jne     6b
        cmp     eax, edx
        je      6b
        lock inc dword ptr [wrong]
        jmp     6b
absent: mov     rax, cr2                        // the fetch alone may fault: try again
        cmp     rax, CODE
        je      7f
        cmp     rax, CODE + 23
        je      7f
        lock inc dword ptr [wrong]
7:      lock inc dword ptr [faults]
        ret
flush:  invlpg  [CODE]
        mov     dword ptr [r15 + 0xB0], 0
        lock inc dword ptr [acks]
        ret
        .balign 64
ready:  .long   0
wrong:  .long   0
faults: .long   0
        .balign 64
epoch:  .long   0
expected: .long 0
        .balign 64
calls:  .long   0
        .balign 64
acks:   .long   0
""", cpus=4, timeout=120, VCPUS=4, ROUNDS=40)
    assert said == [0, 1]


def test_four_vcpus_write_and_run_fresh_code_in_a_small_cache():
    """Each in a page of its own, through many flushes of a cache that they share."""
    machine = Machine(4, code_size=1 << 19)
    machine.boot(HEAD + """
        TOGETHER
work:   mov     eax, edi
        shl     eax, 12
        lea     r12d, [rax + WINDOW]
        xor     ebx, ebx
        mov     ecx, ROUNDS
1:      mov     eax, ecx
        and     eax, 511
        lea     rdx, [r12 + rax*8]
        mov     eax, ecx                        // mov eax, n; ret
        shl     rax, 8
        mov     rsi, 0xC30000000000
        or      rax, rsi
        or      rax, 0xB8
        mov     [rdx], rax
        push    rcx
        call    rdx
        pop     rcx
        add     rbx, rax
        dec     ecx
        jnz     1b
        mov     [sums + rdi*8], rbx
        ret
results:
        .irp    n, 0, 1, 2, 3
        SAY     [sums + 8*\\n]
        .endr
        ret
        .balign 64
sums:   .skip   64
""", VCPUS=4, ROUNDS=3000)
    assert machine.go(120) == [3000 * 3001 // 2] * 4
    counters = machine.engine.statistics()
    assert counters["flushes"] >= 2
    assert counters["code_bytes"] <= counters["code_capacity"] == 1 << 19
