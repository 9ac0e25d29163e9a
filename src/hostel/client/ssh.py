"""SSH into a guest without a network: OpenSSH's client, whose connection goes over the agent's channel.

The agent opens a TCP connection to the guest's own port 22 (images/agent_forward), so that neither an address nor a
forwarded port is needed, and a guest without any network is reached as well. Who may talk to the agent is root in the
guest anyway, so the agent also puts our public key where it belongs and tells the server's own keys: nothing is
trusted on first use.

The key pair is made once for each home ($HOSTEL_HOME/ssh) by ssh-keygen.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hostel.base import atomic, paths
from hostel.base.errors import MachineError, UsageError

if TYPE_CHECKING:
    from hostel.client.vm import VM

PORT = 22
# In the guest: $1 user, $2 our public key. Prints the server's public keys once it listens.
PREPARE = """
[ -x /usr/sbin/sshd ] || { echo 'there is no SSH server in it (on Debian: apt install openssh-server)' >&2; exit 3; }
line=$(grep "^$1:" /etc/passwd) || { echo "there is no user $1 in it" >&2; exit 3; }
ids=$(echo "$line" | cut -d: -f3,4)
home=$(echo "$line" | cut -d: -f6)
file=$home/.ssh/authorized_keys
if ! grep -qsF "$2" "$file"; then
    umask 077
    mkdir -p "$home/.ssh" && echo "$2" >> "$file" && chown "$ids" "$home/.ssh" "$file" || exit 1
fi
n=0
until grep -qE ':0016 0+:0000 0A' /proc/net/tcp /proc/net/tcp6 2>/dev/null; do
    n=$((n + 1))
    [ $n -lt 600 ] || { echo 'its SSH server does not listen' >&2; exit 3; }
    sleep 0.1
done
cat /etc/ssh/ssh_host_*_key.pub
"""


def public_key() -> str:
    """This home's own key, made on first use: a line of authorized_keys."""
    folder = paths.home() / "ssh"
    with atomic.locked(paths.home() / ".ssh.lock"):
        if not (folder / "id_ed25519.pub").exists():
            program = _program("ssh-keygen")
            with tempfile.TemporaryDirectory(dir=paths.home()) as temporary:
                made = Path(temporary, "ssh")
                made.mkdir(0o700)
                command = [program, "-q", "-t", "ed25519", "-N", "", "-C", "hostel", "-f", str(made / "id_ed25519")]
                done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
                if done.returncode:
                    raise MachineError(f"ssh-keygen: {(done.stderr.strip().splitlines() or ['it failed'])[0]}")
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(made, folder)
    return (folder / "id_ed25519.pub").read_text().strip()


def command(vm: "VM", user: str = "root", argv: Sequence[str] = (), options: Sequence[str] = ()) -> list[str]:
    """The ssh command line that leads into ``vm``, which has our key when this returns."""
    if user.startswith("-") or not user.isprintable() or "'" in user or ":" in user:
        raise UsageError(f"'{user}' is no user's name")
    program = _program("ssh")
    found = vm.exec(["sh", "-c", PREPARE, "sh", user, public_key()])
    if found.status:
        raise MachineError(f"{vm.name}: {(found.stderr.strip().splitlines() or ['it takes no SSH'])[-1]}")
    alias = f"hostel-{vm.name}"
    known = [line.split()[:2] for line in found.stdout.splitlines() if line.startswith(("ssh-", "ecdsa-"))]
    path = vm.folder / "known_hosts"
    atomic.write(path, "".join(f"{alias} {kind} {key}\n" for kind, key in known), 0o600)
    proxy = shlex.join([sys.executable, "-P", "-m", "hostel.cli.main", "ssh", "--proxy", vm.name])
    settings = {
        "ProxyCommand": proxy.replace("%", "%%"), "HostKeyAlias": alias, "UserKnownHostsFile": f'"{path}"',
        "GlobalKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes", "IdentitiesOnly": "yes",
        "IdentityFile": f'"{paths.home() / "ssh" / "id_ed25519"}"', "LogLevel": "ERROR",
    }  # fmt: skip
    line = [program, "-F", "/dev/null"]
    for key, value in settings.items():
        line += ["-o", f"{key}={value}"]
    return [*line, *options, "-l", user, "--", vm.name, *([shlex.join(argv)] if argv else [])]


def relay(vm: "VM") -> int:
    """Standard input and output become a connection to the guest's SSH server: what ssh's ProxyCommand does."""
    from hostel.client.bridge import write_all

    return vm.attach(
        ["agent", "connect", str(PORT)], itself=True, on_stdout=write_all(1), on_stderr=write_all(2)
    )


def _program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise MachineError(f"{name} isn't there: apt install openssh-client; 'hostel exec' needs none")
    return found
