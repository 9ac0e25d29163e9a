"""Snapshots in one file: out of one home, into another, and files that aren't what they were."""

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from hostel.base import paths
from hostel.base.errors import HostelError
from hostel.block.disk import open_disk
from hostel.client.export import export, import_
from hostel.client.vm import VM

sys.path.insert(0, str(Path(__file__).parent.parent / "vm"))
from test_snapshot_format import after, counter, letters  # noqa: E402

SIZE = 4 << 20
CONTENT = (b"disk" * 1024 + bytes(4096)) * (SIZE // 8192)


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """The file of a snapshot of a VM with a disk, whose home has gone; the kernel is still there."""
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path / "home"))
    (tmp_path / "kernel").write_bytes(counter())
    (tmp_path / "disk").write_bytes(CONTENT)
    disk = f"{tmp_path / 'disk'},format=raw"
    with VM.run(name="one", kernel=str(tmp_path / "kernel"), memory="16M", networks=["none"], disks=[disk]) as vm:
        letters(vm, 5)
        vm.snapshot("first")
        export(vm.snapshot("second", description="to go"), tmp_path / "file")
        vm.rm(force=True)
    assert paths.snapshots().exists() and not [name for name in os.listdir(paths.snapshots()) if "@" in name]
    (tmp_path / "disk").unlink()
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path / "other"))
    return tmp_path / "file"


def test_it_goes_on_in_another_home_with_its_disk(exported):
    snapshot = import_(exported)
    assert (snapshot.full_name, snapshot.manifest.description) == ("one@second", "to go")
    with VM.run_from(snapshot, name="two") as vm:
        first = letters(vm, 1)
        assert letters(vm, 20) == first + after(first, 19)
        disk = open_disk(vm.spec.disks[0].path, "qcow2", readonly=True, allow_backing=True, locked=False)
        found = bytearray(SIZE)
        disk.readv(0, [memoryview(found)])
        disk.close()
        assert found == CONTENT
        vm.rm(force=True)


def test_it_may_get_another_name_and_is_there_once(exported):
    assert import_(exported, "other@name").full_name == "other@name"
    with pytest.raises(HostelError, match="already"):
        import_(exported, "other@name")
    with pytest.raises(HostelError):
        import_(exported, "../evil@name")
    assert sorted(name for name in os.listdir(paths.snapshots()) if not name.startswith(".lock")) == ["other@name"]


def members(file):
    with zstandard.ZstdDecompressor().stream_reader(open(file, "rb")) as packed:
        with tarfile.open(fileobj=packed, mode="r|") as archive:
            return [(info, archive.extractfile(info).read()) for info in archive]


def pack(file, found):
    """The members, with sums that are right for them."""
    sums = ""
    with open(file, "wb") as out, zstandard.ZstdCompressor().stream_writer(out) as packed:
        with tarfile.open(fileobj=packed, mode="w|") as archive:
            for info, data in found:
                if info.name != "SHA256SUMS":
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
                    sums += f"{hashlib.sha256(data).hexdigest()}  {info.name}\n"
            info = tarfile.TarInfo("SHA256SUMS")
            info.size = len(sums)
            archive.addfile(info, io.BytesIO(sums.encode()))


def refused(file, match):
    with pytest.raises(HostelError, match=match):
        import_(file)
    assert not [name for name in os.listdir(paths.snapshots()) if not name.startswith(".lock")]


def test_what_is_torn_or_changed_is_refused(exported):
    data = bytearray(exported.read_bytes())
    for size in (0, 100, len(data) // 2, len(data) - 1):
        exported.write_bytes(data[:size])
        refused(exported, "damaged|no snapshot|isn't what|torn")
    for at in (10, len(data) // 3, len(data) - 50):
        changed = bytearray(data)
        changed[at] ^= 0x10
        exported.write_bytes(changed)
        refused(exported, "damaged|no snapshot|isn't what")


def test_members_that_do_not_belong_there_are_refused(exported):
    found = members(exported)
    for name in ("../../etc/passwd", "/etc/passwd", "memory-../x", "disk0.raw", "lock"):
        info = tarfile.TarInfo(name)
        pack(exported, [*found, (info, b"x")])
        refused(exported, "no snapshot")
    link = tarfile.TarInfo("disk7.qcow2")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    pack(exported, [*found, (link, b"")])
    refused(exported, "no file|no snapshot")


def test_pages_that_are_not_what_the_manifest_says_are_refused(exported):
    found = members(exported)
    changed = [(info, data if not info.name.startswith("memory-") else bytes(len(data))) for info, data in found]
    pack(exported, changed)
    refused(exported, "damaged")
    pack(exported, [(info, data) for info, data in found if info.name != "state"])
    refused(exported, "damaged")


def test_disks_elsewhere_are_not_opened(exported):
    import msgspec

    from hostel.vm.snapshot import Manifest

    found = members(exported)
    manifest = next(data for info, data in found if info.name == "manifest")
    content = msgspec.msgpack.decode(manifest[:-32], type=Manifest)
    content.disks[0].elsewhere, content.disks[0].file = True, "/etc/passwd"
    data = msgspec.msgpack.encode(content)
    data += hashlib.sha256(data).digest()
    pack(exported, [(info, data if info.name == "manifest" else old) for info, old in found])
    refused(exported, "aren't in it")


def test_files_are_not_replaced_unasked(exported, tmp_path):
    snapshot = import_(exported)
    with pytest.raises(HostelError, match="--force"):
        export(snapshot, exported)
    export(snapshot, exported, force=True)
    assert import_(exported, "again@one").manifest.id == snapshot.manifest.id
