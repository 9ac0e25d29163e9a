"""What is in the folder that a machine shares with the host, and virtiofsd, which QEMU shares it by."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from bench.companion import Companion
from bench.errors import Missing
from hostel.images.cpio import Tree

TAG = "hostel0"               # hostel's for its first share
# Of hostel's guest it is the second mount, since its agent makes one at the place that -v names, of one file system.
SETUP = f"mkdir -p /mnt && mount -t virtiofs {TAG} /mnt"
FOLDERS, FILES = 100, 50      # files in each folder
WRITTEN = 1_600_000_000       # the files' time, long ago: git believes what it noted of them


def archive() -> bytes:
    """The small files, 0.1 to 3 KB each, as a tar archive that is always the same."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in range(FOLDERS):
            entry = tarfile.TarInfo(f"d{folder}")
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, WRITTEN
            tar.addfile(entry)
            for number in range(FILES):
                line = f"file {number} of folder {folder}\n".encode()
                data = line * (4 + (folder * FILES + number) * 37 % 150)
                entry = tarfile.TarInfo(f"d{folder}/f{number}")
                entry.size, entry.mode, entry.mtime = len(data), 0o755 if number % 10 == 0 else 0o644, WRITTEN
                tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def extras() -> Tree:
    """What the guest gets for it: the archive, and the host's git with its libraries."""
    git = shutil.which("git")
    if not git:
        raise Missing("the rows with shares need git; on Debian: apt-get install git")
    tree = Tree()
    tree.file("bench/tree.tar", archive())
    tree.file("bench/git", Path(git).read_bytes(), 0o755)
    libraries = subprocess.run(["ldd", git], capture_output=True, text=True).stdout
    for path in re.findall(r"(/\S+) \(0x", libraries):
        tree.file(path.lstrip("/"), Path(path).read_bytes(), 0o755)
    return tree


def digest(folder: Path) -> str:
    """How many files a folder has, and a checksum of their names, modes, times and contents."""
    total, count = hashlib.sha256(), 0
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        total.update(f"{path.relative_to(folder)} {status.st_mode:o}\n".encode())
        if path.is_file():
            count += 1
            total.update(f"{status.st_mtime_ns}\n".encode() + path.read_bytes())
    return f"{count} files, {total.hexdigest()[:16]}"


class Folder:
    """``path`` until ``close``: ``repository``, in which all is committed, and what the guest makes.

    In memory: ext4 without a journal makes files 5 to 50 times as slowly for a minute or more after many were removed
    (its recently_deleted()), which would be most of what is measured.
    """

    def __init__(self) -> None:
        in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="hostel-bench-", dir=in_memory)
        self.path = Path(self._folder.name)
        self.path.chmod(0o755)
        repository = self.path / "repository"
        repository.mkdir()
        subprocess.run(["tar", "xpf", "-", "-C", str(repository)], input=archive(), check=True)
        self.digest = digest(repository)
        environment = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
            subprocess.run(["git", "-C", str(repository), *words], env=environment, check=True)

    def close(self) -> None:
        self._folder.cleanup()


class Virtiofsd(Companion):
    """Shares ``folder``. It ends with QEMU."""

    def __init__(self, folder: Path) -> None:
        program = find_virtiofsd()
        assert program
        super().__init__("virtiofsd", lambda socket: [program, f"--socket-path={socket}", "-o", f"source={folder}"])


def find_virtiofsd() -> str | None:
    """That of QEMU before 8.0, which only root may start."""
    return shutil.which("virtiofsd", path="/usr/lib/qemu") if os.geteuid() == 0 else None
