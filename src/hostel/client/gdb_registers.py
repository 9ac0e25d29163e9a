"""What gdb calls registers, in terms of a vCPU's state: its features org.gnu.gdb.i386.* and one of ours."""

import struct

from hostel.vm.debug import VcpuState

_GENERAL = (0, 3, 1, 2, 6, 7, 5, 4, *range(8, 16))  # gdb's order of VcpuState.registers
_NAMES = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{i}" for i in range(8, 16)))
_SEGMENTS = {"cs": 1, "ss": 2, "ds": 3, "es": 0, "fs": 4, "gs": 5}
_FEATURES: list[tuple[str, list[tuple[str, int, str]]]] = [
    ("org.gnu.gdb.i386.core", [
        *((name, 64, "data_ptr" if name in ("rsp", "rbp") else "int64") for name in _NAMES),
        ("rip", 64, "code_ptr"), ("eflags", 32, "i386_eflags"), *((name, 32, "int32") for name in _SEGMENTS),
        *((f"st{i}", 80, "i387_ext") for i in range(8)),
        *((name, 32, "int") for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")),
    ]),
    ("org.gnu.gdb.i386.sse", [*((f"xmm{i}", 128, "vec128") for i in range(16)), ("mxcsr", 32, "i386_mxcsr")]),
    ("org.gnu.gdb.i386.segments", [("fs_base", 64, "int"), ("gs_base", 64, "int")]),
    ("org.gnu.gdb.i386.avx", [(f"ymm{i}h", 128, "uint128") for i in range(16)]),
    ("org.hostel.x86.system", [
        (name, 64, "int64")
        for name in ("k_gs_base", "cr0", "cr2", "cr3", "cr4", "efer", "xcr0", "gdt_base", "idt_base", "tr_base",
                     "dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
    ]),
]  # fmt: skip
REGISTERS = [register for _, registers in _FEATURES for register in registers]
_KERNEL_GS_BASE = 0xC0000102
_TYPES = {
    "org.gnu.gdb.i386.core": """<flags id="i386_eflags" size="4">\
<field name="CF" start="0" end="0"/><field name="" start="1" end="1"/><field name="PF" start="2" end="2"/>\
<field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>\
<field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/>\
<field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>\
<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/><field name="VIF" start="19" end="19"/>\
<field name="VIP" start="20" end="20"/><field name="ID" start="21" end="21"/></flags>""",
    "org.gnu.gdb.i386.sse": """<vector id="v4f" type="ieee_single" count="4"/>\
<vector id="v2d" type="ieee_double" count="2"/><vector id="v16i8" type="int8" count="16"/>\
<vector id="v8i16" type="int16" count="8"/><vector id="v4i32" type="int32" count="4"/>\
<vector id="v2i64" type="int64" count="2"/><union id="vec128"><field name="v4_float" type="v4f"/>\
<field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>\
<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/>\
</union><flags id="i386_mxcsr" size="4"><field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/>\
<field name="ZE" start="2" end="2"/><field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/>\
<field name="PE" start="5" end="5"/><field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/>\
<field name="DM" start="8" end="8"/><field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/>\
<field name="UM" start="11" end="11"/><field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/>\
</flags>""",
}


def target_description() -> str:
    features = "".join(
        f'<feature name="{feature}">{_TYPES.get(feature, "")}'
        + "".join(f'<reg name="{name}" bitsize="{bits}" type="{kind}"/>' for name, bits, kind in registers)
        + "</feature>"
        for feature, registers in _FEATURES
    )
    return (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><architecture>i386:x86-64</architecture>'
        f"{features}</target>"
    )


def _x87_tags(xsave: bytes) -> int:
    """The full tag word from FXSAVE's abridged one."""
    tags = 0
    top = xsave[3] >> 3 & 7
    for i in range(8):
        tag = 3
        if xsave[4] >> i & 1:
            at = 32 + 16 * ((i - top) % 8)
            significand, sign = struct.unpack_from("<QH", xsave, at)
            exponent = sign & 0x7FFF
            tag = 2 if exponent in (0, 0x7FFF) or not significand >> 63 else 0
            if exponent == 0 and significand == 0:
                tag = 1
        tags |= tag << 2 * i
    return tags


def get_register(state: VcpuState, number: int) -> bytes:
    """As many bytes as it has bits for."""
    name, bits, _ = REGISTERS[number]
    size = bits // 8
    x = state.xsave
    if name in _NAMES:
        value = state.registers[_GENERAL[_NAMES.index(name)]]
    elif name in _SEGMENTS:
        value = state.segments[_SEGMENTS[name]].selector
    elif name.startswith("st"):
        return x[32 + 16 * int(name[2:]) :][:10]
    elif name.startswith("xmm"):
        return x[160 + 16 * int(name[3:]) :][:16]
    elif name.startswith("ymm"):
        return x[576 + 16 * int(name[3:-1]) :][:16]
    elif name.startswith("dr"):
        value = state.debug[("dr0", "dr1", "dr2", "dr3", "dr6", "dr7").index(name)]
    else:
        value = {
            "rip": state.rip, "eflags": state.rflags, "fctrl": x[0] | x[1] << 8, "fstat": x[2] | x[3] << 8,
            "ftag": _x87_tags(x), "mxcsr": int.from_bytes(x[24:28], "little"),
            "fs_base": state.segments[4].base, "gs_base": state.segments[5].base,
            "k_gs_base": state.msrs.get(_KERNEL_GS_BASE, 0), "cr0": state.cr0, "cr2": state.cr2, "cr3": state.cr3,
            "cr4": state.cr4, "efer": state.efer, "xcr0": state.xcr0, "gdt_base": state.gdtr.base,
            "idt_base": state.idtr.base, "tr_base": state.tr.base,
        }.get(name, 0)  # fiseg to fop: they are not kept
    return value.to_bytes(size, "little")


def set_register(state: VcpuState, number: int, data: bytes) -> None:
    """Of segment registers only the selector is written: what it stands for stays."""
    name = REGISTERS[number][0]
    value = int.from_bytes(data, "little")
    x = bytearray(state.xsave)
    x[512] |= 7
    if name in _NAMES:
        state.registers[_GENERAL[_NAMES.index(name)]] = value
    elif name in _SEGMENTS:
        state.segments[_SEGMENTS[name]].selector = value & 0xFFFF
    elif name.startswith("st"):
        at = 32 + 16 * int(name[2:])
        x[at : at + 10] = data
    elif name.startswith("xmm"):
        at = 160 + 16 * int(name[3:])
        x[at : at + 16] = data
    elif name.startswith("ymm"):
        at = 576 + 16 * int(name[3:-1])
        x[at : at + 16] = data
    elif name.startswith("dr"):
        state.debug[("dr0", "dr1", "dr2", "dr3", "dr6", "dr7").index(name)] = value
    elif name in ("fctrl", "fstat"):
        at = 0 if name == "fctrl" else 2
        x[at : at + 2] = data[:2]
    elif name == "ftag":
        x[4] = sum((value >> 2 * i & 3 != 3) << i for i in range(8))
    elif name == "mxcsr":
        x[24:28] = data
    elif name in ("fs_base", "gs_base"):
        state.segments[4 if name == "fs_base" else 5].base = value
    elif name == "k_gs_base":
        state.msrs[_KERNEL_GS_BASE] = value
    elif name == "eflags":
        state.rflags = value | 2
    elif name in ("gdt_base", "idt_base", "tr_base"):
        getattr(state, {"gdt_base": "gdtr", "idt_base": "idtr", "tr_base": "tr"}[name]).base = value
    elif name in ("rip", "cr0", "cr2", "cr3", "cr4", "efer", "xcr0"):
        setattr(state, name, value)
    state.xsave = bytes(x)
