"""Bundles with a busybox for their rootfs, and the runtime as a command, in folders of the test's own."""

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hostel.containers import spec

APPLETS = (
    "sh", "true", "false", "cat", "ls", "id", "sleep", "echo", "mount", "ps", "env", "hostname", "touch", "readlink",
    "stat", "ip", "grep", "kill", "dd", "mkdir", "ln", "rm", "mv", "tty", "stty", "chown", "umask", "date", "wc",
    "mknod",
    "head", "chmod", "nohup",
)  # fmt: skip
COMMAND = [sys.executable, "-ISE", "-c", (
    f"import sys; sys.path[:0] = [{str(Path(spec.__file__).parents[2])!r}]; sys.dont_write_bytecode = True\n"
    "from hostel.containers.oci import main\nsys.exit(main())"
)]  # fmt: skip


def busybox() -> str:
    found = shutil.which("busybox")
    if (
        not found
        or b"statically" not in subprocess.run(["file", "-L", found], capture_output=True).stdout
        and (subprocess.run(["ldd", found], capture_output=True).returncode == 0)
    ):
        pytest.skip("no static busybox (Debian: busybox-static)")
    return found


def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


def nobody(folder: Path) -> dict:
    """What makes subprocess run something as an ordinary user of the host, who may then look into ``folder``, with the
    environment for ``nobodys_python``."""
    while folder != folder.parent:
        folder.chmod(folder.stat().st_mode | 0o055)
        folder = folder.parent
    return {
        "user": 65534, "group": 65534, "extra_groups": [], "cwd": "/", "capture_output": True, "text": True,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    }  # fmt: skip


def nobodys_python() -> str:
    """An interpreter that others may run with our sources: ours, or the host's of the same version."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            if subprocess.run([python, "-c", "import hostel.containers.oci"], **nobody(Path("/"))).returncode == 0:
                return python
    pytest.skip("no interpreter that an ordinary user may run with our sources")


class Bundle:
    """A folder with a rootfs and a configuration that tests change before ``write``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rootfs = folder / "rootfs"
        program = busybox()
        for name in ("bin", "proc", "sys", "dev", "etc", "tmp"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(program, self.rootfs / "bin/busybox")
        for name in APPLETS:
            (self.rootfs / "bin" / name).symlink_to("busybox")
        (self.rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        self.config = copy.deepcopy(spec.default())
        self.config["process"]["terminal"] = False

    def script(self, text: str) -> "Bundle":
        self.config["process"]["args"] = ["sh", "-c", text]
        return self

    def namespaces(self) -> list:
        return self.config["linux"]["namespaces"]

    def map_users(self, first: int = 200000, size: int = 65536) -> None:
        """A user namespace with root's numbers elsewhere."""
        self.namespaces().append({"type": "user"})
        for name in ("uidMappings", "gidMappings"):
            self.config["linux"][name] = [{"containerID": 0, "hostID": first, "size": size}]
        for path in [self.rootfs, *self.rootfs.rglob("*")]:
            os.chown(path, first, first, follow_symlinks=False)

    def write(self) -> Path:
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return self.folder


class Oci:
    """The command with a root of its own."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, *words: str, check: bool = True, **more) -> subprocess.CompletedProcess:
        more.setdefault("stdin", subprocess.DEVNULL)
        result = subprocess.run(
            [*COMMAND, "--root", str(self.root), *map(str, words)], text=True, timeout=60,
            capture_output=True, **more,
        )  # fmt: skip
        assert "Traceback" not in result.stderr, result.stderr
        if check:
            assert result.returncode == 0, result.stderr
        return result

    def run(self, bundle: Bundle, id: str = "box", **more) -> subprocess.CompletedProcess:
        return self("run", "--bundle", bundle.write(), id, **more)

    def state(self, id: str) -> dict:
        return json.loads(self("state", id).stdout)

    def detached(self, bundle: Bundle, id: str = "box") -> int:
        """A container that runs in the background; its process's ID."""
        errors = self.root.parent / "errors"
        words = [*COMMAND, "--root", str(self.root), "run", "--detach", "--bundle", str(bundle.write()), id]
        with open(errors, "w") as file:  # the container keeps it: no pipe
            done = subprocess.run(words, timeout=60, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        assert done.returncode == 0, errors.read_text()
        return self.state(id)["pid"]
