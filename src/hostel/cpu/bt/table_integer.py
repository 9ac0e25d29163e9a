"""Rows of the instruction table: integer, control flow and system instructions. table.py explains the columns."""

_ALU = "".join(
    f"""
{name}  {base:02X} /r  {d}Eb,Gb  {flags} {lock}
{name}  {base + 1:02X} /r  {d}Ev,Gv  {flags} {lock}
{name}  {base + 2:02X} /r  {d}Gb,Eb  {flags}
{name}  {base + 3:02X} /r  {d}Gv,Ev  {flags}
{name}  {base + 4:02X}  {d}al,Ib  {flags}
{name}  {base + 5:02X}  {d}rax,Iz  {flags}
{name}  80 /{base >> 3}  {d}Eb,Ib  {flags} {lock}
{name}  81 /{base >> 3}  {d}Ev,Iz  {flags} {lock}
{name}  82 /{base >> 3}  {d}Eb,Ib  {flags} {lock} no64
{name}  83 /{base >> 3}  {d}Ev,Ib  {flags} {lock}
"""
    for name, base, d, flags, lock in (
        ("add", 0x00, "+", "arith", "lock"),
        ("or", 0x08, "+", "logic", "lock"),
        ("adc", 0x10, "+", "carry", "lock"),
        ("sbb", 0x18, "+", "carry", "lock"),
        ("and", 0x20, "+", "logic", "lock"),
        ("sub", 0x28, "+", "arith", "lock"),
        ("xor", 0x30, "+", "logic", "lock"),
        ("cmp", 0x38, "", "arith", ""),
    )
)

_SHIFTS = "".join(
    f"""
{name}  C0 /{digit}  +Eb,Kb  {flags}
{name}  C1 /{digit}  +Ev,Kb  {flags}
{name}  D0 /{digit}  +Eb,1   {flags}1
{name}  D1 /{digit}  +Ev,1   {flags}1
{name}  D2 /{digit}  +Eb,cl  {flags}
{name}  D3 /{digit}  +Ev,cl  {flags}
"""
    for digit, (name, flags) in enumerate(
        (("rol", "rotate"), ("ror", "rotate"), ("rcl", "rotatec"), ("rcr", "rotatec"),
         ("shl", "shift"), ("shr", "shift"), ("sal", "shift"), ("sar", "shift"))
    )
)  # fmt: skip

_BASE = """
push es   06      -           sys:PUSH_SEG imm:0 no64 d64 r:rsp w:rsp osz
pop es    07      -           sys:POP_SEG imm:0 no64 d64 r:rsp w:rsp osz end
push cs   0E      -           sys:PUSH_SEG imm:1 no64 d64 r:rsp w:rsp osz
push ss   16      -           sys:PUSH_SEG imm:2 no64 d64 r:rsp w:rsp osz
pop ss    17      -           sys:POP_SEG imm:2 no64 d64 r:rsp w:rsp osz end
push ds   1E      -           sys:PUSH_SEG imm:3 no64 d64 r:rsp w:rsp osz
pop ds    1F      -           sys:POP_SEG imm:3 no64 d64 r:rsp w:rsp osz end
push fs   0F A0   -           sys:PUSH_SEG imm:4 d64 r:rsp w:rsp osz
pop fs    0F A1   -           sys:POP_SEG imm:4 d64 r:rsp w:rsp osz end
push gs   0F A8   -           sys:PUSH_SEG imm:5 d64 r:rsp w:rsp osz
pop gs    0F A9   -           sys:POP_SEG imm:5 d64 r:rsp w:rsp osz end
daa       27      -           sys:DAA daa no64 r:rax w:rax
das       2F      -           sys:DAS daa no64 r:rax w:rax
aaa       37      -           sys:AAA aaa no64 r:rax w:rax
aas       3F      -           sys:AAS aaa no64 r:rax w:rax
inc       40+r    +Zv         short32 inc no64
dec       48+r    +Zv         short32 inc no64
push      50+r    Zv          push d64 r:rsp w:rsp
pop       58+r    =Zv         pop d64 r:rsp w:rsp
pusha     60      -           sys:PUSHA no64 osz r:rax,rcx,rdx,rbx,rsp,rbp,rsi,rdi w:rsp
popa      61      -           sys:POPA no64 osz r:rsp w:rax,rcx,rdx,rbx,rsp,rbp,rsi,rdi
bound     62 /r   Gv,Ma       sys:BOUND no64
arpl      63 /r   +Ew,Gw      sys:ARPL zf no64
movsxd    63 /r   =Gv,Rd/Mz   only64
push      68      Iz          push d64 r:rsp w:rsp
imul      69 /r   =Gv,Ev,Iz   mul
push      6A      Ib          push d64 r:rsp w:rsp osz
imul      6B /r   =Gv,Ev,Ib   mul
NFx_ins   6C      =Yb,dx      sys:INS r:rdi w:rdi byteop
NFx_ins   6D      =Yz,dx      sys:INS r:rdi w:rdi z osz
NFx_outs  6E      dx,Xb       sys:OUTS r:rsi w:rsi byteop
NFx_outs  6F      dx,Xz       sys:OUTS r:rsi w:rsi z osz
jCC       70+cc   Jb          jcc f64
test      84 /r   Eb,Gb       logic
test      85 /r   Ev,Gv       logic
xchg      86 /r   +Eb,+Gb     lock
xchg      87 /r   +Ev,+Gv     lock
mov       88 /r   =Eb,Gb
mov       89 /r   =Ev,Gv
mov       8A /r   =Gb,Eb
mov       8B /r   =Gv,Ev
mov       8C /012345  =Rv/Mw,Sw  sys:MOV_FROM_SEG
lea       8D /r   =Gv,&M      lea
mov       8E /02345  Sw,Ew    sys:MOV_TO_SEG end
pop       8F /0   =Ev         pop d64 r:rsp w:rsp
nop       NFx 90  -           nop B0
nop       F2 90   -           nop B0
pause     F3 90   -           nop
xchg      90+r    +Zv,+rax
cwde      98      -           r:rax w:rax osz
cdq       99      -           r:rax w:rdx osz
callf     9A      Ap          sys:CALL_FAR no64 r:rsp w:rsp osz
fwait     9B      -           x87
pushf     9C      -           pushpopf:PUSHF pushf d64 r:rsp w:rsp osz
popf      9D      -           pushpopf:POPF popf d64 r:rsp w:rsp end osz
sahf      9E      -           sahf r:rax
lahf      9F      -           lahf r:rax w:rax
mov       A0      =al,Ob      moffs
mov       A1      =rax,Ov     moffs
mov       A2      =Ob,al      moffs byteop
mov       A3      =Ov,rax     moffs
NFx_movs  A4      =Yb,Xb      string r:rsi,rdi w:rsi,rdi byteop
NFx_movs  A5      =Yv,Xv      string r:rsi,rdi w:rsi,rdi
NFx_cmps  A6      Xb,Yb       string arith r:rsi,rdi w:rsi,rdi byteop
NFx_cmps  A7      Xv,Yv       string arith r:rsi,rdi w:rsi,rdi
test      A8      al,Ib       logic
test      A9      rax,Iz      logic
NFx_stos  AA      =Yb,al      string r:rdi w:rdi byteop
NFx_stos  AB      =Yv,rax     string r:rdi w:rdi
NFx_lods  AC      =al,Xb      string r:rsi w:rsi byteop
NFx_lods  AD      =rax,Xv     string r:rsi w:rsi
NFx_scas  AE      al,Yb       string arith r:rdi w:rdi byteop
NFx_scas  AF      rax,Yv      string arith r:rdi w:rdi
mov       B0+r    =Zb,Ib
mov       B8+r    =Zv,Iv
ret       C2      Kw          ret f64 r:rsp w:rsp
ret       C3      -           ret f64 r:rsp w:rsp
les       C4 /r   =Gv,Mp      sys:LOAD_FAR imm:0 no64 end
lds       C5 /r   =Gv,Mp      sys:LOAD_FAR imm:3 no64 end
mov       C6 /0   =Eb,Ib
mov       C7 /0   =Ev,Iz
enter     C8      Kwb         enter:ENTER d64 r:rsp,rbp w:rsp,rbp osz
leave     C9      -           leave d64 r:rbp,rsp w:rbp,rsp osz
retf      CA      Kw          sys:RETF r:rsp w:rsp osz
retf      CB      -           sys:RETF r:rsp w:rsp osz
int3      CC      -           sys:INT3 pushf
int       CD      Kb          sys:INT pushf
into      CE      -           sys:INTO pushf no64
iret      CF      -           sys:IRET popf r:rsp w:rsp osz
aam       D4      Kb          sys:AAM aam no64 r:rax w:rax
aad       D5      Kb          sys:AAD aam no64 r:rax w:rax
salc      D6      -           sys:SALC if_c no64 w:rax r:rax
xlat      D7      =al         xlat r:rbx byteop
loopne    E0      Jb          loop f64 if_z r:rcx w:rcx
loope     E1      Jb          loop f64 if_z r:rcx w:rcx
loop      E2      Jb          loop f64 r:rcx w:rcx
jcxz      E3      Jb          loop f64 r:rcx
in        E4      =al,Kb      sys:IN
in        E5      =zax,Kb     sys:IN z osz
out       E6      Kb,al       sys:OUT byteop
out       E7      Kb,zax      sys:OUT z osz
call      E8      Jz          call f64 r:rsp w:rsp
jmp       E9      Jz          jmp f64
jmpf      EA      Ap          sys:JMP_FAR no64 osz
jmp       EB      Jb          jmp f64
in        EC      =al,dx      sys:IN
in        ED      =zax,dx     sys:IN z osz
out       EE      dx,al       sys:OUT byteop
out       EF      dx,zax      sys:OUT z osz
int1      F1      -           sys:INT1 pushf
hlt       F4      -           sys:HLT
cmc       F5      -           cmc
test      F6 /01  Eb,Ib       logic
test      F7 /01  Ev,Iz       logic
not       F6 /2   +Eb         lock
not       F7 /2   +Ev         lock
neg       F6 /3   +Eb         arith lock
neg       F7 /3   +Ev         arith lock
mul       F6 /4   Eb          mul r:rax w:rax
mul       F7 /4   Ev          mul r:rax w:rax,rdx
imul      F6 /5   Eb          mul r:rax w:rax
imul      F7 /5   Ev          mul r:rax w:rax,rdx
div       F6 /6   Eb          div r:rax w:rax
div       F7 /6   Ev          div r:rax,rdx w:rax,rdx
idiv      F6 /7   Eb          div r:rax w:rax
idiv      F7 /7   Ev          div r:rax,rdx w:rax,rdx
clc       F8      -           cf
stc       F9      -           cf
cli       FA      -           sticli:CLI
sti       FB      -           sticli:STI end
cld       FC      -           flagop:CLD end
std       FD      -           flagop:STD end
inc       FE /0   +Eb         inc lock
dec       FE /1   +Eb         inc lock
inc       FF /0   +Ev         inc lock
dec       FF /1   +Ev         inc lock
call      FF /2   Ev          calli f64 r:rsp w:rsp
callf     FF /3   Mp          sys:CALL_FAR_MEM r:rsp w:rsp
jmp       FF /4   Ev          jmpi f64
jmpf      FF /5   Mp          sys:JMP_FAR_MEM
push      FF /6   Ev          push d64 r:rsp w:rsp
"""

_SECOND = """
sldt      0F 00 /0   =Rv/Mw     sys:SLDT
str       0F 00 /1   =Rv/Mw     sys:STR
lldt      0F 00 /2   Ew         sys:LLDT
ltr       0F 00 /3   Ew         sys:LTR
verr      0F 00 /4   Ew         sys:VERR zf
verw      0F 00 /5   Ew         sys:VERW zf
sgdt      0F 01 /0   =Ms        sys:SGDT n
sidt      0F 01 /1   =Ms        sys:SIDT n
lgdt      0F 01 /2   Ms         sys:LGDT n
lidt      0F 01 /3   Ms         sys:LIDT n
smsw      0F 01 /4   =Rv/Mw     sys:SMSW
lmsw      0F 01 /6   Ew         sys:LMSW end
invlpg    0F 01 /7   &M         sys:INVLPG end
vmcall    0F 01 C1     -        sys:VMCALL r:rax,rbx,rcx,rdx,rsi w:rax
monitor   NP 0F 01 C8  -        sys:MONITOR r:rax,rcx,rdx
mwait     NP 0F 01 C9  -        sys:MWAIT r:rax,rcx
clac      NP 0F 01 CA  -        sys:CLAC end
stac      NP 0F 01 CB  -        sys:STAC end
xgetbv    NP 0F 01 D0  -        sys:XGETBV xsave r:rcx w:rax,rdx
xsetbv    NP 0F 01 D1  -        sys:XSETBV xsave r:rax,rcx,rdx end
vmmcall   0F 01 D9     -        sys:VMMCALL r:rax,rbx,rcx,rdx,rsi w:rax
serialize  NP 0F 01 E8  -       nop
swapgs    0F 01 F8     -        sys:SWAPGS only64
rdtscp    0F 01 F9     -        rdtsc:RDTSCP w:rax,rcx,rdx
lar       0F 02 /r   +Gv,Ew     sys:LAR zf
lsl       0F 03 /r   +Gv,Ew     sys:LSL zf
syscall   0F 05      -          sys:SYSCALL pushf w:rcx end
clts      0F 06      -          sys:CLTS end
sysret    0F 07      -          sys:SYSRET popf r:rcx end osz
invd      0F 08      -          sys:INVD
wbinvd    0F 09      -          sys:WBINVD
ud2       0F 0B      -          ud
prefetchw  0F 0D /r  &Ev         nop
prefetch  0F 18 /r   &Ev        nop
nop       0F 19 /r   &Ev        nop
nop       0F 1A /r   &Ev        nop
nop       0F 1B /r   &Ev        nop
cldemote  0F 1C /r   &Ev        nop
nop       0F 1D /r   &Ev        nop
nop       0F 1E /r   &Ev        nop
endbr64   F3 0F 1E FA  -        nop
endbr32   F3 0F 1E FB  -        nop
nop       0F 1F /r   &Ev        nop
mov       0F 20 /0234   =Rn,Cn  sys:MOV_FROM_CR n
mov       0F 21 /r   =Rn,Dn     sys:MOV_FROM_DR n
mov       0F 22 /0234   Cn,Rn   sys:MOV_TO_CR n end
mov       0F 23 /r   Dn,Rn      sys:MOV_TO_DR n end
wrmsr     0F 30      -          sys:WRMSR r:rax,rcx,rdx end
rdtsc     0F 31      -          rdtsc:RDTSC w:rax,rdx
rdmsr     0F 32      -          sys:RDMSR r:rcx w:rax,rdx
rdpmc     0F 33      -          sys:RDPMC r:rcx w:rax,rdx
sysenter  0F 34      -          sys:SYSENTER end
sysexit   0F 35      -          sys:SYSEXIT r:rcx,rdx end osz
cmovCC    0F 40+cc /r  +Gv,Ev   -
jCC       0F 80+cc   Jz         jcc f64
setCC     0F 90+cc /r  =Eb      -
cpuid     0F A2      -          sys:CPUID r:rax,rcx w:rax,rbx,rcx,rdx
bt        0F A3 /rr  Ev,Gv      bittest
bt        0F A3 /rm  Ev,Gv      bittest bt
bts       0F AB /rr  +Ev,Gv     bittest
bts       0F AB /rm  +Ev,Gv     bittest bt lock
btr       0F B3 /rr  +Ev,Gv     bittest
btr       0F B3 /rm  +Ev,Gv     bittest bt lock
btc       0F BB /rr  +Ev,Gv     bittest
btc       0F BB /rm  +Ev,Gv     bittest bt lock
bt        0F BA /4   Ev,Kb      bittest
bts       0F BA /5   +Ev,Kb     bittest lock
btr       0F BA /6   +Ev,Kb     bittest lock
btc       0F BA /7   +Ev,Kb     bittest lock
shld      0F A4 /r   +Ev,Gv,Kb  shift
shld      0F A5 /r   +Ev,Gv,cl  shift
shrd      0F AC /r   +Ev,Gv,Kb  shift
shrd      0F AD /r   +Ev,Gv,cl  shift
fxsave    NP 0F AE /0   =Mi     sys:FXSAVE
fxrstor   NP 0F AE /1   Mi      sys:FXRSTOR
ldmxcsr   NP 0F AE /2   Md      sse vector +avx128
stmxcsr   NP 0F AE /3   =Md     sse vector +avx128
xsave     NP 0F AE /4   +M?     sys:XSAVE xsave r:rax,rdx
xrstor    NP 0F AE /5   M?      sys:XRSTOR xsave r:rax,rdx
xsaveopt  NP 0F AE /6   +M?     sys:XSAVEOPT xsave r:rax,rdx
clflush   NP 0F AE /7   &Mb     nop
clwb      66 0F AE /6   &Mb     nop clwb
clflushopt  66 0F AE /7  &Mb    nop clflushopt
rdfsbase  F3 0F AE /0   =Ry     sys:RDFSBASE fsgsbase only64
rdgsbase  F3 0F AE /1   =Ry     sys:RDGSBASE fsgsbase only64
wrfsbase  F3 0F AE /2   Ry      sys:WRFSBASE fsgsbase only64
wrgsbase  F3 0F AE /3   Ry      sys:WRGSBASE fsgsbase only64
lfence    NP 0F AE /5r  -       fence
mfence    NP 0F AE /6r  -       fence
sfence    NP 0F AE /7r  -       fence
imul      0F AF /r   +Gv,Ev     mul
cmpxchg   0F B0 /r   +Eb,Gb     arith lock r:rax w:rax
cmpxchg   0F B1 /r   +Ev,Gv     arith lock r:rax w:rax
lss       0F B2 /r   =Gv,Mp     sys:LOAD_FAR imm:2 end
lfs       0F B4 /r   =Gv,Mp     sys:LOAD_FAR imm:4 end
lgs       0F B5 /r   =Gv,Mp     sys:LOAD_FAR imm:5 end
movzx     0F B6 /r   =Gv,Eb
movzx     0F B7 /r   =Gv,Ew
movsx     0F BE /r   =Gv,Eb
movsx     0F BF /r   =Gv,Ew
popcnt    F3 0F B8 /r  =Gv,Ev   popcnt compare
ud1       0F B9 /r   Gv,Ev      ud
bsf       0F BC /r   +Gv,Ev     bitscan undef
tzcnt     F3 0F BC /r  =Gv,Ev   bmi1 zerocount
bsr       0F BD /r   +Gv,Ev     bitscan undef
lzcnt     F3 0F BD /r  =Gv,Ev   lzcnt zerocount
xadd      0F C0 /r   +Eb,+Gb    arith lock
xadd      0F C1 /r   +Ev,+Gv    arith lock
movnti    NP 0F C3 /r  =My,Gy
cmpxchg8b   0F C7 /1   +Mq      zf lock W0 y r:rax,rbx,rcx,rdx w:rax,rdx
cmpxchg16b  0F C7 /1   +Mo      zf lock W1 y cx16 aligned r:rax,rbx,rcx,rdx w:rax,rdx
xrstors   NP 0F C7 /3   M?      sys:XRSTORS xsave r:rax,rdx
xsavec    NP 0F C7 /4   +M?     sys:XSAVEC xsave r:rax,rdx
xsaves    NP 0F C7 /5   +M?     sys:XSAVES xsave r:rax,rdx
rdrand    NFx 0F C7 /6  =Rv     rdrand compare
rdseed    NFx 0F C7 /7  =Rv     rdseed compare
rdpid     F3 0F C7 /7   =Rn     sys:RDPID rdpid n
bswap     0F C8+r    +Zv
ud0       0F FF /r   Gv,Ev      ud
invpcid   66 0F 38 82 /r  Gn,Mo  sys:INVPCID n end
movbe     NFx 0F 38 F0 /r  =Gv,Mv  movbe
movbe     NFx 0F 38 F1 /r  =Mv,Gv  movbe
crc32     F2 0F 38 F0 /r  +Gy,Eb  sse42
crc32     F2 0F 38 F1 /r  +Gy,Ev  sse42
adcx      66 0F 38 F6 /r  +Gy,Ey  adx cmc
adox      F3 0F 38 F6 /r  +Gy,Ey  adx adox
andn      VEX.128.NP.0F38 F2 /r  =Gy,By,Ey  bmi1 bmi
blsr      VEX.128.NP.0F38 F3 /1  =By,Ey     bmi1 bmi
blsmsk    VEX.128.NP.0F38 F3 /2  =By,Ey     bmi1 bmi
blsi      VEX.128.NP.0F38 F3 /3  =By,Ey     bmi1 bmi
bzhi      VEX.128.NP.0F38 F5 /r  =Gy,Ey,By  bmi2 bmi
pext      VEX.128.F3.0F38 F5 /r  =Gy,By,Ey  bmi2
pdep      VEX.128.F2.0F38 F5 /r  =Gy,By,Ey  bmi2
mulx      VEX.128.F2.0F38 F6 /r  =Gy,=By,Ey  bmi2 r:rdx
bextr     VEX.128.NP.0F38 F7 /r  =Gy,Ey,By  bmi1 bextr
shlx      VEX.128.66.0F38 F7 /r  =Gy,Ey,By  bmi2
sarx      VEX.128.F3.0F38 F7 /r  =Gy,Ey,By  bmi2
shrx      VEX.128.F2.0F38 F7 /r  =Gy,Ey,By  bmi2
rorx      VEX.128.F2.0F3A F0 /r  =Gy,Ey,Kb  bmi2
"""


def _strings(text: str) -> str:
    """``NFx_movs`` stands for two rows: once, and repeated (which counts rcx and may run no times)."""
    lines = []
    for line in text.splitlines():
        if line.startswith("NFx_"):
            once = line[4:].replace("  ", "  NFx ", 1).replace("NFx  ", "NFx ", 1)
            lines.append(once)
            lines.append(once.replace("NFx", "REP", 1).replace(" arith ", " repeated ") + " r:rcx w:rcx")
        else:
            lines.append(line)
    return "\n".join(lines)


TEXT = _ALU + _SHIFTS + _strings(_BASE) + _SECOND
