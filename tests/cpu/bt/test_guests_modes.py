"""Small guests: from power-on through real and protected mode to long mode and back, and bring-up by SIPI."""

from machine import Machine, assemble, run

from hostel.memory.ram import Ram

# Real mode at 0x8000 with CS = 0: says 16 bits at a time by hand.
FROM_REAL = """
_start: .code16
        .macro  SAY16 value
        mov     eax, \\value
        mov     dx, 0xF0
        out     dx, eax
        xor     eax, eax
        out     dx, eax
        .endm
start:  cli
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7000
        SAY16   0x16
        // segments: the same byte by two ways
        mov     ax, 0x0123
        mov     es, ax
        mov     byte ptr es:[0x10], 0x5A
        movzx   ebx, byte ptr [0x1240]
        SAY16   ebx
        // an interrupt through the real-mode table
        mov     word ptr [0x60*4], offset rm_handler
        mov     word ptr [0x60*4 + 2], 0
        mov     cx, 1
        int     0x60
        SAY16   ecx
        // 16-bit wrap of loop, push, string
        mov     ecx, 0x10003
        xor     ebx, ebx
1:      inc     ebx
        loop    1b                      // cx
        SAY16   ebx
        SAY16   ecx
        push    0x1234
        pop     ax
        movzx   ebx, ax
        SAY16   ebx
        .byte   0x9A                    // far call
        .word   rm_far, 0
        SAY16   esi
        lgdt    [gdtr]
        mov     eax, cr0
        or      eax, 1
        mov     cr0, eax
        .byte   0x66, 0xEA              // jmp 8:protected
        .long   protected
        .word   8
rm_handler:
        add     cx, 0x41
        iret
rm_far: mov     esi, 0xFA
        retf

        .code32
protected:
        mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     esp, 0x7000
        SAY16   0x32
        push    0x11223344
        pop     ebx
        SAY16   ebx
        // 32-bit paging, 4 MiB pages, one to one
        mov     dword ptr [0x9000], 0x83
        mov     eax, cr4
        or      eax, 0x10
        mov     cr4, eax
        mov     eax, 0x9000
        mov     cr3, eax
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        SAY16   0x33
        mov     eax, cr0
        and     eax, 0x7fffffff
        mov     cr0, eax
        // PAE
        mov     dword ptr [0x9000], 0xA001
        mov     dword ptr [0xA000], 0x83
        mov     dword ptr [0xA004], 0
        mov     dword ptr [0x9004], 0
        mov     eax, cr4
        or      eax, 0x20
        mov     cr4, eax
        mov     eax, 0x9000
        mov     cr3, eax
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        SAY16   0x36
        mov     eax, cr0
        and     eax, 0x7fffffff
        mov     cr0, eax
        // long mode
        mov     dword ptr [0xB000], 0xC003
        mov     dword ptr [0xC000], 0xA003
        mov     dword ptr [0xA000], 0x83
        mov     eax, 0xB000
        mov     cr3, eax
        mov     ecx, 0xC0000080
        rdmsr
        or      eax, 0x100
        wrmsr
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        rdmsr
        SAY16   eax                     // LME and LMA
        mov     ebx, 0x123
        SAY16   ebx                     // compatibility mode
        .byte   0xEA
        .long   wide
        .word   0x18

        .code64
wide:   mov     rbx, 0x1122334455667788
        shr     rbx, 32
        SAY16   ebx
        mov     r9, rsp
        push    0x20                    // back to compatibility mode: retf
        lea     rax, [rip + narrow]
        push    rax
        .byte   0x48, 0xCB
        .code32
narrow: SAY16   0x77
        mov     eax, cr0
        and     eax, 0x7fffffff
        mov     cr0, eax                // out of long mode
        mov     ecx, 0xC0000080
        rdmsr
        and     eax, ~0x100
        wrmsr
        rdmsr
        SAY16   eax
        .byte   0xEA
        .long   small
        .word   0x28
        .code16
small:  mov     eax, cr0
        and     al, 0xFE
        mov     cr0, eax
        .byte   0xEA
        .word   real_again, 0
real_again:
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     ebx, 0x1616
        SAY16   ebx
        out     0xF4, al
        hlt
        .balign 8
gdt:    .quad   0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF, 0x00AF9A000000FFFF, 0x00CF9A000000FFFF, 0x00009A000000FFFF
gdtr:   .word   0x2F
        .long   gdt
"""


def test_through_all_modes():
    machine = Machine()
    code = assemble(FROM_REAL, 0x8000, runtime=False)
    machine.ram.view(0x8000, len(code))[:] = code
    vcpu = machine.engine.vcpus[0]
    s = vcpu.save_state()
    s.segments[1].selector, s.segments[1].base, s.rip = 0, 0, 0x8000
    vcpu.load_state(s)
    assert machine.go() == [
        0x16, 0x5A, 0x42, 3, 0x10000, 0x1234, 0xFA, 0x32, 0x11223344, 0x33, 0x36, 0x500, 0x123, 0x11223344, 0x77, 0,
        0x1616,
    ]  # fmt: skip


def test_at_the_reset_vector():
    """CS's base is 0xFFFF0000: the first instruction lies 16 bytes below 4 GiB."""
    ram = Ram()
    ram.add(0xFFFF0000, 0x10000, True)
    code = assemble("""
_start: .code16
        mov     eax, 0x600D
        mov     dx, 0xF0
        out     dx, eax
        out     dx, eax
        out     0xF4, al
        hlt
""", 0, runtime=False)
    ram.view(0xFFFFFFF0 - len(code), len(code))[:] = code
    ram.view(0xFFFFFFF0, 3)[:] = bytes([0xE9]) + (-len(code) - 3 & 0xFFFF).to_bytes(2, "little")
    assert Machine(ram=ram).go() == [0x600D | 0x600D << 32]


def test_compatibility_mode_programs():
    said = run("""
main:   or      qword ptr [PDE], 4
        // a far return to CPL 3, 32-bit code
        lea     rax, [rip + back]
        mov     [resume], rax
        mov     [resume_rsp], rsp
        push    0x2B
        push    USER_STACK
        push    0x202
        push    0x23
        lea     rax, [rip + narrow + USER_CODE - BASE]
        push    rax
        iretq
        .code32
narrow: mov     eax, 0x2B
        mov     ds, eax
        mov     es, eax
        mov     ecx, 5
        xor     eax, eax
1:      add     eax, ecx
        inc     eax
        dec     ecx                     // 49: not REX here
        jnz     1b
        push    eax
        call    2f
        pop     ebx
        add     ebx, eax
        mov     edi, USER_STACK - 0x100
        mov     esi, edi
        mov     [edi - 4], ebx
        mov     ebp, [esi - 4]
        int     0x80
2:      mov     eax, esp
        mov     eax, [eax + 4]
        ret
        .code64
back:   SAY     rbp
        QUIT
""")
    assert said == [40]


def test_sipi_starts_others():
    """INIT and SIPI: each vCPU begins in real mode at the vector's page and goes up to long mode."""
    code = assemble("""
_start: .code16
        cli
        mov     ax, cs
        mov     ds, ax
        lgdt    [gdtr - _start]
        mov     eax, cr4
        or      eax, 0x20
        mov     cr4, eax
        mov     eax, TABLES
        mov     cr3, eax
        mov     ecx, 0xC0000080
        rdmsr
        or      eax, 0x900
        wrmsr
        mov     eax, cr0
        or      eax, 0x80000001
        mov     cr0, eax
        .byte   0x66, 0xEA
        .long   long_mode
        .word   0x10
        .code64
long_mode:
        mov     eax, 1
        cpuid
        shr     ebx, 24                 // the APIC's ID
        mov     ecx, ebx
        lock or [0x6000], rcx
        mov     rax, 1
        lock xadd [0x6008], rax
1:      cli
        hlt
        jmp     1b
        .balign 8
gdtr:   .word   0x4F
        .long   GDT
""".replace("TABLES", "0x10000").replace("GDT", "0x1000"), 0x7000, runtime=False)  # fmt: skip
    machine = Machine(4)
    machine.boot("""
main:   mov     r15d, 0xFEE00000
        mov     dword ptr [r15 + 0xF0], 0x1FF
        mov     dword ptr [r15 + 0x300], 0xC4500        // INIT to all but itself
        mov     dword ptr [r15 + 0x300], 0xC4607        // SIPI, vector 7
1:      pause
        cmp     qword ptr [0x6008], 3
        jne     1b
        mov     dword ptr [r15 + 0x300], 0xC4607        // ignored by those that run
        SAY     [0x6000]
        SAY     [0x6008]
        // one of them again
        mov     dword ptr [r15 + 0x310], 2 << 24
        mov     dword ptr [r15 + 0x300], 0x4500
        mov     dword ptr [r15 + 0x300], 0x4607
2:      pause
        cmp     qword ptr [0x6008], 4
        jne     2b
        SAY     4
        QUIT
""")
    machine.ram.view(0x7000, len(code))[:] = code
    assert machine.go() == [3, 3, 4]


def test_segments_with_the_same_offsets():
    """Two routines at the same IP in different segments: a jump's known target is not the other's."""
    caller = assemble("""
_start: .code16
        cli
        xor     ax, ax
        mov     ss, ax
        mov     sp, 0x7000
        mov     cx, 3
1:      mov     si, 1
        .byte   0x9A
        .word   0x100, 0x2000
        call    say
        .byte   0x9A
        .word   0x100, 0x3000
        call    say
        loop    1b
        out     0xF4, al
        hlt
say:    mov     eax, esi
        mov     dx, 0xF0
        out     dx, eax
        xor     eax, eax
        out     dx, eax
        ret
""", 0x8000, runtime=False)
    routine = """
_start: .code16
        mov     bx, offset there
        jmp     bx
        .skip   0x1000
there:  mov     esi, NUMBER
        mov     bx, offset back
        jmp     bx
back:   retf
"""
    machine = Machine()
    machine.ram.view(0x8000, len(caller))[:] = caller
    for number, base in ((1, 0x20100), (2, 0x30100)):
        code = assemble(routine, 0x100, runtime=False, NUMBER=number)
        machine.ram.view(base, len(code))[:] = code
    vcpu = machine.engine.vcpus[0]
    s = vcpu.save_state()
    s.segments[1].selector, s.segments[1].base, s.rip = 0, 0, 0x8000
    vcpu.load_state(s)
    assert machine.go() == [1, 2] * 3
