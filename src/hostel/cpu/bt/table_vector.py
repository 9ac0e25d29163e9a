"""Rows of the instruction table: MMX, SSE to SSE4.2, AVX, AVX2, FMA, F16C, AES, PCLMULQDQ, SHA, GFNI.

table.py explains the columns; an SSE row that says ``+avx...`` stands for its VEX twins as well.
"""


def _integer(text: str, mmx: str = "Pq,Qq") -> str:
    """``60 punpcklbw``: the MMX form, the SSE form and their AVX/AVX2 twins."""
    words = text.split()
    return "".join(
        f"{name}  NP 0F {op} /r  +{mmx}  mmx\n{name}  66 0F {op} /r  +Vo,Wo  sse +avx2\n"
        for op, name in zip(words[::2], words[1::2], strict=True)
    )


def _counts(text: str) -> str:
    """Shifts by a register or memory: the count is 128 bits wide in every form."""
    words = text.split()
    return "".join(
        f"{name}  NP 0F {op} /r  +Pq,Qq  mmx\n{name}  66 0F {op} /r  +Vo,Wo  sse +avx2 count128\n"
        for op, name in zip(words[::2], words[1::2], strict=True)
    )


def _float(text: str) -> str:
    """``58 add``: ps, pd, ss and sd."""
    words = text.split()
    return "".join(
        f"{n}ps  NP 0F {op} /r  +Vo,Wo  sse +avx\n{n}pd  66 0F {op} /r  +Vo,Wo  sse +avx\n"
        f"{n}ss  F3 0F {op} /r  +Vo,Wd  sse +avxs\n{n}sd  F2 0F {op} /r  +Vo,Wq  sse +avxs\n"
        for op, n in zip(words[::2], words[1::2], strict=True)
    )


def _three(text: str, feature: str, first: str = "66 0F 38") -> str:
    """SSE-only integer operations with a second map."""
    words = text.split()
    return "".join(
        f"{name}  {first} {op} /r  +Vo,Wo  {feature} +avx2\n"
        for op, name in zip(words[::2], words[1::2], strict=True)
    )


def _ssse3(text: str, destination: str = "+") -> str:
    words = text.split()
    return "".join(
        f"{name}  NP 0F 38 {op} /r  {destination}Pq,Qq  ssse3\n"
        f"{name}  66 0F 38 {op} /r  {destination}Vo,Wo  ssse3 +avx2\n"
        for op, name in zip(words[::2], words[1::2], strict=True)
    )


def _fma() -> str:
    rows = []
    packed = {6: "fmaddsub", 7: "fmsubadd", 8: "fmadd", 0xA: "fmsub", 0xC: "fnmadd", 0xE: "fnmsub"}
    for high, order in ((0x90, "132"), (0xA0, "213"), (0xB0, "231")):
        for low, name in packed.items():
            for w, letter, size in ((0, "s", "d"), (1, "d", "q")):
                rows.append(f"v{name}{order}p{letter}  VEX.66.0F38.W{w} {high + low:02X} /r  +Vx,Hx,Wx  fma")
                if low >= 8:
                    code = high + low + 1
                    rows.append(f"v{name}{order}s{letter}  VEX.66.0F38.W{w} {code:02X} /r  +Vo,Ho,W{size}  fma")
    return "\n".join(rows)


_MMX_SSE = (
    _integer("60 punpcklbw 61 punpcklwd 62 punpckldq", "Pq,Qd")
    + _integer(
        "63 packsswb 64 pcmpgtb 65 pcmpgtw 66 pcmpgtd 67 packuswb 68 punpckhbw 69 punpckhwd 6A punpckhdq 6B packssdw "
        "74 pcmpeqb 75 pcmpeqw 76 pcmpeqd D4 paddq D5 pmullw D8 psubusb D9 psubusw DA pminub DB pand DC paddusb "
        "DD paddusw DE pmaxub DF pandn E0 pavgb E3 pavgw E4 pmulhuw E5 pmulhw E8 psubsb E9 psubsw EA pminsw EB por "
        "EC paddsb ED paddsw EE pmaxsw EF pxor F4 pmuludq F5 pmaddwd F6 psadbw F8 psubb F9 psubw FA psubd FB psubq "
        "FC paddb FD paddw FE paddd"
    )
    + _counts("D1 psrlw D2 psrld D3 psrlq E1 psraw E2 psrad F1 psllw F2 pslld F3 psllq")
    + _ssse3(
        "00 pshufb 01 phaddw 02 phaddd 03 phaddsw 04 pmaddubsw 05 phsubw 06 phsubd 07 phsubsw 08 psignb 09 psignw "
        "0A psignd 0B pmulhrsw"
    )
    + _ssse3("1C pabsb 1D pabsw 1E pabsd", "=")
    + _float("58 add 59 mul 5C sub 5D min 5E div 5F max")
    + _three(
        "28 pmuldq 29 pcmpeqq 2B packusdw 38 pminsb 39 pminsd 3A pminuw 3B pminud 3C pmaxsb 3D pmaxsd 3E pmaxuw "
        "3F pmaxud 40 pmulld",
        "sse41",
    )
    + _three("37 pcmpgtq", "sse42")
)

_SSE = """
movups      NP 0F 10 /r    =Vo,Wo      sse +avx unaligned
movupd      66 0F 10 /r    =Vo,Wo      sse +avx unaligned
movss       F3 0F 10 /r    =Vo,Md      sse +avxs
movss       F3 0F 10 /r    +Vo,Uo      sse +avxs
movsd       F2 0F 10 /r    =Vo,Mq      sse +avxs
movsd       F2 0F 10 /r    +Vo,Uo      sse +avxs
movups      NP 0F 11 /r    =Wo,Vo      sse +avx unaligned
movupd      66 0F 11 /r    =Wo,Vo      sse +avx unaligned
movss       F3 0F 11 /r    =Md,Vo      sse +avxs
movss       F3 0F 11 /r    +Uo,Vo      sse +avxs
movsd       F2 0F 11 /r    =Mq,Vo      sse +avxs
movsd       F2 0F 11 /r    +Uo,Vo      sse +avxs
movlps      NP 0F 12 /r    +Vo,Mq      sse +avx128
movhlps     NP 0F 12 /r    +Vo,Uo      sse +avx128
movlpd      66 0F 12 /r    +Vo,Mq      sse +avx128
movsldup    F3 0F 12 /r    =Vo,Wo      sse3 +avx
movddup     F2 0F 12 /r    =Vo,Wq      sse3 +avx128
vmovddup    VEX.256.F2.0F 12 /r  =Vx,Wx  avx
movlps      NP 0F 13 /r    =Mq,Vo      sse +avx128
movlpd      66 0F 13 /r    =Mq,Vo      sse +avx128
unpcklps    NP 0F 14 /r    +Vo,Wo      sse +avx
unpcklpd    66 0F 14 /r    +Vo,Wo      sse +avx
unpckhps    NP 0F 15 /r    +Vo,Wo      sse +avx
unpckhpd    66 0F 15 /r    +Vo,Wo      sse +avx
movhps      NP 0F 16 /r    +Vo,Mq      sse +avx128
movlhps     NP 0F 16 /r    +Vo,Uo      sse +avx128
movhpd      66 0F 16 /r    +Vo,Mq      sse +avx128
movshdup    F3 0F 16 /r    =Vo,Wo      sse3 +avx
movhps      NP 0F 17 /r    =Mq,Vo      sse +avx128
movhpd      66 0F 17 /r    =Mq,Vo      sse +avx128
movaps      NP 0F 28 /r    =Vo,Wo      sse +avx aligned
movapd      66 0F 28 /r    =Vo,Wo      sse +avx aligned
movaps      NP 0F 29 /r    =Wo,Vo      sse +avx aligned
movapd      66 0F 29 /r    =Wo,Vo      sse +avx aligned
cvtpi2ps    NP 0F 2A /r    +Vo,Qq      sse
cvtpi2pd    66 0F 2A /r    =Vo,Qq      sse
cvtsi2ss    F3 0F 2A /r    +Vo,Ey      sse +avxs
cvtsi2sd    F2 0F 2A /r    +Vo,Ey      sse +avxs
movntps     NP 0F 2B /r    =Mo,Vo      sse +avx aligned
movntpd     66 0F 2B /r    =Mo,Vo      sse +avx aligned
cvttps2pi   NP 0F 2C /r    =Pq,Wq      sse
cvttpd2pi   66 0F 2C /r    =Pq,Wo      sse
cvttss2si   F3 0F 2C /r    =Gy,Wd      sse +avxs
cvttsd2si   F2 0F 2C /r    =Gy,Wq      sse +avxs
cvtps2pi    NP 0F 2D /r    =Pq,Wq      sse
cvtpd2pi    66 0F 2D /r    =Pq,Wo      sse
cvtss2si    F3 0F 2D /r    =Gy,Wd      sse +avxs
cvtsd2si    F2 0F 2D /r    =Gy,Wq      sse +avxs
ucomiss     NP 0F 2E /r    Vo,Wd       sse +avxs compare
ucomisd     66 0F 2E /r    Vo,Wq       sse +avxs compare
comiss      NP 0F 2F /r    Vo,Wd       sse +avxs compare
comisd      66 0F 2F /r    Vo,Wq       sse +avxs compare
movmskps    NP 0F 50 /r    =Gd,Uo      sse +avx
movmskpd    66 0F 50 /r    =Gd,Uo      sse +avx
sqrtps      NP 0F 51 /r    =Vo,Wo      sse +avx
sqrtpd      66 0F 51 /r    =Vo,Wo      sse +avx
sqrtss      F3 0F 51 /r    +Vo,Wd      sse +avxs
sqrtsd      F2 0F 51 /r    +Vo,Wq      sse +avxs
rsqrtps     NP 0F 52 /r    =Vo,Wo      sse +avx
rsqrtss     F3 0F 52 /r    +Vo,Wd      sse +avxs
rcpps       NP 0F 53 /r    =Vo,Wo      sse +avx
rcpss       F3 0F 53 /r    +Vo,Wd      sse +avxs
andps       NP 0F 54 /r    +Vo,Wo      sse +avx
andpd       66 0F 54 /r    +Vo,Wo      sse +avx
andnps      NP 0F 55 /r    +Vo,Wo      sse +avx
andnpd      66 0F 55 /r    +Vo,Wo      sse +avx
orps        NP 0F 56 /r    +Vo,Wo      sse +avx
orpd        66 0F 56 /r    +Vo,Wo      sse +avx
xorps       NP 0F 57 /r    +Vo,Wo      sse +avx
xorpd       66 0F 57 /r    +Vo,Wo      sse +avx
cvtps2pd    NP 0F 5A /r    =Vo,Wq      sse +avx
cvtpd2ps    66 0F 5A /r    =Vo,Wo      sse
vcvtpd2ps   VEX.66.0F 5A /r  =Vo,Wx    avx
cvtss2sd    F3 0F 5A /r    +Vo,Wd      sse +avxs
cvtsd2ss    F2 0F 5A /r    +Vo,Wq      sse +avxs
cvtdq2ps    NP 0F 5B /r    =Vo,Wo      sse +avx
cvtps2dq    66 0F 5B /r    =Vo,Wo      sse +avx
cvttps2dq   F3 0F 5B /r    =Vo,Wo      sse +avx
punpcklqdq  66 0F 6C /r    +Vo,Wo      sse +avx2
punpckhqdq  66 0F 6D /r    +Vo,Wo      sse +avx2
movd        NP 0F 6E /r    =Pq,Ey      mmx
movd        66 0F 6E /r    =Vo,Ey      sse +avx128
movq        NP 0F 6F /r    =Pq,Qq      mmx
movdqa      66 0F 6F /r    =Vo,Wo      sse +avx aligned
movdqu      F3 0F 6F /r    =Vo,Wo      sse +avx unaligned
pshufw      NP 0F 70 /r    =Pq,Qq,Kb   mmx
pshufd      66 0F 70 /r    =Vo,Wo,Kb   sse +avx2
pshufhw     F3 0F 70 /r    =Vo,Wo,Kb   sse +avx2
pshuflw     F2 0F 70 /r    =Vo,Wo,Kb   sse +avx2
psrlw       NP 0F 71 /2    +Nq,Kb      mmx
psrlw       66 0F 71 /2    +Uo,Kb      sse +avx2
psraw       NP 0F 71 /4    +Nq,Kb      mmx
psraw       66 0F 71 /4    +Uo,Kb      sse +avx2
psllw       NP 0F 71 /6    +Nq,Kb      mmx
psllw       66 0F 71 /6    +Uo,Kb      sse +avx2
psrld       NP 0F 72 /2    +Nq,Kb      mmx
psrld       66 0F 72 /2    +Uo,Kb      sse +avx2
psrad       NP 0F 72 /4    +Nq,Kb      mmx
psrad       66 0F 72 /4    +Uo,Kb      sse +avx2
pslld       NP 0F 72 /6    +Nq,Kb      mmx
pslld       66 0F 72 /6    +Uo,Kb      sse +avx2
psrlq       NP 0F 73 /2    +Nq,Kb      mmx
psrlq       66 0F 73 /2    +Uo,Kb      sse +avx2
psrldq      66 0F 73 /3    +Uo,Kb      sse +avx2
psllq       NP 0F 73 /6    +Nq,Kb      mmx
psllq       66 0F 73 /6    +Uo,Kb      sse +avx2
pslldq      66 0F 73 /7    +Uo,Kb      sse +avx2
emms        NP 0F 77       -           mmx
vzeroupper  VEX.128.NP.0F 77  -        avx vector
vzeroall    VEX.256.NP.0F 77  -        avx vector
haddpd      66 0F 7C /r    +Vo,Wo      sse3 +avx
haddps      F2 0F 7C /r    +Vo,Wo      sse3 +avx
hsubpd      66 0F 7D /r    +Vo,Wo      sse3 +avx
hsubps      F2 0F 7D /r    +Vo,Wo      sse3 +avx
movd        NP 0F 7E /r    =Ey,Pq      mmx
movd        66 0F 7E /r    =Ey,Vo      sse +avx128
movq        F3 0F 7E /r    =Vo,Wq      sse +avx128
movq        NP 0F 7F /r    =Qq,Pq      mmx
movdqa      66 0F 7F /r    =Wo,Vo      sse +avx aligned
movdqu      F3 0F 7F /r    =Wo,Vo      sse +avx unaligned
cmpps       NP 0F C2 /r    +Vo,Wo,Kb   sse +avx
cmppd       66 0F C2 /r    +Vo,Wo,Kb   sse +avx
cmpss       F3 0F C2 /r    +Vo,Wd,Kb   sse +avxs
cmpsd       F2 0F C2 /r    +Vo,Wq,Kb   sse +avxs
pinsrw      NP 0F C4 /r    +Pq,Rd/Mw,Kb  mmx
pinsrw      66 0F C4 /r    +Vo,Rd/Mw,Kb  sse +avx128
pextrw      NP 0F C5 /r    =Gd,Nq,Kb   mmx
pextrw      66 0F C5 /r    =Gd,Uo,Kb   sse +avx128
shufps      NP 0F C6 /r    +Vo,Wo,Kb   sse +avx
shufpd      66 0F C6 /r    +Vo,Wo,Kb   sse +avx
addsubpd    66 0F D0 /r    +Vo,Wo      sse3 +avx
addsubps    F2 0F D0 /r    +Vo,Wo      sse3 +avx
movq        66 0F D6 /r    =Wq,Vo      sse +avx128
movq2dq     F3 0F D6 /r    =Vo,Nq      sse
movdq2q     F2 0F D6 /r    =Pq,Uo      sse
pmovmskb    NP 0F D7 /r    =Gd,Nq      mmx
pmovmskb    66 0F D7 /r    =Gd,Uo      sse +avx2
cvttpd2dq   66 0F E6 /r    =Vo,Wo      sse
vcvttpd2dq  VEX.66.0F E6 /r  =Vo,Wx    avx
cvtdq2pd    F3 0F E6 /r    =Vo,Wq      sse +avx
cvtpd2dq    F2 0F E6 /r    =Vo,Wo      sse
vcvtpd2dq   VEX.F2.0F E6 /r  =Vo,Wx    avx
movntq      NP 0F E7 /r    =Mq,Pq      mmx
movntdq     66 0F E7 /r    =Mo,Vo      sse +avx aligned
lddqu       F2 0F F0 /r    =Vo,Mo      sse3 +avx unaligned
maskmovq    NP 0F F7 /r    Pq,Nq       mmx gather:MASKMOVQ r:rdi
maskmovdqu  66 0F F7 /r    Vo,Uo       sse +avx128 gather:MASKMOVDQU r:rdi
pblendvb    66 0F 38 10 /r  +Vo,Wo,xmm0  sse41
blendvps    66 0F 38 14 /r  +Vo,Wo,xmm0  sse41
blendvpd    66 0F 38 15 /r  +Vo,Wo,xmm0  sse41
ptest       66 0F 38 17 /r  Vo,Wo      sse41 +avx compare
pmovsxbw    66 0F 38 20 /r  =Vo,Wq     sse41 +avx2
pmovsxbd    66 0F 38 21 /r  =Vo,Wd     sse41 +avx2
pmovsxbq    66 0F 38 22 /r  =Vo,Ww     sse41 +avx2
pmovsxwd    66 0F 38 23 /r  =Vo,Wq     sse41 +avx2
pmovsxwq    66 0F 38 24 /r  =Vo,Wd     sse41 +avx2
pmovsxdq    66 0F 38 25 /r  =Vo,Wq     sse41 +avx2
movntdqa    66 0F 38 2A /r  =Vo,Mo     sse41 +avx2 aligned
pmovzxbw    66 0F 38 30 /r  =Vo,Wq     sse41 +avx2
pmovzxbd    66 0F 38 31 /r  =Vo,Wd     sse41 +avx2
pmovzxbq    66 0F 38 32 /r  =Vo,Ww     sse41 +avx2
pmovzxwd    66 0F 38 33 /r  =Vo,Wq     sse41 +avx2
pmovzxwq    66 0F 38 34 /r  =Vo,Wd     sse41 +avx2
pmovzxdq    66 0F 38 35 /r  =Vo,Wq     sse41 +avx2
phminposuw  66 0F 38 41 /r  =Vo,Wo     sse41 +avx128
sha1nexte   NP 0F 38 C8 /r  +Vo,Wo     sha
sha1msg1    NP 0F 38 C9 /r  +Vo,Wo     sha
sha1msg2    NP 0F 38 CA /r  +Vo,Wo     sha
sha256rnds2  NP 0F 38 CB /r  +Vo,Wo,xmm0  sha
sha256msg1  NP 0F 38 CC /r  +Vo,Wo     sha
sha256msg2  NP 0F 38 CD /r  +Vo,Wo     sha
gf2p8mulb   66 0F 38 CF /r  +Vo,Wo     gfni +avx2 vw0
aesimc      66 0F 38 DB /r  =Vo,Wo     aes +avx128
aesenc      66 0F 38 DC /r  +Vo,Wo     aes +avx2
aesenclast  66 0F 38 DD /r  +Vo,Wo     aes +avx2
aesdec      66 0F 38 DE /r  +Vo,Wo     aes +avx2
aesdeclast  66 0F 38 DF /r  +Vo,Wo     aes +avx2
roundps     66 0F 3A 08 /r  =Vo,Wo,Kb  sse41 +avx
roundpd     66 0F 3A 09 /r  =Vo,Wo,Kb  sse41 +avx
roundss     66 0F 3A 0A /r  +Vo,Wd,Kb  sse41 +avxs
roundsd     66 0F 3A 0B /r  +Vo,Wq,Kb  sse41 +avxs
blendps     66 0F 3A 0C /r  +Vo,Wo,Kb  sse41 +avx
blendpd     66 0F 3A 0D /r  +Vo,Wo,Kb  sse41 +avx
pblendw     66 0F 3A 0E /r  +Vo,Wo,Kb  sse41 +avx2
palignr     NP 0F 3A 0F /r  +Pq,Qq,Kb  ssse3
palignr     66 0F 3A 0F /r  +Vo,Wo,Kb  ssse3 +avx2
pextrb      66 0F 3A 14 /r  =Rd/Mb,Vo,Kb  sse41 +avx128
pextrw      66 0F 3A 15 /r  =Rd/Mw,Vo,Kb  sse41 +avx128
pextrd      66 0F 3A 16 /r  =Ey,Vo,Kb  sse41 +avx128
extractps   66 0F 3A 17 /r  =Ed,Vo,Kb  sse41 +avx128
pinsrb      66 0F 3A 20 /r  +Vo,Rd/Mb,Kb  sse41 +avx128
insertps    66 0F 3A 21 /r  +Vo,Wd,Kb  sse41 +avx128
pinsrd      66 0F 3A 22 /r  +Vo,Ey,Kb  sse41 +avx128
dpps        66 0F 3A 40 /r  +Vo,Wo,Kb  sse41 +avx
dppd        66 0F 3A 41 /r  +Vo,Wo,Kb  sse41 +avx128
mpsadbw     66 0F 3A 42 /r  +Vo,Wo,Kb  sse41 +avx2
pclmulqdq   66 0F 3A 44 /r  +Vo,Wo,Kb  pclmul +avx2
pcmpestrm   66 0F 3A 60 /r  Vo,Wo,Kb   sse42 +avx128 unaligned compare y r:rax,rdx
pcmpestri   66 0F 3A 61 /r  Vo,Wo,Kb   sse42 +avx128 unaligned compare y r:rax,rdx w:rcx
pcmpistrm   66 0F 3A 62 /r  Vo,Wo,Kb   sse42 +avx128 unaligned compare
pcmpistri   66 0F 3A 63 /r  Vo,Wo,Kb   sse42 +avx128 unaligned compare w:rcx
sha1rnds4   NP 0F 3A CC /r  +Vo,Wo,Kb  sha
gf2p8affineqb     66 0F 3A CE /r  +Vo,Wo,Kb  gfni +avx2 vw1
gf2p8affineinvqb  66 0F 3A CF /r  +Vo,Wo,Kb  gfni +avx2 vw1
aeskeygenassist   66 0F 3A DF /r  =Vo,Wo,Kb  aes +avx128
"""

_AVX = """
vpermilps       VEX.66.0F38.W0 0C /r      =Vx,Hx,Wx     avx
vpermilpd       VEX.66.0F38.W0 0D /r      =Vx,Hx,Wx     avx
vtestps         VEX.66.0F38.W0 0E /r      Vx,Wx         avx compare
vtestpd         VEX.66.0F38.W0 0F /r      Vx,Wx         avx compare
vcvtph2ps       VEX.66.0F38.W0 13 /r      =Vx,Wh        f16c
vpermps         VEX.256.66.0F38.W0 16 /r  =Vx,Hx,Wx     avx2
vbroadcastss    VEX.66.0F38.W0 18 /r      =Vx,Md        avx
vbroadcastss    VEX.66.0F38.W0 18 /r      =Vx,Uo        avx2
vbroadcastsd    VEX.256.66.0F38.W0 19 /r  =Vx,Mq        avx
vbroadcastsd    VEX.256.66.0F38.W0 19 /r  =Vx,Uo        avx2
vbroadcastf128  VEX.256.66.0F38.W0 1A /r  =Vx,Mo        avx
vmaskmovps      VEX.66.0F38.W0 2C /r      =Vx,Hx,Mx     avx gather:VMASKMOV_LOAD_D
vmaskmovpd      VEX.66.0F38.W0 2D /r      =Vx,Hx,Mx     avx gather:VMASKMOV_LOAD_Q
vmaskmovps      VEX.66.0F38.W0 2E /r      =Mx,Hx,Vx     avx gather:VMASKMOV_STORE_D
vmaskmovpd      VEX.66.0F38.W0 2F /r      =Mx,Hx,Vx     avx gather:VMASKMOV_STORE_Q
vpermd          VEX.256.66.0F38.W0 36 /r  =Vx,Hx,Wx     avx2
vpsrlvd         VEX.66.0F38.W0 45 /r      =Vx,Hx,Wx     avx2
vpsrlvq         VEX.66.0F38.W1 45 /r      =Vx,Hx,Wx     avx2
vpsravd         VEX.66.0F38.W0 46 /r      =Vx,Hx,Wx     avx2
vpsllvd         VEX.66.0F38.W0 47 /r      =Vx,Hx,Wx     avx2
vpsllvq         VEX.66.0F38.W1 47 /r      =Vx,Hx,Wx     avx2
vpbroadcastd    VEX.66.0F38.W0 58 /r      =Vx,Wd        avx2
vpbroadcastq    VEX.66.0F38.W0 59 /r      =Vx,Wq        avx2
vbroadcasti128  VEX.256.66.0F38.W0 5A /r  =Vx,Mo        avx2
vpbroadcastb    VEX.66.0F38.W0 78 /r      =Vx,Wb        avx2
vpbroadcastw    VEX.66.0F38.W0 79 /r      =Vx,Ww        avx2
vpmaskmovd      VEX.66.0F38.W0 8C /r      =Vx,Hx,Mx     avx2 gather:VMASKMOV_LOAD_D
vpmaskmovq      VEX.66.0F38.W1 8C /r      =Vx,Hx,Mx     avx2 gather:VMASKMOV_LOAD_Q
vpmaskmovd      VEX.66.0F38.W0 8E /r      =Mx,Hx,Vx     avx2 gather:VMASKMOV_STORE_D
vpmaskmovq      VEX.66.0F38.W1 8E /r      =Mx,Hx,Vx     avx2 gather:VMASKMOV_STORE_Q
vpgatherdd      VEX.66.0F38.W0 90 /r      +Vx,Md,+Hx    avx2 gather:VPGATHERDD vsib
vpgatherdq      VEX.66.0F38.W1 90 /r      +Vx,Mq,+Hx    avx2 gather:VPGATHERDQ vsib
vpgatherqd      VEX.66.0F38.W0 91 /r      +Vo,Md,+Ho    avx2 gather:VPGATHERQD vsib
vpgatherqq      VEX.66.0F38.W1 91 /r      +Vx,Mq,+Hx    avx2 gather:VPGATHERQQ vsib
vgatherdps      VEX.66.0F38.W0 92 /r      +Vx,Md,+Hx    avx2 gather:VPGATHERDD vsib
vgatherdpd      VEX.66.0F38.W1 92 /r      +Vx,Mq,+Hx    avx2 gather:VPGATHERDQ vsib
vgatherqps      VEX.66.0F38.W0 93 /r      +Vo,Md,+Ho    avx2 gather:VPGATHERQD vsib
vgatherqpd      VEX.66.0F38.W1 93 /r      +Vx,Mq,+Hx    avx2 gather:VPGATHERQQ vsib
vpermq          VEX.256.66.0F3A.W1 00 /r  =Vx,Wx,Kb     avx2
vpermpd         VEX.256.66.0F3A.W1 01 /r  =Vx,Wx,Kb     avx2
vpblendd        VEX.66.0F3A.W0 02 /r      =Vx,Hx,Wx,Kb  avx2
vpermilps       VEX.66.0F3A.W0 04 /r      =Vx,Wx,Kb     avx
vpermilpd       VEX.66.0F3A.W0 05 /r      =Vx,Wx,Kb     avx
vperm2f128      VEX.256.66.0F3A.W0 06 /r  =Vx,Hx,Wx,Kb  avx
vinsertf128     VEX.256.66.0F3A.W0 18 /r  =Vx,Hx,Wo,Kb  avx
vextractf128    VEX.256.66.0F3A.W0 19 /r  =Wo,Vx,Kb     avx
vcvtps2ph       VEX.66.0F3A.W0 1D /r      =Wh,Vx,Kb     f16c
vinserti128     VEX.256.66.0F3A.W0 38 /r  =Vx,Hx,Wo,Kb  avx2
vextracti128    VEX.256.66.0F3A.W0 39 /r  =Wo,Vx,Kb     avx2
vperm2i128      VEX.256.66.0F3A.W0 46 /r  =Vx,Hx,Wx,Kb  avx2
vblendvps       VEX.66.0F3A.W0 4A /r      =Vx,Hx,Wx,Lx  avx
vblendvpd       VEX.66.0F3A.W0 4B /r      =Vx,Hx,Wx,Lx  avx
vpblendvb       VEX.128.66.0F3A.W0 4C /r  =Vx,Hx,Wx,Lx  avx
vpblendvb       VEX.256.66.0F3A.W0 4C /r  =Vx,Hx,Wx,Lx  avx2
"""

TEXT = _MMX_SSE + _SSE + _fma() + _AVX
