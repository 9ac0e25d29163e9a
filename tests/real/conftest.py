import contextlib
from pathlib import Path

import pytest
from bench import debian_root
from bench.errors import BenchError
from kernel_log import complaints

from hostel import VM
from hostel.base.errors import HostelError

PACKAGES = """busybox-static:i386 gcc gcc-multilib kexec-tools libc6-dev libpython3.11-testsuite memtester openssl perl
procps python3 sqlite3 stress-ng util-linux""".split()
PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def debian():
    """A Debian root with compilers, interpreters and their tests, as an initramfs; without one, tests are skipped."""
    try:
        return debian_root.initramfs(PACKAGES, "real", "bookworm", ("amd64", "i386"))
    except (BenchError, HostelError) as error:
        pytest.skip(f"no Debian root: {error}")


@pytest.fixture(scope="module")
def shared(micro, debian, tmp_path_factory):
    """One Debian guest with two processors for a module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOSTEL_HOME", str(home))
        (home / "images").symlink_to(micro.folder.parent)
        with VM.run("micro", initrd=str(debian), cpus=2, memory="3G") as vm:
            vm.wait_agent(240)
            yield vm


@pytest.fixture
def vm(shared):
    """The shared guest; its kernel must have nothing to complain of after the test."""
    yield shared
    assert complaints(shared) == []


@pytest.fixture
def machine(guests, debian):
    """``machine(cpus=…, …)``: a Debian guest for a ``with`` block, whose kernel must have nothing to complain of at its
    end."""

    @contextlib.contextmanager
    def run(**options):
        with VM.run("micro", initrd=str(debian), **{"memory": "3G"} | options) as vm:
            vm.wait_agent(240)
            yield vm
            assert complaints(vm) == []

    return run


@pytest.fixture
def compiled():
    """``compiled(vm, "integers", "-O2")``: the path in the guest of a program of ``programs/``, built there."""

    def build(vm, name, *options):
        path = f"/tmp/{name}{''.join(options).replace('=', '-')}"
        source = (PROGRAMS / f"{name}.c").read_text()
        vm.exec(
            ["gcc", "-w", "-static", *options, "-x", "c", "-", "-o", path, "-lm", "-lpthread"],
            input=source, timeout=300, check=True,
        )  # fmt: skip
        return path

    return build
