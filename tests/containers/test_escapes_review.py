"""Ways out of a container, a second look; docs/security.md lists them."""

import shutil

from tests.containers.bundles import busybox
from tests.containers.test_escapes import everything

HIGHEST = 40  # descriptors that a starting container could have


def test_the_hosts_programs_through_a_descriptor(oci, bundle, tmp_path):
    """A variant of CVE-2024-21626: an image's entrypoint is a path that begins at a folder that is still open. What is
    run so is the host's file, which ``/proc/self/exe`` leads back to."""
    everything(bundle)
    victim = tmp_path / "sh"
    shutil.copy(busybox(), victim)
    before = victim.read_bytes()
    attack = 'exec 9</proc/self/exe; exec /bin/busybox sh -c "echo overwritten > /proc/self/fd/9"'
    up = "../" * 12
    # One container's start tries them all: the first that is there is run.
    paths = ":".join(f"/proc/self/fd/{number}/{up}{str(tmp_path).lstrip('/')}" for number in range(3, HIGHEST))
    bundle.config["process"]["env"] = [f"PATH={paths}"]
    bundle.config["process"]["args"] = ["sh", "-c", attack]
    done = oci.run(bundle, check=False)
    assert victim.read_bytes() == before
    assert done.returncode == 1 and "executable file not found in $PATH" in done.stderr, done
    bundle.config["process"]["env"] = ["PATH=/bin"]
    oci.detached(bundle.script("sleep 1000"))
    done = oci("exec", "--env", f"PATH={paths}", "box", "sh", "-c", attack, check=False)
    assert victim.read_bytes() == before
    assert done.returncode != 0 and "executable file not found in $PATH" in done.stderr, done
