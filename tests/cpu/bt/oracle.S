# The native side of the oracle test: a process that is nothing but its cases. oracle.py assembles it and shares the
# memory behind CONTROL and CODE with it; a byte on stdin starts a batch, a byte on stdout ends it.
#
# Every case ends in a signal (int3 at the latest), whose frame holds the whole state: it is copied out, and the next
# case starts from there, without a system call.

        .intel_syntax noprefix
        .set HEAD_COUNT, 0
        .set HEAD_CURRENT, 8
        .set HEAD_TICK, 16
        .set HEAD_NO_LDT, 24

        .globl _start
        .text
_start:
        mov     rdi, CONTROL
        mov     esi, CONTROL_SIZE
        mov     edx, 3                  # read, write
        mov     r10d, 0x11              # shared, fixed
        mov     r8d, 2
        xor     r9d, r9d
        call    map
        mov     rdi, CODE
        mov     esi, CODE_SIZE
        mov     edx, 5                  # read, execute
        mov     r9d, CONTROL_SIZE
        call    map
        mov     r10d, 0x32              # private, anonymous, fixed
        mov     r8, -1
        xor     r9d, r9d
        mov     edx, 3
        mov     edi, DATA
        mov     esi, 0x3000
        call    map
        mov     edi, DATA + 0x4000
        mov     esi, 0x1000
        call    map
        mov     edi, STACK
        mov     esi, 0x2000
        call    map
        mov     edx, 7
        mov     edi, OWN
        mov     esi, OWN_SIZE
        call    map
        mov     rsi, CONTROL + READONLY
        mov     edi, DATA + 0x2000
        mov     ecx, 0x200
        rep     movsq
        mov     edi, DATA + 0x2000
        mov     esi, 0x1000
        mov     edx, 1
        mov     eax, 10                 # mprotect
        syscall
        mov     edi, 38                 # PR_SET_NO_NEW_PRIVS
        mov     esi, 1
        xor     edx, edx
        xor     r10d, r10d
        xor     r8d, r8d
        mov     eax, 157                # prctl
        syscall
        mov     edi, 1                  # SECCOMP_SET_MODE_FILTER
        xor     esi, esi
        lea     rdx, [rip + filter_program]
        mov     eax, 317                # seccomp
        syscall
        test    eax, eax
        jnz     fail
        xor     r12d, r12d              # the LDT: 16 segments for 16-bit code, one for its data, one for OWN
6:      mov     eax, r12d
        shl     eax, 16
        add     eax, CODE
        mov     ecx, 0x04               # code, readable, limit in bytes, 16 bits
        mov     edx, 0xffff
        cmp     r12d, 17
        jne     8f
        mov     eax, OWN
8:      cmp     r12d, 16
        jne     7f
        mov     eax, DATA
        mov     ecx, 0x10               # data, limit in pages
        mov     edx, 0xfffff
7:      mov     [rip + user_desc], r12d
        mov     [rip + user_desc + 8], edx
        mov     [rip + user_desc + 4], eax
        mov     [rip + user_desc + 12], ecx
        mov     edi, 0x11
        lea     rsi, [rip + user_desc]
        mov     edx, 16
        mov     eax, 154                # modify_ldt
        syscall
        mov     rbx, CONTROL
        or      [rbx + HEAD_NO_LDT], eax
        inc     r12d
        cmp     r12d, 18
        jne     6b
        lea     rdi, [rip + alternate]
        xor     esi, esi
        mov     eax, 131                # sigaltstack
        syscall
        lea     r15, [rip + signals]
1:      movzx   edi, byte ptr [r15]
        test    edi, edi
        jz      2f
        lea     rsi, [rip + action]
        call    sigaction
        inc     r15
        jmp     1b
2:      mov     edi, 26                 # SIGVTALRM
        lea     rsi, [rip + tick_action]
        call    sigaction
        mov     edi, 1
        lea     rsi, [rip + interval]
        xor     edx, edx
        mov     eax, 38                 # setitimer
        syscall

ready:  xor     edi, edi
        lea     rsi, [rip + token]
        mov     edx, 1
        xor     eax, eax
        syscall
        cmp     rax, -4                 # EINTR
        je      ready
        cmp     rax, 1
        jne     quit
        mov     rbx, CONTROL
        mov     qword ptr [rbx + HEAD_CURRENT], 0
        mov     qword ptr [rbx + HEAD_TICK], -1

next:   push    2                       # the kernel leaves a case's NT and AC alone
        popfq
        mov     rbx, CONTROL
        mov     rax, [rbx + HEAD_CURRENT]
        cmp     rax, [rbx + HEAD_COUNT]
        je      done
        imul    r15, rax, RECORD
        lea     r15, [r15 + rbx + INPUT]
        mov     rsi, [r15 + 184]        # bit 0: DS and ES come from the LDT
        mov     r14d, esi
        and     r14d, 1
        and     rsi, -2
        mov     edi, DATA
        mov     ecx, 0x400
        rep     movsq
        mov     edi, DATA + 0x4000
        mov     ecx, 0x200
        rep     movsq
        mov     edi, STACK
        mov     ecx, 0x400
        rep     movsq
        mov     rsi, [r15 + 1088]       # code that may write to itself
        test    rsi, rsi
        jz      9f
        mov     edi, OWN
        mov     ecx, OWN_SIZE / 8
        rep     movsq
9:      xor     ecx, ecx
3:      mov     rdi, [r15 + rcx*8 + 192]
        mov     rsi, [r15 + rcx*8 + 224]
        test    rdi, rdi
        jz      4f
        mov     [rdi], rsi
4:      inc     ecx
        cmp     ecx, 4
        jne     3b
        xor     eax, eax
        mov     fs, eax
        mov     gs, eax
        mov     rax, [r15 + 168]
        wrfsbase rax
        mov     rax, [r15 + 176]
        wrgsbase rax
        mov     eax, 0x2b
        imul    r14d, r14d, 0x87 - 0x2b
        add     eax, r14d
        mov     ds, eax
        mov     es, eax
        mov     eax, 7
        xor     edx, edx
        xrstor64 [r15 + 256]
        mov     rax, [r15]
        mov     rcx, [r15 + 8]
        mov     rdx, [r15 + 16]
        mov     rbx, [r15 + 24]
        mov     rbp, [r15 + 40]
        mov     rsi, [r15 + 48]
        mov     rdi, [r15 + 56]
        mov     r8, [r15 + 64]
        mov     r9, [r15 + 72]
        mov     r10, [r15 + 80]
        mov     r11, [r15 + 88]
        mov     r12, [r15 + 96]
        mov     r13, [r15 + 104]
        mov     r14, [r15 + 112]
        lea     rsp, [r15 + 128]
        mov     r15, [r15 + 120]
        iretq

# The alarm of 4 ms: a case that was running when it rang before never ends.
tick:   mov     rbx, CONTROL
        mov     rax, [rbx + HEAD_CURRENT]
        cmp     rax, [rbx + HEAD_TICK]
        je      ended
        mov     [rbx + HEAD_TICK], rax
        ret

ended:  mov     rbx, CONTROL            # rdi signal, rsi siginfo, rdx ucontext
        mov     rax, [rbx + HEAD_CURRENT]
        imul    r15, rax, RECORD
        lea     r15, [r15 + rbx + OUTPUT]
        imul    r12, rax, RECORD
        imul    r14, rax, AFTER
        mov     r13d, MEMORY
        add     r14, r13
        add     r14, rbx
        mov     [r15], rdi
        mov     rax, [rsi + 16]
        mov     [r15 + 8], rax
        lea     rsi, [rdx + 40]         # uc_mcontext.gregs
        lea     rdi, [r15 + 16]
        mov     ecx, 23
        rep     movsq
        rdfsbase rax
        mov     [r15 + 200], rax
        rdgsbase rax
        mov     [r15 + 208], rax
        mov     rsi, [rdx + 224]        # uc_mcontext.fpregs
        lea     rdi, [r15 + 256]
        mov     ecx, 104
        rep     movsq
        mov     rdi, r14
        mov     esi, DATA
        mov     ecx, 0x400
        rep     movsq
        mov     esi, DATA + 0x4000
        mov     ecx, 0x200
        rep     movsq
        mov     esi, STACK
        mov     ecx, 0x400
        rep     movsq
        cmp     qword ptr [rbx + r12 + INPUT + 1088], 0
        je      1f
        mov     esi, OWN
        mov     ecx, OWN_SIZE / 8
        rep     movsq
1:      inc     qword ptr [rbx + HEAD_CURRENT]
        lea     rsp, [rip + stack_end]
        jmp     next

done:   lea     rsp, [rip + stack_end]
        mov     edi, 1
        lea     rsi, [rip + token]
        mov     edx, 1
        mov     eax, 1
        syscall
        jmp     ready

map:    mov     eax, 9
        syscall
        cmp     rax, -4096
        ja      fail
        ret

sigaction:
        xor     edx, edx
        mov     r10d, 8
        mov     eax, 13
        syscall
        ret

fail:   neg     eax
        mov     edi, eax
        jmp     5f
quit:   xor     edi, edi
5:      mov     eax, 60
        syscall

restore:
        mov     eax, 15                 # rt_sigreturn
        syscall

        .data
# System calls are for this program, not for cases that run astray: SIGSYS for any from another address
        .balign 8
user_desc:
        .long   0, 0, 0, 0
filter: .quad   0x0000000c00000020      # load the upper half of the instruction pointer
        .quad   0x0000500000010015      # is it ours? then skip one
        .quad   0x0003000000000006      # trap
        .quad   0x7fff000000000006      # allow
filter_program:
        .quad   4, filter
token:  .byte   1
signals:
        .byte   4, 5, 7, 8, 11, 31, 0   # ILL TRAP BUS FPE SEGV SYS
        .balign 8
action: .quad   ended, 0x4C000004, restore, 0      # SIGINFO, RESTORER, ONSTACK, NODEFER
tick_action:
        .quad   tick, 0x4C000004, restore, 0
interval:
        .quad   0, 4000, 0, 4000
alternate:
        .quad   alternate_stack, 0, 0x10000
        .bss
        .balign 64
alternate_stack:
        .skip   0x10000
        .skip   0x1000
stack_end:
