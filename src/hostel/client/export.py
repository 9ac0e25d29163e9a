"""Snapshots as one file: ``export`` and ``import_``.

The file is a tar archive (POSIX pax), compressed with zstd. Its members, in this order: ``manifest``, ``state``,
``memory-ID`` for each memory file, ``diskN.qcow2`` for each disk (flattened: with all that it stood on), and
``SHA256SUMS``, which has a line for each of the others; a file without it is torn. docs/snapshot-format.md.
"""

import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import msgspec
import zstandard

from hostel.base import atomic, paths
from hostel.base.errors import MachineError
from hostel.block.convert import convert
from hostel.block.disk import open_disk
from hostel.client.snapshots import at_work, new_folder
from hostel.spec.vm import VmSpec, check_name
from hostel.vm import snapshot as snapshots
from hostel.vm.layers import DiskLayer
from hostel.vm.snapshot import Snapshot

SUMS = "SHA256SUMS"
_MEMBER = re.compile(r"manifest|state|memory-[0-9a-f]{16}|disk[0-9]{1,3}\.qcow2|" + SUMS)
_PIECE = 1 << 20


def export(snapshot: Snapshot, path: Path, force: bool = False) -> None:
    """Write it to ``path``, which appears whole."""
    if path.exists() and not force:
        raise MachineError(f"{path} exists already; --force replaces it")
    lock = snapshot.lock()
    try:
        with atomic.replacing(path, 0o600) as file, tempfile.TemporaryDirectory(dir=path.parent) as beside:
            manifest = msgspec.structs.replace(snapshot.manifest, disks=[])
            disks = []
            for layer in snapshot.manifest.disks:
                flat = Path(beside) / f"disk{layer.number}.qcow2"
                top = Path(layer.file) if layer.elsewhere else snapshot.path / layer.file
                disk = open_disk(top, layer.format, readonly=True, allow_backing=True)
                try:
                    convert(disk, flat, "qcow2")
                finally:
                    disk.close()
                disks.append(flat)
                manifest.disks.append(
                    DiskLayer(number=layer.number, file=flat.name, format="qcow2", size=layer.size, fixed=layer.fixed)
                )
            Snapshot(Path(beside), manifest).write()
            members = [Path(beside) / "manifest"]
            if manifest.state:
                members += [snapshot.path / name for name in ("state", *(f"memory-{f.id}" for f in manifest.memory))]
            with zstandard.ZstdCompressor(level=3, threads=-1).stream_writer(file, closefd=False) as packed:
                _pack(packed, [*members, *disks])
    finally:
        os.close(lock)


def _pack(packed: BinaryIO, members: list[Path]) -> None:
    with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        sums = ""
        for path in members:
            info = tarfile.TarInfo(path.name)
            with open(path, "rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                reader = _Digesting(file)
                archive.addfile(info, reader)  # type: ignore[arg-type]
            sums += f"{reader.digest.hexdigest()}  {path.name}\n"
        info = tarfile.TarInfo(SUMS)
        info.size = len(sums)
        with tempfile.TemporaryFile() as last:
            last.write(sums.encode())
            last.seek(0)
            archive.addfile(info, last)


class _Digesting:
    """A file as it is read."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def import_(path: Path, name: str | None = None) -> Snapshot:
    """The snapshot in the file, as ``name`` (VM@NAME; default: as it was). It need not have a VM:
    ``hostel run --from`` makes one."""
    with atomic.told(paths.snapshots()):
        paths.snapshots().mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with (
            open(path, "rb") as file, at_work(".import"),  # so that nobody sweeps what is half unpacked
            tempfile.TemporaryDirectory(prefix=".new-", dir=paths.snapshots()) as beside,
        ):  # fmt: skip
            _unpack(file, path, Path(beside))
            manifest = Snapshot.read(Path(beside)).manifest
            vm, _, own = (name or f"{manifest.vm}@{manifest.name}").partition("@")
            manifest.vm, manifest.name, manifest.parent = check_name(vm), snapshots.check_name(own), ""
            manifest.spec = _here(manifest.spec)
            _check(manifest.disks)
            target = paths.snapshots() / f"{vm}@{own}"
            with at_work(vm):
                if target.exists():
                    raise MachineError(f"there is a snapshot {target.name} already; give it another name: VM@NAME")
                with new_folder(target) as new:
                    for entry in os.scandir(beside):
                        if entry.name != "manifest":
                            os.rename(entry.path, new / entry.name)
                    Snapshot(new, manifest).write()
                    if manifest.state:
                        Snapshot(new, manifest).open().close()
            return Snapshot(target, manifest)
    except OSError as e:
        raise MachineError(f"can't read {path}: {e.strerror}") from e
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as e:
        raise MachineError(f"{path} is no snapshot, or damaged: {e}") from e


def _unpack(file: BinaryIO, path: Path, target: Path) -> None:
    """All members, each as the sums say."""
    digests: dict[str, str] = {}
    sums: dict[str, str] | None = None
    with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as packed:
        for info, data in _members(packed):
            if sums is not None or not _MEMBER.fullmatch(info.name) or info.name in digests or not info.isreg():
                raise MachineError(f"{path} is no snapshot: it has a member '{info.name[:80]}'")
            if info.name == SUMS:
                lines = data.read(1 << 20).decode(errors="replace").splitlines()
                sums = {line[66:]: line[:64] for line in lines}
                continue
            digest = hashlib.sha256()
            with open(target / info.name, "xb") as out:
                while part := data.read(_PIECE):
                    digest.update(part)
                    out.write(part)
            digests[info.name] = digest.hexdigest()
    if sums is None or sums != digests:
        raise MachineError(f"{path} is damaged: what is in it isn't what was written")


def _members(packed: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    with tarfile.open(fileobj=packed, mode="r|") as archive:
        for info in archive:
            data = archive.extractfile(info)
            if data is None:
                raise MachineError(f"it has a member '{info.name[:80]}' that is no file")
            yield info, data


def _here(spec: VmSpec) -> VmSpec:
    """The VM as it can start on this host: with the image's kernel, where that is."""
    if spec.image and spec.kernel:
        from hostel.images import store as images

        kernel, initrd, _ = images.ensure(spec.image).start(spec.memory)
        return msgspec.structs.replace(spec, kernel=str(kernel), initrd=str(initrd))
    return spec


def _check(disks: list[DiskLayer]) -> None:
    """Nothing but what came with the file is to be opened."""
    for layer in disks:
        if layer.elsewhere or layer.below or layer.file != f"disk{layer.number}.qcow2" or layer.format != "qcow2":
            raise MachineError("it names disks that aren't in it")

