"""ACPI tables: checksums, pointers, fields; the DSDT by ACPICA's own compiler where it is installed."""

import shutil
import struct
import subprocess

import pytest

from hostel.board import acpi, aml, memmap

LAYOUT = memmap.build(6 << 30)


def tables(cpus=4, serial=((0x3F8, 4), (0x2F8, 3))):
    base, image = acpi.build(LAYOUT, list(range(cpus)), serial=serial)

    def at(address):
        offset = address - base
        size = struct.unpack_from("<I", image, offset + 4)[0]
        return image[offset : offset + size]

    assert image[:8] == b"RSD PTR " and sum(image[:20]) % 256 == 0 and sum(image[:36]) % 256 == 0
    xsdt = at(struct.unpack_from("<Q", image, 24)[0])
    found = {"XSDT": xsdt}
    for (address,) in struct.iter_unpack("<Q", xsdt[36:]):
        found[at(address)[:4].decode()] = at(address)
    fadt = found["FACP"]
    facs, dsdt = struct.unpack_from("<QQ", fadt, 132)
    assert (facs, dsdt) == struct.unpack_from("<II", fadt, 36)
    found["DSDT"], found["FACS"] = at(dsdt), at(facs)
    assert facs % 64 == 0
    return found


def test_checksums_and_set_of_tables():
    found = tables()
    assert set(found) == {"XSDT", "FACP", "APIC", "MCFG", "DSDT", "FACS"}
    for name, table in found.items():
        if name != "FACS":
            assert sum(table) % 256 == 0, name
            assert table[:4].decode() == name


def test_fadt():
    fadt = tables()["FACP"]
    assert len(fadt) == 276
    assert struct.unpack_from("<H", fadt, 46)[0] == 9  # SCI
    assert struct.unpack_from("<III", fadt, 56) == (0x600, 0, 0x604)
    assert struct.unpack_from("<I", fadt, 76)[0] == 0x608
    assert struct.unpack_from("<I", fadt, 80)[0] == 0x60C
    assert fadt[88:95] == bytes([4, 2, 0, 4, 4, 0, 0])
    assert fadt[108] == 0x32
    assert not struct.unpack_from("<H", fadt, 109)[0] & 2  # no 8042
    assert struct.unpack_from("<I", fadt, 112)[0] & (1 << 10 | 1 << 20) == 1 << 10  # reset register; not HW-reduced
    assert fadt[116:129] == bytes([1, 8, 0, 1]) + struct.pack("<QB", 0xCF9, 6)
    assert struct.unpack_from("<BBBBQ", fadt, 148) == (1, 32, 0, 2, 0x600)
    assert struct.unpack_from("<BBBBQ", fadt, 172) == (1, 16, 0, 2, 0x604)
    assert struct.unpack_from("<BBBBQ", fadt, 208) == (1, 32, 0, 3, 0x608)
    assert struct.unpack_from("<BBBBQ", fadt, 220) == (1, 32, 0, 1, 0x60C)


def entries(madt):
    at, out = 44, []
    while at < len(madt):
        out.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    return out


def test_madt():
    found = entries(tables(3)["APIC"])
    assert [e[3] for e in found if e[0] == 0] == [0, 1, 2]
    (ioapic,) = [e for e in found if e[0] == 1]
    assert struct.unpack_from("<II", ioapic, 4) == (0xFEC00000, 0)
    overrides = [struct.unpack_from("<BIH", e, 3) for e in found if e[0] == 2]
    assert overrides == [(0, 2, 0), (9, 9, 0xD), (4, 4, 0xD), (3, 3, 0xD)]


def test_madt_beyond_xapic():
    found = entries(tables(300)["APIC"])
    assert sum(e[0] == 0 for e in found) == 255 and sum(e[0] == 9 for e in found) == 45
    assert [e for e in found if e[0] == 9][-1] == struct.pack("<BBHIII", 9, 16, 0, 299, 1, 299)


def test_mcfg():
    assert struct.unpack_from("<QHBB", tables()["MCFG"], 44) == (memmap.ECAM, 0, 0, memmap.ECAM_BUSES - 1)


def test_pci_routing_uses_the_upper_pins():
    assert {acpi.pci_gsi(slot, pin) for slot in range(32) for pin in (1, 2, 3, 4)} == set(range(16, 24))


@pytest.mark.parametrize("size", [0, 62, 63, 64, 4092, 4093, 4094, 1 << 20])
def test_package_lengths(size):
    encoded = aml.with_length(bytes(size))
    extra = encoded[0] >> 6
    length = encoded[0] & 63 if not extra else encoded[0] & 15 | int.from_bytes(encoded[1 : 1 + extra], "little") << 4
    assert length == len(encoded) == size + 1 + extra


def test_names_and_integers():
    assert aml.name_string("\\_SB.PCI0") == b"\\\x2e_SB_PCI0"
    assert aml.name_string("A.B.C") == b"\x2f\x03A___B___C___"
    assert aml.integer(1) == b"\x01" and aml.integer(2) == b"\x0a\x02"
    assert aml.integer(0x1234) == b"\x0b\x34\x12" and aml.integer(1 << 40)[0] == 0x0E
    assert aml.eisa_id("PNP0A03") == bytes([0x0C, 0x41, 0xD0, 0x0A, 0x03])  # the example of 19.3.4


@pytest.mark.skipif(not shutil.which("iasl"), reason="iasl (acpica-tools) isn't installed")
def test_dsdt_survives_disassembly_and_compilation(tmp_path):
    (tmp_path / "dsdt.dat").write_bytes(tables(16)["DSDT"])
    subprocess.run(["iasl", "-d", "dsdt.dat"], cwd=tmp_path, capture_output=True, check=True)
    source = (tmp_path / "dsdt.dsl").read_text()
    for word in ("Device (C00F)", 'EisaId ("PNP0501")', "Name (\\_S5", "Name (_PRT", "Device (VGEN)", "0x000FF000",
                 "Method (_E05, 0, NotSerialized)", "Notify (\\_SB.VGEN, 0x80)"):  # fmt: skip
        assert word in source
    done = subprocess.run(["iasl", "-tc", "dsdt.dsl"], cwd=tmp_path, capture_output=True, text=True)
    assert "0 Errors, 0 Warnings" in done.stdout + done.stderr
