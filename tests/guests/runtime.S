# What the small guests stand on. It lies at BASE; machine.py has set up GDT, IDT, TSS and page tables (identity, 2 MiB
# pages, supervisor) and enters at its first byte, at CPL 0 in long mode. Gate n leads to stub n.
#
#   SAY value       report a 64-bit value                  QUIT            stop the machine
#   TRY ... TRIED   run what is between; report -1 when it ends, else vector | error << 8, and cr2 for a page fault
#   USER label      go to CPL 3 there; int 0x80 comes back, to the label in `back`
#   handlers[n]     a routine that vector n calls instead; registers are kept, [rsp + OF_VECTOR] and so on are the frame

        .intel_syntax noprefix
        .code64
        .set PORT_SAY, 0xF0
        .set PORT_QUIT, 0xF4
        .set OF_VECTOR, 15*8            # when the routine begins
        .set OF_ERROR, 16*8
        .set OF_RIP, 17*8
        .set OF_FLAGS, 19*8

        .macro SAY value
        push    rax
        mov     rax, \value
        call    say
        pop     rax
        .endm

        .macro QUIT
        out     PORT_QUIT, al
        .endm

        .macro TRY
        lea     rax, [rip + 99f]
        mov     [resume], rax
        mov     [resume_rsp], rsp
        .endm

        .macro TRIED
        mov     rax, -1
        call    say
99:
        .endm

        .macro USER label, return
        lea     rax, [rip + \return]
        mov     [resume], rax
        mov     [resume_rsp], rsp
        push    0x2B
        push    USER_STACK
        push    0x202
        push    0x33
        lea     rax, [rip + \label + USER_CODE - BASE]
        push    rax
        iretq
        .endm

# INIT and SIPI to the others; each begins at `other` with its number in rdi and a stack of its own
        .macro START_OTHERS
        mov     r15d, 0xFEE00000
        mov     dword ptr [r15 + 0xF0], 0x1FF
        mov     dword ptr [r15 + 0x300], 0xC4500
        mov     dword ptr [r15 + 0x300], 0xC4607
        .endm

        .globl _start
        .text
_start: jmp     main
        .balign 8
        .weak   other
        jmp     other                   # the other vCPUs, after START_OTHERS
        .balign 16
stubs:
        .set    vector, 0
        .rept   256
        .balign 16
        .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
        .else
        push    0
        .endif
        push    vector
        jmp     common
        .set    vector, vector + 1
        .endr

common: cld
        push    rax
        push    rcx
        push    rdx
        push    rbx
        push    rbp
        push    rsi
        push    rdi
        push    r8
        push    r9
        push    r10
        push    r11
        push    r12
        push    r13
        push    r14
        mov     rax, [rsp + 14*8]
        mov     rcx, [handlers + rax*8]
        test    rcx, rcx
        jz      1f
        call    rcx
        pop     r14
        pop     r13
        pop     r12
        pop     r11
        pop     r10
        pop     r9
        pop     r8
        pop     rdi
        pop     rsi
        pop     rbp
        pop     rbx
        pop     rdx
        pop     rcx
        pop     rax
        add     rsp, 16
        iretq
1:      cmp     eax, 0x80
        je      3f
        mov     rdx, [rsp + 15*8]
        mov     rbx, rax
        shl     rdx, 8
        or      rax, rdx
        call    say
        cmp     ebx, 14
        jne     2f
        mov     rax, cr2
        call    say
2:
3:      mov     rsp, [resume_rsp]
        jmp     [resume]

# Report rax.
say:    push    rdx
        push    rax
        mov     edx, PORT_SAY
        out     dx, eax
        shr     rax, 32
        out     dx, eax
        pop     rax
        pop     rdx
        ret

        .balign 8
resume:     .quad 0
resume_rsp: .quad 0
        .balign 64
handlers:   .skip 256*8
