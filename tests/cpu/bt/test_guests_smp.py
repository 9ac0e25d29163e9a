"""Small guests: four vCPUs at once."""

import pytest
from machine import run

# PAR body: all vCPUs run `work` (number in rdi); the first waits for all and goes on.
HEAD = """
        .macro  TOGETHER
main:   START_OTHERS
        xor     edi, edi
        call    work
1:      pause
        cmp     dword ptr [done], VCPUS - 1
        jne     1b
        call    results
        QUIT
other:  call    work
        lock inc dword ptr [done]
2:      cli
        hlt
        jmp     2b
        .balign 64
done:   .quad   0
        .balign 64
        .endm
"""
ROUNDS = 100_000


def together(text: str, vcpus: int = 4, **defines: int) -> list[int]:
    return run(HEAD + "TOGETHER\n" + text, cpus=vcpus, timeout=60, VCPUS=vcpus, **defines)


@pytest.mark.parametrize("vcpus", [2, 4])
def test_lock_free_counters(vcpus):
    said = together("""
work:   mov     ecx, ROUNDS
1:      lock inc dword ptr [rip + a]
        mov     eax, 3
        lock xadd [rip + b], rax
        lock add word ptr [rip + c], 1
2:      mov     rax, [rip + d]                  // compare and swap
        lea     rdx, [rax + 1]
        lock cmpxchg [rip + d], rdx
        jnz     2b
        mov     eax, [rip + e]                  // two words at once
        mov     edx, [rip + e + 4]
3:      mov     ebx, eax
        mov     r8d, ecx
        mov     ecx, edx
        inc     ebx
        dec     ecx
        lock cmpxchg8b [rip + e]
        mov     ecx, r8d
        jnz     3b
        loop    1b
        ret
results:
        mov     eax, [rip + a]
        SAY     rax
        SAY     [rip + b]
        movzx   eax, word ptr [rip + c]
        SAY     rax
        SAY     [rip + d]
        SAY     [rip + e]
        ret
        .balign 64
a:      .skip   64
b:      .skip   64
c:      .skip   64
d:      .skip   64
e:      .skip   64
""", vcpus, ROUNDS=ROUNDS)
    n = vcpus * ROUNDS
    assert said == [n, 3 * n, n & 0xFFFF, n, n | (-n & 0xFFFFFFFF) << 32]


def test_counters_across_cache_lines_and_pages():
    """Atomic operations that the host can't make atomic at one place, since the guest's pages lie apart."""
    said = together("""
work:   mov     esi, WINDOW + 0x1ffd
        mov     ecx, ROUNDS
1:      lock inc qword ptr [rsi]
        mov     eax, 1
        lock xadd [rsi + 0x103d - 0x1000 + 0x3f00], rax
        loop    1b
        ret
results:
        SAY     [WINDOW + 0x1ffd]
        SAY     [WINDOW + 0x1ffd + 0x3f3d]
        ret
""", ROUNDS=200)
    assert said == [800, 800]


def test_spin_locks_guard_plain_data():
    said = together("""
work:   mov     ecx, ROUNDS
1:      mov     eax, 1
2:      xchg    [rip + lock], eax
        test    eax, eax
        jz      3f
        pause
        jmp     2b
3:      mov     rax, [rip + value]              // plain: only the lock makes it safe
        inc     rax
        mov     [rip + value], rax
        add     [rip + sum], rax
        mov     dword ptr [rip + lock], 0       // a plain store releases it
        loop    1b
        ret
results:
        SAY     [rip + value]
        SAY     [rip + sum]
        ret
        .balign 64
lock:   .skip   64
value:  .quad   0
sum:    .quad   0
""", ROUNDS=ROUNDS)
    n = 4 * ROUNDS
    assert said == [n, n * (n + 1) // 2]


def test_ticket_lock_and_message_passing():
    """A ring: each vCPU waits for its turn in a plain variable and passes it on (stores stay in order)."""
    said = together("""
work:   mov     ecx, ROUNDS
1:      mov     eax, [rip + turn]
        and     eax, 3
        cmp     eax, edi
        je      2f
        pause
        jmp     1b
2:      mov     rax, [rip + payload]
        lea     rax, [rax + rax*2 + 1]
        mov     [rip + payload], rax
        inc     dword ptr [rip + turn]
        loop    1b
        ret
results:
        SAY     [rip + payload]
        mov     eax, [rip + turn]
        SAY     rax
        ret
        .balign 64
turn:   .skip   64
payload: .quad  0
""", ROUNDS=50)
    x = 0
    for _ in range(200):
        x = (3 * x + 1) & (1 << 64) - 1
    assert said == [x, 200]


def test_ipis():
    said = run(HEAD + """
        // one to each, then one to all but itself, 200 times, each acknowledged in memory
main:   lea     rax, [rip + got]
        mov     [handlers + 8*0x40], rax
        START_OTHERS
1:      pause
        cmp     dword ptr [ready], VCPUS - 1
        jne     1b
        mov     ebx, 200
        xor     r14d, r14d
2:      mov     ecx, 1
3:      mov     eax, ecx
        shl     eax, 24
        mov     [r15 + 0x310], eax
        mov     dword ptr [r15 + 0x300], 0x4040
        inc     r14d
4:      pause
        cmp     [acks], r14d
        jne     4b
        inc     ecx
        cmp     ecx, VCPUS
        jne     3b
        mov     dword ptr [r15 + 0x300], 0xC4040
        add     r14d, VCPUS - 1
5:      pause
        cmp     [acks], r14d
        jne     5b
        dec     ebx
        jnz     2b
        mov     eax, [acks]
        SAY     rax
        mov     eax, [who]
        SAY     rax
        // an NMI to the last one, which has interrupts off
        lea     rax, [rip + nmi]
        mov     [handlers + 8*2], rax
        mov     dword ptr [r15 + 0x310], (VCPUS - 1) << 24
        mov     dword ptr [r15 + 0x300], 0x4400
6:      pause
        cmp     dword ptr [nmis], 1
        jne     6b
        SAY     6
        QUIT
other:  lock inc dword ptr [ready]
        cmp     edi, VCPUS - 1
        je      8f
7:      sti                             // the others sleep, the last one spins
        hlt
        jmp     7b
8:      sti
        cmp     dword ptr [acks], 200 * 2 * (VCPUS - 1)
        jb      8b
        cli
9:      pause
        jmp     9b
got:    mov     eax, 1
        mov     ecx, [r15 + 0x20]
        shr     ecx, 24
        shl     eax, cl
        lock or [who], eax
        mov     dword ptr [r15 + 0xB0], 0
        lock inc dword ptr [acks]
        ret
nmi:    lock inc dword ptr [nmis]
        ret
        .balign 64
ready:  .long   0
who:    .long   0
nmis:   .long   0
        .balign 64
acks:   .long   0
""", cpus=4, timeout=60, VCPUS=4)
    assert said == [200 * 2 * 3, 0b1110, 6]


def test_tlb_shootdown():
    """A page is taken away while others read it: after the IPI's acknowledgment nobody sees the old frame."""
    said = run(HEAD + """
main:   lea     rax, [rip + flush]
        mov     [handlers + 8*0x40], rax
        mov     edi, FRAMES
        mov     ecx, 16
        xor     eax, eax
0:      mov     [rdi], eax              // frame n holds n
        add     edi, 4096
        inc     eax
        loop    0b
        START_OTHERS
1:      pause
        cmp     dword ptr [ready], VCPUS - 1
        jne     1b
        mov     ebx, 60
        xor     r14d, r14d
2:      mov     eax, ebx
        and     eax, 7
        mov     ecx, eax
        shl     eax, 12
        add     eax, FRAMES + 3
        mov     [PTE + 8], rax
        invlpg  [WINDOW + 0x1000]
        mov     dword ptr [r15 + 0x300], 0xC4040
        add     r14d, VCPUS - 1
3:      pause
        cmp     [acks], r14d
        jne     3b
        mov     [expected], ecx         // from here on only this may be seen
        add     dword ptr [epoch], 1
        mov     eax, 50
4:      pause
        dec     eax
        jnz     4b
        add     dword ptr [epoch], 1
        dec     ebx
        jnz     2b
        mov     eax, [wrong]
        SAY     rax
        QUIT
other:  sti
        lock inc dword ptr [ready]
5:      mov     esi, [epoch]
        test    esi, 1
        jz      5b                      // the mapping is changing
        mov     eax, [WINDOW + 0x1000]
        mov     edx, [expected]
        cmp     esi, [epoch]
        jne     5b
        cmp     eax, edx
        je      5b
        lock inc dword ptr [wrong]
        jmp     5b
flush:  invlpg  [WINDOW + 0x1000]
        mov     dword ptr [r15 + 0xB0], 0
        lock inc dword ptr [acks]
        ret
        .balign 64
ready:  .long   0
wrong:  .long   0
        .balign 64
epoch:  .long   0
expected: .long 0
        .balign 64
acks:   .long   0
""", cpus=4, timeout=60, VCPUS=4)
    assert said == [0]


def test_code_that_another_vcpu_changes():
    """Cross-modifying code as the SDM wants it (vol. 3, 10.1.3): store, tell, serialize, run."""
    said = together("""
work:   test    edi, edi
        jnz     2f
        mov     ebx, ROUNDS
0:      mov     [WINDOW + 0x1001], ebx          // mov eax, imm32; ret
        mov     byte ptr [WINDOW + 0x1000], 0xB8
        mov     byte ptr [WINDOW + 0x1005], 0xC3
        mov     dword ptr [rip + seen], 0
        mov     [rip + version], ebx
1:      pause
        cmp     dword ptr [rip + seen], VCPUS - 1
        jne     1b
        dec     ebx
        jnz     0b
        mov     dword ptr [rip + version], -1
        ret
2:      mov     r12d, ROUNDS
3:      pause
        mov     eax, [rip + version]
        cmp     eax, r12d
        jne     3b
        xor     eax, eax
        cpuid
        mov     eax, WINDOW + 0x1000
        call    rax
        cmp     eax, r12d
        je      4f
        lock inc qword ptr [rip + wrong]
4:      lock inc dword ptr [rip + seen]
        dec     r12d
        jnz     3b
        ret
results:
        SAY     [rip + wrong]
        ret
        .balign 64
version: .skip  64
seen:   .skip   64
wrong:  .quad   0
""", ROUNDS=40)
    assert said == [0]


def test_stores_are_seen_in_order():
    """x86's order (SDM vol. 3, 10.2.2): another vCPU never sees the second store without the first."""
    said = together("""
work:   test    edi, edi
        jnz     2f
        mov     ecx, ROUNDS
1:      mov     [rip + first], ecx
        mov     [rip + second], ecx
        loop    1b
        mov     dword ptr [rip + over], 1
        ret
2:      mov     eax, [rip + second]             // counts down: what is read later is never higher
        mov     edx, [rip + first]
        test    eax, eax
        jz      3f
        cmp     edx, eax
        jbe     3f
        lock inc qword ptr [rip + wrong]
3:      cmp     dword ptr [rip + over], 0
        je      2b
        ret
results:
        SAY     [rip + wrong]
        ret
        .balign 64
first:  .skip   64
second: .skip   64
over:   .skip   64
wrong:  .quad   0
""", ROUNDS=1_000_000)
    assert said == [0]


