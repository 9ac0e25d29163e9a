"""Rows of the instruction table: the x87. table.py explains the columns.

Memory operands: d and q floats or integers of 4 and 8 bytes, w integers of 2, t ten bytes (extended real or BCD),
n and m the environment and the whole state. Forms behind ``alias`` are undocumented twins that all processors have.
"""

_ARITH = "fadd fmul fcom fcomp fsub fsubr fdiv fdivr".split()

_MEMORY = "".join(
    f"""
{name}  D8 /{i}m  Md  x87
{name}  DC /{i}m  Mq  x87
fi{name[1:]}  DA /{i}m  Md  x87
fi{name[1:]}  DE /{i}m  Mw  x87
{name}  D8 /{i}r  st0,Ti  x87
"""
    for i, name in enumerate(_ARITH)
)

_CONSTANTS = "\n".join(
    f"{name}  D9 {0xE0 + i:02X}  -  x87"
    for i, name in enumerate(
        "fchs fabs - - ftst fxam - - fld1 fldl2t fldl2e fldpi fldlg2 fldln2 fldz - "
        "f2xm1 fyl2x fptan fpatan fxtract fprem1 fdecstp fincstp fprem fyl2xp1 fsqrt fsincos frndint fscale "
        "fsin fcos".split()
    )
    if name != "-"
)

_REST = """
fld       D9 /0   Md         x87
fst       D9 /2   =Md        x87
fstp      D9 /3   =Md        x87
fldenv    D9 /4   Mn         x87
fldcw     D9 /5   Mw         x87
fnstenv   D9 /6   =Mn        x87 sys:FNSTENV
fnstcw    D9 /7   =Mw        x87
fld       D9 /0   Ti         x87
fxch      D9 /1   Ti         x87
fnop      D9 D0   -          x87
fstp      D9 /3   Ti         x87      # alias
fcmovb    DA /0   st0,Ti     x87 if_c
fcmove    DA /1   st0,Ti     x87 if_z
fcmovbe   DA /2   st0,Ti     x87 if_cz
fcmovu    DA /3   st0,Ti     x87 if_p
fucompp   DA E9   -          x87
fild      DB /0   Md         x87
fisttp    DB /1   =Md        x87 sse3
fist      DB /2   =Md        x87
fistp     DB /3   =Md        x87
fld       DB /5   Mt         x87
fstp      DB /7   =Mt        x87
fcmovnb   DB /0   st0,Ti     x87 if_c
fcmovne   DB /1   st0,Ti     x87 if_z
fcmovnbe  DB /2   st0,Ti     x87 if_cz
fcmovnu   DB /3   st0,Ti     x87 if_p
fneni     DB E0   -          x87
fndisi    DB E1   -          x87
fnclex    DB E2   -          x87
fninit    DB E3   -          x87
fnsetpm   DB E4   -          x87
fucomi    DB /5   st0,Ti     x87 fcomi
fcomi     DB /6   st0,Ti     x87 fcomi
fadd      DC /0   Ti,st0     x87
fmul      DC /1   Ti,st0     x87
fcom      DC /2   Ti         x87      # alias
fcomp     DC /3   Ti         x87      # alias
fsubr     DC /4   Ti,st0     x87
fsub      DC /5   Ti,st0     x87
fdivr     DC /6   Ti,st0     x87
fdiv      DC /7   Ti,st0     x87
fld       DD /0   Mq         x87
fisttp    DD /1   =Mq        x87 sse3
fst       DD /2   =Mq        x87
fstp      DD /3   =Mq        x87
frstor    DD /4   Mm         x87
fnsave    DD /6   =Mm        x87 sys:FNSAVE
fnstsw    DD /7   =Mw        x87
ffree     DD /0   Ti         x87
fxch      DD /1   Ti         x87      # alias
fst       DD /2   Ti         x87
fstp      DD /3   Ti         x87
fucom     DD /4   Ti         x87
fucomp    DD /5   Ti         x87
faddp     DE /0   Ti,st0     x87
fmulp     DE /1   Ti,st0     x87
fcomp     DE /2   Ti         x87      # alias
fcompp    DE D9   -          x87
fsubrp    DE /4   Ti,st0     x87
fsubp     DE /5   Ti,st0     x87
fdivrp    DE /6   Ti,st0     x87
fdivp     DE /7   Ti,st0     x87
fild      DF /0   Mw         x87
fisttp    DF /1   =Mw        x87 sse3
fist      DF /2   =Mw        x87
fistp     DF /3   =Mw        x87
fbld      DF /4   Mt         x87
fild      DF /5   Mq         x87
fbstp     DF /6   =Mt        x87
fistp     DF /7   =Mq        x87
ffreep    DF /0   Ti         x87      # alias
fxch      DF /1   Ti         x87      # alias
fstp      DF /2   Ti         x87      # alias
fstp      DF /3   Ti         x87      # alias
fnstsw    DF E0   =ax        x87
fucomip   DF /5   st0,Ti     x87 fcomi
fcomip    DF /6   st0,Ti     x87 fcomi
"""

TEXT = _MEMORY + _CONSTANTS + _REST
