"""cloud-init's user data as shell scripts: what they do, run with the guest's programs replaced by a recorder."""

import base64
import gzip
import json
import os
import shutil
import stat
import subprocess

import pytest

from hostel.base.errors import UsageError
from hostel.images import cloud_config, seed

RECORDED = "useradd groupadd gpasswd usermod passwd chpasswd id getent chown apt-get systemctl".split()


@pytest.fixture
def run(tmp_path):
    """``run(lines)``: the script's calls of programs that would change a system, each as its words, and its status."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in RECORDED:
        path = programs / name
        # nothing is there yet, but homes
        body = {"getent": '[ "$1" = passwd ] && echo "$2:x:0:0::$FAKE/home/$2:" && exit 0; exit 2', "id": "exit 1"}
        path.write_text(f'#!/bin/sh\nfor word in {name} "$@"; do printf "%s\\0" "$word"; done >> "$FAKE/log"\n'
                        f'printf "\\n" >> "$FAKE/log"\n{body.get(name, "")}\n')  # fmt: skip
        path.chmod(0o755)

    def run(lines):
        (tmp_path / "log").write_bytes(b"")
        script = "\n".join(lines)
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "FAKE": str(tmp_path)}
        subprocess.run(["sh", "-n"], input=script, text=True, env=environment, check=True)
        done = subprocess.run(["sh"], input=script, text=True, env=environment, capture_output=True)
        calls = [line.split("\0") for line in (tmp_path / "log").read_text().split("\0\n")]
        return [call for call in calls if call[0] and call[0] not in ("getent", "id")], done.returncode

    return run


def made(config, keys=()):
    return cloud_config.scripts(b"#cloud-config\n" + json.dumps(config).encode(), keys)


def test_users_with_all_that_they_may_have(run, tmp_path):
    user = {
        "name": "ann", "gecos": "Ann O'Nym", "groups": "adm, sudo", "shell": "/bin/zsh", "uid": 2000,
        "ssh_authorized_keys": ["ssh-ed25519 AAAA a'b"], "passwd": "$6$x$y", "lock_passwd": False,
    }  # fmt: skip
    calls, _ = run(made({"users": [user], "groups": ["one", {"two": ["root"]}]}).early)
    assert ["useradd", "-c", "Ann O'Nym", "-u", "2000", "-s", "/bin/zsh", "-m", "ann"] in [
        [word for word in call if word] for call in calls
    ]
    assert ["usermod", "-aG", "adm", "ann"] in calls and ["usermod", "-aG", "sudo", "ann"] in calls
    assert ["usermod", "-p", "$6$x$y", "ann"] in calls and ["passwd", "-q", "-l", "ann"] not in calls
    assert ["groupadd", "one"] in calls and ["gpasswd", "-a", "root", "two"] in calls
    keys = tmp_path / "home/ann/.ssh/authorized_keys"
    assert keys.read_text() == "ssh-ed25519 AAAA a'b\n" and stat.S_IMODE(keys.stat().st_mode) == 0o600


def test_the_default_user_gets_the_keys_else_root(run, tmp_path):
    run(made({"users": ["default", "bob"], "ssh_authorized_keys": ["ssh-rsa AAAA1"]}, ["ssh-rsa AAAA2"]).early)
    assert (tmp_path / "home/debian/.ssh/authorized_keys").read_text() == "ssh-rsa AAAA1\n"
    assert (tmp_path / "home/root/.ssh/authorized_keys").read_text() == "ssh-rsa AAAA2\n"
    shutil.rmtree(tmp_path / "home")
    run(made({"ssh_authorized_keys": ["ssh-rsa AAAA1"]}).early)
    assert os.listdir(tmp_path / "home") == ["root"]


def test_files_of_any_bytes(run, tmp_path):
    odd = "it's \"$HOME\" `id`\\\nHOSTEL\n"
    data = bytes(range(256))
    files = [
        {"path": f"{tmp_path}/a b/odd", "content": odd, "permissions": "0600"},
        {"path": f"{tmp_path}/b64", "content": base64.b64encode(data).decode(), "encoding": "b64"},
        {"path": f"{tmp_path}/gz", "content": base64.b64encode(gzip.compress(data)).decode(), "encoding": "gz+b64",
         "owner": "ann:ann"},
        {"path": f"{tmp_path}/gz", "content": "more", "append": True},
        {"path": f"{tmp_path}/late", "content": "x", "defer": True},
    ]  # fmt: skip
    scripts = made({"write_files": files})
    calls, _ = run(scripts.early)
    assert (tmp_path / "a b/odd").read_text() == odd
    assert stat.S_IMODE((tmp_path / "a b/odd").stat().st_mode) == 0o600
    assert (tmp_path / "b64").read_bytes() == data and (tmp_path / "gz").read_bytes() == data + b"more"
    assert ["chown", "ann:ann", f"{tmp_path}/gz"] in calls and not (tmp_path / "late").exists()
    run(scripts.late)
    assert (tmp_path / "late").read_text() == "x"


def test_commands_and_packages_in_order_each_with_its_turn(run, tmp_path):
    config = {
        "packages": ["nginx", ["curl", "7.88"], "$(touch x)"], "package_upgrade": True,
        "runcmd": [["apt-get", "a b", "$X"], "exit 3", f"echo 'open > {tmp_path}/no", f"echo ok > {tmp_path}/yes"],
        "power_state": {"mode": "poweroff"},
    }  # fmt: skip
    calls, status = run(made(config).late)
    assert [call[:3] for call in calls[:2]] == [["apt-get", "-q", "update"], ["apt-get", "-q", "-y"]]
    assert calls[2][-3:] == ["nginx", "curl=7.88", "$(touch x)"]
    assert ["apt-get", "a b", "$X"] in calls and calls[-1] == ["systemctl", "--no-block", "poweroff"]
    assert (tmp_path / "yes").read_text() == "ok\n" and status == 1
    assert run(made({"runcmd": ["true"]}).late) == ([], 0)


def test_passwords(run):
    config = {"password": "se'cret", "chpasswd": {"expire": False, "list": "ann:x:y\nbob:$6$z"}}
    calls, _ = run(made(config).early)
    assert calls == [["chpasswd"], ["chpasswd"], ["chpasswd", "-e"]]


def test_what_isnt_honoured_is_named():
    assert made({"mounts": [], "swap": {}, "hostname": "x", "growpart": {}}).ignored == ["mounts", "swap"]
    assert cloud_config.scripts(b"").early == [] and cloud_config.scripts(b"#!/bin/sh\necho\n").late


@pytest.mark.parametrize("data", [
    b"no header", b"#include\nhttp://x\n", b"Content-Type: multipart/mixed\n", b"#cloud-config\n[1,\n",
    b"#cloud-config\n- a\n", b"#cloud-config\nruncmd: x\n", b"#cloud-config\nusers: [{}]\n",
    b"#cloud-config\nwrite_files: [{path: /x, permissions: rwx}]\n", b"#cloud-config\nhostname: [a]\n",
    b"#cloud-config\nwrite_files: [{path: /x, encoding: b64, content: '!'}]\n", b"#cloud-config\nusers: 7\n",
    b"#cloud-config\nwrite_files: [{path: /x, encoding: rot13}]\n", b"#cloud-config\nchpasswd: 3\n",
    b"#cloud-config\nwrite_files: [3]\n", b"#cloud-config\npower_state: {mode: fly}\n", b"x" * (1 << 20) + b"y",
    b"#cloud-config\nwrite_files: [{path: /x, encoding: gz+b64, content: AAAA}]\n", b"#cloud-config\n\xff\xfe: 1\n",
])  # fmt: skip
def test_nonsense_is_one_line(data):
    with pytest.raises(UsageError) as error:
        cloud_config.scripts(data)
    assert "\n" not in str(error.value)


def test_a_seed_is_a_disk_that_others_read(tmp_path):
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci/user-data").write_text("#cloud-config\nruncmd: [id]\n")
    (tmp_path / "ci/meta-data").write_text("instance-id: i-1\nlocal-hostname: other\n")
    made = seed.read(str(tmp_path / "ci"), "box", ["ssh-rsa AAAA k"])
    made.write(tmp_path / "seed.iso")
    data = (tmp_path / "seed.iso").read_bytes()
    assert data[0x8001:0x8006] == b"CD001" and data[0x8028:0x8048].strip() == b"CIDATA"
    meta = json.loads(made.files["meta-data"])
    assert meta == {"instance-id": "i-1", "local-hostname": "other", "public-keys": ["ssh-rsa AAAA k"]}
    assert b"other" in made.files["hostel-early"] and made.files["hostel-late"]
    import pycdlib

    image = pycdlib.PyCdlib()
    image.open(str(tmp_path / "seed.iso"))
    names = [child.rock_ridge.name() for child in image.list_children(rr_path="/") if not child.is_dot()]
    assert b"user-data" in names or not names or {b"user-data", b"meta-data"} <= set(names)
    with image.open_file_from_iso(rr_path="/user-data") as file:
        assert file.read() == b"#cloud-config\nruncmd: [id]\n"
    image.close()
    for text in ("/no/such", str(tmp_path)):
        with pytest.raises(UsageError):
            seed.read(text, "box")
    again = seed.read(None, "box")
    assert json.loads(again.files["meta-data"])["instance-id"] != json.loads(
        seed.read(None, "box").files["meta-data"]
    )["instance-id"]


def test_keys_are_public_ones(tmp_path):
    (tmp_path / "k").write_text("# c\nssh-ed25519 AAAAC3 me\nrestrict ssh-rsa AAAAB3\n\n")
    assert seed.public_keys(str(tmp_path / "k")) == ["ssh-ed25519 AAAAC3 me", "restrict ssh-rsa AAAAB3"]
    (tmp_path / "k").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    with pytest.raises(UsageError, match="ends with .pub"):
        seed.public_keys(str(tmp_path / "k"))
