"""What the oracle test knows about rows of the instruction table: which can be compared, and how."""

from pathlib import Path

from oracle import Case

from hostel.cpu.bt import decode
from hostel.cpu.bt.table import AMD, C

M64 = (1 << 64) - 1
S = {name[2:]: value for name, value in C.items() if name.startswith("S_") and name not in ("S_NONE", "S_COUNT")}
K = {name[2:]: value for name, value in C.items() if name.startswith("K_")}
SEGMENT_PREFIX = {0: 0x26, 1: 0x2E, 2: 0x36, 3: 0x3E, 4: 0x64, 5: 0x65}
PP = {"": 0, "NP": 0, "66": 1, "F3": 2, "F2": 3}

# Rows that can't be compared, and why
SKIPPED = {
    "SYSCALL": "enters the host's kernel", "SYSENTER": "enters the host's kernel", "INT": "the host's IDT decides",
    "CPUID": "the guest's CPUID is its own", "RDTSC": "time", "RDTSCP": "time", "RDPID": "the host's CPU number",
    "RDPMC": "the host's counters", "XGETBV": "the host's XCR0", "SGDT": "UMIP: the host's kernel emulates it",
    "SIDT": "UMIP: the host's kernel emulates it", "SLDT": "UMIP: the host's kernel emulates it",
    "STR": "UMIP: the host's kernel emulates it", "SMSW": "UMIP: the host's kernel emulates it",
    "MONITOR": "depends on the host's hypervisor", "MWAIT": "depends on the host's hypervisor",
    "VMCALL": "depends on the host's hypervisor", "VMMCALL": "depends on the host's hypervisor",
    "XSAVE": "the host's XCR0", "XSAVEOPT": "the host's XCR0", "XSAVEC": "the host's XCR0", "XRSTOR": "the host's XCR0",
    "XSAVES": "the host's XCR0", "XRSTORS": "the host's XCR0", "LAR": "the host's GDT", "LSL": "the host's GDT",
    "VERR": "the host's GDT", "VERW": "the host's GDT", "INVPCID": "the host's CPUID",
}  # fmt: skip
SKIPPED_NAMES = {"rdrand": "random", "rdseed": "random"}
if AMD:  # a guest's processor is one of Intel's; what AMD's do otherwise (APM vol. 3, and seen on Zen 5)
    SKIPPED_NAMES |= {"prefetchw": "a register operand is undefined", "movsxd": "66 63 reads 32 bits of memory"}
    SKIPPED_NAMES |= dict.fromkeys(("lss", "lfs", "lgs", "jmpf", "callf"), "far pointers have no 64 bits")
    SKIPPED_NAMES |= dict.fromkeys(("sysret", "sysexit"), "there in other modes")
    SKIPPED_NAMES["int1"] = "the return address is that of the instruction, under a hypervisor"
if " serialize " not in Path("/proc/cpuinfo").read_text():
    SKIPPED_NAMES["serialize"] = "the host hasn't got it"
FAR = {S[n] for n in ("JMP_FAR", "CALL_FAR", "JMP_FAR_MEM", "CALL_FAR_MEM", "RETF", "IRET")}
BCD = {S[n] for n in ("AAA", "AAS", "AAM", "AAD", "DAA", "DAS")}  # their undefined flags are our own
ALONE = FAR | BCD | {S[n] for n in ("FXSAVE", "FXRSTOR", "INT3", "INT1", "INTO", "PUSH_SEG")}
ALONE |= {S[n] for n in ("POP_SEG", "MOV_TO_SEG", "LOAD_FAR")}  # the translator doesn't check DS and ES on use
ENVIRONMENT = {"fnstenv": 28, "fnsave": 28}
# CLFLUSH may fault, which the translator's doesn't; MASKMOV may fault where nothing is stored
ALONE_NAMES = {*ENVIRONMENT, "frstor", "clflush", "clflushopt", "clwb", "maskmovq", "maskmovdqu", "vmaskmovdqu"}
USER_DATA = 0x2B
SELECTORS = (0, 1, 2, 3, USER_DATA, 0x33, 0x23, 0x10, 0x18, 0x2A, 0x1234, 0x1007)

FLAG_NAMES = {
    "pushf", "popf", "lahf", "sahf", "cmc", "clc", "stc", "cld", "adc", "sbb", "rcl", "rcr", "adcx", "adox", "inc",
    "dec", "cmp", "test", "bt", "loop", "loope", "loopne",
}  # fmt: skip


BRANCHES = {K[k] for k in ("JCC", "JMP", "LOOP", "CALL", "JMP_IND", "CALL_IND", "RET")}
# Never completed by a user: #GP or #UD, which are compared
REFUSED = {
    "INS", "OUTS", "IN", "OUT", "HLT", "CLI", "STI", "LLDT", "LTR", "LGDT", "LIDT", "LMSW", "CLTS", "MOV_TO_CR",
    "MOV_FROM_CR", "MOV_TO_DR", "MOV_FROM_DR", "RDMSR", "WRMSR", "SYSRET", "SYSEXIT", "INVD", "WBINVD", "INVLPG",
    "SWAPGS", "CLAC", "STAC", "XSETBV", "INT1", "INT3",
}  # fmt: skip


def refused(row: dict) -> bool:
    """Whether user code can't complete the row."""
    return row["kind"] == K["UD"] or any(row["system"] == S[name] for name in REFUSED)


def same_for_supervisor(row: dict) -> bool:
    """Whether the row does the same at any CPL, selectors and all (POPF changes IF and IOPL for CPL 0 alone)."""
    others = ("POPF", "MOV_FROM_SEG", "MOV_TO_SEG", "PUSH_SEG", "POP_SEG", "LOAD_FAR", "ARPL")
    system = row["system"]
    return not (skipped(row) or refused(row) or system in FAR or any(system == S[name] for name in others))


def about_flags(row: dict) -> bool:
    """Whether the row is there for the flags, in or out."""
    return row["name"] in FLAG_NAMES or row["name"].startswith(("set", "cmov")) or row["kind"] == K["JCC"]


def straight(case: Case) -> bool:
    """Whether every instruction of the case ran if it came to its end."""
    return not any(decode.ROWS[n].fields["kind"] in BRANCHES for n in case.rows)


def skipped(row: dict) -> str | None:
    """Why a row can't be compared, or None."""
    for name, why in SKIPPED.items():
        if row["system"] == S[name]:
            return why
    return SKIPPED_NAMES.get(row["name"])
