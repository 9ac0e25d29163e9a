"""Small guests: paging as a kernel sees it."""

import pytest
from machine import WINDOW, Machine, run

NONE = (1 << 64) - 1


def fault(vector: int, error: int = 0) -> int:
    return vector | error << 8


# Maps page n of the window with the flags; leaves the rest of the entry's address as it was.
HEAD = """
        .macro MAP page, flags
        mov     rax, PTE + 8*\\page
        mov     rbx, FRAMES + 4096*\\page
        mov     rcx, \\flags
        or      rbx, rcx
        mov     [rax], rbx
        invlpg  [WINDOW + 4096*\\page]
        .endm
        .macro OPEN_TO_USER
        or      qword ptr [PDE], 4
        or      qword ptr [PDPTE], 4
        or      qword ptr [PML4E], 4
        mov     rax, cr3
        mov     cr3, rax
        .endm
"""


def test_error_codes_of_the_supervisor():
    said = run(HEAD + """
main:   MAP     1, 0                    // not present
        MAP     2, 1                    // read-only
        MAP     3, (3 | 1 << 63)        // no execution
        MAP     4, (3 | 1 << 51)        // a reserved bit (beyond MAXPHYADDR)
        mov     rsi, WINDOW
        TRY
        mov     al, [rsi + 0x1123]
        TRIED
        TRY
        mov     [rsi + 0x1fff], ax      // crosses into page 2
        TRIED
        TRY
        mov     [rsi + 0x2008], al
        TRIED
        TRY
        mov     al, [rsi + 0x2008]
        TRIED
        TRY
        lock inc qword ptr [rsi + 0x2010]
        TRIED
        TRY
        lea     rax, [rsi + 0x3000]
        jmp     rax
        TRIED
        TRY
        lea     rax, [rsi + 0x1000]
        jmp     rax
        TRIED
        TRY
        mov     al, [rsi + 0x4000]
        TRIED
        QUIT
""")
    w = WINDOW
    assert said == [
        fault(14, 0), w + 0x1123, fault(14, 2), w + 0x1FFF, fault(14, 3), w + 0x2008, NONE, fault(14, 3), w + 0x2010,
        fault(14, 0x11), w + 0x3000, fault(14, 0x10), w + 0x1000, fault(14, 9), w + 0x4000,
    ]  # fmt: skip


def test_error_codes_of_user_code():
    said = run(HEAD + """
        .macro DO what
        USER    1f, 2f
1:      \\what
        int     0x80
2:
        .endm
main:   OPEN_TO_USER
        MAP     1, 0
        MAP     2, 5                    // user, read-only
        MAP     3, (7 | 1 << 63)
        mov     rsi, WINDOW
        DO      "mov al, [rsi + 0x123]" // supervisor's
        DO      "mov [rsi + 0x123], al"
        DO      "mov al, [rsi + 0x1456]"
        DO      "mov al, [rsi + 0x2456]"
        DO      "mov [rsi + 0x2456], al"
        lea     rdi, [rsi + 0x3000]
        DO      "jmp rdi"
        DO      "jmp rsi"
        mov     rbp, 1 << 47
        DO      "mov al, [rbp]"         // #SS(0)
        DO      "mov rax, cr0"
        mov     rax, 0x1234
        SAY     rax
        QUIT
""")
    w = WINDOW
    assert said == [
        fault(14, 5), w + 0x123, fault(14, 7), w + 0x123, fault(14, 4), w + 0x1456, fault(14, 7), w + 0x2456,
        fault(14, 0x15), w + 0x3000, fault(14, 0x15), w, fault(12), fault(13), 0x1234,
    ]  # fmt: skip


def test_accessed_and_dirty_bits():
    said = run(HEAD + """
        .macro BITS where
        mov     rax, \\where
        and     eax, 0x60
        SAY     rax
        .endm
main:   MAP     1, 3
        MAP     2, 3
        MAP     3, 1
        mov     rsi, WINDOW
        BITS    [PTE + 8]               // 0
        mov     al, [rsi + 0x1000]
        BITS    [PTE + 8]               // A
        BITS    [PDE]                   // A: tables have no D
        mov     [rsi + 0x1000], al
        BITS    [PTE + 8]               // A D
        TRY
        mov     [rsi + 0x2fff], ax      // crosses to page 3, which is read-only
        TRIED
        mov     rax, [PTE + 24]
        and     eax, 0x40
        SAY     rax                     // no D
        lock or byte ptr [rsi + 0x2000], 0
        BITS    [PTE + 16]              // A D
        // cleared behind its back: set again after INVLPG
        and     qword ptr [PTE + 8], ~0x60
        invlpg  [rsi + 0x1000]
        mov     al, [rsi + 0x1000]
        BITS    [PTE + 8]               // A
        and     qword ptr [PTE + 8], ~0x60
        invlpg  [rsi + 0x1000]
        mov     [rsi + 0x1000], al
        BITS    [PTE + 8]               // A D
        // execution sets A
        MAP     5, 3
        mov     byte ptr [rsi + 0x5000], 0xC3
        and     qword ptr [PTE + 40], ~0x60
        invlpg  [rsi + 0x5000]
        lea     rax, [rsi + 0x5000]
        call    rax
        BITS    [PTE + 40]              // A
        // a page of 2 MiB
        mov     qword ptr [PDE + 8], 0x83
        mov     al, [rsi + 0x200000]
        BITS    [PDE + 8]               // A
        mov     [rsi + 0x3ff000], al
        BITS    [PDE + 8]               // A D
        QUIT
""")
    a, ad = 0x20, 0x60
    assert said == [0, a, a, ad, fault(14, 3), WINDOW + 0x3000, 0, ad, a, ad, a, a, ad]


def test_write_protection():
    said = run(HEAD + """
main:   OPEN_TO_USER
        MAP     2, 5
        mov     rsi, WINDOW
        TRY
        mov     [rsi + 0x2008], al
        TRIED
        mov     rax, cr0
        and     eax, ~0x10000
        mov     cr0, rax
        mov     dword ptr [rsi + 0x2008], 77
        mov     eax, [rsi + 0x2008]
        SAY     rax
        mov     rax, cr0
        or      eax, 0x10000
        mov     cr0, rax
        TRY
        mov     [rsi + 0x2008], al
        TRIED
        QUIT
""")
    assert said == [fault(14, 3), WINDOW + 0x2008, 77, fault(14, 3), WINDOW + 0x2008]


def test_smep_and_smap():
    said = run(HEAD + """
main:   OPEN_TO_USER
        MAP     2, 7
        mov     rsi, WINDOW
        mov     byte ptr [rsi + 0x2000], 0xC3
        lea     rdi, [rsi + 0x2000]
        TRY
        call    rdi                     // allowed without SMEP
        TRIED
        mov     rax, cr4
        or      eax, 1 << 20
        mov     cr4, rax
        TRY
        jmp     rdi
        TRIED
        mov     rax, cr4
        or      eax, 1 << 21
        mov     cr4, rax
        TRY
        mov     al, [rdi]
        TRIED
        TRY
        mov     [rdi], al
        TRIED
        stac
        mov     al, [rdi]
        clac
        movzx   eax, al
        SAY     rax
        TRY
        mov     al, [rdi]
        TRIED
        // for user code SMAP means nothing
        USER    1f, 2f
1:      mov     al, [rdi]
        int     0x80
2:      mov     rax, cr4
        and     eax, ~(3 << 20)
        mov     cr4, rax
        TRY
        mov     al, [rdi]
        TRIED
        TRY
        call    rdi
        TRIED
        QUIT
""")
    p = WINDOW + 0x2000
    assert said == [
        NONE, fault(14, 0x11), p, fault(14, 1), p, fault(14, 3), p, 0xC3, fault(14, 1), p, NONE, NONE
    ]  # fmt: skip


def test_no_execution_is_reserved_without_nxe():
    said = run(HEAD + """
main:   MAP     2, (3 | 1 << 63)
        mov     rsi, WINDOW
        mov     byte ptr [rsi + 0x2000], 0xC3
        lea     rdi, [rsi + 0x2000]
        TRY
        call    rdi
        TRIED
        mov     ecx, 0xC0000080
        rdmsr
        and     eax, ~0x800
        wrmsr
        TRY
        mov     al, [rdi]
        TRIED
        or      eax, 0x800
        mov     ecx, 0xC0000080
        rdmsr
        or      eax, 0x800
        wrmsr
        MAP     2, 3
        TRY
        call    rdi
        TRIED
        QUIT
""")
    p = WINDOW + 0x2000
    assert said == [fault(14, 0x11), p, fault(14, 9), p, NONE]


# Frame n holds the number n; SEE says which frame page 1 shows.
FRAMES_NUMBERED = HEAD + """
        .macro SHOW frame, flags
        mov     rax, FRAMES + 4096*\\frame + \\flags
        mov     [PTE + 8], rax
        .endm
        .macro SEE
        mov     eax, [WINDOW + 0x1000]
        SAY     rax
        .endm
main:   mov     ecx, 16
        mov     rdi, FRAMES
        xor     eax, eax
1:      mov     [rdi], eax
        add     rdi, 4096
        inc     eax
        loop    1b
"""


def test_invlpg_and_cr3_show_new_mappings():
    said = run(FRAMES_NUMBERED + """
        SEE
        SHOW    2, 3
        invlpg  [WINDOW + 0x1fff]
        SEE
        SHOW    3, 3
        mov     rax, cr3
        mov     cr3, rax
        SEE
        SHOW    0, 0
        invlpg  [WINDOW + 0x1000]
        TRY
        SEE
        TRIED
        SHOW    4, 3                    // from not present: needs nothing
        SEE
        QUIT
""")
    assert said == [1, 2, 3, fault(14, 0), WINDOW + 0x1000, 4]


def test_global_pages():
    said = run(FRAMES_NUMBERED + """
        mov     rax, cr4
        or      eax, 0x80               // PGE
        mov     cr4, rax
        SHOW    2, 0x103
        invlpg  [WINDOW + 0x1000]
        SEE
        SHOW    3, 0x103
        invlpg  [WINDOW + 0x1000]       // global pages too
        SEE
        SHOW    4, 0x103
        mov     rax, cr4
        xor     eax, 0x80               // so does a change of PGE
        mov     cr4, rax
        SEE
        mov     rax, cr4
        xor     eax, 0x80
        mov     cr4, rax
        SHOW    5, 3
        mov     rax, cr4
        xor     eax, 0x80
        mov     cr4, rax
        SEE
        QUIT
""")
    assert said == [2, 3, 4, 5]


# FREE is the root of another address space, whose window's page 1 shows frame 7
SECOND_SPACE = """
        // its own PML4, PDPT, PD and PT for the window, the rest shared
        .macro COPY to, from
        mov     rsi, \\from
        mov     rdi, \\to
        and     rsi, -4096
        mov     ecx, 512
        rep     movsq
        .endm
        COPY    FREE, CR3
        COPY    (FREE + 0x1000), PDPTE
        COPY    (FREE + 0x2000), PDE
        COPY    (FREE + 0x3000), PTE
        mov     rax, FREE + 0x1003
        mov     [FREE + (PML4E & 0xfff)], rax
        mov     rax, FREE + 0x2003
        mov     [FREE + 0x1000 + (PDPTE & 0xfff)], rax
        mov     rax, FREE + 0x3003
        mov     [FREE + 0x2000 + (PDE & 0xfff)], rax
        mov     rax, FRAMES + 0x7003
        mov     [FREE + 0x3000 + (PTE & 0xfff) + 8], rax
"""


def test_pcid():
    said = run(FRAMES_NUMBERED + SECOND_SPACE + """
        TRY
        mov     rax, cr4
        or      eax, 0x20000            // PCIDE: CR3's PCID is 0, so it may be set
        mov     cr4, rax
        TRIED
        SEE                             // 1
        mov     rax, FREE + 5
        mov     cr3, rax
        SEE                             // 7
        mov     rax, CR3
        bts     rax, 63
        mov     cr3, rax                // back to PCID 0 without a flush
        SEE                             // 1
        mov     rax, FREE + 5
        bts     rax, 63
        mov     cr3, rax
        SEE                             // 7
        mov     rax, cr3
        SAY     rax
        // INVPCID, one address of PCID 5
        mov     rax, FRAMES + 0x8003
        mov     [FREE + 0x3000 + (PTE & 0xfff) + 8], rax
        push    WINDOW + 0x1000
        push    5
        xor     eax, eax
        invpcid rax, [rsp]
        SEE                             // 8
        mov     rax, FRAMES + 0x9003
        mov     [FREE + 0x3000 + (PTE & 0xfff) + 8], rax
        mov     eax, 2
        invpcid rax, [rsp]              // everything
        SEE                             // 9
        TRY
        mov     eax, 4
        invpcid rax, [rsp]              // no such kind
        TRIED
        TRY
        mov     rax, cr4                // PCIDE can't be cleared ... it can: flushes
        and     eax, ~0x20000
        mov     cr4, rax
        TRIED
        SEE                             // 9
        TRY
        mov     rax, cr4                // but not set while CR3's low bits aren't 0
        or      eax, 0x20000
        mov     cr4, rax
        TRIED
        QUIT
""")
    assert said[:5] == [NONE, 1, 7, 1, 7]
    assert said[5] & 0xFFF == 5
    assert said[6:] == [8, 9, fault(13), NONE, 9, fault(13)]


# Each frame holds a function that returns its number. CPL 3 sees page 1 (frame 1, or 7 in the second space) and 17.
PROGRAMS = FRAMES_NUMBERED + """
        mov     ecx, 18
        mov     rdi, FRAMES
        xor     eax, eax
1:      mov     byte ptr [rdi], 0xB8
        mov     [rdi + 1], eax
        mov     byte ptr [rdi + 5], 0xC3
        add     rdi, 4096
        inc     eax
        loop    1b
        OPEN_TO_USER
        SHOW    1, 7
        or      qword ptr [PTE + 8*17], 4
        """ + SECOND_SPACE + """
        .macro SHOW_5 frame
        mov     rax, FRAMES + 4096*\\frame + 7
        mov     [FREE + 0x3000 + (PTE & 0xfff) + 8], rax
        .endm
        .macro GO space, kept
        mov     rax, \\space
        mov     rbx, \\kept << 63
        or      rax, rbx
        mov     cr3, rax
        .endm
        or      qword ptr [FREE + 0x2000 + (PDE & 0xfff)], 4
        or      qword ptr [FREE + 0x1000 + (PDPTE & 0xfff)], 4
        or      qword ptr [FREE + (PML4E & 0xfff)], 4
        SHOW_5  7
        mov     rax, cr4
        or      eax, 0x20080            // PCIDE, PGE
        mov     cr4, rax
"""


def test_code_of_programs_in_address_spaces_with_pcids():
    machine = Machine()
    machine.boot(PROGRAMS + """
        // main calls page 1's from CPL 3, and reads the number in it
        .macro SUM
        USER    calls, 9f
9:      SAY     r12
        .endm
        .macro INVALIDATE kind
        push    WINDOW + 0x1000
        push    5
        mov     eax, \\kind
        invpcid rax, [rsp]
        add     rsp, 16
        .endm
        SUM                             // 1
        GO      (FREE + 5), 0
        SUM                             // 7
        GO      CR3, 1
        SUM                             // 1, which was kept
        GO      (FREE + 5), 1
        SUM                             // 7
        SHOW_5  8
        GO      CR3, 1
        GO      (FREE + 5), 0           // not to be kept
        SUM                             // 8
        SHOW_5  9
        GO      CR3, 1
        INVALIDATE 0
        GO      (FREE + 5), 1
        SUM                             // 9
        GO      CR3, 1
        SHOW_5  10
        INVALIDATE 1
        GO      (FREE + 5), 1
        SUM                             // 10
        GO      CR3, 1
        SHOW_5  11
        INVALIDATE 3
        GO      (FREE + 5), 1
        SUM                             // 11
        GO      CR3, 1
        SHOW_5  12
        INVALIDATE 2
        GO      (FREE + 5), 1
        SUM                             // 12
        GO      CR3, 1
        SHOW_5  13
        mov     rax, cr4
        xor     eax, 0x80
        mov     cr4, rax
        xor     eax, 0x80
        mov     cr4, rax
        GO      (FREE + 5), 1
        SUM                             // 13
        GO      CR3, 1
        mov     byte ptr [FRAMES + 13*4096 + 1], 50 // the code itself
        GO      (FREE + 5), 1
        SUM                             // 50
        SHOW_5  14
        invlpg  [WINDOW + 0x1000]
        GO      CR3, 1
        SUM                             // 1
        GO      (FREE + 5), 1
        SUM                             // 14
        QUIT
calls:  xor     r12d, r12d
        mov     r13d, 100
1:      mov     rax, WINDOW + 0x1000
        call    rax
        add     r12, rax
        mov     eax, [WINDOW + 0x1001]
        add     r12, rax
        dec     r13d
        jnz     1b
        int     0x80
""")
    assert [said / 200 for said in machine.go()] == [1, 7, 1, 7, 8, 9, 10, 11, 12, 13, 50, 1, 14]
    assert machine.engine.vcpus[0].statistics()["spaces_found"] >= 4  # what was kept was used


@pytest.mark.parametrize("kept", [1, 0])
def test_what_address_spaces_keep(kept: int):
    """Pages, and two targets that share a place in the jump cache: the later one goes to the second one."""
    machine = Machine()
    machine.boot(PROGRAMS + f"""
        .macro BOTH_SPACES
        GO      (FREE + 5), {kept}
        USER    both, 9f
9:      GO      CR3, {kept}
        USER    both, 8f
8:
        .endm
        xor     r12d, r12d
        mov     ebp, 100
2:      BOTH_SPACES
        dec     ebp
        jnz     2b
        SAY     r12
        xor     r12d, r12d
        GO      (FREE + 5), 1
        SHOW_5  8
        invlpg  [WINDOW + 0x1000]
        BOTH_SPACES
        SAY     r12
        QUIT
both:   mov     rax, WINDOW + 0x1000
        call    rax
        add     r12, rax
        mov     rax, WINDOW + 0x11000
        call    rax
        add     r12, rax
        int     0x80
""")
    assert machine.go() == [100 * (7 + 17 + 1 + 17), 8 + 17 + 1 + 17]
    exits = machine.engine.vcpus[0].statistics()["exits"]
    assert exits["miss"] < 500 if kept else exits["miss"] > 1000  # 400 are the kernel's own, whose page isn't global
    assert exits["memory"] < 800 if kept else exits["memory"] > 1000  # 600: what it writes is where its code is


def test_pages_that_are_kept_for_an_address_space_become_code():
    """One address space writes, by a page that it may write when it is kept, what another has run meanwhile."""
    machine = Machine()
    machine.boot(PROGRAMS + """
        xor     r12d, r12d
        mov     ebp, 20
2:      GO      CR3, 1
        inc     byte ptr [FRAMES + 7*4096 + 1]
        GO      (FREE + 5), 1
        USER    once, 9f
9:      dec     ebp
        jnz     2b
        SAY     r12
        QUIT
once:   mov     rax, WINDOW + 0x1000
        call    rax
        add     r12, rax
        int     0x80
""")
    assert machine.go() == [sum(range(8, 28))]


def test_writes_into_the_next_page():
    """The two are neighbours, and in the TLB: the second one is code, and then no longer writable."""
    said = run(HEAD + """
main:   mov     dword ptr [WINDOW + 0x2004], 0xC300
        mov     rsi, WINDOW + 0x1ffc
        mov     rax, 0x2B800000000      // the function at page 2: mov eax, n; ret
        mov     rdi, WINDOW + 0x2000
        xor     r12d, r12d
        mov     ebp, 20
1:      mov     [rsi], rax
        mov     rbx, rax
        call    rdi
        add     r12, rax
        mov     rcx, 1 << 40
        lea     rax, [rbx + rcx]
        dec     ebp
        jnz     1b
        SAY     r12
        MAP     2, 1
        mov     al, [rdi]
        TRY
        mov     [rsi], rbx
        TRIED
        mov     eax, [rsi]
        SAY     rax
        QUIT
""")
    assert said == [sum(range(2, 22)), fault(14, 3), WINDOW + 0x2000, 0]


def test_a_block_that_dies_of_its_own_accessed_bit():
    """Its bytes lie around the entry that maps its operand: the check is repeated, but in nothing of the dead block."""
    said = run(HEAD + """
        .set    AT, PTE + 8*100
main:   mov     rax, FRAMES + 0x1003
        mov     [AT + 8], rax
        mov     qword ptr [FRAMES + 0x1000], 0x1234
        mov     rdi, WINDOW + 4096*101
        mov     dword ptr [AT], 0xEB078B48      // mov rax, [rdi]; jmp behind the entry
        mov     byte ptr [AT + 4], 11
        mov     byte ptr [AT + 16], 0xC3
        mov     ebx, 3
1:      mov     eax, AT
        call    rax
        SAY     rax
        and     byte ptr [AT + 8], ~0x20
        invlpg  [rdi]
        dec     ebx
        jnz     1b
        QUIT
""")
    assert said == [0x1234] * 3


def test_large_and_huge_pages():
    said = run(FRAMES_NUMBERED + """
        // 2 MiB: FRAMES lies at 4 MiB
        mov     qword ptr [PDE + 8], FRAMES | 0x83
        mov     eax, [WINDOW + 0x200000 + 0x3000]
        SAY     rax
        mov     dword ptr [WINDOW + 0x200000 + 0x3004], 99
        mov     eax, [FRAMES + 0x3004]
        SAY     rax
        // split into 4 KiB pages in reverse order
        mov     rdi, FREE
        mov     rax, FRAMES + 0xf000 + 3
1:      mov     [rdi], rax
        add     rdi, 8
        sub     rax, 4096
        cmp     rdi, FREE + 128
        jne     1b
        mov     qword ptr [PDE + 8], FREE | 3
        invlpg  [WINDOW + 0x200000 + 0x5000]
        invlpg  [WINDOW + 0x200000 + 0x3000]
        mov     eax, [WINDOW + 0x200000 + 0x3000]
        SAY     rax
        // 1 GiB, behind the window's
        mov     qword ptr [PDPTE + 8], 0x83
        mov     eax, WINDOW + 0x40000000 + FRAMES + 0x6000
        mov     eax, [rax]
        SAY     rax
        mov     qword ptr [PDPTE + 8], 0x2083   // a reserved bit
        mov     edi, WINDOW + 0x40000000
        invlpg  [rdi]
        TRY
        mov     eax, [rdi]
        TRIED
        QUIT
""")
    assert said == [3, 99, 12, 6, fault(14, 9), WINDOW + 0x40000000]


def test_accesses_across_pages():
    said = run(FRAMES_NUMBERED + """
        // pages 1 and 2 show frames 9 and 3
        SHOW    9, 3
        mov     qword ptr [PTE + 16], FRAMES + 0x3003
        mov     rax, cr3
        mov     cr3, rax
        mov     rbx, 0x1122334455667788
        mov     [WINDOW + 0x1ffd], rbx
        mov     eax, [FRAMES + 0x9ffc]
        SAY     rax
        mov     rax, [FRAMES + 0x3000]
        SAY     rax
        lock add qword ptr [WINDOW + 0x1ffd], 1
        mov     rax, [WINDOW + 0x1ffd]
        SAY     rax
        // the second page fails: nothing is stored
        mov     qword ptr [PTE + 16], 0
        invlpg  [WINDOW + 0x2000]
        TRY
        mov     qword ptr [WINDOW + 0x1ffd], -1
        TRIED
        mov     eax, [FRAMES + 0x9ffc]
        SAY     rax
        // so does a push
        mov     rbx, 0x1122334455667788
        mov     rbp, rsp
        mov     qword ptr [PTE + 16], FRAMES + 0x3003
        mov     rsp, WINDOW + 0x2003
        push    rbx
        mov     rax, rsp
        mov     rsp, rbp
        SAY     rax
        mov     rax, [FRAMES + 0x9ffb]
        SAY     rax
        QUIT
""")
    assert said[0] & 0xFFFFFF00 == 0x66778800
    assert said[1] & 0xFFFFFFFFFF == 0x1122334455
    assert said[2] == 0x1122334455667789
    assert said[3:5] == [fault(14, 2), WINDOW + 0x2000]
    assert said[5] & 0xFFFFFF00 == 0x66778900
    assert said[6] == WINDOW + 0x1FFB
    assert said[7] & 0xFFFFFFFFFF == 0x4455667788
