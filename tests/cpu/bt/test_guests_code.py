"""Small guests: code that changes, code across pages, exceptions at awkward places."""

from pathlib import Path

from machine import BASE, FRAMES, WINDOW, Machine, run
from test_guests_paging import HEAD, NONE, fault


def test_code_that_changes_itself():
    said = run(HEAD + """
main:   // the next instruction but one, in the same block
        mov     byte ptr [rip + 1f + 1], 7
        nop
1:      mov     eax, 1
        SAY     rax
        // a loop that counts in its own immediate
        mov     ecx, 5
2:      mov     eax, 100
        add     byte ptr [rip + 2b + 1], 1
        SAY     rax
        dec     ecx
        jnz     2b
        // a routine that is written anew between calls: mov eax, n; ret
        mov     rdi, WINDOW + 0x1000
        mov     ecx, 3
3:      mov     byte ptr [rdi], 0xB8
        mov     [rdi + 1], ecx
        mov     byte ptr [rdi + 5], 0xC3
        call    rdi
        SAY     rax
        dec     ecx
        jnz     3b
        // through another address of the same page
        mov     dword ptr [FRAMES + 0x1001], 0x77
        call    rdi
        SAY     rax
        // by a string instruction
        lea     rsi, [rip + 5f]
        mov     rdi, WINDOW + 0x1000
        mov     ecx, 6
        rep     movsb
        mov     rdi, WINDOW + 0x1000
        call    rdi
        SAY     rax
        // data beside code changes nothing
        mov     ecx, 1000
4:      inc     dword ptr [rdi + 64]
        call    rdi
        dec     ecx
        jnz     4b
        SAY     rax
        mov     eax, [rdi + 64]
        SAY     rax
        QUIT
5:      mov     eax, 0x55
        ret
""")
    assert said == [7, 100, 101, 102, 103, 104, 3, 2, 1, 0x77, 0x55, 0x55, 1000]


def test_a_page_that_gets_other_code():
    """The same linear address, other frames."""
    said = run(HEAD + """
main:   mov     ebx, 1
1:      mov     rdi, rbx
        shl     rdi, 12
        add     rdi, FRAMES
        mov     byte ptr [rdi], 0xB8
        mov     [rdi + 1], ebx
        mov     byte ptr [rdi + 5], 0xC3
        inc     ebx
        cmp     ebx, 4
        jne     1b
        mov     rdi, WINDOW
        mov     ebx, 9
2:      mov     eax, ebx
        xor     edx, edx
        mov     ecx, 3
        div     ecx
        inc     edx
        shl     edx, 12
        lea     rax, [rdx + FRAMES + 3]
        mov     [PTE], rax
        invlpg  [rdi]
        call    rdi
        SAY     rax
        dec     ebx
        jnz     2b
        QUIT
""")
    assert said == [1, 3, 2] * 3


def test_an_instruction_across_two_pages():
    said = run(HEAD + """
main:   // mov eax, imm32 with two bytes on page 1 and three on page 2, then ret
        mov     rdi, WINDOW + 0x1ffe
        mov     byte ptr [rdi], 0xB8
        mov     dword ptr [rdi + 1], 0x11223344
        mov     byte ptr [rdi + 5], 0xC3
        call    rdi
        SAY     rax
        // another frame behind it
        mov     dword ptr [FRAMES + 0x8000], 0x00c3aabb
        mov     byte ptr [FRAMES + 0x8002], 0xcc
        mov     byte ptr [FRAMES + 0x8003], 0xc3
        mov     qword ptr [PTE + 16], FRAMES + 0x8003
        invlpg  [WINDOW + 0x2000]
        call    rdi
        SAY     rax
        // its second page changes
        mov     byte ptr [FRAMES + 0x8001], 0x99
        call    rdi
        SAY     rax
        // and isn't there: the fault names the second page
        mov     qword ptr [PTE + 16], 0
        invlpg  [WINDOW + 0x2000]
        TRY
        call    rdi
        TRIED
        mov     qword ptr [PTE + 16], FRAMES + 0x8003
        call    rdi
        SAY     rax
        mov     rax, 1 << 63
        or      [PTE + 16], rax
        invlpg  [WINDOW + 0x2000]
        TRY
        call    rdi
        TRIED
        QUIT
""")
    assert said == [
        0x11223344, 0xCCAABB44, 0xCC99BB44, fault(14, 0x10), WINDOW + 0x2000, 0xCC99BB44, fault(14, 0x11),
        WINDOW + 0x2000,
    ]  # fmt: skip


def test_a_block_changes_itself_right_before_what_ends_it():
    """An instruction across the page's end, and one that is undefined: neither is in the block, the ones before are."""
    said = run(HEAD + """
        .macro  COPY from, to, n
        lea     rsi, [rip + \\from]
        mov     edi, \\to
        mov     ecx, \\n
        rep     movsb
        .endm
main:   mov     ebx, WINDOW + 0x2000 - 18
        COPY    1f, WINDOW+0x2000-18, 24
        call    rbx
        SAY     rax
        lea     rax, [rip + 3f]
        mov     [handlers + 8*6], rax
        COPY    2f, WINDOW, 24
        mov     ebx, WINDOW
        call    rbx
4:      SAY     rax
        QUIT
1:      mov     dword ptr [rbx + 8], 0x77       // of the next one
        mov     eax, 0x55
        xor     edx, edx
        .byte   0x0f, 0x1f, 0x44, 0, 0          // two bytes here
        ret
2:      mov     dword ptr [rbx + 8], 0x88
        mov     eax, 0x55
        .byte   0xf0, 0x90                      // lock nop
3:      lea     rdx, [rip + 4b]
        mov     [rsp + OF_RIP], rdx
        ret
""")
    assert said == [0x77, 0x88]


def test_exceptions_have_their_addresses():
    """Faults point at the instruction, traps behind it; a handler can go on."""
    said = run("""
main:   lea     rax, [rip + skip]
        .irp    n, 0, 1, 3, 4, 6, 13
        mov     [handlers + 8*\\n], rax
        .endr
        xor     ecx, ecx
        div     ecx                     // 0: fault, 2 bytes
        ud2                             // 6
        int3                            // 3: trap
        .byte   0xF1                    // 1: trap
        mov     rax, 1 << 63
        mov     al, [rax]               // 13, 2 bytes
        .byte   0xF0                    // LOCK where it isn't allowed: 6
        nop
        SAY     0x99
        QUIT
skip:   mov     rax, [rsp + OF_VECTOR]
        mov     rdx, [rsp + OF_RIP]
        SAY     rax
        mov     rcx, rdx
        lea     rbx, [rip + main]
        sub     rcx, rbx
        SAY     rcx
        cmp     eax, 1
        je      1f
        cmp     eax, 3
        je      1f
        add     qword ptr [rsp + OF_RIP], 2
1:      ret
""")
    vectors, places = said[0:-1:2], said[1:-1:2]
    assert vectors == [0, 6, 3, 1, 13, 6] and said[-1] == 0x99
    first = places[0]
    assert [p - first for p in places] == [0, 2, 5, 6, 16, 18]


def test_single_step():
    said = run("""
main:   lea     rax, [rip + trap]
        mov     [handlers + 8*1], rax
        pushfq
        or      dword ptr [rsp], 0x100
        popfq
        nop                             // no trap behind POPF itself: TF was clear when it began
        mov     ecx, 3
1:      loop    1b
        pushfq
        and     dword ptr [rsp], ~0x100
        popfq
        nop
        mov     eax, [count]
        SAY     rax
        QUIT
trap:   inc     dword ptr [count]
        mov     rax, dr6
        and     eax, 0x4000
        shr     eax, 14
        cmp     eax, 1
        je      2f
        SAY     0xBAD
2:      mov     eax, 0xffff0ff0
        mov     dr6, rax
        ret
count:  .quad   0
""")
    assert said == [8]  # nop, mov, 3 x loop, pushf, and, popf


def test_interrupts_wait_behind_mov_ss_and_sti():
    said = run(HEAD + """
        .set    APIC, 0xFEE00000
main:   lea     rax, [rip + arrived]
        mov     [handlers + 8*0x40], rax
        mov     edi, APIC
        mov     dword ptr [rdi + 0xF0], 0x1FF   // SVR: on
        // pending at STI: comes behind the next instruction
        cli
        mov     dword ptr [rdi + 0x300], 0x40040        // self-IPI
        lea     rbx, [rip + 1f]
        sti
        nop
1:      nop
        nop
        // STI, CLI: no window
        cli
        mov     dword ptr [rdi + 0x300], 0x40040
        lea     rbx, [rip + 2f]
        sti
        cli
        nop
        SAY     0x11
        sti
        nop
2:      nop
        // MOV SS
        cli
        mov     eax, ss
        mov     dword ptr [rdi + 0x300], 0x40040
        sti
        mov     ss, eax                 // STI's delay ends here, MOV SS's begins
        lea     rbx, [rip + 3f]
3:      nop
        nop
        // an exception between MOV SS and the next instruction: the fault comes first
        mov     ecx, ss
        cli
        mov     dword ptr [rdi + 0x300], 0x40040
        TRY
        mov     ss, ecx
        ud2
        TRIED
        lea     rbx, [rip + 4f]
        sti
        nop
4:      nop
        // STI; HLT wakes at once
        cli
        mov     dword ptr [rdi + 0x300], 0x40040
        lea     rbx, [rip + 5f]
        sti
        hlt
5:      SAY     0x55
        QUIT
arrived:
        mov     rax, [rsp + OF_RIP]
        sub     rax, rbx
        SAY     rax
        mov     edi, APIC
        mov     dword ptr [rdi + 0xB0], 0
        ret
""")
    assert said == [0, 0x11, 0, 0, fault(6), 0, 0, 0x55]


def test_triple_fault():
    from machine import Machine

    machine = Machine()
    machine.boot("""
main:   SAY     1
        lidt    [rip + nothing]
        ud2
        SAY     2
        QUIT
nothing: .quad 0, 0
""")
    assert machine.go() == [1]
    assert machine.ended[0] == "shutdown"


def test_double_fault():
    said = run(HEAD + """
main:   lea     rax, [rip + double]
        mov     [handlers + 8*8], rax
        mov     byte ptr [IDT + 16*14 + 5], 0   // the gate of #PF isn't present
        mov     rsi, 0x7000000000
        mov     al, [rsi]
double: mov     rax, [rsp + OF_VECTOR]
        SAY     rax
        mov     rax, [rsp + OF_ERROR]   // always 0
        SAY     rax
        mov     rax, cr2
        SAY     rax
        QUIT
""")
    assert said == [8, 0, 0x7000000000]


def test_lock_prefix_keeps_what_it_should():
    said = run("""
main:   mov     rsi, 0x200000
        mov     qword ptr [rsi], 5
        mov     eax, 5
        mov     ecx, 9
        lock cmpxchg [rsi], rcx
        setz    al
        movzx   eax, al
        SAY     rax
        lock xadd [rsi], rcx
        SAY     rcx
        SAY     [rsi]
        xor     edx, edx
        mov     eax, 18
        mov     ebx, 1
        mov     ecx, 2
        lock cmpxchg16b [rsi]
        SAY     [rsi + 8]
        QUIT
""")
    assert said == [1, 9, 18, 2]


def test_the_runtime_itself():
    assert run("main: SAY -1\n SAY BASE\n TRY\n ud2\n TRIED\n SAY FRAMES\n QUIT\n") == [NONE, BASE, fault(6), FRAMES]


def test_a_page_that_held_code_and_is_written_as_data_gets_free():
    machine = Machine()
    machine.boot("""
main:   mov     dword ptr [FRAMES], 0xC3C0FFC3 // ret; inc eax; ret
        xor     eax, eax
        mov     rbx, FRAMES
        call    rbx
        inc     rbx
        call    rbx
        SAY     rax
        mov     rdi, FRAMES + 8
        mov     ecx, 500
1:      mov     [rdi], rcx
        add     rdi, 8
        loop    1b
        SAY     [FRAMES + 8*500]
        call    rbx                     // the code that was not written is still there
        SAY     rax
        QUIT
""")
    assert machine.go() == [1, 1, 2]
    assert 0 < machine.engine.vcpus[0].statistics()["self_modifying_writes"] < 50


def test_random_numbers():
    """RDRAND and RDSEED (SDM vol. 2), which hosts have both, one or none of: as CPUID says."""
    said = run(HEAD + """
main:   mov     eax, 1
        cpuid
        bt      ecx, 30
        setc    bl
        movzx   esi, bl
        mov     eax, 7
        xor     ecx, ecx
        cpuid
        bt      ebx, 18
        setc    bl
        movzx   edi, bl
        SAY     rsi
        SAY     rdi
        test    esi, esi
        jz      3f
1:      rdrand  r8
        jnc     1b
        SAY     r8
        test    edi, edi
        jz      3f
        mov     r10, 100
2:      rdseed  r9
        pushf
        pop     rax
        jc      4f
        dec     r10
        jnz     2b
4:      SAY     r9
        and     eax, 0x8D5
        SAY     rax
        mov     r9, -1
        rdseed  r9d
        shr     r9, 32
        SAY     r9
3:      QUIT
""")
    flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    assert said[:2] == [int("rdrand" in flags), int("rdrand" in flags or "rdseed" in flags)]
    if said[0]:
        assert said[4:] == [1, 0] and said[2] != said[3]
