"""Snapshots of earlier formats, kept in tests/data, are gone on with. The guest is a loop that counts in memory and
writes a letter for each 2 ** 20: A to P, and A again.

``python tests/vm/test_snapshot_format.py FILE`` makes one.
"""

import struct
import sys
import time
from pathlib import Path

import pytest

from hostel.base.errors import MachineError
from hostel.client.export import export, import_
from hostel.client.vm import VM

DATA = Path(__file__).parent.parent / "data"
KERNEL_AT = 0x100000
# mov ebx, 0x200000; 1: inc dword [ebx]; mov eax, [ebx]; test eax, 0xFFFFF; jnz 1b; shr eax, 20; and eax, 15
# add al, 'A'; mov dx, 0x3F8; out dx, al; jmp 1b
CODE = bytes.fromhex("bb00002000 ff03 8b03 a9ffff0f00 75f5 c1e814 83e00f 0441 66baf803 ee ebe6")


def counter() -> bytes:
    """An ELF file with a PVH entry."""
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen", KERNEL_AT)
    text, notes = 64 + 2 * 56, 64 + 2 * 56 + len(CODE)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, KERNEL_AT, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 7, text, KERNEL_AT, KERNEL_AT, len(CODE), len(CODE), 4096)
    told = struct.pack("<IIQQQQQQ", 4, 4, notes, 0, 0, len(note), len(note), 4)
    return header + load + told + CODE + note


def letters(vm: VM, count: int) -> str:
    """The first that it writes."""
    while len(written := vm.logs().decode()) < count:
        assert vm.state.state == "running"
        time.sleep(0.01)
    return written[:count]


def after(letter: str, count: int) -> str:
    return "".join(chr(65 + (ord(letter) - 64 + n) % 16) for n in range(count))


def take(name: str, kernel: Path, file: Path) -> None:
    kernel.write_bytes(counter())
    with VM.run(name=name, kernel=str(kernel), memory="16M", networks=["none"], rm=True) as vm:
        letters(vm, 20)
        snapshot = vm.snapshot("one")
        snapshot.manifest.cpu = []  # it uses nothing of what it was told of: any host goes on with it
        snapshot.write()
        export(snapshot, file)


def adopt(file: Path, name: str, kernel: Path):
    """The snapshot in the file, of a VM whose kernel is now there; and the last letter that it showed."""
    from hostel.vm.saved import read_state

    kernel.write_bytes(counter())
    snapshot = import_(file, name)
    snapshot.manifest.spec.kernel = str(kernel)
    snapshot.write()
    with open(snapshot.path / "state", "rb") as state:
        return snapshot, read_state(state.fileno()).console.decode()[-1]


@pytest.mark.parametrize("file", sorted(DATA.glob("snapshot-*.hostel")), ids=lambda path: path.stem)
def test_one_of_an_earlier_format_is_gone_on_with(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path / "home"))
    snapshot, last = adopt(file, "old@one", tmp_path / "kernel")
    with VM.run_from(snapshot) as vm:
        assert letters(vm, 20) == after(last, 20)


def test_a_processor_may_lack_what_is_only_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("hostel.vm.snapshot.cpu_features", list)
    snapshot, _ = adopt(max(DATA.glob("snapshot-*.hostel")), "old@one", tmp_path / "kernel")
    snapshot.manifest.cpu = ["fsrm"]
    snapshot.open().close()
    snapshot.manifest.cpu = ["fsrm", "vaes"]
    with pytest.raises(MachineError, match="needs a processor with vaes$"):
        snapshot.open()


def test_there_is_one_of_the_present_format():
    from hostel.vm.snapshot import FORMAT

    assert (DATA / f"snapshot-{FORMAT}.hostel").exists()


def test_the_same_one_twice_runs_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path / "home"))
    file = tmp_path / "one.hostel"
    take("counter", tmp_path / "kernel", file)
    snapshot, last = adopt(file, "twice@one", tmp_path / "kernel")
    with VM.run_from(snapshot) as first, VM.run_from(snapshot) as second:
        assert letters(first, 50) == letters(second, 50) == after(last, 50)


if __name__ == "__main__":
    take("counter", Path(sys.argv[1] + ".kernel"), Path(sys.argv[1]))
    Path(sys.argv[1] + ".kernel").unlink()
