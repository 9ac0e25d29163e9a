"""Small guests: interrupts and the local APIC's timer."""

import pytest
from machine import run

APIC = """
        .set    APIC, 0xFEE00000
        .macro  START
        mov     r15d, APIC
        mov     dword ptr [r15 + 0xF0], 0x1FF
        .endm
        .macro  HANDLE number, routine
        lea     rax, [rip + \\routine]
        mov     [handlers + 8*\\number], rax
        .endm
        .macro  SEND number
        mov     dword ptr [r15 + 0x300], 0x40000 + \\number
        .endm
        .macro  EOI
        mov     dword ptr [r15 + 0xB0], 0
        .endm
"""


def test_nested_interrupts_by_priority():
    said = run(APIC + """
main:   START
        HANDLE  0x30, low
        HANDLE  0x40, middle
        HANDLE  0x50, high
        sti
        SEND    0x40
        nop
        SAY     0xE
        QUIT
middle: SAY     0x40
        SEND    0x50                    // waits for IF
        nop
        sti
        nop                             // arrives here, nested
        SEND    0x30                    // its class is lower: waits for the EOI
        nop
        SAY     0x41
        cli
        EOI
        SAY     0x42
        ret                             // it arrives when IRETQ sets IF
low:    SAY     0x30
        EOI
        ret
high:   SAY     0x50
        EOI
        ret
""")
    assert said == [0x40, 0x50, 0x41, 0x42, 0x30, 0xE]


def test_task_priority():
    said = run(APIC + """
main:   START
        HANDLE  0x30, one
        HANDLE  0x60, one
        sti
        mov     eax, 5
        mov     cr8, rax
        mov     eax, [r15 + 0x80]
        SAY     rax
        SEND    0x30
        SEND    0x60
        nop
        SAY     0xA
        xor     eax, eax
        mov     cr8, rax
        nop
        SAY     0xB
        mov     dword ptr [r15 + 0x80], 0x70
        mov     rax, cr8
        SAY     rax
        SEND    0x60
        nop
        mov     eax, [r15 + 0x200 + 0x30]       // IRR 0x60..0x7f
        SAY     rax
        mov     dword ptr [r15 + 0x80], 0x5f
        nop
        QUIT
one:    SAY     [rsp + OF_VECTOR + 8]
        EOI
        ret
""")
    assert said == [0x50, 0x60, 0xA, 0x30, 0xB, 7, 1, 0x60]


def test_nmi_and_its_blocking():
    said = run(APIC + """
main:   START
        HANDLE  2, nmi
        cli
        mov     dword ptr [r15 + 0x310], 0
        mov     dword ptr [r15 + 0x300], 0x4400         // NMI to itself, IF is clear
        nop
        SAY     [count]
        QUIT
nmi:    inc     qword ptr [count]
        cmp     qword ptr [count], 1
        jne     1f
        mov     dword ptr [r15 + 0x300], 0x4400         // a second one waits for IRET
        nop
        SAY     0x11
1:      ret
count:  .quad   0
""")
    assert said == [0x11, 2]


def test_halt_sleeps_until_an_interrupt():
    said = run(APIC + """
main:   START
        HANDLE  0x40, tick
        mov     dword ptr [r15 + 0x3E0], 0xB            // by 1
        mov     dword ptr [r15 + 0x320], 0x40           // one shot
        mov     dword ptr [r15 + 0x380], 5000000        // 5 ms
        rdtsc
        mov     ebx, eax
        sti
        hlt
        SAY     [count]
        mov     eax, [r15 + 0x390]
        SAY     rax
        cli
        mov     dword ptr [r15 + 0x380], 1000
        sti
        hlt
        SAY     [count]
        QUIT
tick:   inc     qword ptr [count]
        EOI
        ret
count:  .quad   0
""")
    assert said == [1, 0, 2]


@pytest.mark.parametrize("divide, shift", [(0xB, 0), (0, 1), (0xA, 7)])
def test_timer_modes(divide, shift):
    said = run(APIC + """
main:   START
        HANDLE  0x40, tick
        mov     dword ptr [r15 + 0x3E0], DIVIDE
        mov     dword ptr [r15 + 0x320], 0x20040        // periodic
        mov     dword ptr [r15 + 0x380], (1000000 >> SHIFT)
        sti
1:      hlt
        cmp     qword ptr [count], 5
        jb      1b
        mov     eax, [r15 + 0x390]                      // counts on
        dec     eax
        cmp     eax, (1000000 >> SHIFT)
        setb    al
        movzx   eax, al
        SAY     rax
        mov     dword ptr [r15 + 0x320], 0x30040        // masked: no more
        mov     dword ptr [r15 + 0x380], 0
        mov     eax, [r15 + 0x390]
        SAY     rax
        // TSC deadline
        mov     dword ptr [r15 + 0x320], 0x40040
        mfence
        mov     qword ptr [count], 0
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        add     rax, 2000000
        mov     rbx, rax
        mov     rdx, rax
        shr     rdx, 32
        mov     ecx, 0x6E0
        wrmsr
        rdmsr
        shl     rdx, 32
        or      rax, rdx
        cmp     rax, rbx
        sete    al
        movzx   eax, al
        SAY     rax
2:      hlt
        cmp     qword ptr [count], 1
        jne     2b
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        cmp     rax, rbx
        setae   al
        movzx   eax, al
        SAY     rax                                     // not too early
        mov     ecx, 0x6E0
        rdmsr
        SAY     rax                                     // disarmed
        // a deadline in the past comes at once; 0 disarms
        mov     eax, 1
        xor     edx, edx
        wrmsr
        nop
        SAY     [count]
        QUIT
tick:   inc     qword ptr [count]
        EOI
        ret
count:  .quad   0
""", DIVIDE=divide, SHIFT=shift)
    assert said == [1, 0, 1, 1, 0, 2]


def test_a_guest_is_told_that_it_stood_still():
    """A timer interrupt that comes much too late has PVCLOCK_GUEST_STOPPED before it, for the guest to clear."""
    said = run(APIC + """
main:   START
        HANDLE  0x40, tick
        lea     rax, [rip + clock + 1]                  // bit 0: enabled
        xor     edx, edx
        mov     ecx, 0x4B564D01
        wrmsr
        xor     eax, eax
        mov     edx, 1 << 10
        mov     ecx, 0x10                               // the TSC, so that there is a past
        wrmsr
        mov     dword ptr [r15 + 0x320], 0x40040
        mfence
        sti
        rdtsc                                           // hardly late
        mov     ecx, 0x6E0
        wrmsr
1:      cmp     qword ptr [count], 1
        jne     1b
        mov     eax, 1                                  // minutes late
        xor     edx, edx
        wrmsr
2:      cmp     qword ptr [count], 2
        jne     2b
        and     byte ptr [clock + 29], ~2
        rdtsc
        wrmsr
3:      cmp     qword ptr [count], 3
        jne     3b
        xor     eax, eax                                // without a clock nothing is written
        xor     edx, edx
        mov     ecx, 0x4B564D01
        wrmsr
        mov     eax, 1
        mov     ecx, 0x6E0
        wrmsr
4:      cmp     qword ptr [count], 4
        jne     4b
        QUIT
tick:   movzx   eax, byte ptr [clock + 29]
        SAY     rax
        inc     qword ptr [count]
        EOI
        ret
        .balign 64
clock:  .fill   32
count:  .quad   0
""")
    assert said == [1, 3, 1, 1]


def test_x2apic():
    said = run(APIC + """
main:   HANDLE  0x40, tick
        mov     ecx, 0x1B
        rdmsr
        or      eax, 0xC00
        wrmsr
        mov     ecx, 0x80F
        mov     eax, 0x1FF
        xor     edx, edx
        wrmsr
        mov     ecx, 0x802
        rdmsr
        SAY     rax
        sti
        mov     ecx, 0x83F                              // self-IPI
        mov     eax, 0x40
        wrmsr
        nop
        mov     ecx, 0x830                              // ICR, one write
        mov     eax, 0x40
        xor     edx, edx
        wrmsr
        nop
        SAY     [count]
        TRY
        mov     ecx, 0x80E                              // no DFR
        rdmsr
        TRIED
        TRY
        mov     ebx, 0xFEE00020
        mov     eax, [rbx]                              // and no MMIO: ones, as nobody answers
        TRIED
        QUIT
tick:   inc     qword ptr [count]
        xor     eax, eax
        xor     edx, edx
        mov     ecx, 0x80B
        wrmsr
        ret
count:  .quad   0
""")
    assert said == [0, 2, 13, (1 << 64) - 1]


def test_interrupt_during_a_long_string_instruction():
    """It is interrupted between elements and goes on where it was."""
    said = run(APIC + """
main:   START
        HANDLE  0x40, tick
        mov     dword ptr [r15 + 0x3E0], 0xB
        mov     dword ptr [r15 + 0x320], 0x20040
        mov     dword ptr [r15 + 0x380], 200000
        sti
        mov     ebp, 40
1:      mov     rdi, 0x600000
        mov     ecx, 0x400000
        mov     eax, ebp
        rep     stosb
        test    ecx, ecx
        jnz     bad
        cmp     rdi, 0xA00000
        jne     bad
        cmp     byte ptr [0x9fffff], bpl
        jne     bad
        mov     rsi, 0x600000
        mov     rdi, 0x800000
        mov     ecx, 0x200000
        std
        cld
        rep     movsb
        dec     ebp
        jnz     1b
        mov     dword ptr [r15 + 0x320], 0x30040
        cmp     qword ptr [count], 3
        setae   al
        movzx   eax, al
        SAY     rax
        QUIT
bad:    SAY     0xBAD
        QUIT
tick:   inc     qword ptr [count]
        EOI
        ret
count:  .quad   0
""")
    assert said == [1]


def test_a_loop_without_exits_is_interrupted():
    said = run(APIC + """
main:   START
        HANDLE  0x40, tick
        mov     dword ptr [r15 + 0x3E0], 0xB
        mov     dword ptr [r15 + 0x320], 0x20040
        mov     dword ptr [r15 + 0x380], 300000
        sti
        xor     eax, eax
1:      cmp     eax, 5
        jne     1b                                      // the handler changes eax on the stack
        SAY     rax
        lea     rbx, [rip + 2f]
        mov     dword ptr [count], 0
2:      jmp     rbx                                     // indirect
3:      SAY     0x33
        // a counted loop is exact, however often it is interrupted
        mov     qword ptr [count], 0
        mov     ecx, 300000000 / 10
        xor     edx, edx
        xor     esi, esi
4:      add     rdx, rcx
        adc     rsi, 0
        stc
        rcl     rsi, 0
        dec     rcx
        jnz     4b
        SAY     rdx
        QUIT
tick:   inc     qword ptr [count]
        EOI
        cmp     qword ptr [count], 5
        jne     5f
        mov     qword ptr [rsp + 14*8], 5               // eax
        lea     rax, [rip + 3b]
        mov     [rsp + 11*8], rax                       // rbx
5:      ret
count:  .quad   0
""")
    n = 30000000
    assert said == [5, 0x33, n * (n + 1) // 2]
