"""Memory as kernels hand it out: full of patterns through every size of page; kexec; what paging is announced."""

import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kind, megabytes", [("small", 512), ("transparent", 512), ("2M", 128), ("1G", 1024)])
def test_patterns(machine, compiled, kind, megabytes):
    """5 GiB: some of it lies above 4 GiB, where the kernel takes from first."""
    append = {"2M": "hugepagesz=2M hugepages=64", "1G": "hugepagesz=1G hugepages=1"}.get(kind, "")
    with machine(memory="5G", append=append) as vm:
        result = vm.exec([compiled(vm, "memory", "-O2"), kind, str(megabytes)], timeout=900)
        assert (result.status, result.stderr) == (0, "")
        assert "patterns" in result.stdout


def test_memtester(machine):
    with machine() as vm:
        result = vm.exec(["memtester", "150M", "1"], timeout=1200)
        assert result.status == 0
        assert "FAILURE" not in result.stdout and "Done." in result.stdout


def test_five_level_paging_is_hidden(machine):
    """The host may have it; the translator walks four levels."""
    with machine() as vm:
        flags = vm.exec(["grep", "-m1", "^flags", "/proc/cpuinfo"]).stdout.split()
        assert "pdpe1gb" in flags and "la57" not in flags
        assert "48 bits virtual" in vm.exec(["cat", "/proc/cpuinfo"]).stdout


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("how", ["--kexec-syscall", "--kexec-file-syscall"])
def test_kexec(machine, micro, cpus, how):
    """A kernel boots another in its place, by way of that one's own boot code and decompressor."""
    with machine(cpus=cpus) as vm:
        for name, path in {"kernel": micro.kernel, "initrd": micro.initrd}.items():
            vm.exec(["tee", f"/{name}"], input=path.read_bytes(), text=False, timeout=120, check=True)
        command = ["kexec", how, "--load", "/kernel", "--initrd=/initrd"]
        vm.exec([*command, "--command-line=console=ttyS0,115200 panic=-1 second"], timeout=120, check=True)
        boots = greetings(vm)
        assert vm.exec(["kexec", "--exec"], timeout=120).status == 125  # hostel's own: the command ended with the guest
        deadline = time.monotonic() + 120
        while greetings(vm) == boots and time.monotonic() < deadline:
            time.sleep(0.1)
        assert vm.exec(["cat", "/proc/cmdline"], timeout=120).stdout.split()[-1] == "second"
        assert vm.exec(["nproc"], timeout=60).stdout == f"{cpus}\n"


def greetings(vm):
    """How often an agent has come up."""
    return vm.inspect()["statistics"]["exec"]["greetings"]
