"""Containers in a Debian guest, which has what this host may not: cgroup v2 alone, by systemd, and AppArmor."""

import re
import sysconfig
from pathlib import Path

import pytest

from hostel import VM
from hostel.base.errors import HostelError
from hostel.images import store as images

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGES = "apparmor busybox-static crun e2fsprogs file iproute2 libseccomp2 nftables procps python3 runc util-linux"

ENVIRONMENT = f"PYTHONPATH={ROOT}/src:{sysconfig.get_paths()['purelib']} PYTHONDONTWRITEBYTECODE=1 HOME=/root "
ENVIRONMENT += "PATH=$PATH:/usr/sbin:/sbin"
PROFILE = "profile hostel-test flags=(attach_disconnected) { file, capability, deny /etc/secret r, }"
APPARMOR = """
import json, os, shutil, subprocess, sys
from hostel.containers import oci, spec
bundle = "/tmp/labelled"
for name in ("bin", "etc", "proc", "sys", "dev"):
    os.makedirs(f"{bundle}/rootfs/{name}")
shutil.copy("/bin/busybox", f"{bundle}/rootfs/bin/sh")
open(f"{bundle}/rootfs/etc/secret", "w").write("secret\\n")
config = spec.default()
script = "read label < /proc/self/attr/current; echo $label; read x < /etc/secret && echo $x"
config["process"] |= {"terminal": False, "args": ["sh", "-c", script], "apparmorProfile": sys.argv[1]}
json.dump(config, open(f"{bundle}/config.json", "w"))
sys.exit(oci.main(["run", "--bundle", bundle, "labelled"]))
"""


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    if sysconfig.get_python_version() != "3.11":
        pytest.skip("Debian 12 has Python 3.11, for which this hostel wasn't compiled")
    try:
        image = images.ensure("debian")
    except HostelError as error:
        pytest.skip(f"no Debian disk: {error}")
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOSTEL_HOME", str(home))
        (home / "images").symlink_to(image.folder.parent)
        with VM.run("debian", cpus=2, memory="3G", shares=[f"{ROOT}:{ROOT}:ro"]) as vm:
            vm.wait_agent(600)
            install = f"apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install {PACKAGES}"
            done = vm.exec(["sh", "-ec", f"{install}; stat -f -c %T /sys/fs/cgroup"], timeout=900)
            assert done.stdout.endswith("cgroup2fs\n"), (done.stdout[-2000:], done.stderr)
            yield vm


@pytest.mark.timeout(1800)
def test_containers(vm):
    names = ("cgroups", "test_oci.py", "test_faults.py", "test_container_engine.py", "test_helper.py",
             "test_volumes.py")  # fmt: skip
    files = " ".join(f"tests/containers/{name}" for name in names)
    files += " --ignore=tests/containers/cgroups/test_cgroup_systemd.py"  # that has a host of its own
    options = "-m 'not slow' -p no:cacheprovider -o addopts= -q -rsf --basetemp=/tmp/t"
    script = f"cd {ROOT} && {ENVIRONMENT} python3 -m pytest {options} {files} 2>&1"
    said = vm.exec(["sh", "-c", script], timeout=1700).stdout
    assert re.search(r"^\d+ passed[^\n]* in ", said, re.MULTILINE) and "failed" not in said, said[-20000:]
    print(said[-3000:])


def test_an_apparmor_profile(vm):
    """Which this host's kernel hasn't, and Debian's has."""
    vm.exec(["sh", "-ec", f"echo '{PROFILE}' | /usr/sbin/apparmor_parser --replace"], timeout=60, check=True)

    def run(profile):
        script = f"rm -rf /tmp/labelled; {ENVIRONMENT} python3 - {profile}"
        return vm.exec(["sh", "-c", script], input=APPARMOR, timeout=60)

    done = run("hostel-test")
    assert done.stdout == "hostel-test (enforce)\n" and "/etc/secret: Permission denied" in done.stderr, done
    done = run("unconfined")
    assert done.stdout == "unconfined\nsecret\n", done
    done = run("nosuch")
    assert done.status == 1 and done.stderr.count("\n") == 1 and "nosuch" in done.stderr, done
