"""Kernels as Debian ships them, of three releases, in both flavours, boot with all processors and don't complain."""

import re
import time
from pathlib import Path

import pytest
from kernel_log import complaints

from hostel import VM
from hostel.base import paths
from hostel.base.errors import HostelError
from hostel.client.connection import Connection
from hostel.images import micro as recipe
from hostel.images import sources
from hostel.images.debian import Archive
from hostel.images.sources import Source
from hostel.vm import launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["bullseye", "bookworm", "trixie"])
def suite(request):
    return request.param


@pytest.fixture(scope="module", params=["linux-image-cloud-amd64", "linux-image-amd64"])
def image(request, suite, tmp_path_factory):
    """The kernel of a suite's package, and an initramfs with its modules: the micro image's recipe."""
    mirror = sources.configured()[0].mirror
    archive = Archive((Source(mirror, suite),), cache=paths.cache() / "suites" / suite)
    try:
        meta = archive.package(request.param)
        needed = re.search(r"\blinux-image-\d[^\s,(]*", meta.depends)
        assert needed, f"{meta.name} {meta.version} names no kernel"
        files = [archive.fetch(archive.package(name)) for name in (needed[0], recipe.BUSYBOX)]
    except HostelError as error:
        pytest.skip(f"no {request.param} of {suite}: {error}")
    folder = tmp_path_factory.mktemp(suite)
    return folder, recipe.build(files, folder, lambda text: None)["kernel_version"]


@pytest.mark.parametrize("cpus", [1, 4])
def test_boots(guests, image, cpus):
    folder, version = image
    with VM.run("micro", cpus=cpus, kernel=str(folder / "kernel"), initrd=str(folder / "initrd")) as vm:
        assert vm.exec(["uname", "-r"], timeout=120).stdout == f"{version}\n"
        assert vm.exec(["nproc"]).stdout == f"{cpus}\n"
        clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        assert vm.exec(["cat", clock]).stdout in ("tsc\n", "kvm-clock\n")
        assert complaints(vm) == []


def test_a_copy_gathers_fresh_entropy(guests, image, monkeypatch):
    """drivers/virt/vmgenid.c, where the kernel has it: not before 5.18, nor in Debian's cloud kernel of bookworm."""
    folder, _ = image
    monkeypatch.setattr(launch, "WORKER", "generation_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "vm"))
    with VM.run("micro", kernel=str(folder / "kernel"), initrd=str(folder / "initrd")) as vm:
        drivers = "ls /sys/bus/acpi/drivers /sys/bus/platform/drivers"
        if "vmgenid" not in vm.exec(["sh", "-c", drivers], timeout=120).stdout.split():
            pytest.skip("this kernel has no driver for the VM generation ID")
        for count in (2, 3):  # the first was when its agent was there
            with Connection(vm.folder) as connection:
                connection.call("new_generation")
            deadline = time.monotonic() + 30
            while vm.exec(["dmesg"]).stdout.count("crng reseeded due to virtual machine fork") < count:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert complaints(vm) == []


def test_patches_itself_under_load(guests, micro):
    """ftrace puts calls into functions that all four processors run, and takes them out again."""
    script = """
        mount -t tracefs none /sys/kernel/tracing && cd /sys/kernel/tracing || exit 1
        grep -qw function available_tracers || exit 77
        echo 'vfs_*' '*_fault*' '*mmap*' '*_fork*' 'do_sys*' '*timer*' '*wake_up*' > set_ftrace_filter
        echo 64 > buffer_size_kb
        for i in 1 2 3 4; do while :; do /bin/true; done & done
        for i in $(seq 25); do
            echo function > current_tracer
            sleep 0.1
            echo nop > current_tracer
        done
        kill $(jobs -p)
        wc -l < set_ftrace_filter
    """
    with VM.run("micro", cpus=4) as vm:
        done = vm.exec(["sh", "-c", script], timeout=500)
        if done.status == 77:
            pytest.skip("this kernel has no function tracer")
        assert done.status == 0, done.stderr
        assert int(done.stdout) > 500
        assert complaints(vm) == []
